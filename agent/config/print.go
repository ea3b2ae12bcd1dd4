package config

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

// redacted stands for the value of a secret.
const redacted = "********"

// Print writes the configuration as TOML, with the origin of each value that is not a default. Secrets are redacted.
func Print(w io.Writer, c Config) error {
	return printKeys(w, c, keys)
}

func printKeys(w io.Writer, c Config, keys []key) error {
	var b strings.Builder
	for i, s := range sections {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "[%s]\n", s.name)
		for _, k := range keys {
			if k.section != s.name {
				continue
			}
			line := k.name + " = " + k.literal(k.text(&c))
			if k.secret && k.text(&c) != "" {
				line = k.name + " = " + strconv.Quote(redacted)
			}
			if origin := c.Origin(k.path()); origin != "" {
				line += " # " + origin
			}
			b.WriteString(line + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Example returns the example file: every key with its words, its other names and its default. It is legal as it is.
func Example() []byte {
	var b strings.Builder
	b.WriteString(`# Configuration of axion-agent, read from ` + DefaultFile + ` (or --config FILE, or ` + FileVariable + `).
# A variable of the environment is stronger than this file, a flag is stronger than both:
# plane.address is also AXION_PLANE_ADDRESS and --plane-address. What is commented out shows the default, or an example where there is none.
# ` + "`axion-agent config check`" + ` says what is wrong with it, ` + "`axion-agent config print`" + ` what holds in the end.
`)
	for _, s := range sections {
		fmt.Fprintf(&b, "\n# %s\n[%s]\n", s.doc, s.name)
		for _, k := range keys {
			if k.section == s.name {
				b.WriteString(k.exampleText())
			}
		}
	}
	return []byte(b.String())
}

func (k key) exampleText() string {
	words := "# " + k.doc
	if bounds := k.bounds(); bounds != "" {
		words += " " + bounds
	}
	if k.required {
		words += " Required."
	}
	return fmt.Sprintf("%s\n# %s = %s\n", words, k.name, k.literal(k.sample()))
}

// bounds writes what values are allowed; empty if that is not limited.
func (k key) bounds() string {
	switch {
	case len(k.choices) > 0:
		return "One of " + strings.Join(k.choices, ", ") + "."
	case k.min != 0 || k.max != 0:
		return "From " + k.unit(k.min) + " to " + k.unit(k.max) + "."
	default:
		return ""
	}
}

// literal writes a value's text as TOML.
func (k key) literal(text string) string {
	switch k.target(&Config{}).(type) {
	case *bool, *int:
		return text
	case *[]string:
		items := splitList(text)
		for i, item := range items {
			items[i] = strconv.Quote(item)
		}
		return "[" + strings.Join(items, ", ") + "]"
	default:
		return strconv.Quote(text) // control characters are refused, so that this is TOML too
	}
}

package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Size is a number of bytes, written as "512", "64KiB", "8MiB" or "1GiB".
type Size int64

// sizeUnits are the units of a size, the largest first.
var sizeUnits = []struct {
	name  string
	bytes int64
}{{"GiB", 1 << 30}, {"MiB", mib}, {"KiB", kib}, {"B", 1}}

// String writes the size with the largest unit that divides it.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if u.bytes > 1 && s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// ParseSize reads a size; a number without a unit is in bytes.
func ParseSize(text string) (Size, error) {
	number, unit := text, int64(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(text, u.name); ok {
			number, unit = strings.TrimSpace(n), u.bytes
			break
		}
	}
	n, err := strconv.ParseUint(number, 10, 62)
	if err != nil || int64(n) > (1<<62)/unit {
		return 0, fmt.Errorf("%.40q is not a size such as \"8MiB\" or \"64KiB\"", text)
	}
	return Size(int64(n) * unit), nil
}

// setText sets the key from text, as the environment and the flags have it, and returns what is wrong with it, or "".
func (k key) setText(c *Config, text string) string {
	switch p := k.target(c).(type) {
	case *string:
		*p = text
	case *[]string:
		*p = splitList(text)
	case *bool:
		v, err := strconv.ParseBool(text)
		if err != nil {
			return k.wrong(text, "must be true or false")
		}
		*p = v
	case *int:
		v, err := strconv.Atoi(text)
		if err != nil {
			return k.wrong(text, "must be a whole number")
		}
		*p = v
	case *time.Duration:
		v, err := time.ParseDuration(text)
		if err != nil {
			return k.wrong(text, `must be a duration such as "10s" or "5m"`)
		}
		*p = v
	case *Size:
		v, err := ParseSize(text)
		if err != nil {
			return k.wrong(text, `must be a size such as "8MiB" or "64KiB"`)
		}
		*p = v
	}
	return k.checkValue(c)
}

// setTOML sets the key from a decoded TOML value and returns what is wrong with it, or "". Types are taken as they are: "4" is not a number.
func (k key) setTOML(c *Config, value any) string {
	switch p := k.target(c).(type) {
	case *bool:
		v, ok := value.(bool)
		if !ok {
			return "must be true or false, without quotes"
		}
		*p = v
	case *int:
		v, ok := value.(int64)
		if !ok {
			return "must be a whole number, without quotes"
		}
		*p = int(v)
	case *[]string:
		list, ok := stringList(value)
		if !ok {
			return `must be a list of strings such as ["a:9093", "b:9093"]`
		}
		*p = list
	default: // strings, durations and sizes are written as strings
		text, ok := value.(string)
		if !ok {
			return fmt.Sprintf("must be a string, in quotes, such as %q", k.sample())
		}
		return k.setText(c, text)
	}
	return k.checkValue(c)
}

// checkValue returns what is wrong with the value that the key has now, or "".
func (k key) checkValue(c *Config) string {
	switch p := k.target(c).(type) {
	case *string:
		return k.checkString(*p)
	case *[]string:
		for _, v := range *p {
			if text := k.checkString(v); text != "" {
				return text
			}
		}
	case *int:
		return k.checkBounds(int64(*p))
	case *time.Duration:
		return k.checkBounds(int64(*p))
	case *Size:
		return k.checkBounds(int64(*p))
	}
	return ""
}

func (k key) checkString(value string) string {
	switch {
	case value == "" && k.required:
		return "must not be empty"
	case value == "" && k.def == "": // not set
		return ""
	case !utf8.ValidString(value):
		return "must be UTF-8"
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "must not contain control characters"
	case len(k.choices) > 0 && !slices.Contains(k.choices, value):
		return k.wrong(value, "must be one of "+strings.Join(k.choices, ", "))
	case k.check == nil:
		return ""
	}
	if text := k.check(value); text != "" {
		return k.wrong(value, text)
	}
	return ""
}

func (k key) checkBounds(n int64) string {
	if k.min == 0 && k.max == 0 || n >= k.min && n <= k.max {
		return ""
	}
	return fmt.Sprintf("is %s, must be from %s to %s", k.unit(n), k.unit(k.min), k.unit(k.max))
}

// unit writes a number as the key's type would be written.
func (k key) unit(n int64) string {
	switch k.target(&Config{}).(type) {
	case *time.Duration:
		return shortDuration(time.Duration(n))
	case *Size:
		return Size(n).String()
	default:
		return strconv.FormatInt(n, 10)
	}
}

// wrong names the value in the complaint, unless it is a secret.
func (k key) wrong(value, text string) string {
	if k.secret {
		return text
	}
	return fmt.Sprintf("is %.80q, %s", value, text)
}

// text writes the value that the key has, as setText would read it.
func (k key) text(c *Config) string {
	switch p := k.target(c).(type) {
	case *string:
		return *p
	case *[]string:
		return strings.Join(*p, ",")
	case *bool:
		return strconv.FormatBool(*p)
	case *int:
		return strconv.Itoa(*p)
	case *time.Duration:
		return shortDuration(*p)
	case *Size:
		return p.String()
	default:
		return ""
	}
}

// sample is a legal value.
func (k key) sample() string {
	if k.def != "" {
		return k.def
	}
	return k.example
}

func splitList(text string) []string {
	var list []string
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

func stringList(value any) ([]string, bool) {
	items, ok := value.([]any)
	if !ok {
		return nil, false
	}
	list := make([]string, 0, len(items))
	for _, item := range items {
		s, ok := item.(string)
		if !ok {
			return nil, false
		}
		list = append(list, s)
	}
	return list, true
}

// shortDuration writes "10m" where time.Duration writes "10m0s".
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

package config

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/axion/runner-agent/internal/variables"
)

const (
	// DefaultFile is read if no other file is named; it need not exist.
	DefaultFile = "/etc/axion/agent.toml"
	// FileVariable names the file; the flag --config is stronger.
	FileVariable = "AXION_CONFIG"

	variablePrefix = "AXION_"
	// contextVariable belongs to the operator's command line, which may share an environment with the agent.
	contextVariable = "AXION_CONTEXT"
	// maxFileBytes bounds the configuration file.
	maxFileBytes = 64 << 10
)

// Sources are where the configuration comes from.
type Sources struct {
	// File is the file that the command line names; empty means FileVariable or DefaultFile.
	File string
	// Environ is the environment as os.Environ returns it. An empty variable counts as not set.
	Environ []string
	// Flags are those of the command line; nil means none.
	Flags *Flags
}

// Load reads and checks the whole configuration. If anything is wrong the error is a Problems with all of it.
func Load(src Sources) (Config, error) {
	c, ps := load(src)
	ps = append(ps, missing(&c, ps)...)
	if len(ps) == 0 {
		ps = checkTogether(&c)
	}
	if len(ps) > 0 {
		return Config{}, ps
	}
	return c, nil
}

// HealthListen returns health.listen alone and does not care what else is wrong: a health check must not fail for the agent's configuration.
func HealthListen(src Sources) string { return single(src, "health.listen") }

// LocalSocket returns local.socket alone and does not care what else is wrong: the local command line needs nothing else.
func LocalSocket(src Sources) string { return single(src, "local.socket") }

// single returns one key that has a default; the default if what was given is wrong.
func single(src Sources, path string) string {
	c, _ := load(src)
	k, _ := find(path)
	if k.checkValue(&c) != "" {
		return k.def
	}
	return k.text(&c)
}

// Origin says where the key's value came from: a file with its line, a variable, or a flag; empty for a default.
func (c *Config) Origin(path string) string { return c.origins[path] }

// load puts defaults, file, environment and flags on top of each other.
func load(src Sources) (Config, Problems) {
	c := defaults()
	environ := parseEnviron(src.Environ)
	ps := loadFile(&c, src.File, environ[FileVariable])
	ps = append(ps, loadEnviron(&c, environ)...)
	return c, append(ps, loadFlags(&c, src.Flags)...)
}

// defaults returns a configuration of defaults.
func defaults() Config {
	c := Config{origins: make(map[string]string)}
	for _, k := range keys {
		if k.def != "" {
			k.setText(&c, k.def) // a test sees to it that defaults are legal
		}
	}
	return c
}

// loadFile reads the file that the flag or the variable names, or the default file if there is one.
func loadFile(c *Config, flag, variable string) Problems {
	path, where := DefaultFile, ""
	switch {
	case flag != "":
		path, where = flag, "--config"
	case variable != "":
		path, where = variable, FileVariable
	}
	content, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) && where == "" {
		return nil
	}
	if err != nil {
		return Problems{{Where: where, Text: "configuration file cannot be read: " + err.Error()}}
	}
	return loadTOML(c, path, content)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err == nil && len(content) > maxFileBytes {
		err = errors.New(path + " has more than " + strconv.Itoa(maxFileBytes) + " bytes")
	}
	return content, err
}

// parseEnviron returns the agent's variables that are not empty.
func parseEnviron(environ []string) map[string]string {
	vars := make(map[string]string)
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, variablePrefix) && value != "" {
			vars[name] = value
		}
	}
	return vars
}

func loadEnviron(c *Config, environ map[string]string) Problems {
	var ps Problems
	known := []string{FileVariable, contextVariable}
	for _, k := range keys {
		name := k.variable()
		known = append(known, name)
		value, ok := environ[name]
		if !ok {
			continue
		}
		c.origins[k.path()] = name
		if text := k.setText(c, value); text != "" {
			ps = append(ps, Problem{Where: name, Key: k.path(), Text: text})
		}
	}
	var unknown []string
	for name := range environ {
		if !slices.Contains(known, name) && !variables.OfPlane(name) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	for _, name := range unknown {
		ps = append(ps, Problem{Where: name, Text: "no such variable is known"})
	}
	return ps
}

func loadFlags(c *Config, flags *Flags) Problems {
	var ps Problems
	for _, k := range keys {
		value, ok := flags.lookup(k.flag())
		if !ok {
			continue
		}
		c.origins[k.path()] = "--" + k.flag()
		if text := k.setText(c, value); text != "" {
			ps = append(ps, Problem{Where: "--" + k.flag(), Key: k.path(), Text: text})
		}
	}
	return ps
}

// missing finds the required keys that nobody has set. One that was set to nonsense is not missing.
func missing(c *Config, known Problems) Problems {
	var ps Problems
	for _, k := range keys {
		complained := slices.ContainsFunc(known, func(p Problem) bool { return p.Key == k.path() })
		if k.required && k.text(c) == "" && !complained {
			ps = append(ps, Problem{Key: k.path(), Text: "is missing: set it in the file, as " + k.variable() + ", or with --" + k.flag()})
		}
	}
	return ps
}

package bundle

import (
	"path"
	"strings"

	"github.com/axion/runner-agent/proto/failure"
)

// Bounds of a bundle. They hold for what a sender gathers and for what an agent accepts.
const (
	// MaxComposeFiles is the number of compose files of one stack.
	MaxComposeFiles = 32
	// MaxComposeBytes is the size of all compose files together. (Files that they refer to count against the message only.)
	MaxComposeBytes = 512 << 10
	// MaxFiles is the number of files, the compose files among them.
	MaxFiles = 1000
	// DefaultMaxBytes is the size of all files together if GatherOptions does not say otherwise.
	DefaultMaxBytes = 8 << 20
	// MaxPath is the length of a path in bytes.
	MaxPath = 4096
	// MaxVariables is the number of variables.
	MaxVariables = 1000
	// MaxVariableBytes is the size of one variable's value.
	MaxVariableBytes = 64 << 10
	// MaxCredentials is the number of registry credentials.
	MaxCredentials = 64
)

// File is one file of a bundle.
type File struct {
	// Path is the sender's: absolute, cleaned, with slashes.
	Path    string
	Content []byte
}

// Credential is a login at one registry. It is kept in memory only.
type Credential struct {
	// Server is the registry's host as docker names it, for example "registry.example.com:5000" or "https://index.docker.io/v1/".
	Server, Username, Password string
	// IdentityToken stands in the password's place where a registry gives one.
	IdentityToken string
}

// Content is all that a deployment reads: nothing that is not in it is ever opened or looked up.
type Content struct {
	// WorkingDir is the sender's: where relative paths of the compose files start.
	WorkingDir string
	// Home is the sender's home directory, for sources that start with "~"; may be empty.
	Home string
	// ComposeFiles holds paths of Files, in the order in which they are merged.
	ComposeFiles []string
	Files        []File
	// Variables are all that the compose files may name.
	Variables   map[string]string
	Credentials []Credential
}

// Validate checks the bounds and that each path is absolute, clean and unique. Its failures have class invalid and code "invalid_bundle".
func (c Content) Validate() error {
	switch {
	case !cleanPath(c.WorkingDir):
		return invalid("the working directory %q of the bundle is not an absolute, clean path", c.WorkingDir)
	case c.Home != "" && !cleanPath(c.Home):
		return invalid("the home directory %q of the bundle is not an absolute, clean path", c.Home)
	case len(c.ComposeFiles) == 0:
		return invalid("the bundle names no compose file")
	case len(c.ComposeFiles) > MaxComposeFiles:
		return invalid("the bundle has %d compose files, at most %d are allowed", len(c.ComposeFiles), MaxComposeFiles)
	case len(c.Files) > MaxFiles:
		return invalid("the bundle has %d files, at most %d are allowed", len(c.Files), MaxFiles)
	case len(c.Variables) > MaxVariables:
		return invalid("the bundle has %d variables, at most %d are allowed", len(c.Variables), MaxVariables)
	case len(c.Credentials) > MaxCredentials:
		return invalid("the bundle has %d registry credentials, at most %d are allowed", len(c.Credentials), MaxCredentials)
	}
	seen := make(map[string]bool, len(c.Files))
	for _, f := range c.Files {
		if !cleanPath(f.Path) {
			return invalid("the path %q in the bundle is not absolute and clean", f.Path)
		}
		if seen[f.Path] {
			return invalid("the path %q is in the bundle twice", f.Path)
		}
		seen[f.Path] = true
	}
	for _, p := range c.ComposeFiles {
		if !seen[p] {
			return invalid("the compose file %q is not in the bundle", p)
		}
	}
	for name, value := range c.Variables {
		if name == "" || strings.ContainsAny(name, "=\x00") || len(name) > MaxPath {
			return invalid("the bundle has a variable with the bad name %q", name)
		}
		if len(value) > MaxVariableBytes || strings.ContainsRune(value, 0) {
			return invalid("the variable %s is longer than %d bytes or has a zero byte", name, MaxVariableBytes)
		}
	}
	return nil
}

func cleanPath(p string) bool {
	return len(p) <= MaxPath && path.IsAbs(p) && path.Clean(p) == p && !strings.ContainsRune(p, 0)
}

func invalid(format string, args ...any) error {
	return failure.New(failure.Invalid, "invalid_bundle", "", format, args...)
}

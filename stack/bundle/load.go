package bundle

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	composetypes "github.com/docker/cli/cli/compose/types"

	"github.com/axion/runner-agent/proto/failure"
)

// Loaded is a stack that docker/cli has read and checked, ready to be deployed.
type Loaded struct {
	// Config is docker/cli's; the files of its configs and secrets are private copies.
	Config *composetypes.Config
	// Warnings are docker/cli's, each one text.
	Warnings []string

	copies *copies
}

// Sender returns err, which came from reading a private copy, with the sender's paths in its sentence.
func (l *Loaded) Sender(err error) error { return l.copies.named(err) }

// Services returns the names of the services, without the stack's.
func (l *Loaded) Services() []string {
	names := make([]string, 0, len(l.Config.Services))
	for _, service := range l.Config.Services {
		names = append(names, service.Name)
	}
	return names
}

// SecretFiles returns the paths, as the sender knows them, of the files that become secrets.
func (l *Loaded) SecretFiles() map[string]bool {
	sender := make(map[string]string, len(l.copies.byPath))
	for path, at := range l.copies.byPath {
		sender[at] = path
	}
	paths := map[string]bool{}
	for _, secret := range l.Config.Secrets {
		if path, ok := sender[secret.File]; ok {
			paths[path] = true
		}
	}
	return paths
}

// Load reads the bundle's compose files. Files that docker/cli will open are copied to dir, which must be private to this call and be removed by the
// caller after the deployment. What docker/cli refuses is a failure of class invalid and code "invalid_compose" in its own words; a path outside the
// bundle is one of class denied and code "not_in_bundle".
func Load(c Content, dir string) (*Loaded, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	files := newFiles(c)
	copies := &copies{dir: dir, byPath: map[string]string{}}
	r := &reader{
		workingDir: c.WorkingDir,
		home:       c.Home,
		open:       files.read,
		lookup:     func(name string) (string, bool) { v, ok := c.Variables[name]; return v, ok },
		place:      copies.add,
	}
	composeFiles := make([]File, 0, len(c.ComposeFiles))
	for _, p := range c.ComposeFiles {
		composeFiles = append(composeFiles, File{Path: p, Content: files.byPath[p]})
	}
	config, warnings, err := r.config(composeFiles)
	if err != nil {
		return nil, copies.named(err)
	}
	err = eachFile(config, c.WorkingDir, func(p string, point func(string)) error {
		content, err := files.read(p)
		if err != nil {
			return err
		}
		if r.count(len(content)); r.limit != nil {
			return r.limit
		}
		at, err := copies.of(path.Clean(p), content)
		point(at)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &Loaded{Config: config, Warnings: warnings, copies: copies}, nil
}

// copies are the private files of one deployment. Their names are numbers of one length: they say nothing of what is in them, and none begins another.
type copies struct {
	dir    string
	byPath map[string]string // of configs and secrets: the sender's path to its copy
	names  []string          // pairs of copy and sender's path
}

// add keeps a copy of what the sender knows by p.
func (c *copies) add(p string, content []byte) (string, error) {
	at := filepath.Join(c.dir, fmt.Sprintf("%08d", len(c.names)/2))
	if err := os.WriteFile(at, content, 0o600); err != nil {
		return "", fmt.Errorf("cannot keep a private copy of %s: %w", p, err)
	}
	c.names = append(c.names, at, p)
	return at, nil
}

// of returns the copy of the config or secret at p, made on the first call.
func (c *copies) of(p string, content []byte) (string, error) {
	if at, ok := c.byPath[p]; ok {
		return at, nil
	}
	at, err := c.add(p, content)
	if err != nil {
		return "", err
	}
	c.byPath[p] = at
	return at, nil
}

// named returns err with the sender's paths in its sentence.
func (c *copies) named(err error) error {
	f := *failure.Of(err)
	f.Message = strings.NewReplacer(c.names...).Replace(f.Message)
	return &f
}

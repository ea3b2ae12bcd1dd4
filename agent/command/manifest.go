package command

import (
	"os"
	"slices"
	"strings"

	"github.com/axion/runner-agent/agent/fence"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack"
	"github.com/axion/runner-agent/stack/bundle"
)

// manifest is what is kept in the Swarm of a deployment, so that a later one can go back to it. Whoever may read the Swarm's configs can read it: no file that
// becomes a secret, no credential and no variable with a name that promises a secret is in it. What compose files and env files say of a service's environment
// is, as it is in the service itself.
type manifest struct {
	Stack        string            `json:"stack"`
	Services     []string          `json:"services"`
	Prune        bool              `json:"prune"`
	RegistryAuth bool              `json:"registry_auth"`
	ResolveImage string            `json:"resolve_image"`
	WorkingDir   string            `json:"working_dir"`
	Home         string            `json:"home,omitempty"`
	ComposeFiles []string          `json:"compose_files"`
	Files        map[string][]byte `json:"files"`
	Variables    map[string]string `json:"variables,omitempty"`
	// Withheld names the files and variables that were left out: a rollback cannot be made without asking for them, unless nothing needs them.
	Withheld []string `json:"withheld,omitempty"`
}

// maxSubject is the length of the longest name that a command may be about, as the contract states it.
const maxSubject = 255

// secretWords are parts of the names of variables whose values are left out.
var secretWords = []string{"SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "TOKEN", "CREDENTIAL", "PRIVATE", "API_KEY", "APIKEY", "ACCESS_KEY"}

func namesSecret(variable string) bool {
	upper := strings.ToUpper(variable)
	return slices.ContainsFunc(secretWords, func(word string) bool { return strings.Contains(upper, word) })
}

// manifest opens the bundle, which refuses what is wrong in it, and returns the full names of its services along with the manifest.
func (r *Runner) manifest(d stack.Deployment) ([]string, *fence.Manifest, error) {
	dir, err := os.MkdirTemp(r.cfg.WorkDir, "bundle-")
	if err != nil {
		return nil, nil, failure.New(failure.Internal, "work_folder", r.cfg.WorkDir, "cannot make a private folder for the bundle: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // what is left is removed at the next start
	loaded, err := bundle.Load(d.Bundle, dir)
	if err != nil {
		return nil, nil, err
	}
	m := manifest{
		Stack: d.Stack, Services: loaded.Services(), Prune: d.Prune, RegistryAuth: d.WithRegistryAuth, ResolveImage: string(d.ResolveImage),
		WorkingDir: d.Bundle.WorkingDir, Home: d.Bundle.Home, ComposeFiles: d.Bundle.ComposeFiles, Files: map[string][]byte{}, Variables: map[string]string{},
	}
	slices.Sort(m.Services)
	secret := loaded.SecretFiles()
	for _, f := range d.Bundle.Files {
		if secret[f.Path] {
			m.Withheld = append(m.Withheld, f.Path)
			continue
		}
		m.Files[f.Path] = f.Content
	}
	for name, value := range d.Bundle.Variables {
		if namesSecret(name) {
			m.Withheld = append(m.Withheld, "$"+name)
			continue
		}
		m.Variables[name] = value
	}
	slices.Sort(m.Withheld)
	names := make([]string, 0, len(m.Services))
	for _, name := range m.Services {
		names = append(names, d.Stack+"_"+name)
	}
	kept, err := fence.NewManifest(m)
	return names, kept, err
}

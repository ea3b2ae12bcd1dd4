// Package deploy makes a deployment command out of what lies on the caller's disk: the compose files, every file that they refer to, the
// variables that they name, and, if asked for, the logins at the registries of their images. Nothing else leaves the machine.
package deploy

import (
	"io"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack/bundle"
	"github.com/axion/runner-agent/stack/registryauth"
)

// Options say what to deploy and how.
type Options struct {
	// Stack is the stack's name.
	Stack string
	// ComposeFiles are paths, or "-" for Stdin, in the order in which they are merged.
	ComposeFiles []string
	// EnvFiles hold variables; the environment wins over them.
	EnvFiles []string
	// Stdin is read if a compose file is "-".
	Stdin io.Reader
	// LookupEnv is the caller's environment.
	LookupEnv func(string) (string, bool)
	// WorkingDir and Home are the caller's, absolute; Home may be empty.
	WorkingDir, Home string
	// Prune removes services that the compose files no longer name.
	Prune bool
	// WithRegistryAuth sends the logins at the images' registries along.
	WithRegistryAuth bool
	// ResolveImage is docker's option of that name.
	ResolveImage runnerv1.ResolveImage
	// Timeout is how long the stack may take to converge; 1 s to 24 h.
	Timeout time.Duration
}

// Command gathers the bundle and returns the command. Its failures are those of bundle.Gather and registryauth.FromDockerConfig, and invalid
// "bundle_too_large" for a command that is larger than any message may be.
func Command(o Options) (*runnerv1.StackDeploy, error) {
	content, err := bundle.Gather(bundle.GatherOptions{
		ComposeFiles: o.ComposeFiles, EnvFiles: o.EnvFiles, Stdin: o.Stdin, LookupEnv: o.LookupEnv, WorkingDir: o.WorkingDir, Home: o.Home,
	})
	if err != nil {
		return nil, err
	}
	if o.WithRegistryAuth {
		if content.Credentials, err = credentials(content); err != nil {
			return nil, err
		}
	}
	command := &runnerv1.StackDeploy{
		Stack:  o.Stack,
		Bundle: &runnerv1.Bundle{Content: &runnerv1.Bundle_Plain{Plain: message(content)}},
		Options: &runnerv1.DeployOptions{
			Prune: o.Prune, ResolveImage: o.ResolveImage, WithRegistryAuth: o.WithRegistryAuth, Timeout: durationpb.New(o.Timeout),
		},
	}
	if size := proto.Size(command); size > envelope.DefaultMaxData {
		return nil, failure.New(failure.Invalid, "bundle_too_large", o.Stack, "the files of stack %s make a command of %d bytes; at most %d are allowed",
			o.Stack, size, envelope.DefaultMaxData).WithHint("bring large files to the nodes by an image or a volume")
	}
	return command, nil
}

func credentials(content bundle.Content) ([]bundle.Credential, error) {
	images, err := registryauth.Images(content)
	if err != nil {
		return nil, err
	}
	return registryauth.FromDockerConfig(images)
}

// message returns the bundle in the contract's form.
func message(c bundle.Content) *runnerv1.BundleContent {
	m := &runnerv1.BundleContent{WorkingDir: c.WorkingDir, Home: c.Home, ComposeFiles: c.ComposeFiles, Variables: c.Variables}
	for _, f := range c.Files {
		m.Files = append(m.Files, &runnerv1.BundleFile{Path: f.Path, Content: f.Content})
	}
	for _, r := range c.Credentials {
		m.RegistryCredentials = append(m.RegistryCredentials, &runnerv1.RegistryCredential{
			Server: r.Server, Username: r.Username, Password: r.Password, IdentityToken: r.IdentityToken,
		})
	}
	return m
}

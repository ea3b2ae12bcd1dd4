// Package registryauth finds the logins that a stack's images need in the docker config file of the person who deploys: what `docker login` stored
// there or in a credential helper. Only the registries that the images name are looked up; no other login is ever read.
package registryauth

import (
	"os"
	"slices"

	"github.com/distribution/reference"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"

	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack/bundle"
)

// dockerHub is the name under which docker stores the login at Docker Hub (docker/cli, cli/command/registry.go).
const dockerHub = "https://index.docker.io/v1/"

// Images returns the images of the bundle's services as docker/cli reads them: merged, and with the bundle's variables filled in. Each stands once,
// in alphabetical order.
func Images(content bundle.Content) ([]string, error) {
	dir, err := os.MkdirTemp("", "axion-images-") // mode 0700; docker/cli's loader opens some files by their path
	if err != nil {
		return nil, failure.New(failure.Unavailable, "no_private_copy", "", "cannot make a private folder for the files of the stack: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	loaded, err := bundle.Load(content, dir)
	if err != nil {
		return nil, err
	}
	var images []string
	for _, service := range loaded.Config.Services {
		images = append(images, service.Image)
	}
	slices.Sort(images)
	return slices.Compact(images), nil
}

// FromDockerConfig returns the stored logins at the registries of these images, one for each registry that has one, ordered by registry. The file is
// the one that docker itself reads (DOCKER_CONFIG, else ~/.docker/config.json). Images whose name docker would refuse are passed over: the deployment
// says what is wrong with them. Failures: invalid "bad_docker_config", unavailable "registry_credentials" (a credential helper failed).
func FromDockerConfig(images []string) ([]bundle.Credential, error) {
	return fromDir(config.Dir(), images)
}

func fromDir(dir string, images []string) ([]bundle.Credential, error) {
	file, err := config.Load(dir)
	if err != nil {
		return nil, failure.New(failure.Invalid, "bad_docker_config", dir, "docker's config file cannot be read: %w", err).
			WithHint("repair it, or deploy without --with-registry-auth")
	}
	var credentials []bundle.Credential
	for _, server := range servers(images) {
		credential, err := login(file, server)
		if err != nil {
			return nil, err
		}
		if credential != (bundle.Credential{Server: server}) {
			credentials = append(credentials, credential)
		}
	}
	if len(credentials) > bundle.MaxCredentials {
		return nil, failure.New(failure.Invalid, "too_many_credentials", "", "the stack needs logins at %d registries, at most %d are allowed", len(credentials), bundle.MaxCredentials)
	}
	return credentials, nil
}

func login(file *configfile.ConfigFile, server string) (bundle.Credential, error) {
	auth, err := file.GetAuthConfig(server)
	if err != nil {
		return bundle.Credential{}, failure.New(failure.Unavailable, "registry_credentials", server, "cannot read the login at %s: %w", server, err).
			WithHint("docker login " + server + " shows whether docker's credential helper works")
	}
	return bundle.Credential{Server: server, Username: auth.Username, Password: auth.Password, IdentityToken: auth.IdentityToken}, nil
}

// servers returns the names under which docker keeps the logins for these images, each once and in order.
func servers(images []string) []string {
	var names []string
	for _, image := range images {
		named, err := reference.ParseNormalizedNamed(image)
		if err != nil {
			continue
		}
		name := reference.Domain(named)
		if name == "docker.io" || name == "index.docker.io" {
			name = dockerHub
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Package images is the room for what an image is called and where it comes from: references and registries. Signatures and the policy on them move in
// with self-update. It knows no Docker client and no transport.
package images

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
)

// HubServer is the name under which docker keeps the login of its default registry, Docker Hub.
const HubServer = "https://index.docker.io/v1/"

// ServerOf returns the name under which docker keeps the login for an image: its registry's host with port, or HubServer.
func ServerOf(image string) (string, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", fmt.Errorf("image %q: %w", image, err)
	}
	return Server(reference.Domain(named)), nil
}

// Server returns the name under which docker keeps a registry's login: the many names of Docker Hub are one, another registry is its host with port,
// without scheme and path.
func Server(registry string) string {
	host := registry
	for _, scheme := range []string{"https://", "http://"} {
		host = strings.TrimPrefix(host, scheme)
	}
	host, _, _ = strings.Cut(host, "/")
	switch host {
	case "", "docker.io", "index.docker.io", "registry-1.docker.io":
		return HubServer
	default:
		return host
	}
}

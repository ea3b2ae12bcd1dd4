package registryauth

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack/bundle"
)

// dockerConfig writes a config file with a login at each server and returns its folder.
func dockerConfig(t *testing.T, extra map[string]any, logins map[string]string) string {
	t.Helper()
	t.Setenv("DOCKER_AUTH_CONFIG", "")
	auths := map[string]any{}
	for server, login := range logins {
		auths[server] = map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(login))}
	}
	file := map[string]any{"auths": auths}
	for key, value := range extra {
		file[key] = value
	}
	text, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestOnlyTheImagesRegistries(t *testing.T) {
	dir := dockerConfig(t, nil, map[string]string{
		dockerHub: "hub:hubpass", "registry.example.com:5000": "ex:expass", "other.example.com": "never:sent",
	})
	got, err := fromDir(dir, []string{"nginx", "registry.example.com:5000/shop/web:1", "registry.example.com:5000/shop/db", "quay.io/x/y", "BAD::name", ""})
	if err != nil {
		t.Fatal(err)
	}
	want := []bundle.Credential{
		{Server: dockerHub, Username: "hub", Password: "hubpass"},
		{Server: "registry.example.com:5000", Username: "ex", Password: "expass"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestNoConfigFile(t *testing.T) {
	t.Setenv("DOCKER_AUTH_CONFIG", "")
	got, err := fromDir(t.TempDir(), []string{"nginx"})
	if err != nil || len(got) != 0 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestBadConfigFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := fromDir(dir, []string{"nginx"})
	if f := failure.Of(err); f == nil || f.Code != "bad_docker_config" || f.Class != failure.Invalid {
		t.Errorf("got %v", err)
	}
}

// TestCredentialHelper uses a real helper process, as `docker login` with a credential store does.
func TestCredentialHelper(t *testing.T) {
	bin := t.TempDir()
	helper := `#!/bin/sh
read server
case "$1 $server" in
"get registry.example.com") echo '{"ServerURL":"registry.example.com","Username":"<token>","Secret":"identity"}' ;;
"get broken.example.com") echo "the keychain is locked"; exit 1 ;;
*) echo "credentials not found in native keychain"; exit 1 ;;
esac
`
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	dir := dockerConfig(t, map[string]any{"credsStore": "test"}, nil)

	got, err := fromDir(dir, []string{"registry.example.com/a", "unknown.example.com/b"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []bundle.Credential{{Server: "registry.example.com", IdentityToken: "identity"}}; !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}

	_, err = fromDir(dir, []string{"broken.example.com/a"})
	if f := failure.Of(err); f == nil || f.Class != failure.Unavailable || !strings.Contains(f.Message, "broken.example.com") {
		t.Errorf("got %v", err)
	}
}

func TestImages(t *testing.T) {
	content := bundle.Content{
		WorkingDir:   "/stack",
		ComposeFiles: []string{"/stack/a.yml", "/stack/b.yml"},
		Files: []bundle.File{
			{Path: "/stack/a.yml", Content: []byte("version: '3.8'\nservices:\n  web: {image: '${REGISTRY}/web:${TAG:-1}'}\n  db: {image: postgres}\n")},
			{Path: "/stack/b.yml", Content: []byte("version: '3.8'\nservices:\n  db: {image: 'mirror.example.com/postgres'}\n  db2: {image: 'mirror.example.com/postgres'}\n")},
		},
		Variables: map[string]string{"REGISTRY": "registry.example.com"},
	}
	got, err := Images(content)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"mirror.example.com/postgres", "registry.example.com/web:1"}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

package deploy

import (
	"encoding/base64"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// write makes files below dir.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func environment(variables map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, ok := variables[name]
		return value, ok
	}
}

// shop is a stack that refers to files of each kind; beside them lies what must stay at home.
func shop(t *testing.T) string {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	write(t, root, map[string]string{
		"app/compose.yml": `version: "3.8"
services:
  web:
    image: registry.example.com/shop/web:${TAG}
    env_file: [web.env]
    environment: {GREETING: "${GREETING:-hello}"}
    configs: [site]
    secrets: [password]
configs:
  site: {file: ./site.conf}
secrets:
  password: {file: ../secrets/password}
`,
		"app/web.env":      "PORT=8080\n",
		"app/site.conf":    "listen 8080\n",
		"app/private.key":  "stays at home",
		"secrets/password": "sesame",
		"vars.env":         "TAG=from-file\nUNUSED=stays at home\n",
	})
	return root
}

func TestOnlyWhatIsNamedIsSent(t *testing.T) {
	root := shop(t)
	command, err := Command(Options{
		Stack: "shop", ComposeFiles: []string{"app/compose.yml"}, EnvFiles: []string{"vars.env"}, WorkingDir: root,
		LookupEnv: environment(map[string]string{"GREETING": "hi", "AWS_SECRET_ACCESS_KEY": "stays at home", "PATH": "stays at home"}),
		Prune:     true, ResolveImage: runnerv1.ResolveImage_RESOLVE_IMAGE_CHANGED, Timeout: 90 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	bundle := command.GetBundle().GetPlain()
	files := map[string]string{}
	for _, f := range bundle.GetFiles() {
		name, err := filepath.Rel(root, f.GetPath())
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(f.GetContent())
	}
	names := slices.Sorted(maps.Keys(files))
	if want := []string{"app/compose.yml", "app/site.conf", "app/web.env", "secrets/password"}; !slices.Equal(names, want) {
		t.Errorf("files %v", names)
	}
	if files["secrets/password"] != "sesame" {
		t.Errorf("the secret is %q", files["secrets/password"])
	}
	if want := map[string]string{"TAG": "from-file", "GREETING": "hi"}; !maps.Equal(bundle.GetVariables(), want) {
		t.Errorf("variables %v", bundle.GetVariables())
	}
	if bundle.GetWorkingDir() != filepath.Join(root, "app") || bundle.GetHome() != "" || len(bundle.GetRegistryCredentials()) != 0 {
		t.Errorf("working directory %q, home %q, %d credentials", bundle.GetWorkingDir(), bundle.GetHome(), len(bundle.GetRegistryCredentials()))
	}
	options := command.GetOptions()
	if command.GetStack() != "shop" || !options.GetPrune() || options.GetWithRegistryAuth() ||
		options.GetResolveImage() != runnerv1.ResolveImage_RESOLVE_IMAGE_CHANGED || options.GetTimeout().AsDuration() != 90*time.Second {
		t.Errorf("command %v", options)
	}
	text, err := proto.Marshal(command)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "stays at home") {
		t.Error("something that should have stayed at home is in the command")
	}
}

// TestLoginsOnlyIfAskedFor runs in a process whose docker config file has two logins (TestMain).
func TestLoginsOnlyIfAskedFor(t *testing.T) {
	root := shop(t)
	for _, asked := range []bool{false, true} {
		command, err := Command(Options{
			Stack: "shop", ComposeFiles: []string{"app/compose.yml"}, WorkingDir: root, LookupEnv: environment(map[string]string{"TAG": "1"}), WithRegistryAuth: asked,
		})
		if err != nil {
			t.Fatal(err)
		}
		credentials := command.GetBundle().GetPlain().GetRegistryCredentials()
		if !asked {
			if len(credentials) != 0 {
				t.Errorf("%d logins were sent unasked", len(credentials))
			}
			continue
		}
		if len(credentials) != 1 || credentials[0].GetServer() != "registry.example.com" || credentials[0].GetUsername() != "me" || credentials[0].GetPassword() != "pass" {
			t.Errorf("logins at %v", credentials)
		}
		if !command.GetOptions().GetWithRegistryAuth() {
			t.Error("the agent is not told to use them")
		}
	}
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "axt-docker-config-")
	if err != nil {
		panic(err)
	}
	login := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	config := `{"auths":{"registry.example.com":{"auth":"` + login("me:pass") + `"},"other.example.com":{"auth":"` + login("you:never") + `"}}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		panic(err)
	}
	if err := os.Setenv("DOCKER_CONFIG", dir); err != nil { // docker/cli reads it once a process
		panic(err)
	}
	if err := os.Unsetenv("DOCKER_AUTH_CONFIG"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func TestRefusals(t *testing.T) {
	root := shop(t)
	write(t, root, map[string]string{"big.yml": "version: '3.8'\nservices: {}\nconfigs: {big: {file: ./big.bin}}\n", "big.bin": strings.Repeat("x", 8<<20-60)})
	for name, tc := range map[string]struct {
		file, code string
	}{
		"no such file": {"missing.yml", "unreadable_file"},
		"too large":    {"big.yml", "bundle_too_large"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Command(Options{Stack: "shop", ComposeFiles: []string{tc.file}, WorkingDir: root})
			if f := failure.Of(err); f == nil || f.Code != tc.code || f.Class != failure.Invalid {
				t.Errorf("got %v", f)
			}
		})
	}
}

package bundle

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/axion/runner-agent/proto/failure"
)

// content is a bundle of a sender in /home/dev/shop; files are name and text in turn, the first one is the compose file.
func content(files ...string) Content {
	c := Content{WorkingDir: "/home/dev/shop", ComposeFiles: []string{absolute("/home/dev/shop", files[0])}}
	for i := 0; i < len(files); i += 2 {
		c.Files = append(c.Files, File{Path: absolute("/home/dev/shop", files[i]), Content: []byte(files[i+1])})
	}
	return c
}

func wantFailure(t *testing.T, err error, class failure.Class, code, text string) {
	t.Helper()
	f := failure.Of(err)
	if f == nil {
		t.Fatalf("no error, want %v %s: %s", class, code, text)
	}
	if f.Class != class || f.Code != code || !strings.Contains(f.Message, text) {
		t.Fatalf("got %v %s: %s\nwant %v %s: … %s …", f.Class, f.Code, f.Message, class, code, text)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func environment(c *Loaded, service string) map[string]string {
	env := map[string]string{}
	for _, s := range c.Config.Services {
		if s.Name == service {
			for name, value := range s.Environment {
				if value == nil {
					env[name] = "<nil>"
				} else {
					env[name] = *value
				}
			}
		}
	}
	return env
}

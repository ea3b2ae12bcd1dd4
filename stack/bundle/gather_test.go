package bundle

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/axion/runner-agent/proto/failure"
)

func lookupIn(env map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := env[name]; return v, ok }
}

func paths(c Content) []string {
	var all []string
	for _, f := range c.Files {
		all = append(all, f.Path)
	}
	return all
}

func TestGather(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"shop/compose.yml": `
services:
  web:
    image: "x:${TAG}"
    env_file: [./web.env, "${WHICH}.env"]
    environment: {BARE: , EMPTY: "", FULL: "${FULL_FROM}", DEFAULT: "${NOT_SET:-d}", LITERAL: "$$NOT_NAMED"}
    ports: [{target: "${PORT}", published: 1}]
    volumes: ["~/x:/x"]
secrets: {key: {file: ../secrets/db.txt}, other: {external: true}}
configs: {site: {file: overridden.conf}}
`,
		"shop/override.yml":  "configs: {site: {file: ./site.conf}}\nservices: {web: {image: 'y:${TAG}'}}",
		"shop/web.env":       "IN_FILE\nFILE_EMPTY=\nFILE_SET=1\n",
		"shop/blue.env":      "",
		"shop/site.conf":     "server",
		"shop/unrelated.txt": "not to be sent",
		"secrets/db.txt":     "s3cret",
		"extra.env":          "TAG=from-file\nWHICH=blue\nPORT\nUNNAMED=1\n",
	} {
		write(t, filepath.Join(root, name), text)
	}
	c, err := Gather(GatherOptions{
		ComposeFiles: []string{"shop/compose.yml", "shop/override.yml"}, EnvFiles: []string{"extra.env"}, WorkingDir: root, Home: "/home/dev",
		LookupEnv: lookupIn(map[string]string{
			"TAG": "from-environment", "BARE": "1", "EMPTY": "2", "FULL": "3", "FULL_FROM": "4", "IN_FILE": "5", "FILE_EMPTY": "6", "FILE_SET": "7",
			"PORT": "80", "NOT_NAMED": "8", "UNRELATED": "9", "NOT_SET_EITHER": "10",
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, name := range []string{"secrets/db.txt", "shop/blue.env", "shop/compose.yml", "shop/override.yml", "shop/site.conf", "shop/web.env"} {
		want = append(want, filepath.Join(root, name))
	}
	if got := paths(c); !slices.Equal(got, want) {
		t.Errorf("files:\n got %v\nwant %v", got, want)
	}
	variables := map[string]string{
		"TAG": "from-environment", "WHICH": "blue", "BARE": "1", "EMPTY": "2", "FULL_FROM": "4", "IN_FILE": "5", "FILE_EMPTY": "6", "PORT": "80",
	}
	if !maps.Equal(c.Variables, variables) {
		t.Errorf("variables:\n got %v\nwant %v", c.Variables, variables)
	}
	if c.WorkingDir != filepath.Join(root, "shop") || c.Home != "/home/dev" || !slices.Equal(c.ComposeFiles, []string{want[2], want[3]}) {
		t.Errorf("%s %s %v", c.WorkingDir, c.Home, c.ComposeFiles)
	}
	// What was gathered is all that is needed.
	l, err := Load(c, t.TempDir())
	if err != nil || l.Config.Services[0].Image != "y:from-environment" {
		t.Errorf("%v %+v", err, l)
	}
}

func TestGatherFromStandardInput(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.env"), "A=1")
	c, err := Gather(GatherOptions{
		ComposeFiles: []string{"-"}, WorkingDir: dir, Home: "/home/dev",
		Stdin: strings.NewReader("services: {web: {image: x, env_file: a.env}}"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.WorkingDir != dir || len(c.Files) != 2 || c.Home != "" {
		t.Errorf("%+v", c)
	}
	if _, err := Load(c, t.TempDir()); err != nil {
		t.Error(err)
	}
}

func TestGatherRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "far", "away"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "far", "away"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "far", "a.txt"), "through the link")
	write(t, filepath.Join(dir, "a.txt"), "beside the link")
	write(t, filepath.Join(dir, "bad.env"), "a b=c")
	for name, tc := range map[string]struct {
		compose, code, text string
		options             GatherOptions
	}{
		"missing compose file":   {"", "unreadable_file", "/other.yml: no such file or directory", GatherOptions{ComposeFiles: []string{"other.yml"}}},
		"no compose file":        {"", "invalid_compose", "no compose file was given", GatherOptions{ComposeFiles: []string{}}},
		"missing env_file":       {"services: {web: {image: x, env_file: no.env}}", "unreadable_file", "open " + dir + "/no.env: no such file", GatherOptions{}},
		"missing config":         {"services: {web: {image: x}}\nconfigs: {a: {file: no.txt}}", "unreadable_file", "open " + dir + "/no.txt: no such file", GatherOptions{}},
		"folder":                 {"services: {web: {image: x}}\nconfigs: {a: {file: far}}", "unreadable_file", "is a directory", GatherOptions{}},
		"bad env_file":           {"services: {web: {image: x, env_file: bad.env}}", "invalid_compose", "invalid env file (" + dir + "/bad.env): variable 'a b' contains whitespaces", GatherOptions{}},
		"bad --env-file":         {"services: {web: {image: x}}", "bad_env_file", "invalid env file (bad.env)", GatherOptions{EnvFiles: []string{"bad.env"}}},
		"missing --env-file":     {"services: {web: {image: x}}", "unreadable_file", "no.env", GatherOptions{EnvFiles: []string{"no.env"}}},
		"too large":              {"services: {web: {image: x}}\nconfigs: {a: {file: a.txt}}", "bundle_too_large", "with " + dir + "/a.txt the files of the stack are larger than 60 bytes", GatherOptions{MaxBytes: 60}},
		"required variable":      {"services: {web: {image: '${TAG?is needed}'}}", "invalid_compose", "required variable TAG is missing a value: is needed", GatherOptions{}},
		"schema":                 {"services: {web: {image: x, nonsense: 1}}", "invalid_compose", "Additional property nonsense is not allowed", GatherOptions{}},
		"up from a link":         {"services: {web: {image: x}}\nconfigs: {a: {file: " + dir + "/link/../a.txt}}", "invalid_compose", "goes up from a link", GatherOptions{}},
		"schema before files":    {"services: {web: {image: x, nonsense: 1, env_file: no.env}}", "invalid_compose", "nonsense", GatherOptions{}},
		"nothing on stdin":       {"", "invalid_compose", "standard input", GatherOptions{ComposeFiles: []string{"-"}}},
		"relative start":         {"services: {web: {image: x}}", "unreadable_file", "", GatherOptions{WorkingDir: "relative"}},
		"a file that never ends": {"services: {web: {image: x}}\nconfigs: {a: {file: /dev/zero}}", "bundle_too_large", "/dev/zero", GatherOptions{}},
	} {
		t.Run(name, func(t *testing.T) {
			write(t, filepath.Join(dir, "compose.yml"), tc.compose)
			o := tc.options
			if o.WorkingDir == "" {
				o.WorkingDir = dir
			}
			if o.ComposeFiles == nil {
				o.ComposeFiles = []string{"compose.yml"}
			}
			_, err := Gather(o)
			wantFailure(t, err, failure.Invalid, tc.code, tc.text)
		})
	}
}

// FuzzFiles looks for a spelling of a path that opens anything but the file that it names in the bundle.
func FuzzFiles(f *testing.F) {
	for _, p := range []string{"/a/b", "/a/../a/b", "//a//b/", "/a/b/.", "/proc/self/environ", "/a/b\x00", "/a/B", "/../a/b", "a/b", ""} {
		f.Add(p)
	}
	files := newFiles(Content{WorkingDir: "/a", Files: []File{{Path: "/a/b", Content: []byte("content")}}})
	f.Fuzz(func(t *testing.T, p string) {
		p = absolute("/a", p)
		body, err := files.read(p)
		if err == nil && (filepath.Clean(p) != "/a/b" || string(body) != "content") {
			t.Fatalf("%q opened %q", p, body)
		}
		if class := failure.ClassOf(err); err != nil && class != failure.Denied && class != failure.Invalid {
			t.Fatalf("%q: class %v", p, class)
		}
	})
}

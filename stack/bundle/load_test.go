package bundle

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/axion/runner-agent/proto/failure"
)

func TestNothingOutsideTheBundleIsOpened(t *testing.T) {
	real := filepath.Join(t.TempDir(), "key.pem")
	write(t, real, "KEY=private\n")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ compose, path string }{
		"environment of the process": {"services: {web: {image: x, env_file: /proc/self/environ}}", "/proc/self/environ"},
		"env_file in a list":         {"services: {web: {image: x, env_file: [/proc/self/environ]}}", "/proc/self/environ"},
		"env_file by a variable":     {"services: {web: {image: x, env_file: '${WHERE}'}}", real},
		"secret":                     {"services: {web: {image: x}}\nsecrets: {a: {file: " + real + "}}", real},
		"config":                     {"services: {web: {image: x}}\nconfigs: {a: {file: " + real + "}}", real},
		"link":                       {"services: {web: {image: x}}\nconfigs: {a: {file: " + link + "}}", link},
		"up and out":                 {"services: {web: {image: x}}\nconfigs: {a: {file: ../../../etc/passwd}}", "/etc/passwd"},
		"up after an absolute start": {"services: {web: {image: x}}\nconfigs: {a: {file: /home/dev/shop/../../../etc/passwd}}", "/home/dev/shop/../../../etc/passwd"},
		"dots":                       {"services: {web: {image: x}}\nsecrets: {a: {file: './/.././../x'}}", "/home/x"},
		"private copies":             {"services: {web: {image: x, env_file: DIR/00000000}}", "/00000000"},
		"not sent":                   {"services: {web: {image: x, env_file: missing.env}}", "/home/dev/shop/missing.env"},
		"home is not expanded":       {"services: {web: {image: x, env_file: ~/x.env}}", "/home/dev/shop/~/x.env"},
		"unused object":              {"services: {web: {image: x}}\nsecrets: {a: {file: " + real + "}, b: {external: true}}", real},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := content("compose.yml", strings.ReplaceAll(tc.compose, "DIR", dir))
			c.Variables = map[string]string{"WHERE": real}
			_, err := Load(c, dir)
			wantFailure(t, err, failure.Denied, "not_in_bundle", tc.path+" is not in the bundle")
			if strings.Contains(err.Error(), "KEY=") {
				t.Errorf("the file was read: %v", err)
			}
		})
	}
}

func TestFilesOfTheBundle(t *testing.T) {
	dir := t.TempDir()
	c := content("compose.yml", `
services: {web: {image: x, env_file: [./a.env, ../up.env]}}
secrets: {key: {file: ../secrets/db.txt}}
configs: {one: {file: ./one.txt}, same: {file: /home/dev/shop/../shop/one.txt}}
`, "a.env", "A=1\n", "../up.env", "B=2", "../secrets/db.txt", "s3cret", "one.txt", "one")
	l, err := Load(c, dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := environment(l, "web"); !maps.Equal(got, map[string]string{"A": "1", "B": "2"}) {
		t.Errorf("environment: %v", got)
	}
	for path, want := range map[string]string{
		l.Config.Secrets["key"].File: "s3cret", l.Config.Configs["one"].File: "one", l.Config.Configs["same"].File: "one",
	} {
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want || filepath.Dir(path) != dir {
			t.Errorf("%s: %q, %v, want %q in %s", path, got, err, want, dir)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s may be read by others: %v %v", path, info.Mode(), err)
		}
	}
	if err := l.Sender(fmt.Errorf("open %s: no such file", l.Config.Secrets["key"].File)); err.Error() != "open /home/dev/secrets/db.txt: no such file" {
		t.Errorf("the sender reads %q", err)
	}
}

func TestVariablesComeFromTheBundleOnly(t *testing.T) {
	t.Setenv("AXT_PROCESS", "leaked")
	t.Setenv("HOME", "/root/of/the/process")
	c := content("compose.yml", `
services:
  web:
    image: "img:${TAG}-${AXT_PROCESS:-none}"
    env_file: [a.env]
    environment: [AXT_PROCESS, TAG, "EMPTY=", "SET=${TAG}"]
    volumes: ["~/x:/x"]
`, "a.env", "\ufeffAXT_PROCESS\nHOME\nLINES\nTAG=\nPLAIN=a b\r\nLATER=x\nLATER\n")
	c.Home = "/home/dev"
	c.Variables = map[string]string{"TAG": "v1", "EMPTY": "filled", "LINES": "one\ntwo", "LATER": "y"}
	l, err := Load(c, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	service := l.Config.Services[0]
	if service.Image != "img:v1-none" || service.Volumes[0].Source != "/home/dev/x" {
		t.Errorf("image %s, source %s", service.Image, service.Volumes[0].Source)
	}
	want := map[string]string{
		"AXT_PROCESS": "<nil>", "TAG": "v1", "EMPTY": "filled", "SET": "v1", "LINES": "one\ntwo", "PLAIN": "a b", "LATER": "y",
	}
	if got := environment(l, "web"); !maps.Equal(got, want) {
		t.Errorf("environment:\n got %v\nwant %v", got, want)
	}
}

func TestErrorsRepeatNoContent(t *testing.T) {
	for name, tc := range map[string]struct{ env, text string }{
		"no name":  {"=s3cret", "invalid env file (/home/dev/shop/a.env): no variable name"},
		"not utf8": {"A=s3cret\xff", "invalid env file (/home/dev/shop/a.env): invalid utf8 bytes"},
		"spaces":   {"export A=s3cret", "invalid env file (/home/dev/shop/a.env): variable 'export A' contains whitespaces"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(content("compose.yml", "services: {web: {image: x, env_file: a.env}}", "a.env", tc.env), t.TempDir())
			wantFailure(t, err, failure.Invalid, "invalid_compose", tc.text)
			if strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "115 51") {
				t.Errorf("the value is told: %v", err)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	c := content("compose.yml", `
version: "3.9"
services:
  web: {image: x, privileged: true, build: ., container_name: a, expose: ["1"], volumes: ["~/x:/x"]}
networks: {n: {external: {name: other}}}
configs: {c: {external: {name: other}}}
`)
	l, err := Load(c, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(l.Warnings, "\n")
	for _, want := range []string{
		"Ignoring unsupported options: build, privileged",
		"Ignoring deprecated options: container_name: Setting the container name is not supported.; expose: ",
		"network n: network.external.name is deprecated in favor of network.name",
		"config c: config.external.name is deprecated in favor of config.name",
		"cannot expand '~', because the environment lacks HOME",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("missing: %s\nin: %s", want, text)
		}
	}
}

func TestHostileComposeFiles(t *testing.T) {
	alias := func(levels int) string {
		var b strings.Builder
		b.WriteString("x-a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n")
		for i := 1; i <= levels; i++ {
			fmt.Fprintf(&b, "x-a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 9), ", "))
		}
		return b.String() + "services: {web: {image: x}}\n"
	}
	big := strings.Repeat("A", MaxVariableBytes)
	for name, tc := range map[string]struct {
		compose   string
		variables map[string]string
		text      string
	}{
		"anchors":             {alias(9), nil, "document contains excessive aliasing"},
		"many values":         {"services: {web: {image: x}}\nx-a: [" + strings.Repeat("a, ", maxNodes) + "]", nil, "more than 100000 values"},
		"long anchor":         {"x-a: &a " + strings.Repeat("b", 100_000) + "\nx-b: [" + strings.Repeat("*a, ", 100) + "*a]\nservices: {web: {image: x}}", nil, "by its anchors"},
		"deep":                {"x-a: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "\nservices: {web: {image: x}}", nil, "nested more than 64 levels"},
		"too deep for yaml":   {"x-a: " + strings.Repeat("[", 50_000), nil, "exceeded max depth"},
		"deep maps":           {"x-a: " + strings.Repeat("{a: ", 200) + "1" + strings.Repeat("}", 200) + "\nservices: {web: {image: x}}", nil, "nested more than 64 levels"},
		"variables":           {"services: {web: {image: x, labels: {a: '" + strings.Repeat("$A", 1000) + "'}}}", map[string]string{"A": big}, "expand to more than"},
		"ports":               {"services: {web: {image: x, ports: ['1-40000:1-40000', '1-40000:1-40000']}}", nil, "more than 65536 ports"},
		"ports by a variable": {"services: {web: {image: x, ports: ['$A', '$A']}}", map[string]string{"A": "000001-065535"}, "more than 65536 ports"},
		"large":               {"services: {web: {image: x}}\nx-a: " + strings.Repeat("b", MaxComposeBytes), nil, "larger than 524288 bytes"},
		"many env_files":      {"services: {web: {image: x, env_file: [" + strings.Repeat("big.env, ", 3000) + "big.env]}}", nil, "refer to more than"},
		"many secrets":        {"services: {web: {image: x}}\nsecrets: {" + numbered(3000, "s%d: {file: big.env}, ") + "}", nil, "refer to more than"},
	} {
		t.Run(name, func(t *testing.T) {
			c := content("compose.yml", tc.compose, "big.env", "A="+strings.Repeat("b", 30_000))
			c.Variables = tc.variables
			_, err := Load(c, t.TempDir())
			wantFailure(t, err, failure.Invalid, "invalid_compose", tc.text)
		})
	}
}

func numbered(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

func TestInvalidBundles(t *testing.T) {
	good := content("compose.yml", "services: {web: {image: x}}")
	for name, change := range map[string]func(*Content){
		"relative working dir": func(c *Content) { c.WorkingDir = "shop" },
		"unclean working dir":  func(c *Content) { c.WorkingDir = "/home/../home" },
		"relative home":        func(c *Content) { c.Home = "dev" },
		"no compose file":      func(c *Content) { c.ComposeFiles = nil },
		"compose file missing": func(c *Content) { c.ComposeFiles = []string{"/etc/compose.yml"} },
		"many compose files":   func(c *Content) { c.ComposeFiles = make([]string, MaxComposeFiles+1) },
		"unclean path":         func(c *Content) { c.Files = append(c.Files, File{Path: "/a/../b"}) },
		"relative path":        func(c *Content) { c.Files = append(c.Files, File{Path: "b"}) },
		"zero byte":            func(c *Content) { c.Files = append(c.Files, File{Path: "/a\x00b"}) },
		"twice":                func(c *Content) { c.Files = append(c.Files, c.Files[0]) },
		"many files":           func(c *Content) { c.Files = make([]File, MaxFiles+1) },
		"bad variable":         func(c *Content) { c.Variables = map[string]string{"A=B": ""} },
		"long variable":        func(c *Content) { c.Variables = map[string]string{"A": strings.Repeat("a", MaxVariableBytes+1)} },
		"many credentials":     func(c *Content) { c.Credentials = make([]Credential, MaxCredentials+1) },
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			change(&c)
			_, err := Load(c, t.TempDir())
			wantFailure(t, err, failure.Invalid, "invalid_bundle", "")
		})
	}
}

// FuzzLoad feeds compose files, an env_file and a path. Whatever comes, nothing but the bundle is read and the private copies stay in their folder.
func FuzzLoad(f *testing.F) {
	seeds, err := filepath.Glob("../testdata/parity/*/*.yml")
	if err != nil || len(seeds) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, seed := range seeds {
		text, err := os.ReadFile(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text), "A=b\nTAG\n", "site.conf")
	}
	f.Add("services: {web: {image: x, env_file: ['$TAG', a.env]}}\nsecrets: {a: {file: ../../x}}", "\ufeff#\r\nA\r\r\n=", "../../x")
	f.Add("services: {web: null}", "", "")
	f.Add("services: {web: {image: x, environment: [1, null, {}]}}\nconfigs: {a: 1}", "", "")
	f.Add("services: {web: {image: x, ulimits: {a: {soft: x}}, networks: [null]}}", "", "//")
	f.Fuzz(func(t *testing.T, compose, env, path string) {
		c := content("compose.yml", compose, "a.env", env)
		if key := filepath.Clean(absolute(c.WorkingDir, path)); cleanPath(key) && key != c.Files[0].Path && key != c.Files[1].Path {
			c.Files = append(c.Files, File{Path: key, Content: []byte("A=b")})
		}
		c.Variables = map[string]string{"TAG": "a.env"}
		dir := t.TempDir()
		l, err := Load(c, dir)
		if err != nil {
			if class := failure.ClassOf(err); class != failure.Invalid && class != failure.Denied {
				t.Fatalf("class %v: %v", class, err)
			}
			if strings.Contains(err.Error(), dir) {
				t.Fatalf("a private path is told: %v", err)
			}
			return
		}
		for _, s := range l.Config.Secrets {
			if !s.External.External && s.Driver == "" && filepath.Dir(s.File) != dir {
				t.Fatalf("a secret would be read from %s", s.File)
			}
		}
		for _, o := range l.Config.Configs {
			if !o.External.External && filepath.Dir(o.File) != dir {
				t.Fatalf("a config would be read from %s", o.File)
			}
		}
	})
}

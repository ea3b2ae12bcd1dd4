package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/axion/runner-agent/internal/variables"
)

var update = flag.Bool("update", false, "write the example file and the golden files")

func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.toml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func parseFlags(t *testing.T, args ...string) *Flags {
	t.Helper()
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	flags := AddFlags(set)
	if err := set.Parse(args); err != nil {
		t.Fatal(err)
	}
	return flags
}

// golden compares got with a file of testdata, or writes it.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != string(got) {
		t.Errorf("%s is stale; run the tests with -update. It should be:\n%s", path, got)
	}
}

func TestDefaults(t *testing.T) {
	c, err := Load(Sources{File: writeFile(t, ""), Environ: []string{"AXION_PLANE_ADDRESS=plane:9443"}})
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Agent:     Agent{StateDir: "/var/lib/axion", WorkDir: "/run/axion-work", LogLevel: "info", LogFormat: "json"},
		Plane:     Plane{Address: "plane:9443", TokenFile: "/run/secrets/axion_token"},
		Engine:    Engine{Host: "unix:///var/run/docker.sock"},
		Kafka:     Kafka{MaxMessageBytes: 8 << 20},
		Commands:  Commands{MaxConcurrent: 4, DefaultTimeout: 10 * time.Minute},
		Stack:     Stack{SkipUnchanged: true},
		Health:    Health{Listen: "127.0.0.1:9180"},
		Local:     Local{Socket: "/run/axion/agent.sock"},
		Telemetry: Telemetry{Enabled: true, Interval: 10 * time.Second, CgroupRoot: "/host/sys/fs/cgroup", ProcRoot: "/host/proc"},
		origins:   map[string]string{"plane.address": "AXION_PLANE_ADDRESS"},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestStrength(t *testing.T) {
	file := writeFile(t, `
plane.address = "file:1"
[agent]
log_level = "debug"
log_format = "text"
[kafka]
brokers = ["a:1", "b:2"]
max_message_bytes = "64KiB"
[commands]
max_concurrent = 7
[telemetry]
enabled = false
interval = "1s"
`)
	c, err := Load(Sources{
		File:    file,
		Environ: []string{"AXION_AGENT_LOG_LEVEL=warn", "AXION_AGENT_LOG_FORMAT=", "AXION_COMMANDS_MAX_CONCURRENT=8", "AXION_KAFKA_BROKERS=c:3, d:4", "AXION_CONTEXT=/x", "PATH=/bin"},
		Flags:   parseFlags(t, "--agent-log-level", "error", "--telemetry-enabled", "--telemetry-interval=2m"),
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ got, want any }{
		"file":                      {c.Plane.Address, "file:1"},
		"empty variable is not set": {c.Agent.LogFormat, "text"},
		"variable over file":        {c.Commands.MaxConcurrent, 8},
		"list from a variable":      {c.Kafka.Brokers, []string{"c:3", "d:4"}},
		"flag over both":            {c.Agent.LogLevel, "error"},
		"bare bool flag":            {c.Telemetry.Enabled, true},
		"duration flag":             {c.Telemetry.Interval, 2 * time.Minute},
		"size":                      {c.Kafka.MaxMessageBytes, Size(64 << 10)},
		"origin of a file":          {c.Origin("plane.address"), "agent.toml:2"},
		"origin of a variable":      {c.Origin("kafka.brokers"), "AXION_KAFKA_BROKERS"},
		"origin of a flag":          {c.Origin("agent.log_level"), "--agent-log-level"},
		"origin of a default":       {c.Origin("agent.state_dir"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			if !reflect.DeepEqual(tc.got, tc.want) {
				t.Errorf("got %v, want %v", tc.got, tc.want)
			}
		})
	}
}

func TestProblems(t *testing.T) {
	const plane = "AXION_PLANE_ADDRESS=plane:9443"
	for name, tc := range map[string]struct {
		file    string
		environ []string
		flags   []string
		want    []string
	}{
		"nothing given": {want: []string{
			"plane.address is missing: set it in the file, as AXION_PLANE_ADDRESS, or with --plane-address",
		}},
		"everything at once": {
			file: `[agent]
state_dir = "relative"
log_levle = "info"

[plane]
address = 5
[colour]
red = 1
[commands]
max_concurrent = "4"
default_timeout = 600
`,
			environ: []string{"AXION_TELEMETRY_INTERVAL=1h", "AXION_TELEMETRY_INTERVALL=1s"},
			flags:   []string{"--health-listen=9180", "--kafka-max-message-bytes=1 parsec"},
			want: []string{
				`agent.toml:2: agent.state_dir is "relative", must be an absolute path`,
				`agent.toml:3: agent.log_levle is not a key of the agent's configuration`,
				`agent.toml:6: plane.address must be a string, in quotes, such as "plane.example.com:9443"`,
				`agent.toml:7: colour is neither a section nor a key of the agent's configuration`,
				`agent.toml:10: commands.max_concurrent must be a whole number, without quotes`,
				`agent.toml:11: commands.default_timeout must be a string, in quotes, such as "10m"`,
				`AXION_TELEMETRY_INTERVAL: telemetry.interval is 1h, must be from 1s to 5m`,
				`AXION_TELEMETRY_INTERVALL: no such variable is known`,
				`--kafka-max-message-bytes: kafka.max_message_bytes is "1 parsec", must be a size such as "8MiB" or "64KiB"`,
				`--health-listen: health.listen is "9180", must be HOST:PORT`,
			},
		},
		"not TOML":       {file: "[agent]\nlog_level = \n", environ: []string{plane}, want: []string{"agent.toml:2: is not TOML: unexpected character U+000A at start of value"}},
		"given twice":    {file: "[agent]\nlog_level = 'info'\nlog_level = 'warn'\n", environ: []string{plane}, want: []string{"agent.toml:3: is not TOML: key log_level is already defined"}},
		"not a section":  {file: "agent = 3\n", environ: []string{plane}, want: []string{"agent.toml:1: agent must be a section, [agent]"}},
		"inline table":   {file: "agent = { log_level = 'loud' }\n", environ: []string{plane}, want: []string{`agent.toml:1: agent.log_level is "loud", must be one of debug, info, warn, error`}},
		"array of table": {file: "[[agent]]\nlog_level = 'info'\n", environ: []string{plane}, want: []string{"agent.toml:1: agent must be a section, [agent]"}},
		"mixed list":     {file: "[kafka]\nbrokers = ['a:1', 2]\n", environ: []string{plane}, want: []string{`agent.toml:2: kafka.brokers must be a list of strings such as ["a:9093", "b:9093"]`}},
		"bad broker":     {environ: []string{plane, "AXION_KAFKA_BROKERS=a:1,b"}, want: []string{`AXION_KAFKA_BROKERS: kafka.brokers is "b", must be HOST:PORT`}},
		"too many brokers": {
			environ: []string{plane, "AXION_KAFKA_BROKERS=" + strings.Repeat("a:1,", 17)},
			want:    []string{"AXION_KAFKA_BROKERS: kafka.brokers names 17 brokers, at most 16 are allowed"},
		},
		"half of SASL": {
			environ: []string{plane, "AXION_KAFKA_SASL_USERNAME=u"},
			want: []string{
				"kafka.sasl_mechanism is missing: kafka.sasl_mechanism, kafka.sasl_username and kafka.sasl_password_file go together",
				"kafka.sasl_password_file is missing: kafka.sasl_mechanism, kafka.sasl_username and kafka.sasl_password_file go together",
			},
		},
		"engine host":       {environ: []string{plane, "AXION_ENGINE_HOST=/var/run/docker.sock"}, want: []string{`AXION_ENGINE_HOST: engine.host is "/var/run/docker.sock", must begin with unix://, tcp:// or npipe:// and name an address`}},
		"control character": {environ: []string{plane, "AXION_LOCAL_GROUP=a\nb"}, want: []string{"AXION_LOCAL_GROUP: local.group must not contain control characters"}},
		"size over bound":   {environ: []string{plane, "AXION_KAFKA_MAX_MESSAGE_BYTES=13MiB"}, want: []string{"AXION_KAFKA_MAX_MESSAGE_BYTES: kafka.max_message_bytes is 13MiB, must be from 64KiB to 12MiB"}},
		"missing is told once": {
			environ: []string{"AXION_PLANE_ADDRESS=nowhere"},
			want:    []string{`AXION_PLANE_ADDRESS: plane.address is "nowhere", must be HOST:PORT`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(Sources{File: writeFile(t, tc.file), Environ: tc.environ, Flags: parseFlags(t, tc.flags...)})
			var ps Problems
			if !errors.As(err, &ps) {
				t.Fatalf("got %v", err)
			}
			if got, want := err.Error(), strings.Join(tc.want, "\n"); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestVariablesOfThePlane(t *testing.T) {
	environ := []string{"AXION_PLANE_ADDRESS=plane:9443"}
	for _, name := range variables.Plane() {
		environ = append(environ, name+"=x")
	}
	if _, err := Load(Sources{File: writeFile(t, ""), Environ: environ}); err != nil {
		t.Errorf("a plane in the same environment: %v", err)
	}
	var own []string
	for _, k := range keys {
		if k.section == "plane" {
			own = append(own, k.variable())
		}
	}
	slices.Sort(own)
	if !slices.Equal(own, variables.Agent()) {
		t.Errorf("the plane must be told of these variables: %q; it is told of %q", own, variables.Agent())
	}
}

func TestFileThatCannotBeRead(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent.toml")
	for name, tc := range map[string]struct {
		src  Sources
		want string
	}{
		"named by the flag":     {Sources{File: absent}, "--config: configuration file cannot be read: open " + absent},
		"named by the variable": {Sources{Environ: []string{"AXION_CONFIG=" + absent}}, "AXION_CONFIG: configuration file cannot be read: open " + absent},
		"too large":             {Sources{File: writeFile(t, strings.Repeat("#", maxFileBytes+1))}, "has more than 65536 bytes"},
		"a folder":              {Sources{File: t.TempDir()}, "is a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.src.Environ = append(tc.src.Environ, "AXION_PLANE_ADDRESS=plane:9443")
			if _, err := Load(tc.src); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestHealthListenIgnoresTheRest(t *testing.T) {
	for name, tc := range map[string]struct{ file, want string }{
		"broken elsewhere": {"[health]\nlisten = '127.0.0.1:1'\n[agent]\nlog_level = 'loud'\n", "127.0.0.1:1"},
		"broken itself":    {"[health]\nlisten = 'x'\n", "127.0.0.1:9180"},
		"not TOML":         {"[", "127.0.0.1:9180"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := HealthListen(Sources{File: writeFile(t, tc.file)}); got != tc.want {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestLocalSocket(t *testing.T) {
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	flags := AddFlags(set, "local.socket")
	if set.Lookup("local-socket") == nil || set.Lookup("plane-address") != nil {
		t.Error("other flags than the one that was named")
	}
	if got := LocalSocket(Sources{Flags: flags, Environ: []string{"AXION_LOCAL_SOCKET=/x/y.sock"}}); got != "/x/y.sock" {
		t.Errorf("variable: %s", got)
	}
	if err := set.Parse([]string{"--local-socket=/a/b.sock"}); err != nil {
		t.Fatal(err)
	}
	if got := LocalSocket(Sources{Flags: flags}); got != "/a/b.sock" {
		t.Errorf("flag: %s", got)
	}
}

func TestPrint(t *testing.T) {
	c, err := Load(Sources{
		File:    writeFile(t, "[kafka]\nbrokers = ['a:1', 'b:2']\n[local]\ngroup = 'a\"b'\n"),
		Environ: []string{"AXION_PLANE_ADDRESS=plane:9443"},
		Flags:   parseFlags(t, "--agent-log-level", "debug"),
	})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := Print(&b, c); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/print.golden", []byte(b.String()))

	again, err := Load(Sources{File: writeFile(t, b.String())})
	if err != nil {
		t.Fatalf("what was printed is refused: %v", err)
	}
	again.origins = c.origins
	if !reflect.DeepEqual(again, c) {
		t.Errorf("what was printed means something else: %+v", again)
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	secret := key{section: "local", name: "group", target: func(c *Config) any { return &c.Local.Group }, secret: true, choices: []string{"x"}}
	c := Config{Local: Local{Group: "hunter2"}}
	var b strings.Builder
	if err := printKeys(&b, c, []key{secret}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "hunter2") || !strings.Contains(b.String(), redacted) {
		t.Errorf("printed: %s", b.String())
	}
	if text := secret.checkValue(&c); text == "" || strings.Contains(text, "hunter2") {
		t.Errorf("complained: %s", text)
	}
}

func TestExampleFile(t *testing.T) {
	const path = "../../deploy/agent.toml.example"
	golden(t, path, Example())
	if _, err := Load(Sources{File: path, Environ: []string{"AXION_PLANE_ADDRESS=plane:9443"}}); err != nil {
		t.Errorf("the example is refused: %v", err)
	}
	// Every commented example must be legal too.
	var b strings.Builder
	for line := range strings.Lines(string(Example())) {
		if text, ok := strings.CutPrefix(line, "# "); ok && strings.Contains(text, " = ") {
			line = text
		}
		b.WriteString(line)
	}
	if _, err := Load(Sources{File: writeFile(t, b.String())}); err != nil {
		t.Errorf("the example's values are refused: %v", err)
	}
}

func TestKeysAreSound(t *testing.T) {
	seen := make(map[string]bool)
	for _, k := range keys {
		c := defaults()
		if seen[k.path()] {
			t.Errorf("%s is declared twice", k.path())
		}
		seen[k.path()] = true
		if k.doc == "" || k.sample() == "" && !k.secret {
			t.Errorf("%s has no words or no example", k.path())
		}
		if text := k.setText(&c, k.sample()); text != "" {
			t.Errorf("%s: its own example %q %s", k.path(), k.sample(), text)
		}
		if got := k.text(&c); got != k.sample() {
			t.Errorf("%s: %q comes back as %q", k.path(), k.sample(), got)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "512": 512, "512B": 512, "64KiB": 64 << 10, "8 MiB": 8 << 20, "2GiB": 2 << 30} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%s: got %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "-1", "8MB", "MiB", "1.5MiB", "9999999999999GiB", "0x10"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q was taken as %d", text, got)
		}
	}
}

func TestClearEnvironment(t *testing.T) {
	before := os.Environ()
	t.Cleanup(func() {
		for _, entry := range before {
			name, value, _ := strings.Cut(entry, "=")
			if name != "" {
				_ = os.Setenv(name, value)
			}
		}
	})
	ClearEnvironment()
	if n := len(os.Environ()); n != 0 {
		t.Errorf("%d variables are left", n)
	}
}

func FuzzTOML(f *testing.F) {
	f.Add([]byte("[agent]\nlog_level = 'info'\n"))
	f.Add([]byte("agent = { a = { b = [1, {c = 2}] } }\n[[plane]]\n"))
	f.Add(Example())
	f.Fuzz(func(_ *testing.T, content []byte) {
		c := defaults()
		_ = loadTOML(&c, "agent.toml", content).Error()
	})
}

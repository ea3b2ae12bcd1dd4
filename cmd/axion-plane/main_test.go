package main

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/axion/runner-agent/internal/variables"
	"github.com/axion/runner-agent/proto/jointoken"
	"github.com/axion/runner-agent/test/loopback"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// buffer is written by the plane and read by the test.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func command(t *testing.T, environ []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err buffer
	code = run(t.Context(), args, environ, &out, &err)
	return code, out.String(), err.String()
}

func TestAPlaneAndItsCommands(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	var log buffer
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	// The root command serves; its flags come from the environment here, as in a container.
	environ := []string{
		"AXION_PLANE_DATA=" + data, "AXION_PLANE_LISTEN=" + loopback.FreeAddress(t), "AXION_PLANE_KAFKA_LISTEN=" + loopback.FreeAddress(t), "AXION_PLANE_LOG_FORMAT=json",
		"AXION_PLANE_ADVERTISE=127.0.0.1,plane.example.com", "HOME=/nowhere",
	}
	go func() { ended <- run(ctx, nil, environ, &log, &log) }()
	t.Cleanup(func() {
		cancel()
		if code := <-ended; code != 0 {
			t.Errorf("the plane ended with exit code %d: %s", code, log.String())
		}
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		code, _, stderr := command(t, environ, "healthcheck")
		if code == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("never healthy: %s %s", stderr, log.String())
		}
	}

	code, stdout, stderr := command(t, nil, "token", "create", "--data", data, "--cluster", "dev", "--ttl", "1h", "--uses", "2")
	if code != 0 || !strings.Contains(stderr, "for cluster dev") {
		t.Fatalf("%d, %s", code, stderr)
	}
	token, err := jointoken.Parse(stdout)
	if err != nil || stdout != token.String()+"\n" {
		t.Errorf("standard output is %q: it must be the token and nothing else", stdout)
	}
	if strings.Contains(stderr+log.String(), token.Secret.Text()) {
		t.Error("the token's secret stands elsewhere than on standard output")
	}
	code, stdout, stderr = command(t, environ, "token", "list")
	fields := strings.Fields(stdout)
	if code != 0 || len(fields) != 10 || fields[6] != "dev" || fields[8] != "0/2" || fields[9] != "false" {
		t.Fatalf("%d, %s%s", code, stdout, stderr)
	}
	if code, _, stderr := command(t, environ, "token", "revoke", fields[5]); code != 0 {
		t.Errorf("%d, %s", code, stderr)
	}
	if _, stdout, _ := command(t, environ, "token", "list", "--cluster", "dev"); !strings.Contains(stdout, "true") {
		t.Errorf("not revoked: %s", stdout)
	}
	if code, _, stderr := command(t, environ, "token", "create", "--cluster", "a-b"); code != exitFailed || !strings.Contains(stderr, "a-b") {
		t.Errorf("%d, %s", code, stderr)
	}
}

func TestUsage(t *testing.T) {
	data := "--data=" + t.TempDir()
	for name, tc := range map[string]struct {
		environ []string
		args    []string
		code    int
		word    string
	}{
		"unknown flag":       {nil, []string{"--lissten", "x"}, exitUsage, "lissten"},
		"unknown command":    {nil, []string{"srve"}, exitUsage, "srve"},
		"unknown variable":   {[]string{"AXION_PLANE_LISSTEN=x"}, []string{"serve", data}, exitUsage, "AXION_PLANE_LISSTEN"},
		"agent's, misspelt":  {[]string{"AXION_PLANE_ADRESS=x"}, []string{"serve", data}, exitUsage, "AXION_PLANE_ADRESS"},
		"bad variable":       {[]string{"AXION_PLANE_CERTIFICATE_LIFE=long"}, []string{"serve", data}, exitUsage, "AXION_PLANE_CERTIFICATE_LIFE"},
		"bad level":          {nil, []string{"serve", data, "--log-level", "loud"}, exitUsage, "loud"},
		"bad format":         {nil, []string{"serve", data, "--log-format", "xml"}, exitUsage, "xml"},
		"bad listen":         {nil, []string{"serve", data, "--listen", "9443"}, exitUsage, "9443"},
		"bad mechanism":      {nil, []string{"serve", data, "--kafka-brokers", "b:1", "--kafka-sasl-mechanism", "md5"}, exitUsage, "md5"},
		"bad ACLs":           {nil, []string{"serve", data, "--kafka-brokers", "b:1", "--kafka-acls", "maybe"}, exitUsage, "on or off"},
		"no mechanism":       {nil, []string{"serve", data, "--kafka-brokers", "b:1", "--kafka-sasl-username", "u"}, exitUsage, "mechanism"},
		"no password":        {nil, []string{"serve", data, "--kafka-brokers", "b:1", "--kafka-sasl-username", "u", "--kafka-sasl-mechanism", "plain"}, exitUsage, "password"},
		"no password file":   {nil, []string{"serve", data, "--kafka-brokers", "b:1", "--kafka-sasl-mechanism", "plain", "--kafka-sasl-password-file", "/nowhere/x"}, exitUsage, "/nowhere/x"},
		"no plane":           {nil, []string{"healthcheck", data}, exitFailed, "hint: "},
		"no context":         {nil, []string{"token", "list", data}, exitFailed, "operator.toml"},
		"revoke without id":  {nil, []string{"token", "revoke", data}, exitUsage, "arg"},
		"create for nothing": {nil, []string{"token", "create", data}, exitFailed, "cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := command(t, tc.environ, tc.args...)
			if code != tc.code || !strings.Contains(stderr, tc.word) || stdout != "" {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
			}
		})
	}
}

func TestVariables(t *testing.T) {
	known := []string{passwordEnv}
	for _, flag := range flagNames(newRoot(nil)) {
		known = append(known, envPrefix+strings.ToUpper(strings.ReplaceAll(flag, "-", "_")))
	}
	slices.Sort(known)
	if known = slices.Compact(known); !slices.Equal(known, variables.Plane()) {
		t.Errorf("the agent must be told of these variables: %q; it is told of %q", known, variables.Plane())
	}
	// Those of an agent in the same environment are none of the plane's business.
	if code, _, stderr := command(t, []string{"AXION_PLANE_ADDRESS=127.0.0.1:9443", "AXION_PLANE_TOKEN_FILE=/x"}, "version"); code != 0 {
		t.Errorf("%d, %s", code, stderr)
	}
}

func TestVersion(t *testing.T) {
	code, stdout, _ := command(t, []string{"AXION_PLANE_LISTEN=127.0.0.1:1"}, "version")
	if code != 0 || !strings.HasPrefix(stdout, "axion-plane dev (revision ") {
		t.Errorf("%d, %q", code, stdout)
	}
}

func TestThePasswordComesFromFileOrEnvironment(t *testing.T) {
	o := &serveOptions{mechanism: "SCRAM-SHA-512", username: "u", environ: []string{"X=1", "AXION_PLANE_KAFKA_SASL_PASSWORD=a=b"}}
	c, err := o.sasl()
	if err != nil || c.GetPassword() != "a=b" || c.GetUsername() != "u" {
		t.Errorf("%v, %v", c, err)
	}
}

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"flag"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/axion/runner-agent/agent/local"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/jointoken"
	testengine "github.com/axion/runner-agent/test/engine"
	"github.com/axion/runner-agent/test/loopback"
)

var update = flag.Bool("update", false, "write the golden files")

// asAgent makes the test's own program the agent, so that its signals and its exit code can be tried.
const asAgent = "TEST_AS_AXION_AGENT"

func TestMain(m *testing.M) {
	if os.Getenv(asAgent) != "" {
		main()
	}
	os.Exit(m.Run())
}

// call runs a command in this process.
func call(t *testing.T, environ []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, environ, &out, &errs)
	return code, out.String(), errs.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s is stale; run the tests with -update. It should be:\n%s", path, got)
	}
}

func TestUsage(t *testing.T) {
	for name, tc := range map[string]struct {
		args    []string
		environ []string
		code    int
		want    string
	}{
		"unknown flag":      {[]string{"status", "--colour"}, nil, exitUsage, "unknown flag: --colour"},
		"unknown command":   {[]string{"dance"}, nil, exitUsage, `unknown command "dance"`},
		"too many names":    {[]string{"stacks", "a", "b"}, nil, exitUsage, "accepts at most 1 arg(s)"},
		"logs of nothing":   {[]string{"logs"}, nil, exitUsage, "name either a service or"},
		"logs of two":       {[]string{"logs", "web", "--container", "box"}, nil, exitUsage, "name either a service or"},
		"unknown format":    {[]string{"status", "-o", "yaml"}, nil, exitUsage, "must be table or json"},
		"bad configuration": {[]string{"run", "--agent-log-level=loud"}, []string{"AXION_HEALTH_LISTEN=x"}, exitUsage, "axion-agent: AXION_HEALTH_LISTEN: health.listen is \"x\", must be HOST:PORT\naxion-agent: --agent-log-level:"},
		"no agent":          {[]string{"status", "--local-socket", "/nowhere/agent.sock"}, nil, exitFailed, "no agent answers on /nowhere/agent.sock"},
		"version":           {[]string{"version"}, nil, 0, "axion-agent "},
		"check":             {[]string{"config", "check", "--plane-address=p:1"}, nil, 0, "the configuration is sound"},
		"print":             {[]string{"config", "print"}, []string{"AXION_PLANE_ADDRESS=p:1"}, 0, `address = "p:1" # AXION_PLANE_ADDRESS`},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errs := call(t, tc.environ, tc.args...)
			if code != tc.code || !strings.Contains(out+errs, tc.want) {
				t.Errorf("exit code %d, printed:\n%s%s", code, out, errs)
			}
		})
	}
}

// begin is the time at which the tests' agent was started.
var begin = time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)

func exampleStatus() *runnerv1.AgentStatus {
	return &runnerv1.AgentStatus{
		AgentId: "a-0123456789abcdef", ClusterId: "shop", Version: "1.2.3", StartedAt: timestamppb.New(begin),
		Node:      &runnerv1.NodeFacts{NodeId: "mmlmo79pljrpkvxmbx073y6s1", Hostname: "node-1", Role: runnerv1.NodeRole_NODE_ROLE_MANAGER, EngineVersion: "28.5.2"},
		Connected: true, CertificateNotAfter: timestamppb.New(begin.Add(30 * 24 * time.Hour)),
		Warnings: []*runnerv1.HealthWarning{{
			Code: "kafka_unreachable", Severity: runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, Title: "Kafka does not answer",
			Text: "broker kafka:9093 refuses the connection", Since: timestamppb.New(begin.Add(time.Hour)),
		}},
		RunningCommands: []string{"c1"}, OutboxEvents: 7,
	}
}

func exampleStack() *runnerv1.StackStatusResult {
	return &runnerv1.StackStatusResult{
		Services: []*runnerv1.ServiceStatus{{Id: "s1", Name: "shop_web", Mode: "replicated", Replicas: "1/2", Image: "web:1", Ports: "*:80->80/tcp"}},
		Tasks: []*runnerv1.TaskStatus{
			{Id: "aaaaaaaaaaaaaaaaaaaaaaaaa", Name: "shop_web.1", Node: "node-1", DesiredState: "Running", CurrentState: "Running 3 minutes ago"},
			{Id: "bbbbbbbbbbbbbbbbbbbbbbbbb", Name: "shop_web.2", Node: "node-2", DesiredState: "Ready", CurrentState: "Rejected 1 second ago", Error: "No such image: web:1"},
		},
	}
}

func TestPrintStatus(t *testing.T) {
	var b strings.Builder
	if err := printStatus(&b, exampleStatus(), begin.Add(3*time.Hour)); err != nil {
		t.Fatal(err)
	}
	golden(t, "status", b.String())
	b.Reset()
	if err := printStatus(&b, &runnerv1.AgentStatus{Version: "1.2.3", StartedAt: timestamppb.New(begin)}, begin.Add(5*time.Second)); err != nil {
		t.Fatal(err)
	}
	golden(t, "status-new", b.String())
}

// logSource sends one line on each output.
type logSource struct{}

func (logSource) OpenLogs(_ context.Context, open *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error {
	name := open.GetService() + open.GetContainer()
	return send(&runnerv1.LogBatch{Lines: []*runnerv1.LogLine{
		{Source: runnerv1.LogSource_LOG_SOURCE_STDOUT, Text: []byte(name + " out tail=" + open.GetOptions().GetTail() + "\n")},
		{Source: runnerv1.LogSource_LOG_SOURCE_STDERR, Text: []byte(name + " err\n")},
	}})
}

// serveLocal answers on a socket as an agent would, and returns the socket's path.
func serveLocal(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	s := local.New(local.Config{Socket: path}, local.Deps{
		Status: exampleStatus,
		Stack: func(_ context.Context, name string) (*runnerv1.StackStatusResult, error) {
			switch name {
			case "":
				return &runnerv1.StackStatusResult{Stacks: []*runnerv1.StackSummary{{Name: "shop", Services: 1}}}, nil
			case "shop":
				return exampleStack(), nil
			}
			return nil, failure.New(failure.Invalid, "no_such_stack", name, "nothing found in stack: %s", name).WithHint("look at the list")
		},
		Logs: logSource{}, Warn: silent{}, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-stopped; err != nil {
			t.Errorf("local server: %v", err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return path
		}
	}
	t.Fatal("the local server does not listen")
	return ""
}

func TestLook(t *testing.T) {
	environ := []string{"AXION_LOCAL_SOCKET=" + serveLocal(t), "AXION_PLANE_ADDRESS=broken"} // what else is wrong does not matter here
	for name, args := range map[string][]string{
		"status-json": {"status", "-o", "json"},
		"stacks":      {"stacks"},
		"stack":       {"stacks", "shop"},
		"stack-json":  {"stacks", "shop", "-o", "json"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errs := call(t, environ, args...)
			if code != 0 || errs != "" {
				t.Fatalf("exit code %d: %s", code, errs)
			}
			golden(t, name, out)
		})
	}
	if code, _, errs := call(t, environ, "stacks", "blog"); code != exitFailed || errs != "axion-agent: nothing found in stack: blog\nhint: look at the list\n" {
		t.Errorf("exit code %d: %s", code, errs)
	}
	if code, out, errs := call(t, environ, "logs", "web", "--tail", "5"); code != 0 || out != "web out tail=5\n" || errs != "web err\n" {
		t.Errorf("logs: %d %q %q", code, out, errs)
	}
	if code, out, _ := call(t, environ, "logs", "--container", "box"); code != 0 || out != "box out tail=all\n" {
		t.Errorf("logs of a container: %d %q", code, out)
	}
}

// authority is a CA for the tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue returns a server certificate with the CA behind it, as a plane shows it.
func (a authority) issue(t *testing.T, host string, end time.Time) tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.ParseIP(host)}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: end,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}
}

// plane listens and shows that certificate.
func plane(t *testing.T, cert tls.Certificate) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).HandshakeContext(context.Background())
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

func tokenFile(t *testing.T, ca authority) string {
	t.Helper()
	token := jointoken.Token{Secret: jointoken.NewSecret(), CAHash: jointoken.HashCA(ca.cert)}
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDoctorPlane(t *testing.T) {
	own, other := newAuthority(t), newAuthority(t)
	hour := time.Now().Add(time.Hour)
	mixed := other.issue(t, "127.0.0.1", hour)
	mixed.Certificate[1] = own.cert.Raw // shows the right CA beside a certificate that it never signed
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := plain.Addr().String()
	plain.Close()
	absent := filepath.Join(t.TempDir(), "absent")
	text := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(text.Close)
	for name, tc := range map[string]struct {
		address, token string
		verdict        string
		text           string
	}{
		"good":                   {plane(t, own.issue(t, "127.0.0.1", hour)), tokenFile(t, own), "ok ", "has the CA that the join token names"},
		"another CA":             {plane(t, other.issue(t, "127.0.0.1", hour)), tokenFile(t, own), "fail ", "has another CA"},
		"borrowed CA":            {plane(t, mixed), tokenFile(t, own), "fail ", "has another CA"},
		"another name":           {plane(t, own.issue(t, "127.0.0.2", hour)), tokenFile(t, own), "fail ", "is for another name"},
		"expired":                {plane(t, own.issue(t, "127.0.0.1", time.Now().Add(-time.Minute))), tokenFile(t, own), "fail ", "compare the clocks"},
		"no token":               {plane(t, own.issue(t, "127.0.0.1", hour)), absent, "warn ", "cannot be judged"},
		"no token, another name": {plane(t, own.issue(t, "127.0.0.2", hour)), absent, "fail ", "is for another name"},
		"no token, expired":      {plane(t, own.issue(t, "127.0.0.1", time.Now().Add(-time.Minute))), absent, "fail ", "compare the clocks"},
		"nobody there":           {closed, tokenFile(t, own), "fail ", "cannot be reached"},
		"not TLS":                {text.Listener.Addr().String(), tokenFile(t, own), "fail ", "speaks no TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			environ := []string{
				"AXION_PLANE_ADDRESS=" + tc.address, "AXION_PLANE_TOKEN_FILE=" + tc.token, "AXION_ENGINE_HOST=unix:///nowhere.sock",
				"AXION_AGENT_STATE_DIR=" + t.TempDir(), "AXION_AGENT_WORK_DIR=" + t.TempDir(), "AXION_LOCAL_SOCKET=/nowhere/agent.sock",
			}
			code, out, errs := call(t, environ, "doctor")
			if code != exitFailed || !strings.Contains(errs, "not everything is well") {
				t.Errorf("an engine that is away must fail: %d, %s", code, errs)
			}
			_, after, _ := strings.Cut(out, " control plane ")
			line := out[strings.LastIndex(out[:len(out)-len(after)], "\n"+tc.verdict)+1:]
			if !strings.HasPrefix(line, tc.verdict) || !strings.Contains(out, tc.text) {
				t.Errorf("got:\n%s", out)
			}
		})
	}
}

func TestDoctor(t *testing.T) {
	c := testengine.Client(t)
	ca := newAuthority(t)
	environ := []string{
		"AXION_PLANE_ADDRESS=" + plane(t, ca.issue(t, "127.0.0.1", time.Now().Add(time.Hour))), "AXION_PLANE_TOKEN_FILE=" + tokenFile(t, ca),
		"AXION_ENGINE_HOST=" + c.DaemonHost(), "AXION_AGENT_STATE_DIR=" + t.TempDir(), "AXION_AGENT_WORK_DIR=" + t.TempDir(),
		"AXION_LOCAL_SOCKET=" + serveLocal(t),
	}
	code, out, errs := call(t, environ, "doctor")
	if code != 0 || errs != "" || strings.Contains(out, "fail ") {
		t.Errorf("exit code %d:\n%s%s", code, out, errs)
	}
	for _, name := range []string{"configuration", "engine", "state folder", "work folder", "figures", "join token", "control plane", "local socket"} {
		if !strings.Contains(out, " "+name+" ") {
			t.Errorf("%s is not told of:\n%s", name, out)
		}
	}
	code, out, _ = call(t, append(environ, "AXION_AGENT_STATE_DIR=/proc/nowhere"), "doctor")
	if code != exitFailed || !strings.Contains(out, "fail  state folder") {
		t.Errorf("a state folder that cannot be written: %d\n%s", code, out)
	}
	code, out, _ = call(t, []string{"AXION_PLANE_ADDRESS=x"}, "doctor")
	if code != exitFailed || !strings.Contains(out, "fail  configuration") {
		t.Errorf("a bad configuration: %d\n%s", code, out)
	}
}

// TestRun starts the agent as a process of its own: it answers while it cannot enrol yet, and ends in peace when it is told to.
func TestRun(t *testing.T) {
	c := testengine.Client(t)
	dir := t.TempDir()
	listen := loopback.FreeAddress(t)
	cmd := exec.Command(os.Args[0])
	var log bytes.Buffer
	cmd.Stderr = &log
	environ := []string{
		"AXION_PLANE_ADDRESS=127.0.0.1:1", "AXION_PLANE_TOKEN_FILE=" + tokenFile(t, newAuthority(t)), "AXION_ENGINE_HOST=" + c.DaemonHost(),
		"AXION_AGENT_STATE_DIR=" + filepath.Join(dir, "state"), "AXION_AGENT_WORK_DIR=" + filepath.Join(dir, "work"),
		"AXION_LOCAL_SOCKET=" + filepath.Join(dir, "agent.sock"), "AXION_HEALTH_LISTEN=" + listen,
	}
	cmd.Env = append([]string{asAgent + "=1"}, environ...)
	if err := os.Mkdir(filepath.Join(dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })

	deadline := time.Now().Add(20 * time.Second)
	for {
		code, _, errs := call(t, environ, "healthcheck")
		if code == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the agent is not alive: %s\n%s", errs, log.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
	if code, _, errs := call(t, environ, "healthcheck", "--ready"); code != exitFailed || !strings.Contains(errs, "not enrolled") {
		t.Errorf("ready before it is enrolled: %d, %s", code, errs)
	}
	if code, out, errs := call(t, environ, "status"); code != 0 || !strings.Contains(out, "not enrolled yet") {
		t.Errorf("status: %d, %s%s", code, out, errs)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("SIGTERM: %v\n%s", err, log.String())
		}
	case <-time.After(20 * time.Second):
		t.Errorf("the agent does not end\n%s", log.String())
	}
}

package health

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

const (
	low    = runnerv1.HealthSeverity_HEALTH_SEVERITY_LOW
	medium = runnerv1.HealthSeverity_HEALTH_SEVERITY_MEDIUM
	high   = runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH
)

// start is the time of the tests' clock when it begins.
var start = time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)

func TestTracker(t *testing.T) {
	now := start
	tr := New(func() time.Time { return now })
	tr.Set("b_medium", medium, "B", "first words")
	now = now.Add(time.Minute)
	tr.Set("a_medium", medium, "A", "")
	tr.Set("z_high", high, "Z", "")
	tr.Set("low", low, "L", "")
	tr.Set("gone", high, "G", "")
	tr.Set("b_medium", medium, "B", "second words")
	tr.Clear("gone")
	tr.Clear("never_was")

	got := tr.Warnings()
	var codes []string
	for _, w := range got {
		codes = append(codes, w.GetCode())
	}
	if s := strings.Join(codes, " "); s != "z_high b_medium a_medium low" {
		t.Fatalf("order: %s", s)
	}
	if w := got[1]; w.GetText() != "second words" || !w.GetSince().AsTime().Equal(start) {
		t.Errorf("a warning that is set again must keep its time and take the new words: %v", w)
	}
	got[0].Title = "changed by the caller"
	if tr.Warnings()[0].GetTitle() != "Z" {
		t.Error("the caller has changed the tracker's own warning")
	}
	tr.Clear("low")
	now = now.Add(time.Minute)
	tr.Set("low", low, "L", strings.Repeat("é", maxText))
	last := tr.Warnings()[3]
	if !last.GetSince().AsTime().Equal(now) {
		t.Error("a warning that was cleared must begin anew")
	}
	if len(last.GetText()) > maxText {
		t.Errorf("text has %d bytes", len(last.GetText()))
	}
}

// agent is what the server asks in these tests.
type agent struct {
	*Tracker
	mu     sync.Mutex
	id     string
	engine bool
}

func (a *agent) set(id string, engine bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.id, a.engine = id, engine
}

func (a *agent) agentID() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.id
}

func (a *agent) engineReachable() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.engine
}

// serve runs a server for the test's duration and returns its address.
func serve(t *testing.T) (*Server, *agent, string) {
	t.Helper()
	a := &agent{Tracker: New(func() time.Time { return start })}
	s := NewServer(Config{Listen: "127.0.0.1:0", Version: "1.2.3", Revision: "abc"}, Deps{
		Warnings: a.Warnings, AgentID: a.agentID, EngineReachable: a.engineReachable, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-stopped; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s, a, s.Addr(t.Context()).String()
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestServer(t *testing.T) {
	_, a, addr := serve(t)
	url := "http://" + addr
	for _, step := range []struct {
		name    string
		prepare func()
		ready   string // "" means ready
		status  string
	}{
		{"just started", func() {}, "not ready: not enrolled; engine does not answer\n", StatusUnhealthy},
		{"enrolled", func() { a.set("a-1", false) }, "not ready: engine does not answer\n", StatusUnhealthy},
		{"engine answers", func() { a.set("a-1", true) }, "", StatusOK},
		{"low warning", func() { a.Set("l", low, "low", "") }, "", StatusOK},
		{"medium warning", func() { a.Set("m", medium, "middling", "") }, "", StatusDegraded},
		{"high warning", func() { a.Set("kafka_unreachable", high, "Kafka does not answer", "broker x") }, "not ready: kafka_unreachable: Kafka does not answer\n", StatusUnhealthy},
	} {
		t.Run(step.name, func(t *testing.T) {
			step.prepare()
			if code, body := get(t, url+"/livez"); code != http.StatusOK {
				t.Errorf("/livez: %d %s", code, body)
			}
			wantCode, want := http.StatusOK, "ok\n"
			if step.ready != "" {
				wantCode, want = http.StatusServiceUnavailable, step.ready
			}
			if code, body := get(t, url+"/readyz"); code != wantCode || body != want {
				t.Errorf("/readyz: %d %q", code, body)
			}
			var answer Answer
			code, body := get(t, url+"/health")
			if err := json.Unmarshal([]byte(body), &answer); err != nil || code != http.StatusOK {
				t.Fatalf("/health: %d %s", code, body)
			}
			if answer.Status != step.status {
				t.Errorf("status %q", answer.Status)
			}
		})
	}
	_, body := get(t, url+"/health")
	want := `{"status":"unhealthy","agent_id":"a-1","version":"1.2.3","warnings":[` +
		`{"code":"kafka_unreachable","severity":"high","title":"Kafka does not answer","text":"broker x","since":"2025-01-02T03:04:05Z"},` +
		`{"code":"m","severity":"medium","title":"middling","text":"","since":"2025-01-02T03:04:05Z"},` +
		`{"code":"l","severity":"low","title":"low","text":"","since":"2025-01-02T03:04:05Z"}]}`
	if body != want {
		t.Errorf("/health:\n%s\nwant\n%s", body, want)
	}
}

func TestMetrics(t *testing.T) {
	s, a, addr := serve(t)
	a.Set("h", high, "", "")
	extra := prometheus.NewCounter(prometheus.CounterOpts{Name: "axion_agent_extra_total", Help: "Another component's."})
	if err := s.Register(extra); err != nil {
		t.Fatal(err)
	}
	if err := s.Register(extra); err == nil {
		t.Error("a name was taken twice")
	}
	_, body := get(t, "http://"+addr+"/metrics")
	for _, line := range []string{
		`axion_agent_health_warnings{severity="high"} 1`,
		`axion_agent_health_warnings{severity="low"} 0`,
		`axion_agent_health_warnings{severity="medium"} 0`,
		`revision="abc",version="1.2.3"} 1`,
		"axion_agent_extra_total 0",
		"go_goroutines ",
		"process_resident_memory_bytes ",
	} {
		if !strings.Contains(body, line) {
			t.Errorf("%s is missing in:\n%s", line, body)
		}
	}
}

func TestServerRefuses(t *testing.T) {
	_, _, addr := serve(t)
	if code, _ := get(t, "http://"+addr+"/debug/pprof"); code != http.StatusNotFound {
		t.Errorf("unknown path: %d", code)
	}
	resp, err := http.Post("http://"+addr+"/livez", "text/plain", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", resp.StatusCode)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/livez", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Long", strings.Repeat("x", 2*maxHeaderBytes))
	resp, err = http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("long header: %d", resp.StatusCode)
	}
}

func TestAddressInUse(t *testing.T) {
	_, _, addr := serve(t)
	second := NewServer(Config{Listen: addr}, Deps{Warnings: New(nil).Warnings, Log: slog.New(slog.DiscardHandler)})
	err := second.Run(t.Context())
	if f := failure.Of(err); f == nil || f.Code != "health_listen" || !strings.Contains(f.Message, addr) {
		t.Errorf("got %v", err)
	}
}

func TestCheck(t *testing.T) {
	_, a, addr := serve(t)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := Check(ctx, "0.0.0.0:"+port, "/livez"); err != nil {
		t.Errorf("live agent: %v", err)
	}
	if err := Check(ctx, addr, "/readyz"); err == nil || !strings.Contains(err.Error(), "503 Service Unavailable: not ready: not enrolled") {
		t.Errorf("agent that is not ready: %v", err)
	}
	a.set("a-1", true)
	if err := Check(ctx, ":"+port, "/readyz"); err != nil {
		t.Errorf("ready agent: %v", err)
	}
	if err := Check(ctx, "127.0.0.1:1", "/livez"); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("nobody there: %v", err)
	}
}

// TestCheckGivesUp: a server that takes the connection and says nothing is not well.
func TestCheckGivesUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := Check(t.Context(), l.Addr().String(), "/livez"); err == nil {
		t.Error("a server that says nothing counts as well")
	}
}

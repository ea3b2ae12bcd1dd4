package agent

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/axion/runner-agent/agent/config"
)

// newAgent returns an agent that can reach neither plane nor engine.
func newAgent(t *testing.T) *Agent {
	t.Helper()
	dir := t.TempDir()
	a, err := New(config.Config{
		Agent:     config.Agent{StateDir: filepath.Join(dir, "state"), WorkDir: filepath.Join(dir, "work")},
		Plane:     config.Plane{Address: "127.0.0.1:1", TokenFile: filepath.Join(dir, "token")},
		Engine:    config.Engine{Host: "unix://" + filepath.Join(dir, "engine.sock")},
		Health:    config.Health{Listen: "127.0.0.1:0"},
		Local:     config.Local{Socket: filepath.Join(dir, "agent.sock")},
		Telemetry: config.Telemetry{Enabled: true, Interval: time.Second, CgroupRoot: "/sys/fs/cgroup", ProcRoot: "/proc"},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestMetricsHaveTelemetrysFigures(t *testing.T) {
	a := newAgent(t)
	collector, err := a.newTelemetry()
	if err != nil {
		t.Fatal(err)
	}
	if collector == nil {
		t.Skipf("nothing to measure with on this machine: %v", a.warnings.Warnings())
	}
	collector.Sample()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.health.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("health server: %v", err)
		}
	})
	resp, err := http.Get("http://" + a.health.Addr(ctx).String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"axion_agent_telemetry_samples_total 1\n", "axion_agent_telemetry_containers 0\n", "axion_agent_health_warnings{"} {
		if !strings.Contains(string(body), line) {
			t.Errorf("%q is missing in:\n%s", line, body)
		}
	}
}

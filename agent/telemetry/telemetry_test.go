package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	testengine "github.com/axion/runner-agent/test/engine"
)

func newCollector(t *testing.T, c *client.Client) *Collector {
	t.Helper()
	cfg := Config{CgroupRoot: "/no/such/mount", ProcRoot: "/no/such/mount", Interval: time.Second}
	col, err := New(cfg, Deps{Engine: func() *client.Client { return c }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Skipf("this machine's figures cannot be read: %v", err)
	}
	return col
}

// runCollector runs the collector for the test's duration.
func runCollector(t *testing.T, col *Collector) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- col.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-stopped; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// start makes and starts a container that writes lines as fast as it can, to nobody.
func start(t *testing.T, c *client.Client) (id, name string) {
	t.Helper()
	name = testengine.Name(t, "axt-telemetry")
	cfg := &container.Config{
		Image:  testengine.Image(t),
		Cmd:    []string{"lines", "1000000000"},
		Labels: map[string]string{labelStack: "shop", labelService: "shop_web", labelTask: "task1"},
	}
	host := &container.HostConfig{LogConfig: container.LogConfig{Type: "none"}, Resources: container.Resources{Memory: 64 << 20, NanoCPUs: 2e8}}
	created, err := c.ContainerCreate(t.Context(), cfg, host, nil, nil, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.ContainerRemove(context.Background(), created.ID, container.RemoveOptions{Force: true}); err != nil {
			t.Errorf("remove container: %v", err)
		}
	})
	if err := c.ContainerStart(t.Context(), created.ID, container.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	return created.ID, name
}

func sampleOf(col *Collector, id string) *runnerv1.ContainerSample {
	for _, s := range col.Sample().GetContainers() {
		if s.GetContainerId() == id {
			return s
		}
	}
	return nil
}

// eventually waits until ok is true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: not within 20 s", what)
}

// TestLiveContainers: one container runs before the collector does, another begins later; both are seen to work, and neither once it has ended.
func TestLiveContainers(t *testing.T) {
	c := testengine.Client(t)
	col := newCollector(t, c)
	early, _ := start(t, c)
	runCollector(t, col)
	eventually(t, "the container that was there", func() bool { return sampleOf(col, early) != nil })
	late, name := start(t, c)
	eventually(t, "the container that was started", func() bool { return sampleOf(col, late) != nil })

	for _, id := range []string{early, late} {
		first := sampleOf(col, id)
		eventually(t, "growing cpu time", func() bool {
			s := sampleOf(col, id)
			return s != nil && s.GetCpuUsageNanoseconds() > first.GetCpuUsageNanoseconds()
		})
	}
	s := sampleOf(col, late)
	if s.GetName() != name || s.GetStack() != "shop" || s.GetService() != "shop_web" || s.GetTaskId() != "task1" {
		t.Errorf("names: %v", s)
	}
	if s.GetMemoryUsageBytes() == 0 || s.GetMemoryWorkingSetBytes() > s.GetMemoryUsageBytes() || s.GetMemoryLimitBytes() != 64<<20 || s.GetPids() == 0 {
		t.Errorf("figures: %v", s)
	}
	if age := time.Since(s.GetEpochStartedAt().AsTime()); age < 0 || age > time.Minute {
		t.Errorf("started %v ago", age)
	}

	if err := c.ContainerKill(t.Context(), late, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the container's end", func() bool {
		for _, k := range col.containers.list() {
			if k.id == late {
				return false
			}
		}
		return true
	})
}

// TestAgainstTheEngine compares with what the engine's own statistics say.
func TestAgainstTheEngine(t *testing.T) {
	c := testengine.Client(t)
	col := newCollector(t, c)
	id, _ := start(t, c)
	runCollector(t, col)
	eventually(t, "the container", func() bool { return sampleOf(col, id) != nil })
	if err := c.ContainerPause(t.Context(), id); err != nil { // so that the figures stand still
		t.Fatal(err)
	}
	s := sampleOf(col, id)
	stats, err := c.ContainerStatsOneShot(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Body.Close()
	engine := decodeStats(t, stats.Body)
	if s.GetCpuUsageNanoseconds() != engine.CPUStats.CPUUsage.TotalUsage {
		t.Errorf("cpu: %d, the engine says %d", s.GetCpuUsageNanoseconds(), engine.CPUStats.CPUUsage.TotalUsage)
	}
	// The kernel counts memory in batches for each processor (MEMCG_CHARGE_BATCH, 64 pages) and gives back what it has in stock when it likes, also of a container that
	// stands still: the kernel's cgroup-v1 documentation calls usage_in_bytes a fuzz value.
	stock := uint64(64 * os.Getpagesize() * runtime.NumCPU())
	if ours, theirs := s.GetMemoryUsageBytes(), engine.MemoryStats.Usage; max(ours, theirs)-min(ours, theirs) > stock || s.GetMemoryLimitBytes() != engine.MemoryStats.Limit {
		t.Errorf("memory: %d of %d, the engine says %d of %d", s.GetMemoryUsageBytes(), s.GetMemoryLimitBytes(), engine.MemoryStats.Usage, engine.MemoryStats.Limit)
	}
	if s.GetPids() != engine.PidsStats.Current {
		t.Errorf("pids: %d, the engine says %d", s.GetPids(), engine.PidsStats.Current)
	}
}

func TestHost(t *testing.T) {
	col := newCollector(t, nil)
	b := col.Sample()
	h := b.GetHost()
	if h.GetCpuUsageNanoseconds() == 0 || h.GetCpus() == 0 || h.GetMemoryTotalBytes() == 0 || h.GetMemoryUsedBytes() == 0 ||
		h.GetMemoryUsedBytes() >= h.GetMemoryTotalBytes() || h.GetUptime().AsDuration() <= 0 {
		t.Errorf("got %v", h)
	}
	if b.GetSampledAt().AsTime().IsZero() {
		t.Error("the sample has no time")
	}
}

// TestHostFiles reads files whose figures are known.
func TestHostFiles(t *testing.T) {
	proc := t.TempDir()
	for name, content := range map[string]string{
		"stat":      "cpu  100 20 30 1000 50 6 7 8 0 0\ncpu0 60 10 15 500 25 3 4 4 0 0\ncpu1 40 10 15 500 25 3 3 4 0 0\nbtime 1700000000\n",
		"meminfo":   "MemTotal:        1000 kB\nMemFree:          100 kB\nMemAvailable:     600 kB\n",
		"loadavg":   "0.75 0.50 0.25 1/100 1234\n",
		"diskstats": "   8       0 sda 10 0 100 0 20 0 200 0 0 0 0\n   8       1 sda1 10 0 90 0 20 0 190 0 0 0 0\n 202       1 xvda1 1 0 7 0 1 0 9 0 0 0 0\n 253       0 dm-0 1 0 50 0 1 0 50 0 0 0 0\n   7       0 loop0 1 0 50 0 1 0 50 0 0 0 0\n",
		"1/net/dev": "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n" +
			"    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  eth0: 1000 1 0 0 0 0 0 0 2000 1 0 0 0 0 0 0\nveth12: 5 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\ndocker_gwbridge: 5 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n",
	} {
		writeFile(t, filepath.Join(proc, name), content)
	}
	h := newHost(t, proc)
	s, err := h.sample(time.Unix(1700000100, 0))
	if err != nil {
		t.Fatal(err)
	}
	if got := time.Duration(s.GetCpuUsageNanoseconds()).Round(time.Millisecond); got != 1710*time.Millisecond || s.GetCpus() != 2 {
		t.Errorf("cpu: %v of %d", got, s.GetCpus())
	}
	if s.GetMemoryTotalBytes() != 1000<<10 || s.GetMemoryUsedBytes() != 400<<10 || s.GetLoad1() != 0.75 {
		t.Errorf("memory and load: %v", s)
	}
	if s.GetNetworkReceiveBytes() != 1000 || s.GetNetworkTransmitBytes() != 2000 {
		t.Errorf("network: %v", s)
	}
	if s.GetDiskReadBytes() != 107*512 || s.GetDiskWriteBytes() != 209*512 {
		t.Errorf("disks: %v", s)
	}
	if s.GetUptime().AsDuration() != 100*time.Second {
		t.Errorf("uptime: %v", s.GetUptime().AsDuration())
	}

	if err := os.Remove(filepath.Join(proc, "loadavg")); err != nil {
		t.Fatal(err)
	}
	s, err = h.sample(time.Unix(1700000100, 0))
	if err == nil || !strings.Contains(err.Error(), "loadavg") || s.GetMemoryTotalBytes() == 0 || s.GetDiskReadBytes() == 0 {
		t.Errorf("one file that is missing: %v, %v", err, s)
	}
}

func TestNewRefuses(t *testing.T) {
	folder := t.TempDir()
	for name, tc := range map[string]struct {
		cfg  Config
		code string
	}{
		"no cgroups": {Config{CgroupRoot: folder}, "no_cgroups"},
	} {
		_, err := New(tc.cfg, Deps{})
		if f := failure.Of(err); f == nil || f.Code != tc.code || f.Object != folder {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStream(t *testing.T) {
	col := newCollector(t, nil)
	col.interval = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cadence, batches, ended := make(chan time.Duration, 1), make(chan *runnerv1.MetricsBatch), make(chan error, 1)
	go func() {
		ended <- col.Stream(ctx, cadence, func(b *runnerv1.MetricsBatch) error {
			batches <- b
			return nil
		})
	}()
	first := <-batches
	cadence <- time.Nanosecond // becomes a second; an hour would outlast the test
	second := <-batches
	if !second.GetSampledAt().AsTime().After(first.GetSampledAt().AsTime()) {
		t.Error("time stands still")
	}
	close(cadence)
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Stream: %v", err)
	}
	broken := errors.New("broken")
	if err := col.Stream(t.Context(), nil, func(*runnerv1.MetricsBatch) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("Stream: %v", err)
	}
}

// TestEngineAway: an engine that does not answer costs the list of containers, not the host's figures.
func TestEngineAway(t *testing.T) {
	c, err := client.NewClientWithOpts(client.WithHost("unix://"+filepath.Join(t.TempDir(), "absent.sock")), client.WithVersion("1.41"))
	if err != nil {
		t.Fatal(err)
	}
	col := newCollector(t, c)
	runCollector(t, col)
	eventually(t, "the failure is counted", func() bool { return counter(t, col, targetEngine) > 0 })
	if col.Sample().GetHost().GetMemoryTotalBytes() == 0 {
		t.Error("the host's figures are missing")
	}
}

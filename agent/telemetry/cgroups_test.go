package telemetry

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/procfs"
)

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newHost(t *testing.T, procRoot string) *host {
	t.Helper()
	proc, err := procfs.NewFS(procRoot)
	if err != nil {
		t.Fatal(err)
	}
	return &host{proc: proc, procRoot: procRoot}
}

func decodeStats(t *testing.T, r io.Reader) container.StatsResponse {
	t.Helper()
	var s container.StatsResponse
	if err := json.NewDecoder(r).Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// counter returns how many errors about target the collector has counted.
func counter(t *testing.T, c prometheus.Collector, target string) float64 {
	t.Helper()
	metrics := make(chan prometheus.Metric, 16)
	c.Collect(metrics)
	close(metrics)
	for m := range metrics {
		var out dto.Metric
		if err := m.Write(&out); err != nil {
			t.Fatal(err)
		}
		for _, l := range out.GetLabel() {
			if l.GetName() == "target" && l.GetValue() == target {
				return out.GetCounter().GetValue()
			}
		}
	}
	return 0
}

const (
	systemdID  = "a8cc3f1844529f164acbf69c898fd0f0b72a36eb8ced83baebe7404d7181513a"
	cgroupfsID = "a75c62979c94f2d6e74a59c48ff6f3b1eb1f7c454087e9f7f010d34a3a2513e5"
)

// TestUnified reads files that two kernels wrote, under both of the engine's cgroup drivers.
func TestUnified(t *testing.T) {
	for name, tc := range map[string]struct {
		root, id string
		want     usage
	}{
		"kernel 6.12, systemd": {
			"testdata/kernel-6.12-docker-26.1-systemd", systemdID,
			usage{cpuNanoseconds: 108120398000, memory: 28749824, workingSet: 28749824 - 4194304, memoryLimit: 64 << 20, diskWrite: 1042284544, pids: 5},
		},
		"kernel 6.1, cgroupfs": {
			"testdata/kernel-6.1-docker-20.10-cgroupfs", cgroupfsID,
			usage{cpuNanoseconds: 9972145000, memory: 30625792, workingSet: 30625792 - 4194304, memoryLimit: 64 << 20, diskWrite: 82837504, pids: 5},
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := &hierarchy{root: tc.root, procRoot: t.TempDir()}
			path, err := h.find(tc.id, 1)
			if err != nil {
				t.Fatal(err)
			}
			group, err := h.openUnified(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := group.read()
			if err != nil || got != tc.want {
				t.Errorf("got  %+v, %v\nwant %+v", got, err, tc.want)
			}
		})
	}
}

func TestUnifiedGone(t *testing.T) {
	h := &hierarchy{root: t.TempDir()}
	group, err := h.openUnified("/docker/" + systemdID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := group.read(); !isGone(err) {
		t.Errorf("got %v", err)
	}
}

// legacyTree writes the files of a container's cgroup in version 1.
func legacyTree(t *testing.T, id string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{
		"cpuacct/docker/" + id + "/cpuacct.usage":                 "123456789\n",
		"cpuacct/docker/" + id + "/cpuacct.stat":                  "user 5\nsystem 7\n",
		"cpuacct/docker/" + id + "/cpuacct.usage_percpu":          "100000000 23456789\n",
		"memory/docker/" + id + "/memory.stat":                    "cache 1\nhierarchical_memory_limit 9223372036854771712\ntotal_inactive_file 1000\n",
		"memory/docker/" + id + "/memory.usage_in_bytes":          "5000\n",
		"memory/docker/" + id + "/memory.max_usage_in_bytes":      "6000\n",
		"memory/docker/" + id + "/memory.failcnt":                 "0\n",
		"memory/docker/" + id + "/memory.limit_in_bytes":          "9223372036854771712\n",
		"memory/docker/" + id + "/memory.oom_control":             "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
		"blkio/docker/" + id + "/blkio.throttle.io_service_bytes": "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\n8:16 Read 1\n8:16 Write 2\nTotal 33\n",
		"blkio/docker/" + id + "/blkio.throttle.io_serviced":      "8:0 Read 1\nTotal 1\n",
		"pids/docker/" + id + "/pids.current":                     "3\n",
		"pids/docker/" + id + "/pids.max":                         "max\n",
		"proc/partitions":                                         "major minor  #blocks  name\n\n   8        0   100 sda\n",
	} {
		writeFile(t, filepath.Join(root, name), content)
	}
	return root
}

func TestLegacy(t *testing.T) {
	root := legacyTree(t, cgroupfsID)
	h, err := openHierarchy(root, filepath.Join(root, "proc"))
	if err != nil {
		t.Fatal(err)
	}
	path, err := h.find(cgroupfsID, 1)
	if err != nil {
		t.Fatal(err)
	}
	group, err := h.open(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := group.read()
	want := usage{cpuNanoseconds: 123456789, memory: 5000, workingSet: 4000, diskRead: 11, diskWrite: 22, pids: 3}
	if err != nil || got != want {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	if err := os.RemoveAll(filepath.Join(root, "cpuacct", "docker")); err != nil {
		t.Fatal(err)
	}
	if _, err := group.read(); !isGone(err) {
		t.Errorf("a cgroup that is gone: %v", err)
	}
}

func TestFind(t *testing.T) {
	const id = systemdID
	for name, tc := range map[string]struct {
		dirs []string
		proc string // /proc/42/cgroup
		want string
	}{
		"what /proc says":         {[]string{"memory/own/parent/" + id}, "4:memory:/own/parent/" + id + "\n", "/own/parent/" + id},
		"from a cgroup namespace": {[]string{"memory/system.slice/docker-" + id + ".scope"}, "4:memory:/../docker-" + id + ".scope\n", "/system.slice/docker-" + id + ".scope"},
		"no /proc":                {[]string{"memory/docker/" + id}, "", "/docker/" + id},
		"anywhere":                {[]string{"memory/a/b/c/docker-" + id + ".scope/inner"}, "", "/a/b/c/docker-" + id + ".scope"},
		"another process's":       {[]string{"memory/user.slice", "memory/docker/" + id}, "4:memory:/user.slice\n", "/docker/" + id},
		"nowhere":                 {[]string{"memory/docker"}, "", ""},
		"too deep":                {[]string{"memory/1/2/3/4/5/6/7/8/9/10/" + id}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for _, dir := range tc.dirs {
				if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			writeFile(t, filepath.Join(root, "proc/42/cgroup"), tc.proc)
			h := &hierarchy{root: root, controller: "memory", procRoot: filepath.Join(root, "proc")}
			got, err := h.find(id, 42)
			if got != tc.want || (err == nil) != (tc.want != "") {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestLimit(t *testing.T) {
	for bytes, want := range map[uint64]uint64{1<<64 - 1: 0, 9223372036854771712: 0, 9223372036854710272: 0, 64 << 20: 64 << 20, 0: 0} {
		if got := limit(bytes); got != want {
			t.Errorf("%d: got %d", bytes, got)
		}
	}
}

// FuzzPathsOf reads what /proc says about a process of a container: whatever it is, no path leads out of the tree or to another container's cgroup.
func FuzzPathsOf(f *testing.F) {
	const id = "0123456789abcdef"
	for _, text := range []string{
		"0::/system.slice/docker-" + id + ".scope\n",
		"4:cpu,cpuacct:/docker/" + id + "\n3:memory:/docker/" + id + "\n0::/\n",
		"0::/../docker-" + id + ".scope\n",
		"0::/a/../../b/" + id + "\n",
		"4:cpuacct:" + id,
		"x", "::", "0::", "1:name=systemd:/\n",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		proc := t.TempDir()
		writeFile(t, filepath.Join(proc, "7", "cgroup"), text)
		for _, controller := range []string{"", "cpuacct"} {
			h := &hierarchy{root: "/nowhere", controller: controller, procRoot: proc}
			for _, path := range h.pathsOf(id, 7) {
				if !filepath.IsAbs(path) || path != filepath.Clean(path) || !strings.Contains(filepath.Base(path), id) {
					t.Errorf("%q gives %q", text, path)
				}
			}
		}
	})
}

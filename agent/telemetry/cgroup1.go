package telemetry

import (
	"fmt"
	"math"
	"os"
	"path/filepath"

	"github.com/containerd/cgroups/v3/cgroup1"
	v1stats "github.com/containerd/cgroups/v3/cgroup1/stats"
)

// legacy is a cgroup of version 1.
type legacy struct {
	dir   string // below one of the controllers
	group cgroup1.Cgroup
}

// openLegacy loads the cgroup with the controllers that have figures for us; each lies in a folder of its own below the root.
func (h *hierarchy) openLegacy(path string) (cgroup, error) {
	// A link such as cpuacct -> cpu,cpuacct leads there too.
	subsystems := func() ([]cgroup1.Subsystem, error) {
		return []cgroup1.Subsystem{
			cgroup1.NewCpuacct(h.root),
			cgroup1.NewMemory(h.root, cgroup1.IgnoreModules("memsw", "kmem", "kmem.tcp")), // not there on every kernel, and not told
			cgroup1.NewBlkio(h.root, cgroup1.ProcRoot(h.procRoot)),
			cgroup1.NewPids(h.root),
		}, nil
	}
	group, err := cgroup1.Load(cgroup1.StaticPath(path), cgroup1.WithHierarchy(subsystems))
	if err != nil {
		return nil, fmt.Errorf("open cgroup %s: %w", filepath.Join(h.root, path), err)
	}
	return legacy{dir: filepath.Join(h.root, h.controller, path), group: group}, nil
}

// read leaves out what a missing controller would tell.
func (l legacy) read() (usage, error) {
	if _, err := os.Stat(l.dir); err != nil { // only this tells a cgroup that is gone from a file that this kernel does not have
		return usage{}, fmt.Errorf("read cgroup: %w", err)
	}
	m, err := l.group.Stat(cgroup1.IgnoreNotExist)
	if err != nil {
		return usage{}, fmt.Errorf("read cgroup: %w", err)
	}
	u := usage{
		cpuNanoseconds: m.GetCPU().GetUsage().GetTotal(),
		memory:         m.GetMemory().GetUsage().GetUsage(),
		pids:           m.GetPids().GetCurrent(),
	}
	u.workingSet = u.memory - min(u.memory, m.GetMemory().GetTotalInactiveFile())
	u.memoryLimit = limit(m.GetMemory().GetHierarchicalMemoryLimit())
	u.diskRead, u.diskWrite = blockBytes(m.GetBlkio().GetIoServiceBytesRecursive())
	return u, nil
}

// blockBytes sums what was read and written, over all devices.
func blockBytes(entries []*v1stats.BlkIOEntry) (read, written uint64) {
	for _, e := range entries {
		switch e.GetOp() {
		case "Read":
			read += e.GetValue()
		case "Write":
			written += e.GetValue()
		}
	}
	return read, written
}

// limit returns 0 for the huge numbers by which the kernel says "none": "max", and in version 1 the largest multiple of a page.
func limit(bytes uint64) uint64 {
	const none = math.MaxInt64 &^ (64<<10 - 1) // pages have up to 64 KiB
	if bytes >= none {
		return 0
	}
	return bytes
}

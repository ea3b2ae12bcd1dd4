package telemetry

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2"
)

// unified is a cgroup of version 2.
type unified struct {
	dir     string
	manager *cgroup2.Manager
}

func (h *hierarchy) openUnified(path string) (cgroup, error) {
	manager, err := cgroup2.Load(path, cgroup2.WithMountpoint(h.root))
	if err != nil {
		return nil, fmt.Errorf("open cgroup %s: %w", filepath.Join(h.root, path), err)
	}
	return unified{dir: filepath.Join(h.root, path), manager: manager}, nil
}

// read asks for the figures that we tell, not for all that the library knows.
func (u unified) read() (usage, error) {
	if _, err := os.Stat(u.dir); err != nil { // to the library a file that is missing is a zero
		return usage{}, fmt.Errorf("read cgroup: %w", err)
	}
	m, err := u.manager.StatFiltered(cgroup2.StatCPU | cgroup2.StatMemory | cgroup2.StatIO | cgroup2.StatPids)
	if err != nil {
		return usage{}, fmt.Errorf("read cgroup: %w", err)
	}
	used := usage{
		cpuNanoseconds: m.GetCPU().GetUsageUsec() * uint64(time.Microsecond),
		memory:         m.GetMemory().GetUsage(),
		memoryLimit:    limit(m.GetMemory().GetUsageLimit()),
		pids:           m.GetPids().GetCurrent(),
	}
	used.workingSet = used.memory - min(used.memory, m.GetMemory().GetInactiveFile())
	for _, d := range m.GetIo().GetUsage() {
		used.diskRead += d.GetRbytes()
		used.diskWrite += d.GetWbytes()
	}
	return used, nil
}

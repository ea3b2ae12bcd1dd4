package telemetry

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"

	"github.com/axion/runner-agent/proto/failure"
)

// maxWalkDepth bounds the search for a container's cgroup, in folders below the root.
const maxWalkDepth = 8

// usage is what a cgroup has used.
type usage struct {
	cpuNanoseconds      uint64
	memory, workingSet  uint64 // bytes
	memoryLimit         uint64 // bytes; 0 means none
	diskRead, diskWrite uint64 // bytes
	pids                uint64
}

// cgroup is one container's.
type cgroup interface {
	read() (usage, error)
}

// hierarchy is the host's cgroups, of one version.
type hierarchy struct {
	root string
	// controller is the folder below root in which a container's path is looked for; empty for version 2.
	controller string
	procRoot   string
	open       func(path string) (cgroup, error)
}

// openHierarchy finds out which version the host uses. A hybrid host keeps its controllers in version 1.
func openHierarchy(root, procRoot string) (*hierarchy, error) {
	h := &hierarchy{root: root, procRoot: procRoot}
	switch mode(root) {
	case cgroups.Unified:
		h.open = h.openUnified
	case cgroups.Legacy, cgroups.Hybrid:
		h.controller = legacyController(root)
		h.open = h.openLegacy
	default:
		return nil, failure.New(failure.Conflict, "no_cgroups", root, "no cgroups at %s", root).
			WithHint("mount the host's /sys/fs/cgroup there, read-only")
	}
	return h, nil
}

// version is 1 or 2.
func (h *hierarchy) version() int {
	if h.controller == "" {
		return 2
	}
	return 1
}

// mode is cgroups.Mode for any root: the library's own looks at /sys/fs/cgroup alone, which in a container is not the host's.
func mode(root string) cgroups.CGMode {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return cgroups.Unavailable
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return cgroups.Unified
	}
	if legacyController(root) == "" {
		return cgroups.Unavailable
	}
	if err := unix.Statfs(filepath.Join(root, "unified"), &st); err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		return cgroups.Hybrid
	}
	return cgroups.Legacy
}

// legacyController returns a controller of version 1 that is there, or "".
func legacyController(root string) string {
	for _, name := range []string{"cpuacct", "memory", "pids", "blkio"} {
		if info, err := os.Stat(filepath.Join(root, name)); err == nil && info.IsDir() {
			return name
		}
	}
	return ""
}

// find returns the path of the container's cgroup, below the root (or below each controller of version 1), with a leading slash.
// What /proc says comes first, but seen from a cgroup namespace it may be relative to a place that is not ours ("/../docker-….scope"): then the two usual layouts
// of the engine are tried, and at last the tree is searched once.
func (h *hierarchy) find(id string, pid int) (string, error) {
	candidates := append(h.pathsOf(id, pid), "/docker/"+id, "/system.slice/docker-"+id+".scope")
	for _, path := range candidates {
		if info, err := os.Stat(filepath.Join(h.root, h.controller, path)); err == nil && info.IsDir() {
			return path, nil
		}
	}
	if path := h.search(id); path != "" {
		return path, nil
	}
	return "", &fs.PathError{Op: "find the cgroup of " + id, Path: h.root, Err: fs.ErrNotExist}
}

// pathsOf returns what /proc says about the process, as far as it is a path that names the container.
func (h *hierarchy) pathsOf(id string, pid int) []string {
	legacy, unified, err := cgroups.ParseCgroupFileUnified(filepath.Join(h.procRoot, strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return nil
	}
	path := unified
	if h.controller != "" {
		path = legacy[h.controller]
	}
	if !strings.Contains(filepath.Base(path), id) || strings.HasPrefix(path, "/..") {
		return nil
	}
	return []string{filepath.Clean("/" + path)}
}

// search looks for a folder that is named after the container.
func (h *hierarchy) search(id string) string {
	top, found := filepath.Join(h.root, h.controller), ""
	_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil, !d.IsDir():
			return nil // what cannot be read is not it
		case d.Name() == id, d.Name() == "docker-"+id+".scope":
			found = strings.TrimPrefix(path, top)
			return fs.SkipAll
		case strings.Count(strings.TrimPrefix(path, top), "/") >= maxWalkDepth:
			return fs.SkipDir
		}
		return nil
	})
	return found
}

package rig

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// removeGroups removes the empty control groups that the containers of a killed node left: nobody in the node was there to do it, and the engine outside
// removes only the node's own. What still has a process in it cannot be removed, so nothing is asked.
func removeGroups(containerID string) {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/docker/" + containerID)
	unified, _ := filepath.Glob("/sys/fs/cgroup/docker/" + containerID)
	for _, root := range append(roots, unified...) {
		var groups []string
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				groups = append(groups, path)
			}
			return nil
		})
		for _, group := range slices.Backward(groups) {
			_ = os.Remove(group)
		}
	}
}

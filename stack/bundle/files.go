package bundle

import (
	"path"
	"strings"

	"github.com/axion/runner-agent/proto/failure"
)

// files is the confined view of a bundle's files: a map, so that no path, however it is spelled, leads to a disk.
type files struct {
	workingDir string
	byPath     map[string][]byte
}

func newFiles(c Content) files {
	f := files{workingDir: c.WorkingDir, byPath: make(map[string][]byte, len(c.Files))}
	for _, file := range c.Files {
		f.byPath[file.Path] = file.Content
	}
	return f
}

// read returns the content of the file that the sender knows by p, which is absolute. Its failures name the sender's path: class denied and code
// "not_in_bundle" for what was not sent along; docker's own words for a folder.
func (f files) read(p string) ([]byte, error) {
	key := path.Clean(p)
	if content, ok := f.byPath[key]; ok {
		return content, nil
	}
	if f.isFolder(key) {
		return nil, failure.New(failure.Invalid, codeInvalid, p, "read %s: is a directory", p)
	}
	return nil, failure.New(failure.Denied, "not_in_bundle", p, "%s is not in the bundle", p).
		WithHint("a deployment reads nothing but the files that were sent with it")
}

func (f files) isFolder(key string) bool {
	if key == f.workingDir {
		return true
	}
	prefix := strings.TrimSuffix(key, "/") + "/"
	for p := range f.byPath {
		if strings.HasPrefix(p, prefix) {
			return true
		}
	}
	return false
}

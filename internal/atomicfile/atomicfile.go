// Package atomicfile writes small files that must survive a crash: a reader sees the old content or the new one, never half of it, and what was
// reported as written is still there after a power cut.
package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Write replaces the file's content. The new content is written to a temporary file in the same folder, synced, and renamed over the old one; then the
// folder is synced. The file gets the permissions perm, whatever the umask says. After an error the old content is still there.
func Write(path string, data []byte, perm os.FileMode) error {
	if err := write(path, data, perm); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Temporary is the pattern, as filepath.Match has it, of the names that Write gives to temporary files for a file of that name. Only a crash leaves any.
func Temporary(name string) string { return "." + name + ".*.tmp" }

func write(path string, data []byte, perm os.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, Temporary(filepath.Base(path)))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := fill(f, data, perm); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// fill writes, syncs and closes the temporary file.
func fill(f *os.File, data []byte, perm os.FileMode) (err error) {
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Chmod(perm); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

//go:build unix

package plane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// lock keeps a second plane out of the data directory: neither the database's nor the broker's files may have two owners. The lock ends with the process,
// or when the file is closed.
func lock(dataDir string) (*os.File, error) {
	path := filepath.Join(dataDir, lockFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errors.New("another plane uses it")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock data directory %s: %w", dataDir, err), f.Close())
	}
	return f, nil
}

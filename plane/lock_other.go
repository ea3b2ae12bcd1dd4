//go:build !unix

package plane

import (
	"fmt"
	"os"
	"path/filepath"
)

// lock only opens the file: this platform is for development.
func lock(dataDir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dataDir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	return f, nil
}

//go:build unix

package rig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// take fails while another process lives that brought up a rig of that name: it would be removed in the middle of what it is used for. Close, or the end of this
// process, gives the name back.
func (r *Rig) take() error {
	if err := os.MkdirAll(filepath.Dir(r.dir), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(r.dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errors.New("another process uses a rig of that name")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("rig %s: take its name: %w", r.name, err), f.Close())
	}
	r.taken = f
	return nil
}

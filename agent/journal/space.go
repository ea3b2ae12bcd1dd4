package journal

import (
	"fmt"
	"path/filepath"
	"syscall"

	bolt "go.etcd.io/bbolt"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// DefaultMinFreeBytes is the room below which no command is received: one that is begun must be able to write down how it ended, and the identity on the same
// volume must be able to renew its certificate.
const DefaultMinFreeBytes int64 = 4 << 20

const codeDiskFull = "disk_full"

var keySpace = []byte("space")

// CheckSpace says whether the journal's volume has room for more commands, and sets or ends the warning. It costs one call to the kernel, and one small write
// if the last write was refused though the volume seems to have space: quotas do not show otherwise.
// Failure: class Unavailable, code "disk_full".
func (b *Bolt) CheckSpace() error {
	if err := b.hasRoom(); err != nil {
		return err
	}
	if b.refused.Load() {
		return b.update(func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(keySpace, nil) })
	}
	b.opts.Warn.Clear(codeDiskFull)
	return nil
}

// hasRoom fails if less is left than the journal must have.
func (b *Bolt) hasRoom() error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(b.path), &fs); err != nil {
		return nil // then the write itself tells
	}
	room := int64(fs.Bavail) * fs.Bsize
	if !b.refused.Load() {
		// What is free within the journal's file is the journal's own: bbolt gives no space back, so that one that has once filled the disk must count it.
		// It may be in pieces too small for a larger write, so it does not count until something was written again.
		room += int64(b.db.Stats().FreeAlloc)
	}
	if room < b.opts.MinFreeBytes {
		return b.diskFull(fmt.Errorf("%d KiB are left, %d are needed", room>>10, b.opts.MinFreeBytes>>10))
	}
	return nil
}

// diskFull is the failure of a write that the disk has no room for, or would not have. It sets the warning.
func (b *Bolt) diskFull(err error) error {
	f := failure.New(failure.Unavailable, codeDiskFull, b.path, "the disk of the journal %s is full: %w", b.path, err).
		WithHint("free space on the volume of the agent's state folder")
	b.opts.Warn.Set(f.Code, runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, "disk full", f.Message+"; no command is begun until there is space")
	return f
}

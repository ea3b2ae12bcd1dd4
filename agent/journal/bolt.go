package journal

import (
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

const (
	// lockTimeout is how long Open waits for another agent to give the file free: a task that Swarm replaces may still be stopping.
	lockTimeout = 2 * time.Second
	// fileMode: the journal holds events, which name what runs on this host.
	fileMode = 0o600
	// damagedSuffix marks the one damaged journal that is kept for inspection.
	damagedSuffix = ".damaged"
	// compactAbove is the file size above which Open rewrites a mostly empty file: bbolt itself never gives space back.
	compactAbove = 64 << 20
)

var (
	bucketMeta     = []byte("meta")
	bucketRecords  = []byte("records")  // command id -> storedRecord
	bucketOutcomes = []byte("outcomes") // command id -> envelope
	bucketSettled  = []byte("settled")  // id of an acknowledged outcome -> command id
	bucketOutbox   = []byte("outbox")   // seq -> item
	buckets        = [][]byte{bucketMeta, bucketRecords, bucketOutcomes, bucketSettled, bucketOutbox}

	keyFormat     = []byte("format")
	currentFormat = []byte("1")
)

// Warner is told what is not as it should be.
type Warner interface {
	Set(code string, severity runnerv1.HealthSeverity, title, text string)
	Clear(code string)
}

// Options of a journal. The zero value is usable.
type Options struct {
	// MaxOutboxBytes is the bound of the outbox; 0 means DefaultMaxOutboxBytes.
	MaxOutboxBytes int64
	// MinFreeBytes is the room on the volume below which Receive fails; 0 means DefaultMinFreeBytes.
	MinFreeBytes int64
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log may be nil.
	Log *slog.Logger
	// Warn may be nil. Codes: "journal_damaged", "outbox_full", "disk_full".
	Warn Warner
}

// Bolt is a Store in one bbolt file. Its methods may be called from any goroutine.
type Bolt struct {
	path string
	opts Options
	db   *bolt.DB
	// refused says that the last write found the disk full.
	refused atomic.Bool

	// writing is held while the outbox on disk changes. It is taken before mu and never while mu is held.
	writing sync.Mutex
	// mu guards the outbox's state in memory; it is never held while the disk is written.
	mu  sync.Mutex
	box outboxState
}

// Open opens the journal at path or makes it. Failures: class Conflict, code "state_in_use", when another process has it open; class Unavailable, code
// "disk_full". A damaged file is renamed to path + ".damaged", with a warning, and an empty journal takes its place.
func Open(path string, opts Options) (*Bolt, error) {
	if opts.MaxOutboxBytes == 0 {
		opts.MaxOutboxBytes = DefaultMaxOutboxBytes
	}
	if opts.MinFreeBytes == 0 {
		opts.MinFreeBytes = DefaultMinFreeBytes
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Warn == nil {
		opts.Warn = noWarner{}
	}
	b := &Bolt{path: path, opts: opts}
	err := b.open()
	var damage *damageError
	if !errors.As(err, &damage) {
		return b, err
	}
	aside := path + damagedSuffix
	opts.Log.Error("the journal is damaged, a new one is begun", "path", path, "kept_as", aside, "error", damage.err)
	opts.Warn.Set("journal_damaged", runnerv1.HealthSeverity_HEALTH_SEVERITY_MEDIUM, "journal was damaged",
		fmt.Sprintf("the journal %s could not be read (%v) and was put aside as %s; no command is lost, but events that waited in it are", path, damage.err, aside))
	if err := os.Rename(path, aside); err != nil {
		return nil, b.translate(fmt.Errorf("put the damaged journal %s aside: %w", path, err))
	}
	b = &Bolt{path: path, opts: opts}
	return b, b.open()
}

// damageError says that the file is no readable journal.
type damageError struct{ err error }

func (e *damageError) Error() string { return e.err.Error() }

func (b *Bolt) open() error {
	db, err := openFile(b.path)
	if err != nil {
		return b.openError(err)
	}
	b.db = db
	if err := b.load(); err != nil {
		_ = db.Close()
		return b.openError(err)
	}
	return b.compact()
}

func openFile(path string) (db *bolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer recoverDamage(&err)
	return bolt.Open(path, fileMode, &bolt.Options{Timeout: lockTimeout, FreelistType: bolt.FreelistMapType})
}

// recoverDamage turns a panic into a damageError: bbolt panics on pages that contradict each other, and reading a mapped file beyond its end faults.
func recoverDamage(err *error) {
	if r := recover(); r != nil {
		*err = &damageError{fmt.Errorf("%v", r)}
	}
}

// load checks the file and reads the outbox's state.
func (b *Bolt) load() (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer recoverDamage(&err)
	if err := b.db.View(check); err != nil {
		return &damageError{err}
	}
	err = b.update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		switch format := meta.Get(keyFormat); {
		case format == nil:
			return meta.Put(keyFormat, currentFormat)
		case string(format) != string(currentFormat):
			return &damageError{fmt.Errorf("journal has format %q, this agent reads %q", format, currentFormat)}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return b.loadOutbox()
}

// check reads everything once. bbolt's own check comes last: it runs in another goroutine, where a fault could not be caught.
func check(tx *bolt.Tx) error {
	if info, err := os.Stat(tx.DB().Path()); err != nil {
		return err
	} else if info.Size() < tx.Size() {
		return fmt.Errorf("file has %d bytes, %d are needed", info.Size(), tx.Size())
	}
	err := tx.ForEach(func(_ []byte, bucket *bolt.Bucket) error {
		return bucket.ForEach(func(k, v []byte) error {
			// The sums do not matter; making them touches every byte, so that a length that leaves the file is found here.
			_ = crc32.ChecksumIEEE(k)
			_ = crc32.ChecksumIEEE(v)
			return nil
		})
	})
	if err != nil {
		return err
	}
	var first error
	for err := range tx.Check() { // the channel must be drained
		if first == nil {
			first = err
		}
	}
	return first
}

func (b *Bolt) openError(err error) error {
	var damage *damageError
	switch {
	case errors.As(err, &damage):
		return err
	case errors.Is(err, bolterrors.ErrTimeout):
		return failure.New(failure.Conflict, "state_in_use", b.path, "another agent uses this state folder: %s is locked", filepath.Dir(b.path)).
			WithHint("stop the other agent, or give each its own state folder")
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrVersionMismatch), errors.Is(err, bolterrors.ErrChecksum):
		return &damageError{err}
	}
	var path *os.PathError
	var number syscall.Errno
	if errors.As(err, &path) || errors.As(err, &number) || failureOf(err) {
		return b.translate(fmt.Errorf("open journal %s: %w", b.path, err))
	}
	return &damageError{err} // bbolt's own words for a file that is too short
}

func failureOf(err error) bool {
	var f *failure.Error
	return errors.As(err, &f)
}

// compact rewrites a large file that is mostly empty.
func (b *Bolt) compact() error {
	info, err := os.Stat(b.path)
	if err != nil || info.Size() < compactAbove || b.Bytes() > info.Size()/4 {
		return nil
	}
	smaller := b.path + ".compact"
	_ = os.Remove(smaller)
	defer os.Remove(smaller)
	dst, err := bolt.Open(smaller, fileMode, &bolt.Options{Timeout: lockTimeout})
	if err != nil {
		b.opts.Log.Warn("cannot compact the journal", "path", b.path, "error", err)
		return nil
	}
	err = errors.Join(bolt.Compact(dst, b.db, 1<<20), dst.Close())
	if err != nil {
		b.opts.Log.Warn("cannot compact the journal", "path", b.path, "error", err)
		return nil
	}
	// The lock belongs to the file that is given up here; another agent that takes the path now is found by openFile below.
	if err := errors.Join(b.db.Close(), os.Rename(smaller, b.path)); err != nil {
		return b.openError(err)
	}
	if b.db, err = openFile(b.path); err != nil {
		return b.openError(err)
	}
	return nil
}

// Close writes what is still in memory and gives the file free.
func (b *Bolt) Close() error {
	b.writing.Lock()
	defer b.writing.Unlock()
	err := b.flush()
	return errors.Join(err, b.db.Close())
}

// update runs fn in a transaction that is on disk when update returns nil.
func (b *Bolt) update(fn func(tx *bolt.Tx) error) error {
	if err := b.translate(b.db.Update(fn)); err != nil {
		return err
	}
	b.refused.Store(false)
	if b.hasRoom() == nil {
		b.opts.Warn.Clear(codeDiskFull)
	}
	return nil
}

// translate gives a full disk its own failure, so that intake can stop: class Unavailable, code "disk_full".
func (b *Bolt) translate(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		b.refused.Store(true)
		return b.diskFull(err)
	}
	return err
}

type noWarner struct{}

func (noWarner) Set(string, runnerv1.HealthSeverity, string, string) {}
func (noWarner) Clear(string)                                        {}

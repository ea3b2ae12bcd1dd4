//go:build unix

package fault

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// aloneFile is locked by the fault test that has the machine. It is the same for all worktrees and users of a machine, so that they do not spoil each other's figures.
const aloneFile = "axion-fault.lock"

// Alone waits until no other test that called it runs on this machine, in whatever package and process, and keeps the machine until the test ends. `go test` runs
// packages side by side: call it first in each fault test that measures time, uses all cores, or has fixed ports and names. The lock ends with the process, too.
// Call it once in a test and not again in its subtests: they would wait for their parent.
func Alone(t testing.TB) {
	t.Helper()
	path := filepath.Join(os.TempDir(), aloneFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o666)
	if err != nil {
		t.Fatalf("lock the machine: %v", err)
	}
	t.Cleanup(func() { _ = f.Close() }) // ends the lock
	began := time.Now()
	for err = syscall.EINTR; err == syscall.EINTR; {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		t.Fatalf("lock the machine with %s: %v", path, err)
	}
	if waited := time.Since(began); waited > time.Second {
		t.Logf("waited %.0f s for another fault test", waited.Seconds())
	}
}

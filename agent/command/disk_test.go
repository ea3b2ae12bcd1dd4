package command

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/axion/runner-agent/agent/journal"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// codes remembers which warnings are set.
type codes struct {
	mu  sync.Mutex
	set map[string]bool
}

func (c *codes) Set(code string, _ runnerv1.HealthSeverity, _, _ string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set[code] = true
}

func (c *codes) Clear(code string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.set, code)
}

func (c *codes) has(code string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.set[code]
}

// TestNothingIsBegunOnAFullDisk: a command waits for space before anything of it is applied or told, and goes on by itself.
func TestNothingIsBegunOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("needs the right to mount a small file system: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	r := newRigAt(t, filepath.Join(dir, "journal.db"), 1)
	warn := &codes{set: map[string]bool{}}
	r.runner.deps.Warn = warn
	r.runner.Handle(r.ctx, message(t, "before", deploy("shop", 1)))
	r.outcome("before")

	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 16<<20-journal.DefaultMinFreeBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	r.runner.Handle(r.ctx, message(t, "m1", deploy("shop", 2)))
	r.until("the stall", func() bool { return warn.has("commands_stalled") || len(r.stacks.all()) > 1 })
	if done, events := r.stacks.all(), r.drain(); len(done) != 1 || len(events) != 0 {
		t.Errorf("on a full disk: %v, %d events", done, len(events))
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if o := r.outcome("m1"); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		t.Errorf("with space again: %v", o)
	}
	if warn.has("commands_stalled") {
		t.Error("the warning stays")
	}
}

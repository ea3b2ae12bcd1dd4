package program

import (
	"syscall"
	"testing"
)

// withParent makes a process end with this one, should a test binary be killed before it can clean up.
func withParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// NeedDescriptors raises the number of files and sockets that this process may open to n, or skips the test with the reason. What it starts raises its own.
func NeedDescriptors(t testing.TB, n uint64) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Skipf("how many files may be open is not known: %v", err)
	}
	if limit.Cur >= n {
		return
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: max(n, limit.Max)}); err != nil {
		t.Skipf("%d open files are needed, %d are allowed: %v", n, limit.Cur, err)
	}
}

package kafka

import "syscall"

// withParent makes a process end with this one, should a test binary be killed before it can clean up.
func withParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

//go:build !linux

package program

import (
	"syscall"
	"testing"
)

// withParent changes nothing: only Linux ends a process with its parent.
func withParent() *syscall.SysProcAttr { return nil }

// NeedDescriptors skips the test: these tests read Linux's figures.
func NeedDescriptors(t testing.TB, _ uint64) { t.Skip("this needs Linux") }

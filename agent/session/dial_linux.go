package session

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// boundSilence has the kernel end a connection whose data is not acknowledged within silence. Without it TCP tries for a quarter of an hour.
func boundSilence(_, _ string, conn syscall.RawConn) error {
	var failed error
	err := conn.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
	})
	return errors.Join(err, failed)
}

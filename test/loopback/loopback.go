// Package loopback finds addresses of this machine's loopback for what tests start.
package loopback

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// The ports are below those that the system gives to outgoing connections: a server that is away for a while must find its own free again. They are above the fixed ones of
// test/e2e and test/images, which run beside other tests.
const (
	firstPort = 20000
	ports     = 10000
	attempts  = 100
)

// FreeAddress returns "127.0.0.1:port" with a port on which nobody listens now.
func FreeAddress(t testing.TB) string {
	t.Helper()
	var err error
	for range attempts {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprint("127.0.0.1:", firstPort+rand.IntN(ports))); err == nil {
			defer func() { _ = l.Close() }()
			return l.Addr().String()
		}
	}
	t.Fatalf("no free port on loopback: %v", err)
	return ""
}

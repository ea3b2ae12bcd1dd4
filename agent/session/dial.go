package session

import (
	"context"
	"net"
	"sync/atomic"
	"time"
)

const (
	// silence is how long the plane's host may acknowledge nothing, neither data nor probes, until the connection counts as dead. It is what finds a plane that
	// lost its power or a firewall that forgot the connection, some seconds before an unanswered heartbeat does. The kernel keeps this time, for probes and anew for
	// data that is sent after them: twice this is the most. Lost packets are sent again four times in it.
	silence = 4 * time.Second
	// probeAfter is how long a connection is idle before the kernel asks whether the other end is there, and between two such probes.
	probeAfter = 2 * time.Second
	// probes is how many stay without an answer before the connection is dead, where the kernel does not know silence.
	probes = 2
)

// dialer makes a session's connection and remembers whether it came to be.
type dialer struct {
	net.Dialer
	connected atomic.Bool
}

// newDialer returns a dialer that waits for an answer that long. The kernel repeats an unanswered first packet after 1, 3 and 7 s: a patient dialer would find a network
// that is back later than one that begins anew.
func newDialer(timeout time.Duration) *dialer {
	return &dialer{Dialer: net.Dialer{
		Timeout:         timeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: probeAfter, Interval: probeAfter, Count: probes},
		Control:         boundSilence,
	}}
}

func (d *dialer) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := d.DialContext(ctx, "tcp", address)
	if err == nil {
		d.connected.Store(true)
	}
	return conn, err
}

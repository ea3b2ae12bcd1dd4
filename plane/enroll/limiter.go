package enroll

import (
	"context"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/axion/runner-agent/proto/failure"
)

const (
	// maxFailures is how often one address may fail to enrol within failureWindow. Agents with a wrong token try about once a minute each, and a whole
	// Swarm may stand behind one address.
	maxFailures   = 60
	failureWindow = time.Minute
	// maxAddresses bounds the memory; when it is full, the addresses whose window is over are forgotten, and if there is none, all are.
	maxAddresses = 4096
)

// limiter counts failed enrolments by address. It is there against load, not against guessing: a secret has 256 bits. Only callers that show no token
// of this plane, or no readable request, are counted: the workers of a new Swarm, refused until a manager vouches for them, must not lock out that manager.
type limiter struct {
	now func() time.Time

	mu      sync.Mutex
	windows map[string]window
}

type window struct {
	began    time.Time
	failures int
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{now: now, windows: map[string]window{}}
}

func (l *limiter) allowed(address string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	w, ok := l.windows[address]
	return !ok || l.over(w) || w.failures < maxFailures
}

func (l *limiter) failed(address string, err error) {
	if f := failure.Of(err); f.Class != failure.Invalid && f.Code != "token_unknown" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	w, ok := l.windows[address]
	if !ok || l.over(w) {
		l.makeRoom()
		w = window{began: l.now()}
	}
	w.failures++
	l.windows[address] = w
}

func (l *limiter) over(w window) bool { return l.now().Sub(w.began) >= failureWindow }

func (l *limiter) makeRoom() {
	if len(l.windows) < maxAddresses {
		return
	}
	for address, w := range l.windows {
		if l.over(w) {
			delete(l.windows, address)
		}
	}
	if len(l.windows) >= maxAddresses {
		clear(l.windows)
	}
}

// peerAddress is the caller's IP address, without the port.
func peerAddress(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return "unknown"
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return p.Addr.String()
	}
	return host
}

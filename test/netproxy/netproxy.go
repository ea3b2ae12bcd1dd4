// Package netproxy puts a bad network between two parts of a test: a TCP proxy on loopback that can cut connections, stall them, leave them half-open,
// slow them down, lose answers and refuse new ones. Point the client at Addr and let the proxy point at the real server:
//
//	p := netproxy.Start(t, server.Addr().String())
//	client := dial(p.Addr())
//	p.HalfOpen() // the client's connection is now a black hole; a new one works
//
// The proxy is closed with the test. It knows nothing of what it carries.
package netproxy

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

// dialTimeout bounds the proxy's own connection to its target.
const dialTimeout = 5 * time.Second

// Proxy carries TCP connections to a target. All methods may be called at any time and from any goroutine.
type Proxy struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu       sync.Mutex
	target   string
	refusing bool
	rate     int           // bytes a second, each direction of each link; 0 is no limit
	stalled  chan struct{} // closed by Resume; nil while traffic flows
	links    map[*link]struct{}
	accepted int
	closed   bool
}

// link is one client's connection and the one to the target that belongs to it.
type link struct {
	client, server net.Conn
	dead           chan struct{} // closed when both are closed
	deadOnce       sync.Once
	hole           bool // half-open; guarded by Proxy.mu
	mute           bool // answers are lost; guarded by Proxy.mu
}

// Start starts a proxy to target ("host:port") on a free port of 127.0.0.1 and closes it at the end of the test.
func Start(tb testing.TB, target string) *Proxy {
	tb.Helper()
	p, err := New(target)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.Close)
	return p
}

// New starts a proxy as Start does; the caller closes it.
func New(target string) (*Proxy, error) { return NewAt("127.0.0.1:0", target) }

// NewAt starts a proxy on an address of its own, for servers that tell their clients where to come back to; the caller closes it.
func NewAt(address, target string) (*Proxy, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for the proxy to %s: %w", target, err)
	}
	p := &Proxy{listener: l, target: target, links: make(map[*link]struct{})}
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is where clients connect to, "127.0.0.1:port". It stays the same for the proxy's life.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// SetTarget sends new connections to another server, as if it had come back under another address. Existing ones stay where they are.
func (p *Proxy) SetTarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Cut resets every connection at once, half-open ones too; both sides see it (RST). New connections work.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.reset()
	}
}

// Stall holds back all bytes in both directions, on existing and on new connections, until Resume. Nothing is lost and nothing is closed.
func (p *Proxy) Stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stalled == nil {
		p.stalled = make(chan struct{})
	}
}

// Resume lets what Stall held back flow again.
func (p *Proxy) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stalled != nil {
		close(p.stalled)
		p.stalled = nil
	}
}

// HalfOpen turns every existing connection into a black hole: neither side gets another byte, or is told that the other has gone.
// New connections work. That is what a lost NAT entry or a pulled cable looks like.
func (p *Proxy) HalfOpen() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.hole = true
	}
}

// LoseAnswers makes every existing connection swallow what the server sends, while what the client sends still arrives: whatever is asked is done, and nobody is
// told. Cut ends that. New connections work.
func (p *Proxy) LoseAnswers() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.mute = true
	}
}

// Limit slows existing and new connections down to that many bytes a second, each direction of each connection by itself; 0 is no limit.
func (p *Proxy) Limit(bytesPerSecond int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate = bytesPerSecond
}

// Refuse resets new connections at once while on is true. Existing ones stay.
func (p *Proxy) Refuse(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusing = on
}

// Connections is the number of connections that the proxy holds now, half-open ones too.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// Accepted is the number of connections that clients have made since Start, refused ones too.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Close resets every connection, stops listening and waits for the proxy's goroutines.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	for l := range p.links {
		l.reset()
	}
	p.mu.Unlock()
	_ = p.listener.Close() // the only error is that it is closed already
	p.wg.Wait()
}

func (p *Proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		p.wg.Go(func() { p.serve(c) })
	}
}

// serve connects a client with the target and copies until one side ends.
func (p *Proxy) serve(client net.Conn) {
	p.mu.Lock()
	p.accepted++
	target, refused := p.target, p.refusing || p.closed
	p.mu.Unlock()
	if refused {
		reset(client)
		return
	}
	server, err := net.DialTimeout("tcp", target, dialTimeout)
	if err != nil {
		reset(client)
		return
	}
	l := &link{client: client, server: server, dead: make(chan struct{})}
	if !p.add(l) {
		l.reset()
		return
	}
	p.wg.Go(func() { p.copy(l, server, client, false) })
	p.copy(l, client, server, true)
}

func (p *Proxy) add(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.links[l] = struct{}{}
	return true
}

// copy carries bytes in one direction. The gate stands between reading and whatever follows from it - writing or closing -
// so that a stalled or half-open link passes on neither.
func (p *Proxy) copy(l *link, to, from net.Conn, answers bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if !p.gate(l) || !p.pace(l, n) {
			break
		}
		if n > 0 && !(answers && p.loses(l)) {
			if _, werr := to.Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			break
		}
	}
	l.close()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// gate waits while the proxy is stalled, and for ever on a half-open link. It is false once the link is dead.
func (p *Proxy) gate(l *link) bool {
	for {
		p.mu.Lock()
		hole, stalled := l.hole, p.stalled
		p.mu.Unlock()
		switch {
		case hole:
			<-l.dead
			return false
		case stalled == nil:
			return true
		}
		select {
		case <-stalled:
		case <-l.dead:
			return false
		}
	}
}

// pace takes as long as n bytes take at the limit. It is false once the link is dead.
func (p *Proxy) pace(l *link, n int) bool {
	p.mu.Lock()
	rate := p.rate
	p.mu.Unlock()
	if rate <= 0 {
		return true
	}
	timer := time.NewTimer(time.Duration(n) * time.Second / time.Duration(rate))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.dead:
		return false
	}
}

func (p *Proxy) loses(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return l.mute
}

// close ends both connections in order (FIN).
func (l *link) close() {
	l.deadOnce.Do(func() {
		close(l.dead)
		_ = l.client.Close()
		_ = l.server.Close()
	})
}

// reset ends both connections hard (RST).
func (l *link) reset() {
	l.deadOnce.Do(func() {
		close(l.dead)
		reset(l.client)
		reset(l.server)
	})
}

func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // fails only on a closed connection
	}
	_ = c.Close()
}

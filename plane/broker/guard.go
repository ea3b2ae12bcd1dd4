package broker

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	handshakeTimeout = 10 * time.Second
	// writeTimeout bounds an answer; 16 MiB take two minutes at 1 Mbit/s.
	writeTimeout = 2 * time.Minute
	// maxFrame is the size of the largest request: a message of the largest topic and what is around it.
	maxFrame = 20 << 20
	// maxConnections bounds all connections, maxPerName those of one certificate name; an agent needs about ten.
	maxConnections = 8192
	maxPerName     = 64
	// acceptPause is waited when the system refuses a connection, for want of descriptors.
	acceptPause = 50 * time.Millisecond
	// keyApiVersions is asked first, also by clients that are newer than this broker, which learn from the answer what it can do.
	keyApiVersions = 18
)

// guard is the embedded broker's listener. The broker behind it was made for tests: it makes a buffer of whatever size a request announces and panics on a
// request that it does not know. So connections must prove themselves (TLS with a client certificate) and requests their form before it sees them.
type guard struct {
	listener   net.Listener
	tls        *tls.Config
	advertised string
	log        *slog.Logger

	mu    sync.Mutex
	conns map[*guardedConn]string // the certificate's name, once it is known
	names map[string]int
}

func newGuard(l net.Listener, config *tls.Config, advertised string, log *slog.Logger) *guard {
	config = config.Clone()
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
	config.SessionTicketsDisabled = true // each connection shows its certificate
	return &guard{listener: l, tls: config, advertised: advertised, log: log, conns: map[*guardedConn]string{}, names: map[string]int{}}
}

// advertisedAddr is the address that the broker tells its clients.
type advertisedAddr string

// Network is always "tcp".
func (advertisedAddr) Network() string { return "tcp" }

// String returns "host:port".
func (a advertisedAddr) String() string { return string(a) }

// Addr returns the advertised address.
func (g *guard) Addr() net.Addr { return advertisedAddr(g.advertised) }

// Close stops listening.
func (g *guard) Close() error { return g.listener.Close() }

// Accept returns the next connection. The broker stops for good at an error, so only the end of the listener is one.
func (g *guard) Accept() (net.Conn, error) {
	for {
		raw, err := g.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		if err != nil {
			g.log.Warn("broker cannot accept a connection", "error", err)
			time.Sleep(acceptPause)
			continue
		}
		conn := &guardedConn{Conn: tls.Server(raw, g.tls), guard: g}
		if !g.add(conn) {
			g.log.Warn("broker has too many connections", "remote", raw.RemoteAddr().String())
			_ = raw.Close()
			continue
		}
		return conn, nil
	}
}

func (g *guard) add(c *guardedConn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.conns) >= maxConnections {
		return false
	}
	g.conns[c] = ""
	return true
}

// identify notes whose connection it is.
func (g *guard) identify(c *guardedConn, name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, open := g.conns[c]; !open {
		return net.ErrClosed
	}
	if g.names[name] >= maxPerName {
		return fmt.Errorf("%s has %d connections already", name, maxPerName)
	}
	g.conns[c] = name
	g.names[name]++
	return nil
}

func (g *guard) remove(c *guardedConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	name, open := g.conns[c]
	if !open {
		return
	}
	delete(g.conns, c)
	if name == "" {
		return
	}
	if g.names[name]--; g.names[name] == 0 {
		delete(g.names, name)
	}
}

// disconnect closes the connections of a certificate name.
func (g *guard) disconnect(name string) int {
	return g.closeAll(func(n string) bool { return n == name })
}

func (g *guard) disconnectAll() { g.closeAll(func(string) bool { return true }) }

func (g *guard) closeAll(which func(name string) bool) int {
	g.mu.Lock()
	var chosen []*guardedConn
	for c, name := range g.conns {
		if which(name) {
			chosen = append(chosen, c)
		}
	}
	g.mu.Unlock()
	for _, c := range chosen {
		_ = c.Close()
	}
	return len(chosen)
}

// guardedConn is a connection whose requests are looked at before they are passed on. Only the broker's reader reads.
type guardedConn struct {
	*tls.Conn
	guard   *guard
	greeted bool
	// head is what was looked at and not yet passed on, left is what remains of the request after it.
	head []byte
	left int
	buf  [8]byte
}

// Close closes the connection.
func (c *guardedConn) Close() error {
	c.guard.remove(c)
	return c.NetConn().Close() // without a TLS farewell, which could block
}

// Read returns bytes of requests that were found in order.
func (c *guardedConn) Read(b []byte) (int, error) {
	if !c.greeted {
		if err := c.greet(); err != nil {
			c.guard.log.Info("broker refused a connection", "remote", c.RemoteAddr().String(), "reason", err)
			return 0, err
		}
		c.greeted = true
	}
	if len(c.head) == 0 && c.left == 0 {
		if err := c.next(); err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				c.guard.log.Info("broker ends a connection", "remote", c.RemoteAddr().String(), "reason", err)
			}
			return 0, err
		}
	}
	if len(c.head) > 0 {
		n := copy(b, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}

// Write answers a request. A client that does not read its answer is given up.
func (c *guardedConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// greet does the TLS handshake, which also checks the client's certificate.
func (c *guardedConn) greet() error {
	if err := c.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	if err := c.Handshake(); err != nil {
		return err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	return c.guard.identify(c, c.ConnectionState().PeerCertificates[0].Subject.CommonName)
}

// next reads the beginning of a request: its size, its key and its version.
func (c *guardedConn) next() error {
	if _, err := io.ReadFull(c.Conn, c.buf[:]); err != nil {
		return err
	}
	if err := checkRequest(c.buf); err != nil {
		return err
	}
	c.head, c.left = c.buf[:], int(binary.BigEndian.Uint32(c.buf[:4]))-4
	return nil
}

// checkRequest refuses what the broker could not survive.
func checkRequest(head [8]byte) error {
	size := binary.BigEndian.Uint32(head[:4])
	key := int16(binary.BigEndian.Uint16(head[4:6]))
	version := int16(binary.BigEndian.Uint16(head[6:8]))
	if size < 8 || size > maxFrame {
		return fmt.Errorf("a request announces %d bytes, 8 to %d are allowed", size, maxFrame)
	}
	request := kmsg.RequestForKey(key)
	if request == nil {
		return fmt.Errorf("request %d is not known", key)
	}
	if version < 0 || (version > request.MaxVersion() && key != keyApiVersions) {
		return fmt.Errorf("request %s has no version %d", kmsg.NameForKey(key), version)
	}
	return nil
}

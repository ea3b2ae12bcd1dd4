package netproxy

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// long is more than any step of these tests takes; quiet is how long a silent connection is watched.
const (
	long  = 10 * time.Second
	quiet = 50 * time.Millisecond
)

// echo starts a server that answers each byte with itself.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", p.Addr(), long)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func say(t *testing.T, c net.Conn, b byte) {
	t.Helper()
	if _, err := c.Write([]byte{b}); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, c net.Conn, want byte) {
	t.Helper()
	got, err := read(c, long)
	if err != nil || got != want {
		t.Fatalf("got %q, %v; want %q", got, err, want)
	}
}

func read(c net.Conn, within time.Duration) (byte, error) {
	_ = c.SetReadDeadline(time.Now().Add(within))
	var b [1]byte
	_, err := io.ReadFull(c, b[:])
	return b[0], err
}

func silent(t *testing.T, c net.Conn) {
	t.Helper()
	if b, err := read(c, quiet); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %q, %v; want silence", b, err)
	}
}

func TestCut(t *testing.T) {
	p := Start(t, echo(t))
	c := dial(t, p)
	say(t, c, 'a')
	hear(t, c, 'a')
	p.Cut()
	if _, err := read(c, long); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("got %v, want a reset", err)
	}
	c = dial(t, p)
	say(t, c, 'b')
	hear(t, c, 'b')
	if n := p.Accepted(); n != 2 {
		t.Errorf("accepted %d, want 2", n)
	}
}

func TestStallLosesNothing(t *testing.T) {
	p := Start(t, echo(t))
	c := dial(t, p)
	say(t, c, 'a')
	hear(t, c, 'a')
	p.Stall()
	say(t, c, 'b')
	silent(t, c)
	p.Resume()
	hear(t, c, 'b')
}

func TestHalfOpen(t *testing.T) {
	p := Start(t, echo(t))
	old := dial(t, p)
	say(t, old, 'a')
	hear(t, old, 'a')
	p.HalfOpen()
	say(t, old, 'b')
	silent(t, old)

	fresh := dial(t, p)
	say(t, fresh, 'c')
	hear(t, fresh, 'c')
	if n := p.Connections(); n != 2 {
		t.Errorf("%d connections, want the half-open one and the new one", n)
	}
	p.Cut()
	if _, err := read(old, long); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset of the half-open one too", err)
	}
}

func TestRefuseAndSetTarget(t *testing.T) {
	p := Start(t, "127.0.0.1:1") // nobody there
	refused(t, p)
	p.SetTarget(echo(t))
	p.Refuse(true)
	refused(t, p)
	p.Refuse(false)
	c := dial(t, p)
	say(t, c, 'a')
	hear(t, c, 'a')
}

// refused checks that a new connection is reset, be it while it is made or after.
func refused(t *testing.T, p *Proxy) {
	t.Helper()
	c, err := net.DialTimeout("tcp", p.Addr(), long)
	if err != nil {
		return
	}
	defer c.Close()
	if _, err := read(c, long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v, want a closed connection", err)
	}
}

func TestCloseEndsStalledConnections(t *testing.T) {
	p, err := New(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, p)
	say(t, c, 'a')
	hear(t, c, 'a')
	p.Stall()
	say(t, c, 'b')
	p.Close() // returns only if no goroutine is stuck
	if _, err := read(c, long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want a closed connection", err)
	}
}

func TestLoseAnswers(t *testing.T) {
	p := Start(t, echo(t))
	old := dial(t, p)
	say(t, old, 'a')
	hear(t, old, 'a')
	p.LoseAnswers()
	say(t, old, 'b')
	silent(t, old)
	fresh := dial(t, p)
	say(t, fresh, 'c')
	hear(t, fresh, 'c')
	p.Cut()
	if _, err := read(old, long); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

func TestLimit(t *testing.T) {
	p := Start(t, echo(t))
	c := dial(t, p)
	p.Limit(10) // a byte takes 100 ms in each direction
	begun := time.Now()
	say(t, c, 'a')
	hear(t, c, 'a')
	if took := time.Since(begun); took < 200*time.Millisecond {
		t.Errorf("took %v", took)
	}
	p.Limit(0)
	say(t, c, 'b')
	hear(t, c, 'b')
}

package program

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/axion/runner-agent/ctl/client"
	"github.com/axion/runner-agent/proto/operatorcontext"
	"github.com/axion/runner-agent/test/loopback"
)

const (
	// planeStart bounds the start of a plane on a busy machine.
	planeStart = 30 * time.Second
	// planeStop bounds its end.
	planeStop = 30 * time.Second
	// poll is between two looks at something that is about to happen.
	poll = 5 * time.Millisecond
)

// Plane is axion-plane with its embedded broker on loopback: a data directory that stays, and a process that comes and goes.
type Plane struct {
	// Address and KafkaAddress are where it listens.
	Address, KafkaAddress string
	*Process

	t      testing.TB
	binary string
	dir    string
	args   []string
}

// NewPlane starts a new plane of that binary, which Build made, and waits until it can be operated. It ends with the test. args are further flags of serve.
func NewPlane(t testing.TB, binary string, args ...string) *Plane {
	t.Helper()
	p := &Plane{Address: loopback.FreeAddress(t), KafkaAddress: loopback.FreeAddress(t), t: t, binary: binary, dir: t.TempDir(), args: args}
	p.Start()
	p.wait("write its operator context", func() bool {
		_, err := os.Stat(p.contextPath())
		return err == nil
	})
	return p
}

// Start starts the plane and waits until it listens; it returns how long that took.
func (p *Plane) Start() time.Duration {
	p.t.Helper()
	began := time.Now()
	p.Process = Start(p.t, filepath.Join(p.dir, "plane.log"), p.binary,
		append([]string{"serve", "--data", p.dataDir(), "--listen", p.Address, "--kafka-listen", p.KafkaAddress}, p.args...)...)
	p.wait("listen", func() bool {
		c, err := net.Dial("tcp", p.Address)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return time.Since(began)
}

func (p *Plane) wait(what string, done func() bool) {
	p.t.Helper()
	for late := time.After(planeStart); !done(); {
		select {
		case <-p.Ended():
			p.t.Fatalf("the plane has ended: %s", p.Tail())
		case <-late:
			p.t.Fatalf("the plane does not %s within %s: %s", what, planeStart, p.Tail())
		case <-time.After(poll):
		}
	}
}

func (p *Plane) dataDir() string { return filepath.Join(p.dir, "data") }

func (p *Plane) contextPath() string { return filepath.Join(p.dataDir(), "operator.toml") }

// Stop ends the plane in order.
func (p *Plane) Stop() {
	p.t.Helper()
	if err := p.Process.Stop(planeStop); err != nil {
		p.t.Fatalf("stop the plane: %v\n%s", err, p.Tail())
	}
}

// Context is the operator context that the plane wrote.
func (p *Plane) Context() operatorcontext.Context {
	p.t.Helper()
	c, err := operatorcontext.Load(p.contextPath())
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// TLS trusts the plane.
func (p *Plane) TLS() *tls.Config {
	p.t.Helper()
	config, err := p.Context().ClientTLS()
	if err != nil {
		p.t.Fatal(err)
	}
	return config
}

// Operator is a connection to the plane's operator API; it finds the plane again after a restart.
func (p *Plane) Operator() *client.Client {
	p.t.Helper()
	c, err := client.New(client.Config{Address: p.Address, TLS: p.TLS(), Credentials: p.Context().Credentials()})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = c.Close() })
	return c
}

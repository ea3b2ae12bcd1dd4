// Package engineproxy puts a proxy before a Docker engine that can hold a request back, or refuse it. Tests use it to be at the worst place at the worst time: a request that
// was sent long ago, by a process that may be dead, takes effect when the test lets it.
//
// It can also make the engine look like another node of its Swarm, so that several agents on one machine are managers of one Swarm, and show only the stacks of
// one test, and it keeps what was written and how the engine answered.
package engineproxy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/client"
)

// patience bounds the wait for a request to arrive.
const patience = time.Minute

// Proxy forwards to the engine that engine.Client talks to.
type Proxy struct {
	socket string

	mu       sync.Mutex
	holds    []*Held
	refusals []*refusal
	log      []string
	writes   []Write
	self     Node
	others   []Node
	prefix   string
}

// Write is a request that could change something, and the engine's answer. A sender that died or hung up meanwhile makes no difference to it.
type Write struct {
	Method, Path string
	Query        url.Values
	Body         []byte
	// Status is the HTTP status of the answer.
	Status int
	// At is when the engine answered.
	At time.Time
}

func (w Write) String() string {
	return fmt.Sprintf("%s %s?%s: %d", w.Method, w.Path, w.Query.Encode(), w.Status)
}

// Accepted says whether the engine did what the request asks for.
func (w Write) Accepted() bool { return w.Status >= 200 && w.Status < 300 }

// refusal is what is answered in the engine's place.
type refusal struct {
	method  string
	path    *regexp.Regexp
	status  int
	message string
}

// Held is a request that is held back, or will be.
type Held struct {
	method  string
	path    *regexp.Regexp
	nth     int
	drop    bool
	reached chan struct{}
	release chan struct{}
	landed  chan struct{}
	once    sync.Once
	status  int
}

// New starts a proxy to the engine at the unix socket; it ends with the test.
func New(t testing.TB, engine string) *Proxy {
	t.Helper()
	dir, err := os.MkdirTemp("", "axp") // a unix socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &Proxy{socket: filepath.Join(dir, "s")}
	listener, err := net.Listen("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "docker"})
	forward.FlushInterval = -1
	forward.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, err.Error(), http.StatusBadGateway)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", engine)
	}}
	forward.Transport = transport
	forward.ModifyResponse = p.disguise
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, forward) }), ReadHeaderTimeout: patience}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() {
		p.mu.Lock()
		for _, h := range p.holds {
			h.Release()
		}
		p.mu.Unlock()
		_ = server.Close()
		transport.CloseIdleConnections()
	})
	return p
}

// Host is the proxy's address, as DOCKER_HOST would have it.
func (p *Proxy) Host() string { return "unix://" + p.socket }

// Client returns a client that goes through the proxy.
func (p *Proxy) Client(t testing.TB) *client.Client {
	t.Helper()
	c, err := client.NewClientWithOpts(client.WithHost(p.Host()), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := c.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.NegotiateAPIVersion(t.Context())
	return c
}

// Hold holds the nth request (from 1, counted from now) of that method whose path and query match. An empty method is any; several are joined with "|".
func (p *Proxy) Hold(method, path string, nth int) *Held {
	return p.add(&Held{method: method, path: regexp.MustCompile(path), nth: nth})
}

// DropAnswer lets the nth request through and breaks the connection in place of an answer.
func (p *Proxy) DropAnswer(method, path string, nth int) *Held {
	return p.add(&Held{method: method, path: regexp.MustCompile(path), nth: nth, drop: true})
}

// Refuse answers all such requests with that status and message, as the engine writes its errors, until allow is called.
func (p *Proxy) Refuse(method, path string, status int, message string) (allow func()) {
	r := &refusal{method: method, path: regexp.MustCompile(path), status: status, message: message}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusals = append(p.refusals, r)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.refusals = slices.DeleteFunc(p.refusals, func(other *refusal) bool { return other == r })
	}
}

func (p *Proxy) refused(r *http.Request) *refusal {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.refusals {
		if r.Method == f.method && f.path.MatchString(r.URL.String()) {
			return f
		}
	}
	return nil
}

func (p *Proxy) add(h *Held) *Held {
	h.reached, h.release, h.landed = make(chan struct{}), make(chan struct{}), make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holds = append(p.holds, h)
	return h
}

// Requests lists "METHOD path" of what has been asked so far.
func (p *Proxy) Requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.log...)
}

func (p *Proxy) match(r *http.Request) *Held {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, r.Method+" "+r.URL.Path)
	var hit *Held
	for _, h := range p.holds {
		if h.nth > 0 && (h.method == "" || slices.Contains(strings.Split(h.method, "|"), r.Method)) && h.path.MatchString(r.URL.String()) {
			if h.nth--; h.nth == 0 {
				hit = h
			}
		}
	}
	return hit
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request, forward http.Handler) {
	h := p.match(r)
	if f := p.refused(r); f != nil {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(f.status)
		_ = json.NewEncoder(w).Encode(map[string]string{"message": f.message})
		return
	}
	if h == nil && r.Method == http.MethodGet {
		forward.ServeHTTP(w, r)
		return
	}
	// The request is on its way whatever becomes of its sender.
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	r = r.WithContext(context.WithoutCancel(r.Context()))
	r.Body = io.NopCloser(bytes.NewReader(body))
	s := &statusWriter{ResponseWriter: w}
	send := func() {
		forward.ServeHTTP(s, r)
		p.note(r, body, s.status)
	}
	if h == nil {
		send()
		return
	}
	close(h.reached)
	if !h.drop {
		<-h.release
		send()
		h.land(s.status)
		return
	}
	s.ResponseWriter = discard{http.Header{}}
	send()
	h.land(s.status)
	panic(http.ErrAbortHandler) // breaks the connection
}

func (h *Held) land(status int) {
	h.status = status
	close(h.landed)
}

// note keeps what was written.
func (p *Proxy) note(r *http.Request, body []byte, status int) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writes = append(p.writes, Write{r.Method, r.URL.Path, r.URL.Query(), body, status, time.Now()})
}

// Writes lists what was written so far, in the order of the engine's answers.
func (p *Proxy) Writes() []Write {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.writes)
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (s *statusWriter) WriteHeader(code int) {
	s.status = code
	s.ResponseWriter.WriteHeader(code)
}

type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

// Reached waits until the request is held.
func (h *Held) Reached(t testing.TB) {
	t.Helper()
	select {
	case <-h.reached:
	case <-time.After(patience):
		t.Fatalf("no %s %s came", h.method, h.path)
	}
}

// IsReached says whether the request is held, or was.
func (h *Held) IsReached() bool {
	select {
	case <-h.reached:
		return true
	default:
		return false
	}
}

// Release lets the request go on.
func (h *Held) Release() { h.once.Do(func() { close(h.release) }) }

// Land lets the request go on and waits until the engine has answered it; it returns the HTTP status.
func (h *Held) Land(t testing.TB) int {
	t.Helper()
	h.Release()
	select {
	case <-h.landed:
		return h.status
	case <-time.After(patience):
		t.Fatalf("%s %s is not answered", h.method, h.path)
		return 0
	}
}

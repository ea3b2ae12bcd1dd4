package bus

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/test/netproxy"
	"github.com/axion/runner-agent/test/testca"
)

const (
	topic    = "runner.commands.a-1"
	group    = "runner.a-1"
	password = "correct horse battery staple"
)

// broker is a real broker (of one process) behind a proxy, with client certificates, SCRAM and ACLs.
type broker struct {
	*kfake.Cluster
	t     *testing.T
	ca    *testca.CA
	tls   *tls.Config
	proxy *netproxy.Proxy
	dir   string
	addr  string
}

// advertised is a listener that calls itself something else.
type advertised struct {
	net.Listener
	addr net.Addr
}

func (l advertised) Addr() net.Addr { return l.addr }

func newBroker(t *testing.T) *broker {
	t.Helper()
	t.Parallel() // most of these tests wait most of the time
	return newQuietBroker(t)
}

// newQuietBroker is for a test beside which no other runs.
func newQuietBroker(t *testing.T) *broker {
	t.Helper()
	b := &broker{t: t, ca: testca.New(t), dir: t.TempDir(), addr: "127.0.0.1:0", proxy: netproxy.Start(t, "127.0.0.1:1")}
	b.tls = b.ca.Client("a-1", "axion")
	b.start()
	t.Cleanup(func() { b.Close() })
	return b
}

// start starts the broker on its data, at the address that it had before.
func (b *broker) start() {
	b.t.Helper()
	allow := func(resource kmsg.ACLResourceType, name string, op kmsg.ACLOperation) kfake.ACL {
		return kfake.ACL{Resource: resource, Name: name, Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: op, Allow: true}
	}
	server := b.ca.Server()
	server.ClientAuth = tls.RequireAndVerifyClientCert
	proxied, err := net.ResolveTCPAddr("tcp", b.proxy.Addr())
	if err != nil {
		b.t.Fatal(err)
	}
	b.Cluster, err = kfake.NewCluster(
		kfake.NumBrokers(1), kfake.DefaultNumPartitions(1), kfake.DataDir(b.dir), kfake.GroupMinSessionTimeout(time.Second),
		kfake.TLS(server),
		kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("SCRAM-SHA-256", "root", password),
		kfake.User("SCRAM-SHA-512", "a-1", password,
			allow(kmsg.ACLResourceTypeTopic, topic, kmsg.ACLOperationRead), allow(kmsg.ACLResourceTypeGroup, group, kmsg.ACLOperationRead),
			allow(kmsg.ACLResourceTypeTopic, "runner.events", kmsg.ACLOperationWrite)),
		kfake.ListenFn(func(network, _ string) (net.Listener, error) {
			l, err := net.Listen(network, b.addr)
			if err != nil {
				return nil, err
			}
			b.addr = l.Addr().String()
			b.proxy.SetTarget(b.addr)
			return advertised{l, proxied}, nil
		}),
	)
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *broker) topic(name string) {
	b.t.Helper()
	if err := b.CreateTopic(name, 1, map[string]string{"max.message.bytes": fmt.Sprint(MaxMessageBytes)}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *broker) committed() int64 {
	info := b.GroupInfo(group)
	if info == nil {
		return -1
	}
	if c, ok := info.Commits[topic][0]; ok {
		return c.Offset
	}
	return -1
}

func (b *broker) config(name string) Config {
	return Config{
		Name: name, Brokers: []string{b.proxy.Addr()}, ClientID: "a-1",
		TLS:  b.tls,
		SASL: &runnerv1.SaslCredentials{Mechanism: runnerv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_512, Username: "a-1", Password: password},
	}
}

// root is a producer that may write everything.
func (b *broker) root() *Producer {
	b.t.Helper()
	cfg := b.config("root")
	cfg.SASL = &runnerv1.SaslCredentials{Mechanism: runnerv1.SaslMechanism_SASL_MECHANISM_SCRAM_SHA_256, Username: "root", Password: password}
	return newTestProducer(b.t, cfg, topic)
}

func newTestProducer(t *testing.T, cfg Config, topics ...string) *Producer {
	t.Helper()
	p, err := NewProducer(ProducerConfig{Config: cfg, Topics: topics}, ProducerDeps{Log: testLog(t), Warn: &warnings{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// send writes commands with these values.
func send(t *testing.T, p *Producer, values ...string) {
	t.Helper()
	var ms []Message
	for _, v := range values {
		ms = append(ms, Message{Topic: topic, Key: []byte("shop"), Value: []byte(v)})
	}
	eventually(t, "messages are written", func() bool {
		err := p.Produce(t.Context(), ms)
		if err != nil {
			t.Log(err)
		}
		return err == nil
	})
}

// inbox is a handler whose messages are settled by the test.
type inbox struct {
	mu    sync.Mutex
	order []string
	times map[string]int
	done  map[string]chan struct{}
	// auto settles messages at once.
	auto bool
	last Message
	ctx  context.Context
}

func newInbox(auto bool) *inbox {
	return &inbox{times: map[string]int{}, done: map[string]chan struct{}{}, auto: auto}
}

func (h *inbox) Handle(ctx context.Context, m Message) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := string(m.Value)
	if len(v) > 100 {
		v = fmt.Sprint(len(v), " bytes")
	}
	h.last, h.ctx = m, ctx
	h.order = append(h.order, v)
	h.times[v]++
	ch, running := h.done[v] // a redelivery attaches
	if !running {
		ch = make(chan struct{})
		h.done[v] = ch
		if h.auto {
			close(ch)
		}
	}
	return ch
}

func (h *inbox) settle(values ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, v := range values {
		close(h.done[v])
	}
}

// open returns the messages that were delivered and are not among the settled.
func (h *inbox) open(settled map[string]bool) (values []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for v := range h.done {
		if !settled[v] {
			values = append(values, v)
		}
	}
	return values
}

func (h *inbox) count(v string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.times[v]
}

func (h *inbox) total() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.order)
}

// run starts a consumer with short timeouts and returns it with a function that stops it.
func run(t *testing.T, cfg ConsumerConfig, h Handler, warn Warner) (c *Consumer, stop func()) {
	t.Helper()
	return runWith(t, cfg, h, warn, func(*timing) {})
}

// runWith is run with other times.
func runWith(t *testing.T, cfg ConsumerConfig, h Handler, warn Warner, change func(*timing)) (c *Consumer, stop func()) {
	t.Helper()
	c, err := NewConsumer(cfg, ConsumerDeps{Handler: h, Log: testLog(t), Warn: warn})
	if err != nil {
		t.Fatal(err)
	}
	c.timing.session, c.timing.heartbeat, c.timing.joinBackoff = 3*time.Second, 100*time.Millisecond, 100*time.Millisecond
	c.timing.maxWait, c.timing.watch, c.timing.retryMax = time.Second, 200*time.Millisecond, 300*time.Millisecond
	change(&c.timing)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(15 * time.Second):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(stop)
	return c, stop
}

func (b *broker) consumer() ConsumerConfig {
	return ConsumerConfig{Config: b.config("commands"), Topic: topic, Group: group}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

// never watches for a while that something does not happen.
func never(t *testing.T, what string, bad func() bool) {
	t.Helper()
	for deadline := time.Now().Add(300 * time.Millisecond); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if bad() {
			t.Fatalf("happened: %s", what)
		}
	}
}

type warnings struct {
	mu  sync.Mutex
	set map[string]string
}

func (w *warnings) Set(code string, _ runnerv1.HealthSeverity, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.set == nil {
		w.set = map[string]string{}
	}
	w.set[code] = text
}

func (w *warnings) Clear(code string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.set, code)
}

func (w *warnings) text(code string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.set[code]
}

func (w *warnings) codes() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for c := range w.set {
		out = append(out, c)
	}
	return strings.Join(out, " ")
}

func testLog(t *testing.T) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

package crash

import (
	"context"
	"crypto/tls"
	"flag"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/axion/runner-agent/plane"
	"github.com/axion/runner-agent/plane/broker"
	"github.com/axion/runner-agent/plane/ca"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	"github.com/axion/runner-agent/proto/operatorcontext"
	"github.com/axion/runner-agent/test/engine"
	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/kafka"
	"github.com/axion/runner-agent/test/loopback"
)

const (
	// patience is how long a test waits for what must happen, on a busy machine. It is less than the minute after which the plane sends a command again: one
	// that was lost must not go unnoticed.
	patience = 50 * time.Second
	// planeName is the name in the plane's own certificate on Kafka.
	planeName = "plane"
	// planePrincipal is what Kafka calls it.
	planePrincipal = "User:CN=plane,O=axion"
)

// programDir is where the agent's program is, once it was needed.
var programDir string

// agentProgram is the agent with crash points, built once.
var agentProgram = sync.OnceValues(func() (path string, err error) {
	if programDir, err = os.MkdirTemp("", "axt-crash-"); err != nil {
		return "", err
	}
	path = filepath.Join(programDir, "axion-agent")
	build := exec.Command("go", "build", "-tags", "nomsgpack crashpoints", "-o", path, "github.com/axion/runner-agent/cmd/axion-agent")
	build.Stderr = os.Stderr
	return path, build.Run()
})

// atOnce is how many tests run at once: they wait for agents more than they work.
const atOnce = 4

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", strconv.Itoa(atOnce)); err != nil {
		panic(err)
	}
	code := m.Run()
	if programDir != "" {
		_ = os.RemoveAll(programDir)
	}
	os.Exit(code)
}

// world is a running plane with its broker.
type world struct {
	t        *testing.T
	cfg      plane.Config
	program  string // of the agents
	operator planev1.OperatorClient
	kafka    *kgo.Client // may do everything
	admin    *kadm.Client
	events   *events
}

// on runs a test on the embedded broker and, in the long form, on an Apache Kafka.
func on(t *testing.T, f func(t *testing.T, w *world)) {
	t.Run("embedded", func(t *testing.T) { f(t, newWorld(t, false)) })
	t.Run("apache", func(t *testing.T) {
		fault.NeedLong(t)
		f(t, newWorld(t, true))
	})
}

func newWorld(t *testing.T, apache bool) *world {
	t.Helper()
	engine.Client(t) // skips where there is none
	w := &world{t: t, cfg: plane.Config{DataDir: filepath.Join(t.TempDir(), "data"), Listen: "127.0.0.1:0", KafkaListen: "127.0.0.1:0"}}
	var err error
	if w.program, err = agentProgram(); err != nil {
		t.Fatalf("build the agent: %v", err)
	}
	authority, err := ca.Open(filepath.Join(w.cfg.DataDir, "ca"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	w.cfg.Listen, w.cfg.KafkaListen = loopback.FreeAddress(t), loopback.FreeAddress(t)
	if apache {
		c := kafka.Start(t, kafka.Options{ClientCAs: authority.CertificatePEM(), Certificate: authority.IssueServer, SuperUsers: []string{planePrincipal}})
		w.cfg.KafkaBrokers = c.Certificates()
	}
	w.start()
	w.connect(authority)
	w.events = w.readEvents()
	return w
}

// start runs the plane until the test ends, and waits until it is ready.
func (w *world) start() {
	w.t.Helper()
	log := &journal{}
	p, err := plane.New(w.cfg, slog.New(slog.NewTextHandler(log, nil)), time.Now)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("plane: %v", err)
		}
		if w.t.Failed() {
			w.t.Logf("the end of the plane's log:\n%s", log.tail())
		}
	})
	select {
	case <-p.Ready():
	case <-time.After(patience):
		w.t.Fatalf("the plane is not ready:\n%s", log.tail())
	}
	c, err := operatorcontext.Load(plane.ContextPath(w.cfg.DataDir))
	if err != nil {
		w.t.Fatal(err)
	}
	config, err := c.ClientTLS()
	if err != nil {
		w.t.Fatal(err)
	}
	conn, err := grpc.NewClient(c.Address, grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithPerRPCCredentials(c.Credentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	w.operator = planev1.NewOperatorClient(conn)
}

// connect makes a client of Kafka that has the plane's own rights.
func (w *world) connect(authority *ca.CA) {
	w.t.Helper()
	certificate, err := authority.IssueClient(planeName)
	if err != nil {
		w.t.Fatal(err)
	}
	opts := []kgo.Opt{kgo.DialTLSConfig(&tls.Config{RootCAs: authority.Pool(), Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})}
	if len(w.cfg.KafkaBrokers) > 0 {
		opts = append(opts, kgo.SeedBrokers(w.cfg.KafkaBrokers...))
	} else {
		secret, err := os.ReadFile(filepath.Join(w.cfg.DataDir, "kafka.secret"))
		if err != nil {
			w.t.Fatal(err)
		}
		opts = append(opts, kgo.SeedBrokers(w.cfg.KafkaListen), kgo.SASL(broker.PlaneUser(secret).AsSha512Mechanism()))
	}
	opts = append(opts, kgo.ConsumeTopics(broker.EventsTopic), kgo.RecordDeliveryTimeout(patience), kgo.FetchMaxWait(time.Second))
	if w.kafka, err = kgo.NewClient(opts...); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(w.kafka.Close)
	w.admin = kadm.NewClient(w.kafka)
}

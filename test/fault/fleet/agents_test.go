package fleet

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/axion/runner-agent/agent/session"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/jointoken"
	"github.com/axion/runner-agent/test/fault/program"
)

const (
	// clusterSize is the number of nodes of each simulated Swarm: one manager, which tells the plane of all nodes, and workers.
	clusterSize = 10
	// enrolAtOnce bounds the enrolments at a time: enrolling is not what is measured.
	enrolAtOnce = 8
	version     = "fleet-test"
)

// agents is a fleet of simulated agents: the client that the agent has for its session, without an agent around it. Each has a certificate of its own.
type agents struct {
	clients []*session.Client
	met     meetings
	stop    context.CancelFunc
	done    sync.WaitGroup
}

// meetings are the times at which connections reached a plane that answered.
type meetings struct {
	mu    sync.Mutex
	times []time.Time
}

func (m *meetings) add() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.times = append(m.times, time.Now())
}

// between counts the connections in [from, to).
func (m *meetings) between(from, to time.Time) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, at := range m.times {
		if !at.Before(from) && at.Before(to) {
			n++
		}
	}
	return n
}

// busiest is the largest number of connections in any window of that length that begins at from or later and ends by to.
func (m *meetings) busiest(from, to time.Time, window time.Duration) int {
	m.mu.Lock()
	times := slices.DeleteFunc(slices.Clone(m.times), func(at time.Time) bool { return at.Before(from) || !at.Before(to) })
	m.mu.Unlock()
	slices.SortFunc(times, time.Time.Compare)
	most, first := 0, 0
	for last, at := range times {
		for at.Sub(times[first]) >= window {
			first++
		}
		most = max(most, last-first+1)
	}
	return most
}

// enrol makes n agents through the plane's own enrolment and returns them without a session.
func enrol(t *testing.T, plane *program.Plane, n int) *agents {
	t.Helper()
	operator := plane.Operator()
	conn, err := grpc.NewClient(plane.Address, grpc.WithTransportCredentials(credentials.NewTLS(plane.TLS())))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	desk := runnerv1.NewEnrollmentClient(conn)
	a := &agents{clients: make([]*session.Client, n)}
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(enrolAtOnce)
	for first := 0; first < n; first += clusterSize {
		group.Go(func() error {
			cluster := fmt.Sprintf("fleet-%d", first/clusterSize)
			token, err := operator.CreateToken(ctx, &planev1.CreateTokenRequest{ClusterId: cluster, Uses: clusterSize})
			if err != nil {
				return fmt.Errorf("token for %s: %w", cluster, err)
			}
			parsed, err := jointoken.Parse(token.GetToken())
			if err != nil {
				return err
			}
			for i := first; i < min(first+clusterSize, n); i++ {
				if a.clients[i], err = a.one(ctx, desk, plane, parsed.Secret.Text(), node(i)); err != nil {
					return fmt.Errorf("agent %d: %w", i, err)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return a
}

// one enrols an agent and makes the client for its session.
func (a *agents) one(ctx context.Context, desk runnerv1.EnrollmentClient, plane *program.Plane, secret string, n node) (*session.Client, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	sealing, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	enrolled, err := desk.Enroll(ctx, &runnerv1.EnrollRequest{
		Token: secret, CsrDer: csr, EncryptionKey: sealing.PublicKey().Bytes(), Node: n.facts(), AgentVersion: version,
	})
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(enrolled.GetCertificatePem())
	certificate := &tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(enrolled.GetCaPem())
	settings := &tls.Config{
		RootCAs: roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13,
		// A plane that answers asks for the agent's certificate exactly once for each connection.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			a.met.add()
			return certificate, nil
		},
	}
	return session.New(session.Config{Address: plane.Address, AgentVersion: version}, session.Deps{
		TLS:       func() *tls.Config { return settings },
		Node:      func(context.Context) (*runnerv1.NodeFacts, error) { return n.facts(), nil },
		Nodes:     func(context.Context) (*runnerv1.NodeList, error) { return n.swarm(), nil },
		Heartbeat: n.heartbeat,
		Metrics:   n,
		Handler:   idle{},
		Log:       slog.New(slog.DiscardHandler),
		Warn:      idle{},
	})
}

// idle is asked for nothing and warned of nothing that this test looks at.
type idle struct{}

func (idle) Handle(context.Context, *runnerv1.Request) *runnerv1.Response {
	return &runnerv1.Response{}
}

func (idle) Set(string, runnerv1.HealthSeverity, string, string) {}

func (idle) Clear(string) {}

// run lets all agents connect.
func (a *agents) run(t *testing.T) {
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	a.stop = stop
	for _, c := range a.clients {
		a.done.Go(func() { _ = c.Run(ctx) }) // returns nil only
	}
	t.Cleanup(func() {
		stop()
		a.done.Wait()
	})
}

// connected is the number of agents that have a session.
func (a *agents) connected() int {
	n := 0
	for _, c := range a.clients {
		if c.Connected() {
			n++
		}
	}
	return n
}

// attempts is the number of sessions that all agents have tried to open.
func (a *agents) attempts() uint64 {
	var n uint64
	for _, c := range a.clients {
		n += c.Stats().Attempts
	}
	return n
}

// sessions is, by agent, how many sessions it has had.
func (a *agents) sessions() []uint64 {
	list := make([]uint64, len(a.clients))
	for i, c := range a.clients {
		list[i] = c.Stats().Connects
	}
	return list
}

// back waits until each agent has had more sessions than in before, and has one. It returns how long each took, from since on, in order.
func (a *agents) back(t *testing.T, before []uint64, since time.Time, limit time.Duration) []time.Duration {
	t.Helper()
	took := make([]time.Duration, 0, len(a.clients))
	waiting := make(map[int]bool, len(a.clients))
	for i := range a.clients {
		waiting[i] = true
	}
	for time.Since(since) < limit {
		for i := range waiting {
			if c := a.clients[i]; c.Connected() && c.Stats().Connects > before[i] {
				took = append(took, time.Since(since))
				delete(waiting, i)
			}
		}
		if len(waiting) == 0 {
			return took
		}
		time.Sleep(look)
	}
	t.Fatalf("%d of %d agents are not back after %s", len(waiting), len(a.clients), limit)
	return nil
}

// Package operator is the plane's API for people and their tools: the gRPC service plane.v1.Operator, which axionctl speaks. It checks what it is asked,
// finds the cluster or agent that is meant, and hands on: join tokens and agents to the registry, commands to the ledger, immediate requests and logs to
// the fleet, dead letters to their keeper. Whoever holds the operator's token may do everything, so each call is authorized by Authorize before it comes here.
package operator

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/axion/runner-agent/plane/deadletters"
	"github.com/axion/runner-agent/plane/ledger"
	"github.com/axion/runner-agent/plane/registry"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
	"github.com/axion/runner-agent/proto/jointoken"
)

// minToken is the shortest operator token, in bytes, that is accepted at start.
const minToken = 32

// Registry knows tokens, clusters and agents; registry.Registry is one.
type Registry interface {
	CreateToken(ctx context.Context, clusterID string, ttl time.Duration, uses uint32) (registry.Token, jointoken.Secret, error)
	ListTokens(ctx context.Context, clusterID string) ([]registry.Token, error)
	RevokeToken(ctx context.Context, id string) error
	Agent(ctx context.Context, id string) (registry.Agent, error)
	Agents(ctx context.Context, clusterID string) ([]registry.Agent, error)
	Clusters(ctx context.Context) ([]registry.Cluster, error)
	Remove(ctx context.Context, id string) error
}

// Fleet is the live sessions of the agents.
type Fleet interface {
	// Connected says whether the agent has a session now.
	Connected(agentID string) bool
	// Disconnect ends its session.
	Disconnect(agentID, reason string)
	// Request sends an immediate command and waits for the answer.
	Request(ctx context.Context, agentID string, req *runnerv1.Request) (*runnerv1.Response, error)
	// StreamLogs reads logs until they end, ctx ends or send fails.
	StreamLogs(ctx context.Context, agentID string, open *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error
	// LatestMetrics returns the newest samples by agent id.
	LatestMetrics() map[string]*runnerv1.MetricsBatch
	// PickManager returns a connected, confirmed manager of the cluster.
	PickManager(clusterID string) (agentID string, err error)
	// Managers returns all of those, the best first: one that runs that command before all others.
	Managers(clusterID, commandID string) []string
	// Warnings returns what the agent's last heartbeat warned of.
	Warnings(agentID string) []*runnerv1.HealthWarning
}

// Kafka takes away what an agent has there.
type Kafka interface {
	Remove(ctx context.Context, clusterID, agentID string) error
}

// Ledger keeps commands and events; ledger.Ledger is one.
type Ledger interface {
	Submit(ctx context.Context, n ledger.NewCommand) (command ledger.Command, existing bool, err error)
	Command(ctx context.Context, id string) (ledger.Command, error)
	Events(ctx context.Context, f ledger.Filter) ([]ledger.Event, error)
	Positions(ctx context.Context) (oldest, last uint64, err error)
	Forgotten(ctx context.Context, clusterID string, after uint64) (bool, error)
	Alarms(ctx context.Context, clusterID string) ([]ledger.Alarm, error)
	EventsChanged() <-chan struct{}
}

// Letters keeps what agents could not read; deadletters.Letters is one.
type Letters interface {
	List(ctx context.Context, f deadletters.Filter) ([]deadletters.Letter, error)
	Get(ctx context.Context, id uint64) (deadletters.Letter, error)
	Replay(ctx context.Context, id uint64, allowUnverified bool) (deadletters.Place, error)
	Drop(ctx context.Context, id uint64) error
}

// Config configures a Server.
type Config struct {
	// Token is the operator's bearer token; at least 32 bytes. Only its hash is kept.
	Token string
	// CAHash is the hash of the plane's CA, which join tokens carry.
	CAHash [sha256.Size]byte
	// CommandTopic names the Kafka topic of an agent's or a cluster's commands.
	CommandTopic func(id string) string
}

// Deps are the parts that a Server joins.
type Deps struct {
	// Registry, Fleet, Kafka, Ledger and Letters are described at their types.
	Registry Registry
	Fleet    Fleet
	Kafka    Kafka
	Ledger   Ledger
	Letters  Letters
	// Log receives who did what.
	Log *slog.Logger
}

// Server is the gRPC service.
type Server struct {
	planev1.UnimplementedOperatorServer
	cfg       Config
	deps      Deps
	tokenHash [sha256.Size]byte
	watchers  chan struct{} // one place a watcher
	stopping  chan struct{} // closed when Run ends
}

// New returns a Server.
func New(cfg Config, deps Deps) (*Server, error) {
	if len(cfg.Token) < minToken {
		return nil, errors.New("operator: the token has fewer than 32 bytes")
	}
	if cfg.CommandTopic == nil || deps.Registry == nil || deps.Fleet == nil || deps.Kafka == nil || deps.Ledger == nil || deps.Letters == nil || deps.Log == nil {
		return nil, errors.New("operator: command topic, registry, fleet, kafka, ledger, letters and log are required")
	}
	s := &Server{cfg: cfg, deps: deps, tokenHash: sha256.Sum256([]byte(cfg.Token)), watchers: make(chan struct{}, maxWatchers), stopping: make(chan struct{})}
	s.cfg.Token = ""
	return s, nil
}

// Run waits for ctx to end, then ends the streams of those who watch events, so that the gRPC server can stop. Call it once.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	close(s.stopping)
	return nil
}

// Authorize says whether a call carries the operator's token. What it returns is a gRPC status: Unauthenticated.
func (s *Server) Authorize(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) != 1 {
		return status.Error(codes.Unauthenticated, "the operator's token is missing: send \"authorization: Bearer TOKEN\"")
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	given := sha256.Sum256([]byte(token)) // hashes have one length, so that the comparison tells nothing of the token's
	if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(given[:], s.tokenHash[:]) != 1 {
		return status.Error(codes.Unauthenticated, "the operator's token is wrong: take the operator context of this plane")
	}
	return nil
}

// answer is how every call returns its error: with the failure in the status details, logged if it is the plane's own fault.
func (s *Server) answer(ctx context.Context, call string, err error) error {
	if err == nil {
		return nil
	}
	f := failure.Of(err)
	if f.Class == failure.Internal && ctx.Err() == nil {
		s.deps.Log.Error("an operator's call failed", "call", call, "error", err)
	}
	return failurepb.Status(err)
}

func invalid(code, object, format string, args ...any) *failure.Error {
	return failure.New(failure.Invalid, code, object, format, args...)
}

// Package enroll is the plane's enrolment desk: the gRPC service runner.v1.Enrollment. Enroll turns a join token and a certificate request into an
// identity, Renew a certificate into the next one. It joins the registry, which decides, the CA, which issues, and Kafka, where an agent's topics,
// groups and credentials are made before the agent hears of them.
package enroll

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/axion/runner-agent/plane/ca"
	"github.com/axion/runner-agent/plane/caller"
	"github.com/axion/runner-agent/plane/registry"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
	"github.com/axion/runner-agent/proto/jointoken"
)

// defaultHeartbeat is how often an agent sends a heartbeat unless the configuration says otherwise.
const defaultHeartbeat = 5 * time.Second

// callTimeout bounds one call: the time that Kafka may take to make a topic, mostly.
const callTimeout = 30 * time.Second

// Authority issues certificates; ca.CA is one.
type Authority interface {
	IssueAgent(csrDER []byte, clusterID, agentID string) (ca.Issued, error)
	CertificatePEM() []byte
}

// Registry decides and remembers; registry.Registry is one.
type Registry interface {
	caller.Registry
	Enrol(ctx context.Context, p registry.EnrolParams) (registry.Enrolment, error)
	RecordCertificate(ctx context.Context, c registry.Certificate) error
}

// Kafka makes an agent's topics, groups, ACLs and credentials, or finds them made.
type Kafka interface {
	Provision(ctx context.Context, clusterID, agentID string) (*runnerv1.KafkaAccess, error)
}

// Config configures a Server.
type Config struct {
	// HeartbeatInterval is what new agents are told; 0 means 5 s.
	HeartbeatInterval time.Duration
}

// Deps are the parts that a Server joins.
type Deps struct {
	Authority Authority
	Registry  Registry
	Kafka     Kafka
	// Live says whether an agent has a session now.
	Live func(agentID string) bool
	// Enrolled, if given, is told of each enrolment that changed something: a new agent, or one with a new key (Rekeyed). It must not block.
	Enrolled func(registry.Enrolment)
	Log      *slog.Logger
	Now      func() time.Time
}

// Server is the gRPC service.
type Server struct {
	runnerv1.UnimplementedEnrollmentServer
	cfg      Config
	deps     Deps
	callers  *caller.Agents
	failures *limiter
}

// New returns a Server.
func New(cfg Config, deps Deps) (*Server, error) {
	if deps.Authority == nil || deps.Registry == nil || deps.Kafka == nil || deps.Live == nil || deps.Log == nil {
		return nil, errors.New("enrolment: authority, registry, kafka, live and log are required")
	}
	if cfg.HeartbeatInterval == 0 {
		cfg.HeartbeatInterval = defaultHeartbeat
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	return &Server{cfg: cfg, deps: deps, callers: caller.New(deps.Registry, deps.Now), failures: newLimiter(deps.Now)}, nil
}

// Enroll lets an agent in with a join token.
func (s *Server) Enroll(ctx context.Context, req *runnerv1.EnrollRequest) (*runnerv1.EnrollResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	address := peerAddress(ctx)
	if !s.failures.allowed(address) {
		return nil, failurepb.Status(failure.New(failure.Unavailable, "too_many_attempts", address,
			"%s has failed to enrol too often: it may try again in a minute", address))
	}
	resp, err := s.enroll(ctx, req)
	if err != nil {
		s.failures.failed(address, err)
		s.deps.Log.Warn("an agent was not enrolled", "peer", address, "node_id", loggable(req.GetNode().GetNodeId()),
			"hostname", loggable(req.GetNode().GetHostname()), "code", failure.Of(err).Code, "error", err)
		return nil, failurepb.Status(err)
	}
	return resp, nil
}

func (s *Server) enroll(ctx context.Context, req *runnerv1.EnrollRequest) (*runnerv1.EnrollResponse, error) {
	secret, err := jointoken.ParseSecret(req.GetToken())
	if err != nil {
		return nil, err
	}
	key, err := ca.ParseRequest(req.GetCsrDer())
	if err != nil {
		return nil, err
	}
	enrolment, err := s.deps.Registry.Enrol(ctx, registry.EnrolParams{
		Secret: secret, Facts: req.GetNode(), PublicKey: key, EncryptionKey: req.GetEncryptionKey(), Version: req.GetAgentVersion(), Live: s.deps.Live,
	})
	if err != nil {
		return nil, err
	}
	s.report(enrolment)
	issued, kafka, err := s.equip(ctx, enrolment.ClusterID, enrolment.ID, req.GetCsrDer(), nil)
	if err != nil {
		return nil, err
	}
	return &runnerv1.EnrollResponse{
		AgentId:           enrolment.ID,
		ClusterId:         enrolment.ClusterID,
		CertificatePem:    issued.PEM,
		CaPem:             s.deps.Authority.CertificatePEM(),
		Kafka:             kafka,
		HeartbeatInterval: durationpb.New(s.cfg.HeartbeatInterval),
	}, nil
}

// report logs an enrolment and tells whoever asked for it.
func (s *Server) report(e registry.Enrolment) {
	log := s.deps.Log.With("agent_id", e.ID, "cluster_id", e.ClusterID, "node_id", e.NodeID, "hostname", e.Facts.GetHostname(), "manager", e.ManagerConfirmed)
	switch {
	case e.Repeated:
		log.Info("agent enrolled again with the same key")
		return
	case e.Rekeyed:
		log.Warn("agent enrolled with a new key; the certificates of the old one are revoked")
	default:
		log.Info("agent enrolled")
	}
	if s.deps.Enrolled != nil {
		s.deps.Enrolled(e)
	}
}

// Renew gives the caller the certificate that follows the one that it shows.
func (s *Server) Renew(ctx context.Context, req *runnerv1.RenewRequest) (*runnerv1.RenewResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := s.renew(ctx, req)
	if err != nil {
		s.deps.Log.Warn("a certificate was not renewed", "peer", peerAddress(ctx), "code", failure.Of(err).Code, "error", err)
		return nil, failurepb.Status(err)
	}
	return resp, nil
}

func (s *Server) renew(ctx context.Context, req *runnerv1.RenewRequest) (*runnerv1.RenewResponse, error) {
	clusterID, agentID, err := s.callers.Identify(ctx)
	if err != nil {
		return nil, err
	}
	issued, kafka, err := s.equip(ctx, clusterID, agentID, req.GetCsrDer(), req.GetEncryptionKey())
	if err != nil {
		return nil, err
	}
	s.deps.Log.Info("certificate renewed", "agent_id", agentID, "cluster_id", clusterID, "not_after", issued.NotAfter)
	return &runnerv1.RenewResponse{
		CertificatePem: issued.PEM,
		CaPem:          s.deps.Authority.CertificatePEM(),
		Kafka:          kafka,
		NotAfter:       timestamppb.New(issued.NotAfter),
	}, nil
}

// equip makes what an agent that was let in needs: a recorded certificate and access to Kafka. Doing it again is harmless.
func (s *Server) equip(ctx context.Context, clusterID, agentID string, csrDER, encryptionKey []byte) (ca.Issued, *runnerv1.KafkaAccess, error) {
	issued, err := s.deps.Authority.IssueAgent(csrDER, clusterID, agentID)
	if err != nil {
		return ca.Issued{}, nil, err
	}
	err = s.deps.Registry.RecordCertificate(ctx, registry.Certificate{
		Serial: issued.Serial, AgentID: agentID, PublicKey: issued.PublicKey, NotBefore: issued.NotBefore, NotAfter: issued.NotAfter, EncryptionKey: encryptionKey,
	})
	if err != nil {
		return ca.Issued{}, nil, err
	}
	kafka, err := s.deps.Kafka.Provision(ctx, clusterID, agentID)
	if err != nil {
		return ca.Issued{}, nil, kafkaFailure(agentID, err)
	}
	return issued, kafka, nil
}

// kafkaFailure makes an error without a class one that the agent tries again after.
func kafkaFailure(agentID string, err error) error {
	var f *failure.Error
	if errors.As(err, &f) {
		return err
	}
	return failure.New(failure.Unavailable, "kafka_unavailable", agentID, "the plane cannot make the topics of agent %s: %w", agentID, err)
}

// loggable keeps what has not been checked yet from flooding the log.
func loggable(s string) string {
	const most = 80
	return s[:min(len(s), most)]
}

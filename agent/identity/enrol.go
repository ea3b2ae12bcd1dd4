package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/jointoken"
)

// callTimeout bounds one Enroll or Renew. It is longer than the plane's own bound, so that the plane's word for a slow Kafka arrives.
const callTimeout = 45 * time.Second

var errOtherCA = errors.New("its CA certificate is not the one that the join token names")

// enrol tries once to get an identity with the join token.
func (i *Identity) enrol(ctx context.Context) error {
	facts, err := i.nodeFacts(ctx)
	if err != nil {
		return err
	}
	token, err := i.token(ctx)
	if err != nil {
		return err
	}
	key, request, err := i.request()
	if err != nil {
		return err
	}
	encryptionKey := i.EncryptionKey().PublicKey().Bytes()
	var resp *runnerv1.EnrollResponse
	err = i.call(ctx, firstTLS(token, i.host, i.deps.Now), func(ctx context.Context, c runnerv1.EnrollmentClient) (err error) {
		resp, err = c.Enroll(ctx, &runnerv1.EnrollRequest{
			Token:         token.Secret.Text(),
			CsrDer:        request,
			EncryptionKey: encryptionKey,
			Node:          facts,
			AgentVersion:  i.cfg.AgentVersion,
		})
		return err
	})
	if err != nil {
		return err
	}
	m := &membership{
		agentID: resp.GetAgentId(), clusterID: resp.GetClusterId(), nodeID: facts.GetNodeId(),
		certificatePEM: bytes.Clone(resp.GetCertificatePem()), caPEM: bytes.Clone(resp.GetCaPem()), kafka: proto.CloneOf(resp.GetKafka()),
		heartbeat: resp.GetHeartbeatInterval().AsDuration(), encryptionKey: encryptionKey,
	}
	if err := m.check(key); err != nil {
		return i.badAnswer(err)
	}
	if !token.Names(m.cas[0]) {
		return i.badAnswer(errOtherCA)
	}
	if err := i.adopt(m); err != nil {
		return err
	}
	i.nodeMet = true
	i.deps.Log.Info("enrolled", "agent_id", m.agentID, "cluster_id", m.clusterID, "node_id", m.nodeID, "not_after", m.certificate.Leaf.NotAfter)
	return nil
}

// renew tries once to replace the certificate by a newer one for the same keys. If the plane says that the certificate is of no use any more, the agent
// enrols again.
func (i *Identity) renew(ctx context.Context) error {
	m := i.member()
	key, request, err := i.request()
	if err != nil {
		return err
	}
	encryptionKey := i.EncryptionKey().PublicKey().Bytes()
	var resp *runnerv1.RenewResponse
	err = i.call(ctx, i.PlaneTLS(), func(ctx context.Context, c runnerv1.EnrollmentClient) (err error) {
		resp, err = c.Renew(ctx, &runnerv1.RenewRequest{CsrDer: request, EncryptionKey: encryptionKey})
		return err
	})
	if err != nil {
		return i.renewalFailed(ctx, err)
	}
	next, err := m.with(resp, key, encryptionKey)
	if err != nil {
		return i.badAnswer(err)
	}
	if err := i.adopt(next); err != nil {
		return err
	}
	i.deps.Log.Info("certificate renewed", "agent_id", m.agentID, "not_after", next.certificate.Leaf.NotAfter)
	return nil
}

// renewalFailed decides whether enrolling anew is the way out.
func (i *Identity) renewalFailed(ctx context.Context, err error) error {
	i.renewSoon = true // after the back-off, not when it would be due
	switch failure.Of(err).Code {
	case "certificate_revoked", "certificate_expired", "agent_removed", "no_such_agent", codeRefused:
		i.deps.Log.Warn("the plane does not accept the agent's certificate any more; the agent enrols again", "error", err)
		i.refused = true
		return i.enrol(ctx)
	case "plane_ca_unknown":
		// The plane was made anew, or this is not the plane. A token that names another CA than the one that the agent enrolled with settles it.
		if token, tokenErr := i.token(ctx); tokenErr == nil && !token.Names(i.member().cas[0]) {
			return i.enrol(ctx)
		}
	}
	return err
}

// nodeFacts asks the engine.
func (i *Identity) nodeFacts(ctx context.Context) (*runnerv1.NodeFacts, error) {
	facts, err := i.deps.Node(ctx)
	if err != nil {
		return nil, err
	}
	if facts.GetNodeId() == "" {
		return nil, failure.New(failure.Conflict, "not_in_swarm", facts.GetHostname(), "node %s belongs to no swarm", facts.GetHostname()).
			WithHint("join it to a swarm with `docker swarm join`, or make one with `docker swarm init`")
	}
	return facts, nil
}

// token reads the join token anew.
func (i *Identity) token(ctx context.Context) (jointoken.Token, error) {
	text, err := i.cfg.Token(ctx)
	if err != nil {
		return jointoken.Token{}, failure.New(failure.Invalid, "join_token_missing", "join token", "the join token cannot be read: %w", err).
			WithHint("make one with `axionctl token create` and give it to the agent, as the swarm secret that its stack file names")
	}
	return jointoken.Parse(text)
}

// request makes a certificate request for the agent's key.
func (i *Identity) request() (key *ecdsa.PrivateKey, der []byte, err error) {
	i.mu.RLock()
	key = i.key
	i.mu.RUnlock()
	der, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, failure.New(failure.Internal, "bad_csr", "certificate request", "the certificate request cannot be made: %w", err)
	}
	return key, der, nil
}

func (i *Identity) badAnswer(err error) error {
	return failure.New(failure.Internal, "bad_answer", i.cfg.PlaneAddress, "the answer of the plane at %s cannot be used: %w", i.cfg.PlaneAddress, err)
}

package enroll_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/plane/ca"
	"github.com/axion/runner-agent/plane/enroll"
	"github.com/axion/runner-agent/plane/registry"
	"github.com/axion/runner-agent/plane/store"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// desk is an enrolment server on loopback, with real CA, registry and TLS. Its clock can be put forward.
type desk struct {
	t        *testing.T
	ca       *ca.CA
	registry *registry.Registry
	address  string
	skip     time.Duration
	kafkaErr error
	enrolled []registry.Enrolment
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{t: t}
	now := func() time.Time { return time.Now().Add(d.skip) }
	var err error
	if d.ca, err = ca.Open(t.TempDir(), time.Now, ca.WithAgentLife(time.Hour)); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "plane.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	d.registry = registry.New(db, now)
	server, err := enroll.New(enroll.Config{}, enroll.Deps{
		Authority: d.ca, Registry: d.registry, Kafka: d, Live: func(string) bool { return false }, Now: now,
		Enrolled: func(e registry.Enrolment) { d.enrolled = append(d.enrolled, e) }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	config, err := d.ca.ServerTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.address = listener.Addr().String()
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	runnerv1.RegisterEnrollmentServer(s, server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(listener)
	}()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return d
}

func (d *desk) Provision(_ context.Context, _, agentID string) (*runnerv1.KafkaAccess, error) {
	if d.kafkaErr != nil {
		return nil, d.kafkaErr
	}
	return &runnerv1.KafkaAccess{Brokers: []string{"127.0.0.1:9092"}, AgentTopic: "runner.commands." + agentID}, nil
}

func (d *desk) client(certs ...tls.Certificate) runnerv1.EnrollmentClient {
	d.t.Helper()
	config := &tls.Config{RootCAs: d.ca.Pool(), ServerName: "localhost", Certificates: certs}
	conn, err := grpc.NewClient(d.address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { conn.Close() })
	return runnerv1.NewEnrollmentClient(conn)
}

func (d *desk) secret(uses uint32) string {
	d.t.Helper()
	_, secret, err := d.registry.CreateToken(d.t.Context(), "shop", time.Hour, uses)
	if err != nil {
		d.t.Fatal(err)
	}
	return secret.Text()
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func request(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func enrolRequest(t *testing.T, secret string, key *ecdsa.PrivateKey) *runnerv1.EnrollRequest {
	t.Helper()
	return &runnerv1.EnrollRequest{
		Token: secret, CsrDer: request(t, key), EncryptionKey: make([]byte, 32), AgentVersion: "1.2.3",
		Node: &runnerv1.NodeFacts{NodeId: "node1", Role: runnerv1.NodeRole_NODE_ROLE_MANAGER, SwarmClusterId: "swarm1"},
	}
}

func pair(t *testing.T, certPEM []byte, key *ecdsa.PrivateKey) tls.Certificate {
	t.Helper()
	block, _ := pem.Decode(certPEM)
	if block == nil {
		t.Fatalf("no certificate in %q", certPEM)
	}
	return tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if f := failure.Of(failurepb.FromStatus(err)); f == nil || f.Code != code {
		t.Errorf("got %v, want a failure with the code %s", err, code)
	}
}

func TestEnrollAndRenew(t *testing.T) {
	d := newDesk(t)
	key := newKey(t)
	first, err := d.client().Enroll(t.Context(), enrolRequest(t, d.secret(1), key))
	if err != nil {
		t.Fatal(err)
	}
	if first.GetClusterId() != "shop" || first.GetHeartbeatInterval().AsDuration() != 5*time.Second || len(first.GetCaPem()) == 0 {
		t.Errorf("got %v", first)
	}
	agent := d.client(pair(t, first.GetCertificatePem(), key))
	other := newKey(t)
	second, err := agent.Renew(t.Context(), &runnerv1.RenewRequest{CsrDer: request(t, other), EncryptionKey: []byte(strings.Repeat("k", 32))})
	if err != nil {
		t.Fatal(err)
	}
	known, err := d.registry.Agent(t.Context(), first.GetAgentId())
	if err != nil || string(known.EncryptionKey) != strings.Repeat("k", 32) || !known.CertificateNotAfter.Equal(second.GetNotAfter().AsTime()) {
		t.Errorf("agent %+v, %v", known, err)
	}
	if _, err := d.client(pair(t, second.GetCertificatePem(), other)).Renew(t.Context(), &runnerv1.RenewRequest{CsrDer: request(t, other)}); err != nil {
		t.Errorf("renew with the new key: %v", err)
	}
	if len(d.enrolled) != 1 || d.enrolled[0].Rekeyed {
		t.Errorf("reported: %+v", d.enrolled)
	}
}

func TestRekeyIsReported(t *testing.T) {
	d := newDesk(t)
	secret, old := d.secret(1), newKey(t)
	first, err := d.client().Enroll(t.Context(), enrolRequest(t, secret, old))
	if err != nil {
		t.Fatal(err)
	}
	second, err := d.client().Enroll(t.Context(), enrolRequest(t, secret, newKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	if second.GetAgentId() != first.GetAgentId() || len(d.enrolled) != 2 || !d.enrolled[1].Rekeyed {
		t.Errorf("reported: %+v", d.enrolled)
	}
	_, err = d.client(pair(t, first.GetCertificatePem(), old)).Renew(t.Context(), &runnerv1.RenewRequest{CsrDer: request(t, old)})
	wantCode(t, err, "certificate_revoked")
}

func TestEnrollRefuses(t *testing.T) {
	key := newKey(t)
	for name, tc := range map[string]struct {
		spoil func(*runnerv1.EnrollRequest)
		code  string
	}{
		"malformed token":      {func(r *runnerv1.EnrollRequest) { r.Token = "secret" }, "token_malformed"},
		"long token":           {func(r *runnerv1.EnrollRequest) { r.Token = strings.Repeat("x", 1<<20) }, "token_malformed"},
		"unknown token":        {func(r *runnerv1.EnrollRequest) { r.Token = strings.Repeat("A", 43) }, "token_unknown"},
		"bad request":          {func(r *runnerv1.EnrollRequest) { r.CsrDer = []byte("x") }, "bad_csr"},
		"long request":         {func(r *runnerv1.EnrollRequest) { r.CsrDer = make([]byte, 1<<20) }, "bad_csr"},
		"no node":              {func(r *runnerv1.EnrollRequest) { r.Node = nil }, "bad_node_facts"},
		"long host name":       {func(r *runnerv1.EnrollRequest) { r.Node.Hostname = strings.Repeat("x", 254) }, "bad_node_facts"},
		"short encryption key": {func(r *runnerv1.EnrollRequest) { r.EncryptionKey = []byte("x") }, "bad_encryption_key"},
		"long version":         {func(r *runnerv1.EnrollRequest) { r.AgentVersion = strings.Repeat("1", 65) }, "bad_agent_version"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			req := proto.CloneOf(enrolRequest(t, d.secret(1), key))
			tc.spoil(req)
			_, err := d.client().Enroll(t.Context(), req)
			wantCode(t, err, tc.code)
			if agents, err := d.registry.Agents(t.Context(), ""); err != nil || len(agents) != 0 {
				t.Errorf("agents %v, %v", agents, err)
			}
		})
	}
}

func TestRenewRefuses(t *testing.T) {
	d := newDesk(t)
	key := newKey(t)
	enrolled, err := d.client().Enroll(t.Context(), enrolRequest(t, d.secret(1), key))
	if err != nil {
		t.Fatal(err)
	}
	own, err := d.ca.IssueClient("axion-plane")
	if err != nil {
		t.Fatal(err)
	}
	unknown, err := d.ca.IssueAgent(request(t, key), "shop", enrolled.GetAgentId()) // issued, never recorded: as after a restore from a backup
	if err != nil {
		t.Fatal(err)
	}
	moved, err := d.ca.IssueAgent(request(t, key), "shop", "a-0000000000000000")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		certs []tls.Certificate
		code  string
	}{
		"no certificate":                 {nil, "no_agent_certificate"},
		"the plane's own certificate":    {[]tls.Certificate{own}, "no_agent_certificate"},
		"certificate that is not known":  {[]tls.Certificate{pair(t, unknown.PEM, key)}, "certificate_revoked"},
		"certificate of an agent's past": {[]tls.Certificate{pair(t, moved.PEM, key)}, "certificate_revoked"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := d.client(tc.certs...).Renew(t.Context(), &runnerv1.RenewRequest{CsrDer: request(t, key)})
			wantCode(t, err, tc.code)
		})
	}
	agent := d.client(pair(t, enrolled.GetCertificatePem(), key))
	for name, req := range map[string]*runnerv1.RenewRequest{
		"bad_csr":            {CsrDer: []byte("x")},
		"bad_encryption_key": {CsrDer: request(t, key), EncryptionKey: []byte("x")},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := agent.Renew(t.Context(), req)
			wantCode(t, err, name)
		})
	}
	t.Run("certificate that ended since the handshake", func(t *testing.T) {
		d.skip = 2 * time.Hour
		defer func() { d.skip = 0 }()
		_, err := agent.Renew(t.Context(), &runnerv1.RenewRequest{CsrDer: request(t, key)})
		wantCode(t, err, "certificate_expired")
	})
	t.Run("removed agent on an open connection", func(t *testing.T) {
		if err := d.registry.Remove(t.Context(), enrolled.GetAgentId()); err != nil {
			t.Fatal(err)
		}
		_, err := agent.Renew(t.Context(), &runnerv1.RenewRequest{CsrDer: request(t, key)})
		wantCode(t, err, "certificate_revoked")
	})
}

func TestKafkaAwayAndBack(t *testing.T) {
	d := newDesk(t)
	key, secret := newKey(t), d.secret(1)
	d.kafkaErr = errors.New("no broker answers")
	_, err := d.client().Enroll(t.Context(), enrolRequest(t, secret, key))
	if wantCode(t, err, "kafka_unavailable"); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
	d.kafkaErr = nil
	if _, err := d.client().Enroll(t.Context(), enrolRequest(t, secret, key)); err != nil {
		t.Errorf("the same agent again: %v", err)
	}
	tokens, err := d.registry.ListTokens(t.Context(), "")
	if err != nil || tokens[0].Used != 1 {
		t.Errorf("tokens %+v, %v", tokens, err)
	}
}

func TestTooManyFailures(t *testing.T) {
	d := newDesk(t)
	client, key := d.client(), newKey(t)
	wrong := enrolRequest(t, strings.Repeat("A", 43), key)
	var err error
	for range 60 {
		_, err = client.Enroll(t.Context(), wrong)
		wantCode(t, err, "token_unknown")
	}
	good := enrolRequest(t, d.secret(1), key)
	if _, err = client.Enroll(t.Context(), good); status.Code(err) != codes.Unavailable {
		t.Errorf("after 60 failures: %v", err)
	}
	wantCode(t, err, "too_many_attempts")
	d.skip = time.Minute
	if _, err = client.Enroll(t.Context(), good); err != nil {
		t.Errorf("a minute later: %v", err)
	}
}

func TestRefusalsOfKnownTokensAreNotCounted(t *testing.T) {
	d := newDesk(t)
	client, secret := d.client(), d.secret(1)
	req := enrolRequest(t, secret, newKey(t))
	req.Node.Role, req.Node.SwarmClusterId = runnerv1.NodeRole_NODE_ROLE_WORKER, ""
	for range 70 {
		_, err := client.Enroll(t.Context(), req)
		wantCode(t, err, "node_not_confirmed")
	}
	if _, err := client.Enroll(t.Context(), enrolRequest(t, secret, newKey(t))); err != nil {
		t.Errorf("the manager behind the same address: %v", err)
	}
}

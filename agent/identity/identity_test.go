package identity_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/agent/identity"
	"github.com/axion/runner-agent/plane/ca"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/jointoken"
)

const longLife = 24 * time.Hour

func TestEnrol(t *testing.T) {
	p := newPlane(t, longLife)
	h := newManager(t, p, "node1")
	h.setToken(p.token(1) + "\n")
	i := h.runReady()

	agent, err := p.registry.Agent(t.Context(), i.AgentID())
	if err != nil {
		t.Fatal(err)
	}
	if i.ClusterID() != cluster || agent.ClusterID != cluster || agent.NodeID != "node1" || agent.Version != "1.2.3" || !agent.ManagerConfirmed {
		t.Errorf("agent %+v, cluster %s", agent, i.ClusterID())
	}
	if !bytes.Equal(agent.EncryptionKey, i.EncryptionKey().PublicKey().Bytes()) {
		t.Error("the plane has another encryption key")
	}
	if left := time.Until(i.NotAfter()); left < 23*time.Hour || left > 24*time.Hour {
		t.Errorf("the certificate ends at %v", i.NotAfter())
	}
	if i.HeartbeatInterval() != 7*time.Second {
		t.Errorf("heartbeat interval %v", i.HeartbeatInterval())
	}
	if k := i.Kafka(); k.GetAgentTopic() != "runner.commands."+i.AgentID() || k.GetSasl().GetPassword() != "kafka-password" {
		t.Errorf("kafka %v", k)
	}
	published, err := p.registry.PublicKeys(t.Context(), i.AgentID())
	if err != nil || len(published) != 1 || !published[0].Equal(i.Signer().Public().(*ecdsa.PublicKey)) {
		t.Errorf("the plane knows the keys %v, %v", published, err)
	}
	connect(t, p.address, i.PlaneTLS())
	if len(h.all()) != 0 {
		t.Errorf("warnings %v", h.all())
	}
	entries, err := os.ReadDir(h.dir)
	if err != nil || len(entries) != 3 {
		t.Errorf("state folder has %v, %v", entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the permissions %v, %v", e.Name(), info.Mode(), err)
		}
	}
}

func TestRestartFromVolumeWithoutNetwork(t *testing.T) {
	p := newPlane(t, longLife)
	h := newManager(t, p, "node1")
	h.setToken(p.token(1))
	first := h.runReady()
	first.stop()
	p.stop()
	h.setToken("")
	h.mu.Lock()
	h.nodeErr = failure.New(failure.Unavailable, "engine_unreachable", "", "the engine does not answer") // it may start after the agent
	h.mu.Unlock()

	again := h.runReady()
	if again.AgentID() != first.AgentID() || again.ClusterID() != cluster || !again.NotAfter().Equal(first.NotAfter()) ||
		again.HeartbeatInterval() != first.HeartbeatInterval() || !proto.Equal(again.Kafka(), first.Kafka()) {
		t.Error("the identity changed")
	}
	if !again.Signer().Public().(*ecdsa.PublicKey).Equal(first.Signer().Public()) || !again.EncryptionKey().Equal(first.EncryptionKey()) {
		t.Error("a key changed")
	}
	p.start(p.address)
	connect(t, p.address, again.PlaneTLS())
	if len(h.all()) != 0 {
		t.Errorf("warnings %v", h.all())
	}
}

func TestRepeatedEnrolmentIsIdempotent(t *testing.T) {
	p := newPlane(t, longLife)
	h := newManager(t, p, "node1")
	h.setToken(p.token(1))
	first := h.runReady()
	first.stop()
	if err := os.Remove(filepath.Join(h.dir, "identity.json")); err != nil { // as if the answer had been lost
		t.Fatal(err)
	}
	again := h.runReady()
	if again.AgentID() != first.AgentID() {
		t.Errorf("agent %s became %s", first.AgentID(), again.AgentID())
	}
	if p.used() != 1 {
		t.Errorf("the token was used %d times", p.used())
	}
}

// TestRefusedUntilMended gives an agent each reason not to be let in, looks at what it says, removes the reason, and sees it enrol by itself.
func TestRefusedUntilMended(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(p *plane, h *host)
		mend  func(p *plane, h *host)
		code  string
		text  string
	}{
		"token is missing": {
			func(_ *plane, h *host) { h.setToken("") }, nil,
			"identity_join_token_missing", "cannot be read",
		},
		"token is malformed": {
			func(p *plane, h *host) { h.setToken(p.token(1)[:30]) }, nil,
			"identity_token_malformed", "axn1.SECRET.CAHASH",
		},
		"token is wrong": {
			func(p *plane, h *host) {
				h.setToken(jointoken.Token{Secret: jointoken.NewSecret(), CAHash: [32]byte(p.ca.Hash())}.String())
			}, nil,
			"identity_token_unknown", "knows no such join token",
		},
		"token was revoked": {
			func(p *plane, h *host) {
				id, text := p.tokenWithID(1)
				if err := p.registry.RevokeToken(p.t.Context(), id); err != nil {
					p.t.Fatal(err)
				}
				h.setToken(text)
			}, nil,
			"identity_token_revoked", "was revoked",
		},
		"token is used up": {
			func(p *plane, h *host) {
				other := newManager(p.t, p, "other")
				h.mu.Lock()
				other.token = h.token
				h.mu.Unlock()
				other.runReady()
			}, nil,
			"identity_token_used_up", "has let in its 1 first nodes",
		},
		"plane has another CA": {
			func(p *plane, h *host) {
				other, err := ca.Open(p.t.TempDir(), time.Now)
				if err != nil {
					p.t.Fatal(err)
				}
				h.setToken(jointoken.Token{Secret: jointoken.NewSecret(), CAHash: [32]byte(other.Hash())}.String())
			}, nil,
			"identity_plane_ca_mismatch", "another CA than the join token names",
		},
		"plane is away": {
			func(p *plane, _ *host) { p.stop() }, func(p *plane, _ *host) { p.start(p.address) },
			"identity_plane_unreachable", "cannot be reached",
		},
		"node is in no swarm": {
			func(_ *plane, h *host) { h.setFacts(func(f *runnerv1.NodeFacts) { f.NodeId = "" }) },
			func(_ *plane, h *host) { h.setFacts(func(f *runnerv1.NodeFacts) { f.NodeId = "node1" }) },
			"identity_not_in_swarm", "belongs to no swarm",
		},
		"worker comes before the first manager": {
			func(_ *plane, h *host) {
				h.setFacts(func(f *runnerv1.NodeFacts) { f.Role, f.SwarmClusterId = runnerv1.NodeRole_NODE_ROLE_WORKER, "" })
			},
			func(p *plane, h *host) {
				m := newManager(p.t, p, "manager")
				h.mu.Lock()
				m.token = h.token
				h.mu.Unlock()
				reporter := m.runReady().AgentID()
				_, err := p.registry.SetNodes(p.t.Context(), cluster, reporter, &runnerv1.NodeList{SwarmClusterId: "swarm1", Nodes: []*runnerv1.SwarmNode{
					{NodeId: "manager", Role: runnerv1.NodeRole_NODE_ROLE_MANAGER}, {NodeId: "node1", Role: runnerv1.NodeRole_NODE_ROLE_WORKER},
				}})
				if err != nil {
					p.t.Fatal(err)
				}
			},
			"identity_node_not_confirmed", "is a worker",
		},
		"cloned machine, the other one is connected": {
			func(p *plane, h *host) {
				twin := newManager(p.t, p, "node1")
				twin.setToken(p.token(1))
				p.setLive(twin.runReady().AgentID(), true)
			},
			func(p *plane, _ *host) {
				p.mu.Lock()
				defer p.mu.Unlock()
				clear(p.live)
			},
			"identity_duplicate_live", "is connected with another key",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t, longLife)
			h := newManager(t, p, "node1")
			h.setToken(p.token(1))
			tc.spoil(p, h)
			i := h.run()
			text := h.waitFor(tc.code)
			if !strings.Contains(text, tc.text) {
				t.Errorf("%s: %s", tc.code, text)
			}
			if h.titles[tc.code] == "" || strings.HasPrefix(h.titles[tc.code], "The agent cannot") {
				t.Errorf("title %q", h.titles[tc.code])
			}
			if i.isReady() || i.AgentID() != "" {
				t.Fatal("ready without an identity")
			}
			if tc.mend != nil {
				tc.mend(p, h)
			} else {
				h.setToken(p.token(1))
			}
			i.waitReady(h)
			h.waitForNoWarning()
		})
	}
}

func TestExpiredToken(t *testing.T) {
	p := newPlane(t, longLife)
	h := newManager(t, p, "node1")
	// The registry's clock cannot be moved here, so the token is made by one whose clock is behind.
	h.setToken(p.tokenMadeBefore(2 * time.Hour))
	h.run()
	if text := h.waitFor("identity_token_expired"); !strings.Contains(text, "expired on") {
		t.Error(text)
	}
}

func TestPlaneUnderAnotherName(t *testing.T) {
	p := newPlane(t, longLife)
	_, port, err := net.SplitHostPort(p.address)
	if err != nil {
		t.Fatal(err)
	}
	h := newManager(t, p, "node1")
	h.address = net.JoinHostPort("127.0.0.2", port) // Linux answers there too; the certificate is for 127.0.0.1
	listener, err := net.Listen("tcp", h.address)
	if err != nil {
		t.Skipf("no second loopback address: %v", err)
	}
	relay(t, listener, p.address)
	h.setToken(p.token(1))
	h.run()
	if text := h.waitFor("identity_plane_wrong_name"); !strings.Contains(text, "127.0.0.2") {
		t.Error(text)
	}
}

func TestRenewalKeepsTheStream(t *testing.T) {
	p := newPlane(t, 4*time.Second)
	h := newManager(t, p, "node1")
	h.setToken(p.token(1))
	i := h.runReady()
	s := connect(t, p.address, i.PlaneTLS())
	firstSerial, first := p.lastSerial(), i.NotAfter()
	h.setToken("") // renewal needs none
	config := i.PlaneTLS()
	eventually(t, func() bool {
		if err := s.beat(); err != nil {
			t.Fatalf("the stream broke: %v", err)
		}
		return i.NotAfter().After(first)
	}, func() string { return "the certificate was not renewed" })
	eventually(t, func() bool {
		if err := s.beat(); err != nil {
			t.Fatalf("the stream broke: %v", err)
		}
		return time.Now().After(first)
	}, func() string { return "time stands still" })
	connect(t, p.address, config) // a configuration from before the renewal, with the first certificate over
	if p.lastSerial() == firstSerial {
		t.Error("a new connection uses the old certificate")
	}
	if len(h.all()) != 0 {
		t.Errorf("warnings %v", h.all())
	}
	i.stop()
	if again := h.open(); !again.NotAfter().After(first) {
		t.Error("the new certificate is not on the volume")
	}
}

func TestRevokedCertificate(t *testing.T) {
	p := newPlane(t, longLife)
	h := newManager(t, p, "node1")
	id, text := p.tokenWithID(1)
	h.setToken(text)
	i := h.runReady()
	agentID := i.AgentID()
	if err := p.registry.Remove(t.Context(), agentID); err != nil {
		t.Fatal(err)
	}
	if err := p.registry.RevokeToken(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	i.RenewNow()
	h.waitFor("identity_token_revoked")
	if text := h.waitFor("certificate_lapsed"); !strings.Contains(text, agentID) || !strings.Contains(text, "was revoked") {
		t.Error(text)
	}
	h.setToken(p.token(1))
	h.waitForNoWarning()
	if i.AgentID() != agentID {
		t.Errorf("agent %s became %s", agentID, i.AgentID())
	}
	connect(t, p.address, i.PlaneTLS())
	if revoked, err := p.registry.Revoked(t.Context(), p.lastSerial()); err != nil || revoked {
		t.Errorf("the new certificate is revoked: %v, %v", revoked, err)
	}
}

func TestCertificateEndedWhileTheAgentWasOff(t *testing.T) {
	p := newPlane(t, 2*time.Second)
	h := newManager(t, p, "node1")
	token := p.token(1)
	h.setToken(token)
	first := h.runReady()
	first.stop()
	eventually(t, func() bool { return time.Now().After(first.NotAfter()) }, func() string { return "time stands still" })
	h.setToken("")
	again := h.run()
	if again.AgentID() != first.AgentID() {
		t.Error("the agent forgot its id")
	}
	text := h.waitFor("certificate_lapsed")
	for _, part := range []string{first.AgentID(), "ended on", "join token cannot be read"} {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in: %s", part, text)
		}
	}
	if again.isReady() {
		t.Error("ready with a certificate that has ended")
	}
	h.setToken(token) // the very same; it is used up, but the node is known
	again.waitReady(h)
	h.waitForNoWarning()
	if again.AgentID() != first.AgentID() || !again.NotAfter().After(first.NotAfter()) {
		t.Errorf("agent %s became %s", first.AgentID(), again.AgentID())
	}
}

func TestDamagedState(t *testing.T) {
	for name, tc := range map[string]struct {
		file    string
		sameKey bool
	}{
		"what the plane gave": {"identity.json", true},
		"key":                 {"key.pem", false},
		"encryption key":      {"encryption.pem", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t, longLife)
			h := newManager(t, p, "node1")
			h.setToken(p.token(1))
			first := h.runReady()
			first.stop()
			path := filepath.Join(h.dir, tc.file)
			if err := os.Truncate(path, 50); err != nil {
				t.Fatal(err)
			}
			again := h.open()
			if text := h.all()["identity_state_damaged"]; !strings.Contains(text, path) {
				t.Errorf("warnings %v", h.all())
			}
			if _, err := os.Stat(path + ".damaged"); err != nil {
				t.Errorf("the damaged file was not kept: %v", err)
			}
			if same := again.Signer().Public().(*ecdsa.PublicKey).Equal(first.Signer().Public()); same != tc.sameKey {
				t.Errorf("same key: %v", same)
			}
			i := h.runReady()
			h.waitForNoWarning()
			if i.AgentID() != first.AgentID() {
				t.Errorf("agent %s became %s", first.AgentID(), i.AgentID())
			}
			connect(t, p.address, i.PlaneTLS())
			if p.used() != 1 {
				t.Errorf("the token was used %d times", p.used())
			}
		})
	}
}

func TestNewEncryptionKeyIsToldToThePlane(t *testing.T) {
	p := newPlane(t, longLife)
	h := newManager(t, p, "node1")
	h.setToken(p.token(1))
	first := h.runReady()
	first.stop()
	if err := os.WriteFile(filepath.Join(h.dir, "encryption.pem"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	i := h.runReady()
	eventually(t, func() bool {
		agent, err := p.registry.Agent(t.Context(), i.AgentID())
		return err == nil && bytes.Equal(agent.EncryptionKey, i.EncryptionKey().PublicKey().Bytes())
	}, func() string { return "the plane still has the old encryption key" })
	if first.EncryptionKey().Equal(i.EncryptionKey()) {
		t.Error("the damaged key came back")
	}
}

func TestVolumeOfAnotherNode(t *testing.T) {
	p := newPlane(t, longLife)
	h := newManager(t, p, "node1")
	h.setToken(p.token(2))
	first := h.runReady()
	first.stop()
	h.setFacts(func(f *runnerv1.NodeFacts) { f.NodeId = "node2" }) // it left the Swarm and joined again
	second := h.runReady()
	if second.AgentID() == first.AgentID() {
		t.Error("two nodes share an agent id")
	}
	if second.Signer().Public().(*ecdsa.PublicKey).Equal(first.Signer().Public()) {
		t.Error("two nodes share a key")
	}
}

func TestPlaneMadeAnew(t *testing.T) {
	old := newPlane(t, longLife)
	h := newManager(t, old, "node1")
	h.setToken(old.token(1))
	i := h.runReady()
	old.stop()
	fresh := newPlane(t, longLife)
	fresh.stop()
	fresh.start(old.address)
	i.RenewNow()
	if text := h.waitFor("identity_plane_ca_unknown"); !strings.Contains(text, "another CA than the one that this agent enrolled with") {
		t.Error(text)
	}
	h.setToken(fresh.token(1))
	if err := i.ended(); failure.Of(err) == nil || failure.Of(err).Code != "identity_changed" {
		t.Fatalf("Run ended with %v", err)
	}
	again := h.runReady()
	connect(t, fresh.address, again.PlaneTLS())
}

func TestChangedKafkaAccessEndsRun(t *testing.T) {
	p := newPlane(t, longLife)
	h := newManager(t, p, "node1")
	h.setToken(p.token(1))
	i := h.runReady()
	p.mu.Lock()
	p.broker = "127.0.0.1:9093"
	p.mu.Unlock()
	i.RenewNow()
	if err := i.ended(); failure.Of(err) == nil || failure.Of(err).Code != "identity_changed" {
		t.Fatalf("Run ended with %v", err)
	}
	if again := h.open(); again.Kafka().GetBrokers()[0] != "127.0.0.1:9093" {
		t.Errorf("after a restart: %v", again.Kafka())
	}
}

func TestVolumeThatCannotBeWritten(t *testing.T) {
	p := newPlane(t, longLife)
	h := newManager(t, p, "node1")
	h.setToken(p.token(1))
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	h.open() // makes the keys
	blocked := filepath.Join(h.dir, "identity.json")
	i := h.runBlocked(blocked)
	i.waitReady(h) // it works all the same
	h.waitFor("identity_state_not_written")
	connect(t, p.address, i.PlaneTLS())
	if err := os.RemoveAll(blocked); err != nil {
		t.Fatal(err)
	}
	h.waitForNoWarning()
	i.stop()
	if again := h.open(); again.AgentID() != i.AgentID() {
		t.Error("the identity was not written after all")
	}
}

func TestClockOfTheNodeIsWrong(t *testing.T) {
	t.Run("far ahead", func(t *testing.T) {
		p := newPlane(t, longLife)
		h := newManager(t, p, "node1")
		h.skew = 48 * time.Hour
		h.setToken(p.token(1))
		i := h.run()
		if text := h.waitFor("clock_skew"); !strings.Contains(text, "set the clock") {
			t.Error(text)
		}
		if i.isReady() {
			t.Error("ready with a certificate that has ended")
		}
		i.stop()
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.calls != 1 {
			t.Errorf("the agent asked %d times for a certificate", p.calls)
		}
	})
	t.Run("behind", func(t *testing.T) {
		p := newPlane(t, longLife)
		h := newManager(t, p, "node1")
		h.skew = -2 * time.Hour // the plane's certificate begins an hour ago
		h.setToken(p.token(1))
		h.run()
		if text := h.waitFor("identity_plane_certificate_time"); !strings.Contains(text, "clock") {
			t.Error(text)
		}
	})
}

func TestTemporaryFilesOfACrashAreRemoved(t *testing.T) {
	h := newHost(t, "127.0.0.1:1", "node1", runnerv1.NodeRole_NODE_ROLE_WORKER)
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	left, foreign := filepath.Join(h.dir, ".identity.json.123.tmp"), filepath.Join(h.dir, ".journal.123.tmp")
	for _, path := range []string{left, foreign} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.open()
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("a temporary file is left: %v", err)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Errorf("another's file is gone: %v", err)
	}
}

func TestKeyThatOthersMayReadIsMadePrivate(t *testing.T) {
	h := newHost(t, "127.0.0.1:1", "node1", runnerv1.NodeRole_NODE_ROLE_WORKER)
	first := h.open()
	path := filepath.Join(h.dir, "key.pem")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	again := h.open()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("permissions %v, %v", info.Mode(), err)
	}
	if !again.Signer().Public().(*ecdsa.PublicKey).Equal(first.Signer().Public()) {
		t.Error("the key changed")
	}
}

func TestNewRefusesABadAddress(t *testing.T) {
	for _, address := range []string{"", "plane", ":8443"} {
		h := &host{t: t, dir: t.TempDir(), address: address}
		_, err := identity.New(identity.Config{StateDir: h.dir, PlaneAddress: address, Token: nil}, identity.Deps{Warn: h})
		if failure.Of(err) == nil || failure.Of(err).Code != "bad_plane_address" {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestKafkaTLS(t *testing.T) {
	p := newPlane(t, longLife)
	h := newManager(t, p, "node1")
	h.setToken(p.token(1))
	before := h.open()
	if before.KafkaTLS() != nil || before.Kafka() != nil {
		t.Error("access to Kafka before enrolment")
	}
	i := h.runReady()
	config := i.KafkaTLS()
	config.ServerName = "localhost"
	server, err := p.ca.ServerTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	broker := server.Clone()
	broker.ClientAuth, broker.MinVersion, broker.MaxVersion = tls.RequireAndVerifyClientCert, tls.VersionTLS12, tls.VersionTLS12
	listener, err := tls.Listen("tcp", "127.0.0.1:0", broker)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	peers := make(chan *x509.Certificate, 1)
	go func() {
		defer close(peers)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if conn.(*tls.Conn).HandshakeContext(t.Context()) == nil {
			peers <- conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
		}
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), config)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if peer := <-peers; peer == nil || peer.Subject.CommonName != i.AgentID() {
		t.Errorf("the broker saw %v", peer)
	}
}

// TestNoSecretInLogsAndWarnings runs through failures and success and looks for the secrets.
func TestNoSecretInLogsAndWarnings(t *testing.T) {
	p := newPlane(t, longLife)
	h := newManager(t, p, "node1")
	out := &lockedBuffer{}
	h.log = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	wrong := jointoken.Token{Secret: jointoken.NewSecret(), CAHash: [32]byte(p.ca.Hash())}
	h.setToken(wrong.String())
	i := h.run()
	text := h.waitFor("identity_token_unknown")
	good := p.token(1)
	h.setToken(good)
	i.waitReady(h)
	i.stop()
	if err := os.Truncate(filepath.Join(h.dir, "identity.json"), 1500); err != nil {
		t.Fatal(err)
	}
	h.open()
	text += out.String() + h.all()["identity_state_damaged"]
	for _, secret := range []string{wrong.Secret.Text(), strings.Split(good, ".")[1], "kafka-password"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is in: %s", secret, text)
		}
	}
	if !strings.Contains(text, "enrolled") {
		t.Error("nothing was logged")
	}
}

package registry_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/axion/runner-agent/plane/registry"
	"github.com/axion/runner-agent/plane/store"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/jointoken"
)

// plane is a registry with a clock that the test moves and a set of agents that have a session.
type plane struct {
	*registry.Registry
	t    *testing.T
	db   *store.DB
	time time.Time
	live map[string]bool
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "plane.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	p := &plane{t: t, db: db, time: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), live: map[string]bool{}}
	p.Registry = registry.New(db, func() time.Time { return p.time })
	return p
}

func (p *plane) token(uses uint32) jointoken.Secret {
	p.t.Helper()
	_, secret, err := p.CreateToken(p.t.Context(), "shop", time.Hour, uses)
	if err != nil {
		p.t.Fatal(err)
	}
	return secret
}

// node is a Swarm node and what its agent enrols with.
type node struct {
	id, swarm string
	role      runnerv1.NodeRole
	key       *ecdsa.PrivateKey
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func manager(t *testing.T, id string) node {
	return node{id: id, swarm: "swarm1", role: runnerv1.NodeRole_NODE_ROLE_MANAGER, key: newKey(t)}
}

func worker(t *testing.T, id string) node {
	return node{id: id, role: runnerv1.NodeRole_NODE_ROLE_WORKER, key: newKey(t)}
}

func (n node) facts() *runnerv1.NodeFacts {
	return &runnerv1.NodeFacts{NodeId: n.id, Hostname: "host-" + n.id, Role: n.role, SwarmClusterId: n.swarm}
}

func (p *plane) enrol(secret jointoken.Secret, n node) (registry.Enrolment, error) {
	return p.Enrol(p.t.Context(), registry.EnrolParams{
		Secret: secret, Facts: n.facts(), PublicKey: &n.key.PublicKey, EncryptionKey: bytes.Repeat([]byte{7}, 32), Version: "1.2.3",
		Live: func(id string) bool { return p.live[id] },
	})
}

func (p *plane) mustEnrol(secret jointoken.Secret, n node) registry.Enrolment {
	p.t.Helper()
	e, err := p.enrol(secret, n)
	if err != nil {
		p.t.Fatal(err)
	}
	return e
}

func (p *plane) certify(serial, agentID string, key *ecdsa.PrivateKey) {
	p.t.Helper()
	err := p.RecordCertificate(p.t.Context(), registry.Certificate{
		Serial: serial, AgentID: agentID, PublicKey: &key.PublicKey, NotBefore: p.time, NotAfter: p.time.Add(24 * time.Hour),
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) setNodes(reporter string, nodes ...node) ([]registry.Agent, error) {
	list := &runnerv1.NodeList{SwarmClusterId: "swarm1"}
	for _, n := range nodes {
		list.Nodes = append(list.Nodes, &runnerv1.SwarmNode{NodeId: n.id, Role: n.role})
	}
	return p.SetNodes(p.t.Context(), "shop", reporter, list)
}

func (p *plane) revoked(serial string) bool {
	p.t.Helper()
	revoked, err := p.Revoked(p.t.Context(), serial)
	if err != nil {
		p.t.Fatal(err)
	}
	return revoked
}

func (p *plane) used() uint32 {
	p.t.Helper()
	tokens, err := p.ListTokens(p.t.Context(), "shop")
	if err != nil || len(tokens) == 0 {
		p.t.Fatal(err)
	}
	return tokens[0].Used
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if f := failure.Of(err); f == nil || f.Code != code {
		t.Errorf("got %v, want a failure with the code %s", err, code)
	}
}

func TestEnrolFirstManager(t *testing.T) {
	p := newPlane(t)
	m := manager(t, "node1")
	e := p.mustEnrol(p.token(1), m)
	if !regexp.MustCompile(`^a-[a-z0-9]{16}$`).MatchString(e.ID) {
		t.Errorf("agent id %q", e.ID)
	}
	if e.ClusterID != "shop" || e.NodeID != "node1" || e.Version != "1.2.3" || e.Facts.GetHostname() != "host-node1" || len(e.EncryptionKey) != 32 {
		t.Errorf("got %+v", e)
	}
	if !e.ManagerConfirmed || e.Repeated || e.Rekeyed {
		t.Errorf("the first manager is confirmed by the token: %+v", e)
	}
	clusters, err := p.Clusters(t.Context())
	if err != nil || len(clusters) != 1 || clusters[0].SwarmID != "swarm1" {
		t.Errorf("clusters %+v, %v", clusters, err)
	}
}

func TestEnrolRepeatedWithTheSameKey(t *testing.T) {
	p := newPlane(t)
	secret, m := p.token(1), manager(t, "node1")
	first := p.mustEnrol(secret, m)
	p.certify("c1", first.ID, m.key)
	p.live[first.ID] = true                   // its session may not have been missed yet
	p.time = p.time.Add(24 * 365 * time.Hour) // the token is long over
	again := p.mustEnrol(secret, m)
	if again.ID != first.ID || !again.Repeated || again.Rekeyed || !again.ManagerConfirmed {
		t.Errorf("got %+v", again)
	}
	if p.used() != 1 {
		t.Errorf("the token was used %d times", p.used())
	}
	if p.revoked("c1") {
		t.Error("repeating an enrolment revoked the certificate")
	}
}

func TestEnrolRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		code string
		try  func(p *plane) error
	}{
		"wrong token": {"token_unknown", func(p *plane) error {
			p.token(1)
			_, err := p.enrol(jointoken.NewSecret(), manager(p.t, "node1"))
			return err
		}},
		"expired token": {"token_expired", func(p *plane) error {
			secret := p.token(1)
			p.time = p.time.Add(time.Hour)
			_, err := p.enrol(secret, manager(p.t, "node1"))
			return err
		}},
		"used-up token, before the manager has told its nodes": {"token_used_up", func(p *plane) error {
			secret := p.token(1)
			p.mustEnrol(secret, manager(p.t, "node1"))
			_, err := p.enrol(secret, manager(p.t, "node2"))
			return err
		}},
		"used-up token, not in the manager's list": {"node_not_confirmed", func(p *plane) error {
			secret, m := p.token(1), manager(p.t, "node1")
			e := p.mustEnrol(secret, m)
			if _, err := p.setNodes(e.ID, m); err != nil {
				return err
			}
			_, err := p.enrol(secret, worker(p.t, "stranger"))
			return err
		}},
		"revoked token": {"token_revoked", func(p *plane) error {
			token, secret, err := p.CreateToken(p.t.Context(), "shop", 0, 0)
			if err != nil {
				return err
			}
			for range 2 { // the second time changes nothing
				if err := p.RevokeToken(p.t.Context(), token.ID); err != nil {
					return err
				}
			}
			_, err = p.enrol(secret, manager(p.t, "node1"))
			return err
		}},
		"revoked token, known node with its own key": {"token_revoked", func(p *plane) error {
			token, secret, err := p.CreateToken(p.t.Context(), "shop", 0, 0)
			if err != nil {
				return err
			}
			m := manager(p.t, "node1")
			p.mustEnrol(secret, m)
			if err := p.RevokeToken(p.t.Context(), token.ID); err != nil {
				return err
			}
			_, err = p.enrol(secret, m)
			return err
		}},
		"a worker does not get the last use before a manager": {"node_not_confirmed", func(p *plane) error {
			_, err := p.enrol(p.token(1), worker(p.t, "node1"))
			return err
		}},
		"another swarm": {"swarm_mismatch", func(p *plane) error {
			secret := p.token(2)
			p.mustEnrol(secret, manager(p.t, "node1"))
			other := manager(p.t, "node2")
			other.swarm = "swarm2"
			_, err := p.enrol(secret, other)
			return err
		}},
		"new key while the old one is connected": {"duplicate_live", func(p *plane) error {
			secret, m := p.token(1), manager(p.t, "node1")
			p.live[p.mustEnrol(secret, m).ID] = true
			m.key = newKey(p.t)
			_, err := p.enrol(secret, m)
			return err
		}},
		"new key of a node that nobody vouches for, token expired": {"token_expired", func(p *plane) error {
			secret, m := p.token(1), manager(p.t, "node1")
			p.mustEnrol(secret, m)
			p.time = p.time.Add(time.Hour)
			m.key = newKey(p.t)
			_, err := p.enrol(secret, m)
			return err
		}},
		"copied volume, original connected": {"duplicate_live", func(p *plane) error {
			secret, m := p.token(2), manager(p.t, "node1")
			p.live[p.mustEnrol(secret, m).ID] = true
			m.id = "node2"
			_, err := p.enrol(secret, m)
			return err
		}},
		"copied volume, original away": {"key_in_use", func(p *plane) error {
			secret, m := p.token(2), manager(p.t, "node1")
			p.mustEnrol(secret, m)
			m.id = "node2"
			_, err := p.enrol(secret, m)
			return err
		}},
		"no node id": {"bad_node_facts", func(p *plane) error {
			_, err := p.enrol(p.token(1), manager(p.t, ""))
			return err
		}},
		"host name that writes to a terminal": {"bad_node_facts", func(p *plane) error {
			n := manager(p.t, "node1")
			f := n.facts()
			f.Hostname = "\x1b[2Jhost"
			_, err := p.Enrol(p.t.Context(), registry.EnrolParams{Secret: p.token(1), Facts: f, PublicKey: &n.key.PublicKey, EncryptionKey: make([]byte, 32)})
			return err
		}},
		"long version": {"bad_agent_version", func(p *plane) error {
			n := manager(p.t, "node1")
			_, err := p.Enrol(p.t.Context(), registry.EnrolParams{
				Secret: p.token(1), Facts: n.facts(), PublicKey: &n.key.PublicKey, EncryptionKey: make([]byte, 32), Version: strings.Repeat("1", 65),
			})
			return err
		}},
		"no encryption key": {"bad_encryption_key", func(p *plane) error {
			n := manager(p.t, "node1")
			_, err := p.Enrol(p.t.Context(), registry.EnrolParams{Secret: p.token(1), Facts: n.facts(), PublicKey: &n.key.PublicKey})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlane(t)
			before := len(agents(t, p))
			wantCode(t, tc.try(p), tc.code)
			for _, a := range agents(t, p)[before:] {
				if a.NodeID == "stranger" {
					t.Error("a refused node is an agent")
				}
			}
		})
	}
}

func agents(t *testing.T, p *plane) []registry.Agent {
	t.Helper()
	list, err := p.Agents(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestFailedEnrolmentUsesNothing(t *testing.T) {
	p := newPlane(t)
	secret := p.token(1)
	if _, err := p.enrol(secret, worker(t, "node1")); err == nil {
		t.Fatal("a worker took the last use")
	}
	if p.used() != 0 || len(agents(t, p)) != 0 {
		t.Errorf("used %d, agents %v", p.used(), agents(t, p))
	}
	p.mustEnrol(secret, manager(t, "node2")) // the manager can still enrol
}

func TestLaterNodesByTheManagersList(t *testing.T) {
	p := newPlane(t)
	secret, m1 := p.token(1), manager(t, "node1")
	first := p.mustEnrol(secret, m1)
	m2, w := manager(t, "node2"), worker(t, "node3")
	if changed, err := p.setNodes(first.ID, m1, m2, w); err != nil || len(changed) != 0 {
		t.Fatalf("changed %v, %v", changed, err)
	}
	p.time = p.time.Add(100 * 24 * time.Hour) // expiry bounds the first nodes only
	if e := p.mustEnrol(secret, w); e.ManagerConfirmed {
		t.Error("a worker is confirmed as a manager")
	}
	if e := p.mustEnrol(secret, m2); !e.ManagerConfirmed {
		t.Error("a manager that a manager names is not confirmed")
	}
	if p.used() != 1 {
		t.Errorf("the token was used %d times", p.used())
	}
	liar := w
	liar.role, liar.swarm = runnerv1.NodeRole_NODE_ROLE_MANAGER, "swarm1"
	if e := p.mustEnrol(secret, liar); e.ManagerConfirmed {
		t.Error("a node that the managers call a worker confirmed itself")
	}
}

func TestSecondManagerByTokenAloneIsNotConfirmed(t *testing.T) {
	p := newPlane(t)
	secret := p.token(2)
	m1, m2 := manager(t, "node1"), manager(t, "node2")
	first := p.mustEnrol(secret, m1)
	second := p.mustEnrol(secret, m2)
	if second.ManagerConfirmed {
		t.Fatal("the token confirms the first manager only")
	}
	if _, err := p.setNodes(second.ID, m1, m2); err == nil {
		t.Fatal("an unconfirmed manager told the nodes")
	} else {
		wantCode(t, err, "node_not_confirmed")
	}
	changed, err := p.setNodes(first.ID, m1, m2)
	if err != nil || len(changed) != 1 || changed[0].ID != second.ID || !changed[0].ManagerConfirmed {
		t.Errorf("changed %v, %v", changed, err)
	}
	if changed, err = p.setNodes(second.ID, m1, m2); err != nil || len(changed) != 0 {
		t.Errorf("the same list again: changed %v, %v", changed, err)
	}
}

func TestDemotion(t *testing.T) {
	p := newPlane(t)
	secret := p.token(3)
	m1, m2, m3 := manager(t, "node1"), manager(t, "node2"), manager(t, "node3")
	first, second, third := p.mustEnrol(secret, m1), p.mustEnrol(secret, m2), p.mustEnrol(secret, m3)
	if _, err := p.setNodes(first.ID, m1, m2, m3); err != nil {
		t.Fatal(err)
	}
	m2.role = runnerv1.NodeRole_NODE_ROLE_WORKER
	changed, err := p.setNodes(first.ID, m1, m2) // node3 left
	if err != nil || len(changed) != 2 {
		t.Fatalf("changed %v, %v", changed, err)
	}
	for _, id := range []string{second.ID, third.ID} {
		if a, err := p.Agent(t.Context(), id); err != nil || a.ManagerConfirmed {
			t.Errorf("agent %s of a demoted node: %+v, %v", id, a, err)
		}
		if _, err := p.setNodes(id, m1, m2, m3); err == nil {
			t.Errorf("agent %s told the nodes after its demotion", id)
		}
	}
	if _, err := p.setNodes(first.ID, m2); err == nil {
		t.Error("a list without its reporter was taken")
	} else {
		wantCode(t, err, "bad_node_list")
	}
}

func TestNodeListOfAnotherSwarm(t *testing.T) {
	p := newPlane(t)
	m := manager(t, "node1")
	e := p.mustEnrol(p.token(1), m)
	_, err := p.SetNodes(t.Context(), "shop", e.ID, &runnerv1.NodeList{SwarmClusterId: "swarm2", Nodes: []*runnerv1.SwarmNode{{NodeId: m.id, Role: m.role}}})
	wantCode(t, err, "swarm_mismatch")
	wantCode(t, p.Touch(t.Context(), e.ID, &runnerv1.NodeFacts{NodeId: m.id, SwarmClusterId: "swarm2"}, ""), "swarm_mismatch")
	wantCode(t, p.Touch(t.Context(), e.ID, &runnerv1.NodeFacts{NodeId: "node2", SwarmClusterId: "swarm1"}, ""), "node_mismatch")
}

func TestRekey(t *testing.T) {
	p := newPlane(t)
	secret, m := p.token(1), manager(t, "node1")
	first := p.mustEnrol(secret, m)
	p.certify("c1", first.ID, m.key)
	if _, err := p.setNodes(first.ID, m); err != nil {
		t.Fatal(err)
	}
	p.time = p.time.Add(100 * 24 * time.Hour)
	old := m.key
	m.key = newKey(t)
	again := p.mustEnrol(secret, m)
	if again.ID != first.ID || !again.Rekeyed || again.Repeated {
		t.Errorf("got %+v", again)
	}
	if !p.revoked("c1") {
		t.Error("the old key's certificate was not revoked")
	}
	p.certify("c2", first.ID, m.key)
	keys, err := p.PublicKeys(t.Context(), first.ID)
	if err != nil || len(keys) != 1 || !keys[0].Equal(&m.key.PublicKey) {
		t.Errorf("keys %v, %v", keys, err)
	}
	m.key = old // the old machine comes back while the new one is connected
	p.live[first.ID] = true
	_, err = p.enrol(secret, m)
	wantCode(t, err, "duplicate_live")
}

func TestRenewalWithNewKeyWhoseAnswerWasLost(t *testing.T) {
	p := newPlane(t)
	secret, m := p.token(1), manager(t, "node1")
	e := p.mustEnrol(secret, m)
	p.certify("c1", e.ID, m.key)
	p.certify("c2", e.ID, newKey(t))
	if again := p.mustEnrol(secret, m); !again.Repeated || again.ID != e.ID {
		t.Errorf("the key of a certificate that stands was not known: %+v", again)
	}
	if keys, err := p.PublicKeys(t.Context(), e.ID); err != nil || len(keys) != 2 {
		t.Errorf("keys %v, %v", keys, err)
	}
}

func TestRemove(t *testing.T) {
	p := newPlane(t)
	secret := p.token(3)
	m, w := manager(t, "node1"), worker(t, "node2")
	first, second := p.mustEnrol(secret, m), p.mustEnrol(secret, w)
	p.certify("c1", second.ID, w.key)
	for range 2 {
		if err := p.Remove(t.Context(), second.ID); err != nil {
			t.Fatal(err)
		}
	}
	if !p.revoked("c1") {
		t.Error("a removed agent's certificate was not revoked")
	}
	if list := agents(t, p); len(list) != 1 || list[0].ID != first.ID {
		t.Errorf("agents %v", list)
	}
	wantCode(t, p.Touch(t.Context(), second.ID, nil, ""), "agent_removed")
	err := p.RecordCertificate(t.Context(), registry.Certificate{Serial: "c2", AgentID: second.ID, PublicKey: &w.key.PublicKey})
	wantCode(t, err, "agent_removed")
	if keys, err := p.PublicKeys(t.Context(), second.ID); err != nil || len(keys) != 0 {
		t.Errorf("keys %v, %v", keys, err)
	}
	again := p.mustEnrol(secret, w)
	if again.ID != second.ID || again.Removed || again.Repeated {
		t.Errorf("got %+v", again)
	}
	if p.used() != 3 {
		t.Errorf("enrolling after a removal is a use: used %d", p.used())
	}
	wantCode(t, p.Remove(t.Context(), "a-unknown"), "no_such_agent")
}

func TestSwarmMadeAnewAfterAllAgentsWereRemoved(t *testing.T) {
	p := newPlane(t)
	secret, m := p.token(2), manager(t, "node1")
	e := p.mustEnrol(secret, m)
	if _, err := p.setNodes(e.ID, m, worker(t, "old")); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(t.Context(), e.ID); err != nil {
		t.Fatal(err)
	}
	fresh := manager(t, "node9")
	fresh.swarm = "swarm9"
	if e := p.mustEnrol(secret, fresh); !e.ManagerConfirmed {
		t.Errorf("got %+v", e)
	}
	_, err := p.enrol(secret, worker(t, "old"))
	wantCode(t, err, "token_used_up")
}

func TestTouchAndCertificateEnd(t *testing.T) {
	p := newPlane(t)
	m := manager(t, "node1")
	e := p.mustEnrol(p.token(1), m)
	p.certify("c1", e.ID, m.key)
	p.time = p.time.Add(time.Minute)
	f := m.facts()
	f.EngineVersion, f.MemoryBytes = "28.5.2", 1<<40
	if err := p.Touch(t.Context(), e.ID, f, "2.0.0"); err != nil {
		t.Fatal(err)
	}
	p.time = p.time.Add(time.Minute)
	if err := p.Touch(t.Context(), e.ID, nil, ""); err != nil {
		t.Fatal(err)
	}
	a, err := p.Agent(t.Context(), e.ID)
	if err != nil {
		t.Fatal(err)
	}
	if !a.LastSeen.Equal(p.time) || a.Version != "2.0.0" || a.Facts.GetEngineVersion() != "28.5.2" || a.Facts.GetMemoryBytes() != 1<<40 {
		t.Errorf("got %+v", a)
	}
	if want := p.time.Add(24*time.Hour - 2*time.Minute); !a.CertificateNotAfter.Equal(want) {
		t.Errorf("certificate ends %v, want %v", a.CertificateNotAfter, want)
	}
	if !p.revoked("never issued") {
		t.Error("a certificate that the plane does not know stands")
	}
}

func TestTouchWritesOnlyWhatIsNew(t *testing.T) {
	p := newPlane(t)
	m := manager(t, "node1")
	e := p.mustEnrol(p.token(1), m)
	changed := m.facts()
	changed.EngineVersion = "28.5.2"
	noted := p.time // by the enrolment
	for _, step := range []struct {
		name    string
		after   time.Duration
		facts   *runnerv1.NodeFacts
		version string
		note    bool
	}{
		{"soon, nothing new", 29 * time.Second, m.facts(), "1.2.3", false},
		{"soon, nothing told", 0, nil, "", false},
		{"later", time.Second, m.facts(), "1.2.3", true},
		{"soon, other facts", time.Second, changed, "1.2.3", true},
		{"soon, another version", time.Second, changed, "1.2.4", true},
		{"later, nothing told", 30 * time.Second, nil, "", true},
		{"the clock went back", -time.Hour, nil, "", true},
	} {
		p.time = p.time.Add(step.after)
		if err := p.Touch(t.Context(), e.ID, step.facts, step.version); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if step.note {
			noted = p.time
		}
		if a, err := p.Agent(t.Context(), e.ID); err != nil || !a.LastSeen.Equal(noted) {
			t.Errorf("%s: seen at %v, want %v; %v", step.name, a.LastSeen, noted, err)
		}
	}
	if a, _ := p.Agent(t.Context(), e.ID); a.Version != "1.2.4" || a.Facts.GetEngineVersion() != "28.5.2" {
		t.Errorf("got %+v", a)
	}
}

func TestTokens(t *testing.T) {
	p := newPlane(t)
	for name, tc := range map[string]struct {
		cluster string
		ttl     time.Duration
		uses    uint32
		code    string
	}{
		"no cluster":           {"", 0, 0, "bad_cluster_id"},
		"upper case":           {"Shop", 0, 0, "bad_cluster_id"},
		"like an agent":        {"a-shop", 0, 0, "bad_cluster_id"},
		"topic of the plane":   {"dlq", 0, 0, "bad_cluster_id"},
		"events":               {"events", 0, 0, "bad_cluster_id"},
		"too long":             {strings.Repeat("x", 41), 0, 0, "bad_cluster_id"},
		"too short a life":     {"shop", time.Second, 0, "bad_token_ttl"},
		"too long a life":      {"shop", 31 * 24 * time.Hour, 0, "bad_token_ttl"},
		"negative life":        {"shop", -time.Hour, 0, "bad_token_ttl"},
		"more uses than sense": {"shop", 0, 1001, "bad_token_uses"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := p.CreateToken(t.Context(), tc.cluster, tc.ttl, tc.uses)
			wantCode(t, err, tc.code)
		})
	}
	first, secret, err := p.CreateToken(t.Context(), "shop", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if first.Uses != 1 || first.ExpiresAt.Sub(first.CreatedAt) != registry.DefaultTokenTTL {
		t.Errorf("defaults: %+v", first)
	}
	p.time = p.time.Add(time.Second)
	second, _, err := p.CreateToken(t.Context(), "other", time.Hour, 5)
	if err != nil {
		t.Fatal(err)
	}
	all, err := p.ListTokens(t.Context(), "")
	if err != nil || len(all) != 2 || all[0] != second || all[1] != first {
		t.Errorf("got %+v, %v", all, err)
	}
	if one, err := p.ListTokens(t.Context(), "shop"); err != nil || len(one) != 1 || one[0].ID != first.ID {
		t.Errorf("got %+v, %v", one, err)
	}
	wantCode(t, p.RevokeToken(t.Context(), "t-none"), "no_such_token")
	var kept string
	if err := p.db.QueryRowContext(context.Background(), `SELECT secret_hash FROM join_tokens WHERE id = $1`, first.ID).Scan(&kept); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(kept, secret.Text()) || !secret.HasHash(kept) {
		t.Error("the database keeps something else than the secret's hash")
	}
}

func TestOldCertificatesAreForgotten(t *testing.T) {
	p := newPlane(t)
	m := manager(t, "node1")
	e := p.mustEnrol(p.token(1), m)
	old := newKey(t)
	p.certify("c1", e.ID, old)
	p.time = p.time.Add(80 * 24 * time.Hour)
	p.certify("c2", e.ID, m.key)
	if keys, err := p.PublicKeys(t.Context(), e.ID); err != nil || len(keys) != 2 {
		t.Errorf("after 80 days: %v, %v", keys, err)
	}
	p.time = p.time.Add(20 * 24 * time.Hour)
	p.certify("c3", e.ID, m.key)
	keys, err := p.PublicKeys(t.Context(), e.ID)
	if err != nil || len(keys) != 1 || !keys[0].Equal(&m.key.PublicKey) {
		t.Errorf("after 100 days: %v, %v", keys, err)
	}
	if !p.revoked("c1") || p.revoked("c2") || p.revoked("c3") {
		t.Error("the wrong certificates stand")
	}
}

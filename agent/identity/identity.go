// Package identity is who the agent is: its key, its certificate, and what the plane gave it to reach plane and Kafka. It makes the key, enrols with
// the join token, renews the certificate long before it ends, and keeps all of it on the node's state volume, so that a restart needs no network.
//
// It is patient: whatever goes wrong becomes a health warning that says what, and is tried again. It never drops a connection: those who connect ask
// for the TLS configuration, and new connections use the newest certificate.
package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/internal/backoff"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

const (
	// checkEvery bounds each wait, because a timer stands still while a machine sleeps and a certificate's life does not.
	checkEvery = time.Minute
	// nodeTimeout bounds the wait for the engine before an identity from the volume is used.
	nodeTimeout = 5 * time.Second
	// defaultHeartbeat is the interval if the plane gives none; min and max are the contract's bounds.
	defaultHeartbeat = 5 * time.Second
	minHeartbeat     = time.Second
	maxHeartbeat     = 5 * time.Minute
	// minRetry and maxRetry bound the wait after an attempt that failed.
	minRetry = 100 * time.Millisecond
	maxRetry = time.Minute
)

// Warner takes health warnings.
type Warner interface {
	Set(code string, severity runnerv1.HealthSeverity, title, text string)
	Clear(code string)
}

// Config configures an Identity.
type Config struct {
	// StateDir is the folder on the node's state volume; made with 0700 if it does not exist.
	StateDir string
	// PlaneAddress is the plane's, "host:port"; its certificate must be for that host.
	PlaneAddress string
	// AgentVersion is what the plane is told; at most 64 bytes.
	AgentVersion string
	// Token reads the join token. It is asked anew at each attempt: the operator may have replaced it.
	Token func(context.Context) (string, error)
}

// Deps are an Identity's parts from outside.
type Deps struct {
	// Node describes the node; a failure with the code not_in_swarm says that it belongs to no Swarm.
	Node func(context.Context) (*runnerv1.NodeFacts, error)
	Log  *slog.Logger
	Warn Warner
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Identity is the agent's identity. It is safe for concurrent use.
type Identity struct {
	cfg     Config
	deps    Deps
	host    string
	files   files
	ready   chan struct{}
	renewed chan struct{} // RenewNow's signal

	mu         sync.RWMutex
	key        *ecdsa.PrivateKey
	encryption *ecdh.PrivateKey
	current    *membership // nil until enrolled

	// What follows belongs to Run.
	problems  problems
	published *membership // what the rest of the agent was started with
	nodeMet   bool        // the engine confirmed that this is the node that enrolled
	refused   bool        // the plane does not accept the certificate any more
	renewSoon bool        // renew before it is due
	unsaved   bool        // current is not on the volume yet
	earliest  time.Time   // no new certificate before, whatever the clocks say
	earlySoon time.Time   // the same for one that RenewNow asks for
}

// New loads what the volume has, and makes the keys if there are none. It uses no network. Damaged files become a warning, and the agent enrols again;
// files that cannot be read or written are an error.
func New(cfg Config, deps Deps) (*Identity, error) {
	host, _, err := net.SplitHostPort(cfg.PlaneAddress)
	if err != nil || host == "" {
		return nil, badAddress(cfg.PlaneAddress)
	}
	if cfg.Token == nil || deps.Node == nil || deps.Log == nil || deps.Warn == nil {
		return nil, errors.New("identity: token, node, log and warn are required")
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	i := &Identity{
		cfg: cfg, deps: deps, host: host, files: files{dir: cfg.StateDir},
		ready: make(chan struct{}), renewed: make(chan struct{}, 1),
		problems: problems{warn: deps.Warn, log: deps.Log},
	}
	return i, i.load()
}

// load reads the volume.
func (i *Identity) load() error {
	if err := i.files.sweep(); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	var damage []error
	note := func(err error) error {
		if d := (*damagedError)(nil); errors.As(err, &d) {
			damage = append(damage, d)
			return nil
		}
		return err
	}
	key, keyErr := i.files.loadKey()
	if err := note(keyErr); err != nil {
		return err
	}
	encryption, encryptionErr := i.files.loadEncryptionKey()
	if err := note(encryptionErr); err != nil {
		return err
	}
	current, err := i.files.loadMembership(key)
	if err := note(err); err != nil {
		return err
	}
	i.key, i.encryption, i.current = key, encryption, current
	i.renewSoon = current != nil && !bytes.Equal(current.encryptionKey, encryption.PublicKey().Bytes()) // the plane must learn the new key
	if len(damage) > 0 {
		i.problems.damaged(errors.Join(damage...))
	}
	return nil
}

// Ready is closed as soon as there is an identity to work with: at once when the volume has one, else after enrolment.
func (i *Identity) Ready() <-chan struct{} { return i.ready }

// AgentID returns the agent's id; empty before the first enrolment.
func (i *Identity) AgentID() string { return i.member().agentID }

// ClusterID returns the id of the agent's cluster; empty before the first enrolment.
func (i *Identity) ClusterID() string { return i.member().clusterID }

// Kafka returns the way to Kafka, a copy; nil before the first enrolment.
func (i *Identity) Kafka() *runnerv1.KafkaAccess { return proto.CloneOf(i.member().kafka) }

// HeartbeatInterval returns what the plane asked for at enrolment, 1 s to 5 min.
func (i *Identity) HeartbeatInterval() time.Duration {
	if d := i.member().heartbeat; d != 0 {
		return d
	}
	return defaultHeartbeat
}

// NotAfter returns the end of the newest certificate's validity; zero before the first enrolment.
func (i *Identity) NotAfter() time.Time {
	if leaf := i.member().certificate.Leaf; leaf != nil {
		return leaf.NotAfter
	}
	return time.Time{}
}

// Signer returns the key of the certificate, with which the agent signs its events.
func (i *Identity) Signer() crypto.Signer {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.key
}

// EncryptionKey returns the X25519 key to which the plane may seal bundles.
func (i *Identity) EncryptionKey() *ecdh.PrivateKey {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.encryption
}

// RenewNow asks Run to renew the certificate without waiting until it is due: when the plane refuses a connection, the answer to that says whether the
// certificate was revoked, and then the agent enrols again. It does not block, and it may be called as often as that happens: at most one certificate a
// minute is asked for, and while attempts fail they keep their own pace.
func (i *Identity) RenewNow() {
	select {
	case i.renewed <- struct{}{}:
	default:
	}
}

// member returns the current membership, or an empty one.
func (i *Identity) member() *membership {
	i.mu.RLock()
	defer i.mu.RUnlock()
	if i.current == nil {
		return &membership{}
	}
	return i.current
}

// Run enrols if needed and then keeps the certificate fresh, until ctx ends; then it returns nil. It returns a failure with the code identity_changed
// when the agent must start again, because what the rest of it was started with (agent id, cluster, CA, Kafka access) is no more.
func (i *Identity) Run(ctx context.Context) error {
	if err := i.checkNode(ctx); err != nil {
		return err
	}
	if i.usable() {
		if err := i.publish(); err != nil {
			return err
		}
	}
	retry := backoff.Backoff{Floor: minRetry, First: 2 * minRetry, Max: maxRetry}
	for ctx.Err() == nil {
		if pause := i.untilDue(); pause > 0 {
			retry.Reset()
			i.untilAsked(ctx, min(pause, checkEvery))
			if err := i.checkNode(ctx); err != nil {
				return err
			}
			continue
		}
		err := i.act(ctx)
		if ctx.Err() != nil {
			break
		}
		if i.usable() {
			if err := i.publish(); err != nil {
				return err
			}
		}
		if err != nil {
			i.problems.report(err, i.usable(), i.lapsed())
			retry.Wait(ctx) // RenewNow does not cut it short: whoever calls it has the same trouble
			continue
		}
		i.problems.solved()
	}
	return nil
}

// untilAsked waits, or until RenewNow is called.
func (i *Identity) untilAsked(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-i.renewed:
		i.renewSoon = true
	}
}

// untilDue returns how long there is nothing to do.
func (i *Identity) untilDue() time.Duration {
	now := i.deps.Now()
	switch {
	case i.unsaved, i.refused:
		return 0
	case i.usable() && i.renewSoon:
		return i.earlySoon.Sub(now)
	case i.usable():
		return later(i.member().renewAt(), i.earliest).Sub(now)
	default:
		return i.earliest.Sub(now)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// act does what is due.
func (i *Identity) act(ctx context.Context) error {
	switch {
	case i.unsaved:
		return i.save()
	case i.usable():
		return i.renew(ctx)
	default:
		return i.enrol(ctx)
	}
}

// usable says whether there is a certificate that has not ended and that the plane accepts.
func (i *Identity) usable() bool {
	m := i.member()
	return m.certificate.Leaf != nil && !i.refused && !m.ended(i.deps.Now())
}

// lapsed says why a certificate that the agent has is of no use; empty if it is of use or if there is none.
func (i *Identity) lapsed() string {
	m := i.member()
	switch {
	case m.certificate.Leaf == nil:
		return ""
	case m.ended(i.deps.Now()):
		return fmt.Sprintf("the certificate of agent %s ended on %s", m.agentID, m.certificate.Leaf.NotAfter.Format(time.RFC3339))
	case i.refused:
		return fmt.Sprintf("the plane does not accept the certificate of agent %s any more", m.agentID)
	default:
		return ""
	}
}

// publish makes the identity available the first time, and later says whether it is still the same.
func (i *Identity) publish() error {
	m := i.member()
	if i.published == nil {
		i.published = m
		close(i.ready)
		return nil
	}
	if p := i.published; p.agentID != m.agentID || p.clusterID != m.clusterID || !bytes.Equal(p.caPEM, m.caPEM) || !proto.Equal(p.kafka, m.kafka) {
		return changed(m.agentID, "the plane gave agent %s of cluster %s another identity, CA or access to Kafka (agent %s of cluster %s): the agent must start again",
			p.agentID, p.clusterID, m.agentID, m.clusterID)
	}
	return nil
}

func changed(agentID, format string, args ...any) error {
	return failure.New(failure.Conflict, "identity_changed", agentID, format, args...)
}

// adopt takes on a new membership and writes it to the volume. A volume that is full or gone does not keep the agent from working with it.
func (i *Identity) adopt(m *membership) error {
	i.mu.Lock()
	i.current = m
	i.mu.Unlock()
	now := i.deps.Now()
	i.earliest = now.Add(min(checkEvery, m.life()/10))
	if i.renewSoon {
		i.earlySoon = i.earliest
	}
	i.refused, i.renewSoon = false, false
	select {
	case <-i.renewed: // was asked for because of the certificate before this one
	default:
	}
	i.problems.clock(m.certificate.Leaf, now)
	return i.save()
}

// save writes the current membership to the volume.
func (i *Identity) save() error {
	err := i.files.saveMembership(i.member())
	i.unsaved = err != nil
	if err != nil {
		return failure.New(failure.Unavailable, "state_not_written", i.cfg.StateDir, "the agent's state cannot be written: %w", err).
			WithHint("look at the space on the node's disk; until it is written, a restart makes the agent enrol again")
	}
	return nil
}

// checkNode finds out, once, whether this is the node that the identity on the volume was given to. If it is another (it left its Swarm and joined again,
// or the volume was copied), the identity is dropped and a new key made. It returns an error if the identity is in use already.
func (i *Identity) checkNode(ctx context.Context) error {
	m := i.member()
	if i.nodeMet || m.agentID == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	facts, err := i.deps.Node(ctx)
	if err != nil || facts.GetNodeId() == "" {
		return nil // the engine is away: the plane would notice a mix-up, and the engine will be asked again
	}
	i.nodeMet = true
	if facts.GetNodeId() == m.nodeID {
		return nil
	}
	i.deps.Log.Warn("the state on this volume belongs to another swarm node; a new identity is made",
		"agent_id", m.agentID, "enrolled_node_id", m.nodeID, "node_id", facts.GetNodeId())
	if i.published != nil {
		i.nodeMet = false
		return changed(m.agentID, "agent %s enrolled for node %s, and this is node %s: the agent must start again", m.agentID, m.nodeID, facts.GetNodeId())
	}
	key, err := i.files.newKey()
	if err != nil {
		i.deps.Log.Error("no new key can be made", "error", err)
		return nil
	}
	i.mu.Lock()
	i.key, i.current = key, nil
	i.mu.Unlock()
	return nil
}

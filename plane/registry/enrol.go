package registry

import (
	"context"
	"crypto/ecdsa"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/jointoken"
)

// EnrolParams is what an agent shows to be let in.
type EnrolParams struct {
	// Secret is the join token's.
	Secret jointoken.Secret
	// Facts describe its node; required.
	Facts *runnerv1.NodeFacts
	// PublicKey is its key; the caller has checked that the agent has the private part.
	PublicKey *ecdsa.PublicKey
	// EncryptionKey is its X25519 public key, 32 bytes.
	EncryptionKey []byte
	// Version is the agent's, at most 64 bytes.
	Version string
	// Live says whether an agent has a session now; nil means that none has.
	Live func(agentID string) bool
}

// Enrolment is an agent that was let in, and how.
type Enrolment struct {
	Agent
	// Repeated says that it was enrolled already, with this key.
	Repeated bool
	// Rekeyed says that it took over from an agent of the same node with another key, whose certificates are revoked now.
	Rekeyed bool
}

// Enrol lets an agent in, or says why not. Failures:
//   - denied token_unknown, token_revoked: the token; token_expired, token_used_up: it lets in no more first nodes; node_not_confirmed: nobody vouches for
//     the node
//   - conflict duplicate_live: the node's agent is connected with another key, or the key's agent is; key_in_use; swarm_mismatch
//   - invalid bad_node_facts, bad_agent_version, bad_encryption_key
func (r *Registry) Enrol(ctx context.Context, p EnrolParams) (Enrolment, error) {
	if err := errors.Join(checkFacts(p.Facts), checkVersion(p.Version), checkEncryptionKey(p.EncryptionKey, false)); err != nil {
		return Enrolment{}, err
	}
	_, hash, err := encodeKey(p.PublicKey)
	if err != nil {
		return Enrolment{}, err
	}
	if p.Live == nil {
		p.Live = func(string) bool { return false }
	}
	var enrolment Enrolment
	err = r.db.Tx(ctx, func(tx *sql.Tx) error {
		e := &entry{r: r, ctx: ctx, tx: tx, p: p, keyHash: hash}
		if err := e.admit(); err != nil {
			return err
		}
		enrolment, err = e.write()
		return err
	})
	return enrolment, err
}

// entry is one attempt to enrol, in one transaction.
type entry struct {
	r       *Registry
	ctx     context.Context
	tx      *sql.Tx
	p       EnrolParams
	keyHash string

	token   Token
	cluster Cluster
	// agent is what is known of the node's agent; its ID is empty if nothing is.
	agent Agent
	// node is how a confirmed manager's list names the node.
	node listed
	// hasManager says whether the cluster has a confirmed manager.
	hasManager bool

	repeated, rekeyed, usesToken bool
}

// listed is a node's place in the node list of its cluster.
type listed struct{ member, manager bool }

// admit decides; it writes nothing but what it revokes.
func (e *entry) admit() error {
	if err := e.read(); err != nil {
		return err
	}
	if err := checkSwarm(e.cluster, e.p.Facts.GetSwarmClusterId()); err != nil {
		return err
	}
	if err := keyIsFree(e.ctx, e.tx, e.keyHash, e.agent.ID, e.p.Live); err != nil {
		return err
	}
	if e.agent.ID == "" || e.agent.Removed {
		return e.admitNew()
	}
	own, err := ownsKey(e.ctx, e.tx, e.agent, e.keyHash)
	if err != nil {
		return fmt.Errorf("look for the key of agent %s: %w", e.agent.ID, err)
	}
	if own {
		e.repeated = true
		return nil
	}
	return e.admitRekeyed()
}

// read fetches all that the decision rests on.
func (e *entry) read() (err error) {
	if e.token, err = tokenBySecret(e.ctx, e.tx, e.p.Secret); err != nil {
		return err
	}
	if e.cluster, err = clusterByID(e.ctx, e.tx, e.token.ClusterID); err != nil {
		return fmt.Errorf("read cluster %s: %w", e.token.ClusterID, err)
	}
	nodeID := e.p.Facts.GetNodeId()
	e.agent, err = scanAgent(e.tx.QueryRowContext(e.ctx, `SELECT `+agentColumns+` FROM agents a WHERE a.cluster_id = $1 AND a.node_id = $2`, e.cluster.ID, nodeID))
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("read the agent of node %s: %w", nodeID, err)
	}
	if e.node, err = nodeInList(e.ctx, e.tx, e.cluster.ID, nodeID); err != nil {
		return err
	}
	e.hasManager, err = hasConfirmedManager(e.ctx, e.tx, e.cluster.ID)
	return err
}

// admitNew lets in a node that has no agent: one that a confirmed manager names, or a first node, at the token's cost.
func (e *entry) admitNew() error {
	if e.node.member {
		return nil
	}
	if lack := e.tokenLacks(); lack != "" {
		return e.refuse(lack)
	}
	if e.token.Uses-e.token.Used == 1 && !e.hasManager && !e.saysManager() {
		// A worker can vouch for nobody: did it take the last use, the Swarm's managers could never enrol.
		return failure.New(failure.Denied, "node_not_confirmed", e.p.Facts.GetNodeId(),
			"node %s is a worker, and cluster %s has no manager yet that could vouch for it", e.p.Facts.GetNodeId(), e.cluster.ID).
			WithHint("it is let in by itself once the agent of a manager node has enrolled")
	}
	e.usesToken = true
	return nil
}

// admitRekeyed lets a new key take over a node whose old key is lost.
func (e *entry) admitRekeyed() error {
	if e.p.Live(e.agent.ID) {
		return failure.New(failure.Conflict, "duplicate_live", e.agent.ID,
			"agent %s of node %s is connected with another key", e.agent.ID, e.agent.NodeID).
			WithHint("two agents run for the same swarm node: look for a second task on it, or for a copy of the machine")
	}
	if lack := e.tokenLacks(); lack == codeExpired && !e.node.member { // that its uses are over does not matter: the node has had its own
		return e.refuse(lack)
	}
	e.rekeyed = true
	return e.r.revokeAll(e.ctx, e.tx, e.agent.ID)
}

const (
	codeExpired = "token_expired"
	codeUsedUp  = "token_used_up"
)

// tokenLacks says why the token lets in no node that nobody vouches for; empty means that it does.
func (e *entry) tokenLacks() string {
	switch {
	case !e.r.now().Before(e.token.ExpiresAt):
		return codeExpired
	case e.token.Used >= e.token.Uses:
		return codeUsedUp
	default:
		return ""
	}
}

// refuse says what would help: where managers have told their nodes, the node is the one that is wrong, else the token.
func (e *entry) refuse(lack string) error {
	why := fmt.Sprintf("join token %s of cluster %s has let in its %d first nodes", e.token.ID, e.cluster.ID, e.token.Uses)
	if lack == codeExpired {
		why = fmt.Sprintf("join token %s of cluster %s expired on %s", e.token.ID, e.cluster.ID, e.token.ExpiresAt.Format("2006-01-02 15:04:05 MST"))
	}
	if e.hasManager && !e.cluster.NodesAt.IsZero() {
		node := e.p.Facts.GetNodeId()
		return failure.New(failure.Denied, "node_not_confirmed", node, "%s, and the cluster's managers do not name node %s", why, node).
			WithHint("join the node to the cluster's swarm, or make a new token with `axionctl token create`")
	}
	return failure.New(failure.Denied, lack, e.token.ID, "%s", why).
		WithHint("make a new token with `axionctl token create`; a node that an enrolled manager names needs none")
}

func (e *entry) saysManager() bool {
	return e.p.Facts.GetRole() == runnerv1.NodeRole_NODE_ROLE_MANAGER
}

// confirmed says whether the agent is a confirmed manager from now on.
func (e *entry) confirmed() bool {
	switch {
	case e.agent.ManagerConfirmed && !e.agent.Removed:
		return true // only a node list takes it away: a manager that starts may call itself a worker for a moment
	case !e.saysManager():
		return false
	case e.node.manager && e.hasManager:
		return true
	default:
		return !e.hasManager && e.tokenLacks() != codeExpired // the cluster's first manager: the operator's own act
	}
}

// write stores what was decided.
func (e *entry) write() (Enrolment, error) {
	now := e.r.now()
	facts, err := protojson.Marshal(e.p.Facts)
	if err != nil {
		return Enrolment{}, fmt.Errorf("encode node facts: %w", err)
	}
	id := e.agent.ID
	if id == "" {
		id = randomID(agentPrefix, 16)
	}
	_, err = e.tx.ExecContext(e.ctx, `INSERT INTO agents (id, cluster_id, node_id, key_hash, encryption_key, version, facts, enrolled_at, last_seen, manager_confirmed)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, $9)
		ON CONFLICT (id) DO UPDATE SET key_hash = excluded.key_hash, encryption_key = excluded.encryption_key, version = excluded.version,
			facts = excluded.facts, last_seen = excluded.last_seen, manager_confirmed = excluded.manager_confirmed, removed_at = 0`,
		id, e.cluster.ID, e.p.Facts.GetNodeId(), e.keyHash, base64.StdEncoding.EncodeToString(e.p.EncryptionKey), e.p.Version, string(facts), now.UnixNano(), toInt(e.confirmed()))
	if err != nil {
		return Enrolment{}, fmt.Errorf("write agent %s: %w", id, err)
	}
	if e.usesToken {
		if _, err := e.tx.ExecContext(e.ctx, `UPDATE join_tokens SET used = used + 1 WHERE id = $1`, e.token.ID); err != nil {
			return Enrolment{}, fmt.Errorf("count a use of join token %s: %w", e.token.ID, err)
		}
	}
	if err := learnSwarm(e.ctx, e.tx, e.cluster, e.p.Facts.GetSwarmClusterId()); err != nil {
		return Enrolment{}, err
	}
	agent, err := agentByID(e.ctx, e.tx, id)
	return Enrolment{Agent: agent, Repeated: e.repeated, Rekeyed: e.rekeyed}, err
}

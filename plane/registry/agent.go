package registry

import (
	"context"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"time"
	"unicode"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// maxAgentsListed bounds what Agents returns.
const maxAgentsListed = 10_000

// Agent is an enrolled agent.
type Agent struct {
	// ID is "a-" and 16 characters of [a-z0-9]; it stays the same as long as the plane knows the node.
	ID string
	// ClusterID and NodeID, the Swarm node id, are what it is bound to.
	ClusterID, NodeID string
	// Version is the agent's, as it last told it.
	Version string
	// Facts is the node as the agent last described it.
	Facts *runnerv1.NodeFacts
	// EnrolledAt is when it first enrolled, LastSeen when the plane last heard of it.
	EnrolledAt, LastSeen time.Time
	// CertificateNotAfter is the end of the newest certificate that is not revoked; zero if there is none.
	CertificateNotAfter time.Time
	// ManagerConfirmed says that it may read its cluster's topic.
	ManagerConfirmed bool
	// Removed says that an operator removed it; its certificates are revoked.
	Removed bool
	// EncryptionKey is its X25519 public key, 32 bytes.
	EncryptionKey []byte

	keyHash string
}

const agentColumns = `a.id, a.cluster_id, a.node_id, a.key_hash, a.encryption_key, a.version, a.facts, a.enrolled_at, a.last_seen, a.manager_confirmed, a.removed_at,
	COALESCE((SELECT MAX(c.not_after) FROM certificates c WHERE c.agent_id = a.id AND c.revoked_at = 0), 0)`

func scanAgent(row scanner) (Agent, error) {
	a := Agent{Facts: &runnerv1.NodeFacts{}}
	var facts, encryptionKey string
	var enrolled, seen, confirmed, removed, notAfter int64
	err := row.Scan(&a.ID, &a.ClusterID, &a.NodeID, &a.keyHash, &encryptionKey, &a.Version, &facts, &enrolled, &seen, &confirmed, &removed, &notAfter)
	if err != nil {
		return Agent{}, err
	}
	if a.EncryptionKey, err = base64.StdEncoding.DecodeString(encryptionKey); err != nil {
		return Agent{}, fmt.Errorf("agent %s: encryption key: %w", a.ID, err)
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(facts), a.Facts); err != nil {
		return Agent{}, fmt.Errorf("agent %s: node facts: %w", a.ID, err)
	}
	a.EnrolledAt, a.LastSeen, a.CertificateNotAfter = fromNanos(enrolled), fromNanos(seen), fromNanos(notAfter)
	a.ManagerConfirmed, a.Removed = confirmed != 0, removed != 0
	return a, nil
}

// Agent returns an agent, a removed one too. Failures: invalid no_such_agent.
func (r *Registry) Agent(ctx context.Context, id string) (Agent, error) {
	return agentByID(ctx, r.db, id)
}

func agentByID(ctx context.Context, q querier, id string) (Agent, error) {
	a, err := scanAgent(q.QueryRowContext(ctx, `SELECT `+agentColumns+` FROM agents a WHERE a.id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return Agent{}, failure.New(failure.Invalid, "no_such_agent", cut(id), "there is no agent %s", cut(id))
	}
	if err != nil {
		return Agent{}, fmt.Errorf("read agent %s: %w", cut(id), err)
	}
	return a, nil
}

// Agents returns the agents of a cluster, or of all if clusterID is empty, without the removed ones, by cluster and id, at most 10,000.
func (r *Registry) Agents(ctx context.Context, clusterID string) ([]Agent, error) {
	rows, err := r.db.QueryContext(ctx,
		`SELECT `+agentColumns+` FROM agents a WHERE a.removed_at = 0 AND ($1 = '' OR a.cluster_id = $1) ORDER BY a.cluster_id, a.id LIMIT $2`, clusterID, maxAgentsListed)
	if err != nil {
		return nil, fmt.Errorf("read agents: %w", err)
	}
	return collect(rows, scanAgent)
}

// touchEvery is how old the note of when an agent was heard may get before it is written anew: each write waits for the disk, and a fleet that comes back all
// at once must not wait for a thousand of them.
const touchEvery = 30 * time.Second

// Touch notes that the agent was heard of now, to within 30 s. facts and version, if given, replace what is known. Failures: invalid no_such_agent, bad_node_facts;
// denied agent_removed; conflict node_mismatch and swarm_mismatch, if the agent speaks for another node or Swarm than the one that it enrolled for.
func (r *Registry) Touch(ctx context.Context, id string, facts *runnerv1.NodeFacts, version string) error {
	if facts != nil {
		if err := checkFacts(facts); err != nil {
			return err
		}
	}
	if err := checkVersion(version); err != nil {
		return err
	}
	// Without a transaction first: one waits for all others.
	if agent, err := r.Agent(ctx, id); err == nil && !agent.Removed && r.noted(agent, facts, version) {
		return nil
	}
	return r.db.Tx(ctx, func(tx *sql.Tx) error {
		agent, err := agentByID(ctx, tx, id)
		if err != nil {
			return err
		}
		if agent.Removed {
			return failure.New(failure.Denied, "agent_removed", id, "agent %s was removed", id)
		}
		if facts == nil {
			facts = agent.Facts
		} else if err := checkSameNode(ctx, tx, agent, facts); err != nil {
			return err
		}
		if version == "" {
			version = agent.Version
		}
		now := r.now()
		text, err := protojson.Marshal(facts)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE agents SET last_seen = $1, facts = $2, version = $3 WHERE id = $4`, now.UnixNano(), string(text), version, id)
		return err
	})
}

// noted says whether there is nothing new to note of an agent. Facts that are noted have been checked.
func (r *Registry) noted(agent Agent, facts *runnerv1.NodeFacts, version string) bool {
	age := r.now().Sub(agent.LastSeen)
	return age >= 0 && age < touchEvery && (version == "" || version == agent.Version) && (facts == nil || proto.Equal(facts, agent.Facts))
}

func checkSameNode(ctx context.Context, q querier, agent Agent, facts *runnerv1.NodeFacts) error {
	if facts.GetNodeId() != agent.NodeID {
		return failure.New(failure.Conflict, "node_mismatch", agent.ID, "agent %s enrolled for node %s and now speaks for node %s", agent.ID, agent.NodeID, facts.GetNodeId()).
			WithHint("the node left its swarm and joined again, or its state volume was copied: restart the agent, it enrols as a new one")
	}
	cluster, err := clusterByID(ctx, q, agent.ClusterID)
	if err != nil {
		return fmt.Errorf("read cluster %s: %w", agent.ClusterID, err)
	}
	return checkSwarm(cluster, facts.GetSwarmClusterId())
}

// Remove takes an agent out: its certificates are revoked and it is no manager any more. The node may enrol again with a valid token. When a cluster's
// last agent goes, the cluster forgets its Swarm, so that another one may take its place. Removing it again changes nothing. Failures: invalid no_such_agent.
func (r *Registry) Remove(ctx context.Context, id string) error {
	return r.db.Tx(ctx, func(tx *sql.Tx) error {
		agent, err := agentByID(ctx, tx, id)
		if err != nil || agent.Removed {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE agents SET removed_at = $1, manager_confirmed = 0 WHERE id = $2`, r.now().UnixNano(), id); err != nil {
			return fmt.Errorf("remove agent %s: %w", id, err)
		}
		if err := r.revokeAll(ctx, tx, id); err != nil {
			return err
		}
		return forgetEmptySwarm(ctx, tx, agent.ClusterID)
	})
}

func forgetEmptySwarm(ctx context.Context, tx *sql.Tx, clusterID string) error {
	var left int
	if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM agents WHERE cluster_id = $1 AND removed_at = 0`, clusterID).Scan(&left); err != nil || left > 0 {
		return err
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM swarm_nodes WHERE cluster_id = $1`, clusterID); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `UPDATE clusters SET swarm_id = '', nodes_at = 0 WHERE id = $1`, clusterID)
	return err
}

// Bounds of the contract's NodeFacts, in bytes.
const (
	maxHostname     = 253
	maxAddress      = 64
	maxVersion      = 64
	maxPlatform     = 32
	maxKernel       = 128
	encryptionBytes = 32
)

// nodePattern is wider than the ids that Swarm makes (25 characters of [a-z0-9]).
var nodePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// checkFacts bounds what an agent says of its node: it is stored, printed and compared.
func checkFacts(f *runnerv1.NodeFacts) error {
	if !nodePattern.MatchString(f.GetNodeId()) {
		return badFacts("the node id %q is not one of a swarm", cut(f.GetNodeId()))
	}
	if id := f.GetSwarmClusterId(); id != "" && !nodePattern.MatchString(id) {
		return badFacts("the swarm cluster id %q is not one of a swarm", cut(id))
	}
	for _, text := range []struct {
		name, value string
		most        int
	}{
		{"hostname", f.GetHostname(), maxHostname},
		{"address", f.GetAddress(), maxAddress},
		{"engine_version", f.GetEngineVersion(), maxVersion},
		{"os", f.GetOs(), maxPlatform},
		{"architecture", f.GetArchitecture(), maxPlatform},
		{"kernel", f.GetKernel(), maxKernel},
	} {
		if len(text.value) > text.most || !printable(text.value) {
			return badFacts("%s has more than %d bytes or characters that cannot be printed", text.name, text.most)
		}
	}
	return nil
}

func badFacts(format string, args ...any) error {
	return failure.New(failure.Invalid, "bad_node_facts", "node", "node facts: "+format, args...)
}

func checkVersion(version string) error {
	if len(version) > maxVersion || !printable(version) {
		return failure.New(failure.Invalid, "bad_agent_version", "agent", "the agent's version has more than %d bytes or characters that cannot be printed", maxVersion)
	}
	return nil
}

func printable(s string) bool {
	for _, c := range s {
		if !unicode.IsPrint(c) {
			return false
		}
	}
	return true
}

// Package registry is the plane's memory of who belongs to it: clusters, join tokens, agents, and the certificates issued to them. It decides who may
// enrol and which agent is a manager; it issues nothing itself (package ca does) and speaks to nobody (package enroll does).
//
// The rules:
//   - A join token belongs to one cluster. Its expiry and number of uses bound the first nodes only, those that nobody vouches for. A node that a
//     confirmed manager names as a member of its Swarm enrols with the same token at any time, until the token is revoked.
//   - An agent is bound to (cluster, Swarm node id), and so is its id. The same key gets the same id again; another key for a known node takes it over,
//     revoking all that the old key had, unless the old agent is connected.
//   - Only confirmed managers may read their cluster's topic. The first is confirmed by the token that the operator made, all others by the node list
//     of a confirmed manager, and that list takes the confirmation away again.
package registry

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/axion/runner-agent/plane/store"
	"github.com/axion/runner-agent/proto/failure"
)

// Registry is safe for concurrent use.
type Registry struct {
	db  *store.DB
	now func() time.Time
}

// New returns the registry kept in that database.
func New(db *store.DB, now func() time.Time) *Registry { return &Registry{db: db, now: now} }

// Cluster is a Swarm that the plane knows.
type Cluster struct {
	// ID is the cluster's id, as the operator chose it.
	ID string
	// SwarmID is the Swarm's own id; empty until a manager has enrolled.
	SwarmID string
	// CreatedAt is when its first token was made.
	CreatedAt time.Time
	// NodesAt is when a confirmed manager last told the Swarm's nodes; zero means never.
	NodesAt time.Time
}

// maxClusters bounds what Clusters returns.
const maxClusters = 10_000

// Clusters returns all clusters by id.
func (r *Registry) Clusters(ctx context.Context) ([]Cluster, error) {
	rows, err := r.db.QueryContext(ctx, `SELECT id, swarm_id, created_at, nodes_at FROM clusters ORDER BY id LIMIT $1`, maxClusters)
	if err != nil {
		return nil, fmt.Errorf("read clusters: %w", err)
	}
	return collect(rows, scanCluster)
}

func scanCluster(row scanner) (Cluster, error) {
	var c Cluster
	var created, nodes int64
	err := row.Scan(&c.ID, &c.SwarmID, &created, &nodes)
	c.CreatedAt, c.NodesAt = fromNanos(created), fromNanos(nodes)
	return c, err
}

func clusterByID(ctx context.Context, q querier, id string) (Cluster, error) {
	return scanCluster(q.QueryRowContext(ctx, `SELECT id, swarm_id, created_at, nodes_at FROM clusters WHERE id = $1`, id))
}

var idPattern = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)

// agentPrefix begins each agent's id and no cluster's, so that the topics of agents and clusters cannot meet.
const agentPrefix = "a-"

// reservedIDs are the last parts of the names of topics that are nobody's own (runner.events, runner.commands.dlq).
var reservedIDs = []string{"dlq", "events"}

func checkClusterID(id string) error {
	if slices.Contains(reservedIDs, id) {
		return failure.New(failure.Invalid, "bad_cluster_id", id, "cluster id %q is the name of a topic of the plane's own", id).
			WithHint("choose another id for the cluster")
	}
	if !idPattern.MatchString(id) || strings.HasPrefix(id, agentPrefix) {
		return failure.New(failure.Invalid, "bad_cluster_id", id, "cluster id %q is not [a-z0-9-]{1,40}, or it begins with %q", cut(id), agentPrefix)
	}
	return nil
}

// randomID returns prefix and n characters of [a-z0-9].
func randomID(prefix string, n int) string {
	const alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
	id := []byte(prefix)
	var b [1]byte
	for len(id) < len(prefix)+n {
		_, _ = rand.Read(b[:])                 // never fails
		if int(b[0]) < 256-256%len(alphabet) { // so that each character is as likely as any other
			id = append(id, alphabet[int(b[0])%len(alphabet)])
		}
	}
	return string(id)
}

// querier is what the database and a transaction have in common.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// scanner is what a row and rows have in common.
type scanner interface{ Scan(dest ...any) error }

// collect reads all rows and closes them.
func collect[T any](rows *sql.Rows, scan func(scanner) (T, error)) (list []T, err error) {
	defer func() {
		if closeErr := rows.Close(); err == nil {
			err = closeErr
		}
	}()
	for rows.Next() {
		item, err := scan(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, item)
	}
	return list, rows.Err()
}

// fromNanos returns the zero time for 0.
func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// cut keeps a foreign text short where it is quoted.
func cut(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}

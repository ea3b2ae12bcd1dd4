package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/jointoken"
)

// Bounds and defaults of a join token.
const (
	// DefaultTokenTTL is how long the first nodes may use a token.
	DefaultTokenTTL = 24 * time.Hour
	// MinTokenTTL and MaxTokenTTL bound it.
	MinTokenTTL = time.Minute
	MaxTokenTTL = 30 * 24 * time.Hour
	// MaxTokenUses bounds how many first nodes a token lets in.
	MaxTokenUses = 1000

	maxTokensListed = 1000
)

// Token is what the plane knows of a join token. It does not know the secret.
type Token struct {
	// ID names it for revocation; public.
	ID string
	// ClusterID is the cluster that it belongs to.
	ClusterID string
	// CreatedAt is when it was made, ExpiresAt until when first nodes may use it.
	CreatedAt, ExpiresAt time.Time
	// Uses is how many first nodes it lets in, Used how many it has let in.
	Uses, Used uint32
	// Revoked says that it lets nobody in any more.
	Revoked bool
}

// CreateToken makes a join token and, if it does not exist, its cluster. A ttl of 0 means DefaultTokenTTL, no uses mean one. The secret is returned
// once and not kept. Failures: invalid bad_cluster_id, bad_token_ttl, bad_token_uses.
func (r *Registry) CreateToken(ctx context.Context, clusterID string, ttl time.Duration, uses uint32) (Token, jointoken.Secret, error) {
	if ttl == 0 {
		ttl = DefaultTokenTTL
	}
	uses = max(uses, 1)
	if err := checkClusterID(clusterID); err != nil {
		return Token{}, jointoken.Secret{}, err
	}
	if ttl < MinTokenTTL || ttl > MaxTokenTTL {
		return Token{}, jointoken.Secret{}, failure.New(failure.Invalid, "bad_token_ttl", clusterID,
			"join token for cluster %s: its life is %v, it must be from %v to %v", clusterID, ttl, MinTokenTTL, MaxTokenTTL)
	}
	if uses > MaxTokenUses {
		return Token{}, jointoken.Secret{}, failure.New(failure.Invalid, "bad_token_uses", clusterID,
			"join token for cluster %s: it has %d uses, at most %d are allowed", clusterID, uses, MaxTokenUses)
	}
	secret, now := jointoken.NewSecret(), r.now()
	token := Token{
		ID: randomID("t-", 10), ClusterID: clusterID, Uses: uses,
		CreatedAt: fromNanos(now.UnixNano()), ExpiresAt: fromNanos(now.Add(ttl).UnixNano()),
	}
	err := r.db.Tx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO clusters (id, created_at) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING`, clusterID, now.UnixNano()); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO join_tokens (id, cluster_id, secret_hash, created_at, expires_at, uses) VALUES ($1, $2, $3, $4, $5, $6)`,
			token.ID, clusterID, secret.Hash(), token.CreatedAt.UnixNano(), token.ExpiresAt.UnixNano(), uses)
		return err
	})
	if err != nil {
		return Token{}, jointoken.Secret{}, fmt.Errorf("create join token for cluster %s: %w", clusterID, err)
	}
	return token, secret, nil
}

const tokenColumns = `id, cluster_id, created_at, expires_at, uses, used, revoked_at`

func scanToken(row scanner) (Token, error) {
	var t Token
	var created, expires, revoked int64
	err := row.Scan(&t.ID, &t.ClusterID, &created, &expires, &t.Uses, &t.Used, &revoked)
	t.CreatedAt, t.ExpiresAt, t.Revoked = fromNanos(created), fromNanos(expires), revoked != 0
	return t, err
}

// ListTokens returns the join tokens of a cluster, or of all if clusterID is empty, newest first and at most 1,000.
func (r *Registry) ListTokens(ctx context.Context, clusterID string) ([]Token, error) {
	rows, err := r.db.QueryContext(ctx, `SELECT `+tokenColumns+` FROM join_tokens WHERE $1 = '' OR cluster_id = $1 ORDER BY created_at DESC, id LIMIT $2`,
		clusterID, maxTokensListed)
	if err != nil {
		return nil, fmt.Errorf("read join tokens: %w", err)
	}
	return collect(rows, scanToken)
}

// RevokeToken makes a join token useless; revoking it again changes nothing. Failures: invalid no_such_token.
func (r *Registry) RevokeToken(ctx context.Context, id string) error {
	result, err := r.db.ExecContext(ctx, `UPDATE join_tokens SET revoked_at = CASE WHEN revoked_at = 0 THEN $1 ELSE revoked_at END WHERE id = $2`,
		r.now().UnixNano(), id)
	if err != nil {
		return fmt.Errorf("revoke join token %s: %w", cut(id), err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, failure.New(failure.Invalid, "no_such_token", cut(id), "there is no join token %s", cut(id)))
	}
	return nil
}

// tokenBySecret finds the token that this secret belongs to. Failures: denied token_unknown, token_revoked.
func tokenBySecret(ctx context.Context, q querier, secret jointoken.Secret) (Token, error) {
	token, err := scanToken(q.QueryRowContext(ctx, `SELECT `+tokenColumns+` FROM join_tokens WHERE secret_hash = $1`, secret.Hash()))
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return Token{}, failure.New(failure.Denied, "token_unknown", "join token", "the plane knows no such join token").
			WithHint("make a new token with `axionctl token create` and give it to the agents")
	case err != nil:
		return Token{}, fmt.Errorf("read join token: %w", err)
	case token.Revoked:
		return Token{}, failure.New(failure.Denied, "token_revoked", token.ID, "join token %s of cluster %s was revoked", token.ID, token.ClusterID).
			WithHint("make a new token with `axionctl token create` and give it to the agents")
	}
	return token, nil
}

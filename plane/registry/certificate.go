package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/axion/runner-agent/proto/failure"
)

// remembered is how long a certificate is remembered after its end: events that were signed with its key may wait that long.
const remembered = 90 * 24 * time.Hour

// Certificate is what the plane remembers of a certificate that it issued.
type Certificate struct {
	// Serial in hexadecimal, as ca.AgentFromTLS returns it.
	Serial string
	// AgentID is whose it is.
	AgentID string
	// PublicKey is the key that it certifies.
	PublicKey *ecdsa.PublicKey
	// NotBefore and NotAfter bound its validity.
	NotBefore, NotAfter time.Time
	// EncryptionKey, if given, replaces the agent's X25519 key.
	EncryptionKey []byte
}

// RecordCertificate remembers a certificate before it is handed out; its key is the agent's newest from then on. A certificate that is not recorded
// counts as revoked. Failures: invalid no_such_agent, bad_encryption_key; denied agent_removed; conflict duplicate_live and key_in_use.
func (r *Registry) RecordCertificate(ctx context.Context, c Certificate) error {
	spki, hash, err := encodeKey(c.PublicKey)
	if err != nil {
		return err
	}
	if err := checkEncryptionKey(c.EncryptionKey, true); err != nil {
		return err
	}
	return r.db.Tx(ctx, func(tx *sql.Tx) error {
		agent, err := agentByID(ctx, tx, c.AgentID)
		if err != nil {
			return err
		}
		if agent.Removed {
			return failure.New(failure.Denied, "agent_removed", agent.ID, "agent %s was removed", agent.ID)
		}
		if err := keyIsFree(ctx, tx, hash, agent.ID, nil); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO certificates (serial, agent_id, spki, key_hash, not_before, not_after) VALUES ($1, $2, $3, $4, $5, $6)`,
			c.Serial, agent.ID, spki, hash, c.NotBefore.UnixNano(), c.NotAfter.UnixNano())
		if err != nil {
			return fmt.Errorf("record certificate %s of agent %s: %w", c.Serial, agent.ID, err)
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM certificates WHERE agent_id = $1 AND not_after < $2`, agent.ID, r.now().Add(-remembered).UnixNano()); err != nil {
			return fmt.Errorf("forget old certificates of agent %s: %w", agent.ID, err)
		}
		encryptionKey := agent.EncryptionKey
		if len(c.EncryptionKey) > 0 {
			encryptionKey = c.EncryptionKey
		}
		_, err = tx.ExecContext(ctx, `UPDATE agents SET key_hash = $1, encryption_key = $2, last_seen = $3 WHERE id = $4`,
			hash, base64.StdEncoding.EncodeToString(encryptionKey), r.now().UnixNano(), agent.ID)
		return err
	})
}

// Revoked says whether a certificate, by its serial, was revoked. One that the plane does not know (it was restored from a backup) counts as revoked:
// its agent enrols again by itself.
func (r *Registry) Revoked(ctx context.Context, serial string) (bool, error) {
	var revoked int64
	err := r.db.QueryRowContext(ctx, `SELECT revoked_at FROM certificates WHERE serial = $1`, serial).Scan(&revoked)
	if errors.Is(err, sql.ErrNoRows) {
		return true, nil
	}
	if err != nil {
		return true, fmt.Errorf("read certificate %s: %w", cut(serial), err)
	}
	return revoked != 0, nil
}

// PublicKeys returns the keys with which the agent's events may be signed: those of all its certificates that were not revoked, also of ended ones (an
// event may have waited), newest first. An agent that is not known has none.
func (r *Registry) PublicKeys(ctx context.Context, agentID string) ([]*ecdsa.PublicKey, error) {
	rows, err := r.db.QueryContext(ctx, `SELECT spki FROM certificates WHERE agent_id = $1 AND revoked_at = 0 GROUP BY spki ORDER BY MAX(not_after) DESC`, agentID)
	if err != nil {
		return nil, fmt.Errorf("read keys of agent %s: %w", cut(agentID), err)
	}
	return collect(rows, func(row scanner) (*ecdsa.PublicKey, error) {
		var text string
		if err := row.Scan(&text); err != nil {
			return nil, err
		}
		return decodeKey(text)
	})
}

func (r *Registry) revokeAll(ctx context.Context, tx *sql.Tx, agentID string) error {
	if _, err := tx.ExecContext(ctx, `UPDATE certificates SET revoked_at = $1 WHERE agent_id = $2 AND revoked_at = 0`, r.now().UnixNano(), agentID); err != nil {
		return fmt.Errorf("revoke certificates of agent %s: %w", agentID, err)
	}
	return nil
}

// ownsKey says whether that key is the agent's: its newest one, or one of a certificate that still stands (a renewal with a new key whose answer was lost).
func ownsKey(ctx context.Context, q querier, agent Agent, hash string) (bool, error) {
	if agent.keyHash == hash {
		return true, nil
	}
	var n int
	err := q.QueryRowContext(ctx, `SELECT COUNT(*) FROM certificates WHERE agent_id = $1 AND key_hash = $2 AND revoked_at = 0`, agent.ID, hash).Scan(&n)
	return n > 0, err
}

// keyIsFree refuses a key that belongs to another agent: two agents with one key are a copied volume, and each could write events for the other.
func keyIsFree(ctx context.Context, q querier, hash, agentID string, live func(string) bool) error {
	var owner, node string
	err := q.QueryRowContext(ctx, `SELECT a.id, a.node_id FROM agents a WHERE a.removed_at = 0 AND a.id <> $2 AND (a.key_hash = $1
		OR EXISTS (SELECT 1 FROM certificates c WHERE c.agent_id = a.id AND c.key_hash = $1 AND c.revoked_at = 0)) LIMIT 1`, hash, agentID).Scan(&owner, &node)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("look for the owner of a key: %w", err)
	case live != nil && live(owner):
		return failure.New(failure.Conflict, "duplicate_live", owner, "this key belongs to agent %s of node %s, which is connected", owner, node).
			WithHint("the state volume was copied from another node: empty it here, the agent then makes its own key")
	default:
		return failure.New(failure.Conflict, "key_in_use", owner, "this key belongs to agent %s of node %s", owner, node).
			WithHint("the state volume was copied from another node: empty it here, or remove the other agent with `axionctl agents rm`")
	}
}

func encodeKey(key *ecdsa.PublicKey) (spki, hash string, err error) {
	if key == nil {
		return "", "", errors.New("there is no public key")
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", "", fmt.Errorf("encode public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return base64.StdEncoding.EncodeToString(der), hex.EncodeToString(sum[:]), nil
}

func decodeKey(text string) (*ecdsa.PublicKey, error) {
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("decode public key: %w", err)
	}
	any, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("decode public key: %w", err)
	}
	key, ok := any.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("decode public key: it is a %T", any)
	}
	return key, nil
}

func checkEncryptionKey(key []byte, optional bool) error {
	if len(key) == encryptionBytes || optional && len(key) == 0 {
		return nil
	}
	return failure.New(failure.Invalid, "bad_encryption_key", "encryption key", "the encryption key has %d bytes, an X25519 key has %d", len(key), encryptionBytes)
}

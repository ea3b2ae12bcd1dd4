package deadletters

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Bounds of a page.
const (
	// DefaultPage is how many letters a page holds.
	DefaultPage = 100
	// MaxPage is how many it may hold.
	MaxPage = 1000
)

// Filter selects letters.
type Filter struct {
	// ClusterID and AgentID select by who gave a letter up, as it says; empty means all.
	ClusterID, AgentID string
	// Before selects letters with a smaller id; 0 means all.
	Before uint64
	// Limit is how many, at most MaxPage and one, which tells whether there is another page; 0 means DefaultPage.
	Limit int
}

// columns are all but the large ones.
const columns = `id, agent_id, cluster_id, verified, topic, topic_partition, topic_offset, type, command_id, class, code, reason, attempts, first_at, last_at, replayed_at, value_size`

// scan reads the columns of a row and what else is asked for.
func scan(row interface{ Scan(...any) error }, l *Letter, more ...any) error {
	var first, last, replayed int64
	err := row.Scan(append([]any{
		&l.ID, &l.AgentID, &l.ClusterID, &l.Verified, &l.Topic, &l.Partition, &l.Offset, &l.Type, &l.CommandID, &l.Class, &l.Code, &l.Reason, &l.Attempts,
		&first, &last, &replayed, &l.ValueSize,
	}, more...)...)
	l.FirstAt, l.LastAt, l.ReplayedAt = fromUnixNano(first), fromUnixNano(last), fromUnixNano(replayed)
	return err
}

// keep stores a letter, or counts it if it is stored already, and tells its id and attempts.
func (l *Letters) keep(ctx context.Context, tx *sql.Tx, r *received) error {
	now := l.deps.Now().UnixNano()
	err := tx.QueryRowContext(ctx, `UPDATE dead_letters SET attempts = attempts + 1, last_at = $1, agent_id = $2, cluster_id = $3, class = $4, code = $5, reason = $6
		WHERE digest = $7 RETURNING id, attempts`, now, r.AgentID, r.ClusterID, r.Class, r.Code, r.Reason, r.digest).Scan(&r.ID, &r.Attempts)
	if err == nil {
		return nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("look for a dead letter: %w", err)
	}
	r.Attempts = 1
	if err := tx.QueryRowContext(ctx, `UPDATE dead_letter_id SET last = last + 1 WHERE singleton = 1 RETURNING last`).Scan(&r.ID); err != nil {
		return fmt.Errorf("take an id for a dead letter: %w", err)
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO dead_letters (`+columns+`, digest, size, record_key, headers, value)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 1, $13, $13, 0, $14, $15, $16, $17, $18, $19)`,
		r.ID, r.AgentID, r.ClusterID, r.Verified, r.Topic, r.Partition, r.Offset, r.Type, r.CommandID, r.Class, r.Code, r.Reason, now, r.ValueSize,
		r.digest, r.size, r.Key, r.headers, r.Value)
	if err != nil {
		return fmt.Errorf("store a dead letter: %w", err)
	}
	return nil
}

// eraseSurplus erases the oldest letters until the others are not too many and hold not too much.
func (l *Letters) eraseSurplus(ctx context.Context, tx *sql.Tx) (int64, error) {
	result, err := tx.ExecContext(ctx, `DELETE FROM dead_letters WHERE id <= (SELECT COALESCE(MAX(id), 0) FROM
		(SELECT id, COUNT(*) OVER newest AS n, SUM(size) OVER newest AS total FROM dead_letters WINDOW newest AS (ORDER BY id DESC)) AS sizes
		WHERE n > $1 OR total > $2)`, l.cfg.MaxLetters, l.cfg.MaxBytes)
	if err != nil {
		return 0, fmt.Errorf("erase surplus dead letters: %w", err)
	}
	return result.RowsAffected()
}

// Prune erases letters that are too old.
func (l *Letters) Prune(ctx context.Context) error {
	if _, err := l.deps.DB.ExecContext(ctx, `DELETE FROM dead_letters WHERE last_at < $1`, l.deps.Now().Add(-l.cfg.Age).UnixNano()); err != nil {
		return fmt.Errorf("erase old dead letters: %w", err)
	}
	return nil
}

// List returns letters without what they hold, newest first.
func (l *Letters) List(ctx context.Context, f Filter) ([]Letter, error) {
	limit := f.Limit
	if limit <= 0 {
		limit = DefaultPage
	}
	rows, err := l.deps.DB.QueryContext(ctx, `SELECT `+columns+` FROM dead_letters
		WHERE ($1 = '' OR cluster_id = $1) AND ($2 = '' OR agent_id = $2) AND ($3 = 0 OR id < $3) ORDER BY id DESC LIMIT $4`,
		f.ClusterID, f.AgentID, int64(f.Before), min(limit, MaxPage+1))
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var out []Letter
	for rows.Next() {
		var letter Letter
		if err := scan(rows, &letter); err != nil {
			return nil, fmt.Errorf("list dead letters: %w", err)
		}
		out = append(out, letter)
	}
	return out, rows.Err()
}

// Get returns a letter with all that it holds. Failure: invalid no_such_letter.
func (l *Letters) Get(ctx context.Context, id uint64) (Letter, error) {
	var letter Letter
	var headers []byte
	row := l.deps.DB.QueryRowContext(ctx, `SELECT `+columns+`, record_key, headers, value FROM dead_letters WHERE id = $1`, int64(id))
	err := scan(row, &letter, &letter.Key, &headers, &letter.Value)
	if errors.Is(err, sql.ErrNoRows) {
		return letter, noLetter(id)
	}
	if err == nil {
		letter.Headers, err = decodeHeaders(headers)
	}
	if err != nil {
		return letter, fmt.Errorf("read dead letter %d: %w", id, err)
	}
	return letter, nil
}

// Drop erases a letter. Failure: invalid no_such_letter.
func (l *Letters) Drop(ctx context.Context, id uint64) error {
	result, err := l.deps.DB.ExecContext(ctx, `DELETE FROM dead_letters WHERE id = $1`, int64(id))
	if err != nil {
		return fmt.Errorf("drop dead letter %d: %w", id, err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, noLetter(id))
	}
	l.deps.Log.Info("dead letter dropped", "letter", id)
	return nil
}

// setReplayed notes when a letter was replayed, if it was not noted otherwise since. It reports whether it was.
func (l *Letters) setReplayed(ctx context.Context, id uint64, from, to time.Time) (bool, error) {
	result, err := l.deps.DB.ExecContext(ctx, `UPDATE dead_letters SET replayed_at = $1 WHERE id = $2 AND replayed_at = $3`, unixNano(to), int64(id), unixNano(from))
	if err != nil {
		return false, fmt.Errorf("note the replay of dead letter %d: %w", id, err)
	}
	n, err := result.RowsAffected()
	return n == 1, err
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromUnixNano(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

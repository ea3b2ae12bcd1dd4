package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/axion/runner-agent/proto/envelope"
)

// Due returns the ids of the open commands that are to be sent by now, oldest first, at most limit.
func (l *Ledger) Due(ctx context.Context, limit int) ([]string, error) {
	return l.ids(ctx, `SELECT id FROM commands WHERE closed_at IS NULL AND next_send_at <= $1 ORDER BY created_at, generation LIMIT $2`, l.now().UnixNano(), limit)
}

// Next returns when the next open command is to be sent and when the next one's time is over; the zero time means that none is open.
func (l *Ledger) Next(ctx context.Context) (send, overdue time.Time, err error) {
	var s, o sql.NullInt64
	err = l.db.QueryRowContext(ctx, `SELECT MIN(next_send_at), MIN(deadline + CASE WHEN begun THEN run_time ELSE 0 END) FROM commands WHERE closed_at IS NULL`).Scan(&s, &o)
	if err != nil {
		return time.Time{}, time.Time{}, fmt.Errorf("read next time to send: %w", err)
	}
	return fromUnixNano(s.Int64), fromUnixNano(o.Int64), nil
}

// Record returns an open command with its envelope; ok is false if it has been closed meanwhile.
func (l *Ledger) Record(ctx context.Context, id string) (r Record, ok bool, err error) {
	var headers string
	c, err := scanCommand(l.db.QueryRowContext(ctx, `SELECT `+commandColumns+`, headers, data FROM commands WHERE id = $1 AND closed_at IS NULL`, id).Scan, &headers, &r.Data)
	if errors.Is(err, sql.ErrNoRows) {
		return Record{}, false, nil
	}
	if err != nil {
		return Record{}, false, fmt.Errorf("read command %s: %w", id, err)
	}
	r.Command = c
	var hs []header
	if err := json.Unmarshal([]byte(headers), &hs); err != nil {
		return Record{}, false, fmt.Errorf("read headers of command %s: %w", id, err)
	}
	for _, h := range hs {
		r.Headers = append(r.Headers, envelope.Header{Key: h.Key, Value: []byte(h.Value)})
	}
	return r, true, nil
}

// Sent records that Kafka has acknowledged the command and when it is to be sent again.
func (l *Ledger) Sent(ctx context.Context, id string, next time.Time) error {
	_, err := l.db.ExecContext(ctx, `UPDATE commands SET sends = sends + 1, last_sent_at = $1, next_send_at = $2 WHERE id = $3`,
		l.now().UnixNano(), next.UnixNano(), id)
	if err != nil {
		return fmt.Errorf("record that command %s was sent: %w", id, err)
	}
	return nil
}

// Postpone records that the command could not be sent and when to try again.
func (l *Ledger) Postpone(ctx context.Context, id string, next time.Time) error {
	if _, err := l.db.ExecContext(ctx, `UPDATE commands SET next_send_at = $1 WHERE id = $2`, next.UnixNano(), id); err != nil {
		return fmt.Errorf("postpone command %s: %w", id, err)
	}
	return nil
}

// Overdue returns the open commands whose time is over, at most limit: those that no agent has begun and whose deadline was before the given time, and those
// that were begun but whose own time after it is over too.
func (l *Ledger) Overdue(ctx context.Context, before time.Time, limit int) ([]Command, error) {
	rows, err := l.db.QueryContext(ctx, `SELECT `+commandColumns+` FROM commands
		WHERE closed_at IS NULL AND deadline + CASE WHEN begun THEN run_time ELSE 0 END <= $1 ORDER BY created_at LIMIT $2`, before.UnixNano(), limit)
	if err != nil {
		return nil, fmt.Errorf("read overdue commands: %w", err)
	}
	defer rows.Close()
	var out []Command
	for rows.Next() {
		c, err := scanCommand(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("read overdue command: %w", err)
		}
		out = append(out, c)
	}
	return out, rows.Err()
}

func (l *Ledger) ids(ctx context.Context, query string, args ...any) ([]string, error) {
	rows, err := l.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read commands: %w", err)
	}
	defer rows.Close()
	var ids []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("read command id: %w", err)
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

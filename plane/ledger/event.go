package ledger

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/plane/offset"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
)

// maxPageBytes bounds the data that one page of events holds, beyond its first event.
const maxPageBytes = 4 << 20

// OutcomeType is the CloudEvents type of a command's last event.
const OutcomeType = envelope.TypePrefix + "CommandOutcome"

// Event is a stored event.
type Event struct {
	// Position grows with each event and is never used twice.
	Position uint64
	// ID is the event's id, unique in its cluster.
	ID string
	// Type is the CloudEvents type.
	Type string
	// ClusterID is the cluster that it came from.
	ClusterID string
	// AgentID is the agent that signed it; empty for the plane's own.
	AgentID string
	// Subject is a stack or service; may be empty.
	Subject string
	// CausationID is the command that caused it; may be empty.
	CausationID string
	// CorrelationID is copied from the command; may be empty.
	CorrelationID string
	// Time is when it was made; zero if unknown.
	Time time.Time
	// Data is the protobuf of the message that Type names.
	Data []byte
	// Duplicates counts later events of the same id, Conflicts those among them that said something else; of an outcome: another verdict.
	Duplicates, Conflicts uint64
}

// IsOutcomeOf reports whether the event is that command's last.
func (e Event) IsOutcomeOf(commandID string) bool {
	return e.Type == OutcomeType && e.CausationID == commandID
}

// NewEvent is an event to store. Whoever gives it has verified who wrote it.
type NewEvent struct {
	// Envelope is the event's.
	Envelope envelope.Envelope
	// Message is its decoded data.
	Message proto.Message
	// ClusterID and AgentID say who signed it; AgentID is empty for the plane's own.
	ClusterID, AgentID string
}

// Counts says what became of the events of a batch.
type Counts struct {
	// Stored events are new.
	Stored int
	// Duplicates have the id of a stored event.
	Duplicates int
	// Conflicts are duplicates that say something else than the stored event; the first one stands.
	Conflicts int
}

// Store keeps a batch of events and how far the topic was read, in one transaction. The first event of an id wins; later ones are counted. An outcome closes
// its command, erases the command's data - that of the last success of a stack is kept aside, see keepLast - and makes the generations that it tells known.
func (l *Ledger) Store(ctx context.Context, events []NewEvent, offsets []offset.Offset) (Counts, error) {
	var counts Counts
	err := l.db.Tx(ctx, func(tx *sql.Tx) error {
		counts = Counts{}
		for _, e := range events {
			if err := l.storeEvent(ctx, tx, e, &counts); err != nil {
				return err
			}
		}
		return offset.Save(ctx, tx, offsets)
	})
	if err != nil {
		return Counts{}, err
	}
	if counts.Stored > 0 {
		l.announceEvents()
	}
	return counts, nil
}

func (l *Ledger) storeEvent(ctx context.Context, tx querier, n NewEvent, counts *Counts) error {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(n.Message)
	if err != nil {
		return fmt.Errorf("encode event %s: %w", n.Envelope.ID, err)
	}
	duplicate, differs, err := findEvent(ctx, tx, n, data)
	if err != nil {
		return err
	}
	if duplicate {
		counts.Duplicates++
		conflicts := 0
		if differs {
			counts.Conflicts++
			conflicts = 1
		}
		_, err := tx.ExecContext(ctx, `UPDATE events SET duplicates = duplicates + 1, conflicts = conflicts + $1 WHERE cluster_id = $2 AND id = $3`,
			conflicts, n.ClusterID, n.Envelope.ID)
		if err != nil {
			return fmt.Errorf("count duplicate of event %s: %w", n.Envelope.ID, err)
		}
		return nil
	}
	if err := l.insertEvent(ctx, tx, n, data); err != nil {
		return err
	}
	counts.Stored++
	return l.apply(ctx, tx, n)
}

// findEvent looks for a stored event of the same id. An outcome that comes after its command was closed and the stored outcome forgotten is a duplicate too.
func findEvent(ctx context.Context, tx querier, n NewEvent, data []byte) (found, differs bool, err error) {
	var have []byte
	err = tx.QueryRowContext(ctx, `SELECT data FROM events WHERE cluster_id = $1 AND id = $2`, n.ClusterID, n.Envelope.ID).Scan(&have)
	switch {
	case err == nil:
		return true, contradicts(n.Message, have, data), nil
	case !errors.Is(err, sql.ErrNoRows):
		return false, false, fmt.Errorf("look for event %s: %w", n.Envelope.ID, err)
	case n.Envelope.Type != OutcomeType:
		return false, false, nil
	}
	var closed int
	err = tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM commands WHERE id = $1 AND closed_at IS NOT NULL`, n.Envelope.CausationID).Scan(&closed)
	if err != nil {
		return false, false, fmt.Errorf("look for command %s: %w", n.Envelope.CausationID, err)
	}
	return closed > 0, false, nil
}

// contradicts says whether an event that came again says something else than the stored one. A manager that finds an outcome in a stack's head tells it without
// the lists of services and changes, which the head does not hold: it is the same outcome as long as the verdict is.
func contradicts(again proto.Message, have, data []byte) bool {
	if bytes.Equal(have, data) {
		return false
	}
	outcome, ok := again.(*runnerv1.CommandOutcome)
	var first runnerv1.CommandOutcome
	return !ok || proto.Unmarshal(have, &first) != nil || verdictOf(outcome) != verdictOf(&first)
}

type verdict struct {
	status     runnerv1.OutcomeStatus
	failure    string // its code
	stack      string
	generation uint64
}

func verdictOf(o *runnerv1.CommandOutcome) verdict {
	return verdict{o.GetStatus(), o.GetFailure().GetCode(), o.GetStack(), o.GetGeneration()}
}

func (l *Ledger) insertEvent(ctx context.Context, tx querier, n NewEvent, data []byte) error {
	var position int64
	if err := tx.QueryRowContext(ctx, `UPDATE event_position SET last = last + 1 WHERE singleton = 1 RETURNING last`).Scan(&position); err != nil {
		return fmt.Errorf("take a position for event %s: %w", n.Envelope.ID, err)
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO events (position, id, type, cluster_id, agent_id, subject, causation_id, correlation_id, made_at, stored_at, data, duplicates, conflicts)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0, 0)`,
		position, n.Envelope.ID, n.Envelope.Type, n.ClusterID, n.AgentID, n.Envelope.Subject, n.Envelope.CausationID, n.Envelope.CorrelationID,
		unixNano(n.Envelope.Time), l.now().UnixNano(), nonNil(data))
	if err != nil {
		return fmt.Errorf("store event %s: %w", n.Envelope.ID, err)
	}
	return nil
}

// apply does what an event means for its command.
func (l *Ledger) apply(ctx context.Context, tx querier, n NewEvent) error {
	commandID := n.Envelope.CausationID
	switch m := n.Message.(type) {
	case *runnerv1.CommandReceived, *runnerv1.CommandProgress:
		_, err := tx.ExecContext(ctx, `UPDATE commands SET begun = TRUE WHERE id = $1 AND cluster_id = $2 AND closed_at IS NULL`, commandID, n.ClusterID)
		if err != nil {
			return fmt.Errorf("record that command %s was begun: %w", commandID, err)
		}
	case *runnerv1.CommandOutcome:
		if err := noteOutcome(ctx, tx, n.ClusterID, commandID, m); err != nil {
			return err
		}
		if err := l.keepLast(ctx, tx, n.ClusterID, commandID, m); err != nil {
			return err
		}
		return l.closeCommand(ctx, tx, n.ClusterID, commandID, m.GetStatus())
	}
	return nil
}

func (l *Ledger) closeCommand(ctx context.Context, tx querier, clusterID, id string, status runnerv1.OutcomeStatus) error {
	_, err := tx.ExecContext(ctx, `UPDATE commands SET closed_at = $1, outcome = $2, data = NULL WHERE id = $3 AND cluster_id = $4 AND closed_at IS NULL`,
		l.now().UnixNano(), int32(status), id, clusterID)
	if err != nil {
		return fmt.Errorf("close command %s: %w", id, err)
	}
	return nil
}

// noteOutcome makes the generations known that an agent told in an outcome: for the stack that it names, and for what the plane counted the command for, so
// that the next command jumps past a number that the plane had forgotten.
func noteOutcome(ctx context.Context, tx querier, clusterID, commandID string, m *runnerv1.CommandOutcome) error {
	n := max(m.GetGeneration(), m.GetCurrentGeneration())
	stacks := []string{m.GetStack()}
	c, err := commandWhere(ctx, tx, `id = $1 AND cluster_id = $2`, commandID, clusterID)
	switch {
	case err == nil:
		stacks = append(stacks, c.Stack)
	case !errors.Is(err, sql.ErrNoRows):
		return err
	}
	for _, stack := range stacks {
		// What an agent made up is not worth losing its outcome for.
		if err := noteGeneration(ctx, tx, clusterID, stack, n); err != nil && failure.ClassOf(err) != failure.Invalid {
			return err
		}
	}
	return nil
}

// Offsets returns how far the partitions of a topic have been read; none if it has another id than the one that was read.
func (l *Ledger) Offsets(ctx context.Context, topic, topicID string) ([]offset.Offset, error) {
	return offset.Load(ctx, l.db, topic, topicID)
}

// Expire closes an open command with an outcome of the plane's own. It returns false if the command has been closed meanwhile.
func (l *Ledger) Expire(ctx context.Context, c Command, outcome *runnerv1.CommandOutcome) (bool, error) {
	now := l.now()
	e, err := envelope.New(Source, outcome, now)
	if err != nil {
		return false, err
	}
	e.ID, e.Subject, e.CausationID, e.CorrelationID, e.Generation = envelope.OutcomeID(c.ID), c.Subject, c.ID, c.CorrelationID, c.Generation
	var counts Counts
	err = l.db.Tx(ctx, func(tx *sql.Tx) error {
		counts = Counts{}
		_, err := commandWhere(ctx, tx, `id = $1 AND closed_at IS NULL`, c.ID)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		return l.storeEvent(ctx, tx, NewEvent{Envelope: e, Message: outcome, ClusterID: c.ClusterID}, &counts)
	})
	if err != nil {
		return false, err
	}
	if counts.Stored > 0 {
		l.announceEvents()
	}
	return counts.Stored > 0, nil
}

// Filter selects events.
type Filter struct {
	// CommandID selects the events that this command caused; empty means all.
	CommandID string
	// ClusterID selects the events of this cluster; empty means all.
	ClusterID string
	// After is the position behind which to begin.
	After uint64
	// Limit is the greatest number of events; at least 1.
	Limit int
}

// Events returns the events that the filter selects, by position. It may return fewer than the limit when they are large, but none only if there are none.
func (l *Ledger) Events(ctx context.Context, f Filter) ([]Event, error) {
	query := `SELECT position, id, type, cluster_id, agent_id, subject, causation_id, correlation_id, made_at, data, duplicates, conflicts FROM events WHERE position > $1`
	args := []any{int64(f.After)}
	if f.CommandID != "" {
		args = append(args, f.CommandID)
		query += fmt.Sprintf(` AND causation_id = $%d`, len(args))
	}
	if f.ClusterID != "" {
		args = append(args, f.ClusterID)
		query += fmt.Sprintf(` AND cluster_id = $%d`, len(args))
	}
	args = append(args, max(f.Limit, 1))
	query += fmt.Sprintf(` ORDER BY position LIMIT $%d`, len(args))
	rows, err := l.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	defer rows.Close()
	var out []Event
	size := 0
	for size < maxPageBytes && rows.Next() {
		var e Event
		var made int64
		if err := rows.Scan(&e.Position, &e.ID, &e.Type, &e.ClusterID, &e.AgentID, &e.Subject, &e.CausationID, &e.CorrelationID, &made, &e.Data,
			&e.Duplicates, &e.Conflicts); err != nil {
			return nil, fmt.Errorf("read event: %w", err)
		}
		e.Time = fromUnixNano(made)
		size += len(e.Data)
		out = append(out, e)
	}
	return out, rows.Err()
}

// Positions returns the position of the oldest event that is kept and the last position that was given; oldest is last + 1 if none is kept.
func (l *Ledger) Positions(ctx context.Context) (oldest, last uint64, err error) {
	err = l.db.QueryRowContext(ctx, `SELECT COALESCE((SELECT MIN(position) FROM events), last + 1), last FROM event_position`).Scan(&oldest, &last)
	if err != nil {
		return 0, 0, fmt.Errorf("read positions of events: %w", err)
	}
	return oldest, last, nil
}

// Forgotten reports whether events behind that position are no longer kept that may have been the cluster's (any cluster's, if it is empty). Positions have no
// gaps but those of forgotten events, and a cluster's oldest are forgotten first, so it can only have lost what was before its oldest that is kept.
func (l *Ledger) Forgotten(ctx context.Context, clusterID string, after uint64) (forgotten bool, err error) {
	query, args := `SELECT (SELECT last FROM event_position) - $1 > (SELECT COUNT(*) FROM events WHERE position > $1)`, []any{int64(after)}
	if clusterID != "" {
		query = `SELECT first.position - 1 - $1 > (SELECT COUNT(*) FROM events WHERE position > $1 AND position < first.position) FROM
			(SELECT COALESCE(MIN(position), (SELECT last + 1 FROM event_position)) AS position FROM events WHERE cluster_id = $2) AS first`
		args = append(args, clusterID)
	}
	if err := l.db.QueryRowContext(ctx, query, args...).Scan(&forgotten); err != nil {
		return false, fmt.Errorf("look for forgotten events: %w", err)
	}
	return forgotten, nil
}

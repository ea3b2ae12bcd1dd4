package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// offerLife is how long what is offered again waits for an agent: as long as an operator's command does.
const offerLife = 24 * time.Hour

// Head is what a manager tells of a stack: the numbers of its head in the Swarm, which only grow.
type Head struct {
	// Stack is the stack's name.
	Stack string
	// Generation is the stack's newest generation; 0 if the Swarm has no head of it.
	Generation uint64
	// Epoch is how often the head was claimed; 0 if it was not told.
	Epoch uint64
	// Removed says that the stack was removed in that generation.
	Removed bool
}

// Above reports whether h is newer than o.
func (h Head) Above(o Head) bool {
	if h.Generation != o.Generation {
		return h.Generation > o.Generation
	}
	if h.Epoch != o.Epoch {
		return h.Epoch > o.Epoch
	}
	return h.Removed && !o.Removed
}

// Heads returns the newest heads that managers of that Swarm have told of, by stack.
func (l *Ledger) Heads(ctx context.Context, clusterID, swarmID string) (map[string]Head, error) {
	rows, err := l.db.QueryContext(ctx, `SELECT stack, generation, epoch, removed FROM heads WHERE cluster_id = $1 AND swarm_id = $2`, clusterID, swarmID)
	if err != nil {
		return nil, fmt.Errorf("read heads of cluster %s: %w", clusterID, err)
	}
	defer rows.Close()
	heads := map[string]Head{}
	for rows.Next() {
		var h Head
		if err := rows.Scan(&h.Stack, &h.Generation, &h.Epoch, &h.Removed); err != nil {
			return nil, fmt.Errorf("read head of cluster %s: %w", clusterID, err)
		}
		heads[h.Stack] = h
	}
	return heads, rows.Err()
}

// NoteHead records what a manager of that Swarm tells of a stack, so that the next command jumps past its generation and a later loss is noticed. What is not above
// what is known changes nothing. A generation over MaxGeneration, or one stack too many, is refused with a failure of class Invalid.
func (l *Ledger) NoteHead(ctx context.Context, clusterID, swarmID string, h Head) error {
	if h.Stack == "" || h.Generation == 0 {
		return nil
	}
	return l.db.Tx(ctx, func(tx *sql.Tx) error {
		if err := noteGeneration(ctx, tx, clusterID, h.Stack, h.Generation); err != nil {
			return err
		}
		known, knownSwarm, err := knownHead(ctx, tx, clusterID, h.Stack)
		if err != nil || (knownSwarm == swarmID && !h.Above(known)) {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO heads (cluster_id, stack, swarm_id, generation, epoch, removed, alarm_at, alarm_above, alarm)
			VALUES ($1, $2, $3, $4, $5, $6, 0, 0, NULL)
			ON CONFLICT (cluster_id, stack) DO UPDATE SET generation = excluded.generation, epoch = excluded.epoch, removed = excluded.removed, swarm_id = excluded.swarm_id`,
			clusterID, h.Stack, swarmID, int64(h.Generation), int64(h.Epoch), h.Removed)
		if err == nil && knownSwarm != swarmID {
			err = endAlarm(ctx, tx, clusterID, h.Stack, MaxGeneration)
		}
		if err != nil {
			return fmt.Errorf("store head of stack %s in cluster %s: %w", h.Stack, clusterID, err)
		}
		return nil
	})
}

func knownHead(ctx context.Context, q querier, clusterID, stack string) (h Head, swarmID string, err error) {
	err = q.QueryRowContext(ctx, `SELECT stack, generation, epoch, removed, swarm_id FROM heads WHERE cluster_id = $1 AND stack = $2`, clusterID, stack).
		Scan(&h.Stack, &h.Generation, &h.Epoch, &h.Removed, &swarmID)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Head{}, "", fmt.Errorf("read head of stack %s in cluster %s: %w", stack, clusterID, err)
	}
	return h, swarmID, nil
}

// WentBack says that a Swarm has an older head than before.
type WentBack struct {
	// ClusterID and SwarmID are the cluster's and its Swarm's.
	ClusterID, SwarmID string
	// Topic is the cluster's command topic.
	Topic string
	// From is the head as Heads returned it, To what all managers tell now.
	From, To Head
}

// WentBack records that a head went back, stores the event that tells it, and submits again what had last succeeded of the stack, under new generations, all in one
// transaction: so it happens once for each going back, whatever dies. It returns nil if From is not what the ledger knows: then it was told already.
func (l *Ledger) WentBack(ctx context.Context, w WentBack) (*runnerv1.GenerationsWentBack, error) {
	var told *runnerv1.GenerationsWentBack
	err := l.db.Tx(ctx, func(tx *sql.Tx) (err error) {
		told, err = l.wentBack(ctx, tx, w)
		return err
	})
	if err != nil || told == nil {
		return nil, err
	}
	l.announceEvents()
	if len(told.GetOfferedCommandIds()) > 0 {
		l.announceCommands()
	}
	return told, nil
}

func (l *Ledger) wentBack(ctx context.Context, tx *sql.Tx, w WentBack) (*runnerv1.GenerationsWentBack, error) {
	known, swarmID, err := knownHead(ctx, tx, w.ClusterID, w.From.Stack)
	if err != nil || swarmID != w.SwarmID || known != w.From {
		return nil, err
	}
	told := &runnerv1.GenerationsWentBack{
		Stack: w.From.Stack, FromGeneration: w.From.Generation, FromEpoch: w.From.Epoch, ToGeneration: w.To.Generation, ToEpoch: w.To.Epoch,
	}
	e, err := envelope.New(Source, told, l.now())
	if err != nil {
		return nil, err
	}
	e.Subject, e.CorrelationID = w.From.Stack, e.ID
	offered, err := l.offerAgain(ctx, tx, w, e.ID)
	switch failure.ClassOf(err) {
	case failure.Conflict, failure.Invalid:
		told.NotOffered = failurepb.FromError(err)
	default:
		if err != nil {
			return nil, err
		}
	}
	told.OfferedCommandIds = offered
	data, err := proto.Marshal(told)
	if err != nil {
		return nil, fmt.Errorf("encode alarm of stack %s: %w", w.From.Stack, err)
	}
	_, err = tx.ExecContext(ctx, `UPDATE heads SET generation = $1, epoch = $2, removed = $3, alarm_at = $4, alarm_above = $5, alarm = $6 WHERE cluster_id = $7 AND stack = $8`,
		int64(w.To.Generation), int64(w.To.Epoch), w.To.Removed, l.now().UnixNano(), int64(w.From.Generation), data, w.ClusterID, w.From.Stack)
	if err != nil {
		return nil, fmt.Errorf("store alarm of stack %s: %w", w.From.Stack, err)
	}
	var counts Counts
	return told, l.storeEvent(ctx, tx, NewEvent{Envelope: e, Message: told, ClusterID: w.ClusterID}, &counts)
}

// offerAgain submits what a stack was made of, caused by the alarm of that id, and returns the commands' ids. A failure of class
// Conflict or Invalid says why it does not.
func (l *Ledger) offerAgain(ctx context.Context, tx *sql.Tx, w WentBack, alarmID string) ([]string, error) {
	stack := w.From.Stack
	open, err := commandWhere(ctx, tx, `cluster_id = $1 AND stack = $2 AND closed_at IS NULL AND type IN ($3, $4) AND generation > $5 ORDER BY generation DESC LIMIT 1`,
		w.ClusterID, stack, deployType, removeType, int64(w.To.Generation))
	switch {
	case err == nil:
		return nil, failure.New(failure.Conflict, "newer_under_way", stack, "command %s of generation %d is under way for stack %s already", open.ID, open.Generation, stack)
	case !errors.Is(err, sql.ErrNoRows):
		return nil, err
	}
	last, err := lastCommands(ctx, tx, w.ClusterID, stack)
	if err != nil {
		return nil, err
	}
	if len(last) == 0 || last[0].service != "" {
		last = append([]lastCommand{{missing: missingUnknown}}, last...)
	}
	if reason := last[0].missing; reason != "" {
		return nil, failure.New(failure.Conflict, reason, stack, "stack %s cannot be deployed again by the plane: %s", stack, missingText[reason]).
			WithHint("deploy it again yourself")
	}
	var ids []string
	for _, c := range last {
		msg, err := envelope.Envelope{Type: c.typ, ContentType: envelope.Protobuf, Data: c.data}.Message()
		if err != nil {
			return nil, err
		}
		submitted, _, err := l.submit(ctx, tx, NewCommand{
			ClusterID: w.ClusterID, Topic: w.Topic, CorrelationID: alarmID, TimeToLive: offerLife, Message: msg, causationID: alarmID,
		})
		if err != nil {
			return nil, err
		}
		ids = append(ids, submitted.ID)
	}
	return ids, nil
}

// endAlarm forgets a stack's alarm when a generation above the one that was known then has succeeded.
func endAlarm(ctx context.Context, tx querier, clusterID, stack string, succeeded uint64) error {
	_, err := tx.ExecContext(ctx, `UPDATE heads SET alarm_at = 0, alarm_above = 0, alarm = NULL WHERE cluster_id = $1 AND stack = $2 AND alarm_at <> 0 AND alarm_above < $3`,
		clusterID, stack, int64(succeeded))
	if err != nil {
		return fmt.Errorf("end alarm of stack %s in cluster %s: %w", stack, clusterID, err)
	}
	return nil
}

// Alarm is a going back that no newer success has healed yet.
type Alarm struct {
	// ClusterID is the cluster.
	ClusterID string
	// At is when it was told.
	At time.Time
	// Told is what was told.
	Told *runnerv1.GenerationsWentBack
}

// maxAlarms bounds what Alarms returns.
const maxAlarms = 1000

// Alarms returns the alarms of a cluster, or of all if clusterID is empty, by cluster and stack, at most 1,000.
func (l *Ledger) Alarms(ctx context.Context, clusterID string) ([]Alarm, error) {
	rows, err := l.db.QueryContext(ctx, `SELECT cluster_id, alarm_at, alarm FROM heads WHERE alarm_at <> 0 AND ($1 = '' OR cluster_id = $1) ORDER BY cluster_id, stack LIMIT $2`,
		clusterID, maxAlarms)
	if err != nil {
		return nil, fmt.Errorf("read alarms: %w", err)
	}
	defer rows.Close()
	var out []Alarm
	for rows.Next() {
		a := Alarm{Told: &runnerv1.GenerationsWentBack{}}
		var at int64
		var data []byte
		if err := rows.Scan(&a.ClusterID, &at, &data); err != nil {
			return nil, fmt.Errorf("read alarm: %w", err)
		}
		if err := proto.Unmarshal(data, a.Told); err != nil {
			return nil, fmt.Errorf("read alarm of cluster %s: %w", a.ClusterID, err)
		}
		a.At = fromUnixNano(at)
		out = append(out, a)
	}
	return out, rows.Err()
}

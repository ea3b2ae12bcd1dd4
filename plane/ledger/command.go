package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
)

// How long the commands may take if they do not say so themselves; the contract's defaults.
const (
	defaultDeployTime = 10 * time.Minute
	defaultRemoveTime = 5 * time.Minute
	defaultScaleTime  = 5 * time.Minute
	// restartTime is how long the tasks of a service may take to be replaced; the command does not say.
	restartTime = 10 * time.Minute
	// outcomeMargin is added to a begun command's time before its outcome is given up: an agent may have had to wait for other commands of the stack,
	// and its event must travel.
	outcomeMargin = 30 * time.Minute
)

// Command is what the ledger knows of a command, without its data.
type Command struct {
	// ID is the command's id.
	ID string
	// ClusterID is the cluster that it is for, or that its agent belongs to.
	ClusterID string
	// AgentID is the agent that it is for; empty if it is for the cluster.
	AgentID string
	// Topic and Key are the Kafka topic and record key that it is sent with.
	Topic, Key string
	// Type is the CloudEvents type.
	Type string
	// Subject is the stack or service.
	Subject string
	// Stack is the stack that the generation was counted for. Of a command for a service it is only a guess, see StackIsGuess.
	Stack string
	// Generation is what the command was given; 0 if it is of a kind that has none.
	Generation uint64
	// IdempotencyKey is the caller's; may be empty.
	IdempotencyKey string
	// CorrelationID is copied to every event.
	CorrelationID string
	// CreatedAt is when it was stored.
	CreatedAt time.Time
	// Deadline is when it is given up if no agent has begun it.
	Deadline time.Time
	// Begun says that an agent has taken it.
	Begun bool
	// ClosedAt is when its outcome was stored; zero while it is open.
	ClosedAt time.Time
	// Outcome is how it ended; unspecified while it is open.
	Outcome runnerv1.OutcomeStatus
	// Sends is how often it was sent.
	Sends uint64
	// LastSentAt is when it was last sent; zero if never.
	LastSentAt time.Time
}

// StackIsGuess reports whether Stack is only the longest known stack that the service's name fits, or that name itself: a command for a service names no stack.
func (c Command) StackIsGuess() bool {
	return c.Type == envelope.TypePrefix+"ServiceScale" || c.Type == envelope.TypePrefix+"ServiceRestart"
}

// Open reports whether the command has no outcome yet.
func (c Command) Open() bool { return c.ClosedAt.IsZero() }

// Record is an open command as it goes to Kafka: the same bytes each time.
type Record struct {
	// Command is what is known of it.
	Command Command
	// Headers and Data are its envelope.
	Headers []envelope.Header
	Data    []byte
}

// NewCommand is a command to store.
type NewCommand struct {
	// ClusterID is the cluster that it is for, or that its agent belongs to.
	ClusterID string
	// AgentID is the agent that it is for; empty for the cluster.
	AgentID string
	// Topic is the Kafka topic.
	Topic string
	// IdempotencyKey names the request; a second one with the same key in the cluster gets the first one's command. Empty means none.
	IdempotencyKey string
	// CorrelationID is copied to every event; the command's id if empty.
	CorrelationID string
	// TimeToLive is until when an agent must have begun it.
	TimeToLive time.Duration
	// Message is a StackDeploy, StackRemove, ServiceScale or ServiceRestart. It is not changed; what is stored carries the generation, if its kind has one.
	Message proto.Message

	// causationID is the event because of which the plane itself sends it; no bound on open commands keeps it back.
	causationID string
}

// Submit stores a command and gives it the next generation of its stack, unless its kind has none, in one transaction. With an idempotency key that is known it returns the command of
// that key and existing = true, open or not. Failures: invalid "too_large" (over envelope.DefaultMaxData bytes), "unsupported_command"; conflict
// "idempotency_key_reused" (for another type or object); unavailable "too_many_open_commands".
func (l *Ledger) Submit(ctx context.Context, n NewCommand) (command Command, existing bool, err error) {
	err = l.db.Tx(ctx, func(tx *sql.Tx) error {
		command, existing, err = l.submit(ctx, tx, n)
		return err
	})
	if err != nil {
		return Command{}, false, err
	}
	if !existing {
		l.announceCommands()
	}
	return command, existing, nil
}

func (l *Ledger) submit(ctx context.Context, tx *sql.Tx, n NewCommand) (Command, bool, error) {
	k, err := kindOf(n.Message)
	if err != nil {
		return Command{}, false, err
	}
	if n.IdempotencyKey != "" {
		known, err := commandWhere(ctx, tx, `cluster_id = $1 AND idempotency_key = $2`, n.ClusterID, n.IdempotencyKey)
		switch {
		case err == nil:
			return known, true, sameRequest(known, n, k)
		case !errors.Is(err, sql.ErrNoRows):
			return Command{}, false, err
		}
	}
	stacks, err := k.stacks(ctx, tx, n.ClusterID)
	if err != nil {
		return Command{}, false, err
	}
	stack, generation := stacks[len(stacks)-1], uint64(0)
	if !k.timeless {
		if generation, err = nextGeneration(ctx, tx, n.ClusterID, stacks); err != nil {
			return Command{}, false, err
		}
	}
	now := l.now()
	e, err := envelope.New(Source, k.with(generation), now)
	if err != nil {
		return Command{}, false, err
	}
	if len(e.Data) > envelope.DefaultMaxData {
		return Command{}, false, failure.New(failure.Invalid, "too_large", k.subject, "the command for %s has %d bytes, at most %d are allowed", k.subject,
			len(e.Data), envelope.DefaultMaxData).WithHint("send fewer or smaller files")
	}
	if n.causationID == "" {
		if err := l.roomFor(ctx, tx, n.ClusterID, len(e.Data)); err != nil {
			return Command{}, false, err
		}
	}
	e.CausationID = n.causationID
	e.Subject, e.Generation, e.Deadline, e.CorrelationID = k.subject, generation, now.Add(n.TimeToLive).UTC(), n.CorrelationID
	if e.CorrelationID == "" {
		e.CorrelationID = e.ID
	}
	c := Command{
		ID: e.ID, ClusterID: n.ClusterID, AgentID: n.AgentID, Topic: n.Topic, Key: stack, Type: e.Type, Subject: e.Subject, Stack: stack,
		Generation: generation, IdempotencyKey: n.IdempotencyKey, CorrelationID: e.CorrelationID, CreatedAt: e.Time, Deadline: e.Deadline,
	}
	return c, false, insertCommand(ctx, tx, c, e, k.runTime)
}

// kind is what the ledger must know of a command's message.
type kind struct {
	subject   string
	isService bool          // the subject is a service, not a stack
	timeless  bool          // it has no generation: nothing makes it old but its deadline
	runTime   time.Duration // how long it may take once begun
	with      func(generation uint64) proto.Message
}

// stacks returns the stacks that the command counts for, the one that is most likely meant last.
func (k kind) stacks(ctx context.Context, tx querier, clusterID string) ([]string, error) {
	if k.isService {
		return owners(ctx, tx, clusterID, k.subject)
	}
	return []string{k.subject}, nil
}

func kindOf(msg proto.Message) (kind, error) {
	switch m := msg.(type) {
	case *runnerv1.StackDeploy:
		return kind{
			subject: m.GetStack(), runTime: orDefault(m.GetOptions().GetTimeout().AsDuration(), defaultDeployTime),
			with: func(g uint64) proto.Message {
				return &runnerv1.StackDeploy{Stack: m.GetStack(), Generation: g, Bundle: m.GetBundle(), Options: m.GetOptions()}
			},
		}, nil
	case *runnerv1.StackRemove:
		return kind{
			subject: m.GetStack(), runTime: orDefault(m.GetTimeout().AsDuration(), defaultRemoveTime),
			with: func(g uint64) proto.Message {
				return &runnerv1.StackRemove{Stack: m.GetStack(), Generation: g, Timeout: m.GetTimeout()}
			},
		}, nil
	case *runnerv1.ServiceScale:
		return kind{
			subject: m.GetService(), isService: true, runTime: orDefault(m.GetTimeout().AsDuration(), defaultScaleTime),
			with: func(g uint64) proto.Message {
				return &runnerv1.ServiceScale{Service: m.GetService(), Replicas: m.GetReplicas(), Generation: g, Timeout: m.GetTimeout()}
			},
		}, nil
	case *runnerv1.ServiceRestart:
		return kind{
			subject: m.GetService(), isService: true, timeless: true, runTime: restartTime,
			with: func(uint64) proto.Message { return &runnerv1.ServiceRestart{Service: m.GetService()} },
		}, nil
	default:
		return kind{}, failure.New(failure.Invalid, "unsupported_command", "", "a command of type %T cannot be sent by Kafka from here", msg)
	}
}

func orDefault(d, fallback time.Duration) time.Duration {
	if d <= 0 {
		return fallback
	}
	return d
}

func sameRequest(known Command, n NewCommand, k kind) error {
	typ := string(n.Message.ProtoReflect().Descriptor().FullName())
	if known.Type == typ && known.Subject == k.subject && known.AgentID == n.AgentID {
		return nil
	}
	return failure.New(failure.Conflict, "idempotency_key_reused", n.IdempotencyKey, "idempotency key %q already names command %s, a %s for %s",
		n.IdempotencyKey, known.ID, known.Type, known.Subject).WithHint("use a new key for a new request")
}

// roomFor refuses a command when those that are open already fill the bounds of their cluster.
func (l *Ledger) roomFor(ctx context.Context, tx querier, clusterID string, size int) error {
	var open int
	var bytes int64
	err := tx.QueryRowContext(ctx, `SELECT COUNT(*), COALESCE(SUM(LENGTH(data)), 0) FROM commands WHERE cluster_id = $1 AND closed_at IS NULL`, clusterID).Scan(&open, &bytes)
	if err != nil {
		return fmt.Errorf("count open commands of cluster %s: %w", clusterID, err)
	}
	if open >= l.cfg.MaxOpen || bytes+int64(size) > l.cfg.MaxOpenBytes {
		return failure.New(failure.Unavailable, "too_many_open_commands", clusterID, "cluster %s has %d open commands with %d bytes; no more are taken", clusterID, open, bytes).
			WithHint("see whether an agent on a manager node is connected; commands end at their deadline")
	}
	return nil
}

// header is a Kafka header as the database keeps it. Header values of an envelope are printable text.
type header struct {
	Key   string `json:"k"`
	Value string `json:"v"`
}

func insertCommand(ctx context.Context, tx querier, c Command, e envelope.Envelope, runTime time.Duration) error {
	var hs []header
	for _, h := range e.Headers() {
		hs = append(hs, header{h.Key, string(h.Value)})
	}
	headers, err := json.Marshal(hs)
	if err != nil {
		return fmt.Errorf("encode headers of command %s: %w", c.ID, err)
	}
	var key any
	if c.IdempotencyKey != "" {
		key = c.IdempotencyKey
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO commands (id, cluster_id, agent_id, topic, record_key, type, subject, stack, generation, idempotency_key,
			correlation_id, headers, data, created_at, deadline, run_time, begun, closed_at, outcome, sends, last_sent_at, next_send_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, FALSE, NULL, 0, 0, 0, $17)`,
		c.ID, c.ClusterID, c.AgentID, c.Topic, c.Key, c.Type, c.Subject, c.Stack, int64(c.Generation), key,
		c.CorrelationID, string(headers), nonNil(e.Data), c.CreatedAt.UnixNano(), c.Deadline.UnixNano(), int64(runTime+outcomeMargin), c.CreatedAt.UnixNano())
	if err != nil {
		return fmt.Errorf("store command %s: %w", c.ID, err)
	}
	return nil
}

// nonNil keeps an empty message from becoming NULL.
func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

const commandColumns = `id, cluster_id, agent_id, topic, record_key, type, subject, stack, generation, COALESCE(idempotency_key, ''), correlation_id,
	created_at, deadline, begun, COALESCE(closed_at, 0), outcome, sends, last_sent_at`

func scanCommand(scan func(...any) error, more ...any) (Command, error) {
	var c Command
	var created, deadline, closed, lastSent int64
	into := append([]any{
		&c.ID, &c.ClusterID, &c.AgentID, &c.Topic, &c.Key, &c.Type, &c.Subject, &c.Stack, &c.Generation, &c.IdempotencyKey, &c.CorrelationID,
		&created, &deadline, &c.Begun, &closed, &c.Outcome, &c.Sends, &lastSent,
	}, more...)
	if err := scan(into...); err != nil {
		return Command{}, err
	}
	c.CreatedAt, c.Deadline, c.ClosedAt, c.LastSentAt = fromUnixNano(created), fromUnixNano(deadline), fromUnixNano(closed), fromUnixNano(lastSent)
	return c, nil
}

// commandWhere returns the command that the condition selects; an error that wraps sql.ErrNoRows if there is none.
func commandWhere(ctx context.Context, q querier, where string, args ...any) (Command, error) {
	c, err := scanCommand(q.QueryRowContext(ctx, `SELECT `+commandColumns+` FROM commands WHERE `+where, args...).Scan)
	if err != nil {
		return Command{}, fmt.Errorf("read command: %w", err)
	}
	return c, nil
}

// Command returns the command of that id. Failure: invalid "no_such_command".
func (l *Ledger) Command(ctx context.Context, id string) (Command, error) {
	c, err := commandWhere(ctx, l.db, `id = $1`, id)
	if errors.Is(err, sql.ErrNoRows) {
		return Command{}, failure.New(failure.Invalid, "no_such_command", id, "command %s is not known", id)
	}
	return c, err
}

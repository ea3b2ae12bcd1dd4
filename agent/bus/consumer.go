package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/axion/runner-agent/internal/backoff"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// DefaultMaxInFlight is how many messages of a partition may be with the handler and not yet committed.
const DefaultMaxInFlight = 64

// Handler takes messages.
type Handler interface {
	// Handle takes a message and returns at once with a channel that it closes when the message is settled and its offset may be committed. A message
	// comes again when its partition was lost or the agent restarted before that; a handler that still works on it answers for both deliveries.
	// ctx is the agent's: it outlives the group generation in which the message came.
	Handle(ctx context.Context, m Message) (settled <-chan struct{})
}

// ConsumerConfig configures a Consumer.
type ConsumerConfig struct {
	Config
	// Topic is the only topic that is read.
	Topic string
	// Group is the consumer group.
	Group string
	// MaxInFlight is the number of uncommitted messages of a partition; 0 means DefaultMaxInFlight.
	MaxInFlight int
	// MemberFile is where the member id is kept, so that the next start can take its dead predecessor out of the group instead of waiting for its session
	// to end. Empty means not at all.
	MemberFile string
}

// ConsumerDeps are what a Consumer needs.
type ConsumerDeps struct {
	Handler Handler
	Log     *slog.Logger
	Warn    Warner
	// Joined is told that Membership has another member id than before. It must not block. May be nil.
	Joined func()
}

// timing is how long things take; only tests change it.
type timing struct {
	session, heartbeat, rebalance, joinBackoff, watch time.Duration
	maxWait, readBatch                                time.Duration
	// retryMax is the longest pause between two attempts to begin a session.
	retryMax time.Duration
	// evictAfter is the head start that joining has over the eviction of the former member: evicting first would empty the group, and an empty group
	// waits for others (group.initial.rebalance.delay.ms, 3 s) before it begins.
	evictAfter time.Duration
	// stall is how long a reader may fetch nothing, not even an empty answer.
	stall time.Duration
	// closing bounds the good-bye to the group.
	closing time.Duration
}

func defaultTiming() timing {
	t := timing{
		session:   10 * time.Second, // how long a dead member keeps its partition
		heartbeat: time.Second,      // how soon a rebalance is noticed
		// How long a rebalance waits for members that are dead, and how long the leader may take. It is less than the session: the broker that is embedded in the
		// reference plane lets the sessions of those who wait end meanwhile, and then begins to wait anew.
		rebalance:   5 * time.Second,
		joinBackoff: time.Second,
		watch:       30 * time.Second,
		maxWait:     2 * time.Second,  // also the deadline of the connection: four times the round trip or more
		readBatch:   60 * time.Second, // a 10 MiB message on a slow link takes half a minute
		retryMax:    5 * time.Second,
		evictAfter:  100 * time.Millisecond,
		closing:     1400 * time.Millisecond, // twice at most, which is within the 3 s that the agent gives to its end
	}
	t.stall = t.readBatch + 10*t.maxWait // longer than the slowest fetch that is still allowed
	return t
}

// A generation that ends at once, again and again, is a member that cannot work: without a pause it would join a thousand times a second.
const (
	shortGeneration     = time.Second
	maxShortGenerations = 10
)

// Consumer reads a topic as a member of a group. It commits through the group generation in which a message came and never for a partition that it has lost.
type Consumer struct {
	cfg    ConsumerConfig
	deps   ConsumerDeps
	timing timing
	dialer *kafka.Dialer
	state  *state
	log    *slog.Logger
	member atomic.Pointer[runnerv1.GroupMember]
	// assigned is the group generation in which this member was last given partitions; 0 if the newest generation that it knows gave it none.
	assigned atomic.Int32
	// closers are readers and groups that are being closed; Run waits for them, but not for ever.
	closers sync.WaitGroup
	// former is what this consumer left in the group without a good-bye.
	former former
}

// NewConsumer checks the configuration. It does not connect.
func NewConsumer(cfg ConsumerConfig, deps ConsumerDeps) (*Consumer, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Topic == "" || cfg.Group == "" {
		return nil, fmt.Errorf("kafka client %s has no topic or no group", cfg.Name)
	}
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = DefaultMaxInFlight
	}
	if cfg.MaxInFlight < 0 {
		return nil, fmt.Errorf("kafka client %s: %d messages in flight", cfg.Name, cfg.MaxInFlight)
	}
	s := newState(cfg.Name, deps.Warn, deps.Log)
	return &Consumer{cfg: cfg, deps: deps, timing: defaultTiming(), dialer: newDialer(cfg.Config), state: s, log: s.log}, nil
}

// Membership returns the current membership of the group, or nil.
func (c *Consumer) Membership() *runnerv1.GroupMember { return c.member.Load() }

// Assigned returns the group generation in which partitions of the topic were assigned to this member, as far as it knows: another member may have been given
// them since, in a later generation.
func (c *Consumer) Assigned() (generation int32, ok bool) {
	generation = c.assigned.Load()
	return generation, generation > 0
}

// Run consumes until ctx ends; then it commits what is settled, leaves the group and returns nil. Whatever goes wrong before is a warning and a new attempt.
func (c *Consumer) Run(ctx context.Context) error {
	retry := backoff.Backoff{Floor: minRetry, First: 500 * time.Millisecond, Max: c.timing.retryMax}
	for ctx.Err() == nil {
		begun := time.Now()
		err := c.runSession(ctx)
		if ctx.Err() != nil {
			break
		}
		c.state.trouble(err)
		if time.Since(begun) > time.Minute {
			retry.Reset()
		}
		retry.Wait(ctx)
	}
	c.waitFor(&c.closers)
	return nil
}

var (
	errStalled    = errors.New("the reader makes no progress")
	errNoPeace    = errors.New("group generations end as soon as they begin")
	errTopicAway  = errors.New("the topic is gone")
	errGroupEnded = errors.New("the group was closed")
)

// session is one membership of the group, from join to leave.
type session struct {
	*Consumer
	// agent is the context of Run, for handlers.
	agent context.Context
	// end ends the session from within.
	end context.CancelCauseFunc
	// committers commit a last time when the agent stops.
	committers sync.WaitGroup
	// memberID is the id that this session has in the group; it belongs to generations.
	memberID string
}

// runSession joins the group and works until ctx ends or the session is broken. A group whose topic is missing would join in a hot loop, so the topic is
// looked for first.
func (c *Consumer) runSession(ctx context.Context) error {
	if err := probe(ctx, c.dialer, c.cfg.Brokers, []string{c.cfg.Topic}); err != nil {
		return err
	}
	inner, end := context.WithCancelCause(ctx)
	defer end(nil)
	c.former.left(c.readFormerMember())
	group, err := kafka.NewConsumerGroup(c.groupConfig(func() { c.former.joining(inner, c) }))
	if err != nil {
		return err
	}
	s := &session{Consumer: c, agent: ctx, end: end}
	err = s.generations(inner, group)
	if ctx.Err() != nil {
		c.waitFor(&s.committers)
	}
	c.leave(group, s.memberID)
	return err
}

// groupConfig has joins called right before each attempt to join.
func (c *Consumer) groupConfig(joins func()) kafka.ConsumerGroupConfig {
	return kafka.ConsumerGroupConfig{
		ID: c.cfg.Group, Brokers: c.cfg.Brokers, Dialer: c.dialer, Topics: []string{c.cfg.Topic},
		SessionTimeout: c.timing.session, HeartbeatInterval: c.timing.heartbeat, RebalanceTimeout: c.timing.rebalance,
		JoinGroupBackoff: c.timing.joinBackoff, StartOffset: kafka.FirstOffset,
		GroupBalancers:        []kafka.GroupBalancer{announcing{begins: joins}, kafka.RoundRobinGroupBalancer{}},
		WatchPartitionChanges: true, PartitionWatchInterval: c.timing.watch,
		ErrorLogger: newClientLog(c.log),
	}
}

// generations serves one generation after the other.
func (s *session) generations(ctx context.Context, group *kafka.ConsumerGroup) error {
	short, begun := 0, time.Time{}
	for {
		gen, err := group.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, kafka.ErrGroupClosed):
			return errGroupEnded
		case err != nil: // the group waits and tries again by itself; a bare io.EOF is only a connection that was cut
			s.abandon(err)
			s.groupError(err)
			continue
		}
		if time.Since(begun) < shortGeneration {
			short++
		} else {
			short = 0
		}
		if short >= maxShortGenerations {
			return errNoPeace
		}
		begun = time.Now()
		s.joined(gen)
		for _, a := range gen.Assignments[s.cfg.Topic] {
			s.startPartition(gen, a)
		}
	}
}

// groupError reports what keeps the member out of the group. Errors of an ordinary rebalance are no trouble.
func (s *session) groupError(err error) {
	var code kafka.Error
	if errors.As(err, &code) {
		switch code {
		case kafka.RebalanceInProgress, kafka.IllegalGeneration, kafka.UnknownMemberId, kafka.MemberIDRequired, kafka.NotCoordinatorForGroup,
			kafka.GroupLoadInProgress, kafka.GroupCoordinatorNotAvailable:
			s.log.Info("group is being rebalanced", "group", s.cfg.Group, "error", err)
			return
		}
	}
	s.state.trouble(fmt.Errorf("group %s: %w", s.cfg.Group, err))
}

// abandon notes the member that the client has just forgotten: with every error but one it joins anew, and could not say good-bye to a broker that is away.
func (s *session) abandon(err error) {
	if !errors.Is(err, kafka.RebalanceInProgress) {
		s.former.left(s.memberID)
		s.memberID = ""
	}
}

func (s *session) joined(gen *kafka.Generation) {
	s.memberID = gen.MemberID
	s.former.joined()
	s.writeMember(gen.MemberID)
	before := s.member.Swap(&runnerv1.GroupMember{Group: gen.GroupID, MemberId: gen.MemberID, Generation: gen.ID})
	if s.deps.Joined != nil && before.GetMemberId() != gen.MemberID {
		s.deps.Joined()
	}
	s.state.well()
	assigned := len(gen.Assignments[s.cfg.Topic])
	s.assigned.Store(0)
	if assigned > 0 {
		s.assigned.Store(gen.ID)
	}
	s.log.Info("joined the group", "group", gen.GroupID, "member", gen.MemberID, "generation", gen.ID, "partitions", assigned)
}

// leave says good-bye to the group, but does not wait for a broker that does not answer.
func (c *Consumer) leave(group *kafka.ConsumerGroup, memberID string) {
	left := make(chan struct{})
	c.closers.Go(func() {
		_ = group.Close()
		close(left)
	})
	timer := time.NewTimer(c.timing.closing)
	defer timer.Stop()
	select {
	case <-left:
		if c.former.gone() {
			c.forgetMember()
		}
	case <-timer.C:
		c.former.left(memberID)
		c.log.Warn("the broker does not answer the good-bye", "group", c.cfg.Group)
	}
	c.member.Store(nil)
	c.assigned.Store(0)
}

// waitFor waits for goroutines that end soon unless a broker keeps them.
func (c *Consumer) waitFor(wg *sync.WaitGroup) {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	timer := time.NewTimer(c.timing.closing)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		c.log.Warn("gave up waiting for Kafka connections to close")
	}
}

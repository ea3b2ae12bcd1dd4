// Package command carries one command from the operator to its outcome: it is sent until the control plane has it, under one idempotency key
// so that it is never taken twice, and then watched over lost connections until the event that says how it ended.
//
// The work happens on a goroutine of Run's; everything that is to be shown is told to an Observer from Run's own loop, one call at a time.
package command

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// Patience, all of it overridable in Config.
const (
	// submitPatience is how long the same command is offered again to a plane that does not answer.
	submitPatience = 45 * time.Second
	// submitAttempt bounds one attempt; the largest bundle must fit through a slow line.
	submitAttempt = 60 * time.Second
	// reconnectPatience is how long a lost watch is tried again without success.
	reconnectPatience = 10 * time.Minute
	// backoffBase and backoffLimit bound the pause before an attempt.
	backoffBase  = 250 * time.Millisecond
	backoffLimit = 10 * time.Second
	// tickInterval is how often an Observer may redraw.
	tickInterval = 100 * time.Millisecond
)

// Operator is the part of the plane's API that this package uses.
type Operator interface {
	SubmitCommand(ctx context.Context, in *planev1.SubmitCommandRequest, opts ...grpc.CallOption) (*planev1.SubmitCommandResponse, error)
	WatchEvents(ctx context.Context, in *planev1.WatchEventsRequest, opts ...grpc.CallOption) (grpc.ServerStreamingClient[planev1.EventRecord], error)
}

// Config says how patient to be; zero values mean the defaults.
type Config struct {
	// SubmitPatience is how long to offer the command to a plane that does not answer. It is offered at least twice, however long the first attempt took.
	SubmitPatience time.Duration
	// SubmitAttempt bounds one attempt at handing the command over.
	SubmitAttempt time.Duration
	// ReconnectPatience is how long to try to go on with a lost watch.
	ReconnectPatience time.Duration
	// Limit ends the watch if there is no outcome by then; 0 means never. It counts from the submission.
	Limit time.Duration
	// Backoff returns the pause before the n-th attempt in a row (from 1); nil means full jitter between 0 and a limit that doubles.
	Backoff func(attempt int) time.Duration
}

func (c Config) withDefaults() Config {
	if c.SubmitPatience == 0 {
		c.SubmitPatience = submitPatience
	}
	if c.SubmitAttempt == 0 {
		c.SubmitAttempt = submitAttempt
	}
	if c.ReconnectPatience == 0 {
		c.ReconnectPatience = reconnectPatience
	}
	if c.Backoff == nil {
		c.Backoff = fullJitter
	}
	return c
}

// fullJitter returns a random pause of at least backoffBase, below a limit that doubles up to backoffLimit.
func fullJitter(attempt int) time.Duration {
	limit := backoffLimit
	if attempt < 6 {
		limit = min(limit, backoffBase<<attempt)
	}
	return backoffBase + rand.N(limit-backoffBase)
}

// Observer is told what happens to a command.
type Observer interface {
	// Retrying: the plane did not take the command, which will be offered again after wait.
	Retrying(err error, wait time.Duration)
	// Submitted: the plane has the command.
	Submitted(*planev1.SubmitCommandResponse)
	// Event is one event of the command, in the plane's order, each once. The message is nil if this version does not know its type.
	Event(*planev1.EventRecord, proto.Message)
	// Lost: the watch broke and will be taken up again after wait.
	Lost(err error, wait time.Duration)
	// Restored: the watch goes on from the last position.
	Restored()
	// Tick passes the time, about ten times a second.
	Tick()
}

// Result is what is known of a command when Run returns.
type Result struct {
	// Submitted is the plane's answer; nil if it never took the command.
	Submitted *planev1.SubmitCommandResponse
	// Outcome is how the command ended; nil if that is not known.
	Outcome *runnerv1.CommandOutcome
}

// Run submits a command and watches it until its outcome. The request must carry an idempotency key. An error means that the outcome is not
// known: context.Canceled if ctx ended, which stops nothing but the watching; the Result says how far it came.
func Run(ctx context.Context, operator Operator, request *planev1.SubmitCommandRequest, cfg Config, observer Observer) (Result, error) {
	return observe(ctx, observer, func(ctx context.Context, tell teller) (Result, error) {
		w := worker{operator: operator, cfg: cfg.withDefaults(), tell: tell}
		submitted, err := w.submit(ctx, request)
		if err != nil {
			return Result{}, err
		}
		tell(func(o Observer) { o.Submitted(submitted) })
		outcome, err := w.watch(ctx, submitted.GetCommandId())
		return Result{Submitted: submitted, Outcome: outcome}, err
	})
}

// Submit only hands the command over, as Run's first half does.
func Submit(ctx context.Context, operator Operator, request *planev1.SubmitCommandRequest, cfg Config, observer Observer) (Result, error) {
	return observe(ctx, observer, func(ctx context.Context, tell teller) (Result, error) {
		w := worker{operator: operator, cfg: cfg.withDefaults(), tell: tell}
		submitted, err := w.submit(ctx, request)
		if err == nil {
			tell(func(o Observer) { o.Submitted(submitted) })
		}
		return Result{Submitted: submitted}, err
	})
}

// teller hands a call to the observer's loop.
type teller func(func(Observer))

// observe runs work on a goroutine and makes its calls to the observer, and the ticks between them, on this one.
func observe(ctx context.Context, observer Observer, work func(context.Context, teller) (Result, error)) (Result, error) {
	type ending struct {
		result Result
		err    error
	}
	calls := make(chan func(Observer))
	end := make(chan ending, 1)
	go func() {
		result, err := work(ctx, func(call func(Observer)) { calls <- call })
		end <- ending{result, err}
	}()
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	for {
		select {
		case call := <-calls:
			call(observer)
		case <-ticker.C:
			observer.Tick()
		case e := <-end: // the worker stops soon after ctx ends
			return e.result, e.err
		}
	}
}

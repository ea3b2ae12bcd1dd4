package soak

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
)

const (
	// stackCount is how many stacks are worked on at once: twice as many as the agent does commands at a time.
	stackCount = 8
	// removeChance is how often a stack is removed, burstChance how often the next command is sent without waiting for this one.
	removeChance, burstChance = 0.08, 0.2
	// runningChance is how often a service has a task: most deployments are to take little.
	runningChance = 0.15
	// maxBurst bounds the commands of one stack that are on their way.
	maxBurst = 4
	// outcomeWithin is how long an outcome may take: longer than all that the faults cost, among them the minute after which the plane sends a command again.
	outcomeWithin = 4 * time.Minute
	// retryCall is between two tries of a call while the plane is away.
	retryCall = 100 * time.Millisecond
)

// command is one that was submitted.
type command struct {
	id, stack  string
	generation uint64
	// key is the request's; the services that it makes carry it as MARK in their environment.
	key string
	// services are what the stack is to have, with the replicas of each; nil after a removal.
	services map[string]uint64
}

// work is what the drivers have done so far.
type work struct {
	w    *world
	left atomic.Int64 // commands that may still be submitted

	mu       sync.Mutex
	commands []*command
	outcomes map[string]*runnerv1.CommandOutcome
	statuses map[runnerv1.OutcomeStatus]int
}

// run lets each stack's driver submit commands until n have been submitted by all, and waits for the outcomes of all.
func (k *work) run(ctx context.Context, n int) error {
	k.left.Store(int64(n))
	errs := make([]error, stackCount)
	var wg sync.WaitGroup
	for i := range stackCount {
		wg.Go(func() { errs[i] = k.drive(ctx, fmt.Sprintf("%s-%d", k.w.prefix, i)) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// drive submits one stack's commands.
func (k *work) drive(ctx context.Context, stack string) error {
	var waiting []*command
	settle := func() error {
		for _, c := range waiting {
			if err := k.await(ctx, c); err != nil {
				return err
			}
		}
		waiting = nil
		return nil
	}
	for k.left.Add(-1) >= 0 {
		c, err := k.submit(ctx, stack)
		if err != nil {
			return fmt.Errorf("submit a command for %s: %w", stack, err)
		}
		waiting = append(waiting, c)
		if rand.Float64() < burstChance && len(waiting) < maxBurst {
			continue
		}
		if err := settle(); err != nil {
			return err
		}
	}
	return settle()
}

// submit sends one command, and again with the same key when the plane does not answer.
func (k *work) submit(ctx context.Context, stack string) (*command, error) {
	key := fmt.Sprintf("%s-%d", stack, rand.Uint64())
	c := &command{stack: stack, key: key}
	req := &planev1.SubmitCommandRequest{ClusterId: cluster, IdempotencyKey: key, TimeToLive: durationpb.New(time.Hour)}
	if rand.Float64() < removeChance {
		req.Command = &planev1.SubmitCommandRequest_StackRemove{StackRemove: &runnerv1.StackRemove{Stack: stack}}
	} else {
		c.services = map[string]uint64{"web": replicas()}
		if rand.Float64() < 0.3 {
			c.services["side"] = replicas()
		}
		req.Command = &planev1.SubmitCommandRequest_StackDeploy{StackDeploy: k.w.deployment(stack, key, c.services)}
	}
	for {
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		resp, err := k.w.operator.SubmitCommand(call, req)
		cancel()
		if err == nil {
			c.id, c.generation = resp.GetCommandId(), resp.GetGeneration()
			break
		}
		if !sleep(ctx, retryCall) {
			return nil, err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.commands = append(k.commands, c)
	return c, nil
}

func replicas() uint64 {
	if rand.Float64() < runningChance {
		return 1
	}
	return 0
}

// await waits for a command's outcome.
func (k *work) await(ctx context.Context, c *command) error {
	ctx, cancel := context.WithTimeout(ctx, outcomeWithin)
	defer cancel()
	for {
		outcome, err := k.w.outcome(ctx, c.id)
		if err == nil {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.outcomes[c.id] = outcome
			k.statuses[outcome.GetStatus()]++
			return nil
		}
		if !sleep(ctx, retryCall) {
			return fmt.Errorf("command %s, generation %d of %s, has no outcome after %s: %w", c.id, c.generation, c.stack, outcomeWithin, err)
		}
	}
}

// done is the number of commands that have an outcome.
func (k *work) done() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.outcomes)
}

// told says how the commands ended.
func (k *work) told() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var words []string
	for _, status := range slices.Sorted(maps.Keys(k.statuses)) {
		words = append(words, fmt.Sprintf("%d %s", k.statuses[status], strings.ToLower(strings.TrimPrefix(status.String(), "OUTCOME_STATUS_"))))
	}
	return strings.Join(words, ", ")
}

// last is each stack's last command.
func (k *work) last() map[string]*command {
	k.mu.Lock()
	defer k.mu.Unlock()
	last := map[string]*command{}
	for _, c := range k.commands {
		if now := last[c.stack]; now == nil || c.generation > now.generation {
			last[c.stack] = c
		}
	}
	return last
}

// deployment is of a stack with those services, which carry the mark of the request. The stack has no network of its own: making one takes longer than all else.
func (w *world) deployment(stack, key string, services map[string]uint64) *runnerv1.StackDeploy {
	var text strings.Builder
	text.WriteString("version: \"3.9\"\nservices:\n")
	for _, name := range slices.Sorted(maps.Keys(services)) {
		fmt.Fprintf(&text, "  %s:\n    image: %s\n    environment: [\"MARK=%s\"]\n    networks: [outside]\n    deploy: {replicas: %d, endpoint_mode: dnsrr}\n",
			name, w.image, key, services[name])
	}
	text.WriteString("networks:\n  outside: {external: true, name: host}\n")
	return bundleOf(stack, text.String(), nil, nil)
}

// bundleOf is a deployment of one compose file, with other files beside it and variables.
func bundleOf(stack, compose string, files, variables map[string]string) *runnerv1.StackDeploy {
	const dir, file = "/app", "/app/compose.yml"
	content := &runnerv1.BundleContent{
		WorkingDir: dir, ComposeFiles: []string{file}, Files: []*runnerv1.BundleFile{{Path: file, Content: []byte(compose)}}, Variables: variables,
	}
	for name, text := range files {
		content.Files = append(content.Files, &runnerv1.BundleFile{Path: dir + "/" + name, Content: []byte(text)})
	}
	return &runnerv1.StackDeploy{
		Stack: stack, Bundle: &runnerv1.Bundle{Content: &runnerv1.Bundle_Plain{Plain: content}},
		Options: &runnerv1.DeployOptions{Prune: true, ResolveImage: runnerv1.ResolveImage_RESOLVE_IMAGE_NEVER, Timeout: durationpb.New(2 * time.Minute)},
	}
}

// outcome waits for the outcome of a command.
func (w *world) outcome(ctx context.Context, id string) (*runnerv1.CommandOutcome, error) {
	stream, err := w.operator.WatchEvents(ctx, &planev1.WatchEventsRequest{CommandId: id, Follow: true})
	if err != nil {
		return nil, err
	}
	for {
		event, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if outcome, err := outcomeIn(event); outcome != nil || err != nil {
			return outcome, err
		}
	}
}

// outcomeIn is the outcome that an event tells; nil if it tells something else.
func outcomeIn(event *planev1.EventRecord) (*runnerv1.CommandOutcome, error) {
	message, err := envelope.Envelope{ID: event.GetId(), Type: event.GetType(), ContentType: envelope.Protobuf, Data: event.GetData()}.Message()
	if err != nil {
		return nil, err
	}
	outcome, _ := message.(*runnerv1.CommandOutcome)
	return outcome, nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/axion/runner-agent/agent/bus"
	"github.com/axion/runner-agent/agent/command"
	"github.com/axion/runner-agent/agent/fence"
	"github.com/axion/runner-agent/agent/journal"
	"github.com/axion/runner-agent/agent/session"
	"github.com/axion/runner-agent/agent/telemetry"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/version"
)

// online holds what an agent with an identity has.
type online struct {
	agent     *Agent
	log       *slog.Logger // names the agent
	journal   *journal.Bolt
	producer  *bus.Producer
	publisher *bus.Publisher
	fence     *fence.Fence
	commands  *command.Runner
	own       *bus.Consumer // of the agent's topic
	cluster   *bus.Consumer // of the cluster's topic
	session   *session.Client
	joined    chan struct{}        // has a value when a consumer's membership is new and the plane is to be told
	telemetry *telemetry.Collector // nil if it is switched off or the host shows no cgroups
}

// rememberFor is how long the outcome of a command is remembered: a day longer than Kafka keeps the command, so that a replay of the topic finds it.
const rememberFor = 8 * 24 * time.Hour

// tellProgressFor is how long progress waits for Kafka.
const tellProgressFor = 24 * time.Hour

// newOnline builds what needs an identity; it starts nothing. With an error, what was built so far is to be closed.
func (a *Agent) newOnline() (*online, error) {
	o := &online{agent: a, log: a.log.With("agent_id", a.identity.AgentID()), joined: make(chan struct{}, 1)}
	access, err := a.kafkaAccess()
	if err != nil {
		return o, err
	}
	if o.journal, err = journal.Open(filepath.Join(a.cfg.Agent.StateDir, "journal.db"), journal.Options{Log: o.log, Warn: a.warnings}); err != nil {
		return o, err
	}
	if o.producer, err = bus.NewProducer(bus.ProducerConfig{
		Config: a.kafkaClient("producer", access),
		Topics: []string{access.GetEventsTopic(), access.GetDlqTopic(), access.GetClusterTopic()},
	}, bus.ProducerDeps{Log: o.log, Warn: a.warnings}); err != nil {
		return o, err
	}
	if o.fence, err = o.newFence(); err != nil {
		return o, err
	}
	if o.publisher, err = bus.NewPublisher(
		bus.PublisherConfig{EventsTopic: access.GetEventsTopic()},
		bus.PublisherDeps{Outbox: o.outbox(), Producer: o.producer, Sign: a.sign, Log: o.log, Warn: a.warnings}); err != nil {
		return o, err
	}
	if o.commands, err = command.New(command.Config{
		AgentID:         a.identity.AgentID(),
		ClusterID:       a.identity.ClusterID(),
		Kafka:           access,
		MaxConcurrent:   a.cfg.Commands.MaxConcurrent,
		MaxMessageBytes: int(a.cfg.Kafka.MaxMessageBytes),
		DefaultTimeout:  a.cfg.Commands.DefaultTimeout,
		WorkDir:         a.cfg.Agent.WorkDir,
	}, command.Deps{
		Journal: o.journal, Fence: o.fence, Stacks: a.fencedStacks, Producer: o.producer, Role: a.role, Warn: a.warnings, Log: o.log, Now: time.Now,
	}); err != nil {
		return o, err
	}
	if o.own, err = o.consumer("commands", access, access.GetAgentTopic(), access.GetAgentGroup(), o.commands); err != nil {
		return o, err
	}
	if o.cluster, err = o.consumer("cluster", access, access.GetClusterTopic(), access.GetClusterGroup(), o.commands); err != nil {
		return o, err
	}
	if o.telemetry, err = a.newTelemetry(); err != nil {
		return o, err
	}
	o.session, err = o.newSession()
	return o, err
}

// newFence sweeps while the cluster's topic is assigned to this agent.
func (o *online) newFence() (*fence.Fence, error) {
	a := o.agent
	return fence.New(fence.Config{Owner: a.identity.AgentID(), SkipUnchanged: a.cfg.Stack.SkipUnchanged}, fence.Deps{
		Client:   func() fence.API { return a.engine.Client() },
		Assigned: func() (int32, bool) { return o.cluster.Assigned() },
		Manager:  func() bool { return a.role() == runnerv1.NodeRole_NODE_ROLE_MANAGER },
		Log:      o.log,
	})
}

// outbox is the journal's, whose old outcomes are compared with what the Swarm says before they are sent.
func (o *online) outbox() *comparedOutbox {
	return &comparedOutbox{
		Bolt: o.journal, look: o.decided, started: o.agent.started, log: o.log, now: time.Now,
		manager: func() bool { return o.agent.role() == runnerv1.NodeRole_NODE_ROLE_MANAGER },
	}
}

// decided tells what the Swarm knows of a command, which may have no stack: the ring does if it has no generation, else its stack's head.
func (o *online) decided(ctx context.Context, stack, command string) (outcome *fence.Outcome, begun bool, err error) {
	outcome, begun, err = o.fence.Recent().Look(ctx, command)
	if err != nil || begun || stack == "" {
		return outcome, begun, err
	}
	return o.fence.Look(ctx, stack, command)
}

// newTelemetry returns nil where there is nothing to measure with: an agent deploys all the same.
func (a *Agent) newTelemetry() (*telemetry.Collector, error) {
	t := a.cfg.Telemetry
	if !t.Enabled {
		return nil, nil
	}
	collector, err := telemetry.New(
		telemetry.Config{Interval: t.Interval, CgroupRoot: t.CgroupRoot, ProcRoot: t.ProcRoot},
		telemetry.Deps{Engine: a.engine.Client, Log: a.log})
	if err != nil {
		a.warnings.Set("telemetry_unavailable", runnerv1.HealthSeverity_HEALTH_SEVERITY_LOW, "No metrics", err.Error())
		return nil, nil
	}
	return collector, a.health.Register(collector)
}

func (o *online) newSession() (*session.Client, error) {
	a := o.agent
	deps := session.Deps{
		TLS:       a.identity.PlaneTLS,
		Node:      a.engine.Node,
		Nodes:     a.engine.Nodes,
		Heartbeat: o.heartbeat,
		Beat:      o.joined,
		Handler:   a.immediate(o.commands.Cancel),
		Logs:      a.logs(),
		Refused:   func(string) { a.identity.RenewNow() },
		Log:       o.log,
		Warn:      a.warnings,
	}
	if o.telemetry != nil {
		deps.Metrics = o.telemetry
	}
	return session.New(session.Config{
		Address: a.cfg.Plane.Address, AgentVersion: version.Version, Timing: session.Timing{Heartbeat: a.identity.HeartbeatInterval()},
	}, deps)
}

// kafkaAccess is what enrolment said, with what the node's configuration puts in its place.
func (a *Agent) kafkaAccess() (*runnerv1.KafkaAccess, error) {
	access, k := a.identity.Kafka(), a.cfg.Kafka
	if len(k.Brokers) > 0 {
		access.Brokers = k.Brokers
	}
	if k.SASLMechanism == "" {
		return access, nil
	}
	password, err := readSecret(k.SASLPasswordFile)
	if err != nil {
		return nil, err
	}
	mechanism := runnerv1.SaslMechanism(runnerv1.SaslMechanism_value["SASL_MECHANISM_"+strings.ToUpper(strings.ReplaceAll(k.SASLMechanism, "-", "_"))])
	access.Sasl = &runnerv1.SaslCredentials{Mechanism: mechanism, Username: k.SASLUsername, Password: password}
	return access, nil
}

func (a *Agent) kafkaClient(name string, access *runnerv1.KafkaAccess) bus.Config {
	return bus.Config{Name: name, Brokers: access.GetBrokers(), TLS: a.identity.KafkaTLS(), SASL: access.GetSasl(), ClientID: "axion-agent/" + a.identity.AgentID()}
}

func (o *online) consumer(name string, access *runnerv1.KafkaAccess, topic, group string, handler bus.Handler) (*bus.Consumer, error) {
	a := o.agent
	return bus.NewConsumer(bus.ConsumerConfig{
		Config: a.kafkaClient(name, access), Topic: topic, Group: group,
		MemberFile: filepath.Join(a.cfg.Agent.StateDir, "kafka-member-"+name),
	}, bus.ConsumerDeps{Handler: handler, Log: o.log, Warn: a.warnings, Joined: o.tellMembership})
}

// tellMembership has the plane told at once: should this agent die before its next heartbeat, the plane must know which member to take out of the group.
func (o *online) tellMembership() {
	select {
	case o.joined <- struct{}{}:
	default:
	}
}

// sign signs an event with the key of the certificate that the agent has now.
func (a *Agent) sign(e *envelope.Envelope) error { return e.Sign(a.identity.Signer()) }

// runCommands watches for commands that hang, which ends the process, and waits for the end; then the commands that run have been interrupted by their consumers'
// contexts, and are waited for.
func (o *online) runCommands(ctx context.Context) error {
	if err := o.commands.Watch(ctx); err != nil {
		return err
	}
	o.commands.Wait()
	return nil
}

const (
	// expireInterval is between two times that old outcomes are forgotten and old progress is dropped.
	expireInterval = time.Hour
	// spaceInterval is how soon a disk that fills up, or has room again, is noticed while no command comes.
	spaceInterval = 5 * time.Second
)

// keepJournal forgets old outcomes, drops old progress and watches the journal's disk.
func (o *online) keepJournal(ctx context.Context) error {
	expire, space := time.NewTicker(expireInterval), time.NewTicker(spaceInterval)
	defer expire.Stop()
	defer space.Stop()
	o.expire()
	for {
		_ = o.journal.CheckSpace() // told as a warning
		select {
		case <-space.C:
		case <-expire.C:
			o.expire()
		case <-ctx.Done():
			return nil
		}
	}
}

func (o *online) expire() {
	if err := o.journal.Expire(time.Now().Add(-rememberFor)); err != nil {
		o.log.Warn("old commands are not forgotten", "error", err)
	}
	if err := o.journal.ExpireProgress(time.Now().Add(-tellProgressFor)); err != nil {
		o.log.Warn("old progress is not dropped", "error", err)
	}
}

// whileManager reads the cluster's topic as long as this node is a manager with a leader and the plane allows it.
func (o *online) whileManager(ctx context.Context) error {
	e := o.agent.engine
	terms := terms{
		may:        func() bool { return e.Quorum() && o.session.ClusterTopicAllowed() },
		changed:    func() (node, session <-chan struct{}) { return e.Changed(), o.session.Changed() },
		leaderless: func() bool { return e.Manager() && !e.Quorum() },
		read:       o.cluster.Run,
		log:        o.log,
	}
	return terms.run(ctx)
}

// maxStacks bounds the generations that a heartbeat tells, as the contract states it.
const maxStacks = 1000

// heartbeat is what the agent knows of itself.
func (o *online) heartbeat() *runnerv1.Heartbeat {
	beat := &runnerv1.Heartbeat{
		Role:            o.agent.role(),
		EngineReachable: o.agent.engine.Reachable(),
		Warnings:        o.agent.warnings.Warnings(),
		RunningCommands: o.commands.Running(),
		OutboxEvents:    uint64(o.journal.Len()),
	}
	for _, c := range []*bus.Consumer{o.own, o.cluster} {
		if m := c.Membership(); m != nil {
			beat.Members = append(beat.Members, m)
		}
	}
	beat.Stacks = stackGenerations(o.fence.Heads())
	return beat
}

// stackGenerations tells of the stacks that have a generation: a head may hold no more than cancellations of commands to come.
func stackGenerations(heads []fence.Head) []*runnerv1.StackGeneration {
	var all []*runnerv1.StackGeneration
	for _, h := range heads {
		if h.Generation == 0 || len(all) == maxStacks {
			continue
		}
		g := &runnerv1.StackGeneration{Stack: h.Stack, Generation: h.Generation, Epoch: h.Epoch}
		if !h.Removed.IsZero() {
			g.RemovedAt = timestamppb.New(h.Removed)
		}
		all = append(all, g)
	}
	return all
}

// close gives the journal and the producer free, once nothing uses them.
func (o *online) close() error {
	if o == nil {
		return nil
	}
	if o.producer != nil {
		o.producer.Close()
	}
	if o.journal != nil {
		return o.journal.Close()
	}
	return nil
}

// status is what the local socket tells.
func (a *Agent) status() *runnerv1.AgentStatus {
	st := &runnerv1.AgentStatus{
		Version:   version.Version,
		StartedAt: timestamppb.New(a.started),
		Warnings:  a.warnings.Warnings(),
	}
	if facts, err := a.engine.Node(context.Background()); err == nil {
		st.Node = facts
	}
	if st.AgentId = a.agentID(); st.AgentId == "" {
		return st
	}
	st.ClusterId = a.identity.ClusterID()
	st.CertificateNotAfter = timestamppb.New(a.identity.NotAfter())
	if o := a.online.Load(); o != nil {
		st.Connected = o.session.Connected()
		st.RunningCommands = o.commands.Running()
		st.OutboxEvents = uint64(o.journal.Len())
	}
	return st
}

// maxSecretBytes bounds a file that holds a token or a password.
const maxSecretBytes = 16 << 10

// readSecret reads a file that holds one secret; white space around it is not part of it.
func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", failure.New(failure.Invalid, "secret_file", path, "secret file: %w", err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxSecretBytes+1))
	text := strings.TrimSpace(string(content))
	switch {
	case err != nil:
	case text == "":
		err = errors.New("it is empty")
	case len(content) > maxSecretBytes:
		err = fmt.Errorf("it is larger than %d bytes", maxSecretBytes)
	}
	if err != nil {
		return "", failure.New(failure.Invalid, "secret_file", path, "secret file %s: %w", path, err)
	}
	return text, nil
}

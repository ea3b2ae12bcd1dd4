package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"
	"github.com/prometheus/procfs"
	"google.golang.org/protobuf/types/known/timestamppb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

const (
	// maxContainers bounds a sample, as the contract does.
	maxContainers = 2000
	// retryInterval is the time between two attempts to follow an engine that is away.
	retryInterval = 2 * time.Second
	// callTimeout bounds each question to the engine.
	callTimeout = 10 * time.Second
)

// The labels by which Swarm says what a container belongs to.
const (
	labelStack   = "com.docker.stack.namespace"
	labelService = "com.docker.swarm.service.name"
	labelTask    = "com.docker.swarm.task.id"
)

// containers is the list of those that run. It is kept by one subscription to the engine's events.
type containers struct {
	engine func() *client.Client
	groups *hierarchy
	proc   procfs.FS
	log    *slog.Logger
	stats  *stats

	mu   sync.Mutex
	byID map[string]*measured // a value is replaced, never changed
}

func newContainers(engine func() *client.Client, groups *hierarchy, proc procfs.FS, log *slog.Logger, stats *stats) *containers {
	return &containers{engine: engine, groups: groups, proc: proc, log: log, stats: stats, byID: make(map[string]*measured)}
}

// measured is a container that runs.
type measured struct {
	id, name             string
	stack, service, task string
	pid                  int
	startedAt            time.Time
	hostNetwork          bool
	group                cgroup
	proc                 procfs.FS
}

// run follows the engine until ctx ends; then it returns nil. An engine that is away is asked again, and the containers that it had are kept:
// they run on without it.
func (c *containers) run(ctx context.Context) error {
	for {
		err := c.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		c.stats.failed(targetEngine)
		c.log.Debug("the engine's containers cannot be followed", "error", err, "retry_in", retryInterval)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryInterval):
		}
	}
}

// follow subscribes, lists what runs - in that order, so that no container is missed - and handles events until the subscription breaks.
func (c *containers) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	engine := c.engine()
	wanted := filters.NewArgs(filters.Arg("type", string(events.ContainerEventType)))
	for _, action := range []events.Action{events.ActionStart, events.ActionDie, events.ActionRename} {
		wanted.Add("event", string(action))
	}
	messages, errs := engine.Events(ctx, events.ListOptions{Filters: wanted})
	if err := c.reload(ctx, engine); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-errs:
			return fmt.Errorf("engine events: %w", err)
		case m := <-messages:
			c.handle(ctx, engine, m)
		}
	}
}

// reload makes the list anew.
func (c *containers) reload(ctx context.Context, engine *client.Client) error {
	callCtx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	running, err := engine.ContainerList(callCtx, container.ListOptions{})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	c.keepOnly(running)
	for _, r := range running {
		c.add(ctx, engine, r.ID)
	}
	return nil
}

// keepOnly forgets the containers that do not run any more.
func (c *containers) keepOnly(running []container.Summary) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.byID {
		if !slices.ContainsFunc(running, func(r container.Summary) bool { return r.ID == id }) {
			delete(c.byID, id)
		}
	}
	c.stats.measuring(len(c.byID))
}

func (c *containers) handle(ctx context.Context, engine *client.Client, m events.Message) {
	if m.Action == events.ActionDie {
		c.remove(m.Actor.ID)
		return
	}
	c.add(ctx, engine, m.Actor.ID)
}

// add asks the engine about a container, once, and begins to measure it. What fails is counted: one container must not cost the others.
func (c *containers) add(ctx context.Context, engine *client.Client, id string) {
	k, err := c.inspect(ctx, engine, id)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		c.stats.failed(targetContainer)
		c.log.Debug("container is not measured", "container", id, "error", err)
	}
	if k == nil { // it has ended meanwhile
		c.remove(id)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.byID[id]; known || len(c.byID) < maxContainers {
		c.byID[id] = k
	}
	c.stats.measuring(len(c.byID))
}

func (c *containers) remove(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byID, id)
	c.stats.measuring(len(c.byID))
}

// inspect returns what is known about a container; nil if it does not run.
func (c *containers) inspect(ctx context.Context, engine *client.Client, id string) (*measured, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	in, err := engine.ContainerInspect(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("inspect container %s: %w", id, err)
	}
	if in.ContainerJSONBase == nil || in.State == nil || in.Config == nil || in.State.Pid == 0 {
		return nil, nil
	}
	startedAt, err := time.Parse(time.RFC3339Nano, in.State.StartedAt)
	if err != nil {
		return nil, fmt.Errorf("start of container %s: %w", id, err)
	}
	path, err := c.groups.find(in.ID, in.State.Pid)
	if err != nil {
		return nil, err
	}
	group, err := c.groups.open(path)
	if err != nil {
		return nil, err
	}
	return &measured{
		id:          in.ID,
		name:        strings.TrimPrefix(in.Name, "/"),
		stack:       in.Config.Labels[labelStack],
		service:     in.Config.Labels[labelService],
		task:        in.Config.Labels[labelTask],
		pid:         in.State.Pid,
		startedAt:   startedAt,
		hostNetwork: in.HostConfig != nil && in.HostConfig.NetworkMode.IsHost(),
		group:       group,
		proc:        c.proc,
	}, nil
}

// list returns the containers, by id.
func (c *containers) list() []*measured {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]*measured, 0, len(c.byID))
	for _, k := range c.byID {
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b *measured) int { return strings.Compare(a.id, b.id) })
	return list
}

// sample reads the container's figures of now.
func (k *measured) sample() (*runnerv1.ContainerSample, error) {
	u, err := k.group.read()
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", k.name, err)
	}
	s := &runnerv1.ContainerSample{
		ContainerId:           k.id,
		Name:                  k.name,
		Stack:                 k.stack,
		Service:               k.service,
		TaskId:                k.task,
		EpochStartedAt:        timestamppb.New(k.startedAt),
		CpuUsageNanoseconds:   u.cpuNanoseconds,
		MemoryUsageBytes:      u.memory,
		MemoryWorkingSetBytes: u.workingSet,
		MemoryLimitBytes:      u.memoryLimit,
		DiskReadBytes:         u.diskRead,
		DiskWriteBytes:        u.diskWrite,
		Pids:                  u.pids,
	}
	if k.hostNetwork {
		return s, nil
	}
	if err := k.network(s); err != nil {
		return nil, fmt.Errorf("container %s: %w", k.name, err)
	}
	return s, nil
}

// network reads the figures of the namespace that the container's first process is in.
func (k *measured) network(s *runnerv1.ContainerSample) error {
	p, err := k.proc.Proc(k.pid)
	if err != nil {
		return err
	}
	lines, err := p.NetDev()
	if err != nil {
		return err
	}
	for name, line := range lines {
		if name != "lo" {
			s.NetworkReceiveBytes += line.RxBytes
			s.NetworkTransmitBytes += line.TxBytes
		}
	}
	return nil
}

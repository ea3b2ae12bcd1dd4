package stack

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker/cli/cli/compose/convert"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"

	"github.com/axion/runner-agent/proto/failure"
)

// nodesEvery is how often the list of nodes is read again while watching.
const nodesEvery = 5 * time.Second

// target says which services and tasks to look at.
type target struct {
	services, tasks filters.Args
	// kind and name are what failures are about, for example "stack" and "shop".
	kind, name string
}

func stackTarget(stack string) target {
	label := filters.Arg("label", convert.LabelNamespace+"="+stack)
	return target{services: filters.NewArgs(label), tasks: filters.NewArgs(label), kind: "stack", name: stack}
}

func serviceTarget(id, name string) target {
	return target{services: filters.NewArgs(filters.Arg("id", id)), tasks: filters.NewArgs(filters.Arg("service", id)), kind: "service", name: name}
}

func (t target) String() string { return t.kind + " " + t.name }

// watch is one watch over services until each has come to its end.
type watch struct {
	engine   *Engine
	recorder *recorder
	target   target
	services []*watched // sorted by name

	nodes   map[string]swarm.Node
	nodesAt time.Time
	// trouble is why the last look failed; nil if it did not.
	trouble error
}

func (e *Engine) newWatch(r *recorder, t target, names []string, before map[string]bool) *watch {
	w := &watch{engine: e, recorder: r, target: t}
	for _, name := range slices.Sorted(slices.Values(names)) {
		w.services = append(w.services, &watched{name: name, before: before})
	}
	return w
}

// taskIDs returns the tasks that are there now.
func (e *Engine) taskIDs(ctx context.Context, t target) (map[string]bool, error) {
	tasks, err := e.client.TaskList(ctx, swarm.TaskListOptions{Filters: t.tasks})
	if err != nil {
		return nil, engineFailure(err)
	}
	ids := make(map[string]bool, len(tasks))
	for _, task := range tasks {
		ids[task.ID] = true
	}
	return ids, nil
}

// run watches until every service has come to its end or ctx is done. An engine that does not answer is asked again.
func (w *watch) run(ctx context.Context) (Result, error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return w.unfinished(ctx)
		case <-timer.C:
		}
		if err := w.look(ctx); err != nil {
			w.troubled(ctx, err)
		} else if w.ended() {
			return w.finished()
		}
		timer.Reset(w.engine.poll)
	}
}

// look asks the engine and tells what has changed.
func (w *watch) look(ctx context.Context) error {
	c, err := w.cluster(ctx)
	if err != nil {
		return err
	}
	w.trouble = nil
	now := w.engine.now()
	var all, changed []ServiceProgress
	for _, service := range w.services {
		p := service.assess(c, now)
		if tells(p, service.last) {
			changed = append(changed, p)
		}
		service.last = p
		all = append(all, p)
	}
	w.recorder.progress(all, changed)
	return nil
}

func (w *watch) cluster(ctx context.Context) (*cluster, error) {
	api := w.engine.client
	c := &cluster{services: map[string]swarm.Service{}, tasks: map[string][]swarm.Task{}, upToDate: map[string]bool{}}
	services, err := api.ServiceList(ctx, swarm.ServiceListOptions{Filters: w.target.services})
	if err != nil {
		return nil, err
	}
	for _, service := range services {
		c.services[service.Spec.Name] = service
	}
	// The tasks that match the spec are asked for first: one that is made in between is then seen too late rather than too early.
	upToDate := w.target.tasks.Clone()
	upToDate.Add("_up-to-date", "true")
	current, err := api.TaskList(ctx, swarm.TaskListOptions{Filters: upToDate})
	if err != nil {
		return nil, err
	}
	for _, task := range current {
		c.upToDate[task.ID] = true
	}
	tasks, err := api.TaskList(ctx, swarm.TaskListOptions{Filters: w.target.tasks})
	if err != nil {
		return nil, err
	}
	for _, task := range tasks {
		c.tasks[task.ServiceID] = append(c.tasks[task.ServiceID], task)
	}
	if err := w.readNodes(ctx); err != nil {
		return nil, err
	}
	c.nodes = w.nodes
	return c, nil
}

func (w *watch) readNodes(ctx context.Context) error {
	now := w.engine.now()
	if w.nodes != nil && now.Sub(w.nodesAt) < nodesEvery {
		return nil
	}
	nodes, err := w.engine.client.NodeList(ctx, swarm.NodeListOptions{})
	if err != nil {
		return err
	}
	w.nodes, w.nodesAt = make(map[string]swarm.Node, len(nodes)), now
	for _, node := range nodes {
		w.nodes[node.ID] = node
	}
	return nil
}

// troubled tells once that the engine does not answer; the watch goes on.
func (w *watch) troubled(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	if w.trouble == nil {
		w.recorder.warn(fmt.Sprintf("cannot look at %s for now: %v", w.target, err))
	}
	w.trouble = err
}

func (w *watch) ended() bool {
	for _, service := range w.services {
		if !service.last.State.Final() {
			return false
		}
	}
	return true
}

// finished tells how it ended, if every service has come to its end. The worst of them counts.
func (w *watch) finished() (Result, error) {
	var bad []string
	status, code := Converged, ""
	for _, service := range w.services {
		p := service.last
		if p.State.Good() {
			continue
		}
		bad = append(bad, describeService(p))
		switch {
		case p.State == ServiceRolledBack:
			status, code = RolledBack, "rolled_back"
		case status != RolledBack && p.State == Paused:
			status, code = Failed, "update_paused"
		case status == Converged:
			status, code = Failed, "service_failed"
		}
	}
	if status == Converged {
		return w.recorder.result(Converged), nil
	}
	return w.recorder.result(status), failure.New(failure.Invalid, code, w.target.name, "%s: %s", w.target, strings.Join(bad, "; "))
}

// unfinished tells where the services stood when the context ended.
func (w *watch) unfinished(ctx context.Context) (Result, error) {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return w.recorder.result(Cancelled), failure.New(failure.Unavailable, "cancelled", w.target.name,
			"%s is no longer watched; what was written stays: %w", w.target, ctx.Err())
	}
	if w.trouble != nil {
		return w.recorder.result(TimedOut), failure.New(failure.Unavailable, "engine_unavailable", w.target.name,
			"the engine could not say whether %s has converged: %w", w.target, w.trouble)
	}
	var open []string
	rolledBack := false
	for _, service := range w.services {
		rolledBack = rolledBack || service.last.State == ServiceRolledBack
		if !service.last.State.Good() {
			open = append(open, describeService(service.last))
		}
	}
	status := TimedOut
	if rolledBack {
		status = RolledBack
	}
	return w.recorder.result(status), failure.New(failure.Deadline, "not_converged", w.target.name,
		"%s has not converged in time: %s", w.target, strings.Join(open, "; ")).WithHint("the Swarm goes on trying")
}

// describeService is one service's state in words, with its newest error.
func describeService(p ServiceProgress) string {
	states := map[State]string{
		"":                "not looked at yet",
		Pending:           fmt.Sprintf("%d of %d tasks run", p.Running, p.Desired),
		RollingBack:       "is being rolled back",
		ServiceRolledBack: "was rolled back",
		Paused:            "its update is paused",
		ServiceFailed:     "failed",
	}
	text := p.Service + " " + states[p.State]
	if p.Message != "" {
		text += ": " + p.Message
	}
	if len(p.Errors) > 0 {
		e := p.Errors[0]
		text += fmt.Sprintf(" (newest error, task %s", e.TaskID)
		if e.Node != "" {
			text += " on node " + e.Node
		}
		text += ": " + e.Error + ")"
	}
	return text
}

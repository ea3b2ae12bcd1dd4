package stack

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sort"

	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/cli/cli/command/idresolver"
	"github.com/docker/cli/cli/command/service"
	"github.com/docker/cli/cli/command/task"
	"github.com/docker/cli/cli/compose/convert"
	"github.com/docker/cli/cli/streams"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/fvbommel/sortorder"

	"github.com/axion/runner-agent/proto/failure"
)

// Summary is a row of `docker stack ls`.
type Summary struct {
	Name     string
	Services int
}

// StackStatus is what `docker stack services` and `docker stack ps --no-trunc` print.
type StackStatus struct {
	// Services is sorted by name.
	Services []ServiceStatus
	// Tasks is in docker's order: by name, the newest of a slot first.
	Tasks []TaskStatus
}

// ServiceStatus is a row of `docker stack services`.
type ServiceStatus struct {
	// ID is cut to 12 characters, as docker prints it.
	ID, Name string
	// Mode is "replicated", "global", "replicated job" or "global job".
	Mode string
	// Replicas is for example "2/3" or "1/1 (max 2 per node)".
	Replicas string
	// Image has its tag and no digest.
	Image string
	// Ports is for example "*:80->80/tcp".
	Ports string
	// Running and Desired count tasks.
	Running, Desired uint64
}

// TaskStatus is a row of `docker stack ps --no-trunc`.
type TaskStatus struct {
	ID string
	// Name is for example "shop_web.1"; older tasks of a slot have the prefix ` \_ `.
	Name string
	// Image has its digest, if it was resolved.
	Image string
	// Node is the host name, or the id where the name is not known.
	Node string
	// DesiredState is for example "Running".
	DesiredState string
	// CurrentState is for example "Running 3 minutes ago".
	CurrentState string
	// Error is the whole text, in quotes as docker prints it.
	Error string
	// Ports is for example "*:8080->80/tcp".
	Ports string
	// Service is the full name of the task's service.
	Service string
	// State is the state as the engine names it, for example "running".
	State string
}

// Stacks lists the stacks of the Swarm as `docker stack ls` does.
func (e *Engine) Stacks(ctx context.Context) ([]Summary, error) {
	services, err := e.client.ServiceList(ctx, swarm.ServiceListOptions{Filters: filters.NewArgs(filters.Arg("label", convert.LabelNamespace))})
	if err != nil {
		return nil, engineFailure(err)
	}
	count := map[string]int{}
	for _, s := range services {
		count[s.Spec.Labels[convert.LabelNamespace]]++
	}
	stacks := make([]Summary, 0, len(count))
	for name, n := range count {
		stacks = append(stacks, Summary{Name: name, Services: n})
	}
	sort.Slice(stacks, func(i, j int) bool { return sortorder.NaturalLess(stacks[i].Name, stacks[j].Name) })
	return stacks, nil
}

// Status tells the services and tasks of a stack. A stack of which there is neither is a failure of class invalid and code "no_such_stack".
func (e *Engine) Status(ctx context.Context, stack string) (StackStatus, error) {
	if err := validateName(stack); err != nil {
		return StackStatus{}, err
	}
	label := filters.NewArgs(filters.Arg("label", convert.LabelNamespace+"="+stack))
	services, err := e.client.ServiceList(ctx, swarm.ServiceListOptions{Filters: label, Status: true})
	if err != nil {
		return StackStatus{}, engineFailure(err)
	}
	// Engines before API 1.41 do not count tasks themselves.
	if services, err = service.AppendServiceStatus(ctx, e.client, services); err != nil {
		return StackStatus{}, engineFailure(err)
	}
	tasks, err := e.client.TaskList(ctx, swarm.TaskListOptions{Filters: label})
	if err != nil {
		return StackStatus{}, engineFailure(err)
	}
	if len(services)+len(tasks) == 0 {
		return StackStatus{}, failure.New(failure.Invalid, "no_such_stack", stack, "nothing found in stack: %s", stack)
	}
	var status StackStatus
	if status.Services, err = serviceRows(services); err != nil {
		return StackStatus{}, err
	}
	status.Tasks, err = e.taskRows(ctx, tasks, services)
	return status, err
}

// serviceRows lets docker/cli print the services as JSON and reads that again: its columns are not exported.
func serviceRows(services []swarm.Service) ([]ServiceStatus, error) {
	var out bytes.Buffer
	// This sorts the services.
	if err := service.ListFormatWrite(formatter.Context{Output: &out, Format: formatter.JSONFormatKey}, services); err != nil {
		return nil, err
	}
	rows, err := decodeRows[ServiceStatus](&out)
	if err != nil {
		return nil, err
	}
	for i, s := range services {
		if s.ServiceStatus != nil {
			rows[i].Running, rows[i].Desired = s.ServiceStatus.RunningTasks, s.ServiceStatus.DesiredTasks
		}
	}
	return rows, nil
}

// taskRows does the same for the tasks, and indents older tasks of a slot as docker's table does.
func (e *Engine) taskRows(ctx context.Context, tasks []swarm.Task, services []swarm.Service) ([]TaskStatus, error) {
	var out bytes.Buffer
	cli := &commandLine{client: e.client, out: streams.NewOut(&out)}
	if err := task.Print(ctx, cli, tasks, idresolver.New(e.client, false), false, false, formatter.JSONFormatKey); err != nil {
		return nil, engineFailure(err)
	}
	rows, err := decodeRows[TaskStatus](&out)
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, s := range services {
		names[s.ID] = s.Spec.Name
	}
	byID := map[string]swarm.Task{}
	for _, t := range tasks {
		byID[t.ID] = t
	}
	previous := ""
	for i := range rows {
		t := byID[rows[i].ID]
		rows[i].Service, rows[i].State = names[t.ServiceID], string(t.Status.State)
		name := rows[i].Name
		if name == previous {
			rows[i].Name = ` \_ ` + name
		}
		previous = name
	}
	return rows, nil
}

func decodeRows[Row any](from io.Reader) ([]Row, error) {
	var rows []Row
	for decoder := json.NewDecoder(from); ; {
		var row Row
		switch err := decoder.Decode(&row); err {
		case nil:
			rows = append(rows, row)
		case io.EOF:
			return rows, nil
		default:
			return nil, fmt.Errorf("docker/cli printed a row that is not JSON: %w", err)
		}
	}
}

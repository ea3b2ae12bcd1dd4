package agent

import (
	"context"

	"github.com/axion/runner-agent/agent/engine"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack"
)

// logs reads what a service or a container of this node has written, for the session and for the local socket.
type logs struct {
	stacks func() (*stack.Engine, error)
	engine *engine.Engine
	role   func() runnerv1.NodeRole
}

// OpenLogs sends the lines in order until the log ends or, with follow, until ctx ends.
func (l *logs) OpenLogs(ctx context.Context, open *runnerv1.OpenLogs, send func(*runnerv1.LogBatch) error) error {
	one := func(line *runnerv1.LogLine) error { return send(&runnerv1.LogBatch{Lines: []*runnerv1.LogLine{line}}) }
	switch {
	case open.GetContainer() != "":
		return l.engine.ContainerLogs(ctx, open.GetContainer(), open.GetOptions(), one)
	case open.GetService() == "":
		return failure.New(failure.Invalid, "no_log_target", "", "neither a service nor a container is named")
	case l.role() != runnerv1.NodeRole_NODE_ROLE_MANAGER:
		return failure.New(failure.Conflict, "wrong_node", open.GetService(), "this agent is on a worker node and cannot read the logs of service %s", open.GetService()).
			WithHint("ask an agent on a manager")
	}
	stacks, err := l.stacks()
	if err != nil {
		return err
	}
	return stacks.Logs(ctx, open.GetService(), logOptions(open.GetOptions()), func(line stack.LogLine) error {
		source := runnerv1.LogSource_LOG_SOURCE_STDOUT
		if line.Stderr {
			source = runnerv1.LogSource_LOG_SOURCE_STDERR
		}
		return one(&runnerv1.LogLine{Source: source, Text: line.Text})
	})
}

func logOptions(o *runnerv1.LogOptions) stack.LogOptions {
	return stack.LogOptions{
		Follow:     o.GetFollow(),
		Since:      o.GetSince(),
		Tail:       o.GetTail(),
		Timestamps: o.GetTimestamps(),
		Details:    o.GetDetails(),
		NoResolve:  o.GetNoResolve(),
		NoTrunc:    o.GetNoTrunc(),
		NoTaskIDs:  o.GetNoTaskIds(),
		Raw:        o.GetRaw(),
	}
}

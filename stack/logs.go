package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/cli/cli/command/idresolver"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/axion/runner-agent/proto/failure"
)

// maxLogLine is the length of a LogLine in bytes; a longer line comes in pieces.
const maxLogLine = 64 << 10

// LogOptions are the options of `docker service logs`.
type LogOptions struct {
	Follow bool
	// Since is a timestamp or a duration as docker takes it; empty means all.
	Since string
	// Tail is the number of lines from the end, or "all"; empty means all.
	Tail       string
	Timestamps bool
	Details    bool
	NoResolve  bool
	NoTrunc    bool
	NoTaskIDs  bool
	Raw        bool
}

// LogLine is one line as `docker service logs` prints it.
type LogLine struct {
	// Stderr says that docker would print it to its standard error.
	Stderr bool
	// Text is the line with its end, at most 64 KiB; a longer line comes in pieces. It is the receiver's to keep.
	Text []byte
}

// Logs gives out the lines of `docker service logs` for a service or task, in docker's order, until they end, ctx ends, or out returns an error, which is
// returned.
func (e *Engine) Logs(ctx context.Context, target string, o LogOptions, out func(LogLine) error) error {
	source, err := e.findLogs(ctx, target)
	if err != nil {
		return err
	}
	if source.tty && !o.Raw {
		return failure.New(failure.Invalid, "tty_logs", target, "tty service logs only supported with --raw")
	}
	tail := o.Tail
	if tail == "" {
		tail = "all"
	}
	body, err := source.open(ctx, target, container.LogsOptions{
		ShowStdout: true, ShowStderr: true,
		Since: o.Since, Timestamps: o.Timestamps, Follow: o.Follow, Tail: tail,
		Details: o.Details || !o.Raw, // the details name the task
	})
	if err != nil {
		return engineFailure(err)
	}
	defer func() { _ = body.Close() }()
	stdout, stderr := lineWriter{out: out}, lineWriter{out: out, stderr: true}
	switch {
	case source.tty:
		_, err = io.Copy(stdout, body)
	case o.Raw:
		_, err = stdcopy.StdCopy(stdout, stderr, body)
	default:
		names := &taskNames{client: e.client, options: o, padding: source.padding, resolver: idresolver.New(e.client, o.NoResolve), cache: map[logContext]string{}}
		_, err = stdcopy.StdCopy(&taskWriter{ctx: ctx, names: names, to: stdout}, &taskWriter{ctx: ctx, names: names, to: stderr}, body)
	}
	var refused *outError
	switch {
	case errors.As(err, &refused):
		return refused.err
	case err != nil:
		return engineFailure(err)
	}
	return nil
}

// logSource is where the logs of a service or task come from.
type logSource struct {
	open func(context.Context, string, container.LogsOptions) (io.ReadCloser, error)
	tty  bool
	// padding is the length of the longest slot number.
	padding int
}

func (e *Engine) findLogs(ctx context.Context, target string) (logSource, error) {
	service, _, err := e.client.ServiceInspectWithRaw(ctx, target, swarm.ServiceInspectOptions{})
	if err == nil {
		source := logSource{open: e.client.ServiceLogs, padding: 1}
		if c := service.Spec.TaskTemplate.ContainerSpec; c != nil {
			source.tty = c.TTY
		}
		if mode := service.Spec.Mode.Replicated; mode != nil && mode.Replicas != nil {
			source.padding = digits(*mode.Replicas)
		}
		return source, nil
	}
	if !errdefs.IsNotFound(err) {
		return logSource{}, engineFailure(err)
	}
	task, _, err := e.client.TaskInspectWithRaw(ctx, target)
	if errdefs.IsNotFound(err) {
		return logSource{}, failure.New(failure.Invalid, "no_such_service", target, "no such task or service: %s", target)
	}
	if err != nil {
		return logSource{}, engineFailure(err)
	}
	source := logSource{open: e.client.TaskLogs, padding: digits(uint64(max(task.Slot, 0)))}
	if c := task.Spec.ContainerSpec; c != nil {
		source.tty = c.TTY
	}
	return source, nil
}

func digits(n uint64) int { return len(strconv.FormatUint(n, 10)) }

// outError is an error of the receiver, told apart from those of the engine.
type outError struct{ err error }

func (e *outError) Error() string { return e.err.Error() }

// lineWriter gives out what it is given, line by line. The engine sends whole lines, except for a terminal's output, which it sends as it comes.
type lineWriter struct {
	out    func(LogLine) error
	stderr bool
}

func (w lineWriter) Write(p []byte) (int, error) {
	for line := range bytes.Lines(p) {
		for piece := range slices.Chunk(line, maxLogLine) {
			if err := w.out(LogLine{Stderr: w.stderr, Text: slices.Clone(piece)}); err != nil {
				return 0, &outError{err}
			}
		}
	}
	return len(p), nil
}

// logContext says which task a line came from.
type logContext struct{ node, service, task string }

// taskNames makes the names in front of the lines, for example "shop_web.1.k3v0d9x7p2ab@node-1", as docker/cli's cli/command/service/logs.go does.
type taskNames struct {
	client   client.APIClient
	options  LogOptions
	padding  int
	resolver *idresolver.IDResolver
	cache    map[logContext]string
}

func (n *taskNames) of(ctx context.Context, c logContext) (string, error) {
	if name, ok := n.cache[c]; ok {
		return name, nil
	}
	node, err := n.resolver.Resolve(ctx, swarm.Node{}, c.node)
	if err != nil {
		return "", err
	}
	service, err := n.resolver.Resolve(ctx, swarm.Service{}, c.service)
	if err != nil {
		return "", err
	}
	task, _, err := n.client.TaskInspectWithRaw(ctx, c.task)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("%s.%d", service, task.Slot)
	switch {
	case n.options.NoTaskIDs:
	case n.options.NoTrunc:
		name += "." + task.ID
	default:
		name += "." + formatter.TruncateID(task.ID)
	}
	name += "@" + node + strings.Repeat(" ", max(0, n.padding-len(strconv.Itoa(task.Slot))))
	n.cache[c] = name
	return name, nil
}

// taskWriter puts the task's name in front of each line. A write is one line: [timestamp] details text.
type taskWriter struct {
	ctx   context.Context
	names *taskNames
	to    lineWriter
}

func (w *taskWriter) Write(line []byte) (int, error) {
	var prefix []byte
	rest := line
	if w.names.options.Timestamps {
		at, after, ok := bytes.Cut(rest, []byte(" "))
		if !ok {
			return 0, invalidContext(line)
		}
		prefix, rest = append(slices.Clone(at), ' '), after
	}
	head, text, ok := bytes.Cut(rest, []byte(" "))
	if !ok {
		return 0, invalidContext(line)
	}
	details, err := parseDetails(string(head))
	if err != nil {
		return 0, err
	}
	from, err := takeContext(details)
	if err != nil {
		return 0, err
	}
	name, err := w.names.of(w.ctx, from)
	if err != nil {
		return 0, err
	}
	printed := append(prefix, name+"    | "...)
	if w.names.options.Details {
		printed = append(printed, printDetails(details)+" "...)
	}
	if _, err := w.to.Write(append(printed, text...)); err != nil {
		return 0, err
	}
	return len(line), nil
}

func invalidContext(line []byte) error {
	return fmt.Errorf("invalid context in log message: %v", string(line))
}

// parseDetails reads "k=v,l=w" with escaped keys and values, as docker/cli's internal/logdetails does.
func parseDetails(text string) (map[string]string, error) {
	details := map[string]string{}
	for pair := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, errors.New("invalid details format")
		}
		key, err := url.QueryUnescape(key)
		if err != nil {
			return nil, err
		}
		if details[key], err = url.QueryUnescape(value); err != nil {
			return nil, err
		}
	}
	return details, nil
}

func printDetails(details map[string]string) string {
	pairs := make([]string, 0, len(details))
	for key, value := range details {
		pairs = append(pairs, key+"="+value)
	}
	slices.Sort(pairs)
	return strings.Join(pairs, ",")
}

// takeContext takes the ids that name the task out of the details.
func takeContext(details map[string]string) (logContext, error) {
	var c logContext
	for _, part := range []struct {
		key, kind string
		to        *string
	}{
		{"com.docker.swarm.node.id", "node", &c.node},
		{"com.docker.swarm.service.id", "service", &c.service},
		{"com.docker.swarm.task.id", "task", &c.task},
	} {
		value, ok := details[part.key]
		if !ok {
			return c, fmt.Errorf("missing %s id in details: %v", part.kind, details)
		}
		*part.to = value
		delete(details, part.key)
	}
	return c, nil
}

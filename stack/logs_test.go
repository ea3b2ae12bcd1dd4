package stack

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/axion/runner-agent/proto/failure"
)

// printed is what Logs gave out, by stream.
func printed(t *testing.T, r *rig, target string, o LogOptions) (stdout, stderr string) {
	t.Helper()
	var out, errOut strings.Builder
	err := r.Logs(t.Context(), target, o, func(l LogLine) error {
		if len(l.Text) == 0 || strings.Count(string(l.Text), "\n") > 1 {
			t.Errorf("not one line: %q", l.Text)
		}
		if l.Stderr {
			errOut.Write(l.Text)
		} else {
			out.Write(l.Text)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), errOut.String()
}

func TestLogsAreDockers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	d := r.deployment(t, `
services:
  one: {image: IMAGE, command: [lines, "30", "  two words"], environment: {A: b}, logging: {driver: json-file, options: {env: A, tag: "{{.Name}} é"}}}
  all: {image: IMAGE, command: [lines, "3"], deploy: {mode: global}}
  terminal: {image: IMAGE, command: [lines, "3"], tty: true}
  many: {image: IMAGE, command: [lines, "3"], deploy: {replicas: 10, placement: {max_replicas_per_node: 2}}}
`+hostNetwork)
	// Eight tasks of "many" find no node: they are there for the padding.
	d.Timeout = 15 * time.Second
	result, err := r.Deploy(t.Context(), d, nil)
	wantFailure(t, err, failure.Deadline, "not_converged", r.stack+"_many")
	for _, p := range result.Services {
		if p.State != ServiceConverged && !strings.HasSuffix(p.Service, "_many") {
			t.Fatalf("%+v", p)
		}
	}
	one, many := r.stack+"_one", r.stack+"_many"
	tasks, err := r.api.TaskList(t.Context(), swarm.TaskListOptions{Filters: serviceTargetOf(t, r, one).tasks})
	if err != nil || len(tasks) != 1 {
		t.Fatal(err, tasks)
	}
	for name, tc := range map[string]struct {
		target  string
		options LogOptions
		args    []string
		sorted  bool // several tasks come in any order
	}{
		"plain":         {one, LogOptions{}, nil, false},
		"timestamps":    {one, LogOptions{Timestamps: true}, []string{"-t"}, false},
		"details":       {one, LogOptions{Details: true}, []string{"--details"}, false},
		"all of it":     {one, LogOptions{Details: true, Timestamps: true, NoTrunc: true}, []string{"--details", "-t", "--no-trunc"}, false},
		"tail":          {one, LogOptions{Tail: "3"}, []string{"--tail", "3"}, false},
		"tail 0":        {one, LogOptions{Tail: "0"}, []string{"--tail", "0"}, false},
		"since":         {one, LogOptions{Since: "1h"}, []string{"--since", "1h"}, false},
		"since then":    {one, LogOptions{Since: "2100-01-02T13:23:37Z"}, []string{"--since", "2100-01-02T13:23:37Z"}, false},
		"no task ids":   {one, LogOptions{NoTaskIDs: true}, []string{"--no-task-ids"}, false},
		"no resolve":    {one, LogOptions{NoResolve: true}, []string{"--no-resolve"}, false},
		"raw":           {one, LogOptions{Raw: true}, []string{"--raw"}, false},
		"raw details":   {one, LogOptions{Raw: true, Details: true, Timestamps: true}, []string{"--raw", "--details", "-t"}, false},
		"task":          {tasks[0].ID, LogOptions{}, nil, false},
		"global":        {r.stack + "_all", LogOptions{}, nil, false},
		"padding":       {many, LogOptions{}, nil, true},
		"terminal, raw": {r.stack + "_terminal", LogOptions{Raw: true}, []string{"--raw"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr := printed(t, r, tc.target, tc.options)
			wantOut, wantErr, err := r.docker(t, append(append([]string{"service", "logs"}, tc.args...), tc.target)...)
			if err != nil {
				t.Fatal(err, wantErr)
			}
			if tc.sorted {
				stdout, stderr, wantOut, wantErr = sortLines(stdout), sortLines(stderr), sortLines(wantOut), sortLines(wantErr)
			}
			if stdout != wantOut || stderr != wantErr {
				t.Errorf("docker prints\n%q\n%q\nwe print\n%q\n%q", wantOut, wantErr, stdout, stderr)
			}
			if name != "tail 0" && name != "since then" && stdout+stderr == "" {
				t.Error("nothing was printed")
			}
		})
	}
	for name, target := range map[string]string{"unknown": "axt-no-such-service", "terminal": r.stack + "_terminal"} {
		t.Run(name, func(t *testing.T) {
			err := r.Logs(t.Context(), target, LogOptions{}, func(LogLine) error { return nil })
			_, stderr, _ := r.docker(t, "service", "logs", target)
			if failure.ClassOf(err) != failure.Invalid || err.Error()+"\n" != stderr {
				t.Errorf("docker says %q, we say %q", stderr, err)
			}
		})
	}
}

func serviceTargetOf(t *testing.T, r *rig, name string) target {
	t.Helper()
	service, err := r.service(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return serviceTarget(service.ID, name)
}

func sortLines(text string) string {
	lines := slices.Collect(strings.Lines(text))
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func TestLogsFollow(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	result, err := r.Deploy(t.Context(), r.deployment(t, "services: {web: {image: IMAGE, command: [ticks, 200ms]}}"+hostNetwork), nil)
	wantConverged(t, result, err)
	enough := errors.New("enough")
	var lines []string
	err = r.Logs(t.Context(), r.stack+"_web", LogOptions{Follow: true, NoTaskIDs: true, Tail: "1"}, func(l LogLine) error {
		if lines = append(lines, string(l.Text)); len(lines) == 5 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || len(lines) != 5 || !strings.HasPrefix(lines[0], r.stack+"_web.1@") || !strings.Contains(lines[4], "    | tick ") {
		t.Errorf("%v %q", err, lines)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	err = r.Logs(ctx, r.stack+"_web", LogOptions{Follow: true, Tail: "0"}, func(LogLine) error { cancel(); return nil })
	wantFailure(t, err, failure.Unavailable, "cancelled", "")
}

func TestLineWriter(t *testing.T) {
	var got []string
	w := lineWriter{out: func(l LogLine) error { got = append(got, string(l.Text)); return nil }}
	long := strings.Repeat("x", maxLogLine+1)
	if _, err := w.Write([]byte("a\n\nb" + "c\n" + long + "\nend")); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a\n", "\n", "bc\n", long[:maxLogLine], "x\n", "end"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// FuzzTaskWriter feeds lines as an engine might send them; a bad one is an error, never a panic.
func FuzzTaskWriter(f *testing.F) {
	f.Add([]byte("com.docker.swarm.node.id=a,com.docker.swarm.service.id=b,com.docker.swarm.task.id=c text\n"), false)
	f.Add([]byte("2026-01-01T00:00:00Z a=b,%zz=c text\n"), true)
	f.Add([]byte(" \n"), true)
	f.Fuzz(func(t *testing.T, line []byte, timestamps bool) {
		names := &taskNames{options: LogOptions{Timestamps: timestamps, Details: true}, cache: map[logContext]string{{"a", "b", "c"}: "name"}}
		w := &taskWriter{ctx: t.Context(), names: names, to: lineWriter{out: func(LogLine) error { return nil }}}
		if details, err := parseDetails(string(line)); err == nil {
			if c, err := takeContext(details); err == nil && names.cache[c] == "" {
				return // would ask an engine
			}
		}
		_, _, ok := strings.Cut(string(line), "com.docker.swarm.")
		if ok {
			return
		}
		if _, err := w.Write(line); err == nil {
			t.Errorf("%q was printed without a task", line)
		}
	})
}

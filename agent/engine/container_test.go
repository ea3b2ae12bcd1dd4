package engine

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	testengine "github.com/axion/runner-agent/test/engine"
)

// newContainer makes a container that runs the test image with these arguments; it is removed when the test ends.
func newContainer(t *testing.T, c *client.Client, tty bool, args ...string) string {
	t.Helper()
	cfg := &container.Config{Image: testengine.Image(t), Cmd: args, Tty: tty}
	created, err := c.ContainerCreate(t.Context(), cfg, &container.HostConfig{NetworkMode: "none"}, nil, nil, testengine.Name(t, "axt-engine"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.ContainerRemove(context.Background(), created.ID, container.RemoveOptions{Force: true}); err != nil {
			t.Errorf("remove container: %v", err)
		}
	})
	return created.ID
}

func running(t *testing.T, c *client.Client, id string) (bool, time.Time) {
	t.Helper()
	inspected, err := c.ContainerInspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	started, err := time.Parse(time.RFC3339Nano, inspected.State.StartedAt)
	if err != nil {
		t.Fatal(err)
	}
	return inspected.State.Running, started
}

func TestContainerLife(t *testing.T) {
	e, c := liveEngine(t)
	ctx := t.Context()
	id := newContainer(t, c, false, "sleep")
	grace := 5 * time.Second
	must := func(what string, err error, wantRunning bool) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if is, _ := running(t, c, id); is != wantRunning {
			t.Fatalf("after %s: running is %v", what, is)
		}
	}
	must("start", e.Start(ctx, id), true)
	must("start again", e.Start(ctx, id), true)
	_, before := running(t, c, id)
	must("restart", e.Restart(ctx, id, &grace), true)
	if _, after := running(t, c, id); !after.After(before) {
		t.Error("restart has not started it anew")
	}
	must("stop", e.Stop(ctx, id, &grace), false)
	must("stop again", e.Stop(ctx, id, nil), false)
	if f := failure.Of(e.Kill(ctx, id, "")); f == nil || f.Class != failure.Conflict || f.Code != "not_running" {
		t.Errorf("kill of a stopped container: %#v", f)
	}
	must("start", e.Start(ctx, id), true)
	if f := failure.Of(e.Kill(ctx, id, "SIGNOPE")); f == nil || f.Class != failure.Invalid || f.Code != "bad_signal" {
		t.Errorf("kill with a signal that is none: %#v", f)
	}
	must("kill", e.Kill(ctx, id, ""), false)
}

func TestNoSuchContainer(t *testing.T) {
	e, _ := liveEngine(t)
	ctx, name := t.Context(), testengine.Name(t, "axt-absent")
	for verb, err := range map[string]error{
		"stop":    e.Stop(ctx, name, nil),
		"start":   e.Start(ctx, name),
		"restart": e.Restart(ctx, name, nil),
		"kill":    e.Kill(ctx, name, "SIGTERM"),
		"logs":    e.ContainerLogs(ctx, name, nil, nil),
	} {
		if f := failure.Of(err); f == nil || f.Class != failure.Invalid || f.Code != "no_such_container" || f.Object != name || !strings.Contains(f.Message, name) {
			t.Errorf("%s: %#v", verb, f)
		}
	}
}

func TestRefusedBeforeTheEngine(t *testing.T) {
	e, _ := newEngine(t, "unix:///nowhere.sock")
	ctx, long, negative := t.Context(), maxGrace+time.Second, -time.Second
	for name, tc := range map[string]struct {
		err  error
		code string
	}{
		"no name":        {e.Start(ctx, ""), "bad_container"},
		"path in a name": {e.Start(ctx, "x/../../images/y"), "bad_container"},
		"query in it":    {e.Kill(ctx, "x?force=1", ""), "bad_container"},
		"long name":      {e.Stop(ctx, strings.Repeat("x", maxContainerName+1), nil), "bad_container"},
		"long grace":     {e.Stop(ctx, "x", &long), "bad_grace"},
		"negative grace": {e.Restart(ctx, "x", &negative), "bad_grace"},
		"long signal":    {e.Kill(ctx, "x", strings.Repeat("S", maxSignal+1)), "bad_signal"},
		"tail":           {e.ContainerLogs(ctx, "x", &runnerv1.LogOptions{Tail: "ten"}, nil), "bad_log_options"},
		"since":          {e.ContainerLogs(ctx, "x", &runnerv1.LogOptions{Since: strings.Repeat("1", maxSince+1)}, nil), "bad_log_options"},
	} {
		if f := failure.Of(tc.err); f == nil || f.Class != failure.Invalid || f.Code != tc.code {
			t.Errorf("%s: %#v", name, f)
		}
	}
}

func TestGraceIsRoundedUp(t *testing.T) {
	for grace, want := range map[time.Duration]int{0: 0, time.Millisecond: 1, time.Second: 1, 1001 * time.Millisecond: 2} {
		options, err := stopOptions("x", &grace)
		if err != nil || *options.Timeout != want {
			t.Errorf("%v: %v, %v", grace, options.Timeout, err)
		}
	}
}

// collect reads a whole log and returns what came from each output.
func collect(t *testing.T, e *Engine, id string, options *runnerv1.LogOptions) (stdout, stderr []string) {
	t.Helper()
	err := e.ContainerLogs(t.Context(), id, options, func(l *runnerv1.LogLine) error {
		if l.GetSource() == runnerv1.LogSource_LOG_SOURCE_STDERR {
			stderr = append(stderr, string(l.GetText()))
		} else {
			stdout = append(stdout, string(l.GetText()))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return stdout, stderr
}

func TestContainerLogs(t *testing.T) {
	e, c := liveEngine(t)
	id := newContainer(t, c, false, "lines", "20", "hello")
	if err := e.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all lines", func() bool {
		out, errs := collect(t, e, id, nil)
		return len(out) == 20 && len(errs) == 20
	})
	out, errs := collect(t, e, id, &runnerv1.LogOptions{Tail: "all"})
	for i, line := range append(out, errs...) {
		if !strings.HasPrefix(line, "hello") || strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
			t.Errorf("line %d: %q", i, line)
		}
	}
	if out, errs = collect(t, e, id, &runnerv1.LogOptions{Tail: "4"}); len(out)+len(errs) != 4 {
		t.Errorf("tail 4 gave %d lines", len(out)+len(errs))
	}
	out, _ = collect(t, e, id, &runnerv1.LogOptions{Timestamps: true, Since: "1h"})
	if len(out) != 20 {
		t.Fatalf("since 1h gave %d lines", len(out))
	}
	stamp, _, _ := strings.Cut(out[0], " ")
	if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
		t.Errorf("timestamp: %v", err)
	}
	if f := failure.Of(e.ContainerLogs(t.Context(), id, &runnerv1.LogOptions{Since: "yesterday"}, nil)); f == nil || f.Class != failure.Invalid {
		t.Errorf("since yesterday: %#v", f)
	}
}

func TestContainerLogsOfATerminal(t *testing.T) {
	e, c := liveEngine(t)
	id := newContainer(t, c, true, "lines", "3", "tty")
	if err := e.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all lines", func() bool {
		out, errs := collect(t, e, id, nil)
		if len(errs) != 0 {
			t.Fatalf("a terminal has one output: %q", errs)
		}
		return len(out) == 6 && strings.HasPrefix(out[0], "tty")
	})
}

func TestContainerLogsFollow(t *testing.T) {
	e, c := liveEngine(t)
	id := newContainer(t, c, false, "ticks", "20ms")
	if err := e.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	n := 0
	err := e.ContainerLogs(t.Context(), id, &runnerv1.LogOptions{Follow: true}, func(*runnerv1.LogLine) error {
		if n++; n == 5 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || n != 5 {
		t.Errorf("out ended it after %d lines with %v", n, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	err = e.ContainerLogs(ctx, id, &runnerv1.LogOptions{Follow: true, Tail: "0"}, func(*runnerv1.LogLine) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("ctx ended it with %v", err)
	}

	grace := 5 * time.Second
	err = e.ContainerLogs(t.Context(), id, &runnerv1.LogOptions{Follow: true, Tail: "1"}, func(*runnerv1.LogLine) error {
		return e.Stop(t.Context(), id, &grace)
	})
	if err != nil {
		t.Errorf("the container's end ended it with %v", err)
	}
}

func TestLineWriter(t *testing.T) {
	long := strings.Repeat("x", maxLine+10)
	for name, tc := range map[string]struct {
		writes []string
		want   []string
	}{
		"one line":              {[]string{"a\n"}, []string{"a\n"}},
		"two in one write":      {[]string{"a\nb\n"}, []string{"a\n", "b\n"}},
		"one in many writes":    {[]string{"a", "b", "", "c\nd"}, []string{"abc\n", "d"}},
		"no end":                {[]string{"a\nb"}, []string{"a\n", "b"}},
		"empty lines":           {[]string{"\n\n"}, []string{"\n", "\n"}},
		"long line":             {[]string{long + "\n"}, []string{long[:maxLine], long[:10] + "\n"}},
		"long in many writes":   {[]string{long[:maxLine-1], "y", "z\n"}, []string{long[:maxLine-1] + "y", "z\n"}},
		"end at the very limit": {[]string{long[:maxLine-1] + "\n" + "b\n"}, []string{long[:maxLine-1] + "\n", "b\n"}},
		"nothing":               {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			w := &lineWriter{out: func(l *runnerv1.LogLine) error {
				got = append(got, string(l.GetText()))
				return nil
			}}
			for _, s := range tc.writes {
				if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
					t.Fatalf("Write: %d, %v", n, err)
				}
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			if strings.Join(got, "|") != strings.Join(tc.want, "|") {
				t.Errorf("%d pieces, want %d", len(got), len(tc.want))
			}
		})
	}
}

func FuzzCopyLogs(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x02a\n\x02\x00\x00\x00\x00\x00\x00\x01b"), false)
	f.Add([]byte("a\r\nb"), true)
	f.Fuzz(func(t *testing.T, stream []byte, tty bool) {
		if !tty && hugeFrame(stream) {
			t.Skip("the engine sends no frame of that size")
		}
		var total int
		_ = copyLogs(bytes.NewReader(stream), tty, func(l *runnerv1.LogLine) error {
			total += len(l.GetText())
			if n := len(l.GetText()); n == 0 || n > maxLine || bytes.IndexByte(l.GetText()[:n-1], '\n') >= 0 {
				t.Errorf("a piece of %d bytes that is no line", n)
			}
			return nil
		})
		if total > len(stream) {
			t.Errorf("%d bytes came from %d", total, len(stream))
		}
	})
}

// hugeFrame finds frames for which the demultiplexer would ask for much memory; it trusts the engine.
func hugeFrame(stream []byte) bool {
	for len(stream) >= 8 {
		size := int(stream[4])<<24 | int(stream[5])<<16 | int(stream[6])<<8 | int(stream[7])
		if size > 1<<20 {
			return true
		}
		stream = stream[min(8+size, len(stream)):]
	}
	return false
}

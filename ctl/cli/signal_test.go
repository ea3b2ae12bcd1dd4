//go:build unix

package cli

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/axion/runner-agent/ctl/planetest"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// build builds the program that is shipped.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "axionctl")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-tags", "nomsgpack", "-o", path, "github.com/axion/runner-agent/cmd/axionctl").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// TestInterrupt sends the real program a real signal in each of its waits.
func TestInterrupt(t *testing.T) {
	program := build(t)
	asked := make(chan struct{}, 1)
	wait := func(ctx context.Context) error {
		asked <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	watching := &planetest.Script{
		OnSubmitCommand: func(context.Context, *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
			return &planev1.SubmitCommandResponse{CommandId: commandID, ClusterId: "prod"}, nil
		},
		OnWatchEvents: func(_ *planev1.WatchEventsRequest, s grpc.ServerStreamingServer[planev1.EventRecord]) error {
			return wait(s.Context())
		},
		OnStreamLogs: func(_ *planev1.StreamLogsRequest, s grpc.ServerStreamingServer[runnerv1.LogBatch]) error {
			return wait(s.Context())
		},
	}
	submitting := &planetest.Script{OnSubmitCommand: func(ctx context.Context, _ *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
		return nil, wait(ctx)
	}}
	for name, tc := range map[string]struct {
		script *planetest.Script
		args   []string
		signal os.Signal
		stderr string
	}{
		"deploy":     {watching, []string{"deploy", "-f", "compose.yml", "shop"}, syscall.SIGINT, "axionctl: stopped watching; command " + commandID + " goes on\nhint: axionctl events --command " + commandID + " --follow\n"},
		"terminated": {watching, []string{"rm", "shop"}, syscall.SIGTERM, "axionctl: stopped watching; command " + commandID + " goes on\nhint: axionctl events --command " + commandID + " --follow\n"},
		"submitting": {submitting, []string{"rm", "shop"}, syscall.SIGINT, "axionctl: interrupted before the control plane confirmed the command; it may have taken it all the same\nhint: axionctl events shows the commands that were taken\n"},
		"logs":       {watching, []string{"logs", "-f", "shop_web"}, syscall.SIGINT, ""},
		"events":     {watching, []string{"events", "--follow"}, syscall.SIGINT, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := planetest.Start(t, tc.script)
			cmd := exec.CommandContext(t.Context(), program, append([]string{"--context", p.ContextPath}, tc.args...)...)
			cmd.Dir = inFolder(t)
			var stderr strings.Builder
			cmd.Stderr = &stderr
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-asked:
			case <-time.After(30 * time.Second):
				t.Fatal("the plane was not asked")
			}
			if tc.script == watching && (name == "deploy" || name == "terminated") {
				if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || !strings.Contains(line, commandID) {
					t.Errorf("%q, %v", line, err)
				}
			}
			if err := cmd.Process.Signal(tc.signal); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, stdout)
			_ = cmd.Wait()
			if cmd.ProcessState.ExitCode() != exitInterrupted || stderr.String() != tc.stderr {
				t.Errorf("exit code %d, stderr %q", cmd.ProcessState.ExitCode(), stderr.String())
			}
		})
	}
}

//go:build unix

package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"google.golang.org/grpc"

	"github.com/axion/runner-agent/ctl/planetest"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// TestTerminal runs the real program on a real pseudo terminal, waits until its spinner turns, and presses Ctrl-C.
func TestTerminal(t *testing.T) {
	program := build(t)
	web := &runnerv1.ServiceProgress{Service: "shop_web", State: runnerv1.ServiceState_SERVICE_STATE_PENDING, Running: 1, Desired: 2}
	p := planetest.Start(t, &planetest.Script{
		OnSubmitCommand: func(context.Context, *planev1.SubmitCommandRequest) (*planev1.SubmitCommandResponse, error) {
			return &planev1.SubmitCommandResponse{CommandId: commandID, ClusterId: "prod"}, nil
		},
		OnWatchEvents: func(_ *planev1.WatchEventsRequest, s grpc.ServerStreamingServer[planev1.EventRecord]) error {
			progress := &runnerv1.CommandProgress{Sequence: 1, Step: &runnerv1.CommandProgress_Service{Service: web}}
			if err := s.Send(planetest.Event(t, 1, commandID, 0, progress)); err != nil {
				return err
			}
			<-s.Context().Done()
			return s.Context().Err()
		},
	})
	cmd := exec.CommandContext(t.Context(), program, "--context", p.ContextPath, "rm", "shop")
	cmd.Env = append(os.Environ(), "TERM=xterm", "LC_ALL=C.UTF-8", "NO_COLOR=1")
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = terminal.Close() }()

	var printed strings.Builder
	buffer := make([]byte, 4096)
	pressed := false
	for {
		n, err := terminal.Read(buffer)
		printed.Write(buffer[:n])
		// The third picture of the spinner can only come from time that has passed.
		if text := printed.String(); !pressed && strings.Contains(text, "⠹ shop_web  ██████░░░░░░ 1/2") {
			pressed = true
			if _, err := terminal.WriteString("\x03"); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil { // EIO on Linux, EOF elsewhere: the program has closed the terminal
			if n == 0 && !errors.Is(err, syscall.EIO) && !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			break
		}
	}
	_ = cmd.Wait()
	end := printed.String()[strings.LastIndex(printed.String(), "\x1b[J"):]
	if cmd.ProcessState.ExitCode() != exitInterrupted || !pressed {
		t.Errorf("exit code %d, Ctrl-C pressed: %v", cmd.ProcessState.ExitCode(), pressed)
	}
	if !strings.Contains(end, "stopped watching; command "+commandID+" goes on") || strings.Contains(end, "shop_web") {
		t.Errorf("left on the screen: %q", end)
	}
}

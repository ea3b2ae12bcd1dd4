package rig

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
)

// maxCommandOutput bounds how much of a failed command's output is kept, in bytes.
const maxCommandOutput = 4 << 10

// run runs a command of this machine and returns what it printed on standard output. Its error has the end of what it printed.
func run(ctx context.Context, stdin io.Reader, name string, args ...string) (string, error) {
	return runCommand(exec.CommandContext(ctx, name, args...), stdin)
}

func runCommand(cmd *exec.Cmd, stdin io.Reader) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, tail(stdout.String()+stderr.String()))
	}
	return stdout.String(), nil
}

func tail(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > maxCommandOutput {
		s = "..." + s[len(s)-maxCommandOutput:]
	}
	return s
}

func lookFor(tool, pkg string) error {
	if _, err := exec.LookPath(tool); err != nil {
		return fmt.Errorf("%s is missing (package %s)", tool, pkg)
	}
	return nil
}

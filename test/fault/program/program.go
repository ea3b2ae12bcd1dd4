// Package program runs the project's own programs as processes for tests that kill them: built once a test, started with their output in a file, ended in order
// or by kill -9, and measured with the kernel's figures.
package program

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/procfs"
)

// tailBytes is how much of a program's output a failed test shows.
const tailBytes = 4 << 10

// Build builds one of the programs in cmd/ as it is shipped and returns the path of its binary, which goes with the test.
func Build(t testing.TB, name string) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("the source tree is not to be found")
	}
	path := filepath.Join(t.TempDir(), name)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-tags", "nomsgpack", "-o", path, "./cmd/"+name)
	cmd.Dir = filepath.Join(filepath.Dir(file), "../../..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return path
}

// Process is a running program. Its methods belong to one goroutine.
type Process struct {
	cmd    *exec.Cmd
	output string
	ended  chan struct{}
	err    error // why it ended; read it after ended
}

// Start starts a program whose output is appended to the file of that name. It does not outlive the test.
func Start(t testing.TB, output, path string, args ...string) *Process {
	t.Helper()
	log, err := os.OpenFile(output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }() // the process has its own
	p := &Process{cmd: exec.Command(path, args...), output: output, ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.SysProcAttr = log, log, withParent()
	// The programs refuse variables of theirs that they do not know, such as those of the fault tests.
	p.cmd.Env = slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, "AXION_") })
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("the end of %s:\n%s", output, p.Tail())
		}
	})
	return p
}

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Kill ends the process with SIGKILL, if it runs, and waits until it has gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // fails only if it has ended
	<-p.ended
}

// Stop ends the process with SIGTERM. It is an error if it has not ended well within the limit; then it is killed.
func (p *Process) Stop(limit time.Duration) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-p.ended:
		return p.err
	case <-late.C:
		p.Kill()
		return fmt.Errorf("%s has not ended within %s of SIGTERM", filepath.Base(p.cmd.Path), limit)
	}
}

// Tail is the end of the program's output.
func (p *Process) Tail() string {
	f, err := os.Open(p.output)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	if size, err := f.Seek(0, io.SeekEnd); err == nil && size > tailBytes {
		_, err = f.Seek(-tailBytes, io.SeekEnd)
		if err != nil {
			return err.Error()
		}
	} else if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err.Error()
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Figures are what the kernel says of a process.
type Figures struct {
	// RSS is the resident memory, Anonymous its part that is not a file's pages; in bytes.
	RSS, Anonymous uint64
	// CPU is the time that it has used, in user and kernel mode.
	CPU time.Duration
	// Descriptors is the number of open files and sockets.
	Descriptors int
}

// Figures reads the process's figures.
func (p *Process) Figures() (Figures, error) {
	proc, err := procfs.NewProc(p.cmd.Process.Pid)
	if err != nil {
		return Figures{}, err
	}
	status, err := proc.NewStatus()
	stat, statErr := proc.Stat()
	descriptors, fdErr := proc.FileDescriptorsLen()
	if err := errors.Join(err, statErr, fdErr); err != nil {
		return Figures{}, err
	}
	return Figures{
		RSS: status.VmRSS, Anonymous: status.RssAnon, CPU: time.Duration(stat.CPUTime() * float64(time.Second)), Descriptors: descriptors,
	}, nil
}

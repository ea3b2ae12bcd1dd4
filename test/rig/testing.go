package rig

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// enableEnv switches the tests on that bring up a rig.
const enableEnv = "AXION_RIG"

// Start brings up a rig for a test and takes it down when the test ends; if the test failed, the end of every log is printed first. It skips the test with the
// reason where there can be no rig, and unless AXION_RIG=1 is set: a rig takes the machine for minutes.
func Start(t testing.TB, cfg Config) *Rig {
	t.Helper()
	Need(t)
	r, err := Up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.Diagnosis(context.Background()))
		}
		if err := r.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// Need skips the test with the reason where there can be no rig, and unless AXION_RIG=1 is set.
func Need(t testing.TB) {
	t.Helper()
	if os.Getenv(enableEnv) != "1" {
		t.Skip("a rig of several engines takes minutes: set " + enableEnv + "=1 to run this test")
	}
	if err := Requirements(t.Context()); err != nil {
		t.Skip(err)
	}
}

// Tag is the tag of the images that Build makes.
const Tag = "rig"

// Images of Build.
const (
	AgentImage = "axion/agent:" + Tag
	PlaneImage = "axion/plane:" + Tag
)

// Build builds AgentImage and PlaneImage on this machine's engine and dist/axionctl from the source tree; empty means the one of this package.
func Build(ctx context.Context, sourceDir string) error {
	if sourceDir == "" {
		sourceDir = sourceTree()
	}
	cmd := exec.CommandContext(ctx, filepath.Join(sourceDir, "deploy", "build-image"), "axionctl", "agent", "plane")
	cmd.Dir, cmd.Env = sourceDir, append(os.Environ(), "TAG="+Tag)
	if _, err := runCommand(cmd, nil); err != nil {
		return fmt.Errorf("build the images: %w", err)
	}
	return nil
}

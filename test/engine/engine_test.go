package engine

import (
	"os/exec"
	"strings"
	"testing"
)

func TestImageRuns(t *testing.T) {
	image, docker := Image(t), DockerCLI(t)
	out, err := exec.CommandContext(t.Context(), docker, "run", "--rm", "--network", "none", image, "exit", "0").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err = exec.CommandContext(t.Context(), docker, "run", "--rm", "--network", "none", image, "exit", "42").CombinedOutput()
	if err == nil || !strings.Contains(err.Error(), "42") {
		t.Fatalf("got %v: %s", err, out)
	}
	if again := Image(t); again != image {
		t.Errorf("a second call gave %s after %s", again, image)
	}
}

func TestNameIsUnique(t *testing.T) {
	a, b := Name(t, "axt-engine"), Name(t, "axt-engine")
	if a == b || !strings.HasPrefix(a, "axt-engine-") {
		t.Errorf("%s %s", a, b)
	}
}

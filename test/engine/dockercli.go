package engine

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// cliVersion is the version of docker/cli that the stack engine calls; its command is the one to be compared with, because others refuse other things.
const cliVersion = "28.5.2"

// cli is the docker command once this process has made or found it.
var cli = struct {
	sync.Mutex
	path string
}{}

// DockerCLI returns the path of the docker command of exactly the version whose code the stack engine calls. It is built from the module on first use (half a
// minute) and kept in ${AXION_TOOLS:-~/.cache/axion-tools}.
func DockerCLI(t testing.TB) string {
	t.Helper()
	cli.Lock()
	defer cli.Unlock()
	if cli.path != "" {
		return cli.path
	}
	dir, err := toolsDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "docker-"+cliVersion)
	if _, err := os.Stat(path); err != nil {
		if err := buildCLI(path, t.TempDir()); err != nil {
			t.Fatalf("build the docker command: %v", err)
		}
	}
	cli.path = path
	return path
}

func toolsDir() (string, error) {
	if dir := os.Getenv("AXION_TOOLS"); dir != "" {
		return dir, os.MkdirAll(dir, 0o755)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "axion-tools")
	return dir, os.MkdirAll(dir, 0o755)
}

// buildCLI builds the command out of a copy of its module: docker/cli keeps its go.mod under another name, and the module cache is read-only.
func buildCLI(path, tmp string) error {
	download := exec.Command("go", "mod", "download", "-json", "github.com/docker/cli@v"+cliVersion+"+incompatible")
	download.Dir = tmp
	out, err := download.Output()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", download, err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return err
	}
	source := filepath.Join(tmp, "cli")
	if err := os.CopyFS(source, os.DirFS(module.Dir)); err != nil {
		return err
	}
	if err := writable(source); err != nil {
		return err
	}
	for _, name := range []string{"mod", "sum"} {
		if err := os.Rename(filepath.Join(source, "vendor."+name), filepath.Join(source, "go."+name)); err != nil {
			return err
		}
	}
	fresh := fmt.Sprintf("%s.%d", path, os.Getpid()) // another test process may build at the same time
	build := exec.Command("go", "build", "-mod=mod", "-trimpath", "-ldflags", "-s -w -X github.com/docker/cli/cli/version.Version="+cliVersion,
		"-o", fresh, "./cmd/docker")
	build.Dir, build.Env = source, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", build, err, strings.TrimSpace(string(out)))
	}
	return os.Rename(fresh, path)
}

func writable(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(path, 0o755)
		}
		return os.Chmod(path, 0o644)
	})
}

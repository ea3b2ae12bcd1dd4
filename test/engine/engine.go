// Package engine gives tests a real Docker Engine: a client to a Swarm manager, a tiny image that behaves as a test wants it to, and unique names.
// A test that asks for what the machine does not have is skipped with the reason.
//
// The image is in no registry, so services made from it must be created with `resolve-image never`. A kernel without IPVS carries no traffic for
// virtual IPs: use `endpoint_mode: dnsrr` and ports in host mode.
package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/client"
)

const (
	// pingTimeout is how long an engine may take to answer before it counts as absent.
	pingTimeout = 10 * time.Second
	// buildTimeout bounds compiling the program and building the image, cold, on a busy machine.
	buildTimeout = 5 * time.Minute
	// imageRepository is the test image's name; its tag is the hash of the program.
	imageRepository = "axion-testimage"
)

// Client returns a client to a Swarm manager, with the API version negotiated, or skips the test with the reason. It honours DOCKER_HOST.
func Client(t testing.TB) *client.Client {
	t.Helper()
	c, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		t.Skipf("no Docker client: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), pingTimeout)
	defer cancel()
	info, err := c.Info(ctx)
	if err != nil {
		t.Skipf("no Docker Engine answers: %v", err)
	}
	if !info.Swarm.ControlAvailable {
		t.Skip("the Docker Engine is not a Swarm manager")
	}
	return c
}

// Name returns prefix, a dash and ten random characters of [0-9a-f]: a name that no other test uses. It is a legal stack name.
func Name(t testing.TB, prefix string) string {
	t.Helper()
	b := make([]byte, 5)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return prefix + "-" + hex.EncodeToString(b)
}

// image is the test image's name once this process has made or found it.
var image = struct {
	sync.Mutex
	name string
}{}

// Image returns the name of an image from scratch with one static program; its modes are described in the package testimage. The image is built on the
// first use and found again by the hash of its program; it stays on the engine for the next run.
func Image(t testing.TB) string {
	t.Helper()
	c := Client(t)
	image.Lock()
	defer image.Unlock()
	if image.name != "" {
		return image.name
	}
	ctx, cancel := context.WithTimeout(t.Context(), buildTimeout)
	defer cancel()
	source := sourceDir(t)
	name := imageRepository + ":" + sourceHash(t, source)
	if _, err := c.ImageInspect(ctx, name); err != nil {
		if err := buildImage(ctx, c, name, source, t.TempDir()); err != nil {
			t.Fatalf("build the test image: %v", err)
		}
	}
	image.name = name
	return name
}

func sourceDir(t testing.TB) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("the test image's source is not to be found")
	}
	return filepath.Join(filepath.Dir(file), "testimage")
}

// sourceHash changes with the program, the Dockerfile and the Go version.
func sourceHash(t testing.TB, dir string) string {
	t.Helper()
	source, err := os.ReadFile(filepath.Join(dir, "main.go"))
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%s\n%s\n%s\n", runtime.Version(), dockerfile, source)
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// dockerfile is the image's. The program lies at the root, so that health checks can name it.
const dockerfile = "FROM scratch\nCOPY testimage /testimage\nENTRYPOINT [\"/testimage\"]\nCMD [\"sleep\"]\n"

func buildImage(ctx context.Context, c *client.Client, name, source, tmp string) error {
	program := filepath.Join(tmp, "testimage")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "main.go")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS=linux")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	tarball, err := buildContext(content)
	if err != nil {
		return err
	}
	response, err := c.ImageBuild(ctx, tarball, build.ImageBuildOptions{Tags: []string{name}, Remove: true, ForceRemove: true})
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	return buildResult(response.Body)
}

func buildContext(program []byte) (io.Reader, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range []struct {
		name    string
		mode    int64
		content []byte
	}{
		{"Dockerfile", 0o644, []byte(dockerfile)},
		{"testimage", 0o755, program},
	} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	return &buf, w.Close()
}

// buildResult reads the engine's progress to its end and returns the error that it tells of, if any.
func buildResult(body io.Reader) error {
	for decoder := json.NewDecoder(body); ; {
		var message struct {
			Error string `json:"error"`
		}
		switch err := decoder.Decode(&message); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case message.Error != "":
			return errors.New(strings.TrimSpace(message.Error))
		}
	}
}

package rig

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
)

const (
	// nodeImageRepository names the node images; the tag is the release and the hash of what they are made from.
	nodeImageRepository = "axion-rig/node"
	// mirrorEnv names another Debian mirror than the one of this machine's package sources.
	mirrorEnv     = "AXION_RIG_MIRROR"
	defaultMirror = "http://deb.debian.org/debian"
	// nodeImageTimeout bounds making a node image: about 350 MB of packages are fetched and unpacked.
	nodeImageTimeout = 15 * time.Minute
)

// bootstrapScripts are the names of debootstrap's scripts: Debian 12's debootstrap knows no forky, and the script of the unstable release serves.
var bootstrapScripts = map[Release]string{Bookworm: "bookworm", Trixie: "trixie", Forky: "sid"}

// nodePackages is what a node has besides Debian's essential packages. e2fsprogs makes the state disk.
var nodePackages = []string{"docker.io", "iptables", "ca-certificates", "iproute2", "procps", "e2fsprogs"}

// leftOut is what a node needs nothing of.
var leftOut = []string{"./var/cache/apt/archives/*.deb", "./var/lib/apt/lists/*", "./usr/share/doc/*", "./usr/share/man/*", "./usr/share/locale/*"}

func nodeImageName(release Release) string {
	sum := sha256.Sum256([]byte(strings.Join(append(append([]string{string(release)}, nodePackages...), leftOut...), "\n")))
	return nodeImageRepository + ":" + string(release) + "-" + hex.EncodeToString(sum[:6])
}

// ensureNodeImage returns the name of the node image of a release; it is made if this machine's engine does not have it, which takes a minute or two.
func (r *Rig) ensureNodeImage(ctx context.Context, release Release) (string, error) {
	name := nodeImageName(release)
	if _, err := r.docker.ImageInspect(ctx, name); err == nil {
		return name, nil
	}
	if _, err := exec.LookPath("debootstrap"); err != nil {
		return "", fmt.Errorf("node image %s: debootstrap is missing: install it, or give the nodes an image (docker:28-dind)", name)
	}
	started := time.Now()
	ctx, cancel := context.WithTimeout(ctx, nodeImageTimeout)
	defer cancel()
	if err := bootstrap(ctx, r.docker, release, name); err != nil {
		return "", fmt.Errorf("node image %s: %w", name, err)
	}
	r.log.Info("node image made", "image", name, "seconds", int(time.Since(started).Seconds()))
	return name, nil
}

// pullNodeImage brings an image that is to be used as it is to this machine's engine, unless it is there.
func (r *Rig) pullNodeImage(ctx context.Context, name string) error {
	if _, err := r.docker.ImageInspect(ctx, name); err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, nodeImageTimeout)
	defer cancel()
	if _, err := run(ctx, nil, "docker", "pull", "--quiet", name); err != nil {
		return fmt.Errorf("node image %s: %w", name, err)
	}
	return nil
}

func bootstrap(ctx context.Context, docker *client.Client, release Release, name string) (err error) {
	dir, err := os.MkdirTemp("", "axion-rig-node-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o755); err != nil { // it becomes the image's root
		return err
	}
	if _, err := run(ctx, nil, "debootstrap", "--variant=minbase", "--include="+strings.Join(nodePackages, ","), string(release), dir, mirror(ctx), bootstrapScript(release)); err != nil {
		return err
	}
	return importImage(ctx, docker, dir, name)
}

func bootstrapScript(release Release) string {
	return filepath.Join("/usr/share/debootstrap/scripts", bootstrapScripts[release])
}

// mirror returns the Debian mirror that this machine itself uses.
func mirror(ctx context.Context) string {
	if m := os.Getenv(mirrorEnv); m != "" {
		return m
	}
	out, err := run(ctx, nil, "apt-get", "indextargets", "--format", "$(SITE) $(REPO_URI)", "Created-By: Packages")
	if err != nil {
		return defaultMirror
	}
	for line := range strings.Lines(out) {
		_, uri, _ := strings.Cut(strings.TrimSpace(line), " ")
		if uri = strings.TrimSuffix(uri, "/"); strings.HasSuffix(uri, "/debian") {
			return uri
		}
	}
	return defaultMirror
}

func importImage(ctx context.Context, docker *client.Client, dir, name string) error {
	args := []string{"-C", dir}
	for _, pattern := range leftOut {
		args = append(args, "--exclude", pattern)
	}
	tar := exec.CommandContext(ctx, "tar", append(args, "-c", ".")...)
	var stderr bytes.Buffer
	tar.Stderr = &stderr
	content, err := tar.StdoutPipe()
	if err != nil {
		return err
	}
	if err := tar.Start(); err != nil {
		return err
	}
	progress, err := docker.ImageImport(ctx, image.ImportSource{Source: content, SourceName: "-"}, name, image.ImportOptions{})
	if err == nil {
		_, err = io.Copy(io.Discard, progress)
		err = errors.Join(err, progress.Close())
	}
	if waited := tar.Wait(); err == nil && waited != nil {
		err = fmt.Errorf("tar: %w: %s", waited, stderr.String())
	}
	return err
}

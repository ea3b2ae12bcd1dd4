package rig

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
	"golang.org/x/sync/errgroup"
)

const (
	// networks is how many rigs there can be at once: 198.18.0.0/24 to 198.18.63.0/24.
	networks = 64
	// planeHost and firstNode are the last bytes of addresses; the first is the machine's own.
	planeHost = 2
	firstNode = 11
	// Networks within the nodes; each node has its own.
	engineBridge = "198.19.0.1/24"
	enginePool   = "base=198.19.64.0/18,size=24"
	swarmPool    = "198.19.128.0/17"
	// engineEnded is what the start script says when an engine did not stay.
	engineEnded = "node: the engine ended"
	// logSize bounds what is kept of a host's output.
	logSize = "20m"
)

//go:embed node-start.sh
var nodeStart []byte

// ErrMachine is in the errors of Up that say that this machine cannot have a rig: no node image can be made, it runs no container in a container, or no engine in
// it. Whatever else fails is a fault of the rig or of what runs on it.
var ErrMachine = errors.New("this machine cannot have a rig")

func machine(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrMachine, err)
}

// Requirements says what this machine lacks for a rig; nil means nothing.
func Requirements(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("a rig needs root: it makes node images and works in the nodes' network namespaces")
	}
	for _, tool := range []struct{ name, pkg string }{
		{"docker", "docker.io or docker-cli"}, {"tar", "tar"}, {"nsenter", "util-linux"}, {"iptables-restore", "iptables"}, {"ip", "iproute2"}, {"ss", "iproute2"}, {"tc", "iproute2"},
	} {
		if err := lookFor(tool.name, tool.pkg); err != nil {
			return err
		}
	}
	docker, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		return err
	}
	defer func() { _ = docker.Close() }()
	if _, err := docker.Ping(ctx); err != nil {
		return fmt.Errorf("no Docker Engine answers: %w", err)
	}
	if _, err := docker.ImageInspect(ctx, nodeImageName(Bookworm)); err != nil {
		return lookFor("debootstrap", "debootstrap")
	}
	return nil
}

// Up removes what an earlier rig of that name left, and fails if another process still uses it. Then it brings up a new one: it returns when the Swarm is whole, the plane is healthy and all agents are
// connected. If that fails, nothing is left. Making a node image, once per release, takes a minute or two; the rest half a minute.
func Up(ctx context.Context, cfg Config) (_ *Rig, err error) {
	if err := cfg.normalize(); err != nil {
		return nil, err
	}
	r, err := newRig(cfg)
	if err != nil {
		return nil, err
	}
	if err := r.take(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if err := r.removeAll(ctx); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, r.Diagnosis(ctx))
			err = errors.Join(err, r.Down(ctx))
		}
	}()
	started := time.Now()
	step := func(what string) {
		r.log.Info(what, "seconds", fmt.Sprintf("%.1f", time.Since(started).Seconds()))
	}
	if err := r.startNodes(ctx, cfg); err != nil {
		return nil, err
	}
	step("engines answer")
	if err := r.makeSwarm(ctx); err != nil {
		return nil, err
	}
	step("Swarm is whole")
	images := cfg.Images
	if cfg.AgentImage != "" {
		images = append([]string{cfg.AgentImage}, images...)
	}
	if err := r.LoadImages(ctx, images...); err != nil {
		return nil, err
	}
	if r.plane == nil {
		return r, nil
	}
	if err := errors.Join(r.plane.waitHealthy(ctx), r.plane.fetchContext(ctx)); err != nil {
		return nil, err
	}
	step("plane is healthy")
	if cfg.AgentImage == "" {
		return r, nil
	}
	if err := r.installAgents(ctx, cfg.AgentImage, cfg.StackEnv); err != nil {
		return nil, err
	}
	if err := r.WaitAgents(ctx, agentsTimeout); err != nil {
		return nil, err
	}
	step("agents are connected")
	return r, nil
}

// startNodes makes network, node images, plane and nodes, and returns when every engine answers.
func (r *Rig) startNodes(ctx context.Context, cfg Config) error {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	start := filepath.Join(r.dir, "node-start")
	if err := os.WriteFile(start, nodeStart, 0o600); err != nil {
		return err
	}
	for i, n := range cfg.Nodes {
		if n.Image != "" {
			if err := r.pullNodeImage(ctx, n.Image); err != nil {
				return machine(err)
			}
			continue
		}
		image, err := r.ensureNodeImage(ctx, n.Release)
		if err != nil {
			return machine(err)
		}
		cfg.Nodes[i].Image = image
	}
	prefix, err := r.makeNetwork(ctx)
	if err != nil {
		return err
	}
	if cfg.PlaneImage != "" {
		if err := r.startPlane(ctx, cfg, host(prefix, planeHost)); err != nil {
			return err
		}
	}
	for i, n := range cfg.Nodes {
		if err := r.startNode(ctx, cfg, n, i, host(prefix, firstNode+i)); err != nil {
			return machine(err)
		}
	}
	for _, n := range r.nodes {
		if err := n.waitEngine(ctx); err != nil {
			if logs, _ := n.Logs(ctx, engineLines); strings.Contains(logs, engineEnded) {
				return machine(fmt.Errorf("%w: %s", err, tail(logs)))
			}
			return err
		}
	}
	return nil
}

// makeNetwork makes a network that leads nowhere, from the first range that no network of the engine overlaps.
func (r *Rig) makeNetwork(ctx context.Context) (netip.Prefix, error) {
	var err error
	for i := range networks {
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i), 0}), 24)
		_, err = r.docker.NetworkCreate(ctx, r.object("network"), network.CreateOptions{
			Driver: "bridge", Internal: true, Labels: r.labels(),
			IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: prefix.String(), Gateway: host(prefix, 1).String()}}},
		})
		if err == nil || !strings.Contains(err.Error(), "overlaps") {
			return prefix, err
		}
	}
	return netip.Prefix{}, fmt.Errorf("rig %s: no range of 198.18.0.0/18 is free: %w", r.name, err)
}

func host(prefix netip.Prefix, last int) netip.Addr {
	b := prefix.Addr().As4()
	b[3] = byte(last)
	return netip.AddrFrom4(b)
}

// create makes and starts the container of a host.
func (r *Rig) create(ctx context.Context, part, name string, address netip.Addr, config *container.Config, hostConfig *container.HostConfig) (Host, error) {
	h := Host{rig: r, name: name, address: address}
	if config.Labels == nil {
		config.Labels = map[string]string{}
	}
	for k, v := range map[string]string{labelRig: r.name, labelPart: part, labelName: name, labelAddress: address.String(), labelSource: r.source} {
		config.Labels[k] = v
	}
	volumeName := r.object(name)
	if _, err := r.docker.VolumeCreate(ctx, volume.CreateOptions{Name: volumeName, Labels: r.labels()}); err != nil {
		return h, h.failed("make the volume of", err)
	}
	target := planeData
	if part == partNode {
		target = "/var/lib/docker"
	}
	config.Hostname = name
	hostConfig.Mounts = append(hostConfig.Mounts, mount.Mount{Type: mount.TypeVolume, Source: volumeName, Target: target})
	hostConfig.NetworkMode = container.NetworkMode(r.object("network"))
	hostConfig.LogConfig = container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": logSize}}
	endpoint := &network.EndpointSettings{IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: address.String()}}
	created, err := r.docker.ContainerCreate(ctx, config, hostConfig,
		&network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{r.object("network"): endpoint}}, nil, r.object(name))
	if err != nil {
		return h, h.failed("make", err)
	}
	h.id = created.ID
	return h, h.start(ctx)
}

func (r *Rig) startPlane(ctx context.Context, cfg Config, address netip.Addr) error {
	h, err := r.create(ctx, partPlane, partPlane, address, planeConfig(cfg.PlaneImage, address.String(), cfg.PlaneArgs), &container.HostConfig{})
	if h.id != "" {
		r.plane = &Plane{Host: h}
	}
	return err
}

func (r *Rig) startNode(ctx context.Context, cfg Config, n NodeConfig, order int, address netip.Addr) error {
	shared := filepath.Join(r.dir, n.Name)
	if err := os.MkdirAll(shared, 0o700); err != nil {
		return err
	}
	h, err := r.create(ctx, partNode, n.Name, address, &container.Config{
		Image:      n.Image,
		Entrypoint: []string{"/bin/sh", "/node-start"},
		Cmd:        []string{},
		Env: []string{
			"STATE_DISK=" + r.object(n.Name) + ".img", "STATE_MIB=" + strconv.Itoa(cfg.StateMiB), "STATE_VOLUME=" + StateMount,
			"ENGINE_ARGS=--bip " + engineBridge + " --default-address-pool " + enginePool,
		},
		Labels:     map[string]string{labelRole: string(n.Role), labelOrder: strconv.Itoa(order)},
		StopSignal: "SIGTERM",
	}, nodeHostConfig(shared, filepath.Join(r.dir, "node-start")))
	if err != nil {
		return err
	}
	node, err := newNode(h, n.Role)
	r.nodes = append(r.nodes, node)
	return err
}

// nodeHostConfig gives a node all rights over itself and none over this machine's engine. It is not "privileged", which fails on a machine that itself lacks
// CAP_SYS_RESOURCE.
func nodeHostConfig(shared, start string) *container.HostConfig {
	return &container.HostConfig{
		CapAdd:      []string{"ALL"},
		CapDrop:     []string{"SYS_RESOURCE"},
		SecurityOpt: []string{"seccomp=unconfined", "apparmor=unconfined"},
		// No path of /proc and /sys is hidden; an empty list says so, an absent one means the default.
		MaskedPaths:   []string{},
		ReadonlyPaths: []string{},
		Resources:     container.Resources{DeviceCgroupRules: []string{"a *:* rwm"}},
		Tmpfs:         map[string]string{"/run": "exec,mode=755"},
		Mounts: []mount.Mount{
			{Type: mount.TypeBind, Source: shared, Target: socketDir},
			{Type: mount.TypeBind, Source: start, Target: "/node-start", ReadOnly: true},
		},
	}
}

// LoadImages brings images of this machine's engine to every node.
func (r *Rig) LoadImages(ctx context.Context, images ...string) error {
	if len(images) == 0 {
		return nil
	}
	file, err := os.CreateTemp(r.dir, "images-")
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	if err := os.Remove(file.Name()); err != nil { // it lives as long as it is open
		return err
	}
	saved, err := r.docker.ImageSave(ctx, images)
	if err != nil {
		return fmt.Errorf("rig %s: save images: %w", r.name, err)
	}
	size, err := io.Copy(file, saved)
	if err := errors.Join(err, saved.Close()); err != nil {
		return fmt.Errorf("rig %s: save images: %w", r.name, err)
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range r.nodes {
		group.Go(func() error { return n.load(ctx, io.NewSectionReader(file, 0, size)) })
	}
	return group.Wait()
}

func (n *Node) load(ctx context.Context, tarball io.Reader) error {
	response, err := n.client.ImageLoad(ctx, tarball, client.ImageLoadWithQuiet(true))
	if err != nil {
		return n.failed("load images on", err)
	}
	_, err = io.Copy(io.Discard, response.Body)
	return n.failed("load images on", errors.Join(err, response.Body.Close()))
}

package rig

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"regexp"
	"runtime"
)

// Bounds of Config.
const (
	// maxNodes keeps the addresses of nodes within the rig's /24 network.
	maxNodes = 32
	// defaultStateMiB is the size of the disk that holds the agent's state volume.
	defaultStateMiB = 128
	// minStateMiB is what an ext4 file system with a journal needs.
	minStateMiB = 16
)

// Role is what a node is in the Swarm when the rig comes up.
type Role string

// The roles.
const (
	Manager Role = "manager"
	Worker  Role = "worker"
)

// Release is the Debian release that a node's engine comes from.
type Release string

// The releases that nodes can be made of.
const (
	// Bookworm is Debian 12 with Engine 20.10.
	Bookworm Release = "bookworm"
	// Trixie is Debian 13 with Engine 26.1.
	Trixie Release = "trixie"
	// Forky is Debian 14 with Engine 28.5.
	Forky Release = "forky"
)

// NodeConfig describes one node.
type NodeConfig struct {
	// Name is the node's host name; unique in the rig. Empty means m1, m2, ... for managers and w1, w2, ... for workers.
	Name string
	// Role is the node's role; empty means Manager. The first node must be a manager.
	Role Role
	// Release chooses the engine; empty means Bookworm. It is not used with Image.
	Release Release
	// Image is a node image to use as it is, for example docker:28-dind where a registry is reachable. It needs sh, dockerd and mkfs.ext4.
	Image string
}

// Config describes a rig. A zero value means the default.
type Config struct {
	// Name tells rigs apart: [a-z][a-z0-9-]{0,19}. Required. Two rigs of one name cannot be up at the same time: the later one removes the earlier.
	Name string
	// Nodes are the nodes; none means three managers and one worker.
	Nodes []NodeConfig
	// PlaneImage is the control plane's image on this machine's engine; empty means no plane.
	PlaneImage string
	// PlaneArgs are added to the plane's command line.
	PlaneArgs []string
	// AgentImage is the agent's image on this machine's engine; empty means no agents. It needs a plane.
	AgentImage string
	// StackEnv are variables ("NAME=VALUE") for the agent's stack file besides the image and the plane's address.
	StackEnv []string
	// Images are further images of this machine's engine that every node gets.
	Images []string
	// StateMiB is the size of the disk of each node's agent state volume, in MiB; 0 means 128.
	StateMiB int
	// SourceDir is the source tree with deploy/axion-stack.yml and dist/axionctl; empty means the one that this package was built from.
	SourceDir string
	// Log is told what happens; nil means nobody is.
	Log *slog.Logger
}

var (
	rigName  = regexp.MustCompile(`^[a-z][a-z0-9-]{0,19}$`)
	nodeName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,19}$`)
)

// normalize sets defaults and refuses what cannot work.
func (c *Config) normalize() error {
	if err := checkName(c.Name); err != nil {
		return err
	}
	if len(c.Nodes) == 0 {
		c.Nodes = []NodeConfig{{}, {}, {}, {Role: Worker}}
	}
	if len(c.Nodes) > maxNodes {
		return fmt.Errorf("rig %s: %d nodes, at most %d are allowed", c.Name, len(c.Nodes), maxNodes)
	}
	if c.AgentImage != "" && c.PlaneImage == "" {
		return fmt.Errorf("rig %s: agents need a plane", c.Name)
	}
	c.StateMiB = cmp.Or(c.StateMiB, defaultStateMiB)
	if c.StateMiB < minStateMiB {
		return fmt.Errorf("rig %s: a state disk of %d MiB is too small, %d are needed", c.Name, c.StateMiB, minStateMiB)
	}
	c.SourceDir = cmp.Or(c.SourceDir, sourceTree())
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	nodes := make([]NodeConfig, len(c.Nodes)) // the caller's own slice stays as it is
	copy(nodes, c.Nodes)
	c.Nodes = nodes
	return c.normalizeNodes()
}

func (c *Config) normalizeNodes() error {
	count := map[Role]int{}
	seen := map[string]bool{partPlane: true}
	for i := range c.Nodes {
		n := &c.Nodes[i]
		n.Role = cmp.Or(n.Role, Manager)
		n.Release = cmp.Or(n.Release, Bookworm)
		if n.Role != Manager && n.Role != Worker {
			return fmt.Errorf("rig %s: node %d: role %q is neither manager nor worker", c.Name, i+1, n.Role)
		}
		if _, ok := bootstrapScripts[n.Release]; !ok {
			return fmt.Errorf("rig %s: node %d: release %q is none of bookworm, trixie, forky", c.Name, i+1, n.Release)
		}
		count[n.Role]++
		n.Name = cmp.Or(n.Name, fmt.Sprintf("%c%d", n.Role[0], count[n.Role]))
		if !nodeName.MatchString(n.Name) {
			return fmt.Errorf("rig %s: node %d: %q is not a name: %s is needed", c.Name, i+1, n.Name, nodeName)
		}
		if seen[n.Name] {
			return fmt.Errorf("rig %s: two parts are called %s", c.Name, n.Name)
		}
		seen[n.Name] = true
	}
	if c.Nodes[0].Role != Manager {
		return fmt.Errorf("rig %s: the first node makes the Swarm, so it must be a manager", c.Name)
	}
	return nil
}

func checkName(name string) error {
	if name == "" {
		return errors.New("the rig has no name")
	}
	if !rigName.MatchString(name) {
		return fmt.Errorf("rig %q: not a name: %s is needed", name, rigName)
	}
	return nil
}

// sourceTree is the root of the tree that this file was compiled from.
func sourceTree() string {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "."
	}
	return filepath.Join(filepath.Dir(file), "..", "..")
}

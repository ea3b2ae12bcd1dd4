package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/docker/client"
)

const (
	// engineTimeout bounds the start of an engine. Four at once on two cores take some seconds; one that recovers many containers takes longer.
	engineTimeout = 90 * time.Second
	// socketDir is where a node has the folder that it shares with the rig.
	socketDir = "/node"
	// engineOff is a file in that folder: while it is there, the engine stays down.
	engineOff = "engine.off"
	// StateMount is where the state disk of a node lies: what the engine will use as the volume of the agent's stack.
	StateMount = "/var/lib/docker/volumes/" + agentStack + "_state"
	// ballast is the file that fills the state disk.
	ballast = StateMount + "/rig-ballast"
	// enginePID is where an engine writes its process id.
	enginePID = "/run/docker.pid"
)

// Node is a machine with an engine, a member of the Swarm.
type Node struct {
	Host
	role   Role
	client *client.Client
}

func newNode(h Host, role Role) (*Node, error) {
	n := &Node{Host: h, role: role}
	var err error
	n.client, err = client.NewClientWithOpts(client.WithHost("unix://"+n.socket()), client.WithAPIVersionNegotiation())
	return n, err
}

// Role is what the node was when the rig came up.
func (n *Node) Role() Role { return n.role }

// Client is a client of the node's engine. It stays valid when the engine is started again.
func (n *Node) Client() *client.Client { return n.client }

func (n *Node) dir() string    { return filepath.Join(n.rig.dir, n.name) }
func (n *Node) socket() string { return filepath.Join(n.dir(), "docker.sock") }

// Start boots the node and returns when its engine answers, also after KillEngine. Its agent is started again by the Swarm.
func (n *Node) Start(ctx context.Context) error {
	if err := n.start(ctx); err != nil {
		return err
	}
	return n.StartEngine(ctx)
}

// KillEngine kills the engine with SIGKILL and keeps it down until StartEngine. Containers go on without it.
func (n *Node) KillEngine(ctx context.Context) error {
	if err := os.WriteFile(filepath.Join(n.dir(), engineOff), nil, 0o600); err != nil {
		return n.failed("kill the engine of", err)
	}
	_, err := n.Exec(ctx, "sh", "-c", "kill -KILL $(cat "+enginePID+")")
	return err
}

// StartEngine ends KillEngine and returns when the engine answers.
func (n *Node) StartEngine(ctx context.Context) error {
	if err := os.Remove(filepath.Join(n.dir(), engineOff)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return n.failed("start the engine of", err)
	}
	return n.waitEngine(ctx)
}

// RestartEngine has the engine end in an orderly way, as a package update does, and returns when the new one answers. Every container of the node is
// stopped by it, and those of services are started again.
func (n *Node) RestartEngine(ctx context.Context) error {
	before, err := n.Exec(ctx, "cat", enginePID)
	if err != nil {
		return err
	}
	if _, err := n.Exec(ctx, "sh", "-c", "kill -TERM $(cat "+enginePID+")"); err != nil {
		return err
	}
	if err := Wait(ctx, engineTimeout, "another engine on "+n.name, func(ctx context.Context) error {
		now, err := n.Exec(ctx, "cat", enginePID)
		if err == nil && (now == before || strings.TrimSpace(now) == "") {
			err = errors.New("the old one runs")
		}
		return err
	}); err != nil {
		return err
	}
	return n.waitEngine(ctx)
}

func (n *Node) waitEngine(ctx context.Context) error {
	return Wait(ctx, engineTimeout, "the engine of "+n.name, func(ctx context.Context) error {
		_, err := n.client.Ping(ctx)
		return err
	})
}

// FillDisk fills the disk of the agent's state volume to the last block.
func (n *Node) FillDisk(ctx context.Context) error {
	if _, err := n.Exec(ctx, "mountpoint", "-q", StateMount); err != nil {
		return n.failed("fill the disk of", fmt.Errorf("the state volume is not a disk of its own: this machine gave no loop device: %w", err))
	}
	// dd ends with an error when the disk is full; the second one takes the last blocks.
	_, err := n.Exec(ctx, "sh", "-c", "for size in 1M 4k 1; do dd if=/dev/zero bs=$size of="+ballast+" oflag=append conv=notrunc 2>/dev/null; done; sync; ! echo x >"+StateMount+"/rig-probe 2>/dev/null")
	return err
}

// FreeDisk ends FillDisk.
func (n *Node) FreeDisk(ctx context.Context) error {
	_, err := n.Exec(ctx, "rm", "-f", ballast, StateMount+"/rig-probe")
	return err
}

// LoseState takes the content of the agent's state volume away and kills the agent, as a disk that was exchanged does.
func (n *Node) LoseState(ctx context.Context) error {
	id, err := n.AgentContainer(ctx)
	if err != nil {
		return err
	}
	if err := n.client.ContainerPause(ctx, id); err != nil { // so that it writes nothing after the removal
		return n.failed("lose the state of", err)
	}
	_, err = n.Exec(ctx, "find", StateMount+"/_data", "-mindepth", "1", "-delete")
	return errors.Join(err, n.client.ContainerKill(ctx, id, "KILL"))
}

// SkewClock always fails with errors.ErrUnsupported: Linux has one wall clock for all containers (time namespaces cover only the monotonic ones), and the
// programs, being static, read it without a C library that could be told another time. A test of clock skew injects the clock (Deps.Now) in its process.
func (n *Node) SkewClock(context.Context, time.Duration) error {
	return n.failed("skew the clock of", fmt.Errorf("nodes that are containers share this machine's clock: %w", errors.ErrUnsupported))
}

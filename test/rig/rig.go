package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"
)

// Labels of what a rig makes on this machine's engine. Together they are all that Open needs.
const (
	labelRig     = "axion.rig"
	labelPart    = "axion.rig.part"
	labelName    = "axion.rig.name"
	labelRole    = "axion.rig.role"
	labelOrder   = "axion.rig.order"
	labelAddress = "axion.rig.address"
	labelSource  = "axion.rig.source"

	partNode  = "node"
	partPlane = "plane"
)

// runDir holds a folder for each rig: the sockets of its engines and the operator context. Socket paths must stay below 108 bytes.
const runDir = "/run/axion-rig"

// Rig is a Swarm of several nodes on this machine. Its methods may be used from several goroutines.
type Rig struct {
	name   string
	dir    string
	source string
	log    *slog.Logger
	docker *client.Client // this machine's engine
	nodes  []*Node
	plane  *Plane
	taken  io.Closer // keeps other processes from a rig of that name; nil if this one did not bring it up
}

// Name is the rig's name.
func (r *Rig) Name() string { return r.name }

// Nodes are the rig's nodes in the order of its Config.
func (r *Rig) Nodes() []*Node { return slices.Clone(r.nodes) }

// Node returns a node by its host name; nil if there is none.
func (r *Rig) Node(name string) *Node {
	for _, n := range r.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

// Managers are the nodes that were managers when the rig came up.
func (r *Rig) Managers() []*Node {
	return slices.DeleteFunc(r.Nodes(), func(n *Node) bool { return n.role != Manager })
}

// Workers are the nodes that were workers when the rig came up.
func (r *Rig) Workers() []*Node {
	return slices.DeleteFunc(r.Nodes(), func(n *Node) bool { return n.role != Worker })
}

// Plane is the control plane; nil if the rig has none.
func (r *Rig) Plane() *Plane { return r.plane }

// Open returns a rig that is up, for example one that another process made. It fails if there is none of that name.
func Open(ctx context.Context, name string, log *slog.Logger) (*Rig, error) {
	cfg := Config{Name: name, Log: log}
	if err := cfg.normalize(); err != nil {
		return nil, err
	}
	r, err := newRig(cfg)
	if err != nil {
		return nil, err
	}
	found, err := r.docker.ContainerList(ctx, container.ListOptions{All: true, Filters: r.filter()})
	if err != nil {
		return nil, fmt.Errorf("rig %s: %w", name, err)
	}
	orders := map[*Node]int{}
	for _, c := range found {
		address, err := netip.ParseAddr(c.Labels[labelAddress])
		if err != nil {
			return nil, fmt.Errorf("rig %s: container %s: label %s: %w", name, c.ID, labelAddress, err)
		}
		r.source = c.Labels[labelSource]
		h := Host{rig: r, name: c.Labels[labelName], id: c.ID, address: address}
		if c.Labels[labelPart] == partPlane {
			r.plane = &Plane{Host: h}
			continue
		}
		n, err := newNode(h, Role(c.Labels[labelRole]))
		if err != nil {
			return nil, err
		}
		orders[n], _ = strconv.Atoi(c.Labels[labelOrder])
		r.nodes = append(r.nodes, n)
	}
	if len(r.nodes) == 0 {
		return nil, fmt.Errorf("there is no rig %s: bring it up first", name)
	}
	slices.SortFunc(r.nodes, func(a, b *Node) int { return orders[a] - orders[b] })
	return r, nil
}

func newRig(cfg Config) (*Rig, error) {
	docker, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, err
	}
	return &Rig{name: cfg.Name, dir: filepath.Join(runDir, cfg.Name), source: cfg.SourceDir, log: cfg.Log.With("rig", cfg.Name), docker: docker}, nil
}

// Close closes the clients; the rig stays up.
func (r *Rig) Close() error {
	err := r.docker.Close()
	if r.taken != nil {
		err = errors.Join(err, r.taken.Close())
	}
	for _, n := range r.nodes {
		err = errors.Join(err, n.client.Close())
	}
	return err
}

func (r *Rig) filter() filters.Args {
	return filters.NewArgs(filters.Arg("label", labelRig+"="+r.name))
}

func (r *Rig) labels() map[string]string { return map[string]string{labelRig: r.name} }

// object is the name of a part on this machine's engine.
func (r *Rig) object(part string) string { return "axion-rig-" + r.name + "-" + part }

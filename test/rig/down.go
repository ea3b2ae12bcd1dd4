package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
)

// downTimeout bounds the removal of a rig.
const downTimeout = 3 * time.Minute

// Down removes everything that the rig made: containers, networks, volumes, sockets. Node images stay for the next rig. It goes on after a failure, so that
// as little as possible is left, and also works when ctx has ended.
func (r *Rig) Down(ctx context.Context) error {
	err := r.removeAll(ctx)
	return errors.Join(err, r.Close())
}

// Down removes the rig of that name, whoever made it and however far it came. It is no error if there is none.
func Down(ctx context.Context, name string) error {
	cfg := Config{Name: name}
	if err := cfg.normalize(); err != nil {
		return err
	}
	r, err := newRig(cfg)
	if err != nil {
		return err
	}
	return r.Down(ctx)
}

func (r *Rig) removeAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
	defer cancel()
	var failures []error
	remove := func(kind, id string, err error) {
		if err != nil && !errdefs.IsNotFound(err) {
			failures = append(failures, fmt.Errorf("rig %s: remove %s %s: %w", r.name, kind, id, err))
		}
	}
	containers, err := r.docker.ContainerList(ctx, container.ListOptions{All: true, Filters: r.filter()})
	remove("container", "list", err)
	for _, c := range containers {
		remove("container", c.ID, r.docker.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true}))
	}
	networks, err := r.docker.NetworkList(ctx, network.ListOptions{Filters: r.filter()})
	remove("network", "list", err)
	for _, n := range networks {
		remove("network", n.ID, r.docker.NetworkRemove(ctx, n.ID))
	}
	volumes, err := r.docker.VolumeList(ctx, volume.ListOptions{Filters: r.filter()})
	remove("volume", "list", err)
	for _, v := range volumes.Volumes {
		remove("volume", v.Name, r.docker.VolumeRemove(ctx, v.Name, true))
	}
	remove("folder", r.dir, os.RemoveAll(r.dir))
	for _, c := range containers {
		removeGroups(c.ID)
	}
	return errors.Join(failures...)
}

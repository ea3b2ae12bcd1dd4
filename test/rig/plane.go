package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/docker/docker/api/types/container"

	"github.com/axion/runner-agent/ctl/client"
	"github.com/axion/runner-agent/proto/operatorcontext"
)

const (
	// PlanePort is where agents and operators reach the plane.
	PlanePort = "9443"
	// KafkaPort is where the plane's embedded broker listens.
	KafkaPort = "9093"
	// planeData is the plane's data directory in its container.
	planeData = "/var/lib/axion-plane"
	// planeTimeout bounds the start of the plane.
	planeTimeout = 60 * time.Second
	// contextName is the operator context in the rig's folder.
	contextName = "context.toml"
)

// Plane is the machine with the control plane and its embedded broker.
type Plane struct{ Host }

// Address is where agents and operators reach the plane, "host:port".
func (p *Plane) Address() string { return net.JoinHostPort(p.address.String(), PlanePort) }

// ContextFile is the file with the operator context, as axionctl wants it in AXION_CONTEXT.
func (p *Plane) ContextFile() string { return filepath.Join(p.rig.dir, contextName) }

// Start starts the plane and returns when it is healthy.
func (p *Plane) Start(ctx context.Context) error {
	if err := p.start(ctx); err != nil {
		return err
	}
	return p.waitHealthy(ctx)
}

// Operator returns a client of the plane's operator API. The caller closes it.
func (p *Plane) Operator() (*client.Client, error) {
	operator, err := operatorcontext.Load(p.ContextFile())
	if err != nil {
		return nil, err
	}
	config, err := operator.ClientTLS()
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{Address: operator.Address, TLS: config, Credentials: operator.Credentials()})
}

// Axionctl runs axionctl against the plane and returns what it printed on standard output.
func (r *Rig) Axionctl(ctx context.Context, args ...string) (string, error) {
	return runCommand(r.AxionctlCommand(ctx, args...), nil)
}

// AxionctlCommand prepares a run of axionctl against the plane.
func (r *Rig) AxionctlCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(r.source, "dist", "axionctl"), args...)
	cmd.Env = append(os.Environ(), operatorcontext.EnvPath+"="+r.plane.ContextFile())
	return cmd
}

// waitHealthy waits until the plane answers its operator. The image's own health check is asked less often.
func (p *Plane) waitHealthy(ctx context.Context) error {
	return Wait(ctx, planeTimeout, "the plane", func(ctx context.Context) error {
		state, err := p.rig.docker.ContainerInspect(ctx, p.id)
		switch {
		case err != nil:
			return err
		case !state.State.Running:
			return fmt.Errorf("it ended with exit code %d", state.State.ExitCode)
		}
		_, err = p.Exec(ctx, "/axion-plane", "healthcheck", "--data", planeData)
		return err
	})
}

// fetchContext copies the operator context out of the plane.
func (p *Plane) fetchContext(ctx context.Context) error {
	_, err := run(ctx, nil, "docker", "cp", p.id+":"+planeData+"/operator.toml", p.ContextFile())
	return errors.Join(err, os.Chmod(p.ContextFile(), 0o600))
}

func planeConfig(image, address string, args []string) *container.Config {
	return &container.Config{
		Image: image,
		Cmd: append([]string{
			"serve", "--data", planeData, "--listen", net.JoinHostPort("0.0.0.0", PlanePort), "--kafka-listen", net.JoinHostPort("0.0.0.0", KafkaPort), "--advertise", address,
		}, args...),
	}
}

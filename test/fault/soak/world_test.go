package soak

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"

	ctl "github.com/axion/runner-agent/ctl/client"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	"github.com/axion/runner-agent/test/engine"
	"github.com/axion/runner-agent/test/fault/program"
	"github.com/axion/runner-agent/test/loopback"
	"github.com/axion/runner-agent/test/netproxy"
)

const (
	cluster = "soak"
	// family is how the names of all these tests' stacks begin. fault.Alone sees to it that there is one world of them at a time.
	family = "axt-soak"
	// public is the address under which the plane and its broker are known to the agent: a proxy that can be cut listens there. They themselves listen on the
	// same ports of 127.0.0.1.
	public = "127.0.0.2"
	// patience bounds what must happen soon, on a busy machine.
	patience = 90 * time.Second
	// poll is between two looks.
	poll = 100 * time.Millisecond
)

// world is a plane, an agent, the links between them, and the Swarm that they work on.
type world struct {
	t        *testing.T
	docker   *client.Client
	image    string
	prefix   string // of the names of this world's stacks
	plane    *program.Plane
	operator *ctl.Client
	toPlane  *netproxy.Proxy
	toKafka  *netproxy.Proxy
	agent    *program.Process
	dir      string // the agent's
	binary   string
	health   string
}

// newWorld starts plane and agent and waits until they work together. They end with the test, and what they left in the Swarm is removed.
func newWorld(t *testing.T, planeBinary, agentBinary string) *world {
	t.Helper()
	w := &world{
		t: t, docker: engine.Client(t), image: engine.Image(t), prefix: engine.Name(t, family), dir: t.TempDir(), binary: agentBinary,
		health: loopback.FreeAddress(t),
	}
	w.clean(family + "-") // what a killed run may have left
	t.Cleanup(func() { w.clean(w.prefix) })
	w.plane = program.NewPlane(t, planeBinary, "--advertise", public)
	w.toPlane, w.toKafka = w.proxy(w.plane.Address), w.proxy(w.plane.KafkaAddress)
	w.operator = w.plane.Operator()
	token, err := w.operator.CreateToken(t.Context(), &planev1.CreateTokenRequest{ClusterId: cluster})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.tokenFile(), []byte(token.GetToken()), 0o600); err != nil {
		t.Fatal(err)
	}
	w.startAgent()
	w.until("the agent's connection", func() error {
		list, err := w.operator.ListAgents(t.Context(), &planev1.ListAgentsRequest{})
		if err != nil {
			return err
		}
		if a := list.GetAgents(); len(a) != 1 || !a[0].GetConnected() || !a[0].GetManagerConfirmed() {
			return errors.New("it is not there as a manager")
		}
		return nil
	})
	return w
}

func (w *world) tokenFile() string { return filepath.Join(w.dir, "token") }

func (w *world) stateDir() string { return filepath.Join(w.dir, "state") }

// proxy leads from the public address to the one where the plane listens.
func (w *world) proxy(target string) *netproxy.Proxy {
	w.t.Helper()
	_, port, err := net.SplitHostPort(target)
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := netproxy.NewAt(net.JoinHostPort(public, port), target)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(p.Close)
	return p
}

func (w *world) startAgent() {
	w.t.Helper()
	w.agent = program.Start(w.t, filepath.Join(w.dir, "agent.log"), w.binary, "run",
		"--plane-address", w.toPlane.Addr(), "--plane-token-file", w.tokenFile(), "--engine-host", w.docker.DaemonHost(),
		"--agent-state-dir", w.stateDir(), "--agent-work-dir", filepath.Join(w.dir, "work"),
		"--health-listen", w.health, "--local-socket", filepath.Join(w.dir, "agent.sock"))
}

func (w *world) until(what string, done func() error) {
	w.t.Helper()
	var err error
	for began := time.Now(); time.Since(began) < patience; time.Sleep(poll) {
		if err = done(); err == nil {
			return
		}
	}
	w.t.Fatalf("waited %s for %s: %v", patience, what, err)
}

// services lists the services of a stack.
func (w *world) services(stack string) ([]swarm.Service, error) {
	return w.docker.ServiceList(w.t.Context(), swarm.ServiceListOptions{Filters: filters.NewArgs(filters.Arg("label", "com.docker.stack.namespace="+stack))})
}

// records lists what the agents keep in the Swarm about the stacks whose names begin like that: heads and manifests by the stack's name.
func (w *world) records(ctx context.Context, prefix string) (heads, manifests map[string][]swarm.Config, err error) {
	configs, err := w.docker.ConfigList(ctx, swarm.ConfigListOptions{Filters: filters.NewArgs(filters.Arg("name", "axion-"))})
	if err != nil {
		return nil, nil, err
	}
	heads, manifests = map[string][]swarm.Config{}, map[string][]swarm.Config{}
	for _, c := range configs {
		for label, into := range map[string]map[string][]swarm.Config{"axion.head": heads, "axion.manifest-of": manifests} {
			if stack := c.Spec.Labels[label]; strings.HasPrefix(stack, prefix) {
				into[stack] = append(into[stack], c)
			}
		}
	}
	return heads, manifests, nil
}

// clean removes what was made in the Swarm for stacks whose names begin like that. No agent is at work.
func (w *world) clean(prefix string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	mine := func(labels map[string]string) bool {
		return strings.HasPrefix(labels["com.docker.stack.namespace"], prefix)
	}
	stacks := filters.NewArgs(filters.Arg("label", "com.docker.stack.namespace"))
	services, err := w.docker.ServiceList(ctx, swarm.ServiceListOptions{Filters: stacks})
	for _, s := range services {
		if mine(s.Spec.Labels) {
			err = errors.Join(err, w.docker.ServiceRemove(ctx, s.ID))
		}
	}
	configs, listErr := w.docker.ConfigList(ctx, swarm.ConfigListOptions{Filters: stacks})
	heads, manifests, recordsErr := w.records(ctx, prefix)
	for _, kind := range []map[string][]swarm.Config{heads, manifests} {
		for _, list := range kind {
			configs = append(configs, list...)
		}
	}
	for _, c := range configs {
		if labels := c.Spec.Labels; mine(labels) || labels["axion.head"] != "" || labels["axion.manifest-of"] != "" {
			err = errors.Join(err, w.docker.ConfigRemove(ctx, c.ID))
		}
	}
	secrets, secretsErr := w.docker.SecretList(ctx, swarm.SecretListOptions{Filters: stacks})
	for _, s := range secrets {
		if mine(s.Spec.Labels) {
			err = errors.Join(err, w.docker.SecretRemove(ctx, s.ID))
		}
	}
	if err := errors.Join(err, listErr, recordsErr, secretsErr); err != nil {
		w.t.Errorf("what the test made in the Swarm is not all removed: %v", err)
	}
}

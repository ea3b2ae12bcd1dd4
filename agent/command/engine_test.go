package command

import (
	"context"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/axion/runner-agent/agent/fence"
	"github.com/axion/runner-agent/agent/journal"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/stack"
	"github.com/axion/runner-agent/test/engine"
	"github.com/axion/runner-agent/test/engineproxy"
)

// newManager is an agent on a real Swarm.
func newManager(t *testing.T, name string, api client.APIClient) *rig {
	t.Helper()
	j, err := journal.Open(filepath.Join(t.TempDir(), "journal.db"), journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, journal: j, topic: &topic{}}
	r.ctx, r.stop = context.WithCancel(context.Background())
	log := slog.New(slog.DiscardHandler)
	heads, err := fence.New(fence.Config{Owner: name, Recent: recentOf(t)}, fence.Deps{Client: func() fence.API { return api }, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r.runner, err = New(Config{
		WorkDir: dir, AgentID: name, ClusterID: "c1", Kafka: names, MaxConcurrent: 2, MaxMessageBytes: 1 << 20, DefaultTimeout: time.Minute,
	}, Deps{
		Journal: j, Fence: heads, Producer: r.topic, Role: func() runnerv1.NodeRole { return runnerv1.NodeRole_NODE_ROLE_MANAGER }, Warn: warnings{}, Log: log, Now: time.Now,
		Stacks: func(c Claim) (Stacks, error) {
			return stack.New(stack.Config{WorkDir: dir, Poll: 100 * time.Millisecond}, stack.Deps{Client: c.Client(api), Log: log})
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.end)
	return r
}

// recentOf names the test's own ring: tests share a Swarm.
func recentOf(t *testing.T) string {
	return fmt.Sprintf("axt-recent-%x-%d", crc32.ChecksumIEEE([]byte(t.Name())), os.Getpid())
}

// TestOwnerHeldAtEveryStep: one request of the owner is held, another manager deploys the next generation, and the owner goes on. It tells what became of its
// command, and the services are the newer generation's.
func TestOwnerHeldAtEveryStep(t *testing.T) {
	for name, hold := range map[string]struct {
		method, path string
		nth          int
	}{
		"before the claim":       {"POST", `/configs/create`, 1},
		"its first list":         {"GET", `/services\?`, 1},
		"its renewal":            {"POST", `/configs/.*/update`, 1},
		"creation of a network":  {"POST", `/networks/create`, 1},
		"creation of a service":  {"POST", `/services/create`, 1},
		"all is written":         {"POST", `/configs/.*/update`, 3},
		"a look while it waits":  {"GET", `/tasks\?`, 3},
		"its outcome's decision": {"POST", `/configs/.*/update`, 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api, image, stackName := engine.Client(t), engine.Image(t), engine.Name(t, "axt-command")
			t.Cleanup(func() { removeStack(t, api, stackName) })
			proxy := engineproxy.New(t, "/var/run/docker.sock")
			first, second := newManager(t, "first", proxy.Client(t)), newManager(t, "second", api)
			order := func(mark string, generation uint64) *runnerv1.StackDeploy {
				text := fmt.Sprintf("version: \"3.8\"\nservices: {web: {image: %q, environment: {MARK: %q}, deploy: {replicas: 0, endpoint_mode: dnsrr}}}\n", image, mark)
				d := deploy(stackName, generation)
				d.Bundle.GetPlain().Files[0].Content = []byte(text)
				d.Options = &runnerv1.DeployOptions{Prune: true, ResolveImage: runnerv1.ResolveImage_RESOLVE_IMAGE_NEVER, Timeout: durationpb.New(time.Minute)}
				return d
			}
			held := proxy.Hold(hold.method, hold.path, hold.nth)
			m1, m2 := message(t, "m1", order("1", 1)), message(t, "m2", order("2", 2))
			m1.GroupGeneration, m2.GroupGeneration = 1, 2
			done := first.runner.Handle(first.ctx, m1)
			held.Reached(t)
			second.runner.Handle(second.ctx, m2)
			if o := second.outcome("m2"); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
				t.Fatalf("the second manager: %v", o)
			}
			held.Land(t)
			if o := first.outcome("m1"); o.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUPERSEDED || o.GetCurrentGeneration() != 2 {
				t.Errorf("the first manager: %v", o)
			}
			first.settled(done)
			services, err := api.ServiceList(t.Context(), swarm.ServiceListOptions{Filters: filters.NewArgs(filters.Arg("label", "com.docker.stack.namespace="+stackName))})
			if err != nil || len(services) != 1 || services[0].Spec.TaskTemplate.ContainerSpec.Env[0] != "MARK=2" || services[0].Spec.Labels[fence.LabelGeneration] != "2/1" {
				t.Errorf("services are %+v, %v", services, err)
			}
		})
	}
}

// removeStack takes away all that a test made on the engine.
func removeStack(t *testing.T, api client.APIClient, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e, err := stack.New(stack.Config{WorkDir: t.TempDir()}, stack.Deps{Client: api, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		_, err = e.Remove(ctx, name, time.Minute, nil)
	}
	if err != nil {
		t.Errorf("clean up: %v", err)
	}
	if c, _, err := api.ConfigInspectWithRaw(ctx, recentOf(t)); err == nil {
		_ = api.ConfigRemove(ctx, c.ID)
	}
	for _, label := range []string{"axion.head=", "axion.manifest-of="} {
		configs, err := api.ConfigList(ctx, swarm.ConfigListOptions{Filters: filters.NewArgs(filters.Arg("label", label+name))})
		if err != nil {
			t.Errorf("clean up: %v", err)
		}
		for _, c := range configs {
			_ = api.ConfigRemove(ctx, c.ID)
		}
	}
}

// Package stacks gives the fault tests small stacks of their own on the machine's Swarm: commands for them, and a look at what the Swarm holds of them, past the
// agents. A service bears a mark, an environment variable, that tells one version of it from another.
package stacks

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/axion/runner-agent/agent/fence"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/stack"
	"github.com/axion/runner-agent/test/engine"
)

const (
	// cleanTimeout bounds the removal of one stack.
	cleanTimeout = 90 * time.Second
	// commandTimeout is what a deployment may take that does not say so itself.
	commandTimeout = 90 * time.Second

	labelNamespace = "com.docker.stack.namespace"
	labelHead      = "axion.head"
	labelManifest  = "axion.manifest-of"
	labelPhase     = "axion.phase"
	labelCommand   = "axion.command"
	markVariable   = "MARK"
)

// Stack is one stack.
type Stack struct {
	t     testing.TB
	api   client.APIClient
	image string
	gone  bool
	// Name is the stack's name, which no other test has.
	Name string
}

// New returns a stack whose name begins with prefix. All that the Swarm holds of it is removed when the test ends.
func New(t testing.TB, prefix string) *Stack {
	t.Helper()
	s := &Stack{t: t, api: engine.Client(t), image: engine.Image(t), Name: engine.Name(t, prefix)}
	t.Cleanup(s.Remove)
	return s
}

// Remove removes all that the Swarm holds of the stack, its head too. A second call does nothing.
func (s *Stack) Remove() {
	if s.gone {
		return
	}
	s.gone = true
	ctx, cancel := context.WithTimeout(context.Background(), cleanTimeout)
	defer cancel()
	e, err := stack.New(stack.Config{WorkDir: s.t.TempDir(), Poll: 100 * time.Millisecond}, stack.Deps{Client: s.api, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		_, err = e.Remove(ctx, s.Name, cleanTimeout, nil)
	}
	if err != nil {
		s.t.Errorf("clean up stack %s: %v", s.Name, err)
	}
	for _, label := range []string{labelHead, labelManifest} {
		for _, c := range s.configs(ctx, label) {
			_ = s.api.ConfigRemove(ctx, c.ID)
		}
	}
}

// RemoveAll removes all that the Swarm holds of stacks whose names begin with prefix. Call it when no agent lives that looks after them: a command that is delivered
// again, after its stack and the stack's head were removed past the agents, is done again.
func RemoveAll(t testing.TB, api client.APIClient, prefix string) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanTimeout)
	defer cancel()
	names := map[string]bool{}
	note := func(labels map[string]string) {
		for _, label := range []string{labelNamespace, labelHead, labelManifest} {
			if strings.HasPrefix(labels[label], prefix) {
				names[labels[label]] = true
			}
		}
	}
	services, err := api.ServiceList(ctx, swarm.ServiceListOptions{})
	if err != nil {
		t.Errorf("clean up: %v", err)
	}
	for _, s := range services {
		note(s.Spec.Labels)
	}
	configs, err := api.ConfigList(ctx, swarm.ConfigListOptions{})
	if err != nil {
		t.Errorf("clean up: %v", err)
	}
	for _, c := range configs {
		note(c.Spec.Labels)
	}
	networks, err := api.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		t.Errorf("clean up: %v", err)
	}
	for _, n := range networks {
		note(n.Labels)
	}
	for name := range names {
		(&Stack{t: t, api: api, Name: name}).Remove()
	}
}

func (s *Stack) configs(ctx context.Context, label string) []swarm.Config {
	configs, err := s.api.ConfigList(ctx, swarm.ConfigListOptions{Filters: filters.NewArgs(filters.Arg("label", label+"="+s.Name))})
	if err != nil {
		s.t.Errorf("list the configs of stack %s: %v", s.Name, err)
	}
	return configs
}

// Service is how a service of a deployment is made.
type Service struct {
	// Mark tells the versions of a service apart.
	Mark string
	// Replicas is the number of its tasks; without tasks there is nothing to wait for.
	Replicas int
	// Command is what the test image does; empty means "sleep".
	Command string
	// Deploy is added to the service's section "deploy", in YAML's flow style, and must begin with a comma.
	Deploy string
	// Health is the service's health check, in YAML's flow style; empty means none.
	Health string
}

// Marked are services without tasks: marks by the services' names.
func Marked(marks map[string]string) map[string]Service {
	services := map[string]Service{}
	for name, mark := range marks {
		services[name] = Service{Mark: mark}
	}
	return services
}

// Compose is a compose file with those services.
func (s *Stack) Compose(services map[string]Service) []byte {
	var b strings.Builder
	b.WriteString("version: \"3.8\"\nservices:\n")
	for _, name := range slices.Sorted(maps.Keys(services)) {
		v := services[name]
		fmt.Fprintf(&b, "  %s:\n    image: %s\n    command: %s\n    environment: {%s: %q}\n    deploy: {endpoint_mode: dnsrr, replicas: %d%s}\n",
			name, s.image, cmp.Or(v.Command, "sleep"), markVariable, v.Mark, v.Replicas, v.Deploy)
		if v.Health != "" {
			fmt.Fprintf(&b, "    healthcheck: %s\n", v.Health)
		}
	}
	return []byte(b.String())
}

// Deploy is a command that deploys those services and prunes others. 0 leaves the generation to others.
func (s *Stack) Deploy(generation uint64, services map[string]Service) *runnerv1.StackDeploy {
	return &runnerv1.StackDeploy{
		Stack: s.Name, Generation: generation,
		Bundle: &runnerv1.Bundle{Content: &runnerv1.Bundle_Plain{Plain: &runnerv1.BundleContent{
			WorkingDir: "/w", ComposeFiles: []string{"/w/compose.yml"}, Files: []*runnerv1.BundleFile{{Path: "/w/compose.yml", Content: s.Compose(services)}},
		}}},
		Options: &runnerv1.DeployOptions{Prune: true, ResolveImage: runnerv1.ResolveImage_RESOLVE_IMAGE_NEVER, Timeout: durationpb.New(commandTimeout)},
	}
}

// Service is the full name of a service.
func (s *Stack) Service(name string) string { return s.Name + "_" + name }

// Live returns the stack's services as the Swarm has them, by their short names.
func (s *Stack) Live() map[string]swarm.Service {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), cleanTimeout)
	defer cancel()
	all, err := s.api.ServiceList(ctx, swarm.ServiceListOptions{Filters: filters.NewArgs(filters.Arg("label", labelNamespace+"="+s.Name))})
	if err != nil {
		s.t.Fatalf("list the services of stack %s: %v", s.Name, err)
	}
	services := map[string]swarm.Service{}
	for _, service := range all {
		services[strings.TrimPrefix(service.Spec.Name, s.Name+"_")] = service
	}
	return services
}

// Marks returns the marks of the stack's services by their short names. One that is about to be removed has "tombstone" in its mark.
func (s *Stack) Marks() map[string]string {
	s.t.Helper()
	marks := map[string]string{}
	for name, service := range s.Live() {
		marks[name] = Mark(service)
		if service.Spec.Labels[fence.LabelTombstone] != "" {
			marks[name] += " tombstone"
		}
	}
	return marks
}

// Mark is a service's mark.
func Mark(service swarm.Service) string {
	for _, variable := range service.Spec.TaskTemplate.ContainerSpec.Env {
		if mark, ok := strings.CutPrefix(variable, markVariable+"="); ok {
			return mark
		}
	}
	return ""
}

// Replicas is a service's wanted number of tasks.
func Replicas(service swarm.Service) uint64 {
	if r := service.Spec.Mode.Replicated; r != nil && r.Replicas != nil {
		return *r.Replicas
	}
	return 0
}

// Head is what the tests look at of a stack's head.
type Head struct {
	Phase, Command, Generation string
}

// Decided is the phase of a head whose command has an outcome.
const Decided = string(fence.Decided)

// Head returns the stack's head; ok is false if it has none.
func (s *Stack) Head() (head Head, ok bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), cleanTimeout)
	defer cancel()
	configs := s.configs(ctx, labelHead)
	if len(configs) > 1 {
		s.t.Errorf("stack %s has %d heads", s.Name, len(configs))
	}
	if len(configs) == 0 {
		return Head{}, false
	}
	l := configs[0].Spec.Labels
	generation, _, _ := strings.Cut(l[fence.LabelGeneration], "/")
	return Head{Phase: l[labelPhase], Command: l[labelCommand], Generation: generation}, true
}

// Stale creates a service without tasks as an older generation would that creates it too late.
func (s *Stack) Stale(name string, generation uint64) {
	s.t.Helper()
	none := uint64(0)
	_, err := s.api.ServiceCreate(s.t.Context(), swarm.ServiceSpec{
		Annotations: swarm.Annotations{Name: s.Service(name), Labels: map[string]string{
			labelNamespace: s.Name, fence.LabelGeneration: fmt.Sprintf("%d/1", generation),
		}},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: s.image, Env: []string{markVariable + "=stale"}}},
		Mode:         swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &none}},
	}, swarm.ServiceCreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
}

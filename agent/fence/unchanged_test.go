package fence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	registrytypes "github.com/docker/docker/api/types/registry"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"

	"github.com/axion/runner-agent/stack"
	"github.com/axion/runner-agent/stack/bundle"
)

// counter counts the writes to what belongs to stacks.
type counter struct {
	client.APIClient
	mu     sync.Mutex
	writes map[string]int
}

func (c *counter) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writes == nil {
		c.writes = map[string]int{}
	}
	c.writes[what]++
}

// taken are the writes since the last call.
func (c *counter) taken() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	writes := c.writes
	c.writes = nil
	return writes
}

func (c *counter) ServiceCreate(ctx context.Context, s swarm.ServiceSpec, o swarm.ServiceCreateOptions) (swarm.ServiceCreateResponse, error) {
	c.count("service created")
	return c.APIClient.ServiceCreate(ctx, s, o)
}

func (c *counter) ServiceUpdate(ctx context.Context, id string, v swarm.Version, s swarm.ServiceSpec, o swarm.ServiceUpdateOptions) (swarm.ServiceUpdateResponse, error) {
	c.count("service updated")
	return c.APIClient.ServiceUpdate(ctx, id, v, s, o)
}

func (c *counter) ServiceRemove(ctx context.Context, id string) error {
	c.count("service removed")
	return c.APIClient.ServiceRemove(ctx, id)
}

func (c *counter) NetworkCreate(ctx context.Context, name string, o network.CreateOptions) (network.CreateResponse, error) {
	c.count("network created")
	return c.APIClient.NetworkCreate(ctx, name, o)
}

func (c *counter) SecretCreate(ctx context.Context, s swarm.SecretSpec) (swarm.SecretCreateResponse, error) {
	c.count("secret created")
	return c.APIClient.SecretCreate(ctx, s)
}

func (c *counter) SecretUpdate(ctx context.Context, id string, v swarm.Version, s swarm.SecretSpec) error {
	c.count("secret updated")
	return c.APIClient.SecretUpdate(ctx, id, v, s)
}

func (c *counter) ConfigCreate(ctx context.Context, s swarm.ConfigSpec) (swarm.ConfigCreateResponse, error) {
	if !strings.HasPrefix(s.Name, "axion-") {
		c.count("config created")
	}
	return c.APIClient.ConfigCreate(ctx, s)
}

func (c *counter) ConfigUpdate(ctx context.Context, id string, v swarm.Version, s swarm.ConfigSpec) error {
	if !strings.HasPrefix(s.Name, "axion-") {
		c.count("config updated")
	}
	return c.APIClient.ConfigUpdate(ctx, id, v, s)
}

// rich is a stack with what docker/cli and the engine write in different ways.
const rich = `version: "3.13"
services:
  rich:
    image: IMAGE
    command: [sleep]
    environment: {MARK: "1", Y: two, X: one}
    labels: {some.label: x}
    hostname: here
    init: false
    stop_grace_period: 0s
    read_only: true
    user: "1000"
    isolation: ""
    dns: [10.0.0.1]
    extra_hosts: ["db:10.0.0.2"]
    cap_add: [NET_ADMIN]
    cap_drop: [ALL]
    ulimits: {nproc: 100, nofile: {soft: 10, hard: 20}}
    sysctls: {net.core.somaxconn: "100"}
    healthcheck: {test: [CMD, "true"], interval: 30s, retries: 0}
    logging: {driver: json-file, options: {max-size: 1m}}
    volumes: ["data:/data", "/tmp:/host:ro", {type: tmpfs, target: /t, tmpfs: {size: 1000}}]
    networks: {back: {aliases: [one, two]}, front: {}}
    ports: ["38471:80/udp", "38472:81", {target: 82, published: 38473, mode: host}]
    configs: [{source: settings, target: /etc/settings, mode: 0440}]
    deploy:
      replicas: 0
      labels: {other: label}
      placement: {constraints: ["node.role == manager"], preferences: [{spread: node.labels.zone}], max_replicas_per_node: 2}
      resources: {limits: {cpus: "0.5", memory: 50M}, reservations: {memory: 10M}}
      restart_policy: {condition: on-failure, delay: 0s}
      update_config: {parallelism: 0, delay: 1s}
      rollback_config: {order: start-first, failure_action: continue}
  plain:
    image: IMAGE
    command: [sleep]
    environment: {MARK: PLAIN}
    stop_grace_period: 0s
    deploy: {endpoint_mode: dnsrr}
  everywhere:
    image: IMAGE
    command: [sleep]
    environment: {MARK: "1"}
    deploy: {mode: global, endpoint_mode: dnsrr, placement: {constraints: [node.labels.nowhere == x]}, restart_policy: {}}
  many:
    image: IMAGE
    environment: {MARK: "1"}
    deploy: {replicas: 0, resources: {}, update_config: {}}
networks: {front: {}, back: {attachable: true}}
volumes: {data: {}}
configs: {settings: {file: ./settings}}
`

func (r *rig) compose(text string, files map[string]string) bundle.Content {
	c := bundle.Content{WorkingDir: "/w", ComposeFiles: []string{"/w/compose.yml"}}
	c.Files = append(c.Files, bundle.File{Path: "/w/compose.yml", Content: []byte(strings.ReplaceAll(text, "IMAGE", r.image))})
	for path, content := range files {
		c.Files = append(c.Files, bundle.File{Path: path, Content: []byte(content)})
	}
	return c
}

// deployText writes all of a deployment, gives it that outcome, and returns what it says that it has changed.
func (m *manager) deployText(id string, names []string, status string, content bundle.Content) []stack.ObjectChange {
	m.t.Helper()
	cmd := Command{ID: id, Stack: m.stack, Kind: Deploy, Prune: true, GroupGeneration: m.group}
	for _, name := range names {
		cmd.Services = append(cmd.Services, m.stack+"_"+name)
	}
	c := m.claim(cmd)
	defer c.Release()
	e, err := stack.New(stack.Config{WorkDir: m.t.TempDir(), Poll: 100 * time.Millisecond}, stack.Deps{Client: c.Client(m.api), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, written := context.WithCancel(m.t.Context())
	defer written()
	applied := false
	result, err := e.Deploy(ctx, stack.Deployment{Stack: m.stack, Bundle: content, Prune: true, ResolveImage: stack.ResolveNever, Timeout: patience},
		func(ev stack.Event) {
			if _, ok := ev.(stack.ServiceProgress); ok && !applied {
				applied = true
				if err := c.Applied(m.t.Context()); err != nil {
					m.t.Errorf("%s: %v", id, err)
				}
				written() // that all converges is not what is tested
			}
		})
	if !applied {
		m.t.Fatalf("%s: %v", id, err)
	}
	if err := c.Decide(m.t.Context(), status, nil); err != nil {
		m.t.Fatal(err)
	}
	return result.Changes
}

// tasks are the ids of the stack's tasks.
func (r *rig) tasks() []string {
	r.t.Helper()
	tasks, err := r.api.TaskList(r.t.Context(), swarm.TaskListOptions{Filters: filters.NewArgs(filters.Arg("label", labelNamespace+"="+r.stack))})
	if err != nil {
		r.t.Fatal(err)
	}
	var ids []string
	for _, task := range tasks {
		ids = append(ids, task.ID)
	}
	slices.Sort(ids)
	return ids
}

// TestIdenticalDeploymentWritesNothing to the stack and restarts no task; what differs, or might be hit by an older write, is written.
func TestIdenticalDeploymentWritesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	counted := &counter{APIClient: r.api}
	m := r.manager("m", 1, counted)
	m.fence.cfg.SkipUnchanged = true
	names := []string{"rich", "plain", "everywhere", "many"}
	text := strings.ReplaceAll(rich, "PLAIN", "1")
	content := func(text string) bundle.Content { return r.compose(text, map[string]string{"/w/settings": "x"}) }

	m.deployText("c1", names, StatusSucceeded, content(text))
	counted.taken()
	r.until("a task", patience, func() bool { return len(r.tasks()) == 1 })
	state, versions, tasks := r.state(), r.versions(), r.tasks()
	unwritten := func(id string) {
		t.Helper()
		changes := m.deployText(id, names, StatusSucceeded, content(text))
		if writes := counted.taken(); len(writes) != 0 || len(changes) != 0 {
			t.Errorf("%s wrote %v and tells %v", id, writes, changes)
			r.explain()
		}
		if now := r.versions(); !maps.Equal(now, versions) {
			t.Errorf("%s: versions are %v, were %v", id, now, versions)
		}
		if now := r.tasks(); !slices.Equal(now, tasks) {
			t.Errorf("%s: tasks are %v, were %v", id, now, tasks)
		}
	}
	unwritten("c2")
	unwritten("c3") // the head's base carries on
	r.wantState(state)

	// One service changes: it alone is written.
	changed := strings.ReplaceAll(rich, "PLAIN", "2")
	m.deployText("c4", names, "failed", content(changed))
	if writes := counted.taken(); fmt.Sprint(writes) != "map[service updated:1]" {
		t.Errorf("wrote %v", writes)
	}
	state["plain"] = "2 4/1"
	r.wantState(state)

	// The generation before has failed: something of it may be under way, so everything is written.
	m.deployText("c5", names, StatusSucceeded, content(changed))
	if writes := counted.taken(); fmt.Sprint(writes) != "map[config updated:1 service updated:4]" {
		t.Errorf("after a failure wrote %v", writes)
	}
	for name := range state {
		state[name] = state[name][:2] + "5/1"
	}
	r.wantState(state)

	// A hand has changed a service and kept the label.
	versions, tasks = r.versions(), r.tasks()
	s, _, err := r.api.ServiceInspectWithRaw(t.Context(), r.stack+"_many", swarm.ServiceInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.Spec.TaskTemplate.ContainerSpec.Dir = "/by/hand"
	if _, err := r.api.ServiceUpdate(t.Context(), s.ID, s.Version, s.Spec, swarm.ServiceUpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	m.deployText("c6", names, StatusSucceeded, content(changed))
	if writes := counted.taken(); fmt.Sprint(writes) != "map[service updated:1]" {
		t.Errorf("after a change by hand wrote %v", writes)
	}

	// The switch.
	m.fence.cfg.SkipUnchanged = false
	m.deployText("c7", names, StatusSucceeded, content(changed))
	if writes := counted.taken(); fmt.Sprint(writes) != "map[config updated:1 service updated:4]" {
		t.Errorf("with the switch off wrote %v", writes)
	}
}

// explain shows what the specs are compared as.
func (r *rig) explain() {
	r.t.Helper()
	all, err := listServices(context.Background(), r.api, r.stack)
	if err != nil {
		return
	}
	for _, s := range all {
		is, _ := copied(s.Spec)
		r.t.Logf("%s is %s", s.Spec.Name, normal(is))
	}
}

// TestSecretsAreSent: nobody but the engine can tell whether a secret has changed.
func TestSecretsAreSent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	counted := &counter{APIClient: r.api}
	m := r.manager("m", 1, counted)
	m.fence.cfg.SkipUnchanged = true
	content := func(secret string) bundle.Content {
		return r.compose("version: \"3.8\"\nservices: {a: {image: IMAGE, environment: {MARK: '1'}, secrets: [s], deploy: {replicas: 0, endpoint_mode: dnsrr}}}\nsecrets: {s: {file: ./s}}\n",
			map[string]string{"/w/s": secret})
	}
	m.deployText("c1", []string{"a"}, StatusSucceeded, content("x"))
	counted.taken()
	m.deployText("c2", []string{"a"}, StatusSucceeded, content("x"))
	if writes := counted.taken(); fmt.Sprint(writes) != "map[secret updated:1]" {
		t.Errorf("wrote %v", writes)
	}
	c := m.claim(Command{ID: "c3", Stack: r.stack, Kind: Deploy, Services: []string{r.stack + "_a"}, GroupGeneration: 1})
	defer c.Release()
	e, err := stack.New(stack.Config{WorkDir: t.TempDir()}, stack.Deps{Client: c.Client(m.api), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = e.Deploy(t.Context(), stack.Deployment{Stack: r.stack, Bundle: content("y"), ResolveImage: stack.ResolveNever, Timeout: patience}, nil)
	if err == nil || !strings.Contains(err.Error(), "only updates to Labels are allowed") {
		t.Errorf("a changed secret: %v", err)
	}
}

// TestNormal: what is the same to the Swarm, and what is not.
func TestNormal(t *testing.T) {
	spec := func(text string) []byte {
		t.Helper()
		s := new(swarm.ServiceSpec)
		if err := json.Unmarshal([]byte(text), s); err != nil {
			t.Fatal(err)
		}
		return normal(s)
	}
	for name, tc := range map[string]struct {
		a, b string
		same bool
	}{
		"our labels":               {`{"Labels":{"axion.generation":"3/1","axion.restart":"x","a":"b"}}`, `{"Labels":{"a":"b"}}`, true},
		"another label":            {`{"Labels":{"a":"b"}}`, `{"Labels":{"a":"c"}}`, false},
		"only our labels":          {`{"Labels":{"axion.generation":"3/1"}}`, `{}`, true},
		"empty lists":              {`{"TaskTemplate":{"Networks":[],"Placement":{"Constraints":[]}}}`, `{}`, true},
		"runtime":                  {`{"TaskTemplate":{"Runtime":"container"}}`, `{}`, true},
		"one replica":              {`{"Mode":{"Replicated":{"Replicas":1}}}`, `{"Mode":{"Replicated":{}}}`, true},
		"no replica":               {`{"Mode":{"Replicated":{"Replicas":0}}}`, `{"Mode":{"Replicated":{}}}`, false},
		"mode":                     {`{"Mode":{"Replicated":{"Replicas":1}}}`, `{"Mode":{"Global":{}}}`, false},
		"no grace":                 {`{"TaskTemplate":{"ContainerSpec":{"StopGracePeriod":0}}}`, `{"TaskTemplate":{"ContainerSpec":{}}}`, false},
		"no delay":                 {`{"TaskTemplate":{"RestartPolicy":{"Delay":0}}}`, `{"TaskTemplate":{"RestartPolicy":{}}}`, false},
		"no init":                  {`{"TaskTemplate":{"ContainerSpec":{"Init":false}}}`, `{"TaskTemplate":{"ContainerSpec":{}}}`, false},
		"force update":             {`{"TaskTemplate":{"ForceUpdate":1}}`, `{"TaskTemplate":{"ForceUpdate":2}}`, false},
		"order of the ports":       {`{"EndpointSpec":{"Ports":[{"TargetPort":1},{"TargetPort":2}]}}`, `{"EndpointSpec":{"Mode":"vip","Ports":[{"TargetPort":2,"Protocol":"tcp"},{"TargetPort":1,"PublishMode":"ingress"}]}}`, true},
		"protocol":                 {`{"EndpointSpec":{"Ports":[{"TargetPort":1,"Protocol":"udp"}]}}`, `{"EndpointSpec":{"Ports":[{"TargetPort":1}]}}`, false},
		"endpoint":                 {`{"EndpointSpec":{"Mode":"dnsrr"}}`, `{"EndpointSpec":{}}`, false},
		"failure action":           {`{"UpdateConfig":{"Parallelism":1}}`, `{"UpdateConfig":{"Parallelism":1,"FailureAction":"pause","Order":"stop-first"}}`, true},
		"a paused failure action":  {`{"UpdateConfig":{"Parallelism":1,"FailureAction":"rollback"}}`, `{"UpdateConfig":{"Parallelism":1,"FailureAction":"pause"}}`, false},
		"parallelism":              {`{"UpdateConfig":{"Parallelism":0}}`, `{}`, false},
		"order of the environment": {`{"TaskTemplate":{"ContainerSpec":{"Env":["A=1","A=2"]}}}`, `{"TaskTemplate":{"ContainerSpec":{"Env":["A=2","A=1"]}}}`, false},
		"mount":                    {`{"TaskTemplate":{"ContainerSpec":{"Mounts":[{"Target":"/x","BindOptions":{}}]}}}`, `{"TaskTemplate":{"ContainerSpec":{"Mounts":[{"Target":"/x","Consistency":"default","BindOptions":{"Propagation":"rprivate"}}]}}}`, true},
	} {
		if same := string(spec(tc.a)) == string(spec(tc.b)); same != tc.same {
			t.Errorf("%s: same is %t\n%s\n%s", name, same, spec(tc.a), spec(tc.b))
		}
	}
}

// registry knows one image and one network.
type registry struct {
	client.APIClient
	err error
}

func (r registry) DistributionInspect(context.Context, string, string) (registrytypes.DistributionInspect, error) {
	text := `{"Descriptor":{"digest":"sha256:` + strings.Repeat("ab", 32) + `"},"Platforms":[{"os":"linux","architecture":"amd64"},{"os":"linux","architecture":"arm","variant":"v7"}]}`
	var found registrytypes.DistributionInspect
	err := json.Unmarshal([]byte(text), &found)
	return found, errors.Join(r.err, err)
}

func (r registry) NetworkInspect(_ context.Context, name string, _ network.InspectOptions) (network.Inspect, error) {
	return network.Inspect{ID: "id-of-" + name}, r.err
}

// TestAsStored: the spec is compared as the client and the engine would complete it; without a registry, or a network, there is a doubt.
func TestAsStored(t *testing.T) {
	spec := swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{
		ContainerSpec: &swarm.ContainerSpec{Image: "web"}, Networks: []swarm.NetworkAttachmentConfig{{Target: "back"}},
	}}
	f := newFenced(&Claim{}, registry{})
	got, ok := f.asStored(t.Context(), spec, true)
	if !ok || got.TaskTemplate.ContainerSpec.Image != "web:latest@sha256:"+strings.Repeat("ab", 32) || got.TaskTemplate.Networks[0].Target != "id-of-back" ||
		fmt.Sprint(got.TaskTemplate.Placement.Platforms) != "[{amd64 linux} { linux}]" {
		t.Errorf("stored as %+v", got)
	}
	if spec.TaskTemplate.ContainerSpec.Image != "web" || spec.TaskTemplate.Networks[0].Target != "back" {
		t.Error("the spec that is sent was changed")
	}
	if got, ok = f.asStored(t.Context(), spec, false); !ok || got.TaskTemplate.ContainerSpec.Image != "web:latest" || got.TaskTemplate.Placement != nil {
		t.Errorf("without a digest stored as %+v", got)
	}
	for _, digest := range []bool{true, false} {
		if _, ok := newFenced(&Claim{}, registry{err: errors.New("away")}).asStored(t.Context(), spec, digest); ok {
			t.Errorf("digest %t: certain without an answer", digest)
		}
	}
}

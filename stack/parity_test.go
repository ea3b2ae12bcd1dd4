package stack

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"

	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack/bundle"
	"github.com/axion/runner-agent/test/engine"
)

// TestSpecParity deploys stacks with the docker command and with the engine, and compares all that the Swarm then holds. AXION_CORPUS may name a folder
// with more compose files; where docker refuses one, the engine must refuse it too.
func TestSpecParity(t *testing.T) {
	t.Parallel()
	cases := map[string][]string{}
	folders, err := filepath.Glob("testdata/parity/*")
	if err != nil || len(folders) == 0 {
		t.Fatal("no cases", err)
	}
	for _, folder := range folders {
		if cases[filepath.Base(folder)], err = filepath.Glob(folder + "/compose*.yml"); err != nil {
			t.Fatal(err)
		}
	}
	if corpus := os.Getenv("AXION_CORPUS"); corpus != "" {
		files, err := filepath.Glob(corpus + "/*.y*ml")
		if err != nil || len(files) == 0 {
			t.Fatalf("AXION_CORPUS=%s has no compose files: %v", corpus, err)
		}
		for _, file := range files {
			cases[filepath.Base(file)] = []string{file}
		}
	}
	for name, files := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testParity(t, files)
		})
	}
}

func testParity(t *testing.T, files []string) {
	r := newRig(t)
	environment := map[string]string{
		"TAG": "1.2", "EMPTY": "filled in", "FROM_ENVIRONMENT": "yes", "HOME": "/home/someone", "STACK": r.stack,
	}
	// The override comes last.
	slices.SortFunc(files, func(a, b string) int { return len(a) - len(b) })
	args := []string{"stack", "deploy", "--detach=true", "--resolve-image", "never"}
	var absolute []string
	for _, file := range files {
		path, err := filepath.Abs(file)
		if err != nil {
			t.Fatal(err)
		}
		absolute = append(absolute, path)
		args = append(args, "-c", path)
	}
	command := exec.CommandContext(t.Context(), engine.DockerCLI(t), append(args, r.stack)...)
	command.Dir = r.dir
	for name, value := range environment {
		command.Env = append(command.Env, name+"="+value)
	}
	output, dockerErr := command.CombinedOutput()
	byDocker := r.swarmObjects(t)
	if _, err := r.Remove(t.Context(), r.stack, patience, nil); err != nil {
		t.Fatal(err)
	}

	err := r.deployWithoutWatching(t, bundle.GatherOptions{
		ComposeFiles: absolute, WorkingDir: r.dir, Home: environment["HOME"],
		LookupEnv: func(name string) (string, bool) { v, ok := environment[name]; return v, ok },
	})
	if dockerErr != nil {
		if f := failure.Of(err); f == nil || !strings.Contains(anyName(string(output)), anyName(strings.TrimSpace(f.Message))) {
			t.Errorf("docker says:\n%s\nwe say:\n%v", output, err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	byUs := r.swarmObjects(t)
	for name, want := range byDocker {
		if got := byUs[name]; got != want {
			t.Errorf("%s differs; docker:\n%s\nwe:\n%s", name, want, got)
		}
	}
	if len(byUs) != len(byDocker) || len(byUs) == 0 {
		t.Errorf("docker made %d objects, we %d", len(byDocker), len(byUs))
	}
}

// anyName removes the names of services and files from a refusal: of several mistakes docker tells of any one.
func anyName(text string) string {
	return regexp.MustCompile(`(services\.|service |open )[^ .:]+[^ :]*`).ReplaceAllString(text, "$1*")
}

// deployWithoutWatching deploys and stops watching at the first look.
func (r *rig) deployWithoutWatching(t *testing.T, o bundle.GatherOptions) error {
	t.Helper()
	content, err := bundle.Gather(o)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err = r.Deploy(ctx, Deployment{Stack: r.stack, Bundle: content, ResolveImage: ResolveNever, Timeout: patience}, func(e Event) {
		if _, ok := e.(ServiceProgress); ok {
			cancel()
		}
	})
	if failure.Of(err) != nil && failure.Of(err).Code == "cancelled" {
		return nil
	}
	return err
}

// swarmObjects returns what the stack consists of as JSON by kind and name, without what two equal deployments do not share.
func (r *rig) swarmObjects(t *testing.T) map[string]string {
	t.Helper()
	label := filters.NewArgs(filters.Arg("label", "com.docker.stack.namespace="+r.stack))
	services, err1 := r.api.ServiceList(t.Context(), swarm.ServiceListOptions{Filters: label})
	networks, err2 := r.api.NetworkList(t.Context(), network.ListOptions{Filters: label})
	configs, err3 := r.api.ConfigList(t.Context(), swarm.ConfigListOptions{Filters: label})
	secrets, err4 := r.api.SecretList(t.Context(), swarm.SecretListOptions{Filters: label})
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			t.Fatal(err)
		}
	}
	objects := map[string]any{}
	var ids []string
	for _, s := range services {
		objects["service "+s.Spec.Name] = s.Spec
	}
	for _, n := range networks {
		ids = append(ids, n.ID, "id of "+n.Name)
		objects["network "+n.Name] = []any{n.Driver, n.Scope, n.Internal, n.Attachable, n.Labels, n.EnableIPv6, n.Options["encrypted"]}
	}
	for _, c := range configs {
		ids = append(ids, c.ID, "id of "+c.Spec.Name)
		objects["config "+c.Spec.Name] = c.Spec
	}
	for _, s := range secrets {
		ids = append(ids, s.ID, "id of "+s.Spec.Name)
		objects["secret "+s.Spec.Name] = s.Spec
	}
	replacer := strings.NewReplacer(ids...)
	texts := map[string]string{}
	for name, object := range objects {
		text, err := json.MarshalIndent(object, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = replacer.Replace(string(text))
	}
	return texts
}

// TestRelativePathsAreTheSenders makes sure that the parity above is about what matters: the sender's folder, home and variables.
func TestRelativePathsAreTheSenders(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := r.deployWithoutWatching(t, r.gatherOptions(t, `
services:
  web: {image: IMAGE, volumes: ['./data:/data', '../up:/up', '~/cache:/cache'], deploy: {replicas: 0}}
`+hostNetwork)); err != nil {
		t.Fatal(err)
	}
	spec := r.swarmObjects(t)["service "+r.stack+"_web"]
	for _, source := range []string{r.dir + "/data", filepath.Dir(r.dir) + "/up", "/home/someone/cache"} {
		if !strings.Contains(spec, `"Source": "`+source+`"`) {
			t.Errorf("%s is not mounted: %s", source, spec)
		}
	}
}

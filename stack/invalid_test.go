package stack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"

	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack/bundle"
)

// TestRefusedWithDockersWords deploys what docker refuses, with the docker command and with the engine, and wants the same words and nothing created.
func TestRefusedWithDockersWords(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for name, tc := range map[string]struct{ compose string }{
		"no mapping":            {"- a\n- b\n"},
		"bad yaml":              {"services:\n  web: {image: x\n"},
		"unknown key":           {"services: {web: {image: IMAGE, colour: red}}"},
		"wrong type":            {"services: {web: {image: IMAGE, deploy: {replicas: many}}}"},
		"no image":              {"services: {web: {command: [sleep]}}"},
		"bad image":             {"services: {web: {image: 'Bad Image'}}"},
		"forbidden":             {"services: {web: {image: IMAGE, mem_limit: 1g, extends: {service: other}}}"},
		"version":               {"version: '2.1'\nservices: {web: {image: IMAGE}}"},
		"interpolation":         {"services: {web: {image: 'IMAGE${'}}"},
		"required variable":     {"services: {web: {image: 'IMAGE', environment: {A: '${AXT_NOT_SET?is needed}'}}}"},
		"cast":                  {"services: {web: {image: IMAGE, deploy: {replicas: '${AXT_NOT_SET:-many}'}}}"},
		"undefined network":     {"services: {web: {image: IMAGE, networks: [nowhere]}}"},
		"undefined secret":      {"services: {web: {image: IMAGE, secrets: [nothing]}}"},
		"undefined config":      {"services: {web: {image: IMAGE, configs: [nothing]}}"},
		"undefined volume":      {"services: {web: {image: IMAGE, volumes: ['data:/data']}}"},
		"empty bind":            {"services: {web: {image: IMAGE, volumes: [{type: bind, target: /x}]}}"},
		"missing network":       {"services: {web: {image: IMAGE}}\nnetworks: {default: {external: true, name: axt-no-such-network}}"},
		"folder as config":      {"services: {web: {image: IMAGE}}\nconfigs: {a: {file: .}}"},
		"config without a file": {"services: {web: {image: IMAGE}}\nconfigs: {a: {}}"},
		"bad env_file":          {"services: {web: {image: IMAGE, env_file: compose.yml}}"},
		"port":                  {"services: {web: {image: IMAGE, ports: ['99999:80']}}"},
		"restart policy":        {"services: {web: {image: IMAGE, restart: sometimes}}"},
		"mode":                  {"services: {web: {image: IMAGE, deploy: {mode: sideways}}}"},
		"empty services":        {"services: {web: }"},
	} {
		t.Run(name, func(t *testing.T) {
			compose := strings.ReplaceAll(tc.compose, "IMAGE", r.image)
			r.write(t, "compose.yml", compose)
			_, stderr, dockerErr := r.docker(t, "stack", "deploy", "--detach=true", "--resolve-image", "never", "-c", "compose.yml", r.stack)
			if dockerErr == nil {
				t.Fatalf("docker took it: %s", stderr)
			}
			if result, err := r.Remove(t.Context(), r.stack, patience, nil); err != nil {
				t.Fatal(err, result.Warnings) // docker may have made a network
			}
			path := filepath.Join(r.dir, "compose.yml")
			_, err := r.Deploy(t.Context(), Deployment{Stack: r.stack, ResolveImage: ResolveNever, Timeout: patience, Bundle: bundle.Content{
				WorkingDir: r.dir, ComposeFiles: []string{path}, Files: []bundle.File{{Path: path, Content: []byte(compose)}},
			}}, nil)
			f := failure.Of(err)
			if f == nil || f.Class != failure.Invalid {
				t.Fatalf("got %v", err)
			}
			if words := strings.TrimSpace(f.Message); !strings.Contains(stderr, words) || words == "" {
				t.Errorf("docker says:\n%s\nwe say:\n%s", stderr, words)
			}
			r.wantNothing(t)
		})
	}
}

func (r *rig) wantNothing(t *testing.T) {
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
	if n := len(services) + len(networks) + len(configs) + len(secrets); n != 0 {
		t.Errorf("%d objects were created: %+v %+v %+v %+v", n, services, networks, configs, secrets)
	}
}

func TestRefusedBeforeAnyCall(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	good := r.deployment(t, "services: {web: {image: IMAGE}}")
	secret := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(secret, []byte("private"), 0o600); err != nil {
		t.Fatal(err)
	}
	outside := good
	outside.Bundle.Files = []bundle.File{{Path: good.Bundle.ComposeFiles[0], Content: []byte("services: {web: {image: x}}\nsecrets: {key: {file: " + secret + "}}\n")}}
	unnamed, long, option := good, good, good
	unnamed.Stack, long.Stack, option.ResolveImage = ` "`, strings.Repeat("a", 64), "sometimes"
	for name, tc := range map[string]struct {
		d          Deployment
		class      failure.Class
		code, text string
	}{
		"outside the bundle": {outside, failure.Denied, "not_in_bundle", secret},
		"no name":            {unnamed, failure.Invalid, "invalid_stack_name", `invalid stack name: " \""`},
		"long name":          {long, failure.Invalid, "invalid_stack_name", "longer than 63 bytes"},
		"option":             {option, failure.Invalid, "invalid_option", "Invalid option sometimes for flag --resolve-image"},
		"empty bundle":       {Deployment{Stack: r.stack}, failure.Invalid, "invalid_bundle", ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := *r.Engine
			e.client = nil // a call would be a nil pointer
			result, err := e.Deploy(t.Context(), tc.d, nil)
			wantFailure(t, err, tc.class, tc.code, tc.text)
			if result.Status != Failed || len(result.Changes) > 0 {
				t.Errorf("%+v", result)
			}
		})
	}
}

func TestChangedConfigIsExplained(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	compose := "services: {web: {image: IMAGE, configs: [a]}}\nconfigs: {a: {file: a.txt}}" + hostNetwork
	r.write(t, "a.txt", "one")
	result, err := r.Deploy(t.Context(), r.deployment(t, compose), nil)
	wantConverged(t, result, err)
	r.write(t, "a.txt", "two")
	_, err = r.Deploy(t.Context(), r.deployment(t, compose), nil)
	wantFailure(t, err, failure.Invalid, "immutable_object", "failed to update config "+r.stack+"_a: ")
	if failure.Of(err).Hint == "" {
		t.Error("no hint")
	}
	_, stderr, _ := r.docker(t, "stack", "deploy", "--detach=true", "--resolve-image", "never", "-c", "compose.yml", r.stack)
	if !strings.Contains(stderr, err.Error()) {
		t.Errorf("docker says %q, we say %q", stderr, err)
	}
}

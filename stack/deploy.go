package stack

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"unicode"

	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/stack/options"
	"github.com/docker/cli/cli/command/stack/swarm"
	composetypes "github.com/docker/cli/cli/compose/types"
	"github.com/docker/cli/cli/config/configfile"
	clitypes "github.com/docker/cli/cli/config/types"
	"github.com/docker/cli/cli/streams"
	"github.com/docker/docker/client"
	"github.com/spf13/pflag"

	"github.com/axion/runner-agent/images"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/stack/bundle"
)

func (e *Engine) deploy(ctx context.Context, d Deployment, observe func(Event)) (Result, error) {
	r := newRecorder(e.client, observe)
	if err := validateDeployment(&d); err != nil {
		return r.result(Failed), err
	}
	dir, err := os.MkdirTemp(e.workDir, "deploy-")
	if err != nil {
		return r.result(Failed), failure.New(failure.Internal, "work_folder", e.workDir, "cannot make a private folder for the deployment: %w", err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			e.log.ErrorContext(ctx, "a deployment's private folder is left behind", "folder", dir, "error", err)
		}
	}()
	loaded, err := bundle.Load(d.Bundle, dir)
	if err != nil {
		return r.result(Failed), err
	}
	for _, warning := range loaded.Warnings {
		r.warn(warning)
	}
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	if err := e.checkManager(ctx); err != nil {
		return r.result(ended(ctx)), err
	}
	if err := check(d.Stack, e.client.ClientVersion(), loaded.Config); err != nil {
		return r.result(Failed), err
	}
	t := stackTarget(d.Stack)
	before, err := e.taskIDs(ctx, t)
	if err != nil {
		return r.result(ended(ctx)), err
	}
	if err := runDeploy(ctx, r, d, loaded); err != nil {
		return r.result(ended(ctx)), err
	}
	return e.newWatch(r, t, serviceNames(d.Stack, loaded.Config), before).run(ctx)
}

func validateDeployment(d *Deployment) error {
	if err := validateName(d.Stack); err != nil {
		return err
	}
	switch d.ResolveImage {
	case ResolveAlways, ResolveChanged, ResolveNever:
	case "":
		d.ResolveImage = ResolveAlways
	default:
		return failure.New(failure.Invalid, "invalid_option", string(d.ResolveImage), "Invalid option %s for flag --resolve-image", d.ResolveImage)
	}
	if d.Timeout <= 0 {
		d.Timeout = defaultTimeout
	}
	return nil
}

// validateName is docker/cli's check of a stack's name, and a bound; the engine refuses what is not a name to it.
func validateName(name string) error {
	trimmed := strings.TrimFunc(name, func(r rune) bool { return unicode.IsSpace(r) || r == '"' || r == '\'' })
	if trimmed == "" {
		return failure.New(failure.Invalid, "invalid_stack_name", name, "invalid stack name: %q", name)
	}
	if len(name) > MaxStackName {
		return failure.New(failure.Invalid, "invalid_stack_name", name, "invalid stack name: %q is longer than %d bytes", name, MaxStackName)
	}
	return nil
}

// checkManager asks once, before anything is changed; it also lets the client negotiate the API version before docker/cli reads it.
func (e *Engine) checkManager(ctx context.Context) error {
	info, err := e.client.Info(ctx)
	if err != nil {
		return engineFailure(err)
	}
	if !info.Swarm.ControlAvailable {
		return failure.New(failure.Unavailable, "not_a_manager", info.Name, "this node is not a swarm manager; node %s cannot change stacks", info.Name)
	}
	return nil
}

// runDeploy runs docker/cli's deployment. Its standard output repeats what the recorder tells; its standard error holds warnings.
func runDeploy(ctx context.Context, r *recorder, d Deployment, loaded *bundle.Loaded) error {
	var stderr bytes.Buffer
	cli := &commandLine{client: r, out: streams.NewOut(io.Discard), err: streams.NewOut(&stderr), config: registryLogins(d.Bundle.Credentials)}
	//lint:ignore SA1019 the module is held at the last version that exports docker stack deploy
	opts := &options.Deploy{
		Namespace:        d.Stack,
		ResolveImage:     string(d.ResolveImage),
		SendRegistryAuth: d.WithRegistryAuth,
		Prune:            d.Prune,
		Detach:           true,
	}
	//lint:ignore SA1019 the module is held at the last version that exports docker stack deploy
	err := swarm.RunDeploy(ctx, cli, detached(), opts, loaded.Config)
	r.warnLines(stderr.String())
	if err != nil {
		return loaded.Sender(engineFailure(err))
	}
	return nil
}

// detached says that --detach was given, so that docker/cli does not explain its default.
func detached() *pflag.FlagSet {
	flags := pflag.NewFlagSet("deploy", pflag.ContinueOnError)
	flags.Bool("detach", true, "")
	_ = flags.Set("detach", "true")
	return flags
}

// commandLine is the part of docker/cli's environment that its stack commands use. Another method would be a nil pointer.
type commandLine struct {
	command.Cli
	client client.APIClient
	out    *streams.Out
	err    *streams.Out
	config *configfile.ConfigFile
}

func (c *commandLine) Client() client.APIClient           { return c.client }
func (c *commandLine) Out() *streams.Out                  { return c.out }
func (c *commandLine) Err() *streams.Out                  { return c.err }
func (c *commandLine) ConfigFile() *configfile.ConfigFile { return c.config }

// registryLogins is a docker configuration that exists in memory only.
func registryLogins(credentials []bundle.Credential) *configfile.ConfigFile {
	config := configfile.New("")
	for _, c := range credentials {
		server := images.Server(c.Server)
		config.AuthConfigs[server] = clitypes.AuthConfig{
			ServerAddress: server,
			Username:      c.Username,
			Password:      c.Password,
			IdentityToken: c.IdentityToken,
		}
	}
	return config
}

// serviceNames returns the full names of the deployed services.
func serviceNames(stack string, config *composetypes.Config) []string {
	names := make([]string, 0, len(config.Services))
	for _, service := range config.Services {
		names = append(names, stack+"_"+service.Name)
	}
	return names
}

// ended tells why an operation that failed did: its context may have ended.
func ended(ctx context.Context) Status {
	switch ctx.Err() {
	case nil:
		return Failed
	case context.DeadlineExceeded:
		return TimedOut
	default:
		return Cancelled
	}
}

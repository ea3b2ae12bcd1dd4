package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/axion/runner-agent/ctl/deploy"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
)

const deployHelp = `Deploy a stack as "docker stack deploy" does, and watch it until it has converged or failed.

The compose files, every file that they refer to (env_file, configs, secrets) and the variables that they name are sent
along; no other file and no other variable is. A variable comes from the environment, else from the env files. Logins at
registries are sent only with --with-registry-auth, and only those at the registries of the stack's images.

The exit code is 0 only if every service has converged. Ctrl-C ends the watching, not the deployment. A command that no
agent has begun within the timeout (at least one minute) expires.`

const deployExamples = `  axionctl deploy -f compose.yml shop
  axionctl deploy -f compose.yml -f production.yml --env-file production.env --prune shop
  envsubst < compose.tmpl.yml | axionctl deploy -f - shop
  axionctl deploy -f compose.yml --detach -o json shop`

func (a *app) deployCommand() *cobra.Command {
	var to target
	var detach bool
	var composeFiles, envFiles []string
	var prune, registryAuth bool
	resolve := resolveImage("always")
	timeout := boundedDuration{value: 10 * time.Minute, min: minTimeout, max: maxTimeout}
	cmd := &cobra.Command{
		Use:     "deploy -f FILE [flags] STACK",
		Short:   "Deploy a stack and watch it until it has converged",
		Long:    deployHelp,
		Example: deployExamples,
		Args:    named("STACK"),
		RunE: a.run(func(ctx context.Context, args []string) error {
			message, err := deploy.Command(deploy.Options{
				Stack: args[0], ComposeFiles: composeFiles, EnvFiles: envFiles,
				Stdin: a.env.Stdin, LookupEnv: a.env.LookupEnv, WorkingDir: a.env.WorkingDir, Home: a.env.Home,
				Prune: prune, WithRegistryAuth: registryAuth, ResolveImage: resolves[string(resolve)], Timeout: timeout.value,
			})
			if err != nil {
				return err
			}
			return a.carry(ctx, watched{
				title: "deploy stack " + args[0], stack: args[0], timeout: timeout.value, detach: detach, target: to,
				request: &planev1.SubmitCommandRequest{Command: &planev1.SubmitCommandRequest_StackDeploy{StackDeploy: message}},
			})
		}),
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&composeFiles, "file", "f", nil, "compose `FILE`, or - for standard input; several are merged in order")
	flags.StringArrayVar(&envFiles, "env-file", nil, "`FILE` of variables for the compose files; a later one wins, the environment over all")
	flags.BoolVar(&prune, "prune", false, "remove services that the files no longer name")
	flags.BoolVar(&registryAuth, "with-registry-auth", false, "send docker's logins at the images' registries along, for the nodes to pull with")
	flags.Var(&resolve, "resolve-image", "when to ask the registries for digests: `always|changed|never`")
	flags.Var(&timeout, "timeout", "how long the stack may take to converge")
	flags.BoolVarP(&detach, "detach", "d", false, "print the command's id and do not watch")
	to.register(cmd)
	mustRequire(cmd, "file")
	mustComplete(cmd, "resolve-image", "always", "changed", "never")
	return cmd
}

// mustRequire makes a flag obligatory. It panics if there is no such flag, which any run of the program would show.
func mustRequire(cmd *cobra.Command, flag string) {
	if err := cmd.MarkFlagRequired(flag); err != nil {
		panic(err)
	}
}

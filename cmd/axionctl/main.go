// Command axionctl is the operator's command line against a control plane: it deploys stacks, shows what runs, and manages agents and the tokens
// with which they join. Everything that it does is in ctl/.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/axion/runner-agent/ctl/cli"
)

func main() {
	env, err := cli.System()
	if err != nil {
		fmt.Fprintln(os.Stderr, "axionctl:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := cli.Run(ctx, env)
	stop()
	os.Exit(code)
}

package cli

import (
	"context"
	"time"

	"github.com/axion/runner-agent/ctl/client"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/operatorcontext"
)

// callTimeout bounds a call that the plane answers from its own memory.
const callTimeout = 30 * time.Second

// connect reads the operator context and prepares the connection. The caller closes it.
func (a *app) connect() (*client.Client, error) {
	path := a.context
	if path == "" {
		var err error
		if path, err = operatorcontext.DefaultPath(); err != nil {
			return nil, err
		}
	}
	operator, err := operatorcontext.Load(path)
	if err != nil {
		if f := failure.Of(err); f.Code == "no_context" {
			return nil, f.WithHint("copy operator.toml from the control plane's data directory to that path, or name it with --context FILE or " + operatorcontext.EnvPath)
		}
		return nil, err
	}
	config, err := operator.ClientTLS()
	if err != nil {
		return nil, failure.New(failure.Invalid, "bad_context", path, "operator context %s: %w", path, err)
	}
	return client.New(client.Config{Address: operator.Address, TLS: config, Credentials: operator.Credentials()})
}

// call connects, makes one call and closes the connection.
func (a *app) call(ctx context.Context, timeout time.Duration, do func(context.Context, *client.Client) error) error {
	plane, err := a.connect()
	if err != nil {
		return err
	}
	defer func() { _ = plane.Close() }()
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	return do(ctx, plane)
}

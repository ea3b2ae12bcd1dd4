package local

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
)

// Client asks the agent of this host.
type Client struct {
	conn *grpc.ClientConn
	rpc  runnerv1.LocalClient
}

// Dial connects to the agent's socket. Failures: unavailable agent_not_running, denied local_socket_denied.
func Dial(ctx context.Context, path string) (*Client, error) {
	d := net.Dialer{Timeout: probeTimeout}
	probe, err := d.DialContext(ctx, "unix", path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, failure.New(failure.Denied, "local_socket_denied", path, "the agent's socket %s may not be opened: %w", path, err).
			WithHint("use sudo, or have your group set as local.group")
	}
	if err != nil {
		return nil, failure.New(failure.Unavailable, "agent_not_running", path, "no agent answers on %s: %w", path, err).
			WithHint("check that the agent runs on this host; --local-socket names another socket")
	}
	_ = probe.Close()
	conn, err := grpc.NewClient("unix:"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the kernel carries it, and the file's mode guards it
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)))
	if err != nil {
		return nil, failure.New(failure.Internal, "local_client", path, "connect to %s: %w", path, err)
	}
	return &Client{conn: conn, rpc: runnerv1.NewLocalClient(conn)}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Status tells how the agent is.
func (c *Client) Status(ctx context.Context) (*runnerv1.AgentStatus, error) {
	status, err := c.rpc.GetStatus(ctx, &runnerv1.GetStatusRequest{})
	return status, failurepb.FromStatus(err)
}

// Stack tells a stack's services and tasks, or the list of stacks if the name is empty.
func (c *Client) Stack(ctx context.Context, stack string) (*runnerv1.StackStatusResult, error) {
	result, err := c.rpc.GetStack(ctx, &runnerv1.StackStatus{Stack: stack})
	return result, failurepb.FromStatus(err)
}

// Logs gives each line of a log to out until it ends. An end that the caller wanted (ctx) is no error.
func (c *Client) Logs(ctx context.Context, req *runnerv1.LocalLogsRequest, out func(*runnerv1.LogLine) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.rpc.StreamLogs(ctx, req)
	if err != nil {
		return failurepb.FromStatus(err)
	}
	for {
		batch, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && ctx.Err() != nil:
			return nil
		case err != nil:
			return failurepb.FromStatus(err)
		case batch.GetFailure() != nil:
			return failurepb.ToError(batch.GetFailure())
		}
		for _, line := range batch.GetLines() {
			if err := out(line); err != nil {
				return err
			}
		}
	}
}

package client_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/axion/runner-agent/ctl/client"
	"github.com/axion/runner-agent/ctl/planetest"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	"github.com/axion/runner-agent/proto/failure"
	"github.com/axion/runner-agent/proto/failurepb"
	"github.com/axion/runner-agent/proto/operatorcontext"
)

func dial(t *testing.T, operator operatorcontext.Context) *client.Client {
	t.Helper()
	config, err := operator.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(client.Config{Address: operator.Address, TLS: config, Credentials: operator.Credentials()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// listen accepts connections on loopback and gives each to serve.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	return l.Addr().String()
}

// TestWhatIsInTheWay asks for the agents over each kind of obstacle and reads what the person is told.
func TestWhatIsInTheWay(t *testing.T) {
	agents := func(err error) *planetest.Script {
		return &planetest.Script{OnListAgents: func(context.Context, *planev1.ListAgentsRequest) (*planev1.ListAgentsResponse, error) {
			return nil, err
		}}
	}
	for name, tc := range map[string]struct {
		operator func(t *testing.T) operatorcontext.Context
		class    failure.Class
		code     string
		says     []string
	}{
		"nobody listens": {
			operator: func(t *testing.T) operatorcontext.Context {
				p := planetest.Start(t, &planetest.Script{})
				p.Stop()
				return p.Context
			},
			class: failure.Unavailable, code: client.CodeUnreachable, says: []string{"ADDRESS", "connection refused"},
		},
		"unknown host": {
			operator: func(t *testing.T) operatorcontext.Context {
				c := planetest.Start(t, &planetest.Script{}).Context
				c.Address = "no-such-host.invalid:9443"
				return c
			},
			class: failure.Unavailable, code: client.CodeUnreachable, says: []string{"ADDRESS", "lookup no-such-host.invalid"},
		},
		"another authority": {
			operator: func(t *testing.T) operatorcontext.Context {
				c := planetest.Start(t, &planetest.Script{}).Context
				other := planetest.NewAuthority(t)
				c.CAHash, c.CAPEM = operatorcontext.Hash(other.Certificate), other.PEM()
				return c
			},
			class: failure.Denied, code: client.CodeWrongAuthority, says: []string{"ADDRESS", "another authority"},
		},
		"another name": {
			operator: func(t *testing.T) operatorcontext.Context {
				c := planetest.Start(t, &planetest.Script{}).Context
				c.Address = strings.Replace(c.Address, "127.0.0.1", "localhost", 1)
				return c
			},
			class: failure.Denied, code: client.CodeWrongName, says: []string{"ADDRESS", "another name"},
		},
		"no TLS": {
			operator: func(t *testing.T) operatorcontext.Context {
				c := planetest.Start(t, &planetest.Script{}).Context
				c.Address = listen(t, func(conn net.Conn) {
					_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
					_ = conn.Close()
				})
				return c
			},
			class: failure.Denied, code: client.CodeNotTLS, says: []string{"ADDRESS", "does not speak TLS"},
		},
		"hangs up": {
			operator: func(t *testing.T) operatorcontext.Context {
				c := planetest.Start(t, &planetest.Script{}).Context
				c.Address = listen(t, func(conn net.Conn) { _ = conn.Close() })
				return c
			},
			class: failure.Unavailable, code: client.CodeUnreachable, says: []string{"ADDRESS"},
		},
		"wrong token": {
			operator: func(t *testing.T) operatorcontext.Context {
				c := planetest.Start(t, &planetest.Script{}).Context
				c.Token = "another"
				return c
			},
			class: failure.Denied, code: client.CodeUnauthenticated, says: []string{"ADDRESS", "token"},
		},
		"the plane's own failure": {
			operator: func(t *testing.T) operatorcontext.Context {
				return planetest.Start(t, agents(failurepb.Status(failure.New(failure.Conflict, "some_code", "shop", "stack shop is odd").WithHint("look at it")))).Context
			},
			class: failure.Conflict, code: "some_code", says: []string{"stack shop is odd"},
		},
		"a bare status": {
			operator: func(t *testing.T) operatorcontext.Context {
				return planetest.Start(t, agents(status.Error(codes.Unavailable, "starting"))).Context
			},
			class: failure.Unavailable, code: "unavailable", says: []string{"ADDRESS", "starting"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			operator := tc.operator(t)
			_, err := dial(t, operator).ListAgents(t.Context(), &planev1.ListAgentsRequest{})
			f := failure.Of(err)
			if f == nil || f.Class != tc.class || f.Code != tc.code {
				t.Fatalf("got %+v", f)
			}
			for _, part := range tc.says {
				if part = strings.Replace(part, "ADDRESS", operator.Address, 1); !strings.Contains(f.Message, part) {
					t.Errorf("%q does not say %q", f.Message, part)
				}
			}
			if f.Code != "unavailable" && f.Hint == "" {
				t.Errorf("no hint with %q", f.Message)
			}
			if strings.Contains(f.Message+f.Hint, operator.Token) {
				t.Errorf("the token is told: %q", f.Message)
			}
		})
	}
}

func TestStreamsAreExplainedToo(t *testing.T) {
	p := planetest.Start(t, &planetest.Script{})
	c := dial(t, p.Context)
	p.Stop()
	stream, err := c.WatchEvents(t.Context(), &planev1.WatchEventsRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if f := failure.Of(err); f == nil || f.Code != client.CodeUnreachable {
		t.Errorf("got %v", err)
	}
}

func TestTheCallersEndIsNoFailure(t *testing.T) {
	entered := make(chan struct{})
	p := planetest.Start(t, &planetest.Script{OnListAgents: func(ctx context.Context, _ *planev1.ListAgentsRequest) (*planev1.ListAgentsResponse, error) {
		close(entered)
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-entered
		cancel()
	}()
	if _, err := dial(t, p.Context).ListAgents(ctx, &planev1.ListAgentsRequest{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := client.New(client.Config{Address: "x:1"}); err == nil {
		t.Error("a connection without TLS")
	}
	if _, err := client.New(client.Config{Address: "x:1", TLS: &tls.Config{MinVersion: tls.VersionTLS13}}); err != nil {
		t.Error(err)
	}
}

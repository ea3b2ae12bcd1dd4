package handshake

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/axion/runner-agent/test/testca"
)

// serve makes a TLS server that shakes hands with whoever comes, and returns its address.
func serve(t *testing.T, settings *tls.Config) string {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", settings)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).HandshakeContext(t.Context())
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = listener.Close(); <-done })
	return listener.Addr().String()
}

func TestErr(t *testing.T) {
	ca, other := testca.New(t), testca.New(t)
	settings := ca.Server()
	settings.NextProtos = []string{"h2"} // gRPC insists on it
	address := serve(t, settings)
	for name, tc := range map[string]struct {
		client *tls.Config
		refuse bool
	}{
		"the server's CA is known":   {ca.Client("a-1", "shop"), false},
		"the server's CA is another": {other.Client("a-1", "shop"), true},
	} {
		t.Run(name, func(t *testing.T) {
			c := New(tc.client)
			if c.Err() != nil {
				t.Fatal("an error before the first handshake")
			}
			conn, err := net.DialTimeout("tcp", address, 10*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, _, err = c.Clone().ClientHandshake(t.Context(), "127.0.0.1", conn)
			var unknown x509.UnknownAuthorityError
			if !errors.Is(c.Err(), err) || errors.As(c.Err(), &unknown) != tc.refuse {
				t.Errorf("the handshake ended with %v, remembered is %v", err, c.Err())
			}
		})
	}
}

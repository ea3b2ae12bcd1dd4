package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/axion/runner-agent/agent/config"
	"github.com/axion/runner-agent/proto/jointoken"
)

// planeTimeout bounds the connection to the plane.
const planeTimeout = 5 * time.Second

func checkToken(_ context.Context, cfg config.Config) finding {
	_, err := readToken(cfg.Plane.TokenFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return finding{warn, err.Error(), "an agent that has no identity yet needs it: make one with `axionctl token create`"}
	case err != nil:
		return found(fail, err)
	}
	return finding{ok, cfg.Plane.TokenFile + " holds one", ""}
}

func readToken(path string) (jointoken.Token, error) {
	f, err := os.Open(path)
	if err != nil {
		return jointoken.Token{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, jointoken.MaxBytes+1))
	if err != nil {
		return jointoken.Token{}, err
	}
	return jointoken.Parse(string(text))
}

// checkPlane connects as far as a stranger can and looks at the certificate; nothing is sent.
func checkPlane(ctx context.Context, cfg config.Config) finding {
	address := cfg.Plane.Address
	ctx, cancel := context.WithTimeout(ctx, planeTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return finding{fail, fmt.Sprintf("%s cannot be reached: %v", address, err), "check plane.address, the network and its firewalls"}
	}
	defer conn.Close()
	host, _, _ := net.SplitHostPort(address)                                                                                                      // checked by the configuration
	secure := tls.Client(conn, &tls.Config{ServerName: host, InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13}) // judged below
	if err := secure.HandshakeContext(ctx); err != nil {
		return finding{fail, fmt.Sprintf("%s speaks no TLS 1.3: %v", address, err), "check that plane.address is the control plane's"}
	}
	token, err := readToken(cfg.Plane.TokenFile)
	return judge(address, host, secure.ConnectionState().PeerCertificates, token, err == nil, time.Now())
}

// judge says what to think of the certificates that the plane shows.
func judge(address, host string, shown []*x509.Certificate, token jointoken.Token, haveToken bool, now time.Time) finding {
	leaf := shown[0]
	switch {
	case now.Before(leaf.NotBefore) || now.After(leaf.NotAfter):
		return finding{
			fail, fmt.Sprintf("%s shows a certificate that is valid from %s to %s, and it is %s", address,
				leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339)),
			"compare the clocks of this node and of the plane",
		}
	case leaf.VerifyHostname(host) != nil:
		return finding{fail, fmt.Sprintf("%s shows a certificate for other names: %v", address, leaf.DNSNames), "start the plane with --advertise and that name"}
	case !haveToken:
		return finding{warn, address + " answers; without a join token its CA cannot be judged", ""}
	}
	for _, ca := range shown {
		if ca.IsCA && token.Names(ca) && cameFrom(leaf, ca, now) {
			return finding{ok, address + " answers and has the CA that the join token names", ""}
		}
	}
	return finding{fail, address + " shows a certificate of another CA than the join token names", "make a token on this very plane with `axionctl token create`, or correct plane.address"}
}

// cameFrom says whether the CA has signed the certificate.
func cameFrom(leaf, ca *x509.Certificate, now time.Time) bool {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now})
	return err == nil
}

package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/axion/runner-agent/proto/failure"
)

func open(t *testing.T, dir string, options ...Option) *CA {
	t.Helper()
	c, err := Open(dir, time.Now, options...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func request(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "a-liar"}, DNSNames: []string{"plane"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func issueAgent(t *testing.T, c *CA, key *ecdsa.PrivateKey) (Issued, tls.Certificate) {
	t.Helper()
	issued, err := c.IssueAgent(request(t, key), "shop", "a-0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(issued.PEM, pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return issued, pair
}

func TestOpenAgainIsTheSameCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	first := open(t, dir)
	info, err := os.Stat(filepath.Join(dir, keyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info.Mode(), err)
	}
	again := open(t, dir)
	if !bytes.Equal(first.Hash(), again.Hash()) || !bytes.Equal(first.CertificatePEM(), again.CertificatePEM()) {
		t.Error("the CA changed")
	}
	if err := os.Remove(filepath.Join(dir, certificateFile)); err != nil {
		t.Fatal(err)
	}
	_, agent := issueAgent(t, first, newKey(t))
	remade := open(t, dir)
	if !bytes.Equal(first.Hash(), remade.Hash()) {
		t.Error("the hash in join tokens changed with the certificate")
	}
	if _, err := agent.Leaf.Verify(x509.VerifyOptions{Roots: remade.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("a certificate from before is refused: %v", err)
	}
}

func TestOpenRefusesWhatIsDamaged(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, dir string)
		text  string
	}{
		"truncated key":         {func(t *testing.T, dir string) { truncate(t, filepath.Join(dir, keyFile)) }, keyFile + " is damaged"},
		"truncated certificate": {func(t *testing.T, dir string) { truncate(t, filepath.Join(dir, certificateFile)) }, certificateFile + " is damaged"},
		"key is gone": {func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, keyFile)); err != nil {
				t.Fatal(err)
			}
		}, "put"},
		"key of another CA": {func(t *testing.T, dir string) {
			other := t.TempDir()
			open(t, other)
			data, err := os.ReadFile(filepath.Join(other, keyFile))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, keyFile), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not the CA certificate of the key"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			open(t, dir)
			tc.spoil(t, dir)
			before, _ := os.ReadFile(filepath.Join(dir, keyFile))
			if _, err := Open(dir, time.Now); err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v", err)
			}
			if after, _ := os.ReadFile(filepath.Join(dir, keyFile)); !bytes.Equal(before, after) {
				t.Error("the key was replaced")
			}
		})
	}
}

func truncate(t *testing.T, path string) {
	t.Helper()
	if err := os.Truncate(path, 40); err != nil {
		t.Fatal(err)
	}
}

func TestIssueAgent(t *testing.T) {
	c := open(t, t.TempDir(), WithAgentLife(10*time.Hour))
	key := newKey(t)
	issued, pair := issueAgent(t, c, key)
	leaf := pair.Leaf
	if leaf.Subject.String() != "CN=a-0123456789abcdef,O=axion" {
		t.Errorf("subject %s", leaf.Subject)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "axion://clusters/shop/agents/a-0123456789abcdef" || len(leaf.DNSNames) != 0 {
		t.Errorf("names %v %v", leaf.URIs, leaf.DNSNames)
	}
	if leaf.SerialNumber.BitLen() != 128 || leaf.SerialNumber.Text(16) != issued.Serial {
		t.Errorf("serial %s has %d bits", issued.Serial, leaf.SerialNumber.BitLen())
	}
	if left := time.Until(issued.NotAfter); left < 9*time.Hour || left > 10*time.Hour || !issued.NotAfter.Equal(leaf.NotAfter) || !issued.NotBefore.Before(time.Now()) {
		t.Errorf("valid from %v to %v", issued.NotBefore, issued.NotAfter)
	}
	if !issued.PublicKey.Equal(key.Public()) {
		t.Error("the key is another")
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: c.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
		t.Error("an agent's certificate serves as a server's")
	}
	if again, _ := issueAgent(t, c, key); again.Serial == issued.Serial {
		t.Error("two certificates have one serial")
	}
	if _, err := c.IssueAgent(request(t, key), "Shop/agents/x", "a-1"); err == nil {
		t.Error("a cluster id with a slash was taken")
	}
}

func TestParseRequestRefuses(t *testing.T) {
	good := request(t, newKey(t))
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Clone(good)
	forged[len(forged)-1] ^= 1
	for name, der := range map[string][]byte{
		"nothing":             nil,
		"garbage":             []byte("certificate request"),
		"too long":            append(bytes.Clone(good), make([]byte, MaxCSRBytes)...),
		"something behind it": append(bytes.Clone(good), 0),
		"P-384":               request(t, p384),
		"RSA":                 request(t, rsaKey),
		"forged signature":    forged,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseRequest(der)
			if f := failure.Of(err); f == nil || f.Code != "bad_csr" || f.Class != failure.Invalid {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := ParseRequest(good); err != nil {
		t.Error(err)
	}
}

func FuzzParseRequest(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Fuzz(func(t *testing.T, der []byte) {
		if key, err := ParseRequest(der); err == nil && key.Curve != elliptic.P256() {
			t.Errorf("a key on %s was taken", key.Curve.Params().Name)
		}
	})
}

// handshake connects a client to a server of the plane and returns what each side saw of the other.
func handshake(t *testing.T, server, client *tls.Config) (atServer, atClient tls.ConnectionState, err error) {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	states, errs := make(chan tls.ConnectionState, 1), make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			err = conn.(*tls.Conn).HandshakeContext(t.Context())
			states <- conn.(*tls.Conn).ConnectionState()
			conn.Close()
		}
		errs <- err
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), client)
	if err == nil {
		atClient = conn.ConnectionState()
		conn.Close()
	}
	if serverErr := <-errs; serverErr != nil {
		return tls.ConnectionState{}, tls.ConnectionState{}, serverErr
	}
	return <-states, atClient, err
}

func TestServerTLS(t *testing.T) {
	c := open(t, t.TempDir())
	server, err := c.ServerTLS([]string{"plane.example", "10.1.2.3", "2001:db8::1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"plane.example", "10.1.2.3", "2001:db8::1", "localhost", "127.0.0.1", "::1"} {
		_, atClient, err := handshake(t, server, &tls.Config{RootCAs: c.Pool(), ServerName: name})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		shown := atClient.PeerCertificates
		if !bytes.Equal(shown[len(shown)-1].Raw, c.cert.Raw) {
			t.Errorf("%s: the server does not show its CA, so no agent could enrol", name)
		}
	}
	if _, _, err := handshake(t, server, &tls.Config{RootCAs: c.Pool(), ServerName: "elsewhere.example"}); err == nil {
		t.Error("the certificate is good for any name")
	}
	if _, err := c.ServerTLS([]string{"plane.example:8443"}); err == nil {
		t.Error("a host with a port was taken")
	}
}

func TestAgentFromTLS(t *testing.T) {
	c := open(t, t.TempDir())
	server, err := c.ServerTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	issued, agent := issueAgent(t, c, newKey(t))
	client, err := c.IssueClient("axion-plane")
	if err != nil {
		t.Fatal(err)
	}
	own, err := c.IssueServer(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, foreign := issueAgent(t, open(t, t.TempDir()), newKey(t))
	with := func(certs ...tls.Certificate) *tls.Config {
		return &tls.Config{RootCAs: c.Pool(), ServerName: "localhost", Certificates: certs}
	}
	state, _, err := handshake(t, server, with(agent))
	if err != nil {
		t.Fatal(err)
	}
	cluster, id, serial, err := AgentFromTLS(state)
	if err != nil || cluster != "shop" || id != "a-0123456789abcdef" || serial != issued.Serial {
		t.Errorf("got %s %s %s, %v", cluster, id, serial, err)
	}
	for name, config := range map[string]*tls.Config{"no certificate": with(), "the plane's client": with(client), "the plane's server": with(own)} {
		state, _, err := handshake(t, server, config)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, _, _, err := AgentFromTLS(state); failure.Of(err) == nil || failure.Of(err).Code != "no_agent_certificate" {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// crypto/tls would not offer a certificate of a CA that the server does not name, so it is forced.
	forced := &tls.Config{RootCAs: c.Pool(), ServerName: "localhost", GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &foreign, nil }}
	if _, _, err := handshake(t, server, forced); err == nil {
		t.Error("another CA's agent got in")
	}
}

func TestNamesIn(t *testing.T) {
	for name, tc := range map[string]struct{ cn, uri string }{
		"other name":      {"a-2", "axion://clusters/shop/agents/a-1"},
		"other scheme":    {"a-1", "spiffe://clusters/shop/agents/a-1"},
		"other host":      {"a-1", "axion://elsewhere/shop/agents/a-1"},
		"other path":      {"a-1", "axion://clusters/shop/nodes/a-1"},
		"escaped slash":   {"a-1", "axion://clusters/shop%2Fx/agents/a-1"},
		"with a query":    {"a-1", "axion://clusters/shop/agents/a-1?x"},
		"empty cluster":   {"a-1", "axion://clusters//agents/a-1"},
		"with a user":     {"a-1", "axion://x@clusters/shop/agents/a-1"},
		"upper-case name": {"A-1", "axion://clusters/shop/agents/A-1"},
	} {
		t.Run(name, func(t *testing.T) {
			u, err := url.Parse(tc.uri)
			if err != nil {
				t.Fatal(err)
			}
			if cluster, agent, ok := namesIn(&x509.Certificate{Subject: pkix.Name{CommonName: tc.cn}, URIs: []*url.URL{u}}); ok {
				t.Errorf("taken as agent %s of cluster %s", agent, cluster)
			}
		})
	}
}

func TestIssueClientRefusesAnAgentsName(t *testing.T) {
	c := open(t, t.TempDir())
	for _, name := range []string{"a-0123456789abcdef", "", "User:x"} {
		if _, err := c.IssueClient(name); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
}

func TestServerCertificateIsMadeAnewAtTwoThirds(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	c, err := Open(t.TempDir(), func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	config, err := c.ServerTLS([]string{"plane.example"})
	if err != nil {
		t.Fatal(err)
	}
	get := func() *x509.Certificate {
		cert, err := config.GetCertificate(&tls.ClientHelloInfo{})
		if err != nil {
			t.Fatal(err)
		}
		return cert.Leaf
	}
	first := get()
	now = now.Add(ownLife / 2)
	if get() != first {
		t.Error("made anew at half its life")
	}
	now = now.Add(ownLife / 4)
	if second := get(); second == first || !second.NotAfter.After(first.NotAfter) || second.VerifyHostname("plane.example") != nil {
		t.Error("not made anew at three quarters of its life")
	}
	now = now.Add(caLife - ownLife)
	last := get()
	if last.NotAfter.After(c.cert.NotAfter) {
		t.Error("a certificate outlives its CA")
	}
	now = c.cert.NotAfter
	if _, err := c.IssueServer(nil); err == nil {
		t.Error("a CA that has ended issues certificates")
	}
}

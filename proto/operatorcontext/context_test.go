package operatorcontext

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/axion/runner-agent/proto/failure"
)

func authority(t testing.TB) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func sample(t testing.TB) Context {
	t.Helper()
	ca := authority(t)
	return Context{
		Address: "127.0.0.1:9443", CAHash: Hash(ca), Token: "s3cret-token",
		CAPEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})),
	}
}

func TestSaveLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "folder", "context.toml")
	in := sample(t)
	for range 2 { // the second one replaces
		if err := in.Save(path); err != nil {
			t.Fatal(err)
		}
	}
	out, err := Load(path)
	if err != nil || out != in {
		t.Errorf("got %#v, %v", out, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v: the token is readable by others", info.Mode())
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v: something was left behind", entries, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	good := sample(t)
	write := func(change func(*Context)) string {
		c := good
		change(&c)
		path := filepath.Join(t.TempDir(), "context.toml")
		if err := c.Save(path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	raw := func(text string) string {
		path := filepath.Join(t.TempDir(), "context.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tc := range map[string]struct {
		path, code, word string
	}{
		"no file":      {filepath.Join(t.TempDir(), "none.toml"), "no_context", "no operator context"},
		"a folder":     {t.TempDir(), "bad_context", "operator context"},
		"no address":   {write(func(c *Context) { c.Address = "" }), "bad_context", "address"},
		"no port":      {write(func(c *Context) { c.Address = "plane" }), "bad_context", "address"},
		"no token":     {write(func(c *Context) { c.Token = "" }), "bad_context", "token"},
		"no CA":        {write(func(c *Context) { c.CAPEM = "" }), "bad_context", "ca_pem"},
		"another CA":   {write(func(c *Context) { c.CAPEM = sample(t).CAPEM }), "bad_context", "ca_hash"},
		"unknown key":  {raw("address = 'x:1'\ntokn = 's3cret-token'\n"), "bad_context", `line 2: key "tokn"`},
		"no TOML":      {raw("address = 'x:1'\ntoken = s3cret-token\n"), "bad_context", "line 2"},
		"wrong type":   {raw("token = ['s3cret-token']\n"), "bad_context", "line 1"},
		"far too long": {raw(strings.Repeat("#s3cret-token\n", maxFile/10)), "bad_context", "larger"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(tc.path)
			f := failure.Of(err)
			if f == nil || f.Class != failure.Invalid || f.Code != tc.code || !strings.Contains(f.Message, tc.word) {
				t.Fatalf("got %+v", f)
			}
			if !strings.Contains(f.Message, tc.path) || strings.Contains(f.Message, good.Token) {
				t.Errorf("%q must name the file and not the token", f.Message)
			}
		})
	}
}

func TestTokenIsNeverPrinted(t *testing.T) {
	c := sample(t)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(verb, c); strings.Contains(text, c.Token) {
			t.Errorf("%s prints %s", verb, text)
		}
	}
}

func TestDefaultPath(t *testing.T) {
	for name, tc := range map[string]struct {
		named, home, want string
	}{
		"named":   {"/x/c.toml", "/home/u", "/x/c.toml"},
		"home":    {"", "/home/u", "/home/u/.config/axion/context.toml"},
		"nothing": {"", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(EnvPath, tc.named)
			t.Setenv("HOME", tc.home)
			got, err := DefaultPath()
			if got != tc.want || (err == nil) != (tc.want != "") {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	c := sample(t)
	md, err := c.Credentials().GetRequestMetadata(context.Background())
	if err != nil || md["authorization"] != "Bearer s3cret-token" || !c.Credentials().RequireTransportSecurity() {
		t.Errorf("%v, %v", md, err)
	}
	cfg, err := c.ClientTLS()
	if err != nil || cfg.ServerName != "127.0.0.1" || cfg.MinVersion != tls.VersionTLS13 || cfg.RootCAs == nil {
		t.Errorf("%+v, %v", cfg, err)
	}
}

// FuzzParse: foreign bytes may do no more than fail, and what parses can be used.
func FuzzParse(f *testing.F) {
	path := filepath.Join(f.TempDir(), "context.toml")
	if err := sample(f).Save(path); err != nil {
		f.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("address = 1"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse(text)
		if err != nil {
			return
		}
		if _, err := c.ClientTLS(); err != nil {
			t.Errorf("%v", err)
		}
	})
}

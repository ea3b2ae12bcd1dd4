package jointoken

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"

	"github.com/axion/runner-agent/proto/failure"
)

func certificate(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestRoundTrip(t *testing.T) {
	ca := certificate(t)
	in := Token{Secret: NewSecret(), CAHash: HashCA(ca)}
	out, err := Parse("\n " + in.String() + "\r\n")
	if err != nil {
		t.Fatal(err)
	}
	if out != in || !out.Secret.Equal(in.Secret) {
		t.Error("the token came back as another")
	}
	if !out.Names(ca) || out.Names(certificate(t)) {
		t.Error("a token names its own CA and no other")
	}
	if !out.Secret.HasHash(in.Secret.Hash()) || NewSecret().HasHash(in.Secret.Hash()) || out.Secret.HasHash("") {
		t.Error("a secret has its own hash and no other")
	}
	if alone, err := ParseSecret(in.Secret.Text()); err != nil || alone != in.Secret {
		t.Errorf("the secret alone: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	good := Token{Secret: NewSecret()}.String()
	parts := strings.Split(good, ".")
	for name, text := range map[string]string{
		"nothing":         "",
		"white space":     " \n",
		"other format":    "axn2." + parts[1] + "." + parts[2],
		"secret only":     parts[1],
		"no hash":         Prefix + "." + parts[1],
		"a part too many": good + ".x",
		"short secret":    Prefix + "." + parts[1][:40] + "." + parts[2],
		"short hash":      good[:len(good)-4],
		"padding":         Prefix + "." + parts[1] + "=." + parts[2],
		"stray bits":      Prefix + "." + parts[1][:42] + "B." + parts[2],
		"standard base64": Prefix + "." + strings.Repeat("+/", 21) + "A." + parts[2],
		"inner space":     Prefix + ". " + parts[1] + "." + parts[2],
		"too long":        good + strings.Repeat(" ", MaxBytes),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(text)
			if f := failure.Of(err); f == nil || f.Code != "token_malformed" || f.Class != failure.Invalid {
				t.Fatalf("got %v", err)
			}
			if strings.Contains(err.Error(), parts[1]) {
				t.Error("the error gives the secret away")
			}
		})
	}
}

func TestSecretStaysOutOfLogs(t *testing.T) {
	token := Token{Secret: NewSecret()}
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "token", token, "secret", token.Secret)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "token", token, "secret", token.Secret)
	fmt.Fprintf(&out, "%v %s %#v %+v", token.Secret, token.Secret, token.Secret, struct{ S Secret }{token.Secret})
	if strings.Contains(out.String(), token.Secret.Text()) {
		t.Errorf("the secret is in %s", out.String())
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Token{Secret: NewSecret()}.String())
	f.Add("axn1..")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := Parse(text)
		if err != nil {
			return
		}
		if token.String() != strings.TrimSpace(text) {
			t.Errorf("%q was read and is written as %q", text, token.String())
		}
	})
}

package kafka_test

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/axion/runner-agent/test/kafka"
)

// Users of the brokers' SASL listener, as the administrator of a managed Kafka would make them.
const (
	planeUser     = "axion-plane"
	planePassword = "plane-password"
	agentUser     = "axion-agent"
	agentPassword = "agent-password"
)

// planePrincipal is the name in the certificate that a plane shows a Kafka.
const planePrincipal = "User:CN=plane,O=axion"

// TestOneBroker is everything that one broker is enough for; the broker's own certificate is not of the planes' CAs, as with a managed Kafka.
func TestOneBroker(t *testing.T) {
	t.Parallel()
	for _, version := range kafka.Versions() {
		t.Run(version, func(t *testing.T) {
			withCertificates := newSite(t)
			begun := time.Now()
			c := kafka.Start(t, kafka.Options{
				Version: version, ClientCAs: withCertificates.ca.CertificatePEM(), SuperUsers: []string{planePrincipal, "User:" + planeUser},
				PlainUsers: map[string]string{planeUser: planePassword, agentUser: agentPassword},
				// A broker that was killed may come back when its session has ended: after 9 s, unless told otherwise.
				Properties: map[string]string{"broker.session.timeout.ms": "3000"},
			})
			figure(t, "start of the broker", time.Since(begun))
			prepareUsers(t, c)
			t.Run("at once", func(t *testing.T) { // most of these wait for the groups' first rebalance, 3 s
				t.Run("certificates", func(t *testing.T) { testCertificates(t, c, withCertificates) })
				t.Run("agents with SCRAM of the plane", func(t *testing.T) { testAgentSCRAM(t, c) })
				t.Run("agents with credentials of their own", func(t *testing.T) { testOwnCredentials(t, c) })
				t.Run("wrong credentials", func(t *testing.T) { testWrongCredentials(t, c) })
				t.Run("unknown CA", func(t *testing.T) { testUnknownCA(t, c) })
				t.Run("killed owner", func(t *testing.T) { testKilledOwner(t, c) })
			})
			t.Run("broker hangs", func(t *testing.T) { testBrokerHangs(t, c) })
			t.Run("broker killed", func(t *testing.T) { testBrokerKilled(t, c) })
		})
	}
}

func TestSkipsWithoutJava(t *testing.T) {
	t.Setenv("PATH", "")
	t.Setenv("AXION_KAFKA", "")
	t.Run("start", func(t *testing.T) {
		kafka.Start(t, kafka.Options{})
		t.Error("it runs without Java")
	})
}

// prepareUsers is what the administrator of a managed Kafka does.
func prepareUsers(t *testing.T, c *kafka.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, mechanism := range []kadm.ScramMechanism{kadm.ScramSha256, kadm.ScramSha512} {
		for user, password := range map[string]string{planeUser: planePassword, agentUser: agentPassword} {
			if err := c.AddSCRAM(ctx, mechanism, user, password); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.Allow(ctx, kadm.NewACLs().Allow("User:"+agentUser).AllowHosts("*").ResourcePatternType(kadm.ACLPatternPrefixed).
		Topics("runner.").Groups("runner.").Operations(kadm.OpRead, kadm.OpWrite)); err != nil {
		t.Fatal(err)
	}
}

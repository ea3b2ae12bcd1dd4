package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// good returns a membership that passes its check, and its key.
func good(tb testing.TB) (*membership, *ecdsa.PrivateKey) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return &membership{
		agentID: "a-1", clusterID: "shop", nodeID: "node1", certificatePEM: text, caPEM: text, heartbeat: time.Second,
		kafka: &runnerv1.KafkaAccess{
			Brokers: []string{"kafka:9092"}, AgentTopic: "t1", AgentGroup: "g1", ClusterTopic: "t2", ClusterGroup: "g2", EventsTopic: "t3", DlqTopic: "t4",
		},
	}, key
}

func TestCheckRefuses(t *testing.T) {
	other, otherKey := good(t)
	for name, tc := range map[string]struct {
		spoil func(*membership)
		text  string
	}{
		"bad agent id":        {func(m *membership) { m.agentID = "../x" }, "agent id"},
		"bad cluster id":      {func(m *membership) { m.clusterID = "" }, "cluster id"},
		"no node":             {func(m *membership) { m.nodeID = "" }, "node id"},
		"no certificate":      {func(m *membership) { m.certificatePEM = nil }, "agent's certificate"},
		"no CA":               {func(m *membership) { m.caPEM = []byte("x") }, "CA certificate"},
		"other key":           {func(m *membership) { m.certificatePEM = other.certificatePEM }, "another key"},
		"other CA":            {func(m *membership) { m.caPEM = other.caPEM }, "not one of the plane's CA"},
		"huge certificate":    {func(m *membership) { m.certificatePEM = make([]byte, maxCertificatePEM+1) }, "more than"},
		"no kafka":            {func(m *membership) { m.kafka = nil }, "brokers"},
		"too many brokers":    {func(m *membership) { m.kafka.Brokers = make([]string, maxBrokers+1) }, "brokers"},
		"broker without port": {func(m *membership) { m.kafka.Brokers = []string{"kafka"} }, "host:port"},
		"no topic":            {func(m *membership) { m.kafka.EventsTopic = "" }, "topic"},
		"long topic":          {func(m *membership) { m.kafka.AgentTopic = strings.Repeat("x", maxTopic+1) }, "topic"},
		"long password": {func(m *membership) {
			m.kafka.Sasl = &runnerv1.SaslCredentials{Password: strings.Repeat("hunter2", 40)}
		}, "credentials"},
		"bad kafka CA":  {func(m *membership) { m.kafka.CaPem = []byte("x") }, "CA certificates"},
		"huge kafka CA": {func(m *membership) { m.kafka.CaPem = make([]byte, maxKafkaCAPEM+1) }, "CA certificates"},
	} {
		t.Run(name, func(t *testing.T) {
			m, key := good(t)
			tc.spoil(m)
			err := m.check(key)
			if err == nil || !strings.Contains(err.Error(), tc.text) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := other.check(otherKey); err != nil {
		t.Error(err)
	}
}

func TestHeartbeatIsBounded(t *testing.T) {
	for in, want := range map[time.Duration]time.Duration{
		0: defaultHeartbeat, -time.Second: minHeartbeat, time.Millisecond: minHeartbeat, time.Hour: maxHeartbeat, time.Minute: time.Minute,
	} {
		m, key := good(t)
		m.heartbeat = in
		if err := m.check(key); err != nil || m.heartbeat != want {
			t.Errorf("%v became %v, want %v; %v", in, m.heartbeat, want, err)
		}
	}
}

func TestStoredMembershipComesBack(t *testing.T) {
	m, key := good(t)
	m.encryptionKey = []byte("public")
	back, err := parseMembership(stored(t, m), key)
	if err != nil {
		t.Fatal(err)
	}
	if back.agentID != m.agentID || back.clusterID != m.clusterID || back.nodeID != m.nodeID || back.heartbeat != m.heartbeat ||
		string(back.encryptionKey) != "public" || !proto.Equal(back.kafka, m.kafka) {
		t.Errorf("got %+v", back)
	}
}

func stored(tb testing.TB, m *membership) []byte {
	tb.Helper()
	s, err := m.stored()
	if err != nil {
		tb.Fatal(err)
	}
	data, err := json.Marshal(s)
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

func FuzzParseMembership(f *testing.F) {
	m, key := good(f)
	f.Add(stored(f, m))
	f.Add([]byte(`{"agent_id":"a-1","kafka":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := parseMembership(data, key); err == nil && (m.certificate.Leaf == nil || len(m.cas) == 0 || len(m.kafka.GetBrokers()) == 0) {
			t.Errorf("taken: %+v", m)
		}
	})
}

package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"regexp"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// Bounds of what a plane gives, in bytes, as the contract has them.
const (
	maxCertificatePEM = 64 << 10
	maxKafkaCAPEM     = 256 << 10
	maxBrokers        = 16
	maxTopic          = 249
	maxCredential     = 255
	maxNodeID         = 64
)

var idPattern = regexp.MustCompile(`^[a-z0-9-]{1,40}$`)

// membership is what the plane gave to the agent. It is never changed, only replaced.
type membership struct {
	agentID, clusterID string
	nodeID             string // the Swarm node that enrolled
	certificate        tls.Certificate
	certificatePEM     []byte
	caPEM              []byte
	cas                []*x509.Certificate
	kafka              *runnerv1.KafkaAccess
	heartbeat          time.Duration
	encryptionKey      []byte // the public key that the plane was told
}

// check fills in what the PEM texts hold, and refuses what does not fit together: it comes from the plane, or from a disk.
func (m *membership) check(key *ecdsa.PrivateKey) (err error) {
	if !idPattern.MatchString(m.agentID) || !idPattern.MatchString(m.clusterID) {
		return errors.New("the agent id or the cluster id is not [a-z0-9-]{1,40}")
	}
	if m.nodeID == "" || len(m.nodeID) > maxNodeID {
		return errors.New("there is no node id")
	}
	if len(m.certificatePEM) > maxCertificatePEM || len(m.caPEM) > maxCertificatePEM {
		return fmt.Errorf("the certificates have more than %d bytes", maxCertificatePEM)
	}
	chain, err := parseCertificates(m.certificatePEM)
	if err != nil {
		return fmt.Errorf("the agent's certificate: %w", err)
	}
	if m.cas, err = parseCertificates(m.caPEM); err != nil {
		return fmt.Errorf("the plane's CA certificate: %w", err)
	}
	if !key.PublicKey.Equal(chain[0].PublicKey) {
		return errors.New("the certificate is for another key than the agent's")
	}
	if err := verifyOwn(chain, m.cas); err != nil {
		return fmt.Errorf("the certificate is not one of the plane's CA: %w", err)
	}
	m.certificate = tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		m.certificate.Certificate = append(m.certificate.Certificate, c.Raw)
	}
	if m.heartbeat == 0 {
		m.heartbeat = defaultHeartbeat
	}
	m.heartbeat = min(max(m.heartbeat, minHeartbeat), maxHeartbeat)
	return checkKafka(m.kafka)
}

// verifyOwn checks the chain as of the end of its life: whether it has ended is asked elsewhere, again and again.
func verifyOwn(chain, cas []*x509.Certificate) error {
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: pool(cas), Intermediates: pool(chain[1:]), CurrentTime: chain[0].NotAfter,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

func checkKafka(k *runnerv1.KafkaAccess) error {
	if n := len(k.GetBrokers()); n == 0 || n > maxBrokers {
		return fmt.Errorf("access to kafka: there are %d brokers, 1 to %d are allowed", n, maxBrokers)
	}
	for _, broker := range k.GetBrokers() {
		if _, _, err := net.SplitHostPort(broker); err != nil {
			return fmt.Errorf("access to kafka: broker %q is not host:port", broker)
		}
	}
	for _, name := range []string{k.GetAgentTopic(), k.GetAgentGroup(), k.GetClusterTopic(), k.GetClusterGroup(), k.GetEventsTopic(), k.GetDlqTopic()} {
		if name == "" || len(name) > maxTopic {
			return fmt.Errorf("access to kafka: the topic or group %q is empty or has more than %d bytes", name, maxTopic)
		}
	}
	if len(k.GetSasl().GetUsername()) > maxCredential || len(k.GetSasl().GetPassword()) > maxCredential {
		return fmt.Errorf("access to kafka: the credentials have more than %d bytes", maxCredential)
	}
	if len(k.GetCaPem()) == 0 {
		return nil
	}
	if len(k.GetCaPem()) > maxKafkaCAPEM {
		return fmt.Errorf("access to kafka: the CA certificates have more than %d bytes", maxKafkaCAPEM)
	}
	if _, err := parseCertificates(k.GetCaPem()); err != nil {
		return fmt.Errorf("access to kafka: CA certificates: %w", err)
	}
	return nil
}

func (m *membership) life() time.Duration {
	return m.certificate.Leaf.NotAfter.Sub(m.certificate.Leaf.NotBefore)
}

// renewAt is when 2/3 of the certificate's life are over: the last third is for a plane that is away.
func (m *membership) renewAt() time.Time { return m.certificate.Leaf.NotBefore.Add(m.life() * 2 / 3) }

func (m *membership) ended(now time.Time) bool { return !now.Before(m.certificate.Leaf.NotAfter) }

// storedMembership is the form of a membership on the volume. It is one file, so that no crash can leave a certificate beside another's Kafka access.
type storedMembership struct {
	AgentID     string          `json:"agent_id"`
	ClusterID   string          `json:"cluster_id"`
	NodeID      string          `json:"node_id"`
	Certificate string          `json:"certificate"`
	CA          string          `json:"ca"`
	Kafka       json.RawMessage `json:"kafka"` // axion.runner.v1.KafkaAccess as protojson
	Heartbeat   time.Duration   `json:"heartbeat_nanoseconds"`
	Encryption  []byte          `json:"encryption_key"` // the public key that the plane was told
}

func (m *membership) stored() (storedMembership, error) {
	kafka, err := protojson.Marshal(m.kafka)
	if err != nil {
		return storedMembership{}, err
	}
	return storedMembership{
		AgentID: m.agentID, ClusterID: m.clusterID, NodeID: m.nodeID,
		Certificate: string(m.certificatePEM), CA: string(m.caPEM), Kafka: kafka, Heartbeat: m.heartbeat, Encryption: m.encryptionKey,
	}, nil
}

// parseMembership reads the file. Its errors quote nothing of it: it holds a password.
func parseMembership(data []byte, key *ecdsa.PrivateKey) (*membership, error) {
	var stored storedMembership
	if err := json.Unmarshal(data, &stored); err != nil {
		return nil, errors.New("it is not whole")
	}
	return stored.membership(key)
}

func (s storedMembership) membership(key *ecdsa.PrivateKey) (*membership, error) {
	m := &membership{
		agentID: s.AgentID, clusterID: s.ClusterID, nodeID: s.NodeID,
		certificatePEM: []byte(s.Certificate), caPEM: []byte(s.CA), heartbeat: s.Heartbeat, encryptionKey: s.Encryption,
		kafka: &runnerv1.KafkaAccess{},
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(s.Kafka, m.kafka); err != nil {
		return nil, errors.New("the access to kafka cannot be read") // the cause could quote the password
	}
	return m, m.check(key)
}

// with returns the membership after a renewal for those keys.
func (m *membership) with(resp *runnerv1.RenewResponse, key *ecdsa.PrivateKey, encryptionKey []byte) (*membership, error) {
	next := &membership{
		agentID: m.agentID, clusterID: m.clusterID, nodeID: m.nodeID, heartbeat: m.heartbeat, encryptionKey: encryptionKey,
		certificatePEM: bytes.Clone(resp.GetCertificatePem()), caPEM: bytes.Clone(resp.GetCaPem()), kafka: proto.CloneOf(resp.GetKafka()),
	}
	return next, next.check(key)
}

// parseCertificates reads one or more certificates in PEM.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		list = append(list, cert)
	}
	if len(list) == 0 {
		return nil, errors.New("there is none in it")
	}
	return list, nil
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

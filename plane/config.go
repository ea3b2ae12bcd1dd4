package plane

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// Defaults of Config.
const (
	// DefaultListen is where the plane listens unless it is told otherwise: nothing is offered to the network by accident.
	DefaultListen = "127.0.0.1:9443"
	// DefaultKafkaListen is where the embedded broker listens.
	DefaultKafkaListen = "127.0.0.1:9093"
)

// Names within the data directory.
const (
	contextFile  = "operator.toml"
	databaseFile = "plane.db"
	caDir        = "ca"
	kafkaDir     = "kafka"
	lockFile     = "lock"
	addressFile  = "address"
	secretFile   = "kafka.secret"
)

// maxAdvertised is how many names the plane may have.
const maxAdvertised = 32

// Config configures a Plane. A zero value means the default.
type Config struct {
	// DataDir holds everything that lasts: certificate authority, database, embedded broker, operator context. Required.
	DataDir string
	// Listen is the "host:port" of the one listener that agents and operators connect to.
	Listen string
	// Advertise are the host names and IP addresses by which others reach the plane; they stand in its certificate. The first is what the operator context
	// and the embedded broker name. Empty means the host of Listen, or 127.0.0.1 if that is none.
	Advertise []string
	// KafkaListen is the "host:port" of the embedded broker. It is not used with KafkaBrokers.
	KafkaListen string
	// KafkaBrokers are the "host:port" of a Kafka that is used in place of the embedded broker.
	KafkaBrokers []string
	// KafkaSASL are the plane's credentials at KafkaBrokers; nil means that its certificate is enough.
	KafkaSASL *runnerv1.SaslCredentials
	// KafkaAgentSCRAM makes SCRAM-SHA-512 credentials at KafkaBrokers for each agent. Without it agents are known there by the names in their certificates.
	KafkaAgentSCRAM bool
	// KafkaNoACLs keeps the plane from changing access rights at KafkaBrokers, where its user may not: whoever may must set them.
	KafkaNoACLs bool
	// KafkaCAPEM are the CA certificates of KafkaBrokers; empty means the plane's own CA.
	KafkaCAPEM []byte
	// KafkaPlaintext speaks to KafkaBrokers without TLS; for a development broker on loopback only.
	KafkaPlaintext bool
	// ForgetBundles keeps no deployment's files and credentials after its end. Then nothing can be offered again when a Swarm comes back from a backup.
	ForgetBundles bool
	// CertificateLife is how long agents' certificates are valid; 0 means the certificate authority's default.
	CertificateLife time.Duration
	// HeartbeatInterval is how often agents are heard of; 0 means 5 s.
	HeartbeatInterval time.Duration
}

// normalize sets defaults and refuses what cannot work.
func (c *Config) normalize() error {
	if c.DataDir == "" {
		return errors.New("the data directory has no name")
	}
	if c.Listen == "" {
		c.Listen = DefaultListen
	}
	if c.KafkaListen == "" {
		c.KafkaListen = DefaultKafkaListen
	}
	listen, err := hostOf("listen", c.Listen)
	if err != nil {
		return err
	}
	if _, err := hostOf("kafka-listen", c.KafkaListen); err != nil {
		return err
	}
	for _, b := range c.KafkaBrokers {
		if _, err := hostOf("kafka-brokers", b); err != nil {
			return err
		}
	}
	if len(c.Advertise) == 0 {
		c.Advertise = []string{reachable(listen)}
	}
	if len(c.Advertise) > maxAdvertised {
		return fmt.Errorf("advertise: %d names, at most %d are allowed", len(c.Advertise), maxAdvertised)
	}
	for _, name := range c.Advertise {
		if name == "" || (net.ParseIP(name) == nil && strings.ContainsAny(name, ":/ ")) {
			return fmt.Errorf("advertise: %q is neither a host name nor an IP address; it takes no port", name)
		}
	}
	if len(c.KafkaBrokers) == 0 && (c.KafkaSASL != nil || c.KafkaAgentSCRAM || c.KafkaNoACLs || len(c.KafkaCAPEM) > 0 || c.KafkaPlaintext) {
		return errors.New("kafka-brokers: there are options for a Kafka of your own, but no broker is named")
	}
	if c.KafkaSASL != nil && (c.KafkaSASL.GetUsername() == "" || c.KafkaSASL.GetPassword() == "") {
		return errors.New("kafka-sasl: user name and password are needed")
	}
	return nil
}

func hostOf(key, address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "" {
		return "", fmt.Errorf("%s: %q is not \"host:port\"", key, address)
	}
	return host, nil
}

// reachable returns a host to connect to on this machine for a host to listen on.
func reachable(listen string) string {
	ip := net.ParseIP(listen)
	switch {
	case listen == "" || (ip != nil && ip.IsUnspecified()):
		return "127.0.0.1"
	default:
		return listen
	}
}

// ContextPath returns the file with the operator context in a data directory.
func ContextPath(dataDir string) string { return filepath.Join(dataDir, contextFile) }

// Package kafka gives tests a real Apache Kafka: its jars from Maven Central, one broker or several in KRaft mode as processes of this machine, all on
// loopback. A broker asks for client certificates on one listener and for SASL over TLS on another, and an authorizer decides what each may do, as a Kafka in
// production would.
//
// Java (17 or newer) and Maven are needed; where one of them is missing the test is skipped with the reason. The jars stay in the user's cache folder.
package kafka

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/axion/runner-agent/test/testca"
)

// The versions of Apache Kafka that the tests know: the newest of each generation that is wholly on Maven Central.
const (
	Version4 = "4.3.1"
	Version3 = "3.9.2"
)

// allVariable names the environment variable that makes the tests run on all versions, and a missing Java or Maven a failure, when it is "all".
const allVariable = "AXION_KAFKA"

const (
	// maxBrokers bounds Options.Brokers.
	maxBrokers = 5
	// startTimeout bounds the start of all brokers, cold, on a busy machine.
	startTimeout = 2 * time.Minute
	// pollEvery is how often the brokers are looked at while they are waited for.
	pollEvery = 100 * time.Millisecond
	// requestTimeout bounds one such look.
	requestTimeout = 5 * time.Second
	// scramIterations is the least number that Kafka takes.
	scramIterations = 4096
)

// adminPrincipal is whom the brokers see in Cluster.Admin.
const (
	adminName         = "admin"
	adminOrganization = "kafka"
)

// Versions returns the versions of Kafka that a test is to run on: the newest, or with AXION_KAFKA=all the newest of each generation.
func Versions() []string {
	if os.Getenv(allVariable) == "all" {
		return []string{Version4, Version3}
	}
	return []string{Version4}
}

// Options say which Kafka. The zero value is one broker of the newest version.
type Options struct {
	// Version is Version4 if it is empty.
	Version string
	// Brokers is the number of brokers, 1 to 5; 0 means 1. With 2 or more, topics of Kafka's own have that many replicas, at most 3.
	Brokers int
	// ClientCAs are certificates, in PEM, of CAs whose client certificates the listener for certificates accepts, beside the cluster's own CA.
	ClientCAs []byte
	// Certificate issues the brokers' certificate on the listener for certificates, for the given hosts. nil means the cluster's own CA.
	Certificate func(hosts []string) (tls.Certificate, error)
	// SuperUsers are principals, such as "User:CN=plane,O=axion", that may do everything.
	SuperUsers []string
	// PlainUsers are the users of SASL PLAIN with their passwords; neither may hold quotes or backslashes. SCRAM users are made with AddSCRAM.
	PlainUsers map[string]string
	// Properties are added to the brokers' server.properties, and win.
	Properties map[string]string
}

// Cluster is a running Kafka.
type Cluster struct {
	tb      testing.TB
	options Options
	ca      *testca.CA
	dir     string
	jars    string
	brokers []*Broker
	admin   *kadm.Client
}

// Start starts a Kafka and waits until it is ready. It ends with the test. The test is skipped with the reason where there is no Java or no Maven.
func Start(tb testing.TB, o Options) *Cluster {
	tb.Helper()
	if o.Version == "" {
		o.Version = Version4
	}
	if o.Brokers == 0 {
		o.Brokers = 1
	}
	if o.Brokers < 0 || o.Brokers > maxBrokers {
		tb.Fatalf("%d brokers, 1 to %d are possible", o.Brokers, maxBrokers)
	}
	c := &Cluster{tb: tb, options: o, ca: testca.New(tb), dir: tb.TempDir(), jars: jars(tb, o.Version)}
	tb.Cleanup(c.stop)
	if err := c.start(); err != nil {
		tb.Fatalf("Kafka %s: %v", o.Version, err)
	}
	return c
}

func (c *Cluster) start() error {
	ports, err := freePorts(c.options.Brokers * len(listeners))
	if err != nil {
		return err
	}
	for own := range slices.Chunk(ports, len(listeners)) {
		id := len(c.brokers) + 1
		b := &Broker{cluster: c, id: id, dir: c.file("broker-" + strconv.Itoa(id)), ports: own}
		if err := os.Mkdir(b.dir, 0o700); err != nil {
			return err
		}
		c.brokers = append(c.brokers, b)
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	id[0] &= 0x7f           // it must not begin with a hyphen, which would look like an option
	clusterID := base64.RawURLEncoding.EncodeToString(id[:])
	failed := make([]error, len(c.brokers))
	var all sync.WaitGroup
	for i, b := range c.brokers {
		all.Go(func() {
			if failed[i] = b.prepare(clusterID); failed[i] == nil {
				failed[i] = b.run()
			}
		})
	}
	all.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}
	client, err := kgo.NewClient(append(c.AdminOpts(), kgo.RetryBackoffFn(func(int) time.Duration { return pollEvery }))...)
	if err != nil {
		return err
	}
	c.admin = kadm.NewClient(client)
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	return c.awaitReady(ctx)
}

// stop kills the brokers: their data goes with them. After a failure the end of their logs is part of the test's.
func (c *Cluster) stop() {
	if c.admin != nil {
		c.admin.Close()
	}
	for _, b := range c.brokers {
		b.end()
		if c.tb.Failed() {
			c.tb.Logf("the end of the log of broker %d:\n%s", b.id, b.logTail())
		}
	}
}

// Broker returns a broker, counted from 0.
func (c *Cluster) Broker(i int) *Broker { return c.brokers[i] }

// Certificates returns the addresses of the listener where clients show certificates: the certificate's subject is the principal, "User:CN=...,O=...".
func (c *Cluster) Certificates() []string { return c.addresses(certificates) }

// SASL returns the addresses of the listener where clients authenticate with SASL PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512 over TLS. Its certificate is of the
// cluster's own CA.
func (c *Cluster) SASL() []string { return c.addresses(sasl) }

func (c *Cluster) addresses(l listener) []string {
	all := make([]string, len(c.brokers))
	for i, b := range c.brokers {
		all[i] = b.address(l)
	}
	return all
}

// CAPEM returns the certificate of the cluster's own CA.
func (c *Cluster) CAPEM() []byte { return c.ca.PEM() }

// ClientTLS returns the TLS settings of a client with a certificate of the cluster's own CA, which trusts that CA only.
func (c *Cluster) ClientTLS(commonName, organization string) *tls.Config {
	c.tb.Helper()
	config := c.ca.Client(commonName, organization)
	config.MinVersion = tls.VersionTLS12
	return config
}

// AdminOpts returns what a client needs that may do everything; its own options are added to them.
func (c *Cluster) AdminOpts() []kgo.Opt {
	return []kgo.Opt{kgo.SeedBrokers(c.addresses(internal)...), kgo.DialTLSConfig(c.ClientTLS(adminName, adminOrganization))}
}

// Admin returns a client that may do everything. It ends with the cluster.
func (c *Cluster) Admin() *kadm.Client { return c.admin }

// AddSCRAM makes a user, or gives it a new password.
func (c *Cluster) AddSCRAM(ctx context.Context, mechanism kadm.ScramMechanism, user, password string) error {
	results, err := c.admin.AlterUserSCRAMs(ctx, nil, []kadm.UpsertSCRAM{{User: user, Mechanism: mechanism, Iterations: scramIterations, Password: password}})
	for _, r := range results {
		err = errors.Join(err, r.Err)
	}
	if err != nil {
		return fmt.Errorf("make user %s: %w", user, err)
	}
	return nil
}

// Allow gives a principal rights.
func (c *Cluster) Allow(ctx context.Context, acl *kadm.ACLBuilder) error {
	results, err := c.admin.CreateACLs(ctx, acl)
	for _, r := range results {
		err = errors.Join(err, r.Err)
	}
	return err
}

// ACLs returns what a principal may do, each as "TOPIC name READ", sorted.
func (c *Cluster) ACLs(ctx context.Context, principal string) ([]string, error) {
	results, err := c.admin.DescribeACLs(ctx, kadm.NewACLs().AnyResource().Allow(principal).AllowHosts().Operations().ResourcePatternType(kadm.ACLPatternAny))
	var all []string
	for _, r := range results {
		err = errors.Join(err, r.Err)
		for _, d := range r.Described {
			all = append(all, fmt.Sprintf("%s %s %s", d.Type, d.Name, d.Operation))
		}
	}
	slices.Sort(all)
	return all, err
}

// AwaitReady waits until every broker answers and no replica lags behind: what a rolling restart waits for between two brokers.
func (c *Cluster) AwaitReady(ctx context.Context) {
	c.tb.Helper()
	if err := c.awaitReady(ctx); err != nil {
		c.tb.Fatal(err)
	}
}

func (c *Cluster) awaitReady(ctx context.Context) error {
	for {
		err := c.ready(ctx)
		if err == nil {
			return nil
		}
		for _, b := range c.brokers {
			if b.ended() {
				return fmt.Errorf("broker %d has ended; the end of its log:\n%s", b.id, b.logTail())
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", err)
		case <-time.After(pollEvery):
		}
	}
}

func (c *Cluster) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for _, b := range c.brokers {
		for _, l := range listeners {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", b.address(l))
			if err != nil {
				return err
			}
			_ = conn.Close()
		}
	}
	meta, err := c.admin.Metadata(ctx)
	if err != nil {
		return err
	}
	if len(meta.Brokers) != len(c.brokers) {
		return fmt.Errorf("%d brokers of %d are in the cluster", len(meta.Brokers), len(c.brokers))
	}
	for _, topic := range meta.Topics {
		for _, p := range topic.Partitions {
			if p.Leader < 0 || len(p.ISR) < len(p.Replicas) {
				return fmt.Errorf("topic %s, partition %d: leader %d, in sync %v of %v", topic.Topic, p.Partition, p.Leader, p.ISR, p.Replicas)
			}
		}
	}
	return nil
}

func (c *Cluster) file(name string) string { return filepath.Join(c.dir, name) }

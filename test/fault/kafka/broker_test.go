package kafka_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/semaphore"

	"github.com/axion/runner-agent/plane/ca"
	"github.com/axion/runner-agent/test/kafka"
	"github.com/axion/runner-agent/test/loopback"
	"github.com/axion/runner-agent/test/netproxy"
)

// brokers is a Kafka that can be broken.
type brokers interface {
	addresses() []string
	// kill ends all brokers as a crash would; start starts them again on their data, and returns when they answer.
	kill()
	start()
	admin() *kadm.Client
	// options are those of a client that may do everything.
	options() []kgo.Opt
}

// brokerVariable makes the test binary a broker; it holds a brokerConfig.
const brokerVariable = "AXION_TEST_FAULT_BROKER"

type brokerConfig struct {
	Listen, Advertise, Dir        string
	Certificate, Key, ClientCAPEM []byte
}

// advertised is a listener that calls itself something else.
type advertised struct {
	net.Listener
	addr net.Addr
}

func (l advertised) Addr() net.Addr { return l.addr }

// serveBroker runs a broker until the process is killed. It says on standard output when it listens.
func serveBroker(text string) error {
	var cfg brokerConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(cfg.Certificate, cfg.Key)
	if err != nil {
		return err
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(cfg.ClientCAPEM)
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return err
	}
	addr, err := net.ResolveTCPAddr("tcp", cfg.Advertise)
	if err != nil {
		return err
	}
	_, err = kfake.NewCluster(
		kfake.ClusterID("fault"), kfake.NumBrokers(1), kfake.DefaultNumPartitions(1), kfake.DataDir(cfg.Dir),
		kfake.TLS(&tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return advertised{l, addr}, nil }))
	if err != nil {
		return err
	}
	fmt.Println("listening")
	_, _ = io.Copy(io.Discard, os.Stdin) // it ends with the test
	return nil
}

// embedded is the broker that the plane embeds, in a process of its own and behind a bad network.
type embedded struct {
	t       *testing.T
	cfg     brokerConfig
	proxy   *netproxy.Proxy
	process *exec.Cmd
	stdin   io.WriteCloser
	opts    []kgo.Opt
	adm     *kadm.Client
}

// startEmbedded starts one whose clients have certificates of that CA.
func startEmbedded(t *testing.T, authority *ca.CA) *embedded {
	t.Helper()
	pair, err := authority.IssueServer([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	b := &embedded{t: t, proxy: netproxy.Start(t, "127.0.0.1:1"), cfg: brokerConfig{
		Listen: loopback.FreeAddress(t), Dir: filepath.Join(t.TempDir(), "kafka"), ClientCAPEM: authority.CertificatePEM(),
		Certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}),
		Key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	}}
	b.cfg.Advertise = b.proxy.Addr()
	b.proxy.SetTarget(b.cfg.Listen)
	b.start()
	t.Cleanup(b.kill)
	client, err := authority.IssueClient("operator")
	if err != nil {
		t.Fatal(err)
	}
	b.opts = []kgo.Opt{
		kgo.SeedBrokers(b.proxy.Addr()),
		kgo.DialTLSConfig(&tls.Config{RootCAs: authority.Pool(), Certificates: []tls.Certificate{client}, MinVersion: tls.VersionTLS12}),
	}
	b.adm = newAdmin(t, b.opts)
	return b
}

func newAdmin(t *testing.T, opts []kgo.Opt) *kadm.Client {
	t.Helper()
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return kadm.NewClient(cl)
}

func (b *embedded) addresses() []string { return []string{b.proxy.Addr()} }
func (b *embedded) admin() *kadm.Client { return b.adm }
func (b *embedded) options() []kgo.Opt  { return b.opts }

func (b *embedded) start() {
	b.t.Helper()
	text, err := json.Marshal(b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.process = exec.Command(os.Args[0])
	b.process.Env = append(os.Environ(), brokerVariable+"="+string(text))
	b.process.Stderr = os.Stderr
	b.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if b.stdin, err = b.process.StdinPipe(); err != nil {
		b.t.Fatal(err)
	}
	out, err := b.process.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.process.Start(); err != nil {
		b.t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		b.t.Fatalf("the broker does not start: %q, %v", line, err)
	}
}

func (b *embedded) kill() {
	_ = b.process.Process.Kill()
	_ = b.process.Wait()
}

// apache is a real Apache Kafka.
type apache struct {
	t *testing.T
	n int
	*kafka.Cluster
}

// machine is how many brokers of a real Kafka this machine is asked to run at once.
var machine = semaphore.NewWeighted(4)

// startApache starts one whose clients have certificates of that CA, and whose own are of it too.
func startApache(t *testing.T, authority *ca.CA, version string, n int) *apache {
	t.Helper()
	if err := machine.Acquire(t.Context(), int64(n)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { machine.Release(int64(n)) }) // when they have ended
	return &apache{t: t, n: n, Cluster: kafka.Start(t, kafka.Options{
		Version: version, Brokers: n, ClientCAs: authority.CertificatePEM(), Certificate: authority.IssueServer, SuperUsers: []string{"User:CN=plane,O=axion"},
		Properties: map[string]string{"broker.session.timeout.ms": "3000"},
	})}
}

func (a *apache) addresses() []string { return a.Certificates() }
func (a *apache) admin() *kadm.Client { return a.Admin() }
func (a *apache) options() []kgo.Opt  { return a.AdminOpts() }

func (a *apache) kill() {
	for i := range a.n {
		a.Broker(i).Kill()
	}
}

func (a *apache) start() {
	a.t.Helper()
	for i := range a.n {
		a.Broker(i).Start()
	}
	a.AwaitReady(a.t.Context())
}

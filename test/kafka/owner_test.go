package kafka_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/axion/runner-agent/agent/bus"
	"github.com/axion/runner-agent/agent/health"
	"github.com/axion/runner-agent/test/kafka"
	"github.com/axion/runner-agent/test/logbuffer"
)

// ownerVariable makes the test binary a consumer that can be killed; it holds an ownerConfig.
const ownerVariable = "AXION_TEST_KAFKA_OWNER"

// Topic and group that nothing else uses.
const (
	ownerTopic = "owner"
	ownerGroup = "owners"
	ownerName  = "owner"
)

// ownerConfig is what the consumer is told.
type ownerConfig struct {
	Brokers                 []string
	CA, Certificate, Key    []byte
	Topic, Group, MemberDir string
}

func TestMain(m *testing.M) {
	if text := os.Getenv(ownerVariable); text != "" {
		if err := consumeUntilKilled(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	// Most of these tests wait most of the time, for a group's first rebalance or for a broker; as many as there are processors at once would be few.
	if err := flag.Set("test.parallel", "16"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// consumeUntilKilled prints the value of each message, a line each.
func consumeUntilKilled(text string) error {
	var cfg ownerConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(cfg.Certificate, cfg.Key)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cfg.CA)
	c, err := bus.NewConsumer(bus.ConsumerConfig{
		Config: bus.Config{
			Name: "owner", Brokers: cfg.Brokers, ClientID: "owner",
			TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
		},
		Topic: cfg.Topic, Group: cfg.Group, MemberFile: filepath.Join(cfg.MemberDir, "member"),
	}, bus.ConsumerDeps{Handler: printer{}, Warn: health.New(time.Now), Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	return c.Run(context.Background())
}

type printer struct{}

// Handle implements bus.Handler.
func (printer) Handle(_ context.Context, m bus.Message) <-chan struct{} {
	fmt.Println(string(m.Value))
	settled := make(chan struct{})
	close(settled)
	return settled
}

// owner is such a consumer, and what all of them together have printed.
type owner struct {
	t   *testing.T
	cfg ownerConfig
	log logbuffer.Buffer

	mu      sync.Mutex
	numbers map[int]int // how often each was printed
	latest  time.Time
	process *exec.Cmd
	read    chan struct{}
}

func (o *owner) start() {
	o.t.Helper()
	text, err := json.Marshal(o.cfg)
	if err != nil {
		o.t.Fatal(err)
	}
	o.process = exec.Command(os.Args[0])
	o.process.Env = append(os.Environ(), ownerVariable+"="+string(text))
	o.process.Stderr = &o.log
	out, err := o.process.StdoutPipe()
	if err != nil {
		o.t.Fatal(err)
	}
	if err := o.process.Start(); err != nil {
		o.t.Fatal(err)
	}
	o.read = make(chan struct{})
	go func() {
		defer close(o.read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if n, err := strconv.Atoi(lines.Text()); err == nil {
				o.mu.Lock()
				o.numbers[n]++
				o.latest = time.Now()
				o.mu.Unlock()
			}
		}
	}()
}

func (o *owner) kill() {
	_ = o.process.Process.Kill()
	<-o.read
	_ = o.process.Wait()
}

// seen returns how many different numbers were printed.
func (o *owner) seen() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.numbers)
}

// testKilledOwner: the owner of a partition is killed and started again. It takes its dead predecessor out of the group instead of waiting until its session
// has ended.
func testKilledOwner(t *testing.T, c *kafka.Cluster) {
	t.Parallel()
	if resp, err := c.Admin().CreateTopic(t.Context(), 1, 1, nil, ownerTopic); err != nil || resp.Err != nil {
		t.Fatal(err, resp.Err)
	}
	if err := c.Allow(t.Context(), kadm.NewACLs().Allow("User:CN="+ownerName+",O=test").AllowHosts("*").ResourcePatternType(kadm.ACLPatternLiteral).
		Topics(ownerTopic).Groups(ownerGroup).Operations(kadm.OpRead)); err != nil {
		t.Fatal(err)
	}
	o := &owner{t: t, numbers: map[int]int{}, cfg: ownerConfig{Brokers: c.Certificates(), CA: c.CAPEM(), Topic: ownerTopic, Group: ownerGroup, MemberDir: t.TempDir()}}
	shown := c.ClientTLS(ownerName, "test").Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(shown.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	o.cfg.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: shown.Certificate[0]})
	o.cfg.Key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	o.start()
	t.Cleanup(func() {
		o.kill()
		if t.Failed() {
			t.Logf("the consumers' log:\n%s", &o.log)
		}
	})

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	written := make(chan int, 1)
	go func() { written <- writeNumbers(ctx, t, c) }()
	eventually(t, "messages", func() bool { return o.seen() >= 20 })
	o.kill()
	before := o.seen()
	begun := time.Now()
	o.start()
	eventually(t, "the next message", func() bool { return o.seen() > before })
	figure(t, "owner killed and started again, next message", time.Since(begun))
	stop()
	n := <-written
	eventually(t, "all messages", func() bool { return o.seen() == n })
}

// writeNumbers writes 0, 1, 2 ... every 50 ms until ctx ends, and returns how many.
func writeNumbers(ctx context.Context, t *testing.T, c *kafka.Cluster) int {
	client, err := kgo.NewClient(c.AdminOpts()...)
	if err != nil {
		t.Error(err)
		return -1
	}
	defer client.Close()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return n
		case <-ticker.C:
		}
		if err := client.ProduceSync(context.WithoutCancel(ctx), &kgo.Record{Topic: ownerTopic, Value: []byte(strconv.Itoa(n))}).FirstErr(); err != nil {
			t.Error(err)
			return -1
		}
	}
}

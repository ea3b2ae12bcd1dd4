package eviction_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/axion/runner-agent/agent/bus"
	"github.com/axion/runner-agent/plane/broker"
	"github.com/axion/runner-agent/plane/eviction"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

const (
	// session is how long a dead member keeps its partition by itself, as agents ask for it.
	session = 10 * time.Second
	// consumerEnv makes this program an agent's consumer of the broker that it names.
	consumerEnv = "EVICTION_TEST_BROKER"
)

var (
	topic = broker.CommandTopic("prod")
	group = broker.Group("prod")
)

func TestMain(m *testing.M) {
	if address := os.Getenv(consumerEnv); address != "" {
		consume(address)
		return
	}
	os.Exit(m.Run())
}

// printer prints each message that it is given.
type printer struct{}

func (printer) Handle(_ context.Context, m bus.Message) <-chan struct{} {
	fmt.Println("got", string(m.Value))
	settled := make(chan struct{})
	close(settled)
	return settled
}

type noWarnings struct{}

func (noWarnings) Set(string, runnerv1.HealthSeverity, string, string) {}

func (noWarnings) Clear(string) {}

// consume is an agent's consumer in a process of its own, until it is killed or its standard input ends.
func consume(address string) {
	c, err := bus.NewConsumer(bus.ConsumerConfig{Config: bus.Config{Name: "cluster", Brokers: []string{address}, ClientID: "a"}, Topic: topic, Group: group},
		bus.ConsumerDeps{Handler: printer{}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Warn: noWarnings{}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	go func() {
		said := ""
		for ; ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
			if id := c.Membership().GetMemberId(); id != said {
				said = id
				fmt.Println("member", id)
			}
		}
	}()
	if err := c.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// process is a consumer's.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}

	mu     sync.Mutex
	member string
	came   map[string]time.Time // by value of the message
}

func start(t *testing.T, address string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0]), ended: make(chan struct{}), came: map[string]time.Time{}}
	p.cmd.Env = append(os.Environ(), consumerEnv+"="+address)
	if testing.Verbose() {
		p.cmd.Stderr = t.Output()
	}
	if _, err := p.cmd.StdinPipe(); err != nil { // held open: its end ends the process
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			what, value, _ := strings.Cut(lines.Text(), " ")
			p.mu.Lock()
			if what == "member" {
				p.member = value
			} else {
				p.came[value] = time.Now()
			}
			p.mu.Unlock()
		}
	}()
	t.Cleanup(p.kill)
	return p
}

// kill is kill -9: the process says nothing to anybody.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
	_ = p.cmd.Wait()
}

func (p *process) memberID() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.member
}

// when returns when a message came; zero if it did not.
func (p *process) when(value string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.came[value]
}

func (p *process) got(value string) bool { return !p.when(value).IsZero() }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * session); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

// TestTakeover kills the process that owns the cluster's topic and measures when another one has its next message. The consumers are the agents' own with
// their own times; the broker is a real one.
func TestTakeover(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DefaultNumPartitions(1), kfake.SeedTopics(1, topic))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	kafka, err := broker.New(broker.Config{Brokers: cluster.ListenAddrs()}, broker.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	evictor, err := eviction.New(eviction.Config{Group: broker.Group}, eviction.Deps{
		Leave: kafka.Evict, Instance: func(string) (string, bool) { return "", false }, Streams: func() int { return 1 },
		Log: slog.New(slog.DiscardHandler), Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	for _, component := range []func(context.Context) error{kafka.Run, evictor.Run} {
		running.Go(func() {
			if err := component(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	send := func(value string) {
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte(value)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}

	one, other := start(t, cluster.ListenAddrs()[0]), start(t, cluster.ListenAddrs()[0])
	eventually(t, "both are members of one generation", func() bool {
		info := cluster.GroupInfo(group)
		return info != nil && len(info.Members) == 2 && info.State == "Stable" && one.memberID() != "" && other.memberID() != ""
	})
	send("before")
	eventually(t, "one of them has a message", func() bool { return one.got("before") || other.got("before") })
	owner, survivor := one, other
	if other.got("before") {
		owner, survivor = other, one
	}
	eventually(t, "it is committed", func() bool { return cluster.GroupInfo(group).Commits[topic][0].Offset == 1 })

	owner.kill()
	killed := time.Now()
	evictor.Broke(eviction.Break{
		ClusterID: "prod", AgentID: "a-1", InstanceID: "i", Manager: true, Err: io.EOF,
		Members: []*runnerv1.GroupMember{{Group: group, MemberId: owner.memberID()}},
	})
	send("after")
	eventually(t, "the survivor takes over", func() bool { return survivor.got("after") })
	took := survivor.when("after").Sub(killed)
	t.Logf("take-over %.2f s after kill -9 (session timeout %s)", took.Seconds(), session)
	if took > session/2 {
		t.Errorf("that is no better than to wait")
	}
	if got := evictor.Counts(); len(got) != 1 || got[eviction.Evicted] != 1 {
		t.Errorf("counted %v", got)
	}
}

package soak

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/axion/runner-agent/agent/identity"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/test/fault"
)

const (
	// everyShort and everyLong are between two faults, on average. In the long form the programs are to do some work in between.
	everyShort, everyLong = 4 * time.Second, 10 * time.Second
	// cutFor bounds how long the broker cannot be reached.
	cutFor = 3 * time.Second
	// repeatedMost is how many old messages are sent again at a time.
	repeatedMost = 20
	// kafkaTimeout bounds the repeating of messages: the broker may be away, too.
	kafkaTimeout = 15 * time.Second
)

// breakage is one way of breaking something for a moment.
type breakage struct {
	name string
	do   func(context.Context) error
}

// faults are what may happen to the world. Whoever must live through a phase is not killed in it.
func (w *world) faults(killAgent, killPlane bool) []breakage {
	all := []breakage{
		{"broker cut", func(ctx context.Context) error {
			w.toKafka.Refuse(true)
			defer w.toKafka.Refuse(false)
			w.toKafka.Cut()
			sleep(ctx, time.Duration(rand.Int64N(int64(cutFor))))
			return nil
		}},
		{"session cut", func(context.Context) error { w.toPlane.Cut(); return nil }},
		{"messages repeated", w.repeat},
	}
	if fault.Long() { // it takes a while until the agent notices
		all = append(all, breakage{"broker half-open", func(context.Context) error { w.toKafka.HalfOpen(); return nil }})
	}
	if killAgent {
		all = append(all, breakage{"agent killed", func(context.Context) error {
			w.agent.Kill()
			w.startAgent()
			return nil
		}})
	}
	if killPlane {
		all = append(all, breakage{"plane killed", func(context.Context) error {
			w.plane.Kill()
			w.plane.Start()
			return nil
		}}, breakage{"plane restarted", func(context.Context) error {
			w.plane.Stop()
			w.plane.Start()
			return nil
		}})
	}
	return all
}

// breaking lets faults happen at random until the returned function is called, which returns how often each did.
func (w *world) breaking(ctx context.Context, faults []breakage) func() (map[string]int, error) {
	ctx, cancel := context.WithCancel(ctx)
	every := everyShort
	if fault.Long() {
		every = everyLong
	}
	happened := map[string]int{}
	var failed error
	var wg sync.WaitGroup
	wg.Go(func() {
		for sleep(ctx, time.Duration(rand.Int64N(int64(2*every)))) && failed == nil {
			f := faults[rand.IntN(len(faults))]
			if err := f.do(ctx); err != nil && ctx.Err() == nil {
				failed = fmt.Errorf("%s: %w", f.name, err)
			}
			happened[f.name]++
		}
	})
	return func() (map[string]int, error) {
		cancel()
		wg.Wait()
		return happened, failed
	}
}

// repeat reads the last messages of the cluster's topic and sends some of them again, in another order, as the agent itself may.
func (w *world) repeat(ctx context.Context) error {
	id, stop, err := w.asAgent(ctx)
	if err != nil {
		return err
	}
	defer stop()
	access := id.Kafka()
	auth := scram.Auth{User: access.GetSasl().GetUsername(), Pass: access.GetSasl().GetPassword()}
	client, err := kgo.NewClient(kgo.SeedBrokers(access.GetBrokers()...), kgo.DialTLSConfig(id.KafkaTLS()), kgo.SASL(auth.AsSha512Mechanism()),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{access.GetClusterTopic(): {0: kgo.NewOffset().AtEnd().Relative(-repeatedMost)}}),
		kgo.RecordDeliveryTimeout(kafkaTimeout))
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, kafkaTimeout)
	defer cancel()
	records := client.PollRecords(ctx, repeatedMost).Records()
	rand.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	again := make([]*kgo.Record, 0, len(records))
	for _, r := range records[:rand.IntN(len(records)+1)] {
		again = append(again, &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Headers: r.Headers})
	}
	// A broker that is away right now is another fault's doing, and no reason to end.
	_ = client.ProduceSync(ctx, again...).FirstErr()
	return nil
}

// asAgent returns the agent's identity, from a copy of what is on its volume.
func (w *world) asAgent(ctx context.Context) (*identity.Identity, func(), error) {
	dir, err := os.MkdirTemp(w.dir, "copy-")
	if err != nil {
		return nil, nil, err
	}
	entries, err := os.ReadDir(w.stateDir())
	for _, e := range entries {
		if !e.Type().IsRegular() || strings.HasPrefix(e.Name(), "journal") {
			continue
		}
		content, readErr := os.ReadFile(filepath.Join(w.stateDir(), e.Name()))
		if errors.Is(readErr, fs.ErrNotExist) { // a file that was being written
			continue
		}
		err = errors.Join(err, readErr, os.WriteFile(filepath.Join(dir, e.Name()), content, 0o600))
	}
	if err != nil {
		return nil, nil, err
	}
	info, err := w.docker.Info(ctx)
	if err != nil {
		return nil, nil, err
	}
	id, err := identity.New(identity.Config{
		StateDir: dir, PlaneAddress: w.toPlane.Addr(), AgentVersion: "soak",
		Token: func(context.Context) (string, error) { return "", errors.New("it has enrolled") },
	}, identity.Deps{
		Node: func(context.Context) (*runnerv1.NodeFacts, error) {
			return &runnerv1.NodeFacts{NodeId: info.Swarm.NodeID, Hostname: info.Name, Role: runnerv1.NodeRole_NODE_ROLE_MANAGER, SwarmClusterId: info.Swarm.Cluster.ID}, nil
		},
		Log: slog.New(slog.DiscardHandler), Warn: quiet{},
	})
	if err != nil {
		return nil, nil, err
	}
	run, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = id.Run(run) // returns when run ends
	}()
	stop := func() {
		cancel()
		<-ended
		_ = os.RemoveAll(dir)
	}
	select {
	case <-id.Ready():
		return id, stop, nil
	case <-time.After(kafkaTimeout):
		stop()
		return nil, nil, errors.New("the agent's identity cannot be read")
	}
}

// quiet takes no warnings.
type quiet struct{}

func (quiet) Set(string, runnerv1.HealthSeverity, string, string) {}

func (quiet) Clear(string) {}

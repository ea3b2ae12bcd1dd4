package kafka_test

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/kafka"
)

// drainWithin is how long after the broker's return all commands must have their outcomes.
const drainWithin = 30 * time.Second

var awayFlag = flag.Duration("away", 0, "how long brokers are away; 0 means 20 s, in the long form 10 min")

// TestBrokerDown: kill -9 of the broker. Commands are submitted before, while it is away and after; deployments that run then end, and their outcomes wait.
func TestBrokerDown(t *testing.T) {
	eachKafka(t, func(t *testing.T, w *world) {
		away, stacks := 20*time.Second, 3
		if fault.Long() {
			away, stacks = 10*time.Minute, 10
		}
		if *awayFlag > 0 {
			away = *awayFlag
		}
		names := make([]string, stacks)
		var ids []string
		for i := range names {
			names[i] = w.newStack()
			ids = append(ids, w.submit(names[i], 1))
		}
		w.brokers.kill()
		begun := time.Now()
		for _, name := range names {
			ids = append(ids, w.submit(name, 2), w.submit(name, 3))
		}
		time.Sleep(time.Until(begun.Add(away))) // the length of the outage is what is tested
		w.brokers.start()
		back := time.Now()
		rejoined := w.joins()
		for _, name := range names {
			ids = append(ids, w.submit(name, 4))
		}
		var joined time.Time
		eventually(t, "the agent in its group", func() bool { joined = time.Now(); return w.joins() > rejoined })
		superseded := w.end(ids)
		took := time.Since(back)
		if took > drainWithin {
			t.Errorf("the last outcome came %v after the broker's return", took)
		}
		for _, name := range names {
			w.isAt(name, 4, 4)
		}
		_, conflicts := w.counts()
		if conflicts > 0 {
			t.Errorf("%d events say something else than the first of their id", conflicts)
		}
		fault.Report(t, fmt.Sprintf("broker killed, away for %v", away), "0 lost, drained within 30 s of return",
			fmt.Sprintf("agent in its group %.1f s after the return; %d commands, each with one outcome (%d superseded), the last after %.1f s",
				joined.Sub(back).Seconds(), len(ids), superseded, took.Seconds()))
	})
}

// joins is how often the agent has joined the cluster's group.
func (w *world) joins() int {
	n := 0
	for line := range strings.Lines(w.log.String()) {
		if strings.Contains(line, "joined the group") && strings.Contains(line, "kafka_client=cluster") {
			n++
		}
	}
	return n
}

// TestRollingRestart: three real brokers, one after the other, under load.
func TestRollingRestart(t *testing.T) {
	fault.NeedLong(t)
	t.Parallel()
	for _, version := range []string{kafka.Version4, kafka.Version3} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			a := startApache(t, w.ca, version, 3)
			w.start(a)
			names := []string{w.newStack(), w.newStack(), w.newStack()}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			submitted := make(chan []string, 1)
			go func() {
				var ids []string
				ticker := time.NewTicker(time.Second)
				defer ticker.Stop()
				for n := 0; ctx.Err() == nil; n++ {
					ids = append(ids, w.submit(names[n%len(names)], n))
					select {
					case <-ticker.C:
					case <-ctx.Done():
					}
				}
				submitted <- ids
			}()
			begun := time.Now()
			for i := range 3 {
				a.Broker(i).Stop()
				a.Broker(i).Start()
				a.AwaitReady(t.Context())
			}
			rolled := time.Since(begun)
			stop()
			ids := <-submitted
			back := time.Now()
			superseded := w.end(ids)
			took := time.Since(back)
			if took > drainWithin {
				t.Errorf("the last outcome came %v after the last broker's return", took)
			}
			duplicates, conflicts := w.counts()
			if conflicts > 0 {
				t.Errorf("%d events say something else than the first of their id", conflicts)
			}
			fault.Report(t, "rolling restart of three brokers of Kafka "+version+" under load", "0 lost, drained within 30 s of return",
				fmt.Sprintf("%d commands in %.0f s (%d superseded), the last outcome %.1f s after, %d duplicate events",
					len(ids), rolled.Seconds(), superseded, took.Seconds(), duplicates))
		})
	}
}

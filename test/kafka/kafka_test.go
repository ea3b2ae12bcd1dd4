package kafka_test

import (
	"testing"
	"time"

	"github.com/axion/runner-agent/test/kafka"
)

func TestSmoke(t *testing.T) {
	for _, n := range []int{1, 3} {
		s := time.Now()
		c := kafka.Start(t, kafka.Options{Brokers: n, PlainUsers: map[string]string{"plane": "x", "axion-agent": "y"}})
		t.Log(n, time.Since(s))
		s = time.Now()
		c.Broker(0).Stop()
		t.Log("stop", time.Since(s))
		s = time.Now()
		c.Broker(0).Start()
		c.AwaitReady(t.Context())
		t.Log("ready again", time.Since(s))
		s = time.Now()
		c.Broker(0).Kill()
		c.Broker(0).Start()
		c.AwaitReady(t.Context())
		t.Log("ready again after kill", time.Since(s))
	}
}

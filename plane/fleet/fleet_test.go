package fleet

import (
	"io"
	"testing"
	"time"
)

func TestReturnWindow(t *testing.T) {
	for agents, want := range map[int]time.Duration{
		0:      time.Second,
		1:      time.Second,
		500:    5 * time.Second,
		10_000: time.Minute,
	} {
		if got := returnWindow(agents); got != want {
			t.Errorf("%d agents come back within %s, want %s", agents, got, want)
		}
	}
}

func TestSpreadUsesTheWholeWindow(t *testing.T) {
	for random, want := range map[float64]time.Duration{0: 0, 0.5: 500 * time.Millisecond, 1: time.Second} {
		f := &Fleet{deps: Deps{Random: func() float64 { return random }}}
		if got := f.spread(time.Second); got != want {
			t.Errorf("random %v: %s, want %s", random, got, want)
		}
	}
}

// A stream ends after a goodbye too, and the plane may hear of both at once.
func TestAGoodbyeIsNoLoss(t *testing.T) {
	for range 100 { // which of the two is looked at first is chance
		s := &session{done: make(chan struct{}), heard: time.Now(), told: time.Minute}
		s.close(nil)
		in := make(chan incoming, 1)
		in <- incoming{err: io.EOF}
		if s.loop(in) {
			t.Fatal("a session that has ended was lost")
		}
	}
}

func TestConfigBounds(t *testing.T) {
	for name, cfg := range map[string]Config{
		"short heartbeat": {HeartbeatInterval: time.Millisecond},
		"long heartbeat":  {HeartbeatInterval: time.Hour},
		"short cadence":   {MetricsCadence: time.Millisecond},
		"long cadence":    {MetricsCadence: time.Hour},
		"long version":    {PlaneVersion: string(make([]byte, 65))},
	} {
		t.Run(name, func(t *testing.T) {
			if cfg.validate() == nil {
				t.Error("no error")
			}
		})
	}
	var cfg Config
	if err := cfg.validate(); err != nil || cfg.HeartbeatInterval != 5*time.Second {
		t.Errorf("defaults: %v, %+v", err, cfg)
	}
	if _, err := New(Config{}, Deps{}); err == nil {
		t.Error("no error without dependencies")
	}
}

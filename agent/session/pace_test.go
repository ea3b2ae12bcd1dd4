package session

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/axion/runner-agent/internal/backoff"
)

func TestPace(t *testing.T) {
	type step struct {
		connectedFor, hint time.Duration
		answered           bool
		want               time.Duration
	}
	for name, steps := range map[string][]step{
		"a short session does not begin anew": {
			{0, 0, true, 100 * time.Millisecond},
			{9 * time.Second, 0, true, 200 * time.Millisecond},
			{10 * time.Second, 0, true, 100 * time.Millisecond},
			{time.Second, 0, true, 200 * time.Millisecond},
		},
		"a hint is the least": {
			{0, time.Second, true, time.Second},
			{0, time.Millisecond, true, 200 * time.Millisecond},
		},
		"waits stay short where nobody answers or a session broke, and grow long where somebody answers and gives no session": {
			{0, 0, false, 100 * time.Millisecond},
			{0, 0, false, 200 * time.Millisecond},
			{0, 0, false, 400 * time.Millisecond},
			{0, 0, false, 500 * time.Millisecond},
			{time.Second, 0, true, 500 * time.Millisecond},
			{0, 0, true, time.Second},
			{0, 0, true, 2 * time.Second},
			{0, 0, false, 500 * time.Millisecond},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := pace{
				backoff:      backoff.Backoff{First: 100 * time.Millisecond, Random: func() float64 { return 1 }},
				healthyAfter: 10 * time.Second, max: time.Minute, soon: 500 * time.Millisecond,
			}
			for i, s := range steps {
				if got := p.next(s.connectedFor, s.hint, s.answered); got != s.want {
					t.Fatalf("wait %d is %s, want %s", i+1, got, s.want)
				}
			}
		})
	}
}

func TestHeartbeatIntervalIsBounded(t *testing.T) {
	for name, tc := range map[string]struct {
		told    *durationpb.Duration
		want    time.Duration
		changed bool
	}{
		"absent":    {nil, 5 * time.Second, false},
		"the same":  {durationpb.New(5 * time.Second), 5 * time.Second, false},
		"longer":    {durationpb.New(time.Minute), time.Minute, true},
		"too short": {durationpb.New(time.Millisecond), time.Second, true},
		"negative":  {durationpb.New(-time.Hour), time.Second, true},
		"too long":  {durationpb.New(time.Hour), 5 * time.Minute, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := heart{timing: Timing{}.withDefaults(), interval: 5 * time.Second}
			if changed := h.stretch(tc.told); changed != tc.changed || h.interval != tc.want {
				t.Errorf("interval %s, changed %v", h.interval, changed)
			}
		})
	}
}

func TestHeartbeatJitter(t *testing.T) {
	for random, want := range map[float64]time.Duration{0: 4500 * time.Millisecond, 0.5: 5 * time.Second, 1: 5500 * time.Millisecond} {
		h := heart{interval: 5 * time.Second, random: func() float64 { return random }}
		if got := h.pause(); got != want {
			t.Errorf("random %v: pause %s, want %s", random, got, want)
		}
	}
}

func TestAckTimeout(t *testing.T) {
	for interval, want := range map[time.Duration]time.Duration{
		time.Second:     3 * time.Second,
		5 * time.Second: 15 * time.Second,
		5 * time.Minute: 15 * time.Second,
	} {
		h := heart{timing: Timing{}.withDefaults(), interval: interval}
		if got := h.ackTimeout(); got != want {
			t.Errorf("interval %s: %s, want %s", interval, got, want)
		}
	}
}

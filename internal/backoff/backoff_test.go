package backoff

import (
	"context"
	"testing"
	"time"
)

func TestNext(t *testing.T) {
	for name, tc := range map[string]struct {
		random float64
		floor  time.Duration
		want   []time.Duration
	}{
		"doubles up to the bound": {1, 0, []time.Duration{
			100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, time.Second, time.Second,
		}},
		"full jitter reaches down to nothing":    {0, 0, []time.Duration{0, 0, 0}},
		"full jitter reaches down to the floor":  {0, 50 * time.Millisecond, []time.Duration{50 * time.Millisecond, 50 * time.Millisecond}},
		"full jitter is a part of the ceiling":   {0.25, 0, []time.Duration{25 * time.Millisecond, 50 * time.Millisecond}},
		"the floor is no part of the jitter":     {0.5, 50 * time.Millisecond, []time.Duration{75 * time.Millisecond, 125 * time.Millisecond}},
		"a floor above the ceiling is the floor": {1, 150 * time.Millisecond, []time.Duration{150 * time.Millisecond, 200 * time.Millisecond}},
	} {
		t.Run(name, func(t *testing.T) {
			b := Backoff{Floor: tc.floor, First: 100 * time.Millisecond, Max: time.Second, Random: func() float64 { return tc.random }}
			for round := range 2 {
				for i, want := range tc.want {
					if got := b.Next(); got != want {
						t.Fatalf("round %d, wait %d is %s, want %s", round+1, i+1, got, want)
					}
				}
				b.Reset()
			}
		})
	}
}

func TestNextIsRandom(t *testing.T) {
	b := Backoff{First: time.Hour, Max: time.Hour}
	if first := b.Next(); first < 0 || first >= time.Hour || first == b.Next() {
		t.Errorf("%s, and again", first)
	}
}

func TestWait(t *testing.T) {
	b := Backoff{First: time.Millisecond, Max: time.Millisecond}
	if !b.Wait(t.Context()) {
		t.Error("the wait was cut short")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b = Backoff{Floor: time.Hour, First: time.Hour, Max: time.Hour}
	if b.Wait(ctx) {
		t.Error("waited an hour")
	}
}

package eviction

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// world is a fleet and a broker that write down what they are asked for. Its tests run in a bubble, where time is virtual.
type world struct {
	mu        sync.Mutex
	connected map[string]string // instance by agent id
	streams   int
	err       error
	gone      bool // the broker does not have the member
	left      []string
	evictor   *Evictor
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{connected: map[string]string{}, streams: 100}
	var err error
	w.evictor, err = New(Config{Group: func(id string) string { return "runner." + id }}, Deps{
		Leave: func(_ context.Context, group, memberID string) (bool, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.left = append(w.left, group+" "+memberID)
			return !w.gone, w.err
		},
		Instance: func(agentID string) (string, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			instance, ok := w.connected[agentID]
			return instance, ok
		},
		Streams: func() int {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.streams
		},
		Log: slog.New(slog.DiscardHandler), Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// run runs the evictor in a bubble while the test does its part.
func run(t *testing.T, test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.evictor.Run(ctx) }()
		test(t, w)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// broke is a manager's stream that breaks.
func broke(clusterID, agentID string) Break {
	return Break{
		ClusterID: clusterID, AgentID: agentID, InstanceID: "instance-1", Manager: true, Err: io.EOF,
		Members: []*runnerv1.GroupMember{{Group: "runner." + agentID, MemberId: "m1-" + agentID}, {Group: "runner." + clusterID, MemberId: "m2-" + agentID}},
	}
}

// after lets time pass and returns what left its group meanwhile.
func (w *world) after(d time.Duration) []string {
	time.Sleep(d)
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	left := w.left
	w.left = nil
	return left
}

func (w *world) connect(agentID, instance string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.connected[agentID] = instance
}

func TestExactlyTheLastMembersLeaveOnce(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.evictor.Broke(broke("prod", "a-1"))
		if got := w.after(299 * time.Millisecond); got != nil {
			t.Errorf("before anybody could come back: %v", got)
		}
		if got := w.after(2 * time.Millisecond); !slices.Equal(got, []string{"runner.a-1 m1-a-1", "runner.prod m2-a-1"}) {
			t.Errorf("got %v", got)
		}
		if got := w.after(time.Hour); got != nil {
			t.Errorf("later: %v", got)
		}
		if got := w.evictor.Counts(); !maps.Equal(got, map[string]uint64{Evicted: 2}) {
			t.Errorf("counted %v", got)
		}
	})
}

func TestWhoIsNotEvicted(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(w *world, b *Break)
		left    []string
		count   map[string]uint64
	}{
		"the same process is back": {func(w *world, _ *Break) { w.connect("a-1", "instance-1") }, nil, map[string]uint64{CameBack: 1}},
		"another process is back": {
			func(w *world, _ *Break) { w.connect("a-1", "instance-2") },
			[]string{"runner.a-1 m1-a-1", "runner.prod m2-a-1"},
			map[string]uint64{Evicted: 2},
		},
		"no heartbeat was heard": {func(_ *world, b *Break) { b.Members = nil }, nil, map[string]uint64{NoMember: 1}},
		"a worker in the cluster's group": {
			func(_ *world, b *Break) { b.Manager = false },
			[]string{"runner.a-1 m1-a-1"},
			map[string]uint64{Evicted: 1},
		},
		"somebody else's group": {func(_ *world, b *Break) {
			b.Members = []*runnerv1.GroupMember{{Group: "runner.a-2", MemberId: "m"}, {Group: "runner.test", MemberId: "m"}, {Group: "other", MemberId: "m"}}
		}, nil, map[string]uint64{NoMember: 1}},
		"two members of a group": {func(_ *world, b *Break) {
			b.Members = []*runnerv1.GroupMember{{Group: "runner.prod", MemberId: "m"}, {Group: "runner.prod", MemberId: "n"}}
		}, []string{"runner.prod m"}, map[string]uint64{Evicted: 1}},
		"a member without an id": {func(_ *world, b *Break) {
			b.Members = []*runnerv1.GroupMember{{Group: "runner.prod"}, {Group: "runner.a-1", MemberId: string(make([]byte, maxMember+1))}}
		}, nil, map[string]uint64{NoMember: 1}},
		"a member that has left": {
			func(w *world, _ *Break) { w.gone = true },
			[]string{"runner.a-1 m1-a-1", "runner.prod m2-a-1"},
			map[string]uint64{NotMember: 2},
		},
		"the broker is away": {
			func(w *world, _ *Break) { w.err = errors.New("away") },
			[]string{"runner.a-1 m1-a-1", "runner.prod m2-a-1"},
			map[string]uint64{Failed: 2},
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				b := broke("prod", "a-1")
				tc.prepare(w, &b)
				w.evictor.Broke(b)
				if got := w.after(time.Minute); !slices.Equal(got, tc.left) {
					t.Errorf("left %v, want %v", got, tc.left)
				}
				if got := w.evictor.Counts(); !maps.Equal(got, tc.count) {
					t.Errorf("counted %v, want %v", got, tc.count)
				}
			})
		})
	}
}

func TestAProcessThatComesBackInTimeStays(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.evictor.Broke(broke("prod", "a-1"))
		w.after(200 * time.Millisecond)
		w.connect("a-1", "instance-1")
		if got := w.after(time.Minute); got != nil {
			t.Errorf("got %v", got)
		}
	})
}

func TestOneInAClusterAndTenSeconds(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.evictor.Broke(broke("prod", "a-1"))
		w.after(5 * time.Second)
		w.evictor.Broke(broke("prod", "a-2"))
		w.evictor.Broke(broke("test", "a-3"))
		if got := w.after(time.Second); !slices.Contains(got, "runner.test m2-a-3") || slices.Contains(got, "runner.prod m2-a-2") {
			t.Errorf("after 5 s: %v", got)
		}
		w.after(5 * time.Second)
		w.evictor.Broke(broke("prod", "a-4"))
		if got := w.after(time.Second); !slices.Contains(got, "runner.prod m2-a-4") {
			t.Errorf("after 11 s: %v", got)
		}
	})
}

// flap breaks a stream again and again and returns when there were evictions, in seconds after the first break.
func flap(w *world, every, length time.Duration) (seconds []int) {
	begun := time.Now()
	for time.Since(begun) < length {
		w.evictor.Broke(broke("prod", "a-1"))
		if len(w.after(every)) > 0 {
			seconds = append(seconds, int(time.Since(begun).Round(time.Second)/time.Second)-int(every/time.Second))
		}
	}
	return seconds
}

func TestRepetitionsDoubleThePause(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		if got := flap(w, 2*time.Second, 5*time.Minute); !slices.Equal(got, []int{0, 10, 30, 70, 150}) {
			t.Errorf("evictions after %v s", got)
		}
	})
	run(t, func(t *testing.T, w *world) {
		flap(w, 2*time.Second, time.Hour)
		n := len(flap(w, 2*time.Second, time.Hour))
		if n != 6 { // every ten minutes
			t.Errorf("%d evictions in an hour", n)
		}
	})
}

func TestCalmMakesThePauseShortAgain(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		flap(w, 2*time.Second, time.Minute) // the pause is 40 s
		w.after(2 * time.Minute)
		if got := flap(w, 2*time.Second, 25*time.Second); !slices.Equal(got, []int{0, 10}) {
			t.Errorf("evictions after %v s", got)
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	for name, tc := range map[string]struct {
		live, broken int           // streams that live on, and that break
		spread       time.Duration // between two breaks
		back         bool          // those that break are back as other processes
		want         int           // agents that are evicted
	}{
		"one of one":               {0, 1, 0, false, 1},
		"one of three":             {2, 1, 0, false, 1},
		"two of three":             {1, 2, 0, false, 0},
		"two of twenty":            {18, 2, 0, false, 2},
		"two of nineteen":          {17, 2, 0, false, 0},
		"two of twenty, and back":  {20, 2, 0, true, 2},
		"two of nineteen and back": {19, 2, 0, true, 0},
		"all of many":              {0, 2000, 0, false, 0},
		"two, one after the other": {1, 2, 3 * time.Second, false, 2},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				w.streams = tc.live
				for i := range tc.broken {
					agentID := fmt.Sprint("a-", i)
					if tc.back {
						w.connect(agentID, "instance-2")
					}
					w.evictor.Broke(broke(fmt.Sprint("cluster-", i), agentID)) // each in a cluster of its own, so that only this limit counts
					time.Sleep(tc.spread)
				}
				if got := len(w.after(time.Minute)); got != 2*tc.want {
					t.Errorf("%d members left, want %d; %v", got, 2*tc.want, w.evictor.Counts())
				}
			})
		})
	}
}

func TestABrokerThatHangsHoldsUpForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		calls := 0
		w.evictor.deps.Leave = func(ctx context.Context, _, _ string) (bool, error) {
			calls++
			<-ctx.Done()
			return false, ctx.Err()
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.evictor.Run(ctx) }()
		for i := range 5 {
			w.evictor.Broke(broke(fmt.Sprint("cluster-", i), fmt.Sprint("a-", i)))
		}
		w.after(time.Minute)
		if got := w.evictor.Counts(); got[TooLate] != 3 || got[Failed] != 4 || calls != 4 {
			t.Errorf("%d calls, %v", calls, got)
		}
		w.evictor.Broke(broke("prod", "a-9"))
		w.after(time.Second)
		cancel() // in the middle of a call
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}, Deps{}); err == nil {
		t.Error("an evictor without a broker")
	}
}

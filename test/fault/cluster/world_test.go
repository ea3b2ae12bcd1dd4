package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"

	"github.com/axion/runner-agent/ctl/client"
	"github.com/axion/runner-agent/test/engine"
	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/rig"
)

// rigName is the rig of these tests. Each source tree has its own, so that runs of several do not remove each other's.
var rigName = func() string {
	dir, err := os.Getwd()
	if err != nil {
		return "fault"
	}
	sum := sha256.Sum256([]byte(dir))
	return "fault-" + hex.EncodeToString(sum[:3])
}()

const (
	// bringUpTimeout bounds bringing up a rig; where there is no node image, it is made first.
	bringUpTimeout = 12 * time.Minute
	// wholeTimeout is within what all must be well again when a fault has ended: engines recover their containers one after the other.
	wholeTimeout = 2 * time.Minute
	// managersGroup is the consumer group of the cluster's topic, and joinedLines how far back in an agent's log is looked for its joining it.
	managersGroup, joinedLines = "runner." + rig.ClusterID, 5000
	// planeConflict is what the plane logs when an event of a known id says something else: a command with two outcomes.
	planeConflict = "events came again and said something else"
)

// world is the rig with what the tests know of it.
type world struct {
	*rig.Rig
	image    string
	operator *client.Client
}

// bringUp is done once for all tests. skip says why the machine cannot have a rig, failed why the rig did not come up.
var bringUp struct {
	once         sync.Once
	world        *world
	skip, failed error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if w := bringUp.world; w != nil {
		if err := errors.Join(w.operator.Close(), w.Down(context.Background())); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// whole returns the world with everything in order, and sees to it that the test leaves it so: what is broken is healed, every agent is back, and no command had
// two outcomes.
func whole(t *testing.T) *world {
	t.Helper()
	fault.Alone(t)
	bringUp.once.Do(func() {
		w, err := up(t, rig.Config{Name: rigName})
		switch {
		case errors.Is(err, rig.ErrMachine):
			bringUp.skip = err
		case err != nil:
			bringUp.failed = err
		default:
			bringUp.world = w
		}
	})
	switch {
	case bringUp.skip != nil:
		t.Skip(bringUp.skip)
	case bringUp.world == nil:
		t.Fatalf("the rig did not come up: %v", bringUp.failed)
	}
	w := bringUp.world
	if err := w.heal(t.Context()); err != nil {
		t.Fatalf("the rig is not whole before the test: %v", err)
	}
	w.keepWhole(t)
	return w
}

// up brings up a rig with agents and plane, and the test image on every node.
func up(t *testing.T, cfg rig.Config) (*world, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), bringUpTimeout)
	defer cancel()
	if err := rig.Requirements(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", rig.ErrMachine, err)
	}
	if err := rig.Build(ctx, ""); err != nil {
		return nil, err
	}
	cfg.AgentImage, cfg.PlaneImage = rig.AgentImage, rig.PlaneImage
	cfg.Images = []string{engine.Image(t)}
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	r, err := rig.Up(ctx, cfg)
	if err != nil {
		return nil, err
	}
	w := &world{Rig: r, image: cfg.Images[0]}
	if w.operator, err = r.Plane().Operator(); err != nil {
		return nil, errors.Join(err, r.Down(ctx))
	}
	return w, nil
}

// keepWhole heals and checks when the test ends.
func (w *world) keepWhole(t *testing.T) {
	started := time.Now()
	t.Cleanup(func() {
		ctx := context.Background() // the test's own has ended
		if err := w.heal(ctx); err != nil {
			t.Errorf("the rig is not whole after the test: %v", err)
		}
		logs, err := w.Plane().LogsSince(ctx, started)
		if err != nil {
			t.Error(err)
		}
		if n := strings.Count(logs, planeConflict); n > 0 {
			t.Errorf("the plane was told another outcome of a command %d times", n)
		}
		if t.Failed() {
			t.Log(w.Diagnosis(ctx))
		}
	})
}

// heal ends every fault and waits until all is well.
func (w *world) heal(ctx context.Context) error {
	if err := errors.Join(w.Plane().Start(ctx), w.Plane().Heal(ctx)); err != nil {
		return err
	}
	for _, n := range w.Nodes() {
		if err := errors.Join(n.Start(ctx), n.Heal(ctx), n.FreeDisk(ctx)); err != nil {
			return err
		}
	}
	return errors.Join(w.WaitNodes(ctx, wholeTimeout), w.WaitAgents(ctx, wholeTimeout), rig.Wait(ctx, wholeTimeout, "the managers' consumer group", w.joined))
}

// joined: all managers are in the same generation of their consumer group, so that it changes hands only by what a test does.
func (w *world) joined(ctx context.Context) error {
	generations := map[int]int{}
	for _, n := range w.Managers() {
		logs, err := n.AgentLogs(ctx, joinedLines)
		if err != nil {
			return err
		}
		last := 0
		for line := range strings.Lines(logs) {
			var said struct {
				Msg, Group string
				Generation int
			}
			if json.Unmarshal([]byte(line), &said) == nil && said.Msg == "joined the group" && said.Group == managersGroup {
				last = said.Generation
			}
		}
		generations[last]++
	}
	if len(generations) != 1 || generations[0] > 0 {
		return fmt.Errorf("they are in generations %v", generations)
	}
	return nil
}

// leader waits for the Swarm's leader.
func (w *world) leader(t *testing.T) *rig.Node {
	t.Helper()
	leader, err := w.WaitLeader(t.Context(), wholeTimeout)
	if err != nil {
		t.Fatal(err)
	}
	return leader
}

// services are those of a stack, as the Swarm's leader has them.
func (w *world) services(t *testing.T, stack string) []swarm.Service {
	t.Helper()
	leader := w.leader(t)
	services, err := leader.Client().ServiceList(t.Context(), swarm.ServiceListOptions{Filters: filters.NewArgs(filters.Arg("label", "com.docker.stack.namespace="+stack))})
	if err != nil {
		t.Fatal(err)
	}
	return services
}

// must ends the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// seconds is how a duration is told.
func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

package crash

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/axion/runner-agent/plane/broker"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/test/fault"
	"github.com/axion/runner-agent/test/fault/stacks"
)

const (
	// seedVariable names the environment variable with the seed of the first schedule; each further one has the next number.
	seedVariable = "AXION_FAULT_SEED"
	// shortSchedules is how long the short form goes on beginning schedules.
	shortSchedules = 40 * time.Second
	// longSchedules and longTime bound the long form.
	longSchedules = 1000
	longTime      = 3 * time.Hour
	// farthestStep bounds at which step, of any name, an agent is killed: a schedule has about so many.
	farthestStep = 70
	// killings is how often each manager is killed in a schedule at most, by a crash point.
	killings = 2
)

// TestRandomSchedules sends commands for several stacks to two managers, some twice, some late, some out of order, while the managers are killed at random steps,
// killed and stopped at random times, and taken out of their group.
func TestRandomSchedules(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedVariable, err)
		}
	}
	on(t, func(t *testing.T, w *world) {
		c := w.newCluster(t, 2)
		t.Logf("the first schedule's seed is %d: set %s to repeat it", seed, seedVariable)
		limit, count := shortSchedules, longSchedules
		if fault.Long() {
			limit = longTime
		}
		begun, total := time.Now(), counts{steps: map[string]int{}}
		for done := 0; done < count && time.Since(begun) < limit && !t.Failed(); done++ {
			c.schedule(seed+uint64(done), &total)
		}
		for _, m := range c.managers {
			for step, n := range m.allCrashes() {
				total.kills += n
				total.steps[step] += n
			}
		}
		fault.Report(t, "random schedules: kill -9 at random steps and times, redelivery, duplicates, reordering, rebalances, two managers",
			"0 lost, 0 applied twice, final spec = last generation, one outcome an id",
			fmt.Sprintf("%d schedules from seed %d, %d commands in %d messages; %d kills at %d different steps, %d kills, %d stops and %d evictions at random times; outcomes told %d times; %d writes, none twice; slowest %.1f s from the last message to the last outcome",
				total.schedules, seed, total.commands, total.messages, total.kills, len(total.steps), total.at["kill"], total.at["stop"], total.at["evict"], total.told, total.writes, total.slowest.Seconds()))
	})
}

// counts is what all schedules did.
type counts struct {
	schedules, commands, messages, kills, told, writes int
	slowest                                            time.Duration // from the last message to the last outcome
	steps                                              map[string]int
	at                                                 map[string]int
}

// planned is a command of a schedule, and what must become of it.
type planned struct {
	id         string
	stack      int
	generation uint64
	message    proto.Message
	status     runnerv1.OutcomeStatus
}

func (p planned) String() string {
	return fmt.Sprintf("%s: %T of stack %d generation %d, expected %s", p.id, p.message, p.stack, p.generation, p.status)
}

func lines(order []planned) string {
	var text []string
	for _, p := range order {
		text = append(text, p.String())
	}
	return strings.Join(text, "\n")
}

// rest is how a stack must be in the end.
type rest struct {
	command    string
	generation uint64
	marks      map[string]string
	replicas   uint64 // of service a
}

// plan makes the commands of one stack in the order in which they are sent, of which some come after a newer one.
func (c *cluster) plan(r *rand.Rand, number int, s *stacks.Stack) ([]planned, rest) {
	generations := make([]uint64, 2+r.IntN(3))
	for i := range generations {
		generations[i] = uint64(i + 1)
	}
	if n := len(generations); r.IntN(3) == 0 {
		i := r.IntN(n - 1)
		generations[i], generations[i+1] = generations[i+1], generations[i]
	}
	var all []planned
	at := rest{marks: map[string]string{}}
	for _, g := range generations {
		p := planned{id: uuid.NewString(), stack: number, generation: g, status: runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED}
		marks, replicas := at.marks, uint64(0)
		switch kind := r.IntN(6); {
		case kind == 0 && len(at.marks) > 0:
			marks = map[string]string{}
			p.message = &runnerv1.StackRemove{Stack: s.Name, Generation: g}
		case kind == 1 && len(at.marks) > 0:
			replicas = at.replicas + 1
			p.message = &runnerv1.ServiceScale{Service: s.Service("a"), Replicas: replicas, Generation: g, Timeout: durationpb.New(time.Second)}
			p.status = runnerv1.OutcomeStatus_OUTCOME_STATUS_TIMED_OUT
		default:
			marks = map[string]string{"a": strconv.FormatUint(g, 10)}
			for _, name := range []string{"b", "c"} {
				if r.IntN(2) == 0 {
					marks[name] = strconv.Itoa(r.IntN(2)) // often the same as before
				}
			}
			p.message = s.Deploy(g, unplaced(marks))
		}
		if g < at.generation {
			p.status = runnerv1.OutcomeStatus_OUTCOME_STATUS_SUPERSEDED
		} else {
			at = rest{p.id, g, marks, replicas}
		}
		all = append(all, p)
	}
	return all, at
}

// mixed interleaves the stacks' commands, repeats some at once and some later.
func mixed(r *rand.Rand, perStack [][]planned) []planned {
	var order []planned
	for {
		var left []int
		for i, commands := range perStack {
			if len(commands) > 0 {
				left = append(left, i)
			}
		}
		if len(left) == 0 {
			break
		}
		i := left[r.IntN(len(left))]
		order = append(order, perStack[i][0])
		perStack[i] = perStack[i][1:]
	}
	for n := 1 + r.IntN(3); n > 0; n-- {
		i := r.IntN(len(order))
		order = slices.Insert(order, i+1+r.IntN(len(order)-i), order[i])
	}
	return order
}

// schedule runs one schedule and checks what has become of it.
func (c *cluster) schedule(seed uint64, total *counts) {
	c.t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	var all []*stacks.Stack
	var perStack [][]planned
	var rests []rest
	for i := range 2 + r.IntN(2) {
		s := stacks.New(c.t, c.prefix)
		commands, at := c.plan(r, i, s)
		all, perStack, rests = append(all, s), append(perStack, commands), append(rests, at)
	}
	commands := slices.Concat(perStack...)
	order := mixed(r, perStack)
	chaos := c.chaos(r, total)
	defer chaos.end()
	defer func() {
		if c.t.Failed() {
			c.t.Logf("schedule with %s=%d:\n%s\nwhat happened to the managers:\n%s", seedVariable, seed, lines(order), strings.Join(chaos.told, "\n"))
		}
	}()
	for _, p := range order {
		c.produce(p, all[p.stack].Name)
		time.Sleep(time.Duration(r.IntN(120)) * time.Millisecond)
	}
	begun := time.Now()
	for _, p := range commands {
		c.await(p.id)
	}
	total.slowest = max(total.slowest, time.Since(begun))
	chaos.end()
	for i, s := range all {
		c.atRest(s, rests[i].command, rests[i].generation, rests[i].marks)
		if a, ok := s.Live()["a"]; ok && stacks.Replicas(a) != rests[i].replicas {
			c.t.Errorf("stack %s: service a has %d replicas, want %d", s.Name, stacks.Replicas(a), rests[i].replicas)
		}
		total.writes += c.onceEach(s)
		s.Remove()
	}
	for _, p := range commands {
		total.told += c.oneOutcome(p.id)
		if got := c.await(p.id).message; got.GetStatus() != p.status {
			c.t.Errorf("command %v: got %v", p, got)
		}
	}
	total.schedules++
	total.commands += len(commands)
	total.messages += len(order)
}

// produce writes a command into the cluster's topic, as it was written before if it was.
func (c *cluster) produce(p planned, key string) {
	c.t.Helper()
	e, err := envelope.New("/tests/crash", p.message, time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	e.ID, e.Subject, e.Generation = p.id, key, p.generation
	record := &kgo.Record{Topic: broker.CommandTopic(c.id), Key: []byte(key), Value: e.Data}
	for _, h := range e.Headers() {
		record.Headers = append(record.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	if err := c.kafka.ProduceSync(c.t.Context(), record).FirstErr(); err != nil {
		c.t.Fatal(err)
	}
}

// chaos is what happens to the managers during a schedule.
type chaos struct {
	cluster *cluster
	stop    chan struct{}
	ended   sync.Once
	done    sync.WaitGroup

	mu    sync.Mutex
	r     *rand.Rand
	total *counts
	told  []string
}

// chaos kills both managers, starts them anew, armed, and goes on until it is ended; then both live.
func (c *cluster) chaos(r *rand.Rand, total *counts) *chaos {
	x := &chaos{cluster: c, stop: make(chan struct{}), r: rand.New(rand.NewPCG(r.Uint64(), 2)), total: total}
	if total.at == nil {
		total.at = map[string]int{}
	}
	for i, m := range c.managers {
		x.done.Go(func() { x.manage(i, m) })
	}
	x.done.Go(x.meddle)
	return x
}

// end stops the killing and starts the managers that are gone.
func (x *chaos) end() {
	x.ended.Do(func() {
		close(x.stop)
		x.done.Wait()
		for _, m := range x.cluster.managers {
			if !m.alive() {
				m.start("")
			}
		}
	})
}

// draw is a random number below n.
func (x *chaos) draw(n int) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.r.IntN(n)
}

func (x *chaos) tell(format string, args ...any) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.told = append(x.told, time.Now().Format("05.000 ")+fmt.Sprintf(format, args...))
}

// manage starts a manager again whenever it is gone, as Swarm does; the first times it is armed.
func (x *chaos) manage(number int, m *manager) {
	if x.draw(2) == 0 {
		m.kill()
	}
	for starts := 0; ; {
		if !m.alive() {
			arm := ""
			if starts++; starts <= killings {
				arm = fmt.Sprintf("*:%d", 1+x.draw(farthestStep))
			}
			x.tell("manager %d: start %q", number, arm)
			m.start(arm)
		}
		_, ended := m.process()
		select {
		case <-x.stop:
			return
		case <-ended:
			x.tell("manager %d: ended at %q", number, m.now().crashed)
		}
		select {
		case <-x.stop:
			return
		case <-time.After(time.Duration(x.draw(300)) * time.Millisecond):
		}
	}
}

// meddle does to the managers what does not wait for a step.
func (x *chaos) meddle() {
	for range 1 + x.draw(3) {
		select {
		case <-x.stop:
			return
		case <-time.After(time.Duration(100+x.draw(900)) * time.Millisecond):
		}
		number := x.draw(len(x.cluster.managers))
		m := x.cluster.managers[number]
		what := []string{"kill", "stop", "evict"}[x.draw(3)]
		if !m.alive() || what == "evict" && !m.member() {
			continue
		}
		switch what {
		case "kill":
			m.kill()
		case "stop":
			m.term()
		case "evict":
			m.evict()
		}
		x.tell("manager %d: %s", number, what)
		x.mu.Lock()
		x.total.at[what]++
		x.mu.Unlock()
	}
}

package crash

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/agent/fence"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/test/engineproxy"
	"github.com/axion/runner-agent/test/fault/stacks"
)

// submit gives a command to the plane, as an operator does, and returns its id and generation.
func (c *cluster) submit(command proto.Message) (id string, generation uint64) {
	c.t.Helper()
	resp, err := c.operator.SubmitCommand(c.t.Context(), c.request(command))
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.GetCommandId(), resp.GetGeneration()
}

func (c *cluster) request(command proto.Message) *planev1.SubmitCommandRequest {
	req := &planev1.SubmitCommandRequest{ClusterId: c.id}
	switch m := command.(type) {
	case *runnerv1.StackDeploy:
		req.Command = &planev1.SubmitCommandRequest_StackDeploy{StackDeploy: m}
	case *runnerv1.StackRemove:
		req.Command = &planev1.SubmitCommandRequest_StackRemove{StackRemove: m}
	case *runnerv1.ServiceScale:
		req.Command = &planev1.SubmitCommandRequest_ServiceScale{ServiceScale: m}
	case *runnerv1.ServiceRestart:
		req.Command = &planev1.SubmitCommandRequest_ServiceRestart{ServiceRestart: m}
	}
	return req
}

// succeeds waits until a command has succeeded.
func (c *cluster) succeeds(commandID string) outcome {
	c.t.Helper()
	o := c.await(commandID)
	if o.message.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		c.t.Errorf("command %s: %v", commandID, o.message)
	}
	return o
}

// serviceWrite is a write to a service that the engine accepted.
type serviceWrite struct {
	service, generation string
	tombstone           bool
	base                uint64 // the version on which an update is based; 0 of a creation
	at                  time.Time
}

func (w serviceWrite) String() string {
	kind := "spec"
	if w.tombstone {
		kind = "tombstone"
	}
	return fmt.Sprintf("%s of %s for %s at %d", kind, w.service, w.generation, w.base)
}

// serviceWrites lists the creations and updates of a stack's services that the engine accepted from any manager, updates in the order of their versions.
func (c *cluster) serviceWrites(stack *stacks.Stack) []serviceWrite {
	c.t.Helper()
	var all []serviceWrite
	for _, m := range c.managers {
		for _, w := range m.proxy.Writes() {
			if s, ok := serviceWriteOf(w); ok && strings.HasPrefix(s.service, stack.Name+"_") {
				all = append(all, s)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b serviceWrite) int { return int(int64(a.base) - int64(b.base)) })
	return all
}

func serviceWriteOf(w engineproxy.Write) (serviceWrite, bool) {
	service, verb := path.Split(w.Path)
	update := verb == "update" && path.Base(path.Dir(path.Clean(service))) == "services"
	create := verb == "create" && path.Base(path.Clean(service)) == "services"
	if w.Method != http.MethodPost || !w.Accepted() || !update && !create {
		return serviceWrite{}, false
	}
	var spec swarm.ServiceSpec
	if json.Unmarshal(w.Body, &spec) != nil {
		return serviceWrite{}, false
	}
	s := serviceWrite{service: spec.Name, generation: spec.Labels[fence.LabelGeneration], tombstone: spec.Labels[fence.LabelTombstone] != "", at: w.At}
	if s.tombstone {
		s.generation = spec.Labels[fence.LabelTombstone]
	}
	if update {
		s.base, _ = strconv.ParseUint(w.Query.Get("version"), 10, 64)
	}
	return s, true
}

// onceEach checks that no generation has written a service twice, and that no update of an older generation came after one of a newer. It returns the number of
// writes.
func (c *cluster) onceEach(stack *stacks.Stack) int {
	c.t.Helper()
	type change struct {
		service, generation string
		tombstone           bool
	}
	seen := map[change]int{}
	newest := map[string]uint64{}
	all := c.serviceWrites(stack)
	for _, w := range all {
		k := change{w.service, w.generation, w.tombstone}
		if seen[k]++; seen[k] > 1 {
			c.t.Errorf("applied twice: %s", w)
		}
		number, _, _ := strings.Cut(w.generation, "/")
		generation, _ := strconv.ParseUint(number, 10, 64)
		if w.base != 0 && generation < newest[w.service] {
			c.t.Errorf("an older generation after %d: %s", newest[w.service], w)
		}
		if w.base != 0 {
			newest[w.service] = max(newest[w.service], generation)
		}
	}
	return len(all)
}

// atRest waits until the Swarm holds exactly those services, by marks, and the stack's head has the generation's outcome.
func (c *cluster) atRest(stack *stacks.Stack, commandID string, generation uint64, marks map[string]string) {
	c.t.Helper()
	var have map[string]string
	var head stacks.Head
	want := stacks.Head{Phase: stacks.Decided, Command: commandID, Generation: strconv.FormatUint(generation, 10)}
	for deadline := time.Now().Add(restPatience); ; time.Sleep(50 * time.Millisecond) {
		have = stack.Marks()
		head, _ = stack.Head()
		if fmt.Sprint(have) == fmt.Sprint(marks) && head == want {
			return
		}
		if time.Now().After(deadline) {
			c.t.Errorf("stack %s: services are %v, want %v; head is %+v, want %+v", stack.Name, have, marks, head, want)
			return
		}
	}
}

// restPatience is how long a stale creation may live, with what a busy machine adds to it.
const restPatience = 20 * time.Second

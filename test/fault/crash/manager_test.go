package crash

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/axion/runner-agent/internal/crashpoint"
	"github.com/axion/runner-agent/plane/broker"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	"github.com/axion/runner-agent/test/engine"
	"github.com/axion/runner-agent/test/engineproxy"
	"github.com/axion/runner-agent/test/fault/stacks"
	"github.com/axion/runner-agent/test/loopback"
)

// engineSocket is the machine's engine.
const engineSocket = "/var/run/docker.sock"

// cluster is a cluster of managers that share the machine's Swarm with others.
type cluster struct {
	*world
	t        *testing.T
	id       string
	prefix   string // of its stacks' names
	managers []*manager
}

// newCluster starts n managers and waits until they are members of the cluster's group.
func (w *world) newCluster(t *testing.T, n int) *cluster {
	t.Helper()
	c := &cluster{world: w, t: t, id: engine.Name(t, "crash"), prefix: engine.Name(t, "axt-crash")}
	api := engine.Client(t)
	t.Cleanup(func() { stacks.RemoveAll(t, api, c.prefix) }) // after the managers' ends
	token, err := w.operator.CreateToken(t.Context(), &planev1.CreateTokenRequest{ClusterId: c.id})
	if err != nil {
		t.Fatal(err)
	}
	var nodes []engineproxy.Node
	for i := range n {
		nodes = append(nodes, engineproxy.Node{ID: strings.ReplaceAll(engine.Name(t, "node"), "-", ""), Name: fmt.Sprintf("host-%d", i)})
	}
	for i := range n {
		m := &manager{cluster: c, t: t, proxy: engineproxy.New(t, engineSocket)}
		m.proxy.Pretend(nodes[i], append(append([]engineproxy.Node{}, nodes[:i]...), nodes[i+1:]...)...)
		m.proxy.Confine(c.prefix)
		m.configure(token.GetToken())
		c.managers = append(c.managers, m)
		m.start("")
		eventually(t, "the manager's membership", m.member)
	}
	return c
}

// manager is an agent on a manager node, as a process that comes and goes.
type manager struct {
	*cluster
	t     *testing.T
	proxy *engineproxy.Proxy
	dir   string

	mu      sync.Mutex
	cmd     *exec.Cmd
	ended   chan struct{} // closed when the process is gone
	began   time.Time
	state   state
	log     *journal
	crashes map[string]int // by step, of all its processes
}

// state is what the newest process has told in its log.
type state struct {
	memberID string
	owns     bool
	crashed  string
	agentID  string
}

// configure writes the agent's configuration.
func (m *manager) configure(token string) {
	m.t.Helper()
	dir, err := os.MkdirTemp("", "axt-c-") // the name of a socket must be short
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	m.dir, m.crashes, m.log = dir, map[string]int{}, &journal{}
	m.log.see = m.see
	text := fmt.Sprintf("[agent]\nstate_dir = %q\nwork_dir = %q\n[plane]\naddress = %q\ntoken_file = %q\n[engine]\nhost = %q\n[health]\nlisten = %q\n[local]\nsocket = %q\n[telemetry]\nenabled = false\n",
		filepath.Join(dir, "state"), filepath.Join(dir, "work"), m.cfg.Listen, filepath.Join(dir, "token"), m.proxy.Host(), loopback.FreeAddress(m.t), filepath.Join(dir, "sock"))
	for name, content := range map[string]string{"token": token, "agent.toml": text} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
	m.t.Cleanup(func() {
		m.kill()
		if m.t.Failed() {
			m.t.Logf("the end of the log of %s:\n%s", m.dir, m.log.tail())
		}
	})
}

// start starts the agent's process, armed to crash at that step, or not at all if it is empty.
func (m *manager) start(crashAt string) {
	m.t.Helper()
	cmd := exec.Command(m.program, "--config", filepath.Join(m.dir, "agent.toml"))
	cmd.Env = []string{crashpoint.Variable + "=" + crashAt} // the tests' own AXION_ variables would be refused
	cmd.Stderr = m.log
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state = state{}
	m.began = time.Now()
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	ended := make(chan struct{})
	m.cmd, m.ended = cmd, ended
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
}

// see takes what matters from a line of the agent's log.
func (m *manager) see(line string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if step, ok := strings.CutPrefix(line, "crashpoint "); ok {
		m.state.crashed = step
		m.crashes[step]++
		return
	}
	var entry struct {
		Msg, Group, Member string
		AgentID            string `json:"agent_id"`
		Partitions         int
	}
	if json.Unmarshal([]byte(line), &entry) != nil {
		return
	}
	if entry.AgentID != "" {
		m.state.agentID = entry.AgentID
	}
	if entry.Msg == "joined the group" && entry.Group == broker.Group(m.id) {
		m.state.memberID, m.state.owns = entry.Member, entry.Partitions > 0
	}
}

func (m *manager) now() state {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

func (m *manager) member() bool { return m.now().memberID != "" }

// allCrashes is how often the agent has crashed at each step.
func (m *manager) allCrashes() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.crashes)
}

// process returns the newest process and the channel that is closed when it is gone; nil if none was started.
func (m *manager) process() (*exec.Cmd, chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cmd, m.ended
}

func (m *manager) alive() bool {
	_, ended := m.process()
	select {
	case <-ended:
		return false
	default:
		return true
	}
}

// kill is kill -9.
func (m *manager) kill() {
	cmd, ended := m.process()
	if cmd != nil {
		_ = cmd.Process.Kill()
		<-ended
	}
}

// term asks the agent to end.
func (m *manager) term() {
	cmd, _ := m.process()
	_ = cmd.Process.Signal(syscall.SIGTERM)
}

// termAgain is term once the first signal has been taken: two signals that come together are one.
func (m *manager) termAgain() {
	for m.alive() {
		m.term()
		time.Sleep(5 * time.Millisecond)
	}
}

func (m *manager) exitCode() int {
	cmd, _ := m.process()
	return cmd.ProcessState.ExitCode()
}

// startedAt is when the newest process was started.
func (m *manager) startedAt() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.began
}

// gone waits for the process's end.
func (m *manager) gone(limit time.Duration) {
	m.t.Helper()
	_, ended := m.process()
	select {
	case <-ended:
	case <-time.After(limit):
		m.t.Fatalf("the agent has not ended within %s", limit)
	}
}

// evict takes a member out of the cluster's group, as the plane does that has seen it die: the plane's own limits would make hundreds of crashes take hours.
func (m *manager) evict() {
	m.t.Helper()
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = broker.Group(m.id)
	one := kmsg.NewLeaveGroupRequestMember()
	one.MemberID = m.now().memberID
	req.MemberID = one.MemberID
	req.Members = append(req.Members, one)
	resp, err := req.RequestWith(m.t.Context(), m.kafka)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil && !errors.Is(err, kerr.UnknownMemberID) && !errors.Is(err, kerr.GroupIDNotFound) {
		m.t.Errorf("evict %s: %v", one.MemberID, err)
	}
}

// owner waits until one living manager has been given the cluster's topic, and returns it and another one, if there is any.
func (c *cluster) owner() (owner, other *manager) {
	c.t.Helper()
	eventually(c.t, "an owner of the cluster's topic", func() bool {
		owner, other = nil, nil
		for _, m := range c.managers {
			switch {
			case !m.alive():
			case m.now().owns && owner == nil:
				owner = m
			default:
				other = m
			}
		}
		return owner != nil
	})
	return owner, other
}

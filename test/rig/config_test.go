package rig

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

func TestDefaultsAreThreeManagersAndAWorker(t *testing.T) {
	cfg := Config{Name: "x"}
	if err := cfg.normalize(); err != nil {
		t.Fatal(err)
	}
	want := []NodeConfig{{"m1", Manager, Bookworm, ""}, {"m2", Manager, Bookworm, ""}, {"m3", Manager, Bookworm, ""}, {"w1", Worker, Bookworm, ""}}
	if len(cfg.Nodes) != len(want) {
		t.Fatalf("%d nodes", len(cfg.Nodes))
	}
	for i, n := range cfg.Nodes {
		if n != want[i] {
			t.Errorf("node %d is %+v, not %+v", i, n, want[i])
		}
	}
}

func TestConfigIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  Config
		word string
	}{
		"no name":           {Config{}, "no name"},
		"bad name":          {Config{Name: "A_b"}, `"A_b"`},
		"long name":         {Config{Name: strings.Repeat("x", 21)}, "not a name"},
		"worker first":      {Config{Name: "x", Nodes: []NodeConfig{{Role: Worker}}}, "must be a manager"},
		"two of a name":     {Config{Name: "x", Nodes: []NodeConfig{{Name: "a"}, {Name: "a"}}}, "two parts are called a"},
		"name of the plane": {Config{Name: "x", Nodes: []NodeConfig{{Name: "plane"}}}, "two parts are called plane"},
		"bad node name":     {Config{Name: "x", Nodes: []NodeConfig{{Name: "../a"}}}, "../a"},
		"bad role":          {Config{Name: "x", Nodes: []NodeConfig{{Role: "boss"}}}, "boss"},
		"bad release":       {Config{Name: "x", Nodes: []NodeConfig{{Release: "buzz"}}}, "buzz"},
		"too many nodes":    {Config{Name: "x", Nodes: make([]NodeConfig, 33)}, "at most 32"},
		"tiny disk":         {Config{Name: "x", StateMiB: 1}, "too small"},
		"agents, no plane":  {Config{Name: "x", AgentImage: "a"}, "need a plane"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tc.cfg.normalize(); err == nil || !strings.Contains(err.Error(), tc.word) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestLinks(t *testing.T) {
	for name, tc := range map[string]struct {
		link Link
		want string // what tc is told; empty means refused
	}{
		"rate":          {Link{Rate: 1_000_000}, "tbf rate 1000000bit burst 16kb latency 500ms"},
		"delay":         {Link{Delay: 1500 * time.Microsecond}, "netem delay 1500us"},
		"all":           {Link{Rate: 8000, Delay: time.Second, Loss: 0.125}, "netem delay 1000000us loss 12.500% rate 8000bit"},
		"nothing":       {Link{}, ""},
		"slow rate":     {Link{Rate: 100}, ""},
		"negative rate": {Link{Rate: -1}, ""},
		"much loss":     {Link{Loss: 1.5}, ""},
		"early":         {Link{Delay: -1}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			args, err := tc.link.discipline()
			if got := strings.Join(args, " "); got != tc.want || (err == nil) != (tc.want != "") {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestRules(t *testing.T) {
	for name, tc := range map[string]struct {
		direction Direction
		want      string
	}{
		"both": {Both, "*raw\n-A axion-rig -i eth0 -s 1.2.3.4 -j DROP\nCOMMIT\n*mangle\n-A axion-rig -o eth0 -d 1.2.3.4 -j DROP\nCOMMIT\n*filter\nCOMMIT\n"},
		"in":   {In, "*raw\n-A axion-rig -i eth0 -s 1.2.3.4 -j DROP\nCOMMIT\n*mangle\nCOMMIT\n*filter\nCOMMIT\n"},
		"out":  {Out, "*raw\nCOMMIT\n*mangle\n-A axion-rig -o eth0 -d 1.2.3.4 -j DROP\nCOMMIT\n*filter\nCOMMIT\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var rules ruleSet
			rules.drop(tc.direction, "-s 1.2.3.4", "-d 1.2.3.4")
			if got := rules.String(); got != tc.want {
				t.Errorf("%s", got)
			}
		})
	}
}

func TestRulesOfOnePort(t *testing.T) {
	var rules ruleSet
	rules.cutPort("9443", At(netip.MustParseAddr("1.2.3.4")))
	rules.refusePort("9093")
	const want = "*raw\n-A axion-rig -i eth0 -p tcp --dport 9443 -s 1.2.3.4 -j DROP\nCOMMIT\n" +
		"*mangle\n-A axion-rig -o eth0 -p tcp --sport 9443 -d 1.2.3.4 -j DROP\nCOMMIT\n" +
		"*filter\n-A axion-rig -i eth0 -p tcp --dport 9093 -j REJECT --reject-with tcp-reset\nCOMMIT\n"
	if got := rules.String(); got != want {
		t.Errorf("%s", got)
	}
}

func TestConnections(t *testing.T) {
	got, err := parseConnections("0      0        198.18.0.11:2377      198.18.0.12:41332       \n0  0 [::ffff:198.18.0.2]:9443 [::ffff:198.18.0.11]:5000\n")
	if err != nil || len(got) != 2 {
		t.Fatalf("%v, %v", got, err)
	}
	if got[0].local.String() != "198.18.0.11:2377" || got[0].remote.String() != "198.18.0.12:41332" || got[1].local.String() != "198.18.0.2:9443" || got[1].remote.String() != "198.18.0.11:5000" {
		t.Errorf("%v", got)
	}
	for _, text := range []string{"one two", "0 0 a:b c:d", "0 0 198.18.0.11:2377 nowhere"} {
		if _, err := parseConnections(text); err == nil {
			t.Errorf("%q is understood", text)
		}
	}
}

func FuzzConnections(f *testing.F) {
	f.Add("0 0 198.18.0.11:2377 198.18.0.12:41332\n")
	f.Add("0 0 [fe80::1%eth0]:1 [::ffff:198.18.0.12]:2\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseConnections(text)
		if err != nil {
			return
		}
		for _, c := range all {
			if !c.local.IsValid() || !c.remote.IsValid() || c.local.Addr().Is4In6() || c.remote.Addr().Zone() != "" {
				t.Errorf("%v of %q", c, text)
			}
		}
	})
}

func TestAgentsAsExpected(t *testing.T) {
	nodes := []*Node{{Host: Host{name: "m1"}, role: Manager}, {Host: Host{name: "w1"}, role: Worker}}
	agent := func(name string, role runnerv1.NodeRole, connected, confirmed bool) *planev1.Agent {
		return &planev1.Agent{Node: &runnerv1.NodeFacts{Hostname: name, Role: role}, Connected: connected, ManagerConfirmed: confirmed}
	}
	manager, worker := runnerv1.NodeRole_NODE_ROLE_MANAGER, runnerv1.NodeRole_NODE_ROLE_WORKER
	for name, tc := range map[string]struct {
		second *planev1.Agent
		word   string
	}{
		"right":         {agent("w1", worker, true, false), ""},
		"missing":       {agent("w2", worker, true, false), "w1 has 0 agents"},
		"twice":         {agent("m1", manager, true, true), "m1 has 2 agents"},
		"away":          {agent("w1", worker, false, false), "not connected"},
		"wrong role":    {agent("w1", manager, true, true), "w1 is NODE_ROLE_MANAGER"},
		"false manager": {agent("w1", worker, true, true), "confirmed: true"},
	} {
		t.Run(name, func(t *testing.T) {
			err := asExpected([]*planev1.Agent{agent("m1", manager, true, true), tc.second}, nodes)
			if (err == nil) != (tc.word == "") || err != nil && !strings.Contains(err.Error(), tc.word) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestANameIsOneProcessesOwn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "one")
	first, second := &Rig{name: "one", dir: dir}, &Rig{name: "one", dir: dir}
	if err := first.take(); err != nil {
		t.Fatal(err)
	}
	if err := second.take(); err == nil {
		t.Error("the name was given to two")
	}
	if err := first.taken.Close(); err != nil {
		t.Fatal(err)
	}
	if err := second.take(); err != nil {
		t.Fatal(err)
	}
	if err := second.taken.Close(); err != nil {
		t.Error(err)
	}
}

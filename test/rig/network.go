package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Direction says which packets a cut takes away, as the host sees them.
type Direction string

// The directions.
const (
	Both Direction = "both"
	// In takes away what comes to the host: it still sends and is heard.
	In Direction = "in"
	// Out takes away what the host sends: it still hears.
	Out Direction = "out"
)

// Peer is something with an address: a host of the rig, or At.
type Peer interface{ Addr() netip.Addr }

// At is a peer that is no host of the rig, for example a broker on the rig's gateway address.
type At netip.Addr

// Addr is the address itself.
func (a At) Addr() netip.Addr { return netip.Addr(a) }

const (
	// ruleChain holds the rules of all network faults of a host.
	ruleChain = "axion-rig"
	// flushRules ends them all, as iptables-restore reads it.
	flushRules = "*raw\n-F " + ruleChain + "\nCOMMIT\n*mangle\n-F " + ruleChain + "\nCOMMIT\n*filter\n-F " + ruleChain + "\nCOMMIT\n"
	// device is a host's interface in the rig's network.
	device = "eth0"
)

// Link is what becomes of a host's connection with the rig's network.
type Link struct {
	// Rate is the most that passes in each direction, in bits per second; 0 means no bound. At least 8,000.
	Rate int64
	// Delay is added to each packet in each direction. It needs a kernel with netem (sch_netem).
	Delay time.Duration
	// Loss is the share of packets that are lost in each direction, 0 to 1. It needs a kernel with netem.
	Loss float64
}

// Cut takes away the packets between the host and those peers, silently, as a broken switch does; without peers, those of everybody. Cuts add up until Heal.
// Sockets of UDP see an error when they send into a cut of direction Out; those of TCP see nothing.
func (h *Host) Cut(ctx context.Context, direction Direction, peers ...Peer) error {
	var rules ruleSet
	for _, peer := range peers {
		rules.drop(direction, "-s "+peer.Addr().String(), "-d "+peer.Addr().String())
	}
	if len(peers) == 0 {
		rules.drop(direction, "", "")
	}
	return h.failed("cut", h.apply(ctx, rules))
}

// CutPort takes away the packets of one of the host's TCP ports, silently, from and to those peers (none: everybody). It adds to other faults until Heal.
func (h *Host) CutPort(ctx context.Context, port string, peers ...Peer) error {
	var rules ruleSet
	rules.cutPort(port, peers...)
	return h.failed("cut a port of", h.apply(ctx, rules))
}

// RefusePort answers what those peers (none: everybody) send to one of the host's TCP ports with a reset, on connections that are there and on new ones, as a
// program that was killed or a firewall that refuses does. It adds to other faults until Heal.
func (h *Host) RefusePort(ctx context.Context, port string, peers ...Peer) error {
	var rules ruleSet
	rules.refusePort(port, peers...)
	return h.failed("refuse a port of", h.apply(ctx, rules))
}

// HalfOpen takes the packets of the TCP connections that the host has now with those peers (none: with everybody) silently away, in both directions: each
// end believes in a connection whose other end is gone. New connections work. It returns how many were taken.
func (h *Host) HalfOpen(ctx context.Context, peers ...Peer) (int, error) {
	connections, err := h.connections(ctx)
	if err != nil {
		return 0, h.failed("half-open", err)
	}
	var rules ruleSet
	count := 0
	for _, c := range connections {
		if c.local.Addr() != h.address || len(peers) > 0 && !slices.ContainsFunc(peers, func(p Peer) bool { return p.Addr() == c.remote.Addr() }) {
			continue
		}
		count++
		rules.drop(Both,
			fmt.Sprintf("-p tcp -s %s --sport %d --dport %d", c.remote.Addr(), c.remote.Port(), c.local.Port()),
			fmt.Sprintf("-p tcp -d %s --dport %d --sport %d", c.remote.Addr(), c.remote.Port(), c.local.Port()))
	}
	return count, h.failed("half-open", h.apply(ctx, rules))
}

// Slow makes the host's connection slow or unreliable in both directions, in place of an earlier Slow, until Heal.
func (h *Host) Slow(ctx context.Context, link Link) error {
	discipline, err := link.discipline()
	if err != nil {
		return h.failed("slow", err)
	}
	outer, err := h.outerDevice(ctx)
	if err != nil {
		return h.failed("slow", err)
	}
	_, err = h.inNetwork(ctx, "", "tc", append([]string{"qdisc", "replace", "dev", device, "root"}, discipline...)...)
	if err == nil { // what the machine sends to the host is what the host receives
		_, err = run(ctx, nil, "tc", append([]string{"qdisc", "replace", "dev", outer, "root"}, discipline...)...)
	}
	if err != nil && strings.Contains(err.Error(), "qdisc kind is unknown") {
		err = errors.Join(err, errors.New("this kernel has no netem (sch_netem): only Rate is possible here"), errors.ErrUnsupported)
	}
	return h.failed("slow", err)
}

// Heal ends every Cut, HalfOpen and Slow of the host. Packets that were lost stay lost.
func (h *Host) Heal(ctx context.Context) error {
	if err := h.ensureChains(ctx); err != nil {
		return h.failed("heal", err)
	}
	_, err := h.inNetwork(ctx, flushRules, "iptables-restore", "-w", "--noflush")
	if err != nil {
		return h.failed("heal", err)
	}
	outer, err := h.outerDevice(ctx)
	if err != nil {
		return h.failed("heal", err)
	}
	// Deleting what is not there is an error that says nothing.
	_, _ = h.inNetwork(ctx, "", "tc", "qdisc", "del", "dev", device, "root")
	_, _ = run(ctx, nil, "tc", "qdisc", "del", "dev", outer, "root")
	return nil
}

// ruleSet collects matches of packets to drop. What comes in is dropped before anything looks at it, what goes out after everything has: so containers behind
// the host's own bridges are cut off too. What is refused is for the host itself.
type ruleSet struct{ in, out, refused []string }

func (s *ruleSet) drop(direction Direction, in, out string) {
	if direction != Out {
		s.in = append(s.in, in)
	}
	if direction != In {
		s.out = append(s.out, out)
	}
}

func (s *ruleSet) cutPort(port string, peers ...Peer) {
	each(peers, func(source, destination string) {
		s.drop(Both, "-p tcp --dport "+port+source, "-p tcp --sport "+port+destination)
	})
}

func (s *ruleSet) refusePort(port string, peers ...Peer) {
	each(peers, func(source, _ string) {
		s.refused = append(s.refused, "-p tcp --dport "+port+source)
	})
}

// each calls f with what matches packets of each peer and to it; both are empty for everybody.
func each(peers []Peer, f func(source, destination string)) {
	for _, peer := range peers {
		f(" -s "+peer.Addr().String(), " -d "+peer.Addr().String())
	}
	if len(peers) == 0 {
		f("", "")
	}
}

func (s *ruleSet) String() string {
	var b strings.Builder
	table := func(name, side string, matches []string, verdict string) {
		fmt.Fprintf(&b, "*%s\n", name)
		for _, match := range matches {
			fmt.Fprintf(&b, "-A %s %s %s %s -j %s\n", ruleChain, side, device, match, verdict)
		}
		b.WriteString("COMMIT\n")
	}
	table("raw", "-i", s.in, "DROP")
	table("mangle", "-o", s.out, "DROP")
	table("filter", "-i", s.refused, "REJECT --reject-with tcp-reset")
	return b.String()
}

func (h *Host) apply(ctx context.Context, rules ruleSet) error {
	if err := h.ensureChains(ctx); err != nil {
		return err
	}
	_, err := h.inNetwork(ctx, rules.String(), "iptables-restore", "-w", "--noflush")
	return err
}

func (h *Host) ensureChains(ctx context.Context) error {
	for table, hook := range map[string]string{"raw": "PREROUTING", "mangle": "POSTROUTING", "filter": "INPUT"} {
		if _, err := h.inNetwork(ctx, "", "iptables", "-w", "-t", table, "-S", ruleChain); err == nil {
			continue
		}
		rules := fmt.Sprintf("*%s\n:%s - [0:0]\n-I %s -j %s\nCOMMIT\n", table, ruleChain, hook, ruleChain)
		if _, err := h.inNetwork(ctx, rules, "iptables-restore", "-w", "--noflush"); err != nil {
			return err
		}
	}
	return nil
}

// discipline returns the arguments of tc for the link. netem does everything; what needs only a rate is done by tbf, which every kernel has.
func (l Link) discipline() ([]string, error) {
	const minRate = 8000
	switch {
	case l.Rate < 0 || l.Rate > 0 && l.Rate < minRate:
		return nil, fmt.Errorf("a rate of %d bit/s is not possible: %d or more is", l.Rate, minRate)
	case l.Delay < 0 || l.Loss < 0 || l.Loss > 1:
		return nil, fmt.Errorf("delay %s and loss %g must not be negative, and loss at most 1", l.Delay, l.Loss)
	case l == Link{}:
		return nil, errors.New("neither rate, delay nor loss is given: Heal ends a slow link")
	}
	rate := strconv.FormatInt(l.Rate, 10) + "bit"
	if l.Delay == 0 && l.Loss == 0 {
		return []string{"tbf", "rate", rate, "burst", "16kb", "latency", "500ms"}, nil
	}
	args := []string{"netem", "delay", strconv.FormatInt(l.Delay.Microseconds(), 10) + "us"}
	if l.Loss > 0 {
		args = append(args, "loss", strconv.FormatFloat(l.Loss*100, 'f', 3, 64)+"%")
	}
	if l.Rate > 0 {
		args = append(args, "rate", rate)
	}
	return args, nil
}

type connection struct{ local, remote netip.AddrPort }

func (h *Host) connections(ctx context.Context) ([]connection, error) {
	out, err := h.inNetwork(ctx, "", "ss", "-Htn", "state", "established")
	if err != nil {
		return nil, err
	}
	return parseConnections(out)
}

// parseConnections reads what `ss -Htn state established` prints: queue lengths, then both ends of a connection.
func parseConnections(text string) ([]connection, error) {
	var all []connection
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			return nil, fmt.Errorf("ss: line %q is not understood", strings.TrimSpace(line))
		}
		local, err := endpoint(fields[2])
		if err != nil {
			return nil, fmt.Errorf("ss: %w", err)
		}
		remote, err := endpoint(fields[3])
		if err != nil {
			return nil, fmt.Errorf("ss: %w", err)
		}
		all = append(all, connection{local, remote})
	}
	return all, nil
}

// endpoint reads "198.18.0.11:2377" and "[::ffff:198.18.0.11]:2377", which is the same.
func endpoint(text string) (netip.AddrPort, error) {
	e, err := netip.ParseAddrPort(text)
	return netip.AddrPortFrom(e.Addr().Unmap().WithZone(""), e.Port()), err
}

// outerDevice is the other end of the host's interface, on this machine.
func (h *Host) outerDevice(ctx context.Context) (string, error) {
	out, err := h.inNetwork(ctx, "", "ip", "-j", "link", "show", "dev", device)
	if err != nil {
		return "", err
	}
	var inner []struct {
		LinkIndex int `json:"link_index"`
	}
	if err := json.Unmarshal([]byte(out), &inner); err != nil || len(inner) != 1 || inner[0].LinkIndex == 0 {
		return "", fmt.Errorf("ip: the other end of %s is not to be found in %q", device, tail(out))
	}
	if out, err = run(ctx, nil, "ip", "-j", "link"); err != nil {
		return "", err
	}
	var links []struct {
		Index int    `json:"ifindex"`
		Name  string `json:"ifname"`
	}
	if err := json.Unmarshal([]byte(out), &links); err != nil {
		return "", fmt.Errorf("ip: %w", err)
	}
	for _, l := range links {
		if l.Index == inner[0].LinkIndex {
			return l.Name, nil
		}
	}
	return "", fmt.Errorf("no interface of this machine has the index %d", inner[0].LinkIndex)
}

// inNetwork runs a command of this machine in the host's network namespace. The host itself needs no tools for it and may be frozen.
func (h *Host) inNetwork(ctx context.Context, stdin, name string, args ...string) (string, error) {
	c, err := h.rig.docker.ContainerInspect(ctx, h.id)
	if err != nil {
		return "", err
	}
	if c.State.Pid == 0 {
		return "", errors.New("it does not run")
	}
	return run(ctx, strings.NewReader(stdin), "nsenter", append([]string{"--net=/proc/" + strconv.Itoa(c.State.Pid) + "/ns/net", "--", name}, args...)...)
}

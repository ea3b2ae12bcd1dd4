package identity_test

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	agentsession "github.com/axion/runner-agent/agent/session"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// sessions is an agent's session client, joined to its identity as in the agent.
type sessions struct {
	*agentsession.Client
	mu    sync.Mutex
	codes []string
}

func (s *sessions) refused() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.codes)
}

func (s *sessions) Handle(context.Context, *runnerv1.Request) *runnerv1.Response {
	return &runnerv1.Response{}
}

// discard is the session's Warner: these tests look at the identity's warnings.
type discard struct{}

func (discard) Set(string, runnerv1.HealthSeverity, string, string) {}
func (discard) Clear(string)                                        {}

func openSession(t *testing.T, h *host, i *running) *sessions {
	t.Helper()
	s := &sessions{}
	var err error
	s.Client, err = agentsession.New(agentsession.Config{Address: h.address, AgentVersion: "1.2.3", Timing: agentsession.Timing{
		BackoffMin: 5 * time.Millisecond, BackoffMax: 20 * time.Millisecond, // in a hurry: the identity must keep its own pace
	}}, agentsession.Deps{
		TLS: i.PlaneTLS, Heartbeat: func() *runnerv1.Heartbeat { return &runnerv1.Heartbeat{} }, Handler: s, Log: slog.New(slog.DiscardHandler), Warn: discard{},
		Refused: func(code string) {
			s.mu.Lock()
			s.codes = append(s.codes, code)
			s.mu.Unlock()
			i.RenewNow()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

// certificates is how many were given out.
func (p *plane) certificates() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls
}

func (p *plane) streams() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opened
}

func TestRefusedSessionMakesTheAgentEnrolAgain(t *testing.T) {
	p := newPlane(t, longLife)
	h := newManager(t, p, "node1")
	h.setToken(p.token(1))
	i := h.runReady()
	if err := p.registry.Remove(t.Context(), i.AgentID()); err != nil {
		t.Fatal(err)
	}
	h.setToken(p.token(1))
	s := openSession(t, h, i) // the certificate has most of its life before it
	eventually(t, s.Connected, func() string { return "no session" })
	if codes := s.refused(); len(codes) == 0 || codes[0] != "certificate_revoked" {
		t.Errorf("refused with %v", codes)
	}
	if n := p.certificates(); n != 2 {
		t.Errorf("%d certificates were given out", n)
	}
}

func TestRefusedSessionsDoNotDriveTheIdentity(t *testing.T) {
	p := newPlane(t, longLife)
	h := newManager(t, p, "node1")
	id, text := p.tokenWithID(1)
	h.setToken(text)
	i := h.runReady()
	if err := p.registry.Remove(t.Context(), i.AgentID()); err != nil {
		t.Fatal(err)
	}
	if err := p.registry.RevokeToken(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	asked := h.asked()
	s := openSession(t, h, i)
	const many = 200
	eventually(t, func() bool { return len(s.refused()) >= many }, func() string { return "the session gave up" })
	// Each attempt to enrol reads the token. Their waits are 100 ms and more; the refusals take about 2 s.
	if attempts := h.asked() - asked; attempts > many/4 {
		t.Errorf("%d refused sessions made %d attempts to enrol", many, attempts)
	}
	if p.streams() < many {
		t.Errorf("%d streams", p.streams())
	}
	h.setToken(p.token(1))
	eventually(t, s.Connected, func() string { return "no session with a good token" })
}

package dispatch

import "time"

// maxBudgets is how many agents' budgets are remembered before those that have not been touched of late are forgotten.
const maxBudgets = 10_000

// budgets bounds how many events of one agent are kept, so that one that floods neither holds up the others' nor fills the store. Only events that an agent has
// signed are taken off its budget: nobody can use up another's. The loop that reads the topic owns it.
type budgets struct {
	rate, burst float64
	now         func() time.Time
	agents      map[string]*budget
}

// budget is how many events are left, as of a time.
type budget struct {
	left float64
	at   time.Time
}

func newBudgets(rate, burst int, now func() time.Time) *budgets {
	return &budgets{rate: float64(rate), burst: float64(burst), now: now, agents: map[string]*budget{}}
}

// left reports whether an event of the agent may be kept.
func (b *budgets) left(agentID string) bool {
	a := b.agents[agentID]
	return a == nil || b.refill(a) >= 1
}

// take takes an event off the agent's budget.
func (b *budgets) take(agentID string) {
	a := b.agents[agentID]
	if a == nil {
		if len(b.agents) >= maxBudgets {
			b.forget()
		}
		a = &budget{left: b.burst, at: b.now()}
		b.agents[agentID] = a
	}
	a.left = b.refill(a) - 1
}

func (b *budgets) refill(a *budget) float64 {
	now := b.now()
	a.left = min(b.burst, a.left+max(0, now.Sub(a.at).Seconds())*b.rate)
	a.at = now
	return a.left
}

// forget drops the budgets that are full again.
func (b *budgets) forget() {
	for id, a := range b.agents {
		if b.refill(a) >= b.burst {
			delete(b.agents, id)
		}
	}
}

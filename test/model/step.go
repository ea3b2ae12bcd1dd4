package model

import "fmt"

// Step is one thing that happens, in a form that costs nothing until somebody reads it.
type Step struct {
	Who      actor
	Does     string
	Write    Write    // the request that it is about, if any
	Position Position // the command that it is about, if Of
	Of       bool
	Note     string
	Fault    bool // happens only as often as its budget allows
}

// actor is who takes a step: a manager by its number, or one of these.
type actor uint8

const (
	kafka actor = managers + iota
	swarm
	operator
)

// transition is a step with the state that it leads to and what an observer notes about the step itself.
type transition struct {
	step Step
	next State

	late    WriteKind // a write of an older position took effect after a newer one's outcome
	repairs bool      // a write of a position took effect on what Swarm had rolled back of it
}

var kindNames = [...]string{"", "update", "tombstone", "removal", "create"}

// words tells the step in the terms of a scenario.
func (c *Scenario) words(t Step) string {
	var text string
	switch t.Who {
	case kafka:
		text = "kafka"
	case swarm:
		text = "swarm"
	case operator:
		text = "an operator"
	default:
		text = fmt.Sprintf("m%d", t.Who)
	}
	text += " " + t.Does
	if t.Write.Kind != noWrite {
		sender := ""
		if t.Who == swarm {
			sender = fmt.Sprintf("m%d's ", t.Write.By)
			if t.Write.By == orphan {
				sender = "a dead owner's "
			}
		}
		text += fmt.Sprintf(" %s%s of %c for generation %s", sender, kindNames[t.Write.Kind], 'a'+t.Write.Service, c.History[t.Write.Label])
	}
	if t.Of {
		text += " generation " + c.History[t.Position].String()
	}
	if t.Note != "" {
		text += ": " + t.Note
	}
	if t.Fault {
		text += " [fault]"
	}
	return text
}

var outcomeNames = [...]string{"none", "converged", "failed", "superseded", "cancelled", "rolled back", "expired", "cut short"}

// describe tells a state in one line.
func (c *Scenario) describe(s *State) string {
	text := ""
	for i, v := range s.Services {
		text += fmt.Sprintf("%c: ", 'a'+i)
		if !v.Exists {
			text += "absent"
		} else {
			text += "generation " + c.History[v.Label].String() + "'s"
		}
		if v.Tombstone {
			text += ", tombstone"
		}
		if v.RolledBack {
			text += ", rolled back"
		}
		text += "; "
	}
	text += fmt.Sprintf("head: generation %s, %s", c.History[s.Head.Position], [...]string{"decided", "applying", "applied"}[s.Head.Phase])
	for p := c.Start + 1; p <= c.last(); p++ {
		text += fmt.Sprintf("; told of %s:", c.History[p])
		if s.Events[p] == 0 {
			text += " nothing"
		}
		for o := range outcomeNames {
			if s.Events[p]&(1<<o) != 0 {
				text += " " + outcomeNames[o]
			}
		}
	}
	return text
}

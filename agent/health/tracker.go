// Package health tells how the agent is: a Tracker holds what is not as it should be, as typed warnings, and a Server answers over HTTP on the node's
// loopback interface. The same warnings go to the plane with each heartbeat and to the local socket, so that everybody reads the same words.
package health

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// Bounds of what a warning may hold.
const (
	// maxWarnings bounds the tracker; codes are constants of the code, so that reaching it is a defect.
	maxWarnings = 256
	maxText     = 4 << 10 // bytes
)

// Tracker holds the agent's warnings. It is safe for concurrent use.
type Tracker struct {
	now func() time.Time

	mu       sync.Mutex
	warnings map[string]*runnerv1.HealthWarning // by code; a message is replaced, never changed
}

// New returns a Tracker without warnings. A nil clock is time.Now.
func New(now func() time.Time) *Tracker {
	if now == nil {
		now = time.Now
	}
	return &Tracker{now: now, warnings: make(map[string]*runnerv1.HealthWarning)}
}

// Set says that code is the case. A warning that is set already takes the new words and keeps its time.
func (t *Tracker) Set(code string, severity runnerv1.HealthSeverity, title, text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	since := timestamppb.New(t.now())
	if old, ok := t.warnings[code]; ok {
		since = old.GetSince()
	} else if len(t.warnings) >= maxWarnings {
		return
	}
	t.warnings[code] = &runnerv1.HealthWarning{Code: code, Severity: severity, Title: title, Text: cut(text), Since: since}
}

// Clear says that code is no longer the case.
func (t *Tracker) Clear(code string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.warnings, code)
}

// Warnings returns copies of the warnings: the worst first, among equals the oldest, then by code.
func (t *Tracker) Warnings() []*runnerv1.HealthWarning {
	t.mu.Lock()
	list := make([]*runnerv1.HealthWarning, 0, len(t.warnings))
	for _, w := range t.warnings {
		list = append(list, proto.CloneOf(w))
	}
	t.mu.Unlock()
	slices.SortFunc(list, func(a, b *runnerv1.HealthWarning) int {
		return cmp.Or(
			cmp.Compare(b.GetSeverity(), a.GetSeverity()),
			a.GetSince().AsTime().Compare(b.GetSince().AsTime()),
			cmp.Compare(a.GetCode(), b.GetCode()),
		)
	})
	return list
}

func cut(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), maxText)], "")
}

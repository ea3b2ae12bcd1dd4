package agent

import (
	"log/slog"
	"testing"
	"time"

	"github.com/axion/runner-agent/agent/health"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

func TestCredentialCare(t *testing.T) {
	type step struct {
		after  time.Duration // since the step before
		set    string        // a warning's code
		clear  string
		asked  bool
		reason string
	}
	for name, steps := range map[string][]step{
		"refused for good": {
			{set: "kafka_commands_auth", reason: "the broker may have just started"},
			{after: 20 * time.Second, set: "kafka_commands_auth", reason: "not long yet"},
			{after: 10 * time.Second, set: "kafka_commands_auth", asked: true},
			{after: 10 * time.Second, set: "kafka_producer_auth", reason: "just asked"},
			{after: 9*time.Minute + 49*time.Second, reason: "ten minutes are not over"},
			{after: time.Second, asked: true, reason: "it goes on"},
			{after: time.Second, reason: "just asked"},
		},
		"refused for a moment": {
			{set: "kafka_commands_auth"},
			{after: 20 * time.Second, clear: "kafka_commands_auth"},
			{after: time.Second, set: "kafka_commands_auth"},
			{after: 20 * time.Second, reason: "the time begins anew"},
		},
		"other troubles": {
			{set: "kafka_commands_denied"},
			{set: "kafka_commands_unreachable"},
			{set: "identity_auth"},
			{after: time.Hour},
		},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
			tracker := health.New(func() time.Time { return now })
			asked := 0
			care := newCredentialCare(tracker.Warnings, func() { asked++ }, slog.New(slog.DiscardHandler))
			for i, s := range steps {
				now = now.Add(s.after)
				if s.set != "" {
					tracker.Set(s.set, runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, "", "")
				}
				tracker.Clear(s.clear) // nothing, if it is empty
				before := asked
				if care.look(now); asked != before && !s.asked || asked == before && s.asked {
					t.Fatalf("step %d: asked %v, want %v: %s", i+1, asked != before, s.asked, s.reason)
				}
			}
		})
	}
}

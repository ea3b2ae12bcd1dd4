package agent

import (
	"context"
	"log/slog"
	"strings"
	"time"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

const (
	// credentialsLook is how often the warnings about Kafka are looked at.
	credentialsLook = 10 * time.Second
	// credentialsPatience is for how long Kafka must have refused the credentials: a broker that has just started may not know them yet.
	credentialsPatience = 30 * time.Second
	// credentialsEvery is the time between two requests for new ones: if the plane's do not help either, asking more often does not.
	credentialsEvery = 10 * time.Minute
)

// credentialCare asks the plane for access to Kafka anew when Kafka goes on refusing the agent's credentials: the broker may have lost them, which the
// plane then mends, or they were changed, and then the identity ends the process so that it starts with the new ones.
type credentialCare struct {
	warnings func() []*runnerv1.HealthWarning
	renew    func()
	log      *slog.Logger
	asked    time.Time
}

func newCredentialCare(warnings func() []*runnerv1.HealthWarning, renew func(), log *slog.Logger) *credentialCare {
	return &credentialCare{warnings: warnings, renew: renew, log: log}
}

// run looks until ctx ends.
func (c *credentialCare) run(ctx context.Context) error {
	ticker := time.NewTicker(credentialsLook)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			c.look(now)
		}
	}
}

// look asks for new credentials if it is time to.
func (c *credentialCare) look(now time.Time) {
	if now.Sub(c.asked) < credentialsEvery {
		return
	}
	for _, w := range c.warnings() {
		if refusesCredentials(w.GetCode()) && now.Sub(w.GetSince().AsTime()) >= credentialsPatience {
			c.log.Warn("kafka goes on refusing the agent's credentials; the plane is asked for them anew", "warning", w.GetCode())
			c.asked = now
			c.renew()
			return
		}
	}
}

// refusesCredentials tells the warnings of agent/bus by their codes: "kafka_", the client's name, "_auth".
func refusesCredentials(code string) bool {
	return strings.HasPrefix(code, "kafka_") && strings.HasSuffix(code, "_auth")
}

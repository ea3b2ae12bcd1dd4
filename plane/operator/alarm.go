package operator

import (
	"fmt"
	"strings"

	"github.com/axion/runner-agent/plane/ledger"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// maxAlarmed is how many stacks a warning names.
const maxAlarmed = 20

// alarmWarnings returns one warning for each cluster in which the generations of stacks went back and were not healed since.
func alarmWarnings(alarms []ledger.Alarm) map[string]*runnerv1.HealthWarning {
	warnings := map[string]*runnerv1.HealthWarning{}
	stacks := map[string][]string{}
	for _, a := range alarms {
		w := warnings[a.ClusterID]
		if w == nil {
			w = &runnerv1.HealthWarning{
				Code: "generations_went_back", Severity: runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, Title: "The Swarm has gone back to an older state", Since: timestamp(a.At),
			}
			warnings[a.ClusterID] = w
		}
		if a.At.Before(w.GetSince().AsTime()) {
			w.Since = timestamp(a.At)
		}
		stacks[a.ClusterID] = append(stacks[a.ClusterID], alarmed(a.Told))
	}
	for clusterID, w := range warnings {
		names := stacks[clusterID]
		more := ""
		if len(names) > maxAlarmed {
			names, more = names[:maxAlarmed], fmt.Sprintf(" and %d more", len(names)-maxAlarmed)
		}
		w.Text = "the Swarm was restored from a backup, or has lost what it knew: " + strings.Join(names, ", ") + more
	}
	return warnings
}

// alarmed says of one stack what has become of it.
func alarmed(m *runnerv1.GenerationsWentBack) string {
	text := fmt.Sprintf("stack %s (generation %d, was %d; ", m.GetStack(), m.GetToGeneration(), m.GetFromGeneration())
	if m.GetNotOffered() != nil {
		return text + m.GetNotOffered().GetCode() + ": deploy it again)"
	}
	return text + "offered again)"
}

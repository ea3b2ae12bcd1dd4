package document

import runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"

// Role returns "manager" or "worker"; "unknown" if it is not told.
func Role(role runnerv1.NodeRole) string {
	if role == runnerv1.NodeRole_NODE_ROLE_UNSPECIFIED {
		return "unknown"
	}
	return word(role, "NODE_ROLE_")
}

// Severity returns "low", "medium" or "high".
func Severity(severity runnerv1.HealthSeverity) string { return word(severity, "HEALTH_SEVERITY_") }

// State returns a service's state, for example "rolled_back".
func State(state runnerv1.ServiceState) string { return word(state, "SERVICE_STATE_") }

// Status returns how a command ended, for example "succeeded" or "timed_out".
func Status(status runnerv1.OutcomeStatus) string { return word(status, "OUTCOME_STATUS_") }

// Kind returns an object's kind, for example "service".
func Kind(kind runnerv1.ObjectKind) string { return word(kind, "OBJECT_KIND_") }

// Action returns what happened to an object, for example "created".
func Action(action runnerv1.ObjectAction) string { return word(action, "OBJECT_ACTION_") }

// Level returns "info" or "warning".
func Level(level runnerv1.NoticeLevel) string { return word(level, "NOTICE_LEVEL_") }

// Class returns a failure's class, for example "invalid".
func Class(class runnerv1.FailureClass) string { return word(class, "FAILURE_CLASS_") }

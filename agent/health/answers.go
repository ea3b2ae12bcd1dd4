package health

import (
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// The values of Answer.Status.
const (
	// StatusOK means that nothing is wrong, or only things worth knowing.
	StatusOK = "ok"
	// StatusDegraded means that something works less well.
	StatusDegraded = "degraded"
	// StatusUnhealthy means that a job of the agent cannot be done: /readyz says which.
	StatusUnhealthy = "unhealthy"
)

// Answer is what /health says.
type Answer struct {
	// Status is one of the Status constants.
	Status string `json:"status"`
	// AgentID is empty before enrolment.
	AgentID  string    `json:"agent_id"`
	Version  string    `json:"version"`
	Warnings []Warning `json:"warnings"`
}

// Warning is one thing that is not as it should be.
type Warning struct {
	Code string `json:"code"`
	// Severity is "low", "medium" or "high".
	Severity string    `json:"severity"`
	Title    string    `json:"title"`
	Text     string    `json:"text"`
	Since    time.Time `json:"since"`
}

// livez says that the process answers; that is all that a restart could mend.
func (s *Server) livez(c *gin.Context) {
	c.String(http.StatusOK, "ok\n")
}

// readyz says whether the agent can do its work, and if not, why not.
func (s *Server) readyz(c *gin.Context) {
	if reasons := s.notReady(); len(reasons) > 0 {
		c.String(http.StatusServiceUnavailable, "not ready: %s\n", strings.Join(reasons, "; "))
		return
	}
	c.String(http.StatusOK, "ok\n")
}

// notReady lists why the agent cannot do its work.
func (s *Server) notReady() []string {
	var reasons []string
	if s.deps.AgentID() == "" {
		reasons = append(reasons, "not enrolled")
	}
	if !s.deps.EngineReachable() {
		reasons = append(reasons, "engine does not answer")
	}
	for _, w := range s.deps.Warnings() {
		if w.GetSeverity() >= runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH {
			reasons = append(reasons, w.GetCode()+": "+w.GetTitle())
		}
	}
	return reasons
}

// health tells everything, always with 200: the answer itself says how the agent is.
func (s *Server) health(c *gin.Context) {
	answer := Answer{Status: StatusOK, AgentID: s.deps.AgentID(), Version: s.cfg.Version, Warnings: []Warning{}}
	warnings := s.deps.Warnings()
	if len(s.notReady()) > 0 {
		answer.Status = StatusUnhealthy
	} else if len(warnings) > 0 {
		answer.Status = statusOf(warnings[0].GetSeverity())
	}
	for _, w := range warnings {
		answer.Warnings = append(answer.Warnings, Warning{
			Code:     w.GetCode(),
			Severity: SeverityName(w.GetSeverity()),
			Title:    w.GetTitle(),
			Text:     w.GetText(),
			Since:    w.GetSince().AsTime(),
		})
	}
	c.JSON(http.StatusOK, answer)
}

// statusOf returns the status of an agent that is ready, from its worst warning.
func statusOf(worst runnerv1.HealthSeverity) string {
	if worst == runnerv1.HealthSeverity_HEALTH_SEVERITY_MEDIUM {
		return StatusDegraded
	}
	return StatusOK
}

// SeverityName returns "low", "medium", "high", or "unspecified".
func SeverityName(s runnerv1.HealthSeverity) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "HEALTH_SEVERITY_"))
}

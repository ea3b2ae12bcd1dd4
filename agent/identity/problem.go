package identity

import (
	"crypto/x509"
	"fmt"
	"log/slog"
	"time"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// Codes of the warnings that stand beside those of a failed attempt, whose code is "identity_" and the failure's code.
const (
	warnPrefix  = "identity_"
	warnLapsed  = "certificate_lapsed"
	warnDamaged = "identity_state_damaged"
	warnClock   = "clock_skew"
)

// titles are the warnings' few words, by the code of the failure.
var titles = map[string]string{
	"join_token_missing":     "The join token cannot be read",
	"token_malformed":        "The join token is malformed",
	"token_unknown":          "The join token is wrong",
	"token_expired":          "The join token has expired",
	"token_used_up":          "The join token is used up",
	"token_revoked":          "The join token was revoked",
	"node_not_confirmed":     "No manager vouches for this node",
	"duplicate_live":         "Another agent has this node's identity",
	"key_in_use":             "The key belongs to another node's agent",
	"swarm_mismatch":         "The join token is for another swarm",
	"not_in_swarm":           "This node belongs to no swarm",
	"engine_unreachable":     "The engine does not answer",
	"plane_ca_mismatch":      "The plane has another CA than the join token names",
	"plane_ca_unknown":       "The plane has another CA than the agent enrolled with",
	"plane_no_tls":           "What answers is no plane",
	"plane_wrong_name":       "The plane's certificate is for another name",
	"plane_certificate_time": "The plane's certificate is not valid now",
	"plane_unreachable":      "The plane cannot be reached",
	"bad_answer":             "The plane's answer cannot be used",
	"state_not_written":      "The agent's state cannot be written",
}

// problems keeps at most one warning about what is being tried, and those about what is. It belongs to Run.
type problems struct {
	warn    Warner
	log     *slog.Logger
	attempt string // code of the warning about the last attempt
	lapsed  bool
}

// report says why an attempt failed, and whether the agent can go on with the certificate that it has. lapsed, if not empty, says that it has one that
// is of no use any more.
func (p *problems) report(err error, usable bool, lapsed string) {
	f := failure.Of(err)
	code := warnPrefix + f.Code
	title, known := titles[f.Code]
	if !known {
		title = "The agent cannot enrol or renew its certificate"
	}
	text := f.Message
	if f.Hint != "" {
		text = fmt.Sprintf("%s; %s", text, f.Hint)
	}
	if code != p.attempt {
		p.clearAttempt()
		p.attempt = code
		p.log.Warn("the agent cannot enrol or renew its certificate; it keeps trying", "code", f.Code, "error", err, "hint", f.Hint)
	}
	severity := runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH
	if usable {
		severity = runnerv1.HealthSeverity_HEALTH_SEVERITY_MEDIUM
	}
	p.warn.Set(code, severity, title, text)
	if lapsed != "" {
		p.lapsed = true
		p.warn.Set(warnLapsed, runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, "The agent's certificate is of no use any more",
			lapsed+"; to get a new one the agent enrols again with its join token, and that fails: "+text)
	}
}

// solved takes back everything that a success disproves.
func (p *problems) solved() {
	p.clearAttempt()
	if p.lapsed {
		p.warn.Clear(warnLapsed)
		p.lapsed = false
	}
	p.warn.Clear(warnDamaged)
}

func (p *problems) clearAttempt() {
	if p.attempt != "" {
		p.warn.Clear(p.attempt)
		p.attempt = ""
	}
}

// damaged says that files on the volume could not be used.
func (p *problems) damaged(err error) {
	p.log.Warn("the state on the volume is damaged; what is missing is made or asked for again", "error", err)
	p.warn.Set(warnDamaged, runnerv1.HealthSeverity_HEALTH_SEVERITY_MEDIUM, "The agent's state is damaged",
		fmt.Sprintf("%v; what is missing is made or asked for again", err))
}

// clock compares the node's clock with the validity of a certificate that the plane has just issued.
func (p *problems) clock(fresh *x509.Certificate, now time.Time) {
	if !now.Before(fresh.NotBefore) && now.Before(fresh.NotAfter) {
		p.warn.Clear(warnClock)
		return
	}
	p.warn.Set(warnClock, runnerv1.HealthSeverity_HEALTH_SEVERITY_HIGH, "The node's clock is wrong",
		fmt.Sprintf("the plane has just issued a certificate that is valid from %s to %s, and this node's clock says %s: set the clock of the node, or the plane's",
			fresh.NotBefore.Format(time.RFC3339), fresh.NotAfter.Format(time.RFC3339), now.Format(time.RFC3339)))
}

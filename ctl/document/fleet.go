package document

import (
	"time"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// Token is a join token.
type Token struct {
	ID string `json:"id"`
	// Token is the token itself; only when it was made.
	Token     string     `json:"token,omitempty"`
	ClusterID string     `json:"cluster_id"`
	CreatedAt *time.Time `json:"created_at,omitempty"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	Uses      uint32     `json:"uses"`
	Used      uint32     `json:"used"`
	Revoked   bool       `json:"revoked"`
}

// OfToken returns a token as a document.
func OfToken(secret string, t *planev1.Token) Token {
	return Token{
		ID: t.GetId(), Token: secret, ClusterID: t.GetClusterId(), CreatedAt: at(t.GetCreatedAt()), ExpiresAt: at(t.GetExpiresAt()),
		Uses: t.GetUses(), Used: t.GetUsed(), Revoked: t.GetRevoked(),
	}
}

// Agent is an enrolled agent.
type Agent struct {
	ID               string     `json:"id"`
	ClusterID        string     `json:"cluster_id"`
	NodeID           string     `json:"node_id"`
	Node             string     `json:"node"`
	Address          string     `json:"address,omitempty"`
	Role             string     `json:"role"`
	ManagerConfirmed bool       `json:"manager_confirmed"`
	Version          string     `json:"version"`
	EngineVersion    string     `json:"engine_version,omitempty"`
	Connected        bool       `json:"connected"`
	LastSeen         *time.Time `json:"last_seen,omitempty"`
	EnrolledAt       *time.Time `json:"enrolled_at,omitempty"`
	// CertificateNotAfter is the end of its certificate's validity.
	CertificateNotAfter *time.Time `json:"certificate_not_after,omitempty"`
	Warnings            []Warning  `json:"warnings"`
}

// Warning is one thing that is not as it should be.
type Warning struct {
	Code string `json:"code"`
	// Severity is "low", "medium" or "high".
	Severity string     `json:"severity"`
	Title    string     `json:"title"`
	Text     string     `json:"text"`
	Since    *time.Time `json:"since,omitempty"`
}

// OfAgent returns an agent as a document.
func OfAgent(a *planev1.Agent) Agent {
	d := Agent{
		ID: a.GetId(), ClusterID: a.GetClusterId(), NodeID: a.GetNode().GetNodeId(), Node: a.GetNode().GetHostname(), Address: a.GetNode().GetAddress(),
		Role: Role(a.GetNode().GetRole()), ManagerConfirmed: a.GetManagerConfirmed(), Version: a.GetVersion(), EngineVersion: a.GetNode().GetEngineVersion(),
		Connected: a.GetConnected(), LastSeen: at(a.GetLastSeen()), EnrolledAt: at(a.GetEnrolledAt()),
		CertificateNotAfter: at(a.GetCertificateNotAfter()), Warnings: []Warning{},
	}
	for _, w := range a.GetWarnings() {
		d.Warnings = append(d.Warnings, Warning{Code: w.GetCode(), Severity: Severity(w.GetSeverity()), Title: w.GetTitle(), Text: w.GetText(), Since: at(w.GetSince())})
	}
	return d
}

// Stack is a stack of a Swarm.
type Stack struct {
	Name     string `json:"name"`
	Services uint32 `json:"services"`
}

// StackStatus is a stack's services and tasks.
type StackStatus struct {
	Stack    string          `json:"stack"`
	Services []ServiceStatus `json:"services"`
	Tasks    []TaskStatus    `json:"tasks"`
}

// ServiceStatus is a service as docker lists it.
type ServiceStatus struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Mode     string `json:"mode"`
	Replicas string `json:"replicas"`
	Image    string `json:"image"`
	Ports    string `json:"ports"`
	Running  uint64 `json:"running"`
	Desired  uint64 `json:"desired"`
}

// TaskStatus is a task as docker lists it.
type TaskStatus struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	Service      string `json:"service"`
	Image        string `json:"image"`
	Node         string `json:"node"`
	DesiredState string `json:"desired_state"`
	CurrentState string `json:"current_state"`
	State        string `json:"state"`
	Error        string `json:"error"`
	Ports        string `json:"ports"`
}

// OfStacks returns the list of stacks as documents.
func OfStacks(stacks []*runnerv1.StackSummary) []Stack {
	documents := make([]Stack, 0, len(stacks))
	for _, s := range stacks {
		documents = append(documents, Stack{Name: s.GetName(), Services: s.GetServices()})
	}
	return documents
}

// OfStackStatus returns a stack's services and tasks as a document.
func OfStackStatus(stack string, r *runnerv1.StackStatusResult) StackStatus {
	d := StackStatus{Stack: stack, Services: []ServiceStatus{}, Tasks: []TaskStatus{}}
	for _, s := range r.GetServices() {
		d.Services = append(d.Services, ServiceStatus{
			ID: s.GetId(), Name: s.GetName(), Mode: s.GetMode(), Replicas: s.GetReplicas(), Image: s.GetImage(), Ports: s.GetPorts(),
			Running: s.GetRunning(), Desired: s.GetDesired(),
		})
	}
	for _, t := range r.GetTasks() {
		d.Tasks = append(d.Tasks, TaskStatus{
			ID: t.GetId(), Name: t.GetName(), Service: t.GetService(), Image: t.GetImage(), Node: t.GetNode(), DesiredState: t.GetDesiredState(),
			CurrentState: t.GetCurrentState(), State: t.GetState(), Error: t.GetError(), Ports: t.GetPorts(),
		})
	}
	return d
}

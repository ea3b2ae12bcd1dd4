package document

import (
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failurepb"
)

// Failure says what went wrong.
type Failure struct {
	// Class is "invalid", "denied", "conflict", "unavailable", "deadline" or "internal".
	Class string `json:"class"`
	// Code is stable, for example "not_in_bundle".
	Code string `json:"code"`
	// Message is one sentence.
	Message string `json:"message"`
	// Object is what it is about.
	Object string `json:"object,omitempty"`
	// Hint says what to do.
	Hint string `json:"hint,omitempty"`
}

// Error is the document that stands on stderr when a command fails.
type Error struct {
	Error Failure `json:"error"`
	// ExitCode is the exit code of the process.
	ExitCode int `json:"exit_code"`
}

// OfError returns err as a document.
func OfError(err error) Failure { return *ofFailure(failurepb.FromError(err)) }

func ofFailure(f *runnerv1.Failure) *Failure {
	if f == nil {
		return nil
	}
	return &Failure{Class: Class(f.GetClass()), Code: f.GetCode(), Message: f.GetMessage(), Object: f.GetObject(), Hint: f.GetHint()}
}

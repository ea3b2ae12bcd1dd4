// Package failure is the one form that an error takes on its way to a person: a class that says whether trying again can help, a stable code,
// a sentence that names the object, and a hint. It knows no transport, so that every layer can use it; package failurepb carries it over the wire.
package failure

import (
	"context"
	"errors"
	"fmt"
)

// Class says what kind of failure it is.
type Class uint8

// The classes, with the numbers of the contract's FailureClass.
const (
	// Invalid: the request itself is wrong; the same request fails again.
	Invalid Class = 1 + iota
	// Denied: a rule forbids it (identity, policy, confinement).
	Denied
	// Conflict: the state of the world contradicts it.
	Conflict
	// Unavailable: something needed is away for now; trying again may help.
	Unavailable
	// Deadline: it did not end within its time.
	Deadline
	// Internal: a defect of ours, or of the engine.
	Internal
)

// String returns the class in lower case, for example "invalid".
func (c Class) String() string {
	switch c {
	case Invalid:
		return "invalid"
	case Denied:
		return "denied"
	case Conflict:
		return "conflict"
	case Unavailable:
		return "unavailable"
	case Deadline:
		return "deadline"
	case Internal:
		return "internal"
	default:
		return "unknown"
	}
}

// Error is a failure. Make one with New or Wrap; find one with Of.
type Error struct {
	// Class says whether trying again can help.
	Class Class
	// Code is stable, lower case with underscores, for example "not_in_bundle".
	Code string
	// Object is the name of what it is about; may be empty.
	Object string
	// Message is one sentence that names the object.
	Message string
	// Hint says what to do; may be empty.
	Hint string
	// Err is the cause; may be nil. Its text is already part of Message.
	Err error
}

// Error returns the sentence.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// WithHint returns a copy with that hint.
func (e *Error) WithHint(hint string) *Error {
	c := *e
	c.Hint = hint
	return &c
}

// New returns a failure whose message is format and its arguments; a %w among them becomes its cause.
func New(class Class, code, object, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Class: class, Code: code, Object: object, Message: err.Error(), Err: errors.Unwrap(err)}
}

// Of returns the failure in err's chain. An error without one becomes a Deadline or Unavailable failure if its context ended, else an Internal one with
// the code "internal". It returns nil for nil.
func Of(err error) *Error {
	if err == nil {
		return nil
	}
	var f *Error
	if errors.As(err, &f) {
		if f.Message == err.Error() {
			return f
		}
		c := *f // keep what was wrapped around it
		c.Message, c.Err = err.Error(), err
		return &c
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Class: Deadline, Code: "deadline_exceeded", Message: err.Error(), Err: err}
	case errors.Is(err, context.Canceled):
		return &Error{Class: Unavailable, Code: "cancelled", Message: err.Error(), Err: err}
	default:
		return &Error{Class: Internal, Code: "internal", Message: err.Error(), Err: err}
	}
}

// ClassOf returns the class of err as Of finds it, or 0 for nil.
func ClassOf(err error) Class {
	if f := Of(err); f != nil {
		return f.Class
	}
	return 0
}

// Package failurepb carries failures over the wire: as the contract's Failure message and as the details of a gRPC status.
package failurepb

import (
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/failure"
)

// Bounds of the contract, in bytes.
const (
	maxText = 4 << 10
	maxHint = 1 << 10
	maxCode = 64
)

// FromError returns err as the contract's message, its texts made valid UTF-8 and cut to the contract's bounds; nil for nil.
func FromError(err error) *runnerv1.Failure {
	f := failure.Of(err)
	if f == nil {
		return nil
	}
	return &runnerv1.Failure{
		Class:   runnerv1.FailureClass(f.Class),
		Code:    cut(f.Code, maxCode),
		Message: cut(f.Message, maxText),
		Object:  cut(f.Object, maxText),
		Hint:    cut(f.Hint, maxHint),
	}
}

// ToError returns the message as an error; nil for nil. A class that this version does not know becomes Internal.
func ToError(p *runnerv1.Failure) error {
	if p == nil {
		return nil
	}
	class := failure.Class(p.GetClass())
	if class < failure.Invalid || class > failure.Internal {
		class = failure.Internal
	}
	return &failure.Error{Class: class, Code: p.GetCode(), Object: p.GetObject(), Message: p.GetMessage(), Hint: p.GetHint()}
}

// Status returns err as a gRPC status error that carries the failure in its details. An error that already is a status is returned as it is.
func Status(err error) error {
	if err == nil {
		return nil
	}
	var f *failure.Error
	if _, ok := status.FromError(err); ok && !errors.As(err, &f) {
		return err
	}
	f = failure.Of(err)
	st, detailErr := status.New(code(f), f.Message).WithDetails(FromError(f))
	if detailErr != nil {
		return status.Error(code(f), f.Message)
	}
	return st.Err()
}

// FromStatus returns the failure that a gRPC error carries. Without details the class follows the status code: a call that found nobody
// is Unavailable. An error that is no status is returned as failure.Of sees it; nil for nil.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return failure.Of(err)
	}
	for _, d := range st.Details() {
		if p, ok := d.(*runnerv1.Failure); ok {
			return ToError(p)
		}
	}
	class, name := failure.Internal, "internal"
	switch st.Code() {
	case codes.Unavailable, codes.ResourceExhausted, codes.Aborted, codes.Canceled:
		class, name = failure.Unavailable, "unavailable"
	case codes.DeadlineExceeded:
		class, name = failure.Deadline, "deadline_exceeded"
	case codes.PermissionDenied, codes.Unauthenticated:
		class, name = failure.Denied, "denied"
	case codes.InvalidArgument, codes.NotFound, codes.OutOfRange, codes.Unimplemented:
		class, name = failure.Invalid, "invalid"
	case codes.AlreadyExists, codes.FailedPrecondition:
		class, name = failure.Conflict, "conflict"
	}
	return &failure.Error{Class: class, Code: name, Message: st.Message(), Err: err}
}

func code(f *failure.Error) codes.Code {
	switch f.Class {
	case failure.Invalid:
		return codes.InvalidArgument
	case failure.Denied:
		return codes.PermissionDenied
	case failure.Conflict:
		return codes.FailedPrecondition
	case failure.Unavailable:
		return codes.Unavailable
	case failure.Deadline:
		return codes.DeadlineExceeded
	default:
		return codes.Internal
	}
}

// cut makes s valid UTF-8, which protobuf asks for, and at most n bytes long.
func cut(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}

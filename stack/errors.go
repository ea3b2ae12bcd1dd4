package stack

import (
	"context"
	"errors"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/client"

	"github.com/axion/runner-agent/internal/quorum"
	"github.com/axion/runner-agent/proto/failure"
)

// engineFailure gives an error of docker/cli or the engine its class; its words stay.
func engineFailure(err error) *failure.Error {
	var known *failure.Error
	text := err.Error()
	switch {
	case errors.As(err, &known):
		return failure.Of(err)
	case errors.Is(err, context.Canceled):
		return failure.New(failure.Unavailable, "cancelled", "", "%w", err)
	case errors.Is(err, context.DeadlineExceeded):
		return failure.New(failure.Deadline, "deadline_exceeded", "", "%w", err)
	case client.IsErrConnectionFailed(err), errdefs.IsUnavailable(err), quorum.Missing(err):
		return failure.New(failure.Unavailable, "engine_unavailable", "", "%w", err)
	case strings.Contains(text, "update out of sequence"):
		return failure.New(failure.Conflict, "out_of_sequence", "", "%w", err).WithHint("somebody else changed the service at the same time; deploy again")
	case strings.Contains(text, "only updates to Labels are allowed"):
		return failure.New(failure.Invalid, "immutable_object", "", "%w", err).WithHint("the content of a config or secret cannot be changed; give the new content another name")
	case errdefs.IsNotFound(err):
		return failure.New(failure.Invalid, "not_found", "", "%w", err)
	case errdefs.IsConflict(err), errdefs.IsAlreadyExists(err):
		return failure.New(failure.Conflict, "engine_conflict", "", "%w", err)
	case errdefs.IsPermissionDenied(err), errdefs.IsUnauthorized(err):
		return failure.New(failure.Denied, "engine_denied", "", "%w", err)
	case errdefs.IsInternal(err), errdefs.IsUnknown(err):
		return failure.New(failure.Internal, "engine_error", "", "%w", err)
	default: // refused by docker/cli itself, or by the engine as a bad request
		return failure.New(failure.Invalid, "refused", "", "%w", err)
	}
}

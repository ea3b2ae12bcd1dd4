package failure

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestOf(t *testing.T) {
	cause := errors.New("no such file")
	denied := New(Denied, "not_in_bundle", "/etc/passwd", "/etc/passwd is not in the bundle: %w", cause)
	for name, tc := range map[string]struct {
		err   error
		class Class
		code  string
		text  string
	}{
		"own":      {denied, Denied, "not_in_bundle", "/etc/passwd is not in the bundle: no such file"},
		"wrapped":  {fmt.Errorf("stack shop: %w", denied), Denied, "not_in_bundle", "stack shop: /etc/passwd is not in the bundle: no such file"},
		"deadline": {fmt.Errorf("pull: %w", context.DeadlineExceeded), Deadline, "deadline_exceeded", "pull: context deadline exceeded"},
		"cancel":   {context.Canceled, Unavailable, "cancelled", "context canceled"},
		"foreign":  {cause, Internal, "internal", "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			f := Of(tc.err)
			if f.Class != tc.class || f.Code != tc.code || f.Message != tc.text {
				t.Errorf("got %v %q %q", f.Class, f.Code, f.Message)
			}
		})
	}
	if Of(nil) != nil || ClassOf(nil) != 0 {
		t.Error("nil is no failure")
	}
	if !errors.Is(denied, cause) {
		t.Error("the cause is lost")
	}
	if h := denied.WithHint("send it along"); h.Hint == "" || denied.Hint != "" {
		t.Error("WithHint must copy")
	}
}

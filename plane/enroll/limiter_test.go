package enroll

import (
	"fmt"
	"testing"
	"time"

	"github.com/axion/runner-agent/proto/failure"
)

func TestLimiterIsBounded(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	l := newLimiter(func() time.Time { return now })
	unknown := failure.New(failure.Denied, "token_unknown", "", "unknown")
	for n := range 3 * maxAddresses {
		l.failed(fmt.Sprint(n), unknown)
		if len(l.windows) > maxAddresses {
			t.Fatalf("%d addresses are kept", len(l.windows))
		}
	}
	now = now.Add(failureWindow)
	for n := range maxAddresses {
		l.failed(fmt.Sprint("x", n), unknown)
	}
	if len(l.windows) > maxAddresses {
		t.Errorf("%d addresses are kept", len(l.windows))
	}
}

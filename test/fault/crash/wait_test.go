package crash

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"
)

// eventually waits until f is true.
func eventually(t *testing.T, what string, f func() bool) { within(t, patience, what, f) }

func within(t *testing.T, limit time.Duration, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", limit, what)
		}
	}
}

// journal keeps the last lines of a log.
type journal struct {
	mu   sync.Mutex
	last []string
	rest string
	// see is given each line; nil means nobody.
	see func(line string)
}

// lastLines bounds what is kept of a log.
const lastLines = 200

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	text := j.rest + string(p)
	for {
		line, rest, whole := strings.Cut(text, "\n")
		if !whole {
			j.rest = text
			return len(p), nil
		}
		text = rest
		j.last = append(j.last, line)
		if len(j.last) > lastLines {
			j.last = j.last[1:]
		}
		if j.see != nil {
			j.see(line)
		}
	}
}

func (j *journal) tail() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.last, "\n")
}

// contextWithin gives the first tries of a request too little time, each more than the one before; the last two have enough.
func contextWithin(t *testing.T, try int) (context.Context, context.CancelFunc) {
	limits := []time.Duration{500 * time.Microsecond, 2 * time.Millisecond, 5 * time.Millisecond}
	if try < len(limits) {
		return context.WithTimeout(t.Context(), limits[try])
	}
	return context.WithTimeout(t.Context(), patience)
}

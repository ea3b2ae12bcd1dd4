package bus

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// repeatAfter is how long the same sentence of the client is kept quiet: a broker that is away makes it say the same thing several times a second.
const repeatAfter = 30 * time.Second

// clientLog writes what the Kafka client says about errors, most of which it says nowhere else.
type clientLog struct {
	log *slog.Logger
	now func() time.Time

	mu   sync.Mutex
	last string
	at   time.Time
}

func newClientLog(log *slog.Logger) *clientLog { return &clientLog{log: log, now: time.Now} }

// Printf is the client's logger interface.
func (l *clientLog) Printf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if strings.HasSuffix(text, "canceled") {
		return // a connection attempt that the agent itself gave up
	}
	l.mu.Lock()
	quiet := text == l.last && l.now().Sub(l.at) < repeatAfter
	if !quiet {
		l.last, l.at = text, l.now()
	}
	l.mu.Unlock()
	if !quiet {
		l.log.Warn("kafka client", "text", text)
	}
}

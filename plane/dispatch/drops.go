package dispatch

import (
	"log/slog"
	"maps"
	"sync"
	"time"
)

// logEvery is how often a reason for dropping messages is logged, so that whoever writes rubbish cannot fill the log.
const logEvery = time.Minute

// drops counts the messages that were not believed.
type drops struct {
	log *slog.Logger
	now func() time.Time

	mu     sync.Mutex
	count  map[string]uint64
	logged map[string]time.Time
	silent map[string]uint64 // since logged
}

func newDrops(log *slog.Logger, now func() time.Time) *drops {
	return &drops{log: log, now: now, count: map[string]uint64{}, logged: map[string]time.Time{}, silent: map[string]uint64{}}
}

// add counts a dropped message. The reasons are constants of this package, so the maps stay small.
func (d *drops) add(reason string, attrs ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count[reason]++
	now := d.now()
	if last, ok := d.logged[reason]; ok && now.Sub(last) < logEvery {
		d.silent[reason]++
		return
	}
	d.log.Warn("a message on the topic of events was dropped", append([]any{"reason", reason, "more_since_last_log", d.silent[reason]}, attrs...)...)
	d.logged[reason], d.silent[reason] = now, 0
}

func (d *drops) counts() map[string]uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.count)
}

package dispatch

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/axion/runner-agent/plane/ledger"
	"github.com/axion/runner-agent/plane/offset"
)

// setCurrent wakes the sender when everything is stored that the topic of events held when it was opened.
func (d *Dispatch) setCurrent(current bool) {
	d.current.Store(current)
	if !current {
		return
	}
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// store verifies messages and keeps what is believed, together with how far the topic was read.
func (d *Dispatch) store(ctx context.Context, records []*kgo.Record, offsets []offset.Offset) error {
	var events []ledger.NewEvent
	for _, r := range records {
		e, reason, err := d.verify(ctx, r)
		if err != nil {
			return fmt.Errorf("verify event %s: %w", e.Envelope.ID, err)
		}
		if reason != "" {
			d.drops.add(reason, "source", e.Envelope.Source, "type", e.Envelope.Type, "event_id", e.Envelope.ID, "partition", r.Partition, "offset", r.Offset)
			continue
		}
		events = append(events, e)
	}
	counts, err := d.deps.Ledger.Store(ctx, events, offsets)
	if err != nil {
		return err
	}
	for _, e := range events {
		d.newBytes += len(e.Envelope.Data)
	}
	if d.newEvents += counts.Stored; d.newEvents >= d.cfg.PruneEvents || d.newBytes >= d.cfg.PruneBytes {
		d.pruneNow(ctx)
		d.newEvents, d.newBytes = 0, 0
	}
	if counts.Conflicts > 0 {
		d.deps.Log.Error("events came again and said something else; the first ones stand", "conflicts", counts.Conflicts)
	}
	return nil
}

package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	bolt "go.etcd.io/bbolt"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
)

// Progress events first wait in memory, in the tail of the outbox, and reach the disk together with the next outcome or when the tail is full. While Kafka
// answers, most of them never touch the disk. A kill loses at most one tail of progress; outcomes are on disk before Decide returns.
const (
	maxTailEntries = 256
	maxTailBytes   = 1 << 20
	// rememberedEvents is how many acknowledged progress events Settled still knows.
	rememberedEvents = 1024
)

// outboxState is what the journal keeps in memory of its outbox.
type outboxState struct {
	// next is the seq of the next entry.
	next uint64
	// tail are the newest entries, in order of seq; all of them are newer than those on disk.
	tail      []tailEntry
	tailBytes int64
	// count and bytes are of disk and tail together.
	count int
	bytes int64
	// outcomes are the ids of outcomes that wait, so that one is never there twice.
	outcomes map[string]struct{}
	dropped  uint64
	full     bool
	waiters  map[string]chan struct{}
	// settled are the last progress events that were acknowledged, oldest first.
	settled []string
	pending chan struct{}
}

type tailEntry struct {
	seq     uint64
	eventID string
	encoded []byte
	// uncommitted marks an outcome that is on its way to the disk. Nothing at or after it may be sent.
	uncommitted bool
}

// loadOutbox counts what is on disk.
func (b *Bolt) loadOutbox() error {
	box := outboxState{next: 1, outcomes: map[string]struct{}{}, waiters: map[string]chan struct{}{}, pending: make(chan struct{}, 1)}
	err := b.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketOutbox).ForEach(func(k, v []byte) error {
			entry, err := decodeEntry(k, v)
			if err != nil {
				return &damageError{err}
			}
			if entry.Outcome {
				box.outcomes[entry.Envelope.ID] = struct{}{}
			}
			box.next = entry.Seq + 1
			box.count++
			box.bytes += int64(len(v))
			return nil
		})
	})
	if box.count > 0 {
		box.pending <- struct{}{}
	}
	b.box = box
	return err
}

func decodeEntry(k, v []byte) (Entry, error) {
	if len(k) != 8 {
		return Entry{}, fmt.Errorf("outbox key %x has not 8 bytes", k)
	}
	it, err := decodeItem(v)
	if err != nil {
		return Entry{}, fmt.Errorf("outbox entry %x: %w", k, err)
	}
	return it.entry(binary.BigEndian.Uint64(k))
}

// Append puts a progress event into the outbox.
func (b *Bolt) Append(ev envelope.Envelope, key string) error {
	if err := checkKey("key", key); err != nil {
		return err
	}
	event, err := checkedEnvelope(ev)
	if err != nil {
		return err
	}
	encoded := item{key: key, event: event}.encode()
	if b.tailIsFull() {
		if err := b.flushTail(); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.box.bytes+int64(len(encoded)) > b.opts.MaxOutboxBytes {
		b.drop()
		return ErrFull
	}
	b.push(tailEntry{eventID: ev.ID, encoded: encoded})
	return nil
}

func (b *Bolt) tailIsFull() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.box.tail) >= maxTailEntries || b.box.tailBytes >= maxTailBytes
}

// drop counts a dropped event. It needs mu.
func (b *Bolt) drop() {
	b.box.dropped++
	if b.box.full {
		return
	}
	b.box.full = true
	b.opts.Log.Warn("the outbox is full, progress events are dropped", "path", b.path, "bytes", b.box.bytes)
	b.opts.Warn.Set("outbox_full", runnerv1.HealthSeverity_HEALTH_SEVERITY_MEDIUM, "outbox full",
		fmt.Sprintf("%d bytes of events wait for Kafka, more than that is dropped except for outcomes", b.box.bytes))
}

// push adds an entry to the tail. It needs mu.
func (b *Bolt) push(e tailEntry) {
	e.seq = b.box.next
	b.box.next++
	b.box.tail = append(b.box.tail, e)
	b.box.tailBytes += int64(len(e.encoded))
	b.box.count++
	b.box.bytes += int64(len(e.encoded))
	b.signal()
}

func (b *Bolt) signal() {
	select {
	case b.box.pending <- struct{}{}:
	default:
	}
}

func (b *Bolt) flushTail() error {
	b.writing.Lock()
	defer b.writing.Unlock()
	return b.flush()
}

// flush moves the tail to disk. It needs writing.
func (b *Bolt) flush() error {
	b.mu.Lock()
	tail := slices.Clone(b.box.tail)
	b.mu.Unlock()
	if len(tail) == 0 {
		return nil
	}
	if err := b.update(func(tx *bolt.Tx) error { return putEntries(tx, tail) }); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trim(len(tail))
	return nil
}

// flushWith moves the tail and, after it, an outcome to disk, in one transaction with more. The outcome is left out if it waits already. It needs writing.
func (b *Bolt) flushWith(outcome item, eventID string, more func(tx *bolt.Tx) error) error {
	b.mu.Lock()
	if _, waits := b.box.outcomes[eventID]; !waits {
		b.push(tailEntry{eventID: eventID, encoded: outcome.encode(), uncommitted: true})
		b.box.outcomes[eventID] = struct{}{}
	}
	tail := slices.Clone(b.box.tail)
	b.mu.Unlock()

	err := b.update(func(tx *bolt.Tx) error {
		if err := putEntries(tx, tail); err != nil {
			return err
		}
		return more(tx)
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.withdraw()
		return err
	}
	b.trim(len(tail))
	b.signal()
	return nil
}

// withdraw takes back the outcome that did not reach the disk. It needs mu.
func (b *Bolt) withdraw() {
	b.box.tail = slices.DeleteFunc(b.box.tail, func(e tailEntry) bool {
		if e.uncommitted {
			delete(b.box.outcomes, e.eventID)
			b.forget(e)
		}
		return e.uncommitted
	})
}

// forget takes an entry of the tail off the counts. It needs mu.
func (b *Bolt) forget(e tailEntry) {
	b.box.tailBytes -= int64(len(e.encoded))
	b.box.count--
	b.box.bytes -= int64(len(e.encoded))
}

// trim drops the first n entries of the tail, which are on disk now. It needs mu.
func (b *Bolt) trim(n int) {
	for _, e := range b.box.tail[:n] {
		b.box.tailBytes -= int64(len(e.encoded))
	}
	b.box.tail = slices.Delete(b.box.tail, 0, n)
}

func putEntries(tx *bolt.Tx, entries []tailEntry) error {
	bucket := tx.Bucket(bucketOutbox)
	for _, e := range entries {
		if err := bucket.Put(seqKey(e.seq), e.encoded); err != nil {
			return err
		}
	}
	return nil
}

// Peek returns the oldest entries.
func (b *Bolt) Peek(limit int, maxBytes int64) ([]Entry, error) {
	var entries []Entry
	var size int64
	fits := func(encoded []byte) bool {
		size += int64(len(encoded))
		return len(entries) < limit && (size <= maxBytes || len(entries) == 0)
	}
	// mu is held for both halves, so that an entry that moves from the tail to the disk in between is neither missed nor overtaken.
	b.mu.Lock()
	defer b.mu.Unlock()
	var last uint64
	whole := true
	err := b.db.View(func(tx *bolt.Tx) error {
		cursor := tx.Bucket(bucketOutbox).Cursor()
		for k, v := cursor.First(); k != nil; k, v = cursor.Next() {
			if whole = fits(v); !whole {
				return nil
			}
			entry, err := decodeEntry(k, v)
			if err != nil {
				return err
			}
			last = entry.Seq
			entries = append(entries, entry)
		}
		return nil
	})
	if err != nil || !whole {
		return entries, err
	}
	for _, e := range b.box.tail {
		if e.seq <= last {
			continue // just reached the disk
		}
		if e.uncommitted || !fits(e.encoded) {
			break
		}
		entry, err := decodeEntry(seqKey(e.seq), e.encoded)
		if err != nil {
			return entries, err
		}
		entries = append(entries, entry)
	}
	return entries, nil
}

// Acked removes entries that Kafka has.
func (b *Bolt) Acked(seqs ...uint64) error {
	b.writing.Lock()
	defer b.writing.Unlock()
	onDisk := b.ackTail(seqs)
	if len(onDisk) == 0 {
		return nil
	}
	type gone struct {
		eventID string
		outcome bool
		size    int64
	}
	var removed []gone
	err := b.update(func(tx *bolt.Tx) error {
		removed = removed[:0]
		bucket := tx.Bucket(bucketOutbox)
		for _, seq := range onDisk {
			v := bucket.Get(seqKey(seq))
			if v == nil {
				continue
			}
			it, err := decodeItem(v)
			if err != nil {
				return err
			}
			e, err := decodeEnvelope(it.event)
			if err != nil {
				return err
			}
			removed = append(removed, gone{e.ID, it.command != "", int64(len(v))})
			if it.command != "" {
				if err := tx.Bucket(bucketSettled).Put([]byte(e.ID), []byte(it.command)); err != nil {
					return err
				}
			}
			if err := bucket.Delete(seqKey(seq)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, g := range removed {
		b.box.count--
		b.box.bytes -= g.size
		if g.outcome {
			delete(b.box.outcomes, g.eventID)
		}
		b.settle(g.eventID, g.outcome)
	}
	b.relieve()
	return nil
}

// ackTail removes what is still in memory and returns the rest, which is on disk.
func (b *Bolt) ackTail(seqs []uint64) (onDisk []uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, seq := range seqs {
		i, found := slices.BinarySearchFunc(b.box.tail, seq, func(e tailEntry, seq uint64) int {
			switch {
			case e.seq < seq:
				return -1
			case e.seq > seq:
				return 1
			}
			return 0
		})
		if !found {
			onDisk = append(onDisk, seq)
			continue
		}
		e := b.box.tail[i]
		b.box.tail = slices.Delete(b.box.tail, i, i+1)
		b.forget(e)
		b.settle(e.eventID, false)
	}
	b.relieve()
	return onDisk
}

// relieve ends the warning of a full outbox when there is clearly space again. It needs mu.
func (b *Bolt) relieve() {
	if b.box.full && b.box.bytes < b.opts.MaxOutboxBytes/10*9 {
		b.box.full = false
		b.opts.Warn.Clear("outbox_full")
	}
}

// settle closes an event's channel. Outcomes are remembered on disk, others here. It needs mu.
func (b *Bolt) settle(eventID string, outcome bool) {
	if ch, ok := b.box.waiters[eventID]; ok {
		close(ch)
		delete(b.box.waiters, eventID)
	}
	if outcome {
		return
	}
	if len(b.box.settled) == rememberedEvents {
		b.box.settled = slices.Delete(b.box.settled, 0, 1)
	}
	b.box.settled = append(b.box.settled, eventID)
}

var errSettled = errors.New("settled")

// Settled returns a channel that is closed when Kafka has that event.
func (b *Bolt) Settled(eventID string) <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if ch, ok := b.box.waiters[eventID]; ok {
		return ch
	}
	ch := make(chan struct{})
	err := b.db.View(func(tx *bolt.Tx) error {
		if tx.Bucket(bucketSettled).Get([]byte(eventID)) != nil {
			return errSettled
		}
		return nil
	})
	if errors.Is(err, errSettled) || slices.Contains(b.box.settled, eventID) {
		close(ch)
		return ch
	}
	b.box.waiters[eventID] = ch
	return ch
}

// waits reports whether an outcome is in the outbox.
func (b *Bolt) waits(eventID string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.box.outcomes[eventID]
	return ok
}

// Pending receives a value when there is something new to send.
func (b *Bolt) Pending() <-chan struct{} { return b.box.pending }

// Len is the number of entries.
func (b *Bolt) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.box.count
}

// Bytes is the entries' encoded size.
func (b *Bolt) Bytes() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.box.bytes
}

// Dropped is the number of progress events that were dropped since the journal was opened.
func (b *Bolt) Dropped() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.box.dropped
}

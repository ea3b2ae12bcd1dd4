package journal

import (
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

// ExpireProgress drops progress events that were made before: nobody follows a command of yesterday step by step. Outcomes stay, however old they are. It stops
// at the first progress event that is young enough, since events wait in the order in which they came.
func (b *Bolt) ExpireProgress(before time.Time) error {
	b.writing.Lock()
	defer b.writing.Unlock()
	if b.Len() == 0 {
		return nil
	}
	var old [][]byte // keys
	var freed int64
	done := false
	err := b.update(func(tx *bolt.Tx) error {
		old, freed, done = nil, 0, false
		bucket := tx.Bucket(bucketOutbox)
		cursor := bucket.Cursor()
		for k, v := cursor.First(); k != nil && !done; k, v = cursor.Next() {
			entry, err := decodeEntry(k, v)
			if err != nil {
				return err
			}
			switch {
			case entry.Outcome:
			case entry.Envelope.Time.Before(before):
				old = append(old, seqKey(entry.Seq))
				freed += int64(len(v))
			default:
				done = true
			}
		}
		for _, k := range old { // a cursor that deletes skips what follows
			if err := bucket.Delete(k); err != nil {
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
	b.box.count -= len(old)
	b.box.bytes -= freed
	dropped := len(old)
	if !done {
		dropped += b.expireTail(before)
	}
	if dropped > 0 {
		b.box.dropped += uint64(dropped)
		b.opts.Log.Warn("progress events waited too long for Kafka and were dropped", "path", b.path, "events", dropped, "older_than", before)
		b.relieve()
	}
	return nil
}

// expireTail does the same for what is still in memory, where all that is not on its way to the disk is progress. It needs mu.
func (b *Bolt) expireTail(before time.Time) (dropped int) {
	done := false
	b.box.tail = slices.DeleteFunc(b.box.tail, func(e tailEntry) bool {
		entry, err := decodeEntry(seqKey(e.seq), e.encoded)
		if done || err != nil || entry.Outcome || !entry.Envelope.Time.Before(before) {
			done = done || err == nil && !entry.Outcome
			return false
		}
		b.forget(e)
		dropped++
		return true
	})
	return dropped
}

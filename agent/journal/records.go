package journal

import (
	"encoding/json"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
)

// Receive notes a delivery of a command.
func (b *Bolt) Receive(id, typ string) (Record, error) {
	if err := checkKey("command id", id); err != nil {
		return Record{}, err
	}
	if err := b.CheckSpace(); err != nil {
		return Record{}, err
	}
	var rec Record
	err := b.update(func(tx *bolt.Tx) error {
		stored, _, err := getRecord(tx, id)
		if err != nil {
			return err
		}
		now := b.opts.Now().UTC()
		if stored.Attempts == 0 {
			stored.Type, stored.FirstSeen = typ, now
		}
		stored.Attempts++
		stored.LastSeen = now
		if err := tx.Bucket(bucketRecords).Put([]byte(id), mustJSON(stored)); err != nil {
			return err
		}
		rec = stored.record(id)
		if stored.Decided {
			rec.Outcome, err = getOutcome(tx, id)
		}
		return err
	})
	return rec, err
}

// Decide records a command's outcome, once, and puts it into the outbox.
func (b *Bolt) Decide(id, key string, generation uint64, outcome envelope.Envelope) (envelope.Envelope, error) {
	if err := checkKey("command id", id); err != nil {
		return envelope.Envelope{}, err
	}
	if len(key) > MaxKeyBytes {
		return envelope.Envelope{}, checkKey("key", key)
	}
	encoded, err := checkedEnvelope(outcome)
	if err != nil {
		return envelope.Envelope{}, err
	}

	b.writing.Lock()
	defer b.writing.Unlock()
	// Only Decide, Expire and Acked change what is decided, and all three hold writing: what is read here still holds below.
	first, err := b.outcomeOf(id)
	if err != nil {
		return envelope.Envelope{}, err
	}
	if first != nil {
		outcome = *first
		encoded = encodeEnvelope(outcome)
	}
	err = b.flushWith(item{key: key, command: id, event: encoded}, outcome.ID, func(tx *bolt.Tx) error {
		if first != nil {
			return nil
		}
		stored, _, err := getRecord(tx, id)
		if err != nil {
			return err
		}
		now := b.opts.Now().UTC()
		if stored.FirstSeen.IsZero() {
			stored.FirstSeen = now
		}
		stored.Key, stored.Generation, stored.Decided, stored.OutcomeID, stored.LastSeen = key, generation, true, outcome.ID, now
		if err := tx.Bucket(bucketRecords).Put([]byte(id), mustJSON(stored)); err != nil {
			return err
		}
		return tx.Bucket(bucketOutcomes).Put([]byte(id), encoded)
	})
	if err != nil {
		return envelope.Envelope{}, err
	}
	return outcome, nil
}

// outcomeOf returns a command's outcome, or nil if it is not decided.
func (b *Bolt) outcomeOf(id string) (outcome *envelope.Envelope, err error) {
	err = b.db.View(func(tx *bolt.Tx) error {
		stored, _, err := getRecord(tx, id)
		if err != nil || !stored.Decided {
			return err
		}
		e, err := getOutcome(tx, id)
		outcome = &e
		return err
	})
	return outcome, err
}

// Expire forgets commands that were decided and not seen since.
func (b *Bolt) Expire(before time.Time) error {
	b.writing.Lock()
	defer b.writing.Unlock()
	return b.update(func(tx *bolt.Tx) error {
		old := map[string]string{} // command id -> outcome id
		err := tx.Bucket(bucketRecords).ForEach(func(k, v []byte) error {
			var stored storedRecord
			if err := json.Unmarshal(v, &stored); err != nil {
				return fmt.Errorf("record %s: %w", k, err)
			}
			if stored.Decided && stored.LastSeen.Before(before) && !b.waits(stored.OutcomeID) {
				old[string(k)] = stored.OutcomeID
			}
			return nil
		})
		if err != nil {
			return err
		}
		for id, outcomeID := range old {
			for _, d := range []struct{ bucket, key []byte }{{bucketRecords, []byte(id)}, {bucketOutcomes, []byte(id)}, {bucketSettled, []byte(outcomeID)}} {
				if err := tx.Bucket(d.bucket).Delete(d.key); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func getRecord(tx *bolt.Tx, id string) (stored storedRecord, found bool, err error) {
	v := tx.Bucket(bucketRecords).Get([]byte(id))
	if v == nil {
		return stored, false, nil
	}
	if err := json.Unmarshal(v, &stored); err != nil {
		return stored, false, fmt.Errorf("record %s: %w", id, err)
	}
	return stored, true, nil
}

func getOutcome(tx *bolt.Tx, id string) (envelope.Envelope, error) {
	e, err := decodeEnvelope(tx.Bucket(bucketOutcomes).Get([]byte(id)))
	if err != nil {
		return e, fmt.Errorf("outcome of command %s: %w", id, err)
	}
	return e, nil
}

func checkKey(what, key string) error {
	if key == "" || len(key) > MaxKeyBytes {
		return failure.New(failure.Invalid, "bad_key", key, "a %s needs 1 to %d bytes, it has %d", what, MaxKeyBytes, len(key))
	}
	return nil
}

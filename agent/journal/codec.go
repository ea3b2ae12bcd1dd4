package journal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
)

// An envelope is stored as it goes over Kafka: its headers, then its data, each part with its length before it.

var errTruncated = errors.New("entry ends too early")

func appendPart(b, part []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(part))), part...)
}

func cutPart(b []byte) (part, rest []byte, err error) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return nil, nil, errTruncated
	}
	b = b[size:]
	return b[:n], b[n:], nil
}

func encodeEnvelope(e envelope.Envelope) []byte {
	headers := e.Headers()
	b := binary.AppendUvarint(make([]byte, 0, 512+len(e.Data)), uint64(len(headers)))
	for _, h := range headers {
		b = appendPart(b, []byte(h.Key))
		b = appendPart(b, h.Value)
	}
	return append(b, e.Data...)
}

// decodeEnvelope copies what it needs: b may be memory of the database.
func decodeEnvelope(b []byte) (envelope.Envelope, error) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > envelope.MaxHeaders {
		return envelope.Envelope{}, errTruncated
	}
	b = b[size:]
	headers := make([]envelope.Header, n)
	for i := range headers {
		key, rest, err := cutPart(b)
		if err != nil {
			return envelope.Envelope{}, err
		}
		value, rest, err := cutPart(rest)
		if err != nil {
			return envelope.Envelope{}, err
		}
		headers[i], b = envelope.Header{Key: string(key), Value: value}, rest
	}
	return envelope.Parse(headers, append([]byte(nil), b...), math.MaxInt)
}

// checkedEnvelope encodes an event and makes sure that it can be read again. Failures of class Internal: "bad_event"; of class Invalid: "event_too_large".
func checkedEnvelope(e envelope.Envelope) ([]byte, error) {
	if _, err := envelope.Parse(e.Headers(), nil, math.MaxInt); err != nil {
		return nil, failure.New(failure.Internal, "bad_event", e.ID, "event %s of type %s cannot be stored: %w", e.ID, e.Type, err)
	}
	b := encodeEnvelope(e)
	if len(b) > MaxEventBytes {
		return nil, failure.New(failure.Invalid, "event_too_large", e.ID, "event %s of type %s has %d bytes, at most %d can be sent", e.ID, e.Type, len(b), MaxEventBytes)
	}
	return b, nil
}

// item is an outbox entry in its stored form.
type item struct {
	key string
	// command is the id of the command that the event ends; empty for progress.
	command string
	event   []byte
}

func (it item) encode() []byte {
	b := make([]byte, 0, len(it.key)+len(it.command)+len(it.event)+8)
	return append(appendPart(appendPart(b, []byte(it.key)), []byte(it.command)), it.event...)
}

func decodeItem(b []byte) (item, error) {
	key, rest, err := cutPart(b)
	if err != nil {
		return item{}, err
	}
	command, rest, err := cutPart(rest)
	if err != nil {
		return item{}, err
	}
	return item{key: string(key), command: string(command), event: rest}, nil
}

func (it item) entry(seq uint64) (Entry, error) {
	e, err := decodeEnvelope(it.event)
	if err != nil {
		return Entry{}, fmt.Errorf("outbox entry %d: %w", seq, err)
	}
	return Entry{Seq: seq, Key: it.key, Outcome: it.command != "", Envelope: e}, nil
}

// storedRecord is a record without its outcome, which lies beside it.
type storedRecord struct {
	Type       string    `json:"type"`
	Key        string    `json:"key,omitempty"`
	Generation uint64    `json:"generation,omitempty"`
	Attempts   uint32    `json:"attempts"`
	Decided    bool      `json:"decided,omitempty"`
	OutcomeID  string    `json:"outcome_id,omitempty"`
	FirstSeen  time.Time `json:"first_seen"`
	LastSeen   time.Time `json:"last_seen"`
}

func (r storedRecord) record(id string) Record {
	return Record{
		ID: id, Type: r.Type, Key: r.Key, Generation: r.Generation, Attempts: r.Attempts, Decided: r.Decided,
		FirstSeen: r.FirstSeen, LastSeen: r.LastSeen,
	}
}

func seqKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // structs of plain fields always encode
	}
	return b
}

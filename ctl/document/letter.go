package document

import (
	"encoding/hex"
	"time"
	"unicode"
	"unicode/utf8"

	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
)

// DeadLetter is a message that an agent could not read.
type DeadLetter struct {
	ID uint64 `json:"id"`
	// AgentID is who gave it up, as it says; ClusterID is that agent's cluster.
	AgentID   string `json:"agent_id"`
	ClusterID string `json:"cluster_id"`
	// Verified is whether the topic is that agent's own or its cluster's.
	Verified  bool   `json:"verified"`
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Type      string `json:"type,omitempty"`
	CommandID string `json:"command_id,omitempty"`
	Class     string `json:"class"`
	Code      string `json:"code"`
	Reason    string `json:"reason"`
	// Attempts is how often it was given up.
	Attempts   uint64     `json:"attempts"`
	FirstAt    *time.Time `json:"first_at,omitempty"`
	LastAt     *time.Time `json:"last_at,omitempty"`
	ReplayedAt *time.Time `json:"replayed_at,omitempty"`
	// ValueSize is in bytes.
	ValueSize uint64 `json:"value_size"`
}

// DeadLetterContent is a dead letter with what it holds.
type DeadLetterContent struct {
	DeadLetter
	Bytes
	Key     Bytes    `json:"key"`
	Headers []Header `json:"headers"`
	// Truncated says that the value is longer.
	Truncated bool `json:"truncated"`
}

// Header is a Kafka header.
type Header struct {
	Key string `json:"key"`
	Bytes
}

// Bytes are text if that can be printed, hexadecimal otherwise.
type Bytes struct {
	Value string `json:"value,omitempty"`
	Hex   string `json:"value_hex,omitempty"`
}

// Replay says where a replayed dead letter is.
type Replay struct {
	ID        uint64 `json:"replayed"`
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

// OfDeadLetter returns a dead letter as a document.
func OfDeadLetter(l *planev1.DeadLetter) DeadLetter {
	return DeadLetter{
		ID: l.GetId(), AgentID: l.GetAgentId(), ClusterID: l.GetClusterId(), Verified: l.GetVerified(), Topic: l.GetTopic(), Partition: l.GetPartition(),
		Offset: l.GetOffset(), Type: l.GetType(), CommandID: l.GetCommandId(), Class: l.GetClass(), Code: l.GetCode(), Reason: l.GetReason(),
		Attempts: l.GetAttempts(), FirstAt: at(l.GetFirstAt()), LastAt: at(l.GetLastAt()), ReplayedAt: at(l.GetReplayedAt()), ValueSize: l.GetValueSize(),
	}
}

// OfDeadLetterContent returns a dead letter and what it holds as a document.
func OfDeadLetterContent(r *planev1.GetDeadLetterResponse) DeadLetterContent {
	truncated := uint64(len(r.GetValue())) < r.GetLetter().GetValueSize()
	d := DeadLetterContent{
		DeadLetter: OfDeadLetter(r.GetLetter()), Key: ofBytes(r.GetKey(), false), Bytes: ofBytes(r.GetValue(), truncated), Truncated: truncated,
		Headers: make([]Header, 0, len(r.GetHeaders())),
	}
	for _, h := range r.GetHeaders() {
		d.Headers = append(d.Headers, Header{Key: h.GetKey(), Bytes: ofBytes(h.GetValue(), false)})
	}
	return d
}

func ofBytes(b []byte, truncated bool) Bytes {
	if text, ok := Text(b, truncated); ok {
		return Bytes{Value: text}
	}
	return Bytes{Hex: hex.EncodeToString(b)}
}

// Text returns bytes as text if that can be printed as it is: it is UTF-8, and beside line breaks and tabs it has no control characters and none that change
// the direction of writing. Of text that was cut off, a character that is not whole at the end is left out.
func Text(b []byte, truncated bool) (string, bool) {
	if truncated {
		b = wholeRunes(b)
	}
	if !utf8.Valid(b) {
		return "", false
	}
	for _, r := range string(b) {
		if !unicode.IsPrint(r) && r != '\n' && r != '\t' {
			return "", false
		}
	}
	return string(b), true
}

// wholeRunes leaves out a character at the end that was cut.
func wholeRunes(b []byte) []byte {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if start := b[len(b)-n:]; utf8.RuneStart(start[0]) {
			if !utf8.FullRune(start) {
				return b[:len(b)-n]
			}
			break
		}
	}
	return b
}

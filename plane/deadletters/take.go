package deadletters

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"strings"
	"unicode"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/axion/runner-agent/plane/offset"
	"github.com/axion/runner-agent/proto/deadletter"
	"github.com/axion/runner-agent/proto/envelope"
)

// Bounds on what a letter says of itself, in bytes; what is longer is cut. A claimed id or topic that is longer is nobody's.
const (
	maxID     = 64
	maxTopic  = 249 // Kafka's own
	maxType   = 128
	maxWord   = 64
	maxReason = 1024
	// maxLetterBytes bounds a letter; the topic takes no larger one unless somebody has changed it.
	maxLetterBytes = 20 << 20
)

// received is a letter as it came.
type received struct {
	Letter
	digest  string
	headers []byte // encoded
	size    int64
}

// take keeps messages of the topic and how far it was read.
func (l *Letters) take(ctx context.Context, records []*kgo.Record, offsets []offset.Offset) error {
	letters := make([]received, 0, len(records))
	for _, r := range records {
		letter, err := l.read(ctx, r)
		if err != nil {
			return fmt.Errorf("dead letter at %s/%d/%d: %w", r.Topic, r.Partition, r.Offset, err)
		}
		if letter.size > maxLetterBytes {
			l.deps.Log.Error("a dead letter is too large to be kept", "bytes", letter.size, "agent_id", letter.AgentID, "partition", r.Partition, "offset", r.Offset)
			continue
		}
		letters = append(letters, letter)
	}
	surplus := int64(0)
	err := l.deps.DB.Tx(ctx, func(tx *sql.Tx) error {
		for i := range letters {
			if err := l.keep(ctx, tx, &letters[i]); err != nil {
				return err
			}
		}
		var err error
		if surplus, err = l.eraseSurplus(ctx, tx); err != nil {
			return err
		}
		return offset.Save(ctx, tx, offsets)
	})
	if err != nil {
		return err
	}
	for _, letter := range letters {
		l.deps.Log.Warn("an agent could not read a message", "letter", letter.ID, "agent_id", letter.AgentID, "cluster_id", letter.ClusterID, "verified", letter.Verified,
			"topic", letter.Topic, "offset", letter.Offset, "code", letter.Code, "attempts", letter.Attempts)
	}
	if surplus > 0 {
		l.deps.Log.Warn("there are too many dead letters; the oldest were erased", "erased", surplus)
	}
	return nil
}

// read makes a letter of a message. An error is the directory's.
func (l *Letters) read(ctx context.Context, r *kgo.Record) (received, error) {
	headers := make([]envelope.Header, len(r.Headers))
	for i, h := range r.Headers {
		headers[i] = envelope.Header{Key: h.Key, Value: h.Value}
	}
	notice, original := deadletter.Split(headers)
	env, _ := envelope.Parse(original, nil, 0) // as far as it can be read
	letter := received{Letter: Letter{
		AgentID: clean(notice.AgentID, maxID), Topic: clean(notice.Topic, maxTopic), Partition: notice.Partition, Offset: notice.Offset,
		Type: clean(env.Type, maxType), CommandID: clean(env.ID, envelope.MaxID),
		Class: clean(notice.Class, maxWord), Code: clean(notice.Code, maxWord), Reason: clean(notice.Reason, maxReason),
		Key: r.Key, Value: r.Value, Headers: original, ValueSize: int64(len(r.Value)),
	}}
	var err error
	if letter.ClusterID, letter.Verified, err = l.verify(ctx, notice); err != nil {
		return letter, err
	}
	if letter.headers, err = encodeHeaders(original); err != nil {
		return letter, err
	}
	letter.size = int64(len(r.Key) + len(letter.headers) + len(r.Value))
	letter.digest = digest(letter, r)
	return letter, nil
}

// verify returns the cluster of the agent that is named, and whether the topic that is named is its own or its cluster's.
func (l *Letters) verify(ctx context.Context, n deadletter.Notice) (clusterID string, verified bool, err error) {
	if n.AgentID == "" || len(n.AgentID) > maxID {
		return "", false, nil
	}
	clusterID, known, err := l.deps.Directory.Cluster(ctx, n.AgentID)
	if err != nil || !known || n.Topic == "" || len(n.Topic) > maxTopic {
		return clusterID, false, err
	}
	ownerCluster, ownerAgent, ok, err := l.deps.Directory.Owner(ctx, n.Topic)
	if err != nil || !ok {
		return clusterID, false, err
	}
	if ownerAgent != "" {
		return clusterID, ownerAgent == n.AgentID, nil
	}
	return clusterID, ownerCluster == clusterID, nil
}

// digest tells whether two letters are the same: the same message at the same place. One that is verified is never the same as one that is not, so that
// nobody can write into another's letter. A letter that does not say where it was is told by its own place.
func digest(letter received, r *kgo.Record) string {
	h := sha256.New()
	topic, partition, at := letter.Topic, letter.Partition, letter.Offset
	if topic == "" || partition < 0 || at < 0 {
		topic, partition, at = r.Topic, r.Partition, r.Offset
	}
	write(h, fmt.Appendf(nil, "%v %d %d", letter.Verified, partition, at))
	for _, part := range [][]byte{[]byte(topic), letter.Key, letter.headers, letter.Value} {
		write(h, part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// write adds a part with its length, so that no two sequences of parts are alike.
func write(h hash.Hash, part []byte) {
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part)))) // never fails
	_, _ = h.Write(part)
}

// header is how a header is kept: JSON would change a name that is no text.
type header struct {
	Key   []byte `json:"k"`
	Value []byte `json:"v"`
}

func encodeHeaders(list []envelope.Header) ([]byte, error) {
	out := make([]header, len(list))
	for i, h := range list {
		out[i] = header{Key: []byte(h.Key), Value: h.Value}
	}
	return json.Marshal(out)
}

func decodeHeaders(data []byte) ([]envelope.Header, error) {
	var list []header
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	out := make([]envelope.Header, len(list))
	for i, h := range list {
		out[i] = envelope.Header{Key: string(h.Key), Value: h.Value}
	}
	return out, nil
}

// clean makes foreign text printable and at most n bytes long.
func clean(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s[:min(len(s), n)])
	for len(s) > n { // a replacement is longer than what it replaces
		r := []rune(s)
		s = string(r[:len(r)-1])
	}
	return s
}

// Package offset keeps how far the plane has read its topics. A package that stores what it reads writes the offsets in the same transaction, so that a
// restart neither loses nor doubles a message.
package offset

import (
	"context"
	"database/sql"
	"fmt"
)

// Offset is how far a partition of a topic has been read.
type Offset struct {
	// Topic, TopicID and Partition name it; a topic that is made anew has another id.
	Topic, TopicID string
	Partition      int32
	// Next is the offset of the next message to read.
	Next int64
}

// Execer is a transaction.
type Execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Queryer is a database or a transaction.
type Queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// Save notes how far partitions were read. Give it the transaction that stores what was read.
func Save(ctx context.Context, tx Execer, offsets []Offset) error {
	for _, o := range offsets {
		_, err := tx.ExecContext(ctx, `INSERT INTO topic_offsets (topic, partition, topic_id, next_offset) VALUES ($1, $2, $3, $4)
			ON CONFLICT (topic, partition) DO UPDATE SET topic_id = excluded.topic_id, next_offset = excluded.next_offset`,
			o.Topic, o.Partition, o.TopicID, o.Next)
		if err != nil {
			return fmt.Errorf("store offset %d of %s/%d: %w", o.Next, o.Topic, o.Partition, err)
		}
	}
	return nil
}

// Load returns how far the partitions of a topic have been read; none if it has another id than the one that was read.
func Load(ctx context.Context, db Queryer, topic, topicID string) ([]Offset, error) {
	rows, err := db.QueryContext(ctx, `SELECT partition, next_offset FROM topic_offsets WHERE topic = $1 AND topic_id = $2`, topic, topicID)
	if err != nil {
		return nil, fmt.Errorf("read offsets of %s: %w", topic, err)
	}
	defer func() { _ = rows.Close() }()
	var out []Offset
	for rows.Next() {
		o := Offset{Topic: topic, TopicID: topicID}
		if err := rows.Scan(&o.Partition, &o.Next); err != nil {
			return nil, fmt.Errorf("read offset of %s: %w", topic, err)
		}
		out = append(out, o)
	}
	return out, rows.Err()
}

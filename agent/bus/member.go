package bus

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
)

const (
	evictTimeout   = 5 * time.Second
	maxMemberBytes = 1024
)

// A member that was killed stays in the group until its session ends, and nobody else gets its partition for so long. Its id is on disk, so the next start
// takes it out of the group. This is speed, never correctness: a living member that is evicted by mistake joins again.

// readFormerMember returns the member id that an earlier start left behind, or "".
func (c *Consumer) readFormerMember() string {
	if c.cfg.MemberFile == "" {
		return ""
	}
	b, err := os.ReadFile(c.cfg.MemberFile)
	if err != nil || len(b) > maxMemberBytes {
		return ""
	}
	group, member, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	if group != c.cfg.Group {
		return ""
	}
	return member
}

// writeMember keeps the member id; the file is replaced as a whole.
func (c *Consumer) writeMember(id string) {
	if c.cfg.MemberFile == "" {
		return
	}
	temp := c.cfg.MemberFile + ".new"
	err := os.MkdirAll(filepath.Dir(temp), 0o700)
	if err == nil {
		err = os.WriteFile(temp, []byte(c.cfg.Group+"\n"+id+"\n"), 0o600)
	}
	if err == nil {
		err = os.Rename(temp, c.cfg.MemberFile)
	}
	if err != nil {
		c.log.Warn("cannot keep the member id; after a crash the group waits for its session to end", "error", err)
	}
}

// forgetMember is called when the group was left in good order.
func (c *Consumer) forgetMember() {
	if c.cfg.MemberFile != "" {
		_ = os.Remove(c.cfg.MemberFile)
	}
}

// evict takes the former member out of the group, a moment after the new one began to join.
func (c *Consumer) evict(ctx context.Context, former string) {
	timer := time.NewTimer(c.timing.evictAfter)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return
	case <-timer.C:
	}
	ctx, cancel := context.WithTimeout(ctx, evictTimeout)
	defer cancel()
	if err := c.leaveGroup(ctx, former); err != nil {
		c.log.Info("the former member was not taken out of the group", "group", c.cfg.Group, "member", former, "reason", err)
		return
	}
	c.log.Info("took the former member out of the group", "group", c.cfg.Group, "member", former)
}

func (c *Consumer) leaveGroup(ctx context.Context, member string) error {
	transport := newTransport(c.cfg.Config, []string{c.cfg.Topic})
	defer transport.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(c.cfg.Brokers...), Transport: transport}
	resp, err := client.LeaveGroup(ctx, &kafka.LeaveGroupRequest{GroupID: c.cfg.Group, Members: []kafka.LeaveGroupRequestMember{{ID: member}}})
	if err != nil {
		return err
	}
	if resp.Error != nil {
		return resp.Error
	}
	for _, m := range resp.Members {
		if m.Error != nil {
			return fmt.Errorf("member %s: %w", m.ID, m.Error)
		}
	}
	return nil
}

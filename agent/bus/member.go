package bus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
)

const (
	// evictTimeout bounds one attempt to take the former member out, evictAttempts how many there are while this consumer waits to join.
	evictTimeout   = 5 * time.Second
	evictAttempts  = 5
	evictPause     = 500 * time.Millisecond
	maxMemberBytes = 1024
)

// A member that was killed, or whose broker was, stays in the group until its session ends, and nobody else gets its partition for so long. Its id is known,
// in memory and on disk, so whoever comes after it here takes it out of the group. This is speed, never correctness: a living member that is evicted by
// mistake joins again.
//
// It is done while the successor waits to join, never before: an empty group waits for others (group.initial.rebalance.delay.ms, 3 s) before it begins. And it
// is done to the last own id only, once, and not more often than a session lasts: what an eviction saves is less than that.

// former is a member that this consumer left in the group without a good-bye.
type former struct {
	mu sync.Mutex
	// id is "" if there is none.
	id string
	// took is when one was last taken out of the group.
	took time.Time
	// stop ends what is under way to take it out.
	stop context.CancelFunc
}

// left notes a member that may still be in the group; "" is none.
func (f *former) left(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if id != "" {
		f.id = id
	}
}

// gone says whether all members of this consumer are out of the group, as far as it knows.
func (f *former) gone() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.id == ""
}

// joined ends the care for the former member: a group that takes in a new one has heard from all others, or has dropped them.
func (f *former) joined() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.id = ""
	f.halt()
}

// halt needs mu.
func (f *former) halt() {
	if f.stop != nil {
		f.stop()
		f.stop = nil
	}
}

// joining takes the former member out, if there is one, a moment after this call; the caller is about to send its request to join. It returns at once.
func (f *former) joining(ctx context.Context, c *Consumer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.halt()
	if f.id == "" {
		return
	}
	ctx, f.stop = context.WithCancel(ctx)
	id, wait := f.id, max(c.timing.evictAfter, time.Until(f.took.Add(c.timing.session)))
	c.closers.Go(func() { c.evict(ctx, id, wait) })
}

// out notes that a member is out of the group, and whether it was taken out now.
func (f *former) out(id string, took bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if took {
		f.took = time.Now()
	}
	if f.id == id {
		f.id = ""
	}
}

// announcing is a way to assign partitions, the client's own, that tells when a request to join is about to be sent: the client asks it for its data then.
type announcing struct {
	kafka.RangeGroupBalancer
	begins func()
}

// UserData implements kafka.GroupBalancer.
func (a announcing) UserData() ([]byte, error) {
	a.begins()
	return a.RangeGroupBalancer.UserData()
}

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

// evict takes the former member out of the group after a while. It gives up when ctx ends.
func (c *Consumer) evict(ctx context.Context, id string, wait time.Duration) {
	for range evictAttempts {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		bounded, cancel := context.WithTimeout(ctx, evictTimeout)
		err := c.leaveGroup(bounded, id)
		cancel()
		switch {
		case err == nil:
			c.former.out(id, true)
			c.log.Info("took the former member out of the group", "group", c.cfg.Group, "member", id)
			return
		case errors.Is(err, kafka.UnknownMemberId):
			c.former.out(id, false)
			return
		case ctx.Err() != nil:
			return
		}
		c.log.Info("the former member was not taken out of the group", "group", c.cfg.Group, "member", id, "reason", err)
		wait = evictPause
	}
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

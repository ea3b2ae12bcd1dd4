package broker

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Evict takes a member out of a consumer group, as if it had left (LeaveGroup; KIP-345 lets an administrator do that). It reports whether the group had that
// member. A member that lives learns of it with its next heartbeat and joins again.
func (b *Broker) Evict(ctx context.Context, group, memberID string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := b.wait(ctx); err != nil {
		return false, err
	}
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = group
	req.MemberID = memberID // for brokers that know only versions 0 to 2
	member := kmsg.NewLeaveGroupRequestMember()
	member.MemberID = memberID
	reason := "its agent's connection to the control plane broke"
	member.Reason = &reason
	req.Members = append(req.Members, member)
	resp, err := req.RequestWith(ctx, b.client)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
		for _, m := range resp.Members {
			err = errors.Join(err, kerr.ErrorForCode(m.ErrorCode))
		}
	}
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, kerr.UnknownMemberID), errors.Is(err, kerr.GroupIDNotFound):
		return false, nil
	default:
		return false, fmt.Errorf("take member %s out of group %s: %w", memberID, group, err)
	}
}

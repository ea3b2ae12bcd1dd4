package operator

import (
	"context"
	"strings"

	"github.com/axion/runner-agent/plane/deadletters"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
)

// Bounds of the contract on what a dead letter is shown of; sizes in bytes.
const (
	defaultShownValue = 64 << 10
	maxShownValue     = 16 << 20
	maxShownPart      = 4 << 10 // of a key or a header
	maxShownHeaders   = 128
)

// ListDeadLetters lists what agents could not read, newest first.
func (s *Server) ListDeadLetters(ctx context.Context, req *planev1.ListDeadLettersRequest) (*planev1.ListDeadLettersResponse, error) {
	limit := int(req.GetLimit())
	if limit > deadletters.MaxPage {
		return nil, s.answer(ctx, "ListDeadLetters", invalid("bad_limit", "limit", "the limit is %d, at most %d are allowed", limit, deadletters.MaxPage))
	}
	if limit == 0 {
		limit = deadletters.DefaultPage
	}
	letters, err := s.deps.Letters.List(ctx, deadletters.Filter{
		ClusterID: req.GetClusterId(), AgentID: req.GetAgentId(), Before: req.GetBefore(), Limit: limit + 1, // one more tells whether there is another page
	})
	if err != nil {
		return nil, s.answer(ctx, "ListDeadLetters", err)
	}
	resp := &planev1.ListDeadLettersResponse{}
	for i, letter := range letters {
		if i == limit {
			resp.Next = resp.Letters[limit-1].GetId()
			break
		}
		resp.Letters = append(resp.Letters, letterMessage(letter))
	}
	return resp, nil
}

// GetDeadLetter shows a dead letter with what it holds, within bounds.
func (s *Server) GetDeadLetter(ctx context.Context, req *planev1.GetDeadLetterRequest) (*planev1.GetDeadLetterResponse, error) {
	most := int(req.GetMaxValueBytes())
	if most > maxShownValue {
		return nil, s.answer(ctx, "GetDeadLetter", invalid("bad_limit", "max_value_bytes", "max_value_bytes is %d, at most %d are allowed", most, maxShownValue))
	}
	if most == 0 {
		most = defaultShownValue
	}
	letter, err := s.deps.Letters.Get(ctx, req.GetId())
	if err != nil {
		return nil, s.answer(ctx, "GetDeadLetter", err)
	}
	resp := &planev1.GetDeadLetterResponse{Letter: letterMessage(letter), Key: first(letter.Key, maxShownPart), Value: first(letter.Value, most)}
	for _, h := range letter.Headers[:min(len(letter.Headers), maxShownHeaders)] {
		key := strings.ToValidUTF8(h.Key[:min(len(h.Key), maxShownPart)], "\uFFFD")
		resp.Headers = append(resp.Headers, &planev1.DeadLetterHeader{Key: key, Value: first(h.Value, maxShownPart)})
	}
	return resp, nil
}

// ReplayDeadLetter has a dead letter tried again.
func (s *Server) ReplayDeadLetter(ctx context.Context, req *planev1.ReplayDeadLetterRequest) (*planev1.ReplayDeadLetterResponse, error) {
	place, err := s.deps.Letters.Replay(ctx, req.GetId(), req.GetAllowUnverified())
	if err != nil {
		return nil, s.answer(ctx, "ReplayDeadLetter", err)
	}
	return &planev1.ReplayDeadLetterResponse{Topic: place.Topic, Partition: place.Partition, Offset: place.Offset}, nil
}

// DropDeadLetter erases a dead letter.
func (s *Server) DropDeadLetter(ctx context.Context, req *planev1.DropDeadLetterRequest) (*planev1.DropDeadLetterResponse, error) {
	if err := s.deps.Letters.Drop(ctx, req.GetId()); err != nil {
		return nil, s.answer(ctx, "DropDeadLetter", err)
	}
	return &planev1.DropDeadLetterResponse{}, nil
}

func letterMessage(l deadletters.Letter) *planev1.DeadLetter {
	return &planev1.DeadLetter{
		Id: l.ID, AgentId: l.AgentID, ClusterId: l.ClusterID, Verified: l.Verified, Topic: l.Topic, Partition: l.Partition, Offset: l.Offset,
		Type: l.Type, CommandId: l.CommandID, Class: l.Class, Code: l.Code, Reason: l.Reason, Attempts: l.Attempts,
		FirstAt: timestamp(l.FirstAt), LastAt: timestamp(l.LastAt), ReplayedAt: timestamp(l.ReplayedAt), ValueSize: uint64(l.ValueSize),
	}
}

func first(b []byte, n int) []byte { return b[:min(len(b), n)] }

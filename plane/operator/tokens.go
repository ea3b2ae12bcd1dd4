package operator

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/axion/runner-agent/plane/registry"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	"github.com/axion/runner-agent/proto/jointoken"
)

// CreateToken makes a join token.
func (s *Server) CreateToken(ctx context.Context, req *planev1.CreateTokenRequest) (*planev1.CreateTokenResponse, error) {
	ttl, err := duration("ttl", req.GetTtl())
	if err != nil {
		return nil, s.answer(ctx, "CreateToken", err)
	}
	token, secret, err := s.deps.Registry.CreateToken(ctx, req.GetClusterId(), ttl, req.GetUses())
	if err != nil {
		return nil, s.answer(ctx, "CreateToken", err)
	}
	s.deps.Log.Info("join token made", "token_id", token.ID, "cluster_id", token.ClusterID, "expires_at", token.ExpiresAt, "uses", token.Uses)
	whole := jointoken.Token{Secret: secret, CAHash: s.cfg.CAHash}
	return &planev1.CreateTokenResponse{Token: whole.String(), Info: tokenMessage(token)}, nil
}

// duration returns the duration, 0 if there is none, and refuses one that the registry would take for none.
func duration(field string, d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, invalid("bad_duration", field, "%s is no duration: %w", field, err)
	}
	if d.AsDuration() <= 0 {
		return 0, invalid("bad_duration", field, "%s is %v, it must be more than 0", field, d.AsDuration())
	}
	return d.AsDuration(), nil
}

// ListTokens lists join tokens without their secrets.
func (s *Server) ListTokens(ctx context.Context, req *planev1.ListTokensRequest) (*planev1.ListTokensResponse, error) {
	tokens, err := s.deps.Registry.ListTokens(ctx, req.GetClusterId())
	if err != nil {
		return nil, s.answer(ctx, "ListTokens", err)
	}
	resp := &planev1.ListTokensResponse{}
	for _, t := range tokens {
		resp.Tokens = append(resp.Tokens, tokenMessage(t))
	}
	return resp, nil
}

// RevokeToken makes a join token useless.
func (s *Server) RevokeToken(ctx context.Context, req *planev1.RevokeTokenRequest) (*planev1.RevokeTokenResponse, error) {
	if err := s.deps.Registry.RevokeToken(ctx, req.GetId()); err != nil {
		return nil, s.answer(ctx, "RevokeToken", err)
	}
	s.deps.Log.Info("join token revoked", "token_id", req.GetId())
	return &planev1.RevokeTokenResponse{}, nil
}

func tokenMessage(t registry.Token) *planev1.Token {
	return &planev1.Token{
		Id: t.ID, ClusterId: t.ClusterID, CreatedAt: timestamp(t.CreatedAt), ExpiresAt: timestamp(t.ExpiresAt), Uses: t.Uses, Used: t.Used, Revoked: t.Revoked,
	}
}

// timestamp returns nil for the zero time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

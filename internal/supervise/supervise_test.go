package supervise

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestStopsInReverse(t *testing.T) {
	s := New(slog.New(slog.DiscardHandler))
	var mu sync.Mutex
	var ended []string
	for _, name := range []string{"store", "broker", "server"} {
		s.Start(t.Context(), name, time.Minute, func(ctx context.Context) error {
			<-ctx.Done()
			mu.Lock()
			defer mu.Unlock()
			ended = append(ended, name)
			return ctx.Err()
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Wait(ctx); err != nil {
		t.Errorf("got %v", err)
	}
	if err := s.Stop(); err != nil {
		t.Errorf("got %v", err)
	}
	if !slices.Equal(ended, []string{"server", "broker", "store"}) {
		t.Errorf("ended %v", ended)
	}
}

func TestAComponentThatEndsIsAFailure(t *testing.T) {
	boom := errors.New("boom")
	for name, tc := range map[string]struct {
		err  error
		word string
	}{
		"with an error": {boom, "broker: boom"},
		"without":       {nil, "broker: ended by itself"},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(slog.New(slog.DiscardHandler))
			s.Start(t.Context(), "broker", time.Minute, func(context.Context) error { return tc.err })
			if err := s.Wait(t.Context()); err == nil || err.Error() != tc.word {
				t.Errorf("got %v", err)
			}
			if err := s.Stop(); err != nil {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestALateComponentIsNamed(t *testing.T) {
	s := New(slog.New(slog.DiscardHandler))
	release, ended := make(chan struct{}), make(chan struct{})
	s.Start(t.Context(), "deaf", time.Millisecond, func(context.Context) error {
		defer close(ended)
		<-release
		return nil
	})
	if err := s.Stop(); err == nil || !strings.Contains(err.Error(), "deaf did not end within 1ms") {
		t.Errorf("got %v", err)
	}
	close(release)
	<-ended
}

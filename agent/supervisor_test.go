package agent

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

func TestSupervisorStopsInReverse(t *testing.T) {
	s := newSupervisor(slog.New(slog.DiscardHandler))
	var mu sync.Mutex
	var ended []string
	for _, name := range []string{"engine", "journal", "session"} {
		s.start(t.Context(), name, time.Minute, func(ctx context.Context) error {
			<-ctx.Done()
			mu.Lock()
			defer mu.Unlock()
			ended = append(ended, name)
			return ctx.Err()
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.wait(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(ended, []string{"session", "journal", "engine"}) {
		t.Errorf("ended in the order %v", ended)
	}
}

func TestSupervisorNamesWhoFailed(t *testing.T) {
	for name, run := range map[string]func(context.Context) error{
		"an error":    func(context.Context) error { return errors.New("disk is gone") },
		"a quiet end": func(context.Context) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSupervisor(slog.New(slog.DiscardHandler))
			s.start(t.Context(), "journal", time.Minute, run)
			if err := s.wait(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "journal: ") {
				t.Errorf("got %v", err)
			}
			if err := s.stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSupervisorLeavesTheLateBehind(t *testing.T) {
	s := newSupervisor(slog.New(slog.DiscardHandler))
	release := make(chan struct{})
	defer close(release)
	s.start(t.Context(), "bus", time.Millisecond, func(context.Context) error { <-release; return nil })
	if err := s.stop(); err == nil || !strings.Contains(err.Error(), "bus did not end within 1ms") {
		t.Errorf("got %v", err)
	}
}

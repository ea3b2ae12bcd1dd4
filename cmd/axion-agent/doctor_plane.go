package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/axion/runner-agent/agent/config"
	"github.com/axion/runner-agent/agent/identity"
	"github.com/axion/runner-agent/proto/jointoken"
)

// planeTimeout bounds the connection to the plane.
const planeTimeout = 5 * time.Second

func checkToken(_ context.Context, cfg config.Config) finding {
	_, err := readToken(cfg.Plane.TokenFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return finding{warn, err.Error(), "an agent that has no identity yet needs it: make one with `axionctl token create`"}
	case err != nil:
		return found(fail, err)
	}
	return finding{ok, cfg.Plane.TokenFile + " holds one", ""}
}

func readToken(path string) (jointoken.Token, error) {
	f, err := os.Open(path)
	if err != nil {
		return jointoken.Token{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, jointoken.MaxBytes+1))
	if err != nil {
		return jointoken.Token{}, err
	}
	return jointoken.Parse(string(text))
}

// checkPlane judges the plane's certificate as enrolment does.
func checkPlane(ctx context.Context, cfg config.Config) finding {
	ctx, cancel := context.WithTimeout(ctx, planeTimeout)
	defer cancel()
	address := cfg.Plane.Address
	if token, err := readToken(cfg.Plane.TokenFile); err == nil {
		if err := identity.CheckPlane(ctx, address, &token); err != nil {
			return found(fail, err)
		}
		return finding{ok, address + " answers and has the CA that the join token names", ""}
	}
	if err := identity.CheckPlane(ctx, address, nil); err != nil {
		return found(fail, err)
	}
	return finding{warn, address + " answers; without a join token its CA cannot be judged", ""}
}

package health

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

const (
	// checkTimeout is shorter than the time that a container's health check usually has.
	checkTimeout = 2 * time.Second
	// maxReason bounds what is read of an answer, in bytes.
	maxReason = 1 << 10
)

// Check asks the server of this node at path ("/livez" or "/readyz") and returns nil if it is well, else a sentence that says what is wrong.
// An address that means "all interfaces" is asked on loopback. It takes at most 2 s.
func Check(ctx context.Context, listen, path string) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	addr := dialAddress(listen)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, http.NoBody)
	if err != nil {
		return fmt.Errorf("ask the agent's health server at %s: %w", addr, err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // no proxy: it is this node
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("agent's health server does not answer: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	reason, err := io.ReadAll(io.LimitReader(resp.Body, maxReason))
	if err != nil {
		return fmt.Errorf("agent's health server at %s%s answered %s: %w", addr, path, resp.Status, err)
	}
	return fmt.Errorf("agent at %s%s answered %s: %s", addr, path, resp.Status, strings.TrimSpace(string(reason)))
}

// dialAddress returns the address at which to reach a server that listens there.
func dialAddress(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	switch host {
	case "", "0.0.0.0":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return net.JoinHostPort(host, port)
}

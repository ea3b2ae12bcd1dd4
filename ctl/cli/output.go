package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/axion/runner-agent/ctl/document"
	"github.com/axion/runner-agent/ctl/table"
)

// done prints the name of what something was done to, as docker does.
func (a *app) done(action, name string) error {
	if a.json() {
		return document.Write(a.env.Stdout, map[string]string{action: name})
	}
	_, err := fmt.Fprintln(a.env.Stdout, table.Clean(name))
	return err
}

// when prints a time as people think of it: "5 minutes ago", "in 3 hours", "-" for none.
func (a *app) when(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	if since := a.env.Now().Sub(t.AsTime()); since < 0 {
		return "in " + strings.ToLower(humanDuration(-since))
	} else {
		return humanDuration(since) + " ago"
	}
}

func humanDuration(d time.Duration) string {
	if d < time.Second {
		return "less than a second"
	}
	return units.HumanDuration(d)
}

// warn prints warnings on stderr, where they disturb no output.
func (a *app) warn(warnings []string) {
	for _, w := range warnings {
		_, _ = fmt.Fprintf(a.env.Stderr, "warning: %s\n", table.Clean(w))
	}
}

// shortID cuts an id of docker to the length that docker shows.
func shortID(id string) string { return id[:min(len(id), shortIDLength)] }

const shortIDLength = 12

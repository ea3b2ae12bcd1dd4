package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// outputs are the values of --output.
var outputs = []string{"table", "json"}

// output is the flag --output; empty means "table".
type output string

func (o *output) String() string { return string(*o) }

func (o *output) Type() string { return "string" }

func (o *output) Set(text string) error {
	if !slices.Contains(outputs, text) {
		return fmt.Errorf("must be one of %s", strings.Join(outputs, ", "))
	}
	*o = output(text)
	return nil
}

func (a *app) json() bool { return a.output == "json" }

// resolves are the values of --resolve-image.
var resolves = map[string]runnerv1.ResolveImage{
	"always":  runnerv1.ResolveImage_RESOLVE_IMAGE_ALWAYS,
	"changed": runnerv1.ResolveImage_RESOLVE_IMAGE_CHANGED,
	"never":   runnerv1.ResolveImage_RESOLVE_IMAGE_NEVER,
}

// resolveImage is the flag --resolve-image.
type resolveImage string

func (r *resolveImage) String() string { return string(*r) }

func (r *resolveImage) Type() string { return "string" }

func (r *resolveImage) Set(text string) error {
	if _, ok := resolves[text]; !ok {
		return fmt.Errorf("must be one of always, changed, never")
	}
	*r = resolveImage(text)
	return nil
}

// boundedDuration is a flag that takes a duration between two bounds.
type boundedDuration struct {
	value    time.Duration
	min, max time.Duration
	set      bool
}

func (d *boundedDuration) String() string {
	if d.value == 0 {
		return ""
	}
	return shortDuration(d.value)
}

func (d *boundedDuration) Type() string { return "duration" }

func (d *boundedDuration) Set(text string) error {
	value, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf(`it must be a duration such as "90s", "10m" or "24h"`)
	}
	if value < d.min || value > d.max {
		return fmt.Errorf("it must be between %s and %s", shortDuration(d.min), shortDuration(d.max))
	}
	d.value, d.set = value, true
	return nil
}

// shortDuration prints a duration without parts that are zero: "24h", not "24h0m0s".
func shortDuration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// target says whom a command is for; both may be empty while the plane knows exactly one cluster.
type target struct {
	cluster, agent string
}

func (t *target) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.cluster, "cluster", "", "cluster `ID` (not needed while there is only one)")
	cmd.Flags().StringVar(&t.agent, "agent", "", "agent `ID` instead of a cluster")
	cmd.MarkFlagsMutuallyExclusive("cluster", "agent")
}

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/agent/health"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// shortID is how many characters of an id docker prints.
const shortID = 12

// printJSON prints a message with the contract's field names, always in the same form (protojson itself varies its spaces).
func printJSON(w io.Writer, m proto.Message) error {
	raw, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return err
	}
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, raw, "", "  "); err != nil {
		return err
	}
	pretty.WriteByte('\n')
	_, err = pretty.WriteTo(w)
	return err
}

// table prints rows with aligned columns.
func table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		if _, err := fmt.Fprintln(t, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}

func printStatus(w io.Writer, s *runnerv1.AgentStatus, now time.Time) error {
	rows := [][]string{
		{"Agent:", or(s.GetAgentId(), "not enrolled yet")},
		{"Cluster:", or(s.GetClusterId(), "-")},
		{"Version:", s.GetVersion()},
		{"Node:", nodeText(s.GetNode())},
		{"Control plane:", choose(s.GetConnected(), "connected", "not connected")},
		{"Certificate:", certificateText(s, now)},
		{"Running for:", ago(now, s.GetStartedAt().AsTime())},
		{"Commands:", fmt.Sprintf("%d running", len(s.GetRunningCommands()))},
		{"Events:", fmt.Sprintf("%d waiting to be sent", s.GetOutboxEvents())},
		{"Warnings:", fmt.Sprint(len(s.GetWarnings()))},
	}
	if err := table(w, rows); err != nil {
		return err
	}
	for _, warning := range s.GetWarnings() {
		_, err := fmt.Fprintf(w, "\n%s  %s (%s, for %s)\n  %s\n", strings.ToUpper(health.SeverityName(warning.GetSeverity())), warning.GetTitle(),
			warning.GetCode(), ago(now, warning.GetSince().AsTime()), warning.GetText())
		if err != nil {
			return err
		}
	}
	return nil
}

func nodeText(n *runnerv1.NodeFacts) string {
	if n == nil {
		return "unknown: the engine does not answer"
	}
	role := strings.ToLower(strings.TrimPrefix(n.GetRole().String(), "NODE_ROLE_"))
	return fmt.Sprintf("%s (%s, %s, engine %s)", n.GetHostname(), n.GetNodeId(), role, n.GetEngineVersion())
}

func certificateText(s *runnerv1.AgentStatus, now time.Time) string {
	end := s.GetCertificateNotAfter()
	switch {
	case end == nil:
		return "-"
	case now.After(end.AsTime()):
		return "expired " + end.AsTime().Format(time.RFC3339)
	default:
		return "valid until " + end.AsTime().Format(time.RFC3339)
	}
}

func printStacks(w io.Writer, stacks []*runnerv1.StackSummary) error {
	rows := [][]string{{"NAME", "SERVICES"}}
	for _, s := range stacks {
		rows = append(rows, []string{s.GetName(), fmt.Sprint(s.GetServices())})
	}
	return table(w, rows)
}

func printStack(w io.Writer, r *runnerv1.StackStatusResult) error {
	services := [][]string{{"SERVICE", "MODE", "REPLICAS", "IMAGE", "PORTS"}}
	for _, s := range r.GetServices() {
		services = append(services, []string{s.GetName(), s.GetMode(), s.GetReplicas(), s.GetImage(), s.GetPorts()})
	}
	if err := table(w, services); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	tasks := [][]string{{"TASK", "NAME", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR"}}
	for _, t := range r.GetTasks() {
		id := t.GetId()
		tasks = append(tasks, []string{id[:min(len(id), shortID)], t.GetName(), t.GetNode(), t.GetDesiredState(), t.GetCurrentState(), t.GetError()})
	}
	return table(w, tasks)
}

// ago writes the time between then and now as a person would.
func ago(now, then time.Time) string {
	d := max(now.Sub(then), 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
}

func or(text, otherwise string) string { return choose(text != "", text, otherwise) }

func choose(condition bool, yes, no string) string {
	if condition {
		return yes
	}
	return no
}

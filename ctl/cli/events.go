package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/ctl/client"
	"github.com/axion/runner-agent/ctl/command"
	"github.com/axion/runner-agent/ctl/document"
	"github.com/axion/runner-agent/ctl/progress"
	"github.com/axion/runner-agent/ctl/table"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

func (a *app) eventsCommand() *cobra.Command {
	request := &planev1.WatchEventsRequest{}
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Print what the agents have told",
		Long: `Print the stored events, oldest first. With --follow and no command: those from now on. With --follow and a command: all of that
command's, until the one that says how it ended.

With -o json each event is one line. The exit code says whether the events could be read, not how a command ended.`,
		Example: `  axionctl events --follow
  axionctl events --command 7c1f0c9e-3e0b-4f7d-9d5b-0a54c4c5b1a2 --follow
  axionctl events --cluster prod -o json | jq -r 'select(.type == "axion.runner.v1.CommandOutcome") | .data.status'`,
		Args: named(),
		RunE: a.run(func(ctx context.Context, _ []string) error {
			return a.call(ctx, 0, func(ctx context.Context, plane *client.Client) error { return a.printEvents(ctx, plane, request) })
		}),
	}
	cmd.Flags().BoolVar(&request.Follow, "follow", false, "go on with new events")
	cmd.Flags().StringVar(&request.CommandId, "command", "", "only those of the command with this `ID`")
	cmd.Flags().StringVar(&request.ClusterId, "cluster", "", "only those of the cluster with this `ID`")
	return cmd
}

func (a *app) printEvents(ctx context.Context, plane *client.Client, request *planev1.WatchEventsRequest) error {
	var printErr error
	offline, seen := false, false
	err := command.Follow(ctx, plane, request, a.env.Patience, command.FollowHandler{
		Event: func(record *planev1.EventRecord, message proto.Message) bool {
			seen = true
			printErr = a.printEvent(record, message)
			_, ended := message.(*runnerv1.CommandOutcome)
			return printErr != nil || (ended && request.GetCommandId() != "" && request.GetFollow())
		},
		Lost: func(err error, _ time.Duration) {
			if !offline {
				a.warn([]string{err.Error() + "; trying to connect again"})
			}
			offline = true
		},
		Restored: func() {
			offline = false
			text := "connected again"
			if !seen && request.GetCommandId() == "" {
				text += "; events in between may be missing" // there was no position to go on from
			}
			a.warn([]string{text})
		},
	})
	if errors.Is(err, context.Canceled) {
		return errInterrupted
	}
	if err != nil {
		return err
	}
	return printErr
}

// printEvent prints an event on one line, and below it each task error that it carries.
func (a *app) printEvent(record *planev1.EventRecord, message proto.Message) error {
	if a.json() {
		return document.WriteLine(a.env.Stdout, document.OfEvent(record, message))
	}
	origin := record.GetAgentId()
	if origin == "" {
		origin = "plane"
	}
	text := fmt.Sprintf("%s  %s  %s  %s", record.GetTime().AsTime().UTC().Format(time.RFC3339), record.GetClusterId(), origin, record.GetCausationId())
	if record.GetSubject() != "" {
		text += "  " + record.GetSubject()
	}
	text += "  " + progress.Describe(record, message)
	for _, line := range append([]string{text}, progress.TaskErrors(message)...) {
		if _, err := fmt.Fprintln(a.env.Stdout, table.Clean(line)); err != nil {
			return err
		}
	}
	return nil
}

package cli

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/axion/runner-agent/ctl/client"
	"github.com/axion/runner-agent/ctl/document"
	"github.com/axion/runner-agent/ctl/table"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	"github.com/axion/runner-agent/proto/failure"
)

const (
	// maxLetters is the contract's bound on a page.
	maxLetters = 1000
	// maxShownBytes is the contract's bound on a value that is shown.
	maxShownBytes = 16 << 20
	// shortType is what every type begins with; a table leaves it out.
	shortType = "axion.runner.v1."
)

func (a *app) dlqCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dlq",
		Short: "List, show, replay and drop what agents could not read",
		Long: `List, show, replay and drop dead letters: messages on a command topic that an agent could not read. The agent has put them aside with
its reason and gone on.

Dead letters are not signed. One is "unverified" if its topic is not that of the agent that it names; the others fit, which is no proof.
They are kept for 7 days, and erased when they are dropped.`,
		Args: named(),
		RunE: a.group,
	}
	cmd.AddCommand(a.dlqListCommand(), a.dlqShowCommand(), a.dlqReplayCommand(), a.dlqDropCommand())
	return cmd
}

func (a *app) dlqListCommand() *cobra.Command {
	request := &planev1.ListDeadLettersRequest{}
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List dead letters, newest first",
		Long:    "List dead letters, newest first, without what they hold. An older page begins with --before and the smallest id of this one.",
		Example: `  axionctl dlq list --cluster prod
  axionctl dlq list --before 120 --limit 20
  axionctl dlq list -o json | jq -r '.[] | select(.verified) | .id'`,
		Args: named(),
		RunE: a.run(func(ctx context.Context, _ []string) error {
			if request.GetLimit() < 1 || request.GetLimit() > maxLetters {
				return usagef("--limit must be between 1 and %d", maxLetters)
			}
			return a.call(ctx, callTimeout, func(ctx context.Context, plane *client.Client) error {
				response, err := plane.ListDeadLetters(ctx, request)
				if err != nil {
					return err
				}
				return a.printLetters(response)
			})
		}),
	}
	cmd.Flags().StringVar(&request.ClusterId, "cluster", "", "only those of agents of the cluster with this `ID`")
	cmd.Flags().StringVar(&request.AgentId, "agent", "", "only those of the agent with this `ID`")
	cmd.Flags().Uint64Var(&request.Before, "before", 0, "only those with a smaller `ID`")
	cmd.Flags().Uint32Var(&request.Limit, "limit", 100, "how many at most")
	return cmd
}

func (a *app) printLetters(response *planev1.ListDeadLettersResponse) error {
	if a.json() {
		documents := make([]document.DeadLetter, 0, len(response.GetLetters()))
		for _, l := range response.GetLetters() {
			documents = append(documents, document.OfDeadLetter(l))
		}
		return document.Write(a.env.Stdout, documents)
	}
	rows := table.New("ID", "AGENT", "TOPIC", "TYPE", "REASON", "ATTEMPTS", "LAST", "SIZE", "STATE")
	for _, l := range response.GetLetters() {
		rows.Add(strconv.FormatUint(l.GetId(), 10), l.GetAgentId(), l.GetTopic(), typeOf(l), l.GetCode(), strconv.FormatUint(l.GetAttempts(), 10),
			a.when(l.GetLastAt()), size(l), letterState(l))
	}
	if err := rows.Write(a.env.Stdout); err != nil {
		return err
	}
	if next := response.GetNext(); next > 0 {
		_, err := fmt.Fprintf(a.env.Stderr, "older ones: axionctl dlq list --before %d\n", next)
		return err
	}
	return nil
}

func typeOf(l *planev1.DeadLetter) string {
	if l.GetType() == "" {
		return "-"
	}
	return strings.TrimPrefix(l.GetType(), shortType)
}

func size(l *planev1.DeadLetter) string { return units.BytesSize(float64(l.GetValueSize())) }

func letterState(l *planev1.DeadLetter) string {
	state := "new"
	if l.GetReplayedAt() != nil {
		state = "replayed"
	}
	if !l.GetVerified() {
		state += ", unverified"
	}
	return state
}

// letterID reads the argument that names a dead letter.
func letterID(text string) (uint64, error) {
	id, err := strconv.ParseUint(text, 10, 63)
	if err != nil || id == 0 {
		return 0, usagef("%q is not the id of a dead letter, a number", text)
	}
	return id, nil
}

func (a *app) dlqShowCommand() *cobra.Command {
	var most uint32
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show a dead letter with its headers and value",
		Long: `Show a dead letter with its key, headers and value: as text if it can be printed, in hexadecimal otherwise. The value of a command may
hold credentials and secret files.`,
		Example: `  axionctl dlq show 17
  axionctl dlq show 17 --bytes 100000 -o json | jq -r .value`,
		Args: named("ID"),
		RunE: a.run(func(ctx context.Context, args []string) error {
			id, err := letterID(args[0])
			if err != nil {
				return err
			}
			if most < 1 || most > maxShownBytes {
				return usagef("--bytes must be between 1 and %d", maxShownBytes)
			}
			return a.call(ctx, callTimeout, func(ctx context.Context, plane *client.Client) error {
				response, err := plane.GetDeadLetter(ctx, &planev1.GetDeadLetterRequest{Id: id, MaxValueBytes: most})
				if err != nil {
					return err
				}
				if a.json() {
					return document.Write(a.env.Stdout, document.OfDeadLetterContent(response))
				}
				return a.printLetter(response)
			})
		}),
	}
	cmd.Flags().Uint32Var(&most, "bytes", 4096, "how much of the value to show at most")
	return cmd
}

// printLetter prints what is known of a letter, one line each, then its headers and its value.
func (a *app) printLetter(r *planev1.GetDeadLetterResponse) error {
	l := r.GetLetter()
	var out strings.Builder
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&out, "%s %s\n", table.Pad(name+":", 10), table.Clean(value))
		}
	}
	line("ID", strconv.FormatUint(l.GetId(), 10))
	line("State", letterState(l))
	line("Agent", l.GetAgentId())
	line("Cluster", l.GetClusterId())
	line("Topic", placeOf(l))
	line("Type", l.GetType())
	line("Command", l.GetCommandId())
	line("Reason", fmt.Sprintf("%s (%s, %s)", l.GetReason(), l.GetClass(), l.GetCode()))
	line("Attempts", strconv.FormatUint(l.GetAttempts(), 10))
	line("First", a.when(l.GetFirstAt()))
	line("Last", a.when(l.GetLastAt()))
	if l.GetReplayedAt() != nil {
		line("Replayed", a.when(l.GetReplayedAt()))
	}
	line("Key", oneLine(r.GetKey()))
	out.WriteString("Headers:\n")
	for _, h := range r.GetHeaders() {
		fmt.Fprintf(&out, "  %s: %s\n", table.Clean(h.GetKey()), table.Clean(oneLine(h.GetValue())))
	}
	fmt.Fprintf(&out, "Value (%s", size(l))
	if shown := uint64(len(r.GetValue())); shown < l.GetValueSize() {
		fmt.Fprintf(&out, ", the first %d bytes", shown)
	}
	out.WriteString("):\n")
	out.WriteString(valueText(r))
	_, err := io.WriteString(a.env.Stdout, out.String())
	return err
}

func placeOf(l *planev1.DeadLetter) string {
	if l.GetPartition() < 0 || l.GetOffset() < 0 { // it does not say where it was
		return l.GetTopic()
	}
	return fmt.Sprintf("%s, partition %d, offset %d", l.GetTopic(), l.GetPartition(), l.GetOffset())
}

// oneLine is a short value as text, or in hexadecimal if it is none.
func oneLine(b []byte) string {
	if text, ok := document.Text(b, false); ok {
		return text
	}
	return "0x" + hex.EncodeToString(b)
}

// valueText is a value as text or as a dump, with a line end.
func valueText(r *planev1.GetDeadLetterResponse) string {
	text, ok := document.Text(r.GetValue(), uint64(len(r.GetValue())) < r.GetLetter().GetValueSize())
	if !ok {
		return hex.Dump(r.GetValue())
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text
}

func (a *app) dlqReplayCommand() *cobra.Command {
	var yes, unverified bool
	cmd := &cobra.Command{
		Use:   "replay ID",
		Short: "Write a dead letter to its topic again",
		Long: `Write a dead letter's key, value and headers, as they were, to the topic that it came from. That can be done once; if it cannot be read
again, there is a new dead letter.

It is meant for agents that were updated since and can read it now. A command keeps its id: an agent that has recorded that it was rejected
answers with that again; submit such a command anew.

What is replayed is carried out. It asks before, unless --yes is given; without a terminal --yes is needed.`,
		Example: `  axionctl dlq show 17
  axionctl dlq replay 17
  axionctl dlq replay 17 --yes`,
		Args: named("ID"),
		RunE: a.run(func(ctx context.Context, args []string) error {
			id, err := letterID(args[0])
			if err != nil {
				return err
			}
			if !yes && !a.env.Interactive {
				return usagef("--yes is needed, because nobody can be asked: standard input is no terminal")
			}
			return a.call(ctx, 0, func(ctx context.Context, plane *client.Client) error {
				if !yes {
					if err := a.confirmReplay(ctx, plane, id); err != nil {
						return err
					}
				}
				return a.replay(ctx, plane, id, unverified)
			})
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&unverified, "unverified", false, "replay it although its topic is not that of the agent that it names")
	return cmd
}

func (a *app) confirmReplay(ctx context.Context, plane *client.Client, id uint64) error {
	asked, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := plane.GetDeadLetter(asked, &planev1.GetDeadLetterRequest{Id: id, MaxValueBytes: 1})
	if err != nil {
		return err
	}
	l := response.GetLetter()
	question := fmt.Sprintf("Replay dead letter %d (%s %s, %s, %s; given up by %q: %s) to %s?", id, typeOf(l), l.GetCommandId(), size(l), letterState(l), l.GetAgentId(), l.GetCode(), l.GetTopic())
	return a.confirm(ctx, question)
}

func (a *app) replay(ctx context.Context, plane *client.Client, id uint64, unverified bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := plane.ReplayDeadLetter(ctx, &planev1.ReplayDeadLetterRequest{Id: id, AllowUnverified: unverified})
	if err != nil {
		return err
	}
	if a.json() {
		return document.Write(a.env.Stdout, document.Replay{ID: id, Topic: response.GetTopic(), Partition: response.GetPartition(), Offset: response.GetOffset()})
	}
	_, err = fmt.Fprintf(a.env.Stdout, "replayed %d to %s, offset %d\n", id, table.Clean(response.GetTopic()), response.GetOffset())
	return err
}

// confirm asks a question on stderr and returns nil if the answer is yes.
func (a *app) confirm(ctx context.Context, question string) error {
	if _, err := fmt.Fprintf(a.env.Stderr, "%s [y/N] ", table.Clean(question)); err != nil {
		return err
	}
	answers := make(chan string, 1)
	go func() { // ends with the process if nobody answers
		text, _ := bufio.NewReader(a.env.Stdin).ReadString('\n')
		answers <- strings.ToLower(strings.TrimSpace(text))
	}()
	select {
	case <-ctx.Done():
		return errInterrupted
	case answer := <-answers:
		if answer == "y" || answer == "yes" {
			return nil
		}
		return &exitError{code: exitFailed, err: failure.New(failure.Conflict, "not_confirmed", "", "nothing was done")}
	}
}

func (a *app) dlqDropCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "drop ID",
		Aliases: []string{"rm"},
		Short:   "Erase a dead letter",
		Long:    "Erase a dead letter from the control plane's store. It cannot be undone. The dead-letter topic itself keeps its copy until its retention is over.",
		Example: `  axionctl dlq drop 17
  axionctl dlq list -o json | jq -r '.[] | select(.replayed_at) | .id' | xargs -n 1 axionctl dlq drop`,
		Args: named("ID"),
		RunE: a.run(func(ctx context.Context, args []string) error {
			id, err := letterID(args[0])
			if err != nil {
				return err
			}
			return a.call(ctx, callTimeout, func(ctx context.Context, plane *client.Client) error {
				if _, err := plane.DropDeadLetter(ctx, &planev1.DropDeadLetterRequest{Id: id}); err != nil {
					return err
				}
				return a.done("dropped", args[0])
			})
		}),
	}
}

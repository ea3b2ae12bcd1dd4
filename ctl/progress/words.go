package progress

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/axion/runner-agent/ctl/document"
	"github.com/axion/runner-agent/ctl/table"
	planev1 "github.com/axion/runner-agent/proto/axion/plane/v1"
	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// Describe says in one line what an event tells, without time and origin. message is nil if this version does not know the event's type.
func Describe(event *planev1.EventRecord, message proto.Message) string {
	return table.Clean(describe(event, message))
}

func describe(event *planev1.EventRecord, message proto.Message) string {
	switch m := message.(type) {
	case *runnerv1.CommandReceived:
		return describeReceived(event, m)
	case *runnerv1.CommandProgress:
		switch {
		case m.GetObject() != nil:
			return describeChange(m.GetObject())
		case m.GetService() != nil:
			return describeService(m.GetService())
		case m.GetNotice() != nil:
			return describeNotice(m.GetNotice())
		}
	case *runnerv1.CommandOutcome:
		text := fmt.Sprintf("%s %s", commandName(m.GetType()), state(document.Status(m.GetStatus())))
		if m.GetFailure() != nil {
			text += ": " + m.GetFailure().GetMessage()
		}
		return text
	case *runnerv1.MessageRejected:
		return fmt.Sprintf("message %s/%d@%d rejected: %s", m.GetTopic(), m.GetPartition(), m.GetOffset(), m.GetFailure().GetMessage())
	case *runnerv1.GenerationsWentBack:
		return describeWentBack(m)
	}
	return "event of type " + event.GetType()
}

func describeWentBack(m *runnerv1.GenerationsWentBack) string {
	now := "the Swarm knows it no longer"
	if m.GetToGeneration() != 0 {
		now = fmt.Sprintf("the Swarm is back at generation %d (epoch %d)", m.GetToGeneration(), m.GetToEpoch())
	}
	text := fmt.Sprintf("ALARM: stack %s was at generation %d (epoch %d), now %s", m.GetStack(), m.GetFromGeneration(), m.GetFromEpoch(), now)
	if ids := m.GetOfferedCommandIds(); len(ids) > 0 {
		text += "; offered again as command " + strings.Join(ids, ", ")
	}
	if m.GetNotOffered() != nil {
		text += "; not offered again: " + m.GetNotOffered().GetMessage()
	}
	return text
}

func describeReceived(event *planev1.EventRecord, m *runnerv1.CommandReceived) string {
	if m.GetAttempt() > 1 {
		return fmt.Sprintf("%s taken again by agent %s (attempt %d)", commandName(m.GetType()), event.GetAgentId(), m.GetAttempt())
	}
	return fmt.Sprintf("%s taken by agent %s", commandName(m.GetType()), event.GetAgentId())
}

func describeChange(c *runnerv1.ObjectChange) string {
	return fmt.Sprintf("%s %s %s", document.Kind(c.GetKind()), c.GetName(), document.Action(c.GetAction()))
}

func describeService(s *runnerv1.ServiceProgress) string {
	text := fmt.Sprintf("service %s %s, %d/%d running", s.GetService(), state(document.State(s.GetState())), s.GetRunning(), s.GetDesired())
	if s.GetMessage() != "" {
		text += ": " + s.GetMessage()
	}
	return text
}

func describeNotice(n *runnerv1.Notice) string {
	if n.GetLevel() == runnerv1.NoticeLevel_NOTICE_LEVEL_WARNING {
		return "warning: " + n.GetText()
	}
	return n.GetText()
}

// describeTaskError names the task as docker does, the node and the state, and gives the engine's whole text.
func describeTaskError(service string, e *runnerv1.TaskError) string {
	text := "task " + taskName(service, e)
	if node := firstOf(e.GetNode(), e.GetNodeId()); node != "" {
		text += " on " + node
	}
	text += " " + e.GetState() + ": " + e.GetError()
	if code := fmt.Sprint(e.GetExitCode()); e.GetExitCode() != 0 && !strings.Contains(e.GetError(), code) {
		text += " (exit code " + code + ")"
	}
	return table.Clean(text)
}

func taskName(service string, e *runnerv1.TaskError) string {
	if e.GetSlot() > 0 {
		return fmt.Sprintf("%s.%d", service, e.GetSlot())
	}
	return service + "." + firstOf(e.GetNodeId(), e.GetTaskId())
}

// commandName shortens a command's type to its name.
func commandName(typ string) string { return typ[strings.LastIndexByte(typ, '.')+1:] }

// state turns a state's name into words.
func state(name string) string { return strings.ReplaceAll(name, "_", " ") }

// elapsed prints a duration as people read it: whole seconds, tenths below ten of them.
func elapsed(d time.Duration) string {
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

// plural returns "1 service" or "2 services".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// submittedLine says what was begun and under which id it can be found again.
func submittedLine(title string, s *planev1.SubmitCommandResponse) string {
	text := fmt.Sprintf("%s on cluster %s: command %s", title, s.GetClusterId(), s.GetCommandId())
	if s.GetGeneration() != 0 {
		text += fmt.Sprintf(", generation %d", s.GetGeneration())
	}
	return table.Clean(text)
}

// cleanService is describeService for the screen.
func cleanService(s *runnerv1.ServiceProgress) string { return table.Clean(describeService(s)) }

// standing says in a few words how far the command is.
func (r *record) standing() string {
	switch {
	case r.commandID == "":
		return "sending the command to the control plane"
	case len(r.services) > 0:
		return fmt.Sprintf("%d of %s done", r.done(), plural(len(r.services), "service"))
	case r.received:
		return "an agent works on it"
	default:
		return "no agent has taken the command yet"
	}
}

// TaskErrors returns one indented line for each task error in a message, with the engine's whole text.
func TaskErrors(message proto.Message) []string {
	var lines []string
	switch m := message.(type) {
	case *runnerv1.CommandProgress:
		lines = appendTaskErrors(lines, m.GetService())
	case *runnerv1.CommandOutcome:
		for _, s := range m.GetServices() {
			lines = appendTaskErrors(lines, s)
		}
	}
	return lines
}

func appendTaskErrors(lines []string, s *runnerv1.ServiceProgress) []string {
	for _, e := range s.GetErrors() {
		lines = append(lines, "  "+describeTaskError(s.GetService(), e))
	}
	return lines
}

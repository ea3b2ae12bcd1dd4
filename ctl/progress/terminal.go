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

const (
	// barWidth is the width of a service's bar in cells.
	barWidth = 12
	// reservedRows are left free below and above the block, so that the newest lines above it stay in sight.
	reservedRows = 4
	// fallbackWidth and fallbackHeight serve where the terminal does not tell its size.
	fallbackWidth, fallbackHeight = 80, 24
)

// Control sequences of ECMA-48, which every terminal since the VT100 knows.
const (
	cursorUp   = "\x1b[%dA"
	eraseBelow = "\x1b[J"
	colorReset = "\x1b[0m"
	colorRed   = "\x1b[31m"
	colorGreen = "\x1b[32m"
	colorAmber = "\x1b[33m"
)

// symbols are the characters that Terminal draws with.
type symbols struct {
	spinner               []string
	good, bad             string
	full, empty, ellipsis string
}

var (
	unicodeSymbols = symbols{spinner: strings.Split("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", ""), good: "✔", bad: "✘", full: "█", empty: "░", ellipsis: "…"}
	asciiSymbols   = symbols{spinner: strings.Split(`|/-\`, ""), good: "+", bad: "x", full: "#", empty: ".", ellipsis: ">"}
)

// Terminal keeps a block of lines at the bottom of the screen, one a service and one for the whole, and redraws it; what must not be
// overwritten (notices, objects, errors) goes above.
type Terminal struct {
	options Options
	symbols symbols
	record  *record
	started time.Time
	frame   int
	offline string // what the last line says while there is no connection
	widths  []int  // cells of the lines of the block on the screen
	err     error  // the first error of a write
}

// NewTerminal returns a display for a person at a terminal.
func NewTerminal(options Options) *Terminal {
	t := &Terminal{options: options, symbols: asciiSymbols, record: newRecord(), started: options.Now()}
	if options.Unicode {
		t.symbols = unicodeSymbols
	}
	return t
}

// Retrying says that the plane does not take the command.
func (t *Terminal) Retrying(err error, wait time.Duration) { t.disconnected(err, wait) }

// Submitted prints the command's id.
func (t *Terminal) Submitted(s *planev1.SubmitCommandResponse) {
	t.offline = ""
	t.record.commandID = s.GetCommandId()
	t.draw(submittedLine(t.options.Title, s))
}

// Event notes a service's state, or prints what else it tells above the block.
func (t *Terminal) Event(event *planev1.EventRecord, message proto.Message) {
	switch m := message.(type) {
	case *runnerv1.CommandReceived:
		t.record.receive(event)
		if m.GetAttempt() <= 1 {
			t.draw()
			return
		}
	case *runnerv1.CommandOutcome:
		return // End prints it
	case *runnerv1.CommandProgress:
		if s := m.GetService(); s != nil {
			t.service(event, s)
			return
		}
		t.record.notice(m.GetNotice())
		if m.GetNotice().GetLevel() == runnerv1.NoticeLevel_NOTICE_LEVEL_WARNING {
			t.draw(t.color(colorAmber, Describe(event, message)))
			return
		}
	}
	t.draw(Describe(event, message))
}

func (t *Terminal) service(event *planev1.EventRecord, s *runnerv1.ServiceProgress) {
	known, _ := t.record.update(event, s)
	if known == nil {
		return
	}
	var above []string
	for _, e := range known.news() {
		above = append(above, t.color(colorRed, describeTaskError(s.GetService(), e)))
	}
	t.draw(above...)
}

// Lost says that the connection broke.
func (t *Terminal) Lost(err error, wait time.Duration) { t.disconnected(err, wait) }

// Restored says that the watch goes on.
func (t *Terminal) Restored() {
	t.offline = ""
	t.draw("connected again")
}

// Tick moves the spinner.
func (t *Terminal) Tick() {
	t.frame++
	t.draw()
}

// End takes the block away and prints the summary. It returns the first error that any write had.
func (t *Terminal) End(outcome *runnerv1.CommandOutcome) error {
	t.write(t.erase())
	t.widths = nil
	if outcome != nil && t.err == nil {
		t.err = writeSummary(t.options, outcome, t.record)
	}
	return t.err
}

func (t *Terminal) disconnected(err error, wait time.Duration) {
	var above []string
	if t.offline == "" {
		above = append(above, t.color(colorAmber, table.Clean("warning: "+err.Error())))
	}
	t.offline = "no connection to the control plane, next attempt in " + elapsed(wait)
	if t.record.commandID != "" {
		t.offline += "; the command goes on"
	}
	t.draw(above...)
}

// draw prints lines that stay, and the block below them, in one write.
func (t *Terminal) draw(above ...string) {
	var out strings.Builder
	out.WriteString(t.erase())
	for _, line := range above {
		out.WriteString(line + "\n")
	}
	width, height := t.size()
	t.widths = t.widths[:0]
	for _, line := range t.block(width, height) {
		out.WriteString(line.text + "\n")
		t.widths = append(t.widths, line.width)
	}
	t.write(out.String())
}

// erase returns the sequence that takes the block off the screen, also after the window has become narrower and its lines were wrapped.
func (t *Terminal) erase() string {
	width, _ := t.size()
	rows := 0
	for _, w := range t.widths {
		rows += max(1, (w+width-1)/width)
	}
	if rows == 0 {
		return ""
	}
	return fmt.Sprintf(cursorUp, rows) + eraseBelow
}

func (t *Terminal) size() (width, height int) {
	if t.options.Size != nil {
		width, height = t.options.Size()
	}
	if width <= 0 || height <= 0 {
		return fallbackWidth, fallbackHeight
	}
	return width, height
}

func (t *Terminal) write(s string) {
	if s == "" {
		return
	}
	if _, err := t.options.Out.Write([]byte(s)); err != nil && t.err == nil {
		t.err = err
	}
}

// drawn is a line of the block; width is without control sequences.
type drawn struct {
	text  string
	width int
}

// block returns the lines for the services that fit, those that need attention first to stay, and the line for the whole.
func (t *Terminal) block(width, height int) []drawn {
	shown := t.fitting(max(1, height-reservedRows))
	nameWidth := 0
	for _, s := range shown {
		nameWidth = max(nameWidth, table.Width(table.Clean(s.GetService())))
	}
	nameWidth = min(nameWidth, max(8, width/2))
	lines := make([]drawn, 0, len(shown)+2)
	for _, s := range shown {
		lines = append(lines, t.serviceLine(s, nameWidth, width))
	}
	if hidden := len(t.record.services) - len(shown); hidden > 0 {
		lines = append(lines, t.line("", fmt.Sprintf("  %s %s", t.symbols.ellipsis, plural(hidden, "more service")), width))
	}
	whole := t.offline
	if whole == "" {
		whole = t.record.standing()
	}
	return append(lines, t.line("", t.spinner()+" "+whole+", "+t.sinceStart(), width))
}

// fitting returns at most n services in their order; when there are more, settled ones are left out first.
func (t *Terminal) fitting(n int) []*service {
	drop := len(t.record.services) - n
	if drop <= 0 {
		return t.record.services
	}
	var shown []*service
	for _, s := range t.record.services {
		if drop > 0 && good(s.GetState()) {
			drop--
			continue
		}
		shown = append(shown, s)
	}
	return shown[:min(n, len(shown))]
}

func (t *Terminal) serviceLine(s *service, nameWidth, width int) drawn {
	mark, color := t.spinner(), ""
	switch {
	case good(s.GetState()):
		mark, color = t.symbols.good, colorGreen
	case bad(s.GetState()):
		mark, color = t.symbols.bad, colorRed
	}
	name := table.Pad(table.Cut(table.Clean(s.GetService()), nameWidth, t.symbols.ellipsis), nameWidth)
	text := fmt.Sprintf("%s %s  %s %d/%d", mark, name, t.bar(s.GetRunning(), s.GetDesired()), s.GetRunning(), s.GetDesired())
	if s.GetState() != runnerv1.ServiceState_SERVICE_STATE_PENDING {
		text += "  " + state(document.State(s.GetState()))
	}
	if s.GetMessage() != "" {
		text += ": " + table.Clean(s.GetMessage())
	}
	return t.line(color, text, width)
}

// line cuts text to the terminal's width, leaving the last cell free because some terminals wrap when it is written.
func (t *Terminal) line(color, text string, width int) drawn {
	text = table.Cut(text, width-1, t.symbols.ellipsis)
	return drawn{text: t.color(color, text), width: table.Width(text)}
}

func (t *Terminal) bar(running, desired uint64) string {
	full := barWidth
	if running < desired {
		full = int(float64(barWidth) * float64(running) / float64(desired))
	}
	return strings.Repeat(t.symbols.full, full) + strings.Repeat(t.symbols.empty, barWidth-full)
}

func (t *Terminal) spinner() string { return t.symbols.spinner[t.frame%len(t.symbols.spinner)] }

func (t *Terminal) sinceStart() string {
	return t.options.Now().Sub(t.started).Truncate(time.Second).String()
}

func (t *Terminal) color(color, text string) string {
	if color == "" || !t.options.Color {
		return text
	}
	return color + text + colorReset
}

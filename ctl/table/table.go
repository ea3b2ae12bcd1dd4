// Package table prints rows in aligned columns, as docker's own listings do: a header in capitals, three blanks between columns, no lines drawn.
// What it prints came from other machines, so it takes the control characters out of every cell.
package table

import (
	"bufio"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
)

// gap is the space between two columns.
const gap = "   "

// Table is a header and rows. The zero value with a Header is ready to use.
type Table struct {
	// Header names the columns.
	Header []string
	rows   [][]string
}

// New returns a table with these columns.
func New(header ...string) *Table { return &Table{Header: header} }

// Add appends a row; missing cells are empty, cells beyond the header are left out.
func (t *Table) Add(cells ...string) {
	row := make([]string, len(t.Header))
	for i := range row {
		if i < len(cells) {
			row[i] = Clean(cells[i])
		}
	}
	t.rows = append(t.rows, row)
}

// Write prints the header and the rows to w.
func (t *Table) Write(w io.Writer) error {
	widths := make([]int, len(t.Header))
	for _, row := range append([][]string{t.Header}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], Width(cell))
		}
	}
	buf := bufio.NewWriter(w)
	writeRow(buf, t.Header, widths)
	for _, row := range t.rows {
		writeRow(buf, row, widths)
	}
	return buf.Flush()
}

func writeRow(w *bufio.Writer, cells []string, widths []int) {
	var line strings.Builder
	for i, cell := range cells {
		line.WriteString(Pad(cell, widths[i]))
		line.WriteString(gap)
	}
	// Errors of a bufio.Writer stay with it; Flush returns them.
	_, _ = w.WriteString(strings.TrimRight(line.String(), " "))
	_ = w.WriteByte('\n')
}

// Width is the number of terminal cells that s takes.
func Width(s string) int { return runewidth.StringWidth(s) }

// Pad fills s with blanks up to width cells; a wider one is left as it is.
func Pad(s string, width int) string {
	if n := width - Width(s); n > 0 {
		return s + strings.Repeat(" ", n)
	}
	return s
}

// Cut shortens s to at most width cells; what is cut off is replaced by the tail, which counts.
func Cut(s string, width int, tail string) string {
	if width <= 0 {
		return ""
	}
	return runewidth.Truncate(s, width, tail)
}

// Clean makes foreign text safe to print on one line of a terminal: line breaks and tabs become blanks; other control characters, marks
// that change the direction of writing, and bytes that are no text become the replacement character.
func Clean(s string) string {
	if isClean(s) {
		return s
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\r', r == '\t':
			return ' '
		case harmful(r):
			return utf8.RuneError
		default:
			return r
		}
	}, strings.TrimRight(s, "\r\n"))
}

func isClean(s string) bool {
	for _, r := range s {
		if r == utf8.RuneError || harmful(r) {
			return false
		}
	}
	return true
}

// harmful tells control characters (Cc) and the formatting characters (Cf) that could make a line read as another.
func harmful(r rune) bool {
	return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)
}

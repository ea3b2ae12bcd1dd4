package fault

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// columnWidth is where the cells of a table of text are wrapped, in characters.
const columnWidth = 52

// ReadReport reads what Report wrote, and sorts it by test.
func ReadReport(r io.Reader) ([]Line, error) {
	var lines []Line
	for decoder := json.NewDecoder(r); ; {
		var line Line
		err := decoder.Decode(&line)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("line %d of the report: %w", len(lines)+1, err)
		}
		lines = append(lines, line)
	}
	slices.SortStableFunc(lines, func(a, b Line) int { return strings.Compare(a.Test, b.Test) })
	return lines, nil
}

// verdict says in a word whether what had to hold did.
func (l Line) verdict() string {
	if l.OK {
		return "held"
	}
	return "BROKEN"
}

// WriteTable writes the lines in aligned columns of text.
func WriteTable(w io.Writer, lines []Line) error {
	columns := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(columns, "FAULT\tMUST HOLD\tSEEN\t")
	for _, l := range lines {
		cells := [][]string{wrap(l.Fault), wrap(l.MustHold), wrap(l.Seen)}
		for i := range max(len(cells[0]), len(cells[1]), len(cells[2])) {
			for _, cell := range cells {
				if i < len(cell) {
					fmt.Fprint(columns, cell[i])
				}
				fmt.Fprint(columns, "\t")
			}
			if i == 0 {
				fmt.Fprint(columns, l.verdict())
			}
			fmt.Fprintln(columns)
		}
	}
	return columns.Flush() // the writer keeps the first error
}

// wrap breaks a text into lines between words.
func wrap(text string) []string {
	var lines []string
	for _, word := range strings.Fields(text) {
		if n := len(lines); n > 0 && len(lines[n-1])+1+len(word) <= columnWidth {
			lines[n-1] += " " + word
			continue
		}
		lines = append(lines, word)
	}
	return lines
}

// WriteMarkdown writes the lines as a table for a document.
func WriteMarkdown(w io.Writer, lines []Line) error {
	cell := strings.NewReplacer("|", "\\|", "<", "&lt;", ">", "&gt;", "\n", " ")
	_, err := fmt.Fprint(w, "| test | fault | must hold | seen | |\n|---|---|---|---|---|\n")
	for _, l := range lines {
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "| `%s` | %s | %s | %s | %s |\n", l.Test, cell.Replace(l.Fault), cell.Replace(l.MustHold), cell.Replace(l.Seen), l.verdict())
	}
	return err
}

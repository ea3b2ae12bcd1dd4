package fault

import (
	"strings"
	"testing"
)

const report = `{"test":"TestB","fault":"killed","must_hold":"<= 1 s","seen":"0.5 s","ok":true}
{"test":"TestA","fault":"a | b","must_hold":"words that are so many that they do not fit into one line of a column of the table","seen":"2 s","ok":false}
`

func TestTable(t *testing.T) {
	lines, err := ReadReport(strings.NewReader(report))
	if err != nil {
		t.Fatal(err)
	}
	var text, markdown strings.Builder
	if err := WriteTable(&text, lines); err != nil {
		t.Fatal(err)
	}
	if err := WriteMarkdown(&markdown, lines); err != nil {
		t.Fatal(err)
	}
	const wantText = `FAULT   MUST HOLD                                             SEEN
a | b   words that are so many that they do not fit into one  2 s    BROKEN
        line of a column of the table
killed  <= 1 s                                                0.5 s  held
`
	if trimmed(text.String()) != trimmed(wantText) {
		t.Errorf("text:\n%s", text.String())
	}
	if want := "| `TestA` | a \\| b |"; !strings.Contains(markdown.String(), want) || !strings.Contains(markdown.String(), "| &lt;= 1 s | 0.5 s | held |") {
		t.Errorf("markdown:\n%s", markdown.String())
	}
	if _, err := ReadReport(strings.NewReader("{}\nnonsense")); err == nil {
		t.Error("nonsense is read")
	}
}

// trimmed is without white space at the ends of lines.
func trimmed(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return b.String()
}

// Command table prints a report of the fault tests (fault.Report) as a table, or writes it into a document in the place of the one that is there:
//
//	table [-document FILE.md] REPORT
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"

	"github.com/axion/runner-agent/test/fault"
)

// The table in a document stands between these lines.
const begin, end = "<!-- report: begin -->\n", "<!-- report: end -->\n"

func main() {
	document := flag.String("document", "", "Markdown `file` whose table is replaced")
	flag.Parse()
	if err := run(flag.Arg(0), *document); err != nil {
		fmt.Fprintln(os.Stderr, "table:", err)
		os.Exit(1)
	}
}

func run(report, document string) error {
	file, err := os.Open(report)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	lines, err := fault.ReadReport(file)
	if err != nil {
		return err
	}
	if document == "" {
		return fault.WriteTable(os.Stdout, lines)
	}
	text, err := os.ReadFile(document)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(text, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the table", document)
	}
	var out bytes.Buffer
	out.Write(before)
	out.WriteString(begin)
	if err := fault.WriteMarkdown(&out, lines); err != nil {
		return err
	}
	out.WriteString(end)
	out.Write(after)
	return os.WriteFile(document, out.Bytes(), 0o644)
}

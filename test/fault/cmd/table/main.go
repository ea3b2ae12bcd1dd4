// Command table prints a report of the fault tests (fault.Report) as a table:
//
//	table [-markdown] FILE
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/axion/runner-agent/test/fault"
)

func main() {
	markdown := flag.Bool("markdown", false, "print a table in Markdown, not columns of text")
	flag.Parse()
	if err := run(flag.Arg(0), *markdown); err != nil {
		fmt.Fprintln(os.Stderr, "table:", err)
		os.Exit(1)
	}
}

func run(path string, markdown bool) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	lines, err := fault.ReadReport(file)
	if err != nil {
		return err
	}
	if markdown {
		return fault.WriteMarkdown(os.Stdout, lines)
	}
	return fault.WriteTable(os.Stdout, lines)
}

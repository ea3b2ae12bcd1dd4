package engine

import (
	"bytes"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
)

// maxLine is the longest piece of a line that is handed on at once, in bytes, its end included.
const maxLine = 64 << 10

// lineWriter cuts what is written to it into lines, each with its end, and a line longer than maxLine into pieces.
type lineWriter struct {
	source runnerv1.LogSource
	out    func(*runnerv1.LogLine) error
	rest   []byte // the beginning of a line, shorter than maxLine
}

// Write gives every complete line to out and keeps the rest.
func (w *lineWriter) Write(p []byte) (int, error) {
	for written := 0; written < len(p); {
		n, complete := w.next(p[written:])
		w.rest = append(w.rest, p[written:written+n]...)
		written += n
		if !complete {
			break
		}
		if err := w.Flush(); err != nil {
			return written, err
		}
	}
	return len(p), nil
}

// next returns how many bytes of p belong to the line that was begun, and whether it, or a piece of it, is complete then.
func (w *lineWriter) next(p []byte) (n int, complete bool) {
	n = len(p)
	if end := bytes.IndexByte(p, '\n'); end >= 0 {
		n, complete = end+1, true
	}
	if room := maxLine - len(w.rest); n >= room {
		return room, true
	}
	return n, complete
}

// Flush gives what is left to out: the last line of a log may have no end.
func (w *lineWriter) Flush() error {
	if len(w.rest) == 0 {
		return nil
	}
	line := w.rest
	w.rest = nil // out keeps it
	return w.out(&runnerv1.LogLine{Source: w.source, Text: line})
}

package progress

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// screen understands the few control sequences that Terminal uses, as a terminal of a given width would, so that tests compare what a person sees.
type screen struct {
	t        *testing.T
	width    int
	lines    [][]rune
	row, col int
}

var sequence = regexp.MustCompile(`^\x1b\[(\d*)([A-Za-z])`)

func (s *screen) Write(p []byte) (int, error) {
	for rest := string(p); rest != ""; {
		if m := sequence.FindStringSubmatch(rest); m != nil {
			s.control(m[1], m[2])
			rest = rest[len(m[0]):]
			continue
		}
		r, size := utf8.DecodeRuneInString(rest)
		s.put(r)
		rest = rest[size:]
	}
	return len(p), nil
}

func (s *screen) control(number, action string) {
	switch action {
	case "A":
		n, err := strconv.Atoi(number)
		if err != nil || n > s.row {
			s.t.Fatalf("cursor up by %q from row %d", number, s.row)
		}
		s.row -= n
	case "J":
		s.lines = s.lines[:min(len(s.lines), s.row)]
	case "m": // colours are not seen here
	default:
		s.t.Fatalf("unknown control sequence %q", action)
	}
}

func (s *screen) put(r rune) {
	if r == '\n' {
		s.row, s.col = s.row+1, 0
		return
	}
	if r < ' ' {
		s.t.Fatalf("control character %q", r)
	}
	if s.col == s.width {
		s.row, s.col = s.row+1, 0
	}
	for len(s.lines) <= s.row {
		s.lines = append(s.lines, nil)
	}
	line := s.lines[s.row]
	for len(line) <= s.col {
		line = append(line, ' ')
	}
	line[s.col] = r
	s.lines[s.row] = line
	s.col++
}

// resize wraps the lines anew, as terminals do.
func (s *screen) resize(width int) {
	var lines [][]rune
	for _, line := range s.lines {
		for len(line) > width {
			lines = append(lines, line[:width])
			line = line[width:]
		}
		lines = append(lines, line)
	}
	s.row += len(lines) - len(s.lines)
	s.lines, s.width = lines, width
}

func (s *screen) String() string {
	var out strings.Builder
	for _, line := range s.lines {
		fmt.Fprintln(&out, strings.TrimRight(string(line), " "))
	}
	return out.String()
}

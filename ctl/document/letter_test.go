package document

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestText(t *testing.T) {
	for name, tc := range map[string]struct {
		in        string
		truncated bool
		want      string
		ok        bool
	}{
		"empty":             {"", false, "", true},
		"text":              {"{\n\t\"größe\": 1\n}", false, "{\n\t\"größe\": 1\n}", true},
		"no text":           {"\xff\x00", false, "", false},
		"escape":            {"\x1b[2J", false, "", false},
		"direction":         {"\u202egnp.exe", false, "", false},
		"carriage return":   {"good\rbad", false, "", false},
		"cut character":     {"größ"[:3], false, "", false},
		"cut and known":     {"größ"[:3], true, "gr", true},
		"cut emoji":         {"a😀"[:4], true, "a", true},
		"cut between":       {"größ"[:2], true, "gr", true},
		"cut, but no text":  {"\xff\xff\xff\xff", true, "", false},
		"only a cut letter": {"\xc3", true, "", true},
	} {
		if got, ok := Text([]byte(tc.in), tc.truncated); got != tc.want || ok != tc.ok {
			t.Errorf("%s: got %q, %v", name, got, ok)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add([]byte("text"), true)
	f.Add([]byte("\xf0\x9f\x98"), true)
	f.Fuzz(func(t *testing.T, b []byte, truncated bool) {
		text, ok := Text(b, truncated)
		if !utf8.ValidString(text) || !strings.HasPrefix(string(b), text) || strings.ContainsAny(text, "\x00\x1b\r\u202e") {
			t.Errorf("got %q", text)
		}
		if ok && len(b)-len(text) >= utf8.UTFMax {
			t.Errorf("%d bytes were left out", len(b)-len(text))
		}
	})
}

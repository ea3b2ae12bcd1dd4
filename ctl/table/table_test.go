package table

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestWriteAligns(t *testing.T) {
	tab := New("NAME", "MODE", "ERROR")
	tab.Add("web", "replicated", "")
	tab.Add("db-größe", "global", "no such image\n\x1b[31mred")
	tab.Add("日本")
	var out bytes.Buffer
	if err := tab.Write(&out); err != nil {
		t.Fatal(err)
	}
	want := "NAME       MODE         ERROR\n" +
		"web        replicated\n" +
		"db-größe   global       no such image �[31mred\n" +
		"日本\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestCut(t *testing.T) {
	for name, tc := range map[string]struct {
		in    string
		width int
		want  string
	}{
		"fits":      {"abc", 3, "abc"},
		"cut":       {"abcdef", 4, "abc…"},
		"wide":      {"日本語", 4, "日…"},
		"no room":   {"abc", 0, ""},
		"less room": {"abc", -1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Cut(tc.in, tc.width, "…"); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"", "plain", "two\nlines", "\x1b[2J", "\u202egnp.exe", "\xff\xfe", "trailing\r\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Clean(s)
		if !utf8.ValidString(got) {
			t.Errorf("%q is not valid UTF-8", got)
		}
		if i := strings.IndexFunc(got, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) }); i >= 0 {
			t.Errorf("%q has a control character at %d", got, i)
		}
	})
}

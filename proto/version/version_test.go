package version

import (
	"runtime/debug"
	"strings"
	"testing"
)

func TestRevisionOf(t *testing.T) {
	for name, tc := range map[string]struct {
		settings []debug.BuildSetting
		want     string
	}{
		"nothing recorded": {nil, "unknown"},
		"clean":            {[]debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: "false"}}, "abc"},
		"dirty":            {[]debug.BuildSetting{{Key: "vcs.modified", Value: "true"}, {Key: "vcs.revision", Value: "abc"}}, "abc-dirty"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := revisionOf(tc.settings); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestLine(t *testing.T) {
	got := Line("axion-plane")
	if !strings.HasPrefix(got, "axion-plane dev (revision ") || !strings.Contains(got, "go1.") {
		t.Errorf("got %q", got)
	}
}

// Package version says which build of the project this is. The build sets both variables:
//
//	go build -ldflags "-X github.com/axion/runner-agent/proto/version.Version=1.2.3 -X github.com/axion/runner-agent/proto/version.Revision=abc123"
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

var (
	// Version is the release, for example "1.2.3"; "dev" for a build that names none.
	Version = "dev"
	// Revision is the source revision; empty if the build does not say. Revisioned adds what the Go toolchain knows.
	Revision = ""
)

// Revisioned returns the source revision: the build's, else the one that the Go toolchain recorded (with "-dirty" for a changed tree), else "unknown".
func Revisioned() string {
	if Revision != "" {
		return Revision
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return revisionOf(info.Settings)
}

func revisionOf(settings []debug.BuildSetting) string {
	revision, dirty := "unknown", ""
	for _, s := range settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "-dirty"
			}
		}
	}
	if revision == "unknown" {
		return revision
	}
	return revision + dirty
}

// Line returns what `PROGRAM version` prints.
func Line(program string) string {
	return fmt.Sprintf("%s %s (revision %s, %s, %s/%s)", program, Version, Revisioned(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

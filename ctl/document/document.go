// Package document holds the JSON that axionctl prints with -o json. The field names are an interface for scripts: they are lower case with
// underscores, none is ever renamed or reused, numbers are numbers, durations are seconds, and times are RFC 3339 in UTC.
package document

import (
	"encoding/json"
	"io"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// Write prints one document, indented, with a line end.
func Write(w io.Writer, document any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(document)
}

// WriteLine prints one document on one line.
func WriteLine(w io.Writer, document any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(document)
}

// at returns the time; nil, which leaves the field out, if there is none.
func at(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	utc := t.AsTime()
	return &utc
}

// word turns an enum value of the contract into the word that people know it by: its name without the enum's own, in lower case.
func word(value interface{ String() string }, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(value.String(), prefix))
}

// Version says which build of the program this is.
type Version struct {
	Version      string `json:"version"`
	Revision     string `json:"revision"`
	Go           string `json:"go"`
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
}

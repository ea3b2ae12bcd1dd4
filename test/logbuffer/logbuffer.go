// Package logbuffer keeps what the parts of a test log, so that the test can look for something in it, or show its end.
package logbuffer

import (
	"strings"
	"sync"
)

// tailBytes bounds what Tail returns.
const tailBytes = 12 << 10

// Buffer collects a log that several goroutines write. The zero value is empty.
type Buffer struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write adds to the log; it does not fail.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// String is the whole log.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// Tail is the end of the log, at most 12 KiB.
func (b *Buffer) Tail() string {
	text := b.String()
	return text[max(0, len(text)-tailBytes):]
}

//go:build crashpoints

package crashpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
)

// armed is what Arm read; nil means nothing.
var armed atomic.Pointer[target]

type target struct {
	name string // "*" is any
	left atomic.Int64
}

// Arm reads the environment variable. Call it before the environment is cleared, once.
func Arm() {
	name, count, counted := strings.Cut(os.Getenv(Variable), ":")
	if name == "" {
		return
	}
	n := 1
	if counted {
		var err error
		if n, err = strconv.Atoi(count); err != nil || n < 1 {
			fmt.Fprintf(os.Stderr, "%s: %q is no count\n", Variable, count)
			os.Exit(2)
		}
	}
	t := &target{name: name}
	t.left.Store(int64(n))
	armed.Store(t)
}

// At kills the process if this is the step that it was armed for. It tells the step on standard error first, in one write, so that a test knows where it died.
func At(name string) {
	t := armed.Load()
	if t == nil || t.name != "*" && t.name != name || t.left.Add(-1) != 0 {
		return
	}
	fmt.Fprintf(os.Stderr, "crashpoint %s\n", name)
	kill()
}

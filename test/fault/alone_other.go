//go:build !unix

package fault

import "testing"

// Alone does nothing here: the fault tests need a Docker engine beside them and run on Linux.
func Alone(testing.TB) {}

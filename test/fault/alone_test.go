package fault

import (
	"runtime"
	"sync/atomic"
	"testing"
)

// Tests that want the machine for themselves have it one after the other.
func TestAlone(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there is no lock on this platform")
	}
	var inside atomic.Int32
	for range 4 {
		t.Run("one", func(t *testing.T) {
			t.Parallel()
			Alone(t)
			defer inside.Add(-1)
			if n := inside.Add(1); n != 1 {
				t.Errorf("%d at once", n)
			}
			for range 1000 {
				runtime.Gosched()
			}
		})
	}
}

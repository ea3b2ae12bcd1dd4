package fence

import (
	"testing"
	"time"
)

// TestTimeLeft: what a successor has left of a command's time, by its own clock, which may be wrong by an hour.
func TestTimeLeft(t *testing.T) {
	const timeout = 10 * time.Minute
	begun := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		spent, after time.Duration // of the owners; since it was begun
		want         time.Duration
	}{
		"taken over in the middle":          {4 * time.Minute, 4 * time.Minute, 6 * time.Minute},
		"just begun":                        {0, time.Second, timeout},
		"at the end":                        {timeout, timeout, lastLook},
		"long after its end":                {timeout, 5 * time.Hour, lastLook},
		"nobody worked on it for a while":   {2 * time.Minute, 30 * time.Minute, 8 * time.Minute},
		"nobody worked on it for two hours": {2 * time.Minute, 2 * time.Hour, lastLook},
	} {
		t.Run(name, func(t *testing.T) {
			for _, skew := range []time.Duration{0, time.Hour, -time.Hour} {
				h := Head{Begun: begun, Spent: tc.spent}
				c := &Claim{term: term{usedBefore: h.used(begun.Add(tc.after + skew))}}
				got := c.Left(timeout)
				if skew == 0 && got != tc.want {
					t.Errorf("%s left, want %s", got, tc.want)
				}
				if rest := timeout - tc.spent; tc.after <= timeout && (got < min(rest, lastLook) || got > max(rest, lastLook) || rest > lastLook && got < rest-tc.after) {
					t.Errorf("with a clock that is %s ahead %s are left", skew, got)
				}
				if tc.spent+got > 2*timeout {
					t.Errorf("with a clock that is %s ahead it may be worked on for %s", skew, tc.spent+got)
				}
			}
		})
	}
	if got := (&Claim{term: term{usedBefore: time.Hour}}).Left(time.Second); got != time.Second {
		t.Errorf("of one second %s are left", got)
	}
}

// TestTimeIsCarriedOn from owner to owner, whatever their clocks say.
func TestTimeIsCarriedOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const timeout = 10 * time.Minute
	clock := time.Now()
	cmd := r.command("c1", 1, services{"a": "1"})
	for i, skew := range []time.Duration{0, time.Hour, -time.Hour, time.Hour} {
		m := r.manager("m", 1, r.api)
		m.fence.deps.Now = func() time.Time { return clock.Add(skew) }
		c := m.claim(cmd)
		if want := timeout - time.Duration(i)*time.Minute; c.Left(timeout) != want {
			t.Errorf("owner %d has %s, want %s", i, c.Left(timeout), want)
		}
		clock = clock.Add(time.Minute)
		if err := c.change(t.Context(), func(*Head) {}); err != nil { // as Keep does
			t.Fatal(err)
		}
		c.Release() // and dies
	}
	h := r.head()
	if h.Spent != 4*time.Minute {
		t.Errorf("head is %+v", h)
	}
	// Another generation begins with all of its time.
	m := r.manager("m", 1, r.api)
	c := m.claim(r.command("c2", 2, services{"a": "2"}))
	defer c.Release()
	if c.Left(timeout) != timeout || r.head().Spent != 0 {
		t.Errorf("the next generation has %s; head is %+v", c.Left(timeout), r.head())
	}
}

package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
	"github.com/axion/runner-agent/proto/failure"
)

var start = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func event(id string, data ...byte) envelope.Envelope {
	return envelope.Envelope{
		ID: id, Type: "axion.runner.v1.StackProgress", Source: "/agents/a-1", CausationID: "c", Time: start, ContentType: envelope.Protobuf,
		Data: append([]byte{}, data...),
	}
}

func open(t *testing.T, path string, opts Options) *Bolt {
	t.Helper()
	b, err := Open(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// crash returns a journal opened from what a kill would leave on disk.
func crash(t *testing.T, b *Bolt, opts Options) *Bolt {
	t.Helper()
	data, err := os.ReadFile(b.path)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "journal.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return open(t, path, opts)
}

func ids(t *testing.T, b Outbox) []string {
	t.Helper()
	entries, err := b.Peek(1<<20, 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, e := range entries {
		out = append(out, e.Envelope.ID)
	}
	return out
}

func ackAll(t *testing.T, b Outbox) {
	t.Helper()
	entries, err := b.Peek(1<<20, 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := b.Acked(e.Seq); err != nil {
			t.Fatal(err)
		}
	}
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestDecideOnce(t *testing.T) {
	now := start
	b := open(t, filepath.Join(t.TempDir(), "journal.db"), Options{Now: func() time.Time { return now }})
	rec := must[Record](t)(b.Receive("c1", "axion.runner.v1.StackDeploy"))
	if rec.Attempts != 1 || rec.Decided || !rec.FirstSeen.Equal(start) || rec.Type != "axion.runner.v1.StackDeploy" {
		t.Errorf("first delivery: %+v", rec)
	}
	first := must[envelope.Envelope](t)(b.Decide("c1", "shop", 7, event("o1", 1)))
	if first.ID != "o1" {
		t.Errorf("got %s", first.ID)
	}
	other := must[envelope.Envelope](t)(b.Decide("c1", "shop", 8, event("o2", 2)))
	if other.ID != "o1" || !bytes.Equal(other.Data, []byte{1}) {
		t.Errorf("the second decision won: %+v", other)
	}
	if got := ids(t, b); !slices.Equal(got, []string{"o1"}) {
		t.Errorf("outbox %v: a waiting outcome must not be there twice", got)
	}

	now = now.Add(time.Minute)
	again := crash(t, b, Options{Now: func() time.Time { return now }})
	rec = must[Record](t)(again.Receive("c1", "ignored"))
	if rec.Attempts != 2 || !rec.Decided || rec.Outcome.ID != "o1" || rec.Key != "shop" || rec.Generation != 7 || !rec.LastSeen.Equal(now) || !rec.FirstSeen.Equal(start) {
		t.Errorf("after a crash: %+v", rec)
	}
	if rec.Outcome.CausationID != "c" || !rec.Outcome.Time.Equal(start) || rec.Outcome.Source != "/agents/a-1" {
		t.Errorf("the outcome lost attributes: %+v", rec.Outcome)
	}

	ackAll(t, again)
	if again.Len() != 0 || again.Bytes() != 0 {
		t.Errorf("%d entries, %d bytes left", again.Len(), again.Bytes())
	}
	must[envelope.Envelope](t)(again.Decide("c1", "shop", 7, event("o3")))
	if got := ids(t, again); !slices.Equal(got, []string{"o1"}) {
		t.Errorf("outbox %v: an outcome that was sent goes out again on a new delivery", got)
	}
}

func TestDecideRace(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "journal.db"), Options{})
	var wg sync.WaitGroup
	winners := make([]string, 8)
	for i := range winners {
		wg.Go(func() {
			e, err := b.Decide("c1", "", 0, event(fmt.Sprint("o", i)))
			if err != nil {
				t.Error(err)
			}
			winners[i] = e.ID
		})
	}
	wg.Wait()
	if len(slices.Compact(winners)) != 1 {
		t.Errorf("winners %v", winners)
	}
	if got := ids(t, b); !slices.Equal(got, winners[:1]) {
		t.Errorf("outbox %v", got)
	}
}

func TestOutboxOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	b := open(t, path, Options{})
	var want []string
	appendOne := func(b *Bolt) {
		id := fmt.Sprint("e", len(want))
		if err := b.Append(event(id), "k"); err != nil {
			t.Fatal(err)
		}
		want = append(want, id)
	}
	for range 3 {
		for range maxTailEntries/2 + 7 {
			appendOne(b)
		}
		id := fmt.Sprint("o", len(want))
		must[envelope.Envelope](t)(b.Decide("c"+id, "k", 1, event(id)))
		want = append(want, id)
		appendOne(b)
	}
	if got := ids(t, b); !slices.Equal(got, want) {
		t.Fatalf("order\n got %v\nwant %v", got, want)
	}
	if b.Len() != len(want) {
		t.Errorf("len %d, want %d", b.Len(), len(want))
	}

	// A kill loses at most the tail, and the rest is in order.
	killed := crash(t, b, Options{})
	if got := ids(t, killed); !slices.Equal(got, want[:len(want)-1]) {
		t.Errorf("after a kill %d of %d", len(got), len(want))
	}
	// A clean end loses nothing.
	bytesBefore := b.Bytes()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = open(t, path, Options{})
	if got := ids(t, b); !slices.Equal(got, want) {
		t.Errorf("after Close %d of %d", len(got), len(want))
	}
	if b.Bytes() != bytesBefore || b.Len() != len(want) {
		t.Errorf("counts: %d bytes, want %d; %d entries, want %d", b.Bytes(), bytesBefore, b.Len(), len(want))
	}
	if !closedOnce(b.Pending()) {
		t.Error("Pending must tell of what is there at start")
	}

	entries := must[[]Entry](t)(b.Peek(2, 1<<20))
	if len(entries) != 2 || entries[0].Envelope.ID != "e0" || entries[0].Key != "k" {
		t.Errorf("peek %+v", entries)
	}
	if entries := must[[]Entry](t)(b.Peek(100, 1)); len(entries) != 1 {
		t.Errorf("the first entry is returned even if it is large, got %d", len(entries))
	}
	// Acknowledged in any order and more than once.
	if err := b.Acked(entries[1].Seq, entries[0].Seq, entries[0].Seq, 1<<40); err != nil {
		t.Fatal(err)
	}
	if got := ids(t, b); !slices.Equal(got, want[2:]) {
		t.Errorf("after Acked %v", got[:2])
	}
}

func closedOnce(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestPeekWhileWriting(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "journal.db"), Options{})
	const n = 600
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n {
			var err error
			if i%50 == 0 {
				_, err = b.Decide(fmt.Sprint("c", i), "k", 0, event(fmt.Sprintf("%04d", i)))
			} else {
				err = b.Append(event(fmt.Sprintf("%04d", i)), "k")
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	var got []string
	for deadline := time.Now().Add(20 * time.Second); len(got) < n && time.Now().Before(deadline); {
		entries := must[[]Entry](t)(b.Peek(37, 1<<20))
		for _, e := range entries {
			got = append(got, e.Envelope.ID)
			if err := b.Acked(e.Seq); err != nil {
				t.Fatal(err)
			}
		}
		if len(entries) == 0 {
			select {
			case <-b.Pending():
			case <-time.After(time.Second):
			}
		}
	}
	wg.Wait()
	if len(got) != n || !slices.IsSorted(got) {
		t.Errorf("%d events, sorted %v", len(got), slices.IsSorted(got))
	}
	if b.Len() != 0 || b.Bytes() != 0 {
		t.Errorf("%d entries, %d bytes left", b.Len(), b.Bytes())
	}
}

func TestBound(t *testing.T) {
	warn := &warnings{}
	b := open(t, filepath.Join(t.TempDir(), "journal.db"), Options{MaxOutboxBytes: 10_000, Warn: warn})
	var err error
	stored := 0
	for err == nil {
		if err = b.Append(event(fmt.Sprint(stored), make([]byte, 500)...), "k"); err == nil {
			stored++
		}
	}
	if !errors.Is(err, ErrFull) || b.Dropped() != 1 || stored < 10 || stored > 20 {
		t.Fatalf("%v after %d, dropped %d", err, stored, b.Dropped())
	}
	if b.Bytes() > 10_000 {
		t.Errorf("%d bytes are over the bound", b.Bytes())
	}
	if !warn.has("outbox_full") {
		t.Error("no warning of a full outbox")
	}
	for i := range 10 { // outcomes are never refused
		must[envelope.Envelope](t)(b.Decide(fmt.Sprint("c", i), "k", 0, event(fmt.Sprint("o", i), make([]byte, 5000)...)))
	}
	if b.Len() != stored+10 {
		t.Errorf("%d entries, want %d", b.Len(), stored+10)
	}
	ackAll(t, b)
	if warn.has("outbox_full") {
		t.Error("the warning stays")
	}
	if err := b.Append(event("later"), "k"); err != nil {
		t.Error(err)
	}
}

// TestOldProgressIsDropped: the broker is away for more than a day.
func TestOldProgressIsDropped(t *testing.T) {
	for name, flushed := range map[string]bool{"in memory": false, "on disk": true} {
		t.Run(name, func(t *testing.T) {
			b := open(t, filepath.Join(t.TempDir(), "journal.db"), Options{})
			at := func(id string, age time.Duration) envelope.Envelope {
				e := event(id, make([]byte, 100)...)
				e.Time = start.Add(-age)
				return e
			}
			appended := func(id string, age time.Duration) {
				if err := b.Append(at(id, age), "k"); err != nil {
					t.Fatal(err)
				}
			}
			appended("p0", 31*time.Hour)
			appended("p1", 30*time.Hour)
			must[envelope.Envelope](t)(b.Decide("c1", "k", 0, at("o1", 29*time.Hour)))
			appended("p2", 25*time.Hour)
			appended("p3", 23*time.Hour)
			if flushed {
				if err := b.flushTail(); err != nil {
					t.Fatal(err)
				}
			}
			size := b.Bytes()
			if err := b.ExpireProgress(start.Add(-24 * time.Hour)); err != nil {
				t.Fatal(err)
			}
			if got := ids(t, b); !slices.Equal(got, []string{"o1", "p3"}) || b.Len() != 2 || b.Dropped() != 3 {
				t.Errorf("left %v, %d entries, %d dropped", got, b.Len(), b.Dropped())
			}
			if b.Bytes() >= size || b.Bytes() <= 0 {
				t.Errorf("%d bytes of %d", b.Bytes(), size)
			}
			again := crash(t, b, Options{})
			if got := ids(t, again); len(got) == 0 || got[0] != "o1" || slices.Contains(got, "p1") {
				t.Errorf("on disk: %v", got)
			}
			if err := b.ExpireProgress(start.Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
			ackAll(t, b)
			if b.Len() != 0 || b.Bytes() != 0 || !closed(b.Settled("o1")) {
				t.Errorf("%d entries, %d bytes", b.Len(), b.Bytes())
			}
		})
	}
}

func TestSettled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	b := open(t, path, Options{})
	must[envelope.Envelope](t)(b.Decide("c1", "", 0, event("o1")))
	if err := b.Append(event("p1"), "k"); err != nil {
		t.Fatal(err)
	}
	outcome, progress := b.Settled("o1"), b.Settled("p1")
	if closed(outcome) || closed(progress) {
		t.Fatal("settled too early")
	}
	ackAll(t, b)
	if !closed(outcome) || !closed(progress) || !closed(b.Settled("o1")) || !closed(b.Settled("p1")) {
		t.Error("not settled after Acked")
	}
	if closed(b.Settled("unknown")) {
		t.Error("an unknown event is not settled")
	}
	again := crash(t, b, Options{})
	if !closed(again.Settled("o1")) {
		t.Error("a restart forgot that the outcome was acknowledged")
	}
}

func TestExpire(t *testing.T) {
	now := start
	b := open(t, filepath.Join(t.TempDir(), "journal.db"), Options{Now: func() time.Time { return now }})
	for _, id := range []string{"old", "waiting", "undecided", "new"} {
		if id == "new" {
			now = now.Add(time.Hour)
		}
		must[Record](t)(b.Receive(id, "t"))
		if id != "undecided" {
			must[envelope.Envelope](t)(b.Decide(id, "", 0, event("o-"+id)))
		}
		if id != "waiting" {
			entries := must[[]Entry](t)(b.Peek(10, 1<<20))
			if last := entries[len(entries)-1]; last.Envelope.ID == "o-"+id {
				if err := b.Acked(last.Seq); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := b.Expire(start.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	want := map[string]uint32{"old": 1, "waiting": 2, "undecided": 2, "new": 2}
	for id, attempts := range want {
		if rec := must[Record](t)(b.Receive(id, "t")); rec.Attempts != attempts {
			t.Errorf("%s: attempt %d, want %d", id, rec.Attempts, attempts)
		}
	}
	if closed(b.Settled("o-old")) || !closed(b.Settled("o-new")) {
		t.Error("the acknowledgement must be forgotten with the record, and only then")
	}
}

func TestDamagedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	b := open(t, path, Options{})
	for i := range 50 {
		must[envelope.Envelope](t)(b.Decide(fmt.Sprint("c", i), "k", 0, event(fmt.Sprint("o", i), make([]byte, 3000)...)))
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for name, damage := range map[string]func([]byte) []byte{
		"garbage":   func(b []byte) []byte { return []byte(strings.Repeat("nonsense", 5000)) },
		"short":     func(b []byte) []byte { return b[:100] },
		"one page":  func(b []byte) []byte { return b[:4096] },
		"truncated": func(b []byte) []byte { return b[:len(b)/3] },
		"zero middle": func(b []byte) []byte {
			clear(b[3*4096 : len(b)-4096])
			return b
		},
		"random middle": func(b []byte) []byte {
			for i := 2 * 4096; i < len(b); i += 7 {
				b[i] = byte(random.Uint32())
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal.db")
			bad := damage(bytes.Clone(good))
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			warn := &warnings{}
			b := open(t, path, Options{Warn: warn})
			if !warn.has("journal_damaged") {
				t.Error("no warning")
			}
			if rec := must[Record](t)(b.Receive("c1", "t")); rec.Attempts != 1 {
				t.Errorf("attempt %d from a damaged journal", rec.Attempts)
			}
			kept, err := os.ReadFile(path + ".damaged")
			if err != nil || !bytes.Equal(kept, bad) {
				t.Errorf("the damaged file was not kept as it was: %v", err)
			}
		})
	}
}

func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	open(t, path, Options{})
	_, err := Open(path, Options{})
	if f := failure.Of(err); f == nil || f.Class != failure.Conflict || f.Code != "state_in_use" || !strings.Contains(f.Message, "another agent uses this state folder") {
		t.Errorf("got %v", err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v %v", info.Mode(), err)
	}
}

// smallDisk is a file system of that size.
func smallDisk(t *testing.T, size string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("needs the right to mount a small file system: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

func TestDiskFull(t *testing.T) {
	dir := smallDisk(t, "1m")
	warn := &warnings{}
	b := open(t, filepath.Join(dir, "journal.db"), Options{Warn: warn, MinFreeBytes: 64 << 10})
	var err error
	decided := 0
	for ; err == nil && decided < 100; decided++ {
		_, err = b.Decide(fmt.Sprint("c", decided), "k", 0, event(fmt.Sprint("o", decided), make([]byte, 50_000)...))
	}
	decided--
	if !isDiskFull(err) {
		t.Fatalf("got %v", err)
	}
	if !warn.has("disk_full") {
		t.Error("no warning")
	}
	if got := ids(t, b); len(got) != decided {
		t.Errorf("%d outcomes wait, %d were decided", len(got), decided)
	}
	if _, err := b.Receive(fmt.Sprint("c", decided), "t"); !isDiskFull(err) {
		t.Errorf("a full journal receives: %v", err)
	}
	ackAll(t, b) // frees pages inside the file
	if err := b.Expire(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Decide("later", "k", 0, event("o-later", make([]byte, 10_000)...)); err != nil {
		t.Errorf("the journal does not recover: %v", err)
	}
	if warn.has("disk_full") {
		t.Error("the warning stays")
	}
	if rec, err := b.Receive(fmt.Sprint("c", decided), "t"); err != nil || rec.Decided {
		t.Errorf("a command whose outcome did not reach the disk: %v, %v", rec, err)
	}
}

func isDiskFull(err error) bool {
	f := failure.Of(err)
	return f != nil && f.Class == failure.Unavailable && f.Code == "disk_full"
}

// TestDiskNearlyFull: no command is received on a volume that somebody else has filled, though the journal's own file could still take it, and before any write
// has failed.
func TestDiskNearlyFull(t *testing.T) {
	dir := smallDisk(t, "16m")
	warn := &warnings{}
	b := open(t, filepath.Join(dir, "journal.db"), Options{Warn: warn})
	filler := filepath.Join(dir, "filler")
	for name, left := range map[string]int{"some is left": 3 << 20, "nothing is left": 0} {
		t.Run(name, func(t *testing.T) {
			if _, err := b.Receive("before "+name, "t"); err != nil || b.CheckSpace() != nil || warn.has("disk_full") {
				t.Fatalf("with room: %v", err)
			}
			var fs syscall.Statfs_t
			if err := syscall.Statfs(dir, &fs); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filler, make([]byte, int(fs.Bavail)*int(fs.Bsize)-left), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := b.CheckSpace(); !isDiskFull(err) || !warn.has("disk_full") {
				t.Errorf("not noticed: %v", err)
			}
			if _, err := b.Receive(name, "t"); !isDiskFull(err) {
				t.Errorf("received: %v", err)
			}
			// What was begun before may end as long as there is room for it at all, and that does not end the warning.
			if _, err := b.Decide("before "+name, "k", 0, event("o-"+name)); left > 0 && err != nil {
				t.Error(err)
			}
			if !warn.has("disk_full") {
				t.Error("a small write that found room ended the warning")
			}
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			if err := b.CheckSpace(); err != nil || warn.has("disk_full") {
				t.Errorf("space is not noticed: %v", err)
			}
			if rec, err := b.Receive(name, "t"); err != nil || rec.Attempts != 1 {
				t.Errorf("refused and noted, or still refused: %v, %v", rec, err)
			}
		})
	}
}

func TestRefusesBadInput(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "journal.db"), Options{})
	for name, tc := range map[string]struct {
		err  func() error
		code string
	}{
		"event without a type": {func() error { return b.Append(envelope.Envelope{ID: "1"}, "k") }, "bad_event"},
		"event too large":      {func() error { return b.Append(event("1", make([]byte, MaxEventBytes)...), "k") }, "event_too_large"},
		"outcome too large": {func() error {
			_, err := b.Decide("c", "k", 0, event("1", make([]byte, MaxEventBytes)...))
			return err
		}, "event_too_large"},
		"no key":    {func() error { return b.Append(event("1"), "") }, "bad_key"},
		"no id":     {func() error { _, err := b.Receive("", "t"); return err }, "bad_key"},
		"long id":   {func() error { _, err := b.Receive(strings.Repeat("x", MaxKeyBytes+1), "t"); return err }, "bad_key"},
		"long key":  {func() error { _, err := b.Decide("c", strings.Repeat("x", MaxKeyBytes+1), 0, event("1")); return err }, "bad_key"},
		"no id (2)": {func() error { _, err := b.Decide("", "k", 0, event("1")); return err }, "bad_key"},
	} {
		t.Run(name, func(t *testing.T) {
			if f := failure.Of(tc.err()); f == nil || f.Code != tc.code {
				t.Errorf("got %v", f)
			}
		})
	}
	if b.Len() != 0 {
		t.Errorf("%d entries", b.Len())
	}
}

func TestCompact(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	b := open(t, path, Options{})
	must[Record](t)(b.Receive("kept", "t"))
	for i := range 8 {
		must[envelope.Envelope](t)(b.Decide(fmt.Sprint("c", i), "k", 0, event(fmt.Sprint("o", i), make([]byte, 11<<20)...)))
	}
	ackAll(t, b)
	if err := b.Expire(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(path)
	if err != nil || before.Size() < compactAbove {
		t.Fatalf("%v %v", before.Size(), err)
	}
	b = open(t, path, Options{})
	after, err := os.Stat(path)
	if err != nil || after.Size() > 1<<20 {
		t.Errorf("%d bytes left of %d: %v", after.Size(), before.Size(), err)
	}
	if rec := must[Record](t)(b.Receive("kept", "t")); rec.Attempts != 2 {
		t.Error("the record is lost")
	}
}

func TestFailing(t *testing.T) {
	want := errors.New("no disk")
	var s Store = &Failing{Err: want}
	_, receive := s.Receive("c", "t")
	_, decide := s.Decide("c", "", 0, envelope.Envelope{})
	_, peek := s.Peek(1, 1)
	for _, err := range []error{receive, decide, peek, s.Append(event("1"), "k"), s.Acked(1), s.Expire(start), s.ExpireProgress(start), s.Close()} {
		if !errors.Is(err, want) {
			t.Errorf("got %v", err)
		}
	}
	if closed(s.Settled("x")) || closed(s.Pending()) || s.Len() != 0 || s.Bytes() != 0 || s.Dropped() != 0 {
		t.Error("a failing journal has nothing")
	}
}

// FuzzDecode: no bytes of a damaged outbox may do more than fail.
func FuzzDecode(f *testing.F) {
	f.Add(item{key: "k", command: "c", event: encodeEnvelope(event("1", 1, 2, 3))}.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		entry, err := decodeEntry(seqKey(1), b)
		if err != nil {
			return
		}
		it := item{key: entry.Key, event: encodeEnvelope(entry.Envelope)}
		again, err := decodeEntry(seqKey(1), it.encode())
		if err != nil || again.Envelope.ID != entry.Envelope.ID {
			t.Fatalf("round trip: %v", err)
		}
	})
}

type warnings struct {
	mu  sync.Mutex
	set map[string]string
}

func (w *warnings) Set(code string, _ runnerv1.HealthSeverity, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.set == nil {
		w.set = map[string]string{}
	}
	w.set[code] = text
}

func (w *warnings) Clear(code string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.set, code)
}

func (w *warnings) has(code string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.set[code] != ""
}

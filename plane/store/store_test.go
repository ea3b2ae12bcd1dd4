package store

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

func TestOpenTwiceKeepsData(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plane.db")
	db, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`CREATE TABLE t (x INTEGER)`); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`INSERT INTO t VALUES (1)`); err != nil {
		t.Fatal(err)
	}
	db.Close()
	db, err = Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	boom := errors.New("boom")
	if err := db.Tx(t.Context(), func(tx *sql.Tx) error {
		_, _ = tx.Exec(`INSERT INTO t VALUES (2)`)
		return boom
	}); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	var n int
	if err := db.QueryRow(`SELECT COUNT(*) FROM t`).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d rows, %v: a failed transaction must leave nothing", n, err)
	}
}

func TestMigrations(t *testing.T) {
	open := func(t *testing.T) *DB {
		db, err := Open(t.Context(), filepath.Join(t.TempDir(), "plane.db"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return db
	}
	t.Run("a gap is refused", func(t *testing.T) {
		db := open(t)
		_, _ = db.Exec(`DELETE FROM schema_migrations`)
		err := db.migrate(context.Background(), fstest.MapFS{"migrations/0002_x.sql": {Data: []byte("SELECT 1")}})
		if err == nil || !strings.Contains(err.Error(), "number 1 is expected") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a newer schema is refused", func(t *testing.T) {
		db := open(t)
		_, _ = db.Exec(`INSERT INTO schema_migrations VALUES (9999, 'future', 0)`)
		if err := db.migrate(context.Background(), migrations); err == nil || !strings.Contains(err.Error(), "9999") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a broken one leaves nothing", func(t *testing.T) {
		db := open(t)
		_, _ = db.Exec(`DELETE FROM schema_migrations`)
		err := db.migrate(context.Background(), fstest.MapFS{"migrations/0001_x.sql": {Data: []byte("CREATE TABLE half (x INTEGER); NONSENSE")}})
		if err == nil {
			t.Fatal("no error")
		}
		if _, err := db.Exec(`SELECT * FROM half`); err == nil {
			t.Error("half a migration was kept")
		}
	})
}

// TestAnOlderDatabaseKeepsItsOffsets: the table of offsets has another name since migration 3.
func TestAnOlderDatabaseKeepsItsOffsets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plane.db")
	old, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	before := fstest.MapFS{}
	for _, name := range []string{"migrations/0001_registry.sql", "migrations/0002_ledger.sql"} {
		text, err := migrations.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		before[name] = &fstest.MapFile{Data: text}
	}
	if err := (&DB{DB: old, turn: make(chan struct{}, 1)}).migrate(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Exec(`INSERT INTO event_offsets VALUES ('runner.events', 0, 'id', 42)`); err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var next int
	if err := db.QueryRow(`SELECT next_offset FROM topic_offsets WHERE topic = 'runner.events'`).Scan(&next); err != nil || next != 42 {
		t.Errorf("offset %d, %v", next, err)
	}
}

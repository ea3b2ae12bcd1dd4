// Package store opens the plane's database and brings its schema up to date. It knows no table: each package that keeps something writes its own SQL,
// in the dialect that SQLite and PostgreSQL share, and adds its migration to the folder migrations.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite", without cgo
)

//go:embed migrations/*.sql
var migrations embed.FS

// DB is the plane's database. It is safe for concurrent use; SQLite lets one writer in at a time, the others wait.
type DB struct {
	*sql.DB
	// turn is held by the transaction that runs. SQLite's own way of waiting is to try again and again, with sleeps in between and in no order: a thousand agents
	// that come back would wait for seconds where the disk needs a fraction of that.
	turn chan struct{}
}

// Open opens the SQLite database in that file, makes it if it does not exist, and applies the migrations that it lacks.
// A database that a newer version has migrated is refused.
func Open(ctx context.Context, path string) (*DB, error) {
	query := url.Values{
		// secure_delete: a command's payload, which may hold secrets, is erased when it is forgotten, not only unlinked.
		"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(ON)", "secure_delete(ON)"},
		"_txlock": {"immediate"}, // a transaction that begins to read and then writes cannot fail half-way
	}
	db, err := sql.Open("sqlite", "file:"+filepath.ToSlash(path)+"?"+query.Encode())
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	db.SetMaxOpenConns(8)
	d := &DB{DB: db, turn: make(chan struct{}, 1)}
	if err := d.migrate(ctx, migrations); err != nil {
		return nil, errors.Join(fmt.Errorf("database %s: %w", path, err), db.Close())
	}
	return d, nil
}

// Tx runs f in a transaction and commits it if f returns nil. Transactions run one after the other, in the order in which they were asked for: f must not ask
// for another one.
func (d *DB) Tx(ctx context.Context, f func(*sql.Tx) error) error {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return fmt.Errorf("begin transaction: %w", ctx.Err())
	}
	tx, err := d.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	if err := f(tx); err != nil {
		return errors.Join(err, ignoreDone(tx.Rollback()))
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit transaction: %w", err)
	}
	return nil
}

func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// migrate applies the files NNNN_name.sql in the order of their numbers, each in a transaction of its own.
func (d *DB) migrate(ctx context.Context, files fs.FS) error {
	if _, err := d.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS schema_migrations (version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at INTEGER NOT NULL)`); err != nil {
		return fmt.Errorf("make table schema_migrations: %w", err)
	}
	var have int
	if err := d.QueryRowContext(ctx, `SELECT COALESCE(MAX(version), 0) FROM schema_migrations`).Scan(&have); err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil {
		return err
	}
	sort.Strings(names)
	newest := 0
	for _, name := range names {
		number, _, _ := strings.Cut(filepath.Base(name), "_")
		version, err := strconv.Atoi(number)
		if err != nil || version != newest+1 {
			return fmt.Errorf("migration %s: number %d is expected", name, newest+1)
		}
		newest = version
		if version <= have {
			continue
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		err = d.Tx(ctx, func(tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, string(text)); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, `INSERT INTO schema_migrations (version, name, applied_at) VALUES ($1, $2, $3)`,
				version, filepath.Base(name), time.Now().UnixNano())
			return err
		})
		if err != nil {
			return fmt.Errorf("migration %s: %w", name, err)
		}
	}
	if have > newest {
		return fmt.Errorf("its schema has version %d, this program knows versions up to %d: use a newer axion-plane", have, newest)
	}
	return nil
}

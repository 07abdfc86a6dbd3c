// Package storage keeps a Trunkhall's data in SQLite. *DB implements the Store
// interfaces of package homeserver and package signaling without importing
// them; the records that pass between are types of package matrix.
//
// There is one database file, one connection that writes and a few that read.
// Every method that changes something is one transaction: when it returns nil,
// the change survives the death of the process.
package storage

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite": pure Go, no cgo

	"github.com/trunkhall/trunkhall/call"
)

//go:embed migrations/*.sql
var migrations embed.FS

// readers is how many connections may read at the same time.
const readers = 4

// A DB is an open database. Safe for concurrent use; Close ends it.
type DB struct {
	writer *sql.DB    // exactly one connection: SQLite has one writer anyway, and so nobody ever waits on SQLITE_BUSY
	writes statements // of the writer
	read   *reader
	log    *slog.Logger
}

// OpenSQLite opens the database file at path, creating it if there is none, and
// brings its schema up to date. Before it changes an existing schema it leaves
// a copy of the file beside it. It refuses a file written by a newer version.
func OpenSQLite(ctx context.Context, path string, log *slog.Logger) (*DB, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	// synchronous=NORMAL: in WAL mode a commit is in the operating system's
	// hands when it returns, so the death of the process loses nothing; only a
	// power cut may take the last commits, and never damages the file.
	common := "_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)" +
		"&_pragma=foreign_keys(ON)&_pragma=temp_store(MEMORY)&_pragma=journal_size_limit(67108864)"
	name := "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + common
	w, err := sql.Open("sqlite", name+"&_txlock=immediate")
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	w.SetMaxOpenConns(1)
	if err := w.PingContext(ctx); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	if err := migrate(ctx, w, path, log); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("database %s: %w", path, err)
	}
	r, err := sql.Open("sqlite", name+"&_pragma=query_only(ON)")
	if err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	r.SetMaxOpenConns(readers)
	r.SetMaxIdleConns(readers)
	return &DB{writer: w, writes: newStatements(w), read: &reader{DB: r, statements: newStatements(r)}, log: log}, nil
}

// Close closes all connections. Running calls end first.
func (db *DB) Close() error {
	err := db.read.Close()
	// Folding the log into the file leaves one file to copy for a backup.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, _ = db.writer.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
	return errors.Join(err, db.writer.Close())
}

// migrate applies the migrations that the file has not seen.
func migrate(ctx context.Context, w *sql.DB, path string, log *slog.Logger) error {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, w, dir, goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	have, err := p.GetDBVersion(ctx)
	if err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	sources := p.ListSources()
	newest := sources[len(sources)-1].Version
	if have > newest {
		return fmt.Errorf("its schema has version %d and this program knows %d: it was written by a newer Trunkhall; use that one, or the copy made before the upgrade", have, newest)
	}
	if have == newest {
		return nil
	}
	if have > 0 {
		copyTo := fmt.Sprintf("%s.v%d-%s.bak", path, have, time.Now().UTC().Format("20060102T150405"))
		if _, err := w.ExecContext(ctx, "VACUUM INTO ?", copyTo); err != nil {
			return fmt.Errorf("copy before the upgrade to %s: %w", filepath.Base(copyTo), err)
		}
		_ = os.Chmod(copyTo, 0o600)
		log.Info("copied the database before upgrading its schema", "copy", copyTo, "from", have, "to", newest)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("upgrade schema from %d to %d: %w", have, newest, err)
	}
	return nil
}

// write runs f in the one write transaction of the moment and commits it unless
// f returns an error, which is passed on unchanged. The transaction outlives a
// cancelled ctx: a client that hangs up must not decide half-way whether its
// message was stored.
func (db *DB) write(ctx context.Context, f func(tx *sql.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	tx, err := db.writer.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
	if err := f(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	db.writes.prepareWanted(ctx)
	return nil
}

// nextPos takes the next position of the one stream that everything that syncs
// shares: events, receipts, account data, to-device messages, device lists.
// Positions are committed in their order, because there is one writer.
func (db *DB) nextPos(tx *sql.Tx) (int64, error) {
	var pos int64
	err := db.row(tx, "UPDATE stream SET pos = pos + 1 RETURNING pos").Scan(&pos)
	if err != nil {
		return 0, fmt.Errorf("next stream position: %w", err)
	}
	return pos, nil
}

// Position returns the newest position of the stream: everything at or before
// it can be read.
func (db *DB) Position(ctx context.Context) (int64, error) {
	var pos int64
	if err := db.read.QueryRowContext(ctx, "SELECT pos FROM stream").Scan(&pos); err != nil {
		return 0, fmt.Errorf("stream position: %w", err)
	}
	return pos, nil
}

// notFound turns "no rows" into call.ErrNotFound.
func notFound(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return call.ErrNotFound
	}
	return err
}

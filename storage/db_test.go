package storage

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// open returns a database in a directory of the test.
func open(t testing.TB) *DB {
	t.Helper()
	db, err := OpenSQLite(t.Context(), filepath.Join(t.TempDir(), "trunkhall.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func TestPositionsRiseAndSurvive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "with space & more?.db")
	for want := int64(1); want <= 3; want++ {
		db, err := OpenSQLite(t.Context(), path, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = db.write(t.Context(), func(tx *sql.Tx) error {
			pos, err := db.nextPos(tx)
			if pos != want {
				t.Errorf("position %d, want %d", pos, want)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if pos, err := db.Position(t.Context()); pos != want || err != nil {
			t.Errorf("Position = %d, %v; want %d", pos, err, want)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file is not where it was asked to be: %v", err)
	}
}

func TestWriteRollsBack(t *testing.T) {
	db := open(t)
	boom := errors.New("boom")
	err := db.write(t.Context(), func(tx *sql.Tx) error {
		if _, err := db.nextPos(tx); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Errorf("write returned %v, want its function's error", err)
	}
	if pos, _ := db.Position(t.Context()); pos != 0 {
		t.Errorf("position %d after a rollback, want 0", pos)
	}
}

func TestRefusesNewerSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.db")
	db, err := OpenSQLite(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.writer.Exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db, err = OpenSQLite(context.Background(), path, nil)
	if err == nil {
		_ = db.Close()
		t.Fatal("a database of a newer version was opened; an old program would damage it")
	}
	if !strings.Contains(err.Error(), "9999") {
		t.Errorf("the error does not name the version: %v", err)
	}
}

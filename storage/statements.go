package storage

import (
	"context"
	"database/sql"
	"sync"
)

// maxStatements bounds how many prepared statements are kept; queries with lists
// of varying length make many texts.
const maxStatements = 400

// statements keeps prepared statements by their text: SQLite takes longer to
// parse most of ours than to run them. Safe for concurrent use.
//
// Queries write "LIMIT 0+?": for a bare parameter there SQLite plans anew at
// each execution, in order to use its value.
type statements struct {
	db *sql.DB

	mu     sync.Mutex // guards the following fields
	ready  map[string]*sql.Stmt
	wanted map[string]bool // to be prepared outside of the running transaction
}

func newStatements(db *sql.DB) statements {
	return statements{db: db, ready: make(map[string]*sql.Stmt), wanted: make(map[string]bool)}
}

// get returns the statement of a query, nil if there is none.
func (s *statements) get(query string) *sql.Stmt {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready[query]
}

// want notes a query to be prepared by prepareWanted.
func (s *statements) want(query string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ready)+len(s.wanted) < maxStatements {
		s.wanted[query] = true
	}
}

// prepareWanted prepares what was asked for since the last time. A query that
// does not prepare is asked for again by its next use, which also says why.
func (s *statements) prepareWanted(ctx context.Context) {
	s.mu.Lock()
	wanted := s.wanted
	if len(wanted) > 0 {
		s.wanted = make(map[string]bool)
	}
	s.mu.Unlock()
	for query := range wanted {
		_, _ = s.prepare(ctx, query)
	}
}

// prepare returns the statement of a query, preparing it if there is room to
// keep it; nil if there is not.
func (s *statements) prepare(ctx context.Context, query string) (*sql.Stmt, error) {
	if st := s.get(query); st != nil {
		return st, nil
	}
	st, err := s.db.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	kept := s.ready[query]
	if kept == nil && len(s.ready) < maxStatements {
		s.ready[query] = st
		kept, st = st, nil
	}
	s.mu.Unlock()
	if st != nil { // somebody else was faster, or it is full
		return kept, st.Close()
	}
	return kept, nil
}

// A reader is the connections that only read. Its queries run to their end even
// if ctx does: they are short, and stopping one costs more than it saves.
type reader struct {
	*sql.DB
	statements
}

// QueryContext is sql.DB.QueryContext with a prepared statement.
func (r *reader) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx)
	st, err := r.prepare(ctx, query)
	if err != nil {
		return nil, err
	}
	if st == nil {
		return r.DB.QueryContext(ctx, query, args...)
	}
	return st.QueryContext(ctx, args...)
}

// QueryRowContext is sql.DB.QueryRowContext with a prepared statement.
func (r *reader) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	if ctx.Err() == nil { // else the row shall say so
		ctx = context.WithoutCancel(ctx)
		if st, err := r.prepare(ctx, query); st != nil && err == nil {
			return st.QueryRowContext(ctx, args...)
		}
	}
	return r.DB.QueryRowContext(ctx, query, args...)
}

// exec runs a statement in a transaction, prepared if it ran before.
func (db *DB) exec(tx *sql.Tx, query string, args ...any) (sql.Result, error) {
	if st := db.writes.get(query); st != nil {
		return tx.Stmt(st).Exec(args...)
	}
	db.writes.want(query)
	return tx.Exec(query, args...)
}

// row runs a query of one row in a transaction, prepared if it ran before.
func (db *DB) row(tx *sql.Tx, query string, args ...any) *sql.Row {
	if st := db.writes.get(query); st != nil {
		return tx.Stmt(st).QueryRow(args...)
	}
	db.writes.want(query)
	return tx.QueryRow(query, args...)
}

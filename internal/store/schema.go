package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/ncruces/go-sqlite3"
)

// applicationID marks a file as a store: "lbdb" (sqlite.org/pragma.html#pragma_application_id).
const applicationID = 0x6c626462

// migrations bring a file from each version to the next; version 0 is a new
// file. One that has been released never changes: a change is another one.
//
// Times are nanoseconds since 1970 in UTC: they compare as numbers, and there
// is one way to write each.
var migrations = []string{
	`CREATE TABLE operator_state (
		pool    TEXT NOT NULL,
		backend TEXT NOT NULL,
		word    TEXT NOT NULL,
		since   INTEGER NOT NULL,
		set_by  TEXT NOT NULL,
		PRIMARY KEY (pool, backend)
	) STRICT, WITHOUT ROWID;
	CREATE TABLE audit (
		id         INTEGER PRIMARY KEY,
		at         INTEGER NOT NULL,
		who        TEXT NOT NULL,
		action     TEXT NOT NULL,
		target     TEXT NOT NULL,
		detail     TEXT NOT NULL,
		generation INTEGER NOT NULL
	) STRICT;`,
	// The journal: journalrow.go says what the columns mean.
	`CREATE TABLE meta (
		name  TEXT PRIMARY KEY,
		value BLOB NOT NULL
	) STRICT, WITHOUT ROWID;` + journalTables + journalIndexes,
	`CREATE TABLE registrations (
		id       INTEGER PRIMARY KEY,
		pool     TEXT NOT NULL,
		instance TEXT NOT NULL,
		state    TEXT NOT NULL,
		seen     INTEGER NOT NULL,
		gone     INTEGER NOT NULL,
		document BLOB NOT NULL,
		UNIQUE (pool, instance)
	) STRICT;`,
	configVersions,
}

// The journal's tables and indexes stand by themselves because repair makes them
// anew.
const journalTables = `
	CREATE TABLE writes (
		seq        INTEGER PRIMARY KEY,
		id         TEXT NOT NULL,
		route      TEXT NOT NULL,
		pool       TEXT NOT NULL,
		created    INTEGER NOT NULL,
		clock      INTEGER NOT NULL,
		state      TEXT NOT NULL,
		settled_at INTEGER,
		order_key  BLOB,
		claim      BLOB,
		size       INTEGER NOT NULL,
		told       INTEGER NOT NULL,
		head       BLOB NOT NULL,
		reply      BLOB,
		sum        INTEGER NOT NULL,
		request    BLOB
	) STRICT;
	CREATE TABLE deliveries (
		seq         INTEGER NOT NULL,
		place       INTEGER NOT NULL,
		pool        TEXT NOT NULL,
		backend     TEXT NOT NULL,
		order_key   BLOB,
		turn        INTEGER NOT NULL,
		state       TEXT NOT NULL,
		reason      TEXT NOT NULL,
		attempts    INTEGER NOT NULL,
		reached     INTEGER NOT NULL,
		unknown     INTEGER NOT NULL,
		left_over   INTEGER NOT NULL,
		last_status INTEGER NOT NULL,
		next        INTEGER NOT NULL,
		error       BLOB,
		sum         INTEGER NOT NULL,
		PRIMARY KEY (seq, place)
	) STRICT, WITHOUT ROWID;`

const journalIndexes = `
	CREATE UNIQUE INDEX writes_id ON writes (id);
	CREATE UNIQUE INDEX writes_claim ON writes (claim) WHERE claim IS NOT NULL;
	CREATE INDEX writes_state ON writes (state, pool, seq, route, size);
	CREATE INDEX writes_settled ON writes (settled_at) WHERE settled_at IS NOT NULL;
	CREATE INDEX deliveries_turn ON deliveries (pool, backend, turn, next) WHERE turn > 0;
	CREATE INDEX deliveries_order ON deliveries (pool, backend, order_key) WHERE turn > 0 AND order_key IS NOT NULL;`

// oldJournal keeps the tables at hand while they are made anew.
const oldJournal = `
	ALTER TABLE writes RENAME TO old_writes;
	ALTER TABLE deliveries RENAME TO old_deliveries;
	DROP INDEX writes_id;
	DROP INDEX writes_claim;
	DROP INDEX writes_state;
	DROP INDEX writes_settled;
	DROP INDEX deliveries_turn;
	DROP INDEX deliveries_order;`

// Each with its reason in docs/adr/0005-sqlite-store.md.
const pragmas = `
	PRAGMA locking_mode = EXCLUSIVE;
	PRAGMA synchronous = FULL;
	PRAGMA cell_size_check = ON;
	PRAGMA temp_store = MEMORY;
	PRAGMA cache_spill = OFF;`

// prepare sets the connection up, and marks a new file as a store.
func prepare(c *sqlite3.Conn, onDisk bool) error {
	if err := c.Exec(pragmas); err != nil {
		return err
	}
	id, err := number(c, "PRAGMA application_id")
	if err != nil {
		return err
	}
	if id == 0 {
		if err := found(c); err != nil {
			return err
		}
	}
	if !onDisk {
		return nil
	}
	mode := ""
	err = query(c, "PRAGMA journal_mode = WAL", func(row *sqlite3.Stmt) { mode = row.ColumnText(0) })
	if err == nil && mode != "wal" {
		err = fmt.Errorf("the store cannot be given a write-ahead log, its journal mode stays %q: choose another path", mode)
	}
	return err
}

// found writes the first page of a new file, with room for a checksum at the
// end of each page (sqlite.org/cksumvfs.html). It goes before the switch to a
// write-ahead log: so every file that has a header has the mark in it, however
// its making ended.
func found(c *sqlite3.Conn) error {
	const checksum = 8 // bytes
	if _, err := c.FileControl("main", sqlite3.FCNTL_RESERVE_BYTES, checksum); err != nil {
		return err
	}
	return c.Exec(fmt.Sprintf("PRAGMA application_id = %d", applicationID))
}

// migrate takes the steps that the file has not seen yet, each all or nothing.
func migrate(c *sqlite3.Conn, steps []string) error {
	version, err := number(c, "PRAGMA user_version")
	if err != nil {
		return err
	}
	if version > int64(len(steps)) {
		return fmt.Errorf("the store was written by a newer lb (version %d, this one knows %d): use that one, or choose another path", version, len(steps))
	}
	for n, step := range steps[version:] {
		next := fmt.Sprintf("PRAGMA user_version = %d", version+int64(n)+1)
		err := transaction(c, func(c *sqlite3.Conn) error {
			if err := c.Exec(step); err != nil {
				return err
			}
			return c.Exec(next)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// transaction calls fn in a transaction: all of it happens or nothing.
func transaction(c *sqlite3.Conn, fn func(*sqlite3.Conn) error) (err error) {
	if err := c.Exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	defer func() {
		if c.GetAutocommit() {
			return // it is committed, or SQLite has rolled it back by itself
		}
		defer c.SetInterrupt(c.SetInterrupt(context.Background()))
		err = errors.Join(err, c.Exec("ROLLBACK"))
	}()
	if err := fn(c); err != nil {
		return err
	}
	return c.Exec("COMMIT")
}

// query runs one statement with args (string or int64) and calls each, which
// may be nil, with every row.
func query(c *sqlite3.Conn, sql string, each func(row *sqlite3.Stmt), args ...any) error {
	stmt, _, err := c.Prepare(sql)
	if err != nil {
		return err
	}
	defer func() { _ = stmt.Close() }() // repeats the error of the last step
	for i, arg := range args {
		switch arg := arg.(type) {
		case string:
			err = stmt.BindText(i+1, arg)
		case int64:
			err = stmt.BindInt64(i+1, arg)
		default:
			err = fmt.Errorf("argument %d is a %T", i+1, arg)
		}
		if err != nil {
			return err
		}
	}
	for stmt.Step() {
		if each == nil {
			continue
		}
		if each(stmt); stmt.Err() != nil {
			break // a column could not be read
		}
	}
	return stmt.Err()
}

// number returns the one number that a statement gives.
func number(c *sqlite3.Conn, sql string) (n int64, err error) {
	err = query(c, sql, func(row *sqlite3.Stmt) { n = row.ColumnInt64(0) })
	return n, err
}

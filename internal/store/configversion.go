package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/ncruces/go-sqlite3"
)

const (
	maxVersions    = 100     // of the configuration are kept
	maxVersionSize = 1 << 20 // bytes of one are kept
)

// configVersions is the migration that makes their table. The document comes
// last, so that a list of them reads none.
const configVersions = `CREATE TABLE config_versions (
	id         INTEGER PRIMARY KEY,
	at         INTEGER NOT NULL,
	set_by     TEXT NOT NULL,
	source     TEXT NOT NULL,
	generation INTEGER NOT NULL,
	document   BLOB NOT NULL
) STRICT`

// ConfigVersion is a configuration that has been in force.
type ConfigVersion struct {
	// ID is set by the store: above that of every version before.
	ID int64
	// At is since when it was in force, in UTC; the zero time stands for now.
	At time.Time
	// By is who put it there, Source where it was read from. Both are cut at
	// 1 KiB.
	By, Source string
	// Document is the text of it, at most 1 MiB.
	Document []byte
	// Generation is its number in the process that had it.
	Generation uint64
}

var (
	// ErrNoVersion says that there is no configuration with that ID, or not any
	// more.
	ErrNoVersion = errors.New("no such version of the configuration")
	// ErrDocumentSize says that a configuration is larger than what is kept.
	ErrDocumentSize = fmt.Errorf("the configuration has more than %d bytes, and is not kept", maxVersionSize)
)

// SaveConfigVersion keeps v as the newest version, and appends the records to the
// audit trail: all or nothing, synced to the disk when it returns nil. If the
// newest has the same document there is no new version, and its ID is returned.
// The newest 100 are kept. A document over 1 MiB is ErrDocumentSize.
func (s *Store) SaveConfigVersion(ctx context.Context, v ConfigVersion, audit ...Record) (id int64, err error) {
	if len(v.Document) > maxVersionSize {
		return 0, ErrDocumentSize
	}
	err = s.write(ctx, func(c *sqlite3.Conn) error {
		same := false
		err := s.run(`SELECT id, document FROM config_versions ORDER BY id DESC LIMIT 1`, func(row *sqlite3.Stmt) bool {
			id, same = row.ColumnInt64(0), bytes.Equal(blob(row, 1), v.Document)
			return true
		})
		if err != nil {
			return err
		}
		if !same {
			if id, err = s.insertVersion(c, v); err != nil {
				return err
			}
		}
		for _, r := range audit {
			if err := insert(c, r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return id, nil
}

// insertVersion appends v within a transaction and drops what is too many: IDs
// have no gaps, as those of the audit trail.
func (s *Store) insertVersion(c *sqlite3.Conn, v ConfigVersion) (id int64, err error) {
	if v.Document == nil {
		v.Document = []byte{} // which is not NULL
	}
	err = s.run(`INSERT INTO config_versions (at, set_by, source, generation, document) VALUES (?, ?, ?, ?, ?)`, nil,
		nanoseconds(v.At), clip(v.By), clip(v.Source), int64(min(v.Generation, math.MaxInt64)), v.Document)
	if err != nil {
		return 0, err
	}
	id = c.LastInsertRowID()
	return id, s.run(`DELETE FROM config_versions WHERE id <= ?`, nil, id-maxVersions)
}

// ConfigVersions returns up to limit versions (at least 1) whose ID is below
// before, the newest first and without their documents; before 0 begins with the
// newest of all.
func (s *Store) ConfigVersions(ctx context.Context, before int64, limit int) ([]ConfigVersion, error) {
	if before <= 0 {
		before = math.MaxInt64
	}
	var versions []ConfigVersion
	err := s.read(ctx, func(*sqlite3.Conn) error {
		return s.run(`SELECT id, at, set_by, source, generation FROM config_versions WHERE id < ? ORDER BY id DESC LIMIT ?`,
			func(row *sqlite3.Stmt) bool {
				versions = append(versions, scanVersion(row))
				return true
			}, before, int64(max(limit, 1)))
	})
	if err != nil {
		return nil, err
	}
	return versions, nil
}

// ConfigVersion returns the version with that ID and its document; ErrNoVersion
// if there is none.
func (s *Store) ConfigVersion(ctx context.Context, id int64) (v ConfigVersion, err error) {
	err = s.read(ctx, func(*sqlite3.Conn) error {
		err := s.run(`SELECT id, at, set_by, source, generation, document FROM config_versions WHERE id = ?`, func(row *sqlite3.Stmt) bool {
			v = scanVersion(row)
			v.Document = blob(row, 5)
			return true
		}, id)
		if err == nil && v.ID == 0 {
			err = ErrNoVersion
		}
		return err
	})
	if err != nil {
		return ConfigVersion{}, err
	}
	return v, nil
}

// scanVersion reads all but the document.
func scanVersion(row *sqlite3.Stmt) ConfigVersion {
	return ConfigVersion{
		ID: row.ColumnInt64(0), At: time.Unix(0, row.ColumnInt64(1)).UTC(), By: row.ColumnText(2), Source: row.ColumnText(3),
		Generation: uint64(max(0, row.ColumnInt64(4))),
	}
}

// bringVersions salvages versions of the configuration. A store from before
// there were any has none to lose.
func bringVersions(from, to *Store, report *Report) error {
	there := false
	err := from.run(`SELECT 1 FROM sqlite_schema WHERE name = 'config_versions'`, func(*sqlite3.Stmt) bool { there = true; return true })
	if err == nil && !there {
		return nil
	}
	var failed error
	from.walk(`SELECT id, at, set_by, source, generation, document FROM config_versions WHERE id >= ? ORDER BY id`, func(row *sqlite3.Stmt) bool {
		if failed == nil {
			report.Versions++
			// A damaged row may have the number of another, or no document.
			failed = to.run(`INSERT OR IGNORE INTO config_versions (id, at, set_by, source, generation, document) VALUES (?, ?, ?, ?, ?, ?)`, nil,
				row.ColumnInt64(0), row.ColumnInt64(1), row.ColumnText(2), row.ColumnText(3), row.ColumnInt64(4), blob(row, 5))
		}
		return true
	}, func(first, last int64, err error) {
		if last == math.MaxInt64 {
			report.lose("versions of the configuration from %d on, if there are any: %v", first, err)
			return
		}
		report.lose("versions of the configuration from %d to %d: %v", first, last, err)
	})
	return failed
}

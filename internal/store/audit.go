package store

import (
	"context"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ncruces/go-sqlite3"
)

const (
	maxRecords = 10_000  // of the audit trail are kept
	maxPage    = 1_001   // records are returned at once: a page of a thousand, and whether there is more
	maxText    = 1 << 10 // bytes of a text are kept
)

// Record is one entry of the audit trail: who did what, when, and which
// generation of the configuration was in force.
type Record struct {
	// ID is set by the store: above that of every record before.
	ID int64
	// At is when it was done, in UTC; the zero time stands for now.
	At time.Time
	// Texts are cut at 1 KiB, and bytes that are not UTF-8 become "?".
	Who, Action, Target, Detail string
	Generation                  uint64
}

// Append adds r to the audit trail, synced to the disk when it returns nil. The
// newest 10,000 records are kept.
func (s *Store) Append(ctx context.Context, r Record) error {
	return s.write(ctx, func(c *sqlite3.Conn) error { return insert(c, r) })
}

// Audit returns up to limit records (at least 1, at most 1,000) whose ID is
// below before, the newest first; before 0 begins with the newest of all. The
// last ID of one page is where the next begins.
func (s *Store) Audit(ctx context.Context, before int64, limit int) ([]Record, error) {
	if before <= 0 {
		before = math.MaxInt64
	}
	limit = min(max(limit, 1), maxPage)
	var records []Record
	err := s.read(ctx, func(c *sqlite3.Conn) error {
		return query(c, `SELECT id, at, who, action, target, detail, generation FROM audit
			WHERE id < ? ORDER BY id DESC LIMIT ?`,
			func(row *sqlite3.Stmt) {
				records = append(records, Record{
					ID: row.ColumnInt64(0), At: time.Unix(0, row.ColumnInt64(1)).UTC(),
					Who: row.ColumnText(2), Action: row.ColumnText(3), Target: row.ColumnText(4), Detail: row.ColumnText(5),
					Generation: uint64(max(0, row.ColumnInt64(6))),
				})
			}, before, int64(limit))
	})
	if err != nil {
		return nil, err
	}
	return records, nil
}

// insert appends r within a transaction and drops what is too many: IDs have no
// gaps, because a failed insert leaves none and only the oldest go.
func insert(c *sqlite3.Conn, r Record) error {
	err := query(c, `INSERT INTO audit (at, who, action, target, detail, generation) VALUES (?, ?, ?, ?, ?, ?)`, nil,
		nanoseconds(r.At), clip(r.Who), clip(r.Action), clip(r.Target), clip(r.Detail), int64(min(r.Generation, math.MaxInt64)))
	if err != nil {
		return err
	}
	return query(c, `DELETE FROM audit WHERE id <= ?`, nil, c.LastInsertRowID()-maxRecords)
}

// clip returns s as valid UTF-8 of at most 1 KiB.
func clip(s string) string {
	if len(s) > maxText {
		end := maxText
		for end > maxText-utf8.UTFMax && !utf8.RuneStart(s[end]) {
			end--
		}
		s = s[:end]
	}
	return strings.ToValidUTF8(s, "?")
}

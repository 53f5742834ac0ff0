package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"github.com/ncruces/go-sqlite3"

	"lb/internal/fanout"
)

// Report says what Salvage brought over and what it could not.
type Report struct {
	// Writes that are to be sent, and Parked ones; Damaged counts those of the
	// latter that were parked because a part of them is lost.
	Writes, Parked, Damaged int
	// Operator counts words of operators, Registrations instances that
	// registered, Audit records of the trail.
	Operator, Registrations, Audit int
	// Versions counts those of the configuration.
	Versions int
	// Lost says in words what cannot be read: ranges of writes, and tables.
	Lost []string
}

func (r *Report) lose(format string, args ...any) {
	r.Lost = append(r.Lost, fmt.Sprintf(format, args...))
}

// Salvage reads what is readable of the damaged store at from, and writes it
// into a new store at to, which must not exist: the writes that are not
// settled or parked, what operators have said, the registrations, and the audit
// trail. Settled writes stay behind, and with them their Idempotency-Keys. key
// is the journal's, nil for none. The file at from stays as it is; nobody may
// have it open meanwhile.
//
// A write of which a part is lost is parked, for fanout.ReasonDamaged. With an
// error, nothing is at to.
func Salvage(ctx context.Context, from, to string, key []byte) (report Report, err error) {
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return report, fmt.Errorf("there is something at %s already: choose another path", to)
	}
	if _, err := os.Stat(from); err != nil {
		return report, fmt.Errorf("the store cannot be salvaged: %w", err)
	}
	held, err := lock(from)
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, held.Close()) }()
	dir, err := os.MkdirTemp(filepath.Dir(to), ".salvage-*")
	if err != nil {
		return report, fmt.Errorf("the store cannot be salvaged: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// SQLite would recover the file itself, and so write to it.
	wreck := filepath.Join(dir, "wreck")
	for _, suffix := range []string{"", "-wal", "-journal"} {
		if err := copyFile(from+suffix, wreck+suffix); err != nil && (suffix == "" || !errors.Is(err, fs.ErrNotExist)) {
			return report, fmt.Errorf("the store cannot be salvaged: %w", err)
		}
	}
	fresh := filepath.Join(dir, "fresh")
	if err := salvage(ctx, wreck, fresh, key, &report); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return report, fmt.Errorf("the store %s cannot be salvaged: %w", from, err)
	}
	// All at once: a store that is there is whole.
	if err := os.Link(fresh, to); err != nil {
		return report, fmt.Errorf("the store %s cannot be salvaged: %w", from, err)
	}
	return report, syncDirectory(filepath.Dir(to))
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // nothing was written
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// salvage fills the new store at fresh from a copy of the damaged one.
func salvage(ctx context.Context, wreck, fresh string, key []byte, report *Report) (err error) {
	old := &Store{path: wreck}
	name, err := uri(wreck, "os")
	if err != nil {
		return err
	}
	if old.conn, err = sqlite3.OpenFlags(name, sqlite3.OPEN_READWRITE|sqlite3.OPEN_URI); err != nil {
		return err
	}
	defer func() { _ = old.release() }() // of a copy
	old.conn.SetInterrupt(ctx)
	if err := old.conn.Exec(`PRAGMA checksum_verification = OFF`); err != nil {
		return err
	}
	seal, err := newSealer(key)
	if err != nil {
		return err
	}
	source := &Journal{store: old, seal: seal}
	var check []byte
	err = old.run(`SELECT value FROM meta WHERE name = 'key'`, func(row *sqlite3.Stmt) bool { check = blob(row, 0); return true })
	switch {
	case err != nil:
		report.lose("whether the journal is encrypted: %v", err)
	case !bytes.Equal(check, seal.check()):
		return errors.New("its journal was not written with this key: give the one that it was written with (storage.key_env)")
	}

	target, err := Open(fresh)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	j, err := target.Journal(JournalOptions{Key: key})
	if err != nil {
		return err
	}
	return target.write(ctx, func(*sqlite3.Conn) error {
		if err := source.bringWrites(ctx, j, report); err != nil {
			return err
		}
		if err := bringOperators(old, target, report); err != nil {
			return err
		}
		if err := bringRegistrations(old, target, report); err != nil {
			return err
		}
		if err := bringAudit(old, target, report); err != nil {
			return err
		}
		if err := bringVersions(old, target, report); err != nil {
			return err
		}
		return ctx.Err()
	})
}

// walk calls each with the rows of a statement that takes the lowest number to
// begin with, and gives rows by rising number in its first column. each says
// whether that number can be believed. A row that cannot be reached ends it; it
// begins again at the next number that can be, and lost hears of the gap.
func (s *Store) walk(sql string, each func(row *sqlite3.Stmt) bool, lost func(from, to int64, err error)) {
	readable := func(n int64) (next int64, err error) {
		next = math.MaxInt64
		err = s.run(sql, func(row *sqlite3.Stmt) bool { next = row.ColumnInt64(0); return false }, n)
		return next, err
	}
	for at := int64(0); ; {
		err := s.run(sql, func(row *sqlite3.Stmt) bool {
			if n := row.ColumnInt64(0); each(row) && n >= at && n < math.MaxInt64 {
				at = n + 1
			}
			return true
		}, at)
		if err == nil || errors.Is(err, sqlite3.INTERRUPT) {
			return
		}
		// at is the first that cannot be reached. Look ahead in steps that
		// double, then halve the distance.
		bad, good := at, int64(-1)
		for step := int64(1); good < 0 && bad < math.MaxInt64-step; step *= 2 {
			if _, probe := readable(bad + step); probe == nil {
				good = bad + step
			} else {
				bad += step
			}
		}
		if good < 0 {
			lost(at, math.MaxInt64, err)
			return
		}
		for good-bad > 1 {
			middle := bad + (good-bad)/2
			if _, probe := readable(middle); probe == nil {
				good = middle
			} else {
				bad = middle
			}
		}
		next, _ := readable(good)
		if next == math.MaxInt64 {
			lost(at, next, err)
			return
		}
		lost(at, next-1, err)
		at = max(at+1, next)
	}
}

// bringWrites copies what is not settled.
func (j *Journal) bringWrites(ctx context.Context, to *Journal, report *Report) error {
	s := j.store
	var failed error
	last := int64(0)
	seen := make(map[int64]bool)
	strange := 0 // rows without a number that can be believed
	bring := func(w *writeRow, ok bool, request []byte) {
		rows, complete, err := j.goodRows(w.seq)
		if err != nil || failed != nil {
			failed = errors.Join(failed, err)
			return
		}
		if !ok && len(rows) == 0 {
			strange++
			return
		}
		seen[w.seq] = true
		last = max(last, w.seq)
		r, err := j.record(w, request, rows)
		if !ok || !complete || err != nil || request == nil && !ended(r.State) && r.Write.Method != "" {
			remains := j.remains(w, ok, request, rows)
			r = &remains
			report.Damaged++
		}
		if r.State == fanout.WriteParked {
			report.Parked++
		} else {
			report.Writes++
		}
		failed = to.adopt(r, 0)
	}
	s.walk(`SELECT `+writeColumns+` FROM writes WHERE seq >= ? ORDER BY seq`, func(row *sqlite3.Stmt) bool {
		w, ok := scanWrite(row)
		switch {
		case ctx.Err() != nil:
		case ok && ended(fanout.State(w.state)):
			seen[w.seq] = true
			last = max(last, w.seq)
		default:
			bring(&w, ok, blob(row, 15))
		}
		return ok
	}, func(from, to int64, err error) {
		if to == math.MaxInt64 {
			report.lose("writes from number %d on, if there were any: %v", from, err)
			return
		}
		report.lose("writes from number %d to %d: %v", from, to, err)
	})
	// What has deliveries and no write: its number, its backends.
	var orphans []int64
	s.walk(`SELECT DISTINCT seq FROM deliveries WHERE seq >= ? AND state IN ('pending', 'held', 'parked') ORDER BY seq`, func(row *sqlite3.Stmt) bool {
		if seq := row.ColumnInt64(0); !seen[seq] {
			orphans = append(orphans, seq)
		}
		return true
	}, func(from, to int64, err error) {
		report.lose("deliveries of the writes from number %d on: %v", from, err)
	})
	for _, seq := range orphans {
		if failed == nil && ctx.Err() == nil {
			bring(&writeRow{seq: seq}, false, nil)
		}
	}
	if strange > 0 {
		report.lose("writes from number unknown: %d rows without one that can be believed", strange)
	}
	if failed != nil {
		return failed
	}
	to.seq = max(to.seq, last)
	return to.store.run(`REPLACE INTO meta (name, value) VALUES ('seq', ?)`, nil, decimal(to.seq))
}

// goodRows returns the rows of a write's deliveries that can be read and are
// good, and whether those are all that are there.
func (j *Journal) goodRows(seq int64) (rows []deliveryRow, complete bool, err error) {
	complete = true
	err = j.store.run(`SELECT `+deliveryColumns+` FROM deliveries WHERE seq = ? ORDER BY place`, func(row *sqlite3.Stmt) bool {
		d, ok := scanDelivery(row)
		if ok {
			rows = append(rows, d)
		}
		complete = complete && ok
		return true
	}, seq)
	if errors.Is(err, sqlite3.INTERRUPT) {
		return nil, false, err
	}
	return rows, complete && err == nil, nil
}

func bringOperators(from, to *Store, report *Report) error {
	var failed error
	err := from.run(`SELECT pool, backend, word, since, set_by FROM operator_state`, func(row *sqlite3.Stmt) bool {
		report.Operator++
		failed = to.run(`REPLACE INTO operator_state (pool, backend, word, since, set_by) VALUES (?, ?, ?, ?, ?)`, nil,
			row.ColumnText(0), row.ColumnText(1), row.ColumnText(2), row.ColumnInt64(3), row.ColumnText(4))
		return failed == nil
	})
	if err != nil && failed == nil {
		report.lose("some of what operators have said: %v", err)
	}
	return failed
}

func bringRegistrations(from, to *Store, report *Report) error {
	lost := func(err error) { report.lose("some of the registrations: %v", err) }
	there := false // not in the store of an older lb
	err := from.run(`SELECT 1 FROM sqlite_schema WHERE name = 'registrations'`, func(*sqlite3.Stmt) bool { there = true; return true })
	if err != nil {
		lost(err)
	}
	if !there {
		return nil
	}
	var failed error
	from.walk(`SELECT id, pool, instance, state, seen, gone, document FROM registrations WHERE id >= ? ORDER BY id`, func(row *sqlite3.Stmt) bool {
		if failed != nil {
			return true
		}
		report.Registrations++
		failed = to.putRegistration(scanRegistration(row))
		return true
	}, func(_, _ int64, err error) { lost(err) })
	return failed
}

func bringAudit(from, to *Store, report *Report) error {
	var failed error
	from.walk(`SELECT id, at, who, action, target, detail, generation FROM audit WHERE id >= ? ORDER BY id`, func(row *sqlite3.Stmt) bool {
		if failed != nil {
			return true
		}
		report.Audit++
		failed = to.run(`INSERT INTO audit (id, at, who, action, target, detail, generation) VALUES (?, ?, ?, ?, ?, ?, ?)`, nil,
			row.ColumnInt64(0), row.ColumnInt64(1), row.ColumnText(2), row.ColumnText(3), row.ColumnText(4), row.ColumnText(5), row.ColumnInt64(6))
		return true
	}, func(first, last int64, err error) {
		if last == math.MaxInt64 {
			report.lose("records of the audit trail from %d on, if there are any: %v", first, err)
			return
		}
		report.lose("records of the audit trail from %d to %d: %v", first, last, err)
	})
	return failed
}

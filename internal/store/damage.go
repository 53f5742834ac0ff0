package store

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/ncruces/go-sqlite3"

	"lb/internal/fanout"
)

// What becomes of a journal in a damaged file.
//
// A page whose checksum is wrong takes all its rows with it, though a flipped
// bit is in one of them at most. So when a page or a row proves to be damaged,
// every row is looked at once with the page checksums off, and its own sum
// judges it. The good ones go into new tables, of the damaged ones what is left
// of them, parked; the indexes, which have no sums of their own, are made anew.
//
// All this only if the pages hang together: where they do not, a repair might
// free or overwrite what belongs to somebody else. Then nothing is touched any
// more, every call of the journal fails, and Salvage has to be asked.

// verifying calls fn, which may read and write anything of the journal, and
// calls it again if it comes upon damage that can be repaired.
func (j *Journal) verifying(fn func() error) error {
	if j.ruined != nil {
		return j.ruined
	}
	err := fn()
	if errors.Is(err, sqlite3.IOERR_DATA) || errors.Is(err, errSum) {
		if err := j.repair(); err != nil {
			return j.ruin(err)
		}
		err = fn()
	}
	return j.ruin(err)
}

// ruin notes an error that says that the pages do not hang together.
func (j *Journal) ruin(err error) error {
	if errors.Is(err, errStructure) || errors.Is(err, sqlite3.CORRUPT) || errors.Is(err, sqlite3.NOTADB) {
		j.ruined = err
	}
	return err
}

var errStructure = errors.New("its pages do not hang together")

// structure returns an error if the journal's pages do not hang together.
func structure(c *sqlite3.Conn) error {
	for _, check := range []string{`PRAGMA quick_check('writes')`, `PRAGMA quick_check('deliveries')`} {
		found := ""
		err := query(c, check, func(row *sqlite3.Stmt) {
			// Other lines are about single rows, which their sums judge better.
			if line := row.ColumnText(0); strings.HasPrefix(line, "*** ") || strings.HasPrefix(line, "Tree ") {
				found = line
			}
		})
		if err != nil {
			return err
		}
		if found != "" {
			return fmt.Errorf("%w: %s", errStructure, found)
		}
	}
	return nil
}

// repair makes the journal anew from what can be read of it: all or nothing.
func (j *Journal) repair() error {
	s := j.store
	if s.broken != nil {
		return s.broken
	}
	s.dropKept()       // no schema changes under statements
	defer s.dropKept() // those on the old tables
	if err := s.conn.Exec(`PRAGMA checksum_verification = OFF; PRAGMA cache_spill = ON`); err != nil {
		return err
	}
	defer func() { _ = s.conn.Exec(`PRAGMA checksum_verification = ON; PRAGMA cache_spill = OFF`) }() // cannot fail: it only sets variables
	if err := structure(s.conn); err != nil {
		return err
	}
	var found []fanout.Record
	err := s.commit(s.conn, func(c *sqlite3.Conn) (err error) {
		if err := c.Exec(oldJournal + journalTables); err != nil {
			return err
		}
		bad, err := j.copyGood()
		if err != nil {
			return err
		}
		if err := c.Exec(journalIndexes); err != nil {
			return err
		}
		for _, seq := range slices.Sorted(maps.Keys(bad)) {
			r, any, err := j.rebuild(seq, bad[seq])
			if err != nil {
				return err
			}
			if any {
				found = append(found, r)
			}
		}
		if err := c.Exec(settleTurns); err != nil {
			return err
		}
		if err := c.Exec(settleOrder); err != nil {
			return err
		}
		s.dropKept()
		return c.Exec(`DROP TABLE old_writes; DROP TABLE old_deliveries`)
	})
	if err != nil {
		return err
	}
	if j.damaged == nil {
		j.damaged = make(map[int64]fanout.Record)
	}
	for _, r := range found {
		if !ended(r.State) {
			j.damaged[number64(r.Seq)] = r
		}
	}
	return nil
}

// turn is not covered by sums: it follows from the rest. In two steps, since
// the second needs the index.
const (
	turnFromStates = `CASE
		WHEN (SELECT state FROM writes WHERE writes.seq = deliveries.seq) NOT IN ('pending', 'parked') THEN 0
		WHEN state = 'parked' THEN 1
		WHEN state = 'held' OR state = 'pending' AND (SELECT state FROM writes WHERE writes.seq = deliveries.seq) <> 'pending' THEN 2
		WHEN state = 'pending' THEN 3
		ELSE 0 END`
	settleTurns = `UPDATE deliveries SET turn = ` + turnFromStates + ` WHERE turn <> ` + turnFromStates
	settleOrder = `UPDATE deliveries SET turn = 2 WHERE turn = 3 AND order_key IS NOT NULL AND EXISTS (
		SELECT 1 FROM deliveries AS d INDEXED BY deliveries_order WHERE d.turn > 0 AND d.pool = deliveries.pool AND d.backend = deliveries.backend
		AND d.order_key = deliveries.order_key AND d.seq < deliveries.seq)`
)

// rubble is what was found of a write that is damaged or not complete.
type rubble struct {
	write      *writeRow
	request    []byte
	deliveries []deliveryRow
}

// copyGood copies the good rows into the new tables, and returns the rest by
// number.
func (j *Journal) copyGood() (map[int64]*rubble, error) {
	s := j.store
	bad := make(map[int64]*rubble)
	at := func(seq int64) *rubble {
		if bad[seq] == nil {
			bad[seq] = &rubble{}
		}
		return bad[seq]
	}
	missing := make(map[int64]int)
	var failed error
	err := s.run(`SELECT `+writeColumns+` FROM old_writes ORDER BY seq`, func(row *sqlite3.Stmt) bool {
		w, ok := scanWrite(row)
		request := blob(row, 15)
		backends, readable := j.readable(&w, request)
		if !ok || !readable {
			at(w.seq).write, at(w.seq).request = &w, request
		}
		if ok {
			missing[w.seq] = len(backends)
			failed = j.putWrite(&w, request)
		}
		return failed == nil
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, err
	}
	err = s.run(`SELECT `+deliveryColumns+` FROM old_deliveries ORDER BY seq, place`, func(row *sqlite3.Stmt) bool {
		d, ok := scanDelivery(row)
		if _, known := missing[d.seq]; !ok || !known {
			rest := at(d.seq)
			if ok {
				rest.deliveries = append(rest.deliveries, d)
			}
		}
		if ok {
			missing[d.seq]--
			failed = j.putDelivery(&d)
		}
		return failed == nil
	})
	for seq, n := range missing {
		if n != 0 {
			at(seq)
		}
	}
	return bad, errors.Join(err, failed)
}

// readable reports whether all that is sealed in a write can be opened, and
// returns its backends.
func (j *Journal) readable(w *writeRow, request []byte) (backends []string, ok bool) {
	r := fanout.Record{ID: w.id}
	backends, err := j.openHead(&r, w.head)
	if err == nil {
		err = j.openReply(&r, w.reply)
	}
	if err == nil && request != nil {
		err = j.openRequest(&r, request)
	}
	return backends, err == nil
}

// rebuild puts what is left of a write in its place, and returns it. any is
// false if nothing is, or only a row whose number is what is damaged: the
// deliveries tell the right one.
func (j *Journal) rebuild(seq int64, found *rubble) (r fanout.Record, any bool, err error) {
	s := j.store
	var w writeRow
	var request []byte
	ok := false
	err = s.run(`SELECT `+writeColumns+` FROM writes WHERE seq = ?`, func(row *sqlite3.Stmt) bool {
		w, ok = scanWrite(row)
		request = blob(row, 15)
		return true
	}, seq)
	if err != nil {
		return r, false, err
	}
	var rows []deliveryRow
	err = s.run(`SELECT `+deliveryColumns+` FROM deliveries WHERE seq = ? ORDER BY place`, func(row *sqlite3.Stmt) bool {
		d, _ := scanDelivery(row)
		rows = append(rows, d)
		return true
	}, seq)
	if err != nil {
		return r, false, err
	}
	if !ok && found.write != nil {
		w, request = *found.write, found.request
	}
	if !ok && len(rows) == 0 {
		return r, false, nil
	}
	settledAt := w.settledAt
	w.seq = seq
	r = j.remains(&w, ok, request, rows)
	if err := j.erase(seq); err != nil {
		return r, false, err
	}
	err = j.adopt(&r, settledAt) // may change r
	return r, true, err
}

// adopt stores a record that comes from elsewhere under its own number, within
// a transaction. Its id or its claim may be damaged, and be another one's.
func (j *Journal) adopt(r *fanout.Record, settledAt int64) error {
	if _, taken, err := j.findRow(r.ID); err != nil {
		return err
	} else if taken {
		r.ID = damagedID(number64(r.Seq))
	}
	if claim := j.seal.key(r.Claim); claim != nil {
		if first, err := j.claimed(claim); err != nil {
			return err
		} else if first != nil {
			r.Claim = fanout.Key{}
		}
	}
	return j.put(r, settledAt)
}

// put stores a record under its own number, within a transaction.
func (j *Journal) put(r *fanout.Record, settledAt int64) error {
	a := j.admission(r)
	a.write.seq = number64(r.Seq)
	if ended(r.State) {
		a.write.settledAt = settledAt
	}
	if ended(r.State) || r.Write.Method == "" {
		a.request = nil
	}
	if err := j.putWrite(&a.write, a.request); err != nil {
		return err
	}
	for i := range a.deliveries {
		a.deliveries[i].seq = a.write.seq
		if err := j.putTurn(&a.deliveries[i]); err != nil {
			return err
		}
		if err := j.putDelivery(&a.deliveries[i]); err != nil {
			return err
		}
	}
	return nil
}

func damagedID(seq int64) string { return fmt.Sprintf("damaged-%d", seq) }

// remains is what is left of a write: its row, which ok says is good, and those
// rows of its deliveries that are. What is not settled is parked. Without all
// that has to be sent it has no method.
func (j *Journal) remains(w *writeRow, ok bool, request []byte, rows []deliveryRow) fanout.Record {
	r := fanout.Record{
		Seq: uint64(max(0, w.seq)), ID: w.id, Route: plain(w.route), Pool: plain(w.pool), Created: timeOf(w.created),
		Clock: timeOf(w.clock), State: fanout.State(w.state), Told: w.told != 0,
	}
	if !ok {
		r.State = fanout.WriteParked
	}
	if r.ID == "" || plain(r.ID) != r.ID {
		r.ID = damagedID(w.seq)
	}
	backends, err := j.openHead(&r, w.head)
	whole := err == nil
	if j.openReply(&r, w.reply) != nil {
		r.Reply = nil
	}
	if request == nil || j.openRequest(&r, request) != nil {
		whole = false
	}
	if !whole {
		r.Write = fanout.Write{Target: r.Write.Target, RequestID: r.Write.RequestID}
	}
	for i := range rows {
		r.Pool = rows[i].pool // it stands in both
		if err != nil {
			backends = append(backends, rows[i].backend)
		}
	}
	open := !ended(r.State)
	for _, b := range backends {
		d := fanout.Delivery{Backend: b, State: fanout.DeliveryCancelled, Reason: fanout.ReasonDamaged, Unknown: true}
		if open {
			d.State = fanout.DeliveryParked
		}
		for i := range rows {
			if rows[i].backend != b {
				continue
			}
			got, _ := j.delivery(w.id, &rows[i]) // without its error's text if that is damaged
			if open && (got.State == fanout.DeliveryPending || got.State == fanout.DeliveryHeld) {
				got.State, got.Reason, got.Next = fanout.DeliveryParked, fanout.ReasonDamaged, timeOf(0)
			}
			d = got
		}
		r.Deliveries = append(r.Deliveries, d)
	}
	if open {
		r.State = fanout.WriteParked
	}
	return r
}

// plain returns s without what no name has in it.
func plain(s string) string {
	return strings.Map(func(c rune) rune {
		if c == utf8.RuneError || c < ' ' || c == 0x7f {
			return -1
		}
		return c
	}, s)
}

// takeDamaged returns the damaged records that were parked at that backend and
// that nobody was told of.
func (j *Journal) takeDamaged(pool, backend string) (found []fanout.Record) {
	for _, seq := range slices.Sorted(maps.Keys(j.damaged)) {
		r := j.damaged[seq]
		at := func(d fanout.Delivery) bool { return d.Backend == backend && d.Reason == fanout.ReasonDamaged }
		if r.Pool == pool && slices.ContainsFunc(r.Deliveries, at) {
			found = append(found, r)
			delete(j.damaged, seq)
		}
	}
	return found
}

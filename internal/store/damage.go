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
// judges it. Damaged writes are parked with what is left of them, and the
// indexes are made anew from the rows, since an index has no sums of its own.
// After that the journal reads without page checksums until the next start.
// The other tables go on being read with them. What cannot be read even so,
// because it does not hang together, is for Salvage.

// verifying calls fn, which may read and write anything of the journal, and
// calls it again if it comes upon damage that repair can deal with.
func (j *Journal) verifying(fn func() error) error {
	if !j.doubtful {
		err := fn()
		if !errors.Is(err, sqlite3.IOERR_DATA) && !errors.Is(err, errSum) {
			return err
		}
	} else {
		err := j.unverified(fn)
		if !errors.Is(err, errSum) {
			return err
		}
	}
	if j.store.broken != nil {
		return j.store.broken
	}
	if err := j.unverified(j.repair); err != nil {
		return err
	}
	j.doubtful = true
	return j.unverified(fn)
}

// unverified calls fn while page checksums are not looked at.
func (j *Journal) unverified(fn func() error) error {
	s := j.store
	if err := s.conn.Exec(`PRAGMA checksum_verification = OFF`); err != nil {
		return err
	}
	defer func() { _ = s.conn.Exec(`PRAGMA checksum_verification = ON`) }() // cannot fail: it only sets a variable
	return fn()
}

// repair looks at every row, parks the writes that are damaged, and makes the
// indexes anew: all or nothing.
func (j *Journal) repair() error {
	s := j.store
	var found []fanout.Record
	err := s.commit(s.conn, func(c *sqlite3.Conn) error {
		s.dropKept() // a schema does not change under a statement that is not over
		if err := c.Exec(dropJournalIndexes); err != nil {
			return err
		}
		bad, err := j.judge()
		if err != nil {
			return err
		}
		for _, seq := range bad {
			r, err := j.rebuild(seq)
			if err != nil {
				return err
			}
			found = append(found, r)
		}
		if err := c.Exec(settleTurns); err != nil {
			return err
		}
		if err := c.Exec(journalIndexes); err != nil {
			return err
		}
		return c.Exec(settleOrder)
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
		SELECT 1 FROM deliveries AS d WHERE d.turn > 0 AND d.pool = deliveries.pool AND d.backend = deliveries.backend
		AND d.order_key = deliveries.order_key AND d.seq < deliveries.seq)`
)

// judge returns the numbers of the writes that have a damaged row or lack one.
func (j *Journal) judge() ([]int64, error) {
	s := j.store
	bad := make(map[int64]bool)
	want, ids, keys := make(map[int64]int), make(map[string]int64), make(map[string]int64)
	err := s.run(`SELECT `+writeColumns+` FROM writes ORDER BY seq`, func(row *sqlite3.Stmt) bool {
		w, ok := scanWrite(row)
		r := fanout.Record{ID: w.id}
		backends, err := j.openHead(&r, w.head)
		if request := blob(row, 15); err == nil && request != nil {
			err = j.openRequest(&r, request)
		}
		if err == nil {
			err = j.openReply(&r, w.reply)
		}
		want[w.seq] = len(backends)
		_, twice := ids[w.id]
		_, again := keys[string(w.claim)]
		if !ok || err != nil || twice || again {
			bad[w.seq] = true
			return true
		}
		ids[w.id] = w.seq
		if w.claim != nil {
			keys[string(w.claim)] = w.seq
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	err = s.run(`SELECT `+deliveryColumns+` FROM deliveries ORDER BY seq, place`, func(row *sqlite3.Stmt) bool {
		d, ok := scanDelivery(row)
		if _, known := want[d.seq]; !ok || !known {
			bad[d.seq] = true
		}
		want[d.seq]--
		return true
	})
	for seq, left := range want {
		if left != 0 {
			bad[seq] = true
		}
	}
	return slices.Sorted(maps.Keys(bad)), err
}

// rebuild puts what is left of a damaged write in its place, and returns it.
func (j *Journal) rebuild(seq int64) (fanout.Record, error) {
	s := j.store
	var w writeRow
	var request []byte
	ok := false
	err := s.run(`SELECT `+writeColumns+` FROM writes WHERE seq = ?`, func(row *sqlite3.Stmt) bool {
		w, ok = scanWrite(row)
		request = blob(row, 15)
		return true
	}, seq)
	if err != nil {
		return fanout.Record{}, err
	}
	w.seq = seq
	var rows []deliveryRow
	var good []bool
	err = s.run(`SELECT `+deliveryColumns+` FROM deliveries WHERE seq = ? ORDER BY place`, func(row *sqlite3.Stmt) bool {
		d, ok := scanDelivery(row)
		rows, good = append(rows, d), append(good, ok)
		return true
	}, seq)
	if err != nil {
		return fanout.Record{}, err
	}
	r := j.remains(&w, ok, request, rows, good)
	if err := j.erase(seq); err != nil {
		return r, err
	}
	// Another one may have its id or its claim, if that is what is damaged.
	taken := false
	if err := s.run(`SELECT 1 FROM writes WHERE id = ?`, func(*sqlite3.Stmt) bool { taken = true; return true }, r.ID); err != nil {
		return r, err
	}
	if taken {
		r.ID = damagedID(seq)
	}
	taken = false
	if claim := j.seal.key(r.Claim); claim != nil {
		if err := s.run(`SELECT 1 FROM writes WHERE claim = ?`, func(*sqlite3.Stmt) bool { taken = true; return true }, claim); err != nil {
			return r, err
		}
	}
	if taken {
		r.Claim = fanout.Key{}
	}
	return r, j.put(&r, w.settledAt)
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

// remains is what is left of a write whose rows are damaged. What is not
// settled is parked. Without all that has to be sent it has no method.
func (j *Journal) remains(w *writeRow, ok bool, request []byte, rows []deliveryRow, good []bool) fanout.Record {
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
		if good[i] && !ok {
			r.Pool = rows[i].pool // it stands in both
		}
		if err != nil && (good[i] || plain(rows[i].backend) == rows[i].backend) && !slices.Contains(backends, rows[i].backend) {
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
			if rows[i].backend != b || !good[i] {
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

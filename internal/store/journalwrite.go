package store

import (
	"context"
	"slices"
	"time"

	"github.com/ncruces/go-sqlite3"

	"lb/internal/crash"
	"lb/internal/fanout"
)

// The writer's queries.
const (
	byClaim = `SELECT seq, settled_at FROM writes WHERE claim = ?`
	old     = `SELECT seq FROM writes WHERE settled_at <= ? ORDER BY settled_at LIMIT ?`
)

// insert admits a within a transaction. A *Duplicate is its result, not a
// failure.
func (j *Journal) insert(a *admission) error {
	w := &a.write
	if w.claim != nil {
		first, err := j.claimed(w.claim)
		if err != nil {
			return err
		}
		if first != nil {
			return &fanout.Duplicate{Record: *first}
		}
	}
	if w.seq == 0 {
		w.seq = j.seq + 1
	}
	early := w.seq < j.seq // one that was numbered after it is in the journal already
	j.seq = max(j.seq, w.seq)
	if err := j.putWrite(w, a.request); err != nil {
		return err
	}
	a.alone = w.order != nil
	for i := range a.deliveries {
		d := &a.deliveries[i]
		d.seq = w.seq
		if d.order != nil {
			first, err := j.neighbour(firstOfKey, d.pool, d.backend, d.order)
			if err != nil {
				return err
			}
			a.alone = a.alone && first.seq == 0
			if d.turn == turnReady && first.seq != 0 && first.seq < d.seq {
				d.turn = turnWaits
			}
		}
		if err := j.putDelivery(d); err != nil {
			return err
		}
		if early && d.order != nil {
			if err := j.passTurn(d); err != nil {
				return err
			}
		}
	}
	return nil
}

// claimed returns the record that has the claim, or nil. One that is due to be
// forgotten is.
func (j *Journal) claimed(claim []byte) (*fanout.Record, error) {
	var seq, settledAt int64
	err := j.store.run(byClaim, func(row *sqlite3.Stmt) bool {
		seq, settledAt = row.ColumnInt64(0), row.ColumnInt64(1)
		return true
	}, claim)
	if err != nil || seq == 0 {
		return nil, err
	}
	if settledAt != 0 && settledAt <= time.Now().Add(-settledFor).UnixNano() {
		return nil, j.erase(seq)
	}
	r, err := j.load(seq)
	if err == nil && r != nil && unacknowledged(r) {
		return nil, j.erase(seq) // its client was told that nothing was stored, and comes again
	}
	return r, err
}

// unacknowledged reports whether r was stored only after its client had been
// told that it was not.
func unacknowledged(r *fanout.Record) bool {
	return r.State == fanout.WriteCancelled && !slices.ContainsFunc(r.Deliveries, func(d fanout.Delivery) bool {
		return d.Reason != fanout.ReasonUnacknowledged
	})
}

func (j *Journal) putWrite(w *writeRow, request []byte) error {
	var settled any
	if w.settledAt != 0 {
		settled = w.settledAt
	}
	return j.store.run(`INSERT INTO writes (`+writeColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, nil,
		w.seq, w.id, w.route, w.pool, w.created, w.clock, w.state, settled, w.order, w.claim, w.size, w.told, w.head, w.reply, w.sum(), request)
}

func (j *Journal) putDelivery(d *deliveryRow) error {
	return j.store.run(`REPLACE INTO deliveries (`+deliveryColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, nil,
		d.seq, d.place, d.pool, d.backend, d.order, d.turn, d.state, d.reason, d.attempts, d.reached, d.unknown, d.left, d.status, d.next, d.err, d.sum())
}

// neighbour is another delivery of the same key at the same backend.
type neighbour struct {
	seq, place, turn int64
	state            string
}

const (
	firstOfKey  = `SELECT seq, place, turn, state FROM deliveries INDEXED BY deliveries_order WHERE turn > 0 AND pool = ? AND backend = ? AND order_key = ? ORDER BY seq LIMIT 1`
	othersOfKey = `SELECT 1 FROM deliveries INDEXED BY deliveries_order WHERE turn > 0 AND pool = ? AND backend = ? AND order_key = ? AND seq <> ? LIMIT 1`
	nextOfKey   = `SELECT seq, place, turn, state FROM deliveries INDEXED BY deliveries_order WHERE turn > 0 AND pool = ? AND backend = ? AND order_key = ? AND seq > ? ORDER BY seq LIMIT 1`
)

// alone reports whether no other unsettled delivery is of the same key as any
// of rows, which are of one write.
func (j *Journal) alone(rows []deliveryRow) (alone bool, err error) {
	alone = true
	for i := 0; i < len(rows) && alone; i++ {
		d := &rows[i]
		if d.order == nil {
			return false, nil
		}
		err = j.store.run(othersOfKey, func(*sqlite3.Stmt) bool { alone = false; return false }, d.pool, d.backend, d.order, d.seq)
		if err != nil {
			return false, err
		}
	}
	return alone, nil
}

func (j *Journal) neighbour(sql string, args ...any) (n neighbour, err error) {
	err = j.store.run(sql, func(row *sqlite3.Stmt) bool {
		n = neighbour{row.ColumnInt64(0), row.ColumnInt64(1), row.ColumnInt64(2), row.ColumnText(3)}
		return true
	}, args...)
	return n, err
}

// putTurn lets d wait if there is another of its key before it.
func (j *Journal) putTurn(d *deliveryRow) error {
	if d.order == nil || d.turn != turnReady {
		return nil
	}
	first, err := j.neighbour(firstOfKey, d.pool, d.backend, d.order)
	if err == nil && first.seq != 0 && first.seq < d.seq {
		d.turn = turnWaits
	}
	return err
}

// passTurn sees to the one that comes after d in its key, when d has just
// ceased to stand before it, or has come to.
func (j *Journal) passTurn(d *deliveryRow) error {
	next, err := j.neighbour(nextOfKey, d.pool, d.backend, d.order, d.seq)
	if err != nil || next.seq == 0 || next.state != string(fanout.DeliveryPending) {
		return err
	}
	turn := int64(turnReady)
	if first, err := j.neighbour(firstOfKey, d.pool, d.backend, d.order); err != nil {
		return err
	} else if first.seq < next.seq {
		turn = turnWaits
	}
	if turn == next.turn {
		return nil
	}
	return j.store.run(`UPDATE deliveries SET turn = ? WHERE seq = ? AND place = ?`, nil, turn, next.seq, next.place)
}

// apply notes changes within a transaction.
func (j *Journal) apply(cs *changes) error {
	for _, id := range cs.order {
		if err := j.change(cs.byID[id]); err != nil {
			return err
		}
	}
	return nil
}

// change notes one. What it does not change is not written again.
func (j *Journal) change(c *fanout.Change) error {
	w, found, err := j.findRow(c.ID)
	if err != nil || !found {
		return err
	}
	before := w
	r := fanout.Record{
		ID: w.id, Pool: w.pool, Seq: uint64(max(0, w.seq)), State: c.State, Reply: c.Reply,
	}
	w.state = string(c.State)
	if !c.Clock.IsZero() {
		w.clock = instant(c.Clock)
	}
	if c.Reply != nil {
		w.reply = j.reply(&r)
	}
	if c.Told {
		w.told = 1
	}
	switch wasEnded := ended(fanout.State(before.state)); {
	case !ended(c.State):
		w.settledAt = 0
	case !wasEnded:
		w.settledAt = time.Now().UnixNano()
	}
	if c.Reply != nil || w.state != before.state || w.clock != before.clock || w.told != before.told {
		if err := j.changeWrite(&w); err != nil {
			return err
		}
	}
	rows, err := j.deliveryRows(w.seq)
	if err != nil {
		return err
	}
	for i := range rows {
		was := rows[i]
		row := was
		for k := range c.Deliveries {
			if d := &c.Deliveries[k]; d.Backend == was.backend {
				r.Deliveries = []fanout.Delivery{*d}
				row = j.row(&r, 0, w.order)
				row.place = was.place
			}
		}
		row.turn = turnOf(c.State, fanout.DeliveryState(row.state))
		if row.order != nil && row.turn == turnReady {
			if err := j.putTurn(&row); err != nil {
				return err
			}
		}
		if row.sum() == was.sum() && row.turn == was.turn {
			continue
		}
		if err := j.putDelivery(&row); err != nil {
			return err
		}
		if row.order != nil && (row.turn == turnNone) != (was.turn == turnNone) {
			if err := j.passTurn(&row); err != nil {
				return err
			}
		}
	}
	return nil
}

func (j *Journal) changeWrite(w *writeRow) error {
	if w.settledAt == 0 {
		return j.store.run(`UPDATE writes SET clock = ?, state = ?, settled_at = NULL, told = ?, reply = ?, sum = ? WHERE seq = ?`, nil,
			w.clock, w.state, w.told, w.reply, w.sum(), w.seq)
	}
	return j.store.run(`UPDATE writes SET clock = ?, state = ?, settled_at = ?, told = ?, reply = ?, sum = ?, request = NULL WHERE seq = ?`, nil,
		w.clock, w.state, w.settledAt, w.told, w.reply, w.sum(), w.seq)
}

// erase removes a write within a transaction.
func (j *Journal) erase(seq int64) error {
	if err := j.store.run(`DELETE FROM deliveries WHERE seq = ?`, nil, seq); err != nil {
		return err
	}
	return j.store.run(`DELETE FROM writes WHERE seq = ?`, nil, seq)
}

// forget removes settled writes that are old enough, and reports whether there
// may be more. It need not be synced: what comes back is removed again.
func (j *Journal) forget() (more bool) {
	s := j.store
	if err := s.takeTurn(context.Background()); err != nil {
		return false
	}
	defer s.endTurn()
	err := j.commit(false, func() error {
		crash.At("journal.retention")
		var gone []int64
		err := s.run(old, func(row *sqlite3.Stmt) bool {
			gone = append(gone, row.ColumnInt64(0))
			return true
		}, time.Now().Add(-settledFor).UnixNano(), int64(forgetBatch))
		if err != nil {
			return err
		}
		if more = len(gone) == forgetBatch; len(gone) == 0 {
			return nil
		}
		// No number is given twice, though the highest may go.
		if err := s.run(`REPLACE INTO meta (name, value) VALUES ('seq', ?)`, nil, decimal(j.seq)); err != nil {
			return err
		}
		for _, seq := range gone {
			if err := j.erase(seq); err != nil {
				return err
			}
		}
		return nil
	})
	return more && err == nil
}

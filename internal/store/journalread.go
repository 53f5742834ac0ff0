package store

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/ncruces/go-sqlite3"

	"lb/internal/fanout"
)

// look calls fn when it is its turn, with all that was updated before noted.
// That is done in a transaction which is committed without a sync: a reader
// waits for no disk, and the next sync covers it. If it cannot be committed,
// what fn has read is right all the same, and the changes stay queued.
func (j *Journal) look(ctx context.Context, fn func() error) error {
	s := j.store
	if err := s.takeTurn(ctx); err != nil {
		return j.refusal(err)
	}
	defer s.endTurn()
	if s.conn == nil {
		return j.refusal(errClosed)
	}
	err := j.readWith(ctx, fn)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return j.refusal(s.explain(err))
	}
	return nil
}

// errUndo ends a transaction that cannot be committed.
var errUndo = errors.New("not to be written")

func (j *Journal) readWith(ctx context.Context, fn func() error) error {
	s := j.store
	interruptible := func() error {
		defer s.conn.SetInterrupt(s.conn.SetInterrupt(ctx))
		return fn()
	}
	taken := j.takeChanges()
	if len(taken.order) == 0 {
		return j.verifying(interruptible)
	}
	defer func() { j.giveBack(taken) }()
	var read error
	did := false
	work := func() error {
		if err := j.apply(&taken); err != nil {
			return err
		}
		if read = interruptible(); errors.Is(read, sqlite3.IOERR_DATA) || errors.Is(read, errSum) {
			return read // for repair
		}
		did = true
		if s.broken != nil {
			return errUndo
		}
		return nil
	}
	var err error
	if s.broken == nil {
		err = j.commit(false, work)
	} else {
		err = j.verifying(func() error { return transaction(s.conn, func(*sqlite3.Conn) error { return work() }) })
	}
	if err == nil {
		taken = changes{}
	}
	if did {
		return read
	}
	return err
}

// Find implements fanout.Journal.
func (j *Journal) Find(ctx context.Context, id string) (r fanout.Record, ok bool, err error) {
	err = j.look(ctx, func() error {
		w, found, err := j.findRow(id)
		if err != nil || !found {
			return err
		}
		if w.settledAt != 0 && w.settledAt <= time.Now().Add(-settledFor).UnixNano() {
			return nil
		}
		got, err := j.load(w.seq)
		if got != nil {
			r, ok = *got, true
		}
		return err
	})
	return r, ok, err
}

// The queries of readers.
const (
	due       = `SELECT seq FROM deliveries INDEXED BY deliveries_turn WHERE turn > 0 AND turn = 3 AND pool = ? AND backend = ? AND next <= ? ORDER BY next, seq LIMIT ?`
	listAll   = `SELECT seq FROM writes WHERE seq > ? ORDER BY seq LIMIT ?`
	listRange = `SELECT seq FROM writes WHERE state = ? AND pool = ? AND seq > ? ORDER BY seq LIMIT ?`
	firstPool = `SELECT pool FROM writes WHERE state = ? ORDER BY pool LIMIT 1`
	nextPool  = `SELECT pool FROM writes WHERE state = ? AND pool > ? ORDER BY pool LIMIT 1`
	countTurn = `SELECT count(*) FROM deliveries INDEXED BY deliveries_turn WHERE turn > 0 AND pool = ? AND backend = ? AND turn = ?`
	firstLane = `SELECT pool, backend FROM deliveries INDEXED BY deliveries_turn WHERE turn > 0 ORDER BY pool, backend LIMIT 1`
	nextLane  = `SELECT pool, backend FROM deliveries INDEXED BY deliveries_turn WHERE turn > 0 AND (pool, backend) > (?, ?) ORDER BY pool, backend LIMIT 1`
	pendingOf = `SELECT route, size FROM writes WHERE state = 'pending'`
	byID      = `SELECT ` + writeColumns + ` FROM writes WHERE id = ?`
)

// Due implements fanout.Journal.
func (j *Journal) Due(ctx context.Context, pool, backend string, before time.Time, limit int) (found []fanout.Record, err error) {
	err = j.look(ctx, func() error {
		found, err = j.loadAll(due, pool, backend, instant(before), int64(limit))
		if err == nil {
			found = append(found, j.takeDamaged(pool, backend)...)
		}
		return err
	})
	return found, err
}

// Head implements fanout.Journal.
func (j *Journal) Head(ctx context.Context, pool, backend string, order fanout.Key) (r fanout.Record, ok bool, err error) {
	key := j.seal.key(order)
	if key == nil {
		return r, false, nil // unordered writes have no order
	}
	err = j.look(ctx, func() error {
		first, err := j.neighbour(firstOfKey, pool, backend, key)
		if err != nil || first.seq == 0 {
			return err
		}
		got, err := j.load(first.seq)
		if got != nil {
			r, ok = *got, true
		}
		return err
	})
	return r, ok, err
}

// allStates are all that a write can be in: with them every list is a few ranges
// of one index.
var allStates = []fanout.State{fanout.WritePending, fanout.WriteDone, fanout.WriteParked, fanout.WriteRejected, fanout.WriteCancelled}

// pools returns the pools that have writes in that state, by looking for each
// where the one before ends.
func (j *Journal) pools(s fanout.State) (pools []string, err error) {
	for found, after := true, any(nil); found; {
		found = false
		each := func(row *sqlite3.Stmt) bool {
			found = true
			pools = append(pools, row.ColumnText(0))
			return true
		}
		if after == nil {
			err = j.store.run(firstPool, each, string(s))
		} else {
			err = j.store.run(nextPool, each, string(s), after)
		}
		if err != nil {
			return nil, err
		}
		if found {
			after = pools[len(pools)-1]
		}
	}
	return pools, nil
}

// List implements fanout.Journal.
func (j *Journal) List(ctx context.Context, f fanout.Filter) (found []fanout.Record, err error) {
	limit := int64(max(0, min(f.Limit, maxList)))
	after := number64(f.After)
	err = j.look(ctx, func() error {
		var seqs []int64
		each := func(row *sqlite3.Stmt) bool {
			seqs = append(seqs, row.ColumnInt64(0))
			return true
		}
		if f.State == "" && f.Pool == "" {
			if err := j.store.run(listAll, each, after, limit); err != nil {
				return err
			}
		}
		for _, state := range allStates {
			if f.State != state && (f.State != "" || f.Pool == "") {
				continue
			}
			pools := []string{f.Pool}
			if f.Pool == "" {
				if pools, err = j.pools(state); err != nil {
					return err
				}
			}
			for _, pool := range pools {
				err := j.store.run(listRange, each,
					string(state), pool, after, limit)
				if err != nil {
					return err
				}
			}
		}
		slices.Sort(seqs)
		found, err = j.loadEach(seqs[:min(int64(len(seqs)), limit)], false)
		return err
	})
	return found, err
}

// Totals implements fanout.Journal.
func (j *Journal) Totals(ctx context.Context) (t fanout.Totals, err error) {
	err = j.look(ctx, func() error {
		t = fanout.Totals{Seq: uint64(max(0, j.seq))}
		defer clear(j.damaged) // they are counted as parked
		if err := j.countBackends(&t); err != nil {
			return err
		}
		// Summed here: GROUP BY would sort them all.
		routes := make(map[string]*fanout.RouteTotal)
		err := j.store.run(pendingOf, func(row *sqlite3.Stmt) bool {
			name := row.ColumnRawText(0)
			total := routes[string(name)]
			if total == nil {
				total = &fanout.RouteTotal{Route: string(name)}
				routes[total.Route] = total
			}
			total.Writes++
			total.Bytes += row.ColumnInt64(1)
			return true
		})
		for _, total := range routes {
			t.Routes = append(t.Routes, *total)
		}
		return err
	})
	return t, err
}

// countBackends fills in t.Backends: it looks for each where the one before
// ends, and counts within the index.
func (j *Journal) countBackends(t *fanout.Totals) error {
	var b fanout.BackendTotal
	found := false
	each := func(row *sqlite3.Stmt) bool {
		b, found = fanout.BackendTotal{Pool: row.ColumnText(0), Backend: row.ColumnText(1)}, true
		return true
	}
	err := j.store.run(firstLane, each)
	for found && err == nil {
		for turn, n := range map[int64]*int{turnParked: &b.Parked, turnWaits: &b.Pending, turnReady: &b.Pending} {
			err := j.store.run(countTurn, func(row *sqlite3.Stmt) bool { *n += row.ColumnInt(0); return true }, b.Pool, b.Backend, turn)
			if err != nil {
				return err
			}
		}
		t.Backends = append(t.Backends, b)
		found = false
		err = j.store.run(nextLane, each, b.Pool, b.Backend)
	}
	return err
}

// Oldest implements fanout.Journal.
func (j *Journal) Oldest(ctx context.Context) (oldest []fanout.Oldest, err error) {
	err = j.look(ctx, func() error {
		oldest = nil
		for _, state := range []fanout.State{fanout.WritePending, fanout.WriteParked} {
			pools, err := j.pools(state)
			if err != nil {
				return err
			}
			for _, pool := range pools {
				err := j.store.run(`SELECT created FROM writes WHERE seq =
					(SELECT seq FROM writes WHERE state = ? AND pool = ? ORDER BY seq LIMIT 1)`, func(row *sqlite3.Stmt) bool {
					oldest = append(oldest, fanout.Oldest{Pool: pool, State: state, Created: timeOf(row.ColumnInt64(0))})
					return true
				}, string(state), pool)
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
	return oldest, err
}

// findRow returns the row of the write with that id.
func (j *Journal) findRow(id string) (w writeRow, found bool, err error) {
	ok := false
	err = j.store.run(byID, func(row *sqlite3.Stmt) bool {
		w, ok = scanWrite(row)
		found = true
		return true
	}, id)
	if err == nil && found && !ok {
		err = errSum
	}
	return w, found, err
}

// deliveryRows returns the rows of a write's deliveries, in their order.
func (j *Journal) deliveryRows(seq int64) (rows []deliveryRow, err error) {
	good := true
	err = j.store.run(`SELECT `+deliveryColumns+` FROM deliveries WHERE seq = ? ORDER BY place`, func(row *sqlite3.Stmt) bool {
		d, ok := scanDelivery(row)
		good = good && ok && d.place == int64(len(rows))
		rows = append(rows, d)
		return true
	}, seq)
	if err == nil && !good {
		err = errSum
	}
	return rows, err
}

// loadAll loads the records whose numbers a statement gives.
func (j *Journal) loadAll(sql string, args ...any) ([]fanout.Record, error) {
	var seqs []int64
	err := j.store.run(sql, func(row *sqlite3.Stmt) bool {
		seqs = append(seqs, row.ColumnInt64(0))
		return true
	}, args...)
	if err != nil {
		return nil, err
	}
	return j.loadEach(seqs, true)
}

// loadEach loads the records with those numbers. If they are to be sent it
// stops when they take more memory than maxLoad; else what only sending needs
// is left out.
func (j *Journal) loadEach(seqs []int64, toSend bool) ([]fanout.Record, error) {
	records := make([]fanout.Record, 0, len(seqs))
	size := int64(0)
	for _, seq := range seqs {
		if size > maxLoad {
			break
		}
		r, err := j.load(seq)
		if err != nil {
			return nil, err
		}
		if r != nil {
			if toSend {
				size += r.Write.Size()
			} else {
				r.Write = fanout.Write{Method: r.Write.Method, Target: r.Write.Target, RequestID: r.Write.RequestID}
			}
			records = append(records, *r)
		}
	}
	return records, nil
}

// load returns the record with that number, or nil if there is none.
func (j *Journal) load(seq int64) (*fanout.Record, error) {
	var w writeRow
	var request []byte
	found, ok := false, false
	err := j.store.run(`SELECT `+writeColumns+` FROM writes WHERE seq = ?`, func(row *sqlite3.Stmt) bool {
		w, ok = scanWrite(row)
		request = blob(row, 15)
		found = true
		return true
	}, seq)
	if err != nil || !found {
		return nil, err
	}
	if !ok {
		return nil, errSum
	}
	rows, err := j.deliveryRows(seq)
	if err != nil {
		return nil, err
	}
	r, err := j.record(&w, request, rows)
	if err != nil {
		return nil, err
	}
	if w.order != nil && !ended(r.State) {
		r.Alone, err = j.alone(rows)
	}
	return r, err
}

// record makes a record of its rows; its error is errSum.
func (j *Journal) record(w *writeRow, request []byte, rows []deliveryRow) (*fanout.Record, error) {
	r := &fanout.Record{
		Seq: uint64(max(0, w.seq)), ID: w.id, Route: w.route, Pool: w.pool, Created: timeOf(w.created), Clock: timeOf(w.clock),
		State: fanout.State(strings.Clone(w.state)), Told: w.told != 0,
	}
	backends, err := j.openHead(r, w.head)
	if err != nil {
		return nil, err
	}
	if err := j.openReply(r, w.reply); err != nil {
		return nil, err
	}
	if request != nil {
		if err := j.openRequest(r, request); err != nil {
			return nil, err
		}
	}
	if len(rows) != len(backends) {
		return nil, errSum
	}
	r.Deliveries = make([]fanout.Delivery, len(rows))
	for i := range rows {
		if rows[i].backend != backends[i] {
			return nil, errSum
		}
		if r.Deliveries[i], err = j.delivery(w.id, &rows[i]); err != nil {
			return nil, err
		}
	}
	return r, nil
}

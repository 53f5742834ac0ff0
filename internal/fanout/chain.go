package fanout

import (
	"cmp"
	"slices"
	"time"
)

// chain is the order of the writes of one key: at each backend a write goes
// only when every earlier one is settled there. A parked delivery is not: it
// keeps those behind it waiting until an operator retries or skips it. Writes
// of other keys never wait for it.
//
// It decides only, over the writes that are in memory. While partial, there
// may be others of the key in the journal, and who is next at a backend has to
// be asked there.
type chain struct {
	writes  []*write // those in memory, by Seq; some may still be on their way into the journal
	partial bool
	parted  int // how many have left memory unsettled
}

// add takes w in, at its place.
func (c *chain) add(w *write) {
	i, _ := slices.BinarySearchFunc(c.writes, w, func(a, b *write) int { return cmp.Compare(a.record.Seq, b.record.Seq) })
	c.writes = slices.Insert(c.writes, i, w)
}

// remove takes w out, if it is there.
func (c *chain) remove(w *write) {
	c.writes = slices.DeleteFunc(c.writes, func(x *write) bool { return x == w })
}

// next returns the first write in memory that is not settled at that backend,
// or nil.
func (c *chain) next(backend string) *write {
	for _, w := range c.writes {
		if i := w.place(backend); i >= 0 && w.verdict.deliveries[i].State.unsettled() {
			return w
		}
	}
	return nil
}

// precedes reports whether a write in memory with a lower Seq than seq is not
// settled at that backend.
func (c *chain) precedes(backend string, seq uint64) bool {
	for _, w := range c.writes {
		if w.record.Seq >= seq {
			return false
		}
		if i := w.place(backend); i >= 0 && w.verdict.deliveries[i].State.unsettled() {
			return true
		}
	}
	return false
}

// place returns the place of the backend's delivery, or -1.
func (w *write) place(backend string) int {
	return slices.IndexFunc(w.verdict.deliveries, func(d Delivery) bool { return d.Backend == backend })
}

// enchain puts w into the chain of its key, if it has one.
func (e *Engine) enchain(w *write) {
	if w.record.Order == (Key{}) {
		return
	}
	c := e.chains[w.record.Order]
	if c == nil {
		c = &chain{partial: e.outside > 0 || e.parked > 0}
		e.chains[w.record.Order] = c
	}
	c.add(w)
	w.chain, w.parted = c, c.parted
}

// whole notes that the journal has found no other unsettled write of w's key,
// since w came into its chain: whatever has come since is in memory, unless it
// has left again.
func (w *write) whole() {
	if w.chain != nil && w.chain.parted == w.parted {
		w.chain.partial = false
	}
}

// unchain takes w out of its chain. With unsettled the journal still has
// something of it that those behind it wait for.
func (e *Engine) unchain(w *write, unsettled bool) {
	c := w.chain
	if c == nil {
		return
	}
	c.remove(w)
	if unsettled {
		c.partial = true
		c.parted++
	}
	if len(c.writes) == 0 {
		delete(e.chains, w.record.Order)
	}
}

// advance lets go whoever is next in w's key at that backend.
func (e *Engine) advance(w *write, backend string, now time.Time) {
	switch c := w.chain; {
	case c == nil || e.stopping:
	case e.removed(w.record.Pool, backend): // none of them will go there
	case c.partial:
		e.work.Add(1)
		go e.askNext(w.record.Pool, backend, w.record.Order)
	default:
		if next := c.next(backend); next != nil {
			e.letGo(next, backend, now)
		}
	}
}

// askNext asks the journal who is next in a key at a backend, and lets it go.
func (e *Engine) askNext(pool, backend string, order Key) {
	defer e.work.Done()
	since := e.beginRead()
	r, found, err := e.journal.Head(e.ctx, pool, backend, order)
	e.mu.Lock()
	defer e.unlock()
	defer e.endRead()
	now := time.Now()
	l := e.lanes[laneKey{pool, backend}]
	switch {
	case e.stopping:
	case err != nil:
		time.AfterFunc(again, func() { e.askAgain(pool, backend, order) })
	case !found:
	case r.State != WritePending:
		// It is parked, and stays outside until an operator retries or skips
		// it. One that was damaged the lane is told of.
		if l != nil && r.delivery(backend).Reason == ReasonDamaged {
			l.outsideDue = now
			e.pump(l, now)
		}
	case e.left.writes[r.ID] > since && l != nil:
		// It has left memory since; if it is still first, the lane will find it.
		l.outsideDue = now
		e.pump(l, now)
	default:
		if w, _ := e.bring(&r, backend, since, now); w != nil {
			e.letGoFirst(w, backend, since, now)
		}
	}
}

// askAgain is askNext after the journal has failed.
func (e *Engine) askAgain(pool, backend string, order Key) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.stopping {
		e.work.Add(1)
		go e.askNext(pool, backend, order)
	}
}

// letGoFirst is letGo for a write that a read which began at since found to be
// first in its key.
func (e *Engine) letGoFirst(w *write, backend string, since int, now time.Time) {
	switch {
	case w.chain != nil && w.chain.precedes(backend, w.record.Seq):
		// That one was on its way into the journal, and will ask itself.
	case e.left.keys[w.record.Order] > since:
		e.advance(w, backend, now) // one may have come and gone meanwhile
	default:
		e.letGo(w, backend, now)
	}
}

// letGo puts w's delivery to a backend into its lane, if it waited for its
// turn in its key.
func (e *Engine) letGo(w *write, backend string, now time.Time) {
	i := w.place(backend)
	if i < 0 || w.deliveries == nil {
		return
	}
	d, s := w.deliveries[i], &w.verdict.deliveries[i]
	if !d.blocked || s.State != DeliveryPending {
		return
	}
	d.blocked = false
	d.lane.add(d, s.Next)
	e.pump(d.lane, now)
}

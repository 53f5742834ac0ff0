// Package admission is the queue before a pool: who waits for a slot, in which
// order, and whether it is worth the wait. It takes no lock and reads no clock:
// the pool that owns a queue does.
package admission

import "lb/internal/backend"

// Queue is a line of waiters in the order in which they came. Some take any
// backend, some any that they have not tried, others are pinned to one. The zero
// value is empty. Not safe for concurrent use.
type Queue[W any] struct {
	any    lane[W]
	picky  lane[W]
	pinned map[*backend.Backend]*lane[W] // none of them empty
	last   uint64                        // the last number given out
	n      int
	open   lanes[W] // of the Serve that runs
}

// Place is a waiter's place in a queue. It is part of the waiter, so that
// waiting does not allocate. The zero value is in no queue.
type Place[W any] struct {
	who        W
	number     uint64
	lane       *lane[W] // nil while it is in no queue
	prev, next *Place[W]
}

// Waits reports whether p is in a queue.
func (p *Place[W]) Waits() bool { return p.lane != nil }

// lane holds the waiters that want the same, or those that are picky.
type lane[W any] struct {
	backend     *backend.Backend // of those that are pinned
	first, last *Place[W]
	n           int
	asked       *Place[W] // who is to be asked next by the Serve that runs
}

// Join puts p, which waits nowhere, at the end of the line for who, which takes
// any backend.
func (q *Queue[W]) Join(p *Place[W], who W) { q.join(&q.any, p, who) }

// JoinPicky is Join for one that has tried some: what it cannot use says nothing
// of others, nor the other way round.
func (q *Queue[W]) JoinPicky(p *Place[W], who W) { q.join(&q.picky, p, who) }

// JoinPinned is Join for one that is pinned to b.
func (q *Queue[W]) JoinPinned(p *Place[W], who W, b *backend.Backend) {
	l := q.pinned[b]
	if l == nil {
		if q.pinned == nil {
			q.pinned = make(map[*backend.Backend]*lane[W])
		}
		l = &lane[W]{backend: b}
		q.pinned[b] = l
	}
	q.join(l, p, who)
}

func (q *Queue[W]) join(l *lane[W], p *Place[W], who W) {
	q.last++
	*p = Place[W]{who: who, number: q.last, lane: l, prev: l.last}
	if l.last == nil {
		l.first = p
	} else {
		l.last.next = p
	}
	l.last = p
	l.n++
	q.n++
}

// Leave takes p out of the line and reports whether it was there.
func (q *Queue[W]) Leave(p *Place[W]) bool {
	l := p.lane
	if l == nil {
		return false
	}
	if p.prev == nil {
		l.first = p.next
	} else {
		p.prev.next = p.next
	}
	if p.next == nil {
		l.last = p.prev
	} else {
		p.next.prev = p.prev
	}
	l.n--
	q.n--
	if l.n == 0 && l.backend != nil {
		delete(q.pinned, l.backend)
	}
	*p = Place[W]{}
	return true
}

// Len returns how many wait.
func (q *Queue[W]) Len() int { return q.n }

// Free returns how many of them are not pinned to a backend.
func (q *Queue[W]) Free() int { return q.any.n + q.picky.n }

// Pinned returns how many of them are pinned to b.
func (q *Queue[W]) Pinned(b *backend.Backend) int {
	if l := q.pinned[b]; l != nil {
		return l.n
	}
	return 0
}

// Answer says how to go on after a waiter was asked whether it can use what is
// free.
type Answer uint8

const (
	// Next says to ask who is behind it.
	Next Answer = iota
	// Blocked says that those behind it that want the same need not be asked. It is
	// no answer of one that is picky.
	Blocked
	// Stop says that nobody need be asked any more.
	Stop
)

// Serve asks everybody in line, first come first asked, as far as the answers
// let it. The only one that may leave meanwhile is the one that is asked: who
// has got what it waited for does.
func (q *Queue[W]) Serve(ask func(who W) Answer) {
	q.add(&q.any)
	q.add(&q.picky)
	for _, l := range q.pinned {
		q.add(l)
	}
	q.serve(ask)
}

// ServeAt is Serve for those that may use a slot of b: who is pinned to another
// backend is not asked.
func (q *Queue[W]) ServeAt(b *backend.Backend, ask func(who W) Answer) {
	q.add(&q.any)
	q.add(&q.picky)
	if l := q.pinned[b]; l != nil {
		q.add(l)
	}
	q.serve(ask)
}

func (q *Queue[W]) add(l *lane[W]) {
	if l.first != nil {
		l.asked = l.first
		q.open = append(q.open, l)
	}
}

// serve asks the waiters of the open lanes by their numbers.
func (q *Queue[W]) serve(ask func(who W) Answer) {
	for i := len(q.open) / 2; i >= 0; i-- {
		q.open.sink(i)
	}
	for len(q.open) > 0 {
		l := q.open[0]
		p := l.asked
		l.asked = p.next
		switch ask(p.who) {
		case Next:
		case Blocked:
			l.asked = nil
		case Stop:
			clear(q.open)
			q.open = q.open[:0]
			return
		}
		if l.asked == nil {
			last := len(q.open) - 1
			q.open[0], q.open[last] = q.open[last], nil
			q.open = q.open[:last]
		}
		q.open.sink(0)
	}
}

// lanes is a heap of lanes by who is to be asked next.
type lanes[W any] []*lane[W]

// sink lets the lane at i down to where it belongs.
func (h lanes[W]) sink(i int) {
	for child := 2*i + 1; child < len(h); child = 2*i + 1 {
		if right := child + 1; right < len(h) && h[right].asked.number < h[child].asked.number {
			child = right
		}
		if h[i].asked.number < h[child].asked.number {
			return
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
}

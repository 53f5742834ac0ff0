package registration

import (
	"container/heap"
	"time"
)

const (
	// dropAfter is how long the state and the series of an instance outlive it.
	dropAfter = 10 * time.Minute
	// forgetAfter is how long an id is known after it was last seen, or left.
	forgetAfter = 24 * time.Hour
	// atOnce is about how many instances one call of Expire is about: whoever
	// carries that out lets others have their turn in between.
	atOnce = 100
	// busyAgain is when to look again at one that is silent but at work.
	busyAgain = 250 * time.Millisecond
)

// Expire does what is due. It returns the instances that have expired, those
// that are to be dropped, with their state and their series, because they have
// been expired or left for 10 minutes, and those that are forgotten, because
// they were last seen, or left, 24 h ago or too many others did since. An
// instance may be in several lists. There may be more that is due: next is over
// then. busy reports whether anything is in flight
// to an instance: then it does not expire. next is when to call again, unless
// something is committed before; see Next.
func (b *Book) Expire(now time.Time, busy func(pool, id string) bool) (expired, dropped, forgotten []Instance, next time.Time) {
	drop := func(m *member) {
		b.take(m)
		m.dropped = true
		b.put(m)
		dropped = append(dropped, m.Instance)
	}
	for len(b.schedule) > 0 && !b.schedule[0].due.After(now) && len(expired)+len(dropped)+len(forgotten) < atOnce {
		switch m := b.schedule[0]; {
		case m.State == Present && busy(m.Pool, m.ID):
			m.due = now.Add(busyAgain)
			heap.Fix(&b.schedule, 0)
		case m.State == Present:
			b.take(m)
			m.State, m.LeftAt = Expired, now
			b.put(m)
			expired = append(expired, m.Instance)
		case !m.dropped:
			drop(m)
		default:
			b.forget(m)
			forgotten = append(forgotten, m.Instance)
		}
	}
	for b.tooMany() && len(expired)+len(dropped)+len(forgotten) < atOnce {
		m := b.gone.Front().Value.(*member)
		if !m.dropped {
			drop(m)
		}
		b.forget(m)
		forgotten = append(forgotten, m.Instance)
	}
	return expired, dropped, forgotten, b.Next()
}

// Next returns when Expire has something to do; zero: never.
func (b *Book) Next() time.Time {
	if b.tooMany() {
		return b.gone.Front().Value.(*member).LeftAt // long since
	}
	if len(b.schedule) == 0 {
		return time.Time{}
	}
	return b.schedule[0].due
}

// tooMany reports whether more are remembered than may be: who registers and
// leaves again and again must not fill the memory.
func (b *Book) tooMany() bool { return b.gone.Len() > b.settings.MaxInstances }

func (b *Book) forget(m *member) {
	b.take(m)
	b.gone.Remove(m.gone)
	p := b.pools[m.Pool]
	if delete(p.known, m.ID); len(p.known) == 0 {
		delete(b.pools, m.Pool)
	}
}

// next returns when something happens to m.
func (m *member) next() time.Time {
	switch {
	case m.State == Present:
		return m.Seen.Add(m.TTL)
	case !m.dropped:
		return m.LeftAt.Add(dropAfter)
	case m.State == Expired:
		return m.Seen.Add(forgetAfter)
	}
	return m.LeftAt.Add(forgetAfter)
}

// schedule is a heap of members by when they are due.
type schedule []*member

func (s schedule) Len() int           { return len(s) }
func (s schedule) Less(i, j int) bool { return s[i].due.Before(s[j].due) }

func (s schedule) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i, j
}

// Push implements heap.Interface.
func (s *schedule) Push(x any) {
	m := x.(*member)
	m.index = len(*s)
	*s = append(*s, m)
}

// Pop implements heap.Interface.
func (s *schedule) Pop() any {
	last := len(*s) - 1
	m := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	return m
}

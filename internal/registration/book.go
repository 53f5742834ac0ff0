package registration

import (
	"cmp"
	"container/heap"
	"container/list"
	"slices"
	"strings"
	"time"
)

// Settings are what the configuration says of registration.
type Settings struct {
	// TTL is that of a backend that names none.
	TTL time.Duration
	// MaxInstances bounds how many backends are registered at once: those that
	// are present, and those that expired and have not been dropped yet. As many
	// again are remembered of those that are gone.
	MaxInstances int
	// MaxPools bounds how many pools registration makes.
	MaxPools int
}

// Book is who is registered. It is not safe for concurrent use.
//
// A pool is in the book as long as it has an instance that has not been dropped;
// then it is forgotten, though its instances may still be known under their ids.
type Book struct {
	settings Settings
	pools    map[string]*pool
	schedule schedule
	gone     list.List // the *members that do not count against MaxInstances, who left first in front
	counted  int       // the others
	made     int       // pools in the book that the configuration does not have
	order    uint64    // the highest that was given
}

// pool is what the book knows under one pool's name.
type pool struct {
	policy  string
	made    bool               // by registration
	present int                // how many are
	known   map[string]*member // by id
	members []*member          // those that have not been dropped, in order
}

// member is one instance in the book.
type member struct {
	Instance
	dropped bool          // nothing but the memory of it is left
	due     time.Time     // when something happens to it
	index   int           // in the schedule
	gone    *list.Element // in Book.gone; nil: it counts
}

// NewBook returns an empty book.
func NewBook(s Settings) *Book { return &Book{settings: s, pools: make(map[string]*pool)} }

// SetSettings replaces the settings. Whoever is registered stays.
func (b *Book) SetSettings(s Settings) { b.settings = s }

// Pool is one pool of the book.
type Pool struct {
	Name, Policy string
	// Present is how many of its instances are.
	Present int
}

// Pools returns the pools in the book, sorted by name: those that registration
// made, and those of the configuration into which backends registered.
func (b *Book) Pools() []Pool {
	var pools []Pool
	for name, p := range b.pools {
		if len(p.members) > 0 {
			pools = append(pools, Pool{Name: name, Policy: p.policy, Present: p.present})
		}
	}
	slices.SortFunc(pools, func(a, b Pool) int { return strings.Compare(a.Name, b.Name) })
	return pools
}

// Instances returns the instances of a pool that have not been dropped, in the
// order of their registration.
func (b *Book) Instances(name string) []Instance {
	p := b.pools[name]
	if p == nil {
		return nil
	}
	all := make([]Instance, len(p.members))
	for i, m := range p.members {
		all[i] = m.Instance
	}
	return all
}

// Get returns the instance that is known under an id, dropped or not.
func (b *Book) Get(pool, id string) (Instance, bool) {
	if m := b.find(pool, id); m != nil {
		return m.Instance, true
	}
	return Instance{}, false
}

func (b *Book) find(pool, id string) *member {
	if p := b.pools[pool]; p != nil {
		return p.known[id]
	}
	return nil
}

// Restore fills an empty book with what was stored. Whoever was present is so
// from now on for its whole ttl: it could not be heard while lb was away. Those
// that were due to be dropped meanwhile are so already: no state of theirs
// outlived the process, and Expire does not tell of it. configured says which
// pools the configuration has: they do not count as made by registration.
func (b *Book) Restore(now time.Time, kept []Instance, configured func(pool string) bool) {
	kept = slices.SortedStableFunc(slices.Values(kept), func(a, b Instance) int { return a.LeftAt.Compare(b.LeftAt) })
	for _, in := range kept {
		// A clock that was set back must not keep anybody for years.
		in.Seen, in.LeftAt = earlier(in.Seen, now), earlier(in.LeftAt, now)
		m := b.member(in.Pool, in.ID)
		b.take(m)
		if in.State == Present {
			in.Seen = now
		}
		m.Instance, m.dropped = in, in.State != Present && !now.Before(in.LeftAt.Add(dropAfter))
		p := b.pools[in.Pool]
		p.made = !configured(in.Pool)
		if in.State == Present || p.present == 0 {
			p.policy = in.Policy // if nobody is present, that of the one who was so last
		}
		b.put(m)
		b.order = max(b.order, in.Order)
	}
}

func earlier(a, b time.Time) time.Time {
	if a.After(b) {
		return b
	}
	return a
}

// member returns what is known under an id, a new one if nothing is.
func (b *Book) member(name, id string) *member {
	p := b.pools[name]
	if p == nil {
		p = &pool{known: make(map[string]*member)}
		b.pools[name] = p
	}
	m := p.known[id]
	if m == nil {
		m = &member{Instance: Instance{Pool: name, ID: id, State: Left}, dropped: true, index: -1}
		p.known[id] = m
	}
	return m
}

// take takes m out of all that is counted and sorted, so that it can be changed;
// put puts it in again.
func (b *Book) take(m *member) {
	if m.index < 0 {
		return // it is new
	}
	p := b.pools[m.Pool]
	heap.Remove(&b.schedule, m.index)
	if m.State == Present {
		p.present--
	}
	if !m.dropped {
		i, _ := slices.BinarySearchFunc(p.members, m, byOrder)
		p.members = slices.Delete(p.members, i, i+1)
		if len(p.members) == 0 && p.made {
			b.made--
		}
	}
	if m.gone == nil {
		b.counted--
	}
}

func (b *Book) put(m *member) {
	p := b.pools[m.Pool]
	m.due = m.next()
	heap.Push(&b.schedule, m)
	if m.State == Present {
		p.present++
	}
	if !m.dropped {
		if len(p.members) == 0 && p.made {
			b.made++
		}
		i, _ := slices.BinarySearchFunc(p.members, m, byOrder)
		p.members = slices.Insert(p.members, i, m)
	}
	switch away := m.State == Left || m.dropped; {
	case !away:
		b.counted++
		if m.gone != nil {
			b.gone.Remove(m.gone)
			m.gone = nil
		}
	case m.gone == nil:
		m.gone = b.gone.PushBack(m)
	}
}

// byOrder is a total order, whatever was stored.
func byOrder(a, b *member) int {
	return cmp.Or(cmp.Compare(a.Order, b.Order), strings.Compare(a.ID, b.ID))
}

// own says whether the configuration has the pool, which may have changed since
// somebody registered there last.
func (b *Book) own(p *pool, made bool) {
	if p.made != made && len(p.members) > 0 {
		if made {
			b.made++
		} else {
			b.made--
		}
	}
	p.made = made
}

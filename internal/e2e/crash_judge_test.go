package e2e

import (
	"crypto/sha256"
	"fmt"
)

// tick is a place in the order of everything that a crash test sees, from 1.
type tick int64

// request is what a client sends and a backend must get, byte for byte.
type request struct {
	Method, Target string
	Body           [sha256.Size]byte
}

// end is what a client knows of its write.
type end string

const (
	endUnknown  end = "unknown"  // no answer that would tell
	endApplied  end = "applied"  // a backend's success
	endAccepted end = "accepted" // 202
	endRefused  end = "refused"  // a backend's refusal
)

// sentWrite is a write as its client knows it.
type sentWrite struct {
	request
	// User is what orders it, Value what it makes of the user. Values are unique.
	User, Value string
	// Key is the client's own Idempotency-Key, empty for none.
	Key string
	// Sent is when its first byte may have left, Answered when the client knew
	// its end, 0 for never.
	Sent, Answered tick
	End            end
	// IDs are the fan-out ids that the answers told, each once.
	IDs []string
}

// sighting is one write that came to a backend whole.
type sighting struct {
	request
	Backend int
	// Life counts the processes of lb: it is that of the one that sent it.
	Life          int
	At            tick
	Key, FanoutID string
	// Status is what the backend made of it, 0 if it dropped it unread. With
	// Applied the backend has it now, by this sighting or by an earlier one.
	Status  int
	Applied bool
	// Told: the whole answer went out.
	Told bool
}

// history is what was seen of a crash test.
type history struct {
	Writes    []sentWrite
	Sightings []sighting // by At
	// Finals are the backends' users with their last values.
	Finals []map[string]string
	// Quiet is when everything was settled: what was sent before must not be
	// sent again. 0: never.
	Quiet tick
	// Reads are the reads that failed while lb was there.
	Reads []string
}

// judge returns how a history breaks the promises, each breach with the name of
// the invariant that it breaks. It looks at nothing else.
func judge(h history) []string {
	j := &judgement{history: h, index: make(map[request]int), first: make([]map[int]tick, len(h.Finals)), seen: make([][]sighting, len(h.Writes))}
	for i, w := range h.Writes {
		j.index[w.request] = i
	}
	for b := range j.first {
		j.first[b] = make(map[int]tick)
	}
	for _, s := range h.Sightings {
		i, known := j.index[s.request]
		if !known {
			j.complain("I2 invented", "backend %d got %s %s with a body that nobody sent", s.Backend, s.Method, s.Target)
			continue
		}
		j.seen[i] = append(j.seen[i], s)
		if _, before := j.first[s.Backend][i]; s.Applied && !before {
			j.first[s.Backend][i] = s.At
			j.applications = append(j.applications, application{s.Backend, i})
		}
	}
	j.lost()
	j.identities()
	j.repeats()
	j.order()
	for _, r := range h.Reads {
		j.complain("I8 read failed", "%s", r)
	}
	return j.problems
}

type judgement struct {
	history

	index        map[request]int
	seen         [][]sighting   // by write
	first        []map[int]tick // by backend and write: when it was first applied
	applications []application  // the same, by time
	problems     []string
}

type application struct{ backend, write int }

func (j *judgement) complain(invariant, format string, args ...any) {
	j.problems = append(j.problems, invariant+": "+fmt.Sprintf(format, args...))
}

func (w sentWrite) String() string {
	return fmt.Sprintf("%s %s of %s (key %q, sent at %d, %s at %d)", w.Target, w.Value, w.User, w.Key, w.Sent, w.End, w.Answered)
}

// lost: what a client was told is everywhere; what it was not told is
// everywhere or nowhere.
func (j *judgement) lost() {
	for i, w := range j.Writes {
		has := 0
		for b := range j.Finals {
			if _, ok := j.first[b][i]; ok {
				has++
			}
		}
		all := has == len(j.Finals)
		switch {
		case w.End == endApplied && !all, w.End == endAccepted && !all && (has > 0 || !j.turnedDown(i)):
			j.complain("I1 lost", "%v is at %d of %d backends, and was seen last %s", w, has, len(j.Finals), last(j.seen[i]))
		case w.End == endRefused && has > 0:
			j.complain("I5 torn", "%v was refused, and is at %d backends", w, has)
		case has > 0 && !all:
			j.complain("I5 torn", "%v is at %d of %d backends", w, has, len(j.Finals))
		}
	}
}

// turnedDown reports whether a backend has refused a write: if nobody has
// applied it, it was rejected.
func (j *judgement) turnedDown(write int) bool {
	for _, s := range j.seen[write] {
		if s.Status >= 400 && s.Status < 500 {
			return true
		}
	}
	return false
}

func last(all []sighting) string {
	if len(all) == 0 {
		return "never"
	}
	s := all[len(all)-1]
	return fmt.Sprintf("at %d by backend %d, in life %d of lb, as fan-out %s, status %d", s.At, s.Backend, s.Life, s.FanoutID, s.Status)
}

// identities: a write is one fan-out and goes out under one key.
func (j *judgement) identities() {
	owners := make(map[string]int)
	for i, w := range j.Writes {
		ids := w.IDs
		for _, s := range j.seen[i] {
			if len(ids) == 0 {
				ids = []string{s.FanoutID}
			}
			want := w.Key
			if want == "" {
				want = ids[0]
			}
			if s.Key != want || s.FanoutID != ids[0] {
				j.complain("I4 two identities", "%v came to backend %d as fan-out %s under key %s, not as %s under %s",
					w, s.Backend, s.FanoutID, s.Key, ids[0], want)
				break
			}
		}
		if len(w.IDs) > 1 {
			j.complain("I4 two identities", "%v was answered as the fan-outs %v", w, w.IDs)
		}
		for _, id := range ids {
			if other, taken := owners[id]; taken && other != i {
				j.complain("I4 two identities", "fan-out %s is %v and %v", id, j.Writes[other], w)
			}
			owners[id] = i
		}
	}
}

// repeats: what was answered is not sent again by the process that heard it,
// and what is settled by none.
func (j *judgement) repeats() {
	for i, w := range j.Writes {
		told := make(map[[2]int]tick) // by backend and life
		for _, s := range j.seen[i] {
			if j.Quiet != 0 && w.Sent < j.Quiet && s.At > j.Quiet {
				j.complain("I6 sent again", "%v came to backend %d at %d, when all was settled", w, s.Backend, s.At)
			}
			where := [2]int{s.Backend, s.Life}
			if at, ok := told[where]; ok {
				j.complain("I4 repeated", "%v came to backend %d at %d in life %d of lb, which had its answer at %d", w, s.Backend, s.At, s.Life, at)
			} else if s.Applied && s.Told {
				told[where] = s.At
			}
		}
	}
}

// order: the writes of a user were applied in the same order everywhere, which
// is one in which they can have been admitted; within one life of lb each came
// only when those before it had been applied; and the last one stands.
func (j *judgement) order() {
	orders := make([]map[string][]int, len(j.Finals)) // by backend and user
	for b := range orders {
		orders[b] = make(map[string][]int)
	}
	for _, a := range j.applications {
		user := j.Writes[a.write].User
		orders[a.backend][user] = append(orders[a.backend][user], a.write)
	}
	place := make(map[int]int) // of a write among those of its user
	for user, order := range orders[0] {
		for i, write := range order {
			place[write] = i
		}
		j.admissible(order)
		for b := 1; b < len(orders); b++ {
			j.sameOrder(b, order, orders[b][user])
		}
	}
	for b, final := range j.Finals {
		for user, order := range orders[b] {
			if want := j.Writes[order[len(order)-1]].Value; final[user] != want {
				j.complain("I3 last value", "user %s is %s at backend %d, but %s was applied last", user, final[user], b, want)
			}
		}
	}
	j.overtaken(place)
}

// sameOrder compares what both backends have; what only one has is lost, which
// is said elsewhere.
func (j *judgement) sameOrder(backend int, here, there []int) {
	common := func(order []int, other map[int]tick) (both []int) {
		for _, write := range order {
			if _, ok := other[write]; ok {
				both = append(both, write)
			}
		}
		return both
	}
	a, b := common(here, j.first[backend]), common(there, j.first[0])
	for i := range a {
		if a[i] != b[i] {
			j.complain("I3 other order", "backend 0 applied %v where backend %d applied %v", j.Writes[a[i]], backend, j.Writes[b[i]])
			return
		}
	}
}

// admissible: who had an answer before another write was sent comes before it.
func (j *judgement) admissible(order []int) {
	latest := sentWrite{}
	for _, i := range order {
		w := j.Writes[i]
		if w.Answered != 0 && w.Answered < latest.Sent {
			j.complain("I3 not the order of admission", "%v was applied before %v", latest, w)
		}
		if w.Sent > latest.Sent {
			latest = w
		}
	}
}

// overtaken: within one life of lb no backend gets a write of a user after a
// later one.
func (j *judgement) overtaken(place map[int]int) {
	type lane struct {
		backend, life int
		user          string
	}
	latest := make(map[lane]int) // the write with the highest place
	for _, s := range j.Sightings {
		i, known := j.index[s.request]
		p, placed := place[i]
		if !known || !placed {
			continue
		}
		at := lane{s.Backend, s.Life, j.Writes[i].User}
		if before, ok := latest[at]; ok && place[before] > p {
			j.complain("I3 overtaken", "backend %d got %v at %d, after %v, in life %d of lb", s.Backend, j.Writes[i], s.At, j.Writes[before], s.Life)
			continue
		}
		latest[at] = i
	}
}

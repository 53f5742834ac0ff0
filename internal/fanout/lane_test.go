package fanout

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
)

func TestQueueAgainstASortedSlice(t *testing.T) {
	type item struct{ key, place int }
	q := queue[*item]{
		less:  func(a, b *item) bool { return a.key < b.key },
		place: func(x *item) *int { return &x.place },
	}
	rng := rand.New(rand.NewPCG(1, 2))
	var model []*item
	for step := range 20_000 {
		switch {
		case len(model) == 0 || rng.IntN(5) < 3 && len(model) < 200:
			x := &item{key: rng.IntN(1000)}
			q.push(x)
			model = append(model, x)
		default:
			i := rng.IntN(len(model))
			q.remove(model[i])
			require.False(t, q.has(model[i]))
			q.remove(model[i]) // again: nothing
			model = slices.Delete(model, i, i+1)
		}
		first, ok := q.min()
		require.Equal(t, len(model) > 0, ok, "step %d", step)
		require.Len(t, q.items, len(model))
		for i, x := range q.items {
			if x.place != i+1 || x.key < q.items[max(0, i-1)/2].key {
				t.Fatalf("step %d: not a heap at %d", step, i)
			}
		}
		if ok {
			least := slices.MinFunc(model, func(a, b *item) int { return cmp.Compare(a.key, b.key) })
			require.Equal(t, least.key, first.key, "step %d", step)
		}
	}
}

// epoch is the lane tests' now; the deliveries' seqs are their names.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time {
	return epoch.Add(time.Duration(seconds * float64(time.Second)))
}

func laneWith(due map[uint64]float64) *lane {
	l := newLane(&backend.Backend{}, nil)
	for seq, s := range due {
		l.add(&delivery{write: &write{record: Record{Seq: seq}}, lane: l}, at(s))
	}
	return l
}

// started returns the seqs that the lane lets go at that time, and its wake.
func started(l *lane, now time.Time, unreachable bool) (seqs []uint64, wake time.Time) {
	for {
		d, wake := l.next(now, unreachable, false)
		if d == nil {
			return seqs, wake
		}
		l.start(d)
		seqs = append(seqs, d.write.record.Seq)
	}
}

func TestLaneStartsWhatIsDueOldestFirst(t *testing.T) {
	l := laneWith(map[uint64]float64{1: 5, 2: 1, 3: 0, 4: 0, 5: 9})
	seqs, wake := started(l, at(0), false)
	require.Equal(t, []uint64{3, 4}, seqs)
	require.Equal(t, at(1), wake)
	seqs, wake = started(l, at(6), false)
	require.Equal(t, []uint64{1, 2}, seqs)
	require.Equal(t, at(9), wake)
	seqs, wake = started(l, at(9), false)
	require.Equal(t, []uint64{5}, seqs)
	require.Zero(t, wake)
}

func TestLaneIsOnlySoWide(t *testing.T) {
	due := map[uint64]float64{}
	for seq := range uint64(laneWidth + 10) {
		due[seq+1] = 0
	}
	l := laneWith(due)
	seqs, wake := started(l, at(0), false)
	require.Len(t, seqs, laneWidth)
	require.Zero(t, wake, "the end of an attempt asks again")
	l.done()
	seqs, _ = started(l, at(0), false)
	require.Equal(t, []uint64{laneWidth + 1}, seqs)
}

func TestLaneLetsOnlyTheOldestTryWhileUnreachable(t *testing.T) {
	l := laneWith(map[uint64]float64{1: 1, 2: 0, 3: 0})
	seqs, wake := started(l, at(0), true)
	require.Empty(t, seqs, "2 and 3 are due, but not the oldest")
	require.Equal(t, at(0).Add(reachPoll), wake)
	_, wake = started(l, at(0.9), true)
	require.Equal(t, at(1), wake, "sooner than the poll")
	seqs, wake = started(l, at(1), true)
	require.Equal(t, []uint64{1}, seqs)
	require.Equal(t, at(1).Add(reachPoll), wake)
	l.done()
	oldest := &delivery{write: &write{record: Record{Seq: 1}}, lane: l}
	l.add(oldest, at(3))
	seqs, _ = started(l, at(2), true)
	require.Empty(t, seqs)
	require.Equal(t, at(3), l.nextTry(oldest, true))
	two, _ := l.ready.min()
	if two == nil {
		two, _ = l.later.min()
	}
	require.Equal(t, at(3), l.nextTry(two, true), "the oldest one's")
	require.Equal(t, at(0), l.nextTry(two, false), "its own")
	seqs, _ = started(l, at(2), false)
	require.Equal(t, []uint64{2, 3}, seqs, "reachable again")
}

func TestLaneForgetsWhatIsRemoved(t *testing.T) {
	l := newLane(&backend.Backend{}, nil)
	a := &delivery{write: &write{record: Record{Seq: 1}}, lane: l}
	b := &delivery{write: &write{record: Record{Seq: 2}}, lane: l}
	c := &delivery{write: &write{record: Record{Seq: 3}}, lane: l}
	for _, d := range []*delivery{a, b, c} {
		l.add(d, at(0))
	}
	d, _ := l.next(at(0), false, false) // the others are in ready now
	l.start(d)
	require.Same(t, a, d)
	l.remove(a) // runs: nothing to take out
	l.remove(b)
	seqs, _ := started(l, at(0), false)
	require.Equal(t, []uint64{3}, seqs)
	require.Zero(t, l.nextTry(c, false), "it runs")
	require.Zero(t, len(l.waiting.items)+len(l.later.items)+len(l.ready.items))
}

package journaltest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/fanout"
)

var tests = map[string]func(*testing.T, fanout.Journal){
	"EveryFieldIsKept":          everyFieldIsKept,
	"ReplyToldAndClockAreKept":  replyToldAndClockAreKept,
	"ChangesAreInOrder":         changesAreInOrder,
	"AClaimIsTakenOnce":         aClaimIsTakenOnce,
	"ClaimsThatRaceHaveOneHeir": claimsThatRaceHaveOneHeir,
	"ParkedStaysWhole":          parkedStaysWhole,
	"DueIsByNextThenSeq":        dueIsByNextThenSeq,
	"DueIsPendingAlone":         dueIsPendingAlone,
	"DueIsFirstInItsKey":        dueIsFirstInItsKey,
	"HeadIsTheFirstUnsettled":   headIsTheFirstUnsettled,
	"ARetryStandsFirstAgain":    aRetryStandsFirstAgain,
	"RejectionFreesTheKey":      rejectionFreesTheKey,
	"ListFilters":               listFilters,
	"TotalsCount":               totalsCount,
	"OldestOfEach":              oldestOfEach,
	"ReadersSeeEveryUpdate":     readersSeeEveryUpdate,
}

func key(b byte) fanout.Key { return fanout.Key{b, 1} }

func delivery(backend string, s fanout.DeliveryState, next time.Time) fanout.Delivery {
	return fanout.Delivery{Backend: backend, State: s, Next: next}
}

// change updates one delivery of a write that stays in state s.
func change(j fanout.Journal, r *fanout.Record, s fanout.State, ds ...fanout.Delivery) {
	j.Update(fanout.Change{ID: r.ID, Seq: r.Seq, State: s, Deliveries: ds})
}

func ids(rs []fanout.Record) []string {
	found := []string{}
	for _, r := range rs {
		found = append(found, r.ID)
	}
	return found
}

// due returns the ids of what is due at backend a within an hour.
func due(t *testing.T, j fanout.Journal, limit int) []string {
	t.Helper()
	rs, err := j.Due(t.Context(), "users", "a", time.Now().Add(time.Hour), limit)
	require.NoError(t, err)
	return ids(rs)
}

func head(t *testing.T, j fanout.Journal, backend string, k fanout.Key) string {
	t.Helper()
	r, ok, err := j.Head(t.Context(), "users", backend, k)
	require.NoError(t, err)
	if !ok {
		return ""
	}
	return r.ID
}

func ordered(t *testing.T, j fanout.Journal, id string, k fanout.Key) *fanout.Record {
	t.Helper()
	r := record(id)
	r.Order = k
	require.NoError(t, j.Admit(t.Context(), r))
	return r
}

func everyFieldIsKept(t *testing.T, j fanout.Journal) {
	r := record("one")
	r.Clock = r.Created.Add(time.Second)
	r.Order, r.Claim, r.Print = key(1), key(2), key(3)
	r.Told = true
	r.Reply = &fanout.Reply{Backend: "b", Response: fanout.Response{
		Status: 409, Fields: []fanout.Field{{Name: "X", Value: "\x00\xff"}}, Body: []byte("no\x00"), RetryAfter: time.Second,
	}}
	r.Deliveries[0] = fanout.Delivery{
		Backend: "b", State: fanout.DeliveryHeld, Reason: fanout.ReasonDiverged, Attempts: 7, Reached: 5, Unknown: true, Left: 3,
		LastStatus: 409, Error: "refused \xff", Next: r.Created,
	}
	require.NoError(t, j.Admit(t.Context(), r))
	same(t, *r, find(t, j, "one"))
	rs, err := j.Due(t.Context(), "users", "a", r.Created, 10)
	require.NoError(t, err)
	require.Len(t, rs, 1)
	same(t, *r, rs[0])
	h, ok, err := j.Head(t.Context(), "users", "b", key(1))
	require.NoError(t, err)
	require.True(t, ok)
	same(t, *r, h)
}

func replyToldAndClockAreKept(t *testing.T, j fanout.Journal) {
	r := admit(t, j, "one")
	r.Clock = r.Created.Add(time.Minute)
	r.Reply = &fanout.Reply{Backend: "a", Response: fanout.Response{Status: 201, Body: []byte("made")}}
	r.Told = true
	j.Update(fanout.Change{ID: "one", State: fanout.WritePending, Clock: r.Clock, Reply: r.Reply})
	j.Update(fanout.Change{ID: "one", State: fanout.WritePending, Told: true})
	j.Update(fanout.Change{ID: "one", State: fanout.WritePending}) // zero values take nothing back
	same(t, *r, find(t, j, "one"))
	j.Update(fanout.Change{ID: "one", State: fanout.WritePending})
	same(t, *r, find(t, j, "one"))
}

func changesAreInOrder(t *testing.T, j fanout.Journal) {
	r := admit(t, j, "one")
	for i := range 100 {
		d := delivery("a", fanout.DeliveryPending, r.Created)
		d.Attempts = i
		change(j, r, fanout.WritePending, d)
		if i%7 == 0 {
			got, ok, err := j.Find(t.Context(), "one")
			require.NoError(t, err)
			require.True(t, ok)
			require.Equal(t, i, got.Deliveries[1].Attempts, "a read sees what was updated before")
		}
	}
	require.Equal(t, 99, find(t, j, "one").Deliveries[1].Attempts)
}

func aClaimIsTakenOnce(t *testing.T, j fanout.Journal) {
	r := record("one")
	r.Claim, r.Print = key(1), key(2)
	require.NoError(t, j.Admit(t.Context(), r))
	change(j, r, fanout.WriteDone, delivery("a", fanout.DeliveryDone, time.Time{}))
	again := record("two")
	again.Claim = key(1)
	err := j.Admit(t.Context(), again)
	var first *fanout.Duplicate
	require.ErrorAs(t, err, &first)
	require.Equal(t, "one", first.Record.ID)
	require.Equal(t, fanout.WriteDone, first.Record.State)
	require.Equal(t, key(1), first.Record.Claim)
	require.Equal(t, key(2), first.Record.Print)
	require.Equal(t, fanout.DeliveryDone, first.Record.Deliveries[1].State)
	_, ok, err := j.Find(t.Context(), "two")
	require.NoError(t, err)
	require.False(t, ok, "nothing was admitted")
	other := record("three")
	other.Claim = key(3)
	require.NoError(t, j.Admit(t.Context(), other))
	admit(t, j, "without")
	admit(t, j, "without one too")
}

func claimsThatRaceHaveOneHeir(t *testing.T, j fanout.Journal) {
	const rivals = 32
	results := make(chan error, 2*rivals)
	var group sync.WaitGroup
	for i := range rivals {
		group.Go(func() {
			r := record(fmt.Sprintf("rival %d", i))
			r.Claim = key(9)
			results <- j.Admit(context.Background(), r)
		})
		group.Go(func() { results <- j.Admit(context.Background(), record(fmt.Sprintf("bystander %d", i))) })
	}
	group.Wait()
	close(results)
	admitted := 0
	for err := range results {
		if err == nil {
			admitted++
			continue
		}
		require.ErrorAs(t, err, new(*fanout.Duplicate))
	}
	require.Equal(t, rivals+1, admitted)
	require.Len(t, pending(t, j, 0, 1000), rivals+1)
}

func parkedStaysWhole(t *testing.T, j fanout.Journal) {
	r := admit(t, j, "one")
	change(j, r, fanout.WriteParked, delivery("b", fanout.DeliveryDone, time.Time{}), delivery("a", fanout.DeliveryParked, time.Time{}))
	require.Equal(t, r.Write, find(t, j, "one").Write)
	change(j, r, fanout.WritePending, delivery("a", fanout.DeliveryPending, r.Created))
	require.Equal(t, r.Write, find(t, j, "one").Write)
	require.Equal(t, []string{"one"}, due(t, j, 10))
	change(j, r, fanout.WriteDone, delivery("a", fanout.DeliveryDone, time.Time{}))
	require.Equal(t, fanout.Write{Method: "POST", Target: r.Write.Target, RequestID: r.Write.RequestID}, find(t, j, "one").Write)
}

func dueIsByNextThenSeq(t *testing.T, j fanout.Journal) {
	now := time.Now()
	for i, after := range []int{3, 1, 2, 1, 3} {
		r := record(fmt.Sprint(i))
		r.Deliveries[1].Next = now.Add(time.Duration(after) * time.Second)
		require.NoError(t, j.Admit(t.Context(), r))
	}
	require.Equal(t, []string{"1", "3", "2", "0", "4"}, due(t, j, 10))
	require.Equal(t, []string{"1", "3"}, due(t, j, 2))
	at := func(after time.Duration) []string {
		rs, err := j.Due(t.Context(), "users", "a", now.Add(after), 10)
		require.NoError(t, err)
		return ids(rs)
	}
	require.Empty(t, at(time.Second-1))
	require.Equal(t, []string{"1", "3"}, at(time.Second), "what is due at that instant is due")
}

func dueIsPendingAlone(t *testing.T, j fanout.Journal) {
	var all []*fanout.Record
	for i, s := range []fanout.DeliveryState{
		fanout.DeliveryPending, fanout.DeliveryHeld, fanout.DeliveryDone, fanout.DeliveryParked, fanout.DeliverySkipped, fanout.DeliveryCancelled,
	} {
		r := admit(t, j, fmt.Sprint(i))
		change(j, r, fanout.WritePending, delivery("a", s, r.Created))
		all = append(all, r)
	}
	other := record("other pool")
	other.Pool = "others"
	require.NoError(t, j.Admit(t.Context(), other))
	alone := record("other backend")
	alone.Deliveries = alone.Deliveries[:1]
	require.NoError(t, j.Admit(t.Context(), alone))
	require.Equal(t, []string{"0"}, due(t, j, 10))
	change(j, all[0], fanout.WriteDone, delivery("a", fanout.DeliveryDone, time.Time{}))
	require.Empty(t, due(t, j, 10))
	change(j, all[1], fanout.WritePending, delivery("a", fanout.DeliveryPending, all[1].Created))
	require.Equal(t, []string{"1"}, due(t, j, 10))
}

func dueIsFirstInItsKey(t *testing.T, j fanout.Journal) {
	a1, a2 := ordered(t, j, "a1", key(1)), ordered(t, j, "a2", key(1))
	b1 := ordered(t, j, "b1", key(2))
	ordered(t, j, "a3", key(1))
	admit(t, j, "free")
	require.Equal(t, []string{"a1", "b1", "free"}, due(t, j, 10))
	change(j, a1, fanout.WritePending, delivery("a", fanout.DeliveryHeld, time.Time{}))
	require.Equal(t, []string{"b1", "free"}, due(t, j, 10), "a held one is not settled")
	change(j, a1, fanout.WritePending, delivery("a", fanout.DeliveryParked, time.Time{}))
	require.Equal(t, []string{"b1", "free"}, due(t, j, 10), "nor is a parked one")
	change(j, a1, fanout.WritePending, delivery("a", fanout.DeliverySkipped, time.Time{}))
	require.Equal(t, []string{"a2", "b1", "free"}, due(t, j, 10))
	at, err := j.Due(t.Context(), "users", "b", time.Now().Add(time.Hour), 10)
	require.NoError(t, err)
	require.Equal(t, []string{"a1", "b1", "free"}, ids(at), "each backend has its own order")
	change(j, a2, fanout.WritePending, delivery("a", fanout.DeliveryDone, time.Time{}))
	change(j, b1, fanout.WritePending, delivery("a", fanout.DeliveryDone, time.Time{}))
	require.Equal(t, []string{"a3", "free"}, due(t, j, 10))
	ordered(t, j, "b2", key(2))
	require.Equal(t, []string{"a3", "free", "b2"}, due(t, j, 10), "nobody is left before it")
}

func headIsTheFirstUnsettled(t *testing.T, j fanout.Journal) {
	require.Empty(t, head(t, j, "a", key(1)))
	first, second := ordered(t, j, "first", key(1)), ordered(t, j, "second", key(1))
	other := record("elsewhere")
	other.Order, other.Pool = key(3), "others"
	require.NoError(t, j.Admit(t.Context(), other))
	require.Empty(t, head(t, j, "a", key(3)), "of that pool")
	for _, s := range []fanout.DeliveryState{fanout.DeliveryPending, fanout.DeliveryHeld, fanout.DeliveryParked} {
		change(j, first, fanout.WritePending, delivery("a", s, first.Created))
		require.Equal(t, "first", head(t, j, "a", key(1)), s)
	}
	require.Empty(t, head(t, j, "a", key(2)))
	change(j, first, fanout.WritePending, delivery("a", fanout.DeliveryDone, time.Time{}))
	require.Equal(t, "second", head(t, j, "a", key(1)))
	require.Equal(t, "first", head(t, j, "b", key(1)))
	change(j, second, fanout.WritePending, delivery("a", fanout.DeliveryCancelled, time.Time{}))
	require.Empty(t, head(t, j, "a", key(1)))
}

func aRetryStandsFirstAgain(t *testing.T, j fanout.Journal) {
	first := ordered(t, j, "first", key(1))
	second := ordered(t, j, "second", key(1))
	done := delivery("b", fanout.DeliveryDone, time.Time{})
	change(j, first, fanout.WriteParked, done, delivery("a", fanout.DeliveryParked, time.Time{}))
	change(j, second, fanout.WritePending, done)
	require.Empty(t, due(t, j, 10))
	require.Equal(t, "first", head(t, j, "a", key(1)))
	change(j, first, fanout.WritePending, delivery("a", fanout.DeliveryPending, first.Created))
	require.Equal(t, []string{"first"}, due(t, j, 10))
	change(j, first, fanout.WriteDone, delivery("a", fanout.DeliverySkipped, time.Time{}))
	require.Equal(t, []string{"second"}, due(t, j, 10))
	// Settled, and then not: whatever the reason, order holds.
	change(j, first, fanout.WritePending, delivery("a", fanout.DeliveryPending, first.Created))
	require.Equal(t, []string{"first"}, due(t, j, 10))
}

func rejectionFreesTheKey(t *testing.T, j fanout.Journal) {
	first := ordered(t, j, "first", key(1))
	ordered(t, j, "second", key(1))
	change(j, first, fanout.WritePending, delivery("a", fanout.DeliveryHeld, time.Time{}))
	require.Empty(t, due(t, j, 10))
	held := delivery("b", fanout.DeliveryHeld, time.Time{})
	change(j, first, fanout.WriteRejected, held)
	require.Equal(t, []string{"second"}, due(t, j, 10))
	require.Equal(t, "second", head(t, j, "a", key(1)))
	require.Equal(t, "second", head(t, j, "b", key(1)))
	require.Equal(t, fanout.DeliveryHeld, find(t, j, "first").Deliveries[1].State, "it stays held")
}

func listFilters(t *testing.T, j fanout.Journal) {
	states := []fanout.State{fanout.WritePending, fanout.WriteDone, fanout.WriteParked}
	var all []*fanout.Record
	for i := range 12 {
		r := record(fmt.Sprintf("%02d", i))
		r.Pool = []string{"users", "others"}[i%2]
		require.NoError(t, j.Admit(t.Context(), r))
		if s := states[i%3]; s != fanout.WritePending {
			change(j, r, s)
		}
		all = append(all, r)
	}
	for _, state := range append(states, "", fanout.WriteRejected) {
		for _, pool := range []string{"", "users", "others", "none"} {
			for _, after := range []int{0, 1, 5, 12} {
				for _, limit := range []int{0, 1, 3, 100} {
					f := fanout.Filter{State: state, Pool: pool, Limit: limit}
					if after > 0 {
						f.After = all[after-1].Seq
					}
					want := []string{}
					for i, r := range all[after:] {
						if (state == "" || states[(after+i)%3] == state) && (pool == "" || r.Pool == pool) && len(want) < limit {
							want = append(want, r.ID)
						}
					}
					got, err := j.List(t.Context(), f)
					require.NoError(t, err)
					require.Equal(t, want, ids(got), "%+v", f)
					for _, r := range got {
						require.Equal(t, "POST /register?x=%zz request-"+r.ID, r.Write.Method+" "+r.Write.Target+" "+r.Write.RequestID)
						require.Len(t, r.Deliveries, 2)
					}
				}
			}
		}
	}
}

func totals(t *testing.T, j fanout.Journal) fanout.Totals {
	t.Helper()
	got, err := j.Totals(t.Context())
	require.NoError(t, err)
	slices.SortFunc(got.Backends, func(a, b fanout.BackendTotal) int { return compare(a.Pool+"/"+a.Backend, b.Pool+"/"+b.Backend) })
	slices.SortFunc(got.Routes, func(a, b fanout.RouteTotal) int { return compare(a.Route, b.Route) })
	return got
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	default:
		return 0
	}
}

func totalsCount(t *testing.T, j fanout.Journal) {
	require.Equal(t, fanout.Totals{}, totals(t, j))
	one, two, rejected := admit(t, j, "one"), ordered(t, j, "two", key(1)), admit(t, j, "rejected")
	blocked := ordered(t, j, "blocked", key(1))
	other := record("other")
	other.Pool, other.Route = "others", "change"
	require.NoError(t, j.Admit(t.Context(), other))
	change(j, one, fanout.WritePending, delivery("a", fanout.DeliveryHeld, time.Time{}))
	change(j, two, fanout.WriteParked, delivery("a", fanout.DeliveryParked, time.Time{}), delivery("b", fanout.DeliveryDone, time.Time{}))
	change(j, rejected, fanout.WriteRejected, delivery("a", fanout.DeliveryHeld, time.Time{}), delivery("b", fanout.DeliveryCancelled, time.Time{}))
	require.Equal(t, fanout.Totals{
		Seq: other.Seq,
		Backends: []fanout.BackendTotal{
			{Pool: "others", Backend: "a", Pending: 1}, {Pool: "others", Backend: "b", Pending: 1},
			{Pool: "users", Backend: "a", Pending: 2, Parked: 1}, {Pool: "users", Backend: "b", Pending: 2},
		},
		Routes: []fanout.RouteTotal{
			{Route: "change", Writes: 1, Bytes: other.Write.Size()},
			{Route: "register", Writes: 2, Bytes: one.Write.Size() + blocked.Write.Size()},
		},
	}, totals(t, j))
}

func oldestOfEach(t *testing.T, j fanout.Journal) {
	begin := time.Now().Truncate(time.Millisecond)
	var all []*fanout.Record
	for i := range 6 {
		r := record(fmt.Sprint(i))
		r.Created = begin.Add(time.Duration(i) * time.Second)
		r.Pool = []string{"users", "others"}[i%2]
		require.NoError(t, j.Admit(t.Context(), r))
		all = append(all, r)
	}
	change(j, all[0], fanout.WriteDone)
	change(j, all[1], fanout.WriteParked)
	change(j, all[5], fanout.WriteParked)
	got, err := j.Oldest(t.Context())
	require.NoError(t, err)
	for i := range got {
		got[i].Created = got[i].Created.Local()
	}
	after := func(s int) time.Time { return begin.Add(time.Duration(s) * time.Second).Round(0) }
	require.ElementsMatch(t, []fanout.Oldest{
		{Pool: "users", State: fanout.WritePending, Created: after(2)},
		{Pool: "others", State: fanout.WritePending, Created: after(3)},
		{Pool: "others", State: fanout.WriteParked, Created: after(1)},
	}, got)
}

func readersSeeEveryUpdate(t *testing.T, j fanout.Journal) {
	const writers, updates = 8, 40
	var group sync.WaitGroup
	for n := range writers {
		group.Go(func() {
			k := fanout.Key([]byte(fmt.Sprintf("%016d", n)))
			first, second := record(fmt.Sprintf("%d first", n)), record(fmt.Sprintf("%d second", n))
			first.Order, second.Order = k, k
			for _, r := range []*fanout.Record{first, second} {
				if err := j.Admit(context.Background(), r); err != nil {
					t.Error(err)
					return
				}
			}
			for i := range updates {
				s, want := fanout.DeliveryDone, second.ID
				if i%2 == 0 {
					s, want = fanout.DeliveryPending, first.ID
				}
				change(j, first, fanout.WritePending, delivery("a", s, first.Created))
				r, _, err := j.Head(context.Background(), "users", "a", k)
				if err != nil || r.ID != want {
					t.Errorf("the head is %q instead of %q, %v", r.ID, want, err)
					return
				}
			}
		})
	}
	group.Wait()
}

// Package journaltest holds what every fanout.Journal must do, as tests that
// each journal runs.
package journaltest

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/fanout"
)

// Run runs the suite. open returns a new, empty journal and sees to its end.
func Run(t *testing.T, open func(t *testing.T) fanout.Journal) {
	for name, test := range map[string]func(*testing.T, fanout.Journal){
		"AdmitKeepsEverything":      admitKeepsEverything,
		"AdmitNumbersInOrder":       admitNumbersInOrder,
		"AdmitKeepsNoReference":     admitKeepsNoReference,
		"UpdateChangesWhatItNames":  updateChangesWhatItNames,
		"UpdateOfUnknownIsIgnored":  updateOfUnknownIsIgnored,
		"PendingPages":              pendingPages,
		"PendingLeavesOutSettled":   pendingLeavesOutSettled,
		"FindKeepsSettled":          findKeepsSettled,
		"FindAnswersForUnknown":     findAnswersForUnknown,
		"AloneIsAsItStands":         aloneIsAsItStands,
		"BodiesAreBytes":            bodiesAreBytes,
		"ConcurrentUseLosesNothing": concurrentUseLosesNothing,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func record(id string) *fanout.Record {
	created := time.Now().Truncate(time.Millisecond)
	return &fanout.Record{
		ID: id, Route: "register", Pool: "users", Created: created,
		Write: fanout.Write{
			Method: "POST", Target: "/register?x=%zz", Host: "example.org",
			Fields: []fanout.Field{{Name: "Content-Type", Value: "text/plain"}, {Name: "X-A", Value: "1"}, {Name: "X-A", Value: "2"}},
			Body:   []byte("body of " + id), Key: "key", RequestID: "request-" + id,
		},
		State: fanout.WritePending,
		Deliveries: []fanout.Delivery{
			{Backend: "b", State: fanout.DeliveryPending, Next: created},
			{Backend: "a", State: fanout.DeliveryPending, Next: created},
		},
	}
}

func admit(t *testing.T, j fanout.Journal, id string) *fanout.Record {
	t.Helper()
	r := record(id)
	require.NoError(t, j.Admit(t.Context(), r))
	return r
}

func find(t *testing.T, j fanout.Journal, id string) fanout.Record {
	t.Helper()
	require.NoError(t, j.Flush(t.Context()))
	r, ok, err := j.Find(t.Context(), id)
	require.NoError(t, err)
	require.True(t, ok, "the write %s is not there", id)
	return r
}

func pending(t *testing.T, j fanout.Journal, after uint64, limit int) []fanout.Record {
	t.Helper()
	require.NoError(t, j.Flush(t.Context()))
	rs, err := j.List(t.Context(), fanout.Filter{State: fanout.WritePending, After: after, Limit: limit})
	require.NoError(t, err)
	return rs
}

// same compares records; times by the instant, as a store may change the rest.
func same(t *testing.T, want, got fanout.Record) {
	t.Helper()
	require.WithinDuration(t, want.Created, got.Created, 0)
	require.WithinDuration(t, want.Clock, got.Clock, 0)
	want.Alone, got.Alone = false, false // it is how things stood when it was read
	want.Created, got.Created, want.Clock, got.Clock = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	require.Len(t, got.Deliveries, len(want.Deliveries))
	flat := func(r fanout.Record) fanout.Record {
		r.Deliveries = append([]fanout.Delivery(nil), r.Deliveries...)
		for i := range r.Deliveries {
			r.Deliveries[i].Next = time.Time{}
		}
		return r
	}
	for i := range want.Deliveries {
		require.WithinDuration(t, want.Deliveries[i].Next, got.Deliveries[i].Next, 0)
	}
	require.Equal(t, flat(want), flat(got))
}

func admitKeepsEverything(t *testing.T, j fanout.Journal) {
	r := admit(t, j, "one")
	same(t, *r, find(t, j, "one"))
	all := pending(t, j, 0, 10)
	require.Len(t, all, 1)
	listed := all[0]
	require.Equal(t, []string{r.Write.Method, r.Write.Target, r.Write.RequestID},
		[]string{listed.Write.Method, listed.Write.Target, listed.Write.RequestID})
	listed.Write = r.Write
	same(t, *r, listed)
}

func admitNumbersInOrder(t *testing.T, j fanout.Journal) {
	last := uint64(0)
	for i := range 20 {
		r := admit(t, j, strconv.Itoa(i))
		require.Greater(t, r.Seq, last)
		last = r.Seq
	}
}

func admitKeepsNoReference(t *testing.T, j fanout.Journal) {
	r := admit(t, j, "one")
	r.Deliveries[0].State = fanout.DeliveryDone
	got := find(t, j, "one")
	require.Equal(t, fanout.DeliveryPending, got.Deliveries[0].State)
	got.Deliveries[0].State = fanout.DeliveryParked
	require.Equal(t, fanout.DeliveryPending, find(t, j, "one").Deliveries[0].State)
}

func updateChangesWhatItNames(t *testing.T, j fanout.Journal) {
	r := admit(t, j, "one")
	other := admit(t, j, "other")
	a := fanout.Delivery{
		Backend: "a", State: fanout.DeliveryPending, Attempts: 5, Reached: 3, Unknown: true, Left: 2,
		LastStatus: 409, Next: time.Now().Add(time.Minute).Truncate(time.Millisecond),
	}
	j.Update(fanout.Change{ID: "one", State: fanout.WritePending, Deliveries: []fanout.Delivery{a}})
	r.Deliveries[1] = a
	same(t, *r, find(t, j, "one"))
	a.State = fanout.DeliveryHeld
	j.Update(fanout.Change{ID: "one", State: fanout.WritePending, Deliveries: []fanout.Delivery{a}})
	a.State = fanout.DeliveryDone
	j.Update(fanout.Change{ID: "one", State: fanout.WritePending, Deliveries: []fanout.Delivery{a}})
	r.Deliveries[1] = a
	same(t, *r, find(t, j, "one"))
	same(t, *other, find(t, j, "other"))
}

func updateOfUnknownIsIgnored(t *testing.T, j fanout.Journal) {
	j.Update(fanout.Change{ID: "none", State: fanout.WriteDone})
	require.Empty(t, pending(t, j, 0, 10))
}

func pendingPages(t *testing.T, j fanout.Journal) {
	var want, got []string
	for i := range 25 {
		want = append(want, admit(t, j, fmt.Sprintf("%02d", i)).ID)
	}
	for after := uint64(0); ; {
		page := pending(t, j, after, 10)
		if len(page) == 0 {
			break
		}
		require.LessOrEqual(t, len(page), 10)
		for _, r := range page {
			require.Greater(t, r.Seq, after)
			after = r.Seq
			got = append(got, r.ID)
		}
	}
	require.Equal(t, want, got)
}

func pendingLeavesOutSettled(t *testing.T, j fanout.Journal) {
	for _, s := range []fanout.State{fanout.WriteDone, fanout.WriteParked, fanout.WriteRejected, fanout.WriteCancelled} {
		admit(t, j, string(s))
		j.Update(fanout.Change{ID: string(s), State: s})
	}
	r := admit(t, j, "pending")
	all := pending(t, j, 0, 10)
	require.Len(t, all, 1)
	require.Equal(t, r.ID, all[0].ID)
}

func findKeepsSettled(t *testing.T, j fanout.Journal) {
	r := admit(t, j, "one")
	done := fanout.Delivery{Backend: "b", State: fanout.DeliveryDone, Attempts: 1, Reached: 1, LastStatus: 201}
	j.Update(fanout.Change{ID: "one", State: fanout.WriteDone, Deliveries: []fanout.Delivery{done}})
	got := find(t, j, "one")
	require.Equal(t, fanout.WriteDone, got.State)
	require.Equal(t, done.State, got.Deliveries[0].State)
	require.Equal(t, done.LastStatus, got.Deliveries[0].LastStatus)
	require.Equal(t, "a", got.Deliveries[1].Backend)
	require.Equal(t, r.Write.Method, got.Write.Method)
	require.Equal(t, r.Write.Target, got.Write.Target)
	require.WithinDuration(t, r.Created, got.Created, 0)
}

func findAnswersForUnknown(t *testing.T, j fanout.Journal) {
	_, ok, err := j.Find(t.Context(), "none")
	require.NoError(t, err)
	require.False(t, ok)
}

func bodiesAreBytes(t *testing.T, j fanout.Journal) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for id, body := range map[string][]byte{"all": all, "none": nil, "zero": {0}} {
		r := record(id)
		r.Write.Body = body
		require.NoError(t, j.Admit(t.Context(), r))
		got := find(t, j, id).Write.Body
		require.Equal(t, string(body), string(got))
	}
}

func concurrentUseLosesNothing(t *testing.T, j fanout.Journal) {
	const writers, writes = 8, 50
	var group sync.WaitGroup
	for n := range writers {
		group.Go(func() {
			for i := range writes {
				r := record(fmt.Sprintf("%d-%d", n, i))
				if err := j.Admit(context.Background(), r); err != nil {
					t.Error(err)
					return
				}
				if i%2 == 0 {
					j.Update(fanout.Change{ID: r.ID, State: fanout.WriteDone})
				}
				if _, _, err := j.Find(context.Background(), r.ID); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	left := pending(t, j, 0, writers*writes)
	require.Len(t, left, writers*writes/2)
	seen := map[uint64]bool{}
	for _, r := range left {
		require.False(t, seen[r.Seq], "the number %d was given twice", r.Seq)
		seen[r.Seq] = true
	}
}

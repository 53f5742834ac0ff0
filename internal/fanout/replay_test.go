package fanout

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/outcome"
)

// keyed is a write under an Idempotency-Key.
func keyed(key, body string) Write {
	w := of("ada", "/x")
	w.Key, w.Body = key, []byte(body)
	return w
}

func (l *lab) submit(w Write) (Answer, error) {
	return l.engine.Submit(context.Background(), l.plan, w)
}

func TestConcurrentDuplicatesAreOneWrite(t *testing.T) {
	durable(t, []string{"a", "b"}, 0, func(l *lab, _ *hooked) {
		l.plan.Wait = time.Minute
		l.fake.set("b", ok().in(time.Second))
		var mu sync.Mutex
		var firsts []Answer
		ids, busy := map[string]bool{}, 0
		for range 50 {
			go func() {
				a, err := l.submit(keyed("k", "x"))
				mu.Lock()
				defer mu.Unlock()
				ids[a.ID] = true
				if err == nil {
					firsts = append(firsts, a)
					return
				}
				if outcomeCode(err) == outcome.RequestInProgress {
					busy++
				}
			}()
		}
		l.sleep(2 * time.Second)
		require.Len(l.t, firsts, 1)
		require.Equal(l.t, 49, busy)
		require.Len(l.t, ids, 1, "all are told of the same write")
		again, err := l.submit(keyed("k", "x"))
		require.NoError(l.t, err)
		require.Equal(l.t, firsts[0], again)
		require.Len(l.t, l.calls("a"), 1)
		require.Len(l.t, l.calls("b"), 1)
		l.atRest()
	})
}

func TestAReplayIsTheSame202ThenTheAnswer(t *testing.T) {
	for _, window := range []int{0, 1} {
		for _, how := range []string{"in memory", "restarted"} {
			durable(t, []string{"a", "b"}, window, func(l *lab, _ *hooked) {
				l.plan.Wait = time.Second
				l.fake.set("a", step{status: 201, body: "says a"})
				l.fake.set("b", says(500))
				l.put("bob", "/y")
				first, err := l.submit(keyed("k", "x"))
				require.NoError(l.t, err)
				require.True(l.t, first.Pending)
				if how == "restarted" {
					l.reopen()
				}
				again, err := l.submit(keyed("k", "x"))
				require.NoError(l.t, err)
				require.Equal(l.t, first, again)
				l.fake.set("b")
				l.sleep(2 * time.Minute)
				again, err = l.submit(keyed("k", "x"))
				require.NoError(l.t, err)
				want := Answer{ID: first.ID, Status: 201, Body: []byte("says a"), Acked: 2, Total: 2, Backend: "a"}
				require.Equal(l.t, want, again)
				l.reopen()
				again, err = l.submit(keyed("k", "x"))
				require.NoError(l.t, err)
				require.Equal(l.t, want, again)
				l.atRest()
			})
		}
	}
}

// Told while the client waited: whoever comes again within the wait gets the
// 202 too, as do those who come when the wait of one who left would be over.
func TestAReplayWithinTheWait(t *testing.T) {
	durable(t, []string{"a", "b"}, 0, func(l *lab, _ *hooked) {
		l.plan.Wait = time.Minute
		l.maintain("b")
		first, err := l.submit(keyed("out", "x"))
		require.NoError(l.t, err)
		require.True(l.t, first.Pending, "at once, since b is out")
		again, err := l.submit(keyed("out", "x"))
		require.NoError(l.t, err)
		require.Equal(l.t, first, again)

		l.enable("b")
		l.fake.set("b", says(500))
		ctx, leave := context.WithCancel(context.Background())
		gone := make(chan error, 1)
		go func() {
			_, err := l.engine.Submit(ctx, l.plan, keyed("gone", "x"))
			gone <- err
		}()
		l.sleep(time.Second)
		leave()
		require.ErrorIs(l.t, <-gone, context.Canceled)
		a, err := l.submit(keyed("gone", "x"))
		require.Equal(l.t, outcome.RequestInProgress, outcomeCode(err))
		require.NotEmpty(l.t, a.ID)
		l.sleep(time.Minute)
		again, err = l.submit(keyed("gone", "x"))
		require.NoError(l.t, err)
		require.True(l.t, again.Pending)
		require.Equal(l.t, a.ID, again.ID)
	})
}

func TestAReplayByAck(t *testing.T) {
	body := func(name string) step { return step{status: 201, body: name} }
	tests := []struct {
		name    string
		ack     Ack
		plays   map[string][]step
		at      time.Duration
		pending bool
		backend string
	}{
		{"first", AckFirst, map[string][]step{"a": {says(500)}, "b": {body("b")}, "c": {says(500)}}, 0, false, "b"},
		{"first, and one before it in the config later", AckFirst, map[string][]step{"a": {body("a").in(time.Second)}, "b": {body("b")}, "c": {says(500)}}, 2 * time.Second, false, "b"},
		{"quorum, not yet", AckQuorum, map[string][]step{"a": {says(500)}, "b": {body("b")}, "c": {says(500)}}, time.Second, true, ""},
		{"quorum", AckQuorum, map[string][]step{"a": {says(500)}, "b": {body("b")}, "c": {body("c")}}, time.Second, false, "b"},
		{"all, not yet", AckAll, map[string][]step{"a": {body("a")}, "b": {body("b")}, "c": {says(500)}}, time.Second, true, ""},
		{"held that healed", AckAll, map[string][]step{"a": {says(400), body("a")}, "b": {body("b")}, "c": {body("c")}}, time.Minute, false, "a"},
		{"a 409 that is a success comes last", AckFirst, map[string][]step{"a": {resets(), says(409)}, "b": {body("b")}, "c": {says(500)}}, time.Minute, false, "b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			durable(t, []string{"a", "b", "c"}, 0, func(l *lab, _ *hooked) {
				l.plan.Ack = tt.ack
				for name, steps := range tt.plays {
					l.fake.set(name, steps...)
				}
				_, err := l.submit(keyed("k", "x"))
				require.NoError(l.t, err)
				l.sleep(tt.at)
				for range 2 {
					a, err := l.submit(keyed("k", "x"))
					require.NoError(l.t, err)
					require.Equal(l.t, tt.pending, a.Pending)
					require.Equal(l.t, tt.backend, a.Backend)
					require.Equal(l.t, tt.backend, string(a.Body))
					l.reopen()
				}
			})
		})
	}
}

func TestAReplayOfARejection(t *testing.T) {
	durable(t, []string{"a", "b"}, 0, func(l *lab, h *hooked) {
		l.plan.Wait = time.Minute
		l.fake.set("a", says(409).in(time.Second))
		l.fake.set("b", says(400))
		first, err := l.submit(keyed("k", "x"))
		require.NoError(l.t, err)
		require.True(l.t, first.Rejected)
		require.Equal(l.t, "a", first.Backend)
		for range 2 {
			again, err := l.submit(keyed("k", "x"))
			require.NoError(l.t, err)
			require.Equal(l.t, first, again)
			l.reopen()
		}
		require.Len(l.t, l.calls("a"), 1)
		l.atRest()
	})
}

// A rejection that is not safe yet, nobody is told: a crash could undo it.
func TestAReplayOfARejectionIsAsSafeAsTheFirst(t *testing.T) {
	durable(t, []string{"a"}, 0, func(l *lab, h *hooked) {
		l.plan.Wait = time.Minute
		l.fake.set("a", says(400))
		h.on("Flush", pause(time.Second))
		go func() { _, _ = l.submit(keyed("k", "x")) }()
		synctest.Wait()
		began := time.Now()
		again, err := l.submit(keyed("k", "x"))
		require.NoError(l.t, err)
		require.True(l.t, again.Rejected)
		require.Equal(l.t, time.Second, time.Since(began))

		h.on("Flush", func(*Record) error { return errors.New("I/O error") })
		_, err = l.submit(keyed("k", "x"))
		require.Equal(l.t, outcome.StorageUnavailable, outcomeCode(err))
	})
}

func TestAnIdempotencyKeyBelongsToOneRequest(t *testing.T) {
	durable(t, []string{"a"}, 0, func(l *lab, _ *hooked) {
		first, err := l.submit(keyed("k", "x"))
		require.NoError(l.t, err)
		a, err := l.submit(keyed("k", "y"))
		require.Equal(l.t, outcome.KeyReused, outcomeCode(err))
		require.Empty(l.t, a.ID)
		other := keyed("k", "y")
		other.Fields = append(other.Fields, Field{"Authorization", "Bearer 2"})
		a, err = l.submit(other)
		require.NoError(l.t, err)
		require.NotEqual(l.t, first.ID, a.ID)
		l.sleep(settledFor)
		a, err = l.submit(keyed("k", "y"))
		require.NoError(l.t, err)
		require.NotEqual(l.t, first.ID, a.ID, "the key is free again")
		l.sleep(0)
		require.Len(l.t, l.calls("a"), 3)
		l.atRest()
	})
}

func TestAnIdempotencyKeyIsKeptWhilePending(t *testing.T) {
	durable(t, []string{"a"}, 0, func(l *lab, _ *hooked) {
		l.plan.MaxAge = 0
		l.maintain("a")
		first, err := l.submit(keyed("k", "x"))
		require.NoError(l.t, err)
		l.sleep(3 * settledFor)
		again, err := l.submit(keyed("k", "x"))
		require.NoError(l.t, err)
		require.Equal(l.t, first, again)
	})
}

package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/ncruces/go-sqlite3"
	"github.com/stretchr/testify/require"
)

// stores are those that every test of the methods runs against.
var stores = map[string]func(t *testing.T) *Store{
	"file":   func(t *testing.T) *Store { return mustOpen(t, filepath.Join(t.TempDir(), "lb.db")) },
	"memory": func(t *testing.T) *Store { return mustOpen(t, "") },
}

func each(t *testing.T, test func(t *testing.T, s *Store)) {
	for name, newStore := range stores {
		t.Run(name, func(t *testing.T) { test(t, newStore(t)) })
	}
}

func mustOpen(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

var noon = time.Date(2030, 1, 2, 12, 0, 0, 123456789, time.UTC)

func drained(backend string) OperatorState {
	return OperatorState{Pool: "api", Backend: backend, Word: "drain", Since: noon, By: "ada"}
}

func record(detail string) Record {
	return Record{At: noon, Who: "ada", Action: "drain", Target: "api/a", Detail: detail, Generation: 7}
}

// states and details are what s holds.
func states(t *testing.T, s *Store) []OperatorState {
	t.Helper()
	got, err := s.OperatorStates(t.Context())
	require.NoError(t, err)
	return got
}

func details(t *testing.T, s *Store) (got []string) {
	t.Helper()
	records, err := s.Audit(t.Context(), 0, maxPage)
	require.NoError(t, err)
	for _, r := range records {
		got = append(got, r.Detail)
	}
	return got
}

func TestANewStoreIsEmpty(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		require.Empty(t, states(t, s))
		require.Empty(t, details(t, s))
	})
}

func TestOperatorState(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		a, b := drained("a"), drained("b")
		b.Pool = "aaa"
		b.Since = noon.In(time.FixedZone("", 3600))
		require.NoError(t, s.SetOperatorState(t.Context(), a, record("1")))
		require.NoError(t, s.SetOperatorState(t.Context(), b, record("2")))
		b.Since = noon
		require.Equal(t, []OperatorState{b, a}, states(t, s), "by pool and backend, in UTC to the nanosecond")

		a.Word, a.By = "maintenance", "bob"
		require.NoError(t, s.SetOperatorState(t.Context(), a, record("3")))
		require.Equal(t, []OperatorState{b, a}, states(t, s), "replaced")

		b.Word = ""
		require.NoError(t, s.SetOperatorState(t.Context(), b, record("4")))
		require.Equal(t, []OperatorState{a}, states(t, s), "taken back")
		require.NoError(t, s.SetOperatorState(t.Context(), b, record("5")), "twice is no error")

		require.Equal(t, []string{"5", "4", "3", "2", "1"}, details(t, s), "each left a record")
	})
}

func TestNamesAreKeptAsTheyAre(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		odd := OperatorState{Pool: "p\x00'; --", Backend: "\xff[::1]:80", Word: "drain", Since: noon}
		require.NoError(t, s.SetOperatorState(t.Context(), odd, record("")))
		require.Equal(t, []OperatorState{odd}, states(t, s))

		long := drained(strings.Repeat("a", maxText+1))
		err := s.SetOperatorState(t.Context(), long, record("long"))
		require.ErrorContains(t, err, "1024 bytes")
		require.NotErrorIs(t, err, ErrUnavailable, "the caller's mistake")
		require.Len(t, details(t, s), 1, "no record of what was refused")
	})
}

func TestZeroTimesAreNow(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		before := time.Now()
		require.NoError(t, s.SetOperatorState(t.Context(), OperatorState{Pool: "api", Backend: "a", Word: "drain"}, Record{}))
		records, err := s.Audit(t.Context(), 0, 1)
		require.NoError(t, err)
		for _, at := range []time.Time{states(t, s)[0].Since, records[0].At} {
			require.WithinRange(t, at, before, time.Now())
		}
	})
}

func TestAuditPages(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		for _, d := range []string{"1", "2", "3", "4", "5"} {
			require.NoError(t, s.Append(t.Context(), record(d)))
		}
		var got []string
		for before, pages := int64(0), 0; ; pages++ {
			page, err := s.Audit(t.Context(), before, 2)
			require.NoError(t, err)
			if len(page) == 0 {
				require.Equal(t, 3, pages)
				break
			}
			for _, r := range page {
				got = append(got, r.Detail)
				before = r.ID
				r.ID = 0
				require.Equal(t, record(r.Detail), r)
			}
		}
		require.Equal(t, []string{"5", "4", "3", "2", "1"}, got)

		page, err := s.Audit(t.Context(), 0, -1)
		require.NoError(t, err)
		require.Len(t, page, 1, "at least one")
	})
}

func TestAuditKeepsTheNewest(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		fill(t, s, maxRecords)
		require.NoError(t, s.Append(t.Context(), record("one more")))
		require.NoError(t, s.SetOperatorState(t.Context(), drained("a"), record("and another")))

		page, err := s.Audit(t.Context(), 0, maxRecords)
		require.NoError(t, err)
		require.Len(t, page, maxPage, "a page is bounded")
		require.Equal(t, []string{"and another", "one more"}, []string{page[0].Detail, page[1].Detail})
		require.EqualValues(t, maxRecords+2, page[0].ID)
		require.EqualValues(t, []int64{maxRecords, 3}, extent(t, s))
	})
}

// fill puts n records into the audit trail in one transaction.
func fill(t *testing.T, s *Store, n int64) {
	t.Helper()
	require.NoError(t, s.write(t.Context(), func(c *sqlite3.Conn) error {
		return query(c, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
			INSERT INTO audit SELECT NULL, i, 'ada', 'drain', 'api/a', 'filler', 7 FROM n`, nil, n)
	}))
}

// extent is the number of records and the ID of the oldest.
func extent(t *testing.T, s *Store) (got []int64) {
	t.Helper()
	require.NoError(t, s.read(t.Context(), func(c *sqlite3.Conn) error {
		return query(c, `SELECT count(*), min(id) FROM audit`, func(row *sqlite3.Stmt) {
			got = []int64{row.ColumnInt64(0), row.ColumnInt64(1)}
		})
	}))
	return got
}

func TestTextsAreCut(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		tests := map[string]string{
			strings.Repeat("a", maxText):                strings.Repeat("a", maxText),
			strings.Repeat("a", maxText+1):              strings.Repeat("a", maxText),
			strings.Repeat("a", maxText-1) + "ü":        strings.Repeat("a", maxText-1),
			strings.Repeat("a", maxText-3) + "😀 and on": strings.Repeat("a", maxText-3),
			strings.Repeat("\x80", 2*maxText):           "?",
			"a\xffb":                                    "a?b",
		}
		for in, want := range tests {
			require.NoError(t, s.Append(t.Context(), Record{Who: in, Action: in, Target: in, Detail: in}))
			state := drained("a")
			state.By = in
			require.NoError(t, s.SetOperatorState(t.Context(), state, Record{Detail: in}))
			records, err := s.Audit(t.Context(), 0, 2)
			require.NoError(t, err)
			r := records[1]
			for _, got := range []string{r.Who, r.Action, r.Target, r.Detail, records[0].Detail, states(t, s)[0].By} {
				require.Equal(t, want, got)
				require.True(t, utf8.ValidString(got))
			}
		}
	})
}

func TestContexts(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, s.SetOperatorState(ended, drained("a"), record("")), context.Canceled)
		require.ErrorIs(t, s.Append(ended, record("")), context.Canceled)
		_, err := s.OperatorStates(ended)
		require.ErrorIs(t, err, context.Canceled)
		_, err = s.Audit(ended, 0, 1)
		require.ErrorIs(t, err, context.Canceled)

		// One that ends in the middle of a transaction undoes it.
		ctx, cancel := context.WithCancel(t.Context())
		err = s.write(ctx, func(c *sqlite3.Conn) error {
			err := insert(c, record("half"))
			cancel()
			return err
		})
		require.ErrorIs(t, err, context.Canceled)
		require.NotErrorIs(t, err, ErrUnavailable)
		require.Empty(t, details(t, s))
		require.NoError(t, s.Append(t.Context(), record("whole")), "and the next one is well")
	})
}

func TestAStatementIsInterrupted(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx, cancel := context.WithCancel(t.Context())
		err := s.read(ctx, func(c *sqlite3.Conn) error {
			return query(c, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i = 10 OR i < 0`,
				func(*sqlite3.Stmt) { cancel() })
		})
		require.ErrorIs(t, err, context.Canceled)
		require.NoError(t, s.Append(t.Context(), record("")))
	})
}

func TestWaitingIsBounded(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		synctest.Test(t, func(t *testing.T) {
			s.turn = make(chan struct{}, 1) // in the bubble, and taken by a call that never comes back
			start := time.Now()
			err := s.Append(context.Background(), record(""))
			require.ErrorIs(t, err, ErrUnavailable)
			require.Equal(t, patience, time.Since(start))
			require.ErrorIs(t, s.Close(), ErrUnavailable)

			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			start = time.Now()
			require.ErrorIs(t, s.Append(ctx, record("")), context.DeadlineExceeded)
			require.Equal(t, time.Second, time.Since(start))
		})
		s.turn = make(chan struct{}, 1)
		s.turn <- struct{}{}
	})
}

func TestAClosedStore(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		require.NoError(t, s.Close())
		require.NoError(t, s.Close(), "twice is no error")
		require.ErrorIs(t, s.Append(t.Context(), record("")), ErrUnavailable)
		_, err := s.OperatorStates(t.Context())
		require.ErrorIs(t, err, ErrUnavailable)
		require.ErrorContains(t, err, "closed")
	})
}

func TestConcurrentCalls(t *testing.T) {
	const callers, calls = 8, 10
	each(t, func(t *testing.T, s *Store) {
		failed := make(chan error, callers)
		var wg sync.WaitGroup
		for n := range callers {
			wg.Go(func() {
				for i := range calls {
					_, readErr := s.OperatorStates(t.Context())
					_, pageErr := s.Audit(t.Context(), 0, 5)
					err := s.SetOperatorState(t.Context(), drained(fmt.Sprint(n)), record(fmt.Sprint(i)))
					if err = errors.Join(readErr, pageErr, err); err != nil {
						failed <- err
						return
					}
				}
			})
		}
		wg.Wait()
		close(failed)
		require.NoError(t, <-failed)
		require.Len(t, states(t, s), callers)
		require.Len(t, details(t, s), callers*calls)
	})
}

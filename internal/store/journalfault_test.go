package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ncruces/go-sqlite3"
	"github.com/stretchr/testify/require"

	"lb/internal/fanout"
	"lb/internal/outcome"
)

func write(id string) *fanout.Record {
	now := time.Now()
	return &fanout.Record{
		ID: id, Route: "register", Pool: "users", Created: now, State: fanout.WritePending,
		Write: fanout.Write{Method: "POST", Target: "/register", Host: "example.org", Body: []byte("secret-" + id), RequestID: "request-" + id},
		Deliveries: []fanout.Delivery{
			{Backend: "a", State: fanout.DeliveryPending, Next: now}, {Backend: "b", State: fanout.DeliveryPending, Next: now},
		},
	}
}

// journal returns the journal of a store on the disk.
func (d *disk) journal(t *testing.T) *Journal {
	t.Helper()
	return mustJournal(t, d.open(t))
}

// reopened returns a journal over what a power failure would leave.
func (d *disk) reopened(t *testing.T) *Journal {
	t.Helper()
	return mustJournal(t, mustOpen(t, filepath.Join(d.afterPowerFailure(t), "lb.db")))
}

func pendingIDs(t *testing.T, j *Journal) []string {
	t.Helper()
	rs, err := j.List(t.Context(), fanout.Filter{State: fanout.WritePending, Limit: 1000})
	require.NoError(t, err)
	found := []string{}
	for _, r := range rs {
		found = append(found, r.ID)
	}
	return found
}

func isUnavailable(t *testing.T, err error) {
	t.Helper()
	var o *outcome.Error
	require.ErrorAs(t, err, &o)
	require.Equal(t, outcome.StorageUnavailable, o.Code)
	require.Positive(t, o.RetryAfter)
	require.ErrorIs(t, err, ErrUnavailable)
}

func done(j *Journal, id string) {
	j.Update(fanout.Change{ID: id, State: fanout.WriteDone, Deliveries: []fanout.Delivery{
		{Backend: "a", State: fanout.DeliveryDone}, {Backend: "b", State: fanout.DeliveryDone},
	}})
}

func TestAdmittedSurvivesAPowerFailure(t *testing.T) {
	d := newDisk(t)
	j := d.journal(t)
	for i := range 3 {
		require.NoError(t, j.Admit(t.Context(), write(fmt.Sprint(i))))
	}
	require.Equal(t, []string{"0", "1", "2"}, pendingIDs(t, d.reopened(t)))
	done(j, "1")
	require.Equal(t, []string{"0", "2"}, pendingIDs(t, j))
	require.NoError(t, j.Flush(t.Context()))
	require.Equal(t, []string{"0", "2"}, pendingIDs(t, d.reopened(t)), "what was flushed too, though a read had written it without a sync")
}

func TestNoNumberIsGivenTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lb.db")
	s := mustOpen(t, path)
	j := mustJournal(t, s)
	r := write("one")
	require.NoError(t, j.Admit(t.Context(), r))
	done(j, "one")
	age(t, j)
	j.forget()
	_, ok, err := j.Find(t.Context(), "one")
	require.NoError(t, err)
	require.False(t, ok)
	require.NoError(t, s.Close())
	j = mustJournal(t, mustOpen(t, path))
	totals, err := j.Totals(t.Context())
	require.NoError(t, err)
	require.Equal(t, r.Seq, totals.Seq)
	two := write("two")
	require.NoError(t, j.Admit(t.Context(), two))
	require.Equal(t, r.Seq+1, two.Seq)
}

// age makes all settled writes a day older.
func age(t *testing.T, j *Journal) {
	t.Helper()
	require.NoError(t, j.look(t.Context(), func() error { return nil }))
	require.NoError(t, j.Flush(t.Context()))
	require.NoError(t, j.look(t.Context(), func() error {
		var old []writeRow
		err := j.store.run(`SELECT `+writeColumns+` FROM writes WHERE settled_at IS NOT NULL`, func(row *sqlite3.Stmt) bool {
			w, ok := scanWrite(row)
			require.True(t, ok)
			w.settledAt -= settledFor.Nanoseconds()
			old = append(old, w)
			return true
		})
		for i := range old {
			err = errors.Join(err, j.changeWrite(&old[i]))
		}
		return err
	}))
}

func TestRetention(t *testing.T) {
	j := mustJournal(t, mustOpen(t, ""))
	claim := fanout.Key{1}
	for i := range forgetBatch + 10 {
		r := write(fmt.Sprint(i))
		if i == 0 {
			r.Claim = claim
		}
		require.NoError(t, j.Admit(t.Context(), r))
		done(j, r.ID)
	}
	parked := write("parked")
	require.NoError(t, j.Admit(t.Context(), parked))
	j.Update(fanout.Change{ID: "parked", State: fanout.WriteParked, Deliveries: []fanout.Delivery{{Backend: "a", State: fanout.DeliveryParked}}})
	again := write("again")
	again.Claim = claim
	require.ErrorAs(t, j.Admit(t.Context(), again), new(*fanout.Duplicate))
	age(t, j)
	_, ok, err := j.Find(t.Context(), "0")
	require.NoError(t, err)
	require.False(t, ok, "at once, before it is removed")
	require.NoError(t, j.Admit(t.Context(), again), "its claim is free again")
	require.True(t, j.forget(), "there is more")
	require.False(t, j.forget())
	var rows int64
	require.NoError(t, j.store.read(t.Context(), func(c *sqlite3.Conn) (err error) {
		rows, err = number(c, "SELECT (SELECT count(*) FROM writes) * 1000 + (SELECT count(*) FROM deliveries)")
		return err
	}))
	require.EqualValues(t, 2004, rows, "parked and again")
	got, ok, err := j.Find(t.Context(), "parked")
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, parked.Write, got.Write)
}

func TestAFullDiskAndTheJournal(t *testing.T) {
	d := newDisk(t)
	j := d.journal(t)
	require.NoError(t, j.Admit(t.Context(), write("one")))
	require.NoError(t, j.Admit(t.Context(), write("two")))
	d.set(failing("write", sqlite3.FULL))
	for range 3 {
		isUnavailable(t, j.Admit(t.Context(), write("refused")))
	}
	done(j, "one")
	require.Equal(t, []string{"two"}, pendingIDs(t, j), "reads see what could not be written")
	isUnavailable(t, j.Flush(t.Context()))
	done(j, "two")
	require.Empty(t, pendingIDs(t, j))
	d.set(nil)
	require.NoError(t, j.Admit(t.Context(), write("three")))
	require.Equal(t, []string{"three"}, pendingIDs(t, j))
	require.NoError(t, j.Flush(t.Context()))
	require.Equal(t, []string{"three"}, pendingIDs(t, d.reopened(t)))
}

// Changes that could not be written are, with no other call to remind of them.
func TestChangesAreWrittenWhenTheDiskIsWellAgain(t *testing.T) {
	d := newDisk(t)
	j := d.journal(t)
	require.NoError(t, j.Admit(t.Context(), write("one")))
	d.set(failing("write", sqlite3.FULL))
	done(j, "one")
	isUnavailable(t, j.Flush(t.Context()))
	d.set(nil)
	require.Eventually(t, func() bool { return len(pendingIDs(t, d.reopened(t))) == 0 }, 10*time.Second, 20*time.Millisecond)
}

// Nobody need write to learn that the disk is well again, and each change for
// the worse or the better is told once.
func TestWhetherTheJournalTakesWritesIsKnown(t *testing.T) {
	d := newDisk(t)
	s := d.open(t)
	var mu sync.Mutex
	var told []bool
	j, err := s.Journal(JournalOptions{Failing: func(err error) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, err != nil)
	}})
	require.NoError(t, err)
	require.NoError(t, j.Admit(t.Context(), write("one")))
	require.True(t, j.Up())
	d.set(failing("write", sqlite3.FULL))
	for range 3 {
		isUnavailable(t, j.Admit(t.Context(), write("refused")))
	}
	require.Eventually(t, func() bool { return !j.Up() }, 10*time.Second, time.Millisecond)
	d.set(nil)
	require.Eventually(t, j.Up, 10*time.Second, 10*time.Millisecond)
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []bool{true, false}, told)
}

// What is updated while a batch is being written, and fails, comes after what
// the batch held.
func TestALaterChangeStaysTheLater(t *testing.T) {
	j := mustJournal(t, mustOpen(t, ""))
	require.NoError(t, j.Admit(t.Context(), write("one")))
	require.NoError(t, j.Admit(t.Context(), write("two")))
	attempts := func(id string, n int) {
		j.Update(fanout.Change{ID: id, State: fanout.WritePending, Deliveries: []fanout.Delivery{
			{Backend: "a", State: fanout.DeliveryPending, Attempts: n},
		}})
	}
	require.NoError(t, j.store.takeTurn(t.Context())) // the writer does not get between
	attempts("one", 1)
	taken := j.takeChanges()
	attempts("one", 2)
	attempts("two", 3)
	j.giveBack(taken)
	j.store.endTurn()
	for id, want := range map[string]int{"one": 2, "two": 3} {
		r, _, err := j.Find(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, want, r.Deliveries[0].Attempts)
	}
}

// One write for which there is no room takes no other down.
func TestOneThatIsTooBigIsAlone(t *testing.T) {
	d := newDisk(t)
	j := d.journal(t)
	big := write("big")
	big.Write.Body = bytes.Repeat([]byte("x"), 1<<20)
	// Room for 512 KiB in each transaction.
	var used atomic.Int64
	d.set(func(operation string) error {
		switch operation {
		case "sync":
			used.Store(0)
		case "write":
			if used.Add(4096) > 512<<10 {
				used.Store(0)
				return sqlite3.FULL
			}
		}
		return nil
	})
	require.NoError(t, j.store.takeTurn(t.Context())) // all come into one batch
	var group sync.WaitGroup
	failed := make(chan error, 9)
	for i := range 9 {
		group.Go(func() {
			r := write(fmt.Sprint(i))
			if i == 4 {
				r = big
			}
			if err := j.Admit(context.Background(), r); err != nil {
				failed <- fmt.Errorf("%s: %w", r.ID, err)
			}
		})
	}
	queued(t, j, 9)
	j.store.endTurn()
	group.Wait()
	close(failed)
	var all []error
	for err := range failed {
		all = append(all, err)
	}
	require.Len(t, all, 1)
	require.ErrorContains(t, all[0], "big: ")
	require.Len(t, pendingIDs(t, j), 8)
}

// queued waits until n admissions are.
func queued(t *testing.T, j *Journal, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		return len(j.admissions) == n
	}, 10*time.Second, time.Millisecond)
}

func TestAfterAFailedSyncTheJournalOnlyReads(t *testing.T) {
	d := newDisk(t)
	j := d.journal(t)
	require.NoError(t, j.Admit(t.Context(), write("one")))
	d.set(failing("sync", sqlite3.IOERR_FSYNC))
	isUnavailable(t, j.Admit(t.Context(), write("lost")))
	d.set(nil)
	err := j.Admit(t.Context(), write("refused"))
	isUnavailable(t, err)
	require.ErrorContains(t, err, "restart lb")
	require.Equal(t, []string{"one"}, pendingIDs(t, j))
	done(j, "one")
	isUnavailable(t, j.Flush(t.Context()))
	for range 3 {
		require.Empty(t, pendingIDs(t, j), "reads go on, and see what is not written")
	}
	require.Equal(t, []string{"one"}, pendingIDs(t, d.reopened(t)))
}

func TestReadsWaitForNoSync(t *testing.T) {
	d := newDisk(t)
	j := d.journal(t)
	require.NoError(t, j.Admit(t.Context(), write("one")))
	require.NoError(t, j.store.takeTurn(t.Context())) // the writer does not get between
	syncs := 0
	d.set(func(operation string) error {
		if operation == "sync" {
			syncs++
		}
		return nil
	})
	for i := range 20 {
		j.Update(fanout.Change{ID: "one", State: fanout.WritePending, Deliveries: []fanout.Delivery{
			{Backend: "a", State: fanout.DeliveryPending, Attempts: i},
		}})
		require.NoError(t, j.readWith(t.Context(), func() error {
			r, err := j.load(1)
			require.NoError(t, err)
			require.Equal(t, i, r.Deliveries[0].Attempts)
			return nil
		}))
	}
	require.Zero(t, syncs)
	d.set(nil)
	j.store.endTurn()
}

// hang makes syncs tell begun, and wait until release is called.
func (d *disk) hang() (begun chan struct{}, release func()) {
	begun = make(chan struct{}, 1000)
	hold := make(chan struct{})
	d.begun.Store(&begun)
	d.hold.Store(&hold)
	return begun, sync.OnceFunc(func() {
		d.hold.Store(nil)
		close(hold)
	})
}

func TestASyncThatHangs(t *testing.T) {
	d := newDisk(t)
	synctest.Test(t, func(t *testing.T) {
		j := d.journal(t)
		require.NoError(t, j.Admit(t.Context(), write("before")))
		begun, release := d.hang()
		defer release()
		start := time.Now()
		results := make(chan error, 2)
		go func() { results <- j.Admit(context.Background(), write("inside")) }()
		<-begun
		go func() { results <- j.Admit(context.Background(), write("outside")) }()
		isUnavailable(t, <-results)
		isUnavailable(t, <-results)
		require.Equal(t, patience, time.Since(start))
		err := j.Admit(t.Context(), write("after"))
		isUnavailable(t, err)
		require.ErrorContains(t, err, "has not answered")
		isUnavailable(t, j.Flush(t.Context()))
		require.Equal(t, patience, time.Since(start), "at once")
		_, _, err = j.Find(t.Context(), "before")
		isUnavailable(t, err)
		require.Equal(t, 2*patience, time.Since(start))

		release()
		synctest.Wait()
		require.Equal(t, []string{"before"}, pendingIDs(t, j))
		r, ok, err := j.Find(t.Context(), "inside")
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, fanout.WriteCancelled, r.State)
		for _, d := range r.Deliveries {
			require.Equal(t, fanout.DeliveryCancelled, d.State)
			require.Equal(t, fanout.ReasonUnacknowledged, d.Reason)
		}
		_, ok, err = j.Find(t.Context(), "outside")
		require.NoError(t, err)
		require.False(t, ok, "it was withdrawn")
		require.NoError(t, j.Admit(t.Context(), write("later")))
	})
}

func TestAClientThatDoesNotWait(t *testing.T) {
	d := newDisk(t)
	synctest.Test(t, func(t *testing.T) {
		j := d.journal(t)
		begun, release := d.hang()
		defer release()
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { result <- j.Admit(ctx, write("inside")) }()
		<-begun
		cancel()
		require.ErrorIs(t, <-result, context.Canceled)
		release()
		require.Empty(t, pendingIDs(t, j))
	})
}

func TestGroupCommit(t *testing.T) {
	const clients, each = 64, 8
	d := newDisk(t)
	j := d.journal(t)
	var syncs atomic.Int64
	d.set(func(operation string) error {
		if operation == "sync" {
			syncs.Add(1)
			time.Sleep(10 * time.Millisecond) // the disk's
		}
		return nil
	})
	var group sync.WaitGroup
	for c := range clients {
		group.Go(func() {
			for i := range each {
				if err := j.Admit(context.Background(), write(fmt.Sprintf("%d-%d", c, i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	d.set(nil)
	t.Logf("%d syncs for %d admissions", syncs.Load(), clients*each)
	require.GreaterOrEqual(t, clients*each/syncs.Load(), int64(24))
}

func TestAClosedJournal(t *testing.T) {
	s := mustOpen(t, "")
	j := mustJournal(t, s)
	require.NoError(t, j.Admit(t.Context(), write("one")))
	done(j, "one")
	j.Close()
	j.Close()
	isUnavailable(t, j.Admit(t.Context(), write("two")))
	isUnavailable(t, j.Flush(t.Context()))
	require.Empty(t, pendingIDs(t, j), "it wrote what waited")
	require.NoError(t, s.Close())
	_, err := j.List(t.Context(), fanout.Filter{Limit: 1})
	isUnavailable(t, err)
}

func TestQueriesUseIndexes(t *testing.T) {
	s := mustOpen(t, "")
	for sql, want := range map[string]string{
		due:        "SEARCH deliveries USING COVERING INDEX deliveries_turn (pool=? AND backend=? AND turn=? AND next<?)",
		firstOfKey: "SEARCH deliveries USING INDEX deliveries_order (pool=? AND backend=? AND order_key=?)",
		nextOfKey:  "SEARCH deliveries USING INDEX deliveries_order (pool=? AND backend=? AND order_key=? AND seq>?)",
		listRange:  "SEARCH writes USING COVERING INDEX writes_state (state=? AND pool=? AND seq>?)",
		listAll:    "SEARCH writes USING INTEGER PRIMARY KEY (rowid>?)",
		nextPool:   "SEARCH writes USING COVERING INDEX writes_state (state=? AND pool>?)",
		firstPool:  "SEARCH writes USING COVERING INDEX writes_state (state=?)",
		old:        "SEARCH writes USING COVERING INDEX writes_settled (settled_at<?)",
		byClaim:    "SEARCH writes USING INDEX writes_claim (claim=?)",
		byID:       "SEARCH writes USING INDEX writes_id (id=?)",
		pendingOf:  "SEARCH writes USING COVERING INDEX writes_state (state=?)",
		countTurn:  "SEARCH deliveries USING COVERING INDEX deliveries_turn (pool=? AND backend=? AND turn=?)",
		firstLane:  "SCAN deliveries USING COVERING INDEX deliveries_turn",
		nextLane:   "SEARCH deliveries USING COVERING INDEX deliveries_turn ((pool,backend)>(?,?))",
	} {
		var plan []string
		require.NoError(t, query(s.conn, "EXPLAIN QUERY PLAN "+sql, func(row *sqlite3.Stmt) { plan = append(plan, row.ColumnText(3)) }))
		require.Equal(t, want, strings.Join(plan, "|"), sql)
	}
}

func testKey(b byte) []byte { return bytes.Repeat([]byte{b}, keySize) }

func TestEncryption(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lb.db")
	s := mustOpen(t, path)
	j, err := s.Journal(JournalOptions{Key: testKey(1)})
	require.NoError(t, err)
	r := write("one")
	r.Write.Target = "/secret-target"
	r.Write.Fields = []fanout.Field{{Name: "Authorization", Value: "secret-field"}}
	r.Order, r.Claim, r.Print = fanout.Key([]byte("secret-order-key")), fanout.Key([]byte("secret-claim-key")), fanout.Key([]byte("secret-printprin"))
	require.NoError(t, j.Admit(t.Context(), r))
	j.Update(fanout.Change{ID: "one", State: fanout.WritePending, Reply: &fanout.Reply{Backend: "a", Response: fanout.Response{Status: 201, Body: []byte("secret-reply")}},
		Deliveries: []fanout.Delivery{{Backend: "a", State: fanout.DeliveryPending, Error: "secret-error"}}})
	require.NoError(t, j.Flush(t.Context()))
	wal, err := os.ReadFile(path + "-wal")
	require.NoError(t, err)
	require.NotEmpty(t, wal)
	require.NotContains(t, string(wal), "secret-")
	require.NoError(t, s.Close())
	file, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NotContains(t, string(file), "secret-")

	for _, test := range []struct {
		key  []byte
		want string
	}{{nil, "give its key"}, {testKey(2), "encrypted with another key: give that one"}, {[]byte("short"), "5 bytes, and must have 32"}} {
		s := mustOpen(t, path)
		_, err := s.Journal(JournalOptions{Key: test.key})
		require.ErrorContains(t, err, test.want)
		require.NoError(t, s.Close())
	}
	s = mustOpen(t, path)
	j, err = s.Journal(JournalOptions{Key: testKey(1)})
	require.NoError(t, err)
	got, ok, err := j.Find(t.Context(), "one")
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, r.Write, got.Write)
	require.Equal(t, []fanout.Key{r.Order, r.Claim, r.Print}, []fanout.Key{got.Order, got.Claim, got.Print})
	require.Equal(t, "secret-reply", string(got.Reply.Response.Body))
	require.Equal(t, "secret-error", got.Deliveries[0].Error)
}

func TestAPlainJournalAndAKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lb.db")
	s := mustOpen(t, path)
	j := mustJournal(t, s)
	require.NoError(t, j.Admit(t.Context(), write("one")))
	require.NoError(t, s.Close())
	s = mustOpen(t, path)
	_, err := s.Journal(JournalOptions{Key: testKey(1)})
	require.ErrorContains(t, err, "is not encrypted: open it without a key")
	j = mustJournal(t, s)
	done(j, "one")
	age(t, j)
	j.forget()
	require.NoError(t, s.Close())
	for _, key := range [][]byte{testKey(1), testKey(2), nil} {
		s = mustOpen(t, path)
		_, err = s.Journal(JournalOptions{Key: key})
		require.NoError(t, err, "an empty one takes any")
		require.NoError(t, s.Close())
	}
}

// A client that was told 503 comes again with its key: what was stored and
// cancelled meanwhile does not stand in its way.
func TestARefusedWriteLeavesItsKeyFree(t *testing.T) {
	d := newDisk(t)
	j := d.journal(t)
	first := write("first")
	first.Claim, first.Print = fanout.Key{7}, fanout.Key{8}
	hold, begun := make(chan struct{}), make(chan struct{}, 100)
	d.begun.Store(&begun)
	d.hold.Store(&hold)
	isUnavailable(t, j.Admit(t.Context(), first))
	d.hold.Store(nil)
	close(hold)
	again := write("again")
	again.Claim, again.Print = first.Claim, first.Print
	require.Eventually(t, func() bool {
		err := j.Admit(t.Context(), again)
		require.False(t, errors.As(err, new(*fanout.Duplicate)), "of a write that nobody sends")
		return err == nil
	}, 10*time.Second, 50*time.Millisecond)
	require.Equal(t, []string{"again"}, pendingIDs(t, j))
}

// What a reader has committed without a sync is safe after Flush, whatever was
// committed between the two.
func TestFlushCoversWhatReadersCommitted(t *testing.T) {
	d := newDisk(t)
	j := d.journal(t)
	r := write("one")
	r.Claim = fanout.Key{7}
	require.NoError(t, j.Admit(t.Context(), r))
	j.Update(fanout.Change{ID: "one", State: fanout.WriteRejected, Deliveries: []fanout.Delivery{
		{Backend: "a", State: fanout.DeliveryHeld}, {Backend: "b", State: fanout.DeliveryHeld},
	}})
	_, _, err := j.Find(t.Context(), "one")
	require.NoError(t, err)
	duplicate := write("two")
	duplicate.Claim = r.Claim
	require.ErrorAs(t, j.Admit(t.Context(), duplicate), new(*fanout.Duplicate))
	require.NoError(t, j.Flush(t.Context()))
	got, _, err := d.reopened(t).Find(t.Context(), "one")
	require.NoError(t, err)
	require.Equal(t, fanout.WriteRejected, got.State)
}

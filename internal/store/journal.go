package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ncruces/go-sqlite3"

	"lb/internal/crash"
	"lb/internal/fanout"
	"lb/internal/outcome"
)

const (
	// company is how long changes wait when nothing urgent does: a change need
	// not be durable at once, so those of 50 ms share one sync. It is what a
	// power failure may cost in attempts that are made again.
	company = 50 * time.Millisecond
	// retryAfter is when to try again what could not be written, and when
	// clients are told to come back.
	retryAfter = time.Second
	// maxBatch and maxBatchBytes bound what one transaction admits, and so the
	// memory it takes and how long the connection is not free for others.
	maxBatch      = 1024
	maxBatchBytes = 32 << 20
	// settledFor is how long a settled write stays readable.
	settledFor = 24 * time.Hour
	// forgetEvery is how often old ones are looked for, forgetBatch how many go
	// in one transaction.
	forgetEvery = time.Minute
	forgetBatch = 256
	// maxList is the most that List returns.
	maxList = 1000
	// maxLoad is about how many bytes of requests are read at once.
	maxLoad = 16 << 20
)

// JournalOptions are what Journal needs to know.
type JournalOptions struct {
	// Key encrypts what clients and backends send, if it is not nil: 32 bytes.
	Key []byte
	// Failing, if it is not nil, is told why when writes begin to fail, and nil
	// when they succeed again. It is called by the one goroutine that writes.
	Failing func(err error)
}

// Journal is the fanout.Journal in a store. Admit returns when the write is on
// the disk. One goroutine writes: it takes all admissions and changes that wait
// into one transaction, so that many share one sync of the disk, and the next
// ones gather meanwhile.
//
// Errors wrap an *outcome.Error with StorageUnavailable, and ErrUnavailable.
// Behind a disk that hangs nobody waits longer than 5 s, and while it hangs
// new admissions fail at once.
type Journal struct {
	store *Store
	seal  *sealer
	stop  chan struct{}
	done  chan struct{}
	tell  func(err error) // JournalOptions.Failing
	urgent,
	soon chan struct{} // each holds one token: there is something to write

	mu         sync.Mutex
	admissions []*admission
	changes    changes
	flushes    []*flush
	began      time.Time // of the commit that is under way, zero for none
	closed     bool
	failing    bool // the last batch could not be written

	// What follows belongs to whoever has the store's turn.
	seq      int64                   // the last one given
	syncs    int64                   // counts commits that had nothing to write but had to sync
	unsynced bool                    // something was committed without a sync
	ruined   error                   // why nothing can be read any more
	damaged  map[int64]fanout.Record // parked for it, and not returned by Due or Head yet
}

// admission is a write that waits to be admitted.
type admission struct {
	write      writeRow
	request    []byte
	deliveries []deliveryRow
	result     chan error // holds one

	alone bool // no other of its key is unsettled

	begun     bool // it is in a transaction
	abandoned bool // nobody waits for it any more
}

func (a *admission) size() int { return len(a.request) + len(a.write.head) + 256*(1+len(a.deliveries)) }

type flush struct{ result chan error } // holds one

// Journal starts the journal in the store. It ends with Close, or with the
// store's.
//
// All that is in the journal is under one key, or under none: a journal that
// is not empty opens only as it was written.
func (s *Store) Journal(o JournalOptions) (*Journal, error) {
	seal, err := newSealer(o.Key)
	if err != nil {
		return nil, err
	}
	j := &Journal{
		store: s, seal: seal, stop: make(chan struct{}), done: make(chan struct{}),
		urgent: make(chan struct{}, 1), soon: make(chan struct{}, 1), tell: o.Failing,
	}
	if err := s.write(context.Background(), func(*sqlite3.Conn) error { return j.checkKey() }); err != nil {
		return nil, err
	}
	// Only now may anything be repaired: under another key nothing looks whole.
	if err := s.read(context.Background(), func(*sqlite3.Conn) error { return j.verifying(j.learnSeq) }); err != nil {
		return nil, err
	}
	if !s.journal.CompareAndSwap(nil, j) {
		return nil, errors.New("the store has a journal already")
	}
	go j.run()
	return j, nil
}

// learnSeq learns where the numbers stand.
func (j *Journal) learnSeq() error {
	return j.store.run(`SELECT max(ifnull((SELECT max(seq) FROM writes), 0), ifnull((SELECT CAST(CAST(value AS TEXT) AS INTEGER) FROM meta WHERE name = 'seq'), 0))`,
		func(row *sqlite3.Stmt) bool { j.seq = row.ColumnInt64(0); return true })
}

// checkKey checks that the journal was written with this key.
func (j *Journal) checkKey() error {
	s := j.store
	var check []byte
	err := s.run(`SELECT value FROM meta WHERE name = 'key'`, func(row *sqlite3.Stmt) bool { check = blob(row, 0); return true })
	if err != nil {
		return err
	}
	if want := j.seal.check(); !bytes.Equal(check, want) {
		used := false
		if err := s.run(`SELECT 1 FROM writes LIMIT 1`, func(*sqlite3.Stmt) bool { used = true; return false }); err != nil {
			return err
		}
		const until = "until its writes are settled and forgotten (24 h later), or choose another path"
		switch {
		case !used:
		case check == nil:
			return fmt.Errorf("the journal in %s is not encrypted: open it without a key (storage.key_env) %s", s.path, until)
		case want == nil:
			return fmt.Errorf("the journal in %s is encrypted: give its key (storage.key_env)", s.path)
		default:
			return fmt.Errorf("the journal in %s is encrypted with another key: give that one (storage.key_env) %s", s.path, until)
		}
		if err := s.run(`DELETE FROM meta WHERE name = 'key'`, nil); err != nil {
			return err
		}
		if want != nil {
			return s.run(`INSERT INTO meta (name, value) VALUES ('key', ?)`, nil, want)
		}
	}
	return nil
}

// Close writes what waits and ends the journal. Calls that come later get
// ErrUnavailable. A second Close does nothing.
func (j *Journal) Close() {
	j.mu.Lock()
	if !j.closed {
		j.closed = true
		close(j.stop)
	}
	j.mu.Unlock()
	<-j.done
}

// refusal is the error of a call that could not be done.
func (j *Journal) refusal(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if !errors.Is(err, ErrUnavailable) {
		err = unavailable(j.store.path, err)
	}
	return &outcome.Error{
		Code: outcome.StorageUnavailable, Detail: "the storage cannot be used for now: the disk is full, fails or hangs", RetryAfter: retryAfter, Err: err,
	}
}

var (
	errClosed  = errors.New("it is closed")
	errHanging = fmt.Errorf("the disk has not answered for %v: check it", patience)
)

// Admit implements fanout.Journal.
func (j *Journal) Admit(ctx context.Context, r *fanout.Record) error {
	a := j.admission(r)
	j.mu.Lock()
	switch {
	case j.closed:
		j.mu.Unlock()
		return j.refusal(errClosed)
	case j.hanging():
		j.mu.Unlock()
		return j.refusal(errHanging)
	}
	j.admissions = append(j.admissions, a)
	j.mu.Unlock()
	token(j.urgent)

	timer := time.NewTimer(patience)
	defer timer.Stop()
	var err error
	select {
	case err = <-a.result:
	case <-timer.C:
		err = j.abandon(a, errHanging)
	case <-ctx.Done():
		err = j.abandon(a, ctx.Err())
	}
	if errors.As(err, new(*fanout.Duplicate)) {
		return err
	}
	if err != nil {
		return j.refusal(err)
	}
	if r.Seq == 0 { // else others may be reading it
		r.Seq = uint64(max(0, a.write.seq))
	}
	r.Alone = a.alone
	return nil
}

// admission makes the rows of r, all but its number.
func (j *Journal) admission(r *fanout.Record) *admission {
	a := &admission{
		write: writeRow{
			seq: number64(r.Seq), id: r.ID, route: r.Route, pool: r.Pool, created: instant(r.Created), clock: instant(r.Clock), state: string(r.State),
			order: j.seal.key(r.Order), claim: j.seal.key(r.Claim), size: r.Write.Size(), told: flag(r.Told),
			head: j.head(r), reply: j.reply(r),
		},
		request:    j.request(r),
		deliveries: make([]deliveryRow, len(r.Deliveries)),
		result:     make(chan error, 1),
	}
	for i := range r.Deliveries {
		a.deliveries[i] = j.row(r, i, a.write.order)
	}
	return a
}

// hanging reports whether a commit takes too long. Under mu.
func (j *Journal) hanging() bool { return !j.began.IsZero() && time.Since(j.began) >= patience }

// abandon ends the wait for a. What is in a transaction already may come to
// be: then it is cancelled at once.
func (j *Journal) abandon(a *admission, why error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	select {
	case err := <-a.result: // just now
		return err
	default:
	}
	a.abandoned = true
	if !a.begun {
		j.admissions = slices.DeleteFunc(j.admissions, func(b *admission) bool { return a == b })
	}
	return why
}

// Update implements fanout.Journal.
func (j *Journal) Update(c fanout.Change) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.changes.add(c)
	token(j.soon)
}

// Flush implements fanout.Journal.
func (j *Journal) Flush(ctx context.Context) error {
	f := &flush{make(chan error, 1)}
	j.mu.Lock()
	switch {
	case j.closed:
		j.mu.Unlock()
		return j.refusal(errClosed)
	case j.hanging():
		j.mu.Unlock()
		return j.refusal(errHanging)
	}
	j.flushes = append(j.flushes, f)
	j.mu.Unlock()
	token(j.urgent)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var err error
	select {
	case err = <-f.result:
	case <-timer.C:
		err = errHanging
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return j.refusal(err)
	}
	return nil
}

func token(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// changes are what is to be noted, by write: a later one takes the place of an
// earlier one, so they are no more than there are unsettled writes.
type changes struct {
	order []string
	byID  map[string]*fanout.Change
}

func (cs *changes) add(c fanout.Change) {
	if cs.byID == nil {
		cs.byID = make(map[string]*fanout.Change)
	}
	old := cs.byID[c.ID]
	if old == nil {
		c.Deliveries = slices.Clone(c.Deliveries)
		cs.byID[c.ID] = &c
		cs.order = append(cs.order, c.ID)
		return
	}
	old.State = c.State
	for _, d := range c.Deliveries {
		i := slices.IndexFunc(old.Deliveries, func(o fanout.Delivery) bool { return o.Backend == d.Backend })
		if i >= 0 {
			old.Deliveries[i] = d
		} else {
			old.Deliveries = append(old.Deliveries, d)
		}
	}
	if !c.Clock.IsZero() {
		old.Clock = c.Clock
	}
	if c.Reply != nil {
		old.Reply = c.Reply
	}
	old.Told = old.Told || c.Told
}

// takeChanges takes all that are queued. Whoever has the turn gives back what
// it could not write before the turn ends, so that a reader misses nothing.
func (j *Journal) takeChanges() changes {
	j.mu.Lock()
	defer j.mu.Unlock()
	taken := j.changes
	j.changes = changes{}
	return taken
}

func (j *Journal) giveBack(taken changes) {
	if len(taken.order) == 0 {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, id := range j.changes.order {
		taken.add(*j.changes.byID[id])
	}
	j.changes = taken
}

// run writes until Close.
func (j *Journal) run() {
	defer close(j.done)
	forget := time.NewTimer(0)
	defer forget.Stop()
	var later <-chan time.Time
	for stopping := false; !stopping; {
		ripe := true
		select {
		case <-j.urgent:
		case <-j.soon:
			if later == nil {
				later = time.After(company)
			}
			ripe = false
		case <-later:
		case <-forget.C:
			ripe = false
			if j.forget() {
				forget.Reset(0)
			} else {
				forget.Reset(forgetEvery)
			}
		case <-j.stop:
			stopping = true
		}
		if !ripe {
			continue
		}
		later = nil
		if more, failed := j.writeBatch(); more {
			token(j.urgent)
		} else if failed {
			later = time.After(retryAfter)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, a := range j.admissions {
		a.result <- errClosed
	}
	for _, f := range j.flushes {
		f.result <- errClosed
	}
	j.admissions, j.flushes = nil, nil
}

// writeBatch writes what waits in one transaction, or more if that fails. It
// reports whether more waits, and whether it has to be tried again.
func (j *Journal) writeBatch() (more, failed bool) {
	s := j.store
	if err := s.takeTurn(context.Background()); err != nil {
		j.mu.Lock()
		admissions, flushes := j.admissions, j.flushes
		j.admissions, j.flushes = nil, nil
		j.mu.Unlock()
		answer(admissions, err)
		answerFlushes(flushes, err)
		return false, true
	}
	defer s.endTurn()
	j.mu.Lock()
	n, bytes := 0, 0
	for n < len(j.admissions) && n < maxBatch && bytes < maxBatchBytes {
		j.admissions[n].begun = true
		bytes += j.admissions[n].size()
		n++
	}
	batch := slices.Clone(j.admissions[:n])
	j.admissions = slices.Delete(j.admissions, 0, n)
	more = len(j.admissions) > 0
	flushes := j.flushes
	j.flushes = nil
	taken := j.changes
	j.changes = changes{}
	j.began = time.Now()
	probe := j.failing // something has to be written to find out whether it is over
	j.mu.Unlock()

	err := j.commitAll(batch, &taken, len(flushes) > 0, probe)
	j.giveBack(taken)
	j.mu.Lock()
	j.began = time.Time{}
	failed = err != nil
	changed := j.failing != (err != nil)
	j.failing = err != nil
	j.mu.Unlock()
	if changed && j.tell != nil {
		j.tell(err)
	}
	answerFlushes(flushes, err)
	return more, failed
}

func answer(admissions []*admission, err error) {
	for _, a := range admissions {
		a.result <- err
	}
}

func answerFlushes(flushes []*flush, err error) {
	for _, f := range flushes {
		f.result <- err
	}
}

// commitAll writes taken and the batch, and tells the waiting. taken is empty
// when it was written. If the whole cannot be written, halves are tried: one
// write that is too big for what is left of the disk takes no other down.
func (j *Journal) commitAll(batch []*admission, taken *changes, sync, probe bool) error {
	if len(batch) == 0 && len(taken.order) == 0 && !probe && (!sync || !j.unsynced) {
		return j.store.broken
	}
	results := make([]error, len(batch))
	err := j.commit(true, func() error {
		if err := j.apply(taken); err != nil {
			return err
		}
		if probe || j.unsynced || len(batch) == 0 && len(taken.order) == 0 {
			j.syncs++ // a commit that writes nothing syncs nothing
			if err := j.store.run(`REPLACE INTO meta (name, value) VALUES ('syncs', ?)`, nil, decimal(j.syncs)); err != nil {
				return err
			}
		}
		for i, a := range batch {
			err := j.insert(a)
			if err != nil && !errors.As(err, new(*fanout.Duplicate)) {
				return err
			}
			results[i] = err
		}
		return nil
	})
	if err == nil {
		if len(taken.order) > 0 {
			crash.At("journal.outcomes-committed")
		}
		*taken = changes{}
		j.settle(batch, results)
		return nil
	}
	if len(batch) > 1 && j.store.broken == nil && j.ruined == nil && j.store.conn != nil {
		half := len(batch) / 2
		err = j.commitAll(batch[:half], taken, sync, probe)
		return errors.Join(err, j.commitAll(batch[half:], taken, sync, probe))
	}
	answer(batch, err)
	return err
}

// commit calls fn in a transaction; with sync it is on the disk when commit
// returns nil.
func (j *Journal) commit(sync bool, fn func() error) error {
	s := j.store
	if s.conn == nil {
		return errClosed
	}
	seq := j.seq
	if !sync {
		// Not by run: a PRAGMA of this sort acts when it is prepared.
		if err := s.conn.Exec(`PRAGMA synchronous = NORMAL`); err != nil {
			return s.explain(err)
		}
		defer func() { _ = s.conn.Exec(`PRAGMA synchronous = FULL`) }() // cannot fail: it only sets a variable
	}
	err := j.verifying(func() error {
		return s.commit(s.conn, func(*sqlite3.Conn) error {
			j.seq = seq // it may be the second try
			if err := fn(); err != nil {
				return err
			}
			crash.At("journal.before-commit")
			return nil
		})
	})
	if err != nil {
		j.seq = seq
		return s.explain(err)
	}
	j.unsynced = !sync
	crash.At("journal.after-commit")
	return nil
}

// settle tells what became of the batch, and cancels what nobody waits for any
// more.
func (j *Journal) settle(batch []*admission, results []error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, a := range batch {
		if a.abandoned && results[i] == nil {
			c := fanout.Change{ID: a.write.id, State: fanout.WriteCancelled}
			for _, d := range a.deliveries {
				c.Deliveries = append(c.Deliveries, fanout.Delivery{
					Backend: d.backend, State: fanout.DeliveryCancelled, Reason: fanout.ReasonUnacknowledged,
				})
			}
			j.changes.add(c)
			token(j.soon)
		}
		a.result <- results[i]
	}
}

func decimal(n int64) []byte { return fmt.Append(nil, n) }

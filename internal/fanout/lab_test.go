package fanout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/balance"
	"lb/internal/outcome"
	"lb/internal/pool"
)

// lab is an engine over fake backends, in a bubble of synctest.
type lab struct {
	t      *testing.T
	engine *Engine
	plan   *Plan
	pool   *fakePool
	fake   *fakeSender
	events *recorder
	b      map[string]*backend.Backend
	start  time.Time
}

// bubble runs f with an engine over backends of those names; each answers 201
// at once unless the test says otherwise.
func bubble(t *testing.T, names []string, f func(*lab), change ...func(*Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &lab{t: t, fake: newFake(), events: &recorder{}, b: map[string]*backend.Backend{}, start: time.Now()}
		var members []*backend.Backend
		for _, name := range names {
			l.b[name] = &backend.Backend{Pool: "users", ID: name, Address: name + ":1"}
			members = append(members, l.b[name])
		}
		l.pool = newFakePool(members...)
		l.plan = &Plan{
			Route: "register", Pool: l.pool, Success: []int{201}, Reject: []int{400, 409}, Already: []int{409},
			Ack: AckAll, Wait: 30 * time.Second, AttemptTimeout: 10 * time.Second, Backoff: standard,
			MaxAttempts: 100, MaxAge: 24 * time.Hour, MaxPending: 1000, MaxPendingBytes: 1 << 20,
		}
		o := Options{Sender: l.fake, Events: l.events, Jitter: none}
		for _, c := range change {
			c(&o)
		}
		l.engine = New(o)
		running := make(chan error, 1)
		go func(e *Engine) { running <- e.Run(context.Background()) }(l.engine)
		defer func() {
			l.stopNow()
			require.NoError(t, <-running)
		}()
		f(l)
	})
}

// stopNow stops the engine without mercy.
func (l *lab) stopNow() []Pending {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return l.engine.Stop(ctx)
}

func (l *lab) post(target string) (Answer, error) {
	return l.engine.Submit(context.Background(), l.plan, Write{
		Method: "POST", Target: target, Host: "example.org", Body: []byte("username=ada"),
		Fields: []Field{{"X-Request-Id", "r1"}}, RequestID: "r1",
	})
}

func (l *lab) mustPost(target string) Answer {
	l.t.Helper()
	a, err := l.post(target)
	require.NoError(l.t, err)
	return a
}

// postAside submits from a goroutine of its own.
func (l *lab) postAside(target string) <-chan Answer {
	answers := make(chan Answer, 1)
	go func() {
		a, _ := l.post(target)
		answers <- a
	}()
	synctest.Wait()
	return answers
}

// sleep lets time pass, and everything come to rest.
func (l *lab) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// passed is the time since the start.
func (l *lab) passed() time.Duration { return time.Since(l.start) }

func (l *lab) status(id string) Status {
	l.t.Helper()
	s, ok, err := l.engine.Status(l.t.Context(), id)
	require.NoError(l.t, err)
	require.True(l.t, ok)
	return s
}

// states is a short form of a status: "pending a=done b=held".
func (l *lab) states(id string) string {
	l.t.Helper()
	s := l.status(id)
	text := string(s.State)
	for _, d := range s.Deliveries {
		text += fmt.Sprintf(" %s=%s", d.Backend, d.State)
	}
	return text
}

// restart marks a backend as one whose last dial succeeded.
func (l *lab) restart(name string) {
	l.fake.set(name)
	l.b[name].DialSucceeded()
}

// fakePool is a pool whose backends lag by age only if a test says when. Its
// slots are a real pool's.
type fakePool struct {
	*pool.Pool
	after time.Duration

	mu      sync.Mutex
	members []*backend.Backend
	absent  []*backend.Backend // who may come back
}

func newFakePool(members ...*backend.Backend) *fakePool {
	policy, err := balance.New(balance.Spec{Name: "roundrobin"})
	if err != nil {
		panic(err)
	}
	return &fakePool{members: members, Pool: pool.New(pool.Options{Policy: policy, Backends: members})}
}

func (*fakePool) Name() string                  { return "users" }
func (p *fakePool) LaggingAfter() time.Duration { return p.after }

func (p *fakePool) Members() []*backend.Backend {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.members
}

func (p *fakePool) Member(id string) *backend.Backend {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range slices.Concat(p.members, p.absent) {
		if b.ID == id {
			return b
		}
	}
	return nil
}

// have sets who is there, and who may come back.
func (p *fakePool) have(members, absent []*backend.Backend) {
	p.mu.Lock()
	p.members, p.absent = members, absent
	p.mu.Unlock()
	p.Replace(members)
}

// free requires that no slot is taken, and that nobody waits for one.
func (p *fakePool) free(t *testing.T, all ...*backend.Backend) {
	t.Helper()
	for _, b := range all {
		require.Zero(t, b.InFlight(), b.ID)
		w := pool.Waiter{}
		limit := b.Limit()
		p.SetLimit(b, 1)
		l, ok := p.Acquire(b, &w)
		require.True(t, ok, "somebody waits for %s", b.ID)
		l.End(outcome.Undecided, time.Now())
		p.SetLimit(b, limit)
	}
}

// step is what a fake backend does with one attempt.
type step struct {
	after      time.Duration
	status     int
	err        error
	dialFails  bool
	body       string
	retryAfter time.Duration
}

func ok() step                         { return step{status: 201} }
func says(status int) step             { return step{status: status, body: fmt.Sprint("says ", status)} }
func (s step) in(d time.Duration) step { s.after = d; return s }
func refuses() step {
	return step{dialFails: true, err: &outcome.DialError{Address: "x:1", Err: syscall.ECONNREFUSED}}
}
func starves() step {
	return step{err: &outcome.DialError{Address: "x:1", Err: syscall.EMFILE}}
}
func resets() step { return step{err: syscall.ECONNRESET} }
func hangs() step  { return step{after: time.Hour} }

// after is time.After, by a timer without a channel: the race detector dies of
// many of those that have one, in bubbles.
func after(d time.Duration) <-chan struct{} {
	c := make(chan struct{})
	time.AfterFunc(d, func() { close(c) })
	return c
}

// call is one attempt that a fake backend saw.
type call struct {
	at      time.Time
	backend string
	address string
	request Request
}

// fakeSender plays a list of steps for each backend and write; its last one
// goes on for ever.
type fakeSender struct {
	mu      sync.Mutex
	plays   map[string][]step
	seen    map[string]int
	calls   []call
	running map[string]int
	most    map[string]int
}

func newFake() *fakeSender {
	return &fakeSender{
		plays: map[string][]step{}, seen: map[string]int{}, running: map[string]int{}, most: map[string]int{},
	}
}

// set says what a backend does from now on, for each write from the start.
func (f *fakeSender) set(name string, steps ...step) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(steps) == 0 {
		steps = []step{ok()}
	}
	f.plays[name] = steps
	clear(f.seen)
}

func (f *fakeSender) begin(b *backend.Backend, r Request) step {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call{time.Now(), b.ID, b.Address, r})
	f.running[b.ID]++
	f.most[b.ID] = max(f.most[b.ID], f.running[b.ID])
	play := f.plays[b.ID]
	if len(play) == 0 {
		return ok()
	}
	key := b.ID + " " + r.FanoutID
	s := play[min(f.seen[key], len(play)-1)]
	f.seen[key]++
	return s
}

func (f *fakeSender) Send(ctx context.Context, b *backend.Backend, r Request) (Response, error) {
	if b.InFlight() < 1 {
		return Response{}, errors.New("the attempt was not counted at its backend")
	}
	s := f.begin(b, r)
	defer func() {
		f.mu.Lock()
		f.running[b.ID]--
		f.mu.Unlock()
	}()
	if s.dialFails {
		b.DialFailed()
	} else if s.err == nil {
		b.DialSucceeded()
	}
	select {
	case <-after(s.after):
	case <-ctx.Done():
		return Response{}, ctx.Err()
	}
	if s.err != nil {
		return Response{}, s.err
	}
	return Response{Status: s.status, Body: []byte(s.body), RetryAfter: s.retryAfter}, nil
}

// times returns when a backend was called, since the start.
func (l *lab) times(name string) []time.Duration {
	l.fake.mu.Lock()
	defer l.fake.mu.Unlock()
	var times []time.Duration
	for _, c := range l.fake.calls {
		if c.backend == name {
			times = append(times, c.at.Sub(l.start))
		}
	}
	return times
}

// calls returns what a backend was sent.
func (l *lab) calls(name string) []Request {
	l.fake.mu.Lock()
	defer l.fake.mu.Unlock()
	var rs []Request
	for _, c := range l.fake.calls {
		if c.backend == name {
			rs = append(rs, c.request)
		}
	}
	return rs
}

// recorder is an Events that remembers, in words.
type recorder struct {
	mu    sync.Mutex
	words []string
	lags  []lagEvent // in the order in which they were told
}

// lagEvent is one call of Lagging.
type lagEvent struct {
	at      time.Time
	backend string
	lagging bool
	reason  string
}

func (r *recorder) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.words = append(r.words, fmt.Sprintf(format, args...))
}

func (r *recorder) Attempt(p *Plan, b *backend.Backend, o outcome.Outcome, succeeded bool) {
	r.add("attempt %s %s %s %d %t", p.Route, b.ID, o.Class, o.Status, succeeded)
}

func (r *recorder) Settled(s Settlement) {
	r.add("settled %s %s %s %s %d %d %s", s.RequestID, s.Backend.ID, s.State, s.Reason, s.Attempts, s.LastStatus, s.Age)
}

func (r *recorder) Decided(p *Plan, _ string, s State, took time.Duration) {
	r.add("decided %s %s %s", p.Route, s, took)
}

func (r *recorder) Disagreed(p *Plan, _ string, statuses []int) {
	r.add("disagreed %s %v", p.Route, statuses)
}

func (r *recorder) Lagging(_ string, b *backend.Backend, lagging bool, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lags = append(r.lags, lagEvent{time.Now(), b.ID, lagging, reason})
}

func (r *recorder) sorted() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	words := slices.Clone(r.words)
	slices.Sort(words)
	return words
}

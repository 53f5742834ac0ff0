package fanout

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/outcome"
)

// hooked is a Memory whose calls a test can hold up, or have fail.
type hooked struct {
	*Memory
	mu    sync.Mutex
	hooks map[string]func(r *Record) error
	calls map[string]int
}

func newHooked() *hooked {
	return &hooked{Memory: NewMemory(), hooks: map[string]func(*Record) error{}, calls: map[string]int{}}
}

// on has f called before each call of a method; r is nil but for Admit. The
// call fails with f's error.
func (h *hooked) on(method string, f func(r *Record) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hooks[method] = f
}

func (h *hooked) called(method string, r *Record) error {
	h.mu.Lock()
	h.calls[method]++
	f := h.hooks[method]
	h.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(r)
}

func (h *hooked) Admit(ctx context.Context, r *Record) error {
	if err := h.called("Admit", r); err != nil {
		return err
	}
	return h.Memory.Admit(ctx, r)
}

func (h *hooked) Flush(ctx context.Context) error {
	if err := h.called("Flush", nil); err != nil {
		return err
	}
	return h.Memory.Flush(ctx)
}

// What Due and Head return is as old as the call.
func (h *hooked) Due(ctx context.Context, pool, backend string, before time.Time, limit int) ([]Record, error) {
	rs, _ := h.Memory.Due(ctx, pool, backend, before, limit)
	if err := h.called("Due", nil); err != nil {
		return nil, err
	}
	return rs, nil
}

func (h *hooked) Head(ctx context.Context, pool, backend string, order Key) (Record, bool, error) {
	r, found, _ := h.Memory.Head(ctx, pool, backend, order)
	if err := h.called("Head", nil); err != nil {
		return Record{}, false, err
	}
	return r, found, nil
}

func (h *hooked) Totals(ctx context.Context) (Totals, error) {
	if err := h.called("Totals", nil); err != nil {
		return Totals{}, err
	}
	return h.Memory.Totals(ctx)
}

// pause returns a hook that takes its time.
func pause(d time.Duration) func(*Record) error {
	return func(*Record) error {
		time.Sleep(d)
		return nil
	}
}

// durable runs f with an engine over a journal that outlives it, ordered by
// X-Key, whose clients do not wait.
func durable(t *testing.T, names []string, window int, f func(*lab, *hooked)) {
	t.Helper()
	h := newHooked()
	bubble(t, names, func(l *lab) {
		l.plan.Wait = 0
		l.plan.OrderBy = OrderBy{Kind: OrderHeader, Name: "X-Key"}
		l.engine.plans = func(string, string) *Plan { return l.plan }
		f(l, h)
	}, func(o *Options) { o.Journal, o.Window = h, window })
}

// reopen ends the engine without mercy, and starts another over its journal.
func (l *lab) reopen() {
	l.t.Helper()
	l.stopNow()
	synctest.Wait()
	old := l.engine
	l.engine = New(Options{
		Sender: l.fake, Events: l.events, Jitter: none, Journal: old.journal,
		Window: old.window.writes, Plans: old.plans,
	})
	go func(e *Engine) { _ = e.Run(context.Background()) }(l.engine)
	synctest.Wait()
}

// of is a write of that key.
func of(key, target string) Write {
	return Write{Method: "POST", Target: target, Fields: []Field{{"X-Key", key}}, Body: []byte(target)}
}

// put submits a write of that key.
func (l *lab) put(key, target string) Answer {
	l.t.Helper()
	a, err := l.engine.Submit(context.Background(), l.plan, of(key, target))
	require.NoError(l.t, err)
	synctest.Wait()
	return a
}

// targets are what a backend was sent, in order.
func (l *lab) targets(name string) string {
	var all []string
	for _, r := range l.calls(name) {
		all = append(all, r.Target)
	}
	return strings.Join(all, " ")
}

// atRest requires that nothing is left over anywhere.
func (l *lab) atRest() {
	l.t.Helper()
	synctest.Wait()
	e := l.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	require.Empty(l.t, e.writes)
	require.Empty(l.t, e.chains)
	require.Empty(l.t, e.admitting)
	require.Empty(l.t, e.left.writes)
	require.Empty(l.t, e.left.keys)
	require.Zero(l.t, e.outside)
	require.Zero(l.t, e.held)
	require.Zero(l.t, e.left.reads)
	for _, u := range e.usage {
		require.Equal(l.t, usage{}, *u)
	}
	for _, ln := range e.lanes {
		require.Zero(l.t, ln.outside)
		require.Zero(l.t, ln.running)
		require.Empty(l.t, ln.waiting.items)
	}
}

// both runs f with everything in memory, and with nearly nothing.
func both(t *testing.T, names []string, f func(*lab, *hooked)) {
	t.Helper()
	for _, window := range []int{0, 1} {
		t.Run(fmt.Sprint("window ", window), func(t *testing.T) { durable(t, names, window, f) })
	}
}

func TestAParkedWriteBlocksItsKeyAtThatBackendOnly(t *testing.T) {
	ends := map[string]func(*Engine, string) error{
		"retry": func(e *Engine, id string) error { return e.Retry(context.Background(), id, "b") },
		"skip":  func(e *Engine, id string) error { return e.Skip(context.Background(), id, "b") },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			both(t, []string{"a", "b"}, func(l *lab, _ *hooked) {
				l.plan.MaxAttempts = 1
				l.fake.set("b", says(500))
				first := l.put("ada", "/1")
				require.Equal(l.t, "parked a=done b=parked", l.states(first.ID))
				l.fake.set("b")
				other := *l.plan
				other.Route = "change"
				l.plan, l.engine.plans = &other, func(string, string) *Plan { return &other }
				second, third := l.put("ada", "/2"), l.put("ada", "/3")
				l.put("bob", "/4")
				l.sleep(10 * time.Minute)
				require.Equal(l.t, "/1 /2 /3 /4", l.targets("a"))
				require.Equal(l.t, "/1 /4", l.targets("b"))
				require.Equal(l.t, "pending a=done b=pending", l.states(second.ID))
				require.Equal(l.t, []Count{{Pool: "users", Pending: 2, Parked: 1}}, l.engine.Counts())

				require.NoError(l.t, end(l.engine, first.ID))
				l.sleep(0)
				again := map[string]string{"retry": " /1", "skip": ""}[name]
				require.Equal(l.t, "/1 /4"+again+" /2 /3", l.targets("b"))
				require.Equal(l.t, "done a=done b=done", l.states(third.ID))
				l.atRest()
			})
		})
	}
}

// What is parked is settled: it has no place in memory, and taking another
// write of its key must not bring it there.
func TestAParkedWriteStaysOutside(t *testing.T) {
	both(t, []string{"a"}, func(l *lab, _ *hooked) {
		l.plan.MaxAttempts = 1
		l.fake.set("a", says(500))
		first := l.put("ada", "/1")
		require.Equal(l.t, "parked a=parked", l.states(first.ID))
		l.put("ada", "/2")
		l.sleep(time.Minute)
		require.NotContains(l.t, l.engine.writes, first.ID)
		require.Equal(l.t, usage{writes: 1, bytes: new(of("ada", "/2")).Size()}, *l.engine.usage["register"])
		l.fake.set("a")
		l.reopen()
		l.put("ada", "/3")
		l.sleep(time.Minute)
		require.Equal(l.t, "/1", l.targets("a"))
		require.NoError(l.t, l.engine.Skip(context.Background(), first.ID, "a"))
		l.sleep(time.Second)
		require.Equal(l.t, "/1 /2 /3", l.targets("a"))
		l.atRest()
	})
}

func TestAHeldWriteBlocksItsKeyUntilTheVerdict(t *testing.T) {
	both(t, []string{"a", "b"}, func(l *lab, _ *hooked) {
		l.fake.set("a", says(400))
		l.fake.set("b", says(400).in(time.Minute/10))
		first := l.put("ada", "/1")
		second := l.put("ada", "/2")
		l.sleep(time.Minute / 10)
		require.Equal(l.t, "/1 /2", l.targets("a"), "rejected, the first one is in nobody's way")
		require.Equal(l.t, 6*time.Second, l.times("a")[1])
		require.Equal(l.t, WriteRejected, l.status(first.ID).State)
		l.sleep(time.Minute)
		require.Equal(l.t, "rejected a=held b=held", l.states(second.ID))
		l.atRest()
	})
}

func TestAWriteThatIsNotAdmittedReleasesTheNext(t *testing.T) {
	durable(t, []string{"a"}, 0, func(l *lab, h *hooked) {
		full := errors.New("disk full")
		h.on("Admit", func(r *Record) error {
			if r.Write.Target == "/1" {
				time.Sleep(time.Second)
				return full
			}
			return nil
		})
		go func() { _, _ = l.engine.Submit(context.Background(), l.plan, of("ada", "/1")) }()
		synctest.Wait()
		l.put("ada", "/2")
		require.Empty(l.t, l.targets("a"), "the first one may yet be admitted")
		l.sleep(time.Second)
		require.Equal(l.t, "/2", l.targets("a"))
		l.atRest()
	})
}

func TestConcurrentWritesOfAKeyHaveOneOrder(t *testing.T) {
	for _, window := range []int{0, 1} {
		durable(t, []string{"a", "b", "c"}, window, func(l *lab, h *hooked) {
			l.fake.set("b", says(500), ok())
			l.fake.set("c", ok().in(20*ms))
			n := 0
			var mu sync.Mutex
			h.on("Admit", func(*Record) error {
				mu.Lock()
				n++
				d := time.Duration(n*7919%101) * ms
				mu.Unlock()
				time.Sleep(d)
				return nil
			})
			for i := range 100 {
				go func() { _, _ = l.engine.Submit(context.Background(), l.plan, of("ada", fmt.Sprint("/", i))) }()
			}
			l.sleep(10 * time.Minute)
			want := l.targets("a")
			require.Len(l.t, strings.Fields(want), 100)
			require.Equal(l.t, want, l.targets("c"))
			var firsts []string
			for i, target := range strings.Fields(l.targets("b")) {
				if i%2 == 0 {
					firsts = append(firsts, target)
				}
			}
			require.Equal(l.t, want, strings.Join(firsts, " "), "each was sent again before the next")
			l.atRest()
		})
	}
}

// The first write of a key is long on its way into the journal, the second is
// there already, and was put outside. Whoever reads the journal then finds the
// second to be first.
func TestNobodyOvertakesAWriteOnItsWayIntoTheJournal(t *testing.T) {
	durable(t, []string{"a"}, 1, func(l *lab, h *hooked) {
		l.fake.set("a", refuses())
		l.put("bob", "/0")
		h.on("Admit", func(r *Record) error {
			if r.Write.Target == "/1" {
				time.Sleep(10 * time.Second)
			}
			return nil
		})
		go func() { _, _ = l.engine.Submit(context.Background(), l.plan, of("ada", "/1")) }()
		synctest.Wait()
		second := l.put("ada", "/2")
		require.NotContains(l.t, l.engine.writes, second.ID, "else this tests nothing")
		l.restart("a")
		l.sleep(9 * time.Second)
		require.NotContains(l.t, l.targets("a"), "/2")
		l.sleep(30 * time.Second)
		require.True(l.t, strings.HasSuffix(l.targets("a"), "/0 /1 /2"), l.targets("a"))
		l.atRest()
	})
}

// What the journal said to be first may be out of date when it has said so:
// an earlier write was admitted meanwhile, and put outside.
func TestNobodyOvertakesAWriteAdmittedDuringARead(t *testing.T) {
	for _, read := range []string{"Due", "Head"} {
		t.Run(read, func(t *testing.T) {
			durable(t, []string{"a"}, 1, func(l *lab, h *hooked) {
				l.fake.set("a", refuses())
				l.put("bob", "/0")
				h.on("Admit", func(r *Record) error {
					if r.Write.Target == "/1" {
						time.Sleep(2 * time.Second)
					}
					return nil
				})
				h.on(read, pause(3*time.Second))
				go func() { _, _ = l.engine.Submit(context.Background(), l.plan, of("ada", "/1")) }()
				synctest.Wait()
				l.put("ada", "/2")
				l.sleep(2500 * ms)
				l.restart("a")
				l.sleep(5 * time.Minute)
				ada := strings.ReplaceAll(l.targets("a"), "/0 ", "")
				require.Equal(l.t, "/1 /2", strings.TrimSuffix(ada, " /0"))
				l.atRest()
			})
		})
	}
}

func TestOrderIsKeptWhileTheJournalFails(t *testing.T) {
	for _, read := range []string{"Due", "Head"} {
		t.Run(read, func(t *testing.T) {
			durable(t, []string{"a"}, 1, func(l *lab, h *hooked) {
				l.fake.set("a", refuses())
				for i := range 20 {
					l.put("ada", fmt.Sprint("/", i))
				}
				h.on(read, func(*Record) error { return errors.New("I/O error") })
				l.fake.mu.Lock()
				l.fake.calls = nil
				l.fake.mu.Unlock()
				l.restart("a")
				l.sleep(5 * time.Minute)
				h.on(read, nil)
				l.sleep(5 * time.Minute)
				var want []string
				for i := range 20 {
					want = append(want, fmt.Sprint("/", i))
				}
				require.Equal(l.t, strings.Join(want, " "), l.targets("a"))
				l.atRest()
			})
		})
	}
}

func TestStopDuringReads(t *testing.T) {
	for _, read := range []string{"Due", "Head"} {
		durable(t, []string{"a"}, 1, func(l *lab, h *hooked) {
			l.fake.set("a", refuses())
			h.on(read, pause(10*time.Second))
			for i := range 5 {
				l.put("ada", fmt.Sprint("/", i))
			}
			l.restart("a")
			l.sleep(time.Second)
			began := time.Now()
			l.stopNow()
			require.LessOrEqual(l.t, time.Since(began), 10*time.Second)
			require.Zero(l.t, l.engine.left.reads, "nobody reads any more")
			calls := len(l.calls("a"))
			l.sleep(time.Minute)
			require.Len(l.t, l.calls("a"), calls)
		})
	}
}

// outcomeCode returns what a client is told.
func outcomeCode(err error) outcome.Code {
	if e := (*outcome.Error)(nil); errors.As(err, &e) {
		return e.Code
	}
	return ""
}

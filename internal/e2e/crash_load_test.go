package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// crashLoad is a constant number of clients that write and read, whether lb is
// there or not.
type crashLoad struct {
	t       testing.TB
	world   *crashWorld
	url     string // of lb, in all of its lives
	client  *http.Client
	reader  *http.Client // a new connection each time: nothing is tried twice unseen
	current atomic.Pointer[crashLife]

	quit    chan struct{}
	running sync.WaitGroup
	reads   atomic.Int64 // that succeeded

	mu       sync.Mutex
	users    []string // those that are written most
	serial   int
	writes   []sentWrite
	failures []string       // of reads
	ends     map[string]int // answers to writes
}

const crashUsers = 12 // are written at a time, so that several clients meet at one

func newCrashLoad(t testing.TB, world *crashWorld, url string) *crashLoad {
	reader := newClient(t)
	reader.Transport.(*http.Transport).DisableKeepAlives = true
	return &crashLoad{t: t, world: world, url: url, client: newClient(t), reader: reader, quit: make(chan struct{}), ends: make(map[string]int)}
}

// start lets so many clients write, and two read, until end.
func (l *crashLoad) start(clients int) {
	loop := func(f func()) {
		l.running.Go(func() {
			for {
				select {
				case <-l.quit:
					return
				default:
					f()
				}
			}
		})
	}
	for range clients {
		loop(l.writeSomething)
	}
	for range 2 {
		loop(l.read)
	}
	l.t.Cleanup(l.end)
}

// end waits until every client that may not give up has its answer.
func (l *crashLoad) end() {
	select {
	case <-l.quit:
	default:
		close(l.quit)
	}
	l.running.Wait()
	l.client.CloseIdleConnections()
}

// fresh returns a name that nobody has had.
func (l *crashLoad) fresh(what string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.serial++
	return fmt.Sprintf("%s%d", what, l.serial)
}

// newUser returns one that others will change from now on.
func (l *crashLoad) newUser() string {
	user := l.fresh("u")
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users = append(l.users, user); len(l.users) > crashUsers {
		l.users = l.users[1:]
	}
	return user
}

func (l *crashLoad) anyUser() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.users) == 0 {
		return ""
	}
	return l.users[rand.IntN(len(l.users))]
}

// ownKey returns a key for every other write.
func (l *crashLoad) ownKey() string {
	if rand.IntN(2) == 0 {
		return ""
	}
	return l.fresh("key-")
}

func (l *crashLoad) writeSomething() {
	user := l.anyUser()
	switch n := rand.IntN(20); {
	case n < 2 || user == "":
		l.write("/register", l.newUser(), l.ownKey())
	case n < 3: // a user of its own, which is taken the second time
		user := l.fresh("t")
		if w := l.write("/register", user, l.fresh("key-")); w.End == endApplied || w.End == endAccepted {
			l.write("/register", user, l.ownKey())
		}
	default:
		l.write(fmt.Sprintf("/changePassword?n=%d", rand.IntN(1000)), user, l.ownKey())
	}
}

// write sends one write and notes what came of it. Under a key of its own it is
// sent until there is an answer, else once.
func (l *crashLoad) write(target, user, key string) sentWrite {
	value := l.fresh("p")
	contentType, body := writeBody(user, value)
	w := sentWrite{
		request: request{http.MethodPost, target, sha256.Sum256(body)},
		User:    user, Value: value, Key: key, End: endUnknown, Sent: l.world.tick(),
	}
	fields := []string{"Content-Type", contentType}
	if key != "" {
		fields = append(fields, "Idempotency-Key", key)
	}
	again := 0 // how often it is still asked after its end is known
	if key != "" && rand.IntN(4) == 0 {
		again = 1
	}
	for overdue := time.Now().Add(3 * patience); ; {
		a, err := try(l.client, http.MethodPost, l.url+target, bytes.NewReader(body), fields...)
		l.note(&w, a, err)
		switch {
		case w.End != endUnknown && again == 0, key == "" && w.End == endUnknown:
			l.keep(w)
			return w
		case w.End != endUnknown:
			again--
		case time.Now().After(overdue):
			l.t.Errorf("%v has no answer: %d %s %v", w, a.Status, a.Body, err)
			key = "" // give up
		default:
			<-time.After(10 * time.Millisecond)
		}
	}
}

func (l *crashLoad) keep(w sentWrite) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writes = append(l.writes, w)
}

// note reads an answer.
func (l *crashLoad) note(w *sentWrite, a answer, err error) {
	own := a.Header.Get("X-LB-Error")
	result, known := endUnknown, true
	switch {
	case err != nil:
	case a.Status == http.StatusCreated:
		result = endApplied
	case a.Status == http.StatusAccepted:
		result = endAccepted
	case a.Status == http.StatusConflict && own == "":
		result = endRefused
	default: // not yet, not now
		known = slices.Contains([]string{"request_in_progress", "storage_unavailable", "overloaded"}, own)
	}
	if !known {
		l.t.Errorf("%v was answered %d %s", w, a.Status, a.Body)
	}
	if id := a.Header.Get("X-LB-Fanout-Id"); id != "" && !slices.Contains(w.IDs, id) {
		w.IDs = append(w.IDs, id)
	}
	if result != endUnknown {
		// A 202 may become an answer, and an answer stays.
		if w.End != endUnknown && w.End != endAccepted && w.End != result {
			l.t.Errorf("%v was answered %d later", w, a.Status)
		}
		if w.End == endUnknown {
			w.Answered = l.world.tick()
		}
		w.End = result
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil:
		l.ends["none"]++
	default:
		l.ends[strings.TrimSpace(fmt.Sprintf("%d %s", a.Status, own))]++
	}
}

// read reads once. It must succeed if the process that it came to listened
// before and has not been told to end.
func (l *crashLoad) read() {
	life := l.current.Load()
	listened := life != nil && life.listens.Load()
	a, err := try(l.reader, http.MethodGet, l.url+"/read", nil)
	switch {
	case err == nil && a.Status == http.StatusOK && a.Body == "read\n":
		l.reads.Add(1)
	case err == nil || listened && !life.ends():
		l.mu.Lock()
		l.failures = append(l.failures, fmt.Sprintf("%d %q %v", a.Status, a.Body, err))
		l.mu.Unlock()
	}
	<-time.After(5 * time.Millisecond)
}

// crashLife is one process of lb.
type crashLife struct {
	*daemon
	listens atomic.Bool
	stopped atomic.Bool // was told to stop
}

// pending returns how many deliveries are.
func (l *crashLife) pending() float64 { return l.metric("lb_fanout_deliveries", "state", "pending") }

// ends reports whether the process is ending, or has. The kernel marks it
// before it closes the first of its sockets.
func (l *crashLife) ends() bool {
	if l.stopped.Load() {
		return true
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", l.cmd.Process.Pid))
	if err != nil {
		return true
	}
	const exiting = 4 // PF_EXITING among the flags
	_, rest, _ := strings.Cut(string(stat), ") ")
	var state string
	var skip, flags int64
	if _, err := fmt.Sscan(rest, &state, &skip, &skip, &skip, &skip, &skip, &flags); err != nil {
		return false
	}
	return state == "Z" || state == "X" || flags&exiting != 0
}

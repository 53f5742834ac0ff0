package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// crashWorld is what the parts of a crash test share: one clock, and the number
// of the process of lb that runs.
type crashWorld struct {
	clock, life atomic.Int64
}

func (w *crashWorld) tick() tick { return tick(w.clock.Add(1)) }

// mood is how a crash backend treats writes.
type mood int32

const (
	calm  mood = iota // it does what it is asked
	rough             // every third write meets a fault
	awful             // nearly every one
)

// crashBackend keeps users, honours keys, writes down all that it sees, and
// fails as its mood is. It lives as long as the test, whatever becomes of lb.
type crashBackend struct {
	Addr string

	world *crashWorld
	index int
	t     testing.TB
	mood  atomic.Int32

	http    *http.Server // nil while it is down
	served  chan struct{}
	running atomic.Int64 // requests that came and have no end yet

	mu         sync.Mutex
	values     map[string]string // by user
	registered map[string]string // by user: the key that registered it
	answers    map[string]int    // by key
	seen       []sighting
}

func startCrashBackends(t testing.TB, world *crashWorld) (all []*crashBackend, addresses []string) {
	t.Helper()
	for i := range 3 {
		b := &crashBackend{
			Addr: deadAddress(t), world: world, index: i, t: t,
			values: make(map[string]string), registered: make(map[string]string), answers: make(map[string]int),
		}
		b.up()
		t.Cleanup(b.down)
		all, addresses = append(all, b), append(addresses, b.Addr)
	}
	return all, addresses
}

// lifeListener notes of each connection during which life of lb it came.
type lifeListener struct {
	net.Listener
	world *crashWorld
}

type lifeConn struct {
	*net.TCPConn
	life int
}

func (l lifeListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return lifeConn{c.(*net.TCPConn), int(l.world.life.Load())}, nil
}

type lifeKey struct{}

// up accepts, again at the same address.
func (b *crashBackend) up() {
	b.t.Helper()
	l, err := net.Listen("tcp", b.Addr)
	require.NoError(b.t, err)
	own, done := &http.Server{
		Handler: b,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, lifeKey{}, c.(lifeConn).life)
		},
	}, make(chan struct{})
	b.http, b.served = own, done
	go func() {
		defer close(done)
		_ = own.Serve(lifeListener{l, b.world}) // until it is closed
	}()
}

// down cuts all connections and refuses new ones. What it knows it keeps.
func (b *crashBackend) down() {
	if b.http != nil {
		_ = b.http.Close()
		<-b.served
		b.http = nil
	}
}

// settleAccepts returns when every connection that was there when it was called
// has been accepted: they are accepted in the order in which they came. One that
// is down has none.
func (b *crashBackend) settleAccepts() {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	_, _ = try(&client, http.MethodGet, "http://"+b.Addr+"/", nil)
}

// settle returns when all that came is done: a backend goes on with what a
// process that died had sent.
func (b *crashBackend) settle() {
	b.t.Helper()
	b.settleAccepts()
	poll(b.t, patience, "the backend to be idle", func() bool { return b.running.Load() == 0 })
}

// crashFault is what becomes of one write at a backend.
type crashFault struct {
	name string
	// late is by how much it is held up at most.
	late time.Duration
	// unread: it is not applied. status: it is answered with that instead.
	unread bool
	status int
	// broken says how the connection ends in place of an answer.
	broken func(b *crashBackend, w http.ResponseWriter)
}

var crashFaults = []crashFault{
	{name: "dropped", unread: true, broken: closeConn},
	{name: "reset", unread: true, broken: resetConn},
	{name: "500", unread: true, status: http.StatusInternalServerError},
	{name: "503 with Retry-After", unread: true, status: http.StatusServiceUnavailable},
	{name: "late", late: 150 * time.Millisecond},
	{name: "late and dropped", late: 100 * time.Millisecond, unread: true, broken: closeConn},
	{name: "applied, answer lost", broken: closeConn},
	{name: "applied, reset", broken: resetConn},
	{name: "applied late, answer lost", late: 100 * time.Millisecond, broken: closeConn},
	{name: "applied, answer cut", broken: cutAnswer},
	{name: "applied, 500", status: http.StatusInternalServerError},
}

func closeConn(_ *crashBackend, w http.ResponseWriter) {
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = c.Close()
	}
}

func resetConn(_ *crashBackend, w http.ResponseWriter) {
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = c.(lifeConn).SetLinger(0)
		_ = c.Close()
	}
}

func cutAnswer(_ *crashBackend, w http.ResponseWriter) {
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_, _ = io.WriteString(c, "HTTP/1.1 201 Created\r\nContent-Len")
		_ = c.Close()
	}
}

// fault draws what becomes of the next write.
func (b *crashBackend) fault() (f crashFault, struck bool) {
	share := map[mood]float64{calm: 0, rough: 1. / 3, awful: 0.9}[mood(b.mood.Load())]
	if rand.Float64() >= share {
		return crashFault{}, false
	}
	return crashFaults[rand.IntN(len(crashFaults))], true
}

func (b *crashBackend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.running.Add(1)
	defer b.running.Add(-1)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // not a whole request: it does not count
	}
	if r.Method == http.MethodGet {
		_, _ = io.WriteString(w, "read\n")
		return
	}
	s := sighting{
		request: request{r.Method, r.RequestURI, sha256.Sum256(body)}, Backend: b.index, Life: r.Context().Value(lifeKey{}).(int),
		Key: r.Header.Get("Idempotency-Key"), FanoutID: r.Header.Get("X-LB-Fanout-Id"),
	}
	f, struck := b.fault()
	if f.late > 0 {
		<-time.After(rand.N(f.late))
	}
	b.mu.Lock()
	s.At = b.world.tick()
	if !f.unread {
		s.Status = b.apply(r, body, s.Key)
		s.Applied = s.Status == http.StatusCreated
	}
	place := len(b.seen)
	b.seen = append(b.seen, s)
	b.mu.Unlock()
	switch {
	case f.broken != nil:
		f.broken(b, w)
	case f.status != 0:
		w.Header().Set("Retry-After", "1") // more than cap
		w.WriteHeader(f.status)
	default:
		body := fmt.Sprintf("%d\n", s.Status)
		w.Header().Set("Content-Length", strconv.Itoa(len(body))) // so that a flush is all of it
		w.WriteHeader(s.Status)
		_, _ = io.WriteString(w, body)
		// Not before it is out: whoever takes this backend down may cut it off.
		if err := http.NewResponseController(w).Flush(); !struck && err == nil && r.Context().Err() == nil {
			b.mu.Lock()
			b.seen[place].Told = true
			b.mu.Unlock()
		}
	}
}

// apply does what a write asks for, once for each key. One that cannot be read
// is nobody's, which the judge finds.
func (b *crashBackend) apply(r *http.Request, body []byte, key string) int {
	user, value := readWrite(r.Header.Get("Content-Type"), body)
	if status, again := b.answers[key]; again {
		return status
	}
	if strings.HasPrefix(r.URL.Path, "/register") {
		if _, taken := b.registered[user]; taken {
			return http.StatusConflict
		}
		b.registered[user] = key
	}
	b.values[user], b.answers[key] = value, http.StatusCreated
	return http.StatusCreated
}

// readWrite reads a body that writeBody made.
func readWrite(contentType string, body []byte) (user, value string) {
	if contentType == "application/json" {
		var x struct{ Username, Password string }
		_ = json.Unmarshal(body, &x)
		return x.Username, x.Password
	}
	x, _ := url.ParseQuery(string(body))
	return x.Get("username"), x.Get("password")
}

// writeBody returns the body of a write, of either type and of any length.
func writeBody(user, value string) (contentType string, body []byte) {
	padding := make([]byte, rand.IntN(300))
	for i := range padding {
		padding[i] = byte(rand.IntN(256))
	}
	if rand.IntN(2) == 0 {
		body, _ = json.Marshal(map[string]any{"username": user, "password": value, "padding": padding}) // strings always marshal
		return "application/json", body
	}
	return form, []byte("username=" + user + "&padding=" + url.QueryEscape(string(padding)) + "&password=" + value)
}

// record returns what it has seen so far, and its users with their values.
func (b *crashBackend) record() (seen []sighting, final map[string]string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]sighting(nil), b.seen...), maps.Clone(b.values)
}

package front

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/outcome"
	"lb/internal/pool"
)

// patience is longer than anything here takes.
const patience = 20 * time.Second

// client is a client's connection, read and written by hand.
type client struct {
	net.Conn
	in *bufio.Reader
}

// listen serves w over real sockets. It returns what connects.
func (w *world) listen(t *testing.T) func() *client {
	t.Helper()
	s := httptest.NewServer(w)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return func() *client {
		c, err := net.DialTimeout("tcp", s.Listener.Addr().String(), patience)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
		return &client{c, bufio.NewReader(c)}
	}
}

// send writes the head of a request.
func (c *client) send(t *testing.T, line string, fields ...string) *client {
	t.Helper()
	return c.write(t, line+" HTTP/1.1\r\nHost: h\r\n"+strings.Join(append(fields, "\r\n"), "\r\n"))
}

func (c *client) write(t *testing.T, text string) *client {
	t.Helper()
	_, err := io.WriteString(c, text)
	require.NoError(t, err)
	return c
}

// answer reads a response, whose body may break off.
func (c *client) answer(t *testing.T) (res *http.Response, body string, broken error) {
	t.Helper()
	res, err := http.ReadResponse(c.in, nil)
	require.NoError(t, err)
	content, broken := io.ReadAll(res.Body)
	_ = res.Body.Close()
	return res, string(content), broken
}

// answers reads a response and requires a status, and a code if it is lb's own.
func (c *client) answers(t *testing.T, status int, code outcome.Code) *http.Response {
	t.Helper()
	res, body, err := c.answer(t)
	require.NoError(t, err)
	require.Equal(t, status, res.StatusCode, body)
	if code != "" {
		require.Equal(t, []string{string(code)}, res.Header["X-Lb-Error"], body)
	}
	return res
}

// eventually waits until so many are in flight and so many wait.
func (w *world) eventually(t *testing.T, inFlight, depth int) {
	t.Helper()
	require.Eventually(t, func() bool {
		return int(w.backend.InFlight()) == inFlight && w.pool.Depth() == depth
	}, patience, time.Millisecond, "%d in flight, %d wait; wanted %d and %d", w.backend.InFlight(), w.pool.Depth(), inFlight, depth)
}

// last waits until n requests are over and returns the record of the last.
func (w *world) last(t *testing.T, n int) record {
	t.Helper()
	var got record
	require.Eventually(t, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.finished) < n {
			return false
		}
		got = w.finished[n-1]
		return true
	}, patience, time.Millisecond)
	return got
}

// held is a backend that answers with the body it got, when it is let go on.
func held() (h http.HandlerFunc, goOn chan struct{}) {
	goOn = make(chan struct{})
	return func(w http.ResponseWriter, r *http.Request) {
		content, _ := io.ReadAll(r.Body)
		select {
		case <-goOn:
			_, _ = w.Write(content)
		case <-r.Context().Done():
		}
	}, goOn
}

var queueOf = pool.Limits{Queue: 9, Timeout: time.Minute}

func TestTheFifthCallIsRefusedAtOnce(t *testing.T) {
	h, goOn := held()
	w := newLimitedWorld(t, h, 4, pool.Limits{}, time.Minute)
	connect := w.listen(t)
	var calls []*client
	for range 4 {
		calls = append(calls, connect().send(t, "GET /x"))
	}
	w.eventually(t, 4, 0)
	fifth := connect().send(t, "POST /x", "Expect: 100-continue", "Content-Length: 5") // nobody asks for its body
	res := fifth.answers(t, 503, outcome.MaxConcurrency)
	require.NotEmpty(t, res.Header.Get("Retry-After"))
	got := w.last(t, 1)
	require.Equal(t, record{503, outcome.Refused, outcome.MaxConcurrency, 0, got.out, got.requestID}, got)
	close(goOn)
	for _, c := range calls {
		c.answers(t, 200, "")
	}
	require.Equal(t, map[outcome.Class]int{outcome.Success: 4}, w.counts)
}

// Bodies of every size and framing arrive as they were sent, whether they were
// read before the wait or not.
func TestBodiesOutliveTheWait(t *testing.T) {
	h, goOn := held()
	w := newLimitedWorld(t, h, 1, queueOf, time.Minute)
	connect := w.listen(t)
	const kept = 64 << 10
	for _, size := range []int{0, 1, kept - 1, kept, kept + 1, 4 * kept} {
		for _, chunked := range []bool{false, true} {
			body := strings.Repeat("the quick brown fox ", size/20+1)[:size]
			busy := connect().send(t, "GET /x")
			w.eventually(t, 1, 0)
			c := connect()
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				if chunked {
					_, _ = io.WriteString(c, "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
					for rest := body; rest != ""; {
						n := min(len(rest), 1000)
						_, _ = fmt.Fprintf(c, "%x\r\n%s\r\n", n, rest[:n])
						rest = rest[n:]
					}
					_, _ = io.WriteString(c, "0\r\n\r\n")
				} else {
					_, _ = fmt.Fprintf(c, "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", size, body)
				}
			}()
			w.eventually(t, 1, 1)
			goOn <- struct{}{}
			busy.answers(t, 200, "")
			goOn <- struct{}{}
			_, got, err := c.answer(t)
			require.NoError(t, err)
			require.Equal(t, len(body), len(got))
			require.Equal(t, body, got)
			<-sent
		}
	}
}

func TestAClientThatLeavesTheQueueIsDropped(t *testing.T) {
	for name, request := range map[string]struct{ framing, body string }{
		"without a body":     {"X-None: 1", ""},
		"with a small body":  {"Content-Length: 5", "hello"},
		"in small chunks":    {"Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"},
		"as much as is kept": {"Content-Length: 65536", strings.Repeat("x", 65536)},
	} {
		t.Run(name, func(t *testing.T) {
			h, goOn := held()
			w := newLimitedWorld(t, h, 1, pool.Limits{Queue: 1, Timeout: time.Minute}, time.Minute)
			connect := w.listen(t)
			busy := connect().send(t, "GET /x")
			w.eventually(t, 1, 0)
			leaving := connect().send(t, "POST /x", request.framing).write(t, request.body)
			w.eventually(t, 1, 1)
			require.NoError(t, leaving.Close())
			got := w.last(t, 1)
			require.Equal(t, outcome.ClientGone, got.class)
			require.Equal(t, outcome.StatusClientClosed, got.status)
			require.Equal(t, outcome.ClientClosed, got.code)
			w.eventually(t, 1, 0)

			next := connect().send(t, "GET /x") // the place is free
			w.eventually(t, 1, 1)
			close(goOn)
			busy.answers(t, 200, "")
			next.answers(t, 200, "")
			w.eventually(t, 0, 0)
			require.Equal(t, map[outcome.Class]int{outcome.Success: 2}, w.counts)
		})
	}
}

func TestAClientThatLeavesBeforeItsBodyIsWhole(t *testing.T) {
	h, goOn := held()
	w := newLimitedWorld(t, h, 1, queueOf, time.Minute)
	connect := w.listen(t)
	busy := connect().send(t, "GET /x")
	w.eventually(t, 1, 0)
	leaving := connect().send(t, "POST /x", "Content-Length: 50").write(t, "hel")
	require.NoError(t, leaving.Close())
	got := w.last(t, 1)
	require.Equal(t, outcome.ClientGone, got.class)
	close(goOn)
	busy.answers(t, 200, "")
}

// The route's timeout covers the wait for the body, the wait in the queue and
// the answer.
func TestTheRoutesTimeoutCoversTheWait(t *testing.T) {
	h, _ := held()
	for name, c := range map[string]struct {
		length string // of a body that stops after three bytes
		status int
		code   outcome.Code
	}{
		"for a slot":    {"3", 503, outcome.QueueTimeout},
		"for its body":  {"50", 504, outcome.BackendTimeout},
		"a large body":  {"5000000", 503, outcome.QueueTimeout},
		"for an answer": {"3", 504, outcome.BackendTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			w := newLimitedWorld(t, h, 1, queueOf, 200*time.Millisecond)
			connect := w.listen(t)
			if name != "for an answer" {
				w.route.Timeout = time.Minute
				connect().send(t, "GET /x")
				w.eventually(t, 1, 0)
				w.route.Timeout = 200 * time.Millisecond
			}
			res := connect().send(t, "POST /x", "Content-Length: "+c.length).write(t, "hel").answers(t, c.status, c.code)
			if c.status == 503 {
				require.NotEmpty(t, res.Header.Get("Retry-After"))
			}
			require.Zero(t, w.pool.Depth())
		})
	}
}

// Whatever ends a call, whoever waits gets its slot.
func TestEveryEndOfACallFreesItsSlot(t *testing.T) {
	for name, c := range map[string]struct {
		first http.HandlerFunc
		end   func(w *world, first *client)
	}{
		"timed out":              {first: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		"killed before its head": {first: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		"killed after its head": {first: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}},
		"the client left": {
			first: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			end:   func(_ *world, first *client) { _ = first.Close() },
		},
		"the backend was withdrawn": {
			first: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			end:   func(w *world, _ *client) { w.transports.For(w.backend).Cut() },
		},
	} {
		t.Run(name, func(t *testing.T) {
			begin := make(chan struct{})
			w := newLimitedWorld(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/first" {
					<-begin
					c.first(w, r)
				}
			}, 1, queueOf, time.Minute)
			connect := w.listen(t)
			if name == "timed out" {
				w.route.Timeout = 300 * time.Millisecond
			}
			first := connect().send(t, "GET /first")
			w.eventually(t, 1, 0)
			w.route.Timeout = time.Minute
			next := connect().send(t, "GET /next")
			w.eventually(t, 1, 1)
			close(begin)
			if c.end != nil {
				c.end(w, first)
			}
			if name == "the backend was withdrawn" {
				first.answers(t, 502, outcome.Canceled)
				next.answers(t, 502, outcome.Canceled)
			} else {
				next.answers(t, 200, "")
			}
			w.eventually(t, 0, 0)
		})
	}
}

const handshake = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="

// switching is a backend that switches protocols and echoes.
func switching(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == "" {
		return
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	_, _ = io.Copy(c, rw)
}

// tunnelled opens a WebSocket through w and sees that it works.
func tunnelled(t *testing.T, c *client) *client {
	t.Helper()
	c.send(t, "GET /x", handshake)
	res, err := http.ReadResponse(c.in, nil)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, 101, res.StatusCode)
	_, err = io.WriteString(c, "hello")
	require.NoError(t, err)
	echo := make([]byte, 5)
	_, err = io.ReadFull(c.in, echo)
	require.NoError(t, err)
	require.Equal(t, "hello", string(echo))
	return c
}

func TestAWebSocketHoldsItsSlotUntilItCloses(t *testing.T) {
	w := newLimitedWorld(t, switching, 1, queueOf, time.Minute)
	connect := w.listen(t)
	socket := tunnelled(t, connect())
	next := connect().send(t, "GET /x")
	w.eventually(t, 1, 1)
	require.NoError(t, socket.Close())
	next.answers(t, 200, "")
	w.eventually(t, 0, 0)
}

func TestWhatABackendTakenAwayLeavesBehind(t *testing.T) {
	t.Run("a response under way", func(t *testing.T) {
		w := newLimitedWorld(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, 0, pool.Limits{}, time.Minute)
		c := w.listen(t)().send(t, "GET /x")
		_, err := c.in.Peek(1)
		require.NoError(t, err)
		w.transports.For(w.backend).Cut()
		res, body, broken := c.answer(t)
		require.Equal(t, 200, res.StatusCode)
		require.Equal(t, "half", body)
		require.Error(t, broken, "the client must see that it is not whole")
		require.Equal(t, outcome.Withdrawn, w.last(t, 1).class)
		require.Equal(t, map[outcome.Class]int{outcome.Withdrawn: 1}, w.counts)
	})
	t.Run("a tunnel", func(t *testing.T) {
		w := newLimitedWorld(t, switching, 0, pool.Limits{}, time.Minute)
		c := tunnelled(t, w.listen(t)())
		w.transports.For(w.backend).Cut()
		_, err := c.in.ReadByte()
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, outcome.Withdrawn, w.last(t, 1).class)
	})
}

// What is sent on below a prefix that is stripped is the client's, byte for byte.
func TestStrippedPathsOnTheWire(t *testing.T) {
	asked := make(chan *http.Request, 1)
	w := newLimitedWorld(t, func(_ http.ResponseWriter, r *http.Request) { asked <- r }, 0, pool.Limits{}, time.Minute)
	w.route.Strip = "/rpc/sum"
	c := w.listen(t)()
	for target, want := range map[string]string{
		"/rpc/sum":                         "/",
		"/rpc/sum/":                        "/",
		"/rpc/sum?a=1;b=2&c=%zz":           "/?a=1;b=2&c=%zz",
		"/rpc/sum/x?":                      "/x?",
		`/rp%63/s%75m/a"b|c%2Fd`:           `/a"b|c%2Fd`,
		"/rpc/sum//x":                      "//x",
		"/rpc/sum//a%20b%2F/%61?q":         "//a%20b%2F/%61?q",
		"http://elsewhere/rpc/sum/x?q=%20": "/x?q=%20",
	} {
		c.send(t, "GET "+target, "X-Forwarded-Prefix: /evil").answers(t, 200, "")
		r := <-asked
		require.Equal(t, want, r.RequestURI, target)
		require.Equal(t, []string{"/rpc/sum"}, r.Header["X-Forwarded-Prefix"])
	}
	c.send(t, `GET /rpc/sum//a"b`).answers(t, 400, outcome.BadRequest)

	w.route.Strip = ""
	c.send(t, "GET /x", "X-Forwarded-Prefix: /evil").answers(t, 200, "")
	require.Empty(t, (<-asked).Header["X-Forwarded-Prefix"])
}

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Promise: retries do not multiply an outage. With all backends answering 503
// the attempts stay within the budget, however many tries a request may make.
func TestChaosRetriesDoNotMultiply(t *testing.T) {
	t.Parallel()
	for name, pool := range map[string]string{
		"without a breaker": "", "with a breaker": ", breaker: { consecutive: 5, open: 1s }",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			processes, addresses := startProcesses(t)
			for _, p := range processes {
				p.set("who=503")
			}
			began := time.Now() // before the daemon starts, and its budget with it
			d := start(t, chaosConfig(pool, ", retry: { attempts: 3 }", addresses...))
			l := startLoad(d, scaled(500, chaosRate), "")
			l.await(scaled(1000, 9000))
			shots := l.end()
			perSecond := 3 * (1 + time.Since(began).Seconds()) // one second's worth is there at the start
			attempts := 0
			for _, p := range processes {
				attempts += p.seen()
			}
			t.Logf("%d attempts for %d requests: %.3f each", attempts, len(shots), float64(attempts)/float64(len(shots)))
			require.LessOrEqual(t, float64(attempts), 1.25*float64(len(shots)), "the promise")
			require.LessOrEqual(t, float64(attempts), 1.2*float64(len(shots))+perSecond, "the budget")
			require.Equal(t, map[string]int{"503": len(shots)}, sum(shots).Troubles, "the backends' answer is passed on")
		})
	}
}

// postKinds are plain POSTs of every kind that net/http treats differently, on
// a route that is not keyed.
var postKinds = []struct {
	body string
	key  bool
}{{"", false}, {"", true}, {"a body", false}, {"a body", true}}

// Promise: a plain POST is never sent twice, though the connections that lb
// keeps die under its hands: none comes to a backend twice or to two.
func TestChaosPostsOverStaleConnections(t *testing.T) {
	t.Parallel()
	book := &postBook{}
	d := start(t, chaosConfig("", "", rawBackend(t, book.serve).Addr, rawBackend(t, book.serve).Addr, rawBackend(t, book.serve).Addr))
	const senders = 32
	var next, created, failed, repeated atomic.Int64
	posts := scaled(int64(5000), 100_000)
	var running sync.WaitGroup
	for range senders {
		running.Go(func() {
			client := newClient(t)
			for id := next.Add(1) - 1; id < posts && !t.Failed(); id = next.Add(1) - 1 {
				switch a, conns, err := postOnce(client, d.URL, id); {
				case conns > 1: // the test's own client is to blame for what that does
					repeated.Add(1)
				case err != nil:
					t.Errorf("%d: %v", id, err)
				case a.Status == http.StatusCreated && a.Body == fmt.Sprint(id):
					created.Add(1)
				case a.Status == http.StatusBadGateway && a.Header.Get("X-LB-Error") == "backend_reset":
					failed.Add(1)
				default:
					t.Errorf("%d got %d %.80q", id, a.Status, a.Body)
				}
			}
		})
	}
	running.Wait()
	t.Logf("%d POSTs: %d created, %d answered 502; the backends closed %d connections, %d of them with a request",
		posts, created.Load(), failed.Load(), book.closed.Load(), book.eaten.Load())
	require.Zero(t, repeated.Load(), "lb broke connections to its client off")
	seen := 0
	book.seen.Range(func(id, times any) bool {
		seen++
		if n := times.(*atomic.Int64).Load(); n != 1 {
			t.Errorf("POST %v came %d times", id, n)
		}
		return true
	})
	require.GreaterOrEqual(t, int64(seen), created.Load())
	require.Equal(t, posts, created.Load()+failed.Load())
	require.Greater(t, book.closed.Load(), posts/10, "hardly a race was run")
	require.Greater(t, failed.Load(), book.eaten.Load()/2, "hardly a race was lost")
}

// postOnce sends one POST and tells over how many connections.
func postOnce(client *http.Client, url string, id int64) (a answer, conns int, err error) {
	kind := postKinds[id%int64(len(postKinds))]
	body := io.Reader(http.NoBody)
	if kind.body != "" {
		body = io.MultiReader(strings.NewReader(kind.body)) // the client cannot repeat it
	}
	req, err := http.NewRequest(http.MethodPost, fmt.Sprintf("%s/post/%d", url, id), body)
	if err != nil {
		return a, 0, err
	}
	req.ContentLength = int64(len(kind.body))
	if kind.key {
		req.Header.Set("Idempotency-Key", fmt.Sprint(id))
	}
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { conns++ },
	}))
	res, err := client.Do(req)
	if err != nil {
		return a, conns, err
	}
	defer func() { _ = res.Body.Close() }()
	content, err := io.ReadAll(res.Body)
	return answer{Status: res.StatusCode, Header: res.Header, Body: string(content)}, conns, err
}

// postBook counts which POSTs came, over backends whose connections end at
// random: right after an answer, some moments later while lb may be sending the
// next request, or instead of an answer.
type postBook struct {
	seen          sync.Map // id to *atomic.Int64
	closed, eaten atomic.Int64
}

func (b *postBook) serve(conn net.Conn) {
	in := bufio.NewReader(conn)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		id := strings.TrimPrefix(req.URL.Path, "/post/")
		times, _ := b.seen.LoadOrStore(id, new(atomic.Int64))
		times.(*atomic.Int64).Add(1)
		dice := rand.IntN(100)
		if dice >= 5 {
			_, _ = io.WriteString(conn, head(http.StatusCreated, lengthOf(id))+id)
		}
		if dice >= 50 {
			continue
		}
		b.closed.Add(1)
		if dice < 5 {
			b.eaten.Add(1)
		} else {
			<-time.After(time.Duration(rand.IntN(300)) * time.Microsecond)
		}
		if rand.IntN(2) == 0 {
			_ = conn.(*recorder).Conn.(*net.TCPConn).SetLinger(0) // a reset in place of an end
		}
		return
	}
}

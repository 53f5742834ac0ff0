package fanout

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/outcome"
	"lb/internal/transport"
)

// senderTo returns an HTTPSender to one backend at address.
func senderTo(t *testing.T, addresses ...string) (*HTTPSender, []*backend.Backend) {
	t.Helper()
	set := &transport.Set{}
	t.Cleanup(set.Close)
	var bs []*backend.Backend
	for i, address := range addresses {
		b := &backend.Backend{Pool: "users", ID: fmt.Sprint("b", i), Address: address}
		set.Add(b, transport.New(b, transport.Settings{
			Connect: 2 * time.Second, ResponseHeader: 10 * time.Second, Idle: time.Minute, MaxIdle: 8,
		}))
		bs = append(bs, b)
	}
	return NewHTTPSender(set), bs
}

// serve starts an HTTP server and returns its address.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// serveRaw starts a server that gives each connection to f, numbered from 0.
func serveRaw(t *testing.T, f func(n int, c net.Conn, r *bufio.Reader)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var group sync.WaitGroup
	group.Go(func() {
		for n := 0; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer func() { _ = c.Close() }()
				f(n, c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		group.Wait()
	})
	return ln.Addr().String()
}

// head reads one request's head, as it came.
func head(r *bufio.Reader) string {
	var text strings.Builder
	for {
		line, err := r.ReadString('\n')
		text.WriteString(line)
		if err != nil || line == "\r\n" {
			return text.String()
		}
	}
}

func send(t *testing.T, s *HTTPSender, b *backend.Backend, r Request) (Response, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return s.Send(ctx, b, r)
}

func post(target string, body string) Request {
	return Request{
		Method: "POST", Target: target, Host: "example.org", Body: []byte(body), Key: "key", FanoutID: "id",
		Fields: []Field{{"X-A", "1"}, {"x-a", "2"}, {"Idempotency-Key", "spoofed"}, {"X-Lb-Fanout-Id", "spoofed"}, {"Expect", "100-continue"}},
	}
}

func TestSenderSendsTheTargetByteForByte(t *testing.T) {
	lines := make(chan string, 1)
	s, b := senderTo(t, serveRaw(t, func(_ int, c net.Conn, r *bufio.Reader) {
		line, _, _ := strings.Cut(head(r), "\r\n")
		lines <- line
		_, _ = io.WriteString(c, "HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	}))
	for _, target := range []string{
		"/", "/register", `/a"b|c%2Fd?x=1;y=%zz`, "/x?", "/?", "/x??", "//x", "//x?y=//z", "//", "///a//b/",
		"//a%20b%41?", "/a:b@c", "/%zz", "/ü", "/a%2fb%2F", "*", "/x?a=b%20c+d#e", "/http://x/", "/^`{}<>",
	} {
		_, err := send(t, s, b[0], post(target, ""))
		require.NoError(t, err, target)
		require.Equal(t, "POST "+target+" HTTP/1.1", <-lines)
	}
}

func TestSenderRefusesAPathItCannotSendAsItIs(t *testing.T) {
	s, b := senderTo(t, "127.0.0.1:1")
	for _, target := range []string{"//a b", `//a"b`, "//%zz"} {
		_, err := send(t, s, b[0], post(target, ""))
		require.Error(t, err, target)
		require.False(t, b[0].Unreachable())
	}
}

func TestSenderInventsNothing(t *testing.T) {
	heads := make(chan string, 4)
	s, b := senderTo(t, serveRaw(t, func(_ int, c net.Conn, r *bufio.Reader) {
		heads <- head(r)
		_, _ = io.WriteString(c, "HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	}))
	_, err := send(t, s, b[0], post("/x", ""))
	require.NoError(t, err)
	require.Equal(t, "POST /x HTTP/1.1\r\nHost: example.org\r\nContent-Length: 0\r\n"+
		"Idempotency-Key: key\r\nX-A: 1\r\nX-A: 2\r\nX-Lb-Fanout-Id: id\r\n\r\n", <-heads)

	r := post("/x", "body")
	r.Fields = []Field{{"User-Agent", "curl"}, {"Content-Type", "text/plain"}}
	_, err = send(t, s, b[0], r)
	require.NoError(t, err)
	require.Equal(t, "POST /x HTTP/1.1\r\nHost: example.org\r\nUser-Agent: curl\r\nContent-Length: 4\r\n"+
		"Content-Type: text/plain\r\nIdempotency-Key: key\r\nX-Lb-Fanout-Id: id\r\n\r\n", <-heads)

	_, err = send(t, s, b[0], Request{Method: "DELETE", Target: "/x", Host: "example.org", Key: "k", FanoutID: "i"})
	require.NoError(t, err)
	require.Equal(t, "DELETE /x HTTP/1.1\r\nHost: example.org\r\n"+
		"Idempotency-Key: k\r\nX-Lb-Fanout-Id: i\r\n\r\n", <-heads)
}

func TestSenderReturnsTheAnswer(t *testing.T) {
	s, b := senderTo(t, serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		h := w.Header()
		h.Set("Connection", "X-Hop, keep-alive")
		h.Set("X-Hop", "1")
		h.Set("Keep-Alive", "timeout=5")
		h["X-B"] = []string{"2", "1"}
		h.Set("Content-Type", "text/plain")
		h.Set("Location", "/elsewhere")
		h.Set("Retry-After", "7")
		h["Date"] = nil
		w.WriteHeader(http.StatusFound)
		_, _ = io.WriteString(w, "moved")
	}))
	resp, err := send(t, s, b[0], post("/x", ""))
	require.NoError(t, err)
	require.Equal(t, Response{
		Status: 302, Body: []byte("moved"), RetryAfter: 7 * time.Second,
		Fields: []Field{{"Content-Type", "text/plain"}, {"Location", "/elsewhere"}, {"Retry-After", "7"}, {"X-B", "2"}, {"X-B", "1"}},
	}, resp)
}

func TestSenderBoundsTheBody(t *testing.T) {
	for name, c := range map[string]struct {
		length int
		kept   int
		conns  int32 // of two attempts
	}{
		"at the bound":         {MaxAnswerBody, MaxAnswerBody, 1},
		"a bit more":           {MaxAnswerBody + maxDrain/2, MaxAnswerBody, 1},
		"more than is drained": {MaxAnswerBody + 4*maxDrain, MaxAnswerBody, 2},
		"endless":              {1 << 40, MaxAnswerBody, 2},
	} {
		t.Run(name, func(t *testing.T) {
			var conns atomic.Int32
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(201)
				chunk := make([]byte, 32<<10)
				for left := c.length; left > 0 && r.Context().Err() == nil; left -= len(chunk) {
					if _, err := w.Write(chunk[:min(left, len(chunk))]); err != nil {
						return
					}
				}
			}))
			server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
				if s == http.StateNew {
					conns.Add(1)
				}
			}
			server.Start()
			defer server.Close()
			s, b := senderTo(t, server.Listener.Addr().String())
			for range 2 {
				resp, err := send(t, s, b[0], post("/x", ""))
				require.NoError(t, err)
				require.Len(t, resp.Body, c.kept)
			}
			require.Equal(t, c.conns, conns.Load())
		})
	}
}

func TestSenderKnowsWhatWasSent(t *testing.T) {
	refused, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, refused.Close())
	answers := func(text string) string {
		return serveRaw(t, func(_ int, c net.Conn, r *bufio.Reader) {
			head(r)
			_, _ = io.WriteString(c, text)
		})
	}
	silent := serveRaw(t, func(_ int, _ net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) })
	for name, c := range map[string]struct {
		address string
		class   outcome.Class
		result  result
	}{
		"refused":         {refused.Addr().String(), outcome.Unsent, unsent},
		"no answer":       {silent, outcome.Timeout, cut},
		"closed":          {answers(""), outcome.Reset, cut},
		"half a head":     {answers("HTTP/1.1 201 Crea"), outcome.Reset, cut},
		"half a body":     {answers("HTTP/1.1 201 Created\r\nContent-Length: 10\r\n\r\nhalf"), outcome.Reset, cut},
		"half a chunk":    {answers("HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhalf"), outcome.Reset, cut},
		"no HTTP":         {answers("SSH-2.0-x\r\n\r\n"), outcome.Invalid, cut},
		"unasked upgrade": {answers("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"), outcome.Invalid, cut},
	} {
		t.Run(name, func(t *testing.T) {
			s, b := senderTo(t, c.address)
			patience := 5 * time.Second
			if c.class == outcome.Timeout {
				patience = 200 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := s.Send(ctx, b[0], post("/x", "body"))
			require.Error(t, err)
			require.Equal(t, c.class, outcome.FromError(err).Class, "%v", err)
			require.Equal(t, c.result, failure(err))
			require.Equal(t, c.result == unsent, b[0].Unreachable())
		})
	}
}

func TestSenderThatIsCutBeforeItHasAConnectionSentNothing(t *testing.T) {
	s, b := senderTo(t, "127.0.0.1:1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Send(ctx, b[0], post("/x", "body"))
	require.Equal(t, unsent, failure(err))
	require.ErrorIs(t, err, context.Canceled)
	require.False(t, b[0].Unreachable(), "it says nothing about the backend")
}

func TestSenderTakesAnAnswerForADial(t *testing.T) {
	s, b := senderTo(t, serve(t, func(http.ResponseWriter, *http.Request) {}))
	_, err := send(t, s, b[0], post("/x", ""))
	require.NoError(t, err)
	b[0].DialFailed() // somebody's dial, while a connection is kept
	_, err = send(t, s, b[0], post("/x", ""))
	require.NoError(t, err)
	require.False(t, b[0].Unreachable())
}

// A backend that closes a kept connection when the next request comes must
// see that request once for each attempt, however little it would hurt.
func TestSenderNeverSendsTwice(t *testing.T) {
	for _, method := range []string{"POST", "PUT", "DELETE", "GET"} {
		for _, body := range []string{"", "body"} {
			t.Run(method+" "+body, func(t *testing.T) {
				var requests atomic.Int32
				s, b := senderTo(t, serveRaw(t, func(_ int, c net.Conn, r *bufio.Reader) {
					for n := 0; ; n++ {
						if head(r) == "" {
							return
						}
						_, _ = r.Discard(len(body))
						requests.Add(1)
						if n == 1 {
							return // without an answer
						}
						_, _ = io.WriteString(c, "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
					}
				}))
				r := post("/x", body)
				r.Method = method
				_, err := send(t, s, b[0], r)
				require.NoError(t, err)
				_, err = send(t, s, b[0], r)
				require.Error(t, err)
				require.Equal(t, cut, failure(err))
				require.EqualValues(t, 2, requests.Load())
				_, err = send(t, s, b[0], r)
				require.NoError(t, err)
				require.EqualValues(t, 3, requests.Load())
			})
		}
	}
}

// The whole way: three servers, one that fails in every way it can before it
// accepts; what it gets is the same each time.
func TestEngineOverHTTP(t *testing.T) {
	body := make([]byte, 300<<10)
	for i := range body {
		body[i] = byte(i * 7)
	}
	type got struct{ target, key, id, length, body string }
	var mu sync.Mutex
	seen := map[int][]got{}
	server := func(n int, fail func(attempt int, w http.ResponseWriter) bool) string {
		return serve(t, func(w http.ResponseWriter, r *http.Request) {
			text, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			attempt := len(seen[n])
			seen[n] = append(seen[n], got{
				r.RequestURI, r.Header.Get("Idempotency-Key"), r.Header.Get("X-LB-Fanout-Id"),
				fmt.Sprint(r.ContentLength), string(text),
			})
			mu.Unlock()
			if fail(attempt, w) {
				return
			}
			w.WriteHeader(201)
			_, _ = fmt.Fprint(w, "server", n)
		})
	}
	hangUp := func(w http.ResponseWriter, text string) bool {
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return true
		}
		_, _ = io.WriteString(c, text)
		_ = c.Close()
		return true
	}
	never := func(int, http.ResponseWriter) bool { return false }
	s, members := senderTo(t, server(0, func(attempt int, w http.ResponseWriter) bool {
		switch attempt {
		case 0:
			http.Error(w, "no", 500)
		case 1:
			hangUp(w, "")
		case 2:
			hangUp(w, "HTTP/1.1 201 Created\r\nContent-Length: 10\r\n\r\nhalf")
		case 3:
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(http.StatusTemporaryRedirect)
		default:
			return false
		}
		return true
	}), server(1, never), server(2, never))
	e := New(Options{Sender: s})
	defer e.Stop(t.Context())
	a, err := e.Submit(t.Context(), &Plan{
		Pool: newFakePool(members...), Success: []int{201}, Wait: 20 * time.Second, AttemptTimeout: 5 * time.Second,
		Backoff: Backoff{Base: time.Millisecond, Cap: 4 * time.Millisecond, Jitter: time.Millisecond},
	}, Write{Method: "POST", Target: `/a"b|c%2Fd?x=1;y=%zz`, Host: "example.org", Body: body})
	require.NoError(t, err)
	require.Equal(t, "server0", string(a.Body))
	require.Equal(t, 3, a.Acked)
	want := got{`/a"b|c%2Fd?x=1;y=%zz`, a.ID, a.ID, fmt.Sprint(len(body)), string(body)}
	require.Equal(t, map[int][]got{0: {want, want, want, want, want}, 1: {want}, 2: {want}}, seen)
}

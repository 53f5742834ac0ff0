package probe

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func newHTTP(t testing.TB, o HTTPOptions) *HTTP {
	t.Helper()
	c, err := NewHTTP(o)
	require.NoError(t, err)
	return c
}

// answering returns the address of a backend that reads a request and then
// writes answer.
func answering(t testing.TB, answer func(c net.Conn)) string {
	t.Helper()
	return serve(t, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			answer(c)
		}
	})
}

// says writes text and hangs up.
func says(text string) func(net.Conn) {
	return func(c net.Conn) { _, _ = io.WriteString(c, text) }
}

// saysAndHolds writes text and keeps the connection until the peer hangs up.
func saysAndHolds(text string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, text)
		silent(c)
	}
}

// goesOn writes head and then piece for ever, at every beat.
func goesOn(head, piece string, beat time.Duration) func(net.Conn) {
	return func(c net.Conn) {
		_, err := io.WriteString(c, head)
		ticker := time.NewTicker(max(beat, 1))
		defer ticker.Stop()
		for err == nil {
			_, err = io.WriteString(c, piece)
			if beat > 0 {
				<-ticker.C
			}
		}
	}
}

const (
	drip   = 5 * time.Millisecond
	ok     = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nall ok\n"
	okHead = "HTTP/1.1 200 OK\r\n\r\n"
)

func TestHTTP(t *testing.T) {
	match := regexp.MustCompile(`(?m)^all ok$`)
	k64 := strings.Repeat("x", 64<<10)
	for _, test := range []struct {
		name    string
		answer  func(net.Conn)
		options HTTPOptions
		timeout time.Duration // ample unless set
		want    string        // part of the reason
	}{
		{name: "well", answer: says(ok)},
		{name: "well, and keeps the connection", answer: saysAndHolds(ok)},
		{name: "well by HTTP/1.0", answer: says("HTTP/1.0 200 OK\r\n\r\n")},
		{name: "interim heads first", answer: says("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + ok)},
		{name: "wrong status", answer: says("HTTP/1.1 503 no\r\n\r\n"), want: "status 503, wants 200-399"},
		{name: "a status unheard of", answer: says("HTTP/1.1 999 no\r\n\r\n"), want: "status 999, wants 200-399"},
		{name: "another protocol unasked", answer: saysAndHolds("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), want: "status 101, wants 200-399"},
		{name: "the statuses asked for", answer: says("HTTP/1.1 418 teapot\r\n\r\n"), options: HTTPOptions{Statuses: statuses(204, 418)}},
		{name: "not the statuses asked for", answer: says(ok), options: HTTPOptions{Statuses: statuses(204, 418)}, want: "status 200, wants 204,418"},

		{name: "the body matches", answer: says(ok), options: HTTPOptions{Body: match}},
		{name: "the body matches in pieces", answer: says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nall \r\n3\r\nok\n\r\n0\r\n\r\n"), options: HTTPOptions{Body: match}},
		{name: "the body does not match", answer: says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"), options: HTTPOptions{Body: match}, want: `the response body does not match "(?m)^all ok$"`},
		{name: "no body to match", answer: says("HTTP/1.1 204 No Content\r\n\r\n"), options: HTTPOptions{Body: match}, want: "does not match"},
		{name: "the status first, then the body", answer: says("HTTP/1.1 500 no\r\nContent-Length: 6\r\n\r\nall ok"), options: HTTPOptions{Body: match}, want: "status 500"},
		{name: "a body that breaks off", answer: says("HTTP/1.1 200 OK\r\nContent-Length: 70\r\n\r\nall ok\n"), options: HTTPOptions{Body: match}, want: "the response body broke off: unexpected EOF"},
		{name: "a match in the first 64 KiB", answer: says(okHead + k64[:64<<10-7] + "\nall ok" + k64), options: HTTPOptions{Body: match}},
		{name: "a match after the first 64 KiB", answer: says(okHead + k64[:64<<10-6] + "\nall ok\n"), options: HTTPOptions{Body: match}, want: "does not match"},

		{name: "a huge body that nobody wants", answer: goesOn(okHead, k64, 0)},
		{name: "a huge body of known length that nobody wants", answer: goesOn("HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n", k64, 0)},
		{name: "a huge body without a match", answer: goesOn(okHead, k64, 0), options: HTTPOptions{Body: match}, want: "does not match"},
		{name: "a huge body with a match", answer: goesOn(okHead+"all ok\n", k64, 0), options: HTTPOptions{Body: match}},
		{name: "a body that drips and nobody wants", answer: goesOn(okHead, "x", drip)},
		{name: "a body that drips", answer: goesOn(okHead, "x", drip), options: HTTPOptions{Body: match}, timeout: brief, want: hung},
		{name: "a body that stops", answer: saysAndHolds("HTTP/1.1 200 OK\r\nContent-Length: 70\r\n\r\nall ok\n"), options: HTTPOptions{Body: match}, timeout: brief, want: hung},

		{name: "a head over 64 KiB", answer: goesOn("HTTP/1.1 200 OK\r\n", "X: y\r\n", 0), want: "the response head is over 64 KiB"},
		{name: "a line over 64 KiB", answer: goesOn("HTTP/1.1 200 OK\r\nX: ", k64, 0), want: "the response head is over 64 KiB"},
		{name: "interim heads without end", answer: goesOn("", "HTTP/1.1 100 Continue\r\n\r\n", 0), want: "the response head is over 64 KiB"},
		{name: "a head that drips", answer: goesOn("HTTP/1.1 200 OK\r\n", "X: y\r\n", drip), timeout: brief, want: hung},
		{name: "a head that stops", answer: saysAndHolds("HTTP/1.1 200 OK\r\nX:"), timeout: brief, want: hung},
		{name: "no answer", answer: silent, timeout: brief, want: hung},

		{name: "nonsense", answer: says("SSH-2.0-OpenSSH_9.2\r\n\x00\x01\x02\r\n"), want: `malformed HTTP response "SSH-2.0-OpenSSH_9.2"`},
		{name: "nonsense that does not print", answer: says("\x16\x03\x01\x00\xff\r\n\r\n"), want: "malformed HTTP"},
		{name: "no line", answer: goesOn("", k64, 0), want: "the response head is over 64 KiB"},
		{name: "another major version", answer: says("HTTP/2.0 200 OK\r\n\r\n"), want: "answers HTTP/2.0, wants HTTP/1.1"},
		{name: "a bad length", answer: says("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), want: "bad Content-Length"},
		{name: "a head that ends early", answer: says("HTTP/1.1 200 OK\r\nX: y\r\n"), want: "connection closed before a whole response head came"},
		{name: "nothing", answer: says(""), want: "connection closed before a whole response head came"},
	} {
		t.Run(test.name, func(t *testing.T) {
			timeout := test.timeout
			if timeout == 0 {
				timeout = ample
			}
			got := probe(t, newHTTP(t, test.options), answering(t, test.answer), timeout)
			if test.want == "" {
				require.Empty(t, got)
			}
			require.Contains(t, got, test.want)
		})
	}
}

func statuses(each ...int) (s Statuses) {
	for _, n := range each {
		s.Add(n, n)
	}
	return s
}

func TestHTTPCannotConnect(t *testing.T) {
	c := newHTTP(t, HTTPOptions{})
	require.Regexp(t, `^dial tcp 127\.0\.0\.1:\d+: connect: connection refused$`, probe(t, c, nobody(t), ample))
	require.Equal(t, hung, probe(t, c, unaccepting(t), brief))
}

func TestAnAnswerBeforeTheRequestWasReadCounts(t *testing.T) {
	address := serve(t, saysAndHolds(ok))
	require.Empty(t, probe(t, newHTTP(t, HTTPOptions{}), address, ample))
}

// refusing is a connection whose peer has answered and gone before it was asked.
type refusing struct {
	net.Conn
	answer io.Reader
}

func (r refusing) Read(p []byte) (int, error) { return r.answer.Read(p) }
func (refusing) Write([]byte) (int, error)    { return 0, syscall.EPIPE }
func (refusing) Close() error                 { return nil }

func TestAnAnswerCountsAlthoughTheRequestCouldNotBeSent(t *testing.T) {
	c := newHTTP(t, HTTPOptions{})
	require.NoError(t, c.exchange(refusing{answer: strings.NewReader(ok)}, "x"))
	require.Equal(t, syscall.EPIPE, c.exchange(refusing{answer: strings.NewReader("")}, "x"))
}

// What the backend gets, byte for byte.
func TestHTTPRequest(t *testing.T) {
	// Were the environment asked for a proxy, nothing would arrive.
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "ALL_PROXY"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	requests := make(chan string, 1)
	address := serve(t, func(c net.Conn) {
		in := bufio.NewReader(c)
		var head strings.Builder
		for !strings.HasSuffix(head.String(), "\r\n\r\n") {
			b, err := in.ReadByte()
			if err != nil {
				return
			}
			head.WriteByte(b)
		}
		requests <- head.String()
		_, _ = io.WriteString(c, ok)
	})
	_, portText, err := net.SplitHostPort(address)
	require.NoError(t, err)
	port, err := net.LookupPort("tcp", portText)
	require.NoError(t, err)

	const agent, end = "User-Agent: lb-health-check\r\n", "Connection: close\r\n\r\n"
	for _, test := range []struct {
		options HTTPOptions
		address string
		want    string
	}{
		{HTTPOptions{}, address, "GET / HTTP/1.1\r\nHost: " + address + "\r\n" + agent + end},
		{HTTPOptions{Port: port}, "127.0.0.1:1", "GET / HTTP/1.1\r\nHost: 127.0.0.1:1\r\n" + agent + end},
		{HTTPOptions{Method: "HEAD", Path: `/a"b|c%2Fd?a=1;b=2&c=%zz`}, address, `HEAD /a"b|c%2Fd?a=1;b=2&c=%zz HTTP/1.1` + "\r\nHost: " + address + "\r\n" + agent + end},
		{HTTPOptions{Method: "POST"}, address, "POST / HTTP/1.1\r\nHost: " + address + "\r\n" + agent + "Content-Length: 0\r\n" + end},
		{
			HTTPOptions{Fields: []Field{{"host", "api.example"}, {"X-Key", "a b"}, {"user-agent", "me"}, {"x-key", ""}}}, address,
			"GET / HTTP/1.1\r\nHost: api.example\r\nUser-Agent: me\r\nX-Key: a b\r\nx-key: \r\n" + end,
		},
	} {
		require.Empty(t, probe(t, newHTTP(t, test.options), test.address, ample))
		require.Equal(t, test.want, <-requests)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	var elsewhere atomic.Int32
	other := answering(t, func(c net.Conn) {
		elsewhere.Add(1)
		says(ok)(c)
	})
	address := answering(t, says(fmt.Sprintf("HTTP/1.1 302 Found\r\nLocation: http://%s/\r\nContent-Length: 0\r\n\r\n", other)))
	require.Empty(t, probe(t, newHTTP(t, HTTPOptions{}), address, ample))
	require.Equal(t, "status 302, wants 200", probe(t, newHTTP(t, HTTPOptions{Statuses: statuses(200)}), address, ample))
	require.Zero(t, elsewhere.Load())
}

func TestEachProbeConnectsAnew(t *testing.T) {
	var connections atomic.Int32
	address := serve(t, func(c net.Conn) {
		connections.Add(1)
		saysAndHolds(ok)(c)
	})
	c := newHTTP(t, HTTPOptions{})
	for range 5 {
		require.Empty(t, probe(t, c, address, ample))
	}
	require.EqualValues(t, 5, connections.Load())
}

func TestBadHTTPOptions(t *testing.T) {
	field := func(name, value string) HTTPOptions { return HTTPOptions{Fields: []Field{{name, value}}} }
	for _, test := range []struct {
		options HTTPOptions
		want    string
	}{
		{HTTPOptions{Method: "GET /"}, `"GET /" is not a method`},
		{HTTPOptions{Method: "CONNECT"}, `"CONNECT" is not a method`},
		{HTTPOptions{Method: "HEAD", Body: regexp.MustCompile("x")}, "use GET"},
		{HTTPOptions{Path: "health"}, `"health" is not a path`},
		{HTTPOptions{Path: "/a b"}, `"/a b" is not a path`},
		{HTTPOptions{Path: "/a\r\nX: y"}, "is not a path"},
		{HTTPOptions{Path: "/\u00e9"}, "is not a path"},
		{HTTPOptions{Path: "http://x/"}, "is not a path"},
		{field("", "x"), `"" is not a field name`},
		{field("X Y", "x"), `"X Y" is not a field name`},
		{field("X:\r\nY", "x"), "is not a field name"},
		{field("X", "a\r\nY: b"), "the value of the field X has control characters"},
		{field("Host", "a\r\nY: b"), "the value of the field Host has control characters"},
		{field("connection", "keep-alive"), "the field connection is lb's to set"},
		{field("Content-Length", "5"), "the field Content-Length is lb's to set"},
		{field("Transfer-Encoding", "chunked"), "the field Transfer-Encoding is lb's to set"},
	} {
		c, err := NewHTTP(test.options)
		require.ErrorContains(t, err, test.want)
		require.Nil(t, c)
	}
	_, err := NewHTTP(field("X-Name", "caf\u00e9\t\xff"))
	require.NoError(t, err)
}

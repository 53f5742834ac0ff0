package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// answerRow is what a backend says, byte for byte, and what the client gets of
// it: a status, the fields beside those that are the same in each answer, and
// the body.
type answerRow struct {
	name, method, said string // the method is GET if it is empty
	status             int
	want               fields
	body               string
	trailers           []wireField
}

// head is the beginning of an answer, with these further lines.
func head(status int, more ...string) string {
	return fmt.Sprintf("HTTP/1.1 %d Any Words\r\n", status) + strings.Join(append(more, "\r\n"), "\r\n")
}

var html = "<html><body>not sniffed"

// lengthOf is the Content-Length line for a body.
func lengthOf(body string) string { return fmt.Sprintf("Content-Length: %d", len(body)) }

// closing marks an answer that the backend ends by closing the connection.
const closing = "\x00close"

var chunkedOnly = fields{"Transfer-Encoding": {"chunked"}}

var answers = []answerRow{
	{name: "nothing is sniffed", said: head(200, lengthOf(html)) + html, status: 200, want: fields{"Content-Length": {"23"}}, body: html},
	{name: "empty content type", said: head(200, "Content-Type:", "Content-Length: 1") + "x", status: 200, want: fields{"Content-Type": {""}, "Content-Length": {"1"}}, body: "x"},
	{name: "odd content type", said: head(200, "content-type: A/b;  c=\"d\"", "Content-Length: 1") + "x", status: 200, want: fields{"Content-Type": {`A/b;  c="d"`}, "Content-Length": {"1"}}, body: "x"},
	{name: "encoded", said: head(200, "Content-Encoding: gzip", "Vary: Accept-Encoding", "Content-Length: 3") + "\x1f\x8b\x08", status: 200,
		want: fields{"Content-Encoding": {"gzip"}, "Vary": {"Accept-Encoding"}, "Content-Length": {"3"}}, body: "\x1f\x8b\x08"},
	{name: "hop by hop", said: head(200, "Connection: X-Gone, keep-alive", "x-gone: 1", "Keep-Alive: timeout=9", "Proxy-Connection: x", "Proxy-Authenticate: Basic", "TE: x", "Upgrade: h2c", "X-Kept: 1", "Content-Length: 0"),
		status: 200, want: fields{"X-Kept": {"1"}, "Content-Length": {"0"}}},
	{name: "named twice", said: head(200, "Connection: x-a", "Connection: X-B", "X-A: 1", "X-B: 2", "X-C: 3", "Content-Length: 0"), status: 200, want: fields{"X-C": {"3"}, "Content-Length": {"0"}}},
	{name: "named framing", said: head(200, "Connection: content-length, date", "Content-Length: 2") + "ok", status: 200, want: fields{"Content-Length": {"2"}}, body: "ok"},
	{name: "cookies", said: head(200, "Set-Cookie: a=1; Path=/", "set-cookie: b=\"2,3\"; Expires=Wed, 21 Oct 2015 07:28:00 GMT", "Set-Cookie: a=1; Path=/", "Set-Cookie:", "Content-Length: 0"),
		status: 200, want: fields{"Set-Cookie": {"a=1; Path=/", "b=\"2,3\"; Expires=Wed, 21 Oct 2015 07:28:00 GMT", "a=1; Path=/", ""}, "Content-Length": {"0"}}},
	{name: "values", said: head(200, "x-a: 1", "X-B:  b  c ", "X-A: 0", "X-E:", "X-8: "+eightBit, "X-P: "+everyOctet, "X_U: u", "Content-Length: 0"),
		status: 200, want: fields{"X-A": {"1", "0"}, "X-B": {"b  c"}, "X-E": {""}, "X-8": {eightBit}, "X-P": {everyOctet}, "X_u": {"u"}, "Content-Length": {"0"}}},
	{name: "fold", said: head(200, "X-A: a", "  b", "Content-Length: 0"), status: 200, want: fields{"X-A": {"a b"}, "Content-Length": {"0"}}},
	{name: "long field", said: head(200, "X-Long: "+longCookie+longCookie, "Content-Length: 0"), status: 200, want: fields{"X-Long": {longCookie + longCookie}, "Content-Length": {"0"}}},
	{name: "server, via and date", said: head(200, "Server: S/1", "Via: 1.1 x", "Date: yesterday", "Content-Length: 0"), status: 200,
		want: fields{"Server": {"S/1"}, "Via": {"1.1 x"}, "Date": {"yesterday"}, "Content-Length": {"0"}}},
	{name: "a request id of its own", said: head(200, "X-Request-Id: theirs", "Content-Length: 0"), status: 200, want: fields{"Content-Length": {"0"}}},
	{name: "bare line feeds", said: "HTTP/1.1 200 OK\nX-A: a\nContent-Length: 2\n\nok", status: 200, want: fields{"X-A": {"a"}, "Content-Length": {"2"}}, body: "ok"},
	{name: "no reason", said: "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", status: 200, want: fields{"Content-Length": {"2"}}, body: "ok"},
	{name: "equal lengths", said: head(200, "Content-Length: 2", "Content-Length: 2") + "ok", status: 200, want: fields{"Content-Length": {"2"}}, body: "ok"},
	{name: "leading zeros", said: head(200, "Content-Length: 0002") + "ok", status: 200, want: fields{"Content-Length": {"2"}}, body: "ok"},

	{name: "redirect", said: head(302, "Location: ../x?a b|c", "Content-Length: 0"), status: 302, want: fields{"Location": {"../x?a b|c"}, "Content-Length": {"0"}}},
	{name: "300", said: head(300, "Content-Length: 0"), status: 300, want: fields{"Content-Length": {"0"}}},
	{name: "401", said: head(401, "WWW-Authenticate: Basic realm=\"x\"", "WWW-Authenticate: Bearer", "Content-Length: 0"), status: 401,
		want: fields{"Www-Authenticate": {`Basic realm="x"`, "Bearer"}, "Content-Length": {"0"}}},
	{name: "426", said: head(426, "Connection: Upgrade", "Upgrade: websocket", "Content-Length: 0"), status: 426, want: fields{"Content-Length": {"0"}}},
	{name: "201 with a body", said: head(201, "Content-Length: 2") + "ok", status: 201, want: fields{"Content-Length": {"2"}}, body: "ok"},
	{name: "205", said: head(205, "Content-Length: 0"), status: 205, want: fields{"Content-Length": {"0"}}},
	{name: "206", said: head(206, "Content-Range: bytes 0-1/9", "Content-Length: 2") + "ok", status: 206, want: fields{"Content-Range": {"bytes 0-1/9"}, "Content-Length": {"2"}}, body: "ok"},
	{name: "299", said: head(299, "Content-Length: 2") + "ok", status: 299, want: fields{"Content-Length": {"2"}}, body: "ok"},
	{name: "404", said: head(404, "Content-Length: 2") + "ok", status: 404, want: fields{"Content-Length": {"2"}}, body: "ok"},
	{name: "499", said: head(499, "Content-Length: 2") + "ok", status: 499, want: fields{"Content-Length": {"2"}}, body: "ok"},
	{name: "500", said: head(500, "Content-Length: 2") + "ok", status: 500, want: fields{"Content-Length": {"2"}}, body: "ok"},
	{name: "503 of the backend's own", said: head(503, "Retry-After: 7", "Content-Length: 2") + "ok", status: 503, want: fields{"Retry-After": {"7"}, "Content-Length": {"2"}}, body: "ok"},
	{name: "599", said: head(599, "Content-Length: 2") + "ok", status: 599, want: fields{"Content-Length": {"2"}}, body: "ok"},
	{name: "600", said: head(600, "Content-Length: 2") + "ok", status: 600, want: fields{"Content-Length": {"2"}}, body: "ok"},
	{name: "999", said: head(999, "Content-Length: 2") + "ok", status: 999, want: fields{"Content-Length": {"2"}}, body: "ok"},

	{name: "204", said: head(204, "X-A: a"), status: 204, want: fields{"X-A": {"a"}}},
	{name: "204 with a length", said: head(204, "Content-Length: 0"), status: 204, want: fields{}},
	{name: "304", said: head(304, `ETag: "x"`, "X-A: a"), status: 304, want: fields{"Etag": {`"x"`}, "X-A": {"a"}}},
	// net/http sends a 304 without the fields of the body that it stands for.
	{name: "304 with a length", said: head(304, `ETag: "x"`, "Content-Length: 5", "Content-Type: a/b"), status: 304, want: fields{"Etag": {`"x"`}}},
	{name: "head with a length", method: "HEAD", said: head(200, "Content-Length: 12345", "X-A: a"), status: 200, want: fields{"Content-Length": {"12345"}, "X-A": {"a"}}},
	{name: "head without", method: "HEAD", said: head(200, "X-A: a"), status: 200, want: fields{"X-A": {"a"}}},
	{name: "head of a 404", method: "HEAD", said: head(404, "Content-Length: 9", "Content-Type: a/b"), status: 404, want: fields{"Content-Length": {"9"}, "Content-Type": {"a/b"}}},

	{name: "chunks", said: head(200, "Transfer-Encoding: chunked") + "3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", status: 200, want: chunkedOnly, body: "hello"},
	{name: "chunk extensions", said: head(200, "Transfer-Encoding: chunked") + "3;a=b;c=\"d\"\r\nhel\r\n2; x\r\nlo\r\n0;end\r\n\r\n", status: 200, want: chunkedOnly, body: "hello"},
	{name: "no chunk", said: head(200, "Transfer-Encoding: chunked") + "0\r\n\r\n", status: 200, want: chunkedOnly},
	{name: "announced trailers", said: head(200, "Transfer-Encoding: chunked", "Trailer: X-Sum, X-More") + "2\r\nok\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n", status: 200,
		want: chunkedOnly, body: "ok", trailers: []wireField{{"X-More", "2"}, {"X-Sum", "1"}}},
	{name: "trailers unannounced", said: head(200, "Transfer-Encoding: chunked") + "2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n", status: 200, want: chunkedOnly, body: "ok", trailers: []wireField{{"X-Sum", "1"}}},
	{name: "until close", said: head(200) + "hello" + closing, status: 200, want: chunkedOnly, body: "hello"},
	{name: "until close, said so", said: head(200, "Connection: close") + "hello" + closing, status: 200, want: chunkedOnly, body: "hello"},
	{name: "length and close", said: head(200, "Connection: close", "Content-Length: 2") + "ok" + closing, status: 200, want: fields{"Content-Length": {"2"}}, body: "ok"},
	{name: "HTTP/1.0 until close", said: "HTTP/1.0 200 OK\r\nX-A: a\r\n\r\nhello" + closing, status: 200, want: fields{"X-A": {"a"}, "Transfer-Encoding": {"chunked"}}, body: "hello"},
	{name: "HTTP/1.0 with a length", said: "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok" + closing, status: 200, want: fields{"Content-Length": {"2"}}, body: "ok"},
}

// scripted runs a backend that answers the n-th row to /row/n, and then like
// echo does.
func scripted(t testing.TB, rows []answerRow) string {
	return rawBackend(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			row, found := strings.CutPrefix(req.URL.Path, "/row/")
			n, err := strconv.Atoi(row)
			said := head(200, lengthOf(req.RequestURI)) + req.RequestURI
			if found && err == nil {
				said = rows[n].said
			}
			said, last := strings.CutSuffix(said, closing)
			if _, err := io.WriteString(conn, said); err != nil || last {
				return
			}
		}
	}).Addr
}

// Promise: the client gets the backend's answer, less the fields of the
// backend's connection, and nothing that nobody said but Date and the request
// id.
func TestAnswersReachTheClient(t *testing.T) {
	t.Parallel()
	d := start(t, proxyAll("", scripted(t, answers)))
	other := d.raw(t, "")
	for i, row := range answers {
		method := row.method
		if method == "" {
			method = http.MethodGet
		}
		c := d.raw(t, fmt.Sprintf("%s /row/%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", method, i))
		stream, err := io.ReadAll(c.Reader)
		require.NoError(t, err, row.name)
		requireAnswer(t, row, method, string(stream))
		require.Equal(t, "/innocent", other.ask("GET /innocent HTTP/1.1\r\nHost: x\r\n\r\n").Body, row.name)
	}
}

// requireAnswer reads a whole answer strictly and compares it with a row.
func requireAnswer(t testing.TB, row answerRow, method, stream string) {
	t.Helper()
	s := &strictReader{stream}
	line, err := s.line()
	require.NoError(t, err, row.name)
	require.True(t, strings.HasPrefix(line, fmt.Sprintf("HTTP/1.1 %d ", row.status)), "%s: %s", row.name, line)
	all, err := s.fields()
	require.NoError(t, err, row.name)
	got := make(fields)
	for _, f := range all {
		got[f.Name] = append(got[f.Name], f.Value)
	}
	require.Len(t, got["X-Request-Id"], 1, row.name)
	require.Len(t, got["X-Request-Id"][0], 32, row.name)
	require.Equal(t, []string{"close"}, got["Connection"], row.name)
	delete(got, "X-Request-Id")
	delete(got, "Connection")
	delete(got, "Trailer")
	if row.want["Date"] == nil {
		require.Len(t, got["Date"], 1, row.name)
		delete(got, "Date")
	}
	chunked := got["Transfer-Encoding"] != nil
	if row.name == "no chunk" && !chunked { // lb may have noticed in time that there is nothing
		require.Equal(t, []string{"0"}, got["Content-Length"])
		got = row.want
	}
	require.Equal(t, row.want, got, row.name)
	body, trailers := s.rest, []wireField(nil)
	if chunked && method != http.MethodHead {
		body, trailers, err = s.chunks()
		require.NoError(t, err, row.name)
	}
	require.Equal(t, row.body, body, row.name)
	require.ElementsMatch(t, row.trailers, trailers, row.name)
}

// Promise: a client that speaks HTTP/1.0 gets every answer in a form that it
// understands.
func TestAnswersForHTTP10(t *testing.T) {
	t.Parallel()
	d := start(t, proxyAll("", scripted(t, answers)))
	for i, row := range answers {
		if row.method != "" || row.status == http.StatusNoContent || row.status == http.StatusNotModified {
			continue
		}
		c := d.raw(t, fmt.Sprintf("GET /row/%d HTTP/1.0\r\n\r\n", i))
		stream, err := io.ReadAll(c.Reader)
		require.NoError(t, err, row.name)
		top, body, _ := strings.Cut(string(stream), "\r\n\r\n")
		require.True(t, strings.HasPrefix(top, fmt.Sprintf("HTTP/1.0 %d ", row.status)), "%s: %s", row.name, top)
		require.NotContains(t, top, "chunked", row.name)
		require.Equal(t, row.body, body, row.name)
	}
}

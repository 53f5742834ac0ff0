package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// wireRequest is a request as it stood on the wire.
type wireRequest struct {
	Method, Target string
	Fields         []wireField
	Body           string
}

// wireField is one field line, its value without the blanks around it.
type wireField struct{ Name, Value string }

// values returns the values of a field, in order.
func (r wireRequest) values(name string) (all []string) {
	for _, f := range r.Fields {
		if strings.EqualFold(f.Name, name) {
			all = append(all, f.Value)
		}
	}
	return all
}

// strictReader reads HTTP/1.1 requests as RFC 9112 writes them, and nothing
// that a lenient reader would let pass. It shares no code with net/http.
type strictReader struct{ rest string }

var errCutShort = errors.New("the bytes end in the middle of a message")

// line takes one line off, which ends with CRLF and holds no other control
// character but the tab.
func (s *strictReader) line() (string, error) {
	line, rest, ok := strings.Cut(s.rest, "\r\n")
	if !ok {
		return "", errCutShort
	}
	for i := range len(line) {
		if line[i] < ' ' && line[i] != '\t' || line[i] == 0x7f {
			return "", fmt.Errorf("control character in %q", line)
		}
	}
	s.rest = rest
	return line, nil
}

// take takes n bytes off.
func (s *strictReader) take(n int) (string, error) {
	if n > len(s.rest) {
		return "", errCutShort
	}
	taken := s.rest[:n]
	s.rest = s.rest[n:]
	return taken, nil
}

func token(s string) bool {
	return s != "" && strings.Trim(s, "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
}

// request takes one whole request off.
func (s *strictReader) request() (r wireRequest, err error) {
	line, err := s.line()
	if err != nil {
		return r, err
	}
	parts := strings.Split(line, " ")
	if len(parts) != 3 || !token(parts[0]) || parts[1] == "" || parts[2] != "HTTP/1.1" {
		return r, fmt.Errorf("request line %q", line)
	}
	r.Method, r.Target = parts[0], parts[1]
	if r.Fields, err = s.fields(); err != nil {
		return r, err
	}
	if n := len(r.values("Host")); n != 1 {
		return r, fmt.Errorf("%d Host fields", n)
	}
	length, coding := r.values("Content-Length"), r.values("Transfer-Encoding")
	switch {
	case len(length)+len(coding) > 1:
		return r, errors.New("framed twice")
	case len(length) == 1:
		n, err := strconv.Atoi(length[0])
		if err != nil || strconv.Itoa(n) != length[0] || n < 0 {
			return r, fmt.Errorf("Content-Length %q", length[0])
		}
		r.Body, err = s.take(n)
		return r, err
	case len(coding) == 1 && coding[0] != "chunked":
		return r, fmt.Errorf("Transfer-Encoding %q", coding[0])
	case len(coding) == 1:
		trailers := []wireField(nil)
		if r.Body, trailers, err = s.chunks(); len(trailers) > 0 {
			return r, errors.New("a request with trailers")
		}
	}
	return r, err
}

func (s *strictReader) fields() (all []wireField, err error) {
	for {
		line, err := s.line()
		if err != nil || line == "" {
			return all, err
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !token(name) {
			return nil, fmt.Errorf("field line %q", line)
		}
		all = append(all, wireField{name, strings.Trim(value, " \t")})
	}
}

// chunks takes a chunked body without extensions off, and its trailers.
func (s *strictReader) chunks() (body string, trailers []wireField, err error) {
	for {
		line, err := s.line()
		if err != nil {
			return body, nil, err
		}
		n, err := strconv.ParseUint(line, 16, 31)
		if err != nil || strconv.FormatUint(n, 16) != line {
			return body, nil, fmt.Errorf("chunk size %q", line)
		}
		if n == 0 {
			trailers, err = s.fields()
			return body, trailers, err
		}
		piece, err := s.take(int(n))
		if err != nil {
			return body, nil, err
		}
		body += piece
		if end, err := s.line(); err != nil || end != "" {
			return body, nil, fmt.Errorf("%q behind a chunk: %w", end, err)
		}
	}
}

// readTwice reads a stream of requests with two parsers that share nothing,
// and fails the test where they differ: what was sent can be read one way only.
// rest is the beginning of a request that has not come whole.
func readTwice(t testing.TB, stream string) (all []wireRequest, rest string) {
	t.Helper()
	strict, lenient := &strictReader{stream}, bufio.NewReader(strings.NewReader(stream))
	for rest = stream; rest != ""; rest = strict.rest {
		r, err := strict.request()
		if errors.Is(err, errCutShort) {
			return all, rest
		}
		require.NoError(t, err, "%q", stream)
		other, err := http.ReadRequest(lenient)
		require.NoError(t, err, "%q", stream)
		body, err := io.ReadAll(other.Body)
		require.NoError(t, err, "%q", stream)
		require.Equal(t, []string{r.Method, r.Target, r.values("Host")[0], r.Body},
			[]string{other.Method, other.RequestURI, other.Host, string(body)})
		require.Empty(t, other.Trailer)
		for name, values := range other.Header {
			if name != "Cache-Control" { // net/http adds it to Pragma
				require.Equal(t, values, r.values(name), name)
			}
		}
		for _, f := range r.Fields {
			require.Equal(t, textproto.CanonicalMIMEHeaderKey(f.Name), f.Name)
		}
		all = append(all, r)
	}
	_, err := lenient.ReadByte()
	require.ErrorIs(t, err, io.EOF, "%q", stream)
	return all, ""
}

// tap is a backend that answers each request with what it was, and shows what
// came.
type tap struct {
	*rawServer
	read []int // how much of each connection next has shown
}

func newTap(t testing.TB) *tap { return &tap{rawServer: rawBackend(t, echo)} }

// next returns what has come whole since the last call, connection by
// connection. What was cut short stays: nothing may ever complete it.
func (b *tap) next(t testing.TB) (fresh []wireRequest) {
	t.Helper()
	for i, stream := range b.received() {
		if i == len(b.read) {
			b.read = append(b.read, 0)
		}
		came, rest := readTwice(t, stream[b.read[i]:])
		fresh = append(fresh, came...)
		b.read[i] = len(stream) - len(rest)
	}
	return fresh
}

// echo answers every request on a connection with its method, target and body.
func echo(conn net.Conn) {
	in := bufio.NewReader(conn)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		if req.Header.Get("Expect") != "" {
			_, _ = io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		answer := echoed(req.Method, req.RequestURI, string(body))
		head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(answer))
		if req.Method == http.MethodHead {
			answer = ""
		}
		if _, err := io.WriteString(conn, head+answer); err != nil {
			return
		}
	}
}

// echoed is what echo answers with.
func echoed(method, target, body string) string { return method + " " + target + "\n" + body }

// response reads the next response, or returns the error that stands in its
// place: a connection may be closed.
func (c *rawConn) response(method string) (answer, error) {
	res, err := http.ReadResponse(c.Reader, &http.Request{Method: method})
	if err != nil {
		return answer{}, err
	}
	body, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(body), res.Close}, err
}

// final is response behind any interim ones.
func (c *rawConn) final(method string) (a answer, err error) {
	for a.Status < http.StatusOK && err == nil {
		a, err = c.response(method)
	}
	return a, err
}

// ask sends a request and reads its response, which must come whole.
func (c *rawConn) ask(request string) answer {
	c.t.Helper()
	c.send(request)
	method, _, _ := strings.Cut(request, " ")
	r, err := c.final(method)
	require.NoError(c.t, err, "%q", request)
	return r
}

// closed waits until the server has closed the connection.
func (c *rawConn) closed() {
	c.t.Helper()
	rest, err := io.ReadAll(c.Reader)
	require.Empty(c.t, string(rest))
	var netErr net.Error
	require.False(c.t, errors.As(err, &netErr) && netErr.Timeout(), "the connection is still open")
}

// innocent asks for something that is nobody's but this caller's, and expects
// just that.
func (c *rawConn) innocent(b *tap, name string) {
	c.t.Helper()
	r := c.ask("GET /innocent/" + name + " HTTP/1.1\r\nHost: innocent.example\r\n\r\n")
	require.Equal(c.t, http.StatusOK, r.Status)
	require.Equal(c.t, echoed("GET", "/innocent/"+name, ""), r.Body)
	came := b.next(c.t)
	require.Len(c.t, came, 1)
	require.Equal(c.t, "/innocent/"+name, came[0].Target)
	require.Equal(c.t, []string{"innocent.example"}, came[0].values("Host"))
}

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// own stands for the id that lb makes for a request.
const own = "(lb's own)"

// fieldRow is a request's field lines and what the backend gets of them,
// beside Host and what lb says itself (see forwarded).
type fieldRow struct {
	name, sent string
	want       map[string][]string
	method     string // default GET
	body       string
	host       string // default field.example
}

type fields = map[string][]string

func lines(all ...string) string { return strings.Join(all, "\r\n") }

// long are values that a small buffer would not hold.
var (
	longCookie  = "a=" + strings.Repeat("0123456789", 3000)
	eightBit    = "\x80\xe4\xff caf\xc3\xa9"
	everyOctet  = "!\"#$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~"
	oddTokens   = "!#$%&'*+-.^`|~9"
	ninetyLines = strings.TrimSuffix(strings.Repeat("X-Many: v\r\n", 90), "\r\n")
)

// endToEnd are field sets of a client that nobody vouches for.
var endToEnd = []fieldRow{
	{name: "nothing is invented", sent: "", want: fields{}},
	{name: "user agent", sent: "User-Agent: x/1 (y; z)", want: fields{"User-Agent": {"x/1 (y; z)"}}},
	// net/http writes one User-Agent, and none that is empty.
	{name: "two user agents", sent: lines("User-Agent: first", "User-Agent: second"), want: fields{"User-Agent": {"first"}}},
	{name: "empty user agent", sent: "User-Agent:", want: fields{}},
	{name: "accept encoding", sent: "Accept-Encoding: br;q=1, zstd", want: fields{"Accept-Encoding": {"br;q=1, zstd"}}},
	{name: "content type", sent: "Content-Type: text/odd; a=\"b;c\"", want: fields{"Content-Type": {`text/odd; a="b;c"`}}},
	{name: "canonical case", sent: lines("x-lower: a", "X-UPPER: b", "xX-mIxEd-9a: c"),
		want: fields{"X-Lower": {"a"}, "X-Upper": {"b"}, "Xx-Mixed-9a": {"c"}}},
	{name: "order of values", sent: lines("X-A: 1", "X-B: 2", "x-a: 3", "X-A: 2", "X-A: 1"), want: fields{"X-A": {"1", "3", "2", "1"}, "X-B": {"2"}}},
	{name: "a list is not split", sent: lines("Accept: a, b,,c ,", "Accept: d"), want: fields{"Accept": {"a, b,,c ,", "d"}}},
	{name: "many cookies", sent: lines("Cookie: a=1; b=2", "Cookie: c=3", "Cookie: a=4"), want: fields{"Cookie": {"a=1; b=2", "c=3", "a=4"}}},
	{name: "long cookie", sent: "Cookie: " + longCookie, want: fields{"Cookie": {longCookie}}},
	{name: "odd cookie", sent: `Cookie: a="x,y"; =b; c; ;d=;e==f; $Version=1`, want: fields{"Cookie": {`a="x,y"; =b; c; ;d=;e==f; $Version=1`}}},
	{name: "empty values", sent: lines("X-E:", "X-F: ", "X-G: \t ", "X-H:", "X-H: h", "X-H:"), want: fields{"X-E": {""}, "X-F": {""}, "X-G": {""}, "X-H": {"", "h", ""}}},
	{name: "outer blanks", sent: lines("X-A:a", "X-B:  \t b  c \t", "X-C: a\tb"), want: fields{"X-A": {"a"}, "X-B": {"b  c"}, "X-C": {"a\tb"}}},
	{name: "fold", sent: lines("X-A: a", "  b", "\tc", "X-B: d"), want: fields{"X-A": {"a b c"}, "X-B": {"d"}}},
	{name: "fold at once", sent: lines("X-A:", " a", "X-B: d"), want: fields{"X-A": {"a"}, "X-B": {"d"}}},
	{name: "eight bits", sent: "X-A: " + eightBit, want: fields{"X-A": {eightBit}}},
	{name: "punctuation", sent: "X-A: " + everyOctet, want: fields{"X-A": {everyOctet}}},
	{name: "odd names", sent: oddTokens + ": a", want: fields{oddTokens: {"a"}}},
	{name: "colons", sent: "X-A: a: b:c", want: fields{"X-A": {"a: b:c"}}},
	{name: "quotes", sent: `X-A: "a\"b", 'c`, want: fields{"X-A": {`"a\"b", 'c`}}},
	{name: "percent", sent: "X-A: %0d%0aX-Evil: 1", want: fields{"X-A": {"%0d%0aX-Evil: 1"}}},
	{name: "ninety lines", sent: ninetyLines, want: fields{"X-Many": strings.Split(strings.Repeat("v", 90), "")}},
	{name: "underscore", sent: lines("X_A: 1", "my_field: 2"), want: fields{"X_a": {"1"}, "My_field": {"2"}}},
	{name: "authorization", sent: "Authorization: Basic YTpi", want: fields{"Authorization": {"Basic YTpi"}}},
	{name: "conditions", sent: lines(`If-None-Match: W/"x", "y"`, "Range: bytes=0-1,-5", "If-Modified-Since: nonsense"),
		want: fields{"If-None-Match": {`W/"x", "y"`}, "Range": {"bytes=0-1,-5"}, "If-Modified-Since": {"nonsense"}}},
	{name: "origin and referer", sent: lines("Origin: null", "Referer: http://a/b?c#d", "Sec-Fetch-Site: cross-site"),
		want: fields{"Origin": {"null"}, "Referer": {"http://a/b?c#d"}, "Sec-Fetch-Site": {"cross-site"}}},
	{name: "via and max-forwards", sent: lines("Via: 1.0 a, 1.1 b", "Max-Forwards: 3"), want: fields{"Via": {"1.0 a, 1.1 b"}, "Max-Forwards": {"3"}}},
	{name: "idempotency key", sent: "Idempotency-Key: \"k\"", want: fields{"Idempotency-Key": {`"k"`}}},
	{name: "date and age", sent: lines("Date: yesterday", "Age: -1"), want: fields{"Date": {"yesterday"}, "Age": {"-1"}}},
	{name: "pragma alone", sent: "Pragma: no-cache", want: fields{"Pragma": {"no-cache"}, "Cache-Control": {"no-cache"}}},
	{name: "pragma and more", sent: lines("Pragma: no-cache", "Cache-Control: max-age=1"), want: fields{"Pragma": {"no-cache"}, "Cache-Control": {"max-age=1"}}},
	{name: "h2 settings", sent: "HTTP2-Settings: AAMAAABk", want: fields{"Http2-Settings": {"AAMAAABk"}}},

	{name: "hop by hop", sent: lines("Connection: keep-alive", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "Proxy-Authenticate: Basic",
		"Proxy-Authorization: Basic YTpi", "TE: gzip", "Upgrade: websocket", "X-A: a"), want: fields{"X-A": {"a"}}},
	{name: "te trailers", sent: lines("TE: trailers, gzip;q=0.5"), want: fields{}},
	{name: "upgrade unasked", sent: lines("Upgrade: h2c"), want: fields{}},
	{name: "h2c", sent: lines("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"), want: fields{}},
	{name: "upgrade tls", sent: lines("Connection: upgrade", "Upgrade: TLS/1.0, HTTP/1.1"), want: fields{}},
	{name: "upgrade two tokens", sent: lines("Connection: upgrade", "Upgrade: websocket, h2c"), want: fields{}},
	{name: "upgrade two lines", sent: lines("Connection: upgrade", "Upgrade: h2c", "Upgrade: websocket"), want: fields{}},
	{name: "websocket", sent: lines("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 99"),
		want: fields{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"99"}}},
	{name: "websocket among others", sent: lines("Connection: keep-alive, X-Gone, uPGRADE", "Upgrade: WebSocket", "X-Gone: 1"),
		want: fields{"Connection": {"Upgrade"}, "Upgrade": {"WebSocket"}}},
	{name: "websocket by POST", sent: lines("Connection: Upgrade", "Upgrade: websocket"), method: "POST", body: "x", want: fields{"Content-Length": {"1"}}},
	{name: "websocket with a body", sent: lines("Connection: Upgrade", "Upgrade: websocket"), body: "x", want: fields{"Content-Length": {"1"}}},
	{name: "named fields", sent: lines("Connection: x-a, X-B,x-C ,\tX-D", "X-A: 1", "x-b: 2", "X-C: 3", "X-D: 4", "X-E: 5"), want: fields{"X-E": {"5"}}},
	{name: "named on two lines", sent: lines("Connection: x-a", "connection: x-b", "X-A: 1", "X-B: 2", "X-C: 3"), want: fields{"X-C": {"3"}}},
	{name: "named twice, absent, empty", sent: lines("Connection: x-a, x-a, , x-none,", "X-A: 1", "X-A: 2"), want: fields{}},
	{name: "named forwarded for", sent: lines("Connection: X-FORWARDED-FOR, x-forwarded-host, X-Forwarded-proto", "X-Forwarded-For: 6.6.6.6"), want: fields{}},
	{name: "named request id", sent: lines("Connection: x-request-id", "X-Request-Id: mine"), want: fields{}},
	{name: "named authorization", sent: lines("Connection: AUTHORIZATION, Cookie", "Authorization: x", "Cookie: y", "X-A: a"), want: fields{"X-A": {"a"}}},
	{name: "named content length", sent: "Connection: content-LENGTH", method: "POST", body: "hello", want: fields{"Content-Length": {"5"}}},
	{name: "named transfer encoding", sent: "Connection: Transfer-Encoding", method: "POST", body: "(chunked)", want: fields{"Transfer-Encoding": {"chunked"}}},
	{name: "named host", sent: "Connection: HOST, close-not", want: fields{}},
	{name: "named user agent", sent: lines("Connection: User-Agent, accept-encoding, content-type", "User-Agent: x", "Accept-Encoding: gzip", "Content-Type: a/b"), want: fields{}},
	{name: "named expect", sent: lines("Connection: Expect", "X-A: a"), want: fields{"X-A": {"a"}}},
	{name: "named by close", sent: lines("Connection: close, X-A", "X-A: a"), want: fields{}},

	{name: "spoofed", sent: lines("X-Forwarded-For: 6.6.6.6", "X-Forwarded-Host: evil", "X-Forwarded-Proto: https", "X-Forwarded-Port: 1",
		"X-Forwarded-Prefix: /e", "X-Forwarded-Uri: /e", "X-Forwarded-Server: e", "X-Forwarded-Anything: e", "Forwarded: for=6.6.6.6", "X-Real-IP: 6.6.6.6"), want: fields{}},
	{name: "spoofed in other case", sent: lines("x-fORWARDED-for: 6.6.6.6", "FORWARDED: for=e", "x-real-ip: e", "X-FORWARDED-PORT: 1"), want: fields{}},
	{name: "spoofed twice", sent: lines("X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 7.7.7.7", "X-Real-Ip: 6.6.6.6", "X-Real-Ip: 7.7.7.7"), want: fields{}},
	{name: "spoofed with underscores", sent: lines("X_Forwarded_For: 6.6.6.6", "X-Forwarded_For: e", "x_forwarded-host: e", "X_FORWARDED_PROTO: e",
		"X_Forwarded_Port: e", "X_Real_IP: e", "X-Real_Ip: e", "x_real-ip: e", "Content_Length: 5", "Transfer_Encoding: chunked"), want: fields{}},
	{name: "no kin", sent: lines("X-Forwarded: 1", "X-Forward-For: 2", "X-Real-Ips: 3", "Forwarded-For: 4", "Xx-Forwarded-For: 5"),
		want: fields{"X-Forwarded": {"1"}, "X-Forward-For": {"2"}, "X-Real-Ips": {"3"}, "Forwarded-For": {"4"}, "Xx-Forwarded-For": {"5"}}},
	{name: "foreign request id", sent: "X-Request-Id: mine", want: fields{}},

	{name: "length", method: "POST", body: "hello", want: fields{"Content-Length": {"5"}}},
	{name: "no length", method: "POST", want: fields{"Content-Length": {"0"}}},
	{name: "get with a body", body: "hello", want: fields{"Content-Length": {"5"}}},
	{name: "delete without", method: "DELETE", want: fields{}},
	{name: "chunked", method: "PUT", body: "(chunked)", want: fields{"Transfer-Encoding": {"chunked"}}},
	{name: "chunked get", body: "(chunked)", want: fields{"Transfer-Encoding": {"chunked"}}},
	{name: "expect", sent: "Expect: 100-continue", method: "POST", body: "hello", want: fields{"Expect": {"100-continue"}, "Content-Length": {"5"}}},
	{name: "any method", method: "M-SEARCH", want: fields{}},
	{name: "lower-case method", method: "get", want: fields{}},
	{name: "propfind", method: "PROPFIND", sent: "Depth: 1", body: "<x/>", want: fields{"Depth": {"1"}, "Content-Length": {"4"}}},
	{name: "odd host", host: "A.Example.:0080", want: fields{}},
	{name: "bracketed host", host: "[2001:DB8::1]:80", want: fields{}},
	{name: "host with odd characters", host: "a_b!$&'()*+,;=%41~", want: fields{}},
	{name: "host with an empty port", host: "a:", want: fields{}},
}

// request writes the row as a client sends it.
func (r fieldRow) request(n int) string {
	var b strings.Builder
	method, host := r.method, r.host
	if method == "" {
		method = http.MethodGet
	}
	if host == "" {
		host = "field.example"
	}
	fmt.Fprintf(&b, "%s /row/%d HTTP/1.1\r\nHost: %s\r\n", method, n, host)
	if r.sent != "" {
		b.WriteString(r.sent + "\r\n")
	}
	switch {
	case r.body == "(chunked)":
		b.WriteString("Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nX-Trailer: dropped\r\n\r\n")
	case r.body != "":
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", len(r.body), r.body)
	default:
		b.WriteString("\r\n")
	}
	return b.String()
}

// arrived returns the fields of a request as a map, after it has taken out
// what is the same in each.
func arrived(t testing.TB, r wireRequest, id string) fields {
	t.Helper()
	got := make(fields)
	for _, f := range r.Fields {
		got[f.Name] = append(got[f.Name], f.Value)
	}
	if ids := got["X-Request-Id"]; len(ids) == 1 && ids[0] == id && len(id) == 32 {
		got["X-Request-Id"] = []string{own}
	}
	return got
}

// forwarded adds what lb says itself to a row's expectation.
func (r fieldRow) forwarded() fields {
	host := r.host
	if host == "" {
		host = "field.example"
	}
	all := fields{
		"Host": {host}, "X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Host": {host}, "X-Forwarded-Proto": {"http"}, "X-Request-Id": {own},
	}
	for name, values := range r.want {
		all[name] = values
	}
	return all
}

// runRows sends every row on a connection of its own, and an innocent request
// behind each on another.
func runRows(t *testing.T, config string, rows []fieldRow) *daemon {
	b := newTap(t)
	d := start(t, fmt.Sprintf(config, b.Addr))
	other := d.raw(t, "")
	for i, row := range rows {
		c := d.raw(t, row.request(i))
		method, _, _ := strings.Cut(row.request(i), " ")
		r, err := c.final(method)
		require.NoError(t, err, row.name)
		require.Equal(t, http.StatusOK, r.Status, "%s: %s", row.name, r.Body)
		came := b.next(t)
		require.Len(t, came, 1, row.name)
		id := r.Header.Get("X-Request-Id")
		require.Equal(t, []string{id}, r.Header["X-Request-Id"], row.name)
		require.Equal(t, row.forwarded(), arrived(t, came[0], id), row.name)
		body := row.body
		if body == "(chunked)" {
			body = "hello"
		}
		require.Equal(t, []string{method, body}, []string{came[0].Method, came[0].Body}, row.name)
		_ = c.Close()
		other.innocent(b, fmt.Sprint(i))
	}
	_ = other.Close()
	return d
}

// Promise: the backend gets the client's fields, less those of the client's
// connection and those that only lb may say, and nothing that nobody said.
func TestFieldsReachTheBackend(t *testing.T) {
	t.Parallel()
	require.GreaterOrEqual(t, len(endToEnd), 60)
	runRows(t, strings.ReplaceAll(proxyAll("", "BACKEND"), "BACKEND", "%s"), endToEnd)
}

// vouched are field sets of a peer in trusted_proxies, and the client that the
// log then names.
var vouched = []struct {
	fieldRow
	client string
}{
	{fieldRow{name: "nothing said", want: fields{}}, "127.0.0.1"},
	{fieldRow{name: "extended", sent: "X-Forwarded-For: 6.6.6.6", want: fields{"X-Forwarded-For": {"6.6.6.6, 127.0.0.1"}}}, "6.6.6.6"},
	{fieldRow{name: "right-most untrusted hop", sent: "X-Forwarded-For: 1.1.1.1, 6.6.6.6, 10.0.0.1 ,10.9.9.9",
		want: fields{"X-Forwarded-For": {"1.1.1.1, 6.6.6.6, 10.0.0.1 ,10.9.9.9, 127.0.0.1"}}}, "6.6.6.6"},
	{fieldRow{name: "over several lines", sent: lines("X-Forwarded-For: 1.1.1.1", "x-forwarded-for: 6.6.6.6,10.0.0.1", "X-Forwarded-For: 10.0.0.2"),
		want: fields{"X-Forwarded-For": {"1.1.1.1, 6.6.6.6,10.0.0.1, 10.0.0.2, 127.0.0.1"}}}, "6.6.6.6"},
	{fieldRow{name: "all trusted", sent: "X-Forwarded-For: 10.0.0.3, 10.0.0.1", want: fields{"X-Forwarded-For": {"10.0.0.3, 10.0.0.1, 127.0.0.1"}}}, "10.0.0.3"},
	{fieldRow{name: "nonsense in the list", sent: "X-Forwarded-For: 1.1.1.1, nonsense, 10.0.0.1",
		want: fields{"X-Forwarded-For": {"1.1.1.1, nonsense, 10.0.0.1, 127.0.0.1"}}}, "10.0.0.1"},
	{fieldRow{name: "IPv4 in IPv6", sent: "X-Forwarded-For: 6.6.6.6, ::ffff:10.0.0.1", want: fields{"X-Forwarded-For": {"6.6.6.6, ::ffff:10.0.0.1, 127.0.0.1"}}}, "6.6.6.6"},
	{fieldRow{name: "IPv6", sent: "X-Forwarded-For: 2001:db8::1", want: fields{"X-Forwarded-For": {"2001:db8::1, 127.0.0.1"}}}, "2001:db8::1"},
	{fieldRow{name: "host, proto and the rest", sent: lines("X-Forwarded-Host: Outer.example:1", "X-Forwarded-Proto: https", "X-Forwarded-Port: 443", "X-Forwarded-Prefix: /p", "X-Real-IP: 6.6.6.6", "Forwarded: for=6.6.6.6;proto=https", "Forwarded: for=10.0.0.1"),
		want: fields{"X-Forwarded-Host": {"Outer.example:1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Port": {"443"}, "X-Forwarded-Prefix": {"/p"}, "X-Real-Ip": {"6.6.6.6"},
			"Forwarded": {"for=6.6.6.6;proto=https", "for=10.0.0.1"}}}, "127.0.0.1"},
	{fieldRow{name: "named forwarded fields", sent: lines("Connection: x-forwarded-for, X-Forwarded-Host, X-FORWARDED-PROTO, forwarded, x-real-ip", "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Host: e", "X-Forwarded-Proto: https", "Forwarded: for=e", "X-Real-IP: e"),
		want: fields{}}, "127.0.0.1"},
	{fieldRow{name: "underscores", sent: lines("X_Forwarded_For: 6.6.6.6", "X_Forwarded_Port: e", "X_Real_IP: e", "Content_Length: 1"), want: fields{}}, "127.0.0.1"},
	{fieldRow{name: "request id kept", sent: "X-Request-Id: edge-42/a:b", want: fields{"X-Request-Id": {"edge-42/a:b"}}}, "127.0.0.1"},
	{fieldRow{name: "request id unfit", sent: "X-Request-Id: with blank", want: fields{}}, "127.0.0.1"},
	{fieldRow{name: "request id eight bits", sent: "X-Request-Id: \xff", want: fields{}}, "127.0.0.1"},
	{fieldRow{name: "request id too long", sent: "X-Request-Id: " + strings.Repeat("x", 129), want: fields{}}, "127.0.0.1"},
	{fieldRow{name: "request id empty", sent: "X-Request-Id:", want: fields{}}, "127.0.0.1"},
	{fieldRow{name: "two request ids", sent: lines("X-Request-Id: a", "X-Request-Id: b"), want: fields{}}, "127.0.0.1"},
	{fieldRow{name: "named request id", sent: lines("Connection: X-Request-ID", "X-Request-Id: mine"), want: fields{}}, "127.0.0.1"},
}

// Promise: a peer in trusted_proxies is believed, and what it says is extended;
// the client is the right-most hop that is not trusted.
func TestFieldsFromTrustedPeers(t *testing.T) {
	t.Parallel()
	rows := make([]fieldRow, len(vouched))
	for i, v := range vouched {
		rows[i] = v.fieldRow
	}
	config := strings.Replace(proxyAll("", "BACKEND"), `"127.0.0.1:0" }`, `"127.0.0.1:0", trusted_proxies: [127.0.0.1, 10.0.0.0/8] }`, 1)
	d := runRows(t, strings.ReplaceAll(config, "BACKEND", "%s"), rows)
	d.stop()
	clients := make(map[string]any)
	for _, line := range d.accessLog() {
		clients[line["path"].(string)] = line["client"]
	}
	for i, v := range vouched {
		require.Equal(t, v.client, clients[fmt.Sprintf("/row/%d", i)], v.name)
	}
}

// Promise: an HTTP/1.0 request goes on as 1.1, with the Host that the client
// sent: none, where it sent none.
func TestHostlessRequests(t *testing.T) {
	t.Parallel()
	b := newTap(t)
	d := start(t, proxyAll("", b.Addr))
	for _, request := range []string{
		"GET /old HTTP/1.0\r\n\r\n", "GET /old HTTP/1.0\r\nHost:\r\n\r\n", "GET /old HTTP/1.1\r\nHost:\r\n\r\n", "GET /old HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
	} {
		c := d.raw(t, "")
		r := c.ask(request)
		require.Equal(t, echoed("GET", "/old", ""), r.Body, "%q", request)
		came := b.next(t)
		require.Len(t, came, 1)
		want := ""
		if strings.Contains(request, "Host: a") {
			want = "a"
		}
		require.Equal(t, []string{want}, came[0].values("Host"), "%q", request)
		require.Equal(t, want != "", came[0].values("X-Forwarded-Host") != nil)
		if strings.Contains(request, "1.0") != strings.Contains(request, "keep-alive") {
			c.closed()
			continue
		}
		c.innocent(b, "after")
	}
}

package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// attack is what a client sends to be read in two ways. What follows it on the
// connection is an innocent request.
type attack struct {
	name, bytes string
	// refused: answered with an error, nothing reaches a backend, and the
	// connection is closed. Else a carrier may refuse it too; one that does not
	// forwards it so that it can be read one way only.
	refused bool
}

// post is a request with these lines and body.
func post(more string, body string) string {
	return "POST /attack HTTP/1.1\r\nHost: x\r\n" + more + "\r\n\r\n" + body
}

// plain is a GET with one further line.
func plain(line string) string { return "GET /attack HTTP/1.1\r\nHost: x\r\n" + line + "\r\n\r\n" }

// inside is a request that hides in a body: it must never be taken for one.
const inside = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"

// chunked is a body in one chunk.
func chunked(body string) string { return fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body) }

// each makes one refused attack of every value, put into the same bytes.
func each(name, format string, values ...string) (all []attack) {
	for _, v := range values {
		all = append(all, attack{fmt.Sprintf("%s %q", name, v), strings.Replace(format, "VALUE", v, 1), true})
	}
	return all
}

// either makes them attacks that may be forwarded.
func either(all []attack) []attack {
	for i := range all {
		all[i].refused = false
	}
	return all
}

const te, cl = "Transfer-Encoding: chunked", "Content-Length: "

var framing = slices.Concat(
	// S1: two framings. net/http takes the chunks and drops the length.
	either(each("S1 two framings", "VALUE",
		post(cl+"6\r\n"+te, "0\r\n\r\nG"), post(te+"\r\n"+cl+"6", "0\r\n\r\nG"), post(cl+"3\r\n"+te, chunked("hello")), post(cl+"0\r\n"+te, chunked(inside)),
		post(cl+"100\r\n"+te, "0\r\n\r\n"), post(te+"\r\n"+cl+"4", "5c\r\n"+strings.Repeat("x", 0x5c)+"\r\n0\r\n\r\n"),
	)),
	// S2: codings that are none, or not alone.
	each("S2 coding", post("Transfer-Encoding:VALUE", chunked(inside)),
		" xchunked", " chunked, identity", " ,chunked", " chunked,", " chunked, chunked", " identity", " gzip, chunked", " chunked\r\nTransfer-Encoding: chunked",
		" chunked\r\nTransfer-Encoding: identity", " identity\r\nTransfer-Encoding: chunked", " chunked\r\ntransfer-encoding: x", " \vchunked", " chunked\x00", " \x85chunked", " chunked\x0c",
		" chunked;q=1", " \"chunked\"", "", " chunke", " chunked chunked", "\r\n", " cow\r\n"+cl+"5"),
	each("S2 name", post("VALUE chunked", chunked(inside)), "Transfer-Encoding :", "Transfer-Encoding\t:", "Transfer-Encoding\x00:", " Transfer-Encoding:", "Transfer Encoding:"),
	either(each("S2 lenient", post("VALUE", chunked(inside)), "Transfer-Encoding:\tchunked", "Transfer-Encoding: Chunked", "Transfer-Encoding:\r\n chunked", "TRANSFER-encoding: chunked \t")),
	either(each("S2 no body after all", post("VALUE", ""), "Transfer_Encoding: chunked", "X-Transfer-Encoding: chunked", "Content_Length: 44", "Content-Lenght: 44")),
	// S3: chunks in HTTP/1.0.
	either([]attack{
		{name: "S3 keep-alive", bytes: "POST /attack HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n" + te + "\r\n\r\n" + chunked("hello")},
		{name: "S3 with a length", bytes: "POST /attack HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n" + cl + "5\r\n" + te + "\r\n\r\nhello"},
	}),
	// S4: two lengths.
	each("S4 lengths", post("VALUE", inside), cl+"5\r\n"+cl+"6", cl+"6\r\n"+cl+"5", cl+"5, 6", cl+"5,5", cl+"5, 5", cl+"5\r\n"+cl, cl+"5\r\n"+cl+"5, 5"),
	either(each("S4 equal lengths", post("VALUE", "hello"), cl+"5\r\n"+cl+"5", cl+"5\r\ncontent-length:5\r\n"+cl+" 5 ")),
	// S5: lengths that are no plain decimal numbers.
	each("S5 length", post(cl+"VALUE", inside), "+5", "-0", "-1", "0x5", "5 5", "", " ", "18446744073709551616", "9223372036854775808", "5;", "5.0", "5e0", "0b1", "1_0", "\xef\xbc\x95", "5\x00", "a", "5h"),
	either(each("S5 leading zeros", post(cl+"VALUE", "hello"), "05", "0000000005", " 5\t")),
	// S12: bodies where none is expected.
	either(each("S12 body", "VALUE",
		"GET /attack HTTP/1.1\r\nHost: x\r\n"+cl+fmt.Sprint(len(inside))+"\r\n\r\n"+inside, "HEAD /attack HTTP/1.1\r\nHost: x\r\n"+te+"\r\n\r\n"+chunked(inside),
		"OPTIONS /attack HTTP/1.1\r\nHost: x\r\n"+te+"\r\n\r\n"+chunked(inside), "DELETE /attack HTTP/1.1\r\nHost: x\r\n"+cl+fmt.Sprint(len(inside))+"\r\n\r\n"+inside,
		"GET /attack HTTP/1.1\r\nHost: x\r\nUpgrade: x\r\n"+te+"\r\n\r\n"+chunked(inside),
	)),
	// S12: an early error while the body is still coming.
	either(each("S12 early error", "VALUE",
		"POST /attack/.. HTTP/1.1\r\nHost: x\r\n"+cl+fmt.Sprint(len(inside))+"\r\n\r\n"+inside, "POST /attack/.. HTTP/1.1\r\nHost: x\r\n"+te+"\r\n\r\n"+chunked(inside),
		"TRACE /attack HTTP/1.1\r\nHost: x\r\n"+cl+fmt.Sprint(len(inside))+"\r\n\r\n"+inside, "POST /attack/.. HTTP/1.1\r\nHost: x\r\n"+cl+"370000\r\n\r\n"+strings.Repeat(inside, 10_000),
		"POST /attack/.. HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"+cl+fmt.Sprint(len(inside))+"\r\n\r\n"+inside,
	)),
	// S13: expectations.
	each("S13 expect", post("Expect: VALUE\r\n"+cl+"5", "hello"), "x", "100-continue;q=1", "200-ok", "100 -continue"),
	either(each("S13 expect lenient", post("Expect:VALUE\r\n"+cl+"5", "hello"), " 100-CONTINUE", "\t100-continue ", " 100-continue\r\nExpect: 100-continue", " 100-continue, x")),
	either([]attack{{name: "S13 no body", bytes: plain("Expect: 100-continue")}}),
	// S15: trailers that pose as fields.
	either(each("S15 trailer", post(te, "5\r\nhello\r\n0\r\nVALUE: smuggled\r\n\r\n"),
		"Authorization", "Host", "X-Forwarded-For", "Content-Length", "Transfer-Encoding", "X-Request-Id", "Cookie", "Connection", "X-Any")),
	either(each("S15 announced", post(te+"\r\nTrailer: VALUE", "5\r\nhello\r\n0\r\nVALUE: smuggled\r\n\r\n"), "Authorization", "Host", "X-Forwarded-For")),
	each("S15 announced framing", post(te+"\r\nTrailer: VALUE", chunked("hello")), "Content-Length", "Transfer-Encoding", "Trailer"),
	// S17: upgrades that stay HTTP, because the backend does not switch.
	either(each("S17 upgrade", "VALUE",
		plain("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"), plain("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 1"),
		post("Connection: Upgrade\r\nUpgrade: websocket\r\n"+cl+fmt.Sprint(len(inside)), inside), post("Connection: Upgrade\r\nUpgrade: websocket\r\n"+te, chunked(inside)),
		"GET /attack HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+cl+fmt.Sprint(len(inside))+"\r\n\r\n"+inside,
		"GET /attack HTTP/1.0\r\nHost: x\r\nConnection: Upgrade, keep-alive\r\nUpgrade: websocket\r\n\r\n",
	)),
	// S18: other protocols.
	either(each("S18 upgrade", plain("VALUE"), "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__", "Connection: Upgrade\r\nUpgrade: anything", "Connection: Upgrade\r\nUpgrade: HTTP/2.0, websocket")),
)

var syntax = slices.Concat(
	// S8: line ends.
	either(each("S8 bare LF", "VALUE", "GET /attack HTTP/1.1\nHost: x\nX-A: a\n\n", "GET /attack HTTP/1.1\r\nHost: x\nX-A: a\r\n\n", post(cl+"5", "hello\r\n"))),
	each("S8 bare CR", "GET /attack HTTP/1.1\r\nHost: xVALUE", "\r\nX-A: a\rb\r\n\r\n", "\rX-A: a\r\n\r\n", "\r\nX-A: a\rX-B: b\r\n\r\n", "\r\n\rX-A: a\r\n\r\n", "\r\nX-A: a\r\r\n\r\n"),
	// S9: folds.
	either(each("S9 fold", plain("VALUE"), "X-A: a\r\n b", "X-A: a\r\n\tb\r\n c", "X-A:\r\n a", "X-A: a\r\n \r\n b", "Connection: x-a,\r\n x-b\r\nX-B: b")),
	either(each("S9 folded framing", post("VALUE", "hello"), "Content-Length:\r\n 5", "X-A: a\r\n Transfer-Encoding: chunked\r\n"+cl+"5")),
	// S10: field names and values.
	each("S10 field", plain("VALUE"), "Content-Length : 5", "X-A : a", ": x", "NoColon", "X\x00: a", "X\x01: a", "\xefX: a", "X\xe4: a", "X Y: a", "X(: a", "X\x7f: a", "X\"Y: a", "X@Y: a", "X/Y: a", "X\tY: a",
		"X-A: a\x00b", "X-A: a\x01b", "X-A: a\x7fb", "X-A: \x1b[31m", "X-A: a\vb"),
	each("S10 first line", "GET /attack HTTP/1.1\r\nVALUE\r\nHost: x\r\n\r\n", " X-A: a", "\tX-A: a"),
	// S11: request lines.
	each("S11 line", "VALUE\r\nHost: x\r\n\r\n", "GET\t/attack HTTP/1.1", "GET /attack\tHTTP/1.1", "GET  /attack HTTP/1.1", "GET /attack  HTTP/1.1", "GET HTTP/1.1", "GET /attack", "GET", "", "/attack HTTP/1.1",
		" GET /attack HTTP/1.1", "GET /attack HTTP/1.32", "GET /attack http/1.1", "GET /attack HTTP/2.0", "GET /attack HTTP/3.0", "GET /attack HTTP/0.9", "GET /attack HTTP/1,1", "GET /attack HTTP/+1.1", "GET /attack HTTP/1.1 ",
		"GET /attack HTTP/1.1 x", "GET /attack HTTPS/1.1", "GET /attack HTTP/11", "GET /attack HTTP/1.", "G(T /attack HTTP/1.1", "G\x00T /attack HTTP/1.1", "G\xe4T /attack HTTP/1.1", "\"GET\" /attack HTTP/1.1", "\x16\x03\x01\x02\x00\x01"),
	each("S11 preface", "VALUE", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PRI /attack HTTP/2.0\r\n\r\n"),
	either(each("S11 lenient", "VALUE", "\r\n"+plain("X: 1"), "GET /attack HTTP/1.2\r\nHost: x\r\n\r\n", plain("X: 1")+"\r\n", "GET /attack HTTP/1.9\r\nHost: x\r\n\r\n")),
	// I5: one authority.
	each("I5 host", "GET /attack HTTP/1.1\r\nVALUE\r\n\r\n", "Host: a\r\nHost: b", "Host: a\r\nHost: a", "X: 1", "Host: a/b", "Host: a b", "Host: a\\b", "Host: a\x00b", "Host: \x7f", "Host: a?b", "Host: a#b", "Host: <a>", "Host: \"a\"", "Host: a|b", "Host: `a`", "Host: {a}"),
	either(each("I5 host of the handler", "GET /attack HTTP/1.1\r\nHost: VALUE\r\n\r\n", "u@h", "u:p@h", "[::1", "::1", "a:b", "a:80:80", "[::1]x", "[fe80::1%25lo]", "[a]b", "\xe4", "\xff", "a]", "A.EXAMPLE:80")),
	either(each("I5 absolute", "GET http://b/attack HTTP/1.1\r\nVALUE\r\n\r\n", "Host: a", "Host: a/b", "Host: b\r\nHost: a", "X-A: no host", "Host:")),
)

// badChunks are S6 and S7: what is wrong stands in the body, so the head may be
// on its way already; the request is never completed.
var badChunks = slices.Concat(
	each("S6 chunk size", post(te, "VALUE"+strings.TrimPrefix(chunked("hello"), "5")), "0x5", "+5", "-1", "5_0", " 5", "00000000000000005", "fffffffffffffffff", "", "g", "5 5", "5.", "\t5", "\x005", "5 x"),
	each("S7 line end", post(te, "VALUE"), "5\nhello\r\n0\r\n\r\n", "5;\nhello\r\n0\r\n\r\n", "5\r;a\r\nhello\r\n0\r\n\r\n", "5\rhello\r\n0\r\n\r\n", "5\r\nhello0\r\n\r\n", "5\r\nhelloXX\r\n0\r\n\r\n", "5\r\nhello\n0\r\n\r\n",
		"5\r\nhello\r0\r\n\r\n", "5;"+strings.Repeat("a", 64<<10)+"\r\nhello\r\n0\r\n\r\n", strings.Repeat("1;"+strings.Repeat("a", 200)+"\r\nx\r\n", 500)+"0\r\n\r\n",
		"5;a\rb\r\nhello\r\n0\r\n\r\n"),
	each("S7 end", post(te, "5\r\nhello\r\nVALUE"), "0\r\nX\r\n\r\n", "0\r\n: x\r\n\r\n", "0\n\n", "0\r\nX: a\x00b\r\n\r\n"),
)

// goodChunks are odd but legal, and leave as plain chunks.
var goodChunks = either(each("S7 chunks", post(te, "VALUE"), "5;a=b;c=\"d;e\"\r\nhello\r\n0;x\r\n\r\n", "05\r\nhello\r\n00\r\n\r\n", "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "5;\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\nX : y\r\n\r\n", "1\r\nh\r\n1;"+strings.Repeat("e", 2000)+"\r\ni\r\n0\r\n\r\n"))

// quick are timeouts that end a request which never comes whole.
const quick = `"127.0.0.1:0", timeouts: { header: 1s, body_idle: 1s } }`

func quickly(config string) string { return strings.Replace(config, `"127.0.0.1:0" }`, quick, 1) }

// Promise: whatever a client sends is refused or can be read one way only, and
// nobody gets an answer that is another's.
func TestHostileRequests(t *testing.T) {
	for name, rows := range map[string][]attack{"framing": framing, "syntax": syntax, "good chunks": goodChunks, "bad chunks": badChunks} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newTap(t)
			d := start(t, quickly(proxyAll("", b.Addr)))
			other := d.raw(t, "")
			for i, row := range rows {
				attempt(t, d, b, row)
				other.innocent(b, fmt.Sprint(i))
			}
		})
	}
}

// attempt sends an attack with an innocent request behind it.
func attempt(t *testing.T, d *daemon, b *tap, row attack) {
	t.Helper()
	c := d.raw(t, row.bytes+"GET /innocent/behind HTTP/1.1\r\nHost: innocent.example\r\nConnection: close\r\n\r\n")
	defer func() { _ = c.Close() }()
	var served []string
	method, _, _ := strings.Cut(row.bytes, " ")
	first, failed := 0, 0
	for {
		a, err := c.final(method)
		if err != nil {
			break // the connection was closed
		}
		method = http.MethodGet
		if first == 0 {
			first = a.Status
		}
		if a.Status == http.StatusOK {
			served = append(served, a.Body)
			continue
		}
		require.Contains(t, []int{400, 405, 408, 413, 417, 431, 501, 505}, a.Status, row.name)
		failed++
	}
	var came []string
	for _, r := range b.next(t) {
		require.NotEqual(t, "/smuggled", r.Target, row.name)
		for _, f := range r.Fields {
			require.NotEqual(t, "smuggled", f.Value, row.name)
		}
		body := echoed(r.Method, r.Target, r.Body)
		if r.Method == http.MethodHead {
			body = ""
		}
		came = append(came, body)
	}
	require.ElementsMatch(t, came, served, "%s: every answer belongs to its own request", row.name)
	if row.refused {
		require.GreaterOrEqual(t, first, 400, row.name)
		require.Equal(t, 1, failed, row.name)
		require.Empty(t, came, row.name)
	}
}

// Promise: CONNECT and TRACE are never proxied.
func TestConnectAndTraceAreRefused(t *testing.T) {
	t.Parallel()
	b := newTap(t)
	d := start(t, proxyAll("", b.Addr))
	other := d.raw(t, "")
	for i, request := range []string{
		"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", "CONNECT / HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT /a HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", "TRACE /a HTTP/1.1\r\nHost: x\r\nMax-Forwards: 0\r\nCookie: secret\r\n\r\n", "TRACE http://x/ HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		c := d.raw(t, "")
		a := c.ask(request)
		requireProblem(t, a, http.StatusMethodNotAllowed, "method_not_allowed")
		require.Equal(t, "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT", a.Header.Get("Allow"))
		require.NotContains(t, a.Body, "secret")
		require.Empty(t, b.next(t))
		c.innocent(b, fmt.Sprintf("same-%d", i))
		other.innocent(b, fmt.Sprintf("other-%d", i))
	}
}

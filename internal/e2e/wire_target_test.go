package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// kept are request targets that reach the backend byte for byte.
var kept = slices.Concat(strings.Fields(`
/ /a /a/ /a/b // //x //x/ //x//y /a//b /a//b// /// ////x //user@host/ //h:80/ //[::1]/x //x?q //x?a=1;b=%zz //?
//x%2Fy //x%2fy //x%20y //%41 //x?%zz //x;p=1 //x,y //x:y //x$&'()*+,;=:@-._~! //x?"<>|{}^ //x%7E
/.hidden /.a. /... /.../x /a/... /a/..b /a/b.. /a/.b /..a/b /a.b/c /.well-known/x /a/.;x /..;/ /a/..;/b /a/..;x=1/b /...;/
/~user /a~b /%7Euser /%7euser /-_.!~*'() /a'b /a(b)c /a!b /a*b /* /*/x /a$b /a&b /a+b /a,b /a;b /a=b /a:b /a@b /:x /@x /x:80/y
/;a=1 /a;b=1;c=2/d /a;jsessionid=F00?x=1 /a,b,c;v=1.1 /;/ /a/;/b /=x /a=b&c=d /a&b=c
/a"b /a'b" /a|b /a{b}c /a^b /a<b>c /a[b]c /[ /] /a%22b%7Cc%2Fd /a"b|c%2Fd /"quoted" /{template}/x /a|b|c?d|e
/a%2Fb /a%2fb /%2F /%2f/ /a%2F%2Fb /a%2Fb?c=%2F%2f /a%2fb%2Fc /%2Fa%2fb/ /a/%2F/b /a%2F.b /a%2Fb..%2Fc
/a%25b /%25 /%2525 /%252e /%252e%252e /a/%252e%252e/b /%252F /a%252f..b /%255c /%2500 /a%25%32%46
/%41 /%61 /%4a%4B /%4A%4b /%e2%82%ac /%E2%82%AC /%c3%A9 /%C3%a9 /%20 /a%20b /a+b%20c /%3F /%3f /a%3Fb?c=d /%23 /a%23b /%3B /%26
/%3D /%3A /%40 /%2B /%2b /%24 /%21 /%27 /%28 /%29 /%2A /%2C /%5B /%5D /%5b /%7B /%7d /%7C /%5E /%60 /%3C /%3E /%22
/%01 /%09 /%0a /%0D%0A /a%0d%0aX-Evil:1 /%1f /%7F /%80 /%FF /%ff%fe /%a0 /%C0 /%C1 /%E0 /%F5 /%ED%A0%80
/? /a? /?? /a?? /a??b /a?b?c /?a /?= /?& /?&& /a?&&b=1 /a?a=1&&b=2 /?=&= /a?a /a?a= /a?=b /a?a=b=c /a?a&b&c /a?;;
/a?a=1;b=2 /a?a=1;b=2&c=%zz /a?%zz /a?%z /a?% /a?%%% /a?a=%2 /a?a=%GG&b=%00 /a?%00 /a?a=%5C /a?\ /a?a=\..\ /a?/../.. /a?../x
/a?x=/b/c /a?x=http://h/p?q=1 /a?x=a+b+c /a?x=a%20b%2Bc /a?x="y" /a?x='y' /a?{"j":[1,2]} /a?<x> /a?a|b /a?a^b /a?[0]=1&[1]=2 /a?a[]=1&a[]=2
/a?a=1&a=2&a=1 /a?A=1&a=2 /a?b=2&a=1 /a?%61=1&a=2 /a?utf8=%E2%9C%93 /a?x=%e2%9c%93 /a?x=%FF /a?$&'()*+,;=:@ /a?~!*() /a?x=a,b,c /a?_=1
/a?x=1?y=2 /a?? /a/?/ /a/??/ /a?/ /a?// /a?. /a?.. /a?%2e%2e /a?x=%2F..%2F /.lb /.lbx/ /.LB/x /a/.lb/x //.lb/x /%2Elb
/A/B/C /index.HTML /a.php/x /cgi-bin/a.cgi?-d+x /a/b.c/d?e=f.g /v1/x:action /v1/{name=projects/*} /a;b/c;d?e;f /x,1/y,2 /a%3Bb;c
/http://h/x /http:/h /a/http://h /https%3A%2F%2Fh%2Fx /a/b/http%3a//h /?http://h /javascript:alert(1) /<svg/onload=1> /'or'1'='1
`), []string{
	"/`", "/a`b`c", "/a?`", "/a?x=`y`", "/ä", "/a/€", "/日本/語?語=日", "/a?x=ä€", "//?ä",
	"/\xff", "/\xe4\xf6\xfc", "/a\x80b", "/\xed\xa0\x80", "/a?\xff\xfe", "/\xc0", "/\xc0x", "/\xf5\x80", "/\xe2\x82",
	"/" + strings.Repeat("a", 60_000), "/" + strings.Repeat("a/", 25_000), "/a?" + strings.Repeat("x=1&", 14_000), "/" + strings.Repeat("%2F", 15_000),
	"/a?" + strings.Repeat("a;", 10_001) + "hidden=y", "/" + strings.Repeat("/", 1000), "/a" + strings.Repeat("?", 1000),
})

// refused are targets that two readers could take for two different paths, or
// that are none: lb answers them itself.
var refused = append(strings.Fields(`
/. /.. /./ /../ /a/. /a/.. /a/./b /a/../b /a/b/../.. //. //.. //../x /a//../b /../../../etc/passwd /a/.?x /a/..?x
/%2e /%2E /%2e%2e /%2E%2E /.%2e /%2e. /%2e/ /a/%2e%2e/b /a/%2E%2e /a/.%2E/b //%2e /a/%2e%2e?x=1
/a%2F.. /a/..%2F /a/..%2fb /%2F..%2F /%2f%2e%2e%2f /a%2f.%2fb /..%2f..%2f..%2fetc /a%2F%2E%2E%2Fb /%2F. /.%2F /a/%2e%2F
/\ /a\b /a\..\b /\..\ /..\ //\ /a/b\ /%5C /%5c /a%5Cb /a%5c..%5cb /..%5c /%5C%5c /a/%2e%2e%5cb /a%2F..%5Cb
/%00 /a%00b /a%00 /a/%00/b /a.php%00.jpg //%00 /..%00/
/%c0%af /%C0%AF /%c0%ae%c0%ae/ /%C0%AE /a/%c0%ae%c0%ae/b /%c1%9c /%c0%80 /%e0%80%af /%E0%80%AE /%e0%81%9c /%f0%80%80%af /%F0%80%80%ae /a%c0%afb
//" //a"b //a|b //a<b //a{b} //a^b //x/"y"
/# /a# /a#b /x#/admin /a?b#c /#/../x //#
http:// http:/// http:///x http://u@h/ http://u:p@h/x ftp://h/x ws://h/ HTTPS://u@h/ mailto:x x:y h:80 http:x http:/x http:%2F%2Fh
http://h/.. http://h/a/%2e%2e http://h/\ http://h/%00 http://h/#x http://h/%c0%af
`), []string{
	"//`", "//ä", "//\xff", "/\xc0\xaf", "/\xc0\xae\xc0\xae/", "/\xe0\x80\xaf", "/\xf0\x80\x80\xae", "/\xc0%af", "/%c0\xaf",
}...)

// malformed are targets that net/http answers before any handler sees them:
// 400 without an error document, and the connection is closed.
var malformed = append(strings.Fields(`
/% /%z /%zz /%2 /a%2 /a%g0 /a%0g /%u002e /a%%41 //% //x%zz a a/b ?x %2F ../x :80 ://x http http://h/% http://h%2Fx/ http://h:x/ http://[::1/ http://h\x/
`), "/a\tb", "/a\vb", "/a\x01", "/a\x7f", "/a?\x7f", "/a\x00", "/a?\x01", "/a b", "/a  b", "/a\xa0 b", " /a", "", "http://h\x7f/")

// absolute are targets in absolute form: what the backend gets of them, and
// the Host that goes with it.
var absolute = []struct{ target, origin, host string }{
	{"http://b.example/", "/", "b.example"},
	{"http://b.example", "/", "b.example"},
	{"http://b.example?", "/?", "b.example"},
	{"http://b.example?q=1", "/?q=1", "b.example"},
	{"http://b.example/?q=%zz;x", "/?q=%zz;x", "b.example"},
	{"http://b.example:8080/a%2Fb", "/a%2Fb", "b.example:8080"},
	{"http://b.example:80/", "/", "b.example:80"},
	{"http://b.example:/x", "/x", "b.example:"},
	{"http://B.Example/A", "/A", "B.Example"},
	{"HTTP://b.example/a", "/a", "b.example"},
	{"HtTp://b.example/a\"b|c", "/a\"b|c", "b.example"},
	{"https://b.example/a", "/a", "b.example"},
	{"http://127.0.0.1:1/x", "/x", "127.0.0.1:1"},
	{"http://[::1]/x", "/x", "[::1]"},
	{"http://[::1]:81/x?y", "/x?y", "[::1]:81"},
	{"http://b.example//x", "//x", "b.example"},
	{"http://b.example//x//y?z", "//x//y?z", "b.example"},
	{"http://b.example/a//b/...", "/a//b/...", "b.example"},
	{"http://b_under.example/x", "/x", "b_under.example"},
	{"http://b.example./x", "/x", "b.example."},
	{"http://b.example/http://c.example/", "/http://c.example/", "b.example"},
	{"http://b.example/\xff?\xfe", "/\xff?\xfe", "b.example"},
	{"http://b.example/;p=1?a;b", "/;p=1?a;b", "b.example"},
}

// oddHost is a Host that a tidy reader would rewrite.
const oddHost = "Client.Example:08080"

func get(target string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: " + oddHost + "\r\n\r\n"
}

// Promise: the backend gets the client's request target, byte for byte.
func TestTargetsReachTheBackendByteForByte(t *testing.T) {
	t.Parallel()
	require.GreaterOrEqual(t, len(kept), 200)
	b := newTap(t)
	d := start(t, proxyAll("", b.Addr))
	c, other := d.raw(t, ""), d.raw(t, "")
	for i, target := range kept {
		r := c.ask(get(target))
		require.Equal(t, http.StatusOK, r.Status, "%q: %s", target, r.Body)
		require.Equal(t, echoed("GET", target, ""), r.Body)
		came := b.next(t)
		require.Len(t, came, 1, "%q", target)
		require.Equal(t, target, came[0].Target)
		require.Equal(t, []string{oddHost}, came[0].values("Host"), "%q", target)
		require.Equal(t, []string{oddHost}, came[0].values("X-Forwarded-Host"), "%q", target)
		other.innocent(b, fmt.Sprint(i))
	}
}

// Promise: every byte goes through as it is, raw or escaped in either case, in
// the path and in the query; but for those few that lb refuses.
func TestEveryByteOfATarget(t *testing.T) {
	t.Parallel()
	b := newTap(t)
	d := start(t, proxyAll("", b.Addr))
	c := d.raw(t, "")
	for n := range 256 {
		raw, query := string([]byte{'/', 'r', byte(n), 'r'}), string([]byte{'/', '?', byte(n)})
		lower, upper := fmt.Sprintf("/%%%02x/e", n), fmt.Sprintf("/e%%%02Xe?%%%02X", n, n)
		control := n <= ' ' || n == 0x7f
		for _, target := range []string{raw, query, lower, upper} {
			verbatim := target == raw || target == query
			c.send(get(target))
			r, err := c.response(http.MethodGet)
			require.NoError(t, err, "%q", target)
			switch {
			case verbatim && control, target == "/r%r": // net/http's own refusal
				require.Equal(t, http.StatusBadRequest, r.Status, "%q", target)
				require.Empty(t, b.next(t), "%q", target)
				c = d.raw(t, "")
			case verbatim && n == '#', target == raw && n == '\\', !verbatim && (n == 0 || n == '\\'), target == "/%2e/e":
				requireProblem(t, r, http.StatusBadRequest, "bad_request")
				require.Empty(t, b.next(t), "%q", target)
			default:
				require.Equal(t, echoed("GET", target, ""), r.Body)
				require.Equal(t, target, b.next(t)[0].Target)
			}
		}
	}
}

// Promise: an absolute-form target leaves as origin form, with its authority
// as Host, whatever the Host field says.
func TestAbsoluteFormLeavesAsOriginForm(t *testing.T) {
	t.Parallel()
	b := newTap(t)
	d := start(t, proxyAll("", b.Addr))
	c := d.raw(t, "")
	for _, row := range absolute {
		r := c.ask(get(row.target))
		require.Equal(t, http.StatusOK, r.Status, "%q: %s", row.target, r.Body)
		came := b.next(t)
		require.Len(t, came, 1, "%q", row.target)
		require.Equal(t, row.origin, came[0].Target, "%q", row.target)
		require.Equal(t, []string{row.host}, came[0].values("Host"), "%q", row.target)
		require.Equal(t, []string{row.host}, came[0].values("X-Forwarded-Host"), "%q", row.target)
	}
}

// Promise: a target that two readers could read differently reaches no
// backend, and hurts no other request.
func TestAmbiguousTargetsAreRefused(t *testing.T) {
	t.Parallel()
	b := newTap(t)
	d := start(t, proxyAll("", b.Addr))
	c, other := d.raw(t, ""), d.raw(t, "")
	for i, target := range refused {
		requireProblem(t, c.ask(get(target)), http.StatusBadRequest, "bad_request")
		require.Empty(t, b.next(t), "%q", target)
		c.innocent(b, fmt.Sprintf("same-%d", i))
		other.innocent(b, fmt.Sprintf("other-%d", i))
	}
}

// Promise: what is no request target at all ends its connection, and nothing
// else.
func TestMalformedTargetsAreRefused(t *testing.T) {
	t.Parallel()
	b := newTap(t)
	d := start(t, proxyAll("", b.Addr))
	other := d.raw(t, "")
	for i, target := range malformed {
		c := d.raw(t, get(target)+get("/behind"))
		r, err := c.response(http.MethodGet)
		require.NoError(t, err, "%q", target)
		require.Equal(t, http.StatusBadRequest, r.Status, "%q", target)
		require.True(t, r.Close, "%q", target)
		c.closed()
		require.Empty(t, b.next(t), "%q", target)
		other.innocent(b, fmt.Sprint(i))
	}
}

// Promise: OPTIONS * is about a server and not about a path, so no route can
// take it; lb answers it like any other request, with a line in the log.
func TestAsteriskForm(t *testing.T) {
	t.Parallel()
	b := newTap(t)
	d := start(t, proxyAll("", b.Addr))
	c := d.raw(t, "")
	for _, method := range []string{"OPTIONS", "GET"} {
		requireProblem(t, c.ask(method+" * HTTP/1.1\r\nHost: x\r\n\r\n"), http.StatusBadRequest, "bad_request")
		require.Empty(t, b.next(t))
		c.innocent(b, method)
	}
	_ = c.Close()
	d.stop()
	require.Len(t, d.accessLog(), 4)
}

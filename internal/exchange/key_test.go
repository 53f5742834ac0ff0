package exchange

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/require"
)

// keyOf returns the key that r gets where requests are spread by source.
func keyOf(t testing.TB, source string, r *request) uint64 {
	t.Helper()
	w := newWorld(t, options{backends: 1})
	w.app().Key = ClientKey
	if source != "client" {
		k, err := ParseKeySource(source)
		require.NoError(t, err)
		w.app().Key = k
	}
	x, action := w.begin(r)
	require.Equal(t, Proxy, action, "%s", r.target)
	return x.query.Key
}

func TestKeys(t *testing.T) {
	for _, test := range []struct {
		source string
		line   string
		fields []string
		want   string // what is hashed
	}{
		{"header:X-User", "GET /app", []string{"X-User", "ada"}, "ada"},
		{"header:x-user", "GET /app", []string{"X-User", "ada"}, "ada"},

		{"cookie:sid", "GET /app", []string{"Cookie", "sid=7"}, "7"},
		{"cookie:sid", "GET /app", []string{"Cookie", "a=1; sid=7; b=2"}, "7"},
		{"cookie:sid", "GET /app", []string{"Cookie", "a=1;sid=7;b=2"}, "7"},
		{"cookie:sid", "GET /app", []string{"Cookie", "xsid=1; sidx=2; SID=3; sid=4; sid=5"}, "4"},
		{"cookie:sid", "GET /app", []string{"Cookie", `sid="7 8"; b`}, "7 8"},
		{"cookie:sid", "GET /app", []string{"Cookie", `sid="`}, `"`},
		{"cookie:sid", "GET /app", []string{"Cookie", "sid=a=b%20"}, "a=b%20"},

		{"query:user", "GET /app?user=ada", nil, "ada"},
		{"query:user", "GET /app?a=1&user=ada&user=bob", nil, "ada"},
		{"query:user", "GET /app?xuser=1&userx=2&User=3&user=ada", nil, "ada"},
		{"query:user", "GET /app?user=a%20b+c", nil, "a b c"},
		{"query:user", "GET /app?%75s%65r=ada", nil, "ada"},
		{"query:user", "GET /app?user=%zz", nil, "%zz"},
		{"query:user", "GET /app?user=a=b", nil, "a=b"},
		{"query:a b", "GET /app?a+b=1", nil, "1"},

		{"path", "GET /app/x?y", nil, "/app/x"},
		{"path", "GET /app/%78", nil, "/app/x"},
		{"path", "GET /app/a%2fb", nil, "/app/a%2Fb"},
		{"host", "GET /app", nil, "h"},
		{"host", "GET http://H.:80/app", nil, "h"},
	} {
		require.Equal(t, xxhash.Sum64String(test.want), keyOf(t, test.source, ask(test.line, test.fields...)),
			"%s of %s %q", test.source, test.line, test.fields)
	}
}

// After a change of the hash every client would meet another backend.
func TestKeysAreTheSameInEveryProcess(t *testing.T) {
	require.Equal(t, uint64(0xd36c3934091206d0), keyOf(t, "header:X-User", ask("GET /app", "X-User", "ada")))
	require.Equal(t, uint64(0xb47059a0503ddd8e), keyOf(t, "client", ask("GET /app")))
}

func TestKeysByClient(t *testing.T) {
	key := func(peer string, fields ...string) uint64 {
		r := ask("GET /app", fields...)
		r.peer = netip.Addr{}
		if peer != "" {
			r.peer = netip.MustParseAddr(peer)
		}
		return keyOf(t, "client", r)
	}
	require.Equal(t, key("203.0.113.9"), key("::ffff:203.0.113.9"), "one client, whatever the socket")
	require.NotEqual(t, key("203.0.113.9"), key("203.0.113.10"), "the whole address counts")
	require.NotEqual(t, key("2001:db8::1"), key("2001:db8::2"))
	require.Equal(t, key("203.0.113.9"), key("10.1.2.3", "X-Forwarded-For", "203.0.113.9"), "as far as trusted peers tell")
	require.NotEqual(t, key("203.0.113.9"), key("203.0.113.10", "X-Forwarded-For", "203.0.113.9"))
	require.NotEqual(t, key(""), key(""), "who has no address has no key")
}

func TestRequestsWithoutTheKeySpread(t *testing.T) {
	for source, r := range map[string]*request{
		"header:X-User": ask("GET /app", "X-User", ""),
		"header:X-Not":  ask("GET /app", "X-User", "ada"),
		"header:X-Hop":  ask("GET /app", "X-Hop", "ada", "Connection", "x-hop"),
		"cookie:sid":    ask("GET /app", "Cookie", "sid=; sid=7"),
		"cookie:none":   ask("GET /app", "Cookie", "sid=7"),
		"query:user":    ask("GET /app?user"),
		"query:none":    ask("GET /app?user=1"),
	} {
		seen := make(map[uint64]bool)
		for range 20 {
			seen[keyOf(t, source, r)] = true
		}
		require.Len(t, seen, 20, source)
	}
}

func TestBadKeySources(t *testing.T) {
	for text, want := range map[string]string{
		"":            "write one of header:NAME, cookie:NAME, query:NAME, path, host",
		"ip":          "write one of header:NAME",
		"Header:X":    "write one of header:NAME",
		"header":      "write one such as header:user",
		"header:":     "write one such as header:user",
		"cookie:":     "write one such as cookie:user",
		"query":       "write one such as query:user",
		"path:x":      "path takes no name; write path",
		"host:":       "host takes no name; write host",
		"header:host": "write host",
	} {
		_, err := ParseKeySource(text)
		require.ErrorContains(t, err, want, text)
	}
}

var keyed = map[string]KeySource{
	"none":   {},
	"client": ClientKey,
	"header": {keyHeader, "X-User"},
	"cookie": {keyCookie, "sid"},
	"query":  {keyQuery, "user"},
	"path":   {kind: keyPath},
	"host":   {kind: keyHost},
	"absent": {keyHeader, "X-None"},
}

func keyedRequest() *request {
	return ask("GET /app/users/7?a=1&user=ada", "X-User", "ada", "Cookie", strings.Repeat("name=value; ", 5)+`sid="7"`)
}

// beginner returns what begins and finishes the same request over and over.
func beginner(t testing.TB, k KeySource) func() {
	w := newWorld(t, options{backends: 3})
	w.Decider.finished = func(*Exchange) {}
	w.app().Key = k
	x, r := &Exchange{Listener: w.listener}, keyedRequest()
	return func() {
		w.Begin(x, r)
		x.Status = 200
		w.Finish(x)
		x.Reset()
	}
}

func TestAKeyAllocatesNothing(t *testing.T) {
	for name, k := range keyed {
		serve := beginner(t, k)
		serve() // the first of a status makes its series
		require.LessOrEqual(t, testing.AllocsPerRun(1000, serve), 1.0, "%s: the request's id and nothing else", name)
	}
}

func BenchmarkBeginWithAKey(b *testing.B) {
	for _, name := range []string{"none", "client", "header", "cookie", "query", "path", "host", "absent"} {
		b.Run(name, func(b *testing.B) {
			serve := beginner(b, keyed[name])
			b.ReportAllocs()
			for b.Loop() {
				serve()
			}
		})
	}
}

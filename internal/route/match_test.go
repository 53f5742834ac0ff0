package route

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rule reads a rule from "host,host METHOD,METHOD path"; "-" stands for none,
// and a path that ends in "*" is a prefix.
func rule(s string) Rule {
	words := strings.Fields(s)
	list := func(w string) []string {
		if w == "-" {
			return nil
		}
		return strings.Split(w, ",")
	}
	r := Rule{Hosts: list(words[0]), Methods: list(words[1])}
	switch path := words[2]; {
	case path == "-":
	case strings.HasSuffix(path, "*"):
		r.PathPrefix = strings.TrimSuffix(path, "*")
	default:
		r.Path = path
	}
	return r
}

func rules(list ...string) []Rule {
	var rs []Rule
	for _, s := range list {
		rs = append(rs, rule(s))
	}
	return rs
}

func TestMatchPrecedence(t *testing.T) {
	for _, test := range []struct {
		name  string
		rules []string
		// request line ("host method path") and the rule it gets; -1 for none
		want map[string]int
	}{
		{
			"an exact host before none, whatever the path says",
			[]string{"- - /login", "a.example - -", "- - /login*"},
			map[string]int{"a.example GET /login": 1, "b.example GET /login": 0, "b.example GET /login/x": 2, "b.example GET /": -1},
		},
		{
			"a path of another host is not looked at",
			[]string{"a.example - /x", "b.example - -"},
			map[string]int{"b.example GET /x": 1, "a.example GET /y": -1, "c.example GET /x": -1},
		},
		{
			"falls back to the rules of every host",
			[]string{"- - /x*", "a.example POST /x*"},
			map[string]int{"a.example GET /x": 0, "a.example POST /x": 1},
		},
		{
			"an exact path before the longest prefix before none",
			[]string{"- - -", "- - /a*", "- - /a/b/c*", "- - /a/b", "- - /a/b*"},
			map[string]int{"h GET /a/b": 3, "h GET /a/b/": 4, "h GET /a/b/c": 2, "h GET /a/b/c/d": 2, "h GET /a/b/cd": 4, "h GET /a": 1, "h GET /z": 0},
		},
		{
			"an exact path even before a longer prefix that is the same",
			[]string{"- - /a*", "- - /a"},
			map[string]int{"h GET /a": 1, "h GET /a/": 0},
		},
		{
			"a rule with methods before one without",
			[]string{"- - /x", "- POST /x", "- - /p*", "- POST /p*", "- - -", "- PUT -"},
			map[string]int{"h POST /x": 1, "h GET /x": 0, "h POST /p/1": 3, "h GET /p/1": 2, "h PUT /": 5, "h GET /": 4},
		},
		{
			"then the order of the file",
			[]string{"- GET /x", "- GET,POST /x", "- POST /x"},
			map[string]int{"h GET /x": 0, "h POST /x": 1},
		},
		{
			"a longer prefix that does not take the method leaves the request to a shorter one",
			[]string{"- POST /a/b*", "- - /a*"},
			map[string]int{"h GET /a/b/c": 1, "h POST /a/b/c": 0},
		},
		{
			"prefixes are whole segments",
			[]string{"- - /api*"},
			map[string]int{"h GET /api": 0, "h GET /api/": 0, "h GET /api/x": 0, "h GET /apix": -1, "h GET /ap": -1, "h GET /": -1, "h GET //api": -1, "h GET /Api": -1},
		},
		{
			"a prefix that ends in a slash wants what is below it",
			[]string{"- - /api/*"},
			map[string]int{"h GET /api/": 0, "h GET /api/x": 0, "h GET /api": -1, "h GET /api//": 0},
		},
		{
			"with the slash before without it",
			[]string{"- - /api*", "- - /api/*"},
			map[string]int{"h GET /api": 0, "h GET /api/": 1, "h GET /api/x": 1},
		},
		{
			"the prefix / is everything",
			[]string{"- - /*"},
			map[string]int{"h GET /": 0, "h GET /x/y": 0, "h GET //": 0},
		},
		{
			"the path / is only itself",
			[]string{"- - /"},
			map[string]int{"h GET /": 0, "h GET //": -1, "h GET /x": -1},
		},
		{
			"GET covers HEAD, unless a rule of its own comes first",
			[]string{"- GET /x", "- HEAD,GET /y", "- GET /y", "- POST /z"},
			map[string]int{"h HEAD /x": 0, "h HEAD /y": 1, "h HEAD /z": -1, "h GET /x": 0},
		},
		{
			"HEAD does not cover GET, and methods are told by case",
			[]string{"- HEAD /x", "- GET /y"},
			map[string]int{"h GET /x": -1, "h HEAD /x": 0, "h get /y": -1},
		},
		{
			"an encoded slash is not a separator",
			[]string{"- - /a/b", "- - /a*"},
			map[string]int{"h GET /a%2Fb": -1, "h GET /a/%2Fb": 1},
		},
		{
			"hosts of a rule in any spelling",
			[]string{"A.Example. - -", "::1 - -", "[2001:DB8:0::1] - -", "10.0.0.1 - -"},
			map[string]int{"a.example GET /": 0, "[::1] GET /": 1, "[2001:db8::1] GET /": 2, "10.0.0.1 GET /": 3, "example GET /": -1},
		},
		{
			"several hosts",
			[]string{"a,b - /x", "b - /x*"},
			map[string]int{"a GET /x": 0, "b GET /x": 0, "b GET /x/y": 1, "a GET /x/y": -1},
		},
		{"no rules at all", nil, map[string]int{"h GET /": -1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			rs := rules(test.rules...)
			table := Compile(rs)
			for request, want := range test.want {
				words := strings.Fields(request)
				got, ok := table.Match(words[0], words[1], words[2])
				require.Equal(t, want >= 0, ok, request)
				if ok {
					require.Equal(t, want, got, request)
				}
				require.Equal(t, want, naiveMatch(rs, words[0], words[1], words[2]), "the reference: %s", request)
			}
		})
	}
}

func TestOrderIsTheOrderOfMatching(t *testing.T) {
	table := Compile(rules("- - -", "- - /a*", "- - /a/b*", "- - /x", "- GET /x", "h - -", "h - /z", "- PUT -"))
	require.Equal(t, []int{6, 5, 4, 3, 2, 1, 7, 0}, table.Order())
}

func TestAllow(t *testing.T) {
	table := Compile(rules(
		"- GET /x", "- POST,GET /x", "- DELETE /x*", "a PATCH /x", "- PUT /y", "- POST /p/*", "- HEAD /h", "- GET /ap*"))
	for _, test := range []struct{ host, path, want string }{
		{"h", "/x", "DELETE GET HEAD POST"},
		{"a", "/x", "DELETE GET HEAD PATCH POST"},
		{"h", "/x/below", "DELETE"},
		{"h", "/y", "PUT"},
		{"h", "/p/1", "POST"},
		{"h", "/p", ""},
		{"h", "/h", "HEAD"},
		{"h", "/apple", ""},
		{"h", "/none", ""},
	} {
		require.Equal(t, test.want, strings.Join(table.Allow(test.host, test.path), " "), "%s%s", test.host, test.path)
	}
}

func TestNormalizeHost(t *testing.T) {
	for field, want := range map[string]string{
		"":                        "",
		"example.com":             "example.com",
		"EXAMPLE.com":             "example.com",
		"example.com.":            "example.com",
		"Example.COM.:8080":       "example.com",
		"example.com:":            "example.com",
		"10.0.0.1:80":             "10.0.0.1",
		"[::1]":                   "[::1]",
		"[::1]:8080":              "[::1]",
		"[0:0:0:0:0:0:0:1]":       "[::1]",
		"[2001:DB8::A]:":          "[2001:db8::a]",
		"[::ffff:10.0.0.1]":       "[::ffff:10.0.0.1]",
		"a_b.example":             "a_b.example",
		"xn--bcher-kva.example:1": "xn--bcher-kva.example",
		"*":                       "*",
	} {
		got, err := NormalizeHost(field)
		require.NoError(t, err, field)
		require.Equal(t, want, got, field)
		again, err := NormalizeHost(got)
		require.NoError(t, err, field)
		require.Equal(t, got, again, "normal is normal: %s", field)
	}
	for _, field := range []string{
		"a/b", "a b", "user@host", "a:b", "a:80:80", "a:-1", "::1", "[::1", "[::1]x", "[::1]:x", "[]", "[1.2.3.4]", "[:::]",
		"[fe80::1%25eth0]", "[fe80::1%eth0]", "a?b", "a#b", `a\b`, "a\x00b", "bücher.example", "a,b:c", "a\tb", "a[b]",
	} {
		_, err := NormalizeHost(field)
		require.Error(t, err, "%q", field)
	}
}

// naiveMatch is the rule of the documentation, written down as it stands
// there: of the rules that take the request, the one that precedes all others.
func naiveMatch(rs []Rule, host, method, path string) int {
	best := -1
	for i, r := range rs {
		if len(r.Hosts) > 0 && !slices.ContainsFunc(r.Hosts, func(h string) bool { return canonicalHosts([]string{h})[0] == host }) {
			continue
		}
		if len(r.Methods) > 0 && !slices.Contains(r.Methods, method) && (method != "HEAD" || !slices.Contains(r.Methods, "GET")) {
			continue
		}
		if r.Path != "" && path != r.Path || r.PathPrefix != "" && !below(path, r.PathPrefix) {
			continue
		}
		if best < 0 || precedes(r, rs[best]) {
			best = i
		}
	}
	return best
}

func below(path, prefix string) bool {
	if !strings.HasSuffix(prefix, "/") && path != prefix {
		prefix += "/"
	}
	return strings.HasPrefix(path, prefix)
}

func precedes(a, b Rule) bool {
	if ah, bh := len(a.Hosts) > 0, len(b.Hosts) > 0; ah != bh {
		return ah
	}
	if ae, be := a.Path != "", b.Path != ""; ae != be {
		return ae
	}
	if len(a.PathPrefix) != len(b.PathPrefix) {
		return len(a.PathPrefix) > len(b.PathPrefix)
	}
	return len(a.Methods) > 0 && len(b.Methods) == 0
}

func TestMatchDoesNotAllocate(t *testing.T) {
	table := Compile(rules("- GET /x", "a.example - /api/v1*", "- - /api*", "- - /*"))
	for _, r := range [][3]string{
		{"a.example", "GET", "/api/v1/users/7"}, {"b.example", "POST", "/x"}, {"", "HEAD", "/x"}, {"h", "GET", "/a/b/c/d/e"},
	} {
		require.Zero(t, testing.AllocsPerRun(100, func() { table.Match(r[0], r[1], r[2]) }), "%v", r)
	}
	require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = NormalizeHost("example.com:8080") }))
}

// thousands returns a table of 10,000 rules over 100 hosts.
func thousands() *Table {
	var rs []Rule
	for i := range 10_000 {
		r := Rule{Methods: []string{"GET"}}
		if i%2 == 0 {
			r.Path = fmt.Sprintf("/svc%d/resource/item", i)
		} else {
			r.PathPrefix = fmt.Sprintf("/svc%d/resource", i)
		}
		if i%4 < 2 {
			r.Hosts = []string{fmt.Sprintf("h%d.example", i%100)}
		}
		rs = append(rs, r)
	}
	return Compile(rs)
}

func BenchmarkMatch10000(b *testing.B) {
	table := thousands()
	for _, r := range []struct{ name, host, path string }{
		{"exact", "h0.example", "/svc5000/resource/item"},
		{"prefix", "other.example", "/svc5003/resource/a/b/c"},
		{"none", "other.example", "/nowhere/at/all"},
		{"slashes", "other.example", strings.Repeat("/", 60<<10)},
	} {
		b.Run(r.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				table.Match(r.host, "GET", r.path)
			}
		})
	}
}

package route

import (
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseTargetAccepts(t *testing.T) {
	for _, test := range []struct {
		raw  string
		want Target
	}{
		{"/", Target{RawPath: "/", Path: "/"}},
		{"/a/b", Target{RawPath: "/a/b", Path: "/a/b"}},
		{"/a?", Target{RawPath: "/a", HasQuery: true, Path: "/a"}},
		{"/a?b?c", Target{RawPath: "/a", RawQuery: "b?c", HasQuery: true, Path: "/a"}},
		// What is decided on is what is forwarded: odd queries stay as they are.
		{"/a?a=1;b=2&%zz&../..", Target{RawPath: "/a", RawQuery: "a=1;b=2&%zz&../..", HasQuery: true, Path: "/a"}},
		{`/a?\`, Target{RawPath: "/a", RawQuery: `\`, HasQuery: true, Path: "/a"}},
		// Escapes are decoded once, for deciding only.
		{"/%6Cogin", Target{RawPath: "/%6Cogin", Path: "/login"}},
		{"/%6cogin", Target{RawPath: "/%6cogin", Path: "/login"}},
		{"/a%2Fb", Target{RawPath: "/a%2Fb", Path: "/a%2Fb", EncodedSlash: true}},
		{"/a%2fb", Target{RawPath: "/a%2fb", Path: "/a%2Fb", EncodedSlash: true}},
		{"/%252e%252e/", Target{RawPath: "/%252e%252e/", Path: "/%2e%2e/"}},
		{"/%252F", Target{RawPath: "/%252F", Path: "/%2F"}},
		{"/a%0d%0aX", Target{RawPath: "/a%0d%0aX", Path: "/a\r\nX"}},
		{"/%3F%23", Target{RawPath: "/%3F%23", Path: "/?#"}},
		{"/%E4%BD%A0", Target{RawPath: "/%E4%BD%A0", Path: "/你"}},
		{"/%FF", Target{RawPath: "/%FF", Path: "/\xff"}},
		{"/a\"b|c", Target{RawPath: "/a\"b|c", Path: "/a\"b|c"}},
		{"/admin;x=..", Target{RawPath: "/admin;x=..", Path: "/admin;x=.."}},
		// Dots that are no dot segments.
		{"/...", Target{RawPath: "/...", Path: "/..."}},
		{"/.a/a./..a/a../.git", Target{RawPath: "/.a/a./..a/a../.git", Path: "/.a/a./..a/a../.git"}},
		{"/a.%2Fb", Target{RawPath: "/a.%2Fb", Path: "/a.%2Fb", EncodedSlash: true}},
		// Empty segments are somebody's business.
		{"//admin", Target{RawPath: "//admin", Path: "//admin"}},
		{"///", Target{RawPath: "///", Path: "///"}},
		{"//a%20b[1]", Target{RawPath: "//a%20b[1]", Path: "//a b[1]"}},
		{"/a//b", Target{RawPath: "/a//b", Path: "/a//b"}},
		// Absolute form.
		{"http://b", Target{Authority: "b", RawPath: "/", Path: "/"}},
		{"http://b/", Target{Authority: "b", RawPath: "/", Path: "/"}},
		{"HTTP://B:80/x?y", Target{Authority: "B:80", RawPath: "/x", RawQuery: "y", HasQuery: true, Path: "/x"}},
		{"https://[::1]:1/x", Target{Authority: "[::1]:1", RawPath: "/x", Path: "/x"}},
		{"http://b?q", Target{Authority: "b", RawPath: "/", RawQuery: "q", HasQuery: true, Path: "/"}},
		{"http://b//x", Target{Authority: "b", RawPath: "//x", Path: "//x"}},
		{"/http://b/x", Target{RawPath: "/http://b/x", Path: "/http://b/x"}},
		{"/a?u=http://b@c", Target{RawPath: "/a", RawQuery: "u=http://b@c", HasQuery: true, Path: "/a"}},
	} {
		got, err := ParseTarget(test.raw)
		require.NoError(t, err, test.raw)
		require.Equal(t, test.want, got, test.raw)
	}
}

func TestParseTargetRefuses(t *testing.T) {
	for raw, want := range map[string]error{
		"":                  errNotOrigin,
		"*":                 errNotOrigin,
		"x":                 errNotOrigin,
		"b:80":              errNotOrigin,
		"?q":                errNotOrigin,
		"http:/b":           errNotOrigin,
		"http://":           errNotOrigin,
		"http:///x":         errNotOrigin,
		"ftp://b/":          errScheme,
		"file:///etc":       errScheme,
		"://b/":             errScheme,
		"http://u@b/":       errUserinfo,
		"http://u:p@b/x":    errUserinfo,
		"http://b@/x":       errUserinfo,
		"/x#/admin":         errFragment,
		"/x?y#z":            errFragment,
		"#":                 errFragment,
		"http://b/#":        errFragment,
		`/a\b`:              errBackslash,
		`/a\..\admin`:       errBackslash,
		"/a%5cb":            errBackslash,
		"/a%5Cb":            errBackslash,
		"/a%00":             errNUL,
		"/a\x00":            errNUL,
		"/.":                errDotSegment,
		"/..":               errDotSegment,
		"/./":               errDotSegment,
		"/a/./b":            errDotSegment,
		"/a/..":             errDotSegment,
		"/a/../b":           errDotSegment,
		"//..":              errDotSegment,
		"/%2e":              errDotSegment,
		"/%2e%2e/":          errDotSegment,
		"/.%2E/x":           errDotSegment,
		"/%2E./x":           errDotSegment,
		"/a/..%2fadmin":     errDotSegment,
		"/a%2F..%2Fadmin":   errDotSegment,
		"/a%2f%2e%2e":       errDotSegment,
		"/a%2f.":            errDotSegment,
		"/%2F../a":          errDotSegment,
		"http://b/../x":     errDotSegment,
		"/%c0%af":           errOverlong,
		"/%c0%ae%c0%ae/":    errOverlong,
		"/\xc0\xaf":         errOverlong,
		"/%c1%9c":           errOverlong,
		"/%e0%80%af":        errOverlong,
		"/%f0%80%80%af":     errOverlong,
		"//a|b":             errSlashes,
		"//a\"b":            errSlashes,
		"//a b":             errSlashes,
		"//\xe4":            errSlashes,
		"http://b//a|b/x?y": errSlashes,
	} {
		_, err := ParseTarget(raw)
		require.ErrorIs(t, err, want, "%q", raw)
	}
	for _, raw := range []string{"/%", "/%4", "/%zz", "/a%4", "/%%41", "/a%2", "/%u0041", "/% 41"} {
		_, err := ParseTarget(raw)
		require.ErrorContains(t, err, "escape", "%q", raw)
	}
}

func TestParseTargetAllocatesForEscapesOnly(t *testing.T) {
	require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = ParseTarget("/a/b/c?d=%zz") }))
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() { _, _ = ParseTarget("/a%20b/c?d") }), 1.0)
}

var targetSeeds = []string{
	"/", "/a/b?c", "/a/..%2fadmin", "/%2e%2e/", "//admin", "/admin;x", `/a\..\admin`, "/%252e", "/%00", "/%0d%0a",
	"/%c0%ae", "/x#y", "http://u@b/", "http://b//x|", "*", "/a%2fb", "/%2F.%2f", "/%e0%80%ae", "/a?b?c#", "/%25%32%65",
}

// Whatever ParseTarget accepts means one thing to every reader.
func FuzzParseTarget(f *testing.F) {
	for _, s := range targetSeeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := ParseTarget(raw)
		if err != nil {
			return
		}
		origin := got.RawPath
		if got.HasQuery {
			origin += "?" + got.RawQuery
		}
		if got.Authority == "" {
			require.Equal(t, raw, origin, "the parts are what the client sent")
		} else {
			require.Contains(t, raw, "://"+got.Authority)
			require.NotContains(t, got.Authority, "@")
			require.True(t, strings.HasSuffix(raw, origin) || got.RawPath == "/" && strings.HasSuffix(raw, origin[1:]))
		}
		require.Equal(t, byte('/'), got.RawPath[0])
		require.NotContains(t, got.RawPath, "?")
		require.NotContains(t, raw, "#")

		decoded, err := url.PathUnescape(got.RawPath)
		require.NoError(t, err)
		require.NotContains(t, decoded, `\`)
		require.NotContains(t, decoded, "\x00")
		for _, segment := range strings.Split(decoded, "/") {
			require.NotContains(t, []string{".", ".."}, segment, "a dot segment after decoding")
		}
		require.Equal(t, strings.Contains(strings.ToLower(strings.ReplaceAll(got.RawPath, "%25", "")), "%2f"), got.EncodedSlash)
		if !got.EncodedSlash {
			require.Equal(t, decoded, got.Path, "the deciding form is the decoded one")
		} else {
			require.Equal(t, decoded, strings.ReplaceAll(got.Path, "%2F", "/"), "but for %%2F")
		}

		if strings.HasPrefix(got.RawPath, "//") {
			u := url.URL{Path: decoded, RawPath: got.RawPath}
			require.Equal(t, got.RawPath, u.EscapedPath(), "net/url writes it as it came")
		}
	})
}

func FuzzNormalizeHost(f *testing.F) {
	for _, s := range []string{"a", "A.b.:80", "[::1]:8", "a/b", "u@h", "[1::%25x]", "1.2.3.4:", "..", ":80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, field string) {
		host, err := NormalizeHost(field)
		if err != nil {
			return
		}
		require.NotContains(t, host, "/")
		require.NotContains(t, host, "@")
		require.Equal(t, strings.ToLower(host), host)
		if strings.ContainsRune(host, ':') {
			require.Regexp(t, `^\[[0-9a-f:.]+\]$`, host)
		}
		require.LessOrEqual(t, len(host), max(len(field), len("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]")))
	})
}

// The compiled table and the sentence in the documentation agree.
func FuzzMatch(f *testing.F) {
	f.Add("- - /a*\n- GET /a\nh - -", "h", "GET", "/a/b")
	f.Add("- POST /a/b*\n- - /a*\n- - /*", "x", "HEAD", "/a/b/c")
	f.Add("a,b PUT,GET /x/*\nb - /x*\n- HEAD -", "b", "HEAD", "/x/")
	f.Add("- - //*\n- - /a//*", "h", "GET", "/a//b")
	f.Fuzz(func(t *testing.T, list, host, method, path string) {
		var rs []Rule
		for _, line := range strings.Split(list, "\n") {
			words := strings.Fields(line)
			if len(words) != 3 || words[2] != "-" && words[2][0] != '/' || strings.ContainsAny(words[0], ":[]") {
				return
			}
			rs = append(rs, rule(line))
		}
		target, err := ParseTarget(path)
		if err != nil {
			return
		}
		host, err = NormalizeHost(host)
		if err != nil {
			return
		}
		table := Compile(rs)
		got, ok := table.Match(host, method, target.Path)
		if !ok {
			got = -1
		}
		require.Equal(t, naiveMatch(rs, host, method, target.Path), got, "%q %q %q %q", list, host, method, target.Path)
		if !ok {
			allowed := table.Allow(host, target.Path)
			require.NotContains(t, allowed, method)
			for _, m := range allowed {
				_, ok := table.Match(host, m, target.Path)
				require.True(t, ok, "%s was said to be allowed", m)
			}
		}
	})
}

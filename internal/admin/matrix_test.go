package admin

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// rows are the paths of the handler, with what each of them is.
var rows = map[string]struct {
	access access
	allow  string
	done   int // the status of a change; 0 for a path that is only read
}{
	"/livez":       {access: everybody, allow: "GET, HEAD"},
	"/readyz":      {access: everybody, allow: "GET, HEAD"},
	"/health":      {allow: "GET, HEAD"},
	"/instances":   {allow: "GET, HEAD"},
	"/config":      {allow: "GET, HEAD"},
	"/metrics":     {allow: "GET, HEAD"},
	"/audit":       {allow: "GET, HEAD"},
	"/fanout":      {allow: "GET, HEAD"},
	"/fanout/{id}": {allow: "GET, HEAD"},

	"/instances/{id}/drain":       {allow: "POST", done: 200},
	"/instances/{id}/maintenance": {allow: "POST", done: 200},
	"/instances/{id}/enable":      {allow: "POST", done: 200},

	"/fanout/{id}/deliveries/{backend}/retry": {allow: "POST", done: 200},
	"/fanout/{id}/deliveries/{backend}/skip":  {allow: "POST", done: 200},

	"/register":                {access: registrants, allow: "POST", done: 201},
	"/unregister/{instanceId}": {access: registrants, allow: "DELETE", done: 204},

	"/reload":                             {allow: "POST", done: 200},
	"/config/versions":                    {allow: "GET, HEAD"},
	"/config/versions/{version}":          {allow: "GET, HEAD"},
	"/config/versions/{version}/diff":     {allow: "GET, HEAD"},
	"/config/versions/{version}/rollback": {allow: "POST", done: 200},
}

// credentials are the ways to send a token, or something else, and which token
// it is: none where it proves nothing.
var credentials = map[string]struct {
	fields []string
	shows  string
}{
	"none":               {nil, ""},
	"admin":              {[]string{"Authorization: Bearer " + token}, token},
	"scheme in any case": {[]string{"Authorization: bEARER  " + token}, token},
	"registration":       {[]string{"Authorization: Bearer " + registerToken}, registerToken},
	"wrong":              {[]string{"Authorization: Bearer s3cret-canarY"}, ""},
	"shorter":            {[]string{"Authorization: Bearer s3cret-canar"}, ""},
	"longer":             {[]string{"Authorization: Bearer " + token + "x"}, ""},
	"one and the other":  {[]string{"Authorization: Bearer " + token + registerToken}, ""},
	"empty":              {[]string{"Authorization: Bearer "}, ""},
	"scheme only":        {[]string{"Authorization: Bearer"}, ""},
	"no scheme":          {[]string{"Authorization: " + token}, ""},
	"empty field":        {[]string{"Authorization:"}, ""},
	"basic":              {[]string{"Authorization: Basic OnMzY3JldC1jYW5hcnk="}, ""},
	"basic with token":   {[]string{"Authorization: Basic " + token}, ""},
	"digest":             {[]string{"Authorization: Digest " + registerToken}, ""},
	"admin, twice":       {[]string{"Authorization: Bearer " + token, "Authorization: Bearer " + token}, ""},
	"both":               {[]string{"Authorization: Bearer " + registerToken, "Authorization: Bearer " + token}, ""},
	"both, in a list":    {[]string{"Authorization: Bearer " + registerToken + ", Bearer " + token}, ""},
	"admin, in a list":   {[]string{"Authorization: Bearer x, Bearer " + token}, ""},
	"in another field":   {[]string{"Proxy-Authorization: Bearer " + token, "Cookie: token=" + registerToken, "X-Token: " + token}, ""},
}

// origins are what browsers tell of the page that asks, and what others send.
var origins = map[string]struct {
	fields  []string
	refused int
}{
	"no page":           {nil, 0},
	"lb's own":          {[]string{"Origin: http://localhost:9901", "Sec-Fetch-Site: same-origin"}, 0},
	"another site":      {[]string{"Origin: https://evil.example", "Sec-Fetch-Site: cross-site"}, 403},
	"another port":      {[]string{"Origin: http://localhost:3000", "Sec-Fetch-Site: same-site"}, 403},
	"sandboxed":         {[]string{"Origin: null"}, 403},
	"without an Origin": {[]string{"Sec-Fetch-Site: cross-site"}, 403},
	"another host":      {[]string{"Host: evil.example"}, 421},
}

var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get", "post", "X"}

// enough reports whether a credential is, at a path for some, where the tokens
// are set that opts has.
func enough(opts Options, some access, shows string) bool {
	byAdmin := opts.Token != "" && shows == opts.Token
	byRegistrant := opts.RegistrationToken != "" && shows == opts.RegistrationToken
	switch {
	case some == everybody:
		return true
	case some == registrants && opts.RegistrationToken != "":
		return byAdmin || byRegistrant
	default:
		return byAdmin || opts.Token == ""
	}
}

// TestMatrix asks for every path of the handler, with every method, every state
// of the credential and from every origin and to every host, for all ways to set
// the tokens. A path without a row fails.
func TestMatrix(t *testing.T) {
	for _, opts := range []Options{
		{}, {Token: token}, {RegistrationToken: registerToken}, {Token: token, RegistrationToken: registerToken},
	} {
		o := &operator{registrar: registrar{created: true}}
		opts.Registrar, opts.Reloader = o, o
		h := New(opts, healthy(), o, metricsStub)
		for path := range h.routes {
			require.Contains(t, rows, path, "a path without a row in this matrix")
		}
		for path, row := range rows {
			require.Contains(t, h.routes, path, "a row without a path")
			for _, method := range methods {
				for credential, c := range credentials {
					for origin, from := range origins {
						want := http.StatusMethodNotAllowed
						switch {
						case from.refused != 0:
							want = from.refused
						case !enough(opts, row.access, c.shows):
							want = http.StatusUnauthorized
						case slices.Contains(strings.Split(row.allow, ", "), method):
							want = max(http.StatusOK, row.done)
						}
						at := fmt.Sprintf("token %q, registration %q: %s %s, credential %s, origin %s",
							opts.Token, opts.RegistrationToken, method, path, credential, origin)
						rec := requireAnswer(t, h, o, method, path, slices.Concat(c.fields, from.fields), want, row.allow, at)
						require.Equal(t, row.done != 0 && want == row.done, o.made() == 1, at)
						if want == http.StatusUnauthorized {
							require.Equal(t, refusal(t, h, c.fields), rec.Body.String(), "the same for every path: %s", at)
						}
					}
				}
			}
		}
	}
}

// refusal is what the handler says to who has no good token, at a path that is
// not there: whatever the method, one thing to who shows nothing and one to all
// others.
func refusal(t *testing.T, h *Handler, fields []string) string {
	t.Helper()
	shown := slices.ContainsFunc(fields, func(f string) bool {
		value, ok := strings.CutPrefix(f, "Authorization:")
		return ok && value != ""
	})
	detail, other := "send a token: Authorization: Bearer …", []string(nil)
	if shown {
		detail, other = "the token is wrong, or good for other paths only", []string{"Authorization: Bearer canary"}
	}
	line := "GET /nothing"
	if !h.guard.admin.set { // nothing is hidden
		line = "POST /register"
	}
	rec := ask(t, h, line, other...)
	require.Contains(t, rec.Body.String(), detail)
	return rec.Body.String()
}

// requireAnswer asks once, and checks the answer, what it gives away, and that
// nothing has changed unless it was allowed.
func requireAnswer(t *testing.T, h *Handler, o *operator, method, path string, fields []string, want int, allow, at string,
) *httptest.ResponseRecorder {
	t.Helper()
	o.changes, o.asked, o.said, o.ordered = nil, nil, nil, nil
	path = strings.NewReplacer("{id}", "server1", "{backend}", "server2", "{instanceId}", "server1", "{version}", "7").Replace(path)
	rec := ask(t, h, method+" "+path, append(fields, "Content-Type: application/json")...)
	require.Equal(t, want, rec.Code, at)
	require.Equal(t, "no-store", rec.Header().Get("Cache-Control"), at)
	require.Equal(t, "nosniff", rec.Header().Get("X-Content-Type-Options"), at)
	require.Empty(t, rec.Header().Get("Access-Control-Allow-Origin"), at)
	require.NotContains(t, rec.Body.String(), token, at)
	require.NotContains(t, rec.Body.String(), registerToken, at)
	if want < 300 {
		return rec
	}
	require.Zero(t, o.made(), at)
	require.Equal(t, want == http.StatusUnauthorized, rec.Header().Get("WWW-Authenticate") == `Bearer realm="lb"`, at)
	if want != http.StatusMethodNotAllowed {
		allow = ""
	}
	require.Equal(t, allow, rec.Header().Get("Allow"), at)
	require.Equal(t, map[int]string{
		http.StatusMisdirectedRequest: "misdirected_host", http.StatusForbidden: "forbidden",
		http.StatusUnauthorized: "unauthorized", http.StatusMethodNotAllowed: "method_not_allowed",
	}[want], requireProblem(t, rec, want), at)
	return rec
}

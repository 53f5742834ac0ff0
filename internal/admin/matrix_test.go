package admin

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// rows are the paths of the handler, with what each of them is.
var rows = map[string]struct {
	open  bool
	allow string
}{
	"/livez":      {open: true, allow: "GET, HEAD"},
	"/readyz":     {open: true, allow: "GET, HEAD"},
	"/health":     {allow: "GET, HEAD"},
	"/instances":  {allow: "GET, HEAD"},
	"/config":     {allow: "GET, HEAD"},
	"/metrics":    {allow: "GET, HEAD"},
	"/audit":      {allow: "GET, HEAD"},
	"/fanout":     {allow: "GET, HEAD"},
	fanoutPattern: {allow: "GET, HEAD"},

	"/instances/{id}/drain":       {allow: "POST"},
	"/instances/{id}/maintenance": {allow: "POST"},
	"/instances/{id}/enable":      {allow: "POST"},

	"/fanout/{id}/deliveries/{backend}/retry": {allow: "POST"},
	"/fanout/{id}/deliveries/{backend}/skip":  {allow: "POST"},
}

// credentials are the ways to send the token, or something else.
var credentials = map[string]struct {
	fields []string
	right  bool
}{
	"none":               {nil, false},
	"right":              {[]string{"Authorization: Bearer " + token}, true},
	"scheme in any case": {[]string{"Authorization: bEARER  " + token}, true},
	"wrong":              {[]string{"Authorization: Bearer s3cret-canarY"}, false},
	"shorter":            {[]string{"Authorization: Bearer s3cret-canar"}, false},
	"longer":             {[]string{"Authorization: Bearer " + token + "x"}, false},
	"empty":              {[]string{"Authorization: Bearer "}, false},
	"scheme only":        {[]string{"Authorization: Bearer"}, false},
	"no scheme":          {[]string{"Authorization: " + token}, false},
	"basic":              {[]string{"Authorization: Basic OnMzY3JldC1jYW5hcnk="}, false},
	"basic with token":   {[]string{"Authorization: Basic " + token}, false},
	"right, twice":       {[]string{"Authorization: Bearer " + token, "Authorization: Bearer " + token}, false},
	"right, in a list":   {[]string{"Authorization: Bearer x, Bearer " + token}, false},
	"in another field":   {[]string{"Proxy-Authorization: Bearer " + token, "Cookie: token=" + token}, false},
}

// origins are what browsers tell of the page that asks, and what others send.
var origins = map[string]struct {
	fields  []string
	foreign bool
}{
	"no page":           {nil, false},
	"lb's own":          {[]string{"Origin: http://localhost:9901", "Sec-Fetch-Site: same-origin"}, false},
	"another site":      {[]string{"Origin: https://evil.example", "Sec-Fetch-Site: cross-site"}, true},
	"another port":      {[]string{"Origin: http://localhost:3000", "Sec-Fetch-Site: same-site"}, true},
	"sandboxed":         {[]string{"Origin: null"}, true},
	"without an Origin": {[]string{"Sec-Fetch-Site: cross-site"}, true},
}

var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "get", "post", "X"}

// TestMatrix asks for every path of the handler, with every method, every state
// of the credential and from every origin. A path without a row fails.
func TestMatrix(t *testing.T) {
	for _, secret := range []string{"", token} {
		o := new(operator)
		h := New(Options{Token: secret}, healthy(), o, metricsStub)
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
						case from.foreign:
							want = http.StatusForbidden
						case secret != "" && !row.open && !c.right:
							want = http.StatusUnauthorized
						case slices.Contains(strings.Split(row.allow, ", "), method):
							want = http.StatusOK
						}
						at := fmt.Sprintf("token %q: %s %s, credential %s, origin %s", secret, method, path, credential, origin)
						requireAnswer(t, h, o, method, path, slices.Concat(c.fields, from.fields), want, row.allow, at)
					}
				}
			}
		}
	}
}

// requireAnswer asks once, and checks the answer, what it gives away, and that
// nothing has changed unless it was allowed.
func requireAnswer(t *testing.T, h *Handler, o *operator, method, path string, fields []string, want int, allow, at string) {
	t.Helper()
	o.changes, o.asked = nil, nil
	rec := ask(t, h, method+" "+strings.NewReplacer("{id}", "server1", "{backend}", "server2").Replace(path), fields...)
	require.Equal(t, want, rec.Code, at)
	require.Equal(t, "no-store", rec.Header().Get("Cache-Control"), at)
	require.Equal(t, "nosniff", rec.Header().Get("X-Content-Type-Options"), at)
	require.Empty(t, rec.Header().Get("Access-Control-Allow-Origin"), at)
	require.NotContains(t, rec.Body.String(), token, at)
	if want == http.StatusOK && method == http.MethodPost {
		require.Equal(t, 1, len(o.changes)+len(o.asked), at)
		return
	}
	require.Empty(t, o.changes, at)
	require.Empty(t, o.asked, at)
	switch want {
	case http.StatusForbidden:
		require.Equal(t, "forbidden", requireProblem(t, rec, want), at)
		require.Empty(t, rec.Header().Get("Allow"), at)
	case http.StatusUnauthorized:
		require.Equal(t, "unauthorized", requireProblem(t, rec, want), at)
		require.Equal(t, `Bearer realm="lb"`, rec.Header().Get("WWW-Authenticate"), at)
		require.Empty(t, rec.Header().Get("Allow"), at)
	case http.StatusMethodNotAllowed:
		require.Equal(t, "method_not_allowed", requireProblem(t, rec, want), at)
		require.Equal(t, allow, rec.Header().Get("Allow"), at)
	}
}

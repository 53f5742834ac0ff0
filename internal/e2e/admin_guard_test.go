package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Promise: without the token nobody learns anything from the paths for
// operators, and nobody changes anything, whatever the method and however the
// path is written.
func TestAdminTokenGuardsEveryMethodAndSpelling(t *testing.T) {
	t.Parallel()
	const token = "canary-51ab07"
	one, two := always(http.StatusOK), always(http.StatusOK)
	d := start(t, strings.Replace(proxyAll("", backend(t, one), backend(t, two)),
		`admin: { address: "127.0.0.1:0" }`, `admin: { address: "127.0.0.1:0", token_env: ADMIN_TOKEN }`, 1),
		"ADMIN_TOKEN="+token)
	right := []string{"Authorization", "Bearer " + token}
	seen := func() string { // with the token: all that an operator could have changed
		return d.do(http.MethodGet, d.Admin+"/instances", nil, right...).Body +
			d.do(http.MethodGet, d.Admin+"/audit", nil, right...).Body
	}
	require.Equal(t, http.StatusOK, d.operate("drain", "b2", right...).Status) // so that enable would change something
	before := seen()
	require.Contains(t, before, `"state":"draining"`)
	require.Contains(t, before, `"target":"main/b2"`)

	const refused, unclean = http.StatusUnauthorized, http.StatusBadRequest
	for path, want := range map[string]int{
		"/audit": refused, "/audit?limit=1": refused, "/audit/": refused, "/AUDIT": refused, "/%61udit": refused,
		"//audit": unclean, "/./audit": unclean, "/livez/../audit": unclean, "/livez/%2e%2e/audit": unclean, "/audit%2f": unclean,

		"/instances/b1/drain": refused, "/instances/b1/maintenance": refused, "/instances/b2/enable": refused,
		"/instances/b1/drain?pool=main": refused, "/instances/b1/drain?token=" + token: refused,
		"/instances/b1/drain/": refused, "/instances/b1/Drain": refused, "/Instances/b1/drain": refused,
		"/instances/b1/%64rain": refused, "/instances/%62%31/drain": refused, "/%69nstances/b1/drain": refused,
		"/instances/b1/drain;x": refused, "/instances/b1/drain%20": refused, "/livez/instances/b1/drain": refused,
		"/instances/nobody/drain": refused, "/instances/b1/stop": refused, "/instances/b1": refused, "/instances/": refused,
		"//instances/b1/drain": unclean, "/instances//b1/drain": unclean, "/instances/b1//drain": unclean,
		"/instances/b1/./drain": unclean, "/instances/x/../b1/drain": unclean, "/livez/../instances/b1/drain": unclean,
		"/livez/%2E%2E/instances/b1/drain": unclean, "/instances/b1%2Fdrain": unclean, "/instances%2fb1%2fdrain": unclean,
		`/instances\b1\drain`: unclean, "/instances/b1%5Cdrain": unclean, "/instances/b1/drain%00": unclean,
	} {
		for credential, fields := range map[string][]string{
			"none": nil, "wrong": {"Authorization", "Bearer canary"}, "basic": {"Authorization", "Basic " + token},
			"twice":           slices.Concat(right, right),
			"elsewhere":       {"Proxy-Authorization", "Bearer " + token, "Cookie", "token=" + token, "X-Token", token},
			"with a name":     {"X-LB-Operator", "alice"},
			"another method":  {"X-HTTP-Method-Override", "GET"},
			"another address": {"X-Original-URL", "/livez", "X-Rewrite-URL", "/livez", "X-Forwarded-For", "127.0.0.1"},
		} {
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "post"} {
				at := fmt.Sprintf("%s %s, credential %s", method, path, credential)
				a := d.do(method, d.Admin+path, nil, fields...)
				require.Equal(t, want, a.Status, at)
				require.Empty(t, a.Header.Get("Allow"), at)
				require.NotContains(t, a.Body, "main", at)
				if want == refused {
					require.Equal(t, `Bearer realm="lb"`, a.Header.Get("WWW-Authenticate"), at)
				}
			}
		}
		require.Equal(t, before, seen(), "after %s", path)
	}

	// With the token each path takes its methods, and in any clean spelling.
	for path, allow := range map[string]string{
		"/audit": "GET, HEAD", "/instances/b1/drain": "POST", "/instances/b1/maintenance": "POST", "/instances/b1/enable": "POST",
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "post"} {
			a := d.do(method, d.Admin+path, nil, right...)
			if strings.Contains(allow, method) {
				require.Equal(t, http.StatusOK, a.Status, "%s %s", method, path)
				continue
			}
			require.Equal(t, http.StatusMethodNotAllowed, a.Status, "%s %s", method, path)
			require.Equal(t, allow, a.Header.Get("Allow"), path)
		}
	}
	for path, want := range map[string]int{
		"/instances/%62%31/%64rain": http.StatusOK, "/instances/b1/drain?pool=main": http.StatusOK,
		"/instances/b1/drain/": http.StatusNotFound, "/instances/b1/Drain": http.StatusNotFound, "/instances/b1": http.StatusNotFound,
		"/instances/nobody/drain": http.StatusNotFound, "/instances/b1/drain?pol=main": http.StatusBadRequest,
		"/instances/b1%2Fdrain": http.StatusBadRequest, "/instances/b1//drain": http.StatusBadRequest,
	} {
		require.Equal(t, want, d.do(http.MethodPost, d.Admin+path, nil, right...).Status, path)
	}
	d.stop()
	require.NotContains(t, d.log()+d.stdout.String(), token)
}

// Promise: OPTIONS *, which net/http would answer itself, is guarded like any
// other request to the listeners for operators.
func TestOptionsOfTheWholeServerIsGuarded(t *testing.T) {
	t.Parallel()
	d := start(t, proxyAll("", backend(t, always(http.StatusOK)))+`metrics: { address: "127.0.0.1:0" }`)
	admin := strings.TrimPrefix(d.Admin, "http://")
	for _, c := range []struct {
		address, host string
		status        int
	}{
		{admin, admin, http.StatusBadRequest},
		{admin, "evil.example", http.StatusMisdirectedRequest},
		{d.address("metrics"), admin, http.StatusNotFound},
	} {
		res, err := d.client.Do(&http.Request{
			Method: http.MethodOptions, Host: c.host, URL: &url.URL{Scheme: "http", Host: c.address, Opaque: "*"},
		})
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, c.status, res.StatusCode, "%s at %s", c.host, c.address)
	}
}

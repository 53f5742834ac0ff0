package admin

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHosts(t *testing.T) {
	h := New(Options{Hosts: []string{"LB.internal", "lb2:9901", "fd00::1", "[fd00::2]:9901", "10.0.0.1", "", ":9901"}},
		healthy(), new(operator), metricsStub)
	for host, ok := range map[string]bool{
		"localhost": true, "localhost:9901": true, "LocalHost:1": true, "localhost.:9901": true,
		"127.0.0.1": true, "127.0.0.1:9901": true, "127.9.9.9": true,
		"[::1]": true, "[::1]:9901": true, "[0:0:0:0:0:0:0:1]": true, "[::ffff:127.0.0.1]:9901": true,
		"lb.internal": true, "lb.INTERNAL:80": true, "lb2": true, "lb2:1": true,
		"[fd00::1]:9901": true, "[FD00:0::1]": true, "[fd00::2]": true, "10.0.0.1:9901": true, "[::ffff:10.0.0.1]": true,

		"": false, ":9901": false, "evil.example": false, "evil.example:9901": false,
		"localhost.evil.example": false, "127.0.0.1.evil.example": false, "lb.internal.evil.example": false,
		"notlocalhost": false, "evil.example:localhost": false, "[fd00::3]": false,
		"10.0.0.2": false, "0.0.0.0": false, "[::]": false, "0": false, "2130706433": false, "127.1": false, "0x7f.1": false,
		"169.254.169.254": false,
	} {
		rec := ask(t, h, "GET /livez", "Host: "+host)
		if ok {
			require.Equal(t, 200, rec.Code, "%q", host)
			continue
		}
		require.Equal(t, "misdirected_host", requireProblem(t, rec, 421), "%q", host)
	}

	// The authority of an absolute target is the host, whatever Host says.
	require.Equal(t, 421, ask(t, h, "GET http://evil.example/livez", "Host: localhost").Code)
	require.Equal(t, 200, ask(t, h, "GET http://localhost:9901/livez", "Host: localhost").Code)
}

func TestOtherOrigins(t *testing.T) {
	h := New(Options{}, healthy(), new(operator), metricsStub)
	for _, c := range []struct {
		ok     bool
		fields []string
	}{
		{true, nil},
		{true, []string{"Origin: http://localhost:9901"}},
		{true, []string{"Origin: http://LOCALHOST:9901"}},
		{true, []string{"Origin: http://localhost:9901", "Sec-Fetch-Site: same-origin"}},
		{true, []string{"Sec-Fetch-Site: none"}},
		{false, []string{"Origin: http://evil.example"}},
		{false, []string{"Origin: http://localhost:3000"}},
		{false, []string{"Origin: http://localhost"}},
		{false, []string{"Origin: http://localhost:9901.evil.example"}},
		{false, []string{"Origin: http://localhost:9901@evil.example"}},
		{false, []string{"Origin: null"}},
		{false, []string{"Origin: localhost:9901"}},
		{false, []string{"Origin: "}},
		{false, []string{"Origin: http://localhost:9901", "Origin: http://evil.example"}},
		{false, []string{"Sec-Fetch-Site: cross-site"}},
		{false, []string{"Sec-Fetch-Site: Cross-Site"}},
		{false, []string{"Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"}},
		{false, []string{"Origin: http://localhost:9901", "Sec-Fetch-Site: cross-site"}},
	} {
		for _, method := range []string{"GET", "POST", "OPTIONS"} {
			rec := ask(t, h, method+" /livez", c.fields...)
			if c.ok {
				require.NotEqual(t, 403, rec.Code, "%s %q", method, c.fields)
				continue
			}
			require.Equal(t, "forbidden", requireProblem(t, rec, 403), "%s %q", method, c.fields)
			require.Empty(t, rec.Header().Get("Access-Control-Allow-Origin"))
		}
	}
}

func TestUncleanPaths(t *testing.T) {
	h := New(Options{Token: token}, healthy(), new(operator), metricsStub)
	for _, path := range []string{
		"/config/../livez", "/livez/..", "/..", "/./config", "/livez/.", "/%2e%2e/config", "/.%2E/config", "/%2e",
		"//config", "/livez//config", "/config//", "//localhost/config",
		"/livez%2fconfig", "/livez%2Fconfig", "/%2Fconfig", "/livez%2f..%2fconfig", `/x%2f"y`,
		"/instances/a%2fb/drain", "/instances/a%2Fdrain", "/instances/../drain", "/instances/%2e%2e/drain", "/instances//drain",
		`/livez\config`, "/livez%5cconfig", "/..%5Cconfig", "/livez%00", "*",
		"http://localhost:9901", "http://localhost:9901//config",
	} {
		for _, fields := range [][]string{nil, {"Authorization: Bearer " + token}} {
			rec := ask(t, h, "GET "+path, fields...)
			require.Equal(t, "bad_request", requireProblem(t, rec, 400), path)
			require.Empty(t, rec.Header().Get("Location"), path)
		}
	}
	require.Equal(t, 400, ask(t, h, "CONNECT localhost:9901").Code)
}

func TestOrderOfChecks(t *testing.T) {
	h := New(Options{Token: token}, healthy(), new(operator), metricsStub)
	host, origin, auth := "Host: evil.example", "Origin: http://evil.example:1", "Authorization: Bearer "+token
	require.Equal(t, 421, ask(t, h, "X //nothing", host, origin).Code)
	require.Equal(t, 403, ask(t, h, "X //nothing", origin).Code)
	require.Equal(t, 400, ask(t, h, "X //nothing").Code)
	require.Equal(t, 401, ask(t, h, "X /nothing").Code)
	require.Equal(t, 404, ask(t, h, "X /nothing", auth).Code)
	require.Equal(t, 405, ask(t, h, "X /config", auth).Code)
}

func TestRefusalsAreLoggedWithoutCredentials(t *testing.T) {
	var logged []string
	h := New(Options{Token: token, Logger: func(msg string, kv ...any) {
		require.Zero(t, len(kv)%2)
		logged = append(logged, fmt.Sprintln(msg, kv))
	}}, healthy(), new(operator), metricsStub)

	ask(t, h, "GET /config?token=canary-query", "Authorization: Bearer canary-wrong")
	ask(t, h, "GET /config", "Authorization: Bearer "+token) // fine: nothing to log
	ask(t, h, "GET /"+strings.Repeat("x", 100_000))
	require.Len(t, logged, 2)
	require.Contains(t, logged[0], "unauthorized")
	require.Contains(t, logged[0], "/config")
	for _, l := range logged {
		require.NotContains(t, l, "canary")
		require.Less(t, len(l), 1000)
	}
}

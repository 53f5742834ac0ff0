package app

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"lb/internal/backend"
	"lb/internal/config"
	"lb/internal/exchange"
	"lb/internal/outcome"
	"lb/internal/pool"
)

func TestCodeOf(t *testing.T) {
	noRoute := &outcome.Error{Code: outcome.NoRoute}
	for _, c := range []struct {
		class   outcome.Class
		failure *outcome.Error
		want    outcome.Code
	}{
		{outcome.Undecided, nil, ""},
		{outcome.Success, nil, ""},
		{outcome.Failure, nil, ""}, // the backend's own 500 is no error of lb's
		{outcome.Refused, noRoute, outcome.NoRoute},
		{outcome.Timeout, &outcome.Error{Code: outcome.BackendTimeout}, outcome.BackendTimeout},
		{outcome.Cut, nil, outcome.BackendReset},
		{outcome.Cut, noRoute, outcome.NoRoute},
		{outcome.ClientGone, nil, outcome.ClientClosed},
		{outcome.ClientGone, noRoute, outcome.ClientClosed}, // it has not seen the answer
	} {
		x := &exchange.Exchange{Failure: c.failure, Outcome: outcome.Outcome{Class: c.class}}
		require.Equal(t, c.want, codeOf(x), "%s %v", c.class, c.failure)
	}
}

func TestPrintable(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "/a b?c=%20": "/a b?c=%20", "\x1b[2J": `\x1b[2J`, "a\r\nb": `a\r\nb`, "\x00\x7f": `\x00\x7f`,
		`"\`: `\"\\`, "é": `\u00e9`, "\u202e": `\u202e`, "\xff\xfe": `\xff\xfe`, "\u009b": `\u009b`,
	} {
		require.Equal(t, want, printable(s))
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		s     string
		limit int
		want  string
	}{
		{"", 3, ""}, {"ab", 3, "ab"}, {"abc", 3, "abc"}, {"abcd", 3, "abc"}, {"abc", 0, ""},
	} {
		require.Equal(t, c.want, cut(c.s, c.limit))
	}
}

// finished is a request that went through a backend.
func finished() *exchange.Exchange {
	x := &exchange.Exchange{
		Snapshot: &exchange.Snapshot{Generation: 3},
		Route:    &exchange.Route{Name: "r", Pool: &pool.Pool{Name: "p"}},
		Method:   "GET", Host: "h", Client: netip.MustParseAddr("2001:db8::1"),
		Status: 200, BytesIn: 1, BytesOut: 2, Attempts: 2, Took: 1500 * time.Microsecond,
		Backend: &backend.Backend{ID: "b"},
	}
	x.Target.RawPath, x.Forward.RequestID = "/x", "id"
	return x
}

// accessLines returns what is written of these requests.
func accessLines(t testing.TB, change func(*config.Log), all ...*exchange.Exchange) []string {
	t.Helper()
	var c config.Log
	c.SetDefaults()
	change(&c)
	var out bytes.Buffer
	logs, err := NewLogs(c, &out, &bytes.Buffer{})
	require.NoError(t, err)
	for _, x := range all {
		logs.access.write(x)
	}
	logs.Close()
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
}

func TestAccessLine(t *testing.T) {
	line := accessLines(t, func(*config.Log) {}, finished())[0]
	var fields map[string]any
	require.NoError(t, json.Unmarshal([]byte(line), &fields))
	require.NotEmpty(t, fields["time"])
	delete(fields, "time")
	require.Equal(t, map[string]any{
		"request_id": "id", "client": "2001:db8::1", "method": "GET", "host": "h", "path": "/x", "status": 200.0,
		"bytes_in": 1.0, "bytes_out": 2.0, "duration_ms": 1.5, "route": "r", "pool": "p", "backend": "b",
		"attempts": 2.0, "queue_ms": 0.0, "generation": 3.0, "code": "",
	}, fields)
}

// The line of a write leads to its deliveries.
func TestAccessLineOfAWrite(t *testing.T) {
	x := finished()
	x.FanoutID, x.Acked = "ID", "2/3"
	var fields map[string]any
	require.NoError(t, json.Unmarshal([]byte(accessLines(t, func(*config.Log) {}, x)[0]), &fields))
	require.Equal(t, []any{"ID", "2/3"}, []any{fields["fanout"], fields["acked"]})
	require.Contains(t, accessLines(t, func(c *config.Log) { c.Format = "console" }, x)[0], "  2/3 backends, fan-out ID  ")
}

// A request that nobody took, over a unix socket, has a line too; and what a
// client sends is bounded.
func TestAccessLineOfARefusal(t *testing.T) {
	x := &exchange.Exchange{Snapshot: new(exchange.Snapshot), Failure: &outcome.Error{Code: outcome.NoRoute}, Status: 404}
	x.Method, x.Host = strings.Repeat("M", 1000), strings.Repeat("h", 1000)
	x.Target.RawPath = "/" + strings.Repeat("p", 9999)
	var fields map[string]any
	require.NoError(t, json.Unmarshal([]byte(accessLines(t, func(*config.Log) {}, x)[0]), &fields))
	require.Equal(t, []any{"", "", "", "", "no_route"}, []any{fields["client"], fields["route"], fields["pool"], fields["backend"], fields["code"]})
	require.Equal(t, []int{32, 256, 2048}, []int{len(fields["method"].(string)), len(fields["host"].(string)), len(fields["path"].(string))})
}

func TestAccessLineForPeople(t *testing.T) {
	odd := finished()
	odd.Target.RawPath, odd.Failure = "/\x1b[2J", &outcome.Error{Code: outcome.BackendReset}
	lines := accessLines(t, func(c *config.Log) { c.Format = "console" }, finished(), odd)
	require.Regexp(t, `^\d\d:\d\d:\d\d\.\d{3}\t200 GET /x  b, attempt 2  1\.5 ms$`, lines[0])
	require.Regexp(t, `\t200 GET /\\x1b\[2J  b, attempt 2  backend_reset  1\.5 ms$`, lines[1])
}

// Sampling leaves requests out that went well, and no others.
func TestAccessSampling(t *testing.T) {
	failed := finished()
	failed.Failure = &outcome.Error{Code: outcome.BackendReset}
	lines := accessLines(t, func(c *config.Log) { c.Access.Sample = 0 }, finished(), failed, finished())
	require.Len(t, lines, 1)
	require.Contains(t, lines[0], "backend_reset")
	require.Equal(t, []string{""}, accessLines(t, func(c *config.Log) { c.Access.Enabled = false }, failed))
}

// What net/http prints is about single connections, but for two things.
func TestLevelsOfNetHTTP(t *testing.T) {
	core, seen := observer.New(zap.DebugLevel)
	l := netLog(zap.New(core))
	for _, c := range []struct{ text, level string }{
		{"http: TLS handshake error from x", "debug"},
		{"http: panic serving 1.2.3.4:5: boom", "error"},
		{"http: Accept error: too many open files; retrying in 5ms", "warn"},
	} {
		l.Print(c.text)
		entries := seen.TakeAll()
		require.Len(t, entries, 1)
		require.Equal(t, []string{c.text, c.level}, []string{entries[0].Message, entries[0].Level.String()})
	}
}

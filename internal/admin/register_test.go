package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/outcome"
)

const registerToken = "r3gister-canary"

// registrar writes down what it is told, and answers as it is told.
type registrar struct {
	said    []string // with every word of it
	created bool
	refusal error
}

func (r *registrar) RegisterInstance(_ context.Context, body []byte, by string) (Registered, bool, error) {
	r.said = append(r.said, fmt.Sprintf("register %q by %q", body, by))
	return Registered{InstanceID: "w1", Pool: "parallel", TTL: "1m30s", Heartbeat: "30s", Generation: 7}, r.created, r.refusal
}

func (r *registrar) UnregisterInstance(_ context.Context, u Unregistration) error {
	r.said = append(r.said, fmt.Sprintf("unregister %q from %q, force %t by %q", u.ID, u.Pool, u.Force, u.By))
	return r.refusal
}

// desk returns a handler that lets r register.
func desk(r *registrar) *Handler {
	return New(Options{Registrar: r}, healthy(), new(operator), metricsStub)
}

// withBody is the fields of a request that sends a JSON document, and it.
func withBody(body string, fields ...string) []string {
	return append(fields, "Host: localhost", "Content-Type: application/json", fmt.Sprintf("Content-Length: %d", len(body)), "", body)
}

func TestRegister(t *testing.T) {
	for created, status := range map[bool]int{true: 201, false: 200} {
		r := &registrar{created: created}
		rec := askFrom(t, desk(r), peerAddress, "POST /register", withBody(`{"pool":"parallel"}`, "X-LB-Operator: w")...)
		require.Equal(t, status, rec.Code, rec.Body)
		require.Equal(t, "application/json", rec.Header().Get("Content-Type"))
		require.JSONEq(t, `{"instanceId":"w1","pool":"parallel","ttl":"1m30s","heartbeat":"30s","generation":7}`, rec.Body.String())
		require.Equal(t, []string{`register "{\"pool\":\"parallel\"}" by "w (203.0.113.7)"`}, r.said)
	}
}

func TestUnregister(t *testing.T) {
	for path, want := range map[string]string{
		"/w1":                          `"w1" from "", force false`,
		"/w1?force=false":              `"w1" from "", force false`,
		"/w1?force=true":               `"w1" from "", force true`,
		"/w1?pool=a%26b+c&force=true":  `"w1" from "a&b c", force true`,
		"/10.0.0.1:8080":               `"10.0.0.1:8080" from "", force false`,
		"/[fd00::1]:80":                `"[fd00::1]:80" from "", force false`,
		"/%5Bfd00::1%5D%3A80?pool=api": `"[fd00::1]:80" from "api", force false`,
		"/a%20b%25%3f":                 `"a b%?" from "", force false`,
		"/%252Fx":                      `"%2Fx" from "", force false`,
		"/{instanceId}":                `"{instanceId}" from "", force false`,
		"/unregister":                  `"unregister" from "", force false`,
	} {
		r := new(registrar)
		rec := askFrom(t, desk(r), peerAddress, "DELETE /unregister"+path)
		require.Equal(t, 204, rec.Code, "%s: %s", path, rec.Body)
		require.Empty(t, rec.Body.String())
		require.Equal(t, []string{"unregister " + want + ` by "203.0.113.7"`}, r.said)
	}
}

func TestUnregistrationsThatAreRefused(t *testing.T) {
	for path, code := range map[string]string{
		"/w1?force=1": "bad_request", "/w1?force=TRUE": "bad_request", "/w1?force": "bad_request", "/w1?force=": "bad_request",
		"/w1?force=true&force=true": "bad_request", "/w1?Force=true": "bad_request", "/w1?pool=": "bad_request", "/w1?id=w2": "bad_request",
		"/w1?force=" + strings.Repeat("x", 5000): "bad_request",
		"/a%2Fb":                                 "bad_request", "/..": "bad_request", "/%2e%2e": "bad_request", "//w1": "bad_request", `/a\b`: "bad_request",
		"": "not_found", "/": "not_found", "/w1/": "not_found", "/w1/x": "not_found",
	} {
		r := new(registrar)
		rec := ask(t, desk(r), "DELETE /unregister"+path)
		require.Equal(t, code, requireProblem(t, rec, outcome.Code(code).Status()), path)
		require.Less(t, rec.Body.Len(), 1000)
		require.Empty(t, r.said, path)
	}
	r := new(registrar)
	require.Equal(t, 400, ask(t, desk(r), "DELETE /unregister/w1", withBody("{}")...).Code)
	require.Equal(t, 400, ask(t, desk(r), "DELETE /unregister/w1", "X-LB-Operator: zoë").Code)
	require.Empty(t, r.said)
}

func TestRegistrationsThatAreRefusedUnread(t *testing.T) {
	const head = "Host: localhost"
	for say, fields := range map[string][]string{
		`no parameter \"force\"`:                    withBody("{}"), // asked for below
		"X-LB-Operator":                             withBody("{}", "X-LB-Operator: a\tb"),
		"Content-Type: application/json, none":      {head, "Content-Length: 2", "", "{}"},
		"Content-Type: application/json, empty":     {head, "Content-Type:", "Content-Length: 2", "", "{}"},
		"Content-Type: application/json, text":      {head, "Content-Type: text/plain", "Content-Length: 2", "", "{}"},
		"Content-Type: application/json, form":      {head, "Content-Type: application/x-www-form-urlencoded", "Content-Length: 2", "", "{}"},
		"Content-Type: application/json, both":      {head, "Content-Type: application/json, text/plain", "Content-Length: 2", "", "{}"},
		"Content-Type: application/json, twice":     {head, "Content-Type: application/json", "Content-Type: application/json", "Content-Length: 2", "", "{}"},
		"Content-Type: application/json, longer":    {head, "Content-Type: application/json-patch+json", "Content-Length: 2", "", "{}"},
		"Content-Type: application/json, parameter": {head, "Content-Type: text/plain; application/json", "Content-Length: 2", "", "{}"},
		"Content-Type: application/json, utf-16":    {head, "Content-Type: application/json; charset=utf-16", "Content-Length: 2", "", "{}"},
		"broke off, chunks":                         {head, "Content-Type: application/json", "Transfer-Encoding: chunked", "", "2", "{}"},
		"malformed, chunks":                         {head, "Content-Type: application/json", "Transfer-Encoding: chunked", "", "nonsense"},
		"broke off, length":                         {head, "Content-Type: application/json", "Content-Length: 9", "", "{}"},
	} {
		line := "POST /register"
		if strings.Contains(say, "force") {
			line += "?force=true"
		}
		r := new(registrar)
		rec := ask(t, desk(r), line, fields...)
		require.Equal(t, "bad_request", requireProblem(t, rec, 400), say)
		words, _, _ := strings.Cut(say, ", ")
		require.Contains(t, rec.Body.String(), words, say)
		require.Empty(t, r.said, say)
	}
	for _, contentType := range []string{"application/json", "Application/JSON", "application/json; charset=utf-8", `application/json;charset="UTF-8"`} {
		r := new(registrar)
		rec := ask(t, desk(r), "POST /register", "Host: localhost", "Content-Type: "+contentType, "Content-Length: 2", "", "{}")
		require.Equal(t, 200, rec.Code, contentType)
	}
}

func TestSizeOfRegistrations(t *testing.T) {
	for size, status := range map[int]int{0: 200, MaxRegistrationBytes: 200, MaxRegistrationBytes + 1: 413, 1 << 20: 413} {
		body := strings.Repeat(" ", size)
		for _, fields := range [][]string{
			withBody(body),
			{"Host: localhost", "Content-Type: application/json", "Transfer-Encoding: chunked", "", fmt.Sprintf("%x", max(1, size)), body + strings.Repeat(" ", max(0, 1-size)), "0", ""},
		} {
			r := new(registrar)
			rec := ask(t, desk(r), "POST /register", fields...)
			require.Equal(t, status, rec.Code, size)
			if status == 413 {
				require.Equal(t, "body_too_large", requireProblem(t, rec, 413))
				require.Contains(t, rec.Body.String(), "64 KiB")
			}
			require.Equal(t, status == 200, len(r.said) == 1)
		}
	}
	// A length that is too large is refused before a byte of the body is wanted.
	r := new(registrar)
	require.Equal(t, 413, ask(t, desk(r), "POST /register", "Content-Type: application/json", "Content-Length: 65537").Code)
	require.Empty(t, r.said)
}

func TestErrorsOfTheRegistrar(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		code   string
		say    string
	}{
		{&outcome.Error{Code: outcome.RegistrationInvalid, Detail: "see errors",
			Fields: []outcome.FieldError{{Field: "health.interval", Detail: "100ms to 24h"}}}, 422, "invalid_registration",
			`"errors":[{"field":"health.interval","detail":"100ms to 24h"}]`},
		{&outcome.Error{Code: outcome.RegistrationDisabled, Detail: "the pool takes none"}, 403, "registration_disabled", "takes none"},
		{&outcome.Error{Code: outcome.AddressNotAllowed, Detail: "169.254.0.0/16 is link-local"}, 403, "address_not_allowed", "link-local"},
		{&outcome.Error{Code: outcome.InstanceExists, Detail: "at a:1"}, 409, "instance_exists", "at a:1"},
		{&outcome.Error{Code: outcome.ProcedureExists, Detail: "w1 has it"}, 409, "procedure_already_exists", "w1 has it"},
		{&outcome.Error{Code: outcome.OtherPolicy, Detail: "single"}, 409, "procedure_exists_with_different_invocation_policy", "single"},
		{&outcome.Error{Code: outcome.InstanceNotFound, Detail: "none"}, 404, "instance_not_found", "none"},
		{&outcome.Error{Code: outcome.AmbiguousInstance, Detail: "in a, b"}, 409, "ambiguous_instance", "in a, b"},
		{&outcome.Error{Code: outcome.Overloaded, Detail: "registration.max_instances"}, 503, "overloaded", "max_instances"},
		{fmt.Errorf("wrapped: %w", &outcome.Error{Code: outcome.StorageUnavailable, Detail: "nothing has changed", Err: errors.New("canary-cause")}), 503, "storage_unavailable", "nothing has"},
		{errors.New("canary-cause"), 500, "internal_error", "log"},
	} {
		var logged string
		h := New(Options{Registrar: &registrar{refusal: c.err}, Logger: func(msg string, kv ...any) { logged += fmt.Sprintln(msg, kv) }},
			healthy(), new(operator), metricsStub)
		for line, fields := range map[string][]string{"POST /register": withBody("{}"), "DELETE /unregister/w1": nil} {
			logged = ""
			rec := ask(t, h, line, fields...)
			require.Equal(t, c.code, requireProblem(t, rec, c.status), line)
			require.Contains(t, rec.Body.String(), c.say)
			require.NotContains(t, rec.Body.String(), "canary-cause")
			require.Equal(t, c.status == 503, rec.Header().Get("Retry-After") != "")
			require.Equal(t, 1, strings.Count(logged, "\n"), "one line a request: %s", logged)
		}
	}
}

func TestRegistrationIsOff(t *testing.T) {
	h := New(Options{Token: token}, healthy(), new(operator), metricsStub)
	for line, fields := range map[string][]string{"POST /register": withBody("{}"), "DELETE /unregister/w1": nil} {
		require.Equal(t, "unauthorized", requireProblem(t, ask(t, h, line, fields...), 401), line)
		rec := ask(t, h, line, append([]string{"Authorization: Bearer " + token}, fields...)...)
		require.Equal(t, "registration_disabled", requireProblem(t, rec, 403), line)
		require.Contains(t, rec.Body.String(), "registration.enabled")
	}
}

// The audit trail tells a worker's token from an operator's.
func TestWhoRegisters(t *testing.T) {
	for _, c := range []struct {
		admin, register, shown, want string
	}{
		{"", "", token, "203.0.113.7"},
		{token, "", token, "token, 203.0.113.7"},
		{token, registerToken, token, "token, 203.0.113.7"},
		{token, registerToken, registerToken, "registration token, 203.0.113.7"},
		{"", registerToken, registerToken, "registration token, 203.0.113.7"},
		{token, token, token, "token, 203.0.113.7"}, // one token for both is the operators'
	} {
		r := new(registrar)
		h := New(Options{Token: c.admin, RegistrationToken: c.register, Registrar: r}, healthy(), new(operator), metricsStub)
		rec := askFrom(t, h, peerAddress, "DELETE /unregister/w1", "Authorization: Bearer "+c.shown)
		require.Equal(t, 204, rec.Code, rec.Body)
		require.Contains(t, r.said[0], fmt.Sprintf("by %q", c.want))
	}
}

// A body that does not come ends with the server's time to read: the client is
// told, and nothing is registered.
func TestSlowRegistration(t *testing.T) {
	r := new(registrar)
	s := httptest.NewUnstartedServer(desk(r))
	s.Config.ReadTimeout = 50 * time.Millisecond
	s.Start()
	defer s.Close()
	for name, framing := range map[string]string{"length": "Content-Length: 9", "chunks": "Transfer-Encoding: chunked"} {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.Listener.Addr().String())
		require.NoError(t, err)
		_, err = io.WriteString(conn, "POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"+framing+"\r\n\r\n2\r\n{}")
		require.NoError(t, err)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		var doc struct{ Code, Detail string }
		require.NoError(t, json.NewDecoder(res.Body).Decode(&doc))
		require.NoError(t, res.Body.Close())
		require.NoError(t, conn.Close())
		require.Equal(t, 400, res.StatusCode, name)
		require.Equal(t, "bad_request", doc.Code)
		require.Contains(t, doc.Detail, "in time")
		require.True(t, res.Close, "what is left of the body is nobody's next request")
		require.Empty(t, r.said)
	}
}

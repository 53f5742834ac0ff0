package problem

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"lb/internal/outcome"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWrite(t *testing.T) {
	rec := httptest.NewRecorder()
	rec.Header().Set("Allow", "GET, HEAD")
	Write(rec, &outcome.Error{
		Code: outcome.MethodNotAllowed, Detail: "this path takes GET, HEAD",
		Err: errors.New("10.0.0.7:8080 is none of the client's business"),
	}, "0123456789abcdef")
	require.Equal(t, 405, rec.Code)
	require.Equal(t, `{"type":"urn:lb:error:method_not_allowed","title":"The method is not allowed here","status":405,`+
		`"detail":"this path takes GET, HEAD","code":"method_not_allowed","request_id":"0123456789abcdef"}`+"\n", rec.Body.String())
	require.Equal(t, http.Header{
		"Allow":          {"GET, HEAD"}, // what was set before stands
		"Content-Type":   {"application/problem+json"},
		"Content-Length": {strconv.Itoa(rec.Body.Len())},
		"X-LB-Error":     {"method_not_allowed"},
	}, rec.Header())
}

func TestWriteRetryAfter(t *testing.T) {
	for _, test := range []struct {
		code  outcome.Code
		after time.Duration
		want  string
	}{
		{outcome.NoBackend, 0, "1"},
		{outcome.NoBackend, time.Millisecond, "1"},
		{outcome.NoBackend, time.Second, "1"},
		{outcome.NoBackend, 1001 * time.Millisecond, "2"},
		{outcome.NoBackend, 30 * time.Second, "30"},
		{outcome.Overloaded, 0, "1"},
		{outcome.BackendTimeout, 5 * time.Second, ""},
		{outcome.BackendReset, 0, ""},
		{outcome.NoRoute, 0, ""},
	} {
		rec := httptest.NewRecorder()
		Write(rec, &outcome.Error{Code: test.code, RetryAfter: test.after}, "")
		require.Equal(t, test.want, rec.Header().Get("Retry-After"), "%s after %v", test.code, test.after)
	}
}

func TestWriteIsJSONWhateverTheDetail(t *testing.T) {
	for _, detail := range []string{"", `"quotes" and \`, "line\nbreak", "</script>", "\xff\xfe", "\x00"} {
		rec := httptest.NewRecorder()
		Write(rec, &outcome.Error{Code: outcome.BadRequest, Detail: detail}, "")
		var doc map[string]any
		require.NoError(t, json.Unmarshal(rec.Body.Bytes(), &doc), "%q", detail)
		require.EqualValues(t, 400, doc["status"])
		require.NotContains(t, doc, "request_id")
		require.NotContains(t, rec.Body.String(), "<", "nothing that a browser could take for markup")
	}
}

func TestWriteToHEAD(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		Write(w, &outcome.Error{Code: outcome.NoRoute, Detail: "none"}, "id")
	}))
	defer server.Close()
	client := server.Client()
	defer client.CloseIdleConnections()
	for _, method := range []string{http.MethodHead, http.MethodGet} { // on one connection
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL, nil)
		require.NoError(t, err)
		res, err := client.Do(req)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, 404, res.StatusCode)
		require.Equal(t, "no_route", res.Header.Get("X-LB-Error"))
		require.Positive(t, res.ContentLength)
	}
}

// What is wrong where stands behind everything else, and only where it is known.
func TestWriteFields(t *testing.T) {
	rec := httptest.NewRecorder()
	Write(rec, &outcome.Error{Code: outcome.RegistrationInvalid, Detail: "2 things are wrong", Fields: []outcome.FieldError{
		{Field: "health.interval", Detail: "must be from 100ms to 24h, and is 1ms"},
		{Field: "labels.</script>\xff", Detail: ""},
	}}, "")
	require.Equal(t, 422, rec.Code)
	require.Equal(t, `{"type":"urn:lb:error:invalid_registration","title":"The registration is not acceptable","status":422,`+
		`"detail":"2 things are wrong","code":"invalid_registration","errors":[`+
		`{"field":"health.interval","detail":"must be from 100ms to 24h, and is 1ms"},`+
		`{"field":"labels.\u003c/script\u003e\ufffd","detail":""}]}`+"\n", rec.Body.String())

	rec = httptest.NewRecorder()
	Write(rec, &outcome.Error{Code: outcome.RegistrationInvalid, Detail: "no JSON", Fields: []outcome.FieldError{}}, "")
	require.NotContains(t, rec.Body.String(), "errors")
}

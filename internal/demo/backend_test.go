package demo_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"lb/internal/demo"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	formType = "application/x-www-form-urlencoded"
	jsonType = "application/json"
)

// call sends one request; fields are name, value pairs.
func call(h http.Handler, method, target, body string, fields ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i < len(fields); i += 2 {
		r.Header.Set(fields[i], fields[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func register(h http.Handler, username, password string, fields ...string) *httptest.ResponseRecorder {
	return call(h, "POST", "/register", "username="+username+"&password="+password,
		append([]string{"Content-Type", formType}, fields...)...)
}

func state(t *testing.T, h http.Handler) demo.State {
	t.Helper()
	w := call(h, "GET", "/state", "")
	require.Equal(t, http.StatusOK, w.Code)
	var s demo.State
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &s))
	return s
}

func TestAnswers(t *testing.T) {
	tests := []struct {
		name                      string
		method, target, kind, raw string
		status                    int
		body                      string
	}{
		{"login", "GET", "/login", "", "", 200, "logged in on one\n"},
		{"login, head only", "HEAD", "/login", "", "", 200, ""},
		{"health", "GET", "/healthz", "", "", 200, "ok\n"},
		{"register a form", "POST", "/register", formType, "username=ada&password=x", 201, "registered on one\n"},
		{"register a form, charset named", "POST", "/register", formType + "; charset=utf-8", "username=ada&password=x", 201, ""},
		{"register a form, no type", "POST", "/register", "", "username=ada&password=x", 201, ""},
		{"register JSON", "POST", "/register", jsonType, `{"username":"ada","password":"x"}`, 201, ""},
		{"change the password of an unknown user", "POST", "/changePassword", formType, "username=eve&password=x", 201, "password changed on one\n"},
		{"no body", "POST", "/register", formType, "", 400, "username and password are required\n"},
		{"no password", "POST", "/register", formType, "username=ada", 400, ""},
		{"empty username", "POST", "/register", formType, "username=&password=x", 400, ""},
		{"credentials in the query only", "POST", "/register?username=ada&password=x", formType, "", 400, ""},
		{"bad form", "POST", "/register", formType, "username=%zz", 400, "malformed form\n"},
		{"username not UTF-8", "POST", "/register", formType, "username=%ff&password=x", 400, "the username is not UTF-8\n"},
		{"bad JSON", "POST", "/register", jsonType, `{"username":`, 400, "malformed JSON\n"},
		{"JSON of another shape", "POST", "/register", jsonType, `[]`, 400, ""},
		{"another type", "POST", "/register", "text/plain", "username=ada&password=x", 415, ""},
		{"unreadable type", "POST", "/register", ";", "username=ada&password=x", 415, ""},
		{"largest body", "POST", "/register", formType, "username=ada&password=" + strings.Repeat("x", 1<<20-22), 201, ""},
		{"body too large", "POST", "/register", formType, "username=ada&password=" + strings.Repeat("x", 1<<20-21), 413, ""},
		{"no such path", "GET", "/logout", "", "", 404, ""},
		{"root", "GET", "/", "", "", 404, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := demo.NewBackend(demo.Options{Name: "one"})
			var fields []string
			if tt.kind != "" {
				fields = []string{"Content-Type", tt.kind}
			}
			w := call(b, tt.method, tt.target, tt.raw, fields...)
			require.Equal(t, tt.status, w.Code, w.Body)
			if tt.body != "" {
				require.Equal(t, tt.body, w.Body.String())
			}
			users := state(t, b).Users
			if tt.status == http.StatusCreated {
				require.Len(t, users, 1)
			} else {
				require.Empty(t, users)
			}
		})
	}
}

func TestWrongMethod(t *testing.T) {
	b := demo.NewBackend(demo.Options{})
	for target, allow := range map[string]string{
		"/login": "GET, HEAD", "/register": "POST", "/changePassword": "POST", "/state": "GET, HEAD", "/healthz": "GET, HEAD",
	} {
		w := call(b, "DELETE", target, "")
		assert.Equal(t, http.StatusMethodNotAllowed, w.Code, target)
		assert.Equal(t, allow, w.Header().Get("Allow"), target)
	}
}

func TestStateDependsOnUsersOnly(t *testing.T) {
	one, two := demo.NewBackend(demo.Options{Name: "one"}), demo.NewBackend(demo.Options{Name: "two"})
	empty := state(t, one)
	require.NotNil(t, empty.Users, "an empty list, not null")
	require.Equal(t, empty.Hash, state(t, two).Hash)

	register(one, "ada", "x")
	register(one, "bob", "y")
	register(two, "bob", "old")
	require.NotEqual(t, state(t, one).Hash, state(t, two).Hash)
	register(two, "ada", "x")
	call(two, "POST", "/changePassword", `{"username":"bob","password":"y"}`, "Content-Type", jsonType)

	first, second := state(t, one), state(t, two)
	require.Equal(t, "one", first.Name)
	require.Equal(t, "two", second.Name)
	require.Equal(t, first.Users, second.Users)
	require.Equal(t, first.Hash, second.Hash)
	require.NotEqual(t, empty.Hash, first.Hash)
	require.Equal(t, []string{"ada", "bob"}, []string{first.Users[0].Username, first.Users[1].Username})
	require.NotContains(t, call(one, "GET", "/state", "").Body.String(), `"x"`, "no plain password")

	register(two, "ada", "z")
	require.NotEqual(t, first.Hash, state(t, two).Hash, "a password counts")
}

func TestEveryFifthIsDropped(t *testing.T) {
	b := demo.NewBackend(demo.Options{Name: "one", SkipSome: true})
	var codes []int
	for i := range 5 { // three requests that count each time, and some that do not
		call(b, "GET", "/state", "")
		call(b, "GET", "/healthz", "")
		call(b, "DELETE", "/login", "")
		codes = append(codes,
			call(b, "GET", "/login", "").Code,
			register(b, fmt.Sprint("r", i), "x").Code,
			call(b, "POST", "/changePassword", fmt.Sprintf("username=c%d&password=x", i)).Code)
	}
	require.Equal(t, []int{200, 201, 201, 200, 500, 201, 200, 201, 201, 500, 201, 201, 200, 201, 500}, codes)
	require.Len(t, state(t, b).Users, 10-2, "a dropped write has no effect")
}

func TestDroppedBody(t *testing.T) {
	b := demo.NewBackend(demo.Options{SkipSome: true})
	for range 4 {
		call(b, "GET", "/login", "")
	}
	w := register(b, "ada", "x", "Idempotency-Key", "k")
	require.Equal(t, http.StatusInternalServerError, w.Code)
	require.Equal(t, "request dropped by server\n", w.Body.String())
	require.Equal(t, http.StatusCreated, register(b, "ada", "x", "Idempotency-Key", "k").Code, "a dropped answer is not stored")
}

func TestNoneIsDroppedByDefault(t *testing.T) {
	b := demo.NewBackend(demo.Options{})
	for range 20 {
		require.Equal(t, http.StatusOK, call(b, "GET", "/login", "").Code)
	}
}

func TestIdempotencyKey(t *testing.T) {
	b := demo.NewBackend(demo.Options{Name: "one"})
	first := register(b, "ada", "x", "Idempotency-Key", "k")
	require.Equal(t, http.StatusCreated, first.Code)
	register(b, "ada", "y")
	after := state(t, b)

	again := register(b, "ada", "x", "Idempotency-Key", "k")
	require.Equal(t, first.Code, again.Code)
	require.Equal(t, first.Body.String(), again.Body.String())
	require.Equal(t, after, state(t, b), "not applied twice")

	require.Equal(t, http.StatusUnprocessableEntity, register(b, "ada", "z", "Idempotency-Key", "k").Code, "another body")
	require.Equal(t, http.StatusUnprocessableEntity,
		call(b, "POST", "/changePassword", "username=ada&password=x", "Idempotency-Key", "k").Code, "another path")
	require.Equal(t, after, state(t, b))

	require.Equal(t, http.StatusBadRequest, register(b, "", "x", "Idempotency-Key", "bad").Code)
	require.Equal(t, http.StatusBadRequest, register(b, "", "x", "Idempotency-Key", "bad").Code, "a refusal is an answer too")
}

func TestOldKeysMakeRoom(t *testing.T) {
	b := demo.NewBackend(demo.Options{})
	put := func(i int, password string) int {
		return register(b, "ada", password, "Idempotency-Key", fmt.Sprint(i)).Code
	}
	for i := range 10_001 { // wraps once: key 0 is gone, key 1 is the oldest
		require.Equal(t, http.StatusCreated, put(i, "x"))
	}
	require.Equal(t, http.StatusUnprocessableEntity, put(1, "y"), "still remembered")
	require.Equal(t, http.StatusCreated, put(0, "y"), "forgotten, and takes the place of key 1")
	require.Equal(t, http.StatusCreated, put(1, "y"))
	require.Equal(t, http.StatusUnprocessableEntity, put(10_000, "y"))
}

func TestUsersOutliveTheBackend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users.jsonl")
	before := demo.NewBackend(demo.Options{})
	require.NoError(t, before.KeepIn(path))
	register(before, "ada", "x")
	register(before, "bob", "y")
	register(before, "ada", "z")
	want := state(t, before)
	require.NoError(t, before.Close())

	after := demo.NewBackend(demo.Options{})
	require.NoError(t, after.KeepIn(path))
	require.Equal(t, want, state(t, after))
	require.Equal(t, http.StatusCreated, register(after, "eve", "x").Code)
	require.NoError(t, after.Close())

	require.Equal(t, http.StatusInternalServerError, register(after, "late", "x", "Idempotency-Key", "k").Code, "the file is closed")
	require.Len(t, state(t, after).Users, 3, "a user that is not in the file is not kept")
}

func TestKeepInRefuses(t *testing.T) {
	dir := t.TempDir()
	require.Error(t, demo.NewBackend(demo.Options{}).KeepIn(dir), "a directory")
	for name, text := range map[string]string{
		"no JSON":      "ada\n",
		"torn line":    `{"username":"ada","pass`,
		"short digest": `{"username":"ada","password_sha256":"00"}`,
		"no digest":    `{"username":"ada","password_sha256":"` + strings.Repeat("z", 64) + `"}`,
	} {
		path := filepath.Join(dir, "users.jsonl")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		require.ErrorContains(t, demo.NewBackend(demo.Options{}).KeepIn(path), path, name)
	}
}

func TestConcurrentWritesUnderOneKey(t *testing.T) {
	b := demo.NewBackend(demo.Options{})
	var wg sync.WaitGroup
	codes := make([]int, 50)
	for i := range codes {
		wg.Go(func() { codes[i] = register(b, fmt.Sprint("user", i), "x", "Idempotency-Key", "k").Code })
	}
	wg.Wait()
	created := 0
	for _, c := range codes {
		if c == http.StatusCreated {
			created++
		} else {
			require.Equal(t, http.StatusUnprocessableEntity, c)
		}
	}
	require.Equal(t, 1, created)
	require.Len(t, state(t, b).Users, 1)
}

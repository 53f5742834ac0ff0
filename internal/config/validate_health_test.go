package config

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestForeignKeys holds which values belong to which type of check: those that
// are refused for each, when all are set.
func TestForeignKeys(t *testing.T) {
	tests := map[string][]string{
		CheckHTTP: {"service", "command"},
		CheckTCP:  {"path", "method", "headers", "statuses", "body", "service", "command"},
		CheckGRPC: {"path", "method", "headers", "statuses", "body", "command"},
		CheckExec: {"path", "method", "port", "headers", "statuses", "body", "service"},
	}
	for kind, want := range tests {
		c := valid()
		h := check(c)
		h.Type, h.Path, h.Method, h.Port = kind, "/healthz", "POST", 9000
		h.Headers = []HeaderValue{{Name: "X-Check", Value: "1"}}
		h.Statuses, h.Body, h.Service, h.Command = "200", "ok", "users", []string{"check"}
		problems, _ := Validate(c, environment(nil))
		var got []string
		for _, p := range problems {
			require.Contains(t, p.Message, "and this is type "+kind)
			got = append(got, p.Path[len("pools[0].health."):])
		}
		require.Equal(t, want, got, kind)
	}
}

// TestChecksThatPass covers values at which somebody might stumble.
func TestChecksThatPass(t *testing.T) {
	tests := map[string]func(h *Health){
		"query":          func(h *Health) { h.Path = "/healthz?deep=1&x=%zz" },
		"escape":         func(h *Health) { h.Path = "/a%20b/%C3%A9" },
		"two slashes":    func(h *Health) { h.Path = "//healthz" },
		"HEAD":           func(h *Health) { h.Method = "HEAD" },
		"another method": func(h *Health) { h.Method = "M-SEARCH" },
		"empty value":    func(h *Health) { h.Headers = []HeaderValue{{Name: "Accept-Encoding"}} },
		"host":           func(h *Health) { h.Headers = []HeaderValue{{Name: "host", Value: "users.internal"}} },
		"blank value":    func(h *Health) { h.Headers = []HeaderValue{{Name: "User-Agent", Value: "lb check"}} },
		"multiline":      func(h *Health) { h.Body = `(?s)"status":\s*"(ok|warn)"` },
	}
	for name, change := range tests {
		c := valid()
		change(check(c))
		problems, warnings := Validate(c, environment(nil))
		require.Empty(t, problems, name)
		require.Empty(t, warnings, name)
	}
}

// TestPatternPlace tells where in a pattern its fault is, and nothing where that
// would be a guess.
func TestPatternPlace(t *testing.T) {
	require.Equal(t, ` at "z-a", byte 2`, fragment("[z-a]", "z-a"))
	require.Equal(t, ` at "**"`, fragment("a**b**", "**"))
	require.Empty(t, fragment("a(b", "a(b"))
	require.Empty(t, fragment("a", ""))
}

func TestParseStatuses(t *testing.T) {
	good := map[string][]StatusRange{
		"200":                 {{200, 200}},
		"200-399":             {{200, 399}},
		"200-299 , 401":       {{200, 299}, {401, 401}},
		"200,599,200-599":     {{200, 200}, {599, 599}, {200, 599}},
		"404-404,200-300,200": {{404, 404}, {200, 300}, {200, 200}},
	}
	for text, want := range good {
		got, err := ParseStatuses(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	bad := map[string]string{
		"":                   "is empty: no status could ever pass",
		" ":                  "is empty: no status could ever pass",
		",":                  `"" is neither a status from 200 to 599 nor a range of them`,
		"200,":               `"" is neither a status from 200 to 599 nor a range of them`,
		"200 -299":           `"200 -299" is neither a status from 200 to 599 nor a range of them`,
		"199":                `"199" is neither a status from 200 to 599 nor a range of them`,
		"600":                `"600" is neither a status from 200 to 599 nor a range of them`,
		"200-600":            `"200-600" is neither a status from 200 to 599 nor a range of them`,
		"-200":               `"-200" is neither a status from 200 to 599 nor a range of them`,
		"0200":               `"0200" is neither a status from 200 to 599 nor a range of them`,
		"\u0662\u0660\u0660": "\"\u0662\u0660\u0660\" is neither a status from 200 to 599 nor a range of them",
		"201-200":            `"201-200" begins above its end`,
	}
	for text, want := range bad {
		got, err := ParseStatuses(text)
		require.EqualError(t, err, want, text)
		require.Nil(t, got, text)
	}
}

func TestStoragePath(t *testing.T) {
	for path, want := range map[string]string{
		"":                  "",
		"lb.db":             "",
		"/var/lib/lb/lb":    "",
		"../data/..db":      "",
		"/":                 `storage.path: "/" is a directory, not a file; write "/lb.db"`,
		"data/":             `storage.path: "data/" is a directory, not a file; write "data/lb.db"`,
		".":                 `storage.path: "." is a directory, not a file; write "./lb.db"`,
		"data/..":           `storage.path: "data/.." is a directory, not a file; write "data/../lb.db"`,
		"lb.db\x00/../../x": `storage.path: "lb.db\x00/../../x" has a NUL byte; write a path such as /var/lib/lb/lb.db`,
	} {
		c := valid()
		c.Storage.Path = path
		problems, warnings := Validate(c, environment(nil))
		require.Empty(t, warnings)
		require.Equal(t, want, problems.Error())
	}
}

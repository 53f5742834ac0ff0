package config

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestProblemString(t *testing.T) {
	tests := map[string]Problem{
		`routes[0].proxy.pool (line 9): no pool "user"; did you mean "users"?`: {
			Path: "routes[0].proxy.pool", Line: 9, Message: `no pool "user"`, Suggestion: `did you mean "users"?`,
		},
		`log.level (LB_LOG_LEVEL): is empty`: {Path: "log.level", Line: 3, Source: "LB_LOG_LEVEL", Message: "is empty"},
		`log.level: is empty`:                {Path: "log.level", Message: "is empty"},
		`line 4: not YAML`:                   {Line: 4, Message: "not YAML"},
		`lb.yaml is empty`:                   {Message: "lb.yaml is empty"},
	}
	for want, p := range tests {
		require.Equal(t, want, p.String())
	}
}

func TestProblemsSort(t *testing.T) {
	p := Problems{{Line: 7, Message: "c"}, {Message: "a"}, {Line: 7, Message: "d"}, {Line: 2, Message: "b"}}
	require.Equal(t, "a\nline 2: b\nline 7: c\nline 7: d", p.Error())
	require.Equal(t, "c", p[0].Message, "Error leaves the order alone")
}

func TestSuggest(t *testing.T) {
	keys := []string{"name", "address", "timeouts", "path", "path_prefix", "users"}
	tests := map[string]string{
		"user":       "users",
		"usres":      "users",
		"Address":    "address",
		"adress":     "address",
		"timeout":    "timeouts",
		"paht":       "path",
		"pth":        "path",
		"prefix":     "",
		"nmae":       "name",
		"x":          "",
		"":           "",
		"frobnicate": "",
		"addresses":  "address",
	}
	for word, want := range tests {
		require.Equal(t, want, Suggest(word, keys), word)
	}
	require.Empty(t, Suggest("a", []string{"b"}))
	require.Empty(t, Suggest("name", nil))
	require.Equal(t, `did you mean "name"?`, DidYouMean("nam", keys))
	require.Equal(t, "there are a, b", DidYouMean("zzz", []string{"a", "b"}))
	require.Equal(t, "there is a", DidYouMean("zzz", []string{"a"}))
	require.Empty(t, DidYouMean("zzz", nil))
}

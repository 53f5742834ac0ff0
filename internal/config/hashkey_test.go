package config

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What is wrong with a key is in the loader's policy-keys.bad.yaml.
func TestParseHashKey(t *testing.T) {
	for text, want := range map[string][2]string{
		"header:X-User":   {HashHeader, "X-User"},
		"cookie:session":  {HashCookie, "session"},
		"query:user.name": {HashQuery, "user.name"},
		"path":            {HashPath, ""},
		"host":            {HashHost, ""},
	} {
		kind, name, err := ParseHashKey(text)
		require.NoError(t, err, text)
		require.Equal(t, want, [2]string{kind, name})
	}
	for _, text := range []string{"", "header", "header:", "header:a b", "header:é", "path:", "path:x", "PATH", "ip", "query:a[b]"} {
		_, _, err := ParseHashKey(text)
		require.Error(t, err, text)
	}
}

package fanout

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestClaim(t *testing.T) {
	require.Zero(t, ClaimOf("write", "Bearer a", ""), "without a key nothing is claimed")
	claim := ClaimOf("write", "Bearer a", "k")
	require.Equal(t, claim, ClaimOf("write", "Bearer a", "k"))
	for _, other := range []Key{
		{}, ClaimOf("write", "Bearer a", "l"), ClaimOf("write", "Bearer b", "k"), ClaimOf("write", "", "k"), ClaimOf("read", "Bearer a", "k"),
		ClaimOf("writeB", "earer a", "k"), ClaimOf("write", "Bearer ", "ak"), ClaimOf("write", "Bearer ak", ""), ClaimOf("write", "", "Bearer ak"),
	} {
		require.NotEqual(t, other, claim)
	}
}

func TestPrint(t *testing.T) {
	request := func(edit func(w *Write)) *Write {
		w := sent(formType, "username=ada")
		edit(w)
		return w
	}
	first := PrintOf(request(func(*Write) {}))
	require.NotZero(t, first)
	for name, edit := range map[string]func(w *Write){
		"request id":    func(w *Write) { w.RequestID, w.Fields = "r", append(w.Fields, Field{"X-Request-Id", "r"}) },
		"another field": func(w *Write) { w.Fields = append([]Field{{"Accept", "*/*"}}, w.Fields...) },
		"name's case":   func(w *Write) { w.Fields[0].Name = "content-type" },
		"key":           func(w *Write) { w.Key = "k" },
	} {
		require.Equal(t, first, PrintOf(request(edit)), name)
	}
	for name, edit := range map[string]func(w *Write){
		"method":            func(w *Write) { w.Method = "PUT" },
		"target":            func(w *Write) { w.Target = "/register?" },
		"body":              func(w *Write) { w.Body = []byte("username=bob") },
		"no body":           func(w *Write) { w.Body = nil },
		"content type":      func(w *Write) { w.Fields[0].Value = jsonType },
		"no content type":   func(w *Write) { w.Fields = nil },
		"two content types": func(w *Write) { w.Fields = append(w.Fields, w.Fields[0]) },
		"shifted":           func(w *Write) { w.Method, w.Target = "POST/", "register" },
	} {
		require.NotEqual(t, first, PrintOf(request(edit)), name)
	}
}

// TestDigest: neither the border between parts nor the purpose can be forged.
func TestDigest(t *testing.T) {
	seen := make(map[Key][]string)
	for _, parts := range [][]string{
		{"order", "ab", "c"}, {"order", "a", "bc"}, {"order", "abc"}, {"order", "abc", ""}, {"order", "", "abc"}, {"claim", "ab", "c"},
		{"order", "2:ab1:c"}, {"order"}, {"order", "a\x00b"}, {"order", "a0:b"}, {"order", "a", "b"}, {"", "order"},
	} {
		key := digest(parts[0], parts[1:]...)
		require.Nil(t, seen[key], "%q and %q", seen[key], parts)
		seen[key] = parts
	}
}

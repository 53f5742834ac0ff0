package load

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf8"

	"lb/internal/config"
)

// FuzzLoad checks that no text makes the loader panic, that every refusal is a
// list of problems, and that what loads is what Effective writes.
func FuzzLoad(f *testing.F) {
	names, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, _, err := Bytes("lb.yaml", data, Options{})
		if err != nil {
			var problems config.Problems
			if !errors.As(err, &problems) || len(problems) == 0 || c != nil {
				t.Fatalf("refused without problems: %v", err)
			}
			return
		}
		requireStable(t, c)
	})
}

// FuzzEffective checks that any text of a user survives writing and reading.
func FuzzEffective(f *testing.F) {
	for _, text := range []string{"", " a", "a\n", "\n a", "a\r\n", "~", "no", "<<", "0x1f", "1:30", "# x", "a: b", "\u0085\u2028\ufeff\x00", "\t\n\t", "'\"", "é…"} {
		f.Add(text, text, text)
	}
	f.Fuzz(func(t *testing.T, body, key, value string) {
		if !utf8.ValidString(body) || !utf8.ValidString(key) || !utf8.ValidString(value) {
			return
		}
		c := Demo("127.0.0.1:0", "127.0.0.1:0", []config.Backend{
			{Address: "a:1", ID: "a", Weight: 1, Labels: map[string]string{key: value}},
		})
		c.Routes = append(c.Routes, config.Route{Name: "text", Respond: &config.Respond{Status: 200, Body: body}})
		requireStable(t, c)
	})
}

// FuzzStrict checks that no document makes the decoder panic, that problems have
// no lines, and that what is not one JSON object is refused.
func FuzzStrict(f *testing.F) {
	for _, document := range []string{
		``, `{}`, `[]`, `null`, `{"name": "a", "weight": 2, "ttl": "90s", "force": true, "tags": ["a"], "labels": {"a": "b"}}`,
		`{"health": {"type": "tcp", "interval": "1s"}}`, `{"name": "a", "name": 1}`, `{"weight": 1e3}`, `{"a": {"a": [[[]]]}}`, `{"<<": {}}`,
	} {
		f.Add([]byte(document))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		problems := Strict(document, new(note))
		var object map[string]json.RawMessage
		if err := json.Unmarshal(document, &object); (err != nil || object == nil) && len(problems) == 0 {
			t.Fatalf("accepted: %q", document)
		}
		for _, p := range problems {
			if p.Line != 0 {
				t.Fatalf("%s", p)
			}
		}
	})
}

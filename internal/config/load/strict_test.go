package load

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"lb/internal/config"
)

// note is a document as Strict decodes them.
type note struct {
	Name   string            `yaml:"name"`
	Weight int               `yaml:"weight"`
	TTL    config.Duration   `yaml:"ttl"`
	Force  bool              `yaml:"force"`
	Labels map[string]string `yaml:"labels"`
	Tags   []string          `yaml:"tags"`
	Health *config.Health    `yaml:"health"`
}

func (n *note) SetDefaults() { *n = note{Weight: 1} }

func TestStrict(t *testing.T) {
	var n note
	problems := Strict([]byte(`{
	"name": "\ud83d\ude00 \/", "ttl": "90s", "force": true, "tags": ["<<", "1"],
	"labels": {"Zone": "a", "<<": "b"}, "health": {"path": "/up", "rise": 1}
}`), &n)
	require.Empty(t, problems)
	require.Equal(t, 1, n.Weight, "the default")
	require.Equal(t, "😀 /", n.Name)
	require.Equal(t, "1m30s", n.TTL.String())
	require.Equal(t, []string{"<<", "1"}, n.Tags)
	require.Equal(t, map[string]string{"Zone": "a", "<<": "b"}, n.Labels)
	require.Equal(t, "/up", n.Health.Path)
	require.Equal(t, "GET", n.Health.Method, "the default")

	require.Empty(t, Strict([]byte(`{}`), &n))
	require.Equal(t, note{Weight: 1}, n)
}

func TestStrictProblems(t *testing.T) {
	for document, want := range map[string]string{
		``:                                 `is empty; write a JSON object`,
		" \n":                              `is empty; write a JSON object`,
		`null`:                             `empty mapping; write {} if that is meant`,
		`[]`:                               `expects a mapping, not a list`,
		`"a"`:                              `expects a mapping, not "a"`,
		`name: a`:                          `not JSON: invalid character 'a' in literal null (expecting 'u') at byte 2`,
		`{"name": "a"`:                     `not JSON: unexpected end of JSON input at byte 12`,
		`{"name": "a"} {}`:                 `not JSON: invalid character '{' after top-level value at byte 15`,
		"{\"name\": \"\xff\"}":             `is not UTF-8`,
		`{"name": null}`:                   `name: no value; write one or take the key out`,
		`{"name": 1}`:                      `name: expects text, not 1; write "1"`,
		`{"weight": "1"}`:                  `weight: expects a whole number, not "1"; take the quotes out`,
		`{"weight": 1.5}`:                  `weight: expects a whole number, not 1.5`,
		`{"weight": 1e3}`:                  `weight: expects a whole number, not 1e3`,
		`{"weight": 99999999999999999999}`: `weight: expects a whole number, not "99999999999999999999"`,
		`{"ttl": 90}`:                      `ttl: expects a duration such as 250ms, not 90`,
		`{"force": 1}`:                     `force: expects true or false, not 1`,
		`{"labels": {"a": 1}}`:             `labels.a: expects text, not 1; write "1"`,
		`{"tags": "a"}`:                    `tags: expects a list, not "a"; write ["a"]`,
		`{"wieght": 2}`:                    `wieght: unknown key "wieght"; did you mean "weight"?`,
		`{"tls": {}}`:                      `tls: unknown key "tls"; there are name, weight, ttl, force, labels, tags, health`,
		`{"name": "a", "name": "b"}`:       `name: the key is given twice`,
		`{"labels": {"a":"1","a":"1"}}`:    `labels.a: the key is given twice`,
		`{"health": {"pth": "/", "timeout": "1"}}`: `health.pth: unknown key "pth"; did you mean "path"?
health.timeout: expects a duration such as 250ms, not 1`,
	} {
		require.EqualError(t, Strict([]byte(document), new(note)), want, document)
	}
	for _, deep := range []string{strings.Repeat("[", 1<<20), strings.Repeat(`{"a":`, 1<<20)} {
		require.NotEmpty(t, Strict([]byte(deep), new(note)))
	}
}

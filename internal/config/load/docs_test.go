package load

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"lb/internal/backend"
	"lb/internal/balance"
)

// TestDocumentedConfigsLoad loads every YAML block of the README and the docs,
// and every configuration that is shipped, as a reader would who copies it.
func TestDocumentedConfigsLoad(t *testing.T) {
	const root = "../../.."
	blocks := regexp.MustCompile("(?s)\n```yaml\n(.*?\n)```\n")
	named := regexp.MustCompile(`_env: (\w+)`)
	files, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	require.NoError(t, err)
	found := 0
	for _, file := range append(files, filepath.Join(root, "README.md")) {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, block := range blocks.FindAllSubmatch(text, -1) {
			found++
			t.Run(filepath.Base(file), func(t *testing.T) {
				for _, variable := range named.FindAllSubmatch(block[1], -1) {
					t.Setenv(string(variable[1]), "the secret in "+string(variable[1]))
				}
				_, warnings, err := Bytes(filepath.Base(file), block[1], Options{})
				require.NoError(t, err, "%s", block[1])
				require.Empty(t, warnings)
			})
		}
	}
	require.GreaterOrEqual(t, found, 5, "the docs show configurations")

	_, warnings, err := File(filepath.Join(root, "deploy", "lb.yaml"), Options{})
	require.NoError(t, err)
	require.Empty(t, warnings)
}

// TestDocumentedScoreThatCannotFail has the formula of docs/policies.md that asks
// first what a label is give a number for any label: one that failed would be the
// last choice, though it costs least here.
func TestDocumentedScoreThatCannotFail(t *testing.T) {
	text, err := os.ReadFile("../../../docs/policies.md")
	require.NoError(t, err)
	row := regexp.MustCompile("(?m)^\\| `(inflight \\* .*labels.cost matches.*?)` \\|").FindSubmatch(text)
	require.NotNil(t, row)
	factory, err := balance.New(balance.Spec{Name: "custom", Score: string(row[1])})
	require.NoError(t, err)
	for _, labels := range []map[string]string{
		nil, {"cost": ""}, {"cost": "much"}, {"cost": "-1"}, {"cost": "1e999"}, {"cost": "0x"}, {"cost": "99999999999999999999"}, {"cost": "1"},
	} {
		cheap, dear := &backend.Backend{ID: "cheap"}, &backend.Backend{ID: "dear"}
		cheap.SetTraits(1, labels)
		dear.SetTraits(1, map[string]string{"cost": "3"})
		cheap.TryBegin()
		dear.TryBegin()
		picked := factory([]*backend.Backend{dear, cheap}, nil).Pick(new(balance.Query))
		require.Equal(t, "cheap", picked.ID, labels)
	}
}

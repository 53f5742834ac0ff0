package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Promise: a storage has one daemon. A second one is exit code 2, told why, and
// has served nothing; the first goes on, and can still keep what it is told.
func TestStorageInUse(t *testing.T) {
	t.Parallel()
	all, addresses := ledgers(t, 2)
	config := proxyAll("", addresses...) + stored(t)
	first := start(t, config)
	requireReads(t, first, all, 1, 2)
	stdout, stderr, code := runLB(t, "serve", "-c", configFile(t, config))
	require.Equal(t, 2, code, stderr)
	require.Contains(t, stderr, "cannot open the storage (storage.path)")
	require.Contains(t, stderr, "lb.db is in use by another lb: stop that one, or give each its own file")
	require.NotContains(t, stderr, `"listening"`)
	require.Empty(t, stdout)

	requireReads(t, first, all, 1, 2)
	require.Equal(t, http.StatusOK, first.operate("drain", "b1").Status)
	require.Len(t, first.audit(), 1)
	first.kill()
	second := start(t, config)
	require.Equal(t, "draining", second.instance("b1").State)
	requireReads(t, second, all, 2)
}

// Promise: a storage that cannot be opened is exit code 2, with what to do.
func TestStorageThatCannotBeOpened(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "missing")
	for path, says := range map[string]string{
		filepath.Join(missing, "lb.db"): "make the directory " + missing,
		t.TempDir():                     "choose another path",
	} {
		_, stderr, code := runLB(t, "serve", "-c",
			configFile(t, proxyAll("", deadAddress(t))+"storage: { path: \""+path+"\" }\n"))
		require.Equal(t, 2, code, stderr)
		require.Contains(t, stderr, path)
		require.Contains(t, stderr, says)
		require.NotContains(t, stderr, `"listening"`)
	}
}

// Promise: a damaged storage keeps nobody from reading. Writes are refused, as
// is what operators say, because it could not be kept; the file stays as it is.
func TestDamagedStorageServesReads(t *testing.T) {
	t.Parallel()
	path := configFile(t, "no database")
	all, addresses := ledgers(t, 2)
	d := start(t, listeners+pools("", addresses...)+`routes:
  - { name: write, match: { methods: [POST] }, fanout: { pool: main } }
  - { name: read, match: {}, proxy: { pool: main } }
storage: { path: "`+path+`" }
`)
	requireReads(t, d, all, 1, 2)
	write := d.do(http.MethodPost, "/x", strings.NewReader("x"))
	require.Equal(t, http.StatusServiceUnavailable, write.Status)
	require.Equal(t, "storage_unavailable", write.Header.Get("X-LB-Error"))
	require.Equal(t, http.StatusServiceUnavailable, d.operate("drain", "b1").Status)
	require.Equal(t, "up", d.instance("b1").State)
	require.Equal(t, 0.0, d.metric("lb_storage_up"))
	require.Zero(t, d.stop())
	require.Len(t, d.events("the storage is damaged: fan-outs and operators' changes are refused until lb is restarted with another file; see lb salvage"), 1)
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "no database", string(content))
}

// Promise: so it is with one flipped bit, wherever it is: lb starts and serves
// reads, with what is left or without.
func TestAFlippedBitKeepsNobodyFromReading(t *testing.T) {
	t.Parallel()
	_, addresses := ledgers(t, 2)
	path := filepath.Join(t.TempDir(), "lb.db")
	config := func(path string) string {
		return listeners + pools("", append(addresses, deadAddress(t))...) + `routes:
  - { name: write, match: { methods: [POST] }, fanout: { pool: main, wait: 0s } }
  - { name: read, match: {}, proxy: { pool: main } }
storage: { path: "` + path + `" }
`
	}
	first := start(t, config(path))
	for range 20 {
		require.Less(t, first.do(http.MethodPost, "/x", strings.NewReader(strings.Repeat("x", 1000))).Status, 300)
	}
	require.Equal(t, http.StatusOK, first.operate("drain", "b1").Status)
	require.Zero(t, first.stop())
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	const page = 4096
	require.Greater(t, len(whole), 10*page)
	for at := page - 100; at < len(whole); at += 3 * page {
		content := slices.Clone(whole)
		content[at] ^= 1
		damaged := filepath.Join(t.TempDir(), "lb.db")
		require.NoError(t, os.WriteFile(damaged, content, 0o600))
		d := start(t, config(damaged))
		require.Equal(t, http.StatusOK, d.get("/").Status, "page %d", at/page+1)
		require.Zero(t, d.stop())
	}
}

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"lb/internal/admin"
)

// reloadable is a daemon whose configuration can be written anew.
type reloadable struct {
	*daemon
	file string
}

// startReloadable starts a daemon that does not watch its file, unless the
// configuration says so.
func startReloadable(t testing.TB, config string) *reloadable {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lb.yaml")
	r := &reloadable{file: file}
	r.write(t, config)
	r.daemon = startCommand(t, nil, "serve", "-c", file)
	return r
}

func (r *reloadable) write(t testing.TB, config string) {
	t.Helper()
	require.NoError(t, os.WriteFile(r.file, []byte(config), 0o600))
}

// reload writes the configuration and has it read.
func (r *reloadable) reload(t testing.TB, config string) answer {
	t.Helper()
	r.write(t, config)
	return r.do(http.MethodPost, r.Admin+"/reload", nil)
}

func requireApplied(t testing.TB, a answer, generation uint64) admin.Reloaded {
	t.Helper()
	var done admin.Reloaded
	require.Equal(t, 200, a.Status, a.Body)
	a.json(t, &done)
	require.Equal(t, admin.Applied, done.Result)
	require.Equal(t, generation, done.Generation)
	return done
}

// reloadConfig is a configuration over these pools and routes.
func reloadConfig(more string) string {
	return `
listeners: [ { name: public, address: "127.0.0.1:0" } ]
admin: { address: "127.0.0.1:0" }
storage: { path: "" }
reload: { watch: false }
` + more
}

// Promise: a reload adds, removes and changes pools, backends and routes, tells
// what changed, and what did not change keeps its counters and states.
func TestReload(t *testing.T) {
	t.Parallel()
	one, two, three := named(t, "one"), named(t, "two"), named(t, "three")
	d := startReloadable(t, reloadConfig(fmt.Sprintf(`
pools:
  - { name: main, backends: [ { address: %q, id: one }, { address: %q, id: two } ] }
routes:
  - { name: all, match: { path_prefix: / }, proxy: { pool: main } }
`, one, two)))
	for range 4 {
		require.Equal(t, 200, d.get("/").Status)
	}
	require.Equal(t, 200, d.operate("drain", "two").Status)
	port := d.Addr

	done := requireApplied(t, d.reload(t, reloadConfig(fmt.Sprintf(`
pools:
  - { name: main, limits: { per_backend: 7 }, backends: [ { address: %q, id: one, weight: 3 }, { address: %q, id: two }, { address: %q, id: three } ] }
  - { name: other, policy: p2c, backends: [ { address: %q, id: three } ] }
routes:
  - { name: other, match: { path: /other }, proxy: { pool: other } }
  - { name: all, match: { path_prefix: / }, proxy: { pool: main } }
`, one, two, three, three))), 2)
	require.ElementsMatch(t, []string{"backend main/three", "pool other", "route other"}, []string(done.Changes.Added))
	require.Empty(t, done.Changes.Removed)
	require.Equal(t, port, d.address("public"), "the listener is the same")
	require.Contains(t, d.get("/other").Body, "three GET")
	got := map[string]int{}
	for range 10 {
		name, _, _ := strings.Cut(d.get("/").Body, " ")
		got[name]++
	}
	require.Equal(t, map[string]int{"one": 5, "three": 5}, got, "the drained one is still drained")
	require.Equal(t, 7.0, d.metric("lb_backend_requests_total", "pool", "main", "backend", "one", "outcome", "success"), "2 + 5")
	require.Equal(t, 7, d.listed("one").Limit)
	require.Equal(t, 3, d.listed("one").Weight)
	require.Equal(t, 2.0, d.metric("lb_config_generation"))
	require.Equal(t, 1.0, d.metric("lb_reloads_total", "result", "applied"))

	done = requireApplied(t, d.reload(t, reloadConfig(fmt.Sprintf(`
pools:
  - { name: main, backends: [ { address: %q, id: one } ] }
routes:
  - { name: all, match: { path_prefix: /new }, proxy: { pool: main } }
`, two))), 3)
	require.ElementsMatch(t, []string{"backend main/two", "backend main/three", "pool other", "route other"}, []string(done.Changes.Removed))
	require.Equal(t, 404, d.get("/other").Status)
	require.Equal(t, 404, d.get("/").Status)
	require.Contains(t, d.get("/new").Body, "two GET", "another address under the same id")
	require.Nil(t, d.listed("two"))
	require.Equal(t, 8.0, d.metric("lb_backend_requests_total", "pool", "main", "backend", "one", "outcome", "success"))

	var done2 admin.Reloaded
	d.do(http.MethodPost, d.Admin+"/reload", nil).json(t, &done2)
	require.Equal(t, admin.Unchanged, done2.Result)
	require.EqualValues(t, 3, done2.Generation)
}

// Promise: a configuration that is wrong changes nothing, and everybody who asks
// is told why until one is right.
func TestReloadOfABadConfiguration(t *testing.T) {
	t.Parallel()
	one := named(t, "one")
	good := reloadConfig(fmt.Sprintf(`
pools: [ { name: main, backends: [ { address: %q } ] } ]
routes: [ { name: all, match: { path_prefix: / }, proxy: { pool: main } } ]
`, one))
	d := startReloadable(t, good)
	taken := listenAnywhere(t)
	t.Cleanup(func() { _ = taken.Close() })
	for name, bad := range map[string]string{
		"empty":                "",
		"half of it":           good[:len(good)/2],
		"not YAML":             good + "\n\t{",
		"no such pool":         strings.Replace(good, "pool: main", "pool: mian", 1),
		"a port that is taken": strings.Replace(good, `public, address: "127.0.0.1:0"`, fmt.Sprintf("public, address: %q", taken.Addr()), 1),
		"another storage":      strings.Replace(good, `path: ""`, `path: "other.db"`, 1),
	} {
		a := d.reload(t, bad)
		require.Equal(t, 422, a.Status, "%s: %s", name, a.Body)
		require.Contains(t, a.Body, "config_invalid", name)
		require.Equal(t, 200, d.get("/").Status, name)
		require.Equal(t, 1.0, d.metric("lb_config_generation"), name)
		var h admin.Health
		d.get(d.Admin+"/health").json(t, &h)
		require.NotNil(t, h.Config.Error, name)
		require.NotEmpty(t, h.Config.Error.Detail, name)
	}
	require.Equal(t, 6.0, d.metric("lb_reloads_total", "result", "failed"))
	a := d.reload(t, good)
	require.Equal(t, 200, a.Status, a.Body)
	var h admin.Health
	d.get(d.Admin+"/health").json(t, &h)
	require.Nil(t, h.Config.Error, "all is well again")
}

// Promise: listeners come, go and change while others keep their connections.
func TestReloadOfListeners(t *testing.T) {
	t.Parallel()
	one := named(t, "one")
	config := func(listeners string) string {
		return strings.Replace(reloadConfig(fmt.Sprintf(`
pools: [ { name: main, backends: [ { address: %q } ] } ]
routes: [ { name: all, match: { path_prefix: / }, proxy: { pool: main } } ]
`, one)), `{ name: public, address: "127.0.0.1:0" }`, listeners, 1)
	}
	const public = `{ name: public, address: "127.0.0.1:0" }`
	d := startReloadable(t, config(public))
	require.Equal(t, 200, d.get("/").Status)
	kept := d.raw(t, "")
	require.Equal(t, 200, kept.get(t, "/"))

	requireApplied(t, d.reload(t, config(public+`, { name: second, address: "127.0.0.1:0" }`)), 2)
	var second string
	poll(t, patience, "the log to say where the new one listens", func() bool {
		second = d.address("second")
		return second != ""
	})
	require.Equal(t, 200, d.do(http.MethodGet, "http://"+second+"/", nil, "Connection", "close").Status)
	require.Equal(t, 200, kept.get(t, "/"), "the same connection")

	requireApplied(t, d.reload(t, config(strings.Replace(public, "}", ", limits: { header_fields: 10 } }", 1))), 3)
	require.Equal(t, 200, d.get("/").Status, "the changed one listens where it did")
	require.Equal(t, 200, kept.get(t, "/"), "a connection from before is served to its next answer")
	_, err := d.try(http.MethodGet, "http://"+second+"/", nil)
	require.Error(t, err, "the removed one is closed")
	fields := []string{}
	for i := range 12 {
		fields = append(fields, fmt.Sprintf("X-%d", i), "x")
	}
	require.Equal(t, 431, d.do(http.MethodGet, "/", nil, append(fields, "Connection", "close")...).Status)
}

// get asks over the connection and returns the answer's status.
func (c *rawConn) get(t testing.TB, path string) int {
	t.Helper()
	c.send("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n")
	res := c.head(http.MethodGet)
	buf := make([]byte, res.ContentLength)
	for read := 0; read < len(buf); {
		n, err := res.Body.Read(buf[read:])
		if n == 0 && err != nil {
			t.Fatalf("body: %v", err)
		}
		read += n
	}
	return res.StatusCode
}

// Promise: SIGHUP reloads, and so does a file that has changed, by an atomic
// rename too; one that is being written does not.
func TestWhatReloads(t *testing.T) {
	t.Parallel()
	config := func(body string) string {
		return strings.Replace(reloadConfig(fmt.Sprintf(`
routes: [ { name: all, match: { path_prefix: / }, respond: { status: 200, body: %q } } ]
`, body)), "watch: false", "watch: true", 1)
	}
	d := startReloadable(t, config("first"))
	require.Equal(t, "first", d.get("/").Body)
	body := func(want string) func() bool { return func() bool { return d.get("/").Body == want } }

	d.write(t, config("second"))
	poll(t, patience, "the change to be seen", body("second"))
	next := d.file + ".next"
	require.NoError(t, os.WriteFile(next, []byte(config("third")), 0o600))
	require.NoError(t, os.Rename(next, d.file))
	poll(t, patience, "the rename to be seen", body("third"))

	d.write(t, "")
	poll(t, patience, "the empty file to be refused", func() bool { return d.metric("lb_reloads_total", "result", "failed") == 1 })
	require.Equal(t, "third", d.get("/").Body)

	d.write(t, strings.Replace(config("fourth"), "watch: true", "watch: false", 1))
	poll(t, patience, "the change to be seen", body("fourth"))
	d.write(t, strings.Replace(config("fifth"), "watch: true", "watch: false", 1))
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGHUP))
	poll(t, patience, "the signal", body("fifth"))
	require.Equal(t, 0, d.stop())
	require.Len(t, d.events("configuration reloaded"), 4)
}

// Promise: configurations that served are kept, can be compared, and come back.
func TestConfigVersions(t *testing.T) {
	t.Parallel()
	config := func(body string) string {
		return strings.Replace(reloadConfig(fmt.Sprintf(`
routes: [ { name: all, match: { path_prefix: / }, respond: { status: 200, body: %q } } ]
`, body)), `storage: { path: "" }`, fmt.Sprintf("storage: { path: %q }", filepath.Join(t.TempDir(), "lb.db")), 1)
	}
	first := config("first")
	d := startReloadable(t, first)
	second := strings.Replace(first, `"first"`, `"second"`, 1)
	requireApplied(t, d.reload(t, second), 2)
	var page admin.ConfigVersionPage
	d.get(d.Admin+"/config/versions").json(t, &page)
	require.Len(t, page.Versions, 2)
	require.True(t, page.Versions[0].Serving)
	require.False(t, page.Versions[1].Serving)
	require.Equal(t, d.file, page.Versions[0].Source)
	old := page.Versions[1].ID

	var v admin.ConfigVersion
	d.get(fmt.Sprintf("%s/config/versions/%d", d.Admin, old)).json(t, &v)
	require.Equal(t, first, v.Document)
	var changes admin.Changes
	d.get(fmt.Sprintf("%s/config/versions/%d/diff", d.Admin, old)).json(t, &changes)
	require.Equal(t, "route all", changes.Changed[0].Name)
	require.Equal(t, admin.ChangedValue{Path: "routes.all.respond.body", From: "first", To: "second"}, changes.Changed[0].Values[0])

	requireApplied(t, d.do(http.MethodPost, fmt.Sprintf("%s/config/versions/%d/rollback", d.Admin, old), nil), 3)
	require.Equal(t, "first", d.get("/").Body)
	now, err := os.ReadFile(d.file)
	require.NoError(t, err)
	require.Equal(t, first, string(now))
	require.Equal(t, 404, d.do(http.MethodPost, d.Admin+"/config/versions/99/rollback", nil).Status)
	d.get(d.Admin+"/config/versions").json(t, &page)
	require.Len(t, page.Versions, 3)
	require.True(t, page.Versions[0].Serving)
	require.Equal(t, "reload config", d.audit()[0].Action+" "+d.audit()[0].Target)
}

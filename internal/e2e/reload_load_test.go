package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Promise: reloads, of whatever and by whatever, fail no request and lose no
// write; WebSockets stay open, and counters never go back.
func TestChaosReloads(t *testing.T) {
	t.Parallel()
	var backends []*reloadBackend
	var addresses []string
	for range 3 {
		b := startReloadBackend(t)
		backends, addresses = append(backends, b), append(addresses, b.Addr)
	}
	world := newReloadWorld(t, addresses)
	d := startReloadable(t, world.String())
	steady := "http://" + d.address("steady")
	var sockets []keptSocket
	for range scaled(3, 10) {
		sockets = append(sockets, openSocket(t, d.daemon, steady, "/socket/still"), openSocket(t, d.daemon, steady, "/socket/moved"))
	}
	l := startSteadyLoad(t, d.URL, scaled(100, 1000))
	l.await(20)

	seen := counters{}
	observe := func() {
		for _, bad := range seen.observe(d.get(d.Admin + "/metrics").Body) {
			t.Error(bad)
		}
	}
	reloads, failed := scaled(len(reloadSteps), 200), 0
	for i := range reloads {
		step := reloadSteps[i%len(reloadSteps)]
		step.do(world)
		want := uint64(i + 2)
		switch good := world.String(); i % 3 {
		case 0:
			a := d.reload(t, good)
			require.Equal(t, 200, a.Status, "%s: %s", step.name, a.Body)
		case 1:
			d.replace(t, good)
			require.NoError(t, d.cmd.Process.Signal(syscall.SIGHUP))
		case 2:
			d.replace(t, good)
		}
		poll(t, patience, "the reload of "+step.name, func() bool { return d.generation() >= want })
		require.Equal(t, want, d.generation(), step.name)
		if i%5 == 0 {
			bad := []string{"", world.String()[:100], strings.Replace(world.String(), "pool: main", "pool: mian", 1), "routes: ["}[i/5%4]
			a := d.reload(t, bad)
			require.Equal(t, 422, a.Status, a.Body)
			failed++
			require.Equal(t, want, d.generation())
			d.replace(t, world.String())
		}
		if i%4 == 0 {
			observe()
		}
		for _, s := range sockets {
			s.requireEcho(t, step.name)
		}
	}
	l.await(20)
	shots := l.end()
	observe()
	t.Logf("%d reloads, %d refused", reloads, failed)
	requireUnharmed(t, shots)
	require.Equal(t, uint64(1+reloads), d.generation())
	require.Equal(t, float64(reloads), d.metric("lb_reloads_total", "result", "applied"))
	for _, s := range sockets {
		s.requireEcho(t, "the end")
	}
	require.NotEmpty(t, l.written)
	poll(t, patience, "the writes to be settled", func() bool { return d.metric("lb_fanout_deliveries", "state", "pending") == 0 })
	for i, b := range backends[:2] {
		require.Empty(t, b.missing(l.written), "of %d writes, at backend %d", len(l.written), i+1)
	}
}

// Promise: whatever stands in the file's place, as often as it likes, the
// configuration before serves on, and the last one serves in the end.
func TestChaosReloadOfWhatIsBeingWritten(t *testing.T) {
	t.Parallel()
	config := func(n int) string {
		return strings.Replace(reloadConfig(fmt.Sprintf(`
routes: [ { name: all, match: { path_prefix: / }, respond: { status: 200, body: "%d" } } ]
`, n)), "watch: false", "watch: true", 1)
	}
	// As Kubernetes does it: the file is a link into a directory that is a link.
	dir := t.TempDir()
	file, data := filepath.Join(dir, "lb.yaml"), filepath.Join(dir, "..data")
	release := func(name string, make func(path string) error) {
		at := filepath.Join(dir, name)
		require.NoError(t, os.Mkdir(at, 0o755))
		require.NoError(t, make(filepath.Join(at, "lb.yaml")))
		next := filepath.Join(dir, "..next")
		require.NoError(t, os.Symlink(name, next))
		old, _ := os.Readlink(data)
		require.NoError(t, os.Rename(next, data))
		if old != "" {
			require.NoError(t, os.RemoveAll(filepath.Join(dir, old)))
		}
	}
	content := func(text string, mode os.FileMode) func(string) error {
		return func(path string) error { return os.WriteFile(path, []byte(text), mode) }
	}
	release("..0", content(config(0), 0o600))
	require.NoError(t, os.Symlink(filepath.Join("..data", "lb.yaml"), file))
	d := startCommand(t, nil, "serve", "-c", file)
	body := func() string { return d.get("/").Body }
	require.Equal(t, "0", body())

	good := map[string]bool{"0": true}
	every := time.NewTicker(20 * time.Millisecond)
	defer every.Stop()
	rounds := scaled(50, 1000)
	for n := 1; n <= rounds; n++ {
		<-every.C
		name := fmt.Sprintf("..%d", n)
		switch text := config(n); n % 7 {
		case 0:
			release(name, content("", 0o600))
		case 1:
			release(name, content(text[:n%len(text)], 0o600))
		case 2:
			release(name, func(path string) error { return os.Mkdir(path, 0o755) })
		case 3:
			release(name, content(text, 0)) // who is root reads it all the same
			good[strconv.Itoa(n)] = true
		case 4:
			release(name, func(path string) error { return os.Symlink("nowhere", path) })
		case 5:
			release(name, content(text, 0o600))
			good[strconv.Itoa(n)] = true
		case 6: // in place, in two pieces
			release(name, func(path string) error {
				f, err := os.Create(path)
				if err != nil {
					return err
				}
				_, err = f.WriteString(text[:len(text)/2])
				if err == nil {
					_, err = f.WriteString(text[len(text)/2:])
				}
				return errors.Join(err, f.Close())
			})
			good[strconv.Itoa(n)] = true
		}
		if n%3 == 0 {
			require.NoError(t, d.cmd.Process.Signal(syscall.SIGHUP))
		}
		require.True(t, good[body()], body())
	}
	release("..last", content(config(-1), 0o600))
	poll(t, patience, "the last content", func() bool { return body() == "-1" })
	t.Logf("%v applied, %v failed", d.metric("lb_reloads_total", "result", "applied"), d.metric("lb_reloads_total", "result", "failed"))
	require.Positive(t, d.metric("lb_reloads_total", "result", "failed"))
}

// Promise: a large configuration is reloaded beside the requests, not instead of
// them.
func TestChaosReloadOfThousands(t *testing.T) {
	t.Parallel()
	b := startReloadBackend(t)
	config := func(n int) string {
		var text bytes.Buffer
		pools, routes := scaled(100, 1000), scaled(1000, 10000)
		text.WriteString(reloadConfig("log: { access: { enabled: false } }\npools:\n"))
		for i := range pools {
			_, _ = fmt.Fprintf(&text, "  - { name: p%d, backends: [ { id: b, address: %q, weight: %d } ] }\n", i, b.Addr, 1+n%5)
		}
		text.WriteString("routes:\n")
		for i := range routes {
			_, _ = fmt.Fprintf(&text, "  - { name: r%d, match: { path_prefix: /r%d }, proxy: { pool: p%d, timeout: %ds } }\n", i, i, i%pools, 20+n)
		}
		text.WriteString("  - { name: all, match: { path_prefix: / }, proxy: { pool: p0 } }\n")
		text.WriteString("  - { name: write, match: { path_prefix: /write, methods: [POST] }, fanout: { pool: p1 } }\n")
		return text.String()
	}
	d := startReloadable(t, config(0))
	l := startSteadyLoad(t, d.URL, scaled(100, 1000))
	l.await(scaled(50, 3000))
	quiet := time.Now()
	var took []time.Duration
	for n := range scaled(2, 10) {
		began := time.Now()
		requireApplied(t, d.reload(t, config(n+1)), uint64(n+2))
		took = append(took, time.Since(began))
		l.await(scaled(10, 500))
	}
	shots := l.end()
	requireUnharmed(t, shots)
	var lines []any
	for _, e := range d.events("configuration reloaded") {
		lines = append(lines, e["took"])
	}
	t.Logf("before: %v", sum(filter(shots, func(s shot) bool { return s.At.Before(quiet) })))
	t.Logf("reloads: %v", sum(since(shots, quiet)))
	t.Logf("they took %v, by the log %v", took, lines)
}

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"lb/internal/admin"
)

// haltingBackend answers /slow when it is told to, and all else at once.
func haltingBackend(t testing.TB) (addr string, come <-chan string, goOn func()) {
	t.Helper()
	arrived, release := make(chan string, 100), make(chan struct{})
	goOn = sync.OnceFunc(func() { close(release) })
	addr = backend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			arrived <- r.URL.Path
			<-release
		}
		_, _ = io.WriteString(w, "done")
	}))
	t.Cleanup(goOn)
	return addr, arrived, goOn
}

// rawAt is raw for another listener.
func rawAt(t testing.TB, addr, bytes string) *rawConn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	c := &rawConn{Conn: conn, Reader: bufio.NewReader(conn), t: t}
	c.send(bytes)
	return c
}

// Promise: who is served by a listener that a reload has removed is served to
// the end, also when lb is told to stop meanwhile.
func TestStopWhileARemovedListenerDrains(t *testing.T) {
	t.Parallel()
	addr, come, goOn := haltingBackend(t)
	config := func(more string) string {
		return strings.Replace(reloadConfig(fmt.Sprintf(`
shutdown: { drain: 15s, readiness: 0s }
pools: [ { name: main, backends: [ { address: %q } ] } ]
routes: [ { name: all, match: { path_prefix: / }, proxy: { pool: main } } ]
`, addr)), `"127.0.0.1:0" } ]`, `"127.0.0.1:0" }`+more+` ]`, 1)
	}
	d := startReloadable(t, config(`, { name: second, address: "127.0.0.1:0" }`))
	c := rawAt(t, d.address("second"), "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	await(t, "the request to arrive", come)
	requireApplied(t, d.reload(t, config("")), 2)
	d.client.CloseIdleConnections()
	d.terminate()
	poll(t, patience, "the stop to begin", func() bool { return len(d.events("stopping")) == 1 })
	elapse(t, 1500*time.Millisecond) // nothing else keeps lb from ending
	require.False(t, d.hasExited(), "somebody is still served")
	goOn()
	a, err := c.response(http.MethodGet)
	require.NoError(t, err)
	require.Equal(t, "done", a.Body)
	require.True(t, a.Close)
	require.Equal(t, 0, d.wait())
}

// hangingProbe is a config whose reload takes until the probe of a backend that
// hangs is over.
func hangingProbe(t testing.TB, timeout time.Duration) (config func(more string) string, probed <-chan struct{}) {
	t.Helper()
	told, over := make(chan struct{}, 100), make(chan struct{})
	hangs := backend(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		told <- struct{}{}
		select {
		case <-over:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(func() { close(over) })
	one := named(t, "one")
	return func(more string) string {
		if more == "hanging" {
			more = fmt.Sprintf("  - { name: hangs, health: { type: http, path: /, interval: 60s, timeout: %s }, backends: [ { address: %q } ] }\n", timeout, hangs)
		}
		return reloadConfig(fmt.Sprintf(`
shutdown: { drain: 1s, readiness: 0s }
routes: [ { name: all, match: { path_prefix: / }, proxy: { pool: main } } ]
pools:
  - { name: main, backends: [ { id: one, address: %q } ] }
%s`, one, more))
	}, told
}

// Promise: a stop does not wait for a reload that waits itself, whoever asked
// for it.
func TestStopInTheMiddleOfAReload(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"SIGHUP", "POST"} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			config, probed := hangingProbe(t, 50*time.Second)
			d := startReloadable(t, config(""))
			d.write(t, config("hanging"))
			var asking sync.WaitGroup
			defer asking.Wait()
			if by == "SIGHUP" {
				require.NoError(t, d.cmd.Process.Signal(syscall.SIGHUP))
			} else {
				asking.Go(func() { _, _ = d.try(http.MethodPost, d.Admin+"/reload", nil) })
			}
			await(t, "the probe", probed)
			require.Equal(t, 200, d.get("/").Status)
			require.Equal(t, 0, d.stop())
		})
	}
}

// Promise: a probe that hangs keeps nobody else from changing anything for long,
// and what was asked for meanwhile is done.
func TestChangesBehindAReloadThatWaits(t *testing.T) {
	t.Parallel()
	config, probed := hangingProbe(t, 12*time.Second)
	d := startReloadable(t, config(""))
	d.write(t, config("hanging"))
	var asking sync.WaitGroup
	defer asking.Wait()
	asking.Go(func() {
		if a := d.do(http.MethodPost, d.Admin+"/reload", nil); a.Status != 200 {
			t.Errorf("%d %s", a.Status, a.Body)
		}
	})
	await(t, "the probe", probed)
	asking.Go(func() {
		if a := d.operate("drain", "one"); a.Status != 200 {
			t.Errorf("%d %s", a.Status, a.Body)
		}
	})
	d.write(t, strings.Replace(config("hanging"), "path_prefix: /", "path_prefix: /next", 1))
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGHUP))
	poll(t, patience, "the signal to have its reload", func() bool { return d.generation() == 3 })
	require.Equal(t, 404, d.get("/").Status)
}

// Promise: reloads at once are one after the other, and each tells what it did;
// operators and backends that register come in between.
func TestReloadsAtOnce(t *testing.T) {
	t.Parallel()
	one, two, guest := named(t, "one"), named(t, "two"), named(t, "guest")
	config := func(n int) string {
		return strings.Replace(reloadConfig(fmt.Sprintf(`
registration: { enabled: true, allow: [loopback] }
pools:
  - { name: main, registration: true, limits: { per_backend: %d }, backends: [ { id: one, address: %q }, { id: two, address: %q } ] }
routes: [ { name: all, match: { path_prefix: / }, proxy: { pool: main } } ]
`, 100+n, one, two)), "watch: false", "watch: true", 1)
	}
	d := startReloadable(t, config(0))
	rounds := scaled(10, 50)
	var asking sync.WaitGroup
	var mu sync.Mutex
	generations := map[uint64]int{}
	for n := range rounds {
		d.replace(t, config(n+1))
		for range 3 {
			asking.Go(func() {
				var done admin.Reloaded
				a := d.do(http.MethodPost, d.Admin+"/reload", nil)
				a.json(t, &done)
				mu.Lock()
				defer mu.Unlock()
				if done.Result == admin.Applied {
					generations[done.Generation]++
				}
			})
		}
		_ = d.cmd.Process.Signal(syscall.SIGHUP)
		word := []string{"drain", "enable"}[n%2]
		asking.Go(func() {
			if a := d.operate(word, "two"); a.Status != 200 {
				t.Errorf("%s: %d %s", word, a.Status, a.Body)
			}
		})
		asking.Go(func() {
			if a := d.enroll("main", guest, `,"id":"guest"`); a.Status >= 300 {
				t.Errorf("%d %s", a.Status, a.Body)
			}
		})
		require.Equal(t, 200, d.get("/").Status)
		asking.Wait()
		require.Equal(t, map[string]string{"drain": "draining", "enable": "up"}[word], d.listed("two").State)
		require.NotNil(t, d.listed("guest"))
	}
	for g, n := range generations {
		require.Equal(t, 1, n, "generation %d", g)
	}
	require.Equal(t, 100+rounds, d.listed("one").Limit)
	require.Equal(t, 100+rounds, d.listed("guest").Limit, "those that registered have the limit of their pool, too")
}

// Promise: a daemon that starts, and has not probed everybody yet, reloads as one
// that runs does.
func TestReloadWhileItStarts(t *testing.T) {
	t.Parallel()
	config, probed := hangingProbe(t, 2*time.Second)
	d := &daemon{t: t, exited: make(chan struct{}), client: newClient(t)}
	file := configFile(t, config("hanging"))
	d.cmd, d.stdout, d.stderr = command(t, nil, "serve", "-c", file)
	require.NoError(t, d.cmd.Start())
	go func() {
		_ = d.cmd.Wait() // the exit code is read from the state
		close(d.exited)
	}()
	t.Cleanup(d.verifyEnd)
	await(t, "the first probe", probed)
	require.NoError(t, os.WriteFile(file, []byte(strings.Replace(config("hanging"), `public, address: "127.0.0.1:0"`, `public, address: "127.0.0.1:0", timeouts: { idle: 7s }`, 1)), 0o600))
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGHUP))
	poll(t, patience, "the reload", func() bool { return len(d.events("configuration reloaded")) == 1 })
	var told []string
	for _, line := range d.stderr.lines() {
		if at := slices.Index([]any{"listening", "backends have been probed once", "configuration reloaded"}, line["msg"]); at >= 0 {
			told = append(told, strings.TrimSpace(fmt.Sprint(line["msg"], " ", line["listener"])))
		}
	}
	require.Equal(t, []string{
		"listening admin", "backends have been probed once <nil>", "listening public", "listening public", "configuration reloaded <nil>",
	}, told)
	d.Addr, d.Admin = d.address("public"), "http://"+d.address("admin")
	d.URL = "http://" + d.Addr
	require.Equal(t, 200, d.get("/").Status)
	require.Equal(t, 200, d.get(d.Admin+"/readyz").Status)
}

// Promise: a WebSocket outlives a change of the listener that it came by, for
// longer than a drain takes. When lb stops, it ends politely.
func TestWebSocketsOutliveAChangeOfTheirListener(t *testing.T) {
	t.Parallel()
	b := startReloadBackend(t)
	config := func(fields int) string {
		return strings.Replace(reloadConfig(fmt.Sprintf(`
shutdown: { drain: 1s, readiness: 0s }
pools: [ { name: main, backends: [ { address: %q } ] } ]
routes: [ { name: all, match: { path_prefix: / }, proxy: { pool: main } } ]
`, b.Addr)), `"127.0.0.1:0" } ]`, fmt.Sprintf(`"127.0.0.1:0", limits: { header_fields: %d } } ]`, fields), 1)
	}
	d := startReloadable(t, config(50))
	s := openSocket(t, d.daemon, d.URL, "/socket")
	s.requireEcho(t, "before")
	kept := d.raw(t, "")
	const get = "GET /read HTTP/1.1\r\nHost: x\r\n\r\n"
	require.False(t, kept.ask(get).Close)
	requireApplied(t, d.reload(t, config(60)), 2)
	require.True(t, kept.ask(get).Close, "the next one comes under the new settings")
	requireApplied(t, d.reload(t, config(70)), 3)
	elapse(t, 2500*time.Millisecond) // the drain, and the time in which tunnels end
	s.requireEcho(t, "after")
	d.terminate()
	_, _, err := s.Read(t.Context())
	require.Equal(t, websocket.StatusGoingAway, websocket.CloseStatus(err), err)
	require.Equal(t, 0, d.wait())
}

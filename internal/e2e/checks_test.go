package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// neighbours runs two HTTP backends with hosts of their own, so that each can
// have its own check on one port.
func neighbours(t testing.TB) (all []*ledger, addresses []string) {
	t.Helper()
	for _, host := range []string{"127.0.0.1", "127.0.0.2"} {
		l, conns := always(http.StatusOK), listenOn(t, host+":0")
		s := &server{Addr: conns.Addr().String(), t: t, handler: l}
		s.serve(conns)
		t.Cleanup(s.stop)
		all, addresses = append(all, l), append(addresses, s.Addr)
	}
	return all, addresses
}

func listenOn(t testing.TB, address string) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
	require.NoError(t, err)
	return l
}

// Promise: each kind of check takes a backend out when it fails, though traffic
// would pass, says why, and brings it back when it passes.
func TestChecks(t *testing.T) {
	t.Parallel()
	for kind, prepare := range map[string]func(t *testing.T) check{"tcp": tcpCheck, "grpc": grpcCheck, "exec": execCheck} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			c := prepare(t)
			all, addresses := neighbours(t)
			d := start(t, listeners+pools(fmt.Sprintf(
				", health: { type: %s, %s, interval: 400ms, timeout: 400ms, rise: 2, fall: 2 }", kind, c.keys), addresses...)+
				"routes: [{ name: all, match: { path_prefix: / }, proxy: { pool: main } }]\n")
			require.Equal(t, "up", d.instance("b1").State, "whom lb has checked before it serves")
			requireReads(t, d, all, 1, 2)

			c.set(false)
			poll(t, patience, "it to be down", func() bool { return d.instance("b1").State == "down" })
			out := d.backendHealth("b1")
			require.Len(t, out.Reasons, 1)
			require.Contains(t, out.Reasons[0], c.says)
			require.Contains(t, out.LastError, c.says)
			require.GreaterOrEqual(t, out.ConsecutiveFail, 2)
			require.NotNil(t, out.LastProbe)
			require.Equal(t, "up", d.instance("b2").State)
			requireReads(t, d, all, 2)
			require.Equal(t, 1.0, d.metric("lb_backend_state", "backend", "b1", "state", "down"))

			c.set(true)
			poll(t, patience, "it to be up", func() bool { return d.instance("b1").State == "up" })
			require.Empty(t, d.backendHealth("b1").Reasons)
			require.Empty(t, d.backendHealth("b1").LastError)
			requireReads(t, d, all, 1, 2)
			require.Equal(t, 1, timesTold(d, "b1", "down"))
			require.Zero(t, timesTold(d, "b2", "down"))
		})
	}
}

// Promise: a backend that fails its check at the start gets nothing, from the
// first request on, however long the check takes.
func TestChecksBeforeTheStart(t *testing.T) {
	t.Parallel()
	all, addresses := neighbours(t)
	const slow = `[/bin/sh, -c, 'sleep 0.5; test "$LB_BACKEND_HOST" = 127.0.0.2']`
	d := start(t, listeners+pools(", health: { type: exec, command: "+slow+", timeout: 2s }", addresses...)+
		"routes: [{ name: all, match: { path_prefix: / }, proxy: { pool: main } }]\n")
	requireReads(t, d, all, 2)
	require.Equal(t, "down", d.instance("b1").State)
}

// Promise: maintenance ends the checks of a backend, draining does not, and who
// comes out of maintenance is checked before it serves.
func TestMaintenanceStopsChecks(t *testing.T) {
	t.Parallel()
	var probes []*ledger
	var addresses []string
	for range 2 {
		l := always(http.StatusOK)
		probes, addresses = append(probes, l), append(addresses, backend(t, l))
	}
	d := start(t, listeners+pools(", health: { interval: 100ms, timeout: 100ms, fall: 100 }", addresses...)+
		"routes: [{ name: none, match: { path: /none }, proxy: { pool: main } }]\n")
	require.Equal(t, http.StatusOK, d.operate("maintenance", "b1").Status)
	require.Equal(t, http.StatusOK, d.operate("drain", "b2").Status)
	more := func(n int) {
		from := len(probes[1].all())
		poll(t, patience, "probes of the draining one", func() bool { return len(probes[1].all()) >= from+n })
	}
	more(2) // a probe of the other may have been under way
	held := len(probes[0].all())
	more(5)
	require.Len(t, probes[0].all(), held, "probes of the one in maintenance")

	require.Equal(t, http.StatusOK, d.operate("enable", "b1").Status)
	poll(t, patience, "it to be up", func() bool { return d.instance("b1").State == "up" })
	require.Greater(t, len(probes[0].all()), held)
}

// check is a kind of check that a test can make fail for b1.
type check struct {
	keys string // of health
	set  func(well bool)
	says string // why it fails
}

func tcpCheck(t *testing.T) check {
	accept := func(l net.Listener) {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}
	b1 := listenAnywhere(t)
	b2 := listenOn(t, fmt.Sprintf("127.0.0.2:%d", port(b1)))
	t.Cleanup(func() { _, _ = b1.Close(), b2.Close() })
	go accept(b1)
	go accept(b2)
	return check{fmt.Sprintf("port: %d", port(b1)), func(well bool) {
		if !well {
			require.NoError(t, b1.Close())
			return
		}
		b1 = listenOn(t, b1.Addr().String())
		go accept(b1)
	}, "connection refused"}
}

func grpcCheck(t *testing.T) check {
	const service = "shop.Orders"
	serve := func(l net.Listener) *health.Server {
		states, s := health.NewServer(), grpc.NewServer()
		states.SetServingStatus(service, grpc_health_v1.HealthCheckResponse_SERVING)
		grpc_health_v1.RegisterHealthServer(s, states)
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = s.Serve(l) // until it is stopped
		}()
		t.Cleanup(func() {
			s.Stop()
			<-served
		})
		return states
	}
	l := listenAnywhere(t)
	b1 := serve(l)
	serve(listenOn(t, fmt.Sprintf("127.0.0.2:%d", port(l))))
	return check{fmt.Sprintf("port: %d, service: %s", port(l), service), func(well bool) {
		state := grpc_health_v1.HealthCheckResponse_NOT_SERVING
		if well {
			state = grpc_health_v1.HealthCheckResponse_SERVING
		}
		b1.SetServingStatus(service, state)
	}, "NOT_SERVING"}
}

func execCheck(t *testing.T) check {
	dir := t.TempDir()
	script, flag := filepath.Join(dir, "check.sh"), filepath.Join(dir, "127.0.0.1")
	for _, name := range []string{flag, filepath.Join(dir, "127.0.0.2")} {
		require.NoError(t, os.WriteFile(name, nil, 0o600))
	}
	require.NoError(t, os.WriteFile(script, []byte(`#!/bin/sh
test -e "$1/$LB_BACKEND_HOST" && exit 0
echo looking
echo "no flag for $LB_BACKEND_HOST"
exit 3
`), 0o700))
	return check{fmt.Sprintf("command: [%q, %q]", script, dir), func(well bool) {
		if well {
			require.NoError(t, os.WriteFile(flag, nil, 0o600))
			return
		}
		require.NoError(t, os.Remove(flag))
	}, "exit code 3: no flag for 127.0.0.1"}
}

func port(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

package e2e

import (
	"context"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"lb/internal/admin"
)

// slowBackend answers /slow with half of its body at once and the other half
// when release is closed, a WebSocket handshake on /ws with an echo, and
// everything else at once.
func slowBackend(t testing.TB, release <-chan struct{}) string {
	return backend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			_, _ = io.WriteString(w, "first half, ")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-release:
				_, _ = io.WriteString(w, "second half")
			case <-r.Context().Done():
			}
		case "/ws":
			conn, err := websocket.Accept(w, r, nil)
			if err != nil {
				return
			}
			defer func() { _ = conn.CloseNow() }()
			conn.SetReadLimit(1 << 20)
			for {
				kind, message, err := conn.Read(context.Background()) // ends with the connection
				if err != nil || conn.Write(context.Background(), kind, message) != nil {
					return
				}
			}
		default:
			_, _ = io.WriteString(w, "ok")
		}
	}))
}

// draining returns a configuration over one backend with so long a drain.
func draining(drain, address string) string {
	return proxyAll("", address) + "shutdown: { drain: " + drain + " }\n"
}

// halfway asks for /slow and returns once the first half is there.
func halfway(t testing.TB, d *daemon) *http.Response {
	t.Helper()
	c := d.raw(t, "GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	res := c.head(http.MethodGet)
	half := make([]byte, len("first half, "))
	_, err := io.ReadFull(res.Body, half)
	require.NoError(t, err)
	return res
}

// dialWS opens a WebSocket through lb, and says one thing to see it answered.
func dialWS(t testing.TB, d *daemon) *websocket.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	conn, res, err := websocket.Dial(ctx, "ws://"+d.Addr+"/ws", &websocket.DialOptions{HTTPClient: newClient(t)})
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, res.StatusCode)
	t.Cleanup(func() { _ = conn.CloseNow() })
	conn.SetReadLimit(1 << 20)
	echoes(t, conn, "hello")
	return conn
}

func echoes(t testing.TB, conn *websocket.Conn, message string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(t, conn.Write(ctx, websocket.MessageBinary, []byte(message)))
	_, back, err := conn.Read(ctx)
	require.NoError(t, err)
	require.True(t, message == string(back))
}

// Promise: at SIGTERM what is under way ends well, who still comes is served
// and sent away, and the daemon leaves as soon as nobody is left.
func TestStopLetsResponsesEnd(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	d := start(t, draining("15s", slowBackend(t, release)))
	kept := d.raw(t, "GET /kept HTTP/1.1\r\nHost: x\r\n\r\n")
	first := kept.head(http.MethodGet)
	_, err := io.Copy(io.Discard, first.Body)
	require.NoError(t, err)
	require.False(t, first.Close)
	slow := halfway(t, d)

	d.terminate()
	poll(t, patience, "the drain to begin", func() bool { return len(d.events("stopping")) == 1 })
	poll(t, patience, "answers to end their connections", func() bool { return d.get("/new").Close })
	require.Equal(t, http.StatusServiceUnavailable, d.get(d.Admin+"/readyz").Status)
	require.Equal(t, http.StatusOK, d.get(d.Admin+"/livez").Status)
	kept.send("GET /kept HTTP/1.1\r\nHost: x\r\n\r\n")
	last := kept.head(http.MethodGet)
	require.Equal(t, http.StatusOK, last.StatusCode)
	require.True(t, last.Close, "a kept connection is told to go too")
	require.False(t, d.hasExited(), "one response is under way")

	began := time.Now()
	close(release)
	rest, err := io.ReadAll(slow.Body)
	require.NoError(t, err)
	require.Equal(t, "second half", string(rest))
	require.Zero(t, d.wait())
	require.Less(t, time.Since(began), 10*time.Second, "nobody was left to wait for")
	require.Empty(t, d.events("drain time is over, cutting what is left"))
	require.Len(t, d.events("stopped"), 1)
	_, err = d.try(http.MethodGet, "/", nil)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

// Promise: what takes longer than the drain is cut, tunnels too, and that is
// still a clean stop.
func TestStopCutsWhatOutlastsTheDrain(t *testing.T) {
	t.Parallel()
	d := start(t, draining("300ms", slowBackend(t, nil)))
	slow, ws := halfway(t, d), dialWS(t, d)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, _, err := ws.Read(ctx) // answers a close frame
		ended <- err
	}()
	began := time.Now()
	d.terminate()
	_, err := io.ReadAll(slow.Body)
	require.Error(t, err, "a cut answer must not look whole")
	require.Equal(t, websocket.StatusGoingAway, websocket.CloseStatus(<-ended), "the tunnel is ended politely")
	require.NoError(t, ctx.Err(), "it was lb that ended it")
	require.Zero(t, d.wait())
	require.GreaterOrEqual(t, time.Since(began), 300*time.Millisecond, "the drain is theirs to use")
	require.Less(t, time.Since(began), 10*time.Second)
	require.Equal(t, 1.0, d.events("tunnels were asked to end")[0]["tunnels"])
	require.Equal(t, 1.0, d.events("drain time is over, cutting what is left")[0]["connections"], "the tunnel has ended when it was asked to")
	require.Len(t, d.accessLog(), 2, "they have their lines all the same")
	for _, line := range d.accessLog() {
		require.NotEqual(t, "backend_reset", line["code"], "it was not the backend's doing")
	}
}

// Promise: a WebSocket that ends within the drain ends it.
func TestStopWaitsForTunnels(t *testing.T) {
	t.Parallel()
	d := start(t, draining("15s", slowBackend(t, nil)))
	ws := dialWS(t, d)
	d.client.CloseIdleConnections()
	d.terminate()
	poll(t, patience, "the drain to begin", func() bool { return len(d.events("stopping")) == 1 })
	echoes(t, ws, "still there")
	require.NoError(t, ws.Close(websocket.StatusNormalClosure, ""))
	require.Zero(t, d.wait())
	require.Empty(t, d.events("drain time is over, cutting what is left"))
}

// Promise: readiness is off before anybody is sent away, for whoever watches it.
func TestReadinessComesBeforeTheDrain(t *testing.T) {
	t.Parallel()
	d := start(t, proxyAll("", slowBackend(t, nil))+"shutdown: { readiness: 1s, drain: 2s }\n")
	d.terminate()
	poll(t, patience, "readiness to be off", func() bool {
		return d.get(d.Admin+"/readyz").Status == http.StatusServiceUnavailable
	})
	a := d.get("/")
	require.Equal(t, http.StatusOK, a.Status)
	require.False(t, a.Close)
	poll(t, patience, "answers to end their connections", func() bool {
		a, err := d.try(http.MethodGet, "/", nil)
		return err == nil && a.Close
	})
	require.Zero(t, d.wait())
}

// Promise: SIGINT stops as SIGTERM does, and a second signal ends the waits, in
// order and with the exit code of a clean stop.
func TestSecondSignalHurries(t *testing.T) {
	t.Parallel()
	d := start(t, draining("1h", slowBackend(t, nil)))
	halfway(t, d)
	require.NoError(t, d.cmd.Process.Signal(os.Interrupt))
	poll(t, patience, "the drain to begin", func() bool { return len(d.events("stopping")) == 1 })
	d.told = true
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGTERM))
	require.Zero(t, d.wait())
	require.Len(t, d.events("stopped"), 1)
}

// Promise: a lease ends with the last byte, not with the head.
func TestLeaseEndsWithTheLastByte(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	d := start(t, draining("5s", slowBackend(t, release)))
	slow := halfway(t, d)
	require.Equal(t, 1.0, d.metric("lb_backend_in_flight", "backend", "b1"))
	require.Equal(t, int64(1), d.instance("b1").InFlight)
	close(release)
	_, err := io.ReadAll(slow.Body)
	require.NoError(t, err)
	poll(t, patience, "the lease to end", func() bool { return d.metric("lb_backend_in_flight", "backend", "b1") == 0 })
	require.Equal(t, int64(0), d.instance("b1").InFlight)
}

// Promise: the lease of a client that leaves in the middle ends too.
func TestLeaseEndsWithTheClient(t *testing.T) {
	t.Parallel()
	d := start(t, draining("5s", slowBackend(t, nil)))
	c := d.raw(t, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	require.Equal(t, http.StatusOK, c.head(http.MethodGet).StatusCode)
	require.Equal(t, int64(1), d.instance("b1").InFlight)
	require.NoError(t, c.Close())
	poll(t, patience, "the lease to end", func() bool { return d.instance("b1").InFlight == 0 })
	require.Equal(t, "up", d.instance("b1").State)
	require.Equal(t, 1.0, d.metric("lb_backend_requests_total", "outcome", "success"), "the backend did nothing wrong")
	d.stop()
	require.Equal(t, "client_closed", d.accessLog()[0]["code"])
}

// Promise: a WebSocket passes both ways, holds its lease until it is closed,
// and leaves one line that counts its bytes.
func TestLeaseEndsWithTheTunnel(t *testing.T) {
	t.Parallel()
	d := start(t, draining("5s", slowBackend(t, nil)))
	ws := dialWS(t, d)
	require.Equal(t, int64(1), d.instance("b1").InFlight)
	echoes(t, ws, strings.Repeat("0123456789abcdef", 32<<10)) // 512 KiB each way
	require.Equal(t, int64(1), d.instance("b1").InFlight)
	require.NoError(t, ws.Close(websocket.StatusNormalClosure, "done"))
	poll(t, patience, "the lease to end", func() bool { return d.instance("b1").InFlight == 0 })
	d.stop()
	lines := d.accessLog()
	require.Len(t, lines, 1)
	require.Equal(t, 101.0, lines[0]["status"])
	require.Greater(t, lines[0]["bytes_in"], float64(512<<10))
	require.Greater(t, lines[0]["bytes_out"], float64(512<<10))
	require.Empty(t, lines[0]["code"])
}

// Promise: where nothing is stored, what is still pending at a stop is told, one
// line a delivery, and the stop is clean.
func TestStopTellsWhatIsPending(t *testing.T) {
	t.Parallel()
	up := always(http.StatusCreated)
	failing := always(http.StatusInternalServerError)
	d := start(t, fanoutAll(", wait: 0s", backend(t, up), deadAddress(t), backend(t, failing))+"storage: { path: \"\" }\n")
	ids := make(map[any]bool)
	for range 2 {
		a := d.do(http.MethodPost, "/pay?card=4242", strings.NewReader("x"))
		require.Equal(t, http.StatusAccepted, a.Status)
		ids[a.Header.Get("X-LB-Fanout-Id")] = true
	}
	poll(t, patience, "the others", func() bool { return len(up.all()) == 2 && len(failing.all()) >= 2 })
	require.Zero(t, d.stop())
	lines := d.events("delivery still pending, lost with this process")
	require.Len(t, lines, 4, "two writes, two backends each")
	for _, l := range lines {
		require.True(t, ids[l["fanout"]])
		require.Equal(t, "write", l["route"])
		require.Equal(t, "POST", l["method"])
		require.Equal(t, "/pay", l["path"], "without its query, which may hold secrets")
		require.Contains(t, []any{"b2", "b3"}, l["backend"])
		require.Contains(t, l, "attempts")
	}
	require.Equal(t, 4.0, d.events("stopped")[0]["pending_deliveries"])
	require.Equal(t, false, d.events("stopped")[0]["kept"])
}

// Promise: every backend counts what it has, also in the list for operators.
func TestInFlightStandsInTheList(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	address := slowBackend(t, release)
	d := start(t, draining("5s", address))
	bodies := make([]*http.Response, 3)
	for i := range bodies {
		bodies[i] = halfway(t, d)
	}
	var all []admin.Instance
	d.get(d.Admin+"/instances").json(t, &all)
	require.Len(t, all, 1)
	require.Positive(t, all[0].EWMA, "heads have come")
	all[0].EWMA = 0
	require.Equal(t, admin.Instance{
		ID: "b1", Pool: "main", Address: address, Source: "config", Weight: 1,
		InFlight: 3, State: "up", Eligible: true, Reasons: admin.List[string]{},
	}, all[0])
	close(release)
	for _, b := range bodies {
		_, err := io.ReadAll(b.Body)
		require.NoError(t, err)
	}
	poll(t, patience, "the leases to end", func() bool { return d.instance("b1").InFlight == 0 })
}

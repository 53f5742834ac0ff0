package transport

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/outcome"
)

var others = Settings{Connect: time.Second, ResponseHeader: time.Minute, Idle: time.Hour, MaxIdle: 5}

// A request in flight ends as it began; what comes next has a connection, and
// the settings, of its own.
func TestConfigure(t *testing.T) {
	come, goOn := make(chan struct{}), make(chan struct{})
	s := newServer(t, func(w io.Writer, r *http.Request, _, _ int) bool {
		if r.Method == http.MethodPut {
			close(come)
			<-goOn
		}
		return ok(w)
	})
	tr, _ := newTransport(t, s.address)
	slow := make(chan int, 1)
	go func() {
		status, _ := roundTrip(t, tr, request(t, http.MethodPut, nil))
		slow <- status
	}()
	<-come
	status, _ := roundTrip(t, tr, request(t, "GET", nil))
	require.Equal(t, 200, status)

	tr.Configure(others)
	<-s.ended // the one that was idle
	status, _ = roundTrip(t, tr, request(t, "GET", nil))
	require.Equal(t, 200, status)
	close(goOn)
	require.Equal(t, 200, <-slow)
	<-s.ended // and it is not kept
	status, _ = roundTrip(t, tr, request(t, "GET", nil))
	require.Equal(t, 200, status)
	require.Equal(t, []string{"PUT 1", "GET 2", "GET 3", "GET 3"}, s.requests())
	require.Equal(t, 1, tr.conns.count())

	refusing := others
	refusing.Allow = func(netip.AddrPort) error { return errors.New("no") }
	tr.Configure(refusing)
	_, class := roundTrip(t, tr, request(t, "GET", nil))
	require.Equal(t, outcome.Unsent, class)
	require.Equal(t, time.Hour, tr.rt.Load().IdleConnTimeout)
}

// A cut reaches what began under earlier settings.
func TestCutReachesBehindAConfiguration(t *testing.T) {
	come := make(chan struct{}, 1)
	s := newServer(t, func(w io.Writer, _ *http.Request, _, _ int) bool {
		_, err := io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
		come <- struct{}{}
		return err == nil
	})
	tr, _ := newTransport(t, s.address)
	failed := make(chan error, 1)
	go func() {
		res, err := tr.RoundTrip(request(t, "GET", nil))
		if err == nil {
			_, err = io.ReadAll(res.Body)
			_ = res.Body.Close()
		}
		failed <- err
	}()
	<-come
	tr.Configure(others)
	tr.Configure(others)
	tr.Cut()
	requireCut(t, <-failed)
	<-s.ended
	require.Zero(t, tr.conns.count())
	tr.Configure(others)
	_, err := tr.RoundTrip(request(t, "GET", nil))
	requireCut(t, err)
}

// Between a request's choice of settings and its connection is time for others:
// its connection is not left behind.
func TestNoConnectionIsKeptUnderOldSettings(t *testing.T) {
	s := newServer(t, func(w io.Writer, _ *http.Request, _, _ int) bool { return ok(w) })
	tr, _ := newTransport(t, s.address)
	req := request(t, "GET", nil)
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GetConn: func(string) { tr.Configure(others) },
	}))
	status, _ := roundTrip(t, tr, req)
	require.Equal(t, 200, status)
	<-s.ended
	require.Zero(t, tr.conns.count())
}

func TestConfiguredWhileInUse(t *testing.T) {
	s := newServer(t, func(w io.Writer, _ *http.Request, _, _ int) bool { return ok(w) })
	tr, _ := newTransport(t, s.address)
	done := make(chan struct{})
	var working, changing sync.WaitGroup
	changing.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				tr.Configure(others)
			}
		}
	})
	for range 8 {
		working.Go(func() {
			for range 50 {
				res, err := tr.RoundTrip(request(t, "GET", nil))
				if err != nil {
					t.Error(err)
					return
				}
				_ = res.Body.Close()
			}
		})
	}
	working.Wait()
	close(done)
	changing.Wait()
	tr.Close()
	require.Eventually(t, func() bool { return tr.conns.count() == 0 }, 20*time.Second, time.Millisecond)
	for len(s.ended) > 0 {
		<-s.ended
	}
}

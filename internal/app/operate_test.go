package app

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"lb/internal/admin"
	"lb/internal/backend"
	"lb/internal/config"
	"lb/internal/outcome"
)

// newObserved returns an App with one backend, p/server1, which is checked and has
// not been probed. Nothing runs.
func newObserved(t *testing.T, core zapcore.Core) *App {
	t.Helper()
	c := withPolicy("roundrobin")
	var h config.Health
	h.SetDefaults()
	c.Pools[0].Backends[0].ID = "server1"
	c.Pools[0].Health, c.Storage.Path = &h, ""
	c.Complete()
	a, err := New(t.Context(), Options{Loaded: Loaded{Config: c}, Logs: &Logs{Main: zap.New(core)}})
	require.NoError(t, err)
	t.Cleanup(a.Close)
	return a
}

// say carries out what an operator wants of server1.
func say(ctx context.Context, a *App, word admin.Word) error {
	_, err := a.SetAdmin(ctx, admin.Change{ID: "server1", To: word, By: "ada"})
	return err
}

// Behind a change that hangs other operators are told so, and are not kept.
func TestOperatorsWaitForEachOtherForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hung, released := make(chan struct{}), make(chan struct{})
		a := newObserved(t, zapcore.RegisterHooks(
			zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{}), zapcore.AddSync(io.Discard), zapcore.InfoLevel),
			func(zapcore.Entry) error { // the one thing within a change that a test can hold
				close(hung)
				<-released
				return nil
			}))
		first := make(chan error)
		go func() { first <- say(t.Context(), a, admin.Draining) }()
		<-hung

		began := time.Now()
		var e *outcome.Error
		require.ErrorAs(t, say(t.Context(), a, admin.Enabled), &e)
		require.Equal(t, outcome.StorageUnavailable, e.Code)
		require.Equal(t, 5*time.Second, time.Since(began))

		gone, leave := context.WithCancel(t.Context())
		leave()
		require.ErrorIs(t, say(gone, a, admin.Enabled), context.Canceled)
		require.Equal(t, 5*time.Second, time.Since(began), "nobody waits for who has left")

		second := make(chan error)
		go func() { second <- say(t.Context(), a, admin.Draining) }()
		synctest.Wait()
		close(released)
		require.NoError(t, <-first)
		require.NoError(t, <-second, "it waited, and its turn came")
		records, err := a.Audit(t.Context(), 0, 10)
		require.NoError(t, err)
		require.Len(t, records, 1, "who was refused has changed nothing")
	})
}

// The log tells of each of an operator's words once.
func TestTheLogOfMaintenance(t *testing.T) {
	core, logged := observer.New(zapcore.InfoLevel)
	a := newObserved(t, core)
	b := a.registry.pools[0].Members().All[0]
	a.registry.pools[0].SetHealth(b, backend.HealthUp, "a check passed")
	for _, word := range []admin.Word{admin.Maintenance, admin.Enabled, admin.Draining, admin.Enabled} {
		require.NoError(t, say(t.Context(), a, word))
	}
	var changes []string
	for _, line := range logged.FilterMessage("backend changed state").All() {
		fields := line.ContextMap()
		changes = append(changes, fields["from"].(string)+" > "+fields["to"].(string)+": "+fields["reason"].(string))
	}
	require.Equal(t, []string{
		"unknown > up: a check passed",
		"up > maintenance: maintenance, said by ada",
		"maintenance > unknown: enabled, said by ada",
		"unknown > draining: draining, said by ada",
		"draining > unknown: enabled, said by ada",
	}, changes)
}

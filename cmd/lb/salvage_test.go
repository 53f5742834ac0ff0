package main

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/fanout"
	"lb/internal/store"
)

func TestSalvage(t *testing.T) {
	t.Setenv("LB_TEST_KEY", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	from, to := filepath.Join(t.TempDir(), "lb.db"), filepath.Join(t.TempDir(), "new.db")
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(i)
	}
	s, err := store.Open(from)
	require.NoError(t, err)
	j, err := s.Journal(store.JournalOptions{Key: key})
	require.NoError(t, err)
	require.NoError(t, j.Admit(t.Context(), &fanout.Record{
		ID: "one", Route: "register", Pool: "users", Created: time.Now(), State: fanout.WritePending,
		Write:      fanout.Write{Method: "POST", Target: "/register"},
		Deliveries: []fanout.Delivery{{Backend: "a", State: fanout.DeliveryPending}},
	}))
	require.NoError(t, s.Close())

	run := func(args ...string) (string, error) {
		var out bytes.Buffer
		c := salvageCommand()
		c.SetOut(&out)
		c.SetErr(&out)
		c.SetArgs(args)
		err := c.Execute()
		return out.String(), err
	}
	_, err = run(from, to)
	require.ErrorContains(t, err, "key")
	require.NoFileExists(t, to)
	_, err = run(from, to, "--key-env", "LB_TEST_NO_KEY")
	require.ErrorContains(t, err, "--key-env: the variable LB_TEST_NO_KEY is no key")

	out, err := run(from, to, "--key-env", "LB_TEST_KEY")
	require.NoError(t, err)
	require.Contains(t, out, "1 writes to deliver")
	_, err = run(from, to, "--key-env", "LB_TEST_KEY")
	require.ErrorContains(t, err, "choose another path")
}

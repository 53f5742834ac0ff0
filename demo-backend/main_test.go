package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func env(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func TestFromEnv(t *testing.T) {
	host, err := os.Hostname()
	require.NoError(t, err)

	s, err := fromEnv(env(nil))
	require.NoError(t, err)
	require.Equal(t, host, s.Name)
	require.Equal(t, "8080", s.port)
	require.False(t, s.SkipSome)

	s, err = fromEnv(env(map[string]string{"SERVER_NAME": "one", "SERVER_PORT": "9000", "SKIP_SOME_REQUESTS": "true", "USERS_FILE": "/data/users"}))
	require.NoError(t, err)
	require.Equal(t, "one", s.Name)
	require.Equal(t, "9000", s.port)
	require.True(t, s.SkipSome)
	require.Equal(t, "/data/users", s.usersFile)
}

func TestFromEnvRefuses(t *testing.T) {
	for name, value := range map[string]string{"SKIP_SOME_REQUESTS": "sometimes", "SERVER_PORT": "http"} {
		_, err := fromEnv(env(map[string]string{name: value}))
		require.ErrorContains(t, err, name+`="`+value+`": want`)
	}
	_, err := fromEnv(env(map[string]string{"SERVER_PORT": "0"}))
	require.Error(t, err)
}

func TestServeCheckAndStop(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(ln.Addr().String())
	require.NoError(t, err)
	require.NoError(t, ln.Close())

	require.Error(t, check(t.Context(), port), "nothing listens yet")

	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, settings{port: port, usersFile: filepath.Join(t.TempDir(), "users")}) }()
	require.Eventually(t, func() bool { return check(t.Context(), port) == nil }, 5*time.Second, 10*time.Millisecond)
	require.ErrorContains(t, serve(t.Context(), settings{port: port}), "in use")
	require.ErrorContains(t, serve(t.Context(), settings{usersFile: t.TempDir()}), "is a directory")

	stop()
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("still serving")
	}
}

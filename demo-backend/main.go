// Command demo-backend is one server of the demonstration: it keeps users and, if asked, drops
// some requests. Everything it knows comes from the environment:
//
//	SERVER_NAME         what it calls itself (default: the host name)
//	SERVER_PORT         where it listens (default: 8080)
//	SKIP_SOME_REQUESTS  "true": every fifth request is answered 500 (default: false)
//	USERS_FILE          keeps the users over a restart (default: none, they are in memory only)
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"lb/internal/demo"
)

func main() {
	healthcheck := flag.Bool("healthcheck", false, "ask the server on SERVER_PORT whether it is well, then exit 0 or 1")
	flag.Parse()

	if err := run(*healthcheck); err != nil {
		fmt.Fprintln(os.Stderr, "demo-backend:", err)
		os.Exit(1)
	}
}

func run(healthcheck bool) error {
	s, err := fromEnv(os.Getenv)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if healthcheck {
		return check(ctx, s.port)
	}
	return serve(ctx, s)
}

type settings struct {
	demo.Options
	port, usersFile string
}

func fromEnv(getenv func(string) string) (settings, error) {
	host, _ := os.Hostname() // without one the server just has no name
	s := settings{
		Options: demo.Options{Name: cmp.Or(getenv("SERVER_NAME"), host)},
		port:    cmp.Or(getenv("SERVER_PORT"), "8080"),

		usersFile: getenv("USERS_FILE"),
	}
	if n, err := strconv.ParseUint(s.port, 10, 16); err != nil || n == 0 {
		return s, fmt.Errorf("SERVER_PORT=%q: want a port from 1 to 65535", s.port)
	}
	var err error
	skip := cmp.Or(getenv("SKIP_SOME_REQUESTS"), "false")
	if s.SkipSome, err = strconv.ParseBool(skip); err != nil {
		return s, fmt.Errorf("SKIP_SOME_REQUESTS=%q: want true or false", skip)
	}
	return s, nil
}

// serve answers until ctx ends, then lets what is running finish.
func serve(ctx context.Context, s settings) (err error) {
	backend := demo.NewBackend(s.Options)
	if s.usersFile != "" {
		if err := backend.KeepIn(s.usersFile); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, backend.Close()) }()

	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", ":"+s.port)
	if err != nil {
		return err
	}
	srv := &http.Server{
		Handler:           backend,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       75 * time.Second, // longer than lb keeps an idle connection, so lb is the one to close it
		MaxHeaderBytes:    64 << 10,
	}
	slog.New(slog.NewJSONHandler(os.Stdout, nil)).Info("serving",
		"name", s.Name, "address", ln.Addr().String(), "skip_some_requests", s.SkipSome)

	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		stopped <- srv.Shutdown(grace)
	}()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

// check is the container's health check: the image has no shell and no curl.
func check(ctx context.Context, port string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+port+"/healthz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("/healthz answered %s", resp.Status)
	}
	return nil
}

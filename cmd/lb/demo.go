package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"lb/internal/app"
	"lb/internal/config"
	"lb/internal/config/load"
	"lb/internal/demo"
)

func demoCommand() *cobra.Command {
	var listen, adminAddress string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run everything in one process: lb, three backends (one of them flaky), and curls to try",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDemo(cmd.Context(), listen, adminAddress, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:8080", "the address to serve on")
	cmd.Flags().StringVar(&adminAddress, "admin", "127.0.0.1:9901", "the address of the admin listener")
	return cmd
}

// runDemo serves the demo's routes over three backends of its own.
func runDemo(ctx context.Context, listen, adminAddress string, stdout, stderr io.Writer) error {
	servers, err := startBackends(ctx, 3)
	if err != nil {
		return err
	}
	defer servers.stop()
	c := load.Demo(listen, adminAddress, servers.backends)
	c.Log.Format = "console"
	c.Shutdown.Drain = config.Duration(time.Second)
	if problems, _ := config.Validate(c, os.LookupEnv); len(problems) > 0 {
		return problems
	}
	return serve(ctx, &source{made: c}, stdout, stderr, func(a *app.App) {
		fmt.Fprint(stdout, demoText(a.Addr("public"), a.Addr("admin"), servers.backends))
	})
}

// demoText is what the demo prints once it serves.
func demoText(public, adminAddress string, backends []config.Backend) string {
	var text strings.Builder
	fmt.Fprintf(&text, `
lb serves http://%s over three backends; server3 drops every fifth request.
Try, from another terminal:

`, public)
	w := tabwriter.NewWriter(&text, 0, 0, 3, ' ', 0)
	for _, line := range [][2]string{
		{"curl http://" + public + "/login", "one backend, in turn"},
		{"curl -i -d username=ada -d password=x http://" + public + "/register", "all three, until each says 201"},
		{"curl -i -d username=ada -d password=y http://" + public + "/changePassword", "the same"},
		{"curl -s http://" + public + "/metrics | grep domain", "who succeeded, who failed"},
		{"curl http://" + adminAddress + "/instances", "the admin listener"},
	} {
		fmt.Fprintf(w, "  %s\t# %s\n", line[0], line[1])
	}
	for _, b := range backends {
		fmt.Fprintf(w, "  curl http://%s/state\t# what %s holds\n", b.Address, b.ID)
	}
	_ = w.Flush() // to a strings.Builder
	text.WriteString("\nCtrl-C stops it. Below is the log: what lb does, and a line for each request.\n\n")
	return text.String()
}

// demoServers are the demo's backends, running.
type demoServers struct {
	backends []config.Backend
	servers  []*http.Server
	running  sync.WaitGroup
}

// startBackends starts n backends on free loopback ports; the last is flaky.
func startBackends(ctx context.Context, n int) (*demoServers, error) {
	d := new(demoServers)
	var lc net.ListenConfig
	for i := 1; i <= n; i++ {
		l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			d.stop()
			return nil, err
		}
		name := fmt.Sprintf("server%d", i)
		server := &http.Server{
			Handler:           demo.NewBackend(demo.Options{Name: name, SkipSome: i == n}),
			ReadHeaderTimeout: 10 * time.Second,
			ReadTimeout:       30 * time.Second,
			WriteTimeout:      30 * time.Second,
			IdleTimeout:       75 * time.Second,
		}
		d.backends = append(d.backends, config.Backend{ID: name, Address: l.Addr().String(), Weight: 1})
		d.servers = append(d.servers, server)
		d.running.Go(func() {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				panic(err) // a listener of our own on loopback does not fail
			}
		})
	}
	return d, nil
}

func (d *demoServers) stop() {
	for _, s := range d.servers {
		_ = s.Close()
	}
	d.running.Wait()
}

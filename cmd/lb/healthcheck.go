package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lb/internal/config/load"
)

func healthcheckCommand() *cobra.Command {
	var file, address string
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Exit 0 if the local daemon is ready; for containers without a shell",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if address == "" {
				c, _, err := load.File(file, load.Options{})
				if err != nil {
					return configError(err)
				}
				address = c.Admin.Address
			}
			return healthcheck(cmd.Context(), address)
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "the daemon's configuration file, for its admin address")
	cmd.Flags().StringVar(&address, "admin", "", "the admin listener's address, host:port or unix:/path")
	return cmd
}

// healthcheck asks the daemon at an admin address whether it is ready.
func healthcheck(ctx context.Context, address string) error {
	network, dial := "tcp", address
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, dial = "unix", path
	} else if host, port, err := net.SplitHostPort(address); err == nil && (host == "" || host == "0.0.0.0" || host == "::") {
		dial = net.JoinHostPort("localhost", port) // a daemon on every address is asked on this machine's
	}
	client := &http.Client{
		Timeout: 3 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, dial)
			},
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/readyz", nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("not ready: %w", err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s answered %s", address, res.Status)
	}
	return nil
}

package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"
)

func healthcheckCommand() *cobra.Command {
	var file, address string
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Exit 0 if the local daemon is ready; for containers without a shell",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			address, err := adminAddress(address, file)
			if err != nil {
				return err
			}
			return healthcheck(cmd.Context(), address)
		},
	}
	addAdminFlags(cmd, &address, &file)
	return cmd
}

// healthcheck asks the daemon at an admin address whether it is ready, for
// which it needs no token.
func healthcheck(ctx context.Context, address string) error {
	client, err := newAdminClient(address, "")
	if err != nil {
		return err
	}
	got, err := client.send(ctx, http.MethodGet, "/readyz")
	if err != nil {
		return fmt.Errorf("not ready: %w", err)
	}
	if got.code != http.StatusOK {
		return fmt.Errorf("not ready: %s answered %s", address, visible(got.status))
	}
	return nil
}

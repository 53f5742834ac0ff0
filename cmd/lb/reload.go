package main

import (
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"lb/internal/admin"
)

// changeTimeout is for a request that reads a configuration: as long as the admin
// listener gives itself for an answer.
const changeTimeout = 30 * time.Second

func reloadCommand() *cobra.Command {
	var flags operatorFlags
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the daemon serve its configuration file as it is now, or say what is wrong with it",
		Long: `Have the daemon read its configuration again and serve it, and print what has
changed. Nothing else is touched: what is the same before and after keeps its
connections, counters, health, limits and queues.

A configuration that cannot be served is refused as a whole, with every problem,
and the one before goes on; lb check finds most of them without the daemon.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return flags.reload(cmd, "/reload")
		},
	}
	flags.addTo(cmd)
	return cmd
}

// reload sends an order after which the daemon may serve another configuration,
// and prints what comes of it.
func (f *operatorFlags) reload(cmd *cobra.Command, path string) error {
	client, err := f.client()
	if err != nil {
		return err
	}
	client.http.Timeout = changeTimeout
	var now admin.Reloaded
	if err := client.ask(cmd.Context(), http.MethodPost, path, &now); err != nil {
		return err
	}
	if f.output == "json" {
		return printJSON(cmd.OutOrStdout(), now)
	}
	return printReloaded(cmd.OutOrStdout(), now)
}

package main

import (
	"net/http"
	"time"

	"github.com/spf13/cobra"
)

// changeTimeout is for a request that reads a configuration: as long as the admin
// listener gives itself for an answer.
const changeTimeout = 30 * time.Second

func reloadCommand() *cobra.Command {
	flags := operatorFlags{timeout: changeTimeout}
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
			return show(cmd, &flags, http.MethodPost, "/reload", printReloaded)
		},
	}
	flags.addTo(cmd)
	return cmd
}

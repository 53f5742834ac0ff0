// Command lb is a reverse-proxy HTTP load balancer: it spreads reads over equal
// backends and writes to all of them.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"lb/internal/app"
)

// Set at link time where the build knows better than Go's own build
// information: -ldflags "-X main.version=1.2.3 -X main.commit=abcdef".
var (
	version = "dev"
	commit  = ""
)

// Exit codes: 0 is a clean stop.
const (
	exitUsage = 1 // bad configuration or usage
	exitBind  = 2 // a socket could not be bound, or the storage not opened
)

// hurry is closed when a stop is not to wait for anything any more.
var hurry = make(chan struct{})

func main() {
	ctx, stop := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() { // the first stops, the second hurries, a third ends the process at once
		<-signals
		stop()
		<-signals
		signal.Stop(signals)
		close(hurry)
	}()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "lb: "+err.Error())
		if errors.Is(err, app.ErrBind) || errors.Is(err, app.ErrStorage) {
			os.Exit(exitBind)
		}
		os.Exit(exitUsage)
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:     "lb",
		Version: version,
		Short:   "An HTTP load balancer that reads from one backend and writes to all of them",
		Example: `  lb demo                      everything in one process, with curls to try
  lb check -c lb.yaml          what a configuration means, or everything that is wrong with it
  lb serve -c lb.yaml          the daemon
  lb instances                 its backends, and how each of them is
  lb drain server1 --wait 30s  no new requests for one of them, until it is idle
  lb fanout list               writes, and which backends lack them
  lb reload                    serve the configuration file as it is now
  lb config rollback 6         serve an older one again`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(serveCommand(), checkCommand(), demoCommand(), healthcheckCommand(), versionCommand(), salvageCommand(),
		instancesCommand(), drainCommand(), maintenanceCommand(), enableCommand(), fanoutCommand(),
		reloadCommand(), configCommand())
	return root
}

// noArgs refuses arguments, and says where a file goes.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.Flags().Lookup("config") != nil {
		return fmt.Errorf("%s takes no argument %q; a configuration file goes behind -c", cmd.CommandPath(), args[0])
	}
	return fmt.Errorf("%s takes no argument %q", cmd.CommandPath(), args[0])
}

// revision returns the commit that the binary was built from, if it is known.
func revision() string {
	if commit != "" {
		return commit
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}

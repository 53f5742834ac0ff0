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
	exitBind  = 2 // a socket could not be bound
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // a second signal ends the process at once
	}()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "lb: "+err.Error())
		if errors.Is(err, app.ErrBind) {
			os.Exit(exitBind)
		}
		os.Exit(exitUsage)
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "lb",
		Short: "An HTTP load balancer that reads from one backend and writes to all of them",
		Example: `  lb demo                      everything in one process, with curls to try
  lb check -c lb.yaml          what a configuration means, or everything that is wrong with it
  lb serve -c lb.yaml          the daemon`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(serveCommand(), checkCommand(), demoCommand(), healthcheckCommand(), versionCommand())
	return root
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

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"lb/internal/app"
	"lb/internal/config"
	"lb/internal/config/load"
	"lb/internal/socket"
)

func serveCommand() *cobra.Command {
	var file, level string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon until it is told to stop",
		Long: `Run the daemon until it gets SIGTERM or SIGINT. A second signal makes it stop
without waiting for connections, a third ends it at once.

Without -c the configuration is ./lb.yaml, else /etc/lb/lb.yaml, else the
environment profile: BACKEND_POOL=host:port,host:port lb serve.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			source, err := findSource(file, load.Options{Overrides: overrides(level)})
			if err != nil {
				return err
			}
			return serve(cmd.Context(), source, cmd.OutOrStdout(), cmd.ErrOrStderr(), nil)
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "the configuration file")
	cmd.Flags().StringVar(&level, "log-level", "", "debug, info, warn or error; wins over the file")
	return cmd
}

func overrides(level string) map[string]string {
	if level == "" {
		return nil
	}
	return map[string]string{"log.level": level}
}

// configError puts a headline over a list of problems.
func configError(err error) error {
	var problems config.Problems
	if errors.As(err, &problems) {
		noun := "problems"
		if len(problems) == 1 {
			noun = "problem"
		}
		return fmt.Errorf("the configuration has %d %s:\n%w", len(problems), noun, err)
	}
	return err
}

// serve runs a daemon with the configuration of source until ctx ends. bound is
// called, if it is not nil, when every socket is bound.
func serve(ctx context.Context, source *source, stdout, stderr io.Writer, bound func(*app.App)) error {
	sockets, err := socket.Inherit() // first: it owns the descriptors that follow standard error
	if err != nil {
		return fmt.Errorf("%w: %w", app.ErrBind, err)
	}
	watcher := source.watcher() // before the file is read, so that no change gets lost
	l, err := source.load()
	if err != nil {
		return configError(err)
	}
	logs, err := app.NewLogs(l.Config.Log, stdout, stderr)
	if err != nil {
		return err
	}
	defer logs.Close()
	tuneMemory()
	restore, err := zap.RedirectStdLogAt(logs.Main, zap.DebugLevel) // net/http prints what backends do wrong
	if err != nil {
		return err
	}
	defer restore()
	logs.Main.Info("starting", zap.String("version", version), zap.Stringer("config", source),
		zap.Int("routes", len(l.Config.Routes)), zap.Int("pools", len(l.Config.Pools)))
	for _, w := range l.Warnings {
		logs.Main.Warn("configuration", zap.String("warning", w.String()))
	}
	a, err := app.New(ctx, app.Options{
		Loaded: l, Load: source.load, Parse: source.parse,
		AdminToken: token(l.Config.Admin.TokenEnv), RegistrationToken: token(l.Config.Registration.TokenEnv),
		Logs: logs, Sockets: sockets, Hurry: hurry, Version: version, Commit: revision(),
	})
	if err != nil {
		return err
	}
	if err := a.Bind(ctx); err != nil {
		a.Close()
		return err
	}
	if bound != nil {
		bound(a)
	}
	ctx, end := context.WithCancel(ctx)
	reloads := reloadOn(ctx, a, watcher, logs.Main)
	defer reloads.Wait()
	defer end() // before that: Run may end by itself
	return a.Run(ctx)
}

// token reads the token in the environment variable of that name; a valid
// configuration names one that is set, or none.
func token(name string) string {
	if name == "" {
		return ""
	}
	return strings.TrimSpace(os.Getenv(name))
}

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
			c, warnings, err := load.File(file, load.Options{Overrides: overrides(level)})
			if err != nil {
				return configError(err)
			}
			source, err := load.Find(file, load.Options{})
			if err != nil {
				return err
			}
			if source == "" {
				source = "environment"
			}
			return serve(cmd.Context(), source, c, warnings, cmd.OutOrStdout(), cmd.ErrOrStderr(), nil)
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

// serve runs a daemon with a valid configuration, which came from source, until
// ctx ends. bound is called, if it is not nil, when every socket is bound.
func serve(ctx context.Context, source string, c *config.Config, warnings []config.Problem, stdout, stderr io.Writer, bound func(*app.App)) error {
	logs, err := app.NewLogs(c.Log, stdout, stderr)
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
	logs.Main.Info("starting", zap.String("version", version), zap.String("config", source),
		zap.Int("routes", len(c.Routes)), zap.Int("pools", len(c.Pools)))
	for _, w := range warnings {
		logs.Main.Warn("configuration", zap.String("warning", w.String()))
	}
	effective, err := load.Effective(c)
	if err != nil {
		return err
	}
	a, err := app.New(ctx, app.Options{
		Config: c, Effective: effective, AdminToken: token(c.Admin.TokenEnv), RegistrationToken: token(c.Registration.TokenEnv),
		Logs: logs, Hurry: hurry, Version: version, Commit: revision(),
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

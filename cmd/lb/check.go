package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"lb/internal/app"
	"lb/internal/config"
	"lb/internal/config/load"
)

func checkCommand() *cobra.Command {
	var file string
	var effective bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what a configuration means, or everything that is wrong with it",
		Long: `Validate and compile a configuration without dialling or binding anything, and
print its listeners, its routes in the order in which they match, and its pools.
Every problem is reported at once, with its place and what to write instead.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, warnings, err := load.File(file, load.Options{})
			if err != nil {
				return configError(err)
			}
			for _, w := range warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+w.String())
			}
			if effective {
				text, err := load.Effective(c)
				if err != nil {
					return err
				}
				_, err = cmd.OutOrStdout().Write(text)
				return err
			}
			return describe(cmd.OutOrStdout(), c)
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "the configuration file")
	cmd.Flags().BoolVar(&effective, "effective", false, "print the configuration with all defaults")
	return cmd
}

// describe prints a valid configuration as tables.
func describe(out io.Writer, c *config.Config) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LISTENER\tADDRESS")
	for _, l := range c.Listeners {
		fmt.Fprintf(w, "%s\t%s\n", l.Name, l.Address)
	}
	if c.Metrics.Address != "" {
		fmt.Fprintf(w, "(metrics)\t%s\n", c.Metrics.Address)
	}
	if c.Admin.Address != "" {
		fmt.Fprintf(w, "(admin)\t%s\n", c.Admin.Address)
	}
	fmt.Fprintln(w, "\nROUTE\tHOSTS\tMETHODS\tPATH\tDOES")
	for _, i := range app.MatchOrder(c) {
		r := c.Routes[i]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.Name, orAny(r.Match.Hosts), orAny(r.Match.Methods), pathOf(r.Match), does(r))
	}
	fmt.Fprintln(w, "\nPOOL\tPOLICY\tBACKEND\tADDRESS\tWEIGHT")
	for _, p := range c.Pools {
		if len(p.Backends) == 0 {
			fmt.Fprintf(w, "%s\t%s\t(none)\n", p.Name, p.Policy.Name)
		}
		for _, b := range p.Backends {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\n", p.Name, p.Policy.Name, b.ID, b.Address, b.Weight)
		}
	}
	return w.Flush()
}

func orAny(words []string) string {
	if len(words) == 0 {
		return "any"
	}
	return strings.Join(words, ",")
}

func pathOf(m config.Match) string {
	switch {
	case m.Path != "":
		return m.Path
	case m.PathPrefix != "":
		return strings.TrimSuffix(m.PathPrefix, "/") + "/…"
	}
	return "any"
}

func does(r config.Route) string {
	switch {
	case r.Proxy != nil:
		return "one of " + r.Proxy.Pool
	case r.Fanout != nil:
		return fmt.Sprintf("all of %s, ack %s", r.Fanout.Pool, r.Fanout.Ack)
	case r.Metrics:
		return "metrics"
	default:
		return fmt.Sprintf("respond %d", r.Respond.Status)
	}
}

package main

import (
	"fmt"
	"io"
	"path/filepath"
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
print its listeners, its routes in the order in which they match, its pools, and
who may register. Every problem is reported at once, with its place and what to write instead.`,
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
	fmt.Fprintln(w, "\nPOOL\tPOLICY\tBACKEND\tADDRESS\tWEIGHT\tHEALTH\tBREAKER\tLIMITS\tQUEUE")
	for _, p := range c.Pools {
		policy := policyOf(p.Policy)
		rest := fmt.Sprintf("%s\t%s\t%s\t%s", checkOf(p.Health), onOff(p.Breaker != nil), limitsOf(p.Limits), queueOf(p.Limits.Queue))
		if len(p.Backends) == 0 {
			fmt.Fprintf(w, "%s\t%s\t(none)\t\t\t%s\n", p.Name, policy, rest)
		}
		for _, b := range p.Backends {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", p.Name, policy, b.ID, b.Address, b.Weight, rest)
		}
	}
	if r := c.Registration; r.Enabled {
		fmt.Fprintln(w, "\nREGISTRATION\tTTL\tALLOWED\tMAX-INSTANCES\tMAX-POOLS\tLIMITS\tQUEUE")
		fmt.Fprintf(w, "into %s\t%s\t%s\t%d\t%d\t%s\t%s\n", strings.Join(registrable(c), ", "), r.TTL, orNone(r.Allow),
			r.MaxInstances, r.MaxPools, limitsOf(r.Limits), queueOf(r.Limits.Queue))
	}
	return w.Flush()
}

// policyOf writes a policy with its settings: hash(header:X-User, bounded_load
// 1.25).
func policyOf(p config.Policy) string {
	var settings []string
	if p.Key != "" {
		settings = append(settings, p.Key)
	}
	if p.BoundedLoad != 0 {
		settings = append(settings, fmt.Sprintf("bounded_load %v", p.BoundedLoad))
	}
	if p.Score != "" {
		settings = append(settings, scoreOf(p.Score))
	}
	if len(settings) == 0 {
		return p.Name
	}
	return fmt.Sprintf("%s(%s)", p.Name, strings.Join(settings, ", "))
}

// scoreOf writes an expression on one line, and cuts it where it would make the
// table too wide.
func scoreOf(score string) string {
	const most = 60
	text := []rune(visible(strings.Join(strings.Fields(score), " ")))
	if len(text) > most {
		text = append(text[:most-1], '…')
	}
	return string(text)
}

func limitsOf(l config.Limits) string {
	var words []string
	if l.PerBackend > 0 {
		words = append(words, fmt.Sprintf("%d a backend", l.PerBackend))
	}
	if l.Total > 0 {
		words = append(words, fmt.Sprintf("%d in all", l.Total))
	}
	if len(words) == 0 {
		return "off"
	}
	return strings.Join(words, ", ")
}

func queueOf(q config.Queue) string {
	if q.Limit == 0 {
		return "off"
	}
	return fmt.Sprintf("%d for %s", q.Limit, q.Timeout)
}

// registrable names the pools that backends may register into, those that they
// make last.
func registrable(c *config.Config) []string {
	var names []string
	for _, p := range c.Pools {
		if p.Registration {
			names = append(names, p.Name)
		}
	}
	return append(names, "new pools at "+c.Registration.RoutePrefix+"…")
}

// checkOf says what asks a pool's backends how they are, and how often.
func checkOf(h *config.Health) string {
	if h == nil {
		return "off"
	}
	words := []string{h.Type}
	switch h.Type {
	case config.CheckHTTP:
		words = append(words, h.Path)
	case config.CheckGRPC:
		if h.Service != "" {
			words = append(words, h.Service)
		}
	case config.CheckExec:
		words = append(words, filepath.Base(h.Command[0]))
	}
	return fmt.Sprintf("%s every %s", strings.Join(words, " "), h.Interval)
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func orAny(words []string) string {
	if len(words) == 0 {
		return "any"
	}
	return strings.Join(words, ",")
}

func orNone(words []string) string {
	if len(words) == 0 {
		return "none"
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

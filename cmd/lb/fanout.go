package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"lb/internal/admin"
)

func fanoutCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fanout",
		Short: "Show writes and where they have not arrived, try parked deliveries again, or leave them out",
		Example: `  lb fanout list --state parked   what was given up, and why
  lb fanout show ID               every delivery of one write
  lb fanout retry ID BACKEND      try a parked delivery again
  lb fanout skip ID BACKEND       leave it out: that backend will lack the write`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%s takes list, show, retry or skip, not %q", cmd.CommandPath(), args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(fanoutListCommand(), fanoutShowCommand(),
		deliveryCommand("retry", "Try a parked delivery again, with all its attempts anew"),
		deliveryCommand("skip", "Leave a delivery out that is not done: its backend will lack the write"))
	return cmd
}

// fanoutFilter says which writes lb fanout list shows.
type fanoutFilter struct {
	state, pool string
	limit       int
	all         bool
}

func fanoutListCommand() *cobra.Command {
	var flags operatorFlags
	var filter fanoutFilter
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show writes, the oldest first, and which backends lack them",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := flags.client()
			switch {
			case err != nil:
				return err
			case filter.limit < 1:
				return errors.New("--limit is at least 1; with --all every write is shown")
			}
			found, more, err := client.fanouts(cmd.Context(), filter)
			if err != nil {
				return err
			}
			if flags.output == "json" {
				return printJSON(cmd.OutOrStdout(), found)
			}
			return printFanouts(cmd.OutOrStdout(), found, more, time.Now())
		},
	}
	flags.addTo(cmd)
	cmd.Flags().StringVar(&filter.state, "state", "", "only those in this state: "+strings.Join(admin.FanoutStates, ", "))
	cmd.Flags().StringVar(&filter.pool, "pool", "", "only those of this pool")
	cmd.Flags().IntVar(&filter.limit, "limit", admin.DefaultFanouts, "at most this many")
	cmd.Flags().BoolVar(&filter.all, "all", false, "all of them, however many")
	cmd.MarkFlagsMutuallyExclusive("limit", "all")
	return cmd
}

func fanoutShowCommand() *cobra.Command {
	var flags operatorFlags
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show one write and its delivery to each backend",
		Args:  ids("the id of one write; lb fanout list shows them", 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return show(cmd, &flags, http.MethodGet, "/fanout/"+url.PathEscape(args[0]), printFanoutNow)
		},
	}
	flags.addTo(cmd)
	return cmd
}

// printFanoutNow prints a write as of now.
func printFanoutNow(out io.Writer, f admin.Fanout) error { return printFanout(out, f, time.Now()) }

// deliveryCommand returns a command that does to one delivery what the verb says.
func deliveryCommand(verb, short string) *cobra.Command {
	var flags operatorFlags
	cmd := &cobra.Command{
		Use:   verb + " ID BACKEND",
		Short: short,
		Args:  ids("the id of one write and that of a backend; lb fanout list shows both", 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "/fanout/" + url.PathEscape(args[0]) + "/deliveries/" + url.PathEscape(args[1]) + "/" + verb
			return show(cmd, &flags, http.MethodPost, path, printFanoutNow)
		},
	}
	flags.addTo(cmd)
	return cmd
}

// ids asks for exactly n arguments, none of them empty, which would name
// another path.
func ids(what string, n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == n && !slices.Contains(args, "") {
			return nil
		}
		return fmt.Errorf("%s takes %s", cmd.CommandPath(), what)
	}
}

// fanouts returns the writes that the filter lets through, page by page, and
// whether there are more than its limit.
func (c *adminClient) fanouts(ctx context.Context, f fanoutFilter) (all admin.List[admin.Fanout], more bool, err error) {
	query := url.Values{}
	if f.state != "" {
		query.Set("state", f.state)
	}
	if f.pool != "" {
		query.Set("pool", f.pool)
	}
	for after := uint64(0); ; {
		size := admin.DefaultFanouts
		if !f.all {
			size = min(size, f.limit-len(all))
		}
		query.Set("limit", strconv.Itoa(size))
		var page admin.FanoutPage
		if err := c.ask(ctx, http.MethodGet, "/fanout?"+query.Encode(), &page); err != nil {
			return nil, false, err
		}
		all = append(all, page.Fanouts...)
		more = page.Next != nil && *page.Next > after // else it would not end
		if !more || !f.all && len(all) >= f.limit {
			return all, more, nil
		}
		after = *page.Next
		query.Set("after", strconv.FormatUint(after, 10))
	}
}

// printFanouts prints a table of writes.
func printFanouts(out io.Writer, all []admin.Fanout, more bool, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tAGE\tSTATE\tPOOL\tROUTE\tREQUEST\tLACKING")
	for _, f := range all {
		var lacking []string
		for _, d := range f.Deliveries {
			if d.State != deliveryDone {
				lacking = append(lacking, d.Backend+" "+d.State+why(d))
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cell(f.ID), age(now.Sub(f.Created)), cell(f.State), cell(f.Pool), cell(f.Route),
			visible(f.Method+" "+f.Path), cell(strings.Join(lacking, "; ")))
	}
	if err := w.Flush(); err != nil || !more {
		return err
	}
	_, err := fmt.Fprintln(out, "There are more: --limit takes a higher number, and --all shows every one.")
	return err
}

// deliveryDone is the state of a delivery that its backend has accepted.
const deliveryDone = "done"

// why says in brackets why a backend lacks a write; nothing if nobody knows.
func why(d admin.Delivery) string {
	var words []string
	if d.Reason != "" {
		words = append(words, d.Reason)
	}
	switch {
	case d.Error != "":
		words = append(words, d.Error)
	case d.LastStatus != nil:
		words = append(words, "status "+strconv.Itoa(*d.LastStatus))
	}
	if len(words) == 0 {
		return ""
	}
	return " (" + strings.Join(words, ", ") + ")"
}

// printFanout prints one write and a table of its deliveries.
func printFanout(out io.Writer, f admin.Fanout, now time.Time) error {
	fmt.Fprintf(out, "%s: %s\n%s, route %s, pool %s, request id %s\nadmitted %s, %s ago\n\n",
		visible(f.ID), visible(f.State), visible(f.Method+" "+f.Path), cell(f.Route), cell(f.Pool), cell(f.RequestID),
		f.Created.Format(time.RFC3339), age(now.Sub(f.Created)))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "BACKEND\tADDRESS\tSTATE\tREASON\tATTEMPTS\tSTATUS\tNEXT\tERROR")
	for _, d := range f.Deliveries {
		status, next := "-", "-"
		if d.LastStatus != nil {
			status = strconv.Itoa(*d.LastStatus)
		}
		if d.NextAttempt != nil {
			next = "in " + age(d.NextAttempt.Sub(now))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", cell(d.Backend), cell(d.Address), cell(d.State), cell(d.Reason),
			d.Attempts, status, next, cell(d.Error))
	}
	return w.Flush()
}

// age returns d as people say it: in its largest unit, rounded down.
func age(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%dd", d/day)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return fmt.Sprintf("%ds", max(0, d)/time.Second) // clocks may differ
}

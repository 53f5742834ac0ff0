package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lb/internal/admin"
	"lb/internal/config"
)

// pollEvery is the time between two looks at a backend that is waited for.
const pollEvery = 200 * time.Millisecond

// addAdminFlags adds the flags that say where the admin listener is.
func addAdminFlags(cmd *cobra.Command, address, file *string) {
	cmd.Flags().StringVar(address, "admin", "", "the admin listener's address, host:port or unix:/path\n"+
		"(default: "+adminEnv+", else the configuration's)")
	cmd.Flags().StringVarP(file, "config", "c", "", "the daemon's configuration file, for its admin address")
}

// operatorFlags are what the commands for operators have in common.
type operatorFlags struct {
	address, file string
	pool          string
	output        string
	timeout       time.Duration // of a request; 0: that of every client
}

func (f *operatorFlags) addTo(cmd *cobra.Command) {
	addAdminFlags(cmd, &f.address, &f.file)
	cmd.Flags().StringVarP(&f.output, "output", "o", "table", "table, or json for scripts")
}

// client judges the flags and returns a client of the daemon that they name.
func (f *operatorFlags) client() (*adminClient, error) {
	if f.output != "table" && f.output != "json" {
		return nil, fmt.Errorf("-o takes table or json, not %q", f.output)
	}
	address, err := adminAddress(f.address, f.file)
	if err != nil {
		return nil, fmt.Errorf("%w\n(with --admin or %s no configuration is needed)", err, adminEnv)
	}
	client, err := newAdminClient(address, strings.TrimSpace(os.Getenv(tokenEnv)))
	if err == nil && f.timeout > 0 {
		client.http.Timeout = f.timeout
	}
	return client, err
}

// show asks the daemon that the flags name, and prints its answer: as JSON, or as
// print does.
func show[T any](cmd *cobra.Command, f *operatorFlags, method, path string, print func(io.Writer, T) error) error {
	client, err := f.client()
	if err != nil {
		return err
	}
	var found T
	if err := client.ask(cmd.Context(), method, path, &found); err != nil {
		return err
	}
	if f.output == "json" {
		return printJSON(cmd.OutOrStdout(), found)
	}
	return print(cmd.OutOrStdout(), found)
}

func instancesCommand() *cobra.Command {
	var flags operatorFlags
	cmd := &cobra.Command{
		Use:   "instances",
		Short: "Show every backend of the running daemon, its state and the reason for it",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := flags.client()
			if err != nil {
				return err
			}
			all, err := client.instances(cmd.Context())
			if err != nil {
				return err
			}
			if flags.pool != "" {
				if all, err = client.inPool(cmd.Context(), all, flags.pool); err != nil {
					return err
				}
			}
			slices.SortStableFunc(all, func(a, b admin.Instance) int { return cmp.Compare(a.Pool, b.Pool) })
			if flags.output == "json" {
				return printJSON(cmd.OutOrStdout(), all)
			}
			return printInstances(cmd.OutOrStdout(), all)
		},
	}
	flags.addTo(cmd)
	cmd.Flags().StringVar(&flags.pool, "pool", "", "only the backends of this pool")
	return cmd
}

func drainCommand() *cobra.Command {
	var wait time.Duration
	cmd := changeCommand("drain", "Give a backend no new requests; what is under way ends, probes and deliveries go on", &wait)
	cmd.Long = `Give a backend no new requests. What is under way ends; probes and the deliveries
of writes go on, and count as in flight. It stays so, also when lb is started
anew, until lb enable.`
	cmd.Flags().DurationVar(&wait, "wait", 0,
		"wait this long for what is in flight to end, such as 30s; exit 1 if it has not by then")
	return cmd
}

func maintenanceCommand() *cobra.Command {
	return changeCommand("maintenance", "Give a backend no requests and no probes, and hold its deliveries", new(time.Duration))
}

func enableCommand() *cobra.Command {
	return changeCommand("enable", "Let a backend work again, after drain or maintenance", new(time.Duration))
}

// changeCommand returns a command that does to one backend what the verb says,
// and then waits until it is idle, for as long as wait says.
func changeCommand(verb, short string, wait *time.Duration) *cobra.Command {
	var flags operatorFlags
	cmd := &cobra.Command{
		Use:   verb + " ID",
		Short: short,
		Args:  oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := flags.client()
			if err != nil {
				return err
			}
			if *wait < 0 {
				return errors.New("--wait must not be negative")
			}
			now, err := client.change(cmd.Context(), verb, args[0], flags.pool)
			if err != nil {
				return err
			}
			if *wait > 0 && now.InFlight > 0 {
				if flags.output == "table" {
					fmt.Fprintln(cmd.OutOrStdout(), summary(now))
				}
				if now, err = client.waitIdle(cmd.Context(), now, *wait); err != nil {
					return err
				}
			}
			if flags.output == "json" {
				return printJSON(cmd.OutOrStdout(), now)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), summary(now))
			return err
		},
	}
	flags.addTo(cmd)
	cmd.Flags().StringVar(&flags.pool, "pool", "", "the backend's pool, where several have one of that id")
	return cmd
}

// oneID asks for exactly one argument.
func oneID(cmd *cobra.Command, args []string) error {
	if len(args) == 1 && args[0] != "" {
		return nil
	}
	return fmt.Errorf("%s takes the id of one backend; lb instances shows them", cmd.CommandPath())
}

// instances returns every backend, as the daemon orders them.
func (c *adminClient) instances(ctx context.Context) (admin.List[admin.Instance], error) {
	var all admin.List[admin.Instance]
	err := c.ask(ctx, http.MethodGet, "/instances", &all)
	return all, err
}

// inPool returns those of all that are in a pool. A pool without any is not an
// error, but one that the daemon does not have.
func (c *adminClient) inPool(ctx context.Context, all []admin.Instance, pool string) ([]admin.Instance, error) {
	all = slices.DeleteFunc(all, func(i admin.Instance) bool { return i.Pool != pool })
	if len(all) > 0 {
		return all, nil
	}
	known, err := c.pools(ctx)
	if err != nil || slices.Contains(known, pool) {
		return nil, err
	}
	message := "there is no pool " + config.Quote(pool)
	if suggestion := config.DidYouMean(pool, known); suggestion != "" {
		message += "; " + suggestion
	}
	return nil, errors.New(visible(message))
}

// pools returns the names of all pools, those without backends too.
func (c *adminClient) pools(ctx context.Context) ([]string, error) {
	got, err := c.send(ctx, http.MethodGet, "/health")
	if err != nil {
		return nil, err
	}
	var health admin.Health
	if err := json.Unmarshal(got.body, &health); err != nil || health.Status == "" {
		return nil, c.refusal(got)
	}
	names := make([]string, len(health.Pools))
	for i, p := range health.Pools {
		names[i] = p.Name
	}
	return names, nil
}

// change does to a backend what the verb says, and returns how it is then.
func (c *adminClient) change(ctx context.Context, verb, id, pool string) (admin.Instance, error) {
	path := "/instances/" + url.PathEscape(id) + "/" + verb
	if pool != "" {
		path += "?" + url.Values{"pool": {pool}}.Encode()
	}
	var now admin.Instance
	err := c.ask(ctx, http.MethodPost, path, &now)
	return now, err
}

// waitIdle waits until nothing is in flight at a draining backend.
func (c *adminClient) waitIdle(ctx context.Context, now admin.Instance, within time.Duration) (admin.Instance, error) {
	overdue := time.NewTimer(within)
	defer overdue.Stop()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for now.InFlight > 0 {
		select {
		case <-ctx.Done():
			return now, fmt.Errorf("interrupted: %s", summary(now))
		case <-overdue.C:
			return now, fmt.Errorf("not idle within %v: %s", within, summary(now))
		case <-poll.C:
		}
		all, err := c.instances(ctx)
		if err != nil {
			return now, err
		}
		at := slices.IndexFunc(all, func(i admin.Instance) bool { return i.ID == now.ID && i.Pool == now.Pool })
		if at < 0 {
			return now, fmt.Errorf("%s is no longer there", name(now))
		}
		now = all[at]
		if now.State != string(admin.Draining) && now.State != string(admin.Maintenance) {
			return now, fmt.Errorf("%s is not draining any more, it is %s", name(now), visible(now.State))
		}
	}
	return now, nil
}

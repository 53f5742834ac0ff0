package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"lb/internal/admin"
)

// versionID is what the commands take that need one version.
const versionID = "the id of one version; lb config history shows them"

func configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show the configurations that the daemon has served, compare them, or return to one",
		Example: `  lb config history      the versions, and who put each of them there
  lb config show 7       the document of one
  lb config diff 6 7     what has changed from one to the other
  lb config diff 6       what has changed since
  lb config rollback 6   write it into the configuration file, and serve it`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%s takes history, show, diff or rollback, not %q", cmd.CommandPath(), args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(configHistoryCommand(), configShowCommand(), configDiffCommand(), configRollbackCommand())
	return cmd
}

func configHistoryCommand() *cobra.Command {
	var flags operatorFlags
	cmd := &cobra.Command{
		Use:   "history",
		Short: "Show the configurations that the daemon has served, the newest first",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := flags.client()
			if err != nil {
				return err
			}
			var page admin.ConfigVersionPage // lb keeps fewer than fit into one
			path := "/config/versions?limit=" + strconv.Itoa(admin.MaxConfigVersions)
			if err := client.ask(cmd.Context(), http.MethodGet, path, &page); err != nil {
				return err
			}
			if flags.output == "json" {
				return printJSON(cmd.OutOrStdout(), page.Versions)
			}
			return printVersions(cmd.OutOrStdout(), page.Versions)
		},
	}
	flags.addTo(cmd)
	return cmd
}

func configShowCommand() *cobra.Command {
	var flags operatorFlags
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Print the document of one version",
		Args:  ids(versionID, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return show(cmd, &flags, http.MethodGet, versionPath(args[0]), func(out io.Writer, found admin.ConfigVersion) error {
				_, err := io.WriteString(out, found.Document) // as it is: it may be written into a file
				return err
			})
		},
	}
	flags.addTo(cmd)
	return cmd
}

func configDiffCommand() *cobra.Command {
	var flags operatorFlags
	cmd := &cobra.Command{
		Use:   "diff A [B]",
		Short: "Show what version B has other than version A; without B, what serves now",
		Args: func(cmd *cobra.Command, args []string) error {
			return ids("the ids of one or two versions; lb config history shows them", min(max(len(args), 1), 2))(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			path := versionPath(args[0]) + "/diff"
			if len(args) > 1 {
				path += "?" + url.Values{"to": {args[1]}}.Encode()
			}
			return show(cmd, &flags, http.MethodGet, path, printChanges)
		},
	}
	flags.addTo(cmd)
	return cmd
}

func configRollbackCommand() *cobra.Command {
	flags := operatorFlags{timeout: changeTimeout}
	cmd := &cobra.Command{
		Use:   "rollback ID",
		Short: "Write one version into the configuration file, and serve it",
		Long: `Have the daemon write the document of one version into its configuration file,
in place of what is there, and serve it. A version that cannot be served now is
refused, with every problem, and the file stays as it is.

Where the file cannot be read, it does not say where the admin listener is: say
it with --admin.`,
		Args: ids(versionID, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return show(cmd, &flags, http.MethodPost, versionPath(args[0])+"/rollback", printReloaded)
		},
	}
	flags.addTo(cmd)
	return cmd
}

func versionPath(id string) string { return "/config/versions/" + url.PathEscape(id) }

// printVersions prints a table of versions.
func printVersions(out io.Writer, all []admin.ConfigVersion) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tWHEN\tWHO\tSOURCE\tGENERATION\tSERVING")
	for _, v := range all {
		serving := "-"
		if v.Serving {
			serving = "yes"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%d\t%s\n", v.ID, v.At.Format(time.RFC3339), cell(v.By), cell(v.Source), v.Generation, serving)
	}
	return w.Flush()
}

// printReloaded prints what has changed, and what serves now.
func printReloaded(out io.Writer, now admin.Reloaded) error {
	if now.Result == admin.Unchanged {
		_, err := fmt.Fprintf(out, "nothing has changed: generation %d goes on\n", now.Generation)
		return err
	}
	if err := printChanges(out, now.Changes); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "generation %d serves now\n", now.Generation)
	return err
}

// printChanges prints a line for each thing that came or went and for each value
// that differs.
func printChanges(out io.Writer, c admin.Changes) error {
	var text []byte
	for _, name := range c.Added {
		text = fmt.Appendf(text, "+ %s\n", visible(name))
	}
	for _, name := range c.Removed {
		text = fmt.Appendf(text, "- %s\n", visible(name))
	}
	for _, part := range c.Changed {
		for _, v := range part.Values {
			text = fmt.Appendf(text, "~ %s: %s → %s\n", visible(v.Path), visible(v.From), visible(v.To))
		}
	}
	if len(text) == 0 {
		text = []byte("the two mean the same\n")
	}
	_, err := out.Write(text)
	return err
}

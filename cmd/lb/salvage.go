package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"lb/internal/config"
	"lb/internal/store"
)

func salvageCommand() *cobra.Command {
	var keyEnv string
	cmd := &cobra.Command{
		Use:   "salvage OLD NEW",
		Short: "Write what can be read of a damaged storage file into a new one",
		Long: `Write what can be read of the damaged storage file OLD into NEW, which must not
exist: the writes that are not delivered everywhere, what operators have said,
who has registered, and the audit trail. Stop lb before; OLD stays as it is.

Then compare what is listed as lost with your backends, put NEW in the place of
OLD, and start lb: lb fanout list --state parked shows the writes of which a
part is missing.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var key []byte
			if keyEnv != "" {
				k, err := config.ParseKey(os.Getenv(keyEnv))
				if err != nil {
					return fmt.Errorf("--key-env: the variable %s %w", keyEnv, err)
				}
				key = k[:]
			}
			report, err := store.Salvage(cmd.Context(), args[0], args[1], key)
			if err != nil {
				return err
			}
			return printReport(cmd.OutOrStdout(), args[1], report)
		},
	}
	cmd.Flags().StringVar(&keyEnv, "key-env", "", "the variable that holds the key, as storage.key_env names it")
	return cmd
}

func printReport(w io.Writer, to string, r store.Report) error {
	_, err := fmt.Fprintf(w, "%s has\n  %d writes to deliver\n  %d parked writes, %d of them damaged\n  %d words of operators\n  %d registrations\n  %d audit records\n  %d versions of the configuration\n",
		to, r.Writes, r.Parked, r.Damaged, r.Operator, r.Registrations, r.Audit, r.Versions)
	if err == nil && len(r.Lost) > 0 {
		_, err = fmt.Fprintln(w, "lost:")
	}
	for _, lost := range r.Lost {
		if err == nil {
			_, err = fmt.Fprintln(w, "  "+lost)
		}
	}
	return err
}

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf16"

	"lb/internal/admin"
)

// printInstances prints a table of backends.
func printInstances(out io.Writer, all []admin.Instance) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "INSTANCE\tPOOL\tADDRESS\tSTATE\tIN-FLIGHT\tWEIGHT\tSOURCE\tREASON")
	for _, i := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", cell(i.ID), cell(i.Pool), cell(i.Address), cell(i.State),
			busy(i), i.Weight, cell(i.Source), cell(strings.Join(i.Reasons, "; ")))
	}
	return w.Flush()
}

// busy says how much is in flight, and of how much where there is a limit.
func busy(i admin.Instance) string {
	if i.Limit == 0 {
		return fmt.Sprint(i.InFlight)
	}
	return fmt.Sprintf("%d/%d", i.InFlight, i.Limit)
}

// cell returns the text of one column; an empty one would shift the others for
// whoever splits lines at blanks.
func cell(s string) string {
	if s == "" {
		return "-"
	}
	return visible(s)
}

// summary says in one line how a backend is.
func summary(i admin.Instance) string {
	return fmt.Sprintf("%s: %s, %s in flight", name(i), visible(i.State), busy(i))
}

func name(i admin.Instance) string { return fmt.Sprintf("%s (%s)", visible(i.ID), visible(i.Pool)) }

// printJSON prints v as an indented document.
func printJSON(out io.Writer, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, []byte(visible(string(text))), "", "  "); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, indented.String())
	return err
}

// visible returns s with everything that a terminal might obey, or would not
// show, written as \u escapes. What is JSON stays the same JSON.
func visible(s string) string {
	var b strings.Builder
	for _, r := range s { // bytes that are no UTF-8 become U+FFFD
		if unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}

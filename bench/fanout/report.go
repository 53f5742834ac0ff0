package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// figure is one number, and what it is held to.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit,omitempty"`
	// Bound is atMost or atLeast; without one the figure only explains others.
	Bound bound   `json:"bound,omitempty"`
	Limit float64 `json:"limit,omitempty"`
	Pass  *bool   `json:"pass,omitempty"`
}

type bound string

const (
	atMost  bound = "at most"
	atLeast bound = "at least"
)

// told is a figure that only explains others.
func told(name string, value float64, unit string) figure {
	return figure{Name: name, Value: value, Unit: unit}
}

// held is a figure with a limit.
func held(name string, value float64, unit string, b bound, limit float64) figure {
	pass := value <= limit
	if b == atLeast {
		pass = value >= limit
	}
	return figure{name, value, unit, b, limit, &pass}
}

// result is what one measure found.
type result struct {
	Measure string   `json:"measure"`
	Seconds float64  `json:"seconds"`
	Figures []figure `json:"figures"`
}

type report struct {
	Date       string   `json:"date"`
	Commit     string   `json:"commit"`
	Go         string   `json:"go"`
	Kernel     string   `json:"kernel"`
	Processors string   `json:"processors"`
	Results    []result `json:"results"`
}

func newReport(ctx context.Context) *report {
	commit, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output()
	if err != nil {
		commit = []byte("unknown")
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return &report{
		Date: time.Now().UTC().Format(time.RFC3339), Commit: strings.TrimSpace(string(commit)),
		Go: runtime.Version() + " " + runtime.GOARCH, Kernel: strings.TrimSpace(string(kernel)),
		Processors: fmt.Sprintf("%d × %s", runtime.NumCPU(), processorModel()),
	}
}

func processorModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

func (r *report) header(out io.Writer) {
	for _, line := range [][2]string{
		{"date", r.Date}, {"commit", r.Commit}, {"go", r.Go}, {"kernel", r.Kernel}, {"processors", r.Processors},
	} {
		fmt.Fprintf(out, "%-11s %s\n", line[0], line[1])
	}
}

// add keeps what a measure found, and prints it.
func (r *report) add(out io.Writer, measure string, took time.Duration, figures []figure) {
	r.Results = append(r.Results, result{measure, took.Round(time.Second).Seconds(), figures})
	fmt.Fprintf(out, "\n%-58s %10s %-7s %-16s\n", measure, "", "", "limit")
	for _, f := range figures {
		limit, verdict := "", ""
		if f.Pass != nil {
			limit, verdict = fmt.Sprintf("%s %s", f.Bound, number(f.Limit)), "ok"
			if !*f.Pass {
				verdict = "MISSED"
			}
		}
		line := fmt.Sprintf("  %-56s %10s %-7s %-16s %s", f.Name, number(f.Value), f.Unit, limit, verdict)
		fmt.Fprintln(out, strings.TrimRight(line, " "))
	}
}

// number is short where it is big, and precise where it is small.
func number(x float64) string {
	switch {
	case x >= 100 || x <= -100 || x == float64(int64(x)):
		return fmt.Sprintf("%.0f", x)
	case x >= 10 || x <= -10:
		return fmt.Sprintf("%.1f", x)
	default:
		return fmt.Sprintf("%.3f", x)
	}
}

func (r *report) missed() bool {
	return slices.ContainsFunc(r.Results, func(one result) bool {
		return slices.ContainsFunc(one.Figures, func(f figure) bool { return f.Pass != nil && !*f.Pass })
	})
}

func (r *report) write(file string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o600)
}

// quantile returns the value below which the share q of all lies; 0 of none.
func quantile(all []float64, q float64) float64 {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func median(all []float64) float64 { return quantile(all, 0.5) }

// milliseconds returns durations as figures show them.
func milliseconds(all []time.Duration) []float64 {
	in := make([]float64, len(all))
	for i, d := range all {
		in[i] = d.Seconds() * 1000
	}
	return in
}

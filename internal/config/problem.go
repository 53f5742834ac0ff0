package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
)

// Problem is one thing that is wrong with a configuration, or worth a warning.
type Problem struct {
	// Path is where, such as routes[0].proxy.pool; empty for the whole file.
	Path string
	// Line is the line in the file, counted from 1; 0 if it did not come from
	// one.
	Line int
	// Source names the environment variable or the flag that the value came
	// from; empty if it came from the file or from nowhere.
	Source string
	// Message says what is wrong.
	Message string
	// Suggestion says what would be right; may be empty.
	Suggestion string
}

// String writes p on one line:
//
//	routes[0].proxy.pool (line 9): no pool "user"; did you mean "users"?
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.Path)
	where := p.Source
	if where == "" && p.Line > 0 {
		where = fmt.Sprintf("line %d", p.Line)
	}
	switch {
	case where != "" && p.Path != "":
		fmt.Fprintf(&b, " (%s)", where)
	case where != "":
		b.WriteString(where)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	b.WriteString(p.Message)
	if p.Suggestion != "" {
		b.WriteString("; ")
		b.WriteString(p.Suggestion)
	}
	return b.String()
}

// Problems is everything that is wrong with one configuration. It is the error
// of a configuration that was read but cannot be used.
type Problems []Problem

// Error writes one problem a line, sorted by line.
func (p Problems) Error() string {
	sorted := slices.Clone(p)
	sorted.Sort()
	lines := make([]string, len(sorted))
	for i, problem := range sorted {
		lines[i] = problem.String()
	}
	return strings.Join(lines, "\n")
}

// Sort sorts by line; problems of one line stay in their order, those without
// a line come first.
func (p Problems) Sort() {
	slices.SortStableFunc(p, func(a, b Problem) int { return a.Line - b.Line })
}

// Suggest returns the word of known that word was most likely meant to be, or
// "" if none is close. Case does not count, and a word that the other one
// begins with is close. Only the first thousand known words are looked at.
func Suggest(word string, known []string) string {
	lower := strings.ToLower(word)
	if lower == "" || len(lower) > quoteMost {
		return ""
	}
	best, least := "", max(1, min((len(lower)+1)/3, 3))+1
	for _, k := range known[:min(len(known), 1000)] {
		candidate := strings.ToLower(k)
		d := levenshtein.Distance(lower, candidate, nil)
		if swapped(lower, candidate) {
			d = 1
		}
		if len(lower) >= 3 && len(candidate) >= 3 && (strings.HasPrefix(lower, candidate) || strings.HasPrefix(candidate, lower)) {
			d = min(d, 1)
		}
		if d < least && d < len(lower) && d < len(candidate) {
			best, least = k, d
		}
	}
	return best
}

// swapped reports whether a is b with two neighbouring bytes exchanged.
func swapped(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i+1 < len(a); i++ {
		if a[i] != b[i] {
			return a[i] == b[i+1] && a[i+1] == b[i] && a[i+2:] == b[i+2:]
		}
	}
	return false
}

// DidYouMean is the suggestion that goes with an unknown word: the known word
// that is close to it, else "there is …" with all of them; empty if none is
// known.
func DidYouMean(word string, known []string) string {
	if s := Suggest(word, known); s != "" {
		return fmt.Sprintf("did you mean %q?", s)
	}
	switch {
	case len(known) == 0:
		return ""
	case len(known) > 20:
		return fmt.Sprintf("there are %s and %d more", strings.Join(known[:20], ", "), len(known)-20)
	case len(known) > 1:
		return "there are " + strings.Join(known, ", ")
	}
	return "there is " + known[0]
}

package balance

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func scored(t *testing.T, text string) Factory {
	t.Helper()
	factory, err := New(Spec{Name: "custom", Score: text})
	require.NoError(t, err, text)
	return factory
}

func TestCustomVariables(t *testing.T) {
	backends := heavy(1, 2, 4)
	now := time.Now()
	backends[0].TryBegin()
	backends[1].TryBegin()
	backends[1].TryBegin()
	for i, b := range backends {
		b.Speed.Observe(now, time.Duration(10+i)*time.Millisecond)
		b.SetErrorRate(0.1 * float64(3-i))
		b.SetQueued(i * 5)
	}
	backends[1].SetTraits(2, map[string]string{"zone": "eu", "cost": "3"})
	for text, want := range map[string]string{
		"inflight":                    "c",
		"-inflight":                   "b",
		"weight":                      "a",
		"-weight":                     "c",
		"ewma_ms":                     "a",
		"abs(ewma_ms - 11)":           "b",
		"error_rate":                  "c",
		"-error_rate":                 "a",
		"queue":                       "a",
		"-queue":                      "c",
		"-index":                      "c",
		"abs(index - 1)":              "b",
		"labels.zone == 'eu' ? 0 : 1": "b",
		`labels["zone"] matches "^e" ? inflight : 9`:  "b",
		"labels.zone == '' and index > 0 ? 0 : 1":     "c",
		"len(labels.zone) > 0 ? -1 : inflight":        "b",
		"int(labels.cost)":                            "b",
		"1 / (inflight - 1)":                          "c",
		"[3, 1, 2][index]":                            "b",
		"index == 1 ? 1 : 2.5":                        "b",
		"(index == 1 ? 2 : index == 0 ? 5.5 : 4) * 2": "b",
		"float([1.5, 1, 2][index])":                   "b",
		"let x = inflight * 2; x * x":                 "c",
	} {
		b := scored(t, text)(backends, nil).Pick(new(Query))
		b.End()
		require.Equal(t, want, b.ID, text)
	}
}

func TestCustomWithoutANumber(t *testing.T) {
	for text, want := range map[string]string{
		"index == 0 ? 0 / 0 : 5":                    "bcbc", // not a number
		"index == 0 ? 0 / 0 : 1 / 0":                "bcbc", // infinite is a number
		"index == 0 ? int(labels.cost) : 5":         "bcbc", // an error
		"index == 0 ? inflight % inflight : 5":      "bcbc",
		"[1, 2][index + 1]":                         "aaaa",
		"index == 0 ? 0 / 0 : index == 1 ? -1 : -2": "cccc",
		"0 / 0":            "abca", // nobody has one: somebody gets it
		"int(labels.cost)": "abca",
	} {
		require.Equal(t, want, order(scored(t, text)(set(3), nil), 4), text)
	}
	backends := set(2)
	backends[1].SetLimit(1)
	picker := scored(t, "index == 0 ? 0 / 0 : 1")(backends, nil)
	require.Equal(t, "b a a", turns(picker, 3), "the last choice is a choice")
}

func TestCustomErrorsPointIntoTheExpression(t *testing.T) {
	for _, test := range []struct{ text, message, suggestion string }{
		{"inflight / wieght", "unknown name wieght (1:12)\n | inflight / wieght\n | ...........^", "there is error_rate, ewma_ms"},
		{"inflight +\n  zone", "unknown name zone (2:3)\n |   zone\n | ..^", "labels"},
		{"inflight +", "(1:10)\n | inflight +\n | .........^", ""},
		{"inflight / weight)", "(1:18)", ""},
		{"inflight > 3", "must be a number, and is true or false (1:1)", "… ? 0 : 1"},
		{"labels.zone", "must be a number, and is text", ""},
		{"labels.zone + 1", "mismatched types string and int) (1:13)", ""},
		{"inflight > 3 ? 1 : 'much'", "must be a number, and is not always one", ""},
		{"[1, 2.5][index]", "must be a number, and is not always one", "float("},
		{"nil", "must be a number", ""},
		{"[1, 2]", "must be a number", ""},
		{"1 + now().Unix()", "now has no place in a score (1:5)", "abs, ceil"},
		{"sum(map(1..1000000, # * 2))", "a range has no place in a score (1:10)", ""},
		{"len(filter([1], # > 0))", "filter has no place in a score (1:5)", ""},
		{"len(repeat(labels.zone, 1000000))", "repeat has no place in a score", ""},
		{"float($env['inflight'])", "$env has no place in a score (1:7)", ""},
		{"let a = labels.x + labels.x; len(a)", "puts no texts together (1:18)", ""},
		{"labels.a matches labels.b ? 1 : 0", "the pattern of matches must be written out (1:10)", ""},
		{"labels.a matches '(' ? 1 : 0", "error parsing regexp", ""},
		{"inflight.x", "(1:10)", ""},
		{"max()", "(1:1)", ""},
		{" \n", "is missing", `"inflight / weight"`},
		{strings.Repeat("1+", 1000) + "1", "longer than 2000 bytes, and has 2001", ""},
		{strings.Repeat("1+", 300) + "1", "exceeds maximum allowed nodes", ""},
	} {
		_, err := New(Spec{Name: "custom", Score: test.text})
		var wrong *SpecError
		require.ErrorAs(t, err, &wrong, test.text)
		require.Equal(t, "score", wrong.Setting)
		require.Contains(t, wrong.Message, test.message)
		require.Contains(t, wrong.Suggestion, test.suggestion)
	}
}

func TestCustomScalesTheWeightInASlowStart(t *testing.T) {
	backends := heavy(4, 4)
	backends[0].SetShare(250)
	got := counts(scored(t, "inflight / weight")(backends, nil), backends, 100)
	require.InDelta(t, 20, got[0], 2)
}

// The formulas that docs/policies.md shows.
func TestCustomDocumentedFormulas(t *testing.T) {
	for _, text := range []string{
		"error_rate > 0.2 ? 1000000 : ewma_ms * (1 + inflight) / weight",
		"inflight / weight",
		`inflight / weight + (labels.zone == "eu-1" ? 0 : 20)`,
		"queue > 0 ? inflight / weight : index",
		`inflight * (labels.cost matches "^[0-9]{1,9}$" ? float(labels.cost) : 1)`,
		"max(inflight - 10, 0) / weight",
		"float([1, 2.5][index])",
	} {
		require.NotNil(t, scored(t, text)(set(2), nil).Pick(new(Query)), text)
	}
}

// One compiled expression serves many goroutines, and pickers of several sets.
func TestCustomUnderConcurrency(t *testing.T) {
	factory := scored(t, "labels.zone == 'eu' ? inflight / weight : inflight / weight + 10")
	backends := set(4)
	for _, b := range backends {
		b.SetTraits(1, map[string]string{"zone": "eu"})
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			picker := factory(backends, nil)
			for range 300 {
				picker.Pick(new(Query)).End()
			}
		})
	}
	wg.Wait()
	require.Zero(t, inFlight(backends))
}

// Whatever is written there, the answer is a picker or an error, and a pick ends
// with somebody.
func FuzzScore(f *testing.F) {
	for _, text := range []string{
		"inflight / weight + ewma_ms", "labels.zone matches '^eu' ? 0 : 1", "[1,2][index]", "let x = 1; x", "{'a': 1}.a",
		"1 ?? 2", "if inflight > 1 { 1 } else { 2 }", "queue | max(1)", "labels?.x[1:] == 'a' ? 1 : 0", "1..2", "#", "not true ? 1:2",
		"weight ** 1e9", "1e308 * 1e308", "0x1p3", "-9223372036854775808 / -1", "1 in [1] ? 1 : 0", "float(index) ^ 2", "a::b()", "get(labels, 'x')",
	} {
		f.Add(text)
	}
	backends := set(3)
	f.Fuzz(func(t *testing.T, text string) {
		factory, err := New(Spec{Name: "custom", Score: text})
		if err != nil {
			if wrong := (*SpecError)(nil); !errors.As(err, &wrong) || wrong.Message == "" {
				t.Fatal(err)
			}
			return
		}
		factory(backends, nil).Pick(new(Query)).End()
	})
}

package load

import (
	"errors"
	"fmt"
	"regexp"
	"slices"

	"lb/internal/balance"
	"lb/internal/config"
)

// single is the policy of which the pickers do not know how many backends its
// pool may have.
const single = "single"

// policies puts the policies' names in place of aliases, and judges each policy
// and its settings by building it.
func policies(c *config.Config) (problems, warnings config.Problems) {
	for i := range c.Pools {
		p := &c.Pools[i]
		at := fmt.Sprintf("pools[%d]", i)
		known, ok := balance.Find(p.Policy.Name)
		if !ok {
			problems = append(problems, unknownPolicy(at+".policy", p.Policy.Name))
			continue
		}
		p.Policy.Name = known.Name
		problems = append(problems, settings(at+".policy", p.Policy, known)...)
		if n := len(p.Backends); known.Name == single && n > 1 {
			problems = append(problems, config.Problem{
				Path: at + ".backends", Message: fmt.Sprintf("the policy %s has one backend, and there are %d", single, n),
				Suggestion: "take the others out, or write another policy",
			})
		}
		if j := slices.IndexFunc(p.Backends, func(b config.Backend) bool { return b.Weight != 1 }); j >= 0 && !known.Weighted {
			warnings = append(warnings, config.Problem{
				Path:    fmt.Sprintf("%s.backends[%d].weight", at, j),
				Message: "weights are ignored by the policy " + known.Name,
			})
		}
	}
	return problems, warnings
}

// unknownPolicy suggests aliases, too, but lists names alone.
func unknownPolicy(at, name string) config.Problem {
	known := balance.Names()
	all := slices.Clone(known)
	for _, n := range known {
		p, _ := balance.Find(n)
		all = append(all, p.Aliases...)
	}
	if config.Suggest(name, all) != "" {
		known = all
	}
	return config.Problem{Path: at, Message: "no policy " + config.Quote(name), Suggestion: config.DidYouMean(name, known)}
}

// settings judges the settings of a policy, all but the key by building it: what
// is wrong is told one at a time, so a setting that is wrong is left out of the
// next try.
func settings(at string, p config.Policy, known balance.Policy) (problems config.Problems) {
	fail := func(setting, message, suggestion string) {
		problems = append(problems, config.Problem{Path: at + "." + setting, Message: message, Suggestion: suggestion})
	}
	if known.Keyed {
		if _, _, err := config.ParseHashKey(p.Key); err != nil {
			fail("key", err.Error(), "")
		}
	} else if p.Key != "" {
		fail("key", fmt.Sprintf("the policy %s does not know it", known.Name), "leave it out; it belongs to hash")
	}
	spec := balance.Spec{Name: known.Name, BoundedLoad: p.BoundedLoad, Score: p.Score}
	for told := make(map[string]bool); ; {
		_, err := balance.New(spec)
		bad := (*balance.SpecError)(nil)
		switch {
		case err == nil:
			return problems
		case !errors.As(err, &bad):
			return append(problems, config.Problem{Path: at, Message: err.Error()})
		case told[bad.Setting]: // the policy needs it
			return problems
		}
		told[bad.Setting] = true
		fail(bad.Setting, onOneLine(bad.Message), bad.Suggestion)
		switch bad.Setting {
		case "bounded_load":
			spec.BoundedLoad = 0
		case "score":
			spec.Score = ""
		}
	}
}

// pointing is the end of a message about an expression: line and column, the
// line, and an arrow below the column.
var pointing = regexp.MustCompile(`(?s)^(.*) \(([0-9]+):([0-9]+)\)\n \| (.*)\n \| (\.*)\^$`)

// onOneLine turns the arrow of a message into what it points at.
func onOneLine(message string) string {
	m := pointing.FindStringSubmatch(message)
	if m == nil {
		return message
	}
	text, line, column := []rune(m[4]), m[2], m[3]
	at := config.Quote(string(text[min(len(m[5]), len(text)):]))
	if line == "1" {
		return fmt.Sprintf("%s at %s, column %s", m[1], at, column)
	}
	return fmt.Sprintf("%s at %s, column %s of its line %s", m[1], at, column, line)
}

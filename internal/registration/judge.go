package registration

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"lb/internal/allow"
	"lb/internal/balance"
	"lb/internal/config"
)

// Bounds of what a registration may say.
const (
	maxName        = 128 // of a pool or an id, in bytes
	maxWeight      = 1000
	maxConcurrency = 1_000_000
	minTTL         = time.Second
	maxTTL         = 24 * time.Hour
	maxLabels      = 32
	maxLabelName   = 128 // in bytes
	maxLabelText   = 256 // in bytes
)

// judge collects what is wrong with a document.
type judge struct {
	// decoded are the problems of values that are not what the user meant: they
	// are not judged further.
	decoded, problems config.Problems
}

func (j *judge) fail(path, suggestion, format string, args ...any) {
	if !j.spoilt(path) {
		j.problems = append(j.problems, config.Problem{Path: path, Message: fmt.Sprintf(format, args...), Suggestion: suggestion})
	}
}

// spoilt reports whether what is at path could not be decoded.
func (j *judge) spoilt(path string) bool {
	return slices.ContainsFunc(j.decoded, func(p config.Problem) bool {
		rest, within := strings.CutPrefix(path, p.Path)
		return within && (p.Path == "" || rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

// name judges the name of a pool or an id, which is made of letters, digits, and
// any of - _ . : and the bytes of more.
func (j *judge) name(path, name, more string) {
	foreign := func(r rune) bool { return !word(r) && !strings.ContainsRune(".:"+more, r) }
	switch {
	case name == "":
		j.fail(path, "", "is missing")
	case len(name) > maxName:
		j.fail(path, fmt.Sprintf("a name has at most %d bytes", maxName), "%s is too long", config.Quote(name))
	case name == "." || name == "..":
		j.fail(path, "choose another name", "%s means something else in a path", config.Quote(name))
	case strings.ContainsFunc(name, foreign):
		j.fail(path, "write letters, digits and any of - _ . :", "%s is not a name", config.Quote(name))
	}
}

// word reports whether r may stand in a plain word.
func word(r rune) bool {
	return '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || r == '-' || r == '_'
}

func (j *judge) address(address string) {
	if address == "" {
		j.fail("address", "write host:port", "is missing")
	} else if _, _, err := allow.Address(address); err != nil {
		j.fail("address", "", "%s", err)
	}
}

func (j *judge) within(path string, n *int, low, high int) {
	if n != nil && (*n < low || *n > high) {
		j.fail(path, "", "must be from %d to %d, and is %d", low, high, *n)
	}
}

// invoke returns the name of the policy that was named, perhaps by an alias.
func (j *judge) invoke(name *string) string {
	if name == nil {
		return ""
	}
	policy, ok := balance.Find(*name)
	if !ok {
		j.fail("invoke", config.DidYouMean(*name, balance.Names()), "no policy %s", config.Quote(*name))
	}
	return policy.Name
}

func (j *judge) ttl(ttl *config.Duration) *time.Duration {
	if ttl == nil {
		return nil
	}
	d := ttl.D()
	if d < minTTL || d > maxTTL {
		j.fail("ttl", "", "must be from 1s to 24h, and is %s", d)
	}
	return &d
}

func (j *judge) labels(said *map[string]string) map[string]string {
	if said == nil {
		return nil
	}
	if n := len(*said); n > maxLabels {
		j.fail("labels", "", "has %d labels, and the most is %d", n, maxLabels)
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(*said)) {
		at, text := "labels."+key(name), (*said)[name]
		switch {
		case name == "":
			j.fail(at, "write one, or take the label out", "a label needs a name")
		case len(name) > maxLabelName:
			j.fail(at, "", "the name of a label has at most %d bytes", maxLabelName)
		case len(text) > maxLabelText:
			j.fail(at, "", "a label has at most %d bytes, and this has %d", maxLabelText, len(text))
		case strings.ContainsFunc(name, unicode.IsControl) || strings.ContainsFunc(text, unicode.IsControl):
			j.fail(at, "take it out", "has a control character")
		}
	}
	labels := make(map[string]string, len(*said))
	maps.Copy(labels, *said)
	return labels
}

// key writes the name of a label for a path: one that is no plain word is
// quoted, as load.Strict does.
func key(name string) string {
	if name == "" || len(name) > 64 || strings.ContainsFunc(name, func(r rune) bool { return !word(r) }) {
		return config.Quote(name)
	}
	return name
}

// health judges a check as the configuration judges that of a pool, but for exec:
// whoever may register need not be one who may start programs.
func (j *judge) health(h *config.Health) {
	const fromFile = "a check that starts a program can only be set in the configuration file"
	switch {
	case h == nil:
		return
	case h.Type == config.CheckExec:
		j.fail("health.type", "write http, tcp or grpc", fromFile)
		return
	case len(h.Command) > 0:
		j.fail("health.command", "take it out", fromFile)
		return
	}
	alone := &config.Config{Pools: []config.Pool{{Health: h}}}
	problems, _ := config.Validate(alone, func(string) (string, bool) { return "", false })
	for _, p := range problems {
		if path, ok := strings.CutPrefix(p.Path, "pools[0]."); ok && strings.HasPrefix(path, "health") {
			j.fail(path, p.Suggestion, "%s", p.Message)
		}
	}
}

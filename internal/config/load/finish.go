package load

import (
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/viper"

	"lb/internal/config"
)

// finish merges what overrides c, completes and judges it. The problems of
// decoding and those of judging are reported together, but for those that only
// follow from another.
func (d *decoder) finish(c *config.Config, v *viper.Viper, opts Options) (*config.Config, []config.Problem, error) {
	d.checkOverrides(opts.Overrides)
	d.override(c, v)
	c.Complete()
	problems, warnings := policies(c)
	more, hardly := config.Validate(c, os.LookupEnv)
	problems, warnings = append(problems, more...), append(warnings, hardly...)
	doubt := d.doubts()
	for _, p := range slices.Concat(problems, programs(c), neverDialled(c)) {
		if !doubt.about(p) {
			d.problems = append(d.problems, d.locate(p))
		}
	}
	if len(d.problems) > 0 {
		d.problems.Sort()
		return nil, nil, d.problems
	}
	for i, w := range warnings {
		warnings[i] = d.locate(w)
	}
	warnings.Sort()
	return c, append(warnings, misspelt(os.Environ(), c)...), nil
}

// locate adds to p where its value came from: a variable, a flag, or the line
// of the nearest thing in the file that encloses it.
func (d *decoder) locate(p config.Problem) config.Problem {
	for path := p.Path; ; path = parent(path) {
		if source := d.sources[path]; source != "" {
			p.Source = source
			return p
		}
		if line := d.lines[path]; line > 0 {
			p.Line = line
			return p
		}
		if path == "" {
			return p
		}
	}
}

// parent cuts the last key or index off a path.
func parent(path string) string {
	return path[:max(0, strings.LastIndexAny(path, ".["))]
}

var (
	actionPath = regexp.MustCompile(`^(routes\[[0-9]+\])\.(proxy|fanout|metrics|respond|redirect|split|mirror|canary)$`)
	poolPath   = regexp.MustCompile(`^pools(\[[0-9]+\](\.name)?)?$`)
)

// doubts is what cannot be judged, because something that the user wrote could
// not be decoded.
type doubts struct {
	spoilt  map[string]bool // these values, and what is in them
	actions map[string]bool // whether these routes do exactly one thing
	pools   bool            // which pools there are
}

func (d *decoder) doubts() doubts {
	in := doubts{spoilt: d.spoilt, actions: make(map[string]bool)}
	for path := range d.spoilt {
		if m := actionPath.FindStringSubmatch(path); m != nil {
			in.actions[m[1]] = true
		}
		in.pools = in.pools || poolPath.MatchString(path)
	}
	return in
}

// about reports whether p may be there only because of what could not be
// decoded.
func (in doubts) about(p config.Problem) bool {
	if in.actions[p.Path] || in.pools && strings.HasPrefix(p.Message, "no pool ") {
		return true
	}
	for path := p.Path; ; path = parent(path) {
		if in.spoilt[path] {
			return true
		}
		if path == "" {
			return false
		}
	}
}

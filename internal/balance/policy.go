package balance

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Spec is what a configuration says of a policy.
type Spec struct {
	// Name is the policy's, or one of its aliases.
	Name string
	// BoundedLoad is, for hash, how many times its fair share of what is in
	// flight a backend may have, at least 1; 0: any number.
	BoundedLoad float64
	// Score is the expression of custom.
	Score string
}

// Policy is one line in the table of policies.
type Policy struct {
	// Name is the one word for it, Aliases are others that mean the same.
	Name    string
	Aliases []string
	// Weighted says that it heeds weights, Keyed that its pool must say what
	// Query.Key is made of, ByClient that it is made of the client's address.
	Weighted, Keyed, ByClient bool
	// Compile makes the factory, or says what is wrong with the spec: a
	// *SpecError where that can be pinned to one of its settings.
	Compile func(Spec) (Factory, error)
}

// SpecError says what is wrong with one setting of a policy.
type SpecError struct {
	// Setting is key, bounded_load or score.
	Setting string
	// Message says what is wrong: of a score also where, as (line:column) and
	// with the line itself and a mark under it on two further lines. Suggestion
	// says what would be right; it may be empty.
	Message, Suggestion string
}

func (e *SpecError) Error() string {
	text := e.Setting + ": " + e.Message
	switch {
	case e.Suggestion == "":
	case strings.Contains(e.Message, "\n"): // it points into the setting
		text += "\n" + e.Suggestion
	default:
		text += "; " + e.Suggestion
	}
	return text
}

// policies is the table of policies. Register adds to it.
var policies = struct {
	sync.RWMutex
	table []Policy
}{table: []Policy{
	{Name: "roundrobin", Aliases: []string{"round-robin", "rr"}, Compile: plain(newRoundRobin)},
	{Name: "weighted_roundrobin", Aliases: []string{"wrr"}, Weighted: true, Compile: plain(newWeightedRoundRobin)},
	{Name: "least_conn", Aliases: []string{"leastconn"}, Weighted: true, Compile: plain(newLeastConn)},
	{Name: "least_time", Aliases: []string{"leasttime"}, Weighted: true, Compile: plain(newLeastTime)},
	{Name: "ip_hash", Aliases: []string{"source"}, Weighted: true, ByClient: true, Compile: plain(hashing(0))},
	{Name: "hash", Weighted: true, Keyed: true, Compile: compileHash},
	{Name: "random", Compile: plain(newRandom)},
	{Name: "p2c", Weighted: true, Compile: plain(newP2C)},
	{Name: "first", Compile: plain(newFirst)},
	{Name: "last", Compile: plain(newLast)},
	{Name: "single", Compile: plain(newFirst)},
	{Name: "custom", Weighted: true, Compile: compileCustom},
}}

// plain is the Compile of a policy without settings.
func plain(f Factory) func(Spec) (Factory, error) {
	return func(s Spec) (Factory, error) {
		if err := s.foreign(s.BoundedLoad != 0, "bounded_load", "hash"); err != nil {
			return nil, err
		}
		if err := s.foreign(s.Score != "", "score", "custom"); err != nil {
			return nil, err
		}
		return f, nil
	}
}

// foreign returns an error if s has a setting that only the policy owner knows.
func (s Spec) foreign(given bool, setting, owner string) error {
	if !given {
		return nil
	}
	return &SpecError{setting, fmt.Sprintf("the policy %s does not know it", s.Name), "leave it out; it belongs to " + owner}
}

// Register adds a policy that is compiled in. Its place is an init function:
// configurations that are read later may name it. It panics if p has no name or
// no Compile, or if its name or an alias is taken.
func Register(p Policy) {
	policies.Lock()
	defer policies.Unlock()
	if p.Name == "" || p.Compile == nil {
		panic(fmt.Sprintf("balance: the policy %q needs a name and Compile", p.Name))
	}
	names := append([]string{p.Name}, p.Aliases...)
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			panic(fmt.Sprintf("balance: the name %q of the policy %s is given twice", name, p.Name))
		}
		for _, other := range policies.table {
			if other.called(name) {
				panic(fmt.Sprintf("balance: the name %q of the policy %s is taken by the policy %s", name, p.Name, other.Name))
			}
		}
	}
	policies.table = append(policies.table, p)
}

// called reports whether name is p's name or one of its aliases.
func (p Policy) called(name string) bool {
	return p.Name == name || slices.Contains(p.Aliases, name)
}

// Find returns the policy with that name or alias.
func Find(name string) (Policy, bool) {
	policies.RLock()
	defer policies.RUnlock()
	for _, p := range policies.table {
		if p.called(name) {
			return p, true
		}
	}
	return Policy{}, false
}

// New returns the factory of the policy that s names, or an error that says
// what is wrong with s.
func New(s Spec) (Factory, error) {
	p, ok := Find(s.Name)
	if !ok {
		return nil, fmt.Errorf("no policy %q; there is %s", s.Name, strings.Join(Names(), ", "))
	}
	s.Name = p.Name
	return p.Compile(s)
}

// Names returns the names of all policies, sorted, without aliases.
func Names() []string {
	policies.RLock()
	defer policies.RUnlock()
	names := make([]string, 0, len(policies.table))
	for _, p := range policies.table {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	return names
}

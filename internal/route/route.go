// Package route compiles match rules into a table and finds the one rule that
// a request belongs to. A match takes no lock and does not allocate.
package route

import (
	"cmp"
	"slices"
	"strings"
)

// Rule says which requests a route takes. Empty parts match everything.
type Rule struct {
	// Hosts are host names or addresses without port, in any case.
	Hosts []string
	// Methods are upper-case; GET covers HEAD.
	Methods []string
	// Path is matched exactly, PathPrefix by whole segments; at most one is set.
	Path, PathPrefix string
}

// Table is a compiled list of rules. It is immutable.
type Table struct {
	ordered []entry           // in matching order
	hosts   map[string]*paths // rules for one exact host
	any     *paths            // rules for every host
}

type entry struct {
	Rule
	index int // the rule's place in the list given to Compile
}

// paths finds the rules of one host by path. The values are places in
// Table.ordered, rising: the lowest one that matches wins.
type paths struct {
	exact   map[string][]int
	prefix  map[string][]int
	longest int // the length of the longest prefix
	all     []int
}

// Compile orders the rules as requests see them: an exact host before none, an
// exact path before the longest prefix before none, more matchers before
// fewer, then as listed.
func Compile(rules []Rule) *Table {
	t := &Table{hosts: make(map[string]*paths), any: newPaths()}
	for i, r := range rules {
		r.Hosts = canonicalHosts(r.Hosts)
		t.ordered = append(t.ordered, entry{Rule: r, index: i})
	}
	slices.SortStableFunc(t.ordered, func(a, b entry) int {
		return cmp.Or(
			cmp.Compare(b.hostRank(), a.hostRank()),
			cmp.Compare(b.pathRank(), a.pathRank()),
			cmp.Compare(b.matchers(), a.matchers()),
		)
	})
	for rank, e := range t.ordered {
		if len(e.Hosts) == 0 {
			t.any.add(rank, e.Rule)
		}
		for _, h := range e.Hosts {
			p := t.hosts[h]
			if p == nil {
				p = newPaths()
				t.hosts[h] = p
			}
			p.add(rank, e.Rule)
		}
	}
	return t
}

func (r Rule) hostRank() int {
	return min(1, len(r.Hosts))
}

// pathRank puts every exact path above every prefix, and longer prefixes first.
func (r Rule) pathRank() int {
	const abovePrefixes = 1 << 30
	if r.Path != "" {
		return abovePrefixes
	}
	return len(r.PathPrefix)
}

func (r Rule) matchers() int { return min(1, len(r.Methods)) }

func newPaths() *paths {
	return &paths{exact: make(map[string][]int), prefix: make(map[string][]int)}
}

func (p *paths) add(rank int, r Rule) {
	switch {
	case r.Path != "":
		p.exact[r.Path] = append(p.exact[r.Path], rank)
	case r.PathPrefix != "" && r.PathPrefix != "/":
		p.prefix[r.PathPrefix] = append(p.prefix[r.PathPrefix], rank)
		p.longest = max(p.longest, len(r.PathPrefix))
	default:
		p.all = append(p.all, rank)
	}
}

// none is the rank after all others.
const none = int(^uint(0) >> 1)

// Match returns the place, in the list given to Compile, of the rule for a
// request: host as NormalizeHost gives it, path as ParseTarget does. ok is
// false if no rule takes it.
func (t *Table) Match(host, method, path string) (index int, ok bool) {
	best := none
	if len(t.hosts) > 0 {
		if p := t.hosts[host]; p != nil {
			best = t.best(p, method, path, best)
		}
	}
	best = t.best(t.any, method, path, best)
	if best == none {
		return 0, false
	}
	return t.ordered[best].index, true
}

// best returns the lowest rank below limit that takes the request, or limit.
func (t *Table) best(p *paths, method, path string, limit int) int {
	limit = t.first(p.exact[path], method, limit)
	if len(p.prefix) > 0 {
		for end := len(path); end > 0; end = parent(path, end) {
			if end <= p.longest { // else a path of nothing but slashes would be hashed at each
				limit = t.first(p.prefix[path[:end]], method, limit)
			}
		}
	}
	return t.first(p.all, method, limit)
}

// parent returns the end of the next shorter prefix that ends at a segment
// boundary: with the slash, then without it.
func parent(path string, end int) int {
	if path[end-1] == '/' {
		return end - 1
	}
	return strings.LastIndexByte(path[:end], '/') + 1
}

// first returns the first of ranks that takes the method, if below limit.
func (t *Table) first(ranks []int, method string, limit int) int {
	for _, rank := range ranks {
		if rank >= limit {
			break
		}
		if takes(t.ordered[rank].Methods, method) {
			return rank
		}
	}
	return limit
}

func takes(methods []string, method string) bool {
	if len(methods) == 0 {
		return true
	}
	for _, m := range methods {
		if m == method || m == "GET" && method == "HEAD" {
			return true
		}
	}
	return false
}

// Allow returns the methods, sorted, of the rules that would take the host and
// path with another method; empty if there are none.
func (t *Table) Allow(host, path string) []string {
	var methods []string
	for _, e := range t.ordered {
		if len(e.Hosts) > 0 && !slices.Contains(e.Hosts, host) || !e.takesPath(path) {
			continue
		}
		for _, m := range e.Methods {
			methods = append(methods, m)
			if m == "GET" {
				methods = append(methods, "HEAD")
			}
		}
	}
	slices.Sort(methods)
	return slices.Compact(methods)
}

func (r Rule) takesPath(path string) bool {
	if r.Path != "" {
		return r.Path == path
	}
	rest, ok := strings.CutPrefix(path, r.PathPrefix)
	return ok && (rest == "" || rest[0] == '/' || r.PathPrefix == "" || strings.HasSuffix(r.PathPrefix, "/"))
}

// Order returns the places of the rules in the order in which they match.
func (t *Table) Order() []int {
	order := make([]int, len(t.ordered))
	for i, e := range t.ordered {
		order[i] = e.index
	}
	return order
}

package load

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"lb/internal/config"
)

// maxAliased bounds how many values may be reached through YAML aliases, so
// that a small file cannot describe a huge configuration.
const maxAliased = 100_000

// decoder fills structs from YAML nodes and collects what is wrong. It goes on
// after each problem.
type decoder struct {
	problems config.Problems
	lines    map[string]int      // path → line, where it is not the parent's
	sources  map[string]string   // path → variable or flag that set it
	spoilt   map[string]bool     // paths whose value is not what the user meant
	planned  map[string][]string // place → keys that are refused as not built yet

	aliases int // how many aliases enclose the current node
	budget  int // how many more values may be reached through aliases
}

func newDecoder() *decoder {
	return &decoder{
		lines:   make(map[string]int),
		sources: make(map[string]string),
		spoilt:  make(map[string]bool),
		planned: planned,
		budget:  maxAliased,
	}
}

// fail records a problem and that the value at path is not to be judged
// further.
func (d *decoder) fail(path string, line int, suggestion, format string, args ...any) {
	d.spoilt[path] = true
	d.problems = append(d.problems, config.Problem{
		Path:       path,
		Line:       line,
		Source:     d.sources[path],
		Message:    fmt.Sprintf(format, args...),
		Suggestion: suggestion,
	})
}

// field is one key of a mapping that is decoded into a struct.
type field struct {
	key      string
	typ      reflect.Type
	optional bool // not written when it is zero
}

var fieldCache sync.Map // reflect.Type → []field

// fieldsOf returns the keys of a struct in the order of its fields.
func fieldsOf(t reflect.Type) []field {
	if cached, ok := fieldCache.Load(t); ok {
		return cached.([]field)
	}
	fields := make([]field, t.NumField())
	for i := range fields {
		f := t.Field(i)
		key, option, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		fields[i] = field{key: key, typ: f.Type, optional: option == "omitempty"}
	}
	fieldCache.Store(t, fields)
	return fields
}

// spend counts one value that is reached through an alias, and reports whether
// that is still allowed.
func (d *decoder) spend(path string, line int) bool {
	if d.aliases == 0 {
		return true
	}
	if d.budget == 0 {
		d.spoilt[""] = true
		d.fail(path, line, "write the values out", "the aliases of the file stand for too many values")
	}
	d.budget--
	return d.budget >= 0
}

// value decodes n into v. line is where the user wrote the value's key.
func (d *decoder) value(path string, line int, n *yaml.Node, v reflect.Value) {
	if n.Kind == yaml.AliasNode {
		d.aliases++
		defer func() { d.aliases-- }()
		n = n.Alias
	}
	if !d.spend(path, line) {
		return
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		d.null(path, line, v.Type())
		return
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	if s, ok := v.Addr().Interface().(interface{ SetDefaults() }); ok && path != "" {
		s.SetDefaults()
	}
	_, texty := v.Addr().Interface().(encoding.TextUnmarshaler)
	switch kind := v.Kind(); {
	case n.Kind == yaml.ScalarNode && (texty || isScalar(kind)):
		d.scalar(path, line, n, v)
	case n.Kind == yaml.SequenceNode && kind == reflect.Slice && n.ShortTag() == "!!seq":
		d.list(path, line, n, v)
	case n.Kind == yaml.MappingNode && kind == reflect.Struct && n.ShortTag() == "!!map":
		d.mapping(path, line, n, v)
	case n.Kind == yaml.MappingNode && kind == reflect.Map && n.ShortTag() == "!!map":
		d.words(path, line, n, v)
	default:
		d.mismatch(path, line, n, v.Type())
	}
}

func isScalar(k reflect.Kind) bool {
	return k != reflect.Slice && k != reflect.Struct && k != reflect.Map
}

// list decodes a list of anything. An empty one is nil, so that equal
// configurations are equal in Go, too.
func (d *decoder) list(path string, line int, n *yaml.Node, v reflect.Value) {
	v.SetZero()
	if len(n.Content) == 0 {
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		d.note(at, line, item.Line)
		d.value(at, item.Line, item, v.Index(i))
		if d.budget < 0 {
			return
		}
	}
}

// note remembers the line of path unless it is its parent's.
func (d *decoder) note(path string, parent, line int) {
	if line != parent {
		d.lines[path] = line
	}
}

// entry is one key of a mapping with its value.
type entry struct {
	key   string
	line  int
	value *yaml.Node
	alias bool // reached through an alias
}

// entries returns the keys of a mapping in order, those of merged mappings (<<)
// after its own, and reports keys that are given twice.
func (d *decoder) entries(path string, n *yaml.Node) []entry {
	var own, merged []entry
	seen := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		line := key.Line
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		first, given := seen[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode:
			d.fail(path, line, "", "a key must be a word")
		case key.ShortTag() == "!!merge":
			merged = append(merged, d.merge(path, line, value)...)
		case given:
			message := "the key is given twice"
			if first > 0 {
				message += fmt.Sprintf(", first in line %d", first)
			}
			d.problems = append(d.problems, config.Problem{Path: join(path, key.Value), Line: line, Message: message})
		default:
			seen[key.Value] = line
			own = append(own, entry{key: key.Value, line: line, value: value})
		}
	}
	for _, e := range merged {
		if _, given := seen[e.key]; !given {
			seen[e.key] = e.line
			own = append(own, e)
		}
	}
	return own
}

// merge returns the keys that a merge key brings: those of one mapping, or of a
// list of mappings of which earlier ones win.
func (d *decoder) merge(path string, line int, n *yaml.Node) []entry {
	if n.Kind == yaml.AliasNode {
		d.aliases++
		defer func() { d.aliases-- }()
		n = n.Alias
	}
	if !d.spend(path, line) {
		return nil
	}
	var all []entry
	switch n.Kind {
	case yaml.MappingNode:
		all = d.entries(path, n)
		for i := range all {
			all[i].alias = all[i].alias || d.aliases > 0
			if !d.spend(path, line) {
				return nil
			}
		}
	case yaml.SequenceNode:
		for _, item := range n.Content {
			all = append(all, d.merge(path, line, item)...)
		}
	default:
		d.fail(path, line, "write <<: *name", "<< merges mappings, not %s", describe(n))
	}
	return all
}

// each calls do for every entry of a mapping.
func (d *decoder) each(path string, line int, n *yaml.Node, do func(path string, e entry)) {
	for _, e := range d.entries(path, n) {
		at := join(path, e.key)
		d.note(at, line, e.line)
		if e.alias {
			d.aliases++
		}
		do(at, e)
		if e.alias {
			d.aliases--
		}
		if d.budget < 0 {
			return
		}
	}
}

// mapping decodes a mapping whose keys are the fields of a struct.
func (d *decoder) mapping(path string, line int, n *yaml.Node, v reflect.Value) {
	fields := fieldsOf(v.Type())
	given, meant := make(map[string]bool), make(map[string]bool)
	d.each(path, line, n, func(at string, e entry) {
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == e.key })
		if i < 0 {
			meant[d.unknown(path, at, e, fields)] = true
			return
		}
		given[e.key] = true
		d.value(at, e.line, e.value, v.Field(i))
	})
	if v.Type() == reflect.TypeFor[config.OrderBy]() && len(given)+len(meant) == 0 {
		d.fail(path, line, "write none if that is meant", "expects %s, not an empty mapping", expected(v.Type()))
	}
	delete(meant, "")
	for key := range meant {
		if !given[key] {
			d.spoilt[join(path, key)] = true
		}
	}
}

// words decodes a mapping whose keys are the user's own.
func (d *decoder) words(path string, line int, n *yaml.Node, v reflect.Value) {
	v.SetZero()
	d.each(path, line, n, func(at string, e entry) {
		if v.IsNil() {
			v.Set(reflect.MakeMap(v.Type()))
		}
		word := reflect.New(v.Type().Elem()).Elem()
		d.value(at, e.line, e.value, word)
		v.SetMapIndex(reflect.ValueOf(e.key), word)
	})
}

// unknown reports a key that no field has: one that is planned, or one that was
// perhaps meant to be another, which it returns.
func (d *decoder) unknown(path, at string, e entry, fields []field) (meant string) {
	if slices.Contains(d.planned[place(path)], e.key) {
		d.fail(at, e.line, "", "%s is not supported yet", e.key)
		return ""
	}
	known := make([]string, len(fields))
	for i, f := range fields {
		known[i] = f.key
	}
	d.fail(at, e.line, config.DidYouMean(e.key, known), "unknown key %s", config.Quote(e.key))
	return config.Suggest(e.key, known)
}

// join appends a key to a path; one that is no plain word is quoted.
func join(path, key string) string {
	if key == "" || strings.ContainsFunc(key, func(r rune) bool {
		return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) || len(key) > 64 {
		key = config.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// Package diff says by name what differs between two configurations.
package diff

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"lb/internal/config"
)

// Diff is what one configuration has other than the one before.
//
// Things are named by what they are and are called: "listener public", "pool
// users", "backend users/server1", "route login", and sections such as "admin".
// Each list is in the order of the sections of a configuration, and there in the
// order of the newer one, what was removed in that of the older.
type Diff struct {
	// Added and Removed are things that one of the two does not have. A pool
	// brings its backends along: they are not in the lists by themselves.
	Added   []string `json:"added"`
	Removed []string `json:"removed"`
	// Changed are the things that both have, and that differ.
	Changed []Change `json:"changed"`
}

// Change is how one thing differs.
type Change struct {
	Name string `json:"name"`
	// Values differ, in the order of the configuration's keys.
	Values []Value `json:"values"`
}

// Value is one value that differs, or a block that one of the two lacks.
type Value struct {
	// Path leads to it by keys and names: pools.users.limits.per_backend. That
	// of a list of things means their order.
	Path string `json:"path"`
	// From and To are as a configuration writes them; "none" stands for what is
	// not there, and an empty text is "". What may be a secret is "(hidden)".
	From string `json:"from"`
	To   string `json:"to"`
}

// Between compares two configurations that are valid and complete.
func Between(from, to *config.Config) Diff {
	d := Diff{Added: []string{}, Removed: []string{}, Changed: []Change{}}
	older, newer := reflect.ValueOf(from).Elem(), reflect.ValueOf(to).Elem()
	for _, f := range fieldsOf(older.Type()) {
		a, b := older.Field(f.index), newer.Field(f.index)
		c := Change{Name: f.key}
		if name := nameIn(a.Type(), "name"); name >= 0 {
			d.things(&c, f.key, singular(f.key)+" ", name, a, b)
		} else {
			d.walk(&c, f.key, a, b)
		}
		d.add(len(d.Changed), c)
	}
	return d
}

// Empty reports whether nothing differs.
func (d Diff) Empty() bool { return len(d.Added)+len(d.Removed)+len(d.Changed) == 0 }

// String writes the difference for people: a line for each thing and for each
// value, or "nothing has changed".
func (d Diff) String() string {
	if d.Empty() {
		return "nothing has changed\n"
	}
	var b strings.Builder
	for _, name := range d.Added {
		fmt.Fprintf(&b, "+ %s\n", name)
	}
	for _, name := range d.Removed {
		fmt.Fprintf(&b, "- %s\n", name)
	}
	for _, c := range d.Changed {
		fmt.Fprintf(&b, "~ %s\n", c.Name)
		for _, v := range c.Values {
			fmt.Fprintf(&b, "    %s: %s → %s\n", v.Path, v.From, v.To)
		}
	}
	return b.String()
}

// add puts a change in its place, if it is one.
func (d *Diff) add(at int, c Change) {
	if len(c.Values) > 0 {
		d.Changed = slices.Insert(d.Changed, at, c)
	}
}

// compare notes a value in c if it differs.
func (c *Change) compare(path, from, to string) {
	if from != to {
		c.Values = append(c.Values, Value{Path: path, From: from, To: to})
	}
}

// things compares two lists of structs by their names, which are in their field
// number nameAt; prefix makes them whole. The order of a list may mean something,
// and belongs to what it is a list of.
func (d *Diff) things(whole *Change, path, prefix string, nameAt int, from, to reflect.Value) {
	older, newer := placesOf(from, nameAt), placesOf(to, nameAt)
	var was, is []string // the order of what both have
	for i := range to.Len() {
		name := to.Index(i).Field(nameAt).String()
		before, ok := older[name]
		if !ok {
			d.Added = append(d.Added, prefix+name)
			continue
		}
		is = append(is, name)
		a, b := from.Index(before), to.Index(i)
		if reflect.DeepEqual(a.Addr().Interface(), b.Addr().Interface()) {
			continue // as most are; walk would find the same in ten times the time
		}
		c, at := Change{Name: prefix + name}, len(d.Changed)
		d.walk(&c, path+"."+name, a, b)
		d.add(at, c) // before what is within it
	}
	for i := range from.Len() {
		name := from.Index(i).Field(nameAt).String()
		if _, ok := newer[name]; ok {
			was = append(was, name)
		} else {
			d.Removed = append(d.Removed, prefix+name)
		}
	}
	was, is = apart(was, is)
	whole.compare(path, line(was), line(is))
}

// placesOf returns where in a list each name is.
func placesOf(list reflect.Value, nameAt int) map[string]int {
	places := make(map[string]int, list.Len())
	for i := range list.Len() {
		places[list.Index(i).Field(nameAt).String()] = i
	}
	return places
}

// apart leaves out what two orders of the same names have in common at either
// end.
func apart(a, b []string) (x, y []string) {
	for len(a) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return a, b
}

// walk notes in c what differs below path, and in d what has a name of its own
// there.
func (d *Diff) walk(c *Change, path string, from, to reflect.Value) {
	t := from.Type()
	switch {
	case isText(t):
		c.compare(path, text(from), text(to))
	case t.Kind() == reflect.Struct:
		for _, f := range fieldsOf(t) {
			a, b, at := from.Field(f.index), to.Field(f.index), path+"."+f.key
			switch {
			case !f.secret:
				d.walk(c, at, a, b)
			case !a.Equal(b):
				c.Values = append(c.Values, Value{Path: at, From: hidden, To: hidden})
			}
		}
	case t.Kind() == reflect.Pointer && !from.IsNil() && !to.IsNil():
		d.walk(c, path, from.Elem(), to.Elem())
	case nameIn(t, "id") >= 0:
		list := path[strings.LastIndexByte(path, '.')+1:]
		_, owner, _ := strings.Cut(c.Name, " ")
		d.things(c, path, singular(list)+" "+owner+"/", nameIn(t, "id"), from, to)
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct && from.Len() == to.Len():
		for i := range from.Len() {
			d.walk(c, fmt.Sprintf("%s[%d]", path, i), from.Index(i), to.Index(i))
		}
	case t.Kind() == reflect.Map:
		keys := slices.Concat(keysOf(from), keysOf(to))
		slices.Sort(keys)
		for _, key := range slices.Compact(keys) {
			k := reflect.ValueOf(key)
			c.compare(path+"."+key, text(from.MapIndex(k)), text(to.MapIndex(k)))
		}
	default:
		c.compare(path, text(from), text(to))
	}
}

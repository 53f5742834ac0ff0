package diff

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"lb/internal/config"
)

const (
	none   = "none"     // what is not there
	hidden = "(hidden)" // what may be a secret
)

// field is one field of a config struct.
type field struct {
	index  int
	key    string // in a configuration
	secret bool
}

func fieldsOf(t reflect.Type) []field {
	fields := make([]field, t.NumField())
	for i := range fields {
		key, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		// A field that a check sends may be a password; all other secrets are
		// names of variables.
		secret := t == reflect.TypeFor[config.HeaderValue]() && key == "value"
		fields[i] = field{index: i, key: key, secret: secret}
	}
	return fields
}

// nameIn returns which field names the structs of a list by that key, -1 if none
// does or t is no such list.
func nameIn(t reflect.Type, key string) int {
	if t.Kind() != reflect.Slice || t.Elem().Kind() != reflect.Struct {
		return -1
	}
	return slices.IndexFunc(fieldsOf(t.Elem()), func(f field) bool { return f.key == key })
}

// singular is what one thing of a list is called.
func singular(list string) string { return strings.TrimSuffix(list, "s") }

func keysOf(m reflect.Value) []string {
	keys := make([]string, 0, m.Len())
	for _, k := range m.MapKeys() {
		keys = append(keys, k.String())
	}
	slices.Sort(keys)
	return keys
}

// isText reports whether values of type t write themselves as one word.
func isText(t reflect.Type) bool { return t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) }

// text writes a value as a configuration does, on one line; blocks without what
// is empty in them.
func text(v reflect.Value) string {
	if !v.IsValid() {
		return none
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, _ := m.MarshalText() // of a duration or a size: cannot fail
		return string(text)
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return none
		}
		return text(v.Elem())
	case reflect.String:
		return word(v.String())
	case reflect.Slice:
		items := make([]string, v.Len())
		for i := range items {
			items[i] = text(v.Index(i))
		}
		return "[" + strings.Join(items, ", ") + "]"
	case reflect.Map:
		var items []string
		for _, key := range keysOf(v) {
			items = append(items, word(key)+": "+text(v.MapIndex(reflect.ValueOf(key))))
		}
		return "{" + strings.Join(items, ", ") + "}"
	case reflect.Struct:
		var items []string
		for _, f := range fieldsOf(v.Type()) {
			switch value := v.Field(f.index); {
			case value.IsZero():
			case f.secret:
				items = append(items, f.key+": "+hidden)
			default:
				items = append(items, f.key+": "+text(value))
			}
		}
		return "{" + strings.Join(items, ", ") + "}"
	case reflect.Float64:
		return strconv.FormatFloat(v.Float(), 'g', -1, 64)
	}
	return fmt.Sprint(v.Interface())
}

// word writes a user's text plainly where it cannot be misread.
func word(s string) string {
	odd := func(r rune) bool { return !unicode.IsPrint(r) || strings.ContainsRune(`"[]{},`, r) }
	if s == "" || s == none || strings.TrimSpace(s) != s || strings.ContainsFunc(s, odd) {
		return strconv.Quote(s)
	}
	return s
}

// line writes names, as many as fit into a line.
func line(names []string) string {
	const most = 8
	if more := len(names) - most; more > 0 {
		return fmt.Sprintf("%s, … (%d more)", strings.Join(names[:most], ", "), more)
	}
	return strings.Join(names, ", ")
}

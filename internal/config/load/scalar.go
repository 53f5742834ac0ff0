package load

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"lb/internal/config"
)

// scalar decodes a single value into v, if the YAML type of the node fits.
func (d *decoder) scalar(path string, line int, n *yaml.Node, v reflect.Value) {
	if !slices.Contains(tagsOf(v.Type()), n.ShortTag()) {
		d.mismatch(path, line, n, v.Type())
		return
	}
	if message := setText(v, n.Value); message != "" {
		d.fail(path, line, "", "%s", message)
	}
}

// tagsOf returns the YAML types that a value of type t is written in.
func tagsOf(t reflect.Type) []string {
	switch t {
	case reflect.TypeFor[config.Duration](), reflect.TypeFor[config.Size]():
		return []string{"!!str", "!!int", "!!float"}
	}
	switch t.Kind() {
	case reflect.Bool:
		return []string{"!!bool"}
	case reflect.Int:
		return []string{"!!int"}
	case reflect.Float64:
		return []string{"!!int", "!!float"}
	}
	return []string{"!!str"}
}

// setText sets v, a scalar, to the value that text stands for. It returns what
// is wrong with the text, or "".
func setText(v reflect.Value, text string) string {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			return err.Error()
		}
		return ""
	}
	switch v.Kind() {
	case reflect.Bool:
		if yes := strings.EqualFold(text, "true"); yes || strings.EqualFold(text, "false") {
			v.SetBool(yes)
			return ""
		}
	case reflect.Int:
		i, err := strconv.Atoi(text)
		digits := strings.TrimLeft(text, "+-")
		if err == nil && (digits == "0" || digits[0] != '0') {
			v.SetInt(int64(i))
			return ""
		}
	case reflect.Float64:
		f, err := strconv.ParseFloat(text, 64)
		if err == nil && !math.IsNaN(f) && !math.IsInf(f, 0) {
			v.SetFloat(f)
			return ""
		}
	default:
		if utf8.ValidString(text) {
			v.SetString(text)
			return ""
		}
	}
	return fmt.Sprintf("expects %s, not %s", expected(v.Type()), config.Quote(text))
}

// expected says what is to be written for a value of type t.
func expected(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[config.Duration]():
		return "a duration such as 250ms"
	case reflect.TypeFor[config.Size]():
		return "a size such as 64KiB"
	case reflect.TypeFor[config.Policy]():
		return "a policy's name, or a mapping such as { name: hash, key: path }"
	case reflect.TypeFor[config.OrderBy]():
		return "none, or what writes are ordered by, such as { field: username }"
	}
	switch t.Kind() {
	case reflect.Slice:
		return "a list"
	case reflect.Struct, reflect.Map, reflect.Pointer:
		return "a mapping"
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	}
	return "text"
}

// describe says what a node is.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "a mapping"
	case yaml.AliasNode:
		return "an alias"
	}
	if n.ShortTag() == "!!str" || len(n.Value) > 64 {
		return config.Quote(n.Value)
	}
	return n.Value
}

// mismatch reports a value of the wrong kind.
func (d *decoder) mismatch(path string, line int, n *yaml.Node, t reflect.Type) {
	if tag := n.ShortTag(); !slices.Contains(coreTags, tag) {
		d.fail(path, line, "take it out", "the YAML tag %s means nothing here", config.Quote(tag))
		return
	}
	suggestion := ""
	if n.Kind == yaml.ScalarNode {
		switch {
		case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Struct:
			suggestion = "write [" + describe(n) + "]"
		case t.Kind() == reflect.String || t == reflect.TypeFor[config.Policy]():
			suggestion = "write " + config.Quote(n.Value)
		case n.ShortTag() == "!!str" && fits(n.Value, t):
			suggestion = "take the quotes out"
		}
	}
	d.fail(path, line, suggestion, "expects %s, not %s", expected(t), describe(n))
}

var coreTags = []string{"!!str", "!!int", "!!float", "!!bool", "!!null", "!!timestamp", "!!seq", "!!map", "!!merge"}

// fits reports whether text would be a value of the scalar type t.
func fits(text string, t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Bool, reflect.Int, reflect.Float64:
		return setText(reflect.New(t).Elem(), text) == ""
	}
	return false
}

// isMapping reports whether a value of type t can only be written as a mapping.
func isMapping(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	texty := reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
	return t.Kind() == reflect.Map || t.Kind() == reflect.Struct && !texty
}

// null reports a key without a value.
func (d *decoder) null(path string, line int, t reflect.Type) {
	switch {
	case strings.HasSuffix(path, "]"):
		d.fail(path, line, "fill it in or take it out", "empty entry")
	case t.Kind() == reflect.Slice:
		d.fail(path, line, "write [] if that is meant", "empty list")
	case isMapping(t):
		d.fail(path, line, "write {} if that is meant", "empty mapping")
	default:
		d.fail(path, line, "write one or take the key out", "no value")
	}
}

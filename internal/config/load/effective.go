package load

import (
	"bytes"
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"

	"lb/internal/config"
)

// Effective writes c with all defaults as YAML, keys in the order of the
// structs. Reading it gives a configuration equal to c.
//
// The nodes are made here and not by the YAML library, which writes some texts
// so that it cannot read them back.
func Effective(c *config.Config) ([]byte, error) {
	root, err := nodeOf(reflect.ValueOf(c).Elem())
	if err != nil {
		return nil, fmt.Errorf("writing the configuration: %w", err)
	}
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(root); err != nil {
		return nil, fmt.Errorf("writing the configuration: %w", err)
	}
	if err := e.Close(); err != nil {
		return nil, fmt.Errorf("writing the configuration: %w", err)
	}
	return b.Bytes(), nil
}

// nodeOf is the counterpart of decoder.value.
func nodeOf(v reflect.Value) (*yaml.Node, error) {
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, err := m.MarshalText()
		return &yaml.Node{Kind: yaml.ScalarNode, Value: string(text)}, err
	}
	switch v.Kind() {
	case reflect.Pointer:
		return nodeOf(v.Elem())
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[config.OrderBy]() && v.IsZero() {
			return textNode(config.OrderNone), nil
		}
		return mappingNode(v)
	case reflect.Map:
		return wordsNode(v), nil
	case reflect.Slice:
		return listNode(v)
	case reflect.Float64:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: strconv.FormatFloat(v.Float(), 'g', -1, 64)}, nil
	case reflect.String:
		return textNode(v.String()), nil
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Value: fmt.Sprint(v.Interface())}, nil
}

func mappingNode(v reflect.Value) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for i, f := range fieldsOf(v.Type()) {
		if f.optional && v.Field(i).IsZero() {
			continue
		}
		value, err := nodeOf(v.Field(i))
		if err != nil {
			return nil, err
		}
		n.Content = append(n.Content, textNode(f.key), value)
	}
	return n, nil
}

// wordsNode writes the user's own keys, sorted.
func wordsNode(v reflect.Value) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	keys := v.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	for _, key := range keys {
		n.Content = append(n.Content, textNode(key.String()), textNode(v.MapIndex(key).String()))
	}
	return n
}

// listNode writes a list, on one line if its items are single values.
func listNode(v reflect.Value) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.SequenceNode}
	if isScalar(v.Type().Elem().Kind()) {
		n.Style = yaml.FlowStyle
	}
	for i := range v.Len() {
		item, err := nodeOf(v.Index(i))
		if err != nil {
			return nil, err
		}
		n.Content = append(n.Content, item)
	}
	return n, nil
}

// textNode writes a text plainly where it can be read back so. A plain << would
// be a merge key.
func textNode(text string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}
	if text == "<<" || strings.TrimSpace(text) != text || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

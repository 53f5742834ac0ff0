package load

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"lb/internal/config"
)

// Strict decodes one JSON object into the struct that into points to, by the
// fields' yaml tags and as strictly as a file: keys that are unknown or given
// twice and values of the wrong type are problems, each with its path. A struct
// that has SetDefaults gets them first. If there are problems, what into points
// to is of no use. Problems have no lines.
func Strict(document []byte, into any) config.Problems {
	d := newDecoder()
	d.planned = nil
	v := reflect.ValueOf(into).Elem()
	if s, ok := into.(interface{ SetDefaults() }); ok {
		s.SetDefaults()
	}
	if root := d.object(document); root != nil {
		d.value("", 0, root, v)
	}
	return d.problems
}

// object returns the only JSON value of document as a node without lines, or
// nil after it has reported why there is none.
func (d *decoder) object(document []byte) *yaml.Node {
	switch {
	case len(bytes.TrimSpace(document)) == 0:
		d.fail("", 0, "write a JSON object", "is empty")
		return nil
	case !utf8.Valid(document):
		d.fail("", 0, "", "is not UTF-8")
		return nil
	}
	// This judges the syntax of the whole, and bounds how deep it goes.
	var whole json.RawMessage
	if err := json.Unmarshal(document, &whole); err != nil {
		d.fail("", 0, "", "not JSON: %s", jsonError(err))
		return nil
	}
	reader := json.NewDecoder(bytes.NewReader(document))
	reader.UseNumber()
	return jsonNode(reader)
}

// jsonError says what is wrong with a document, and where.
func jsonError(err error) string {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Sprintf("%s at byte %d", syntax, syntax.Offset)
	}
	return err.Error()
}

// jsonNode reads the next value, of a document that is known to be valid.
func jsonNode(reader *json.Decoder) *yaml.Node {
	token, _ := reader.Token()
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
	switch t := token.(type) {
	case string:
		n.Tag, n.Value = "!!str", t
	case bool:
		n.Tag, n.Value = "!!bool", fmt.Sprint(t)
	case json.Number:
		n.Tag, n.Value = "!!int", t.String()
		if strings.ContainsAny(n.Value, ".eE") {
			n.Tag = "!!float"
		}
	case json.Delim:
		n.Kind, n.Tag, n.Value = yaml.SequenceNode, "!!seq", ""
		if t == '{' {
			n.Kind, n.Tag = yaml.MappingNode, "!!map"
		}
		for reader.More() { // a key is a value like any other
			n.Content = append(n.Content, jsonNode(reader))
		}
		_, _ = reader.Token() // the end, which is there
	}
	return n
}

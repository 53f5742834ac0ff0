package fanout

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"lb/internal/outcome"
)

// OrderBy says what of a request its write is ordered by: writes with the same
// value there, to the same pool, have the same Key. The zero OrderBy orders
// nothing.
type OrderBy struct {
	Kind OrderKind
	// Name is the form or JSON field, the header field, or the JSON pointer.
	Name string
	// Segment is the number of the path's segment, from 1.
	Segment int
}

// OrderKind says where in a request the value stands; empty: nowhere.
type OrderKind string

// The kinds of OrderBy, as the config spells them.
const (
	// OrderField is a field of the body: of a form, or of a JSON object at its
	// top, as the Content-Type says.
	OrderField OrderKind = "field"
	// OrderHeader is a header field.
	OrderHeader OrderKind = "header"
	// OrderJSON is the value in a JSON body that a pointer (RFC 6901) leads to.
	OrderJSON OrderKind = "json"
	// OrderPathSegment is a segment of the path.
	OrderPathSegment OrderKind = "path_segment"
)

// Key returns the order key of a write to a pool; zero if o orders nothing.
//
// It depends on the value alone, and not on how or where it was written: the
// form username=ada, the JSON {"username":"\u0061da"} and the path /users/ada
// have the same. An error is an *outcome.Error that tells the client what to
// change, without repeating what it sent.
func (o OrderBy) Key(pool string, in *Write) (Key, error) {
	if o.Kind == "" {
		return Key{}, nil
	}
	value, err := o.value(in)
	if err == nil && value == "" {
		err = errEmpty
	}
	if err != nil {
		detail := fmt.Sprintf("this route orders writes by %s: %s", o.what(), err)
		return Key{}, &outcome.Error{Code: outcome.BadRequest, Detail: detail}
	}
	return digest("order", pool, value), nil
}

// What is wrong with a request, in the words that follow OrderBy.what.
var (
	errMissing   = errors.New("it is missing; send it once, with a value")
	errEmpty     = errors.New("it is empty; send it with a value")
	errRepeated  = errors.New("it is given more than once; send it once")
	errNoText    = errors.New("it is an object, an array or null; send a string, a number or a boolean")
	errNoObject  = errors.New("the body is no JSON object; send one that has the field")
	errJSON      = errors.New("the body is not valid JSON in UTF-8; send one JSON value and nothing after it")
	errEscape    = errors.New("the body has a % that begins no escape; write % itself as %25")
	errPath      = errors.New("the path has a % that begins no escape; write % itself as %25")
	errEncoded   = errors.New("the body has a Content-Encoding, which lb does not decode; send it without")
	errTypes     = errors.New("the request has more than one Content-Type; send one")
	errFieldType = errors.New("the Content-Type is neither of those that it can be read from; " +
		"send application/x-www-form-urlencoded or application/json")
	errJSONType = errors.New("the Content-Type is not that of JSON; send application/json")
)

// what names the value for the client.
func (o OrderBy) what() string {
	switch o.Kind {
	case OrderField:
		return fmt.Sprintf("the field %q of the body", o.Name)
	case OrderHeader:
		return "the header field " + o.Name
	case OrderJSON:
		return fmt.Sprintf("the value at %q in the JSON body", o.Name)
	default:
		return fmt.Sprintf("segment %d of the path", o.Segment)
	}
}

// value returns the text that a write is ordered by, decoded.
func (o OrderBy) value(in *Write) (string, error) {
	switch o.Kind {
	case OrderHeader:
		values := lines(in, o.Name)
		if err := once(len(values)); err != nil {
			return "", err
		}
		return strings.Trim(values[0], " \t"), nil
	case OrderPathSegment:
		return segment(in.Target, o.Segment)
	}
	kind, err := bodyType(in)
	switch isJSON := kind == "application/json" || strings.HasSuffix(kind, "+json"); {
	case err != nil:
		return "", err
	case o.Kind == OrderJSON && isJSON:
		return jsonValue(in.Body, o.Name)
	case o.Kind == OrderJSON:
		return "", errJSONType
	case isJSON:
		return jsonField(in.Body, o.Name)
	case kind == "application/x-www-form-urlencoded":
		return formField(in.Body, o.Name)
	default:
		return "", errFieldType
	}
}

// once judges how often a thing was found that must be there once.
func once(found int) error {
	switch found {
	case 0:
		return errMissing
	case 1:
		return nil
	default:
		return errRepeated
	}
}

// segment returns the n-th segment of the path in a request target.
func segment(target string, n int) (string, error) {
	path, _, _ := strings.Cut(target, "?")
	rest, found := strings.CutPrefix(path, "/")
	for ; n > 1 && found; n-- {
		_, rest, found = strings.Cut(rest, "/")
	}
	if !found {
		return "", errMissing
	}
	raw, _, _ := strings.Cut(rest, "/")
	value, err := url.PathUnescape(raw)
	if err != nil {
		return "", errPath
	}
	return value, nil
}

// bodyType returns the media type of a body that can be read as it is: in lower
// case, without parameters.
func bodyType(in *Write) (string, error) {
	for _, coding := range lines(in, "Content-Encoding") {
		if coding = strings.TrimSpace(coding); coding != "" && !strings.EqualFold(coding, "identity") {
			return "", errEncoded
		}
	}
	types := lines(in, "Content-Type")
	if len(types) > 1 {
		return "", errTypes
	}
	media, _, _ := strings.Cut(strings.Join(types, ""), ";")
	return strings.ToLower(strings.TrimSpace(media)), nil
}

// formField returns the value of a field in an URL-encoded form. All of the
// form must be well formed: what a backend makes of the rest is unknown.
func formField(form []byte, name string) (string, error) {
	value, found := "", 0
	for pair := range strings.SplitSeq(string(form), "&") {
		rawName, rawValue, _ := strings.Cut(pair, "=")
		n, err := url.QueryUnescape(rawName)
		if err != nil {
			return "", errEscape
		}
		v, err := url.QueryUnescape(rawValue)
		if err != nil {
			return "", errEscape
		}
		if n == name && pair != "" {
			value = v
			found++
		}
	}
	return value, once(found)
}

// jsonField returns the value of a member of the object that a JSON text is.
func jsonField(text []byte, name string) (string, error) {
	doc, err := document(text)
	if err != nil {
		return "", err
	}
	if doc[0] != '{' {
		return "", errNoObject
	}
	if doc, err = member(doc, name); err != nil {
		return "", err
	}
	return scalarText(doc)
}

// jsonValue returns the value in a JSON text that a pointer leads to.
func jsonValue(text []byte, pointer string) (string, error) {
	doc, err := document(text)
	if err != nil {
		return "", err
	}
	for _, token := range strings.Split(pointer, "/")[1:] {
		switch doc[0] {
		case '{':
			name := strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~")
			doc, err = member(doc, name)
		case '[':
			doc, err = element(doc, token)
		default:
			err = errMissing
		}
		if err != nil {
			return "", err
		}
	}
	return scalarText(doc)
}

// document returns the one value that a JSON text is, without the blanks around
// it. What follows scans it by hand, in one pass and without recursion, as a
// decoder does not tell members that are given twice. It relies on the text
// being valid, and so checks little.
func document(text []byte) ([]byte, error) {
	if !utf8.Valid(text) || !json.Valid(text) {
		return nil, errJSON
	}
	return bytes.Trim(text, jsonBlanks), nil
}

const jsonBlanks = " \t\r\n"

// member returns the value of the one member of an object that has the name.
func member(object []byte, name string) (value []byte, err error) {
	found := 0
	for i := next(object, 1); object[i] != '}'; {
		end := valueEnd(object, i)
		hit := isName(object[i:end], name)
		i = next(object, next(object, end)+1) // past the colon
		end = valueEnd(object, i)
		if hit {
			value = object[i:end]
			found++
		}
		i = nextItem(object, end)
	}
	return value, once(found)
}

// element returns the value in an array that a token of a pointer names.
func element(array []byte, token string) ([]byte, error) {
	index, err := strconv.Atoi(token)
	if err != nil || index < 0 || strconv.Itoa(index) != token {
		return nil, errMissing
	}
	for i := next(array, 1); array[i] != ']'; index-- {
		end := valueEnd(array, i)
		if index == 0 {
			return array[i:end], nil
		}
		i = nextItem(array, end)
	}
	return nil, errMissing
}

// next returns the place of the first byte of doc, from i on, that is no blank.
func next(doc []byte, i int) int {
	for strings.IndexByte(jsonBlanks, doc[i]) >= 0 {
		i++
	}
	return i
}

// nextItem returns where the next item of an object or an array begins, behind
// one that ends at i; or where the closing bracket is.
func nextItem(doc []byte, i int) int {
	if i = next(doc, i); doc[i] == ',' {
		i = next(doc, i+1)
	}
	return i
}

// valueEnd returns where the value ends that begins at i.
func valueEnd(doc []byte, i int) int {
	for depth := 0; i < len(doc); i++ {
		switch doc[i] {
		case '{', '[':
			depth++
			continue
		case '"':
			for i++; doc[i] != '"'; i++ {
				if doc[i] == '\\' {
					i++
				}
			}
		case '}', ']':
			if depth == 0 {
				return i // behind a number or a word
			}
			depth--
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
			continue
		default: // of a number or a word
			continue
		}
		if depth == 0 {
			return i + 1
		}
	}
	return i
}

// isName reports whether a string in JSON spells name.
func isName(raw []byte, name string) bool {
	if bytes.IndexByte(raw, '\\') >= 0 {
		return unquote(raw) == name
	}
	return string(raw[1:len(raw)-1]) == name
}

// scalarText returns the text of a string, a number or a boolean: of a number
// as it is spelt, because 1 and 1.0 need not be the same to a backend.
func scalarText(raw []byte) (string, error) {
	switch raw[0] {
	case '{', '[', 'n':
		return "", errNoText
	case '"':
		return unquote(raw), nil
	}
	return string(raw), nil
}

// unquote returns the text of a string in JSON.
func unquote(raw []byte) string {
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1])
	}
	var text string
	_ = json.Unmarshal(raw, &text) // it is part of what has been found valid
	return text
}

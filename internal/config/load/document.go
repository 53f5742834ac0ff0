package load

import (
	"bytes"
	"errors"
	"io"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"

	"lb/internal/config"
)

// text makes a configuration of the text of a file and what overrides it.
func (d *decoder) text(name string, data []byte, v *viper.Viper, opts Options) (*config.Config, []config.Problem, error) {
	root := d.parse(name, data)
	if root == nil {
		return nil, nil, d.problems
	}
	c := config.Default()
	d.lines[""] = root.Line
	d.value("", root.Line, root, reflect.ValueOf(c).Elem())
	// Backends that register bring their routes along.
	if root.Kind == yaml.MappingNode && !c.Registration.Enabled && !d.given(root, "routes") {
		d.fail("routes", root.Line, "add some, or write [] if none is meant", "is missing")
	}
	c, warnings, err := d.finish(c, v, opts)
	if err == nil && os.Getenv(poolEnv) != "" {
		warnings = append(warnings, config.Problem{Source: poolEnv, Message: "is not used, because there is a file"})
	}
	return c, warnings, err
}

// given reports whether the file has a top-level key, or one that was meant to
// be it.
func (d *decoder) given(root *yaml.Node, key string) bool {
	if d.spoilt[key] || d.spoilt[""] {
		return true
	}
	for i := 0; i < len(root.Content); i += 2 {
		if root.Content[i].Value == key || root.Content[i].ShortTag() == "!!merge" {
			return true
		}
	}
	return false
}

// parse returns the value of the only YAML document in data, or nil after it
// has reported why there is none.
func (d *decoder) parse(name string, data []byte) *yaml.Node {
	switch {
	case len(data) > MaxFileSize:
		d.fail("", 0, "", "%s has %d bytes, and the most is %s", name, len(data), config.Size(MaxFileSize))
		return nil
	case !utf8.Valid(data):
		d.fail("", invalidLine(data), "save the file as UTF-8", "%s is not UTF-8", name)
		return nil
	}
	reader := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	switch err := reader.Decode(&document); {
	case errors.Is(err, io.EOF) || err == nil && isNull(document.Content):
		d.fail("", 0, "write at least listeners and routes", "%s is empty", name)
		return nil
	case err != nil:
		d.syntax(err, data)
		return nil
	}
	switch err := reader.Decode(&second); {
	case err == nil:
		d.fail("", second.Line, "keep one of them", "%s has several YAML documents", name)
		return nil
	case !errors.Is(err, io.EOF):
		d.syntax(err, data)
		return nil
	}
	return document.Content[0]
}

func isNull(content []*yaml.Node) bool {
	return len(content) == 0 || content[0].Kind == yaml.ScalarNode && content[0].ShortTag() == "!!null"
}

// invalidLine returns the line of the first byte that is not UTF-8.
func invalidLine(data []byte) int {
	line := 1
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		if r == utf8.RuneError && size == 1 {
			break
		}
		if r == '\n' {
			line++
		}
		data = data[size:]
	}
	return line
}

var (
	syntaxForm = regexp.MustCompile(`(?s)^yaml: (?:line ([0-9]+): )?(.*)$`)
	anchorForm = regexp.MustCompile(`^unknown anchor '(.*)' referenced$`)
)

// syntax reports an error of the YAML parser.
func (d *decoder) syntax(err error, data []byte) {
	message, line := err.Error(), 0
	if m := syntaxForm.FindStringSubmatch(message); m != nil {
		message = m[2]
		// The parser's line is one that exists; a number that is too long is
		// as good as none.
		line, _ = strconv.Atoi(m[1])
	}
	if m := anchorForm.FindStringSubmatch(message); m != nil {
		before, _, _ := bytes.Cut(data, []byte("*"+m[1]))
		line = 1 + bytes.Count(before, []byte("\n"))
	}
	suggestion := ""
	if strings.Contains(message, "cannot start any token") {
		suggestion = "indent with spaces, not tabs, and quote words that begin with @, ` or %"
	}
	d.fail("", line, suggestion, "not YAML: %s", message)
}

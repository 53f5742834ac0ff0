package balance

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/vm"
)

// variables are what a score may be made of, each with a value of its type.
var variables = map[string]any{
	"inflight":   0,                   // requests and attempts in flight
	"weight":     1.0,                 // less during a slow start
	"ewma_ms":    0.0,                 // peak EWMA of the response heads, in milliseconds; 0: nothing observed
	"error_rate": 0.0,                 // share of attempts that failed lately, 0 to 1, at the last tick
	"queue":      0,                   // requests that waited at the pool at the last tick
	"index":      0,                   // place among those who may be picked, from 0
	"labels":     map[string]string{}, // "" for a label that is not there
}

// functions are those of the language that a score may call: none that loops,
// none that reads a clock.
var functions = []string{"abs", "ceil", "float", "floor", "int", "len", "lower", "max", "min", "round", "trim", "upper"}

// What bounds the cost of a score: its length, and its parts. There are no
// loops, and nothing that it can make grows.
const (
	maxScoreLength = 2000
	maxScoreParts  = 200
)

// score is a compiled expression.
type score struct {
	program *vm.Program
	uses    []string // the variables in it
}

// compileScore compiles the expression of custom, or says what is wrong with it
// and where.
func compileScore(text string) (*score, error) {
	switch {
	case strings.TrimSpace(text) == "":
		return nil, scoreError("is missing", `write one, such as "inflight / weight"`)
	case len(text) > maxScoreLength:
		return nil, scoreError(fmt.Sprintf("must not be longer than %d bytes, and has %d", maxScoreLength, len(text)), "")
	}
	reader := &scoreReader{}
	program, err := expr.Compile(text, expr.Env(variables), expr.MaxNodes(maxScoreParts), expr.Patch(reader))
	switch {
	case err != nil:
		return nil, scoreError(err.Error(), suggestion(err))
	case reader.wrong != nil:
		return nil, scoreError(reader.wrong.Bind(program.Source()).Error(), reader.instead)
	}
	if kind := program.Node().Type().Kind(); kind != reflect.Int && kind != reflect.Float64 {
		is, instead := noNumber(kind)
		wrong := &file.Error{Message: "must be a number, and is " + is}
		return nil, scoreError(wrong.Bind(program.Source()).Error(), instead)
	}
	return &score{program, reader.uses}, nil
}

func scoreError(message, suggestion string) error {
	return &SpecError{Setting: "score", Message: message, Suggestion: suggestion}
}

// suggestion says what to write instead of a name that does not exist.
func suggestion(err error) string {
	var at *file.Error
	if errors.As(err, &at) && strings.HasPrefix(at.Message, "unknown name") {
		return "there is " + words(names())
	}
	return ""
}

func names() (list []string) {
	for name := range variables {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

func words(list []string) string { return strings.Join(list, ", ") }

// noNumber says what an expression is that is no number, and what makes it one.
func noNumber(k reflect.Kind) (is, instead string) {
	switch k {
	case reflect.Bool:
		return "true or false", "write … ? 0 : 1; the lowest wins"
	case reflect.String:
		return "text", "write float(…) if it is a number, or compare it: … == \"eu\" ? 0 : 1"
	case reflect.Interface:
		return "not always one", "float(…) makes a number of what may be something else"
	default:
		return "something else", ""
	}
}

// scoreReader reads an expression: which variables it uses, and what there is in
// it that has no place in a score.
type scoreReader struct {
	uses    []string
	wrong   *file.Error
	instead string
	changed bool // types are to be found out again
}

// Reset begins a reading.
func (r *scoreReader) Reset() { r.changed = false }

// ShouldRepeat says that types have changed.
func (r *scoreReader) ShouldRepeat() bool { return r.changed }

// float has a part of the expression be a float64.
func (r *scoreReader) float(part *ast.Node) {
	ast.Patch(part, &ast.BuiltinNode{Name: "float", Arguments: []ast.Node{*part}})
	r.changed = true
}

// Visit reads one part of the expression.
func (r *scoreReader) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		if n.Value == "$env" {
			r.refuse(n, "$env has no place in a score", "there is "+words(names()))
		}
		if _, ok := variables[n.Value]; ok && !slices.Contains(r.uses, n.Value) {
			r.uses = append(r.uses, n.Value)
		}
	case *ast.BuiltinNode:
		if !slices.Contains(functions, n.Name) {
			r.refuse(n, n.Name+" has no place in a score", "there is "+words(functions))
		}
	case *ast.ConditionalNode:
		// The language calls the result of c ? 1 : 2.5 anything, not a number.
		first, second := n.Exp1.Type().Kind(), n.Exp2.Type().Kind()
		switch {
		case first == reflect.Int && second == reflect.Float64:
			r.float(&n.Exp1)
		case first == reflect.Float64 && second == reflect.Int:
			r.float(&n.Exp2)
		}
	case *ast.BinaryNode:
		switch {
		case n.Operator == "..":
			r.refuse(n, "a range has no place in a score", "compare with <= and >=")
		case n.Operator == "+" && n.Type().Kind() == reflect.String:
			r.refuse(n, "a score puts no texts together", "compare them with ==")
		case n.Operator == "matches":
			if _, fixed := n.Right.(*ast.StringNode); !fixed {
				r.refuse(n, "the pattern of matches must be written out", `as in labels.zone matches "^eu-"`)
			}
		}
	}
}

// refuse notes the first thing that is wrong.
func (r *scoreReader) refuse(n ast.Node, message, instead string) {
	if r.wrong == nil {
		r.wrong, r.instead = &file.Error{Location: n.Location(), Message: message}, instead
	}
}

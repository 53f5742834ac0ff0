// Package internal_test holds the house to its plan.
package internal_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	root   = ".."
	module = "lb"
	plan   = "docs/architecture.md"
)

// house is the plan as it is written down.
type house struct {
	floors   map[string]int     // by package path below the module
	sideways map[[2]string]bool // from, to
}

// room is one package as it is built.
type room struct {
	imports    map[string]string // path to the file that imports it
	goroutines []string          // where one is started
}

// rule names who may import what, beside the rule of the floors.
type rule struct {
	what   string
	is     func(imported string) bool
	mayNot func(pkg string, floor int) bool
}

func under(prefixes ...string) func(string) bool {
	return func(imported string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return imported == p || strings.HasPrefix(imported, p+"/") })
	}
}

func only(packages ...string) func(string, int) bool {
	return func(pkg string, _ int) bool { return !slices.Contains(packages, pkg) }
}

func (h *house) rules() []rule {
	app := h.floors["internal/app"]
	return []rule{
		{
			"only internal/metrics knows the Prometheus client",
			under("github.com/prometheus"), only("internal/metrics"),
		},
		{
			"only internal/store knows SQLite",
			under("github.com/ncruces"), only("internal/store"),
		},
		{
			"only internal/config/load knows viper and YAML",
			under("github.com/spf13/viper", "gopkg.in/yaml.v2", "gopkg.in/yaml.v3", "go.yaml.in/yaml"), only("internal/config/load"),
		},
		{
			"only internal/app, the commands and who decides about registrations read config structs",
			under(module + "/internal/config"), only("internal/config/load", "internal/config/diff", "internal/registration", "internal/app", "cmd/lb"),
		},
		{
			"decisions know no net/http",
			under("net/http"),
			func(pkg string, _ int) bool {
				return slices.Contains([]string{"exchange", "route", "pool", "balance", "health", "breaker", "backend", "outcome"}, strings.TrimPrefix(pkg, "internal/"))
			},
		},
		{
			"nobody below internal/app takes a zap logger",
			under("go.uber.org/zap"),
			func(_ string, floor int) bool { return floor < app },
		},
		{
			"floors 0 and 1 take no logger",
			under("log"),
			func(_ string, floor int) bool { return floor <= 1 },
		},
		{
			"no program is built on what is made for tests",
			under("testing", "github.com/stretchr/testify", "go.uber.org/goleak"),
			func(pkg string, _ int) bool { return !strings.HasSuffix(pkg, "test") },
		},
	}
}

func TestArchitecture(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, plan))
	require.NoError(t, err)
	h, problems := readPlan(string(text))
	rooms, err := walk(root)
	require.NoError(t, err)
	require.Contains(t, rooms, "internal/exchange", "the walk finds the house")
	require.Contains(t, rooms["internal/exchange"].imports, "lb/internal/pool", "and sees imports")
	problems = append(problems, h.check(rooms)...)
	if len(problems) > 0 {
		t.Errorf("the code and the table in %s differ:\n  %s", plan, strings.Join(problems, "\n  "))
	}
}

var (
	row      = regexp.MustCompile("^\\| *([0-9]+) *\\| *`([^`]+)` *\\| *(.*?) *\\|$")
	sideways = regexp.MustCompile("`([^`]+)` → `([^`]+)`")
)

// readPlan reads the table "floor | package | one sentence" and the sentence
// that begins with "Sideways:".
func readPlan(text string) (*house, []string) {
	h := &house{floors: make(map[string]int), sideways: make(map[[2]string]bool)}
	var problems []string
	for line := range strings.SplitSeq(text, "\n") {
		if m := row.FindStringSubmatch(line); m != nil {
			floor, _ := strconv.Atoi(m[1]) // digits
			if _, twice := h.floors[m[2]]; twice {
				problems = append(problems, fmt.Sprintf("%s is in the table twice", m[2]))
			}
			if m[3] == "" {
				problems = append(problems, fmt.Sprintf("%s has no sentence", m[2]))
			}
			h.floors[m[2]] = floor
		}
		if strings.HasPrefix(line, "Sideways:") {
			for _, m := range sideways.FindAllStringSubmatch(line, -1) {
				h.sideways[[2]string{"internal/" + m[1], "internal/" + m[2]}] = true
			}
		}
	}
	if len(h.floors) == 0 {
		problems = append(problems, "there is no table with rows such as | 2 | `internal/pool` | a sentence |")
	}
	return h, problems
}

// check returns what is built otherwise than planned.
func (h *house) check(rooms map[string]room) (problems []string) {
	complain := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	for _, pkg := range slices.Sorted(maps.Keys(h.floors)) {
		if _, ok := rooms[pkg]; !ok {
			complain("%s is in the table, but there is no such package: take its row out", pkg)
		}
	}
	rules := h.rules()
	for _, pkg := range slices.Sorted(maps.Keys(rooms)) {
		floor, ok := h.floors[pkg]
		if !ok {
			complain("%s is not in the table: add a row with its floor and one sentence", pkg)
			continue
		}
		for _, imported := range slices.Sorted(maps.Keys(rooms[pkg].imports)) {
			where := rooms[pkg].imports[imported]
			if name, ours := strings.CutPrefix(imported, module+"/"); ours {
				below, known := h.floors[name]
				if known && below >= floor && !h.sideways[[2]string{pkg, name}] {
					complain("%s (floor %d) imports %s (floor %d): imports go strictly down", where, floor, name, below)
				}
			}
			for _, r := range rules {
				if r.is(imported) && r.mayNot(pkg, floor) {
					complain("%s imports %s: %s", where, imported, r.what)
				}
			}
		}
		if floor <= 1 {
			for _, where := range rooms[pkg].goroutines {
				complain("%s starts a goroutine: floors 0 and 1 start none", where)
			}
		}
	}
	return problems
}

// walk reads every package below dir that is more than tests.
func walk(dir string) (map[string]room, error) {
	rooms := make(map[string]room)
	files := token.NewFileSet()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() {
			if path != dir && (name[0] == '.' || name[0] == '_' || name == "testdata" || name == "vendor") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		where, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		where = filepath.ToSlash(where)
		pkg := strings.TrimSuffix(strings.TrimSuffix(where, name), "/")
		r, ok := rooms[pkg]
		if !ok {
			r.imports = make(map[string]string)
		}
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			r.imports[imported] = where
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if _, ok := n.(*ast.GoStmt); ok {
				r.goroutines = append(r.goroutines, fmt.Sprintf("%s:%d", where, files.Position(n.Pos()).Line))
			}
			return true
		})
		rooms[pkg] = r
		return nil
	})
	return rooms, err
}

// The guard itself: each rule, broken once.
func TestArchitectureIsGuarded(t *testing.T) {
	const table = "| floor | package | one sentence |\n| --- | --- | --- |\n" +
		"| 5 | `internal/app` | a |\n| 3 | `internal/proxy` | b |\n| 3 | `internal/fanout` | c |\n" +
		"| 2 | `internal/exchange` | d |\n| 2 | `internal/pool` | e |\n| 0 | `internal/config` | f |\n\n" +
		"Sideways: `exchange` → `pool`. And nothing else.\n"
	for _, test := range []struct {
		name, pkg, imports, want string
	}{
		{"down", "internal/app", "lb/internal/proxy", ""},
		{"sideways, as listed", "internal/exchange", "lb/internal/pool", ""},
		{"sideways, the other way", "internal/pool", "lb/internal/exchange", "imports go strictly down"},
		{"sideways", "internal/proxy", "lb/internal/fanout", "imports go strictly down"},
		{"up", "internal/pool", "lb/internal/proxy", "internal/pool/x.go (floor 2) imports internal/proxy (floor 3)"},
		{"Prometheus", "internal/app", "github.com/prometheus/client_golang/prometheus", "only internal/metrics"},
		{"SQLite", "internal/app", "github.com/ncruces/go-sqlite3", "only internal/store"},
		{"viper", "internal/app", "github.com/spf13/viper", "only internal/config/load"},
		{"YAML", "internal/app", "go.yaml.in/yaml/v3", "only internal/config/load"},
		{"config", "internal/proxy", "lb/internal/config", "read config structs"},
		{"config in app", "internal/app", "lb/internal/config", ""},
		{"net/http", "internal/exchange", "net/http", "know no net/http"},
		{"net/http/httptrace", "internal/pool", "net/http/httptrace", "know no net/http"},
		{"net/http where it belongs", "internal/proxy", "net/http", ""},
		{"zap", "internal/proxy", "go.uber.org/zap", "zap logger"},
		{"zap in app", "internal/app", "go.uber.org/zap/zapcore", ""},
		{"log", "internal/config", "log/slog", "take no logger"},
		{"testify", "internal/app", "github.com/stretchr/testify/require", "made for tests"},
		{"an unknown package", "internal/new", "fmt", "internal/new is not in the table"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h, problems := readPlan(table)
			require.Empty(t, problems)
			rooms := make(map[string]room)
			for pkg := range h.floors {
				rooms[pkg] = room{}
			}
			rooms[test.pkg] = room{imports: map[string]string{test.imports: test.pkg + "/x.go"}}
			got := strings.Join(h.check(rooms), "\n")
			if test.want == "" {
				require.Empty(t, got)
			} else {
				require.Contains(t, got, test.want)
			}
		})
	}
	h, _ := readPlan(table)
	rooms := map[string]room{"internal/config": {goroutines: []string{"internal/config/x.go:7"}}}
	got := strings.Join(h.check(rooms), "\n")
	require.Contains(t, got, "internal/config/x.go:7 starts a goroutine")
	require.Contains(t, got, "internal/pool is in the table, but there is no such package")
	_, problems := readPlan("no table")
	require.NotEmpty(t, problems)
}

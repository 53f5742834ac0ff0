package internal_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const proofs = "docs/faults.md"

var (
	// A test of internal/e2e, or one with its package before it.
	namedTest = regexp.MustCompile("`(?:([a-z]+)\\.)?(Test[A-Za-z0-9_]+)`")
	testFunc  = regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
)

// Every fault that the documentation tells of names a test, and each test that
// it names exists.
func TestFaultsAreProved(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(proofs)))
	require.NoError(t, err)
	_, table, found := strings.Cut(string(text), "| proved by |\n| --- | --- | --- | --- |\n")
	require.True(t, found, "the table with the column %q", "proved by")
	table, _, _ = strings.Cut(table, "\n\n")

	exist := testsBelow(t, root)
	for row := range strings.SplitSeq(table, "\n") {
		names := namedTest.FindAllStringSubmatch(row, -1)
		if len(names) == 0 {
			t.Errorf("%s: this fault names no test: %.80s", proofs, row)
		}
		for _, m := range names {
			pkg := m[1]
			if pkg == "" {
				pkg = "e2e"
			}
			if !exist[pkg+"."+m[2]] {
				t.Errorf("%s names %s, which package %s does not have: name the test that took its place", proofs, m[2], pkg)
			}
		}
	}
}

// testsBelow returns the tests of all packages below dir, by the last part of
// the package's path, a dot and the name.
func testsBelow(t *testing.T, dir string) map[string]bool {
	t.Helper()
	tests := make(map[string]bool)
	require.NoError(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		pkg := filepath.Base(filepath.Dir(path))
		for _, m := range testFunc.FindAllStringSubmatch(string(text), -1) {
			tests[pkg+"."+m[1]] = true
		}
		return nil
	}))
	return tests
}

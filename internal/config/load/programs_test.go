package load

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNotExecutable(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	write := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"), mode))
		return path
	}
	script, text := write("check.sh", 0o700), write("check.txt", 0o600)
	t.Setenv("PATH", dir)
	tests := map[string]string{
		"":           "",
		script:       "",
		"check.sh":   "",
		"./check.sh": `the path "./check.sh" is relative`,
		text:         `"` + text + `" cannot be started: permission denied`,
		dir:          `"` + dir + `" cannot be started: is a directory`,
		"check":      `no such program "check"`,
		dir + "/no":  `no such program "` + dir + `/no"`,
		"check.txt":  `no such program "check.txt"`,
	}
	for program, want := range tests {
		require.Equal(t, want, notExecutable(program), program)
	}

	t.Setenv("PATH", ".")
	require.Equal(t, `no such program "check.sh"`, notExecutable("check.sh"), "not what lies about in the working directory")
}

package probe

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// shell is a check that runs a script.
func shell(script string) Exec { return Exec{Command: []string{"sh", "-c", script}} }

func TestExec(t *testing.T) {
	for _, test := range []struct {
		name, script string
		timeout      time.Duration // ample unless set
		want         string
	}{
		{name: "well", script: "exit 0"},
		{name: "well, whatever it says", script: "echo no; echo no >&2"},
		{name: "an exit code", script: "exit 3", want: "exit code 3"},
		{name: "an exit code and a reason", script: "echo first; echo 'disk full' >&2; echo; exit 2", want: "exit code 2: disk full"},
		{name: "killed", script: "kill -9 $$", want: "signal: killed"},
		{name: "what does not print", script: `printf 'a\033[31mb\n'; exit 1`, want: `exit code 1: a\x1b[31mb`},
		{name: "nothing to read", script: "cat; exit 4", want: "exit code 4"},
		{name: "sleeps for ever", script: "echo waiting; sleep 1000", timeout: brief, want: hung},
		{name: "does not listen to signals", script: "trap '' INT TERM HUP; while :; do sleep 1000; done", timeout: brief, want: hung},
		{name: "prints for ever", script: "while :; do echo y; done", timeout: brief, want: hung},
		{name: "prints much", script: "head -c 50000000 /dev/zero; echo; echo the end; exit 1", want: "exit code 1: the end"},
		{name: "a line that is too long", script: "head -c 50000000 /dev/zero | tr '\\0' x; exit 1", want: "exit code 1: " + strings.Repeat("x", 197-len("exit code 1: ")) + "…"},
		{name: "a grandchild keeps the output", script: "sleep 1000 & exit 0"},
		{name: "a grandchild of an ill one keeps the output", script: "echo ill; sleep 1000 & exit 1", want: "exit code 1: ill"},
		{name: "a grandchild keeps the output for ever", script: "sleep 1000 & wait", timeout: brief, want: hung},
	} {
		t.Run(test.name, func(t *testing.T) {
			timeout := test.timeout
			if timeout == 0 {
				timeout = ample
			}
			require.Equal(t, test.want, probe(t, shell(test.script), "127.0.0.1:1", timeout))
		})
	}
}

// A grandchild ends with its group, also when the command itself ended well.
func TestExecLeavesNothingBehind(t *testing.T) {
	for script, timeout := range map[string]time.Duration{
		"sleep 1000 & echo $! >$HOME/pid; exit 0": ample,
		"sleep 1000 & echo $! >$HOME/pid; exit 1": ample,
		"sleep 1000 & echo $! >$HOME/pid; wait":   2 * time.Second,
	} {
		home := t.TempDir()
		t.Setenv("HOME", home)
		_ = probe(t, shell(script), "127.0.0.1:1", timeout)
		text, err := os.ReadFile(filepath.Join(home, "pid"))
		require.NoError(t, err)
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		require.NoError(t, err)
		require.Eventually(t, func() bool { return !alive(pid) }, ample, time.Millisecond, script)
	}
}

// As process 1 lb inherits what a command leaves behind, and must wait for it:
// else a check fills up the table of processes.
func TestExecLeavesNoZombies(t *testing.T) {
	inherit := func(orphans uintptr) {
		const setChildSubreaper = 36 // PR_SET_CHILD_SUBREAPER: inherit orphans, as process 1 does
		_, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, setChildSubreaper, orphans, 0)
		require.Zero(t, errno)
	}
	inherit(1)
	defer inherit(0)
	for script, timeout := range map[string]time.Duration{
		"sleep 1000 & sleep 1000 & exit 0": ample,
		"sleep 1000 & exit 1":              ample,
		"sleep 1000 & wait":                brief,
		"(sleep 1000; sleep 1000) & wait":  brief,
	} {
		_ = probe(t, shell(script), "127.0.0.1:1", timeout)
		require.Empty(t, zombies(t), script)
	}
}

// zombies returns the children of this process that have ended and that nobody
// has waited for.
func zombies(t *testing.T) (pids []string) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	ended := ") Z " + strconv.Itoa(os.Getpid()) + " "
	for _, path := range stats {
		if stat, err := os.ReadFile(path); err == nil && strings.Contains(string(stat), ended) {
			pids = append(pids, path)
		}
	}
	return pids
}

// alive reports whether a process runs: one that was killed and that nobody
// has waited for yet does not.
func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// Who leaves the group cannot be killed with it, and holds up nothing.
func TestExecWaitsForNobodyWhoLeftTheGroup(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	began := time.Now()
	require.Empty(t, probe(t, shell("setsid sh -c 'echo $$ >$HOME/pid; exec sleep 1000' & while [ ! -s $HOME/pid ]; do :; done"), "127.0.0.1:1", ample))
	require.Less(t, time.Since(began), ample)
	text, err := os.ReadFile(filepath.Join(home, "pid"))
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL), "it was alive")
}

func TestExecEnvironment(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("LB_ADMIN_TOKEN", "secret")
	env := Exec{Command: []string{"sh", "-c", "/usr/bin/env >$HOME/env"}}
	require.Empty(t, probe(t, env, "[::1]:8080", ample))
	text, err := os.ReadFile(filepath.Join(home, "env"))
	require.NoError(t, err)
	var got []string
	for name := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n") {
		switch key, _, _ := strings.Cut(name, "="); key {
		case "PWD", "OLDPWD", "SHLVL", "_": // the shell's own
		default:
			got = append(got, name)
		}
	}
	require.ElementsMatch(t, []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home,
		"LB_BACKEND_ADDRESS=[::1]:8080", "LB_BACKEND_HOST=::1", "LB_BACKEND_PORT=8080",
	}, got)
}

func TestCanStart(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	require.NoError(t, os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o600))
	script := filepath.Join(dir, "script")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\nexit 0\n"), 0o700))

	require.NoError(t, canStart([]string{"sh", "-c", "exit 1"}))
	require.NoError(t, canStart([]string{script}))
	for _, test := range []struct {
		command []string
		want    string
	}{
		{nil, "names no program"},
		{[]string{""}, "names no program"},
		{[]string{"no-such-program-anywhere", "x"}, "not found"},
		{[]string{filepath.Join(dir, "none")}, "no such file"},
		{[]string{plain}, "permission denied"},
		{[]string{dir}, "is a directory"},
	} {
		require.ErrorContains(t, canStart(test.command), test.want)
		require.Contains(t, probe(t, Exec{Command: test.command}, "127.0.0.1:1", ample), test.want, "and a probe says the same")
	}
	broken := filepath.Join(dir, "broken")
	require.NoError(t, os.WriteFile(broken, []byte("#!/no/such/interpreter\n"), 0o700))
	require.Contains(t, probe(t, Exec{Command: []string{broken}}, "127.0.0.1:1", ample), "cannot start: ")
}

func TestTail(t *testing.T) {
	var all strings.Builder
	var kept tail
	for i := range 3000 {
		piece := strings.Repeat(strconv.Itoa(i%10), i%40)
		if i%1000 == 999 {
			piece = strings.Repeat("ab", 2000)
		}
		n, err := kept.Write([]byte(piece))
		require.NoError(t, err)
		require.Equal(t, len(piece), n)
		all.WriteString(piece)
		require.Equal(t, all.String()[max(0, all.Len()-1024):], string(kept.kept))
		require.LessOrEqual(t, cap(kept.kept), 4096)
	}
}

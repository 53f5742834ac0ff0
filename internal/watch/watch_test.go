package watch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 20 * time.Second
	// Longer than a busy machine may stand still in the middle of a change.
	quiet = 150 * time.Millisecond
)

// observer is who is told of a file: contents as Changed found them, and errors.
type observer struct {
	t    *testing.T
	path string
	told chan string
}

// silent is a poll that never comes: what is noticed then was told by events.
const silent = time.Hour

// observe watches path. deaf stands for a kernel that gives no events.
func observe(t *testing.T, path string, quiet, poll time.Duration, deaf bool) *observer {
	t.Helper()
	o := &observer{t: t, path: path, told: make(chan string, 1000)}
	w := New(Options{
		Path: path, Quiet: quiet, Poll: poll,
		Changed: func() {
			content, err := os.ReadFile(path)
			if err != nil {
				content = []byte("unreadable")
			}
			o.told <- string(content)
		},
		Failed: func(err error) { o.told <- "failed: " + err.Error() },
	})
	if deaf {
		w.listen = func() (*fsnotify.Watcher, error) { return nil, errors.New("too many open files") }
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return o
}

// expect waits until exactly that is told next.
func (o *observer) expect(want string) {
	o.t.Helper()
	select {
	case got := <-o.told:
		require.Equal(o.t, want, got)
	case <-time.After(patience):
		require.Fail(o.t, "nothing was told", "instead of %q", want)
	}
}

func (o *observer) expectFailure(want string) {
	o.t.Helper()
	select {
	case got := <-o.told:
		require.Contains(o.t, got, "failed: ")
		require.Contains(o.t, got, want)
	case <-time.After(patience):
		require.Fail(o.t, "nothing was told", "instead of a failure: %q", want)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
}

// put writes a file so that there is no moment without its content.
func put(t *testing.T, path, content string) {
	t.Helper()
	write(t, path+".new", content)
	rename(t, path+".new", path)
}

func link(t *testing.T, target, path string) {
	t.Helper()
	require.NoError(t, os.Symlink(target, path))
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	require.NoError(t, os.Rename(from, to))
}

func mkdir(t *testing.T, path string) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(path, 0o700))
	return path
}

// changes are the ways in which the content of a file becomes another. Each
// takes a directory of its own to the path that is watched and to the step that
// gives it a new content, which is done several times.
var changes = map[string]func(t *testing.T, dir string) (path string, change func(content string)){
	"in place": func(t *testing.T, dir string) (string, func(string)) {
		path := filepath.Join(dir, "f")
		return path, func(content string) { write(t, path, content) }
	},
	"rename": func(t *testing.T, dir string) (string, func(string)) {
		path := filepath.Join(dir, "f")
		return path, func(content string) { put(t, path, content) }
	},
	"rename away and make anew": func(t *testing.T, dir string) (string, func(string)) {
		path := filepath.Join(dir, "f")
		return path, func(content string) {
			_ = os.Rename(path, path+"~") // the first time there is none
			write(t, path, content)
		}
	},
	"delete and make anew": func(t *testing.T, dir string) (string, func(string)) {
		path := filepath.Join(dir, "f")
		return path, func(content string) {
			_ = os.Remove(path) // the first time there is none
			write(t, path, content)
		}
	},
	"ConfigMap": func(t *testing.T, dir string) (string, func(string)) {
		path := filepath.Join(dir, "f")
		link(t, filepath.Join("..data", "f"), path)
		n := 0
		return path, func(content string) {
			n++
			stamp := "..2026_" + strconv.Itoa(n)
			write(t, filepath.Join(mkdir(t, filepath.Join(dir, stamp)), "f"), content)
			link(t, stamp, filepath.Join(dir, "..data_tmp"))
			before, _ := os.Readlink(filepath.Join(dir, "..data"))
			rename(t, filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data"))
			if before != "" {
				require.NoError(t, os.RemoveAll(filepath.Join(dir, before)))
			}
		}
	},
	"the directory is replaced": func(t *testing.T, dir string) (string, func(string)) {
		n := 0
		return filepath.Join(dir, "etc", "lb", "f"), func(content string) {
			n++
			_ = os.Rename(filepath.Join(dir, "etc"), filepath.Join(dir, "old"+strconv.Itoa(n))) // the first time there is none
			mkdir(t, filepath.Join(dir, "new", "lb"))
			write(t, filepath.Join(dir, "new", "lb", "f"), content)
			rename(t, filepath.Join(dir, "new"), filepath.Join(dir, "etc"))
		}
	},
	"the directory is deleted and made anew": func(t *testing.T, dir string) (string, func(string)) {
		etc := filepath.Join(dir, "etc")
		return filepath.Join(etc, "f"), func(content string) {
			require.NoError(t, os.RemoveAll(etc))
			write(t, filepath.Join(mkdir(t, etc), "f"), content)
		}
	},
	"a parent is a symlink": func(t *testing.T, dir string) (string, func(string)) {
		n := 0
		return filepath.Join(dir, "current", "lb", "f"), func(content string) {
			n++
			release := filepath.Join(dir, "release"+strconv.Itoa(n))
			write(t, filepath.Join(mkdir(t, filepath.Join(release, "lb")), "f"), content)
			link(t, release, filepath.Join(dir, "next"))
			rename(t, filepath.Join(dir, "next"), filepath.Join(dir, "current"))
		}
	},
	"behind a symlink": func(t *testing.T, dir string) (string, func(string)) {
		path, target := filepath.Join(dir, "f"), filepath.Join(mkdir(t, filepath.Join(dir, "a", "b")), "g")
		link(t, filepath.Join("a", "..", ".", "a", "b", "g"), path)
		return path, func(content string) { write(t, target, content) }
	},
}

func TestEveryChangeIsNoticed(t *testing.T) {
	for name, make := range changes {
		for mode, deaf := range map[string]bool{"by events": false, "by polling": true} {
			t.Run(name+" "+mode, func(t *testing.T) {
				t.Parallel()
				path, change := make(t, t.TempDir())
				change("one")
				poll := silent
				if deaf {
					poll = 10 * time.Millisecond
				}
				o := observe(t, path, quiet, poll, deaf)
				if deaf {
					o.expectFailure("too many open files")
				}
				for _, content := range []string{"two", "three", "four"} {
					change(content)
					o.expect(content)
				}
				require.Empty(t, o.told)
			})
		}
	}
}

func TestAFileThatComesLater(t *testing.T) {
	for name, make := range changes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, change := make(t, t.TempDir())
			o := observe(t, path, quiet, silent, false)
			change("one")
			o.expect("one")
			change("two")
			o.expect("two")
		})
	}
}

// What is the same again is not told: neither touching, nor rewriting, nor a
// change of mode, nor a neighbour, nor an exchange of symlinks.
func TestEqualContentsTellNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	write(t, path, "same")
	o := observe(t, path, 20*time.Millisecond, 10*time.Millisecond, false)
	for range 20 {
		now := time.Now()
		require.NoError(t, os.Chtimes(path, now, now))
		write(t, filepath.Join(dir, "neighbour"), now.String())
		put(t, path, "same")
		require.NoError(t, os.Chmod(path, 0o644))
	}
	put(t, path, "another")
	o.expect("another")
	put(t, path, "same")
	o.expect("same")
	require.Empty(t, o.told)
}

// Half a file is not told of.
func TestATruncatedFileIsNotTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write(t, path, "before")
	o := observe(t, path, time.Second, 10*time.Millisecond, false)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	require.NoError(t, err)
	for range 5 {
		_, err = f.WriteString("part ")
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
	o.expect("part part part part part ")
	require.Empty(t, o.told)
}

func TestItIsToldOfOnceItIsQuiet(t *testing.T) {
	const quiet = 300 * time.Millisecond
	for name, test := range map[string]struct {
		deaf    bool
		content func(n int) string
	}{
		"events tell of a content that was there before": {false, func(n int) string { return []string{"half", "other half"}[n%2] }},
		"polls see each content":                         {true, strconv.Itoa},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "f")
			put(t, path, "before")
			o := observe(t, path, quiet, 10*time.Millisecond, test.deaf)
			if test.deaf {
				o.expectFailure("too many open files")
			}
			var last time.Time
			pace := time.NewTicker(quiet / 10)
			defer pace.Stop()
			for n := 1; n <= 40; { // for longer than it has to be quiet
				select {
				case <-o.told: // the machine stood still
					require.GreaterOrEqual(t, time.Since(last), quiet)
				case <-pace.C:
					last = time.Now()
					put(t, path, test.content(n))
					n++
				}
			}
			last = time.Now()
			put(t, path, "whole")
			o.expect("whole")
			require.GreaterOrEqual(t, time.Since(last), quiet)
			require.Empty(t, o.told)
		})
	}
}

func TestAFileThatGoesIsToldOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write(t, path, "one")
	o := observe(t, path, 20*time.Millisecond, 10*time.Millisecond, false)
	require.NoError(t, os.Remove(path))
	o.expectFailure("no such file")
	require.NoError(t, os.Mkdir(path, 0o700))
	o.expectFailure("not a regular file")
	require.NoError(t, os.Remove(path))
	o.expectFailure("no such file")
	put(t, path, "two")
	o.expect("two")

	require.NoError(t, os.Remove(path))
	o.expectFailure("no such file")
	put(t, path, "two") // the same is back: the next that is told is another
	put(t, path, "three")
	o.expect("three")
	require.Empty(t, o.told)
}

func TestOnlyAnotherContentIsAChange(t *testing.T) {
	var told []string
	w := New(Options{
		Path:    filepath.Join(t.TempDir(), "none"),
		Changed: func() { told = append(told, "changed") },
		Failed:  func(err error) { told = append(told, err.Error()) },
	})
	one, two := view{sum: digest{1}}, view{sum: digest{2}}
	for _, now := range []view{one, {problem: "gone"}, one, {problem: "gone"}, two} {
		w.tell(now)
	}
	require.Equal(t, []string{"changed", "gone", "gone", "changed"}, told)
}

// A neighbour that is always written to, a log perhaps, puts nothing off.
func TestABusyNeighbour(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	o := observe(t, path, 200*time.Millisecond, silent, false)
	done := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case now := <-tick.C:
				_ = os.WriteFile(filepath.Join(dir, "log"), []byte(now.String()), 0o600)
			case <-done:
				return
			}
		}
	}()
	put(t, path, "one")
	o.expect("one")
	close(done)
	<-stopped
}

// A directory that took the place of another is not the one that is watched.
func TestTheWayIsWhereItIs(t *testing.T) {
	dir := t.TempDir()
	etc, path := filepath.Join(dir, "etc"), filepath.Join(dir, "etc", "f")
	mkdir(t, etc)
	before := wayTo(path)
	require.True(t, before.same(wayTo(path)))
	rename(t, etc, etc+"~")
	mkdir(t, etc)
	require.False(t, before.same(wayTo(path)))

	// It changes while events are being asked for.
	w := New(Options{Path: path})
	works, n := w.listen, 0
	w.listen = func() (*fsnotify.Watcher, error) {
		if n++; n < 3 {
			rename(t, etc, etc+strconv.Itoa(n))
			mkdir(t, etc)
		}
		return works()
	}
	w.follow()
	require.True(t, w.ears.on(wayTo(path)))
	w.ears.close()
}

// A pipe, as a shell gives with <(…), is not read: that is somebody else's.
func TestAPipeIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(path, 0o600))
	w := New(Options{Path: path})
	require.Equal(t, path+" is not a regular file", w.told.problem)
}

func TestSymlinksInACircleEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	link(t, "f", path)
	o := observe(t, path, 20*time.Millisecond, silent, false)
	require.NoError(t, os.Remove(path))
	o.expectFailure("no such file")
	put(t, path, "one")
	o.expect("one")
}

// A change between New and Run is not lost: the caller has read the old content.
func TestAChangeBeforeRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write(t, path, "one")
	told := make(chan struct{}, 1)
	w := New(Options{Path: path, Quiet: time.Millisecond, Poll: silent, Changed: func() { told <- struct{}{} }})
	put(t, path, "two")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx)
	}()
	<-told
	cancel()
	<-done
}

// Events come back without a restart, and a further failure is told again.
func TestEventsComeBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write(t, path, "one")
	failed := make(chan error, 10)
	w := New(Options{Path: path, Failed: func(err error) { failed <- err }})
	full := func() (*fsnotify.Watcher, error) { return nil, errors.New("full") }
	works := w.listen
	for range 2 {
		w.listen = full
		w.ears.close()
		w.follow()
		w.follow()
		require.ErrorContains(t, <-failed, "only looked at every 5s: full")
		require.Empty(t, failed)
		w.listen = works
		w.follow()
		require.NotNil(t, w.ears.events())
	}
	w.ears.close()
}

// A relative path stays the file's when the process goes elsewhere.
func TestRelativePaths(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "f", "one")
	here, err := filepath.Abs("f")
	require.NoError(t, err)
	w := New(Options{Path: "f"})
	t.Chdir(t.TempDir())
	require.Empty(t, w.look().problem)
	require.True(t, wayTo(here).same(wayTo(w.o.Path)))
}

package watch

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fsnotify/fsnotify"
)

// way is how a path leads to its file: through which directories, by which
// entries in them. A change of any of these entries may lead elsewhere.
type way struct {
	dirs    []place
	entries map[string]bool // by path
}

// place is one directory. A path may lead to another one later.
type place struct {
	path string
	info os.FileInfo
}

// maxLinks is how many symlinks are followed, as the kernel does.
const maxLinks = 40

// wayTo walks an absolute path entry by entry, through symlinks, as far as there
// is something.
func wayTo(path string) way {
	w := way{entries: make(map[string]bool)}
	sep := string(filepath.Separator)
	at, rest := sep, strings.Split(path, sep)
	for links := 0; len(rest) > 0; {
		entry := rest[0]
		rest = rest[1:]
		switch entry {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at) // at has no symlinks in it
			continue
		}
		if !w.through(at) {
			break
		}
		next := filepath.Join(at, entry)
		w.entries[next] = true
		info, err := os.Lstat(next)
		if err != nil {
			break
		}
		if info.Mode().Type() != os.ModeSymlink {
			at = next
			continue
		}
		target, err := os.Readlink(next)
		if links++; err != nil || links > maxLinks {
			break
		}
		if filepath.IsAbs(target) {
			at = sep
		}
		rest = slices.Concat(strings.Split(target, sep), rest)
	}
	return w
}

// through adds a directory, and reports whether it is one.
func (w *way) through(dir string) bool {
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() {
		return false
	}
	if !slices.ContainsFunc(w.dirs, func(p place) bool { return p.path == dir }) {
		w.dirs = append(w.dirs, place{dir, info})
	}
	return true
}

// same reports whether both lead through the same directories by the same
// entries.
func (w way) same(other way) bool {
	if len(w.entries) != len(other.entries) {
		return false
	}
	for entry := range w.entries {
		if !other.entries[entry] {
			return false
		}
	}
	return slices.EqualFunc(w.dirs, other.dirs, func(a, b place) bool { return a.path == b.path && os.SameFile(a.info, b.info) })
}

// ears hear of changes on one way. The zero ears hear nothing.
type ears struct {
	watcher *fsnotify.Watcher
	way     way
}

// openEars listens on a way. The kernel's watches are on directories, not on
// paths: for another way there are other ears.
func openEars(listen func() (*fsnotify.Watcher, error), w way) (ears, error) {
	watcher, err := listen()
	if err != nil {
		return ears{}, err
	}
	for _, dir := range w.dirs {
		if err := watcher.Add(dir.path); err != nil && !os.IsNotExist(err) {
			_ = watcher.Close()
			return ears{}, err
		}
	}
	return ears{watcher, w}, nil
}

// on reports whether the ears are open on that way.
func (e *ears) on(w way) bool { return e.watcher != nil && e.way.same(w) }

// concerns reports whether an event is about an entry of the way, and not about
// its neighbours.
func (e *ears) concerns(event fsnotify.Event) bool { return e.way.entries[filepath.Clean(event.Name)] }

func (e *ears) events() <-chan fsnotify.Event {
	if e.watcher == nil {
		return nil
	}
	return e.watcher.Events
}

func (e *ears) errors() <-chan error {
	if e.watcher == nil {
		return nil
	}
	return e.watcher.Errors
}

func (e *ears) close() {
	if e.watcher != nil {
		_ = e.watcher.Close() // it only ends
	}
	*e = ears{}
}

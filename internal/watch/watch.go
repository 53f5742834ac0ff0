// Package watch notices that the content of a file has changed, however that
// was done: written in place, renamed over, deleted and made again, or reached
// through a symlink or a directory that is another one now, as Kubernetes
// exchanges a ConfigMap.
package watch

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	defaultQuiet = 250 * time.Millisecond
	defaultPoll  = 5 * time.Second
)

// Options say what is watched, and who hears of it. The functions are called one
// at a time, from Run; what happens meanwhile is noticed afterwards.
type Options struct {
	// Path is the file's. There need be none yet.
	Path string
	// Quiet is how long the file must have stayed as it is before it is told
	// of, so that nobody reads half of it; 0 stands for 250 ms.
	Quiet time.Duration
	// Poll is the time between two looks at the file when no event comes: on
	// network file systems, or when the kernel has no watches left; 0 stands for
	// 5 s.
	Poll time.Duration
	// Changed is called when the file can be read and its content is another
	// than before. Who reads it then may find a still newer one.
	Changed func()
	// Failed is called when the file cannot be read any more, once for each
	// reason; when it is back, Changed tells whether it is another one. It is
	// also called when the kernel gives no events, once until it does again:
	// then only the polls notice changes. nil: nobody wants to know.
	Failed func(error)
}

// Watcher watches one file.
type Watcher struct {
	o       Options
	told    view   // what the caller knows
	content digest // of the last view that could be read
	known   bool   // there was one

	ears     ears
	deafTold bool // Failed has heard that no events come
	listen   func() (*fsnotify.Watcher, error)
}

type digest [sha256.Size]byte

// view is what a look at the file shows. Equal views are equal contents, or
// equal reasons why there is none.
type view struct {
	sum     digest
	problem string
}

// New returns a Watcher that knows the file as it is now: who reads the file
// after New and then calls Run misses no change.
func New(o Options) *Watcher {
	if o.Quiet <= 0 {
		o.Quiet = defaultQuiet
	}
	if o.Poll <= 0 {
		o.Poll = defaultPoll
	}
	if o.Failed == nil {
		o.Failed = func(error) {}
	}
	// The path stays the same when the process changes its directory.
	if abs, err := filepath.Abs(o.Path); err == nil {
		o.Path = abs
	}
	w := &Watcher{o: o, listen: fsnotify.NewWatcher}
	w.told = w.look()
	w.content, w.known = w.told.sum, w.told.problem == ""
	return w
}

// Run watches until ctx ends. It is called once.
func (w *Watcher) Run(ctx context.Context) {
	defer func() { w.ears.close() }()
	poll := time.NewTicker(w.o.Poll)
	defer poll.Stop()
	quiet := time.NewTimer(w.o.Quiet)
	defer quiet.Stop()
	// When quiet is running, seen is what the file was when it began.
	running, seen := false, view{}
	begin := func(now view) {
		running, seen = now != w.told, now
		if running {
			quiet.Reset(w.o.Quiet)
		}
	}
	notice := func() {
		w.follow()
		if running {
			quiet.Reset(w.o.Quiet)
			return
		}
		begin(w.look())
	}
	quiet.Stop()
	notice()
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-w.ears.events():
			if w.ears.concerns(event) {
				notice()
			}
		case err := <-w.ears.errors():
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				notice() // what was lost may have been about the file
			} else {
				w.deaf(err)
			}
		case <-poll.C:
			if !running {
				notice()
			}
		case <-quiet.C:
			if now := w.look(); now == seen {
				running = false
				w.tell(now)
			} else {
				begin(now)
			}
		}
	}
}

// tell says what has become of the file.
func (w *Watcher) tell(now view) {
	w.told = now
	if now.problem != "" {
		w.o.Failed(errors.New(now.problem))
		return
	}
	if w.known && now.sum == w.content {
		return // it was away, and is back
	}
	w.content, w.known = now.sum, true
	w.o.Changed()
}

// look reads the file. What is no regular file is not opened: reading would
// wait, or take away what somebody else is to read.
func (w *Watcher) look() view {
	info, err := os.Stat(w.o.Path)
	if err != nil {
		return view{problem: err.Error()}
	}
	if !info.Mode().IsRegular() {
		return view{problem: fmt.Sprintf("%s is not a regular file", w.o.Path)}
	}
	f, err := os.Open(w.o.Path)
	if err != nil {
		return view{problem: err.Error()}
	}
	defer func() { _ = f.Close() }() // nothing was written
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return view{problem: err.Error()}
	}
	return view{sum: digest(h.Sum(nil))}
}

// follow makes sure that events come from where the path leads now. On the way
// there a further change may go unnoticed, so that it looks again until the way
// has stayed the same; what moves on and on is left to the polls.
func (w *Watcher) follow() {
	for range 10 {
		way := wayTo(w.o.Path)
		if w.ears.on(way) {
			return
		}
		w.ears.close()
		got, err := openEars(w.listen, way)
		if err != nil {
			w.deaf(err)
			return
		}
		w.ears, w.deafTold = got, false
	}
}

// deaf goes on without events, and says so the first time. Each poll tries anew.
func (w *Watcher) deaf(err error) {
	w.ears.close()
	if !w.deafTold {
		w.deafTold = true
		w.o.Failed(fmt.Errorf("%s is not watched, and only looked at every %v: %w", w.o.Path, w.o.Poll, err))
	}
}

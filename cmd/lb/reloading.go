package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"go.uber.org/zap"

	"lb/internal/app"
	"lb/internal/watch"
)

// watched is the file of a source being watched, and what its watcher has found.
type watched struct {
	*watch.Watcher
	changed chan struct{}
	failed  chan error
}

// watcher returns what watches the file of s; nil without one. It has looked at
// the file once.
func (s *source) watcher() *watched {
	if s.file == "" {
		return nil
	}
	w := &watched{changed: make(chan struct{}, 1), failed: make(chan error, 1)}
	w.Watcher = watch.New(watch.Options{
		Path: s.file,
		Changed: func() {
			select {
			case w.changed <- struct{}{}:
			default: // it is about to be read
			}
		},
		Failed: func(err error) {
			select {
			case w.failed <- err:
			default:
			}
		},
	})
	return w
}

// reloadOn has a reload at each SIGHUP, and when the file has another content as
// long as the configuration says so, until ctx ends; then the WaitGroup is done.
// What comes of it, the daemon tells.
func reloadOn(ctx context.Context, a *app.App, w *watched, log *zap.Logger) *sync.WaitGroup {
	var running sync.WaitGroup
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	var changed chan struct{}
	var failed chan error
	if w != nil {
		changed, failed = w.changed, w.failed
		running.Go(func() { w.Run(ctx) })
	}
	running.Go(func() {
		defer signal.Stop(hup)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
				reload(ctx, a, "SIGHUP")
			case <-changed:
				if a.Watches() {
					reload(ctx, a, "the file has changed")
				}
			case err := <-failed:
				log.Warn("the configuration's file cannot be watched", zap.Error(err))
			}
		}
	})
	return &running
}

// reload has one reload, however long it takes until its turn comes: nobody would
// ask a second time.
func reload(ctx context.Context, a *app.App, by string) {
	for ctx.Err() == nil {
		if _, err := a.Reload(ctx, by); !errors.Is(err, app.ErrBusy) {
			return
		}
	}
}

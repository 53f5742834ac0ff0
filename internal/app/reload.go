package app

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"go.uber.org/zap"

	"lb/internal/admin"
	"lb/internal/config"
	"lb/internal/config/diff"
	"lb/internal/outcome"
	"lb/internal/store"
)

// Loaded is a configuration as it was read: valid and complete.
type Loaded struct {
	Config *config.Config
	// Effective returns Config as /config shows it. For thousands of routes that
	// takes longer than all else of a reload, and nobody asks at each.
	Effective func() ([]byte, error)
	// Document is the text it was read from, Source where that stood. Both are
	// empty where the environment says it all.
	Document []byte
	Source   string
	Warnings []config.Problem
}

// applied is the configuration that the daemon goes by.
type applied struct {
	Loaded
	generation uint64
	at         time.Time
}

// refusal is why the last reload was refused.
type refusal struct {
	at  time.Time
	err *outcome.Error
}

// conf returns the configuration that the daemon goes by.
func (a *App) conf() *config.Config { return a.applied.Load().Config }

// The values of lb_reloads_total's result, and of a reload's answer.
const (
	reloadApplied   = admin.Applied
	reloadUnchanged = admin.Unchanged
	reloadFailed    = "failed"
)

// Reload makes the daemon go by the configuration as it is now where it came
// from: all of it or, with an error, nothing. Requests that are under way keep
// the one that they began with.
func (a *App) Reload(ctx context.Context, by string) (admin.Reloaded, error) {
	if err := a.takeTurnToReload(ctx); err != nil {
		return admin.Reloaded{}, err
	}
	defer func() { <-a.operating }()
	return a.reload(ctx, by)
}

// takeTurnToReload is takeTurn for reloads. They wait until the daemon serves,
// for listeners begin to accept then, and come too late when it stops.
func (a *App) takeTurnToReload(ctx context.Context) error {
	select {
	case <-a.started:
	case <-ctx.Done():
		return unchanged(ctx.Err())
	}
	if err := a.takeTurn(ctx); err != nil {
		return unchanged(err)
	}
	if err := a.Ready(); err != nil {
		<-a.operating
		return &outcome.Error{Code: outcome.Overloaded, Detail: "nothing has changed: lb is stopping", Err: err}
	}
	return nil
}

// reload is Reload for who holds a.operating.
func (a *App) reload(ctx context.Context, by string) (admin.Reloaded, error) {
	began := time.Now()
	next, err := a.options.Load()
	if err == nil {
		err = a.changeable(next.Config)
	}
	if err != nil {
		return admin.Reloaded{}, a.refuseReload(by, err)
	}
	now := a.applied.Load()
	if sameConfig(now.Loaded, next) {
		a.refused.Store(nil)
		a.metrics.Reloads(reloadUnchanged).Inc()
		a.keepVersion(ctx, next, now.generation, by) // comments may have changed
		return admin.Reloaded{Generation: now.generation, Result: reloadUnchanged}, nil
	}
	changes := diff.Between(now.Config, next.Config)
	// It is decided by now: who asked for it may leave.
	if err := a.apply(context.WithoutCancel(ctx), next); err != nil {
		return admin.Reloaded{}, a.refuseReload(by, err)
	}
	a.refused.Store(nil)
	a.metrics.Reloads(reloadApplied).Inc()
	generation := a.applied.Load().generation
	for _, w := range next.Warnings {
		a.log.Warn("configuration", zap.String("warning", w.String()))
	}
	a.log.Info("configuration reloaded", zap.Uint64("generation", generation), zap.String("by", by),
		zap.Strings("added", some(changes.Added)), zap.Strings("removed", some(changes.Removed)), zap.Strings("changed", some(names(changes.Changed))),
		zap.Duration("took", time.Since(began)))
	a.keepVersion(context.WithoutCancel(ctx), next, generation, by, store.Record{
		At: time.Now(), Who: by, Action: "reload", Target: "config", Detail: summary(changes), Generation: generation,
	})
	return admin.Reloaded{Generation: generation, Result: reloadApplied, Changes: shownChanges(changes)}, nil
}

// apply makes the daemon go by next, which is another configuration than the one
// it goes by. Until everything is there that can fail, nothing changes.
func (a *App) apply(ctx context.Context, next Loaded) error {
	all, fresh, err := a.bind(ctx, next.Config)
	if err != nil {
		return err
	}
	l, err := a.registry.layOut(next.Config)
	if err == nil {
		var b *blueprint
		if b, err = compile(next.Config, l.site, a.registry, a.metrics); err == nil {
			a.settle(ctx, next, l, b)
			a.replaceServers(all, fresh)
			return nil
		}
		a.registry.abandon(l)
	}
	for _, s := range fresh {
		_ = s.Close()
	}
	return err
}

// settle goes by a configuration of which everything is there.
func (a *App) settle(ctx context.Context, next Loaded, l *layout, b *blueprint) {
	generation := a.decider.Snapshot().Generation + 1
	a.registry.awaitProbes(ctx, l) // who is new is not worse off than those at a start
	was := a.servedBy()
	gone := a.rearrange(l)
	a.blueprint = b
	a.showFanouts()
	a.applied.Store(&applied{Loaded: next, generation: generation, at: time.Now()})
	a.outdate(was)
	a.configureRegistration(ctx)
	if err := a.publish(generation); err != nil {
		a.log.Error("the routes could not be compiled anew", zap.Error(err)) // they were, a moment ago
	}
	a.letGoFor(ctx, gone)
	a.options.Logs.SetLevel(next.Config.Log.Level)
}

// changeable returns what of c cannot be changed while the daemon runs.
func (a *App) changeable(c *config.Config) error {
	now := a.conf()
	var problems config.Problems
	for _, fixed := range []struct {
		path     string
		was, now any
	}{
		{"storage", now.Storage, c.Storage},
		{"registration.enabled", now.Registration.Enabled, c.Registration.Enabled},
		{"registration.token_env", now.Registration.TokenEnv, c.Registration.TokenEnv},
		{"admin.token_env", now.Admin.TokenEnv, c.Admin.TokenEnv},
		{"log.format", now.Log.Format, c.Log.Format},
		{"log.access", now.Log.Access, c.Log.Access},
	} {
		if !reflect.DeepEqual(fixed.was, fixed.now) {
			problems = append(problems, config.Problem{
				Path: fixed.path, Message: "cannot be changed while lb runs", Suggestion: "restart it, or take the change back",
			})
		}
	}
	if len(problems) > 0 {
		return problems
	}
	return nil
}

// refuseReload tells everybody who wants to know why a reload came to nothing.
func (a *App) refuseReload(by string, err error) error {
	e := invalid("the configuration", err)
	a.refused.Store(&refusal{time.Now(), e})
	a.metrics.Reloads(reloadFailed).Inc()
	a.log.Error("configuration not reloaded, the one before serves on", zap.String("by", by), zap.Error(err))
	return e
}

// invalid says that a configuration cannot be used, with every problem of it.
func invalid(what string, err error) *outcome.Error {
	e := &outcome.Error{
		Code: outcome.ConfigInvalid, Detail: what + " is not used, the one before serves on: " + err.Error(), Err: err,
	}
	var problems config.Problems
	if errors.As(err, &problems) {
		noun := "problems"
		if len(problems) == 1 {
			noun = "problem"
		}
		e.Detail = fmt.Sprintf("%s has %d %s and is not used, the one before serves on", what, len(problems), noun)
		problems.Sort()
		for _, p := range problems {
			e.Fields = append(e.Fields, outcome.FieldError{Field: p.Path, Detail: p.String()})
		}
	}
	return e
}

// keepVersion stores the text of a configuration that serves. That it cannot is
// no reason not to go by it.
func (a *App) keepVersion(ctx context.Context, l Loaded, generation uint64, by string, audit ...store.Record) {
	if l.Document == nil || a.damaged != nil {
		return
	}
	v := store.ConfigVersion{At: time.Now(), By: by, Source: l.Source, Generation: generation, Document: l.Document}
	id, err := a.store.SaveConfigVersion(ctx, v, audit...)
	if err != nil {
		a.log.Error("the configuration serves, but could not be stored for lb config history", zap.Error(err))
	}
	a.serving.Store(id)
}

// summary says in a line how much has changed.
func summary(d diff.Diff) string {
	return fmt.Sprintf("%d added, %d removed, %d changed", len(d.Added), len(d.Removed), len(d.Changed))
}

// some cuts a list of names to what a line of the log can have.
func some(names []string) []string {
	const most = 20
	if len(names) <= most {
		return names
	}
	return append(slices.Clip(names[:most]), fmt.Sprintf("and %d more", len(names)-most))
}

func names(changed []diff.Change) []string {
	all := make([]string, len(changed))
	for i, c := range changed {
		all[i] = c.Name
	}
	return all
}

// shownChanges is a difference as the admin listener shows it.
func shownChanges(d diff.Diff) admin.Changes {
	c := admin.Changes{Added: d.Added, Removed: d.Removed}
	for _, changed := range d.Changed {
		part := admin.ChangedPart{Name: changed.Name}
		for _, v := range changed.Values {
			part.Values = append(part.Values, admin.ChangedValue{Path: v.Path, From: v.From, To: v.To})
		}
		c.Changed = append(c.Changed, part)
	}
	return c
}

// Watches reports whether the configuration wants to be read again when its file
// has changed.
func (a *App) Watches() bool { return a.conf().Reload.Watch }

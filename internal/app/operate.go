package app

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"lb/internal/admin"
	"lb/internal/backend"
	"lb/internal/outcome"
	"lb/internal/pool"
	"lb/internal/store"
)

// adminWords are the words of operators, and what they make of a backend.
var adminWords = map[admin.Word]backend.Admin{
	admin.Enabled: backend.Enabled, admin.Draining: backend.Draining, admin.Maintenance: backend.Maintenance,
}

// SetAdmin carries out what an operator wants of a backend. It is kept before it
// takes effect: what an operator was told survives a restart.
func (a *App) SetAdmin(ctx context.Context, c admin.Change) (admin.Instance, error) {
	if err := a.whole(); err != nil {
		return admin.Instance{}, err
	}
	if err := a.takeTurn(ctx); err != nil {
		return admin.Instance{}, unchanged(err)
	}
	defer func() { <-a.operating }()
	p, b, err := a.find(c.Pool, c.ID)
	if err != nil {
		return admin.Instance{}, err
	}
	word, was := adminWords[c.To], b.State().Admin
	if word == was {
		return a.instance(p, b), nil
	}
	now := time.Now()
	kept := store.OperatorState{Pool: p.Name, Backend: b.ID, Since: now, By: c.By}
	if word != backend.Enabled {
		kept.Word = string(c.To)
	}
	err = a.store.SetOperatorState(ctx, kept, store.Record{
		At: now, Who: c.By, Action: string(c.To), Target: p.Name + "/" + b.ID,
		Detail: "was " + wordOf(was), Generation: a.decider.Snapshot().Generation,
	})
	if err != nil {
		return admin.Instance{}, unchanged(err)
	}
	a.words[identity{p.Name, b.ID}] = kept
	a.setAdmin(p, b, word, fmt.Sprintf("%s, said by %s", c.To, c.By))
	return a.instance(p, b), nil
}

// patience is how long an operator waits for the change of another. One takes
// milliseconds; behind a disk that hangs, operators are better told than kept.
const patience = 5 * time.Second

// ErrBusy marks a change whose turn did not come: nothing was tried.
var ErrBusy = errors.New("the change before has not come back")

// takeTurn waits until no other change is under way.
func (a *App) takeTurn(ctx context.Context) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case a.operating <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return fmt.Errorf("%w for %v: check the disk", ErrBusy, patience)
	}
}

// unchanged says of a change that it could not be kept, and so was not made.
func unchanged(err error) error {
	return &outcome.Error{Code: outcome.StorageUnavailable, Detail: "nothing has changed; the log tells more", Err: err}
}

// setAdmin puts an operator's word into effect. Who comes out of maintenance is
// probed first, as at the start.
func (a *App) setAdmin(p *pool.Pool, b *backend.Backend, word backend.Admin, reason string) {
	if b.State().Admin == backend.Maintenance {
		a.probeFirst(p, b, "not probed since its maintenance")
	}
	p.SetAdmin(b, word, reason)
	if f := a.registry.fixture(b); f.loop != nil {
		f.loop.Wake()
	}
}

// probeFirst sends b, which was not probed for a while, back to before its first
// probe.
func (a *App) probeFirst(p *pool.Pool, b *backend.Backend, reason string) {
	if f := a.registry.fixture(b); f.loop != nil {
		f.loop.Forget() // it may not have noticed, if a probe hangs
		p.SetHealth(b, f.initial, reason)
		f.loop.Wake()
	}
}

// restore puts into effect what operators said before the last stop. What they
// said of a backend that is not there is kept for when it comes back.
func (a *App) restore(ctx context.Context) error {
	states, err := a.store.OperatorStates(ctx)
	if err != nil {
		return err
	}
	for _, s := range states {
		a.words[identity{s.Pool, s.Backend}] = s
		if p, b, err := a.find(s.Pool, s.Backend); err == nil {
			a.repeatWord(p, b)
		}
	}
	return nil
}

// wordFor returns what operators want of b, whether it is there or not.
func (a *App) wordFor(b *backend.Backend) backend.Admin {
	return adminWords[admin.Word(a.words[identity{b.Pool, b.ID}].Word)]
}

// repeatWord puts into effect what operators said of b before it was there.
func (a *App) repeatWord(p *pool.Pool, b *backend.Backend) {
	s := a.words[identity{p.Name, b.ID}]
	if word, known := adminWords[admin.Word(s.Word)]; known {
		a.setAdmin(p, b, word, fmt.Sprintf("%s, said by %s at %s", s.Word, s.By, s.Since.UTC().Format(time.RFC3339)))
	}
}

// find returns the backend with that id, in that pool unless poolName is empty.
// Errors are as admin.Operator wants them.
func (a *App) find(poolName, id string) (p *pool.Pool, b *backend.Backend, err error) {
	if poolName != "" && a.registry.pool(poolName) == nil {
		return nil, nil, &outcome.Error{Code: outcome.InstanceNotFound, Detail: fmt.Sprintf("there is no pool %q", poolName)}
	}
	var pools []string
	for _, candidate := range a.registry.all() {
		if poolName != "" && candidate.Name != poolName {
			continue
		}
		for _, member := range candidate.Members().All {
			if member.ID == id {
				p, b = candidate.Pool, member
				pools = append(pools, candidate.Name)
			}
		}
	}
	switch {
	case len(pools) == 0 && poolName != "":
		err = &outcome.Error{Code: outcome.InstanceNotFound, Detail: fmt.Sprintf("the pool %q has no instance %q", poolName, id)}
	case len(pools) == 0:
		err = &outcome.Error{Code: outcome.InstanceNotFound, Detail: fmt.Sprintf("there is no instance %q", id)}
	case len(pools) > 1:
		err = &outcome.Error{Code: outcome.AmbiguousInstance,
			Detail: fmt.Sprintf("%q is in the pools %s; say which", id, strings.Join(pools, ", "))}
	}
	return p, b, err
}

// Audit returns what operators did, newest first.
func (a *App) Audit(ctx context.Context, before int64, limit int) ([]admin.AuditRecord, error) {
	records, err := a.store.Audit(ctx, before, limit)
	if errors.Is(err, store.ErrUnavailable) {
		return nil, &outcome.Error{Code: outcome.StorageUnavailable, Detail: "the audit trail cannot be read; the log tells more", Err: err}
	}
	if err != nil {
		return nil, err
	}
	page := make([]admin.AuditRecord, len(records))
	for i, r := range records {
		page[i] = admin.AuditRecord{
			ID: r.ID, At: r.At, Who: r.Who, Action: r.Action, Target: r.Target, Detail: r.Detail, Generation: r.Generation,
		}
	}
	return page, nil
}

// wordOf is the operators' word for w.
func wordOf(w backend.Admin) string {
	for word, is := range adminWords {
		if is == w {
			return string(word)
		}
	}
	return ""
}

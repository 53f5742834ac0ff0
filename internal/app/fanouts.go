package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"lb/internal/admin"
	"lb/internal/fanout"
	"lb/internal/metrics"
	"lb/internal/outcome"
	"lb/internal/store"
)

// ListFanouts returns the writes that the filter lets through.
func (a *App) ListFanouts(ctx context.Context, f admin.FanoutFilter) ([]admin.Fanout, error) {
	return a.fanouts().list(ctx, f)
}

// ShowFanout returns one write.
func (a *App) ShowFanout(ctx context.Context, id string) (admin.Fanout, error) {
	return a.fanouts().show(ctx, id)
}

// RetryDelivery has a parked delivery tried again.
func (a *App) RetryDelivery(ctx context.Context, c admin.DeliveryChange) (admin.Fanout, error) {
	if err := a.takeTurn(ctx); err != nil {
		return admin.Fanout{}, unchanged(err)
	}
	defer func() { <-a.operating }()
	return a.fanouts().change(ctx, retry, c)
}

// SkipDelivery leaves a delivery out.
func (a *App) SkipDelivery(ctx context.Context, c admin.DeliveryChange) (admin.Fanout, error) {
	if err := a.takeTurn(ctx); err != nil {
		return admin.Fanout{}, unchanged(err)
	}
	defer func() { <-a.operating }()
	return a.fanouts().change(ctx, skip, c)
}

func (a *App) fanouts() fanouts {
	return fanouts{
		engine: a.fanout, audit: a.store.Append, generation: a.decider.Snapshot().Generation,
		address: func(pool, backend string) string {
			if _, b, err := a.find(pool, backend); err == nil {
				return b.Address
			}
			return ""
		},
	}
}

// fanouts is what operators see of writes and do to their deliveries.
type fanouts struct {
	engine interface {
		List(ctx context.Context, f fanout.Filter) ([]fanout.Record, error)
		Find(ctx context.Context, id string) (fanout.Record, bool, error)
		Retry(ctx context.Context, id, backend string) error
		Skip(ctx context.Context, id, backend string) error
	}
	audit      func(ctx context.Context, r store.Record) error
	generation uint64
	address    func(pool, backend string) string // empty if there is no such backend
}

// deliveryVerb is something that is done to a delivery.
type deliveryVerb struct {
	name string
	// from are the states that it can be done in, and only says so.
	from []fanout.DeliveryState
	only string
}

var (
	retry = deliveryVerb{"retry", []fanout.DeliveryState{fanout.DeliveryParked}, "only a parked delivery can be retried"}
	skip  = deliveryVerb{"skip", []fanout.DeliveryState{fanout.DeliveryPending, fanout.DeliveryHeld, fanout.DeliveryParked},
		"only one that is pending, held or parked can be skipped"}
)

func (f fanouts) list(ctx context.Context, by admin.FanoutFilter) ([]admin.Fanout, error) {
	records, err := f.engine.List(ctx, fanout.Filter{
		State: fanout.State(by.State), Pool: by.Pool, After: by.After, Limit: by.Limit,
	})
	if err != nil {
		return nil, unreadable("the writes cannot be read", err)
	}
	views := make([]admin.Fanout, len(records))
	for i, r := range records {
		views[i] = f.view(r)
	}
	return views, nil
}

func (f fanouts) show(ctx context.Context, id string) (admin.Fanout, error) {
	r, err := f.find(ctx, id)
	if err != nil {
		return admin.Fanout{}, err
	}
	return f.view(r), nil
}

func (f fanouts) find(ctx context.Context, id string) (fanout.Record, error) {
	r, ok, err := f.engine.Find(ctx, id)
	switch {
	case err != nil:
		return r, unreadable("the write cannot be read", err)
	case !ok:
		return r, &outcome.Error{Code: outcome.FanoutNotFound,
			Detail: fmt.Sprintf("there is no fan-out %q, or it was settled so long ago that it is forgotten", id)}
	}
	return r, nil
}

// change does to a delivery what the verb says. It is recorded before it takes
// effect, as every change: what can be refused before is, and what fails after
// all gets a record that says so.
func (f fanouts) change(ctx context.Context, verb deliveryVerb, c admin.DeliveryChange) (admin.Fanout, error) {
	r, err := f.find(ctx, c.ID)
	if err != nil {
		return admin.Fanout{}, err
	}
	was, err := changeable(r, c.Backend, verb)
	if err != nil {
		return admin.Fanout{}, err
	}
	record := store.Record{
		At: time.Now(), Who: c.By, Action: verb.name, Target: "fanout/" + r.ID + "/" + r.Pool + "/" + was.Backend,
		Detail: "was " + string(was.State), Generation: f.generation,
	}
	if was.Reason != "" {
		record.Detail += ": " + string(was.Reason)
	}
	if err := f.audit(ctx, record); err != nil {
		return admin.Fanout{}, &outcome.Error{
			Code: outcome.StorageUnavailable, Detail: "nothing has changed; the log tells more", Err: err,
		}
	}
	ctx = context.WithoutCancel(ctx) // it is on record
	do := f.engine.Retry
	if verb.name == skip.name {
		do = f.engine.Skip
	}
	if err := do(ctx, r.ID, was.Backend); err != nil {
		record.At, record.Detail = time.Now(), "failed: "+err.Error()
		return admin.Fanout{}, errors.Join(err, f.audit(ctx, record))
	}
	now, err := f.show(ctx, r.ID)
	if err != nil {
		return now, &outcome.Error{Code: outcome.StorageUnavailable,
			Detail: "it is done, but how the write stands now cannot be read; the log tells more", Err: err}
	}
	return now, nil
}

// changeable returns the delivery to that backend, or why the verb cannot be
// done to it. The engine has the last word.
func changeable(r fanout.Record, backend string, verb deliveryVerb) (fanout.Delivery, error) {
	at := slices.IndexFunc(r.Deliveries, func(d fanout.Delivery) bool { return d.Backend == backend })
	if at < 0 {
		return fanout.Delivery{}, &outcome.Error{Code: outcome.FanoutNotFound,
			Detail: fmt.Sprintf("the fan-out %q has no delivery to %q", r.ID, backend)}
	}
	d := r.Deliveries[at]
	// A rejected write keeps what it held, and none of it will be sent.
	open := r.State == fanout.WritePending || r.State == fanout.WriteParked
	if !open || !slices.Contains(verb.from, d.State) {
		return d, &outcome.Error{Code: outcome.DeliverySettled,
			Detail: fmt.Sprintf("the write is %s, and its delivery to %q is %s: %s", r.State, backend, d.State, verb.only)}
	}
	return d, nil
}

// view is a write as operators see it.
func (f fanouts) view(r fanout.Record) admin.Fanout {
	path, _, _ := strings.Cut(r.Write.Target, "?")
	v := admin.Fanout{
		Seq: r.Seq, ID: r.ID, State: string(r.State), Created: shown(r.Created), Route: r.Route, Pool: r.Pool,
		Method: r.Write.Method, Path: path, RequestID: r.Write.RequestID,
		Deliveries: make(admin.List[admin.Delivery], len(r.Deliveries)),
	}
	for i, d := range r.Deliveries {
		to := admin.Delivery{
			Backend: d.Backend, Address: f.address(r.Pool, d.Backend), State: string(d.State), Reason: string(d.Reason),
			Attempts: d.Attempts, Error: d.Error,
		}
		if d.LastStatus != 0 {
			to.LastStatus = new(d.LastStatus)
		}
		if d.State == fanout.DeliveryPending && !d.Next.IsZero() {
			to.NextAttempt = new(shown(d.Next))
		}
		v.Deliveries[i] = to
	}
	return v
}

// shown returns t as people and scripts get it: UTC, whole milliseconds.
func shown(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// unreadable returns an error of a read as admin.Fanouts wants it.
func unreadable(what string, err error) error {
	if errors.As(err, new(*outcome.Error)) || !errors.Is(err, store.ErrUnavailable) {
		return err
	}
	return &outcome.Error{Code: outcome.StorageUnavailable, Detail: what + "; the log tells more", Err: err}
}

// withAges returns the samples with how old the oldest write of each pool is.
func withAges(samples []metrics.FanoutSample, ages []fanout.Age) []metrics.FanoutSample {
	for _, age := range ages {
		at := slices.IndexFunc(samples, func(s metrics.FanoutSample) bool { return s.Pool == age.Pool })
		if at < 0 {
			at = len(samples)
			samples = append(samples, metrics.FanoutSample{Pool: age.Pool})
		}
		switch age.State {
		case fanout.WritePending:
			samples[at].OldestPending = age.Oldest
		case fanout.WriteParked:
			samples[at].OldestParked = age.Oldest
		}
	}
	return samples
}

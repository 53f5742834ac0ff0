package app

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"lb/internal/admin"
	"lb/internal/fanout"
	"lb/internal/metrics"
	"lb/internal/outcome"
	"lb/internal/store"
)

// desk is an engine with one write and an audit trail, and tells what happened
// to both, in order.
type desk struct {
	record          fanout.Record
	happened        []string
	filter          fanout.Filter
	findErr, doErr  error
	auditErr        error
	unreadableAfter error // what Find returns once something was done
}

func (d *desk) List(_ context.Context, f fanout.Filter) ([]fanout.Record, error) {
	d.filter = f
	return []fanout.Record{d.record}, d.findErr
}

func (d *desk) Find(_ context.Context, id string) (fanout.Record, bool, error) {
	return d.record, id == d.record.ID, d.findErr
}

func (d *desk) Retry(ctx context.Context, id, backend string) error {
	return d.do(ctx, "retry", id, backend)
}

func (d *desk) Skip(ctx context.Context, id, backend string) error {
	return d.do(ctx, "skip", id, backend)
}

func (d *desk) do(ctx context.Context, verb, id, backend string) error {
	d.happened = append(d.happened, fmt.Sprintf("%s %s %s", verb, id, backend))
	d.findErr = d.unreadableAfter
	return errors.Join(d.doErr, ctx.Err())
}

func (d *desk) append(_ context.Context, r store.Record) error {
	d.happened = append(d.happened, fmt.Sprintf("audit %s: %s %s, %s, generation %d", r.Who, r.Action, r.Target, r.Detail, r.Generation))
	return d.auditErr
}

func (d *desk) fanouts() fanouts {
	return fanouts{engine: d, audit: d.append, generation: 3, address: func(pool, backend string) string {
		if backend == "gone" {
			return ""
		}
		return pool + "." + backend + ":80"
	}}
}

var admitted = time.Date(2026, 1, 2, 3, 4, 5, 6_789_012, time.FixedZone("", 3600))

// newDesk has a parked write with a delivery in each of the states there are.
func newDesk() *desk {
	return &desk{record: fanout.Record{
		Seq: 7, ID: "ID", Route: "register", Pool: "users", Created: admitted, State: fanout.WriteParked,
		Write: fanout.Write{Method: "POST", Target: "/register?token=secret", RequestID: "r-1", Body: []byte("secret")},
		Deliveries: []fanout.Delivery{
			{Backend: "done", State: fanout.DeliveryDone, Attempts: 1, LastStatus: 201, Next: admitted},
			{Backend: "parked", State: fanout.DeliveryParked, Reason: fanout.ReasonDiverged, Attempts: 4, LastStatus: 409, Error: "refused"},
			{Backend: "pending", State: fanout.DeliveryPending, Attempts: 2, Error: "dial: refused", Next: admitted.Add(time.Second)},
			{Backend: "trying", State: fanout.DeliveryPending},
			{Backend: "held", State: fanout.DeliveryHeld},
			{Backend: "skipped", State: fanout.DeliverySkipped, Reason: fanout.ReasonOperator},
			{Backend: "gone", State: fanout.DeliveryCancelled, Reason: fanout.ReasonRemoved},
		},
	}}
}

func TestViewOfAWrite(t *testing.T) {
	got, err := newDesk().fanouts().show(t.Context(), "ID")
	require.NoError(t, err)
	at := func(s int) *time.Time { return new(time.Date(2026, 1, 2, 2, 4, s, 6_000_000, time.UTC)) }
	require.Equal(t, admin.Fanout{
		Seq: 7, ID: "ID", State: "parked", Created: *at(5), Route: "register", Pool: "users",
		Method: "POST", Path: "/register", RequestID: "r-1", Deliveries: admin.List[admin.Delivery]{
			{Backend: "done", Address: "users.done:80", State: "done", Attempts: 1, LastStatus: new(201)},
			{Backend: "parked", Address: "users.parked:80", State: "parked", Reason: "diverged", Attempts: 4, LastStatus: new(409), Error: "refused"},
			{Backend: "pending", Address: "users.pending:80", State: "pending", Attempts: 2, Error: "dial: refused", NextAttempt: at(6)},
			{Backend: "trying", Address: "users.trying:80", State: "pending"},
			{Backend: "held", Address: "users.held:80", State: "held"},
			{Backend: "skipped", Address: "users.skipped:80", State: "skipped", Reason: "operator"},
			{Backend: "gone", State: "cancelled", Reason: "removed"},
		},
	}, got)
}

func TestListOfWrites(t *testing.T) {
	d := newDesk()
	got, err := d.fanouts().list(t.Context(), admin.FanoutFilter{State: "parked", Pool: "users", After: 6, Limit: 101})
	require.NoError(t, err)
	require.Equal(t, fanout.Filter{State: fanout.WriteParked, Pool: "users", After: 6, Limit: 101}, d.filter)
	require.Len(t, got, 1)
	require.Equal(t, uint64(7), got[0].Seq)
}

// A state that the admin listener refuses could not be listed.
func TestStatesOfTheAdminListenerAreThoseOfFanout(t *testing.T) {
	require.ElementsMatch(t, []string{
		string(fanout.WritePending), string(fanout.WriteDone), string(fanout.WriteParked),
		string(fanout.WriteRejected), string(fanout.WriteCancelled),
	}, admin.FanoutStates)
}

func TestRetryAndSkip(t *testing.T) {
	for _, c := range []struct {
		verb    deliveryVerb
		backend string
		want    []string
	}{
		{retry, "parked", []string{"audit alice: retry fanout/ID/users/parked, was parked: diverged, generation 3", "retry ID parked"}},
		{skip, "parked", []string{"audit alice: skip fanout/ID/users/parked, was parked: diverged, generation 3", "skip ID parked"}},
		{skip, "pending", []string{"audit alice: skip fanout/ID/users/pending, was pending, generation 3", "skip ID pending"}},
		{skip, "held", []string{"audit alice: skip fanout/ID/users/held, was held, generation 3", "skip ID held"}},
	} {
		d := newDesk()
		now, err := d.fanouts().change(t.Context(), c.verb, admin.DeliveryChange{ID: "ID", Backend: c.backend, By: "alice"})
		require.NoError(t, err)
		require.Equal(t, c.want, d.happened, "the record comes first")
		require.Equal(t, "ID", now.ID)
	}
}

func TestWhatCannotBeDone(t *testing.T) {
	for _, c := range []struct {
		verb        deliveryVerb
		id, backend string
		state       fanout.State
		code        outcome.Code
		say         string
	}{
		{retry, "other", "parked", fanout.WriteParked, outcome.FanoutNotFound, `no fan-out "other"`},
		{retry, "ID", "other", fanout.WriteParked, outcome.FanoutNotFound, `no delivery to "other"`},
		{retry, "ID", "done", fanout.WriteParked, outcome.DeliverySettled, `the write is parked, and its delivery to "done" is done: only a parked delivery can be retried`},
		{retry, "ID", "pending", fanout.WriteParked, outcome.DeliverySettled, "only a parked delivery"},
		{retry, "ID", "held", fanout.WriteParked, outcome.DeliverySettled, "only a parked delivery"},
		{retry, "ID", "skipped", fanout.WriteParked, outcome.DeliverySettled, "only a parked delivery"},
		{retry, "ID", "gone", fanout.WriteParked, outcome.DeliverySettled, "only a parked delivery"},
		{skip, "ID", "done", fanout.WriteParked, outcome.DeliverySettled, "pending, held or parked can be skipped"},
		{skip, "ID", "skipped", fanout.WriteParked, outcome.DeliverySettled, "can be skipped"},
		{skip, "ID", "gone", fanout.WriteParked, outcome.DeliverySettled, "can be skipped"},
		{skip, "ID", "held", fanout.WriteRejected, outcome.DeliverySettled, "is rejected"},
		{skip, "ID", "held", fanout.WriteCancelled, outcome.DeliverySettled, "is cancelled"},
	} {
		d := newDesk()
		d.record.State = c.state
		_, err := d.fanouts().change(t.Context(), c.verb, admin.DeliveryChange{ID: c.id, Backend: c.backend})
		var e *outcome.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, c.code, e.Code, "%s %s", c.verb.name, c.backend)
		require.Contains(t, e.Detail, c.say)
		require.Empty(t, d.happened, "nothing is done, and nothing on record")
	}
}

func TestWhatTheEngineRefusesIsOnRecordAsFailed(t *testing.T) {
	d := newDesk()
	d.doErr = &outcome.Error{Code: outcome.DeliverySettled, Detail: "done by now"}
	_, err := d.fanouts().change(t.Context(), skip, admin.DeliveryChange{ID: "ID", Backend: "pending", By: "alice"})
	require.ErrorIs(t, err, d.doErr)
	require.Equal(t, []string{
		"audit alice: skip fanout/ID/users/pending, was pending, generation 3",
		"skip ID pending",
		"audit alice: skip fanout/ID/users/pending, failed: delivery_settled: done by now, generation 3",
	}, d.happened)
}

func TestStorageThatFailsUnderAnOperator(t *testing.T) {
	broken := fmt.Errorf("the store is %w: no space", store.ErrUnavailable)
	own := &outcome.Error{Code: outcome.StorageUnavailable, Detail: "the journal says why", Err: broken}
	for name, c := range map[string]struct {
		set  func(d *desk)
		say  string
		done bool
	}{
		"nothing can be read":      {func(d *desk) { d.findErr = broken }, "cannot be read", false},
		"nothing can be recorded":  {func(d *desk) { d.auditErr = broken }, "nothing has changed", false},
		"the journal takes none":   {func(d *desk) { d.doErr = own }, "the journal says why", true},
		"and gives none":           {func(d *desk) { d.findErr = own }, "the journal says why", false},
		"it cannot be read after":  {func(d *desk) { d.unreadableAfter = broken }, "it is done", true},
		"and both fail, in a race": {func(d *desk) { d.doErr, d.unreadableAfter = own, broken }, "the journal says why", true},
	} {
		d := newDesk()
		c.set(d)
		_, err := d.fanouts().change(t.Context(), retry, admin.DeliveryChange{ID: "ID", Backend: "parked"})
		var e *outcome.Error
		require.ErrorAs(t, err, &e, name)
		require.Equal(t, outcome.StorageUnavailable, e.Code, name)
		require.Contains(t, e.Detail, c.say, name)
		require.Equal(t, c.done, len(d.happened) > 1, "%s: %q", name, d.happened)
	}
	d := newDesk()
	for _, read := range []func() error{
		func() error { _, err := d.fanouts().list(t.Context(), admin.FanoutFilter{}); return err },
		func() error { _, err := d.fanouts().show(t.Context(), "ID"); return err },
	} {
		var e *outcome.Error
		d.findErr = broken
		require.ErrorAs(t, read(), &e)
		require.Equal(t, outcome.StorageUnavailable, e.Code)
		d.findErr = context.Canceled
		require.Equal(t, context.Canceled, read(), "the storage is not to blame for a client that left")
	}
}

// A client that leaves once its wish is on record does not undo it.
func TestAnOperatorWhoLeaves(t *testing.T) {
	d := newDesk()
	ctx, cancel := context.WithCancel(t.Context())
	desk := d.fanouts()
	desk.audit = func(ctx context.Context, r store.Record) error {
		defer cancel()
		return d.append(ctx, r)
	}
	_, err := desk.change(ctx, retry, admin.DeliveryChange{ID: "ID", Backend: "parked"})
	require.NoError(t, err)
	require.Len(t, d.happened, 2)
}

func TestAgesOfSamples(t *testing.T) {
	got := withAges([]metrics.FanoutSample{{Pool: "users", Pending: 2}, {Pool: "api", Parked: 1}}, []fanout.Age{
		{Pool: "users", State: fanout.WritePending, Oldest: time.Second},
		{Pool: "users", State: fanout.WriteParked, Oldest: time.Minute},
		{Pool: "left over", State: fanout.WriteParked, Oldest: time.Hour},
	})
	require.Equal(t, []metrics.FanoutSample{
		{Pool: "users", Pending: 2, OldestPending: time.Second, OldestParked: time.Minute},
		{Pool: "api", Parked: 1},
		{Pool: "left over", OldestParked: time.Hour},
	}, got)
}

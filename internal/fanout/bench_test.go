package fanout

import (
	"context"
	"testing"
	"time"

	"lb/internal/backend"
)

// instant is a Sender whose backends accept everything at once.
type instant struct{}

func (instant) Send(context.Context, *backend.Backend, Request) (Response, error) {
	return Response{Status: 201}, nil
}

// BenchmarkSubmit is what the engine itself adds to a fan-out to three
// backends: no HTTP.
func BenchmarkSubmit(b *testing.B) { benchmarkSubmit(b, 0) }

func benchmarkSubmit(b *testing.B, limit int) {
	var members []*backend.Backend
	for _, id := range []string{"a", "b", "c"} {
		members = append(members, &backend.Backend{Pool: "users", ID: id})
	}
	pool := newFakePool(members...)
	pool.after = 2 * time.Second
	for _, m := range members {
		pool.SetLimit(m, limit)
	}
	p := &Plan{
		Pool: pool, Success: []int{201}, Wait: time.Minute, AttemptTimeout: 10 * time.Second,
		Backoff: standard, MaxAttempts: 100, MaxAge: 24 * time.Hour,
	}
	e := New(Options{Sender: instant{}})
	defer e.Stop(context.Background())
	w := Write{Method: "POST", Target: "/register", Body: []byte("username=ada")}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if a, err := e.Submit(context.Background(), p, w); err != nil || a.Acked != 3 {
				b.Error(a, err)
				return
			}
		}
	})
}

// BenchmarkLag is what a delivery that fails once costs the lag of a backend
// with 100,000 deliveries pending.
func BenchmarkLag(b *testing.B) {
	const backlog = 100_000
	g, now := newLag(), time.Now()
	deliveries := make([]delivery, backlog)
	for i := range deliveries {
		deliveries[i].since = now.Add(time.Duration(i) * time.Microsecond)
		g.watch(&deliveries[i])
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		d := &deliveries[i*7919%backlog]
		g.failed(d, now.Add(-time.Duration(i)))
		g.turn(now, false)
		g.drop(d)
		d.since = now.Add(time.Duration(i) * time.Microsecond)
		g.watch(d)
	}
}

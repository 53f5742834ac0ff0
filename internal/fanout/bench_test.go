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
func BenchmarkSubmit(b *testing.B) {
	var members fakePool
	for _, id := range []string{"a", "b", "c"} {
		members = append(members, &backend.Backend{Pool: "users", ID: id})
	}
	p := &Plan{
		Pool: members, Success: []int{201}, Wait: time.Minute, AttemptTimeout: 10 * time.Second,
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

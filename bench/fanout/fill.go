package main

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"lb/internal/fanout"
	"lb/internal/store"
)

// fill makes a storage with so many writes that the last of three backends has
// not got, as lb leaves them when the backend has refused a connection.
func fill(ctx context.Context, path string, writes int, backends []*backend) (err error) {
	s, err := store.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	j, err := s.Journal(store.JournalOptions{})
	if err != nil {
		return err
	}
	const fillers = 1024 // as many as one transaction takes
	var next atomic.Int64
	var once sync.Once
	var running sync.WaitGroup
	for range fillers {
		running.Go(func() {
			for next.Add(1) <= int64(writes) {
				if failed := j.Admit(ctx, pending(backends)); failed != nil {
					once.Do(func() { err = failed })
					return
				}
			}
		})
	}
	running.Wait()
	return err
}

// pending is a write that all backends but the last have.
func pending(backends []*backend) *fanout.Record {
	now := time.Now()
	r := &fanout.Record{
		ID: rand.Text(), Route: route, Pool: pool, Created: now, Clock: now, State: fanout.WritePending, Told: true,
		Write: fanout.Write{
			Method: "POST", Target: "/write", Host: "lb", Body: []byte(body), RequestID: rand.Text(),
			Fields: []fanout.Field{
				{Name: "Content-Type", Value: "text/plain"}, {Name: "X-Forwarded-For", Value: "127.0.0.1"},
				{Name: "X-Forwarded-Host", Value: "lb"}, {Name: "X-Forwarded-Proto", Value: "http"},
			},
		},
	}
	for i, b := range backends {
		d := fanout.Delivery{Backend: b.id, State: fanout.DeliveryDone, Attempts: 1, Reached: 1, LastStatus: 201}
		if i == len(backends)-1 {
			d = fanout.Delivery{Backend: b.id, State: fanout.DeliveryPending, Attempts: 1, Next: now, Error: "connection refused"}
		}
		r.Deliveries = append(r.Deliveries, d)
	}
	return r
}

// copyFile copies a storage that nobody has open. The copy is synced, so that
// writing it back slows nothing that is measured.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // it was only read
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Sync()
}

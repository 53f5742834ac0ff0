package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"
	"github.com/stretchr/testify/require"

	"lb/internal/fanout"
)

// syncTime is the median time that the disk below dir takes to sync 4 KiB.
func syncTime(b *testing.B, dir string) time.Duration {
	b.Helper()
	f, err := os.Create(filepath.Join(dir, "sync"))
	require.NoError(b, err)
	defer func() { require.NoError(b, f.Close()) }()
	took := make([]time.Duration, 101)
	for i := range took {
		_, err := f.Write(make([]byte, 4096))
		require.NoError(b, err)
		start := time.Now()
		require.NoError(b, f.Sync())
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	return took[len(took)/2]
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // never fails for oneself
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchmarkWrite(id string) *fanout.Record {
	r := write(id)
	r.Write.Body = make([]byte, 1<<10)
	r.Deliveries = append(r.Deliveries, fanout.Delivery{Backend: "c", State: fanout.DeliveryPending, Next: r.Created})
	return r
}

// BenchmarkAdmit admits writes of 1 KiB to three backends, by so many clients at
// once.
func BenchmarkAdmit(b *testing.B) {
	for _, clients := range []int{1, 64} {
		for name, key := range map[string][]byte{"plain": nil, "encrypted": testKey(1)} {
			b.Run(fmt.Sprintf("%d %s", clients, name), func(b *testing.B) {
				dir := b.TempDir()
				disk := syncTime(b, dir)
				d := newDisk(b)
				var syncs atomic.Int64
				s, err := open(filepath.Join(dir, "lb.db"), d.name)
				require.NoError(b, err)
				j, err := s.Journal(JournalOptions{Key: key})
				require.NoError(b, err)
				d.light = true
				d.set(func(operation string) error {
					if operation == "sync" {
						syncs.Add(1)
					}
					return nil
				})
				var n atomic.Int64
				took := make([][]time.Duration, 0, clients)
				b.ReportAllocs()
				b.SetParallelism((clients + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
				if clients == 1 {
					b.SetParallelism(1)
				}
				used := cpu()
				b.ResetTimer()
				one := func() time.Duration {
					start := time.Now()
					if err := j.Admit(context.Background(), benchmarkWrite(strconv.FormatInt(n.Add(1), 36))); err != nil {
						b.Error(err)
					}
					return time.Since(start)
				}
				if clients == 1 {
					took = append(took, nil)
					for range b.N {
						took[0] = append(took[0], one())
					}
				} else {
					b.RunParallel(func(p *testing.PB) {
						for p.Next() {
							one()
						}
					})
				}
				b.StopTimer()
				b.ReportMetric(float64((cpu()-used).Microseconds())/float64(b.N), "µs-cpu/op")
				b.ReportMetric(float64(b.N)/float64(max(1, syncs.Load())), "admissions/sync")
				b.ReportMetric(float64(disk.Microseconds()), "µs/sync")
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "admissions/s")
				if clients == 1 {
					slices.Sort(took[0])
					b.ReportMetric(float64(took[0][len(took[0])/2].Microseconds()), "µs-p50")
				}
				require.NoError(b, s.Close())
			})
		}
	}
}

// BenchmarkBacklog asks a journal with many pending writes: LB_BENCH_PENDING of
// them, 100,000 without it. A fifth of them share 100 keys.
func BenchmarkBacklog(b *testing.B) {
	pending := 100_000
	if n, err := strconv.Atoi(os.Getenv("LB_BENCH_PENDING")); err == nil {
		pending = n
	}
	path := filepath.Join(b.TempDir(), "lb.db")
	s, err := Open(path)
	require.NoError(b, err)
	j, err := s.Journal(JournalOptions{})
	require.NoError(b, err)
	key := func(i int) (k fanout.Key) {
		if i%5 == 0 {
			copy(k[:], fmt.Sprintf("key of user %4d", i/5%100))
		}
		return k
	}
	start := time.Now()
	for i := 0; i < pending; {
		require.NoError(b, s.takeTurn(context.Background()))
		err := j.commit(false, func() error {
			for range 2000 {
				r := benchmarkWrite(strconv.Itoa(i))
				r.Order = key(i)
				if err := j.insert(j.admission(r)); err != nil {
					return err
				}
				i++
			}
			return nil
		})
		s.endTurn()
		require.NoError(b, err)
	}
	b.Logf("%d writes of 1 KiB to 3 backends: filled in %v", pending, time.Since(start).Round(time.Second))
	ctx := context.Background()
	b.Run("Due", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			rs, err := j.Due(ctx, "users", "a", time.Now().Add(time.Hour), 512)
			require.NoError(b, err)
			require.Len(b, rs, 512)
		}
	})
	b.Run("Head", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, ok, err := j.Head(ctx, "users", "a", key(5))
			require.NoError(b, err)
			require.True(b, ok)
		}
	})
	b.Run("List", func(b *testing.B) {
		for b.Loop() {
			_, err := j.List(ctx, fanout.Filter{State: fanout.WritePending, After: uint64(pending / 2), Limit: 100})
			require.NoError(b, err)
		}
	})
	b.Run("Oldest", func(b *testing.B) {
		for b.Loop() {
			_, err := j.Oldest(ctx)
			require.NoError(b, err)
		}
	})
	b.Run("Totals", func(b *testing.B) {
		for b.Loop() {
			_, err := j.Totals(ctx)
			require.NoError(b, err)
		}
		var pages int64
		require.NoError(b, s.read(ctx, func(c *sqlite3.Conn) (err error) {
			pages, err = number(c, "PRAGMA page_count")
			return err
		}))
		b.ReportMetric(float64(pages*4096>>20), "MiB")
	})
	b.Run("UpdateAndRead", func(b *testing.B) {
		i := 0
		b.ReportAllocs()
		for b.Loop() {
			i++
			j.Update(fanout.Change{ID: strconv.Itoa(i % pending), State: fanout.WritePending, Deliveries: []fanout.Delivery{
				{Backend: "a", State: fanout.DeliveryPending, Attempts: i, Next: time.Now()},
			}})
			_, _, err := j.Find(ctx, strconv.Itoa(i%pending))
			require.NoError(b, err)
		}
	})
	require.NoError(b, s.Close())
}

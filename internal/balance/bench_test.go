package balance

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"lb/internal/backend"
)

// busy returns n backends that have work, and have answered.
func busy(n int, weights ...int) []*backend.Backend {
	backends := set(n)
	now := time.Now()
	for i, b := range backends {
		for range 1 + i%5 {
			b.TryBegin()
		}
		b.Speed.Observe(now, time.Duration(1+i%7)*time.Millisecond)
		if len(weights) > 0 {
			b.SetTraits(weights[i%len(weights)], map[string]string{"zone": "eu"})
		}
	}
	return backends
}

// benched are the policies, and settings that make a difference.
func benched(b *testing.B) (specs []Spec) {
	b.Helper()
	for _, name := range Names() {
		if trait, ours := known[name]; ours {
			trait.spec.Name = name
			specs = append(specs, trait.spec)
		}
	}
	return append(specs, Spec{Name: "hash", BoundedLoad: 1.25}, Spec{Name: "custom", Score: "inflight / weight + ewma_ms"})
}

func BenchmarkPick(b *testing.B) {
	for _, s := range benched(b) {
		factory, err := New(s)
		if err != nil {
			b.Fatal(err)
		}
		sizes := []int{3, 16}
		switch s.Name {
		case "roundrobin", "weighted_roundrobin", "random", "p2c":
			sizes = append(sizes, 10_000)
		}
		for _, n := range sizes {
			for _, weights := range [][]int{{1}, {1, 2, 3}} {
				name := fmt.Sprintf("%s%s%s/n=%d/weights=%d", s.Name, bound(s), s.Score, n, len(weights))
				b.Run(name, func(b *testing.B) {
					picker := factory(busy(n, weights...), nil)
					var q Query
					key := uint64(0)
					b.ReportAllocs()
					for b.Loop() {
						q.Reset()
						key += 0x9e3779b97f4a7c15
						q.Key = key
						picker.Pick(&q).End()
					}
				})
			}
		}
	}
}

func bound(s Spec) string {
	if s.BoundedLoad == 0 {
		return ""
	}
	return fmt.Sprintf("-%v", s.BoundedLoad)
}

// A retry has tried somebody, and goes to anybody else.
func BenchmarkRetry(b *testing.B) {
	for _, s := range benched(b) {
		factory, err := New(s)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(s.Name+bound(s)+s.Score, func(b *testing.B) {
			backends := busy(16)
			picker := factory(backends, nil)
			var q Query
			b.ReportAllocs()
			for b.Loop() {
				q.Reset()
				q.Exclude(backends[4])
				q.Retry = true
				if b := picker.Pick(&q); b != nil {
					b.End()
				}
			}
		})
	}
}

func BenchmarkPickParallel(b *testing.B) {
	for _, s := range benched(b) {
		factory, err := New(s)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(s.Name+bound(s)+s.Score, func(b *testing.B) {
			picker := factory(busy(16), nil)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				var q Query
				for pb.Next() {
					q.Reset()
					q.Key = rand.Uint64()
					picker.Pick(&q).End()
				}
			})
		})
	}
}

// What a change of a large set costs: the weights decide how long a cycle of
// weighted_roundrobin is, and how many classes it has.
func BenchmarkRebuild(b *testing.B) {
	weights := map[string]func(i int) int{
		"alike":     func(int) int { return 1 },
		"any":       func(int) int { return 1 + rand.IntN(1000) },
		"staircase": func(i int) int { return max(1, i-9700) },
	}
	for _, s := range benched(b) {
		factory, err := New(s)
		if err != nil {
			b.Fatal(err)
		}
		for name, weight := range weights {
			b.Run(s.Name+bound(s)+s.Score+"/weights="+name, func(b *testing.B) {
				backends := set(10_000)
				for i, b := range backends {
					b.SetTraits(weight(i), nil)
				}
				picker := factory(backends, nil)
				b.ReportAllocs()
				for b.Loop() {
					picker = factory(backends, picker)
				}
			})
		}
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// What the figures are held to.
const (
	leastBatch        = 24 // admissions that share a sync
	mostOverhead      = 1  // ms that an admission costs beyond one sync
	mostToAnswer      = 1  // s
	mostToDelivery    = 5  // s
	mostMemory        = 64 // MiB
	leastOfThroughput = 0.9
	mostOfDelay       = 1.1
)

// played runs lb over three backends, of which so many are up, while play
// plays.
func (s *stage) played(ctx context.Context, storage string, up int, under []string, play func(*daemon, []*backend) error) (err error) {
	backends, err := newBackends(up)
	if err != nil {
		return err
	}
	defer closeAll(backends)
	d, err := s.daemon(ctx, storage, backends)
	if err != nil {
		return err
	}
	d.under = under
	if _, err := d.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	return play(d, backends)
}

func closeAll(backends []*backend) {
	for _, b := range backends {
		b.close()
	}
}

// batch measures how many admissions share a sync when one takes 10 ms, with 64
// clients.
func batch(ctx context.Context, s *stage) (figures []figure, err error) {
	if _, err := exec.LookPath("strace"); err != nil {
		return nil, errors.New("strace, which slows the disk down, is not installed. On Debian: apt-get install strace")
	}
	const clients, length = 64, 10 * time.Second
	storage, err := s.storage("")
	if err != nil {
		return nil, err
	}
	defer s.forget(storage)
	took, err := fsyncTimes(s.root)
	if err != nil {
		return nil, err
	}
	log := s.file("strace")
	var from, to time.Time
	var writes []time.Duration
	err = s.played(ctx, storage, 3, slowDisk(log), func(d *daemon, _ []*backend) error {
		if _, err := load(ctx, d.address, clients, 0, 2*time.Second); err != nil {
			return err
		}
		from = time.Now()
		writes, err = load(ctx, d.address, clients, 0, length)
		to = time.Now()
		return err
	})
	if err != nil {
		return nil, err
	}
	lines, err := os.Open(log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = lines.Close() }() // it was only read
	syncs, err := countSyncs(lines, from, to)
	if err != nil {
		return nil, err
	}
	if syncs == 0 {
		return nil, errors.New("strace has seen no sync: may it trace here?")
	}
	n, seconds := float64(len(writes)), to.Sub(from).Seconds()
	return append(fsyncFigures(took),
		told("fsyncs a second, each 10 ms longer", float64(syncs)/seconds, "1/s"),
		told(fmt.Sprintf("admissions a second, %d clients", clients), n/seconds, "1/s"),
		told("a write until its answer, p50", median(milliseconds(writes)), "ms"),
		held("admissions per fsync", n/float64(syncs), "", atLeast, leastBatch),
	), nil
}

// latency measures what one client's write costs more when it is durable.
func latency(ctx context.Context, s *stage) ([]figure, error) {
	const rounds, length = 5, 2 * time.Second
	storage, err := s.storage("")
	if err != nil {
		return nil, err
	}
	defer s.forget(storage)
	var disk, durable, inMemory, more []float64
	err = s.played(ctx, storage, 3, nil, func(onDisk *daemon, _ []*backend) error {
		return s.played(ctx, "", 3, nil, func(forgets *daemon, _ []*backend) error {
			for round := range rounds + 1 {
				fsyncs, err := fsyncTimes(s.root)
				if err != nil {
					return err
				}
				with, err := load(ctx, onDisk.address, 1, 0, length)
				if err != nil {
					return err
				}
				without, err := load(ctx, forgets.address, 1, 0, length)
				if err != nil {
					return err
				}
				if round == 0 {
					continue // connections open, caches fill
				}
				disk = append(disk, milliseconds(fsyncs)...)
				durable = append(durable, milliseconds(with)...)
				inMemory = append(inMemory, milliseconds(without)...)
				more = append(more, median(milliseconds(with))-median(milliseconds(without))-median(milliseconds(fsyncs)))
			}
			return nil
		})
	})
	return []figure{
		told("the disk's own fsync, p50", median(disk), "ms"),
		told("the disk's own fsync, p99", quantile(disk, 0.99), "ms"),
		told("a write until its answer, durable, p50", median(durable), "ms"),
		told("a write until its answer, durable, p99", quantile(durable, 0.99), "ms"),
		told("a write until its answer, in memory, p50", median(inMemory), "ms"),
		told("a write until its answer, in memory, p99", quantile(inMemory, 0.99), "ms"),
		held("durable − in memory − one fsync, median of rounds", median(more), "ms", atMost, mostOverhead),
	}, err
}

// filled returns a storage with so many writes that wait for the last backend.
func (s *stage) filled(ctx context.Context, writes int) (storage string, seconds float64, err error) {
	backends, err := newBackends(0)
	if err != nil {
		return "", 0, err
	}
	defer closeAll(backends)
	storage = s.file("db")
	began := time.Now()
	err = fill(ctx, storage, writes, backends)
	return storage, time.Since(began).Seconds(), err
}

// restart measures how soon lb is back after kill -9 with 100,000 writes that
// wait for one backend of three, and that one has come back meanwhile.
func restart(ctx context.Context, s *stage) ([]figure, error) {
	const rounds, backlog, drain = 3, 100_000, 3 * time.Second
	full, seconds, err := s.filled(ctx, backlog)
	if err != nil {
		return nil, err
	}
	defer s.forget(full)
	disk, err := fsyncTimes(s.root)
	if err != nil {
		return nil, err
	}
	var answer, known, delivery, rate []float64
	for range rounds {
		storage, err := s.storage(full)
		if err != nil {
			return nil, err
		}
		backends, err := newBackends(2)
		if err != nil {
			return nil, err
		}
		d, err := s.daemon(ctx, storage, backends)
		if err == nil {
			err = d.killedAndStarted(ctx, backlog, drain, func(a, k, f time.Duration, perSecond float64) {
				answer, known = append(answer, a.Seconds()), append(known, k.Seconds())
				delivery, rate = append(delivery, f.Seconds()), append(rate, perSecond)
			})
		}
		closeAll(backends)
		s.forget(storage)
		if err != nil {
			return nil, errors.Join(err, d.kill())
		}
	}
	return append(fsyncFigures(disk),
		told(fmt.Sprintf("%d writes filled in", backlog), seconds, "s"),
		told("from start until the backlog is known, worst", quantile(known, 1), "s"),
		told("deliveries to the revived one, median", median(rate), "1/s"),
		held("from start to the first GET's answer, worst of rounds", quantile(answer, 1), "s", atMost, mostToAnswer),
		held("from start to the first delivery, worst of rounds", quantile(delivery, 1), "s", atMost, mostToDelivery),
	), nil
}

// killedAndStarted is one round of restart.
func (d *daemon) killedAndStarted(ctx context.Context, backlog float64, drain time.Duration,
	tell func(answer, known, first time.Duration, perSecond float64)) error {
	if _, err := d.start(ctx); err != nil {
		return err
	}
	if _, err := load(ctx, d.address, 8, 0, 2*time.Second); err != nil {
		return err
	}
	if err := d.kill(); err != nil {
		return err
	}
	away := d.backends[len(d.backends)-1]
	if err := away.revive(); err != nil {
		return err
	}
	answered, err := d.start(ctx)
	if err != nil {
		return err
	}
	if err := d.known(ctx, backlog/2); err != nil { // some of it may be delivered already
		return err
	}
	known := time.Since(d.began)
	err = until(ctx, 60*time.Second, "the first delivery", func() (bool, error) { return away.writes.Load() > 0, nil })
	if err != nil {
		return err
	}
	before, from := away.writes.Load(), time.Now()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(drain):
	}
	perSecond := float64(away.writes.Load()-before) / time.Since(from).Seconds()
	tell(answered, known, away.firstWrite().Sub(d.began), perSecond)
	return d.stop()
}

// phases are what lb does while its memory is measured.
var phases = []string{"after the start", "while writes go on", "while the backlog drains"}

// inUse is what lb has in memory in one phase, in MiB.
type inUse struct{ resident, live float64 }

// memory measures how much more memory lb takes with a big backlog than with a
// small one.
func memory(ctx context.Context, s *stage) ([]figure, error) {
	const small = 10_000
	big := 100_000
	if s.full {
		big = 1_000_000
	}
	var figures []figure
	var of [2][]inUse
	for i, backlog := range []int{small, big} {
		storage, seconds, err := s.filled(ctx, backlog)
		if err != nil {
			return nil, err
		}
		figures = append(figures, told(fmt.Sprintf("%d writes filled in", backlog), seconds, "s"))
		err = s.played(ctx, storage, 2, nil, func(d *daemon, backends []*backend) error {
			if err := d.known(ctx, float64(backlog)); err != nil {
				return err
			}
			figures = append(figures, told(fmt.Sprintf("from start until %d pending are known", backlog), time.Since(d.began).Seconds(), "s"))
			of[i], err = d.phases(ctx, backends[2])
			return err
		})
		s.forget(storage)
		if err != nil {
			return nil, err
		}
	}
	for i, phase := range phases {
		for j, backlog := range []int{small, big} {
			figures = append(figures, told(fmt.Sprintf("resident, %d pending, %s", backlog, phase), of[j][i].resident, "MiB"))
		}
		figures = append(figures, told("live heap, more, "+phase, of[1][i].live-of[0][i].live, "MiB"))
	}
	for i, phase := range phases {
		figures = append(figures, held("resident, more, "+phase, of[1][i].resident-of[0][i].resident, "MiB", atMost, mostMemory))
	}
	return figures, nil
}

// phases returns the most that lb has in memory in each phase.
func (d *daemon) phases(ctx context.Context, away *backend) (found []inUse, err error) {
	const length = 8 * time.Second
	for i := range phases {
		end := make(chan error, 1)
		go func() {
			var err error
			switch i {
			case 1:
				_, err = load(ctx, d.address, 16, 0, length)
			case 2:
				err = away.revive()
			}
			end <- err
		}()
		most, err := d.most(ctx, length)
		if err := errors.Join(err, <-end); err != nil {
			return nil, err
		}
		found = append(found, most)
	}
	return found, nil
}

// most watches lb's memory for a while.
func (d *daemon) most(ctx context.Context, length time.Duration) (most inUse, err error) {
	for end := time.Now().Add(length); time.Now().Before(end); {
		resident, err := memoryOf(d.cmd.Process.Pid)
		if err != nil {
			return most, err
		}
		samples, err := d.metrics(ctx)
		if err != nil {
			return most, err
		}
		// The next collection comes when what was live at the last has grown by
		// GOGC per cent.
		live := samples["go_memstats_next_gc_bytes"] / (1 + samples["go_gc_gogc_percent"]/100) / (1 << 20)
		most = inUse{max(most.resident, resident), max(most.live, live)}
		select {
		case <-ctx.Done():
			return most, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
	return most, nil
}

// loaded is what one run of neighbour found about the backends that are up.
type loaded struct {
	perSecond float64 // deliveries, when the clients do not rest
	cpu       float64 // of lb a delivery then, in µs
	p50, p99  float64 // from client to backend when they do, in ms
	second    float64 // p99 of the median second
}

// neighbour measures what a dead backend's backlog of 100,000 costs the
// others: pairs of runs with and without it, and some without the dead backend
// for comparison.
func neighbour(ctx context.Context, s *stage) ([]figure, error) {
	const pairs, backlog = 5, 100_000
	full, seconds, err := s.filled(ctx, backlog)
	if err != nil {
		return nil, err
	}
	defer s.forget(full)
	disk, err := fsyncTimes(s.root)
	if err != nil {
		return nil, err
	}
	var with, without, alone []loaded
	for i := range pairs {
		runs := []func() error{
			func() error { return s.loaded(ctx, full, backlog, 3, &with) },
			func() error { return s.loaded(ctx, "", 0, 3, &without) },
		}
		if i%2 == 1 { // A B, B A, A B …: a drift hits both alike
			runs[0], runs[1] = runs[1], runs[0]
		}
		if i%2 == 0 {
			runs = append(runs, func() error { return s.loaded(ctx, "", 0, 2, &alone) })
		}
		for _, run := range runs {
			if err := run(); err != nil {
				return nil, err
			}
		}
	}
	figures := append(fsyncFigures(disk), told(fmt.Sprintf("%d writes filled in", backlog), seconds, "s"))
	for _, one := range []struct {
		name string
		runs []loaded
	}{{"a dead one with a backlog", with}, {"a dead one without", without}, {"no dead one", alone}} {
		figures = append(figures,
			told("deliveries, "+one.name, middle(one.runs, loaded.rate), "1/s"),
			told("lb's CPU time a delivery, "+one.name, middle(one.runs, loaded.work), "µs"),
			told("client to backend, p50, "+one.name, middle(one.runs, loaded.usual), "ms"),
			told("client to backend, p99, "+one.name, middle(one.runs, loaded.slow), "ms"))
	}
	rates, slow := ratios(with, without, loaded.rate), ratios(with, without, loaded.slow)
	return append(figures,
		told("CPU time a delivery, with / without backlog", median(ratios(with, without, loaded.work)), ""),
		told("p50, with / without backlog", median(ratios(with, without, loaded.usual)), ""),
		told("deliveries, with / without, worst pair", quantile(rates, 0), ""),
		told("p99 of the median second, with / without", median(ratios(with, without, loaded.calm)), ""),
		told("p99, with / without, worst pair", quantile(slow, 1), ""),
		held("deliveries, with / without, median of pairs", median(rates), "", atLeast, leastOfThroughput),
		held("p99, with / without, median of pairs", median(slow), "", atMost, mostOfDelay)), nil
}

func (l loaded) rate() float64  { return l.perSecond }
func (l loaded) work() float64  { return l.cpu }
func (l loaded) usual() float64 { return l.p50 }
func (l loaded) slow() float64  { return l.p99 }
func (l loaded) calm() float64  { return l.second }

// middle is the median of one figure of the runs.
func middle(runs []loaded, of func(loaded) float64) float64 {
	var all []float64
	for _, r := range runs {
		all = append(all, of(r))
	}
	return median(all)
}

// ratios are those of one figure, pair by pair.
func ratios(with, without []loaded, of func(loaded) float64) (all []float64) {
	for i := range with {
		all = append(all, of(with[i])/of(without[i]))
	}
	return all
}

// loaded is one run of neighbour: 16 clients, two backends that are up, and a
// dead one if there are three.
func (s *stage) loaded(ctx context.Context, from string, backlog float64, n int, runs *[]loaded) (err error) {
	const clients, warm, length, rest = 16, 1500 * time.Millisecond, 4 * time.Second, 40 * time.Millisecond
	storage, err := s.storage(from)
	if err != nil {
		return err
	}
	defer s.forget(storage)
	backends, err := newBackends(2)
	if err != nil {
		return err
	}
	defer closeAll(backends)
	d, err := s.daemon(ctx, storage, backends[:n])
	if err != nil {
		return err
	}
	if _, err := d.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.known(ctx, backlog); err != nil {
		return err
	}
	if _, err := load(ctx, d.address, clients, 0, warm); err != nil {
		return err
	}
	collect := func() []float64 {
		return append(milliseconds(backends[0].collect()), milliseconds(backends[1].collect())...)
	}
	collect()
	before, err := d.cpuTime()
	if err != nil {
		return err
	}
	if _, err := load(ctx, d.address, clients, 0, length); err != nil {
		return err
	}
	after, err := d.cpuTime()
	if err != nil {
		return err
	}
	deliveries := float64(len(collect()))
	var delays, seconds []float64
	for range int(length / time.Second) {
		if _, err := load(ctx, d.address, clients, rest, time.Second); err != nil {
			return err
		}
		second := collect()
		delays, seconds = append(delays, second...), append(seconds, quantile(second, 0.99))
	}
	*runs = append(*runs, loaded{
		perSecond: deliveries / length.Seconds(), cpu: float64((after - before).Microseconds()) / deliveries,
		p50: median(delays), p99: quantile(delays, 0.99), second: median(seconds),
	})
	return nil
}

package backend

import "sync/atomic"

// trials counts the requests that a backend on trial may still get. A period
// is one set of trials: what is left of an earlier one counts no more.
//
// The word is period (32 bits), left (31 bits), limited (1 bit).
type trials struct{ word atomic.Uint64 }

const (
	limited = 1
	left    = 1<<32 - 1 - limited
)

// SetTrials begins a period of n trials and returns its number, which is never
// 0. Its only caller is the pool, under its lock.
func (b *Backend) SetTrials(n uint32) (period uint32) {
	period = max(1, uint32(b.trials.word.Load()>>32)+1)
	b.trials.word.Store(uint64(period)<<32 | uint64(n)<<1 | limited)
	return period
}

// EndTrials lets every request through again. Its only caller is the pool.
func (b *Backend) EndTrials() { b.trials.word.And(^uint64(limited)) }

// TakeTrial claims a trial of b: ok is false if b is on trial and none is left.
// The period is 0 if b is not on trial. It costs one atomic load then.
func (b *Backend) TakeTrial() (period uint32, ok bool) {
	for {
		w := b.trials.word.Load()
		switch {
		case w&limited == 0:
			return 0, true
		case w&left == 0:
			return 0, false
		case b.trials.word.CompareAndSwap(w, w-1<<1):
			return uint32(w >> 32), true
		}
	}
}

// TrialLeft reports whether TakeTrial would find one now, or b is not on trial.
// It claims nothing.
func (b *Backend) TrialLeft() bool {
	w := b.trials.word.Load()
	return w&limited == 0 || w&left != 0
}

// ReturnTrial gives back a trial that showed nothing, unless its period is over.
func (b *Backend) ReturnTrial(period uint32) {
	for {
		w := b.trials.word.Load()
		if w&limited == 0 || w>>32 != uint64(period) || b.trials.word.CompareAndSwap(w, w+1<<1) {
			return
		}
	}
}

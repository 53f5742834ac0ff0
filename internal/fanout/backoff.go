package fanout

import (
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// Backoff shapes the waits between the attempts of a delivery: before retry
// k = 0, 1, … min(Base·2^k, Cap) + U[0, Jitter]. The formula is the contract's;
// the jitter comes on top of the cap, so that even waits at the cap differ.
type Backoff struct{ Base, Cap, Jitter time.Duration }

// floor returns min(Base·2^k, Cap): retry k's wait without its jitter.
func (b Backoff) floor(k int) time.Duration {
	// Base·2^k <= Cap exactly if Base <= ⌊Cap/2^k⌋, which cannot overflow.
	// Shifting by 63 or more leaves nothing.
	if b.Base > b.Cap>>min(k, 63) {
		return b.Cap
	}
	return b.Base << k
}

// Waits is a Backoff at work, as a backoff.BackOff of cenkalti/backoff: each
// NextBackOff returns the wait before the next retry, drawn anew.
type Waits struct {
	Backoff
	// Retry is k, the number of the next retry. Whoever knows how many
	// attempts were made can set it, so nothing else has to be kept.
	Retry int
	// MaxAttempts stops the retries: after that many attempts, the first one
	// included, NextBackOff returns backoff.Stop. 0 never stops. The engine
	// leaves it 0: there only attempts that reached the backend count.
	MaxAttempts int
	// Draw returns a random duration from 0 to max, both included; nil means
	// a uniform one.
	Draw func(max time.Duration) time.Duration
}

var _ backoff.BackOff = (*Waits)(nil)

// NextBackOff returns the wait before retry Retry, and counts it.
func (w *Waits) NextBackOff() time.Duration {
	if w.MaxAttempts > 0 && w.Retry+1 >= w.MaxAttempts {
		return backoff.Stop
	}
	draw := w.Draw
	if draw == nil {
		draw = uniform
	}
	wait := w.floor(w.Retry) + draw(w.Jitter)
	w.Retry++
	return wait
}

// Reset starts again at retry 0.
func (w *Waits) Reset() { w.Retry = 0 }

// uniform draws from [0, max].
func uniform(max time.Duration) time.Duration {
	if max <= 0 {
		return 0
	}
	return rand.N(max + 1)
}

// retryAfter reads the value of a Retry-After field (RFC 9110 §10.2.3): whole
// seconds or a date. What is neither, or past, is 0.
func retryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if digits := strings.Trim(value, "0123456789"); value != "" && digits == "" {
		seconds, err := strconv.ParseInt(value, 10, 32)
		if err != nil { // more than 68 years: above whatever cap there is
			seconds = math.MaxInt32
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return max(0, at.Sub(now))
}

// Package health decides from what it is told whether a backend is well. Its
// machines are pure: results and the time go in, a verdict comes out. Checks
// judges by the results of probes, Ejection by failed dials.
package health

import "time"

// How long a backend stays out after failed dials: the first failure costs a
// second, enough for most restarts; each further one in a row doubles that, up
// to half a minute, so that a machine that is gone costs next to nothing.
const (
	firstEjection   = time.Second
	longestEjection = 30 * time.Second
)

// Ejection is the connect ejection of one backend: a failed dial takes it out
// at once, for a time that doubles with each failure in a row. The zero value
// is ready. It is not safe for concurrent use.
type Ejection struct {
	suspect bool // a dial has failed since the backend last answered
	step    int  // how many doublings the next failure costs
	until   time.Time
}

// Failed notes a dial that failed at now and returns how long the backend is
// out from then on, or 0 if it is out already: many requests meet the same
// failure at once, and it counts once.
func (e *Ejection) Failed(now time.Time) time.Duration {
	if now.Before(e.until) {
		return 0
	}
	if !e.suspect && now.Sub(e.until) >= longestEjection {
		e.step = 0
	}
	d := longestEjection
	if e.step < 5 { // 1, 2, 4, 8, 16 s, then the longest
		d = firstEjection << e.step
	}
	e.suspect, e.step, e.until = true, e.step+1, now.Add(d)
	return d
}

// Phase says where an ejection stands.
type Phase uint8

// The phases of an ejection.
const (
	// Calm: no dial has failed since the backend last answered.
	Calm Phase = iota
	// Ejected: the backend is out for now.
	Ejected
	// Trying: its time out is over, and nobody has reached it yet.
	Trying
)

// Phase returns where the ejection stands at now.
func (e *Ejection) Phase(now time.Time) Phase {
	switch {
	case !e.suspect:
		return Calm
	case now.Before(e.until):
		return Ejected
	}
	return Trying
}

// Shorten ends the time out at now: there are signs that the backend accepts
// connections again, or soon will. If it does not, the times begin with the
// shortest again.
func (e *Ejection) Shorten(now time.Time) {
	if now.Before(e.until) {
		e.until, e.step = now, 0
	}
}

// Answered notes that the backend answered over an old connection: it works,
// but whether it accepts new ones nobody knows. The next failure counts as one
// more in the row, unless the last time out is over for longer than the longest.
func (e *Ejection) Answered() { e.suspect = false }

// Succeeded notes that the backend was reached: the next failure counts as the
// first again.
func (e *Ejection) Succeeded() { *e = Ejection{} }

// Until returns when the backend may be tried again; the zero time if it was
// never out.
func (e *Ejection) Until() time.Time { return e.until }

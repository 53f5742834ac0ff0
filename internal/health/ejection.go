// Package health decides from what it is told whether a backend is well. Its
// machines are pure: results and the time go in, a verdict comes out.
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
	failures int
	until    time.Time
}

// Failed notes a dial that failed at now and returns how long the backend is
// out from then on, or 0 if it is out already: many requests meet the same
// failure at once, and it counts once.
func (e *Ejection) Failed(now time.Time) time.Duration {
	if now.Before(e.until) {
		return 0
	}
	d := longestEjection
	if e.failures < 5 { // 1, 2, 4, 8, 16 s, then the longest
		d = firstEjection << e.failures
	}
	e.failures++
	e.until = now.Add(d)
	return d
}

// Succeeded notes that the backend was reached: the next failure counts as the
// first again.
func (e *Ejection) Succeeded() { *e = Ejection{} }

// Until returns when the backend may be tried again; the zero time if it was
// never out.
func (e *Ejection) Until() time.Time { return e.until }

package proxy

import (
	"sync"
	"time"
)

// alarm expires a flight when its time is over. A timer for each request is
// dear, so alarms are used again. It belongs to the flight's goroutine.
type alarm struct {
	timer  *time.Timer
	flight *flight
	armed  bool
	fired  bool // ever: its goroutine may still hold the flight
}

// alarms lends alarms out.
var alarms = sync.Pool{New: func() any {
	a := new(alarm)
	a.timer = time.AfterFunc(time.Hour, func() { a.flight.expire() })
	a.timer.Stop()
	return a
}}

// newAlarm returns an alarm that expires f after d.
func newAlarm(f *flight, d time.Duration) *alarm {
	a := alarms.Get().(*alarm)
	a.flight = f
	a.set(d)
	return a
}

// set makes the alarm go off after d.
func (a *alarm) set(d time.Duration) {
	a.armed = true
	a.timer.Reset(d)
}

// stop reports whether the alarm has not gone off, and now will not.
func (a *alarm) stop() bool {
	if a.armed {
		a.armed = false
		a.fired = !a.timer.Stop() || a.fired
	}
	return !a.fired
}

// giveBack ends the use of a. One that went off is not lent out again.
func (a *alarm) giveBack() {
	if a.stop() {
		a.flight = nil
		alarms.Put(a)
	}
}

package config

import (
	"fmt"
	"time"
)

// maxLimit bounds every limit: what is above it is a slip.
const maxLimit = 1_000_000

// limits judges what may be in flight and wait. own says that a backend may
// bring a limit of its own when it registers.
func (v *validator) limits(at string, l Limits, own bool) {
	v.within(at+".per_backend", l.PerBackend, 0, maxLimit)
	v.within(at+".total", l.Total, 0, maxLimit)
	v.within(at+".queue.limit", l.Queue.Limit, 0, maxLimit)
	if most := Duration(time.Hour); l.Queue.Timeout <= 0 || l.Queue.Timeout > most {
		v.fail(at+".queue.timeout", "", "must be more than 0 and at most 1h, and is %s", l.Queue.Timeout)
	}
	v.oneOf(at+".queue.order", "order", l.Queue.Order, QueueFIFO)
	if l.Queue.Limit == 0 && l.Queue != defaultLimits.Queue {
		v.warn(at+".queue", "set limit, or take queue out", "nobody ever waits, because limit is 0")
	}
	if l.Queue.Limit > 0 && l.PerBackend == 0 && l.Total == 0 && !own {
		v.warn(at+".queue", "set per_backend or total", "nobody ever waits, because nothing is limited")
	}
}

// waits warns of queues in which requests may wait longer than their routes let
// them.
func (v *validator) waits() {
	for i, p := range v.config.Pools {
		for j, r := range v.config.Routes {
			if p.Limits.Queue.Limit > 0 && r.Proxy != nil && r.Proxy.Pool == p.Name && r.Proxy.Timeout < p.Limits.Queue.Timeout {
				v.warn(fmt.Sprintf("pools[%d].limits.queue.timeout", i), fmt.Sprintf("write %s or less", r.Proxy.Timeout),
					"no request of routes[%d] %s waits so long: its timeout is %s", j, Quote(r.Name), r.Proxy.Timeout)
				break
			}
		}
	}
}

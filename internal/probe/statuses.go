package probe

import (
	"strconv"
	"strings"
)

// The statuses that a response may end with (RFC 9110 §15).
const (
	leastStatus = 200
	mostStatus  = 599
)

// Statuses is a set of response statuses. The zero value is the empty set; two
// sets are equal if == says so.
type Statuses [(mostStatus-leastStatus)/64 + 1]uint64

// DefaultStatuses are those that a well backend answers with unless the user
// says otherwise: 200-399.
var DefaultStatuses = func() (s Statuses) {
	s.Add(200, 399)
	return s
}()

// Add puts the statuses from one to another, both included, into the set. Those
// outside of 200 to 599 are left out: no response ends with one.
func (s *Statuses) Add(from, to int) {
	for n := max(from, leastStatus); n <= min(to, mostStatus); n++ {
		i := n - leastStatus
		s[i/64] |= 1 << (i % 64)
	}
}

// Contains reports whether status is in the set.
func (s Statuses) Contains(status int) bool {
	i := status - leastStatus
	return i >= 0 && i <= mostStatus-leastStatus && s[i/64]&(1<<(i%64)) != 0
}

// String returns the set as the shortest list of statuses and ranges, such as
// "200-299,401"; the empty set is "".
func (s Statuses) String() string {
	var parts []string
	for from := leastStatus; from <= mostStatus; from++ {
		if !s.Contains(from) {
			continue
		}
		to := from
		for s.Contains(to + 1) {
			to++
		}
		part := strconv.Itoa(from)
		if to > from {
			part += "-" + strconv.Itoa(to)
		}
		parts = append(parts, part)
		from = to
	}
	return strings.Join(parts, ",")
}

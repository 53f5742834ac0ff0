package config

import (
	"fmt"
	"math"
	"slices"
)

// names returns a function that judges one name of a list and remembers it, so
// that a later equal one is a problem.
func (v *validator) names(list string) func(path, name string) {
	seen := make(map[string]int)
	n := -1
	return func(path, name string) {
		n++
		first, taken := seen[name]
		switch {
		case !v.name(path, name):
		case taken:
			v.fail(path, "give it another name", "%s is already the name of %s[%d]", Quote(name), list, first)
		default:
			seen[name] = n
		}
	}
}

// name judges a name or id: it appears in URLs, labels and log lines.
func (v *validator) name(path, name string) bool {
	switch {
	case name == "":
		v.fail(path, "", "is missing")
	case len(name) > 128:
		v.fail(path, "a name has at most 128 bytes", "%s is too long", Quote(name))
	case !only(name, nameBytes+".:[]"):
		v.fail(path, "write letters, digits and any of - _ . :", "%s is not a name", Quote(name))
	default:
		return true
	}
	return false
}

func (v *validator) positive(path string, d Duration) {
	if d <= 0 {
		v.fail(path, "", "must be more than 0")
	}
}

func (v *validator) notNegative(path string, d Duration) {
	if d < 0 {
		v.fail(path, "", "must not be negative, and is %s", d)
	}
}

func (v *validator) positiveSize(path string, s Size) {
	if s <= 0 {
		v.fail(path, "", "must be more than 0")
	}
}

func (v *validator) least(path string, n, least int) {
	if n < least {
		v.fail(path, "", "must be at least %d, and is %d", least, n)
	}
}

func (v *validator) within(path string, n, low, high int) {
	if n < low || n > high {
		v.fail(path, "", "must be from %d to %d, and is %d", low, high, n)
	}
}

func (v *validator) between(path string, f, low, high float64) {
	if math.IsNaN(f) || f < low || f > high {
		v.fail(path, "", "must be from %v to %v, and is %v", low, high, f)
	}
}

func (v *validator) oneOf(path, what, value string, known ...string) {
	switch {
	case slices.Contains(known, value):
	case value == "":
		v.fail(path, DidYouMean(value, known), "is empty")
	default:
		v.fail(path, DidYouMean(value, known), "no %s %s", what, Quote(value))
	}
}

// statuses judges a list of response statuses, each from low to high.
func (v *validator) statuses(path string, list []int, low, high int) {
	seen := make(map[int]bool)
	for i, status := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		if status < low || status > high {
			v.fail(at, "", "must be a status from %d to %d, and is %d", low, high, status)
		} else if seen[status] {
			v.fail(at, "", "%d is in the list twice", status)
		}
		seen[status] = true
	}
}

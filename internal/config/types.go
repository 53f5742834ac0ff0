package config

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// durationUnits is what a user may write after a number.
const durationUnits = "ns, us, ms, s, m or h"

var (
	durationForm = regexp.MustCompile(`^[-+]?(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+$`)
	durationPart = regexp.MustCompile(`^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)([^0-9.+-]*)`)
)

// UnmarshalText reads a duration such as "250ms" or "1h30m"; "0" needs no unit.
// The error says what is wrong with the text: no unit, an unknown one, a
// negative or too large value.
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	v, err := time.ParseDuration(s)
	switch {
	case err != nil && durationForm.MatchString(s):
		return fmt.Errorf("%s is too long; the most is 2562047h", show(s))
	case err != nil:
		return durationError(s)
	case v < 0:
		return fmt.Errorf("must not be negative, and is %s", show(s))
	}
	*d = Duration(v)
	return nil
}

// durationError finds the first part of s that is not a number with a unit.
func durationError(s string) error {
	plain := fmt.Errorf("expects a duration such as 250ms, not %s", show(s))
	for rest := s; rest != ""; {
		part := durationPart.FindStringSubmatch(rest)
		if part == nil {
			return plain
		}
		switch unit := part[1]; unit {
		case "":
			return plain
		case "ns", "us", "µs", "μs", "ms", "s", "m", "h":
			rest = rest[len(part[0]):]
		case "d":
			return fmt.Errorf("unknown unit %q in %s; a day is 24h", unit, show(s))
		default:
			return fmt.Errorf("unknown unit %s in %s; write %s", Quote(unit), show(s), durationUnits)
		}
	}
	return plain
}

// MarshalText writes the shortest form that reads back as d: "1h", not "1h0m0s".
func (d Duration) MarshalText() ([]byte, error) {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return []byte(s), nil
}

// sizeUnits are the units of a Size, largest first.
var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40},
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
}

// UnmarshalText reads a whole number of bytes, plain or with one of the units
// B, KiB, MiB, GiB and TiB. The error says what is wrong with the text: no
// number, a fraction, an unknown unit, a negative or too large value.
func (s *Size) UnmarshalText(text []byte) error {
	t := string(text)
	end := strings.IndexFunc(t, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(t)
	}
	digits, unit := t[:end], t[end:]
	switch {
	case strings.HasPrefix(t, "-"):
		return fmt.Errorf("must not be negative, and is %s", show(t))
	case digits == "":
		return fmt.Errorf("expects a size such as 64KiB, not %s", show(t))
	case strings.HasPrefix(unit, "."):
		return fmt.Errorf("expects a whole number of bytes such as 1536KiB, not %s", show(t))
	}
	factor, ok := sizeFactor(unit)
	if !ok {
		return sizeUnitError(t, digits, unit)
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > math.MaxInt64/factor {
		return fmt.Errorf("%s is too large; the most is 8388607TiB", show(t))
	}
	*s = Size(n * factor)
	return nil
}

func sizeFactor(unit string) (int64, bool) {
	if unit == "" || unit == "B" {
		return 1, true
	}
	for _, u := range sizeUnits {
		if u.name == unit {
			return u.bytes, true
		}
	}
	return 0, false
}

var sizeGuess = regexp.MustCompile(`(?i)^ ?([kmgt])(i?b)?$`)

// sizeUnitError guesses the unit that was meant: 64 kb is 64KiB.
func sizeUnitError(text, digits, unit string) error {
	write := "B, KiB, MiB, GiB or TiB"
	if m := sizeGuess.FindStringSubmatch(unit); m != nil {
		write = digits + strings.ToUpper(m[1]) + "iB"
	} else if strings.EqualFold(strings.TrimSpace(unit), "b") {
		write = digits
	}
	return fmt.Errorf("unknown unit %s in %s; write %s", Quote(unit), show(text), write)
}

// MarshalText writes the size in the largest unit that divides it: "64KiB",
// "1500".
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String writes the size as MarshalText does.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// UnmarshalText reads a policy that is written as its name alone.
func (p *Policy) UnmarshalText(text []byte) error {
	p.Name = string(text)
	return nil
}

// UnmarshalText reads the word that stands for no order.
func (o *OrderBy) UnmarshalText(text []byte) error {
	if string(text) != OrderNone {
		return fmt.Errorf("no order %s; write %s", Quote(string(text)), orderForms)
	}
	*o = OrderBy{}
	return nil
}

// orderForms is what may be written for an OrderBy.
const orderForms = "none, or one of { field: username }, { header: X-User }, { json: /user/id }, { path_segment: 2 }"

var bareNumber = regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?$`)

// show writes a user's text for a message: a number bare, anything else quoted.
func show(text string) string {
	if len(text) <= quoteMost && bareNumber.MatchString(text) {
		return text
	}
	return Quote(text)
}

const quoteMost = 64

// Quote writes a user's text for a message: quoted, and cut where it is longer
// than a message can bear.
func Quote(text string) string {
	if len(text) > quoteMost {
		text = strings.ToValidUTF8(text[:quoteMost], "") + "…"
	}
	return strconv.Quote(text)
}

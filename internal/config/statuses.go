package config

import (
	"fmt"
	"strconv"
	"strings"
)

// StatusRange is the response statuses from From to To, both included.
type StatusRange struct{ From, To int }

// ParseStatuses reads a list of response statuses from 200 to 599 (no answer
// ends with one below) and ranges of them, such as "200-299,401", in the order
// of the text. Blanks may stand around a comma. The error says which part is
// neither.
func ParseStatuses(text string) ([]StatusRange, error) {
	if strings.TrimSpace(text) == "" {
		return nil, fmt.Errorf("is empty: no status could ever pass")
	}
	var ranges []StatusRange
	for part := range strings.SplitSeq(text, ",") {
		r, err := parseStatusRange(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}

func parseStatusRange(part string) (StatusRange, error) {
	low, high, isRange := strings.Cut(part, "-")
	if !isRange {
		high = low
	}
	from, fromOK := parseStatus(low)
	to, toOK := parseStatus(high)
	switch {
	case !fromOK || !toOK:
		return StatusRange{}, fmt.Errorf("%s is neither a status from 200 to 599 nor a range of them", Quote(part))
	case from > to:
		return StatusRange{}, fmt.Errorf("%s begins above its end", Quote(part))
	}
	return StatusRange{From: from, To: to}, nil
}

func parseStatus(text string) (int, bool) {
	status, err := strconv.Atoi(text)
	return status, err == nil && len(text) == 3 && digits(text) && status >= 200 && status <= 599
}

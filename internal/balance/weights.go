package balance

import "lb/internal/backend"

// weighted are backends with the weights that they had when the picker was
// built.
type weighted struct {
	backends []*backend.Backend
	weights  []float64
}

func withWeights(backends []*backend.Backend) weighted {
	w := weighted{backends, make([]float64, len(backends))}
	for i, b := range backends {
		w.weights[i] = float64(b.Weight())
	}
	return w
}

// strength is the weight of the i-th backend, less during its slow start.
func (w *weighted) strength(i int) float64 {
	if share := w.backends[i].Share(); share < backend.FullShare {
		return w.weights[i] * float64(share) / backend.FullShare
	}
	return w.weights[i]
}

// load is what is in flight at the i-th backend for its strength. Equal loads
// are equal as numbers: division rounds equal fractions alike, and there are
// not enough in flight for it to round different ones to the same number.
func (w *weighted) load(i int) float64 {
	return float64(w.backends[i].InFlight()) / w.strength(i)
}

// idles reports whether b is in its slow start and has nothing in flight. Then
// its load is as low as any other, however small its share: so it passes on some
// of its turns, as it does in a rotation.
func idles(b *backend.Backend) bool {
	return b.Share() < backend.FullShare && b.InFlight() == 0
}

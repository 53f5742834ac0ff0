package balance

import (
	"math"
	"sync"

	"github.com/expr-lang/expr/vm"

	"lb/internal/backend"
)

// custom picks the backend with the lowest score, which an expression works out.
type custom struct {
	lowest
	score      *score
	evaluators *sync.Pool
}

func compileCustom(s Spec) (Factory, error) {
	if err := s.foreign(s.BoundedLoad != 0, "bounded_load", "hash"); err != nil {
		return nil, err
	}
	compiled, err := compileScore(s.Score)
	if err != nil {
		return nil, err
	}
	evaluators := &sync.Pool{New: func() any { return newEvaluator() }}
	return func(eligible []*backend.Backend, prev Picker) Picker {
		var former *cursors
		if p, ok := prev.(*custom); ok {
			former = p.cursors
		}
		return &custom{newLowest(eligible, former), compiled, evaluators}
	}, nil
}

func (p *custom) Pick(q *Query) *backend.Backend {
	e := p.evaluators.Get().(*evaluator)
	defer p.evaluators.Put(e)
	return p.pick(q, func(i int) float64 { return p.cost(e, i) })
}

// evaluator is what one pick needs to work out scores.
type evaluator struct {
	machine   vm.VM
	variables map[string]any
}

func newEvaluator() *evaluator {
	return &evaluator{variables: make(map[string]any, len(variables))}
}

// cost is the score of the i-th backend. One that is no number, and one that
// cannot be worked out, costs more than any other.
func (p *custom) cost(e *evaluator, i int) float64 {
	b := p.backends[i]
	for _, name := range p.score.uses {
		e.variables[name] = p.value(name, i, b)
	}
	result, err := e.machine.Run(p.score.program, e.variables)
	if err != nil {
		return math.Inf(1)
	}
	cost := math.NaN()
	switch r := result.(type) {
	case float64:
		cost = r
	case int:
		cost = float64(r)
	}
	if math.IsNaN(cost) {
		return math.Inf(1)
	}
	return min(cost, math.MaxFloat64) // infinite, but a number
}

// value returns what a variable says of b, the i-th backend.
func (p *custom) value(name string, i int, b *backend.Backend) any {
	switch name {
	case "inflight":
		return int(b.InFlight())
	case "weight":
		return p.strength(i)
	case "ewma_ms":
		return b.Speed.Average() / 1e6
	case "error_rate":
		return b.ErrorRate()
	case "queue":
		return b.Queued()
	case "index":
		return i
	default:
		return b.Labels()
	}
}

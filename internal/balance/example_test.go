package balance_test

import (
	"fmt"

	"lb/internal/backend"
	"lb/internal/balance"
)

// nearest is a picker that is compiled in: whoever is in this zone comes before
// the others, in config order.
type nearest struct{ near, far []*backend.Backend }

// newNearest sorts the set once, when it changes. A pick walks two lists.
func newNearest(eligible []*backend.Backend, _ balance.Picker) balance.Picker {
	p := &nearest{}
	for _, b := range eligible {
		if b.Labels()["zone"] == "here" {
			p.near = append(p.near, b)
		} else {
			p.far = append(p.far, b)
		}
	}
	return p
}

func (p *nearest) Pick(q *balance.Query) *backend.Backend {
	for _, list := range [][]*backend.Backend{p.near, p.far} {
		for _, b := range list {
			if q.Take(b) { // claims a slot, unless b is full or failed this request
				return b
			}
		}
	}
	return nil
}

func init() {
	balance.Register(balance.Policy{
		Name:    "nearest",
		Compile: func(balance.Spec) (balance.Factory, error) { return newNearest, nil },
	})
}

// A policy of one's own is a type with one method, a factory, and a line that
// registers it. From then on a pool may say `policy: nearest`.
func ExampleRegister() {
	there, here := &backend.Backend{ID: "there"}, &backend.Backend{ID: "here"}
	here.SetTraits(1, map[string]string{"zone": "here"})
	here.SetLimit(1)

	factory, err := balance.New(balance.Spec{Name: "nearest"})
	if err != nil {
		fmt.Println(err)
		return
	}
	picker := factory([]*backend.Backend{there, here}, nil)
	fmt.Println(picker.Pick(new(balance.Query)).ID)
	fmt.Println(picker.Pick(new(balance.Query)).ID)
	// Output:
	// here
	// there
}

package registration

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"lb/internal/balance"
	"lb/internal/config"
	"lb/internal/outcome"
)

// single is the policy of a pool whose first instance names none.
const single = "single"

// PoolView is what the configuration knows about the pool of a registration.
type PoolView struct {
	// Exists says that the configuration has the pool, Registration that it lets
	// backends register into it.
	Exists, Registration bool
	// Policy is the name of its policy, never an alias.
	Policy string
	// Configured holds the addresses of its backends from the configuration, by
	// id.
	Configured map[string]string
}

// Decision is what a registration or its end comes to. Nothing has happened yet:
// whoever asked stores it, hands it to Commit, and acts on it.
type Decision struct {
	// Instance is what it will be.
	Instance Instance
	// Created says that this is a new registration, rather than another one of
	// an instance that is known at that address.
	Created bool
	// Changed says that there is more to store than when the instance was seen.
	Changed bool
	// Returned says that the id is known of one that had expired or left.
	Returned bool
	// NewPool says that registration makes the pool now, NewPolicy that it is
	// there and gets another policy, which Policy is in any case.
	NewPool, NewPolicy bool
	Policy             string
	// Evicts are those that have to leave, as they will be. One with the id of
	// the new instance was at another address: that id is now the new one's.
	Evicts []Instance

	made bool // the pool is not one of the configuration
}

// Stores returns the instances to store, the evicted ones with them.
func (d *Decision) Stores() []Instance {
	all := []Instance{d.Instance}
	for _, e := range d.Evicts {
		if e.ID != d.Instance.ID {
			all = append(all, e)
		}
	}
	return all
}

// Decide judges a registration and changes nothing. The rules:
//
//   - The pool, id and address of a known instance again: what is said anew is
//     changed, what is not said stays, and one that had expired is back in its
//     place. One that left begins anew, at the end.
//   - The id of a present instance at another address is refused
//     (instance_exists); one that expired or left may come back anywhere.
//   - A pool of the configuration must allow it (registration_disabled), has the
//     policy that it has, and keeps its own backends, forced or not.
//   - A pool made by registration has the policy that its first instance named,
//     as long as one is present: another one is refused
//     (procedure_exists_with_different_invocation_policy), and so is a second
//     instance where that is single (procedure_already_exists).
//   - Force evicts whoever stands in the way.
//   - MaxInstances and MaxPools bound it all (overloaded).
//
// Until the decision is committed or given up, the caller leaves the book alone.
func (b *Book) Decide(now time.Time, r Request, view PoolView) (Decision, *outcome.Error) {
	c := &claim{Request: r, view: view, pool: b.pools[r.Pool], now: now}
	if c.pool == nil {
		c.pool = new(pool)
	}
	c.former = c.pool.known[r.ID]
	for _, rule := range []func() *outcome.Error{c.admitted, c.named, c.conflictOfIDs, c.conflictOfPolicies, c.conflictOfSingles} {
		if err := rule(); err != nil {
			return Decision{}, err
		}
	}
	d := c.decision(b)
	if err := b.room(c, &d); err != nil {
		return Decision{}, err
	}
	return d, nil
}

// claim is one registration under judgement.
type claim struct {
	Request
	view   PoolView
	pool   *pool   // never nil
	former *member // what is known under the id; nil: nothing
	now    time.Time
	policy string
	evicts []Instance
	alone  bool // the others are among evicts
}

// known reports whether the id is that of one that has not left.
func (c *claim) known() bool { return c.former != nil && c.former.State != Left }

// again reports whether this is the same instance, at the same address.
func (c *claim) again() bool { return c.known() && c.former.Address == c.Address }

// others counts who is present in the pool under other ids.
func (c *claim) others() int {
	if c.former != nil && c.former.State == Present {
		return c.pool.present - 1
	}
	return c.pool.present
}

func (c *claim) evict(m *member) {
	in := m.Instance
	in.State, in.LeftAt = Left, c.now
	c.evicts = append(c.evicts, in)
}

func (c *claim) evictOthers() {
	for _, m := range c.pool.members {
		if m.State == Present && m != c.former {
			c.evict(m)
		}
	}
	c.alone = true
}

func refuse(code outcome.Code, format string, args ...any) *outcome.Error {
	return &outcome.Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// admitted judges whether the pool takes registrations.
func (c *claim) admitted() *outcome.Error {
	if c.view.Exists && !c.view.Registration {
		return refuse(outcome.RegistrationDisabled, "pool %q takes only the backends of the configuration; set registration: true there to let others register", c.Pool)
	}
	return nil
}

// named finds the policy that the pool is to have.
func (c *claim) named() *outcome.Error {
	switch {
	case c.view.Exists && (c.Invoke == "" || c.Invoke == c.view.Policy):
		c.policy = c.view.Policy
		return nil
	case c.view.Exists:
		return refuse(outcome.OtherPolicy, "pool %q is one of the configuration and has the policy %s; leave invoke out", c.Pool, c.view.Policy)
	case c.Invoke != "":
		c.policy = c.Invoke
	case c.known():
		c.policy = c.former.Policy
	default:
		c.policy = single
	}
	if needsSettings(c.policy) {
		return invalid(config.Problems{{
			Path: "invoke", Message: fmt.Sprintf("the policy %s needs settings that a registration cannot give", c.policy),
			Suggestion: "name another one, or configure the pool with registration: true",
		}})
	}
	return nil
}

// needsSettings reports whether a name is not enough to make a policy.
func needsSettings(name string) bool {
	policy, _ := balance.Find(name)
	_, err := balance.New(balance.Spec{Name: name})
	return policy.Keyed || err != nil
}

func (c *claim) conflictOfIDs() *outcome.Error {
	if address, taken := c.view.Configured[c.ID]; taken {
		return refuse(outcome.InstanceExists, "%q is a backend of pool %q in the configuration, at %s; register under another id", c.ID, c.Pool, address)
	}
	switch {
	case !c.known() || c.again() || c.former.State == Expired:
		return nil
	case !c.Force:
		return refuse(outcome.InstanceExists, "%q is registered in pool %q at %s; register under another id, or with force to take its place", c.ID, c.Pool, c.former.Address)
	}
	c.evict(c.former)
	return nil
}

func (c *claim) conflictOfPolicies() *outcome.Error {
	bound := c.others()
	if c.again() && c.former.State == Present {
		bound++
	}
	switch {
	case c.view.Exists || bound == 0 || c.policy == c.pool.policy:
		return nil
	case !c.Force:
		unsaid := ""
		if c.Invoke == "" {
			unsaid = ", which stands for " + c.policy + " if it is left out"
		}
		return refuse(outcome.OtherPolicy, "pool %q has the policy %s as long as it has backends; write that as invoke%s, or register with force to evict them",
			c.Pool, c.pool.policy, unsaid)
	}
	c.evictOthers()
	return nil
}

// holder is the id of one that is present beside the claimant.
func (c *claim) holder() string {
	for _, m := range c.pool.members {
		if m.State == Present && m.ID != c.ID {
			return m.ID
		}
	}
	return ""
}

func (c *claim) conflictOfSingles() *outcome.Error {
	switch {
	case c.policy != single:
		return nil
	case len(c.view.Configured) > 0:
		return refuse(outcome.ProcedureExists, "pool %q has the policy single and a backend in the configuration, which stays", c.Pool)
	case c.alone || c.others() == 0:
		return nil
	case !c.Force:
		return refuse(outcome.ProcedureExists, "pool %q has the policy single, and %q has it already; register with force to take its place", c.Pool, c.holder())
	}
	c.evictOthers()
	return nil
}

// decision is what comes of a claim that nothing stands against.
func (c *claim) decision(b *Book) Decision {
	in := Instance{
		Pool: c.Pool, ID: c.ID, Weight: 1, TTL: b.settings.TTL, Order: b.order + 1, First: c.now,
	}
	switch {
	case c.again():
		in = c.former.Instance
	case c.known() && c.former.State == Expired:
		in.Order = c.former.Order
	}
	in.Address, in.Policy, in.State, in.Seen, in.LeftAt = c.Address, c.policy, Present, c.now, time.Time{}
	if c.Weight != nil {
		in.Weight = *c.Weight
	}
	if c.Concurrency != nil {
		in.Concurrency = c.Concurrency
	}
	if c.TTL != nil {
		in.TTL = *c.TTL
	}
	if c.Health != nil {
		in.Health = c.Health
	}
	if c.Labels != nil {
		in.Labels = c.Labels
		if len(in.Labels) == 0 {
			in.Labels = nil
		}
	}
	there := !c.view.Exists && len(c.pool.members) > 0
	d := Decision{
		Instance: in, Created: !c.again(), Returned: c.former != nil && c.former.State != Present,
		NewPool: !c.view.Exists && !there, NewPolicy: there && c.policy != c.pool.policy, Policy: c.policy,
		Evicts: c.evicts, made: !c.view.Exists,
	}
	d.Changed = d.Created || !same(in, c.former.Instance)
	return d
}

// same reports whether a and b differ in nothing but when they were seen.
func same(a, b Instance) bool {
	b.Seen = a.Seen
	return reflect.DeepEqual(a, b)
}

// room judges whether the book may take what was decided.
func (b *Book) room(c *claim, d *Decision) *outcome.Error {
	counts := c.former != nil && c.former.gone == nil
	switch {
	case !counts && b.counted+1-len(d.Evicts) > b.settings.MaxInstances:
		return refuse(outcome.Overloaded, "%d backends are registered, and registration.max_instances is %d", b.counted, b.settings.MaxInstances)
	case d.NewPool && b.made+1 > b.settings.MaxPools:
		return refuse(outcome.Overloaded, "registration has made %d pools, and registration.max_pools is %d", b.made, b.settings.MaxPools)
	}
	return nil
}

// Commit makes what was decided come true.
func (b *Book) Commit(d Decision) {
	for _, e := range d.Evicts {
		if m := b.find(e.Pool, e.ID); m != nil {
			b.set(m, e)
		}
	}
	m := b.member(d.Instance.Pool, d.Instance.ID)
	p := b.pools[m.Pool]
	p.policy = d.Policy
	b.own(p, d.made)
	b.set(m, d.Instance)
	b.order = max(b.order, d.Instance.Order)
}

// set changes m. What was dropped comes back only with a registration.
func (b *Book) set(m *member, in Instance) {
	b.take(m)
	m.Instance, m.dropped = in, m.dropped && in.State != Present
	b.put(m)
}

// Unregister judges the end of a registration and changes nothing, as Decide.
// Where pool is empty, the one is meant that has an instance with the id: it is
// looked for among those that are present, then among those that expired, then
// among those that left, of which nothing needs to be changed any more. The
// errors are ambiguous_instance, naming the pools, and instance_not_found for an
// id that is not known (any more). in names the pools of the configuration that
// have a backend with the id: it cannot be unregistered.
func (b *Book) Unregister(now time.Time, id, pool string, in []string) (Decision, *outcome.Error) {
	var found [3][]*member // by state
	for name, p := range b.pools {
		if m := p.known[id]; m != nil && (pool == "" || pool == name) && !slices.Contains(in, name) {
			found[m.State] = append(found[m.State], m)
		}
	}
	in = slices.DeleteFunc(slices.Clone(in), func(name string) bool { return pool != "" && pool != name })
	switch {
	case len(found[Present]) > 0:
		return b.leave(now, found[Present])
	case len(found[Expired]) > 0:
		return b.leave(now, found[Expired])
	case len(found[Left]) > 1:
		return b.leave(now, found[Left]) // says that it is ambiguous
	case len(found[Left]) > 0:
		m := found[Left][0]
		return Decision{Instance: m.Instance, Policy: b.pools[m.Pool].policy, made: b.pools[m.Pool].made}, nil
	}
	if len(in) > 0 {
		return Decision{}, refuse(outcome.InstanceNotFound, "%q is a backend of pool %q in the configuration; take it out there", id, slices.Min(in))
	}
	where := "anywhere"
	if pool != "" {
		where = fmt.Sprintf("in pool %q", pool)
	}
	return Decision{}, refuse(outcome.InstanceNotFound, "no backend was registered as %q %s within 24h", id, where)
}

// leave decides that the only one of these leaves.
func (b *Book) leave(now time.Time, found []*member) (Decision, *outcome.Error) {
	m := found[0]
	if len(found) > 1 {
		var names []string
		for _, m := range found {
			names = append(names, m.Pool)
		}
		slices.Sort(names)
		return Decision{}, refuse(outcome.AmbiguousInstance, "%q is registered in the pools %s; say which with ?pool=", m.ID, strings.Join(names, ", "))
	}
	in := m.Instance
	in.State = Left
	if !m.dropped { // else it has been away since it expired
		in.LeftAt = now
	}
	return Decision{Instance: in, Changed: true, Policy: b.pools[m.Pool].policy, made: b.pools[m.Pool].made}, nil
}

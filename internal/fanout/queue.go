package fanout

// queue is a binary heap whose items know their place in it, so that any of
// them can be taken out: in O(log n), as everything but min, which is O(1).
type queue[T any] struct {
	items []T
	less  func(a, b T) bool
	// place returns where the item keeps its place: its index plus one, 0
	// while it is not in the queue.
	place func(T) *int
}

// min returns the first item, and false when there is none.
func (q *queue[T]) min() (T, bool) {
	if len(q.items) == 0 {
		var none T
		return none, false
	}
	return q.items[0], true
}

// has reports whether x is in the queue.
func (q *queue[T]) has(x T) bool { return *q.place(x) > 0 }

// push adds x, which must not be in the queue.
func (q *queue[T]) push(x T) {
	q.items = append(q.items, x)
	q.put(len(q.items)-1, x)
	q.up(len(q.items) - 1)
}

// remove takes x out; it does nothing when x is not in the queue.
func (q *queue[T]) remove(x T) {
	if !q.has(x) {
		return
	}
	i, last := *q.place(x)-1, len(q.items)-1
	q.swap(i, last)
	var none T
	q.items[last] = none
	q.items = q.items[:last]
	*q.place(x) = 0
	if i < last {
		q.down(i)
		q.up(i)
	}
}

func (q *queue[T]) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !q.less(q.items[i], q.items[parent]) {
			return
		}
		q.swap(i, parent)
		i = parent
	}
}

func (q *queue[T]) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(q.items) {
			return
		}
		if right := child + 1; right < len(q.items) && q.less(q.items[right], q.items[child]) {
			child = right
		}
		if !q.less(q.items[child], q.items[i]) {
			return
		}
		q.swap(i, child)
		i = child
	}
}

func (q *queue[T]) swap(i, j int) {
	a, b := q.items[i], q.items[j]
	q.put(i, b)
	q.put(j, a)
}

func (q *queue[T]) put(i int, x T) {
	q.items[i] = x
	*q.place(x) = i + 1
}

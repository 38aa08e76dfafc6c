// Package fairqueue holds what waits for a resource, and serves it reader by reader, one item
// each, so that a reader with a thousand items delays another's by one (fair queuing, as in
// RFC 970).
package fairqueue

import "slices"

// A Queue holds items of readers. A reader is any comparable value that is equal for its
// items only. The zero value is empty. It is not safe for concurrent use.
type Queue[T comparable] struct {
	waiting map[any][]T // the items of each reader, in order of arrival
	turns   []any       // the readers that wait, in the order of their turns
}

// IsEmpty reports whether nothing waits.
func (q *Queue[T]) IsEmpty() bool { return len(q.turns) == 0 }

// Push adds the last item of a reader.
func (q *Queue[T]) Push(reader any, item T) {
	if q.waiting == nil {
		q.waiting = map[any][]T{}
	}
	if len(q.waiting[reader]) == 0 {
		q.turns = append(q.turns, reader)
	}
	q.waiting[reader] = append(q.waiting[reader], item)
}

// Next returns the item whose turn is next. The queue must not be empty.
func (q *Queue[T]) Next() T { return q.waiting[q.turns[0]][0] }

// Pop removes and returns the item whose turn is next. The queue must not be empty.
func (q *Queue[T]) Pop() T {
	reader := q.turns[0]
	items := q.waiting[reader]
	q.turns = q.turns[1:]
	if len(items) > 1 {
		q.waiting[reader] = items[1:]
		q.turns = append(q.turns, reader)
	} else {
		delete(q.waiting, reader)
	}
	return items[0]
}

// Remove removes an item, and returns false if it is not in the queue.
func (q *Queue[T]) Remove(reader any, item T) bool {
	i := slices.Index(q.waiting[reader], item)
	if i < 0 {
		return false
	}
	if q.waiting[reader] = slices.Delete(q.waiting[reader], i, i+1); len(q.waiting[reader]) == 0 {
		delete(q.waiting, reader)
		q.turns = slices.DeleteFunc(q.turns, func(other any) bool { return other == reader })
	}
	return true
}

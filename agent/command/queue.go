package command

import "sync"

// queue runs functions: those of one key one after the other in the order in which they came, those of different keys at once, up to a bound.
// What it holds is bounded by who fills it: the bus has at most 64 messages of a topic under way.
type queue struct {
	slots chan struct{}

	mu      sync.Mutex
	waiting map[string][]func() // by key; the key is present while one of its functions runs
}

func newQueue(concurrent int) *queue {
	return &queue{slots: make(chan struct{}, concurrent), waiting: map[string][]func(){}}
}

// add takes f and returns at once.
func (q *queue) add(key string, f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, busy := q.waiting[key]; busy {
		q.waiting[key] = append(q.waiting[key], f)
		return
	}
	q.waiting[key] = nil
	go q.work(key, f)
}

// work runs f and then whatever came for its key meanwhile.
func (q *queue) work(key string, f func()) {
	for f != nil {
		q.slots <- struct{}{}
		f()
		<-q.slots
		f = q.next(key)
	}
}

func (q *queue) next(key string) func() {
	q.mu.Lock()
	defer q.mu.Unlock()
	rest := q.waiting[key]
	if len(rest) == 0 {
		delete(q.waiting, key)
		return nil
	}
	q.waiting[key] = rest[1:]
	return rest[0]
}

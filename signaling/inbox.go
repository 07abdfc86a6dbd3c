package signaling

import "sync"

// An inbox is a queue that never blocks whoever puts something in: the SFU's
// events must not wait for a participant's loop. The loop waits on signal and
// takes everything there is.
type inbox struct {
	signal chan struct{} // has one element when there is something to take

	mu     sync.Mutex // guards the following fields
	items  []any
	closed bool
}

func newInbox() *inbox { return &inbox{signal: make(chan struct{}, 1)} }

// put appends an item and reports whether anybody will still look at it.
func (b *inbox) put(item any) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.items = append(b.items, item)
	select {
	case b.signal <- struct{}{}:
	default:
	}
	return true
}

// putAtMost is put for what may be lost: it declines when limit items wait.
func (b *inbox) putAtMost(limit int, item any) bool {
	b.mu.Lock()
	full := len(b.items) >= limit
	b.mu.Unlock()
	return !full && b.put(item)
}

func (b *inbox) take() []any {
	b.mu.Lock()
	defer b.mu.Unlock()
	items := b.items
	b.items = nil
	return items
}

// close ends the queue and returns what nobody has taken.
func (b *inbox) close() []any {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	items := b.items
	b.items = nil
	return items
}

func (b *inbox) isClosed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}

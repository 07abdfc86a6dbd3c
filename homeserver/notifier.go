package homeserver

import (
	"sync"

	"github.com/trunkhall/trunkhall/matrix"
)

// A notifier wakes the long polls of users. It carries no data: who is woken
// reads the store again. Safe for concurrent use.
type notifier struct {
	mu    sync.Mutex
	waits map[matrix.UserID]map[chan struct{}]struct{}
}

func newNotifier() *notifier {
	return &notifier{waits: make(map[matrix.UserID]map[chan struct{}]struct{})}
}

// wait returns a channel that receives once when the user is woken after this
// call, and a function to give the place back. Call wait before reading the
// store, so that nothing falls between.
func (n *notifier) wait(user matrix.UserID) (woken <-chan struct{}, cancel func()) {
	ch := make(chan struct{}, 1)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.waits[user] == nil {
		n.waits[user] = make(map[chan struct{}]struct{})
	}
	n.waits[user][ch] = struct{}{}
	return ch, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.waits[user], ch)
		if len(n.waits[user]) == 0 {
			delete(n.waits, user)
		}
	}
}

// wake wakes every long poll of the users.
func (n *notifier) wake(users ...matrix.UserID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, u := range users {
		for ch := range n.waits[u] {
			select {
			case ch <- struct{}{}:
			default: // already woken
			}
		}
	}
}

package homeserver

import (
	"sync"
	"time"
)

// uiaLifetime ends sessions of user-interactive authentication.
const uiaLifetime = 15 * time.Minute

// uiaSessions are the open sessions of user-interactive authentication. They do
// not outlive the process: clients start again. Safe for concurrent use.
type uiaSessions struct {
	mu   sync.Mutex
	open map[string]*uiaSession
}

// A uiaSession remembers what its first request was for and which stages are done.
type uiaSession struct {
	purpose   string // method, path and caller of the first request
	body      []byte // of the first request, without auth
	completed []string
	expires   time.Time
}

// sweep ends sessions that are too old.
func (u *uiaSessions) sweep(now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for id, s := range u.open {
		if now.After(s.expires) {
			delete(u.open, id)
		}
	}
}

package homeserver

import (
	"net/url"
	"time"
)

const (
	// maxSticky is how long an event may be sticky (MSC4354).
	maxSticky = time.Hour
	// stickyPerSync is how many sticky events one sync response brings; the
	// others come with the following ones.
	stickyPerSync = 100
)

// stickyParam reads the MSC4354 query parameter, stable or unstable; nil if it
// is absent.
func stickyParam(q url.Values) (*time.Duration, error) {
	for _, name := range []string{"sticky_duration_ms", "org.matrix.msc4354.sticky_duration_ms"} {
		d, ok, err := millis(q.Get(name), q.Has(name), name)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if d > maxSticky {
			return nil, invalidParam("%s: at most %d", name, maxSticky.Milliseconds())
		}
		return &d, nil
	}
	return nil, nil
}

// Package trunk keeps telephone lines working: it registers at providers and
// refreshes that in time, asks each target every so often whether it is there,
// knows which target to try first, and says what is wrong in words that somebody
// can act on.
package trunk

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/dialog"
)

const (
	// penalty is how long a target that failed is tried last.
	penalty = 30 * time.Second
	// answerLimit is how long a target has for an answer. It is shorter than
	// timer F (32 s, RFC 3261 §17.1.2.2): the next target should not wait so long.
	answerLimit = 10 * time.Second
	// refreshAtMost is how often a registration is renewed unless the trunk says
	// otherwise. A registrar that lost it in a restart has it again in a minute.
	refreshAtMost = 50 * time.Second
	// defaultExpires is what is asked for in seconds if the trunk does not say.
	defaultExpires = 600
	// soonest is the shortest time between two registrations that something else
	// than a timer asked for.
	soonest = 5 * time.Second
	// goodbye bounds the end of all registrations when the server stops.
	goodbye = 3 * time.Second
)

// An Endpoint sends requests; *dialog.Endpoint is one.
type Endpoint interface {
	Request(ctx context.Context, m dialog.Message) (dialog.Response, error)
}

// Options are the settings of all trunks.
type Options struct {
	// NAT says that our public address is to be learned from what registrars see
	// (RFC 3581), for trunks without an external_ip.
	NAT bool
	// Changed, if not nil, is called without a lock held when Sources or Public may
	// have changed.
	Changed func()
}

// A Line is a trunk as Trunks needs it.
type Line struct {
	Trunk    call.Trunk
	Source   string         // "config" or "api"
	Contact  string         // user part of our Contact; hard to guess
	Networks []netip.Prefix // further sources of its requests
}

// Trunks keeps lines. Its methods may be used from anywhere, before Run, while it
// runs and after.
type Trunks struct {
	send func(context.Context, dialog.Message) (answer, error)
	o    Options
	log  *slog.Logger
	wait sync.WaitGroup

	mu    sync.Mutex // guards the following fields
	ctx   context.Context
	lines map[string]*keeper
	ended bool
}

// New returns Trunks without a line.
func New(ep Endpoint, o Options, log *slog.Logger) *Trunks {
	return newTrunks(func(ctx context.Context, m dialog.Message) (answer, error) {
		r, err := ep.Request(ctx, m)
		return answer{
			code: r.Code, reason: r.Reason, source: r.Source, seen: r.Seen, elapsed: r.Elapsed, header: r.Headers,
		}, err
	}, o, log)
}

// An answer is a final response.
type answer struct {
	code    int
	reason  string
	source  netip.AddrPort
	seen    netip.AddrPort
	elapsed time.Duration
	header  func(name string) []string
}

func newTrunks(send func(context.Context, dialog.Message) (answer, error), o Options, log *slog.Logger) *Trunks {
	return &Trunks{send: send, o: o, log: log, lines: make(map[string]*keeper)}
}

// Run keeps the lines until ctx ends, then takes back the registrations and
// returns when that is done, after a few seconds at most. The endpoint must serve
// until then.
func (t *Trunks) Run(ctx context.Context) error {
	t.mu.Lock()
	t.ctx = ctx
	for _, k := range t.lines {
		t.start(k)
	}
	t.mu.Unlock()
	<-ctx.Done()
	t.mu.Lock()
	t.ended = true
	t.mu.Unlock()
	t.wait.Wait()
	return nil
}

// start runs a keeper. t.mu is held.
func (t *Trunks) start(k *keeper) {
	ctx, cancel := context.WithCancel(t.ctx)
	k.cancel = cancel
	t.wait.Go(func() {
		defer close(k.done)
		defer cancel()
		if k.before != nil { // what it replaces must take back its registration first
			<-k.before
		}
		k.run(ctx)
	})
}

// Set makes these the lines. Those that have not changed go on as they are; those
// that are not named any more take back their registration.
func (t *Trunks) Set(lines []Line) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, k := range t.lines {
		if !slices.ContainsFunc(lines, func(l Line) bool { return l.Trunk.ID == id }) {
			k.stop()
			delete(t.lines, id)
		}
	}
	for _, l := range lines {
		old := t.lines[l.Trunk.ID]
		if old != nil && reflect.DeepEqual(old.line, l) {
			continue
		}
		k := newKeeper(t, l)
		if old != nil {
			old.stop()
			if old.cancel != nil {
				k.before = old.done
			}
		}
		t.lines[l.Trunk.ID] = k
		if t.ctx != nil && !t.ended {
			t.start(k)
		}
	}
}

func (t *Trunks) keeper(id string) *keeper {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lines[id]
}

func (t *Trunks) keepers() []*keeper {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*keeper, 0, len(t.lines))
	for _, k := range t.lines {
		all = append(all, k)
	}
	return all
}

// State describes a trunk, without the number of its calls. It is the zero value
// if there is none.
func (t *Trunks) State(id string) call.TrunkState {
	if k := t.keeper(id); k != nil {
		return k.state(time.Now())
	}
	return call.TrunkState{}
}

// Targets returns the targets of a trunk in the order in which an INVITE should
// try them: where we are registered first, those that failed lately last.
func (t *Trunks) Targets(id string) []string {
	if k := t.keeper(id); k != nil {
		return k.order(time.Now())
	}
	return nil
}

// Target returns how to send to a target of the trunk.
func (t *Trunks) Target(id, uri string) dialog.Target {
	if k := t.keeper(id); k != nil {
		return k.target(uri)
	}
	return dialog.Target{URI: uri}
}

// Failed tells that a call over a target did not work: code is the final status,
// 0 if there was none. The target is tried last for a while if it did not answer
// or was overloaded; where we seem not to be registered any more, we register.
func (t *Trunks) Failed(id, uri string, code int) {
	if k := t.keeper(id); k != nil {
		k.failed(time.Now(), uri, code)
	}
}

// Worked tells that a target has answered a call.
func (t *Trunks) Worked(id, uri string) {
	if k := t.keeper(id); k != nil {
		k.worked(uri)
	}
}

// Sources returns the addresses from which registrars have answered: calls from
// there are over the trunk.
func (t *Trunks) Sources(id string) []netip.Addr {
	if k := t.keeper(id); k != nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		return slices.Clone(k.sources)
	}
	return nil
}

// Public returns our own address as the trunk's registrar sees it, if it is to be
// learned and has been. It belongs into SDP.
func (t *Trunks) Public(id string) netip.Addr {
	if k := t.keeper(id); k != nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.public.Addr()
	}
	return netip.Addr{}
}

// Refresh registers and asks all targets of a trunk now, and returns the state
// after that. It is what "trunkhall sip check" sees.
func (t *Trunks) Refresh(ctx context.Context, id string) (call.TrunkState, error) {
	k := t.keeper(id)
	if k == nil {
		return call.TrunkState{}, fmt.Errorf("trunk %s: %w", id, call.ErrNotFound)
	}
	if err := k.refresh(ctx); err != nil {
		return call.TrunkState{}, err
	}
	return k.state(time.Now()), nil
}

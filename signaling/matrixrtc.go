package signaling

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
	"github.com/trunkhall/trunkhall/sfu"
)

const (
	// mintedKept is how long it is remembered for whom a token was made. It is
	// renewed for participants that stay, whose tokens are renewed too.
	mintedKept = 24 * time.Hour

	// floorKept is how long a revocation is remembered: longer than any token
	// that this server makes.
	floorKept = 30 * 24 * time.Hour

	sweepEvery = time.Hour
)

// matrixRTC is the MatrixRTC half of the signaling: it hands tokens to members
// of Matrix rooms, keeps everybody else out of their calls, and keeps delegated
// leaves (MSC4195). Made by newMatrixRTC; run serves until its context is done.
type matrixRTC struct {
	rooms Rooms
	store Store
	url   func() string // what clients are told to connect to
	ttl   time.Duration // of minted tokens
	evict func(call.RoomName, call.Identity, sfu.Reason)
	mint  func(call.Grant, time.Duration) (string, error)
	noICE func(user string) // ends a participant's TURN credentials
	log   *slog.Logger

	openID    *openIDVerifier
	leaves    *delegations
	perUser   *rateLimits
	perServer *rateLimits
	stopWatch func()
	work      workQueue

	mu      sync.Mutex // guards present
	present map[rtcKey]bool

	// seen hears of participants that join and leave, if it is set; it must not
	// block. Set before run.
	seen func(p rtcKey, here bool)
}

// newMatrixRTC returns the MatrixRTC half. evict removes a participant from the
// SFU; mint signs a grant. It watches memberships from now on.
func newMatrixRTC(cfg Config, deps Deps, evict func(call.RoomName, call.Identity, sfu.Reason), mint func(call.Grant, time.Duration) (string, error)) (*matrixRTC, error) {
	if deps.Rooms == nil {
		return nil, errors.New("no homeserver")
	}
	if deps.Store == nil {
		return nil, errors.New("no store")
	}
	if deps.LiveKitURL == nil {
		return nil, errors.New("no LiveKit URL")
	}
	log := deps.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if deps.RevokeICE == nil {
		deps.RevokeICE = func(string) {}
	}
	m := &matrixRTC{
		rooms: deps.Rooms, store: deps.Store, url: deps.LiveKitURL, ttl: cfg.TokenTTL,
		evict: evict, mint: mint, noICE: deps.RevokeICE, log: log,
		openID: newOpenIDVerifier(),
		leaves: newDelegations(deps.Rooms, deps.Store, cfg.LeaveGrace, log),
		// A client asks two or three times for each join, and again for each
		// reconnect of a call that has lost its server.
		perUser:   newRateLimits(2, 60),
		perServer: newRateLimits(1, 30),
		work:      workQueue{wake: make(chan struct{}, 1), closed: make(chan struct{})},
		present:   map[rtcKey]bool{},
	}
	m.stopWatch = deps.Rooms.WatchMemberships(m.membershipChanged)
	return m, nil
}

// run serves until ctx is done: it evicts whom the Matrix room no longer has
// and follows the delegated leaves.
func (m *matrixRTC) run(ctx context.Context) error {
	defer m.leaves.wait()
	defer m.work.close()
	defer m.stopWatch()
	if err := m.leaves.start(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("take up delegated leaves: %w", err)
	}
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		m.work.runAll(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-m.work.wake:
		case <-sweep.C:
			m.sweep(ctx)
		}
	}
}

// check reports whether the bearer of g may be in its room: the token is not
// older than the participant's revocation, and for identities of a Matrix call
// the user is joined and the device still exists. The error wraps
// call.ErrForbidden if not.
func (m *matrixRTC) check(ctx context.Context, g call.Grant) error {
	floor, err := m.store.Floor(ctx, g.Room, g.Identity)
	if err != nil {
		return err
	}
	if g.NotBefore.Before(floor) {
		return fmt.Errorf("token was revoked: %w", call.ErrForbidden)
	}
	who, err := m.store.Minted(ctx, g.Room, g.Identity)
	if errors.Is(err, call.ErrNotFound) {
		return nil // not of a Matrix call: the API key's owner made this token
	}
	if err != nil {
		return err
	}
	return m.allowed(ctx, matrix.RoomID(who.RoomID), matrix.UserID(who.UserID), matrix.DeviceID(who.DeviceID))
}

// here hears that a participant has joined or resumed. Whoever was removed from
// the Matrix room between check and join is found out now.
func (m *matrixRTC) here(room call.RoomName, id call.Identity) {
	p := rtcKey{room, id}
	m.mu.Lock()
	m.present[p] = true
	m.mu.Unlock()
	m.leaves.presence(p, true)
	m.work.add(func(ctx context.Context) { m.recheck(ctx, p) })
	if m.seen != nil {
		m.seen(p, true)
	}
}

// gone hears that a participant has finally left.
func (m *matrixRTC) gone(room call.RoomName, id call.Identity, _ bool) {
	p := rtcKey{room, id}
	m.mu.Lock()
	delete(m.present, p)
	m.mu.Unlock()
	m.leaves.presence(p, false)
	if m.seen != nil {
		m.seen(p, false)
	}
}

// allowed returns nil if the user is joined to the room and has the device.
// Unknown rooms and rooms without the user are the same to the outside.
func (m *matrixRTC) allowed(ctx context.Context, room matrix.RoomID, user matrix.UserID, device matrix.DeviceID) error {
	membership, err := m.rooms.Membership(ctx, room, user)
	if err != nil && !errors.Is(err, call.ErrNotFound) {
		return fmt.Errorf("membership of %s: %w", user, err)
	}
	if err != nil || membership != matrix.MembershipJoin {
		return fmt.Errorf("not joined to the room: %w", call.ErrForbidden)
	}
	known, err := m.rooms.DeviceExists(ctx, user, device)
	if err != nil && !errors.Is(err, call.ErrNotFound) {
		return fmt.Errorf("device of %s: %w", user, err)
	}
	if err != nil || !known {
		return fmt.Errorf("unknown device: %w", call.ErrForbidden)
	}
	return nil
}

func (m *matrixRTC) recheck(ctx context.Context, p rtcKey) {
	who, err := m.store.Minted(ctx, p.room, p.id)
	if errors.Is(err, call.ErrNotFound) {
		return
	}
	if err == nil {
		err = m.allowed(ctx, matrix.RoomID(who.RoomID), matrix.UserID(who.UserID), matrix.DeviceID(who.DeviceID))
	}
	switch {
	case err == nil:
	case errors.Is(err, call.ErrForbidden):
		m.log.Info("removing a participant that may not be here any more", "room", p.room, "participant", p.id)
		m.revoke(ctx, p.room, p.id)
	case ctx.Err() == nil:
		m.log.Warn("check participant", "room", p.room, "participant", p.id, "err", err)
	}
}

// membershipChanged is called by the homeserver: it only notes the work.
func (m *matrixRTC) membershipChanged(c matrix.MembershipChange) {
	if c.To == matrix.MembershipJoin || m.isPhone(c.User) { // the PhoneDirectory looks after its own
		return
	}
	m.work.add(func(ctx context.Context) {
		all, err := m.store.MintedFor(ctx, string(c.Room), string(c.User))
		if err != nil {
			m.log.Error("find participants of a user who left", "room_id", c.Room, "user", c.User, "err", err)
		}
		for _, who := range all {
			m.revoke(ctx, who.Room, who.Identity)
		}
	})
}

// isPhone reports whether a user is a ghost of the telephone gateway.
func (m *matrixRTC) isPhone(user matrix.UserID) bool {
	return user.Server() == m.rooms.ServerName() && strings.HasPrefix(user.Localpart(), ghostPrefix)
}

// revoke makes every token of a participant dead that exists by now, removes
// the participant, and ends its TURN relays.
func (m *matrixRTC) revoke(ctx context.Context, room call.RoomName, id call.Identity) {
	if err := m.revokeBefore(ctx, room, id, nextSecond(time.Now())); err != nil && ctx.Err() == nil {
		m.log.Error("revoke tokens", "room", room, "participant", id, "err", err)
	}
}

// nextSecond is the floor that kills the tokens of now: nbf counts in seconds,
// so tokens of this second die too, and one that is minted later in it becomes
// valid with the next.
func nextSecond(now time.Time) time.Time { return now.Truncate(time.Second).Add(time.Second) }

// revokeBefore is revoke for the tokens that became valid before floor. The
// participant is removed even if the floor could not be kept.
func (m *matrixRTC) revokeBefore(ctx context.Context, room call.RoomName, id call.Identity, floor time.Time) error {
	err := m.store.RaiseFloor(ctx, room, id, floor, time.Now().Add(floorKept))
	m.evict(room, id, sfu.ReasonParticipantRemoved)
	if !m.elsewhere(room, id) {
		m.noICE(string(id))
	}
	return err
}

// elsewhere reports whether a participant is in another room too: the identity
// of the legacy /sfu/get is the same in all, and so are its TURN credentials.
func (m *matrixRTC) elsewhere(room call.RoomName, id call.Identity) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range m.present {
		if p.id == id && p.room != room {
			return true
		}
	}
	return false
}

// sweep keeps what is known of those who are here and forgets what has expired.
func (m *matrixRTC) sweep(ctx context.Context) {
	m.mu.Lock()
	here := make([]rtcKey, 0, len(m.present))
	for p := range m.present {
		here = append(here, p)
	}
	m.mu.Unlock()
	now := time.Now()
	for _, p := range here {
		if err := m.store.ExtendMinted(ctx, p.room, p.id, now.Add(mintedKept)); err != nil {
			m.log.Warn("keep call identity", "err", err)
			return // forget nothing that may still be needed
		}
	}
	if err := m.store.ForgetExpired(ctx, now); err != nil {
		m.log.Warn("sweep call identities", "err", err)
	}
}

// An admission is a verified wish to join a call.
type admission struct {
	room     matrix.RoomID
	slot     string
	user     matrix.UserID
	device   matrix.DeviceID
	identity call.Identity
	leave    *delayedLeave // nil: no delegation wanted
}

// A delayedLeave names a delayed event that the server shall keep and send.
type delayedLeave struct {
	id    string
	delay time.Duration
}

// admit returns a token for a. It runs after all membership changes that were
// announced before, so that none of them can take the new token for an old one.
func (m *matrixRTC) admit(ctx context.Context, a admission) (token string, err error) {
	err = m.work.do(ctx, func(ctx context.Context) error {
		if err := m.allowed(ctx, a.room, a.user, a.device); err != nil {
			return err
		}
		name := mediaRoom(a.room, a.slot)
		if err := m.delegateLeave(ctx, name, a); err != nil {
			return err
		}
		now := time.Now()
		err := m.store.SaveMinted(ctx, call.Minted{
			Room: name, Identity: a.identity, RoomID: string(a.room), UserID: string(a.user),
			DeviceID: string(a.device), Expires: now.Add(mintedKept),
		})
		if err != nil {
			return err
		}
		floor, err := m.store.Floor(ctx, name, a.identity)
		if err != nil {
			return err
		}
		notBefore := now.Truncate(time.Second)
		if notBefore.Before(floor) {
			notBefore = floor
		}
		token, err = m.mint(call.Grant{
			Room: name, Identity: a.identity,
			CanPublish: true, CanSubscribe: true, CanPublishData: true,
			NotBefore: notBefore,
		}, m.ttl)
		return err
	})
	return token, err
}

// delegate takes over a.leave and nothing else.
func (m *matrixRTC) delegate(ctx context.Context, a admission) error {
	return m.work.do(ctx, func(ctx context.Context) error {
		if err := m.allowed(ctx, a.room, a.user, a.device); err != nil {
			return err
		}
		return m.delegateLeave(ctx, mediaRoom(a.room, a.slot), a)
	})
}

// delegateLeave takes over a.leave, if there is one and it is the user's own in
// that room. The delay is the event's, whatever the client says of it.
func (m *matrixRTC) delegateLeave(ctx context.Context, name call.RoomName, a admission) error {
	if a.leave == nil {
		return nil
	}
	ev, err := m.rooms.DelayedEvent(ctx, a.leave.id)
	if err != nil && !errors.Is(err, call.ErrNotFound) {
		return fmt.Errorf("delayed event: %w", err)
	}
	if err != nil || ev.UserID != a.user || ev.RoomID != a.room {
		// One that has been sent already, too. Clients that get M_BAD_JSON ask
		// again without the delegation.
		return fmt.Errorf("delay_id is no scheduled event of yours in this room: %w", call.ErrInvalid)
	}
	delay := ev.Delay
	if delay <= 0 {
		delay = a.leave.delay
	}
	return m.leaves.delegate(ctx, call.Delegation{
		Room: name, Identity: a.identity, RoomID: string(a.room), UserID: string(a.user),
		DelayID: a.leave.id, Delay: delay, Created: time.Now(),
	})
}

// workQueue runs functions one after the other on the goroutine of run.
type workQueue struct {
	wake   chan struct{} // holds one: there is work
	closed chan struct{} // closed when run has ended

	mu    sync.Mutex // guards items
	items []func(context.Context)
}

// add appends f. It never blocks.
func (q *workQueue) add(f func(context.Context)) {
	q.mu.Lock()
	q.items = append(q.items, f)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// do runs f after everything that was added before and returns its error. It
// does not wait longer than ctx: f may still run then.
func (q *workQueue) do(ctx context.Context, f func(context.Context) error) error {
	done := make(chan error, 1)
	q.add(func(context.Context) {
		if err := ctx.Err(); err != nil {
			done <- err
			return
		}
		done <- f(ctx)
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", call.ErrUnavailable, ctx.Err())
	case <-q.closed:
		return fmt.Errorf("server is stopping: %w", call.ErrUnavailable)
	}
}

func (q *workQueue) runAll(ctx context.Context) {
	for ctx.Err() == nil {
		q.mu.Lock()
		if len(q.items) == 0 {
			q.mu.Unlock()
			return
		}
		f := q.items[0]
		q.items[0] = nil
		q.items = q.items[1:]
		q.mu.Unlock()
		f(ctx)
	}
}

func (q *workQueue) close() { close(q.closed) }

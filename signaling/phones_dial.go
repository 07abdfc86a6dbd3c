package signaling

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// A roomWatch hears what somebody waits for in a room.
type roomWatch struct {
	came     chan struct{}       // holds one: somebody has come into the call
	declines chan matrix.EventID // notifications that were declined
	user     matrix.UserID       // whose declines count
}

// A directCall is a call that began because a user came into the call of the
// conversation with a phone. It ends when the user goes.
type directCall struct {
	leg    call.LegID // empty until the gateway has begun
	hangUp bool       // the user was gone before that
}

// membershipChanged is called by the homeserver and must be quick.
func (d *PhoneDirectory) membershipChanged(c matrix.MembershipChange) {
	d.pokeKeys(c.Room)
	if !d.isPhone(c.User) {
		return
	}
	g := ghostRoom{c.User, c.Room}
	switch c.To {
	case matrix.MembershipInvite:
		d.mu.Lock()
		ours := d.expected[g] > 0
		d.mu.Unlock()
		if !ours && !d.isPhone(c.Sender) {
			d.work.add(func(ctx context.Context) { d.invited(ctx, g, c.Sender) })
		}
	case matrix.MembershipLeave, matrix.MembershipBan:
		d.thrownOut(g)
	}
}

// eventStored is called by the homeserver and must be quick.
func (d *PhoneDirectory) eventStored(e matrix.StoredEvent) {
	switch e.Type {
	case callMemberType:
		if device, ok := activeMember(&e, time.Now()); ok && !hasCreated(&e) {
			d.joinedAnew(e.RoomID, userDevice{e.Sender, device})
		}
		d.pokeKeys(e.RoomID)
	case declineType:
		parent, _, _ := e.RelatesTo()
		d.mu.Lock()
		defer d.mu.Unlock()
		for w := range d.watched[e.RoomID] {
			if w.user != e.Sender {
				continue
			}
			select {
			case w.declines <- parent:
			default: // nobody declines that often
			}
		}
	}
}

// participantSeen hears of people who come into calls and leave them.
func (d *PhoneDirectory) participantSeen(p rtcKey, here bool) {
	d.work.add(func(ctx context.Context) {
		who, err := d.store.Minted(ctx, p.room, p.id)
		if errors.Is(err, call.ErrNotFound) {
			return // of a media room
		}
		if err != nil {
			d.log.Warn("whose participant this is", "room", p.room, "err", err)
			return
		}
		room, user := matrix.RoomID(who.RoomID), matrix.UserID(who.UserID)
		d.joinedAnew(room, userDevice{user, matrix.DeviceID(who.DeviceID)})
		d.pokeKeys(room)
		if !here {
			d.userGone(p.room, room)
			return
		}
		d.mu.Lock()
		for w := range d.watched[room] {
			select {
			case w.came <- struct{}{}:
			default:
			}
		}
		d.mu.Unlock()
		if p.room == mediaRoom(room, legacySlot) {
			d.userCame(ctx, p.room, room, user)
		}
	})
}

// watch begins to hear what happens in a room; the returned function ends it.
func (d *PhoneDirectory) watch(room matrix.RoomID, user matrix.UserID) (*roomWatch, func()) {
	w := &roomWatch{came: make(chan struct{}, 1), declines: make(chan matrix.EventID, 8), user: user}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.watched[room] == nil {
		d.watched[room] = map[*roomWatch]bool{}
	}
	d.watched[room][w] = true
	return w, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.watched[room], w)
		if len(d.watched[room]) == 0 {
			delete(d.watched, room)
		}
	}
}

// occupied reports whether a client, not a phone, is in a media room.
func (d *PhoneDirectory) occupied(room call.RoomName) bool {
	m := d.s.rtc
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range m.present {
		if p.room == room {
			return true
		}
	}
	return false
}

// takeLine reserves the conversation of a user and a phone for one call, until
// giveLine or, if the phone then sits there, until it has left. All who show no
// number share a ghost: the next of them must not come into the call of another.
func (d *PhoneDirectory) takeLine(room matrix.RoomID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for p := range d.seats {
		if p.room == room {
			return false
		}
	}
	if d.lines[room] {
		return false
	}
	d.lines[room] = true
	return true
}

func (d *PhoneDirectory) giveLine(room matrix.RoomID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.lines, room)
}

// Ring lets a Matrix user's clients ring in the user's conversation with the
// phone, and returns the phone's seat there when the user has come into the
// call. call.ErrForbidden: declined or busy; call.ErrUnavailable: no answer in time;
// call.ErrNotFound: no such user.
func (d *PhoneDirectory) Ring(ctx context.Context, user string, phone call.Phone, timeout time.Duration) (call.Seat, error) {
	if d.ghosts == nil {
		return call.Seat{}, fmt.Errorf("there are no Matrix users here: %w", call.ErrNotFound)
	}
	if timeout <= 0 || timeout > ringLifetime {
		timeout = ringLifetime
	}
	callee := matrix.UserID(user)
	if _, err := d.ghosts.Account(ctx, callee); err != nil {
		return call.Seat{}, err
	}
	local, _, profile := d.ghostOf(phone)
	ghost, err := d.ghosts.EnsureGhost(ctx, local, profile)
	if err != nil {
		return call.Seat{}, err
	}
	room, err := d.ghosts.DirectRoom(ctx, ghost, callee)
	if err != nil {
		return call.Seat{}, err
	}
	at, err := d.place(ctx, room)
	if err != nil {
		return call.Seat{}, err
	}
	if !d.takeLine(room) {
		return call.Seat{}, fmt.Errorf("the user is on the line with this number: %w", call.ErrForbidden)
	}
	defer d.giveLine(room)
	w, stop := d.watch(room, callee)
	defer stop()
	p, err := d.newSeat(ctx, at, phone)
	if err == nil {
		err = p.enter(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("the caller gave up: %w: %w", call.ErrUnavailable, err)
		}
		return call.Seat{}, err
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		if d.occupied(at.Room) {
			return p.seat(), nil
		}
		select {
		case <-w.came:
			continue
		case id := <-w.declines:
			if id != p.ring {
				continue
			}
			err = fmt.Errorf("the user declined the call: %w", call.ErrForbidden)
		case <-timer.C:
			err = fmt.Errorf("the user did not answer: %w", call.ErrUnavailable)
		case <-ctx.Done():
			err = fmt.Errorf("the caller gave up: %w: %w", call.ErrUnavailable, ctx.Err())
		}
		p.leave(ctx)
		return call.Seat{}, err
	}
}

// invited follows the invitation of a phone by a user: the phone is called into
// the room. In a conversation of two it is only taken in, and called when the
// user begins a call there: opening a chat must not let a telephone ring.
func (d *PhoneDirectory) invited(ctx context.Context, g ghostRoom, by matrix.UserID) {
	direct := false
	if e, err := d.ghosts.RoomStateEvent(ctx, g.room, "m.room.member", string(g.ghost)); err == nil && e != nil {
		var c struct {
			IsDirect   bool              `json:"is_direct"`
			Membership matrix.Membership `json:"membership"`
		}
		contentOf(e, &c)
		if c.Membership != matrix.MembershipInvite {
			return // taken back
		}
		direct = c.IsDirect
	}
	d.begin(func(ctx context.Context) {
		d.ref(g)
		defer d.release(g)
		digits := d.phoneDigits(g.ghost)
		switch {
		case d.s.phones == nil || digits == "":
			d.decline(ctx, g, "This server has no telephones.")
		case direct:
			d.takeIn(ctx, g, by)
		default:
			d.dial(ctx, g, by, nil)
		}
	})
}

// takeIn lets a phone accept the invitation to a conversation.
func (d *PhoneDirectory) takeIn(ctx context.Context, g ghostRoom, by matrix.UserID) {
	if acc, err := d.ghosts.Account(ctx, by); err != nil || acc.Guest {
		d.decline(ctx, g, "Guests may not call telephones.")
		return
	}
	if err := d.bringIn(ctx, g, "", "", func() {}); err != nil {
		d.log.Info("a phone could not accept an invitation", "room_id", g.room, "err", err)
		return
	}
	d.notice(ctx, g, "Begin a call here to call this number.")
}

// ref adds a reason for a ghost to be in a room.
func (d *PhoneDirectory) ref(g ghostRoom) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refs[g]++
}

// release ends a reason for a ghost to be in a room and takes it out of it if
// that was the last, unless it is a conversation with one user.
func (d *PhoneDirectory) release(g ghostRoom) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.ctx), leaveTime)
	defer cancel()
	turn := d.turn(g)
	turn.Lock()
	defer turn.Unlock()
	if !d.unref(g) {
		return
	}
	m, err := d.s.deps.Rooms.Membership(ctx, g.room, g.ghost)
	if err != nil || m != matrix.MembershipJoin && m != matrix.MembershipInvite {
		return
	}
	if direct, err := d.alone(ctx, g.room, g.ghost); err == nil && direct && m == matrix.MembershipJoin {
		return
	}
	if err := d.ghosts.SetMembershipOf(ctx, g.room, g.ghost, g.ghost, matrix.MembershipLeave, "", ""); err != nil {
		d.log.Info("take a phone out of a room", "room_id", g.room, "err", err)
	}
}

// decline refuses an invitation with words.
func (d *PhoneDirectory) decline(ctx context.Context, g ghostRoom, why string) {
	if err := d.ghosts.SetMembershipOf(ctx, g.room, g.ghost, g.ghost, matrix.MembershipLeave, "", why); err != nil {
		d.log.Info("decline an invitation of a phone", "room_id", g.room, "err", err)
	}
}

// notice says something in a room as the ghost, which comes in for it if it has
// been invited.
func (d *PhoneDirectory) notice(ctx context.Context, g ghostRoom, words string) {
	err := d.bringIn(ctx, g, "", "", func() {})
	if err == nil {
		_, err = d.ghosts.SendMessageAs(ctx, g.room, g.ghost, "", "m.room.message", map[string]any{"msgtype": "m.notice", "body": words})
	}
	if err != nil {
		d.log.Info("say in a room what became of a call", "room_id", g.room, "err", err)
	}
}

// dial calls a phone into a room and says there if nothing comes of it. begun, if
// not nil, hears which leg it is. The caller holds a reason for the ghost to be
// there.
func (d *PhoneDirectory) dial(ctx context.Context, g ghostRoom, by matrix.UserID, begun func(call.LegID)) {
	number := phoneNumber(d.phoneDigits(g.ghost))
	err := d.MayDial(ctx, string(by), string(g.room))
	var leg call.Leg
	if err == nil {
		leg, err = d.s.phones.Dial(ctx, call.DialRequest{
			Room: mediaRoom(g.room, legacySlot), RoomID: string(g.room), By: string(by), Number: number,
		})
	}
	if err != nil {
		d.log.Info("a phone that was invited could not be called", "room_id", g.room, "by", by, "err", err)
		words := whyNot(err)
		if leg.Text != "" { // the gateway's own words for people
			words = "not called. " + leg.Text
		}
		d.notice(ctx, g, d.displayNumber(d.phoneDigits(g.ghost))+": "+words)
		return
	}
	if begun != nil {
		begun(leg.ID)
	}
	for leg.Answered.IsZero() && leg.State != call.LegEnded {
		next, err := d.s.phones.Wait(ctx, leg.ID, leg.State)
		if err != nil || ctx.Err() != nil {
			return
		}
		leg = next
	}
	if leg.Answered.IsZero() && leg.Cause != call.CauseCancelled && leg.Cause != call.CauseShutdown {
		d.notice(ctx, g, d.displayNumber(d.phoneDigits(g.ghost))+": "+outcome(leg))
	}
}

// whyNot says for people why a call was not even tried.
func whyNot(err error) string {
	text := err.Error()
	for _, kind := range call.Kinds() {
		if errors.Is(err, kind) {
			text = strings.TrimSuffix(text, ": "+kind.Error())
		}
	}
	return "not called. " + text
}

// outcome says for people why nobody answered.
func outcome(leg call.Leg) string {
	switch leg.Cause {
	case call.CauseBusy:
		return "busy."
	case call.CauseNoAnswer:
		return "no answer."
	case call.CauseRejected:
		return "the call was rejected."
	case call.CauseWrongNumber:
		return "this number does not exist."
	case call.CauseNoLine:
		return "no line is free."
	case call.CauseNotAllowed, call.CauseLimit:
		return "not allowed. " + leg.Text
	}
	if leg.Text != "" {
		return "the call failed. " + leg.Text
	}
	return "the call failed."
}

// userCame calls the phone of a conversation when the user begins a call there.
func (d *PhoneDirectory) userCame(ctx context.Context, name call.RoomName, room matrix.RoomID, user matrix.UserID) {
	if d.s.phones == nil {
		return
	}
	for _, p := range d.seated() {
		if p.room == room {
			return // the phone is there already: it rings here, or has been called
		}
	}
	members, err := d.ghosts.RoomMembers(ctx, room)
	if err != nil {
		d.log.Warn("who is in a conversation", "room_id", room, "err", err)
		return
	}
	var ghost matrix.UserID
	for _, m := range members {
		switch {
		case m.Membership != matrix.MembershipJoin && m.Membership != matrix.MembershipInvite, m.User == user:
		case ghost == "" && d.phoneDigits(m.User) != "" && m.Membership == matrix.MembershipJoin:
			ghost = m.User
		default:
			return // not a conversation of two
		}
	}
	if ghost == "" {
		return
	}
	c := &directCall{}
	d.mu.Lock()
	if d.directs[name] != nil || d.lines[room] {
		d.mu.Unlock()
		return
	}
	d.directs[name] = c
	d.mu.Unlock()
	begun := d.begin(func(ctx context.Context) {
		g := ghostRoom{ghost, room}
		d.ref(g)
		defer d.release(g)
		defer d.endDirect(name, c)
		d.dial(ctx, g, user, func(leg call.LegID) {
			d.mu.Lock()
			c.leg = leg
			gone := c.hangUp
			d.mu.Unlock()
			if gone {
				d.hangUp(leg)
			}
		})
	})
	if !begun {
		d.endDirect(name, c)
	}
}

func (d *PhoneDirectory) endDirect(name call.RoomName, c *directCall) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.directs[name] == c {
		delete(d.directs, name)
	}
}

// userGone hangs up the phone of a conversation when the user has left its call.
func (d *PhoneDirectory) userGone(name call.RoomName, room matrix.RoomID) {
	if d.s.phones == nil || d.occupied(name) {
		return
	}
	legs := map[call.LegID]bool{}
	d.mu.Lock()
	if c := d.directs[name]; c != nil {
		c.hangUp = true
		legs[c.leg] = true
	}
	for p := range d.seats {
		if p.room == room && p.direct {
			legs[p.phone.Leg] = true
		}
	}
	d.mu.Unlock()
	delete(legs, "")
	for leg := range legs {
		d.begin(func(context.Context) { d.hangUp(leg) })
	}
}

func (d *PhoneDirectory) hangUp(leg call.LegID) {
	ctx, cancel := context.WithTimeout(d.ctx, leaveTime)
	defer cancel()
	if err := d.s.phones.Hangup(ctx, leg); err != nil && !errors.Is(err, call.ErrNotFound) {
		d.log.Info("hang up a phone", "leg", leg, "err", err)
	}
}

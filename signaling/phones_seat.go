package signaling

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
	"github.com/trunkhall/trunkhall/sfu"
)

const (
	// renewEvery is how often it is looked whether call memberships and minted
	// identities must be renewed.
	renewEvery = 30 * time.Minute
	// leaveTime bounds giving a seat back.
	leaveTime = 15 * time.Second
	// evictFor is how long a phone is removed again and again that was thrown out
	// while it was still on its way into the call, evictEvery how often.
	evictFor   = 30 * time.Second
	evictEvery = 250 * time.Millisecond

	// A device's name is what other members see when they look at a phone. MSC4143
	// calls give each device its own membership.
	plainDevice     = "Telephone"
	encryptedDevice = "Phone gateway (phone audio is NOT end-to-end encrypted beyond this point)"
	// endsHere is the participant attribute that says the same.
	endsHere = "trunkhall.e2ee_ends_here"
)

// A phoneSeat is a phone's place in a Matrix room. enter takes it, leave gives it
// back; both at most once. The fields but the guarded ones do not change after
// enter.
type phoneSeat struct {
	d       *PhoneDirectory
	phone   call.Phone
	at      call.Place
	room    matrix.RoomID
	ghost   matrix.UserID
	device  matrix.DeviceID
	name    string        // display name in the room
	host    matrix.UserID // who invites the ghost, "" if nobody need
	direct  bool          // it is the conversation of the ghost and one user
	keys    *phoneKeys    // nil: the call is not encrypted
	created time.Time     // of the call membership
	event   matrix.EventID
	ring    matrix.EventID // the notification, "" if none was sent

	since    time.Time
	admitted chan struct{} // closed when the phone is let in; nil without a lobby
	refused  chan struct{} // closed when it is sent away

	once sync.Once // leave

	comesIn bool // guarded by d.mu: the ghost is or is about to be joined, and a leave would be somebody's doing

	mu      sync.Mutex // guards the following; held while the phone comes in, so that leave waits for that
	inside  bool       // the ghost has come in
	decided bool       // the lobby has
	left    bool
	expires time.Duration  // of the call membership, counted from created
	member  matrix.EventID // the membership event that counts now
	raised  matrix.EventID // the reaction that shows a raised hand, "" if it is down
}

// Seat gives a phone a place in a room. Refusals are call.ErrRoomLocked,
// call.ErrRoomEncrypted, call.ErrRoomFull, or wrap call.ErrForbidden when nobody
// in the room may invite the phone.
func (d *PhoneDirectory) Seat(ctx context.Context, at call.Place, phone call.Phone) (call.Seat, error) {
	if at.RoomID == "" {
		if d.full(at.Room) {
			return call.Seat{}, call.ErrRoomFull
		}
		return d.mediaSeat(at, phone), nil
	}
	p, err := d.newSeat(ctx, at, phone)
	if err != nil {
		return call.Seat{}, err
	}
	if p.admitted != nil {
		d.mu.Lock()
		d.seats[p] = true
		d.mu.Unlock()
		return p.seat(), nil
	}
	if err := p.enter(ctx); err != nil {
		return call.Seat{}, err
	}
	return p.seat(), nil
}

// full reports whether a media room takes nobody more.
func (d *PhoneDirectory) full(name call.RoomName) bool {
	r, ok := d.s.deps.SFU.Room(name)
	if !ok {
		return false
	}
	info := r.Info()
	most := info.MaxParticipants
	if most == 0 {
		most = d.s.cfg.MaxParticipants
	}
	return most > 0 && info.Participants >= most
}

// mediaSeat is a phone's place in a media room without Matrix.
func (d *PhoneDirectory) mediaSeat(at call.Place, phone call.Phone) call.Seat {
	number, name := phone.Number, plainName(phone.Name)
	if phone.HideNumber {
		number = ""
		if isNumber(name) { // which may be the very number
			name = ""
		}
	}
	if name == "" {
		name = number
	}
	if name == "" {
		name = "Phone"
	}
	id := call.Identity("sip_" + number)
	d.mu.Lock()
	if number == "" || d.taken[rtcKey{at.Room, id}] {
		id = call.Identity(strings.TrimSuffix("sip_"+number, "_") + "_" + strings.ToLower(rand.Text()[:8]))
	}
	k := rtcKey{at.Room, id}
	d.taken[k] = true
	d.mu.Unlock()
	leave := sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.taken, k)
	})
	return call.Seat{
		Room: at.Room, Title: at.Title, Grant: phoneGrant(at.Room, id, name),
		Leave: func(context.Context) { leave() },
	}
}

func phoneGrant(room call.RoomName, id call.Identity, name string) call.Grant {
	return call.Grant{
		Room: room, Identity: id, Name: name, Kind: call.KindSIP,
		CanPublish: true, CanPublishSources: []call.Source{call.SourceMicrophone}, CanSubscribe: true, CanPublishData: true,
	}
}

// newSeat decides whether a phone may come into a Matrix room and as whom.
func (d *PhoneDirectory) newSeat(ctx context.Context, at call.Place, phone call.Phone) (*phoneSeat, error) {
	if d.ghosts == nil {
		return nil, fmt.Errorf("there are no Matrix rooms here: %w", call.ErrNotFound)
	}
	room := matrix.RoomID(at.RoomID)
	s, err := d.settings(ctx, room)
	if err != nil {
		return nil, err
	}
	inbound := phone.Direction != call.Outbound
	if inbound && s.locked {
		return nil, call.ErrRoomLocked
	}
	if d.full(at.Room) {
		return nil, call.ErrRoomFull
	}
	local, name, profile := d.ghostOf(phone)
	ghost, err := d.ghosts.EnsureGhost(ctx, local, profile)
	if err != nil {
		return nil, err
	}
	p := &phoneSeat{
		d: d, phone: phone, at: at, room: room, ghost: ghost, name: name,
		since: time.Now(),
	}
	if p.direct, err = d.alone(ctx, room, ghost); err != nil {
		return nil, err
	}
	if s.encrypted {
		if err := d.mayEndEncryption(ctx, room, s, p); err != nil {
			return nil, err
		}
	}
	if p.host, err = d.host(ctx, room, s, p); err != nil {
		return nil, err
	}
	if inbound && s.lobby && !p.direct {
		p.admitted, p.refused = make(chan struct{}), make(chan struct{})
	}
	// From here on the seat must be left.
	if p.device, err = d.takeDevice(ctx, ghost, s.encrypted); err != nil {
		return nil, err
	}
	if s.encrypted {
		p.keys = newPhoneKeys(p)
	}
	return p, nil
}

// takeDevice returns a device ID that no other seat of a ghost has. A room's state
// keeps a call membership for each device for ever, so they are few: the first,
// the second ... But where a device has keys it is a new one each time: others
// would not trust a device whose keys have changed.
func (d *PhoneDirectory) takeDevice(ctx context.Context, ghost matrix.UserID, keys bool) (matrix.DeviceID, error) {
	for n := 1; ; n++ {
		device := matrix.DeviceID(fmt.Sprintf("PHONE%d", n))
		if keys {
			device = matrix.DeviceID("PHONE" + rand.Text()[:10])
		}
		k := userDevice{ghost, device}
		d.mu.Lock()
		taken := d.devices[k]
		d.devices[k] = true
		d.mu.Unlock()
		if taken {
			continue
		}
		// One of an earlier process that could not be taken away yet.
		left, err := d.s.deps.Rooms.DeviceExists(ctx, ghost, device)
		if err == nil && !left {
			return device, nil
		}
		d.giveDevice(k)
		if err != nil {
			return "", err
		}
	}
}

func (d *PhoneDirectory) giveDevice(k userDevice) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.devices, k)
}

// alone reports whether a room is the conversation of a ghost and one user: both
// are in it or invited, nobody else is, and it was made to be one.
func (d *PhoneDirectory) alone(ctx context.Context, room matrix.RoomID, ghost matrix.UserID) (bool, error) {
	members, err := d.ghosts.RoomMembers(ctx, room)
	if err != nil {
		return false, err
	}
	var present []matrix.UserID
	here := false
	for _, m := range members {
		if m.Membership == matrix.MembershipJoin || m.Membership == matrix.MembershipInvite {
			present = append(present, m.User)
			here = here || m.User == ghost
		}
	}
	if !here || len(present) != 2 {
		return false, nil
	}
	for _, user := range present {
		e, err := d.ghosts.RoomStateEvent(ctx, room, "m.room.member", string(user))
		if err != nil {
			return false, err
		}
		var c struct {
			IsDirect bool `json:"is_direct"`
		}
		if e != nil {
			contentOf(e, &c)
		}
		if c.IsDirect {
			return true, nil
		}
	}
	return false, nil
}

// mayEndEncryption returns nil if the encryption of a room's call may end at the
// gateway for this phone. The room says so, or whoever dials has the power to
// say it, unless the room says no; in a conversation with the phone alone there
// is nobody else to ask.
func (d *PhoneDirectory) mayEndEncryption(ctx context.Context, room matrix.RoomID, s dialIn, p *phoneSeat) error {
	if s.e2ee == "allow" || p.direct && s.e2ee != "deny" {
		return nil
	}
	if s.e2ee == "" && p.phone.Direction == call.Outbound && strings.HasPrefix(p.phone.By, "@") {
		if _, err := d.mayChange(ctx, room, matrix.UserID(p.phone.By)); err == nil {
			return nil
		} else if !errors.Is(err, call.ErrForbidden) {
			return err
		}
	}
	return call.ErrRoomEncrypted
}

// host returns who invites a ghost: whoever dials, or whoever lets telephones
// into the room; "" if it needs no invitation.
func (d *PhoneDirectory) host(ctx context.Context, room matrix.RoomID, s dialIn, p *phoneSeat) (matrix.UserID, error) {
	m, err := d.s.deps.Rooms.Membership(ctx, room, p.ghost)
	if err != nil {
		return "", err
	}
	if m == matrix.MembershipBan {
		return "", fmt.Errorf("this number is banned from the room: %w", call.ErrForbidden)
	}
	host, err := d.inviter(ctx, room, s, p)
	if m == matrix.MembershipJoin || m == matrix.MembershipInvite {
		// Nobody need invite it, unless another phone of the number takes the
		// ghost out just now.
		return host, nil
	}
	return host, err
}

// inviter is host for a ghost that is not in the room.
func (d *PhoneDirectory) inviter(ctx context.Context, room matrix.RoomID, s dialIn, p *phoneSeat) (matrix.UserID, error) {
	rules, err := d.ghosts.RoomStateEvent(ctx, room, "m.room.join_rules", "")
	if err != nil {
		return "", err
	}
	if rules != nil && rules.ContentString("join_rule") == "public" {
		return "", nil
	}
	power, err := d.ghosts.RoomPower(ctx, room)
	if err != nil {
		return "", err
	}
	if strings.HasPrefix(p.phone.By, "@") {
		by := matrix.UserID(p.phone.By)
		if err := d.joined(ctx, room, by); err != nil {
			return "", err
		}
		if !power.CanInvite(by) {
			return "", fmt.Errorf("you may not invite anybody to this room, so no telephone either: %w", call.ErrForbidden)
		}
		return by, nil
	}
	if s.sender != "" && power.CanInvite(s.sender) && d.joined(ctx, room, s.sender) == nil {
		return s.sender, nil
	}
	strong, err := d.strongest(ctx, room, power)
	if err != nil {
		return "", err
	}
	if !power.CanInvite(strong) {
		return "", fmt.Errorf("nobody in the room may invite a telephone: %w", call.ErrForbidden)
	}
	return strong, nil
}

func (p *phoneSeat) identity() call.Identity { return plainIdentity(p.ghost, p.device) }

// seat returns what the gateway gets.
func (p *phoneSeat) seat() call.Seat {
	s := call.Seat{
		Room: p.at.Room, RoomID: p.at.RoomID, Title: p.at.Title,
		Grant: phoneGrant(p.at.Room, p.identity(), p.name),
		Leave: p.leave,
		Hand:  p.hand,
	}
	if p.admitted != nil {
		s.Lobby, s.Refused = p.admitted, p.refused
	}
	if p.keys != nil {
		s.Keys = p.keys
		s.Grant.Attrs = map[string]string{endsHere: "true"}
	}
	return s
}

// record is what is kept of the seat for the case that this process dies.
func (p *phoneSeat) record() call.OpenSeat {
	return call.OpenSeat{RoomID: string(p.room), UserID: string(p.ghost), DeviceID: string(p.device), Stays: p.direct}
}

// enter brings the ghost into the room and its call. If it fails nothing is left
// of it.
func (p *phoneSeat) enter(ctx context.Context) error {
	p.mu.Lock()
	err := p.enterLocked(ctx)
	p.mu.Unlock()
	if err != nil {
		p.leave(ctx)
		return fmt.Errorf("bring a phone into the room: %w", err)
	}
	if p.keys != nil {
		p.keys.start()
	}
	return nil
}

func (p *phoneSeat) enterLocked(ctx context.Context) error {
	d := p.d
	if p.left {
		return fmt.Errorf("the phone is gone: %w", call.ErrUnavailable)
	}
	p.inside = true
	d.mu.Lock()
	closing := d.closing
	d.seats[p] = true
	d.refs[ghostRoom{p.ghost, p.room}]++
	d.mu.Unlock()
	if closing {
		return fmt.Errorf("server is stopping: %w", call.ErrUnavailable)
	}
	if err := d.store.OpenPhoneSeat(ctx, p.record()); err != nil {
		return err
	}
	deviceName := plainDevice
	if p.keys != nil {
		deviceName = encryptedDevice
	}
	if err := d.ghosts.AddGhostDevice(ctx, p.ghost, p.device, deviceName); err != nil {
		return err
	}
	if p.keys != nil {
		if err := p.keys.publish(ctx); err != nil {
			return err
		}
	}
	// Before the ghost is in: from now on a kick finds the participant.
	err := d.store.SaveMinted(ctx, call.Minted{
		Room: p.at.Room, Identity: p.identity(), RoomID: string(p.room), UserID: string(p.ghost), DeviceID: string(p.device),
		Expires: time.Now().Add(mintedKept),
	})
	if err != nil {
		return err
	}
	err = d.bringIn(ctx, ghostRoom{p.ghost, p.room}, p.host, p.name, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		p.comesIn = true
	})
	if err != nil {
		return err
	}
	first, err := d.quietRoom(ctx, p.room, p.at.Room)
	if err != nil {
		return err
	}
	p.created, p.expires = time.Now(), memberExpires
	if p.event, err = p.sendMember(ctx, false); err != nil {
		return err
	}
	p.member = p.event
	if first {
		p.notify(ctx)
	}
	return nil
}

// bringIn makes a ghost a member of a room, invited by host if that is not empty.
// before is called when nobody else takes the ghost out any more.
func (d *PhoneDirectory) bringIn(ctx context.Context, g ghostRoom, host matrix.UserID, name string, before func()) error {
	turn := d.turn(g)
	turn.Lock()
	defer turn.Unlock()
	before()
	m, err := d.s.deps.Rooms.Membership(ctx, g.room, g.ghost)
	if err != nil || m == matrix.MembershipJoin {
		return err
	}
	if host != "" && m != matrix.MembershipInvite {
		d.expect(g, 1)
		err := d.ghosts.SetMembershipOf(ctx, g.room, host, g.ghost, matrix.MembershipInvite, name, "")
		d.expect(g, -1)
		if err != nil {
			return err
		}
	}
	return d.ghosts.SetMembershipOf(ctx, g.room, g.ghost, g.ghost, matrix.MembershipJoin, name, "")
}

// expect notes that an invitation of a ghost is the gateway's own, or no longer.
func (d *PhoneDirectory) expect(g ghostRoom, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.expected[g] += n; d.expected[g] == 0 {
		delete(d.expected, g)
	}
}

// quietRoom reports whether nobody is in a room's call.
func (d *PhoneDirectory) quietRoom(ctx context.Context, room matrix.RoomID, name call.RoomName) (bool, error) {
	if r, ok := d.s.deps.SFU.Room(name); ok && r.Info().Participants > 0 {
		return false, nil
	}
	members, err := d.callMembers(ctx, room)
	return len(members) == 0, err
}

// callMembers returns the devices with a call membership in the room's state
// whose users are joined.
func (d *PhoneDirectory) callMembers(ctx context.Context, room matrix.RoomID) (map[userDevice]bool, error) {
	events, err := d.ghosts.RoomState(ctx, room, callMemberType)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	found := map[userDevice]bool{}
	for i := range events {
		e := &events[i]
		device, ok := activeMember(e, now)
		if !ok {
			continue
		}
		m, err := d.s.deps.Rooms.Membership(ctx, room, e.Sender)
		if err != nil {
			return nil, err
		}
		if m == matrix.MembershipJoin {
			found[userDevice{e.Sender, device}] = true
		}
	}
	return found, nil
}

// A userDevice names a device.
type userDevice struct {
	user   matrix.UserID
	device matrix.DeviceID
}

// sendMember sends the phone's call membership.
func (p *phoneSeat) sendMember(ctx context.Context, renewed bool) (matrix.EventID, error) {
	content := callMember(p.room, p.ghost, p.device, p.d.ghosts.LiveKitServiceURL(), p.created, p.expires, renewed)
	return p.d.ghosts.SendStateAs(ctx, p.room, p.ghost, p.device, callMemberType, memberKey(p.ghost, p.device), content)
}

// notify tells the room that a call begins, as the first member of a call does
// (MSC4075): it rings in a conversation of two. Without it the phone is in the
// call all the same.
func (p *phoneSeat) notify(ctx context.Context) {
	kind := "notification"
	if p.direct {
		kind = "ring"
	}
	id, err := p.d.ghosts.SendMessageAs(ctx, p.room, p.ghost, p.device, notificationType, map[string]any{
		"slot_id":           legacySlot,
		"m.mentions":        map[string]any{"user_ids": []any{}, "room": true},
		"notification_type": kind,
		"m.relates_to":      map[string]any{"rel_type": "m.reference", "event_id": p.event},
		"sender_ts":         time.Now().UnixMilli(),
		"lifetime":          ringLifetime.Milliseconds(),
		"m.call.intent":     "audio",
	})
	if err != nil {
		p.d.log.Info("a phone's call could not be announced", "room_id", p.room, "err", err)
		return
	}
	p.ring = id
}

// leave gives the seat back. It does its work even if ctx has ended.
func (p *phoneSeat) leave(ctx context.Context) {
	p.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
		defer cancel()
		defer p.d.giveDevice(userDevice{p.ghost, p.device})
		p.mu.Lock()
		p.left = true
		inside := p.inside
		p.mu.Unlock()
		p.d.mu.Lock()
		delete(p.d.seats, p)
		p.d.mu.Unlock()
		if p.keys != nil {
			p.keys.stop()
		}
		if !inside {
			return
		}
		if err := p.d.giveBack(ctx, p.record(), p.d.unref); err != nil {
			p.d.log.Error("take a phone out of a room; it is tried again at the next start", "room_id", p.room, "user", p.ghost, "err", err)
		}
	})
}

// unref ends one reason for a ghost to be in a room and reports whether it was
// the last.
func (d *PhoneDirectory) unref(g ghostRoom) (last bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refs[g]--; d.refs[g] > 0 {
		return false
	}
	delete(d.refs, g)
	return true
}

// giveBack ends a phone's call membership, takes the ghost out of the room unless
// it stays or has other reasons to be there, and deletes its device. last says
// whether this was the last reason.
func (d *PhoneDirectory) giveBack(ctx context.Context, s call.OpenSeat, last func(ghostRoom) bool) error {
	g := ghostRoom{matrix.UserID(s.UserID), matrix.RoomID(s.RoomID)}
	device := matrix.DeviceID(s.DeviceID)
	turn := d.turn(g)
	turn.Lock()
	defer turn.Unlock()
	goes := last(g) && !s.Stays
	m, err := d.s.deps.Rooms.Membership(ctx, g.room, g.ghost)
	if errors.Is(err, call.ErrNotFound) {
		m, err = matrix.MembershipNone, nil
	}
	errs := []error{err}
	if m == matrix.MembershipJoin {
		// Also if it never came to sending one: an empty membership is none.
		e, err := d.ghosts.RoomStateEvent(ctx, g.room, callMemberType, memberKey(g.ghost, device))
		if err == nil && e != nil {
			_, err = d.ghosts.SendStateAs(ctx, g.room, g.ghost, device, callMemberType, memberKey(g.ghost, device), struct{}{})
		}
		errs = append(errs, notForbidden(err))
	}
	if goes && (m == matrix.MembershipJoin || m == matrix.MembershipInvite) {
		err := d.ghosts.SetMembershipOf(ctx, g.room, g.ghost, g.ghost, matrix.MembershipLeave, "", "")
		errs = append(errs, notForbidden(err))
	}
	errs = append(errs, d.ghosts.DeleteGhostDevice(ctx, g.ghost, device))
	if err := errors.Join(errs...); err != nil {
		return err // the record stays: the next start tries again
	}
	return d.store.ClosePhoneSeat(ctx, s)
}

// notForbidden drops the refusal of a room in which the ghost is no longer or
// whose rules have changed: there is nothing more that it could do there.
func notForbidden(err error) error {
	if errors.Is(err, call.ErrForbidden) {
		return nil
	}
	return err
}

// cleanUp gives back the seats of an earlier process.
func (d *PhoneDirectory) cleanUp(ctx context.Context) {
	left, err := d.store.OpenPhoneSeats(ctx)
	if err != nil {
		d.log.Error("find phones that are left over", "err", err)
		return
	}
	for _, s := range left {
		d.mu.Lock()
		mine := false
		for p := range d.seats {
			mine = mine || p.record() == s
		}
		d.mu.Unlock()
		if mine { // somebody was quicker than this start
			continue
		}
		idle := func(g ghostRoom) bool {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.refs[g] == 0
		}
		if err := d.giveBack(ctx, s, idle); err != nil {
			d.log.Error("take a phone out of a room that an earlier process left there", "room_id", s.RoomID, "user", s.UserID, "err", err)
			continue
		}
		d.log.Info("took a phone out of a room that an earlier process left there", "room_id", s.RoomID)
	}
}

// renew sends call memberships again before they expire.
func (d *PhoneDirectory) renew(ctx context.Context) {
	for _, p := range d.seated() {
		p.mu.Lock()
		err := p.renewLocked(ctx, time.Now())
		p.mu.Unlock()
		if err != nil && !errors.Is(err, call.ErrForbidden) {
			d.log.Warn("renew a phone's call membership", "room_id", p.room, "err", err)
		}
	}
}

func (p *phoneSeat) renewLocked(ctx context.Context, now time.Time) error {
	if p.left || p.event == "" {
		return nil
	}
	if err := p.d.store.ExtendMinted(ctx, p.at.Room, p.identity(), now.Add(mintedKept)); err != nil {
		return err
	}
	if p.created.Add(p.expires).Sub(now) > memberExpires/2 {
		return nil
	}
	p.expires += memberExpires
	id, err := p.sendMember(ctx, true)
	if err == nil {
		p.renewed(ctx, id)
	}
	return err
}

// seated returns all seats, also those of the lobbies.
func (d *PhoneDirectory) seated() []*phoneSeat {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]*phoneSeat, 0, len(d.seats))
	for p := range d.seats {
		all = append(all, p)
	}
	return all
}

// Waiting returns the phones in a Matrix room's lobby, the longest waiting first.
func (d *PhoneDirectory) Waiting(roomID string) []call.Waiting {
	var all []call.Waiting
	for _, p := range d.seated() {
		if string(p.room) != roomID || p.admitted == nil {
			continue
		}
		p.mu.Lock()
		waits := !p.decided && !p.left
		p.mu.Unlock()
		if !waits {
			continue
		}
		w := call.Waiting{Leg: p.phone.Leg, Name: p.name, Number: p.phone.Number, Since: p.since}
		if p.phone.HideNumber {
			w.Number = ""
		}
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b call.Waiting) int { return a.Since.Compare(b.Since) })
	return all
}

// Admit lets a waiting phone in or sends it away. by is the user who decides and
// needs the power to invite; empty is the operator. call.ErrNotFound: no such
// phone waits.
func (d *PhoneDirectory) Admit(ctx context.Context, leg call.LegID, by string, admit bool) error {
	all := d.seated()
	i := slices.IndexFunc(all, func(p *phoneSeat) bool { return p.phone.Leg == leg && p.admitted != nil })
	if i < 0 {
		return fmt.Errorf("no such phone is waiting: %w", call.ErrNotFound)
	}
	p := all[i]
	if by != "" {
		if err := d.joined(ctx, p.room, matrix.UserID(by)); err != nil {
			return err
		}
		power, err := d.ghosts.RoomPower(ctx, p.room)
		if err != nil {
			return err
		}
		if !power.CanInvite(matrix.UserID(by)) {
			return fmt.Errorf("the power to invite is needed to let phones in: %w", call.ErrForbidden)
		}
	}
	p.mu.Lock()
	if p.decided || p.left {
		p.mu.Unlock()
		return fmt.Errorf("no such phone is waiting: %w", call.ErrNotFound)
	}
	p.decided = true
	p.mu.Unlock()
	if !admit {
		close(p.refused)
		return nil
	}
	err := p.stillPlain(ctx)
	if err == nil {
		err = p.enter(ctx)
	}
	if err != nil {
		close(p.refused)
		return err
	}
	close(p.admitted)
	return nil
}

// stillPlain returns nil unless the room has been encrypted since the phone began to
// wait: it has no keys.
func (p *phoneSeat) stillPlain(ctx context.Context) error {
	s, err := p.d.settings(ctx, p.room)
	if err == nil && s.encrypted && p.keys == nil {
		err = call.ErrRoomEncrypted
	}
	return err
}

// thrownOut removes the phones of a ghost that is no longer in a room: at once
// those that are in its call, and those that are on their way into it as well.
func (d *PhoneDirectory) thrownOut(g ghostRoom) {
	var out []*phoneSeat
	d.mu.Lock()
	for p := range d.seats {
		if p.ghost == g.ghost && p.room == g.room && p.comesIn {
			out = append(out, p)
		}
	}
	d.mu.Unlock()
	for _, p := range out {
		d.begin(func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, evictFor)
			defer cancel()
			tick := time.NewTicker(evictEvery)
			defer tick.Stop()
			for {
				d.mu.Lock()
				here := d.seats[p]
				d.mu.Unlock()
				if !here {
					return
				}
				d.s.evict(p.at.Room, p.identity(), sfu.ReasonParticipantRemoved)
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
			}
		})
	}
}

// contentOf decodes an event's content, leaving into as it was if it cannot be.
func contentOf(e *matrix.StoredEvent, into any) { _ = json.Unmarshal(e.Content, into) }

package signaling

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// dialInType is the state event by which a room says how telephones come in, and
// the only place where a PIN stands in clear:
//
//	{"pin": "12345678", "numbers": ["+4930123456"], "e2ee": "allow", "lobby": true, "locked": false}
//
// Its pin and numbers are for people to read. A PIN works by the hash that is
// stored for the room, never because somebody wrote it here.
const dialInType = "org.trunkhall.dialin"

const (
	// pinDigits is the length of new PINs.
	pinDigits = 8
	// changeLevel is the least power with which the PIN and the settings can be
	// changed, whatever the room's own levels say.
	changeLevel = 50
)

// dialIn are a room's settings for telephones.
type dialIn struct {
	content map[string]json.RawMessage // of the state event, empty if there is none
	sender  matrix.UserID              // of the state event
	shown   string                     // the PIN there

	e2ee      string // "allow", "deny", or "" where nobody has said anything
	lobby     bool
	locked    bool
	encrypted bool // the room is
}

// settings reads a room's settings for telephones.
func (d *PhoneDirectory) settings(ctx context.Context, room matrix.RoomID) (dialIn, error) {
	s := dialIn{content: map[string]json.RawMessage{}}
	e, err := d.ghosts.RoomStateEvent(ctx, room, dialInType, "")
	if err != nil {
		return s, err
	}
	if e != nil {
		s.sender = e.Sender
		_ = json.Unmarshal(e.Content, &s.content) // an object; no key of a wrong type counts
		if s.content == nil {
			s.content = map[string]json.RawMessage{}
		}
		for key, into := range map[string]any{"e2ee": &s.e2ee, "lobby": &s.lobby, "locked": &s.locked, "pin": &s.shown} {
			if raw, ok := s.content[key]; ok {
				_ = json.Unmarshal(raw, into)
			}
		}
	}
	e, err = d.ghosts.RoomStateEvent(ctx, room, "m.room.encryption", "")
	s.encrypted = e != nil && e.ContentString("algorithm") != ""
	return s, err
}

// pinHash is what is stored of a PIN. A PIN has too few digits for a hash that
// has no key.
func (d *PhoneDirectory) pinHash(pin string) []byte {
	h := hmac.New(sha256.New, derive(d.key, "pin"))
	h.Write([]byte(pin))
	return h.Sum(nil)
}

// newPIN returns a random PIN. It does not begin with 0, which some leave out,
// and is neither one digit repeated nor a row.
func newPIN() string {
	for {
		var b strings.Builder
		for i := range pinDigits {
			first, n := int64('0'), int64(10)
			if i == 0 {
				first, n = '1', 9
			}
			digit, err := rand.Int(rand.Reader, big.NewInt(n))
			if err != nil { // never, see crypto/rand
				panic(err)
			}
			b.WriteByte(byte(first + digit.Int64()))
		}
		if pin := b.String(); !easy(pin) {
			return pin
		}
	}
}

// PINLength returns how many digits each PIN has.
func (d *PhoneDirectory) PINLength() int { return pinDigits }

// easy reports whether all steps from digit to digit are the same and small.
func easy(pin string) bool {
	step := int(pin[1]) - int(pin[0])
	for i := 1; i < len(pin); i++ {
		if int(pin[i])-int(pin[i-1]) != step {
			return false
		}
	}
	return step >= -1 && step <= 1
}

// RoomByPIN returns the room that has a PIN. call.ErrNotFound: none has it.
func (d *PhoneDirectory) RoomByPIN(ctx context.Context, pin string) (call.Place, error) {
	if d.ghosts == nil {
		return call.Place{}, fmt.Errorf("there are no Matrix rooms here: %w", call.ErrNotFound)
	}
	room, err := d.store.RoomOfPIN(ctx, d.pinHash(pin))
	if err != nil {
		return call.Place{}, err
	}
	return d.place(ctx, matrix.RoomID(room))
}

// mayChange returns the user who changes a room's settings for telephones: by,
// if that one has the power, or for the operator (empty) whoever has most.
func (d *PhoneDirectory) mayChange(ctx context.Context, room matrix.RoomID, by matrix.UserID) (matrix.UserID, error) {
	power, err := d.ghosts.RoomPower(ctx, room)
	if err != nil {
		return "", err
	}
	need := max(changeLevel, power.Event(dialInType, true))
	if by == "" {
		strong, err := d.strongest(ctx, room, power)
		if err == nil && power.User(strong) < power.Event(dialInType, true) {
			return "", fmt.Errorf("nobody in the room has the power for it: %w", call.ErrForbidden)
		}
		return strong, err
	}
	if err := d.joined(ctx, room, by); err != nil {
		return "", err
	}
	if power.User(by) < need {
		return "", fmt.Errorf("power level %d is needed to change how telephones come in: %w", need, call.ErrForbidden)
	}
	return by, nil
}

// joined returns nil if a user is joined to a room. Rooms that there are not are
// the same as rooms of others.
func (d *PhoneDirectory) joined(ctx context.Context, room matrix.RoomID, user matrix.UserID) error {
	if d.ghosts == nil {
		return fmt.Errorf("there are no Matrix rooms here: %w", call.ErrNotFound)
	}
	m, err := d.s.deps.Rooms.Membership(ctx, room, user)
	if err != nil && !errors.Is(err, call.ErrNotFound) {
		return err
	}
	if err != nil || m != matrix.MembershipJoin {
		return fmt.Errorf("you are not in this room: %w", call.ErrForbidden)
	}
	return nil
}

// strongest returns the member of this server with the most power.
func (d *PhoneDirectory) strongest(ctx context.Context, room matrix.RoomID, power matrix.Power) (matrix.UserID, error) {
	members, err := d.ghosts.RoomMembers(ctx, room)
	if err != nil {
		return "", err
	}
	var best matrix.UserID
	for _, m := range members {
		if m.Membership != matrix.MembershipJoin || m.User.Server() != d.s.deps.Rooms.ServerName() || d.isPhone(m.User) {
			continue
		}
		if best == "" || power.User(m.User) > power.User(best) || power.User(m.User) == power.User(best) && m.User < best {
			best = m.User
		}
	}
	if best == "" {
		return "", fmt.Errorf("nobody of this server is in the room: %w", call.ErrNotFound)
	}
	return best, nil
}

// DialIn returns how telephones come into a Matrix room, and what the user may
// do about it. call.ErrForbidden: the user is not in the room.
func (d *PhoneDirectory) DialIn(ctx context.Context, roomID, by string) (call.DialIn, error) {
	room, user := matrix.RoomID(roomID), matrix.UserID(by)
	if err := d.joined(ctx, room, user); err != nil {
		return call.DialIn{}, err
	}
	s, err := d.settings(ctx, room)
	if err != nil {
		return call.DialIn{}, err
	}
	power, err := d.ghosts.RoomPower(ctx, room)
	if err != nil {
		return call.DialIn{}, err
	}
	out := call.DialIn{E2EE: "deny", Lobby: s.lobby, Locked: s.locked, Encrypted: s.encrypted, MayAdmit: power.CanInvite(user)}
	if s.e2ee == "allow" {
		out.E2EE = "allow"
	}
	_, err = d.mayChange(ctx, room, user)
	out.MayChange = err == nil
	out.MayDial = d.MayDial(ctx, by, roomID) == nil
	if out.PIN, err = d.shownPIN(ctx, room, s); err != nil {
		return call.DialIn{}, err
	}
	d.mu.Lock()
	out.Numbers = slices.Clone(d.numbers)
	d.mu.Unlock()
	return out, nil
}

// shownPIN returns the PIN that a room shows, if it is the one that works.
func (d *PhoneDirectory) shownPIN(ctx context.Context, room matrix.RoomID, s dialIn) (string, error) {
	hash, err := d.store.RoomPIN(ctx, string(room))
	if errors.Is(err, call.ErrNotFound) || err == nil && (s.shown == "" || !hmac.Equal(hash, d.pinHash(s.shown))) {
		return "", nil
	}
	return s.shown, err
}

// PIN returns a Matrix room's PIN, making one if it has none; for operators.
func (d *PhoneDirectory) PIN(ctx context.Context, roomID string) (pin string, err error) {
	if d.ghosts == nil {
		return "", fmt.Errorf("there are no Matrix rooms here: %w", call.ErrNotFound)
	}
	room, err := d.ghosts.ResolveRoom(ctx, roomID)
	if err != nil {
		return "", err
	}
	s, err := d.settings(ctx, room)
	if err != nil {
		return "", err
	}
	if pin, err = d.shownPIN(ctx, room, s); err != nil || pin != "" {
		return pin, err
	}
	return d.RotatePIN(ctx, string(room), "")
}

// RotatePIN gives a Matrix room a new PIN, which its org.trunkhall.dialin state
// event shows. by is the user who asks and needs the power to send that event,
// 50 at least; empty is the operator.
func (d *PhoneDirectory) RotatePIN(ctx context.Context, roomID, by string) (pin string, err error) {
	if d.ghosts == nil {
		return "", fmt.Errorf("there are no Matrix rooms here: %w", call.ErrNotFound)
	}
	room, err := d.ghosts.ResolveRoom(ctx, roomID)
	if errors.Is(err, call.ErrNotFound) && by != "" {
		err = fmt.Errorf("you are not in this room: %w", call.ErrForbidden)
	}
	if err != nil {
		return "", err
	}
	turn := d.turn(ghostRoom{"", room})
	turn.Lock()
	defer turn.Unlock()
	sender, err := d.mayChange(ctx, room, matrix.UserID(by))
	if err != nil {
		return "", err
	}
	old, err := d.store.RoomPIN(ctx, string(room))
	if err != nil && !errors.Is(err, call.ErrNotFound) {
		return "", err
	}
	for {
		pin = newPIN()
		err = d.store.SetRoomPIN(ctx, string(room), d.pinHash(pin))
		if !errors.Is(err, call.ErrConflict) { // of a hundred million, another room has this one
			break
		}
	}
	if err != nil {
		return "", err
	}
	if err := d.show(ctx, room, sender, map[string]any{"pin": pin}); err != nil {
		// Nobody would learn the new one. What the room shows must work.
		if old == nil {
			return "", errors.Join(err, d.store.DeleteRoomPIN(ctx, string(room)))
		}
		return "", errors.Join(err, d.store.SetRoomPIN(ctx, string(room), old))
	}
	return pin, nil
}

// ChangeDialIn changes a Matrix room's settings for telephones, with the power
// of by as RotatePIN.
func (d *PhoneDirectory) ChangeDialIn(ctx context.Context, roomID, by string, c call.DialInChange) error {
	if d.ghosts == nil {
		return fmt.Errorf("there are no Matrix rooms here: %w", call.ErrNotFound)
	}
	change := map[string]any{}
	if c.E2EE != nil {
		if *c.E2EE != "allow" && *c.E2EE != "deny" {
			return fmt.Errorf("e2ee: %.20q is neither allow nor deny: %w", *c.E2EE, call.ErrInvalid)
		}
		change["e2ee"] = *c.E2EE
	}
	if c.Lobby != nil {
		change["lobby"] = *c.Lobby
	}
	if c.Locked != nil {
		change["locked"] = *c.Locked
	}
	room := matrix.RoomID(roomID)
	turn := d.turn(ghostRoom{"", room})
	turn.Lock()
	defer turn.Unlock()
	sender, err := d.mayChange(ctx, room, matrix.UserID(by))
	if err != nil {
		return err
	}
	return d.show(ctx, room, sender, change)
}

// show sends the room's dial-in event with some keys changed and the others as
// they are. The caller has the room's turn.
func (d *PhoneDirectory) show(ctx context.Context, room matrix.RoomID, sender matrix.UserID, change map[string]any) error {
	s, err := d.settings(ctx, room)
	if err != nil {
		return err
	}
	d.mu.Lock()
	change["numbers"] = append([]string{}, d.numbers...)
	d.mu.Unlock()
	for key, value := range change {
		if s.content[key], err = json.Marshal(value); err != nil {
			return err
		}
	}
	_, err = d.ghosts.SendStateAs(ctx, room, sender, "", dialInType, "", s.content)
	return err
}

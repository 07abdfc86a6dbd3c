package signaling

import (
	"context"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// Phones is the telephone gateway as signaling needs it: for LiveKit's SIP
// service and for calls that begin in a Matrix room. The gateway implements it.
// Errors wrap the kinds of package call. Safe for concurrent use.
type Phones interface {
	// Dial calls a telephone into a room. It returns as soon as the INVITE goes
	// out, or why it does not.
	Dial(ctx context.Context, req call.DialRequest) (call.Leg, error)
	// Wait returns a leg when its state is another than seen; at once if it is.
	// When ctx ends first it returns the leg as it is.
	Wait(ctx context.Context, id call.LegID, seen call.LegState) (call.Leg, error)
	// Leg returns a leg that lives or has ended not long ago.
	Leg(id call.LegID) (call.Leg, bool)
	// Legs returns all that live.
	Legs() []call.Leg
	// LegOf returns the leg behind a participant.
	LegOf(room call.RoomName, id call.Identity) (call.Leg, bool)

	Hangup(ctx context.Context, id call.LegID) error
	// Transfer hands the other side over to somebody else (RFC 3515) and
	// returns when that is done or has failed.
	Transfer(ctx context.Context, id call.LegID, to string, headers map[string]string) error
	// Digits presses keys on a leg.
	Digits(id call.LegID, digits string) error
	// DigitsTo presses keys on the phones of a room among to, on all if to is empty.
	DigitsTo(room call.RoomName, to []call.Identity, digits string)
	// OnDigit calls f for each key that a phone in a room presses. f must not block.
	OnDigit(f func(room call.RoomName, id call.Identity, digit byte))

	Trunks() []call.TrunkState
	SetTrunk(ctx context.Context, t call.Trunk) error
	DeleteTrunk(ctx context.Context, id string) error
	Rules() []call.DispatchRule
	SetRule(ctx context.Context, r call.DispatchRule) error
	DeleteRule(ctx context.Context, id string) error
}

// SetPhones tells signaling of the telephone gateway. It is called once, before
// Run: the gateway is made of signaling's PhoneDirectory and so comes later.
func (s *Server) SetPhones(p Phones) {
	s.phones = p
	p.OnDigit(s.keyPressed)
}

// A PhoneDirectory finds places for telephones: in Matrix rooms, where a phone
// sits as a user of its own (a ghost), and in plain media rooms. It implements
// the gateway's Directory.
type PhoneDirectory struct{ s *Server }

// PhoneDirectory returns the directory of this server.
func (s *Server) PhoneDirectory() *PhoneDirectory { return &PhoneDirectory{s} }

// Room returns the room of a name: "#alias:server" and "!id" are Matrix rooms,
// anything else is a media room. call.ErrNotFound: no such Matrix room.
func (d *PhoneDirectory) Room(ctx context.Context, name string) (call.Place, error) {
	panic("soon")
}

// RoomByPIN returns the room that has a PIN. call.ErrNotFound: none has it.
func (d *PhoneDirectory) RoomByPIN(ctx context.Context, pin string) (call.Place, error) {
	panic("soon")
}

// Seat gives a phone a place in a room. Refusals are call.ErrRoomLocked,
// call.ErrRoomEncrypted, call.ErrRoomFull, or wrap call.ErrForbidden when nobody
// in the room may invite the phone.
func (d *PhoneDirectory) Seat(ctx context.Context, place call.Place, phone call.Phone) (call.Seat, error) {
	panic("soon")
}

// Ring lets a Matrix user's clients ring in the user's conversation with the
// phone, and returns the phone's seat there when the user has come into the
// call. call.ErrForbidden: declined; call.ErrUnavailable: no answer in time;
// call.ErrNotFound: no such user.
func (d *PhoneDirectory) Ring(ctx context.Context, user string, phone call.Phone, timeout time.Duration) (call.Seat, error) {
	panic("soon")
}

// MayDial returns nil if a user may call telephones into a Matrix room; else the
// error wraps call.ErrForbidden and says why in words for the user.
func (d *PhoneDirectory) MayDial(ctx context.Context, user, roomID string) error {
	panic("soon")
}

// DialIn returns how telephones come into a Matrix room, and what the user may
// do about it. call.ErrForbidden: the user is not in the room.
func (d *PhoneDirectory) DialIn(ctx context.Context, roomID, user string) (call.DialIn, error) {
	panic("soon")
}

// RotatePIN gives a Matrix room a new PIN, which its org.trunkhall.dialin state
// event shows. by is the user who asks and needs the power to send that event;
// empty is the operator.
func (d *PhoneDirectory) RotatePIN(ctx context.Context, roomID, by string) (pin string, err error) {
	panic("soon")
}

// PIN returns a Matrix room's PIN, making one if it has none; for operators.
func (d *PhoneDirectory) PIN(ctx context.Context, roomID string) (pin string, err error) {
	panic("soon")
}

// ChangeDialIn changes a Matrix room's settings for telephones, with the power
// of by as RotatePIN.
func (d *PhoneDirectory) ChangeDialIn(ctx context.Context, roomID, by string, c call.DialInChange) error {
	panic("soon")
}

// Waiting returns the phones in a Matrix room's lobby, the longest waiting first.
func (d *PhoneDirectory) Waiting(roomID string) []call.Waiting { panic("soon") }

// Admit lets a waiting phone in or sends it away. by is the user who decides and
// needs the power to invite; empty is the operator.
func (d *PhoneDirectory) Admit(ctx context.Context, leg call.LegID, by string, admit bool) error {
	panic("soon")
}

// SetNumbers says which numbers lead to the PIN menu: they are shown in rooms.
func (d *PhoneDirectory) SetNumbers(numbers []string) { panic("soon") }

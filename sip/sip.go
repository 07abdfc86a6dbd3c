// Package sip is the gateway between telephones and rooms. It answers and places
// calls over trunks (package dialog speaks SIP, package media RTP), asks a
// Directory which room a number or a PIN means, and seats each phone in its room
// as an in-process member (package bridge).
//
// Each call is a leg: one goroutine owns its dialog, its media and its seat, and
// hears everything through one channel.
package sip

import (
	"context"
	"log/slog"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// Deps is what the gateway needs from its surroundings.
type Deps struct {
	SFU       *sfu.Server
	Directory Directory // nil: media rooms only
	Store     Store     // nil: trunks and rules of the API live in memory only
	Secret    []byte    // keys what must stay the same over restarts; empty: random
	// Numbers is told the numbers on which phones are asked for a PIN, at once and
	// whenever they change; may be nil. It must not block.
	Numbers func(numbers []string)
	Log     *slog.Logger
}

// A Directory knows rooms and users. Implementations: signaling's with Matrix, and
// Static without. Methods may block on a homeserver; ctx bounds them.
type Directory interface {
	// Room finds a room by what an operator may write: "#alias:server",
	// "!id:server" or the name of a media room. The error wraps call.ErrNotFound if
	// there is none.
	Room(ctx context.Context, name string) (call.Place, error)
	// RoomByPIN finds the room of a PIN. The error wraps call.ErrNotFound if no room
	// has it; it takes as long as a success.
	RoomByPIN(ctx context.Context, pin string) (call.Place, error)
	// Seat gives the phone a place in the room. The error wraps call.ErrForbidden if
	// the room is locked or does not allow phones (call.ErrRoomLocked, call.ErrRoomEncrypted),
	// call.ErrUnavailable if it is full (call.ErrRoomFull).
	Seat(ctx context.Context, at call.Place, phone call.Phone) (call.Seat, error)
	// Ring rings a user and returns a seat in the call of the user and the phone
	// once somebody is there. The error wraps call.ErrForbidden if the user declined,
	// call.ErrUnavailable if nobody came within the time-out, call.ErrNotFound if
	// there is no such user. If ctx ends first, the ringing is taken back.
	Ring(ctx context.Context, user string, phone call.Phone, timeout time.Duration) (call.Seat, error)
	// MayDial returns nil if by, a Matrix user ID or an API key, may call a phone into
	// the room; roomID is empty for a plain media room. The error wraps
	// call.ErrForbidden otherwise.
	MayDial(ctx context.Context, by, roomID string) error
}

// An Ager is a Directory that knows when an account was made.
type Ager interface {
	AccountCreated(ctx context.Context, user string) (time.Time, error)
}

// A Store keeps what must outlive a restart. Methods are safe for concurrent use.
type Store interface {
	// SIPTrunks returns the trunks made by the API, passwords included.
	SIPTrunks(ctx context.Context) ([]call.Trunk, error)
	PutSIPTrunk(ctx context.Context, t call.Trunk) error
	DeleteSIPTrunk(ctx context.Context, id string) error
	// SIPRules returns the dispatch rules made by the API, in the order in which
	// they were first put.
	SIPRules(ctx context.Context) ([]call.DispatchRule, error)
	PutSIPRule(ctx context.Context, r call.DispatchRule) error
	DeleteSIPRule(ctx context.Context, id string) error
}

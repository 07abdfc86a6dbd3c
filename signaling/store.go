package signaling

import (
	"context"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// Store keeps what must outlive a restart: whose participants there are, which
// of their tokens are dead, which leaves are promised. When a method returns
// nil the change is durable. All methods are safe for concurrent use.
type Store interface {
	// SaveMinted keeps m in place of what was kept for its room and identity.
	// The later of the two expiries counts.
	SaveMinted(ctx context.Context, m call.Minted) error
	// Minted returns what is kept for a room and identity; call.ErrNotFound if nothing.
	Minted(ctx context.Context, room call.RoomName, id call.Identity) (call.Minted, error)
	// MintedFor returns every identity that was minted for a user of a Matrix room.
	MintedFor(ctx context.Context, roomID, userID string) ([]call.Minted, error)
	// ExtendMinted keeps what is kept for a room and identity at least until then.
	ExtendMinted(ctx context.Context, room call.RoomName, id call.Identity, until time.Time) error

	// RaiseFloor makes the tokens of a room and identity dead that became valid
	// before floor. A floor never sinks. It may be forgotten at expires.
	RaiseFloor(ctx context.Context, room call.RoomName, id call.Identity, floor, expires time.Time) error
	// Floor returns the floor of a room and identity, the zero time if there is none.
	Floor(ctx context.Context, room call.RoomName, id call.Identity) (time.Time, error)

	// SaveDelegation keeps d in place of an older one for its room and identity.
	SaveDelegation(ctx context.Context, d call.Delegation) error
	// SawDelegated notes that the delegation's participant has been there,
	// unless another delayed event has been delegated since.
	SawDelegated(ctx context.Context, room call.RoomName, id call.Identity, delayID string) error
	// DeleteDelegation forgets a delegation, unless another delayed event has
	// been delegated since.
	DeleteDelegation(ctx context.Context, room call.RoomName, id call.Identity, delayID string) error
	// Delegations returns all that are kept.
	Delegations(ctx context.Context) ([]call.Delegation, error)

	// SetRoomPIN keeps the hash of a Matrix room's telephone PIN in place of an
	// older one. call.ErrConflict: another room has that PIN.
	SetRoomPIN(ctx context.Context, roomID string, hash []byte) error
	// DeleteRoomPIN forgets a room's PIN.
	DeleteRoomPIN(ctx context.Context, roomID string) error
	// RoomOfPIN returns the room whose PIN has a hash; call.ErrNotFound if none has.
	RoomOfPIN(ctx context.Context, hash []byte) (roomID string, err error)
	// RoomPIN returns the hash of a room's PIN; call.ErrNotFound if it has none.
	RoomPIN(ctx context.Context, roomID string) (hash []byte, err error)
	// OpenPhoneSeat notes a phone's place in a Matrix room before it is taken,
	// ClosePhoneSeat after it was given back.
	OpenPhoneSeat(ctx context.Context, s call.OpenSeat) error
	ClosePhoneSeat(ctx context.Context, s call.OpenSeat) error
	// OpenPhoneSeats returns the places that were not given back.
	OpenPhoneSeats(ctx context.Context) ([]call.OpenSeat, error)

	// ForgetExpired deletes minted identities and floors that expired before now.
	ForgetExpired(ctx context.Context, now time.Time) error
}

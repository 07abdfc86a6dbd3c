package signaling

import (
	"context"

	"github.com/trunkhall/trunkhall/matrix"
)

// Rooms is what signaling needs to know of Matrix: who holds a token, who is
// joined where, and the delayed events that end a membership. A homeserver in
// the same process implements it. Errors wrap the kinds of package call. All
// methods are safe for concurrent use.
type Rooms interface {
	// ServerName is the homeserver's name, the part behind the colon of its users.
	ServerName() matrix.ServerName

	// OpenIDUser returns the user for whom the homeserver issued an OpenID
	// token; call.ErrNotFound if it is unknown or has expired.
	OpenIDUser(ctx context.Context, token string) (matrix.UserID, error)

	// Membership returns a user's membership of a room, matrix.MembershipNone
	// if there never was one; call.ErrNotFound if the room is unknown.
	Membership(ctx context.Context, room matrix.RoomID, user matrix.UserID) (matrix.Membership, error)

	// DeviceExists reports whether the device is one of the user's.
	DeviceExists(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (bool, error)

	// WatchMemberships calls f after every change of a membership, once the
	// change can be read back. f returns quickly and calls nothing of the
	// homeserver. No call of f begins after cancel has returned.
	WatchMemberships(f func(matrix.MembershipChange)) (cancel func())

	// DelayedEvent returns a scheduled event (MSC4140); call.ErrNotFound if it
	// is unknown, sent or cancelled.
	DelayedEvent(ctx context.Context, id string) (matrix.DelayedEvent, error)

	// RestartDelayedEvent starts the event's delay anew; call.ErrNotFound if it
	// is unknown, sent or cancelled.
	RestartDelayedEvent(ctx context.Context, id string) error

	// SendDelayedEvent sends the event now; call.ErrNotFound if it is unknown.
	SendDelayedEvent(ctx context.Context, id string) error
}

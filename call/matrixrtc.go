package call

import "time"

// Minted remembers for whom a token of a Matrix call was made: the SFU knows
// only the room name and the identity, and a kick knows only the Matrix room
// and the user.
type Minted struct {
	Room     RoomName
	Identity Identity
	RoomID   string // the Matrix room
	UserID   string // the Matrix user
	DeviceID string // the user's device
	Expires  time.Time
}

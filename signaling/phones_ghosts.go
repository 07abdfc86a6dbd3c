package signaling

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// Ghosts is what telephones need of a homeserver in the same process: users that
// belong to the server itself, one for each number, and to act in rooms as them
// or, where a person's right is used, as that person. Errors wrap the kinds of
// package call. Safe for concurrent use.
type Ghosts interface {
	// SetPhones says how numbers are written in the profiles of their ghosts, and
	// that users may invite them.
	SetPhones(display func(digits string) string)
	// PhoneGhost returns the user that stands for a number, "" if it cannot be one.
	PhoneGhost(number string) matrix.UserID
	// EnsureGhost makes the user of a localpart that begins with "_", if there is
	// none, and sets the display name of its profile.
	EnsureGhost(ctx context.Context, localpart, name string) (matrix.UserID, error)
	AddGhostDevice(ctx context.Context, ghost matrix.UserID, device matrix.DeviceID, name string) error
	DeleteGhostDevice(ctx context.Context, ghost matrix.UserID, device matrix.DeviceID) error

	// LiveKitServiceURL returns the token service as clients are told of it.
	LiveKitServiceURL() string
	ResolveRoom(ctx context.Context, idOrAlias string) (matrix.RoomID, error)
	RoomMembers(ctx context.Context, room matrix.RoomID) ([]matrix.Member, error)
	RoomPower(ctx context.Context, room matrix.RoomID) (matrix.Power, error)
	// RoomStateEvent returns one piece of a room's state, nil if there is none.
	RoomStateEvent(ctx context.Context, room matrix.RoomID, typ, key string) (*matrix.StoredEvent, error)
	// RoomState returns all state events of one type.
	RoomState(ctx context.Context, room matrix.RoomID, typ string) ([]matrix.StoredEvent, error)
	// Account returns a user; call.ErrNotFound if there is none.
	Account(ctx context.Context, user matrix.UserID) (matrix.User, error)

	// SetMembershipOf, SendStateAs and SendMessageAs do what a client of sender
	// would do; the room's rules decide.
	SetMembershipOf(ctx context.Context, room matrix.RoomID, sender, target matrix.UserID, to matrix.Membership, name, reason string) error
	SendStateAs(ctx context.Context, room matrix.RoomID, sender matrix.UserID, device matrix.DeviceID, typ, key string, content any) (matrix.EventID, error)
	SendMessageAs(ctx context.Context, room matrix.RoomID, sender matrix.UserID, device matrix.DeviceID, typ string, content any) (matrix.EventID, error)
	// RedactAs takes back an event of sender's.
	RedactAs(ctx context.Context, room matrix.RoomID, sender matrix.UserID, device matrix.DeviceID, event matrix.EventID) error
	// DirectRoom returns the room in which a ghost and a user are alone and
	// joined, making one if there is none.
	DirectRoom(ctx context.Context, ghost, user matrix.UserID) (matrix.RoomID, error)
	// WatchEvents calls f after each event; f returns quickly and calls nothing
	// of the homeserver. No call of f begins after cancel has returned.
	WatchEvents(f func(matrix.StoredEvent)) (cancel func())

	UploadGhostKeys(ctx context.Context, ghost matrix.UserID, device matrix.DeviceID, k matrix.KeyUpload) error
	SetGhostCrossSigning(ctx context.Context, ghost matrix.UserID, keys map[string]json.RawMessage) error
	DeviceKeys(ctx context.Context, user matrix.UserID, devices ...matrix.DeviceID) ([]matrix.DeviceKeys, error)
	ClaimKeys(ctx context.Context, claims []matrix.KeyClaim) ([]matrix.KeyClaim, error)
	// SendToDeviceAs sends messages of a type; their Event is the content.
	SendToDeviceAs(ctx context.Context, ghost matrix.UserID, device matrix.DeviceID, typ string, messages []matrix.ToDevice) error
	// ReceiveToDevice waits for messages and returns them as {type, sender, content}.
	ReceiveToDevice(ctx context.Context, ghost matrix.UserID, device matrix.DeviceID) ([]json.RawMessage, error)
}

const (
	ghostPrefix    = "_phone_"
	anonymousGhost = ghostPrefix + "anonymous" // of callers who do not show their number

	// minDigits is the shortest number that is taken for an international one.
	minDigits = 7

	maxGhostName = 64 // letters of a display name
)

// ghostOf returns the localpart and the names of the ghost for a phone: in is
// its display name in the room, profile that for everybody.
func (d *PhoneDirectory) ghostOf(p call.Phone) (localpart, in, profile string) {
	name := plainName(p.Name)
	if p.Number == "" || p.HideNumber {
		if name == "" || isNumber(name) { // which may be the very number
			name = "Phone"
		} else {
			name += " (phone)"
		}
		return anonymousGhost, name, "Phone"
	}
	if id := d.ghosts.PhoneGhost(p.Number); id != "" && isNumber(p.Number) {
		localpart, profile = id.Localpart(), d.displayNumber(strings.TrimPrefix(id.Localpart(), ghostPrefix))
	} else {
		localpart, profile = ghostPrefix+"x_"+escapeLocalpart(p.Number), plainName(p.Number)
	}
	if name == "" || name == p.Number {
		return localpart, profile, profile
	}
	// Callers write their own names. Nobody shall pass for somebody of the room.
	return localpart, name + " (phone)", profile
}

// isNumber reports whether s is a telephone number as people write it, and not
// the name of somebody on a private exchange.
func isNumber(s string) bool {
	return strings.Trim(s, "+0123456789 -()./") == ""
}

// phoneNumber returns the number that the digits in a ghost's name stand for.
func phoneNumber(digits string) string {
	if len(digits) < minDigits {
		return digits // an extension of a private exchange
	}
	return "+" + digits
}

// phoneDigits returns the digits of the number for which a user stands, "" if
// it is none of this server's phones.
func (d *PhoneDirectory) phoneDigits(user matrix.UserID) string {
	digits, ok := strings.CutPrefix(user.Localpart(), ghostPrefix)
	if !ok || d.ghosts.PhoneGhost(digits) != user {
		return ""
	}
	return digits
}

// isPhone reports whether a user is one of the gateway's ghosts.
func (d *PhoneDirectory) isPhone(user matrix.UserID) bool {
	return d.s.rtc.isPhone(user)
}

// plainName cuts a name from outside to what can stand in a list of members: no
// control characters, nothing that turns the direction of writing around.
func plainName(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range strings.ToValidUTF8(s, "") {
		if unicode.Is(unicode.C, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r) {
			continue
		}
		if n++; n > maxGhostName {
			break
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}

// escapeLocalpart makes any text a user's localpart (appendices, "Mapping from
// other character sets").
func escapeLocalpart(s string) string {
	const room = 120 // bytes: the whole user ID has 255
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '-' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "=%02x", c)
		}
		if b.Len() >= room {
			break
		}
	}
	return b.String()
}

// The events of MatrixRTC that phones send and look at.
const (
	callMemberType   = "org.matrix.msc3401.call.member"
	notificationType = "org.matrix.msc4075.rtc.notification"
	declineType      = "org.matrix.msc4310.rtc.decline"

	// memberExpires is how long a call membership counts before it must be renewed.
	memberExpires = 4 * time.Hour
	// ringLifetime is how long a notification rings; clients cap it at this.
	ringLifetime = 90 * time.Second
)

// callMember is the content of a phone's call membership as a state event, which
// clients of both kinds of membership read (MSC4143, MSC3401).
func callMember(room matrix.RoomID, ghost matrix.UserID, device matrix.DeviceID, serviceURL string, created time.Time, expires time.Duration, renewed bool) map[string]any {
	c := map[string]any{
		"application":   "m.call",
		"call_id":       "",
		"scope":         "m.room",
		"device_id":     device,
		"membershipID":  string(plainIdentity(ghost, device)),
		"expires":       expires.Milliseconds(),
		"m.call.intent": "audio",
		"focus_active":  map[string]any{"type": "livekit", "focus_selection": "multi_sfu"},
		"foci_preferred": []any{map[string]any{
			"type": "livekit", "livekit_alias": room, "livekit_service_url": serviceURL,
		}},
	}
	if renewed {
		c["created_ts"] = created.UnixMilli()
	}
	return c
}

// memberKey is the state key of a phone's call membership.
func memberKey(ghost matrix.UserID, device matrix.DeviceID) string {
	return "_" + string(ghost) + "_" + string(device) + "_m.call"
}

// hasCreated reports whether a call membership is the renewal of an older one.
func hasCreated(e *matrix.StoredEvent) bool {
	var c struct {
		CreatedTS float64 `json:"created_ts"`
	}
	contentOf(e, &c)
	return c.CreatedTS != 0
}

// activeMember reads a call membership of somebody else. ok is false if it has
// ended, has expired or cannot be read.
func activeMember(e *matrix.StoredEvent, now time.Time) (device matrix.DeviceID, ok bool) {
	var c struct {
		Device    *matrix.DeviceID `json:"device_id"`
		CallID    *string          `json:"call_id"`
		App       string           `json:"application"`
		Expires   float64          `json:"expires"`
		CreatedTS float64          `json:"created_ts"`
	}
	if json.Unmarshal(e.Content, &c) != nil || c.Device == nil || *c.Device == "" || c.CallID == nil || c.App != "m.call" {
		return "", false
	}
	created, expires := c.CreatedTS, c.Expires
	if created == 0 {
		created = float64(e.OriginServerTS)
	}
	if expires == 0 {
		expires = float64(memberExpires.Milliseconds())
	}
	return *c.Device, created+expires > float64(now.UnixMilli())
}

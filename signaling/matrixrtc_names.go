package signaling

import (
	"crypto/sha256"
	"encoding/base64"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// legacySlot is the slot of clients whose request does not name one.
const legacySlot = "m.call#ROOM"

// mediaRoom names the media room of a Matrix room's slot (MSC4195).
func mediaRoom(room matrix.RoomID, slot string) call.RoomName {
	return call.RoomName(hashNames(string(room), slot))
}

// plainIdentity is the participant identity of the legacy /sfu/get: its clients
// find a member's media under the user and device of the state event.
func plainIdentity(user matrix.UserID, device matrix.DeviceID) call.Identity {
	return call.Identity(string(user) + ":" + string(device))
}

// memberIdentity is the participant identity of /get_token. Clients compute
// the same from a sticky member event.
func memberIdentity(user matrix.UserID, device matrix.DeviceID, member string) call.Identity {
	return call.Identity(hashNames(string(user), string(device), member))
}

// hashNames is the unpadded base64 of the SHA-256 of a compact JSON array of
// names. The JSON is byte for byte what a browser's JSON.stringify makes of
// it, which encoding/json is not: that escapes <, >, & and two line separators.
func hashNames(names ...string) string {
	b := []byte{'['}
	for i, n := range names {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendJSONString(b, n)
	}
	b = append(b, ']')
	sum := sha256.Sum256(b)
	return base64.RawStdEncoding.EncodeToString(sum[:])
}

func appendJSONString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\b':
			b = append(b, '\\', 'b')
		case c == '\t':
			b = append(b, '\\', 't')
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '\f':
			b = append(b, '\\', 'f')
		case c == '\r':
			b = append(b, '\\', 'r')
		case c < 0x20:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

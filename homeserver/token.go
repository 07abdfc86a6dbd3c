package homeserver

import (
	"fmt"
	"strconv"
	"strings"
)

// A token is a place in the stream, as clients keep it: since and next_batch of
// /sync, prev_batch, from and to of /messages are all of this kind. As a place
// in a room's timeline it stands between the event at pos and the one after it.
// Tokens stay valid for ever.
type token struct {
	pos      int64 // of the stream
	toDevice int64 // to-device events were delivered up to here
	sticky   int64 // sticky events were delivered up to here (MSC4354)
	typing   int64 // serial of the typists, which live in memory only
}

// String returns "s" and the numbers.
func (t token) String() string {
	if t.toDevice == 0 && t.sticky == 0 && t.typing == 0 {
		return "s" + strconv.FormatInt(t.pos, 10)
	}
	return fmt.Sprintf("s%d_%d_%d_%d", t.pos, t.toDevice, t.sticky, t.typing)
}

// at returns the token of a place in a timeline.
func at(pos int64) string { return token{pos: pos}.String() }

// parseToken reads a token that a client sends back.
func parseToken(text string) (token, error) {
	bad := invalidParam("%.80q is not a token of this server", text)
	body, ok := strings.CutPrefix(text, "s")
	if !ok {
		return token{}, bad
	}
	parts := strings.Split(body, "_")
	if len(parts) != 1 && len(parts) != 4 {
		return token{}, bad
	}
	var n [4]int64
	for i, p := range parts {
		v, err := strconv.ParseInt(p, 10, 64)
		if err != nil || v < 0 {
			return token{}, bad
		}
		n[i] = v
	}
	return token{n[0], n[1], n[2], n[3]}, nil
}

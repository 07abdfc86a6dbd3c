package matrix

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	gmsl "github.com/matrix-org/gomatrixserverlib"
)

// Size limits of events (client-server API, "Size limits").
const (
	MaxEventBytes = 65536
	MaxIDBytes    = 255
)

// ErrTooLarge is an event or one of its identifiers over its limit (M_TOO_LARGE).
var ErrTooLarge = errors.New("event too large")

// A RoomVersion names a set of room rules.
type RoomVersion string

// The room versions that rooms can be made with.
const (
	RoomVersion10 RoomVersion = "10"
	RoomVersion11 RoomVersion = "11"
	RoomVersion12 RoomVersion = "12"
)

// RoomVersions lists the supported room versions.
func RoomVersions() []RoomVersion {
	return []RoomVersion{RoomVersion10, RoomVersion11, RoomVersion12}
}

// Supported reports whether rooms of this version can be made and joined.
func (v RoomVersion) Supported() bool {
	return v == RoomVersion10 || v == RoomVersion11 || v == RoomVersion12
}

// HashedRoomID reports whether the room ID is the hash of the create event
// (room version 12), so that the create event has no room_id and is referred to
// by every event without being named in auth_events.
func (v RoomVersion) HashedRoomID() bool { return v == RoomVersion12 }

// PrivilegedCreators reports whether creators stand above all power levels and
// may not be listed in them (room version 12).
func (v RoomVersion) PrivilegedCreators() bool { return v == RoomVersion12 }

// CreatorInContent reports whether the create event names its creator in the
// content (up to room version 10).
func (v RoomVersion) CreatorInContent() bool { return v == RoomVersion10 }

// RedactsInContent reports whether a redaction names its target in the content
// (from room version 11) and not at the top level.
func (v RoomVersion) RedactsInContent() bool { return v != RoomVersion10 }

func (v RoomVersion) rules() gmsl.IRoomVersion { return gmsl.MustGetRoomVersion(gmsl.RoomVersion(v)) }

// An Event is an event of a room. It is never changed after it was made: copies
// may be shared between goroutines.
type Event struct {
	ID             EventID
	RoomID         RoomID
	Version        RoomVersion
	Type           string
	StateKey       *string
	Sender         UserID
	OriginServerTS int64 // Unix ms
	Depth          int64
	PrevEvents     []EventID
	AuthEvents     []EventID
	Content        json.RawMessage // canonical
	Redacts        EventID         // of an m.room.redaction, wherever its version keeps it
	// Sticky is the MSC4354 duration, nil for an ordinary event. Redaction
	// takes it away.
	Sticky *time.Duration
	// JSON is the whole signed event in canonical form, as it would travel to
	// other servers.
	JSON []byte
}

// IsState reports whether the event is a state event of this type and key.
func (e *Event) IsState(typ, key string) bool {
	return e.StateKey != nil && e.Type == typ && *e.StateKey == key
}

// wireEvent is the event as it travels.
type wireEvent struct {
	RoomID         RoomID          `json:"room_id"`
	Type           string          `json:"type"`
	StateKey       *string         `json:"state_key"`
	Sender         UserID          `json:"sender"`
	OriginServerTS int64           `json:"origin_server_ts"`
	Depth          int64           `json:"depth"`
	PrevEvents     []EventID       `json:"prev_events"`
	AuthEvents     []EventID       `json:"auth_events"`
	Content        json.RawMessage `json:"content"`
	Redacts        EventID         `json:"redacts"`
	Sticky         *struct {
		DurationMS int64 `json:"duration_ms"`
	} `json:"msc4354_sticky"`
}

// ParseStored reads an event that this server once built or checked: its ID is
// known and its JSON is canonical.
func ParseStored(id EventID, v RoomVersion, data []byte) (Event, error) {
	var w wireEvent
	if err := json.Unmarshal(data, &w); err != nil {
		return Event{}, fmt.Errorf("event %s: %w", id, err)
	}
	e := Event{
		ID: id, RoomID: w.RoomID, Version: v, Type: w.Type, StateKey: w.StateKey, Sender: w.Sender,
		OriginServerTS: w.OriginServerTS, Depth: w.Depth, PrevEvents: w.PrevEvents, AuthEvents: w.AuthEvents,
		Content: w.Content, Redacts: w.Redacts, JSON: data,
	}
	if v.HashedRoomID() && e.IsState("m.room.create", "") && len(id) > 1 {
		e.RoomID = RoomID("!" + string(id[1:]))
	}
	if e.Type == "m.room.redaction" && v.RedactsInContent() {
		e.Redacts = EventID(contentString(e.Content, "redacts"))
	}
	if w.Sticky != nil {
		d := time.Duration(w.Sticky.DurationMS) * time.Millisecond
		e.Sticky = &d
	}
	return e, nil
}

// contentString returns a key of content that is a string, empty otherwise. It
// matches the key exactly, which encoding/json does not do for structs.
func contentString(content json.RawMessage, key string) string {
	var m map[string]json.RawMessage
	if json.Unmarshal(content, &m) != nil {
		return ""
	}
	var s string
	_ = json.Unmarshal(m[key], &s)
	return s
}

// ContentString returns the string under key in the event's content, empty when
// there is none.
func (e *Event) ContentString(key string) string { return contentString(e.Content, key) }

// Membership returns the membership of an m.room.member event.
func (e *Event) Membership() Membership { return Membership(e.ContentString("membership")) }

// A Key signs the events of a server.
type Key struct {
	Server ServerName
	ID     string // "ed25519:..."
	Seed   []byte // 32 bytes
}

// A Draft is an event before it has an ID.
type Draft struct {
	RoomID     RoomID // empty for the create event of a room version with HashedRoomID
	Version    RoomVersion
	Type       string
	StateKey   *string
	Sender     UserID
	Content    json.RawMessage
	Redacts    EventID
	Sticky     *time.Duration
	PrevEvents []EventID
	AuthEvents []EventID
	Depth      int64
	Time       time.Time
}

// Build makes a signed event of a draft. Its size and its content are checked,
// what the room's rules say is not: see Authorise. Errors wrap ErrTooLarge,
// ErrBadJSON or ErrNotJSON.
func Build(d Draft, key Key) (Event, error) {
	if err := checkSizes(d); err != nil {
		return Event{}, err
	}
	content, err := decode(d.Content)
	if err != nil {
		return Event{}, err
	}
	object, ok := content.(map[string]any)
	if !ok {
		return Event{}, fmt.Errorf("%w: content is not an object", ErrBadJSON)
	}
	if err := checkLookalikes(d.Type, object); err != nil {
		return Event{}, err
	}
	ev := map[string]any{
		"type":             d.Type,
		"sender":           string(d.Sender),
		"origin_server_ts": d.Time.UnixMilli(),
		"depth":            min(d.Depth, maxInt),
		"prev_events":      stringList(d.PrevEvents),
		"auth_events":      stringList(d.AuthEvents),
		"content":          object,
	}
	if d.RoomID != "" {
		ev["room_id"] = string(d.RoomID)
	}
	if d.StateKey != nil {
		ev["state_key"] = *d.StateKey
	}
	if d.Redacts != "" {
		if d.Version.RedactsInContent() {
			object["redacts"] = string(d.Redacts)
		} else {
			ev["redacts"] = string(d.Redacts)
		}
	}
	if d.Sticky != nil {
		ev["msc4354_sticky"] = map[string]any{"duration_ms": d.Sticky.Milliseconds()}
	}
	return seal(ev, d.Version, key)
}

// seal adds hashes and signatures (server-server API, "Signing events") and
// computes the ID.
func seal(ev map[string]any, v RoomVersion, key Key) (Event, error) {
	plain, err := appendCanonical(nil, ev, 0)
	if err != nil {
		return Event{}, err
	}
	hash := sha256.Sum256(plain)
	ev["hashes"] = map[string]any{"sha256": base64.RawStdEncoding.EncodeToString(hash[:])}
	hashed, err := appendCanonical(nil, ev, 0)
	if err != nil {
		return Event{}, err
	}
	// What is signed is also what the event ID is the hash of: the redacted
	// event without signatures.
	redacted, err := redactJSON(hashed, v)
	if err != nil {
		return Event{}, err
	}
	if len(key.Seed) != ed25519.SeedSize {
		return Event{}, errors.New("sign event: no key")
	}
	sig := ed25519.Sign(ed25519.NewKeyFromSeed(key.Seed), redacted)
	ev["signatures"] = map[string]any{string(key.Server): map[string]any{key.ID: base64.RawStdEncoding.EncodeToString(sig)}}
	signed, err := appendCanonical(nil, ev, 0)
	if err != nil {
		return Event{}, err
	}
	if len(signed) > MaxEventBytes {
		return Event{}, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(signed), MaxEventBytes)
	}
	ref := sha256.Sum256(redacted)
	return ParseStored(EventID("$"+base64.RawURLEncoding.EncodeToString(ref[:])), v, signed)
}

// redactJSON returns the canonical redacted form of an event, without unsigned
// data.
func redactJSON(event []byte, v RoomVersion) ([]byte, error) {
	r, err := v.rules().RedactEventJSON(event)
	if err != nil {
		return nil, fmt.Errorf("redact event: %w", err)
	}
	return CanonicalJSON(r)
}

// Redact returns the event without what its room version lets a redaction take
// away ("Redactions"). The ID stays the same, and so do the signatures.
func (e *Event) Redact() (Event, error) {
	r, err := redactJSON(e.JSON, e.Version)
	if err != nil {
		return Event{}, err
	}
	return ParseStored(e.ID, e.Version, r)
}

// checkSizes checks the identifiers of a draft: their sizes, in bytes in all room
// versions, and that they are text.
func checkSizes(d Draft) error {
	check := func(name, value string) error {
		if len(value) > MaxIDBytes {
			return fmt.Errorf("%w: %s has %d bytes, the limit is %d", ErrTooLarge, name, len(value), MaxIDBytes)
		}
		if !utf8.ValidString(value) {
			return fmt.Errorf("%w: %s is not UTF-8", ErrBadJSON, name)
		}
		return nil
	}
	errs := []error{
		check("type", d.Type), check("sender", string(d.Sender)), check("room_id", string(d.RoomID)),
		check("redacts", string(d.Redacts)),
	}
	if d.StateKey != nil {
		errs = append(errs, check("state_key", *d.StateKey))
	}
	return errors.Join(errs...)
}

// authKeys are the content keys that the authorisation rules read.
var authKeys = map[string][]string{
	"m.room.create":             {"creator", "room_version", "m.federate", "predecessor", "type", "additional_creators"},
	"m.room.member":             {"membership", "join_authorised_via_users_server", "third_party_invite", "mxid_mapping"},
	"m.room.join_rules":         {"join_rule", "allow"},
	"m.room.power_levels":       {"ban", "events", "events_default", "invite", "kick", "notifications", "redact", "state_default", "users", "users_default"},
	"m.room.third_party_invite": {"public_key", "public_keys", "key_validity_url", "display_name"},
}

// checkLookalikes refuses keys that are an authorisation key in other case, such
// as "Membership" or "memberſhip": Go's JSON decoder takes them for the real
// one, clients do not, and the two would see different rooms.
func checkLookalikes(typ string, content map[string]any) error {
	for _, want := range authKeys[typ] {
		for k := range content {
			if k != want && strings.EqualFold(k, want) {
				return fmt.Errorf("%w: the key %q can be taken for %q", ErrBadJSON, k, want)
			}
		}
	}
	if typ == "m.room.member" {
		if _, ok := content["mxid_mapping"]; ok {
			return fmt.Errorf("%w: mxid_mapping is not for this room version", ErrBadJSON)
		}
	}
	return nil
}

func stringList(ids []EventID) []any {
	l := make([]any, len(ids))
	for i, id := range ids {
		l[i] = string(id)
	}
	return l
}

package matrix

import (
	"encoding/json"
	"time"
)

// A StoredEvent is an event with what this server remembers about it.
type StoredEvent struct {
	Event
	// Pos is its place in the stream; 0 before it is stored.
	Pos int64
	// Device and TxnID say which request of a local client made it.
	Device DeviceID
	TxnID  string
	// DelayID is the MSC4140 delayed event that it was, if it was one.
	DelayID string
	// StickyUntil is when an MSC4354 sticky event ends; zero: not sticky.
	StickyUntil time.Time

	// The state event that it replaced, if it did. Read only.
	PrevID      EventID
	PrevContent json.RawMessage
	PrevSender  UserID
	// The redaction that was applied to it, if one was. Read only.
	RedactedBy *Event
}

// A RoomInfo is what the store knows of a room as a whole.
type RoomInfo struct {
	ID        RoomID
	Version   RoomVersion
	Creator   UserID
	HeadPos   int64     // position of the newest event: what Append expects
	Heads     []EventID // the events that a new one follows
	Depth     int64     // of the newest event
	Published bool      // in the public room directory
}

// A Member is a row of a room's or a user's memberships.
type Member struct {
	Room       RoomID
	User       UserID
	Membership Membership
	Sender     UserID // of the member event
	Pos        int64  // of the member event
	Forgotten  bool
}

// A StateKeyTuple names one piece of room state.
type StateKeyTuple struct {
	Type, Key string
}

// A Transaction identifies a request that a client may repeat: the second time
// it gets the first answer.
type Transaction struct {
	User   UserID
	Device DeviceID
	Scope  string // the endpoint and its path parameters
	ID     string
}

// A DelayedEvent is an event that the server sends for its user after Delay,
// unless it is restarted or cancelled before (MSC4140).
type DelayedEvent struct {
	ID           string
	RoomID       RoomID
	UserID       UserID
	DeviceID     DeviceID
	Type         string
	StateKey     *string
	Content      json.RawMessage
	Delay        time.Duration
	RunningSince time.Time
	Sticky       *time.Duration // MSC4354 duration, nil: not sticky
	TxnID        string

	// Outcome is empty while it is scheduled.
	Outcome   DelayedOutcome
	Finalised time.Time
	EventID   EventID // of the event that it became
}

// Due returns when the event will be sent.
func (d DelayedEvent) Due() time.Time { return d.RunningSince.Add(d.Delay) }

// A DelayedOutcome is what became of a delayed event.
type DelayedOutcome string

// The outcomes. A failed one was refused by the room's rules when it was due.
const (
	DelayedScheduled DelayedOutcome = ""
	DelayedSent      DelayedOutcome = "sent"
	DelayedCancelled DelayedOutcome = "cancelled"
	DelayedFailed    DelayedOutcome = "failed"
)

// A Receipt says how far a user has read.
type Receipt struct {
	Room   RoomID
	User   UserID
	Type   string // m.read, m.read.private
	Thread string // empty: unthreaded
	Event  EventID
	// EventPos is the position of the event.
	EventPos int64
	TS       int64 // Unix ms
	Pos      int64 // of the receipt itself
}

// A PublicRoom is a row of the public room directory.
type PublicRoom struct {
	RoomID        RoomID `json:"room_id"`
	Name          string `json:"name,omitempty"`
	Topic         string `json:"topic,omitempty"`
	Alias         string `json:"canonical_alias,omitempty"`
	AvatarURL     string `json:"avatar_url,omitempty"`
	JoinRule      string `json:"join_rule,omitempty"`
	RoomType      string `json:"room_type,omitempty"`
	Members       int    `json:"num_joined_members"`
	WorldReadable bool   `json:"world_readable"`
	GuestCanJoin  bool   `json:"guest_can_join"`
}

// An Append is one event to be added to a room, with what belongs into the same
// transaction.
type Append struct {
	Event   StoredEvent
	Txn     *Transaction // nil: none to remember
	DelayID string       // a scheduled delayed event that this one ends; empty: none
	// DelayDue, if set, is the time at which it was found to be due. If it was
	// restarted since, it is not, and nothing is stored.
	DelayDue time.Time
	// Redacted is what becomes of the target of a redaction that applies; nil
	// for all other events.
	Redacted *Event
	// CancelDelayed cancels the delayed events of other users than the sender
	// for the same piece of state (MSC4140).
	CancelDelayed bool
}

// A Relation is one event that relates to another.
type Relation struct {
	Parent  EventID
	RelType string
	Key     string // of an m.annotation
	Event   StoredEvent
}

// RelatesTo returns what an event relates to (m.relates_to), empty values if
// nothing.
func (e *Event) RelatesTo() (parent EventID, relType, key string) {
	var content map[string]json.RawMessage
	if json.Unmarshal(e.Content, &content) != nil {
		return "", "", ""
	}
	rel := content["m.relates_to"]
	return EventID(contentString(rel, "event_id")), contentString(rel, "rel_type"), contentString(rel, "key")
}

// PrevMembership returns the membership that a member event replaced, "" if the
// user had none.
func (e *StoredEvent) PrevMembership() Membership {
	return Membership(contentString(e.PrevContent, "membership"))
}

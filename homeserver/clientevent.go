package homeserver

import (
	"encoding/json"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

// A clientEvent is an event as clients see it (client-server API, "Room event
// format").
type clientEvent struct {
	Type           string          `json:"type"`
	StateKey       *string         `json:"state_key,omitempty"`
	Sender         matrix.UserID   `json:"sender"`
	Content        json.RawMessage `json:"content"`
	EventID        matrix.EventID  `json:"event_id"`
	RoomID         matrix.RoomID   `json:"room_id,omitempty"`
	OriginServerTS int64           `json:"origin_server_ts"`
	Redacts        matrix.EventID  `json:"redacts,omitempty"`
	Sticky         *stickyContent  `json:"msc4354_sticky,omitempty"`
	Unsigned       *unsigned       `json:"unsigned,omitempty"`
}

type stickyContent struct {
	DurationMS int64 `json:"duration_ms"`
}

// unsigned is what the server adds to an event for one reader.
type unsigned struct {
	Age             *int64            `json:"age,omitempty"`
	TransactionID   string            `json:"transaction_id,omitempty"`
	Membership      matrix.Membership `json:"membership,omitempty"` // MSC4115
	PrevContent     json.RawMessage   `json:"prev_content,omitempty"`
	PrevSender      matrix.UserID     `json:"prev_sender,omitempty"`
	ReplacesState   matrix.EventID    `json:"replaces_state,omitempty"`
	RedactedBecause *clientEvent      `json:"redacted_because,omitempty"`
	RedactedBy      matrix.EventID    `json:"redacted_by,omitempty"`
	DelayID         string            `json:"org.matrix.msc4140.delay_id,omitempty"`
	DelayIDStable   string            `json:"delay_id,omitempty"`
	StickyTTL       *int64            `json:"msc4354_sticky_duration_ttl_ms,omitempty"`
	Relations       map[string]any    `json:"m.relations,omitempty"`
}

// A strippedEvent is a state event as those outside a room may see it.
type strippedEvent struct {
	Type     string          `json:"type"`
	StateKey string          `json:"state_key"`
	Sender   matrix.UserID   `json:"sender"`
	Content  json.RawMessage `json:"content"`
}

// A viewer is for whom events are formatted.
type viewer struct {
	user   matrix.UserID
	device matrix.DeviceID
	reader *reader // nil: no unsigned.membership
	inSync bool    // events in a sync section do not repeat their room
	now    time.Time
}

func (r *request) viewer(rd *reader) viewer {
	return viewer{user: r.user, device: r.device, reader: rd, now: time.Now()}
}

// format returns an event as a viewer sees it.
func (v viewer) format(e *matrix.StoredEvent) *clientEvent {
	age := max(0, v.now.UnixMilli()-e.OriginServerTS)
	c := &clientEvent{
		Type: e.Type, StateKey: e.StateKey, Sender: e.Sender, Content: e.Content, EventID: e.ID, RoomID: e.RoomID,
		OriginServerTS: e.OriginServerTS, Redacts: e.Redacts,
		Unsigned: &unsigned{Age: &age},
	}
	if v.inSync {
		c.RoomID = ""
	}
	if e.Sticky != nil {
		c.Sticky = &stickyContent{DurationMS: e.Sticky.Milliseconds()}
		if left := e.StickyUntil.Sub(v.now).Milliseconds(); left > 0 {
			c.Unsigned.StickyTTL = &left
		}
	}
	u := c.Unsigned
	if e.Sender == v.user {
		// MSC4140; all devices of the sender may see it, only the sending one
		// knows the transaction.
		u.DelayID, u.DelayIDStable = e.DelayID, e.DelayID
		if e.Device == v.device && e.Device != "" {
			u.TransactionID = e.TxnID
		}
	}
	if e.PrevID != "" {
		u.PrevContent, u.PrevSender, u.ReplacesState = e.PrevContent, e.PrevSender, e.PrevID
	}
	if e.RedactedBy != nil {
		because := matrix.StoredEvent{Event: *e.RedactedBy}
		u.RedactedBecause = viewer{inSync: v.inSync, now: v.now}.format(&because)
		u.RedactedBy = e.RedactedBy.ID
		u.PrevContent = nil
	}
	if v.reader != nil {
		if _, u.Membership = v.reader.membership(e.Pos); u.Membership == matrix.MembershipNone {
			u.Membership = matrix.MembershipLeave
		}
	}
	return c
}

// formatAll formats a list, never nil.
func (v viewer) formatAll(list []matrix.StoredEvent) []*clientEvent {
	out := make([]*clientEvent, len(list))
	for i := range list {
		out[i] = v.format(&list[i])
	}
	return out
}

package matrix

import (
	"encoding/json"
	"errors"
	"fmt"

	gmsl "github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// A NotAllowedError is the refusal of an event by its room's rules.
type NotAllowedError struct {
	Reason string
}

// Error returns the reason.
func (e *NotAllowedError) Error() string { return e.Reason }

// A StateFunc returns the state event of a type and key, nil if there is none.
type StateFunc func(typ, key string) (*Event, error)

// AuthTypes returns the state that decides about a draft: what Authorise will
// ask for. It works on a member event only if its content is an object.
func AuthTypes(d Draft) ([]StateKeyTuple, error) {
	needed, err := gmsl.StateNeededForProtoEvent(&gmsl.ProtoEvent{
		SenderID: string(d.Sender), Type: d.Type, StateKey: d.StateKey, Content: spec.RawJSON(d.Content),
	})
	if err != nil {
		return nil, &NotAllowedError{Reason: err.Error()}
	}
	tuples := make([]StateKeyTuple, 0, 5)
	for _, t := range needed.Tuples() {
		tuples = append(tuples, StateKeyTuple{t.EventType, t.StateKey})
	}
	return tuples, nil
}

// AuthEventIDs returns the auth_events of a draft. In room versions with hashed
// room IDs the create event is implied and not named.
func AuthEventIDs(d Draft, state StateFunc) ([]EventID, error) {
	tuples, err := AuthTypes(d)
	if err != nil {
		return nil, err
	}
	ids := make([]EventID, 0, len(tuples))
	for _, t := range tuples {
		if t.Type == "m.room.create" && d.Version.HashedRoomID() {
			continue
		}
		e, err := state(t.Type, t.Key)
		if err != nil {
			return nil, err
		}
		if e != nil {
			ids = append(ids, e.ID)
		}
	}
	return ids, nil
}

// Authorise checks an event against the state before it, by the authorisation
// rules of its room version. A refusal is a *NotAllowedError; any other error
// comes from state.
func Authorise(e *Event, state StateFunc) (err error) {
	defer func() {
		// The library panics on some contents that it thinks impossible. For us
		// they are one more way of being refused.
		if p := recover(); p != nil {
			err = &NotAllowedError{Reason: fmt.Sprintf("malformed room state: %v", p)}
		}
	}()
	pdu, err := e.pdu()
	if err != nil {
		return &NotAllowedError{Reason: err.Error()}
	}
	var known []gmsl.PDU
	for _, t := range gmsl.StateNeededForAuth([]gmsl.PDU{pdu}).Tuples() {
		s, err := state(t.EventType, t.StateKey)
		if err != nil {
			return err
		}
		if s == nil {
			continue
		}
		p, err := s.pdu()
		if err != nil {
			return fmt.Errorf("state event %s: %w", s.ID, err)
		}
		known = append(known, p)
	}
	provider, err := gmsl.NewAuthEvents(known)
	if err != nil {
		return err
	}
	err = gmsl.Allowed(pdu, provider, func(_ spec.RoomID, sender spec.SenderID) (*spec.UserID, error) {
		return spec.NewUserID(string(sender), true)
	})
	if err != nil {
		var refused *gmsl.NotAllowed
		if errors.As(err, &refused) {
			return &NotAllowedError{Reason: refused.Message}
		}
		return &NotAllowedError{Reason: err.Error()}
	}
	return nil
}

func (e *Event) pdu() (gmsl.PDU, error) {
	return e.Version.rules().NewEventFromTrustedJSONWithEventID(string(e.ID), e.JSON, false)
}

// Power answers questions about power levels of a room at one moment.
type Power struct {
	levels   gmsl.PowerLevelContent
	creators map[UserID]bool // privileged ones
	founder  UserID          // the only powerful user of a room without power levels
	missing  bool
}

// creatorLevel stands above every level that an event can contain.
const creatorLevel = 1 << 53

// NewPower reads the create event and the power levels event, which may be nil.
func NewPower(create, levels *Event) Power {
	p := Power{creators: make(map[UserID]bool)}
	p.levels.Defaults()
	if create != nil {
		p.founder = create.Sender
		if create.Version.PrivilegedCreators() {
			for _, c := range create.Creators() {
				p.creators[c] = true
			}
		}
	}
	if levels == nil {
		p.missing = true
		p.levels.StateDefault = 0 // "Power levels": without the event everybody may send state
		return p
	}
	if pdu, err := levels.pdu(); err == nil {
		if c, err := gmsl.NewPowerLevelContentFromEvent(pdu); err == nil {
			p.levels = c
		}
	}
	return p
}

// User returns a user's level.
func (p Power) User(u UserID) int64 {
	switch {
	case p.creators[u]:
		return creatorLevel
	case p.missing && u == p.founder:
		return 100
	case p.missing:
		return 0
	}
	return p.levels.UserLevel(spec.SenderID(u))
}

// Event returns the level needed to send an event of a type.
func (p Power) Event(typ string, state bool) int64 { return p.levels.EventLevel(typ, state) }

// CanRedact reports whether a user may redact other users' events.
func (p Power) CanRedact(u UserID) bool { return p.User(u) >= p.levels.Redact }

// CanInvite reports whether a user may invite.
func (p Power) CanInvite(u UserID) bool { return p.User(u) >= p.levels.Invite }

// Notification returns the level needed to notify with a key such as "room".
func (p Power) Notification(key string) int64 { return p.levels.NotificationLevel(key) }

// Creators returns the sender of a create event and its additional creators.
func (e *Event) Creators() []UserID {
	creators := []UserID{e.Sender}
	var c map[string]json.RawMessage
	if json.Unmarshal(e.Content, &c) == nil {
		var more []UserID
		if json.Unmarshal(c["additional_creators"], &more) == nil {
			creators = append(creators, more...)
		}
	}
	return creators
}

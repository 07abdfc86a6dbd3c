package homeserver

import (
	"context"
	"errors"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// The values of m.room.history_visibility.
const (
	visibleWorld   = "world_readable"
	visibleShared  = "shared"
	visibleInvited = "invited"
	visibleJoined  = "joined"
)

// mayRead decides about one event (client-server API, "Room history
// visibility"): from the visibility and the reader's membership when it was
// sent, and whether the reader is or was joined at some time after it.
func mayRead(visibility string, then matrix.Membership, joinedLater bool) bool {
	switch {
	case visibility == visibleWorld:
		return true
	case then == matrix.MembershipJoin:
		return true
	case visibility == visibleJoined:
		return false
	case visibility == visibleInvited:
		return then == matrix.MembershipInvite
	default: // shared, also for values that we do not know
		return joinedLater
	}
}

// A reader decides which events of one room a user may read. It is a snapshot.
type reader struct {
	user         matrix.UserID
	visibilities []matrix.StoredEvent // m.room.history_visibility, oldest first
	members      []matrix.StoredEvent // the user's m.room.member, oldest first
}

// reader returns a reader of the room as of a position (0: everything).
func (s *Server) reader(ctx context.Context, room matrix.RoomID, user matrix.UserID, upTo int64) (*reader, error) {
	if upTo == 0 {
		upTo = 1 << 62
	}
	r := &reader{user: user}
	var err error
	r.visibilities, err = s.deps.Store.StateHistory(ctx, room, matrix.StateKeyTuple{Type: "m.room.history_visibility"}, upTo)
	if err != nil {
		return nil, err
	}
	r.members, err = s.deps.Store.StateHistory(ctx, room, matrix.StateKeyTuple{Type: "m.room.member", Key: string(user)}, upTo)
	return r, err
}

// steady returns a reader for a member who has been joined since a member event
// and still is. It is right about events after that one, and needs no store.
func steady(m matrix.Member) *reader {
	key := string(m.User)
	return &reader{user: m.User, members: []matrix.StoredEvent{{
		Pos: m.Pos, Event: matrix.Event{Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"join"}`)},
	}}}
}

// visibility returns the history visibility before and after the event at a
// position; they differ at a m.room.history_visibility event only.
func (r *reader) visibility(pos int64) (before, after string) {
	before = visibleShared
	after = before
	for i := range r.visibilities {
		e := &r.visibilities[i]
		if e.Pos > pos {
			break
		}
		if after = e.ContentString("history_visibility"); after == "" {
			after = visibleShared
		}
		if e.Pos < pos {
			before = after
		}
	}
	return before, after
}

// membership returns the user's membership before and after the event at a
// position.
func (r *reader) membership(pos int64) (before, after matrix.Membership) {
	for i := range r.members {
		e := &r.members[i]
		if e.Pos > pos {
			break
		}
		after = e.Membership()
		if e.Pos < pos {
			before = after
		}
	}
	return before, after
}

// joinedAfter reports whether the user was joined at some time after a position.
func (r *reader) joinedAfter(pos int64) bool {
	for i := len(r.members) - 1; i >= 0 && r.members[i].Pos > pos; i-- {
		if r.members[i].Membership() == matrix.MembershipJoin {
			return true
		}
	}
	_, now := r.membership(pos)
	return now == matrix.MembershipJoin
}

// allows reports whether the user may read an event. At the events that change
// what is decided, the more generous of before and after counts, as the
// specification asks.
func (r *reader) allows(e *matrix.StoredEvent) bool {
	if e.IsState("m.room.member", string(r.user)) {
		return true // one always learns what becomes of oneself
	}
	visBefore, visAfter := r.visibility(e.Pos)
	_, then := r.membership(e.Pos)
	later := r.joinedAfter(e.Pos)
	return mayRead(visBefore, then, later) || (visAfter != visBefore && mayRead(visAfter, then, later))
}

// now returns the user's membership at the end of the snapshot.
func (r *reader) now() matrix.Membership {
	if len(r.members) == 0 {
		return matrix.MembershipNone
	}
	return r.members[len(r.members)-1].Membership()
}

// lastLeft returns the position of the event that ended the user's last stay in
// the room; ok is false if there was none.
func (r *reader) lastLeft() (pos int64, ok bool) {
	for i := len(r.members) - 1; i >= 0; i-- {
		if r.members[i].Membership() == matrix.MembershipJoin {
			if i == len(r.members)-1 {
				return 0, false // still there
			}
			return r.members[i+1].Pos, true
		}
	}
	return 0, false
}

// entry checks that a user may read a room at all, and up to where: 0 for
// members, the leave event for those who left. The answer to those who may not
// is the same for rooms that do not exist.
func (s *Server) entry(ctx context.Context, room matrix.RoomID, user matrix.UserID) (*reader, int64, error) {
	r, err := s.reader(ctx, room, user, 0)
	if err != nil {
		return nil, 0, err
	}
	if r.now() == matrix.MembershipJoin {
		return r, 0, nil
	}
	if _, vis := r.visibility(1 << 62); vis == visibleWorld && len(r.visibilities) > 0 {
		return r, 0, nil
	}
	if pos, ok := r.lastLeft(); ok {
		m, err := s.deps.Store.Membership(ctx, room, user)
		if err != nil && !errors.Is(err, call.ErrNotFound) {
			return nil, 0, err
		}
		if !m.Forgotten {
			return r, pos, nil
		}
	}
	return nil, 0, forbidden("no such room, or you are not in it")
}

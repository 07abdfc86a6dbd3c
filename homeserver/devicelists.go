package homeserver

import (
	"context"
	"slices"

	"github.com/trunkhall/trunkhall/matrix"
)

// deviceListChanges returns whose devices a client must ask for again, and whose
// it need not follow any more, between two places in the stream (client-server
// API, "Tracking the device list for a user").
func (s *Server) deviceListChanges(ctx context.Context, user matrix.UserID, since, upTo int64) (*syncDevices, error) {
	members, err := s.deps.Store.Memberships(ctx, user)
	if err != nil {
		return nil, err
	}
	heads, err := s.deps.Store.RoomHeads(ctx, user)
	if err != nil {
		return nil, err
	}
	return s.deviceChanges(ctx, user, members, heads, since, upTo)
}

// deviceChanges is deviceListChanges for a caller that has read the user's
// memberships and the heads of their rooms.
func (s *Server) deviceChanges(ctx context.Context, user matrix.UserID, members []matrix.Member, heads map[matrix.RoomID]int64, since, upTo int64) (*syncDevices, error) {
	st := s.deps.Store
	changed, left := make(map[matrix.UserID]bool), make(map[matrix.UserID]bool)
	keys, err := st.DeviceListChanges(ctx, since, upTo)
	if err != nil {
		return nil, err
	}
	for _, u := range keys {
		changed[u] = true
	}

	// The user's own joins and leaves concern everybody in those rooms.
	var moved []matrix.RoomID
	for _, m := range members {
		joined := m.Membership == matrix.MembershipJoin
		if m.Pos <= since {
			if joined && heads[m.Room] > since {
				moved = append(moved, m.Room)
			}
			continue
		}
		before, err := st.StateEvents(ctx, m.Room, max(since, 1), matrix.StateKeyTuple{Type: "m.room.member", Key: string(user)})
		if err != nil {
			return nil, err
		}
		was := since > 0 && len(before) == 1 && before[0].Membership() == matrix.MembershipJoin
		var set map[matrix.UserID]bool
		switch {
		case joined && was: // a new name, or out and in again
			moved = append(moved, m.Room)
			continue
		case joined:
			set = changed
		case was:
			set = left
		default:
			continue
		}
		all, err := st.Members(ctx, m.Room)
		if err != nil {
			return nil, err
		}
		for _, o := range all {
			if o.Membership == matrix.MembershipJoin {
				set[o.User] = true
			}
		}
	}

	// In the other rooms those count who came and went.
	events, err := st.MembershipChanges(ctx, moved, since, upTo)
	if err != nil {
		return nil, err
	}
	for i := range events {
		e := &events[i]
		u, now, before := matrix.UserID(*e.StateKey), e.Membership(), e.PrevMembership()
		switch {
		case now == matrix.MembershipJoin && before != matrix.MembershipJoin:
			changed[u] = true
		case now != matrix.MembershipJoin && before == matrix.MembershipJoin:
			left[u] = true
		}
	}

	out := &syncDevices{Changed: []matrix.UserID{}, Left: []matrix.UserID{}}
	if len(changed)+len(left) == 0 {
		return out, nil
	}
	sharing, err := s.usersSharingRooms(ctx, user)
	if err != nil {
		return nil, err
	}
	shared := map[matrix.UserID]bool{user: true}
	for _, u := range sharing {
		shared[u] = true
	}
	for u := range changed {
		if shared[u] {
			out.Changed = append(out.Changed, u)
		}
	}
	for u := range left {
		if !shared[u] {
			out.Left = append(out.Left, u)
		}
	}
	slices.Sort(out.Changed)
	slices.Sort(out.Left)
	return out, nil
}

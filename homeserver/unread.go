package homeserver

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/trunkhall/trunkhall/matrix"
)

const (
	// maxUnread is how far back unread events are counted.
	maxUnread = 1000
	// maxUnreadEntries bounds unreadCache; beyond it counts are made anew.
	maxUnreadEntries = 20000
)

// An unreadCache remembers how many events of a room would notify a user. An
// entry is only ever a shortcut: it can be dropped at any time.
type unreadCache struct {
	mu      sync.Mutex // guards the following fields
	entries map[unreadKey]unreadCount
}

type unreadKey struct {
	user matrix.UserID
	room matrix.RoomID
}

// An unreadCount counts the unread events up to upTo, beyond the receipt at a
// position.
type unreadCount struct {
	receipt, upTo     int64
	notify, highlight int
}

func (c *unreadCache) init() { c.entries = make(map[unreadKey]unreadCount) }

func (c *unreadCache) get(k unreadKey) unreadCount {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries[k]
}

func (c *unreadCache) put(k unreadKey, n unreadCount) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= maxUnreadEntries {
		clear(c.entries)
	}
	c.entries[k] = n
}

// unreadIn counts the events after the user's receipt that their push rules
// notify about. Their own events never do. raw are events that the caller has
// read anyway.
func (s *Server) unreadIn(ctx context.Context, user matrix.UserID, room matrix.RoomID, upTo int64, raw rawEvents) (unreadCount, error) {
	k := unreadKey{user, room}
	read, err := s.deps.Store.ReadUpTo(ctx, room, user)
	if err != nil {
		return unreadCount{}, err
	}
	n := s.unread.get(k)
	if n.receipt != read || n.upTo > upTo || n.upTo == 0 {
		n = unreadCount{receipt: read, upTo: read}
		raw.complete = false
	}
	if n.upTo >= upTo {
		return n, nil
	}
	events, visible := raw.events, (*reader)(nil)
	if !raw.complete || raw.since > n.upTo {
		if visible, err = s.reader(ctx, room, user, upTo); err != nil {
			return n, err
		}
		// Nothing from before the last join is unread.
		if events, err = s.deps.Store.Timeline(ctx, room, max(n.upTo, visible.lastJoined()), upTo, true, maxUnread); err != nil {
			return n, err
		}
	}
	if len(events) > 0 {
		judge, err := s.pushJudge(ctx, user, room)
		if err != nil {
			return n, err
		}
		for i := range events {
			e := &events[i]
			if e.Sender == user || e.Pos <= n.upTo || (visible != nil && !visible.allows(e)) {
				continue
			}
			if notify, highlight := judge(e); notify {
				n.notify++
				if highlight {
					n.highlight++
				}
			}
		}
	}
	n.upTo = upTo
	s.unread.put(k, n)
	return n, nil
}

// lastJoined returns the position at which the user came into the room for the
// last time.
func (r *reader) lastJoined() int64 {
	for i := len(r.members) - 1; i >= 0; i-- {
		if m := &r.members[i]; m.Membership() == matrix.MembershipJoin && (i == 0 || r.members[i-1].Membership() != matrix.MembershipJoin) {
			return m.Pos
		}
	}
	return 0
}

// pushJudge returns a function that tells whether an event of a room notifies a
// user, and whether it is highlighted.
func (s *Server) pushJudge(ctx context.Context, user matrix.UserID, room matrix.RoomID) (func(*matrix.StoredEvent) (notify, highlight bool), error) {
	rules, err := s.ruleset(ctx, user)
	if err != nil {
		return nil, err
	}
	power, facts, err := s.pushFacts(ctx, user, room)
	if err != nil {
		return nil, err
	}
	return func(e *matrix.StoredEvent) (bool, bool) {
		raw := json.RawMessage(e.JSON)
		if e.StateKey != nil { // rules may ask for what it replaced
			var err error
			if raw, err = json.Marshal((viewer{}).format(e)); err != nil {
				return false, false
			}
		}
		parsed, err := newPushEvent(raw)
		if err != nil {
			return false, false
		}
		f := facts
		f.senderPower = power.User(e.Sender)
		return rules.evaluate(parsed, f)
	}, nil
}

// pushFacts returns what push rules ask about a room and a user in it.
func (s *Server) pushFacts(ctx context.Context, user matrix.UserID, room matrix.RoomID) (matrix.Power, pushFacts, error) {
	v := s.view(room)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := s.load(ctx, v, room); err != nil {
		return matrix.Power{}, pushFacts{}, err
	}
	create, levels, member := matrix.StateKeyTuple{Type: "m.room.create"}, matrix.StateKeyTuple{Type: "m.room.power_levels"},
		matrix.StateKeyTuple{Type: "m.room.member", Key: string(user)}
	if err := s.need(ctx, v, create, levels, member); err != nil {
		return matrix.Power{}, pushFacts{}, err
	}
	if _, err := s.joinedMembers(ctx, v); err != nil {
		return matrix.Power{}, pushFacts{}, err
	}
	if l := v.state[levels]; v.power == nil || v.powerOf != l {
		p := matrix.NewPower(v.state[create], l)
		v.power, v.powerOf = &p, l
	}
	f := pushFacts{members: len(v.joined), notifyPower: v.power.Notification}
	if m := v.state[member]; m != nil {
		f.displayName = m.ContentString("displayname")
	}
	return *v.power, f, nil
}

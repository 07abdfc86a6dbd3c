package homeserver

import (
	"context"
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

// An unreadCount counts the events in (read, upTo].
type unreadCount struct {
	read, upTo        int64
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
// notify about. Their own events never do, and mark as read what came before.
func (s *Server) unreadIn(ctx context.Context, rd *reader, room matrix.RoomID, upTo int64) (unreadCount, error) {
	k := unreadKey{rd.user, room}
	read, err := s.deps.Store.ReadUpTo(ctx, room, rd.user)
	if err != nil {
		return unreadCount{}, err
	}
	for i := len(rd.members) - 1; i >= 0; i-- { // nothing from before the last join is unread
		if m := &rd.members[i]; m.Membership() == matrix.MembershipJoin && m.PrevMembership() != matrix.MembershipJoin {
			read = max(read, m.Pos)
			break
		}
	}
	n := s.unread.get(k)
	if n.read < read || n.upTo > upTo {
		n = unreadCount{read: read, upTo: read}
	}
	if n.upTo >= upTo {
		return n, nil
	}
	l, err := s.deps.Store.Timeline(ctx, room, n.upTo, upTo, true, maxUnread)
	if err != nil {
		return n, err
	}
	if len(l) > 0 {
		judge, err := s.pushJudge(ctx, rd.user, room)
		if err != nil {
			return n, err
		}
		for i := range l {
			if l[i].Sender == rd.user || !rd.allows(&l[i]) {
				continue
			}
			notify, highlight := judge(&l[i])
			if notify {
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

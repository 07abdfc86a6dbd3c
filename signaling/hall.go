package signaling

import (
	"hash/maphash"
	"sync"

	"github.com/livekit/protocol/livekit"

	"github.com/trunkhall/trunkhall/call"
)

// A hall is what the sessions of one room share: who has which seat, and the
// data messages that somebody may have missed.
type hall struct {
	seats  map[call.Identity]*participant // guarded by Server.mu
	cache  dataCache
	nonces nonces

	fallbacks map[call.Identity]livekit.CandidateProtocol // guarded by Server.mu
}

// joinTurn returns the lock of p's identity for joining. A few identities share
// each: joining is quick.
func (s *Server) joinTurn(p *participant) *sync.Mutex {
	return &s.joins[maphash.Comparable(s.joinSeed, rtcKey{p.roomName, p.identity})%uint64(len(s.joins))]
}

// seat gives p the seat of its identity and returns who had it.
func (s *Server) seat(p *participant) (old *participant) {
	s.presence.Lock()
	defer s.presence.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.halls[p.roomName]
	if h == nil {
		h = &hall{seats: make(map[call.Identity]*participant)}
		s.halls[p.roomName] = h
	}
	p.hall = h
	old = h.seats[p.identity]
	h.seats[p.identity] = p
	return old
}

// seatBack undoes seat after a join that failed: old is back on its seat, or
// if it has meanwhile given up it is reported gone.
func (s *Server) seatBack(p, old *participant) {
	s.presence.Lock()
	defer s.presence.Unlock()
	if !s.unseat(p) || old == nil {
		return
	}
	if old.inbox.isClosed() {
		s.gate.gone(p.roomName, p.identity, false)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.halls[old.roomName] == nil {
		s.halls[old.roomName] = old.hall
	}
	s.halls[old.roomName].seats[old.identity] = old
}

// unseat frees p's seat and reports whether p still had it. The caller holds
// presence.
func (s *Server) unseat(p *participant) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.hall.seats[p.identity] != p {
		return false
	}
	delete(p.hall.seats, p.identity)
	if len(p.hall.seats) == 0 && s.halls[p.roomName] == p.hall {
		delete(s.halls, p.roomName)
	}
	return true
}

// present reports p to the gate as being here, if it still has its seat.
func (s *Server) present(p *participant) {
	s.presence.Lock()
	defer s.presence.Unlock()
	if s.seated(p.roomName, p.identity) == p {
		s.gate.here(p.roomName, p.identity)
	}
}

// depart frees p's seat and reports to the gate that p is finally gone, unless
// another session has taken the seat. Nobody can resume p from here on.
func (s *Server) depart(p *participant, report, intentional bool) {
	s.presence.Lock()
	defer s.presence.Unlock()
	p.leftovers = p.inbox.close()
	if s.unseat(p) && report {
		s.gate.gone(p.roomName, p.identity, intentional)
	}
}

// seated returns who has a seat, nil if nobody.
func (s *Server) seated(room call.RoomName, id call.Identity) *participant {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.halls[room]; h != nil {
		return h.seats[id]
	}
	return nil
}

// hall returns what the sessions of a room share, nil if there are none.
func (s *Server) hall(room call.RoomName) *hall {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.halls[room]
}

// allSeated returns everybody who has a seat in a room.
func (s *Server) allSeated(room call.RoomName) []*participant {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.halls[room]
	if h == nil {
		return nil
	}
	all := make([]*participant, 0, len(h.seats))
	for _, p := range h.seats {
		all = append(all, p)
	}
	return all
}

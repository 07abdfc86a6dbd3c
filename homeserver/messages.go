package homeserver

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

const (
	messagesLimit    = 10
	messagesLimitMax = 1000
	// pageScan bounds how many events one request looks through for those that
	// its filter and its rights let through.
	pageScan = 5000
)

// A page is part of a timeline in the order in which it was walked.
type page struct {
	events []matrix.StoredEvent
	end    int64 // where to go on, as a token's position
	more   bool  // there may be something beyond end
}

// walk collects up to limit events that keep accepts, from a place in the
// timeline towards a bound.
func (s *Server) walk(ctx context.Context, room matrix.RoomID, from, to int64, backwards bool, limit int, keep func(*matrix.StoredEvent) bool) (page, error) {
	p := page{end: from}
	for scanned := 0; scanned < pageScan; {
		chunk := min(max(limit-len(p.events), 20), 500)
		since, upTo := from, to
		if backwards {
			since, upTo = to, from
		}
		l, err := s.deps.Store.Timeline(ctx, room, since, upTo, backwards, chunk)
		if err != nil {
			return p, err
		}
		for i := range l {
			if len(p.events) == limit {
				p.more = true
				return p, nil
			}
			if backwards {
				p.end = l[i].Pos - 1
			} else {
				p.end = l[i].Pos
			}
			if keep(&l[i]) {
				p.events = append(p.events, l[i])
			}
		}
		if len(l) < chunk {
			return p, nil
		}
		from = p.end
		scanned += len(l)
	}
	p.more = true
	return p, nil
}

// getMessages pages through a room's timeline.
func (s *Server) getMessages(r *request) (any, error) {
	ctx, q, room := r.Context(), r.URL.Query(), r.room()
	var backwards bool
	switch q.Get("dir") {
	case "b":
		backwards = true
	case "f":
	case "":
		return nil, missingParam("dir: b or f is needed")
	default:
		return nil, invalidParam("dir: %.20q is neither b nor f", q.Get("dir"))
	}
	limit, err := r.limitParam(messagesLimit, messagesLimitMax)
	if err != nil {
		return nil, err
	}
	filter, err := r.eventFilterParam()
	if err != nil {
		return nil, err
	}
	rd, bound, err := s.entry(ctx, room, r.user)
	if err != nil {
		return nil, err
	}
	newest, err := s.deps.Store.Position(ctx)
	if err != nil {
		return nil, err
	}
	if bound == 0 {
		bound = newest
	}
	from, to := int64(0), int64(0)
	if backwards {
		from = bound
	} else {
		to = bound
	}
	if err := tokenParam(q.Get("from"), bound, &from); err != nil {
		return nil, err
	}
	if err := tokenParam(q.Get("to"), bound, &to); err != nil {
		return nil, err
	}
	ignored, err := s.ignored(ctx, r.user)
	if err != nil {
		return nil, err
	}
	p, err := s.walk(ctx, room, from, to, backwards, limit, func(e *matrix.StoredEvent) bool {
		return filter.allows(e) && rd.allows(e) && !ignored.hides(e)
	})
	if err != nil {
		return nil, err
	}
	chunk := r.viewer(rd).formatAll(p.events)
	if err := s.bundle(ctx, rd, room, chunk); err != nil {
		return nil, err
	}
	out := map[string]any{"start": at(from), "chunk": chunk}
	if p.more || (!backwards && p.end != from) {
		// Forwards there may always be more to come; backwards the absence of
		// end says that the beginning was reached.
		out["end"] = at(p.end)
	}
	if filter.LazyLoadMembers {
		if out["state"], err = s.sendersOf(r, rd, room, p.events); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// sendersOf returns the member events of the senders of some events, as they
// were at the first of them.
func (s *Server) sendersOf(r *request, rd *reader, room matrix.RoomID, events []matrix.StoredEvent) ([]*clientEvent, error) {
	if len(events) == 0 {
		return []*clientEvent{}, nil
	}
	var keys []matrix.StateKeyTuple
	seen := make(map[matrix.UserID]bool)
	last := int64(0)
	for i := range events {
		last = max(last, events[i].Pos)
		if u := events[i].Sender; !seen[u] {
			seen[u] = true
			keys = append(keys, matrix.StateKeyTuple{Type: "m.room.member", Key: string(u)})
		}
	}
	l, err := s.deps.Store.StateEvents(r.Context(), room, last, keys...)
	return r.viewer(rd).formatAll(l), err
}

// getContext returns an event with what came before and after it.
func (s *Server) getContext(r *request) (any, error) {
	ctx, room := r.Context(), r.room()
	limit, err := r.limitParam(messagesLimit, 100)
	if err != nil {
		return nil, err
	}
	filter, err := r.eventFilterParam()
	if err != nil {
		return nil, err
	}
	e, rd, err := s.readable(r, matrix.EventID(r.PathValue("eventId")))
	if err != nil {
		return nil, err
	}
	newest, err := s.deps.Store.Position(ctx)
	if err != nil {
		return nil, err
	}
	ignored, err := s.ignored(ctx, r.user)
	if err != nil {
		return nil, err
	}
	keep := func(e *matrix.StoredEvent) bool { return filter.allows(e) && rd.allows(e) && !ignored.hides(e) }
	before, err := s.walk(ctx, room, e.Pos-1, 0, true, limit/2, keep)
	if err != nil {
		return nil, err
	}
	after, err := s.walk(ctx, room, e.Pos, newest, false, limit-limit/2, keep)
	if err != nil {
		return nil, err
	}
	last := after.end
	if last < e.Pos {
		last = e.Pos
	}
	state, err := s.deps.Store.State(ctx, room, last)
	if err != nil {
		return nil, err
	}
	if filter.LazyLoadMembers {
		wanted := map[string]bool{string(e.Sender): true}
		for _, l := range [][]matrix.StoredEvent{before.events, after.events} {
			for i := range l {
				wanted[string(l[i].Sender)] = true
			}
		}
		kept := state[:0]
		for _, st := range state {
			if st.Type != "m.room.member" || wanted[*st.StateKey] {
				kept = append(kept, st)
			}
		}
		state = kept
	}
	v := r.viewer(rd)
	out := v.formatAll([]matrix.StoredEvent{*e})
	out = append(out, v.formatAll(before.events)...)
	out = append(out, v.formatAll(after.events)...)
	if err := s.bundle(ctx, rd, room, out); err != nil {
		return nil, err
	}
	n := 1 + len(before.events)
	return map[string]any{
		"event": out[0], "events_before": out[1:n], "events_after": out[n:],
		"start": at(before.end), "end": at(last), "state": v.formatAll(state),
	}, nil
}

// ignoredUsers are the users whom somebody does not want to hear.
type ignoredUsers map[matrix.UserID]json.RawMessage

// ignored returns the user's m.ignored_user_list.
func (s *Server) ignored(ctx context.Context, user matrix.UserID) (ignoredUsers, error) {
	raw, err := s.deps.Store.AccountDataEvent(ctx, user, "", "m.ignored_user_list")
	if errors.Is(err, call.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var c struct {
		Users ignoredUsers `json:"ignored_users"`
	}
	_ = json.Unmarshal(raw, &c) // what a client wrote wrong ignores nobody
	return c.Users, nil
}

// hides reports whether an event is not to be shown. State is: without it a
// client would not know the room.
func (i ignoredUsers) hides(e *matrix.StoredEvent) bool {
	if e.StateKey != nil {
		return false
	}
	_, yes := i[e.Sender]
	return yes
}

package homeserver

import (
	"context"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

// relationPaths returns the paths of GET relations, stable and unstable.
func relationPaths(rest string) []string {
	p := "/rooms/{roomId}/relations/{eventId}" + rest
	return []string{"/_matrix/client/v1" + p, "/_matrix/client/unstable" + p}
}

// getRelations pages through the events that relate to one.
func (s *Server) getRelations(r *request) (any, error) {
	ctx, q, room := r.Context(), r.URL.Query(), r.room()
	limit, err := r.limitParam(messagesLimit, 100)
	if err != nil {
		return nil, err
	}
	backwards := true
	switch q.Get("dir") {
	case "", "b":
	case "f":
		backwards = false
	default:
		return nil, invalidParam("dir: %.20q is neither b nor f", q.Get("dir"))
	}
	parent, rd, err := s.readable(r, matrix.EventID(r.PathValue("eventId")))
	if err != nil {
		return nil, err
	}
	newest, err := s.deps.Store.Position(ctx)
	if err != nil {
		return nil, err
	}
	since, upTo := int64(0), newest
	start, stop := &upTo, &since // where from and to belong
	if !backwards {
		start, stop = &since, &upTo
	}
	if err := tokenParam(q.Get("from"), newest, start); err != nil {
		return nil, err
	}
	if err := tokenParam(q.Get("to"), newest, stop); err != nil {
		return nil, err
	}
	l, err := s.deps.Store.Relations(ctx, room, parent.ID, r.PathValue("relType"), r.PathValue("eventType"), since, upTo, backwards, limit+1)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	if len(l) > limit {
		l = l[:limit]
		if limit > 0 {
			next := l[limit-1].Pos
			if backwards {
				next--
			}
			out["next_batch"] = at(next)
		}
	}
	chunk := make([]*clientEvent, 0, len(l))
	v := r.viewer(rd)
	for i := range l {
		if rd.allows(&l[i]) {
			chunk = append(chunk, v.format(&l[i]))
		}
	}
	if err := s.bundle(ctx, rd, room, chunk); err != nil {
		return nil, err
	}
	out["chunk"] = chunk
	if text := q.Get("from"); text != "" {
		out["prev_batch"] = text
	}
	return out, nil
}

// tokenParam reads a token into pos, if there is one, at most limit.
func tokenParam(text string, limit int64, pos *int64) error {
	if text == "" {
		return nil
	}
	t, err := parseToken(text)
	if err != nil {
		return err
	}
	*pos = min(t.pos, limit)
	return nil
}

// getThreads lists the roots of a room's threads, the most recently active
// first.
func (s *Server) getThreads(r *request) (any, error) {
	ctx, room := r.Context(), r.room()
	limit, err := r.limitParam(messagesLimit, 100)
	if err != nil {
		return nil, err
	}
	rd, bound, err := s.entry(ctx, room, r.user)
	if err != nil {
		return nil, err
	}
	from := bound
	if from == 0 {
		if from, err = s.deps.Store.Position(ctx); err != nil {
			return nil, err
		}
	}
	if err := tokenParam(r.URL.Query().Get("from"), from, &from); err != nil {
		return nil, err
	}
	mine := r.URL.Query().Get("include") == "participated"
	roots := make([]matrix.StoredEvent, 0, limit)
	seen := make(map[matrix.EventID]bool)
	p, err := s.walk(ctx, room, from, 0, true, messagesLimitMax, func(e *matrix.StoredEvent) bool {
		parent, rel, _ := e.RelatesTo()
		return rel == "m.thread" && parent != "" && rd.allows(e)
	})
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	for i := range p.events {
		parent, _, _ := p.events[i].RelatesTo()
		if seen[parent] {
			continue
		}
		seen[parent] = true
		root, err := s.deps.Store.Event(ctx, room, parent)
		if err != nil || !rd.allows(&root) {
			continue
		}
		if mine && root.Sender != r.user {
			l, err := s.deps.Store.Relations(ctx, room, parent, "m.thread", "", 0, from, true, messagesLimitMax)
			if err != nil {
				return nil, err
			}
			took := false
			for j := range l {
				took = took || l[j].Sender == r.user
			}
			if !took {
				continue
			}
		}
		if len(roots) == limit {
			out["next_batch"] = at(p.events[i].Pos)
			break
		}
		roots = append(roots, root)
	}
	chunk := r.viewer(rd).formatAll(roots)
	if err := s.bundle(ctx, rd, room, chunk); err != nil {
		return nil, err
	}
	out["chunk"] = chunk
	return out, nil
}

// bundle adds to each event what others have added to it (client-server API,
// "Aggregations of child events"): its newest edit, its thread, its references.
func (s *Server) bundle(ctx context.Context, rd *reader, room matrix.RoomID, events []*clientEvent) error {
	if len(events) == 0 {
		return nil
	}
	ids := make([]matrix.EventID, 0, len(events))
	byID := make(map[matrix.EventID]*clientEvent, len(events))
	for _, e := range events {
		if e.StateKey == nil && e.Unsigned.RedactedBecause == nil {
			ids = append(ids, e.EventID)
			byID[e.EventID] = e
		}
	}
	const most = 500 // below SQLite's limit of variables
	for len(ids) > 0 {
		n := min(len(ids), most)
		rels, err := s.deps.Store.RelationsOf(ctx, room, ids[:n])
		if err != nil {
			return err
		}
		ids = ids[n:]
		for i := range rels {
			rel := &rels[i]
			if rd.allows(&rel.Event) {
				aggregate(byID[rel.Parent], rel, viewer{user: rd.user, now: time.Now()})
			}
		}
	}
	return nil
}

// A threadSummary is the aggregation of a thread.
type threadSummary struct {
	LatestEvent  *clientEvent `json:"latest_event"`
	Count        int          `json:"count"`
	Participated bool         `json:"current_user_participated"`
}

// aggregate adds one relation to its parent; relations come oldest first.
func aggregate(parent *clientEvent, rel *matrix.Relation, v viewer) {
	if parent.Unsigned.Relations == nil {
		parent.Unsigned.Relations = make(map[string]any)
	}
	m := parent.Unsigned.Relations
	switch rel.RelType {
	case "m.replace":
		// Only the author may edit, and only into the same type.
		if rel.Event.Sender == parent.Sender && rel.Event.Type == parent.Type && rel.Event.StateKey == nil {
			m["m.replace"] = v.format(&rel.Event)
		}
	case "m.reference":
		chunk, _ := m["m.reference"].(map[string]any)
		list, _ := chunk["chunk"].([]map[string]any)
		m["m.reference"] = map[string]any{"chunk": append(list, map[string]any{"event_id": rel.Event.ID})}
	case "m.thread":
		t, _ := m["m.thread"].(*threadSummary)
		if t == nil {
			t = &threadSummary{Participated: parent.Sender == v.user}
			m["m.thread"] = t
		}
		t.LatestEvent = v.format(&rel.Event)
		t.Count++
		t.Participated = t.Participated || rel.Event.Sender == v.user
	}
	if len(m) == 0 {
		parent.Unsigned.Relations = nil
	}
}

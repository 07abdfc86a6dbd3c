package homeserver

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// The types of receipts.
const (
	receiptRead    = "m.read"
	receiptPrivate = "m.read.private"
	fullyRead      = "m.fully_read"
)

// postReceipt moves one of the caller's receipts.
func (s *Server) postReceipt(r *request) (any, error) {
	var body struct {
		Thread *string `json:"thread_id"`
	}
	if err := r.decodeOptional(&body); err != nil {
		return nil, err
	}
	thread := ""
	if body.Thread != nil {
		if thread = *body.Thread; thread == "" {
			return nil, invalidParam("thread_id must not be empty")
		}
	}
	typ := r.PathValue("receiptType")
	if typ == fullyRead && thread != "" {
		return nil, invalidParam("thread_id: m.fully_read has no threads")
	}
	if err := s.requireJoined(r.Context(), r.room(), r.user); err != nil {
		return nil, err
	}
	return nil, s.mark(r, typ, matrix.EventID(r.PathValue("eventId")), thread)
}

// mark moves a receipt or the fully-read marker of the caller, who is joined.
func (s *Server) mark(r *request, typ string, id matrix.EventID, thread string) error {
	switch typ {
	case receiptRead, receiptPrivate:
		return s.putReceipt(r.Context(), r.room(), r.user, typ, id, thread)
	case fullyRead:
		content, err := json.Marshal(map[string]any{"event_id": id})
		if err != nil {
			return err
		}
		err = s.deps.Store.PutAccountData(r.Context(), r.user, r.room(), matrix.AccountData{Type: fullyRead, Content: content})
		if err == nil {
			s.notify.wake(r.user)
		}
		return err
	}
	return invalidParam("%.40q is no type of receipt", typ)
}

func (s *Server) putReceipt(ctx context.Context, room matrix.RoomID, user matrix.UserID, typ string, id matrix.EventID, thread string) error {
	e, err := s.deps.Store.Event(ctx, room, id)
	if errors.Is(err, call.ErrNotFound) {
		return notFound("no such event in this room")
	}
	if err != nil {
		return err
	}
	moved, err := s.deps.Store.PutReceipt(ctx, matrix.Receipt{
		Room: room, User: user, Type: typ, Thread: thread, Event: id, EventPos: e.Pos, TS: time.Now().UnixMilli(),
	})
	if err != nil || !moved {
		return err
	}
	if typ == receiptPrivate {
		s.notify.wake(user)
		return nil
	}
	s.wakeRoom(ctx, room)
	return nil
}

// postReadMarkers moves several markers at once.
func (s *Server) postReadMarkers(r *request) (any, error) {
	var body struct {
		FullyRead matrix.EventID `json:"m.fully_read"`
		Read      matrix.EventID `json:"m.read"`
		Private   matrix.EventID `json:"m.read.private"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	if err := s.requireJoined(r.Context(), r.room(), r.user); err != nil {
		return nil, err
	}
	for _, m := range []struct {
		typ string
		id  matrix.EventID
	}{{fullyRead, body.FullyRead}, {receiptRead, body.Read}, {receiptPrivate, body.Private}} {
		if m.id == "" {
			continue
		}
		if err := s.mark(r, m.typ, m.id, ""); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// receiptEvent is the m.receipt event of some receipts; nil if the reader may
// see none of them.
func receiptEvent(receipts []matrix.Receipt, reader matrix.UserID) any {
	type read struct {
		TS     int64  `json:"ts"`
		Thread string `json:"thread_id,omitempty"`
	}
	content := make(map[matrix.EventID]map[string]map[matrix.UserID]read)
	for _, c := range receipts {
		if c.Type == receiptPrivate && c.User != reader {
			continue
		}
		if content[c.Event] == nil {
			content[c.Event] = make(map[string]map[matrix.UserID]read)
		}
		if content[c.Event][c.Type] == nil {
			content[c.Event][c.Type] = make(map[matrix.UserID]read)
		}
		content[c.Event][c.Type][c.User] = read{c.TS, c.Thread}
	}
	if len(content) == 0 {
		return nil
	}
	return map[string]any{"type": "m.receipt", "content": content}
}

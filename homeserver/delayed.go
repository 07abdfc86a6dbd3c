package homeserver

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

const (
	// maxDelay is the longest delay of a delayed event (MSC4140). Clients that
	// delegate their leave to the call server ask for an hour.
	maxDelay = 24 * time.Hour
	// maxDelayed is how many events one user may have scheduled.
	maxDelayed = 100
	// delayedBatch is how many due events are read at once.
	delayedBatch = 100
	// delayedRetry is the wait after the store failed.
	delayedRetry = time.Second
	// delayedIdle is how long the scheduler sleeps when nothing is scheduled.
	delayedIdle = time.Minute
)

// delayParam reads the MSC4140 query parameter, stable or unstable. A parameter
// that is there and cannot be read is an error, never ignored: the event would
// be sent at once.
func delayParam(q url.Values) (d time.Duration, delayed bool, err error) {
	for _, name := range []string{"org.matrix.msc4140.delay", "delay"} {
		if d, ok, err := millis(q.Get(name), q.Has(name), name); ok || err != nil {
			return d, ok, err
		}
	}
	return 0, false, nil
}

// schedule stores a delayed event and answers with its ID. txnID may be empty.
func (s *Server) schedule(r *request, o outgoing, delay time.Duration, scope, txnID string) (any, error) {
	ctx := r.Context()
	if delay > maxDelay {
		// Clients retry with the maximum that they are told.
		return nil, &matrix.Error{
			Status: http.StatusBadRequest, Code: matrix.CodeUnknown, Message: "the delay is too long",
			Extra: map[string]any{
				"org.matrix.msc4140.errcode":   "M_MAX_DELAY_EXCEEDED",
				"org.matrix.msc4140.max_delay": maxDelay.Milliseconds(),
			},
		}
	}
	if delay <= 0 {
		return nil, invalidParam("the delay must be above 0")
	}
	if err := s.requireJoined(ctx, o.room, o.sender); err != nil {
		return nil, err
	}
	content, err := matrix.CanonicalObject(o.content)
	if err != nil {
		return nil, eventError(err)
	}
	draft := matrix.Draft{
		RoomID: o.room, Version: matrix.RoomVersion12, Type: o.typ, StateKey: o.stateKey, Sender: o.sender, Content: content,
		Sticky: o.sticky, Time: time.Now(),
	}
	if _, err := matrix.Build(draft, s.key); err != nil { // what can never be sent is refused now
		return nil, eventError(err)
	}
	if txnID != "" {
		scope = "delayed " + scope
	}
	id, err := s.deps.Store.PutDelayed(ctx, matrix.DelayedEvent{
		ID: "delay_" + randomID(16), RoomID: o.room, UserID: o.sender, DeviceID: o.device, Type: o.typ, StateKey: o.stateKey,
		Content: content, Delay: delay, RunningSince: ceilMS(time.Now()), Sticky: o.sticky, TxnID: txnID,
	}, scope, maxDelayed)
	if errors.Is(err, call.ErrUnavailable) {
		return nil, limitExceeded(r.w, time.Minute)
	}
	if err != nil {
		return nil, err
	}
	s.kickDelayed()
	return map[string]any{"delay_id": id}, nil
}

// ceilMS rounds up to the milliseconds that are stored, so that nothing is ever
// sent early.
func ceilMS(t time.Time) time.Time {
	return t.Add(time.Millisecond - time.Nanosecond).Truncate(time.Millisecond)
}

// kickDelayed makes the scheduler look again.
func (s *Server) kickDelayed() {
	select {
	case s.roomsState.delayed <- struct{}{}:
	default: // it will look anyway
	}
}

// runDelayed sends delayed events when they are due, also those that became due
// while the server was down. No rate limit applies to it.
func (s *Server) runDelayed(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-s.roomsState.delayed:
		case <-ctx.Done():
			return
		}
		timer.Reset(s.sendDue(ctx))
	}
}

// sendDue sends what is due and returns how long there is nothing to do.
func (s *Server) sendDue(ctx context.Context) time.Duration {
	for {
		now := time.Now()
		due, next, err := s.deps.Store.DueDelayed(ctx, now, delayedBatch)
		if err != nil {
			if ctx.Err() == nil {
				s.log.Error("read delayed events", "error", err)
			}
			return delayedRetry
		}
		failed := false
		for i := range due {
			if ctx.Err() != nil {
				return delayedRetry
			}
			if err := s.sendDelayed(ctx, &due[i], now); err != nil && !errors.Is(err, call.ErrNotFound) {
				s.log.Error("send delayed event", "room", due[i].RoomID, "user", due[i].UserID, "type", due[i].Type, "error", err)
				failed = failed || errorReply(err).Status >= 500
			}
		}
		switch {
		case failed:
			return delayedRetry
		case len(due) == delayedBatch:
			continue
		case next.IsZero():
			return delayedIdle
		}
		return min(delayedIdle, max(0, time.Until(next)))
	}
}

// sendDelayed sends a scheduled event now; with due set, only if it has not been
// restarted since it was found to be due then. ErrNotFound: it is no longer
// scheduled, or not due. What the room's rules refuse is over and noted as failed.
func (s *Server) sendDelayed(ctx context.Context, d *matrix.DelayedEvent, due time.Time) error {
	o := outgoing{
		room: d.RoomID, sender: d.UserID, device: d.DeviceID, typ: d.Type, stateKey: d.StateKey, content: d.Content,
		sticky: d.Sticky, delayID: d.ID, delayDue: due,
	}
	err := s.checkDelayed(ctx, &o)
	if err == nil {
		_, err = s.send(ctx, o)
	}
	if err == nil || errors.Is(err, call.ErrNotFound) {
		return err
	}
	if e := errorReply(err); e.Status < 500 {
		if fin := s.deps.Store.FinishDelayed(ctx, d.ID, matrix.DelayedFailed, time.Now()); fin != nil {
			return fin
		}
	}
	return err
}

// checkDelayed is checkStateContent for a delayed event, at the time when it is sent.
func (s *Server) checkDelayed(ctx context.Context, o *outgoing) error {
	if o.stateKey == nil {
		return nil
	}
	u, err := s.deps.Store.User(ctx, o.sender)
	if err == nil {
		err = s.checkStateContent(ctx, u.Guest, o)
	}
	if errors.Is(err, call.ErrNotFound) {
		return forbidden("%v", err) // not found is for the delayed event itself
	}
	return err
}

// DelayedEvent returns a scheduled event. ErrNotFound: unknown or finalised.
func (s *Server) DelayedEvent(ctx context.Context, id string) (matrix.DelayedEvent, error) {
	d, err := s.deps.Store.Delayed(ctx, id)
	if err == nil && d.Outcome != matrix.DelayedScheduled {
		err = call.ErrNotFound
	}
	return d, err
}

// RestartDelayedEvent starts the delay of a scheduled event anew. ErrNotFound:
// unknown or finalised.
func (s *Server) RestartDelayedEvent(ctx context.Context, id string) error {
	return s.deps.Store.RestartDelayed(ctx, id, ceilMS(time.Now()))
}

// SendDelayedEvent sends a scheduled event now; one that was sent already is no
// error. ErrNotFound: unknown or cancelled. ErrForbidden: the room's rules
// refuse it.
func (s *Server) SendDelayedEvent(ctx context.Context, id string) error {
	d, err := s.deps.Store.Delayed(ctx, id)
	if err != nil {
		return err
	}
	if d.Outcome == matrix.DelayedScheduled {
		err = s.sendDelayed(ctx, &d, time.Time{})
		if err == nil {
			return nil
		}
		if !errors.Is(err, call.ErrNotFound) {
			if errorReply(err).Status == http.StatusForbidden {
				return errors.Join(call.ErrForbidden, err)
			}
			return err
		}
		// The timer was faster: see what became of it.
		if d, err = s.deps.Store.Delayed(ctx, id); err != nil {
			return err
		}
	}
	if d.Outcome == matrix.DelayedSent {
		return nil
	}
	return call.ErrNotFound
}

// CancelDelayedEvent unschedules an event; one that was cancelled already is no
// error. ErrNotFound: unknown or sent.
func (s *Server) CancelDelayedEvent(ctx context.Context, id string) error {
	err := s.deps.Store.FinishDelayed(ctx, id, matrix.DelayedCancelled, time.Now())
	if !errors.Is(err, call.ErrNotFound) {
		return err
	}
	if d, err := s.deps.Store.Delayed(ctx, id); err == nil && d.Outcome == matrix.DelayedCancelled {
		return nil
	}
	return call.ErrNotFound
}

// manage does a management action. An ID is a secret and needs no token; who
// does send one must be the owner.
func (s *Server) manage(r *request, id, action string) error {
	ctx := r.Context()
	if r.user != "" {
		d, err := s.deps.Store.Delayed(ctx, id)
		if err == nil && d.UserID != r.user {
			return forbidden("this delayed event belongs to another user")
		}
	}
	switch action {
	case "send":
		return s.SendDelayedEvent(ctx, id)
	case "restart":
		return s.RestartDelayedEvent(ctx, id)
	case "cancel":
		return s.CancelDelayedEvent(ctx, id)
	}
	return &matrix.Error{Status: http.StatusNotFound, Code: matrix.CodeUnrecognized, Message: "the actions are send, restart and cancel"}
}

// postDelayed manages a delayed event, the way deployed clients do: with the
// action in the path or, older, in the body. Whatever cannot be done any more is
// 404 M_NOT_FOUND, which makes a client join its call again.
func (s *Server) postDelayed(r *request) (any, error) {
	action := r.PathValue("action")
	if action == "" {
		var body struct {
			Action string `json:"action"`
		}
		if err := r.decode(&body); err != nil {
			return nil, err
		}
		if action = body.Action; action == "" {
			return nil, missingParam("action is needed")
		}
		if action != "send" && action != "restart" && action != "cancel" {
			return nil, invalidParam("action: %.40q is none of send, restart, cancel", action)
		}
	}
	err := s.manage(r, r.PathValue("delayId"), action)
	if errors.Is(err, call.ErrNotFound) {
		return nil, notFound("no such delayed event is scheduled")
	}
	return nil, err
}

// postDelayedStable is postDelayed as MSC4140 has it now: an action that came too
// late is a conflict.
func (s *Server) postDelayedStable(r *request) (any, error) {
	id := r.PathValue("delayId")
	err := s.manage(r, id, r.PathValue("action"))
	if errors.Is(err, call.ErrNotFound) {
		if _, err := s.deps.Store.Delayed(r.Context(), id); err == nil {
			return nil, &matrix.Error{Status: http.StatusConflict, Code: matrix.CodeUnknown, Message: "the delayed event was sent or cancelled before"}
		}
		return nil, notFound("no such delayed event")
	}
	return nil, err
}

// A delayedJSON is a delayed event in a listing.
type delayedJSON struct {
	DelayID      string          `json:"delay_id"`
	RoomID       matrix.RoomID   `json:"room_id"`
	Type         string          `json:"type"`
	StateKey     *string         `json:"state_key,omitempty"`
	Delay        int64           `json:"delay"`
	DelayMS      int64           `json:"delay_ms"`
	RunningSince int64           `json:"running_since"`
	Content      json.RawMessage `json:"content"`
}

func listDelayed(d matrix.DelayedEvent) delayedJSON {
	ms := d.Delay.Milliseconds()
	return delayedJSON{d.ID, d.RoomID, d.Type, d.StateKey, ms, ms, d.RunningSince.UnixMilli(), d.Content}
}

// getDelayedList lists the caller's scheduled events.
func (s *Server) getDelayedList(r *request) (any, error) {
	l, err := s.deps.Store.DelayedOf(r.Context(), r.user)
	if err != nil {
		return nil, err
	}
	out := make([]delayedJSON, len(l))
	for i := range l {
		out[i] = listDelayed(l[i])
	}
	return map[string]any{"delayed_events": out}, nil
}

// getDelayed returns one of the caller's scheduled events.
func (s *Server) getDelayed(r *request) (any, error) {
	d, err := s.DelayedEvent(r.Context(), r.PathValue("delayId"))
	if errors.Is(err, call.ErrNotFound) || (err == nil && d.UserID != r.user) {
		return nil, notFound("no such delayed event is scheduled")
	}
	if err != nil {
		return nil, err
	}
	return listDelayed(d), nil
}

// putDelayedStable schedules an event as MSC4140 has it now: everything in the
// body.
func (s *Server) putDelayedStable(r *request) (any, error) {
	var body struct {
		Delay    *int64          `json:"delay"`
		DelayMS  *int64          `json:"delay_ms"`
		StateKey *string         `json:"state_key"`
		Content  json.RawMessage `json:"content"`
		Sticky   *int64          `json:"sticky_duration_ms"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	ms := body.DelayMS
	if ms == nil {
		ms = body.Delay
	}
	if ms == nil {
		return nil, missingParam("delay_ms is needed")
	}
	if len(body.Content) == 0 {
		return nil, missingParam("content is needed")
	}
	if *ms > maxDelay.Milliseconds() {
		return nil, forbidden("the delay is too long: at most %d ms", maxDelay.Milliseconds())
	}
	o := outgoing{room: r.room(), sender: r.user, device: r.device, typ: r.PathValue("eventType"), stateKey: body.StateKey, content: body.Content}
	if body.Sticky != nil {
		d := time.Duration(*body.Sticky) * time.Millisecond
		if *body.Sticky < 0 || *body.Sticky > maxSticky.Milliseconds() {
			return nil, invalidParam("sticky_duration_ms: 0 to %d", maxSticky.Milliseconds())
		}
		o.sticky = &d
	}
	return s.schedule(r, o, time.Duration(*ms)*time.Millisecond, "stable "+string(o.room)+" "+o.typ, r.PathValue("txnId"))
}

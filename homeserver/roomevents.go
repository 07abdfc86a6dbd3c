package homeserver

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// transaction returns the transaction of a request with a txnId in its path, nil
// without one.
func (r *request) transaction(scope string) *matrix.Transaction {
	if r.PathValue("txnId") == "" {
		return nil
	}
	return &matrix.Transaction{User: r.user, Device: r.device, Scope: scope, ID: r.PathValue("txnId")}
}

// putSend sends a message event, now or later (MSC4140), sticky or not (MSC4354).
func (s *Server) putSend(r *request) (any, error) {
	content, err := r.object()
	if err != nil {
		return nil, err
	}
	typ := r.PathValue("eventType")
	o := outgoing{room: r.room(), sender: r.user, device: r.device, typ: typ, content: content}
	if o.sticky, err = stickyParam(r.URL.Query()); err != nil {
		return nil, err
	}
	scope := "send " + string(o.room) + " " + typ
	if d, delayed, err := delayParam(r.URL.Query()); err != nil {
		return nil, err
	} else if delayed {
		return s.schedule(r, o, d, scope, r.PathValue("txnId"))
	}
	o.txn = r.transaction(scope)
	if typ == "m.room.redaction" {
		// From version 1.18 on redactions may be sent like any other event.
		var c struct {
			Redacts matrix.EventID `json:"redacts"`
		}
		if err := decodeJSON(content, &c); err != nil {
			return nil, err
		}
		o.redacts = c.Redacts
	}
	if err := s.refuseDuplicateAnnotation(r, o); err != nil {
		return nil, err
	}
	id, err := s.send(r.Context(), o)
	if err != nil {
		return nil, err
	}
	return map[string]any{"event_id": id}, nil
}

// refuseDuplicateAnnotation refuses a second equal reaction by one user.
func (s *Server) refuseDuplicateAnnotation(r *request, o outgoing) error {
	e := matrix.Event{Content: o.content}
	parent, rel, key := e.RelatesTo()
	if rel != "m.annotation" || parent == "" {
		return nil
	}
	if o.txn != nil {
		if _, err := s.deps.Store.Transaction(r.Context(), *o.txn); err == nil {
			return nil // a repeated request, not a second reaction
		}
	}
	twice, err := s.deps.Store.HasAnnotation(r.Context(), parent, o.sender, o.typ, key)
	if err != nil {
		return err
	}
	if twice {
		return &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeDuplicate, Message: "you have reacted so already"}
	}
	return nil
}

// putState sends a state event, now or later.
func (s *Server) putState(r *request) (any, error) {
	content, err := r.object()
	if err != nil {
		return nil, err
	}
	key := r.PathValue("stateKey")
	o := outgoing{room: r.room(), sender: r.user, device: r.device, typ: r.PathValue("eventType"), stateKey: &key, content: content}
	if o.sticky, err = stickyParam(r.URL.Query()); err != nil {
		return nil, err
	}
	if d, delayed, err := delayParam(r.URL.Query()); err != nil {
		return nil, err
	} else if delayed {
		return s.schedule(r, o, d, "", "")
	}
	if err := s.checkStateContent(r.Context(), r.guest, &o); err != nil {
		return nil, err
	}
	id, err := s.send(r.Context(), o)
	if err != nil {
		return nil, err
	}
	if o.typ == "m.room.guest_access" {
		e := matrix.Event{Content: o.content}
		if e.ContentString("guest_access") != "can_join" {
			s.expelGuests(r.Context(), o.room)
		}
	}
	return map[string]any{"event_id": id}, nil
}

// checkStateContent checks what the room's rules do not.
func (s *Server) checkStateContent(ctx context.Context, guest bool, o *outgoing) error {
	switch o.typ {
	case "m.room.canonical_alias":
		return s.checkCanonicalAlias(ctx, o.room, o.content)
	case "m.room.power_levels":
		return s.checkNoCreators(ctx, *o)
	case "m.room.member":
		return s.checkMember(ctx, guest, o)
	case "org.matrix.msc3401.call.member":
		return s.checkCallMember(ctx, o)
	}
	return nil
}

// checkCallMember keeps people from ending other people's calls. The state keys of
// call memberships are _@user:server_DEVICE_application, which the room's rules
// protect for nobody (MSC3757 would), and everybody may write them. Here only their
// user may, and who may redact, to tidy up.
func (s *Server) checkCallMember(ctx context.Context, o *outgoing) error {
	if !strings.HasPrefix(*o.stateKey, "_@") || strings.HasPrefix(*o.stateKey, "_"+string(o.sender)+"_") {
		return nil
	}
	p, err := s.power(ctx, o.room)
	if err != nil {
		return err
	}
	if !p.CanRedact(o.sender) {
		return forbidden("this call membership belongs to another user")
	}
	return nil
}

// checkMember holds a member event that is sent as state to what the endpoints of
// memberships ask for.
func (s *Server) checkMember(ctx context.Context, guest bool, o *outgoing) error {
	noGuests := &matrix.Error{Status: http.StatusForbidden, Code: matrix.CodeGuestForbidden, Message: "guests may not do this"}
	e := matrix.Event{Content: o.content}
	switch e.Membership() {
	case matrix.MembershipInvite:
		if guest {
			return noGuests
		}
		if err := s.requireJoined(ctx, o.room, o.sender); err != nil {
			return err
		}
		if matrix.UserID(*o.stateKey) != o.sender {
			return s.checkInvitee(ctx, matrix.UserID(*o.stateKey))
		}
	case matrix.MembershipKnock:
		if guest {
			return noGuests
		}
	case matrix.MembershipJoin:
		m, err := s.deps.Store.Membership(ctx, o.room, o.sender)
		if errors.Is(err, call.ErrNotFound) {
			return nil // the room's rules say so
		}
		if err != nil {
			return err
		}
		if guest && m.Membership != matrix.MembershipJoin {
			if err := s.guestMayJoin(ctx, o.room); err != nil {
				return err
			}
		}
		return s.vouch(ctx, m.Membership, o)
	}
	return nil
}

// vouch puts into a join the member who lets the user in, if the room asks for one
// and has one. What the client says about that does not count: this server's
// signature under it would.
func (s *Server) vouch(ctx context.Context, now matrix.Membership, o *outgoing) error {
	const key = "join_authorised_via_users_server"
	content := make(map[string]json.RawMessage)
	if err := decodeJSON(o.content, &content); err != nil {
		return err
	}
	_, change := content[key]
	delete(content, key)
	if now != matrix.MembershipJoin && now != matrix.MembershipInvite {
		by := make(map[string]any)
		if err := s.authoriseRestricted(ctx, o.room, o.sender, by); err != nil {
			return err
		}
		if voucher, ok := by[key]; ok {
			raw, err := json.Marshal(voucher)
			if err != nil {
				return err
			}
			content[key], change = raw, true
		}
	}
	if !change {
		return nil
	}
	raw, err := json.Marshal(content)
	o.content = raw
	return err
}

// checkNoCreators refuses power levels that name a creator of a room whose
// creators stand above them (MSC4289). The room's rules refuse that too, but it is
// the request that is wrong and not a right that is missing. Who is not in the
// room is left to the rules.
func (s *Server) checkNoCreators(ctx context.Context, o outgoing) error {
	var c struct {
		Users map[matrix.UserID]json.RawMessage `json:"users"`
	}
	if json.Unmarshal(o.content, &c) != nil || len(c.Users) == 0 || s.requireJoined(ctx, o.room, o.sender) != nil {
		return nil
	}
	create, err := s.stateEvent(ctx, o.room, "m.room.create", "")
	if err != nil || create == nil || !create.Version.PrivilegedCreators() {
		return err
	}
	for _, u := range create.Creators() {
		if _, named := c.Users[u]; named {
			return invalidParam("users: %s made the room and stands above its power levels", u)
		}
	}
	return nil
}

// putRedact redacts an event.
func (s *Server) putRedact(r *request) (any, error) {
	var body struct {
		Reason string `json:"reason"`
	}
	if err := r.decodeOptional(&body); err != nil {
		return nil, err
	}
	content := map[string]any{}
	if body.Reason != "" {
		content["reason"] = body.Reason
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return nil, err
	}
	target := matrix.EventID(r.PathValue("eventId"))
	id, err := s.send(r.Context(), outgoing{
		room: r.room(), sender: r.user, device: r.device, typ: "m.room.redaction", content: raw, redacts: target,
		txn: r.transaction("redact " + string(r.room()) + " " + string(target)),
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"event_id": id}, nil
}

// getState returns the room's state as the caller may see it.
func (s *Server) getState(r *request) (any, error) {
	rd, at, err := s.entry(r.Context(), r.room(), r.user)
	if err != nil {
		return nil, err
	}
	state, err := s.deps.Store.State(r.Context(), r.room(), at)
	if err != nil {
		return nil, err
	}
	return r.viewer(rd).formatAll(state), nil
}

// getStateEvent returns the content of one state event, or all of it with
// ?format=event.
func (s *Server) getStateEvent(r *request) (any, error) {
	rd, at, err := s.entry(r.Context(), r.room(), r.user)
	if err != nil {
		return nil, err
	}
	l, err := s.deps.Store.StateEvents(r.Context(), r.room(), at, matrix.StateKeyTuple{Type: r.PathValue("eventType"), Key: r.PathValue("stateKey")})
	if err != nil {
		return nil, err
	}
	if len(l) == 0 {
		return nil, notFound("the room has no such state")
	}
	switch f := r.URL.Query().Get("format"); f {
	case "", "content":
		return l[0].Content, nil
	case "event":
		return r.viewer(rd).format(&l[0]), nil
	default:
		return nil, invalidParam("format: %.40q is neither content nor event", f)
	}
}

// readable returns one event if the caller may read it. Not to be found and not
// to be seen look the same.
func (s *Server) readable(r *request, id matrix.EventID) (*matrix.StoredEvent, *reader, error) {
	ctx := r.Context()
	rd, err := s.reader(ctx, r.room(), r.user, 0)
	if err != nil {
		return nil, nil, err
	}
	e, err := s.deps.Store.Event(ctx, r.room(), id)
	if errors.Is(err, call.ErrNotFound) || (err == nil && !rd.allows(&e)) {
		return nil, nil, notFound("no such event, or you may not read it")
	}
	if err != nil {
		return nil, nil, err
	}
	return &e, rd, nil
}

func (s *Server) getEvent(r *request) (any, error) {
	e, rd, err := s.readable(r, matrix.EventID(r.PathValue("eventId")))
	if err != nil {
		return nil, err
	}
	out := []*clientEvent{r.viewer(rd).format(e)}
	if err := s.bundle(r.Context(), rd, r.room(), out); err != nil {
		return nil, err
	}
	return out[0], nil
}

// getMembers returns the member events of a room.
func (s *Server) getMembers(r *request) (any, error) {
	ctx, q := r.Context(), r.URL.Query()
	rd, at, err := s.entry(ctx, r.room(), r.user)
	if err != nil {
		return nil, err
	}
	if from := q.Get("at"); from != "" {
		t, err := parseToken(from)
		if err != nil {
			return nil, err
		}
		if at == 0 || t.pos < at {
			at = max(t.pos, 1)
		}
	}
	state, err := s.deps.Store.State(ctx, r.room(), at)
	if err != nil {
		return nil, err
	}
	chunk := make([]*clientEvent, 0, len(state))
	v := r.viewer(rd)
	for i := range state {
		e := &state[i]
		if e.Type != "m.room.member" {
			continue
		}
		m := string(e.Membership())
		if want := q.Get("membership"); want != "" && m != want {
			continue
		}
		if not := q.Get("not_membership"); not != "" && m == not {
			continue
		}
		chunk = append(chunk, v.format(e))
	}
	return map[string]any{"chunk": chunk}, nil
}

func (s *Server) getJoinedMembers(r *request) (any, error) {
	ctx := r.Context()
	if err := s.requireJoined(ctx, r.room(), r.user); err != nil {
		return nil, err
	}
	state, err := s.deps.Store.State(ctx, r.room(), 0)
	if err != nil {
		return nil, err
	}
	// The keys are there also when there is nothing in them: clients read them
	// without asking.
	type profile struct {
		DisplayName *string `json:"display_name"`
		AvatarURL   *string `json:"avatar_url"`
	}
	text := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	joined := make(map[string]profile)
	for i := range state {
		e := &state[i]
		if e.Type == "m.room.member" && e.Membership() == matrix.MembershipJoin {
			joined[*e.StateKey] = profile{text(e.ContentString("displayname")), text(e.ContentString("avatar_url"))}
		}
	}
	return map[string]any{"joined": joined}, nil
}

// limitParam reads ?limit.
func (r *request) limitParam(standard, most int) (int, error) {
	l := r.URL.Query().Get("limit")
	if l == "" {
		return standard, nil
	}
	n, err := strconv.Atoi(l)
	if err != nil || n < 0 {
		return 0, invalidParam("limit: %.20q is not a number", l)
	}
	return min(n, most), nil
}

// millis reads a query parameter of milliseconds; ok is false if it is absent.
func millis(value string, present bool, name string) (d time.Duration, ok bool, err error) {
	if !present {
		return 0, false, nil
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < 0 {
		return 0, false, invalidParam("%s: %.40q is not a number of milliseconds", name, value)
	}
	const century = 100 * 365 * 24 * time.Hour
	if n > century.Milliseconds() {
		return century, true, nil // whoever limits it will say so
	}
	return time.Duration(n) * time.Millisecond, true, nil
}

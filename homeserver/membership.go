package homeserver

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// resolve turns a room ID or alias into a room ID.
func (s *Server) resolve(ctx context.Context, idOrAlias string) (matrix.RoomID, error) {
	switch {
	case strings.HasPrefix(idOrAlias, "!"):
		return matrix.RoomID(idOrAlias), nil
	case strings.HasPrefix(idOrAlias, "#"):
		room, _, err := s.deps.Store.Alias(ctx, matrix.RoomAlias(idOrAlias))
		if errors.Is(err, call.ErrNotFound) {
			return "", notFound("there is no room %s", idOrAlias)
		}
		return room, err
	}
	return "", invalidParam("%.80q is neither a room ID nor an alias", idOrAlias)
}

// room returns the room in the request's path.
func (r *request) room() matrix.RoomID { return matrix.RoomID(r.PathValue("roomId")) }

type reasonBody struct {
	UserID matrix.UserID `json:"user_id"`
	Reason string        `json:"reason"`
}

func (s *Server) postJoinAny(r *request) (any, error) {
	room, err := s.resolve(r.Context(), r.PathValue("roomIdOrAlias"))
	if err != nil {
		return nil, err
	}
	return s.join(r, room)
}

func (s *Server) postJoin(r *request) (any, error) { return s.join(r, r.room()) }

// notForMembers are the keys of a join request that do not become part of the
// member event, or are not for its client to say. Others are the client's own, and
// other servers let them through.
var notForMembers = []string{
	"membership", "displayname", "avatar_url", "reason", "third_party_signed", "third_party_invite",
	"join_authorised_via_users_server", "is_direct", "user_id", "via", "server_name",
}

// join makes the caller a joined member.
func (s *Server) join(r *request, room matrix.RoomID) (any, error) {
	raw, err := r.objectOrEmpty()
	if err != nil {
		return nil, err
	}
	var body reasonBody
	var more map[string]any
	if err := errors.Join(decodeJSON(raw, &body), decodeJSON(raw, &more)); err != nil {
		return nil, err
	}
	ctx := r.Context()
	now, err := s.deps.Store.Membership(ctx, room, r.user)
	if errors.Is(err, call.ErrNotFound) {
		return nil, notFound("there is no such room here")
	}
	if err != nil {
		return nil, err
	}
	if now.Membership == matrix.MembershipJoin {
		return map[string]any{"room_id": room}, nil
	}
	if r.guest {
		if err := s.guestMayJoin(ctx, room); err != nil {
			return nil, err
		}
	}
	content, err := s.memberContent(ctx, r.user, matrix.MembershipJoin, body.Reason)
	if err != nil {
		return nil, err
	}
	for k, v := range more {
		if _, taken := content[k]; !taken && !slices.Contains(notForMembers, k) {
			content[k] = v
		}
	}
	if now.Membership != matrix.MembershipInvite {
		if err := s.authoriseRestricted(ctx, room, r.user, content); err != nil {
			return nil, err
		}
	}
	if err := s.setMembership(ctx, room, r.user, r.device, r.user, content); err != nil {
		return nil, err
	}
	return map[string]any{"room_id": room}, nil
}

// guestMayJoin refuses rooms whose guest_access is not can_join.
func (s *Server) guestMayJoin(ctx context.Context, room matrix.RoomID) error {
	e, err := s.stateEvent(ctx, room, "m.room.guest_access", "")
	if err != nil {
		return err
	}
	if e == nil || e.ContentString("guest_access") != "can_join" {
		return &matrix.Error{Status: http.StatusForbidden, Code: matrix.CodeGuestForbidden, Message: "guests may not join this room"}
	}
	return nil
}

// authoriseRestricted adds the member who vouches for a join to a room with a
// restricted join rule, if the user is in one of the rooms that it allows
// (client-server API, "Restricted rooms").
func (s *Server) authoriseRestricted(ctx context.Context, room matrix.RoomID, user matrix.UserID, content map[string]any) error {
	rules, err := s.stateEvent(ctx, room, "m.room.join_rules", "")
	if err != nil || rules == nil {
		return err
	}
	if r := rules.ContentString("join_rule"); r != "restricted" && r != "knock_restricted" {
		return nil
	}
	var c struct {
		Allow []struct {
			Type   string        `json:"type"`
			RoomID matrix.RoomID `json:"room_id"`
		} `json:"allow"`
	}
	if json.Unmarshal(rules.Content, &c) != nil {
		return forbidden("the room's join rules cannot be read")
	}
	allowed := false
	for _, a := range c.Allow {
		if a.Type != "m.room_membership" {
			continue
		}
		m, err := s.deps.Store.Membership(ctx, a.RoomID, user)
		if err == nil && m.Membership == matrix.MembershipJoin {
			allowed = true
			break
		}
	}
	if !allowed {
		return forbidden("you are in none of the rooms that may join this one")
	}
	p, err := s.power(ctx, room)
	if err != nil {
		return err
	}
	members, err := s.deps.Store.Members(ctx, room)
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.Membership == matrix.MembershipJoin && m.User.Server() == s.cfg.ServerName && p.CanInvite(m.User) {
			content["join_authorised_via_users_server"] = string(m.User)
			return nil
		}
	}
	return &matrix.Error{Status: http.StatusBadRequest, Code: "M_UNABLE_TO_GRANT_JOIN", Message: "nobody here may let you in"}
}

// setMembership sends a member event.
func (s *Server) setMembership(ctx context.Context, room matrix.RoomID, sender matrix.UserID, device matrix.DeviceID, target matrix.UserID, content map[string]any) error {
	return s.setMembershipIf(ctx, room, sender, device, target, content, nil)
}

func (s *Server) setMembershipIf(ctx context.Context, room matrix.RoomID, sender matrix.UserID, device matrix.DeviceID, target matrix.UserID, content map[string]any, check func(*matrix.Event) error) error {
	raw, err := json.Marshal(content)
	if err != nil {
		return err
	}
	key := string(target)
	_, err = s.send(ctx, outgoing{
		room: room, sender: sender, device: device, typ: "m.room.member", stateKey: &key, content: raw, check: check,
	})
	return err
}

func (s *Server) postKnock(r *request) (any, error) {
	room, err := s.resolve(r.Context(), r.PathValue("roomIdOrAlias"))
	if err != nil {
		return nil, err
	}
	var body reasonBody
	if err := r.decodeOptional(&body); err != nil {
		return nil, err
	}
	if _, err := s.deps.Store.Room(r.Context(), room); errors.Is(err, call.ErrNotFound) {
		return nil, notFound("there is no such room here")
	}
	content, err := s.memberContent(r.Context(), r.user, matrix.MembershipKnock, body.Reason)
	if err != nil {
		return nil, err
	}
	if err := s.setMembership(r.Context(), room, r.user, r.device, r.user, content); err != nil {
		return nil, err
	}
	return map[string]any{"room_id": room}, nil
}

func (s *Server) postLeave(r *request) (any, error) {
	var body reasonBody
	if err := r.decodeOptional(&body); err != nil {
		return nil, err
	}
	m, err := s.deps.Store.Membership(r.Context(), r.room(), r.user)
	if errors.Is(err, call.ErrNotFound) {
		return nil, notFound("there is no such room here")
	}
	if err != nil {
		return nil, err
	}
	if m.Membership == matrix.MembershipLeave {
		return nil, nil // already so
	}
	content := map[string]any{"membership": "leave"}
	if body.Reason != "" {
		content["reason"] = body.Reason
	}
	return nil, s.setMembership(r.Context(), r.room(), r.user, r.device, r.user, content)
}

func (s *Server) postForget(r *request) (any, error) {
	m, err := s.deps.Store.Membership(r.Context(), r.room(), r.user)
	if errors.Is(err, call.ErrNotFound) || (err == nil && m.Membership == matrix.MembershipNone) {
		return nil, notFound("you were never in this room")
	}
	if err != nil {
		return nil, err
	}
	if m.Membership != matrix.MembershipLeave && m.Membership != matrix.MembershipBan {
		return nil, &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeUnknown, Message: "leave the room first"}
	}
	return nil, s.deps.Store.Forget(r.Context(), r.room(), r.user)
}

// target reads the body of an action on another user.
func (r *request) target() (reasonBody, error) {
	var body reasonBody
	if err := r.decode(&body); err != nil {
		return body, err
	}
	if body.UserID == "" {
		return body, missingParam("user_id is needed")
	}
	if !strings.HasPrefix(string(body.UserID), "@") || body.UserID.Server() == "" {
		return body, invalidParam("user_id: %.80q is not a user ID", body.UserID)
	}
	return body, nil
}

func (s *Server) postInvite(r *request) (any, error) {
	body, err := r.target()
	if err != nil {
		return nil, err
	}
	if err := s.requireJoined(r.Context(), r.room(), r.user); err != nil {
		return nil, err // before we say who exists
	}
	if err := s.checkInvitee(r.Context(), body.UserID); err != nil {
		return nil, err
	}
	content, err := s.memberContent(r.Context(), body.UserID, matrix.MembershipInvite, body.Reason)
	if err != nil {
		return nil, err
	}
	return nil, s.setMembership(r.Context(), r.room(), r.user, r.device, body.UserID, content)
}

// requireJoined refuses callers who are not in the room, the same way for rooms
// that do not exist.
func (s *Server) requireJoined(ctx context.Context, room matrix.RoomID, user matrix.UserID) error {
	m, err := s.deps.Store.Membership(ctx, room, user)
	if errors.Is(err, call.ErrNotFound) || (err == nil && m.Membership != matrix.MembershipJoin) {
		return forbidden("no such room, or you are not in it")
	}
	return err
}

func (s *Server) postKick(r *request) (any, error) {
	return s.expel(r, matrix.MembershipLeave, func(m matrix.Membership) error {
		if m == matrix.MembershipJoin || m == matrix.MembershipInvite || m == matrix.MembershipKnock {
			return nil
		}
		return forbidden("the user is not in the room")
	})
}

func (s *Server) postBan(r *request) (any, error) {
	return s.expel(r, matrix.MembershipBan, func(matrix.Membership) error { return nil })
}

func (s *Server) postUnban(r *request) (any, error) {
	return s.expel(r, matrix.MembershipLeave, func(m matrix.Membership) error {
		if m == matrix.MembershipBan {
			return nil
		}
		return forbidden("the user is not banned")
	})
}

// expel sets another user's membership if the present one is as it should be.
func (s *Server) expel(r *request, to matrix.Membership, mayBe func(matrix.Membership) error) (any, error) {
	body, err := r.target()
	if err != nil {
		return nil, err
	}
	content := map[string]any{"membership": string(to)}
	if body.Reason != "" {
		content["reason"] = body.Reason
	}
	return nil, s.setMembershipIf(r.Context(), r.room(), r.user, r.device, body.UserID, content, func(current *matrix.Event) error {
		if current == nil {
			return mayBe(matrix.MembershipNone)
		}
		return mayBe(current.Membership())
	})
}

func (s *Server) getJoinedRooms(r *request) (any, error) {
	heads, err := s.deps.Store.RoomHeads(r.Context(), r.user)
	if err != nil {
		return nil, err
	}
	rooms := make([]matrix.RoomID, 0, len(heads))
	for id := range heads {
		rooms = append(rooms, id)
	}
	slices.Sort(rooms)
	return map[string]any{"joined_rooms": rooms}, nil
}

// propagateProfile updates the user's member events after a profile change. One
// room that refuses (a ban in between) does not keep the others from it.
func (s *Server) propagateProfile(ctx context.Context, user matrix.UserID) {
	heads, err := s.deps.Store.RoomHeads(ctx, user)
	if err != nil {
		s.log.Error("propagate profile", "user", user, "error", err)
		return
	}
	for room := range heads {
		if err := s.updateMember(ctx, room, user); err != nil && errorReply(err).Status >= 500 {
			s.log.Error("propagate profile", "user", user, "room", room, "error", err)
		}
	}
}

// updateMember rewrites the profile fields of a joined user's member event.
func (s *Server) updateMember(ctx context.Context, room matrix.RoomID, user matrix.UserID) error {
	e, err := s.stateEvent(ctx, room, "m.room.member", string(user))
	if err != nil || e == nil {
		return err
	}
	content := make(map[string]any)
	if err := json.Unmarshal(e.Content, &content); err != nil {
		return err
	}
	fresh, err := s.memberContent(ctx, user, matrix.MembershipJoin, "")
	if err != nil {
		return err
	}
	for _, k := range []string{"displayname", "avatar_url"} {
		delete(content, k)
		if v, ok := fresh[k]; ok {
			content[k] = v
		}
	}
	delete(content, "join_authorised_via_users_server")
	return s.setMembershipIf(ctx, room, user, "", user, content, func(current *matrix.Event) error {
		if current == nil || current.Membership() != matrix.MembershipJoin {
			return forbidden("left in between")
		}
		return nil
	})
}

// expelGuests removes guests from a room that no longer admits them
// (client-server API, "Guest access").
func (s *Server) expelGuests(ctx context.Context, room matrix.RoomID) {
	members, err := s.deps.Store.Members(ctx, room)
	if err != nil {
		s.log.Error("remove guests", "room", room, "error", err)
		return
	}
	for _, m := range members {
		if m.Membership != matrix.MembershipJoin || m.User.Server() != s.cfg.ServerName {
			continue
		}
		acc, err := s.deps.Store.User(ctx, m.User)
		if err != nil || !acc.Guest {
			continue
		}
		if err := s.setMembership(ctx, room, m.User, "", m.User, map[string]any{"membership": "leave"}); err != nil {
			s.log.Error("remove guest", "room", room, "user", m.User, "error", err)
		}
	}
}

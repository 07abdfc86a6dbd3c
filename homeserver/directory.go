package homeserver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// checkAlias refuses aliases that this server cannot have.
func (s *Server) checkAlias(alias matrix.RoomAlias) error {
	name, server, ok := strings.Cut(strings.TrimPrefix(string(alias), "#"), ":")
	switch {
	case !strings.HasPrefix(string(alias), "#") || !ok || name == "" || strings.ContainsAny(name, " \t\r\n\x00"):
		return invalidParam("%.80q is not a room alias", alias)
	case len(alias) > matrix.MaxIDBytes:
		return invalidParam("the alias is longer than %d bytes", matrix.MaxIDBytes)
	case matrix.ServerName(server) != s.cfg.ServerName:
		return invalidParam("aliases of this server end in :%s", s.cfg.ServerName)
	}
	return nil
}

func (s *Server) putAlias(r *request) (any, error) {
	var body struct {
		RoomID matrix.RoomID `json:"room_id"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	alias := matrix.RoomAlias(r.PathValue("roomAlias"))
	if err := s.checkAlias(alias); err != nil {
		return nil, err
	}
	if body.RoomID == "" {
		return nil, missingParam("room_id is needed")
	}
	if err := s.requireJoined(r.Context(), body.RoomID, r.user); err != nil {
		return nil, err
	}
	err := s.deps.Store.PutAlias(r.Context(), alias, body.RoomID, r.user)
	if errors.Is(err, call.ErrConflict) {
		return nil, &matrix.Error{Status: http.StatusConflict, Code: matrix.CodeUnknown, Message: "the alias is taken"}
	}
	return nil, err
}

func (s *Server) getAlias(r *request) (any, error) {
	room, _, err := s.deps.Store.Alias(r.Context(), matrix.RoomAlias(r.PathValue("roomAlias")))
	if errors.Is(err, call.ErrNotFound) {
		return nil, notFound("there is no such alias")
	}
	if err != nil {
		return nil, err
	}
	return map[string]any{"room_id": room, "servers": []matrix.ServerName{s.cfg.ServerName}}, nil
}

func (s *Server) deleteAlias(r *request) (any, error) {
	ctx, alias := r.Context(), matrix.RoomAlias(r.PathValue("roomAlias"))
	room, creator, err := s.deps.Store.Alias(ctx, alias)
	if errors.Is(err, call.ErrNotFound) {
		return nil, notFound("there is no such alias")
	}
	if err != nil {
		return nil, err
	}
	if creator != r.user {
		p, err := s.power(ctx, room)
		if err != nil {
			return nil, err
		}
		if s.requireJoined(ctx, room, r.user) != nil || p.User(r.user) < p.Event("m.room.canonical_alias", true) {
			return nil, forbidden("the alias belongs to another user")
		}
	}
	if err := s.deps.Store.DeleteAlias(ctx, alias); err != nil {
		return nil, err
	}
	s.dropCanonicalAlias(ctx, r, room, alias)
	return nil, nil
}

// dropCanonicalAlias takes a deleted alias out of m.room.canonical_alias, if the
// user may; if not, it stays, as the specification allows.
func (s *Server) dropCanonicalAlias(ctx context.Context, r *request, room matrix.RoomID, alias matrix.RoomAlias) {
	e, err := s.stateEvent(ctx, room, "m.room.canonical_alias", "")
	if err != nil || e == nil {
		return
	}
	content := make(map[string]any)
	if json.Unmarshal(e.Content, &content) != nil {
		return
	}
	changed := false
	if content["alias"] == string(alias) {
		delete(content, "alias")
		changed = true
	}
	if alts, ok := content["alt_aliases"].([]any); ok {
		n := len(alts)
		alts = slices.DeleteFunc(alts, func(a any) bool { return a == string(alias) })
		content["alt_aliases"] = alts
		changed = changed || len(alts) != n
	}
	if !changed {
		return
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return
	}
	key := ""
	if _, err := s.send(ctx, outgoing{room: room, sender: r.user, device: r.device, typ: "m.room.canonical_alias", stateKey: &key, content: raw}); err != nil {
		s.log.Debug("canonical alias stays", "room", room, "error", err)
	}
}

// checkCanonicalAlias refuses aliases that do not lead to the room
// (client-server API, "m.room.canonical_alias").
func (s *Server) checkCanonicalAlias(ctx context.Context, room matrix.RoomID, content json.RawMessage) error {
	var c, old struct {
		Alias matrix.RoomAlias   `json:"alias"`
		Alts  []matrix.RoomAlias `json:"alt_aliases"`
	}
	if err := decodeJSON(content, &c); err != nil {
		return err
	}
	if e, err := s.stateEvent(ctx, room, "m.room.canonical_alias", ""); err != nil {
		return err
	} else if e != nil {
		_ = json.Unmarshal(e.Content, &old)
	}
	known := append(old.Alts, old.Alias)
	for _, a := range append(c.Alts, c.Alias) {
		if a == "" || slices.Contains(known, a) {
			continue
		}
		if name, server, ok := strings.Cut(string(a), ":"); !ok || !strings.HasPrefix(name, "#") || server == "" {
			return invalidParam("%.80q is not a room alias", a)
		}
		target, _, err := s.deps.Store.Alias(ctx, a)
		if err != nil && !errors.Is(err, call.ErrNotFound) {
			return err
		}
		if target != room {
			return &matrix.Error{Status: http.StatusBadRequest, Code: "M_BAD_ALIAS", Message: "the alias " + string(a) + " does not lead to this room"}
		}
	}
	return nil
}

func (s *Server) getRoomAliases(r *request) (any, error) {
	if _, _, err := s.entry(r.Context(), r.room(), r.user); err != nil {
		return nil, err
	}
	l, err := s.deps.Store.Aliases(r.Context(), r.room())
	if err != nil {
		return nil, err
	}
	if l == nil {
		l = []matrix.RoomAlias{}
	}
	return map[string]any{"aliases": l}, nil
}

func (s *Server) getListed(r *request) (any, error) {
	info, err := s.deps.Store.Room(r.Context(), r.room())
	if errors.Is(err, call.ErrNotFound) {
		return nil, notFound("there is no such room here")
	}
	if err != nil {
		return nil, err
	}
	visibility := "private"
	if info.Published {
		visibility = "public"
	}
	return map[string]any{"visibility": visibility}, nil
}

func (s *Server) putListed(r *request) (any, error) {
	var body struct {
		Visibility string `json:"visibility"`
	}
	if err := r.decodeOptional(&body); err != nil {
		return nil, err
	}
	listed := true
	switch body.Visibility {
	case "", "public":
	case "private":
		listed = false
	default:
		return nil, invalidParam("visibility: %.40q is neither public nor private", body.Visibility)
	}
	if err := s.requireJoined(r.Context(), r.room(), r.user); err != nil {
		return nil, err
	}
	p, err := s.power(r.Context(), r.room())
	if err != nil {
		return nil, err
	}
	if p.User(r.user) < p.Event("m.room.canonical_alias", true) {
		return nil, forbidden("you may not publish this room")
	}
	return nil, s.deps.Store.Publish(r.Context(), r.room(), listed)
}

// describe returns what strangers may know of a room that they may find.
func (s *Server) describe(ctx context.Context, room matrix.RoomID) (matrix.PublicRoom, map[string]*matrix.StoredEvent, error) {
	p := matrix.PublicRoom{RoomID: room}
	types := []string{
		"m.room.create", "m.room.name", "m.room.topic", "m.room.canonical_alias", "m.room.avatar", "m.room.join_rules",
		"m.room.history_visibility", "m.room.guest_access", "m.room.encryption",
	}
	keys := make([]matrix.StateKeyTuple, len(types))
	for i, t := range types {
		keys[i].Type = t
	}
	l, err := s.deps.Store.StateEvents(ctx, room, 0, keys...)
	if err != nil {
		return p, nil, err
	}
	state := make(map[string]*matrix.StoredEvent, len(l))
	for i := range l {
		state[l[i].Type] = &l[i]
	}
	text := func(typ, key string) string {
		if e := state[typ]; e != nil {
			return e.ContentString(key)
		}
		return ""
	}
	p.Name, p.Topic, p.Alias = text("m.room.name", "name"), text("m.room.topic", "topic"), text("m.room.canonical_alias", "alias")
	p.AvatarURL, p.RoomType = text("m.room.avatar", "url"), text("m.room.create", "type")
	if p.JoinRule = text("m.room.join_rules", "join_rule"); p.JoinRule == "" {
		p.JoinRule = "invite"
	}
	p.WorldReadable = text("m.room.history_visibility", "history_visibility") == visibleWorld
	p.GuestCanJoin = text("m.room.guest_access", "guest_access") == "can_join"
	members, err := s.deps.Store.Members(ctx, room)
	if err != nil {
		return p, nil, err
	}
	for _, m := range members {
		if m.Membership == matrix.MembershipJoin {
			p.Members++
		}
	}
	return p, state, nil
}

// getPublicRooms lists the public room directory, the fullest rooms first. It
// answers GET with query parameters and POST with a body.
func (s *Server) getPublicRooms(r *request) (any, error) {
	var body struct {
		Limit  int    `json:"limit"`
		Since  string `json:"since"`
		Filter struct {
			Term  string    `json:"generic_search_term"`
			Types []*string `json:"room_types"`
		} `json:"filter"`
	}
	if r.Method == http.MethodPost {
		if err := r.decodeOptional(&body); err != nil {
			return nil, err
		}
	} else {
		var err error
		if body.Limit, err = r.limitParam(0, 500); err != nil {
			return nil, err
		}
		body.Since = r.URL.Query().Get("since")
	}
	if server := r.URL.Query().Get("server"); server != "" && matrix.ServerName(server) != s.cfg.ServerName {
		return nil, forbidden("this server does not federate")
	}
	start := 0
	if body.Since != "" {
		n, err := strconv.Atoi(strings.TrimPrefix(body.Since, "p"))
		if err != nil || n < 0 {
			return nil, invalidParam("since: %.40q is not a token of this server", body.Since)
		}
		start = n
	}
	limit := body.Limit
	if limit <= 0 || limit > 500 {
		limit = 100
	}
	ids, err := s.deps.Store.PublishedRooms(r.Context())
	if err != nil {
		return nil, err
	}
	rooms := make([]matrix.PublicRoom, 0, len(ids))
	term := strings.ToLower(body.Filter.Term)
	for _, id := range ids {
		p, _, err := s.describe(r.Context(), id)
		if err != nil {
			return nil, err
		}
		if term != "" && !strings.Contains(strings.ToLower(p.Name+"\n"+p.Topic+"\n"+p.Alias), term) {
			continue
		}
		if body.Filter.Types != nil && !slices.ContainsFunc(body.Filter.Types, func(t *string) bool {
			return t == nil && p.RoomType == "" || t != nil && *t == p.RoomType
		}) {
			continue
		}
		rooms = append(rooms, p)
	}
	slices.SortStableFunc(rooms, func(a, b matrix.PublicRoom) int { return cmp.Compare(b.Members, a.Members) })
	total := len(rooms)
	out := map[string]any{"total_room_count_estimate": total}
	start = min(start, total)
	end := min(start+limit, total)
	if end < total {
		out["next_batch"] = "p" + strconv.Itoa(end)
	}
	if start > 0 {
		out["prev_batch"] = "p" + strconv.Itoa(max(0, start-limit))
	}
	out["chunk"] = rooms[start:end]
	return out, nil
}

// getRoomSummary tells about a room before one joins it (client-server API,
// "Room summary"; MSC3266). Rooms that the caller could not see are not found.
func (s *Server) getRoomSummary(r *request) (any, error) {
	ctx := r.Context()
	room, err := s.resolve(ctx, r.PathValue("roomIdOrAlias"))
	if err != nil {
		return nil, err
	}
	gone := notFound("there is no such room, or you may not see it")
	info, err := s.deps.Store.Room(ctx, room)
	if errors.Is(err, call.ErrNotFound) {
		return nil, gone
	}
	if err != nil {
		return nil, err
	}
	p, state, err := s.describe(ctx, room)
	if err != nil {
		return nil, err
	}
	membership := matrix.MembershipNone
	if r.user != "" {
		if membership, err = s.Membership(ctx, room, r.user); err != nil {
			return nil, err
		}
	}
	visible := p.WorldReadable || p.JoinRule == "public" || p.JoinRule == "knock" || p.JoinRule == "knock_restricted" ||
		membership == matrix.MembershipJoin || membership == matrix.MembershipInvite
	if !visible && p.JoinRule == "restricted" && r.user != "" {
		visible = s.authoriseRestricted(ctx, room, r.user, map[string]any{}) == nil
	}
	if !visible {
		return nil, gone
	}
	type summary struct {
		matrix.PublicRoom
		Version     matrix.RoomVersion `json:"room_version"`
		VersionOld  matrix.RoomVersion `json:"im.nheko.summary.version"`
		OldVersion  matrix.RoomVersion `json:"im.nheko.summary.room_version"`
		Encryption  string             `json:"encryption,omitempty"`
		Encryption2 string             `json:"im.nheko.summary.encryption,omitempty"`
		Membership  matrix.Membership  `json:"membership,omitempty"`
	}
	out := summary{PublicRoom: p, Version: info.Version, VersionOld: info.Version, OldVersion: info.Version, Membership: membership}
	if e := state["m.room.encryption"]; e != nil {
		out.Encryption = e.ContentString("algorithm")
		out.Encryption2 = out.Encryption
	}
	if membership == matrix.MembershipNone && r.user != "" {
		out.Membership = matrix.MembershipLeave
	}
	return out, nil
}

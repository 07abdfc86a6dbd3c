package homeserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// A roomRequest is the body of POST /createRoom.
type roomRequest struct {
	Preset          string            `json:"preset"`
	Visibility      string            `json:"visibility"`
	RoomVersion     string            `json:"room_version"`
	CreationContent map[string]any    `json:"creation_content"`
	InitialState    []initialState    `json:"initial_state"`
	PowerLevels     map[string]any    `json:"power_level_content_override"`
	Invite          []matrix.UserID   `json:"invite"`
	Invite3PID      []json.RawMessage `json:"invite_3pid"`
	AliasName       string            `json:"room_alias_name"`
	Name            string            `json:"name"`
	Topic           string            `json:"topic"`
	IsDirect        bool              `json:"is_direct"`
}

type initialState struct {
	Type     string          `json:"type"`
	StateKey string          `json:"state_key"`
	Content  json.RawMessage `json:"content"`
}

// A preset is what the name of a preset stands for (client-server API, "Room
// creation").
type preset struct {
	joinRule     string
	guestAccess  string
	inviteLevel  int
	trustInvites bool // invited users get the creator's power
}

var presets = map[string]preset{
	"private_chat":         {joinRule: "invite", guestAccess: "can_join"},
	"trusted_private_chat": {joinRule: "invite", guestAccess: "can_join", trustInvites: true},
	"public_chat":          {joinRule: "public", guestAccess: "forbidden", inviteLevel: 50},
}

// postCreateRoom makes a room: all of its first events or none.
func (s *Server) postCreateRoom(r *request) (any, error) {
	var req roomRequest
	if err := r.decode(&req); err != nil {
		return nil, err
	}
	id, err := s.createRoom(r.Context(), r.user, r.device, req)
	if err != nil {
		return nil, err
	}
	return map[string]any{"room_id": id}, nil
}

func (s *Server) createRoom(ctx context.Context, creator matrix.UserID, device matrix.DeviceID, req roomRequest) (matrix.RoomID, error) {
	version := matrix.RoomVersion(req.RoomVersion)
	if version == "" {
		version = matrix.RoomVersion(s.cfg.DefaultRoomVersion)
	}
	if !version.Supported() {
		return "", &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeUnsupportedRoom, Message: fmt.Sprintf("rooms of version %q cannot be made here", version)}
	}
	if len(req.Invite3PID) > 0 {
		return "", &matrix.Error{Status: http.StatusForbidden, Code: matrix.CodeThreepidDenied, Message: "this server does not invite by e-mail or telephone"}
	}
	if err := s.checkRoomRequest(ctx, creator, &req); err != nil {
		return "", err
	}
	var alias matrix.RoomAlias
	if req.AliasName != "" {
		alias = matrix.RoomAlias("#" + req.AliasName + ":" + string(s.cfg.ServerName))
		if err := s.checkAlias(alias); err != nil {
			return "", err
		}
	}
	b, err := s.firstEvents(ctx, version, creator, device, alias, req)
	if err != nil {
		return "", err
	}
	b.info.Published = req.Visibility == "public"
	_, err = s.deps.Store.CreateRoom(ctx, b.info, alias, b.events)
	if errors.Is(err, call.ErrConflict) {
		return "", &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeRoomInUse, Message: "the alias is taken"}
	}
	if err != nil {
		return "", err
	}
	woken := []matrix.UserID{creator}
	for i := range b.events {
		if e := &b.events[i].Event; e.Type == "m.room.member" {
			u := matrix.UserID(*e.StateKey)
			s.membershipChanged(matrix.MembershipChange{Room: b.info.ID, User: u, Sender: creator, To: e.Membership()})
			woken = append(woken, u)
		}
	}
	s.notify.wake(woken...)
	return b.info.ID, nil
}

// checkRoomRequest refuses what can be seen to be wrong before anything is made.
func (s *Server) checkRoomRequest(ctx context.Context, creator matrix.UserID, req *roomRequest) error {
	switch req.Visibility {
	case "", "private":
		req.Visibility = "private"
	case "public":
	default:
		return invalidParam("visibility: %q is neither public nor private", req.Visibility)
	}
	if req.Preset == "" {
		req.Preset = map[string]string{"public": "public_chat", "private": "private_chat"}[req.Visibility]
	}
	if _, ok := presets[req.Preset]; !ok {
		return invalidParam("preset: %q is unknown", req.Preset)
	}
	for _, u := range req.Invite {
		if u == creator {
			return invalidParam("invite: you are in the room anyway")
		}
		if err := s.checkInvitee(ctx, u); err != nil {
			return err
		}
	}
	slices.Sort(req.Invite)
	req.Invite = slices.Compact(req.Invite)
	for _, st := range req.InitialState {
		switch st.Type {
		case "":
			return badJSON("initial_state: an event has no type")
		case "m.room.create", "m.room.member":
			return invalidParam("initial_state: %s cannot be set", st.Type)
		}
	}
	return nil
}

// A roomBuilder makes the first events of a room, each authorised by those
// before it.
type roomBuilder struct {
	s       *Server
	info    matrix.RoomInfo
	creator matrix.UserID
	device  matrix.DeviceID
	now     time.Time
	state   map[matrix.StateKeyTuple]*matrix.Event
	events  []matrix.Append
}

// add appends one state event.
func (b *roomBuilder) add(typ, key string, content any) error {
	raw, err := json.Marshal(content)
	if err != nil {
		return err
	}
	d := matrix.Draft{
		RoomID: b.info.ID, Version: b.info.Version, Type: typ, StateKey: &key, Sender: b.creator, Content: raw,
		Depth: b.info.Depth + 1, PrevEvents: b.info.Heads, Time: b.now,
	}
	state := func(typ, key string) (*matrix.Event, error) {
		return b.state[matrix.StateKeyTuple{Type: typ, Key: key}], nil
	}
	if d.AuthEvents, err = matrix.AuthEventIDs(d, state); err != nil {
		return eventError(err)
	}
	ev, err := matrix.Build(d, b.s.key)
	if err != nil {
		return eventError(err)
	}
	if err := matrix.Authorise(&ev, state); err != nil {
		return &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeInvalidState, Message: typ + ": " + err.Error()}
	}
	b.state[matrix.StateKeyTuple{Type: typ, Key: key}] = &ev
	b.info.ID, b.info.Depth, b.info.Heads = ev.RoomID, ev.Depth, []matrix.EventID{ev.ID}
	b.events = append(b.events, matrix.Append{Event: matrix.StoredEvent{Event: ev, Device: b.device}})
	return nil
}

// firstEvents makes the events in the order of the specification.
func (s *Server) firstEvents(ctx context.Context, version matrix.RoomVersion, creator matrix.UserID, device matrix.DeviceID, alias matrix.RoomAlias, req roomRequest) (*roomBuilder, error) {
	b := &roomBuilder{
		s: s, creator: creator, device: device, now: time.Now(),
		info:  matrix.RoomInfo{Version: version, Creator: creator},
		state: make(map[matrix.StateKeyTuple]*matrix.Event),
	}
	if !version.HashedRoomID() {
		b.info.ID = matrix.RoomID("!" + randomID(12) + ":" + string(s.cfg.ServerName))
	}
	p := presets[req.Preset]
	create := createContent(version, creator, p, req)
	if err := b.add("m.room.create", "", create); err != nil {
		return nil, err
	}
	join, err := s.memberContent(ctx, creator, matrix.MembershipJoin, "")
	if err != nil {
		return nil, err
	}
	if err := b.add("m.room.member", string(creator), join); err != nil {
		return nil, err
	}

	given := make(map[matrix.StateKeyTuple]json.RawMessage)
	for _, st := range req.InitialState {
		given[matrix.StateKeyTuple{Type: st.Type, Key: st.StateKey}] = st.Content
	}
	levels := defaultPowerLevels(version, creator, p, req)
	steps := []struct {
		typ     string
		content any
		wanted  bool
	}{
		{"m.room.power_levels", levels, true},
		{"m.room.canonical_alias", map[string]any{"alias": alias}, alias != ""},
		{"m.room.join_rules", map[string]any{"join_rule": p.joinRule}, true},
		{"m.room.history_visibility", map[string]any{"history_visibility": "shared"}, true},
		{"m.room.guest_access", map[string]any{"guest_access": p.guestAccess}, true},
	}
	for _, st := range steps {
		content := st.content
		if c, ok := given[matrix.StateKeyTuple{Type: st.typ}]; ok && st.typ != "m.room.canonical_alias" {
			content, st.wanted = c, true
			delete(given, matrix.StateKeyTuple{Type: st.typ})
		}
		if !st.wanted {
			continue
		}
		if err := b.add(st.typ, "", content); err != nil {
			return nil, err
		}
	}
	for _, st := range req.InitialState {
		if _, left := given[matrix.StateKeyTuple{Type: st.Type, Key: st.StateKey}]; !left {
			continue
		}
		if err := b.add(st.Type, st.StateKey, st.Content); err != nil {
			return nil, err
		}
	}
	if req.Name != "" {
		if err := b.add("m.room.name", "", map[string]any{"name": req.Name}); err != nil {
			return nil, err
		}
	}
	if req.Topic != "" {
		rich := map[string]any{"m.text": []any{map[string]any{"body": req.Topic}}} // MSC3765
		if err := b.add("m.room.topic", "", map[string]any{"topic": req.Topic, "m.topic": rich}); err != nil {
			return nil, err
		}
	}
	for _, u := range req.Invite {
		c, err := s.memberContent(ctx, u, matrix.MembershipInvite, "")
		if err != nil {
			return nil, err
		}
		if req.IsDirect {
			c["is_direct"] = true
		}
		if err := b.add("m.room.member", string(u), c); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// createContent returns the content of the create event.
func createContent(version matrix.RoomVersion, creator matrix.UserID, p preset, req roomRequest) map[string]any {
	c := make(map[string]any)
	for k, v := range req.CreationContent {
		c[k] = v
	}
	c["room_version"] = string(version)
	delete(c, "creator")
	if version.CreatorInContent() {
		c["creator"] = string(creator)
	}
	if version.PrivilegedCreators() && p.trustInvites && len(req.Invite) > 0 {
		more, _ := c["additional_creators"].([]any)
		for _, u := range req.Invite {
			if !slices.Contains(more, any(string(u))) {
				more = append(more, string(u))
			}
		}
		c["additional_creators"] = more
	}
	return c
}

// defaultPowerLevels returns the power levels of a new room. Everybody may be a
// member of calls (MatrixRTC), whatever the client that makes the room knows of
// calls.
func defaultPowerLevels(version matrix.RoomVersion, creator matrix.UserID, p preset, req roomRequest) map[string]any {
	tombstone := 100
	users := map[string]any{}
	if version.PrivilegedCreators() {
		tombstone = 150 // above what ordinary admins have: upgrading is for creators
	} else {
		users[string(creator)] = 100
		if p.trustInvites {
			for _, u := range req.Invite {
				users[string(u)] = 100
			}
		}
	}
	levels := map[string]any{
		"users":         users,
		"users_default": 0,
		"events": map[string]any{
			"m.room.name":                    50,
			"m.room.avatar":                  50,
			"m.room.canonical_alias":         50,
			"m.room.power_levels":            100,
			"m.room.history_visibility":      100,
			"m.room.server_acl":              100,
			"m.room.encryption":              100,
			"m.room.tombstone":               tombstone,
			"org.matrix.msc3401.call":        50,
			"org.matrix.msc3401.call.member": 0,
		},
		"events_default": 0,
		"state_default":  50,
		"ban":            50,
		"kick":           50,
		"redact":         50,
		"invite":         p.inviteLevel,
	}
	calls := levels["events"].(map[string]any)
	for k, v := range req.PowerLevels {
		levels[k] = v
	}
	if events, ok := levels["events"].(map[string]any); ok {
		levels["events"] = withCallLevels(events, calls)
	}
	if users, ok := levels["users"].(map[string]any); ok && version.PrivilegedCreators() {
		levels["users"] = withoutCreators(users, creator, p, req)
	}
	return levels
}

// withCallLevels returns the levels of event types with those of call events
// that it does not name: a client that knows nothing of calls must not keep the
// members of its rooms out of them.
func withCallLevels(events, calls map[string]any) map[string]any {
	events = maps.Clone(events)
	for _, typ := range []string{"org.matrix.msc3401.call", "org.matrix.msc3401.call.member"} {
		if _, named := events[typ]; !named {
			events[typ] = calls[typ]
		}
	}
	return events
}

// withoutCreators returns users without the room's creators. They stand above
// all levels and must not be named among them (MSC4289), yet clients that are
// older than that name whoever makes the room.
func withoutCreators(users map[string]any, creator matrix.UserID, p preset, req roomRequest) map[string]any {
	users = maps.Clone(users)
	delete(users, string(creator))
	more, _ := req.CreationContent["additional_creators"].([]any)
	for _, u := range more {
		if id, ok := u.(string); ok {
			delete(users, id)
		}
	}
	if p.trustInvites { // see createContent
		for _, u := range req.Invite {
			delete(users, string(u))
		}
	}
	return users
}

// memberContent returns the content of a member event with the user's profile.
func (s *Server) memberContent(ctx context.Context, user matrix.UserID, m matrix.Membership, reason string) (map[string]any, error) {
	c := map[string]any{"membership": string(m)}
	if reason != "" {
		c["reason"] = reason
	}
	if user.Server() != s.cfg.ServerName {
		return c, nil
	}
	name, avatar, err := s.deps.Store.Profile(ctx, user)
	if err != nil && !errors.Is(err, call.ErrNotFound) {
		return nil, fmt.Errorf("profile of %s: %w", user, err)
	}
	if name != "" {
		c["displayname"] = name
	}
	if avatar != "" {
		c["avatar_url"] = avatar
	}
	return c, nil
}

// checkInvitee refuses who cannot be invited.
func (s *Server) checkInvitee(ctx context.Context, u matrix.UserID) error {
	if !strings.HasPrefix(string(u), "@") || u.Server() == "" {
		return invalidParam("%.80q is not a user ID", u)
	}
	if u.Server() != s.cfg.ServerName {
		return forbidden("%s is on another server, and this one does not federate", u)
	}
	acc, err := s.deps.Store.User(ctx, u)
	if errors.Is(err, call.ErrNotFound) && s.isGhost(u) {
		return s.ghostInvited(ctx, u)
	}
	if errors.Is(err, call.ErrNotFound) || (err == nil && acc.Deactivated) {
		return notFound("there is no user %s", u)
	}
	return err
}

package homeserver

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

func TestFirstRoom(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.user("alice"), h.user("bob")
	for _, version := range matrix.RoomVersions() {
		t.Run("version "+string(version), func(t *testing.T) {
			room := alice.room(obj{"room_version": version, "name": "Standup", "topic": "daily", "invite": []string{string(bob.id)}, "is_direct": true})
			if hashed := !strings.Contains(room, ":"); hashed != version.HashedRoomID() {
				t.Errorf("room ID %s", room)
			}
			bob.join(room)
			alice.say(room, "hello", "1")
			s := bob.sync("")
			tl := s.joined(room, "timeline", "events")
			if got := bodies(tl); !slices.Equal(got, []string{"hello"}) {
				t.Errorf("messages %q", got)
			}
			st := types(tl) // the room is small: everything is in the timeline
			for _, want := range []string{"m.room.create|", "m.room.power_levels|", "m.room.join_rules|", "m.room.name|", "m.room.topic|", "m.room.member|@bob:hs.test"} {
				if st[want] == nil {
					t.Errorf("the timeline has no %s", want)
				}
			}
			pl := digIn(st["m.room.power_levels|"], "events")
			if digIn(pl, "org.matrix.msc3401.call.member") != 0.0 || digIn(pl, "org.matrix.msc3401.call") != 50.0 {
				t.Errorf("power levels of calls: %v", pl)
			}
		})
	}
}

func TestCreateRoom(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.user("alice"), h.user("bob")
	state := func(t *testing.T, room string) map[string]any {
		return types(alice.want(200, "GET", "/v3/rooms/"+esc(room)+"/state", nil).body)
	}
	for _, tt := range []struct {
		name string
		body obj
		want map[string]any // path in state -> value, "type|key/field"
	}{
		{"private chat", obj{"preset": "private_chat"}, map[string]any{
			"m.room.join_rules|/join_rule": "invite", "m.room.history_visibility|/history_visibility": "shared", "m.room.guest_access|/guest_access": "can_join",
			"m.room.power_levels|/invite": 0.0,
		}},
		{"public chat", obj{"preset": "public_chat"}, map[string]any{
			"m.room.join_rules|/join_rule": "public", "m.room.guest_access|/guest_access": "forbidden", "m.room.power_levels|/invite": 50.0,
		}},
		{"visibility chooses the preset", obj{"visibility": "public"}, map[string]any{"m.room.join_rules|/join_rule": "public"}},
		{"initial state goes before the preset", obj{"preset": "public_chat", "initial_state": []obj{
			{"type": "m.room.guest_access", "content": obj{"guest_access": "can_join"}},
			{"type": "m.room.encryption", "content": obj{"algorithm": "m.megolm.v1.aes-sha2"}},
			{"type": "org.example", "state_key": "k", "content": obj{"a": 1}},
		}}, map[string]any{
			"m.room.guest_access|/guest_access": "can_join", "m.room.encryption|/algorithm": "m.megolm.v1.aes-sha2", "org.example|k/a": 1.0,
		}},
		{"the name counts more than initial state", obj{"name": "asked", "initial_state": []obj{{"type": "m.room.name", "content": obj{"name": "initial"}}}},
			map[string]any{"m.room.name|/name": "asked"}},
		{"power levels can be overridden", obj{"power_level_content_override": obj{"events_default": 7, "ban": 99}}, map[string]any{
			"m.room.power_levels|/events_default": 7.0, "m.room.power_levels|/ban": 99.0, "m.room.power_levels|/kick": 50.0,
		}},
		{"creation content is kept", obj{"creation_content": obj{"type": "m.space", "m.federate": false, "room_version": "1"}}, map[string]any{
			"m.room.create|/type": "m.space", "m.room.create|/m.federate": false, "m.room.create|/room_version": "12",
		}},
		{"version 10 names its creator", obj{"room_version": "10"}, map[string]any{
			"m.room.create|/creator": "@alice:hs.test", "m.room.create|/room_version": "10",
		}},
		{"version 11 does not", obj{"room_version": "11"}, map[string]any{"m.room.create|/creator": nil}},
		{"direct invites say so", obj{"is_direct": true, "invite": []string{"@bob:hs.test"}}, map[string]any{
			"m.room.member|@bob:hs.test/membership": "invite", "m.room.member|@bob:hs.test/is_direct": true,
		}},
		{"an alias becomes the canonical one", obj{"room_alias_name": "lounge"}, map[string]any{"m.room.canonical_alias|/alias": "#lounge:hs.test"}},
		{"a rich topic comes with the plain one", obj{"topic": "news"}, map[string]any{"m.room.topic|/topic": "news"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			st := state(t, alice.room(tt.body))
			for path, want := range tt.want {
				event, field, _ := strings.Cut(path, "/")
				if got := digIn(st[event], field); got != want {
					t.Errorf("%s = %v, want %v", path, got, want)
				}
			}
		})
	}

	t.Run("trusted private chat shares the power", func(t *testing.T) {
		for _, version := range matrix.RoomVersions() {
			room := alice.room(obj{"preset": "trusted_private_chat", "room_version": version, "invite": []string{string(bob.id)}})
			bob.join(room)
			bob.want(200, "PUT", "/v3/rooms/"+esc(room)+"/state/m.room.power_levels", func() any {
				return bob.want(200, "GET", "/v3/rooms/"+esc(room)+"/state/m.room.power_levels", nil).body
			}())
			st := state(t, room)
			if creators := digIn(st["m.room.create|"], "additional_creators", 0); version.PrivilegedCreators() != (creators == string(bob.id)) {
				t.Errorf("version %s: additional_creators %v", version, creators)
			}
			bob.want(200, "PUT", "/v3/rooms/"+esc(room)+"/state/m.room.history_visibility", obj{"history_visibility": "joined"})
		}
	})

	t.Run("creators named in the power levels", func(t *testing.T) {
		override := obj{"users": obj{"@alice:hs.test": 100, "@bob:hs.test": 50}, "events": obj{"m.room.name": 20}}
		for _, version := range matrix.RoomVersions() {
			levels := state(t, alice.room(obj{"room_version": version, "power_level_content_override": override}))["m.room.power_levels|"]
			named := digIn(levels, "users", "@alice:hs.test")
			if version.PrivilegedCreators() != (named == nil) {
				t.Errorf("version %s: the creator has level %v", version, named)
			}
			if got := digIn(levels, "users", "@bob:hs.test"); got != 50.0 {
				t.Errorf("version %s: the other user has level %v, want 50", version, got)
			}
			if name, member := digIn(levels, "events", "m.room.name"), digIn(levels, "events", "org.matrix.msc3401.call.member"); name != 20.0 || member != 0.0 {
				t.Errorf("version %s: levels of events %v and %v, want 20 and 0", version, name, member)
			}
		}
	})

	for _, tt := range []struct {
		name   string
		body   any
		status int
		code   matrix.Code
	}{
		{"an unknown version", obj{"room_version": "99"}, 400, matrix.CodeUnsupportedRoom},
		{"an old version", obj{"room_version": "1"}, 400, matrix.CodeUnsupportedRoom},
		{"an unknown preset", obj{"preset": "party"}, 400, matrix.CodeInvalidParam},
		{"an alias that is taken", obj{"room_alias_name": "lounge"}, 400, matrix.CodeRoomInUse},
		{"inviting nobody", obj{"invite": []string{"@nobody:hs.test"}}, 404, matrix.CodeNotFound},
		{"inviting another server", obj{"invite": []string{"@x:elsewhere.test"}}, 403, matrix.CodeForbidden},
		{"inviting a word", obj{"invite": []string{"bob"}}, 400, matrix.CodeInvalidParam},
		{"inviting by e-mail", obj{"invite_3pid": []obj{{"medium": "email"}}}, 403, matrix.CodeThreepidDenied},
		{"members by initial state", obj{"initial_state": []obj{{"type": "m.room.member", "state_key": "@bob:hs.test", "content": obj{"membership": "join"}}}}, 400, matrix.CodeInvalidParam},
		{"power levels as text", obj{"power_level_content_override": obj{"ban": "50"}}, 400, matrix.CodeInvalidState},
		{"a fraction in the state", obj{"initial_state": []obj{{"type": "x", "content": obj{"n": 1.5}}}}, 400, matrix.CodeBadJSON},
		{"a name that is a number", obj{"name": 5}, 400, matrix.CodeBadJSON},
		{"no JSON", "{", 400, matrix.CodeNotJSON},
		{"a huge topic", obj{"topic": strings.Repeat("x", 70000)}, 413, matrix.CodeTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			alice.wantError(tt.status, tt.code, "POST", "/v3/createRoom", tt.body)
		})
	}
	if rooms, err := h.deps.Store.PublishedRooms(t.Context()); err != nil || len(rooms) != 1 {
		t.Errorf("published rooms: %v, %v; want the one with public visibility", rooms, err)
	}
}

func TestMemberships(t *testing.T) {
	h := newHouse(t)
	alice, bob, eve := h.user("alice"), h.user("bob"), h.user("eve")
	act := func(u *resident, status int, room, action string, target *resident) {
		t.Helper()
		body := obj{}
		if target != nil {
			body["user_id"] = target.id
		}
		u.want(status, "POST", "/v3/rooms/"+esc(room)+"/"+action, body)
	}
	is := func(room string, u *resident, want matrix.Membership) {
		t.Helper()
		if got, err := h.Membership(t.Context(), matrix.RoomID(room), u.id); got != want || err != nil {
			t.Errorf("%s is %q (%v), want %q", u.id, got, err, want)
		}
	}
	var changes []string
	defer h.WatchMemberships(func(c matrix.MembershipChange) {
		changes = append(changes, fmt.Sprintf("%s %s>%s by %s", c.User.Localpart(), c.From, c.To, c.Sender.Localpart()))
	})()

	room := alice.room(obj{"preset": "private_chat"})
	bob.want(403, "POST", "/v3/join/"+esc(room), obj{})
	act(alice, 200, room, "invite", bob)
	is(room, bob, matrix.MembershipInvite)
	act(eve, 403, room, "invite", eve)
	bob.join(room)
	bob.join(room) // again: nothing changes
	is(room, bob, matrix.MembershipJoin)
	act(alice, 403, room, "invite", bob) // is in
	act(bob, 403, room, "kick", alice)
	act(alice, 200, room, "kick", bob)
	is(room, bob, matrix.MembershipLeave)
	act(alice, 403, room, "kick", bob) // is out
	bob.want(403, "POST", "/v3/join/"+esc(room), obj{})
	act(alice, 200, room, "ban", bob)
	act(alice, 403, room, "invite", bob)
	act(bob, 403, room, "leave", nil)
	act(alice, 200, room, "unban", bob)
	act(alice, 403, room, "unban", bob)
	act(alice, 200, room, "invite", bob)
	act(bob, 200, room, "leave", nil) // declines
	is(room, bob, matrix.MembershipLeave)
	act(bob, 200, room, "leave", nil) // again: nothing changes
	act(bob, 200, room, "forget", nil)
	act(alice, 400, room, "forget", nil)
	act(eve, 404, room, "forget", nil)
	act(eve, 403, "!nowhere:hs.test", "invite", bob)
	alice.want(404, "POST", "/v3/join/"+esc("!nowhere:hs.test"), obj{})
	alice.want(404, "POST", "/v3/join/"+esc("#nowhere:hs.test"), obj{})
	if _, err := h.Membership(t.Context(), "!nowhere:hs.test", bob.id); err == nil {
		t.Error("a room that does not exist has members")
	}
	want := []string{
		"alice >join by alice", "bob >invite by alice", "bob invite>join by bob", "bob join>leave by alice", "bob leave>ban by alice",
		"bob ban>leave by alice", "bob leave>invite by alice", "bob invite>leave by bob",
	}
	if !slices.Equal(changes, want) {
		t.Errorf("watchers heard\n %s\nwant\n %s", strings.Join(changes, "\n "), strings.Join(want, "\n "))
	}

	t.Run("knock", func(t *testing.T) {
		room := alice.room(obj{"initial_state": []obj{{"type": "m.room.join_rules", "content": obj{"join_rule": "knock"}}}})
		bob.want(200, "POST", "/v3/knock/"+esc(room), obj{"reason": "please"})
		is(room, bob, matrix.MembershipKnock)
		if bob.sync("").at("rooms", "knock", room, "knock_state") == nil {
			t.Error("the one who knocks does not see it")
		}
		act(alice, 200, room, "invite", bob)
		bob.join(room)
		closed := alice.room(obj{})
		bob.want(403, "POST", "/v3/knock/"+esc(closed), obj{})
	})
	t.Run("restricted", func(t *testing.T) {
		space := alice.room(obj{"preset": "public_chat"})
		room := alice.room(obj{"initial_state": []obj{{"type": "m.room.join_rules", "content": obj{
			"join_rule": "restricted", "allow": []obj{{"type": "m.room_membership", "room_id": space}},
		}}}})
		bob.want(403, "POST", "/v3/join/"+esc(room), obj{})
		bob.join(space)
		bob.join(room)
		is(room, bob, matrix.MembershipJoin)
	})
	t.Run("guests", func(t *testing.T) {
		guest := h.guest()
		guest.wantError(403, matrix.CodeGuestForbidden, "POST", "/v3/createRoom", obj{})
		closed := alice.room(obj{"preset": "public_chat"})
		guest.wantError(403, matrix.CodeGuestForbidden, "POST", "/v3/join/"+esc(closed), obj{})
		open := alice.room(obj{"preset": "public_chat", "initial_state": []obj{{"type": "m.room.guest_access", "content": obj{"guest_access": "can_join"}}}})
		guest.join(open)
		guest.say(open, "hello from outside", "1")
		guest.want(200, "PUT", "/v3/rooms/"+esc(open)+"/state/org.matrix.msc3401.call.member/"+esc("_"+string(guest.id)+"_D_m.call"), obj{"application": "m.call"})
		alice.want(200, "PUT", "/v3/rooms/"+esc(open)+"/state/m.room.guest_access", obj{"guest_access": "forbidden"})
		is(open, guest, matrix.MembershipLeave)
	})
}

func TestPowerDecides(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.user("alice"), h.user("bob")
	for _, version := range matrix.RoomVersions() {
		room := alice.room(obj{"preset": "public_chat", "room_version": version})
		bob.join(room)
		put := func(u *resident, status int, typ, key string, content any) {
			t.Helper()
			u.want(status, "PUT", "/v3/rooms/"+esc(room)+"/state/"+typ+"/"+esc(key), content)
		}
		put(bob, 403, "m.room.name", "", obj{"name": "mine"})
		put(bob, 403, "m.room.power_levels", "", obj{"users": obj{string(bob.id): 100}})
		put(bob, 403, "m.room.member", string(alice.id), obj{"membership": "leave"})
		put(bob, 403, "m.room.member", string(bob.id), obj{"membership": "ban"})
		put(bob, 403, "org.matrix.msc3401.call.member", string(alice.id), obj{}) // a key with @ belongs to its user
		put(bob, 200, "org.matrix.msc3401.call.member", "_"+string(bob.id)+"_DEV_m.call", obj{"application": "m.call"})
		put(alice, 403, "m.room.create", "", obj{"room_version": "12"})
		// Lookalikes of the keys that the rules read.
		put(bob, 400, "m.room.member", string(bob.id), obj{"membership": "join", "member\u017fhip": "ban"})
		put(bob, 400, "m.room.member", string(bob.id), obj{"Membership": "join"})
		alice.want(200, "PUT", "/v3/rooms/"+esc(room)+"/state/m.room.name", obj{"name": "hers"})
		eve := h.user("eve" + string(version))
		eve.want(403, "PUT", "/v3/rooms/"+esc(room)+"/send/m.room.message/1", obj{"body": "x"})
		eve.want(403, "GET", "/v3/rooms/"+esc(room)+"/state", nil)
		eve.want(403, "GET", "/v3/rooms/"+esc(room)+"/messages?dir=b", nil)
	}
}

// Who has cancelled a watch may close what the watcher uses.
func TestNoWatcherRunsAfterCancel(t *testing.T) {
	h := newHouse(t)
	entered, cancelled := make(chan struct{}), make(chan struct{})
	cancel := h.WatchMemberships(func(matrix.MembershipChange) {
		close(entered)
		select {
		case <-cancelled:
			t.Error("a watcher still runs when it has been cancelled")
		case <-time.After(20 * time.Millisecond):
		}
	})
	var wg sync.WaitGroup
	wg.Go(func() { h.membershipChanged(matrix.MembershipChange{}) })
	<-entered
	cancel()
	close(cancelled)
	wg.Wait()
	h.membershipChanged(matrix.MembershipChange{}) // would close entered again
}

// A member event that is sent as state, now or later, opens no door that the
// endpoints of memberships keep shut.
func TestStateIsNoBackDoorForMembers(t *testing.T) {
	h := newHouse(t)
	alice, bob, eve, guest := h.user("alice"), h.user("bob"), h.user("eve"), h.guest()
	member := func(room string, u *resident) string {
		return "/v3/rooms/" + esc(room) + "/state/m.room.member/" + esc(string(u.id))
	}
	is := func(room string, u *resident, want matrix.Membership) {
		t.Helper()
		if got, err := h.Membership(t.Context(), matrix.RoomID(room), u.id); got != want || err != nil {
			t.Errorf("%s is %q (%v), want %q", u.id, got, err, want)
		}
	}
	circle := alice.room(obj{"preset": "public_chat"})
	bob.join(circle)
	room := alice.room(obj{"preset": "private_chat", "initial_state": []obj{
		{"type": "m.room.join_rules", "content": obj{"join_rule": "restricted", "allow": []obj{{"type": "m.room_membership", "room_id": circle}}}},
	}})

	// Nobody vouches for themselves.
	forged := obj{"membership": "join", "join_authorised_via_users_server": string(alice.id)}
	eve.wantError(403, matrix.CodeForbidden, "PUT", member(room, eve), forged)
	eve.wantError(403, matrix.CodeForbidden, "PUT", member("!nowhere", eve), forged)
	is(room, eve, matrix.MembershipNone)
	bob.want(200, "PUT", member(room, bob), obj{"membership": "join"}) // is in the circle
	is(room, bob, matrix.MembershipJoin)
	bob.want(200, "PUT", member(room, bob), obj{"membership": "join", "join_authorised_via_users_server": string(eve.id), "n": 7})
	if got := alice.want(200, "GET", member(room, bob), nil); strings.TrimSpace(string(got.raw)) != `{"membership":"join","n":7}` {
		t.Errorf("%s", got.raw)
	}

	// Nor later, when they have left. (A kick cancels what is delayed.)
	delayed := bob.want(200, "PUT", member(room, bob)+"?org.matrix.msc4140.delay=60000", forged).str("delay_id")
	bob.want(200, "POST", "/v3/rooms/"+esc(circle)+"/leave", obj{})
	bob.want(200, "POST", "/v3/rooms/"+esc(room)+"/leave", obj{})
	bob.want(403, "POST", "/unstable/org.matrix.msc4140/delayed_events/"+delayed+"/send", obj{})
	is(room, bob, matrix.MembershipLeave)
	bob.want(404, "POST", "/unstable/org.matrix.msc4140/delayed_events/"+delayed+"/send", obj{}) // it is over

	// Guests invite nobody, do not knock, and do not come back into a room that
	// shut its door.
	open := alice.room(obj{"preset": "private_chat", "invite": []string{string(guest.id)}})
	guest.join(open)
	guest.wantError(403, matrix.CodeGuestForbidden, "PUT", member(open, eve), obj{"membership": "invite"})
	guest.wantError(403, matrix.CodeGuestForbidden, "PUT", member(room, guest), obj{"membership": "knock"})
	back := guest.want(200, "PUT", member(open, guest)+"?org.matrix.msc4140.delay=60000", obj{"membership": "join"}).str("delay_id")
	alice.want(200, "PUT", "/v3/rooms/"+esc(open)+"/state/m.room.join_rules", obj{"join_rule": "public"})
	alice.want(200, "PUT", "/v3/rooms/"+esc(open)+"/state/m.room.guest_access", obj{"guest_access": "forbidden"})
	is(open, guest, matrix.MembershipLeave)
	guest.want(403, "POST", "/unstable/org.matrix.msc4140/delayed_events/"+back+"/send", obj{})
	guest.wantError(403, matrix.CodeGuestForbidden, "PUT", member(open, guest), obj{"membership": "join"})
	is(open, guest, matrix.MembershipLeave)
}

// Guests are not had by the thousand.
func TestGuestsAreLimited(t *testing.T) {
	w := newWorld(t, func(c *Config, _ *Deps) { c.RateLimits = true })
	made := 0
	for range 150 {
		if rep := w.send("POST", c("/register?kind=guest"), "", map[string]any{}); rep.status == 200 {
			made++
		} else if rep.status != 429 || rep.header.Get("Retry-After") == "" {
			t.Fatalf("%d %s", rep.status, rep.raw)
		}
	}
	if made < 50 || made > 110 {
		t.Errorf("%d guests at once", made)
	}
}

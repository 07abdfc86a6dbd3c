package homeserver

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/trunkhall/trunkhall/matrix"
)

func TestState(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.user("alice"), h.user("bob")
	room := alice.room(obj{"preset": "public_chat"})
	base := "/v3/rooms/" + esc(room) + "/state/"
	// The empty state key, in all the ways that clients write it.
	for i, path := range []string{"m.room.topic", "m.room.topic/"} {
		topic := fmt.Sprint("t", i)
		alice.want(200, "PUT", base+path, obj{"topic": topic})
		for _, read := range []string{"m.room.topic", "m.room.topic/"} {
			if got := alice.want(200, "GET", base+read, nil).str("topic"); got != topic {
				t.Errorf("PUT %s, GET %s: %q, want %q", path, read, got, topic)
			}
		}
	}
	ev := alice.want(200, "GET", base+"m.room.topic?format=event", nil)
	if ev.str("type") != "m.room.topic" || ev.at("state_key") != "" || ev.str("unsigned", "prev_content", "topic") != "t0" || ev.str("unsigned", "replaces_state") == "" {
		t.Errorf("format=event: %s", ev.raw)
	}
	// The same again is no new event.
	first := alice.want(200, "PUT", base+"org.example/k", `{"a": 1, "b": [true]}`).str("event_id")
	if again := alice.want(200, "PUT", base+"org.example/k", `{"b":[true],"a":1}`).str("event_id"); again != first {
		t.Error("state that changes nothing made a new event")
	}
	if other := alice.want(200, "PUT", base+"org.example/k", obj{"a": 2}).str("event_id"); other == first {
		t.Error("state that changes made no new event")
	}
	alice.want(200, "PUT", base+"org.example/"+esc("with/slash and space"), obj{"a": 3})
	if got := alice.want(200, "GET", base+"org.example/"+esc("with/slash and space"), nil).at("a"); got != 3.0 {
		t.Errorf("a state key with a slash: %v", got)
	}
	alice.wantError(404, matrix.CodeNotFound, "GET", base+"org.example/none", nil)
	bob.wantError(403, matrix.CodeForbidden, "GET", base+"m.room.topic", nil)
	alice.wantError(403, matrix.CodeForbidden, "GET", "/v3/rooms/"+esc("!nowhere:hs.test")+"/state/m.room.topic", nil)
	bob.join(room)
	bob.want(200, "POST", "/v3/rooms/"+esc(room)+"/leave", nil)
	alice.want(200, "PUT", base+"m.room.topic", obj{"topic": "after bob"})
	if got := bob.want(200, "GET", base+"m.room.topic", nil).str("topic"); got != "t1" {
		t.Errorf("who left sees the topic %q, want the one of then", got)
	}
	if m := alice.want(200, "GET", "/v3/rooms/"+esc(room)+"/joined_members", nil); m.at("joined", "@alice:hs.test") == nil || m.at("joined", "@bob:hs.test") != nil {
		t.Errorf("joined members: %s", m.raw)
	}
	if l := alice.want(200, "GET", "/v3/joined_rooms", nil).list("joined_rooms"); !slices.Equal(l, []any{room}) {
		t.Errorf("joined rooms: %v", l)
	}
}

func TestMessages(t *testing.T) {
	h := newHouse(t)
	alice := h.user("alice")
	room := alice.room(obj{})
	path := "/v3/rooms/" + esc(room) + "/messages?"
	for i := range 25 {
		alice.say(room, fmt.Sprint(i), fmt.Sprint(i))
	}
	var got []string
	from := ""
	for range 20 {
		r := alice.want(200, "GET", path+"dir=b&limit=7"+from, nil)
		got = append(got, bodies(r.at("chunk"))...)
		end := r.str("end")
		if end == "" {
			break
		}
		from = "&from=" + end
	}
	if len(got) != 25 || got[0] != "24" || got[24] != "0" {
		t.Errorf("backwards: %v", got)
	}
	r := alice.want(200, "GET", path+"dir=f&limit=1000&filter="+esc(`{"types":["m.room.message"]}`), nil)
	if all := bodies(r.at("chunk")); len(all) != 25 || all[0] != "0" {
		t.Errorf("forwards: %v", all)
	}
	end := r.str("end")
	if r := alice.want(200, "GET", path+"dir=f&from="+end, nil); len(r.list("chunk")) != 0 {
		t.Errorf("beyond the end: %s", r.raw)
	}
	alice.say(room, "new", "new")
	if r := alice.want(200, "GET", path+"dir=f&from="+end, nil); !slices.Equal(bodies(r.at("chunk")), []string{"new"}) {
		t.Errorf("a token stays valid and finds what is new: %s", r.raw)
	}
	if r := alice.want(200, "GET", path+"dir=b&limit=3&filter="+esc(`{"lazy_load_members":true,"types":["m.room.message"]}`), nil); r.str("state", 0, "type") != "m.room.member" || len(r.list("state")) != 1 {
		t.Errorf("lazy members: %s", r.raw)
	}
	for _, bad := range []string{"", "dir=x", "dir=b&limit=x", "dir=b&from=t1", "dir=b&filter={", "dir=b&filter=[]"} {
		if r := alice.do("GET", path+bad, nil); r.status != 400 {
			t.Errorf("%q: %d", bad, r.status)
		}
	}
}

func TestContext(t *testing.T) {
	h := newHouse(t)
	alice, eve := h.user("alice"), h.user("eve")
	room := alice.room(obj{})
	var ids []string
	for i := range 9 {
		ids = append(ids, alice.say(room, fmt.Sprint(i), fmt.Sprint(i)))
	}
	r := alice.want(200, "GET", "/v3/rooms/"+esc(room)+"/context/"+esc(ids[4])+"?limit=4", nil)
	if r.str("event", "content", "body") != "4" || !slices.Equal(bodies(r.at("events_before")), []string{"3", "2"}) || !slices.Equal(bodies(r.at("events_after")), []string{"5", "6"}) {
		t.Errorf("%s", r.raw)
	}
	older := alice.want(200, "GET", "/v3/rooms/"+esc(room)+"/messages?dir=b&limit=2&from="+r.str("start"), nil)
	newer := alice.want(200, "GET", "/v3/rooms/"+esc(room)+"/messages?dir=f&limit=2&from="+r.str("end"), nil)
	if !slices.Equal(bodies(older.at("chunk")), []string{"1", "0"}) || !slices.Equal(bodies(newer.at("chunk")), []string{"7", "8"}) {
		t.Errorf("around the context: %s %s", older.raw, newer.raw)
	}
	if types(r.at("state"))["m.room.create|"] == nil {
		t.Error("the context has no state")
	}
	for _, u := range []*resident{alice, eve} {
		u.wantError(404, matrix.CodeNotFound, "GET", "/v3/rooms/"+esc(room)+"/context/$nothing", nil)
	}
	eve.wantError(404, matrix.CodeNotFound, "GET", "/v3/rooms/"+esc(room)+"/event/"+esc(ids[0]), nil)
}

func TestRedaction(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.user("alice"), h.user("bob")
	for _, version := range matrix.RoomVersions() {
		room := alice.room(obj{"preset": "public_chat", "room_version": version})
		bob.join(room)
		redact := func(u *resident, status int, id, txn string) string {
			t.Helper()
			return u.want(status, "PUT", "/v3/rooms/"+esc(room)+"/redact/"+esc(id)+"/"+txn, obj{"reason": "oops"}).str("event_id")
		}
		hers, his := alice.say(room, "hers", "1"), bob.say(room, "his", "1")
		redact(bob, 403, hers, "r1")
		redact(bob, 404, "$nothing", "r2")
		r := redact(bob, 200, his, "r3")
		if again := redact(bob, 200, his, "r3"); again != r {
			t.Error("the same transaction redacted twice")
		}
		redact(alice, 200, his, "r4") // is redacted already: the event is stored all the same
		ev := alice.want(200, "GET", "/v3/rooms/"+esc(room)+"/event/"+esc(his), nil)
		if len(ev.at("content").(obj)) != 0 || ev.str("unsigned", "redacted_because", "event_id") != r || ev.str("unsigned", "redacted_because", "redacts") != his {
			t.Errorf("version %s: %s", version, ev.raw)
		}
		// Redaction by /send, as from Matrix 1.18 on.
		id := alice.want(200, "PUT", "/v3/rooms/"+esc(room)+"/send/m.room.redaction/r5", obj{"redacts": hers}).str("event_id")
		ev = bob.want(200, "GET", "/v3/rooms/"+esc(room)+"/event/"+esc(hers), nil)
		if ev.str("unsigned", "redacted_because", "event_id") != id {
			t.Errorf("version %s: by /send: %s", version, ev.raw)
		}
		alice.want(400, "PUT", "/v3/rooms/"+esc(room)+"/send/m.room.redaction/r6", obj{})
		// A redacted member event still says who is in.
		member := alice.want(200, "GET", "/v3/rooms/"+esc(room)+"/state/m.room.member/"+esc(string(bob.id))+"?format=event", nil).str("event_id")
		redact(alice, 200, member, "r7")
		bob.say(room, "still here", "2")
	}
}

func TestRelations(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.user("alice"), h.user("bob")
	room := alice.room(obj{"preset": "public_chat"})
	bob.join(room)
	send := func(u *resident, status int, typ, txn, rel, parent string, extra obj) seen {
		t.Helper()
		content := obj{"body": txn, "m.relates_to": obj{"rel_type": rel, "event_id": parent}}
		for k, v := range extra {
			content["m.relates_to"].(obj)[k] = v
		}
		return u.want(status, "PUT", "/v3/rooms/"+esc(room)+"/send/"+typ+"/"+txn, content)
	}
	root := alice.say(room, "root", "0")
	send(bob, 200, "m.room.message", "t1", "m.thread", root, nil)
	last := send(bob, 200, "m.room.message", "t2", "m.thread", root, nil).str("event_id")
	send(bob, 200, "m.room.message", "e0", "m.replace", root, nil) // not the author's
	edit := send(alice, 200, "m.room.message", "e1", "m.replace", root, nil).str("event_id")
	send(bob, 200, "m.reaction", "a1", "m.annotation", root, obj{"key": "+1"})
	send(bob, 200, "m.reaction", "a1", "m.annotation", root, obj{"key": "+1"}) // the same request again
	if r := send(bob, 400, "m.reaction", "a2", "m.annotation", root, obj{"key": "+1"}); r.str("errcode") != "M_DUPLICATE_ANNOTATION" {
		t.Errorf("%s", r.raw)
	}
	send(bob, 200, "m.reaction", "a3", "m.annotation", root, obj{"key": "-1"})
	ev := alice.want(200, "GET", "/v3/rooms/"+esc(room)+"/event/"+esc(root), nil)
	rel := ev.at("unsigned", "m.relations")
	if digIn(rel, "m.thread", "count") != 2.0 || digIn(rel, "m.thread", "latest_event", "event_id") != last || digIn(rel, "m.thread", "current_user_participated") != true {
		t.Errorf("thread: %v", rel)
	}
	if digIn(rel, "m.replace", "event_id") != edit {
		t.Errorf("edit: %v", rel)
	}
	path := "/v1/rooms/" + esc(room) + "/relations/" + esc(root)
	if r := alice.want(200, "GET", path+"/m.thread/m.room.message", nil); !slices.Equal(bodies(r.at("chunk")), []string{"t2", "t1"}) {
		t.Errorf("%s", r.raw)
	}
	if r := alice.want(200, "GET", path+"/m.thread?dir=f", nil); !slices.Equal(bodies(r.at("chunk")), []string{"t1", "t2"}) {
		t.Errorf("%s", r.raw)
	}
	var all []string
	from := ""
	for range 10 {
		r := alice.want(200, "GET", path+"?limit=2"+from, nil)
		all = append(all, bodies(r.at("chunk"))...)
		if r.str("next_batch") == "" {
			break
		}
		from = "&from=" + r.str("next_batch")
	}
	if !slices.Equal(all, []string{"a3", "a1", "e1", "e0", "t2", "t1"}) {
		t.Errorf("pages: %q", all)
	}
	if r := alice.want(200, "GET", "/v1/rooms/"+esc(room)+"/threads", nil); r.str("chunk", 0, "event_id") != root || len(r.list("chunk")) != 1 {
		t.Errorf("threads: %s", r.raw)
	}
	h.user("eve").want(404, "GET", path, nil)
}

func TestDirectory(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.user("alice"), h.user("bob")
	room := alice.room(obj{"preset": "public_chat", "name": "Lobby", "topic": "for all", "visibility": "public"})
	alias := func(name string) string { return "/v3/directory/room/" + esc("#"+name+":hs.test") }
	alice.want(200, "PUT", alias("lobby"), obj{"room_id": room})
	alice.want(409, "PUT", alias("lobby"), obj{"room_id": room})
	bob.want(403, "PUT", alias("mine"), obj{"room_id": room})
	alice.want(400, "PUT", "/v3/directory/room/"+esc("#x:elsewhere.test"), obj{"room_id": room})
	alice.want(400, "PUT", "/v3/directory/room/"+esc("lobby"), obj{"room_id": room})
	if r := h.anonymous().want(200, "GET", alias("lobby"), nil); r.str("room_id") != room || r.str("servers", 0) != "hs.test" {
		t.Errorf("%s", r.raw)
	}
	bob.want(200, "POST", "/v3/join/"+esc("#lobby:hs.test"), obj{})
	canonical := "/v3/rooms/" + esc(room) + "/state/m.room.canonical_alias"
	alice.wantError(400, "M_BAD_ALIAS", "PUT", canonical, obj{"alias": "#nothing:hs.test"})
	alice.want(200, "PUT", canonical, obj{"alias": "#lobby:hs.test"})
	if r := alice.want(200, "GET", "/v3/rooms/"+esc(room)+"/aliases", nil); !slices.Equal(r.list("aliases"), []any{"#lobby:hs.test"}) {
		t.Errorf("%s", r.raw)
	}
	for method, body := range map[string]any{"GET": nil, "POST": obj{"filter": obj{"generic_search_term": "lob"}}} {
		who := h.anonymous()
		if method == "POST" {
			who = bob
		}
		r := who.want(200, method, "/v3/publicRooms", body)
		if r.str("chunk", 0, "room_id") != room || r.at("chunk", 0, "num_joined_members") != 2.0 || r.str("chunk", 0, "canonical_alias") != "#lobby:hs.test" {
			t.Errorf("%s: %s", method, r.raw)
		}
	}
	if r := bob.want(200, "POST", "/v3/publicRooms", obj{"filter": obj{"generic_search_term": "cellar"}}); len(r.list("chunk")) != 0 {
		t.Errorf("%s", r.raw)
	}
	for _, path := range []string{"/v1/room_summary/" + esc(room), "/unstable/im.nheko.summary/rooms/" + esc("#lobby:hs.test") + "/summary"} {
		if r := h.anonymous().want(200, "GET", path, nil); r.str("name") != "Lobby" || r.str("room_version") != "12" || r.str("join_rule") != "public" {
			t.Errorf("%s: %s", path, r.raw)
		}
	}
	secret := alice.room(obj{"name": "Secret"})
	for _, who := range []*resident{h.anonymous(), bob} {
		who.wantError(404, matrix.CodeNotFound, "GET", "/v1/room_summary/"+esc(secret), nil)
		who.wantError(404, matrix.CodeNotFound, "GET", "/v1/room_summary/"+esc("!nowhere:hs.test"), nil)
	}
	listing := "/v3/directory/list/room/" + esc(room)
	bob.want(403, "PUT", listing, obj{"visibility": "private"})
	alice.want(200, "PUT", listing, obj{"visibility": "private"})
	if r := h.anonymous().want(200, "GET", listing, nil); r.str("visibility") != "private" {
		t.Errorf("%s", r.raw)
	}
	bob.want(403, "DELETE", alias("lobby"), nil)
	alice.want(200, "DELETE", alias("lobby"), nil)
	h.anonymous().want(404, "GET", alias("lobby"), nil)
	if r := alice.want(200, "GET", canonical, nil); r.at("alias") != nil {
		t.Errorf("a deleted alias is still canonical: %s", r.raw)
	}
}

func TestHistoryVisibilityEverywhere(t *testing.T) {
	h := newHouse(t)
	alice := h.user("alice")
	for _, tt := range []struct {
		visibility string
		want       string // what is seen by who joins after "invited"
	}{
		{"world_readable", "before invited joined"}, {"shared", "before invited joined"}, {"invited", "invited joined"}, {"joined", "joined"},
	} {
		bob := h.user("bob-" + strings.ReplaceAll(tt.visibility, "_", "-"))
		room := alice.room(obj{"initial_state": []obj{{"type": "m.room.history_visibility", "content": obj{"history_visibility": tt.visibility}}}})
		ids := map[string]string{"before": alice.say(room, "before", "1")}
		alice.want(200, "POST", "/v3/rooms/"+esc(room)+"/invite", obj{"user_id": bob.id})
		ids["invited"] = alice.say(room, "invited", "2")
		bob.join(room)
		ids["joined"] = alice.say(room, "joined", "3")
		want := strings.Fields(tt.want)
		if got := bodies(bob.sync("").joined(room, "timeline", "events")); !slices.Equal(got, want) {
			t.Errorf("%s: sync shows %q", tt.visibility, got)
		}
		got := bodies(bob.want(200, "GET", "/v3/rooms/"+esc(room)+"/messages?dir=f&limit=100", nil).at("chunk"))
		if !slices.Equal(got, want) {
			t.Errorf("%s: messages shows %q", tt.visibility, got)
		}
		for body, id := range ids {
			status := 404
			if slices.Contains(want, body) {
				status = 200
			}
			bob.want(status, "GET", "/v3/rooms/"+esc(room)+"/event/"+esc(id), nil)
			bob.want(status, "GET", "/v3/rooms/"+esc(room)+"/context/"+esc(id), nil)
			bob.want(status, "GET", "/v1/rooms/"+esc(room)+"/relations/"+esc(id), nil)
		}
	}
}

// Creators of a version 12 room are not named in its power levels: that is a wrong
// request, while lacking the right to change them is a forbidden one.
func TestPowerLevelsWithCreators(t *testing.T) {
	h := newHouse(t)
	alice, bob, eve := h.user("alice"), h.user("bob"), h.user("eve")
	for version, status := range map[string]int{"11": 200, "12": 400} {
		room := alice.room(obj{"preset": "public_chat", "room_version": version})
		bob.join(room)
		path := "/v3/rooms/" + esc(room) + "/state/m.room.power_levels"
		named := obj{"users": obj{string(alice.id): 100}}
		eve.wantError(403, matrix.CodeForbidden, "PUT", path, named)
		alice.want(status, "PUT", path, named)
		bob.wantError(403, matrix.CodeForbidden, "PUT", path, obj{"users": obj{string(bob.id): 100}})
		if version == "12" {
			alice.want(200, "PUT", path, obj{})
			alice.want(200, "PUT", path, obj{"users": obj{}})
			alice.wantError(400, matrix.CodeInvalidParam, "PUT", path, named)
		}
	}
}

// What a client adds to its join is in the member event, but not what others rely on.
func TestJoinWithContent(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.user("alice"), h.user("bob")
	room := alice.room(obj{"preset": "public_chat"})
	bob.want(200, "POST", "/v3/join/"+esc(room), obj{
		"foo": "bar", "reason": "why not", "membership": "ban", "displayname": "Alice", "join_authorised_via_users_server": string(alice.id),
		"third_party_signed": obj{"mxid": "x"}, "user_id": string(alice.id),
	})
	got := alice.want(200, "GET", "/v3/rooms/"+esc(room)+"/state/m.room.member/"+esc(string(bob.id)), nil)
	if want := `{"foo":"bar","membership":"join","reason":"why not"}`; strings.TrimSpace(string(got.raw)) != want {
		t.Errorf("member event %s, want %s", got.raw, want)
	}
	members := alice.want(200, "GET", "/v3/rooms/"+esc(room)+"/joined_members", nil)
	for _, key := range []string{"display_name", "avatar_url"} {
		entry, _ := members.at("joined", string(bob.id)).(obj)
		if _, ok := entry[key]; !ok {
			t.Errorf("joined_members has no %s: %s", key, members.raw)
		}
	}
}

// Before there were transactions, messages were posted.
func TestSendWithoutTransaction(t *testing.T) {
	h := newHouse(t)
	alice := h.user("alice")
	room := alice.room(obj{})
	post := func(typ string, content obj) string {
		return alice.want(200, "POST", "/v3/rooms/"+esc(room)+"/send/"+typ, content).str("event_id")
	}
	first := post("m.room.message", obj{"body": "a"})
	if post("m.room.message", obj{"body": "a"}) == first {
		t.Error("a second message is not one of its own")
	}
	reaction := obj{"m.relates_to": obj{"rel_type": "m.annotation", "event_id": first, "key": "x"}}
	post("m.reaction", reaction)
	alice.wantError(400, matrix.CodeDuplicate, "POST", "/v3/rooms/"+esc(room)+"/send/m.reaction", reaction)
}

func TestFiltersThatCannotBeMeant(t *testing.T) {
	h := newHouse(t)
	alice := h.user("alice")
	path := "/v3/user/" + esc(string(alice.id)) + "/filter"
	timeline := func(key string, value any) obj { return obj{"room": obj{"timeline": obj{key: value}}} }
	for _, f := range []obj{
		{"presence": "none"}, {"room": obj{"rooms": []string{"nowhere"}}}, {"room": obj{"state": "none"}},
		timeline("rooms", []string{"nowhere"}), timeline("not_rooms", "x"), timeline("senders", []string{"nobody"}),
		timeline("not_senders", []string{"@nobody"}), timeline("types", []int{1}),
	} {
		alice.wantError(400, matrix.CodeBadJSON, "POST", path, f)
	}
	alice.want(200, "POST", path, obj{
		"presence": obj{"not_types": []string{"*"}}, "account_data": obj{"types": []string{"m.*"}},
		"room": obj{"rooms": []string{"!x:hs.test", "!x"}, "timeline": obj{"senders": []string{"@a:other.test"}, "not_rooms": []string{}}},
	})
}

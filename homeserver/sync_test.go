package homeserver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

// filterParam is ?filter= with a JSON filter.
func filterParam(json string) string { return "filter=" + esc(json) }

func TestSyncTellsWhatIsNew(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.user("alice"), h.user("bob")
	room := alice.room(obj{"preset": "public_chat", "name": "one"})
	other := alice.room(obj{"preset": "public_chat", "name": "two"})
	bob.join(room)
	bob.join(other)

	first := bob.sync("")
	if first.at("device_one_time_keys_count") == nil || first.at("device_unused_fallback_key_types") == nil {
		t.Error("an initial sync does not count keys; clients would stop uploading them")
	}
	quiet := bob.sync(first.next())
	if quiet.at("rooms") != nil || quiet.at("account_data") != nil {
		t.Errorf("nothing happened, yet: %s", quiet.raw)
	}
	if quiet.at("device_one_time_keys_count") == nil || quiet.at("device_unused_fallback_key_types") == nil {
		t.Error("an empty sync does not count keys; clients would stop uploading them")
	}

	alice.say(room, "a", "1")
	alice.want(200, "PUT", "/v3/rooms/"+esc(room)+"/state/m.room.topic", obj{"topic": "t1"})
	alice.say(room, "b", "2")
	second := bob.sync(quiet.next())
	if second.joined(other) != nil {
		t.Error("a room where nothing happened is in the sync")
	}
	tl := second.joined(room, "timeline")
	if got := bodies(digIn(tl, "events")); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("timeline %q", got)
	}
	if digIn(tl, "limited") != false {
		t.Error("limited without a gap")
	}
	if st := types(second.joined(room, "state", "events")); len(st) != 0 {
		t.Errorf("state that the timeline shows is repeated: %v", st)
	}
	if n := second.joined(room, "unread_notifications", "notification_count"); n != 2.0 {
		t.Errorf("%v unread, want 2", n)
	}
	if digIn(tl, "events", 0, "unsigned", "age") == nil || digIn(tl, "events", 0, "unsigned", "transaction_id") != nil {
		t.Errorf("unsigned of somebody else's event: %v", digIn(tl, "events", 0, "unsigned"))
	}
	if again := bob.sync(quiet.next()); !slices.Equal(bodies(again.joined(room, "timeline", "events")), []string{"a", "b"}) {
		t.Error("the same token gives another answer")
	}

	// A gap: only the newest events, and the state before them.
	alice.want(200, "PUT", "/v3/rooms/"+esc(room)+"/state/m.room.topic", obj{"topic": "t2"})
	for i := range 10 {
		alice.say(room, fmt.Sprint("m", i), fmt.Sprint("g", i))
	}
	gap := bob.sync(second.next(), filterParam(`{"room":{"timeline":{"limit":3}}}`))
	if got := bodies(gap.joined(room, "timeline", "events")); !slices.Equal(got, []string{"m7", "m8", "m9"}) || gap.joined(room, "timeline", "limited") != true {
		t.Errorf("limited timeline: %q, limited %v", got, gap.joined(room, "timeline", "limited"))
	}
	if topic := digIn(types(gap.joined(room, "state", "events"))["m.room.topic|"], "topic"); topic != "t2" {
		t.Errorf("topic %v before the timeline, want t2", topic)
	}
	prev, _ := gap.joined(room, "timeline", "prev_batch").(string)
	older := bob.want(200, "GET", "/v3/rooms/"+esc(room)+"/messages?dir=b&limit=7&from="+prev+"&to="+second.next(), nil)
	if got := bodies(older.at("chunk")); !slices.Equal(got, []string{"m6", "m5", "m4", "m3", "m2", "m1", "m0"}) {
		t.Errorf("messages before the gap: %q", got)
	}

	// MSC4222: the state at the end instead.
	after := bob.sync(second.next(), "org.matrix.msc4222.use_state_after=true", filterParam(`{"room":{"timeline":{"limit":1}}}`))
	if st := types(after.joined(room, "org.matrix.msc4222.state_after", "events")); digIn(st["m.room.topic|"], "topic") != "t2" {
		t.Errorf("state_after %v", st)
	}
	if after.joined(room, "state") != nil {
		t.Error("state and state_after in one answer")
	}
	if stable := bob.sync(second.next(), "use_state_after=true"); stable.joined(room, "state_after") == nil {
		t.Error("no state_after by its stable name")
	}
	whole := bob.sync(gap.next(), "full_state=true")
	if st := types(whole.joined(other, "state", "events")); st["m.room.create|"] == nil {
		t.Errorf("full_state lacks the create event: %v", st)
	}
}

func TestSyncStateOfFilteredTimeline(t *testing.T) {
	h := newHouse(t)
	alice := h.user("alice")
	room := alice.room(obj{})
	since := alice.sync("").next()
	alice.say(room, "a", "1")
	alice.want(200, "PUT", "/v3/rooms/"+esc(room)+"/state/m.room.topic", obj{"topic": "hidden by the filter"})
	for name, f := range map[string]string{
		"a filter on types": `{"room":{"timeline":{"types":["m.room.message"]}}}`,
		"a limit of 0":      `{"room":{"timeline":{"limit":0}}}`,
	} {
		s := alice.sync(since, filterParam(f))
		if st := types(s.joined(room, "state", "events")); st["m.room.topic|"] == nil {
			t.Errorf("%s loses a change of state: %s", name, s.raw)
		}
	}
}

func TestSyncTransactionID(t *testing.T) {
	h := newHouse(t)
	alice := h.user("alice")
	phone := h.user("alice")
	room := alice.room(obj{})
	since := alice.sync("").next()
	id := alice.say(room, "once", "txn1")
	if again := alice.say(room, "once", "txn1"); again != id {
		t.Errorf("the same transaction made %s and %s", id, again)
	}
	if other := phone.say(room, "other device", "txn1"); other == id {
		t.Error("a transaction ID counts across devices")
	}
	for _, tt := range []struct {
		u    *resident
		want any
	}{{alice, "txn1"}, {phone, nil}} {
		s := tt.u.sync(since)
		if got := s.joined(room, "timeline", "events", 0, "unsigned", "transaction_id"); got != tt.want {
			t.Errorf("device %s sees transaction %v, want %v", tt.u.device, got, tt.want)
		}
		ev := tt.u.want(200, "GET", "/v3/rooms/"+esc(room)+"/event/"+esc(id), nil)
		if got := ev.at("unsigned", "transaction_id"); got != tt.want {
			t.Errorf("device %s reads transaction %v, want %v", tt.u.device, got, tt.want)
		}
	}
}

func TestSyncMemberships(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.user("alice"), h.user("bob")
	room := alice.room(obj{"name": "Den"})
	s := bob.sync("")
	alice.want(200, "POST", "/v3/rooms/"+esc(room)+"/invite", obj{"user_id": bob.id})
	s = bob.sync(s.next())
	inv := types(s.at("rooms", "invite", room, "invite_state", "events"))
	if digIn(inv["m.room.name|"], "name") != "Den" || inv["m.room.member|@bob:hs.test"] == nil || inv["m.room.member|@alice:hs.test"] == nil || inv["m.room.create|"] == nil {
		t.Errorf("invite_state: %v", inv)
	}
	if again := bob.sync(s.next()); again.at("rooms") != nil {
		t.Errorf("the invite is told twice: %s", again.raw)
	}
	alice.say(room, "before", "0")
	bob.join(room)
	alice.say(room, "after", "1")
	s2 := bob.sync(s.next())
	if got := bodies(s2.joined(room, "timeline", "events")); !slices.Equal(got, []string{"before", "after"}) {
		t.Errorf("timeline of a room just joined: %q", got)
	}
	if s2.joined(room, "summary", "m.joined_member_count") != 2.0 || s2.joined(room, "summary", "m.heroes", 0) != "@alice:hs.test" {
		t.Errorf("summary: %v", s2.joined(room, "summary"))
	}
	if changed := s2.list("device_lists", "changed"); !slices.Contains(changed, any("@alice:hs.test")) {
		t.Errorf("who joins must fetch the members' devices: %v", changed)
	}
	as := alice.sync(alice.sync("").next())
	bob.say(room, "bye", "2")
	bob.want(200, "POST", "/v3/rooms/"+esc(room)+"/leave", obj{})
	alice.say(room, "he is gone", "3")
	s3 := bob.sync(s2.next())
	if got := bodies(s3.at("rooms", "leave", room, "timeline", "events")); !slices.Equal(got, []string{"bye"}) {
		t.Errorf("timeline of a room just left: %q", got)
	}
	if s3.joined(room) != nil {
		t.Error("a room that was left is still among the joined")
	}
	if left := s3.list("device_lists", "left"); !slices.Contains(left, any("@alice:hs.test")) {
		t.Errorf("who leaves need not follow the members' devices: %v", left)
	}
	if left := alice.sync(as.next()).list("device_lists", "left"); !slices.Contains(left, any("@bob:hs.test")) {
		t.Errorf("the others need not follow the devices of who left: %v", left)
	}
	if s4 := bob.sync(s3.next()); s4.at("rooms") != nil {
		t.Errorf("the leave is told twice: %s", s4.raw)
	}
	// Rooms stay readable up to the leave.
	if got := bodies(bob.want(200, "GET", "/v3/rooms/"+esc(room)+"/messages?dir=b&limit=100", nil).at("chunk")); !slices.Equal(got, []string{"bye", "after", "before"}) {
		t.Errorf("messages for who left: %q", got)
	}
	if s := bob.sync(""); s.at("rooms", "leave") != nil {
		t.Error("an initial sync shows left rooms")
	}
	if s := bob.sync("", filterParam(`{"room":{"include_leave":true}}`)); s.at("rooms", "leave", room) == nil {
		t.Error("include_leave shows no left rooms")
	}
	bob.want(200, "POST", "/v3/rooms/"+esc(room)+"/forget", obj{})
	bob.want(403, "GET", "/v3/rooms/"+esc(room)+"/messages?dir=b", nil)
	// An invite that is withdrawn disappears.
	alice.want(200, "POST", "/v3/rooms/"+esc(room)+"/invite", obj{"user_id": bob.id})
	s5 := bob.sync(s3.next())
	alice.want(200, "POST", "/v3/rooms/"+esc(room)+"/kick", obj{"user_id": bob.id})
	if s6 := bob.sync(s5.next()); s6.at("rooms", "leave", room) == nil {
		t.Errorf("a withdrawn invite is not told: %s", s6.raw)
	}
}

func TestSyncLazyMembers(t *testing.T) {
	h := newHouse(t)
	alice := h.user("alice")
	room := alice.room(obj{"preset": "public_chat"})
	var others []*resident
	for i := range 8 {
		u := h.user(fmt.Sprint("user", i))
		u.join(room)
		others = append(others, u)
	}
	for i := range 5 {
		others[7].say(room, fmt.Sprint(i), fmt.Sprint(i))
	}
	const lazy = `{"room":{"state":{"lazy_load_members":true},"timeline":{"limit":3}}}`
	s := alice.sync("", filterParam(lazy))
	got := types(s.joined(room, "state", "events"))
	for user, want := range map[string]bool{"alice": true, "user7": true, "user0": true, "user6": false} { // itself, the sender, a hero, nobody
		if _, ok := got["m.room.member|@"+user+":hs.test"]; ok != want {
			t.Errorf("lazy state has %s: %v, want %v", user, ok, want)
		}
	}
	if n := s.joined(room, "summary", "m.joined_member_count"); n != 9.0 {
		t.Errorf("summary counts %v members, want 9", n)
	}
	others[6].say(room, "hi", "x")
	s2 := alice.sync(s.next(), filterParam(lazy))
	if _, ok := types(s2.joined(room, "state", "events"))["m.room.member|@user6:hs.test"]; !ok {
		t.Error("the sender of a new message is unknown to a lazy client")
	}
	m := alice.want(200, "GET", "/v3/rooms/"+esc(room)+"/members?at="+s.next()+"&not_membership=leave", nil)
	if n := len(m.list("chunk")); n != 9 {
		t.Errorf("%d members, want 9", n)
	}
}

func TestSyncEphemeral(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.user("alice"), h.user("bob")
	room := alice.room(obj{"preset": "public_chat"})
	bob.join(room)
	id := alice.say(room, "read me", "1")
	s := alice.sync("")
	bob.want(200, "PUT", "/v3/rooms/"+esc(room)+"/typing/"+esc(string(bob.id)), obj{"typing": true, "timeout": 30000})
	bob.want(403, "PUT", "/v3/rooms/"+esc(room)+"/typing/"+esc(string(alice.id)), obj{"typing": true})
	s2 := alice.sync(s.next())
	if got := digIn(types(s2.joined(room, "ephemeral", "events"))["m.typing"], "user_ids", 0); got != "@bob:hs.test" {
		t.Errorf("typing: %s", s2.raw)
	}
	if s3 := alice.sync(s2.next()); s3.at("rooms") != nil {
		t.Errorf("typing is told twice: %s", s3.raw)
	}
	bob.want(200, "PUT", "/v3/rooms/"+esc(room)+"/typing/"+esc(string(bob.id)), obj{"typing": false})
	bs := bob.sync("")
	if n := bs.joined(room, "unread_notifications", "notification_count"); n != 1.0 {
		t.Errorf("%v unread, want 1", n)
	}
	bob.want(200, "POST", "/v3/rooms/"+esc(room)+"/receipt/m.read/"+esc(id), obj{})
	bob.want(200, "POST", "/v3/rooms/"+esc(room)+"/receipt/m.read.private/"+esc(id), obj{})
	bob.want(200, "POST", "/v3/rooms/"+esc(room)+"/read_markers", obj{"m.fully_read": id})
	bob.wantError(400, matrix.CodeInvalidParam, "POST", "/v3/rooms/"+esc(room)+"/receipt/m.odd/"+esc(id), obj{})
	s4 := alice.sync(s2.next())
	events := types(s4.joined(room, "ephemeral", "events"))
	if l, ok := digIn(events["m.typing"], "user_ids").([]any); !ok || len(l) != 0 {
		t.Errorf("the end of typing: %v", events)
	}
	if digIn(events["m.receipt"], id, "m.read", string(bob.id), "ts") == nil || digIn(events["m.receipt"], id, "m.read.private") != nil {
		t.Errorf("receipts for others: %v", events["m.receipt"])
	}
	bs2 := bob.sync(bs.next())
	if digIn(types(bs2.joined(room, "ephemeral", "events"))["m.receipt"], id, "m.read.private", string(bob.id)) == nil {
		t.Errorf("one's own private receipt: %s", bs2.raw)
	}
	if n := bs2.joined(room, "unread_notifications", "notification_count"); n != 0.0 {
		t.Errorf("%v unread after reading, want 0", n)
	}
	if digIn(types(bs2.joined(room, "account_data", "events"))["m.fully_read"], "event_id") != id {
		t.Errorf("m.fully_read: %v", bs2.joined(room, "account_data"))
	}
}

func TestSyncWakes(t *testing.T) {
	h := newHouse(t)
	alice, bob, eve := h.user("alice"), h.user("bob"), h.user("eve")
	room := alice.room(obj{"preset": "public_chat"})
	bob.join(room)
	since := bob.sync("").next()
	sinceEve := eve.sync("").next()
	type result struct {
		reply seen
		at    time.Time
	}
	poll := func(ctx context.Context, u *resident, since string) <-chan result {
		c := make(chan result, 1)
		go func() {
			r := u.doCtx(ctx, "GET", "/v3/sync?timeout=30000&since="+since, nil)
			c <- result{r, time.Now()}
		}()
		return c
	}
	waiting := func(u matrix.UserID) bool {
		h.notify.mu.Lock()
		defer h.notify.mu.Unlock()
		return len(h.notify.waits[u]) > 0
	}
	ctx, cancel := context.WithCancel(t.Context())
	bobs, eves := poll(ctx, bob, since), poll(ctx, eve, sinceEve)
	for !waiting(bob.id) || !waiting(eve.id) {
		time.Sleep(time.Millisecond) // until both long polls are there
	}
	start := time.Now()
	alice.say(room, "wake up", "1")
	select {
	case r := <-bobs:
		if got := bodies(r.reply.joined(room, "timeline", "events")); !slices.Equal(got, []string{"wake up"}) {
			t.Errorf("woken with %q", got)
		}
		t.Logf("woken after %v", r.at.Sub(start))
	case <-time.After(20 * time.Second):
		t.Fatal("the long poll was not woken by a message")
	}
	select {
	case r := <-eves:
		t.Errorf("somebody in another room was answered: %s", r.reply.raw)
	default:
	}
	cancel() // a client that hangs up leaves nothing behind
	<-eves
	if waiting(eve.id) {
		t.Error("the place of a long poll that ended is still kept")
	}
}

func TestSyncToDeviceIsAcknowledged(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.user("alice"), h.user("bob")
	s := bob.sync("")
	alice.want(200, "PUT", "/v3/sendToDevice/m.test/1", obj{"messages": obj{string(bob.id): obj{string(bob.device): obj{"n": 1}}}})
	for range 2 { // until the next token comes back, it is told again
		r := bob.sync(s.next())
		if r.at("to_device", "events", 0, "content", "n") != 1.0 {
			t.Fatalf("to-device: %s", r.raw)
		}
	}
	r := bob.sync(s.next())
	if r2 := bob.sync(r.next()); r2.at("to_device") != nil {
		t.Errorf("an acknowledged to-device event came again: %s", r2.raw)
	}
}

func TestSyncTokens(t *testing.T) {
	h := newHouse(t)
	alice := h.user("alice")
	alice.room(obj{})
	for _, bad := range []string{"x", "s", "s-1", "s1_2", "s99999999", "s1_2_3_x", "s9223372036854775808"} {
		alice.wantError(400, matrix.CodeInvalidParam, "GET", "/v3/sync?since="+bad, nil)
	}
	for _, bad := range []string{"timeout=x", "full_state=maybe", "filter=%7B", "filter=77", "filter=%7B%22room%22%3A5%7D"} {
		alice.wantError(400, matrix.CodeInvalidParam, "GET", "/v3/sync?"+bad, nil)
	}
	for _, tok := range []token{{pos: 5}, {1, 2, 3, 4}, {pos: 1, typing: 9}} {
		if got, err := parseToken(tok.String()); got != tok || err != nil {
			t.Errorf("token %v came back as %v, %v", tok, got, err)
		}
	}
}

func TestSyncIgnoredUsers(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.user("alice"), h.user("bob")
	room := alice.room(obj{"preset": "public_chat"})
	bob.join(room)
	alice.want(200, "PUT", "/v3/user/"+esc(string(alice.id))+"/account_data/m.ignored_user_list", obj{"ignored_users": obj{string(bob.id): obj{}}})
	bob.say(room, "spam", "1")
	private := bob.room(obj{"invite": []string{string(alice.id)}})
	s := alice.sync("")
	if got := bodies(s.joined(room, "timeline", "events")); len(got) != 0 {
		t.Errorf("an ignored user is heard: %q", got)
	}
	if s.at("rooms", "invite", private) != nil {
		t.Error("an ignored user can invite")
	}
}

func TestGlob(t *testing.T) {
	for _, tt := range []struct {
		pattern, text string
		want          bool
	}{
		{"m.room.message", "m.room.message", true}, {"m.room.message", "m.room.messages", false},
		{"m.room.*", "m.room.message", true}, {"m.*.message", "m.room.message", true}, {"*", "", true}, {"*", "x", true},
		{"m.*.x.*", "m.a.x.b", true}, {"m.*.x.*", "m.a.y.b", false}, {"", "x", false}, {"a*a", "a", false}, {"**", "ab", true},
	} {
		if got := glob(tt.pattern, tt.text); got != tt.want {
			t.Errorf("glob(%q, %q) = %v", tt.pattern, tt.text, got)
		}
	}
}

func TestStickyEvents(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.user("alice"), h.user("bob")
	room := alice.room(obj{"preset": "public_chat", "initial_state": []obj{{"type": "m.room.history_visibility", "content": obj{"history_visibility": "joined"}}}})
	send := func(txn string, ms string) seen {
		return alice.do("PUT", "/v3/rooms/"+esc(room)+"/send/org.matrix.msc4143.rtc.member/"+txn+"?org.matrix.msc4354.sticky_duration_ms="+ms,
			obj{"msc4354_sticky_key": "k", "body": txn})
	}
	for _, bad := range []string{"-1", "x", "3600001", "1.5", ""} {
		if r := send("bad", bad); r.status != 400 || r.str("errcode") != "M_INVALID_PARAM" {
			t.Errorf("sticky duration %q: %d %s", bad, r.status, r.raw)
		}
	}
	if r := send("s1", "3600000"); r.status != 200 {
		t.Fatalf("%s", r.raw)
	}
	send("s0", "0") // is over at once
	for i := range 30 {
		alice.say(room, fmt.Sprint(i), fmt.Sprint("m", i))
	}
	bob.join(room)
	s := bob.sync("")
	l, _ := s.joined(room, "msc4354_sticky", "events").([]any)
	if got := bodies(l); !slices.Equal(got, []string{"s1"}) {
		t.Fatalf("sticky events for who joins: %q", got)
	}
	if digIn(l[0], "msc4354_sticky", "duration_ms") != 3600000.0 {
		t.Errorf("sticky event without its duration: %v", l[0])
	}
	if ttl, _ := digIn(l[0], "unsigned", "msc4354_sticky_duration_ttl_ms").(float64); ttl <= 0 || ttl > 3600000 {
		t.Errorf("time to live: %v", ttl)
	}
	if again := bob.sync(s.next()); again.at("rooms") != nil {
		t.Errorf("a sticky event is told twice: %s", again.raw)
	}
	send("s2", "60000")
	s2 := bob.sync(s.next())
	if got := bodies(s2.joined(room, "timeline", "events")); !slices.Equal(got, []string{"s2"}) || s2.joined(room, "msc4354_sticky") != nil {
		t.Errorf("a sticky event in the timeline: %s", s2.raw)
	}
	if s2.joined(room, "timeline", "events", 0, "unsigned", "msc4354_sticky_duration_ttl_ms") == nil {
		t.Error("a sticky event in the timeline has no time to live")
	}
	// Behind a gap it comes in the section.
	send("s3", "60000")
	for i := range 5 {
		alice.say(room, fmt.Sprint(i), fmt.Sprint("n", i))
	}
	s3 := bob.sync(s2.next(), filterParam(`{"room":{"timeline":{"limit":2}}}`))
	if got := bodies(s3.joined(room, "msc4354_sticky", "events")); !slices.Equal(got, []string{"s3"}) {
		t.Errorf("sticky events behind a gap: %q", got)
	}
	// Redacting it ends it, and takes the mark away.
	id := send("s4", "60000").str("event_id")
	alice.want(200, "PUT", "/v3/rooms/"+esc(room)+"/redact/"+esc(id)+"/r1", obj{})
	eve := h.user("eve")
	eve.join(room)
	if got := bodies(eve.sync("").joined(room, "msc4354_sticky", "events")); slices.Contains(got, "s4") {
		t.Errorf("a redacted event is sticky: %q", got)
	}
	if ev := alice.want(200, "GET", "/v3/rooms/"+esc(room)+"/event/"+esc(id), nil); ev.at("msc4354_sticky") != nil {
		t.Errorf("redacted: %s", ev.raw)
	}
}

func TestStickyEventsArePagedAndAllComeOnce(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.user("alice"), h.user("bob")
	room := alice.room(obj{"preset": "public_chat"})
	const n = stickyPerSync + 30
	for i := range n {
		alice.want(200, "PUT", fmt.Sprintf("/v3/rooms/%s/send/x/%d?org.matrix.msc4354.sticky_duration_ms=600000", esc(room), i), obj{"body": fmt.Sprint(i)})
	}
	bob.join(room)
	got := make(map[string]int)
	since := ""
	for range 4 {
		s := bob.sync(since, filterParam(`{"room":{"timeline":{"limit":1}}}`))
		for _, b := range bodies(s.joined(room, "msc4354_sticky", "events")) {
			got[b]++
		}
		since = s.next()
	}
	for i := range n {
		if got[fmt.Sprint(i)] != 1 {
			t.Errorf("sticky event %d came %d times", i, got[fmt.Sprint(i)])
		}
	}
}

func TestBadEvents(t *testing.T) {
	h := newHouse(t)
	alice := h.user("alice")
	room := alice.room(obj{})
	path := "/v3/rooms/" + esc(room) + "/send/m.room.message/"
	for i, tt := range []struct {
		name   string
		body   any
		status int
		code   matrix.Code
	}{
		{"not JSON", "{", 400, matrix.CodeNotJSON},
		{"not UTF-8", []byte("{\"a\":\"\xff\"}"), 400, matrix.CodeNotJSON},
		{"an array", "[]", 400, matrix.CodeBadJSON},
		{"a fraction", `{"n":1.5}`, 400, matrix.CodeBadJSON},
		{"an exponent", `{"n":1e3}`, 400, matrix.CodeBadJSON},
		{"an integer beyond 2^53", `{"n":9007199254740992}`, 400, matrix.CodeBadJSON},
		{"deep nesting", `{"a":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "}", 400, matrix.CodeBadJSON},
		{"unclosed nesting", `{"a":` + strings.Repeat("[", 100000), 400, matrix.CodeBadJSON},
		{"64 KiB", obj{"body": strings.Repeat("x", 65536)}, 413, matrix.CodeTooLarge},
		{"2 MiB", obj{"body": strings.Repeat("x", 2<<20)}, 413, matrix.CodeTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			alice.wantError(tt.status, tt.code, "PUT", path+fmt.Sprint(i), tt.body)
		})
	}
	alice.wantError(413, matrix.CodeTooLarge, "PUT", "/v3/rooms/"+esc(room)+"/send/"+strings.Repeat("t", 256)+"/x", obj{})
	alice.wantError(413, matrix.CodeTooLarge, "PUT", "/v3/rooms/"+esc(room)+"/state/x/"+strings.Repeat("é", 128), obj{})
	// Keys that would break out of an event written carelessly.
	evil := `{"a\":1},\"sender\":\"@admin:hs.test\",\"x\":{\"b":2}`
	id := alice.want(200, "PUT", path+"evil", evil).str("event_id")
	if ev := alice.want(200, "GET", "/v3/rooms/"+esc(room)+"/event/"+esc(id), nil); ev.str("sender") != string(alice.id) || len(ev.at("content").(obj)) != 1 {
		t.Errorf("an event was forged through a key: %s", ev.raw)
	}
	// Big integers that fit are kept to the digit.
	id = alice.want(200, "PUT", path+"int", `{"n":9007199254740991}`).str("event_id")
	if ev := alice.want(200, "GET", "/v3/rooms/"+esc(room)+"/event/"+esc(id), nil); !strings.Contains(string(ev.raw), "9007199254740991") {
		t.Errorf("%s", ev.raw)
	}
}

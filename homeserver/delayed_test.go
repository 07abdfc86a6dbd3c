package homeserver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

const delayedPath = "/unstable/org.matrix.msc4140/delayed_events"

// memberPath is the state of a call member.
func memberPath(room string, u *resident) string {
	return "/v3/rooms/" + esc(room) + "/state/org.matrix.msc3401.call.member/" + esc("_"+string(u.id)+"_"+string(u.device)+"_m.call")
}

// run serves background work until the test ends.
func (h *house) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = h.Run(ctx)
	}()
	return func() { cancel(); <-done }
}

// inBubble runs a test with a server in virtual time.
func inBubble(t *testing.T, f func(t *testing.T, h *house)) {
	path := filepath.Join(t.TempDir(), "bubble.db")
	synctest.Test(t, func(t *testing.T) {
		h := openHouse(t, path)
		stop := h.run()
		defer stop()
		f(t, h)
	})
}

// inCall returns whether a user's call membership is in the room's state.
func inCall(u *resident, room string) bool { return present(u, memberPath(room, u)) }

func present(u *resident, path string) bool {
	r := u.do("GET", path, nil)
	return r.status == 200 && r.at("application") != nil
}

func TestDelayedLeave(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		alice, bob := h.user("alice"), h.user("bob")
		room := alice.room(obj{"preset": "public_chat"})
		bob.join(room)
		// As Element Call does: the leave first, then the membership, then heartbeats.
		id := alice.want(200, "PUT", memberPath(room, alice)+"?org.matrix.msc4140.delay=18000", obj{}).str("delay_id")
		alice.want(200, "PUT", memberPath(room, alice), obj{"application": "m.call"})
		for range 5 {
			time.Sleep(4 * time.Second)
			h.anonymous().want(200, "POST", delayedPath+"/"+id+"/restart", nil)
		}
		list := alice.want(200, "GET", delayedPath, nil)
		if list.str("delayed_events", 0, "delay_id") != id || list.at("delayed_events", 0, "delay") != 18000.0 || list.str("delayed_events", 0, "room_id") != room {
			t.Errorf("list: %s", list.raw)
		}
		if len(bob.want(200, "GET", delayedPath, nil).list("delayed_events")) != 0 {
			t.Error("one user's delayed events are shown to another")
		}
		time.Sleep(18*time.Second - 10*time.Millisecond)
		synctest.Wait()
		if !inCall(alice, room) {
			t.Fatal("the leave was sent early")
		}
		since := alice.sync("").next()
		time.Sleep(20 * time.Millisecond)
		synctest.Wait()
		if inCall(alice, room) {
			t.Fatal("the leave was not sent when it was due")
		}
		// 404 makes the client join again; anything else would end its call.
		h.anonymous().wantError(404, matrix.CodeNotFound, "POST", delayedPath+"/"+id+"/restart", nil)
		h.anonymous().want(200, "POST", delayedPath+"/"+id+"/send", obj{})
		h.anonymous().wantError(404, matrix.CodeNotFound, "POST", delayedPath+"/"+id+"/cancel", obj{})
		h.anonymous().want(409, "POST", "/v1/delayed_events/"+id+"/restart", nil)
		h.anonymous().want(200, "POST", "/v1/delayed_events/"+id+"/send", nil)
		h.anonymous().want(409, "POST", "/v1/delayed_events/"+id+"/cancel", nil)
		s := alice.sync(since)
		if got := s.joined(room, "timeline", "events", 0, "unsigned", "org.matrix.msc4140.delay_id"); got != id {
			t.Errorf("delay_id in the sender's event: %v", got)
		}
		if got := bob.sync("").joined(room, "timeline", "events"); digIn(got.([]any)[len(got.([]any))-1], "unsigned", "org.matrix.msc4140.delay_id") != nil {
			t.Error("others see the delay_id")
		}
		if l := alice.want(200, "GET", delayedPath, nil).list("delayed_events"); len(l) != 0 {
			t.Errorf("a sent event is listed: %v", l)
		}
	})
}

func TestDelayedManagement(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		alice, bob := h.user("alice"), h.user("bob")
		room := alice.room(obj{"preset": "public_chat"})
		bob.join(room)
		schedule := func() string {
			return alice.want(200, "PUT", memberPath(room, alice)+"?org.matrix.msc4140.delay=60000", obj{}).str("delay_id")
		}
		nobody := h.anonymous()
		id := schedule()
		bob.want(403, "POST", delayedPath+"/"+id+"/cancel", nil)
		nobody.wantError(404, matrix.CodeNotFound, "POST", delayedPath+"/nonsense/restart", nil)
		nobody.wantError(404, matrix.CodeUnrecognized, "POST", delayedPath+"/"+id+"/explode", nil)
		nobody.wantError(401, matrix.CodeMissingToken, "GET", delayedPath, nil)
		nobody.wantError(400, matrix.CodeMissingParam, "POST", delayedPath+"/"+id, obj{})
		nobody.wantError(400, matrix.CodeInvalidParam, "POST", delayedPath+"/"+id, obj{"action": "explode"})
		nobody.want(200, "POST", delayedPath+"/"+id, obj{"action": "restart"}) // the older form
		alice.want(200, "POST", delayedPath+"/"+id+"/restart", obj{})
		alice.want(200, "GET", "/v1/delayed_events/"+id, nil)
		nobody.want(200, "POST", delayedPath+"/"+id+"/cancel", nil)
		nobody.want(200, "POST", delayedPath+"/"+id+"/cancel", nil) // again
		nobody.wantError(404, matrix.CodeNotFound, "POST", delayedPath+"/"+id+"/restart", nil)
		nobody.wantError(404, matrix.CodeNotFound, "POST", delayedPath+"/"+id+"/send", nil)
		alice.want(404, "GET", "/v1/delayed_events/"+id, nil)

		// Another user's state for the same key cancels, one's own does not.
		open := "/v3/rooms/" + esc(room) + "/state/org.matrix.msc3401.call.member/shared"
		mine := alice.want(200, "PUT", open+"?org.matrix.msc4140.delay=60000", obj{"late": true}).str("delay_id")
		alice.want(200, "PUT", open, obj{"by": "alice"})
		if _, err := h.DelayedEvent(t.Context(), mine); err != nil {
			t.Errorf("one's own newer state cancelled a delayed event: %v", err)
		}
		bob.want(200, "PUT", open, obj{"by": "bob"})
		if _, err := h.DelayedEvent(t.Context(), mine); !errors.Is(err, call.ErrNotFound) {
			t.Errorf("another user's newer state left a delayed event: %v", err)
		}

		// Messages: the transaction makes a repeated request harmless; sticky
		// events can be delayed too.
		path := "/v3/rooms/" + esc(room) + "/send/org.matrix.msc4143.rtc.member/t1?org.matrix.msc4140.delay=1000&org.matrix.msc4354.sticky_duration_ms=600000"
		first := alice.want(200, "PUT", path, obj{"body": "late"}).str("delay_id")
		if again := alice.want(200, "PUT", path, obj{"body": "late"}).str("delay_id"); again != first || first == "" {
			t.Errorf("the same transaction scheduled %q and %q", first, again)
		}
		since := bob.sync("").next()
		h.anonymous().want(200, "POST", delayedPath+"/"+first+"/send", nil) // now
		s := bob.sync(since)
		if got := s.joined(room, "timeline", "events", 0); digIn(got, "content", "body") != "late" || digIn(got, "msc4354_sticky", "duration_ms") != 600000.0 {
			t.Errorf("sent early by request: %s", s.raw)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if again := bob.sync(s.next()); again.at("rooms") != nil {
			t.Errorf("a delayed event was sent twice: %s", again.raw)
		}

		// The form of the newer text.
		st := alice.want(200, "PUT", "/v3/rooms/"+esc(room)+"/delayed_event/m.room.message/t9", obj{"delay_ms": 2000, "content": obj{"body": "new form"}}).str("delay_id")
		if again := alice.want(200, "PUT", "/v3/rooms/"+esc(room)+"/delayed_event/m.room.message/t9", obj{"delay_ms": 2000, "content": obj{"body": "new form"}}).str("delay_id"); again != st {
			t.Errorf("scheduled twice: %q, %q", st, again)
		}
		alice.wantError(403, matrix.CodeForbidden, "PUT", "/v3/rooms/"+esc(room)+"/delayed_event/m.room.message/t10", obj{"delay_ms": 1 << 40, "content": obj{}})
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := bodies(bob.sync(s.next()).joined(room, "timeline", "events")); len(got) != 1 || got[0] != "new form" {
			t.Errorf("sent: %q", got)
		}
	})
}

func TestDelayedIsRefused(t *testing.T) {
	h := newHouse(t)
	alice, eve := h.user("alice"), h.user("eve")
	room := alice.room(obj{"preset": "public_chat"})
	state := memberPath(room, alice)
	for _, bad := range []string{"-5", "0", "soon", "1.5", ""} {
		if r := alice.do("PUT", state+"?org.matrix.msc4140.delay="+bad, obj{}); r.status != 400 || r.str("errcode") != "M_INVALID_PARAM" {
			t.Errorf("delay %q: %d %s", bad, r.status, r.raw)
		}
	}
	for _, long := range []string{"86400001", "315360000000", "9000000000000000000"} {
		r := alice.wantError(400, matrix.CodeUnknown, "PUT", state+"?org.matrix.msc4140.delay="+long, obj{})
		if r.str("org.matrix.msc4140.errcode") != "M_MAX_DELAY_EXCEEDED" || r.at("org.matrix.msc4140.max_delay") != 86400000.0 {
			t.Errorf("too long a delay: %s; clients retry for ever without the maximum", r.raw)
		}
	}
	if inCall(alice, room) || len(alice.want(200, "GET", "/v3/rooms/"+esc(room)+"/state", nil).body.([]any)) > 8 {
		t.Error("a delayed event that was refused was sent at once")
	}
	eve.want(403, "PUT", memberPath(room, eve)+"?org.matrix.msc4140.delay=1000", obj{})
	alice.want(403, "PUT", memberPath("!nowhere:hs.test", alice)+"?org.matrix.msc4140.delay=1000", obj{})
	alice.wantError(400, matrix.CodeBadJSON, "PUT", state+"?org.matrix.msc4140.delay=1000", `{"n":1.5}`)
	for i := range maxDelayed {
		alice.want(200, "PUT", "/v3/rooms/"+esc(room)+"/send/x/"+fmt.Sprint(i)+"?org.matrix.msc4140.delay=3600000", obj{})
	}
	r := alice.wantError(429, matrix.CodeLimitExceeded, "PUT", state+"?org.matrix.msc4140.delay=1000", obj{})
	if r.at("retry_after_ms") == nil {
		t.Errorf("%s", r.raw)
	}
}

func TestDelayedSurvivesRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "restart.db")
	var room, member, soon, later, refused string
	synctest.Test(t, func(t *testing.T) {
		h := openHouse(t, path)
		stop := h.run()
		defer stop()
		alice, bob := h.user("alice"), h.user("bob")
		room = alice.room(obj{"preset": "public_chat"})
		bob.join(room)
		member = memberPath(room, alice)
		soon = alice.want(200, "PUT", memberPath(room, alice)+"?org.matrix.msc4140.delay=10000", obj{}).str("delay_id")
		alice.want(200, "PUT", memberPath(room, alice), obj{"application": "m.call"})
		later = alice.want(200, "PUT", "/v3/rooms/"+esc(room)+"/send/x/1?org.matrix.msc4140.delay=7200000", obj{"body": "later"}).str("delay_id")
		refused = bob.want(200, "PUT", "/v3/rooms/"+esc(room)+"/send/x/1?org.matrix.msc4140.delay=20000", obj{"body": "refused"}).str("delay_id")
		alice.want(200, "POST", "/v3/rooms/"+esc(room)+"/kick", obj{"user_id": bob.id})
	})
	// A bubble starts at its own midnight; what was scheduled in the first one
	// is overdue once this one has gone past it.
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Hour)
		h := openHouse(t, path)
		alice := h.user("alice")
		if !present(alice, member) {
			t.Fatal("sent although the server was down")
		}
		stop := h.run()
		defer stop()
		time.Sleep(time.Second)
		synctest.Wait()
		if present(alice, member) {
			t.Error("a leave that became due while the server was down was not sent at the start")
		}
		for id, want := range map[string]matrix.DelayedOutcome{soon: matrix.DelayedSent, later: matrix.DelayedScheduled, refused: matrix.DelayedFailed} {
			if d, err := h.deps.Store.Delayed(t.Context(), id); d.Outcome != want || err != nil {
				t.Errorf("outcome %q, %v; want %q", d.Outcome, err, want)
			}
		}
		if err := h.SendDelayedEvent(t.Context(), refused); !errors.Is(err, call.ErrNotFound) {
			t.Errorf("sending a refused event again: %v", err)
		}
		d, err := h.DelayedEvent(t.Context(), later)
		if err != nil || d.Delay != 2*time.Hour || d.UserID != alice.id || string(d.RoomID) != room {
			t.Errorf("%+v, %v", d, err)
		}
		if err := h.RestartDelayedEvent(t.Context(), later); err != nil {
			t.Error(err)
		}
	})
}

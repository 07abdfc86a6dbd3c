package signaling

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/homeserver"
	"github.com/trunkhall/trunkhall/matrix"
	"github.com/trunkhall/trunkhall/sfu"
	"github.com/trunkhall/trunkhall/storage"
)

// A phoneWorld is signaling over a real homeserver, store and SFU.
type phoneWorld struct {
	t      *testing.T
	home   *homeserver.Server
	db     *storage.DB
	media  *sfu.Server
	s      *Server
	d      *PhoneDirectory
	phones *phoneLine
	stop   func()
}

// newPhoneWorld builds one whose database is in dir; dir may be that of an
// earlier one, which then is the same server after a restart.
func newPhoneWorld(t *testing.T, dir string) *phoneWorld {
	t.Helper()
	w := &phoneWorld{t: t, phones: newPhoneLine()}
	var err error
	if w.db, err = storage.OpenSQLite(context.Background(), filepath.Join(dir, "t.db"), nil); err != nil {
		t.Fatal(err)
	}
	homeConfig := homeserver.DefaultConfig()
	homeConfig.ServerName, homeConfig.Registration, homeConfig.RateLimits = "test.example", homeserver.RegistrationOpen, false
	w.home, err = homeserver.New(homeConfig, homeserver.Deps{
		Store: w.db, MediaDir: filepath.Join(dir, "media"), Log: slogDiscard(),
		Endpoints: func() homeserver.Endpoints {
			return homeserver.Endpoints{BaseURL: "https://test.example", LiveKitServiceURL: "https://test.example/livekit/jwt"}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	mediaConfig := sfu.DefaultConfig()
	mediaConfig.UDPPort, mediaConfig.TCPPort, mediaConfig.Loopback = 0, -1, true
	mediaConfig.BindAddresses = []string{"127.0.0.1"}
	if w.media, err = sfu.New(mediaConfig, sfu.Deps{}); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.APIKey, cfg.APISecret = testKey, testSecret
	w.s, err = New(cfg, Deps{
		SFU: w.media, Rooms: w.home, Store: w.db, Ghosts: w.home, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), LiveKitURL: func() string { return "wss://test.example" },
	})
	if err != nil {
		t.Fatal(err)
	}
	w.d = w.s.PhoneDirectory()
	w.d.SetNumbers([]string{"+4930123456"})
	w.phones.d = w.d
	w.s.SetPhones(w.phones)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.media.Run(ctx) })
	wg.Go(func() { _ = w.home.Run(ctx) })
	wg.Go(func() {
		if err := w.s.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	w.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		_ = w.db.Close()
	})
	t.Cleanup(w.stop)
	return w
}

// do makes a request of the client-server API and returns the decoded answer.
func (w *phoneWorld) do(method, path, token string, body any) (int, map[string]any) {
	w.t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		w.t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(w.t.Context(), method, path, bytes.NewReader(data))
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	rec := httptest.NewRecorder()
	w.home.Handler().ServeHTTP(rec, r)
	var out map[string]any
	_ = json.Unmarshal(rec.Body.Bytes(), &out)
	return rec.Code, out
}

func (w *phoneWorld) must(method, path, token string, body any) map[string]any {
	w.t.Helper()
	status, out := w.do(method, path, token, body)
	if status != http.StatusOK {
		w.t.Fatalf("%s %s: %d %v", method, path, status, out)
	}
	return out
}

type phonePerson struct {
	id     matrix.UserID
	device matrix.DeviceID
	token  string
}

func (w *phoneWorld) register(name string) phonePerson {
	w.t.Helper()
	out := w.must("POST", "/_matrix/client/v3/register", "", map[string]any{
		"username": name, "password": "correct horse", "auth": map[string]any{"type": "m.login.dummy"},
	})
	return phonePerson{matrix.UserID(out["user_id"].(string)), matrix.DeviceID(out["device_id"].(string)), out["access_token"].(string)}
}

// room makes a private room in which everybody of people is.
func (w *phoneWorld) room(owner phonePerson, state []any, people ...phonePerson) matrix.RoomID {
	w.t.Helper()
	if state == nil {
		state = []any{}
	}
	out := w.must("POST", "/_matrix/client/v3/createRoom", owner.token, map[string]any{"preset": "private_chat", "name": "Stand-up", "initial_state": state})
	room := matrix.RoomID(out["room_id"].(string))
	for _, p := range people {
		w.must("POST", "/_matrix/client/v3/rooms/"+string(room)+"/invite", owner.token, map[string]any{"user_id": p.id})
		w.must("POST", "/_matrix/client/v3/rooms/"+string(room)+"/join", p.token, map[string]any{})
	}
	return room
}

func (w *phoneWorld) at(room matrix.RoomID) call.Place {
	w.t.Helper()
	at, err := w.d.Room(w.t.Context(), string(room))
	if err != nil {
		w.t.Fatal(err)
	}
	return at
}

// members returns the memberships of a room that are not "leave".
func (w *phoneWorld) members(room matrix.RoomID) map[matrix.UserID]matrix.Membership {
	w.t.Helper()
	all, err := w.home.RoomMembers(context.Background(), room)
	if err != nil {
		w.t.Fatal(err)
	}
	in := map[matrix.UserID]matrix.Membership{}
	for _, m := range all {
		if m.Membership != matrix.MembershipLeave {
			in[m.User] = m.Membership
		}
	}
	return in
}

// calls returns the identities of the active call memberships of a room.
func (w *phoneWorld) calls(room matrix.RoomID) []string {
	w.t.Helper()
	found, err := w.d.callMembers(context.Background(), room)
	if err != nil {
		w.t.Fatal(err)
	}
	var ids []string
	for m := range found {
		ids = append(ids, string(plainIdentity(m.user, m.device)))
	}
	slices.Sort(ids)
	return ids
}

// timeline returns the room's newest events, oldest first, as a member sees them.
func (w *phoneWorld) timeline(room matrix.RoomID, as phonePerson) []map[string]any {
	w.t.Helper()
	out := w.must("GET", "/_matrix/client/v3/rooms/"+string(room)+"/messages?dir=b&limit=50", as.token, nil)
	var events []map[string]any
	for _, e := range out["chunk"].([]any) {
		events = append(events, e.(map[string]any))
	}
	slices.Reverse(events)
	return events
}

// said returns the bodies of the messages in a room.
func (w *phoneWorld) said(room matrix.RoomID, as phonePerson) []string {
	var words []string
	for _, e := range w.timeline(room, as) {
		if e["type"] == "m.room.message" {
			words = append(words, e["content"].(map[string]any)["body"].(string))
		}
	}
	return words
}

// phoneLine is a gateway whose legs do what a test tells them.
type phoneLine struct {
	Phones // everything that a test does not use
	d      *PhoneDirectory

	mu      sync.Mutex
	legs    map[call.LegID]*lineLeg
	dialled []call.DialRequest
	hungUp  []call.LegID
	refuse  error
}

type lineLeg struct {
	call.Leg
	changed chan struct{} // closed and replaced with each change
}

func newPhoneLine() *phoneLine { return &phoneLine{legs: map[call.LegID]*lineLeg{}} }

func (f *phoneLine) OnDigit(func(call.RoomName, call.Identity, byte)) {}

func (f *phoneLine) Dial(_ context.Context, r call.DialRequest) (call.Leg, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dialled = append(f.dialled, r)
	if f.refuse != nil {
		return call.Leg{}, f.refuse
	}
	leg := call.Leg{ID: call.LegID(fmt.Sprintf("SCL_%d", len(f.dialled))), State: call.LegTrying, Number: r.Number, By: r.By}
	f.legs[leg.ID] = &lineLeg{leg, make(chan struct{})}
	return leg, nil
}

func (f *phoneLine) Wait(ctx context.Context, id call.LegID, seen call.LegState) (call.Leg, error) {
	for {
		f.mu.Lock()
		l := f.legs[id]
		leg, changed := l.Leg, l.changed
		f.mu.Unlock()
		if leg.State != seen {
			return leg, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return leg, nil
		}
	}
}

func (f *phoneLine) set(id call.LegID, change func(*call.Leg)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.legs[id]
	change(&l.Leg)
	close(l.changed)
	l.changed = make(chan struct{})
}

func (f *phoneLine) Hangup(_ context.Context, id call.LegID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hungUp = append(f.hungUp, id)
	return nil
}

func (f *phoneLine) dials() []call.DialRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.dialled)
}

const testGhost = "@_phone_49301234567:test.example"

var inboundPhone = call.Phone{Number: "+49301234567", Name: "Erika", Direction: call.Inbound, Leg: "SCL_in"}

func TestPhoneSeat(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	ctx := t.Context()
	alice, bob := w.register("alice"), w.register("bob")
	room := w.room(alice, nil, bob)
	at := w.at(room)
	if at.Title != "Stand-up" || at.Room != mediaRoom(room, legacySlot) {
		t.Errorf("place %+v", at)
	}
	one, err := w.d.Seat(ctx, at, inboundPhone)
	if err != nil {
		t.Fatal(err)
	}
	two, err := w.d.Seat(ctx, at, inboundPhone) // somebody else behind the same number
	if err != nil {
		t.Fatal(err)
	}
	ids := []string{string(one.Grant.Identity), string(two.Grant.Identity)}
	slices.Sort(ids)
	if got := w.calls(room); !slices.Equal(got, ids) {
		t.Errorf("call memberships %q, want those of both legs %q", got, ids)
	}
	if !strings.HasPrefix(ids[0], testGhost+":") || one.Grant.Kind != call.KindSIP || one.Keys != nil || one.Lobby != nil {
		t.Errorf("grant %+v", one.Grant)
	}
	member, err := w.home.RoomStateEvent(ctx, room, "m.room.member", testGhost)
	if err != nil || member.ContentString("displayname") != "Erika (phone)" || member.Membership() != matrix.MembershipJoin {
		t.Errorf("member event %s, %v", member.Content, err)
	}
	// Element Call's rules for a membership that it shows, and the key that only its owner may write.
	state, err := w.home.RoomState(ctx, room, callMemberType)
	if err != nil || len(state) != 2 {
		t.Fatalf("%d call memberships, %v", len(state), err)
	}
	var c struct {
		Device string `json:"device_id"`
		CallID *string
		Focus  struct{ Type string } `json:"focus_active"`
		Foci   []struct {
			Type, LivekitAlias string
			URL                string `json:"livekit_service_url"`
		} `json:"foci_preferred"`
		MembershipID string `json:"membershipID"`
	}
	contentOf(&state[0], &c)
	if *state[0].StateKey != "_"+testGhost+"_"+c.Device+"_m.call" || c.Focus.Type != "livekit" || len(c.Foci) != 1 ||
		c.Foci[0].URL != "https://test.example/livekit/jwt" || c.MembershipID != testGhost+":"+c.Device {
		t.Errorf("call membership %s %s", *state[0].StateKey, state[0].Content)
	}
	// The first of a call tells the room.
	announced := 0
	for _, e := range w.timeline(room, bob) {
		if e["type"] == notificationType {
			announced++
		}
	}
	if announced != 1 {
		t.Errorf("%d notifications for one call", announced)
	}
	// The profile shows the number as for any other, never the caller's name.
	if out := w.must("GET", "/_matrix/client/v3/profile/"+testGhost, bob.token, nil); out["displayname"] != "+49301234567" {
		t.Errorf("profile %v", out)
	}

	one.Leave(ctx)
	if got := w.calls(room); len(got) != 1 || w.members(room)[testGhost] != matrix.MembershipJoin {
		t.Errorf("after one of two left: calls %q, members %v", got, w.members(room))
	}
	two.Leave(ctx)
	two.Leave(ctx) // once is promised, twice must not hurt
	if got := w.calls(room); len(got) != 0 || w.members(room)[testGhost] != "" {
		t.Errorf("after both left: calls %q, members %v", got, w.members(room))
	}
	if left, err := w.db.OpenPhoneSeats(ctx); err != nil || len(left) != 0 {
		t.Errorf("seats left over: %+v, %v", left, err)
	}
	if devices, err := w.db.Devices(ctx, testGhost); err != nil || len(devices) != 0 {
		t.Errorf("devices left over: %+v, %v", devices, err)
	}
}

func TestPhoneNames(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	w.d.SetDisplay(func(n string) string { return "tel " + n })
	for _, c := range []struct {
		name                 string
		phone                call.Phone
		local, in, everybody string
	}{
		{"a number is shown", call.Phone{Number: "+4930123456"}, "_phone_4930123456", "tel +4930123456", "tel +4930123456"},
		{"a caller's own name is marked", call.Phone{Number: "+4930123456", Name: "Alice"}, "_phone_4930123456", "Alice (phone)", "tel +4930123456"},
		{"a name cannot turn the line around", call.Phone{Number: "+4930123456", Name: "A\u202e\x07lice\n"}, "_phone_4930123456", "Alice (phone)", "tel +4930123456"},
		{"no number", call.Phone{}, "_phone_anonymous", "Phone", "Phone"},
		{"a hidden number", call.Phone{Number: "+4930123456", HideNumber: true}, "_phone_anonymous", "Phone", "Phone"},
		{"a hidden number in the name", call.Phone{Number: "+4930123456", Name: "030 123456", HideNumber: true}, "_phone_anonymous", "Phone", "Phone"},
		{"an extension", call.Phone{Number: "101"}, "_phone_101", "tel 101", "tel 101"},
		{"a name on a private exchange", call.Phone{Number: "Reception 1"}, "_phone_x_reception=201", "Reception 1", "Reception 1"},
	} {
		local, in, everybody := w.d.ghostOf(c.phone)
		if local != c.local || in != c.in || everybody != c.everybody {
			t.Errorf("%s: %q %q %q, want %q %q %q", c.name, local, in, everybody, c.local, c.in, c.everybody)
		}
	}
}

func TestNobodyIsAGhost(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	ctx := t.Context()
	if _, err := w.home.EnsureGhost(ctx, "_phone_49301234567", "x"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"_phone_49301234567", "_phone_gateway", "_conference_x"} {
		status, _ := w.do("POST", "/_matrix/client/v3/register", "", map[string]any{
			"username": name, "password": "correct horse", "auth": map[string]any{"type": "m.login.dummy"},
		})
		if status == http.StatusOK {
			t.Errorf("%s could be registered", name)
		}
	}
	for _, password := range []string{"", "correct horse"} {
		status, _ := w.do("POST", "/_matrix/client/v3/login", "", map[string]any{
			"type": "m.login.password", "identifier": map[string]any{"type": "m.id.user", "user": testGhost}, "password": password,
		})
		if status == http.StatusOK {
			t.Error("somebody could log in as a phone")
		}
	}
	if _, _, err := w.home.Login(ctx, testGhost, "x"); err == nil {
		t.Error("the command line logs in as a phone")
	}
	if err := w.home.SetPassword(ctx, testGhost, "correct horse"); err == nil {
		t.Error("a phone was given a password")
	}
}

func TestPhoneKicked(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	alice := w.register("alice")
	room := w.room(alice, nil)
	seat, err := w.d.Seat(t.Context(), w.at(room), inboundPhone)
	if err != nil {
		t.Fatal(err)
	}
	defer seat.Leave(t.Context())
	w.must("POST", "/_matrix/client/v3/rooms/"+string(room)+"/kick", alice.token, map[string]any{"user_id": testGhost})
	// It comes into the media room only now: that must not help it.
	left := make(chan sfu.Reason, 1)
	r := w.media.OpenRoom(seat.Room, sfu.RoomOptions{})
	_, _, err = r.JoinLocal(t.Context(), sfu.LocalParams{Grant: seat.Grant, Session: leaveSession(left)})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case why := <-left:
		if why != sfu.ReasonParticipantRemoved {
			t.Errorf("removed because of %v", why)
		}
	case <-time.After(patience):
		t.Fatal("a phone that was kicked stays in the call")
	}
	seat.Leave(t.Context())
	if left, err := w.db.OpenPhoneSeats(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("seats left over: %+v, %v", left, err)
	}
	w.must("POST", "/_matrix/client/v3/rooms/"+string(room)+"/ban", alice.token, map[string]any{"user_id": testGhost})
	if _, err := w.d.Seat(t.Context(), w.at(room), inboundPhone); !errors.Is(err, call.ErrForbidden) {
		t.Errorf("a number that is banned: %v", err)
	}
}

// TestPhoneStays has phones come into calls as fast as it goes, right after one of
// the same number has left: nothing that is announced late may remove them.
func TestPhoneStays(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	ctx := t.Context()
	alice := w.register("alice")
	room := w.room(alice, nil)
	r := w.media.OpenRoom(mediaRoom(room, legacySlot), sfu.RoomOptions{})
	var before *call.Seat
	for i := range 20 {
		var leaving sync.WaitGroup
		if last := before; last != nil {
			leaving.Go(func() { last.Leave(ctx) })
		}
		// What is announced now is acted on only when the phone is in the call.
		late := make(chan struct{})
		w.s.rtc.work.add(func(context.Context) { <-late })
		seat, err := w.d.Seat(ctx, w.at(room), inboundPhone)
		if err != nil {
			close(late)
			t.Fatal(err)
		}
		left := make(chan sfu.Reason, 1)
		m, _, err := r.JoinLocal(ctx, sfu.LocalParams{Grant: seat.Grant, Session: leaveSession(left)})
		close(late)
		if err != nil {
			t.Fatal(err)
		}
		leaving.Wait()
		if err := w.s.rtc.work.do(ctx, func(context.Context) error { return nil }); err != nil { // all that was announced is done
			t.Fatal(err)
		}
		if err := w.d.work.do(ctx, func(context.Context) error { return nil }); err != nil {
			t.Fatal(err)
		}
		select {
		case why := <-left:
			t.Fatalf("phone %d was removed: %v", i, why)
		default:
		}
		if w.members(room)[testGhost] != matrix.MembershipJoin || len(w.calls(room)) != 1 {
			t.Fatalf("phone %d: members %v, calls %q", i, w.members(room), w.calls(room))
		}
		m.Leave(sfu.ReasonClientInitiated)
		before = &seat
	}
	before.Leave(ctx)
	if w.members(room)[testGhost] != "" {
		t.Error("the phone is in the room after it left")
	}
	if state, err := w.home.RoomState(ctx, room, callMemberType); err != nil || len(state) > 2 {
		t.Errorf("%d pieces of room state after calls of which never more than two were at once, %v: they stay for ever", len(state), err)
	}
}

func TestPhonesOfADeadProcess(t *testing.T) {
	dir := t.TempDir()
	w := newPhoneWorld(t, dir)
	alice := w.register("alice")
	room := w.room(alice, nil)
	if _, err := w.d.Seat(t.Context(), w.at(room), inboundPhone); err != nil {
		t.Fatal(err)
	}
	w.stop() // nobody gave the seat back
	w = newPhoneWorld(t, dir)
	eventually(t, "the phone is taken out of the room", func() bool {
		return w.members(room)[testGhost] == "" && len(w.calls(room)) == 0
	})
	eventually(t, "nothing is left", func() bool {
		left, err := w.db.OpenPhoneSeats(t.Context())
		devices, err2 := w.db.Devices(t.Context(), testGhost)
		return err == nil && err2 == nil && len(left) == 0 && len(devices) == 0
	})
}

func TestRoomPIN(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	ctx := t.Context()
	alice, bob, eve := w.register("alice"), w.register("bob"), w.register("eve")
	room := w.room(alice, nil, bob)
	in, err := w.d.DialIn(ctx, string(room), string(alice.id))
	if err != nil || in.PIN != "" || !in.MayChange || !in.MayDial || !in.MayAdmit || in.E2EE != "deny" || !slices.Equal(in.Numbers, []string{"+4930123456"}) {
		t.Errorf("before there is a PIN: %+v, %v", in, err)
	}
	for _, who := range []phonePerson{bob, eve} {
		if _, err := w.d.RotatePIN(ctx, string(room), string(who.id)); !errors.Is(err, call.ErrForbidden) {
			t.Errorf("%s made a PIN: %v", who.id, err)
		}
	}
	if _, err := w.d.DialIn(ctx, string(room), string(eve.id)); !errors.Is(err, call.ErrForbidden) {
		t.Errorf("a stranger reads the PIN: %v", err)
	}
	pin, err := w.d.RotatePIN(ctx, string(room), string(alice.id))
	if err != nil || len(pin) != pinDigits {
		t.Fatalf("RotatePIN = %q, %v", pin, err)
	}
	if in, err = w.d.DialIn(ctx, string(room), string(bob.id)); err != nil || in.PIN != pin || in.MayChange {
		t.Errorf("what a member sees: %+v, %v", in, err)
	}
	if at, err := w.d.RoomByPIN(ctx, pin); err != nil || at.RoomID != string(room) || at.Title != "Stand-up" {
		t.Errorf("RoomByPIN = %+v, %v", at, err)
	}
	if again, err := w.d.PIN(ctx, string(room)); err != nil || again != pin {
		t.Errorf("the operator's PIN = %q, %v; want the one there is", again, err)
	}
	// Settings keep the PIN, and what others have put there.
	yes := true
	if err := w.d.ChangeDialIn(ctx, string(room), string(bob.id), call.DialInChange{Locked: &yes}); !errors.Is(err, call.ErrForbidden) {
		t.Errorf("a member without the power locked the room: %v", err)
	}
	if err := w.d.ChangeDialIn(ctx, string(room), string(alice.id), call.DialInChange{Locked: &yes}); err != nil {
		t.Fatal(err)
	}
	if in, err = w.d.DialIn(ctx, string(room), string(alice.id)); err != nil || in.PIN != pin || !in.Locked {
		t.Errorf("after locking: %+v, %v", in, err)
	}
	if _, err := w.d.Seat(ctx, w.at(room), inboundPhone); !errors.Is(err, call.ErrRoomLocked) {
		t.Errorf("a phone comes into a locked room: %v", err)
	}
	next, err := w.d.RotatePIN(ctx, string(room), string(alice.id))
	if err != nil || next == pin {
		t.Errorf("the next PIN = %q, %v", next, err)
	}
	if _, err := w.d.RoomByPIN(ctx, pin); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("the old PIN: %v", err)
	}
	// Whoever writes a PIN into the state event does not make it work.
	w.must("PUT", "/_matrix/client/v3/rooms/"+string(room)+"/state/"+dialInType, alice.token, map[string]any{"pin": "11112222"})
	if _, err := w.d.RoomByPIN(ctx, "11112222"); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("a PIN of somebody's own choice: %v", err)
	}
	if in, err = w.d.DialIn(ctx, string(room), string(alice.id)); err != nil || in.PIN != "" {
		t.Errorf("a PIN that does not work is shown: %+v, %v", in, err)
	}
	for range 1000 {
		if p := newPIN(); len(p) != pinDigits || p[0] == '0' || easy(p) {
			t.Fatalf("PIN %q", p)
		}
	}
}

func TestFullRoom(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	ctx := t.Context()
	room := w.room(w.register("alice"), nil)
	r := w.media.OpenRoom(mediaRoom(room, legacySlot), sfu.RoomOptions{MaxParticipants: 1})
	first, err := w.d.Seat(ctx, w.at(room), inboundPhone)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Leave(ctx)
	if _, _, err := r.JoinLocal(ctx, sfu.LocalParams{Grant: first.Grant, Session: leaveSession(make(chan sfu.Reason, 1))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.d.Seat(ctx, w.at(room), inboundPhone); !errors.Is(err, call.ErrRoomFull) {
		t.Errorf("a seat in a full room: %v", err)
	}
}

func TestLobby(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	ctx := t.Context()
	alice, eve := w.register("alice"), w.register("eve")
	room := w.room(alice, []any{map[string]any{"type": dialInType, "content": map[string]any{"lobby": true}}})
	for _, admit := range []bool{true, false} {
		seat, err := w.d.Seat(ctx, w.at(room), inboundPhone)
		if err != nil || seat.Lobby == nil {
			t.Fatalf("seat %+v, %v", seat, err)
		}
		if w.members(room)[testGhost] != "" || len(w.calls(room)) != 0 {
			t.Error("a phone that waits in the lobby is in the room")
		}
		if got := w.d.Waiting(string(room)); len(got) != 1 || got[0].Leg != "SCL_in" || got[0].Name != "Erika (phone)" {
			t.Errorf("waiting %+v", got)
		}
		if err := w.d.Admit(ctx, "SCL_in", string(eve.id), true); !errors.Is(err, call.ErrForbidden) {
			t.Errorf("a stranger decides who comes in: %v", err)
		}
		if err := w.d.Admit(ctx, "SCL_in", string(alice.id), admit); err != nil {
			t.Fatal(err)
		}
		open := seat.Refused
		if admit {
			open = seat.Lobby
		}
		select {
		case <-open:
		case <-time.After(patience):
			t.Fatal("the phone is not told what was decided")
		}
		if inside := len(w.calls(room)) == 1; inside != admit {
			t.Errorf("in the call: %v, let in: %v", inside, admit)
		}
		if got := w.d.Waiting(string(room)); len(got) != 0 {
			t.Errorf("still waiting: %+v", got)
		}
		seat.Leave(ctx)
		if w.members(room)[testGhost] != "" {
			t.Error("the phone is in the room after it left")
		}
	}
	// One who hangs up in the lobby is not let in afterwards.
	seat, err := w.d.Seat(ctx, w.at(room), inboundPhone)
	if err != nil {
		t.Fatal(err)
	}
	seat.Leave(ctx)
	if err := w.d.Admit(ctx, "SCL_in", string(alice.id), true); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("letting in who is gone: %v", err)
	}
}

// leaveSession is a session that hears only of its removal.
type leaveSession chan sfu.Reason

func (s leaveSession) Event(e sfu.Event) {
	if l, ok := e.(sfu.EventLeave); ok {
		select {
		case s <- l.Reason:
		default:
		}
	}
}

func slogDiscard() *slog.Logger { return slog.New(slog.DiscardHandler) }

package sip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/guard"
	"github.com/trunkhall/trunkhall/sip/ledger"
	"github.com/trunkhall/trunkhall/sip/numbers"
)

// fakeGateway has no telephones; it notes what it is asked for.
type fakeGateway struct {
	mu      sync.Mutex // guards the following fields
	legs    map[call.LegID]call.Leg
	trunks  []call.TrunkState
	rules   []call.DispatchRule
	records []ledger.Record
	bans    []guard.Ban
	asked   []string
	dialErr error
	err     error
	changed chan struct{} // closed when a leg changes
}

func (f *fakeGateway) note(format string, a ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, fmt.Sprintf(format, a...))
	return f.err
}

func (f *fakeGateway) took() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.asked
	f.asked = nil
	return out
}

func (f *fakeGateway) set(l call.Leg) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.legs[l.ID] = l
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeGateway) Dial(_ context.Context, r call.DialRequest) (call.Leg, error) {
	_ = f.note("dial %s %s %s by %s into %s", r.Number, r.Name, r.RoomID, r.By, r.Room)
	if f.dialErr != nil {
		return call.Leg{}, f.dialErr
	}
	return call.Leg{ID: "SCL_new", Direction: call.Outbound, State: call.LegTrying, Number: "+4930999", Name: "+49 30 999", By: r.By, RoomID: r.RoomID}, nil
}

func (f *fakeGateway) Wait(ctx context.Context, id call.LegID, seen call.LegState) (call.Leg, error) {
	for {
		f.mu.Lock()
		l, ok := f.legs[id]
		changed := f.changed
		f.mu.Unlock()
		if !ok {
			return l, call.ErrNotFound
		}
		if l.State != seen || ctx.Err() != nil {
			return l, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func (f *fakeGateway) Leg(id call.LegID) (call.Leg, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, ok := f.legs[id]
	return l, ok
}

func (f *fakeGateway) Legs() []call.Leg {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []call.Leg
	for _, l := range f.legs {
		if l.State != call.LegEnded {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b call.Leg) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

func (f *fakeGateway) Hangup(_ context.Context, id call.LegID) error { return f.note("hangup %s", id) }
func (f *fakeGateway) Digits(id call.LegID, d string) error          { return f.note("digits %s %s", id, d) }
func (f *fakeGateway) Mute(id call.LegID, muted bool) error          { return f.note("mute %s %t", id, muted) }
func (f *fakeGateway) Trunks() []call.TrunkState                     { return f.trunks }
func (f *fakeGateway) Rules() []call.DispatchRule                    { return f.rules }
func (f *fakeGateway) Records(fl ledger.Filter) []ledger.Record {
	_ = f.note("records %d %s", fl.Limit, fl.Trunk)
	return f.records
}
func (f *fakeGateway) Bans() []guard.Ban { return f.bans }
func (f *fakeGateway) Numbers() []Number { return []Number{{Number: "+4930123456", Language: "de"}} }
func (f *fakeGateway) LiftBan(ip netip.Addr) bool {
	return f.note("lift %s", ip) == nil && ip.String() == "192.0.2.1"
}
func (f *fakeGateway) Explain(n, _ string) numbers.Result { return numbers.Result{Typed: n} }
func (f *fakeGateway) SetTrunk(_ context.Context, t call.Trunk) error {
	f.trunks = []call.TrunkState{{Trunk: t, Source: "api"}}
	return f.err
}
func (f *fakeGateway) DeleteTrunk(_ context.Context, id string) error {
	return f.note("untrunk %s", id)
}
func (f *fakeGateway) SetRule(_ context.Context, r call.DispatchRule) error {
	f.rules = []call.DispatchRule{r}
	return f.err
}
func (f *fakeGateway) DeleteRule(_ context.Context, id string) error { return f.note("unrule %s", id) }
func (f *fakeGateway) Transfer(_ context.Context, id call.LegID, to string, h map[string]string) error {
	return f.note("transfer %s %s %v", id, to, h)
}

// fakeRooms has one room, !r:a, whose members are alice, who may do everything,
// and bob, who may do nothing.
type fakeRooms struct {
	note    func(string, ...any) error
	waiting []call.Waiting
	err     error
}

func (f *fakeRooms) Room(_ context.Context, name string) (call.Place, error) {
	return call.Place{Room: "media-" + call.RoomName(name), RoomID: name}, nil
}

func (f *fakeRooms) DialIn(_ context.Context, roomID, user string) (call.DialIn, error) {
	all := user == "@alice:a"
	switch {
	case f.err != nil:
		return call.DialIn{}, f.err
	case roomID != "!r:a":
		return call.DialIn{}, call.ErrNotFound
	case !all && user != "@bob:a":
		return call.DialIn{}, call.ErrForbidden
	}
	return call.DialIn{PIN: "123456", E2EE: "deny", Lobby: true, MayDial: all, MayChange: all, MayAdmit: all}, nil
}

func (f *fakeRooms) RotatePIN(_ context.Context, roomID, user string) (string, error) {
	if user != "@alice:a" {
		return "", fmt.Errorf("power level 50 is needed: %w", call.ErrForbidden)
	}
	return "654321", f.note("pin %s", roomID)
}

func (f *fakeRooms) ChangeDialIn(_ context.Context, roomID, user string, c call.DialInChange) error {
	if user != "@alice:a" {
		return fmt.Errorf("power level 50 is needed: %w", call.ErrForbidden)
	}
	return f.note("change %s %v %v", roomID, c.Locked != nil && *c.Locked, c.Lobby != nil)
}
func (f *fakeRooms) Waiting(string) []call.Waiting { return f.waiting }
func (f *fakeRooms) Admit(_ context.Context, leg call.LegID, user string, admit bool) error {
	return f.note("admit %s %s %t", leg, user, admit)
}

type apiTest struct {
	t       *testing.T
	gateway *fakeGateway
	rooms   *fakeRooms
	api     *API
}

func newAPITest(t *testing.T) *apiTest {
	f := &fakeGateway{legs: make(map[call.LegID]call.Leg), changed: make(chan struct{})}
	rooms := &fakeRooms{note: f.note}
	api := NewAPI(APIDeps{
		Gateway: f, Rooms: rooms, DialOut: func() bool { return true },
		User: func(_ context.Context, token string) (string, bool, error) {
			switch token {
			case "alice", "bob", "carol", "root":
				return "@" + token + ":a", token == "root", nil
			case "broken":
				return "", false, errors.New("the database is gone")
			}
			return "", false, call.ErrForbidden
		},
	})
	return &apiTest{t, f, rooms, api}
}

type object = map[string]any

// do sends a request as somebody and returns status and body.
func (a *apiTest) do(who, method, path string, body any) (int, object) {
	a.t.Helper()
	r := a.request(who, method, path, body)
	w := httptest.NewRecorder()
	a.api.Handler().ServeHTTP(w, r)
	out := object{}
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		a.t.Fatalf("%s %s answered %d %q", method, path, w.Code, w.Body)
	}
	if w.Code >= 400 && (out["errcode"] == nil || out["error"] == nil) {
		a.t.Errorf("%s %s: an error without its parts: %v", method, path, out)
	}
	return w.Code, out
}

func (a *apiTest) request(who, method, path string, body any) *http.Request {
	var in io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		in = strings.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			a.t.Fatal(err)
		}
		in = strings.NewReader(string(text))
	}
	r := httptest.NewRequest(method, path, in)
	if who != "" {
		r.Header.Set("Authorization", "Bearer "+who)
	}
	return r
}

const (
	phonesV1 = "/_trunkhall/phones/v1"
	adminV1  = "/_trunkhall/admin/v1"
	room1    = phonesV1 + "/rooms/%21r%3Aa"
)

func TestAPIStatuses(t *testing.T) {
	a := newAPITest(t)
	a.gateway.legs["SCL_a"] = call.Leg{ID: "SCL_a", State: call.LegRinging, By: "@alice:a", RoomID: "!r:a"}
	a.gateway.legs["SCL_b"] = call.Leg{ID: "SCL_b", State: call.LegRinging, By: "@bob:a", RoomID: "!r:a"}
	a.gateway.legs["SCL_m"] = call.Leg{ID: "SCL_m", State: call.LegRinging, By: "APIkey", Room: "media"}
	for _, c := range []struct {
		name, who, method, path string
		body                    any
		status                  int
		code                    string
	}{
		{"no token", "", "GET", phonesV1 + "/config", nil, 401, "M_MISSING_TOKEN"},
		{"a wrong token", "mallory", "GET", phonesV1 + "/config", nil, 401, "M_UNKNOWN_TOKEN"},
		{"a broken database", "broken", "GET", phonesV1 + "/config", nil, 500, "M_UNKNOWN"},
		{"config", "carol", "GET", phonesV1 + "/config", nil, 200, ""},
		{"an unknown path", "alice", "GET", phonesV1 + "/calls", nil, 404, "M_UNRECOGNIZED"},
		{"a wrong method", "alice", "PATCH", phonesV1 + "/config", nil, 405, "M_UNRECOGNIZED"},

		{"a room", "bob", "GET", room1, nil, 200, ""},
		{"a room one is not in", "carol", "GET", room1, nil, 403, "M_FORBIDDEN"},
		{"an administrator is no member", "root", "GET", room1, nil, 403, "M_FORBIDDEN"},
		{"a room that is not there", "alice", "GET", phonesV1 + "/rooms/%21x%3Aa", nil, 403, "M_FORBIDDEN"},
		{"no room ID", "alice", "GET", phonesV1 + "/rooms/standup", nil, 400, "M_INVALID_PARAM"},
		{"a new PIN", "alice", "POST", room1 + "/pin", object{}, 200, ""},
		{"a new PIN without the power", "bob", "POST", room1 + "/pin", object{}, 403, "M_FORBIDDEN"},
		{"a new PIN from outside", "carol", "POST", room1 + "/pin", object{}, 403, "M_FORBIDDEN"},
		{"settings", "alice", "PUT", room1 + "/settings", object{"locked": true}, 200, ""},
		{"settings without the power", "bob", "PUT", room1 + "/settings", object{"locked": true}, 403, "M_FORBIDDEN"},
		{"a setting nobody knows", "alice", "PUT", room1 + "/settings", object{"lock": true}, 400, "M_BAD_JSON"},
		{"half encrypted", "alice", "PUT", room1 + "/settings", object{"e2ee": "maybe"}, 400, "M_INVALID_PARAM"},
		{"no JSON", "alice", "PUT", room1 + "/settings", "{", 400, "M_NOT_JSON"},
		{"no object", "alice", "PUT", room1 + "/settings", "[]", 400, "M_BAD_JSON"},
		{"a flood", "alice", "PUT", room1 + "/settings", `{"e2ee":"` + strings.Repeat("x", apiMaxBody) + `"}`, 413, "M_TOO_LARGE"},

		{"dial", "alice", "POST", room1 + "/dial", object{"number": "030 999"}, 200, ""},
		{"dial without the right", "bob", "POST", room1 + "/dial", object{"number": "030 999"}, 403, "M_FORBIDDEN"},
		{"dial into another's room", "carol", "POST", room1 + "/dial", object{"number": "030 999"}, 403, "M_FORBIDDEN"},
		{"dial nothing", "alice", "POST", room1 + "/dial", object{}, 400, "M_MISSING_PARAM"},
		{"dial a novel", "alice", "POST", room1 + "/dial", object{"number": strings.Repeat("1", 65)}, 400, "M_INVALID_PARAM"},

		{"one's own call", "alice", "GET", phonesV1 + "/legs/SCL_a", nil, 200, ""},
		{"a call in one's room", "bob", "GET", phonesV1 + "/legs/SCL_a", nil, 200, ""},
		{"a call elsewhere", "carol", "GET", phonesV1 + "/legs/SCL_a", nil, 404, "M_NOT_FOUND"},
		{"a call of a program", "alice", "GET", phonesV1 + "/legs/SCL_m", nil, 404, "M_NOT_FOUND"},
		{"no such call", "alice", "GET", phonesV1 + "/legs/SCL_x", nil, 404, "M_NOT_FOUND"},
		{"a time-out of words", "alice", "GET", phonesV1 + "/legs/SCL_a?seen=ringing&timeout=soon", nil, 400, "M_INVALID_PARAM"},
		{"keys", "bob", "POST", phonesV1 + "/legs/SCL_b/digits", object{"digits": "12#"}, 200, ""},
		{"keys of a moderator", "alice", "POST", phonesV1 + "/legs/SCL_b/digits", object{"digits": "1"}, 200, ""},
		{"keys on another's call", "bob", "POST", phonesV1 + "/legs/SCL_a/digits", object{"digits": "1"}, 403, "M_FORBIDDEN"},
		{"keys no telephone has", "alice", "POST", phonesV1 + "/legs/SCL_a/digits", object{"digits": "1 2"}, 400, "M_INVALID_PARAM"},
		{"no keys", "alice", "POST", phonesV1 + "/legs/SCL_a/digits", object{}, 400, "M_INVALID_PARAM"},
		{"hang up", "bob", "POST", phonesV1 + "/legs/SCL_b/hangup", object{}, 200, ""},
		{"hang up another's call", "bob", "POST", phonesV1 + "/legs/SCL_a/hangup", object{}, 403, "M_FORBIDDEN"},
		{"hang up a stranger's call", "carol", "POST", phonesV1 + "/legs/SCL_a/hangup", object{}, 404, "M_NOT_FOUND"},
		{"let in", "alice", "POST", phonesV1 + "/legs/SCL_a/admit", object{"admit": true}, 200, ""},
		{"let in or not", "alice", "POST", phonesV1 + "/legs/SCL_a/admit", object{}, 400, "M_MISSING_PARAM"},

		{"who am I", "root", "GET", adminV1 + "/whoami", nil, 200, ""},
		{"who am I not", "alice", "GET", adminV1 + "/whoami", nil, 403, "M_FORBIDDEN"},
		{"overview", "root", "GET", adminV1 + "/phones", nil, 200, ""},
		{"records", "root", "GET", adminV1 + "/phones/records?limit=5&trunk=t", nil, 200, ""},
		{"records, a strange number", "root", "GET", adminV1 + "/phones/records?limit=-1", nil, 400, "M_INVALID_PARAM"},
		{"explain", "root", "GET", adminV1 + "/phones/explain?number=112", nil, 200, ""},
		{"explain nothing", "root", "GET", adminV1 + "/phones/explain", nil, 400, "M_MISSING_PARAM"},
		{"trunks", "root", "GET", adminV1 + "/phones/trunks", nil, 200, ""},
		{"no such trunk", "root", "GET", adminV1 + "/phones/trunks/x", nil, 404, "M_NOT_FOUND"},
		{"a trunk", "root", "PUT", adminV1 + "/phones/trunks/t", object{"direction": "outbound", "options_ping": "30s"}, 200, ""},
		{"that trunk", "root", "GET", adminV1 + "/phones/trunks/t", nil, 200, ""},
		{"a trunk with another id", "root", "PUT", adminV1 + "/phones/trunks/t", object{"id": "u"}, 400, "M_INVALID_PARAM"},
		{"a trunk with a misspelt key", "root", "PUT", adminV1 + "/phones/trunks/t", object{"max_cals": 3}, 400, "M_BAD_JSON"},
		{"a trunk with a number for a time", "root", "PUT", adminV1 + "/phones/trunks/t", object{"options_ping": 30}, 400, "M_BAD_JSON"},
		{"a trunk with a strange id", "root", "PUT", adminV1 + "/phones/trunks/a%2Fb", object{}, 400, "M_INVALID_PARAM"},
		{"no more trunk", "root", "DELETE", adminV1 + "/phones/trunks/t", nil, 200, ""},
		{"a rule", "root", "PUT", adminV1 + "/phones/rules/r", object{"match": object{"to": "+49"}, "action": object{"type": "pin", "lockout": "10m"}}, 200, ""},
		{"that rule", "root", "GET", adminV1 + "/phones/rules/r", nil, 200, ""},
		{"rules", "root", "GET", adminV1 + "/phones/rules", nil, 200, ""},
		{"no such rule", "root", "GET", adminV1 + "/phones/rules/x", nil, 404, "M_NOT_FOUND"},
		{"no more rule", "root", "DELETE", adminV1 + "/phones/rules/r", nil, 200, ""},
		{"lift a ban", "root", "DELETE", adminV1 + "/phones/bans/192.0.2.1", nil, 200, ""},
		{"lift no ban", "root", "DELETE", adminV1 + "/phones/bans/192.0.2.2", nil, 404, "M_NOT_FOUND"},
		{"lift nonsense", "root", "DELETE", adminV1 + "/phones/bans/everybody", nil, 400, "M_INVALID_PARAM"},
		{"admin hangs up", "root", "POST", adminV1 + "/phones/legs/SCL_a/hangup", object{}, 200, ""},
		{"admin mutes", "root", "POST", adminV1 + "/phones/legs/SCL_a/mute", object{"muted": true}, 200, ""},
		{"admin mutes perhaps", "root", "POST", adminV1 + "/phones/legs/SCL_a/mute", object{}, 400, "M_MISSING_PARAM"},
		{"admin transfers", "root", "POST", adminV1 + "/phones/legs/SCL_a/transfer", object{"to": "tel:+491"}, 200, ""},
		{"admin transfers nowhere", "root", "POST", adminV1 + "/phones/legs/SCL_a/transfer", object{}, 400, "M_MISSING_PARAM"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a.t = t
			a.api.callers.all, a.api.dials.all = nil, nil // rates have their own test
			status, body := a.do(c.who, c.method, c.path, c.body)
			if code, _ := body["errcode"].(string); status != c.status || code != c.code {
				t.Errorf("answered %d %v, want %d %s", status, body, c.status, c.code)
			}
		})
	}
	want := []string{
		"pin !r:a", "change !r:a true false", "dial 030 999  !r:a by @alice:a into media-!r:a",
		"digits SCL_b 12#", "digits SCL_b 1", "hangup SCL_b", "admit SCL_a @alice:a true",
		"records 1048576 ", "records 50 ", "records 5 t", "untrunk t", "unrule r",
		"lift 192.0.2.1", "lift 192.0.2.2", "hangup SCL_a", "mute SCL_a true", "transfer SCL_a tel:+491 map[]",
	}
	if got := a.gateway.took(); !slices.Equal(got, want) {
		t.Errorf("the gateway was asked for\n%q, want\n%q", got, want)
	}
	for _, route := range a.api.routes() {
		if !route.admin {
			continue
		}
		path := strings.NewReplacer("{trunkId}", "t", "{ruleId}", "r", "{legId}", "SCL_a", "{source}", "192.0.2.1").Replace(route.path)
		a.api.callers.all = nil
		if status, _ := a.do("alice", route.method, path, object{}); status != http.StatusForbidden {
			t.Errorf("%s %s answered %d to somebody who is no administrator", route.method, path, status)
		}
	}
	if got := a.gateway.took(); len(got) != 0 {
		t.Errorf("somebody who is no administrator did %q", got)
	}
}

// TestAPIErrors checks how the gateway's errors are told.
func TestAPIErrors(t *testing.T) {
	a := newAPITest(t)
	for _, c := range []struct {
		name   string
		err    error
		status int
		code   string
		cause  string
		text   string
	}{
		{"wrong number", &numbers.Refusal{Reason: numbers.Malformed, Text: "this is no number"}, 400, "M_INVALID_PARAM", "wrong_number", "this is no number"},
		{"forbidden", fmt.Errorf("no trunk may call it: %w", call.ErrForbidden), 403, "M_FORBIDDEN", "not_allowed", "no trunk may call it"},
		{"no line", fmt.Errorf("all lines are busy: %w", call.ErrUnavailable), 503, "ORG.TRUNKHALL.UNAVAILABLE", "failed", "all lines are busy"},
		{"the limit", caused{call.CauseLimit, call.ErrForbidden}, 429, "M_LIMIT_EXCEEDED", "limit", "used up"},
		{"our fault", errors.New("disk on fire"), 500, "M_UNKNOWN", "", "internal error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a.t, a.gateway.dialErr = t, c.err
			a.api.dials.all = nil
			status, body := a.do("alice", "POST", room1+"/dial", object{"number": "1"})
			cause, _ := body["cause"].(string)
			if status != c.status || body["errcode"] != c.code || !strings.Contains(body["error"].(string), c.text) {
				t.Errorf("answered %d %v", status, body)
			}
			if cause != c.cause {
				t.Errorf("cause %q, want %q", cause, c.cause)
			}
		})
	}
	for _, kind := range call.Kinds() {
		a.gateway.err = fmt.Errorf("trunk: %w", kind)
		status, body := a.do("root", "DELETE", adminV1+"/phones/trunks/t", nil)
		if status < 400 || status == 500 || body["errcode"] == "M_UNKNOWN" {
			t.Errorf("%v is told as %d %v", kind, status, body)
		}
	}
	a.gateway.err = errors.New("disk on fire")
	if status, body := a.do("root", "DELETE", adminV1+"/phones/trunks/t", nil); status != 500 || body["error"] != "internal error" {
		t.Errorf("a defect is told as %d %v", status, body)
	}
	a.rooms.err = errors.New("database gone")
	if status, _ := a.do("alice", "GET", room1, nil); status != 500 {
		t.Errorf("a room that cannot be looked up: %d", status)
	}
}

type caused struct {
	cause call.Cause
	kind  error
}

func (c caused) Error() string     { return "the minutes are used up" }
func (c caused) Unwrap() error     { return c.kind }
func (c caused) Cause() call.Cause { return c.cause }

// TestAPIMasks checks who sees which number.
func TestAPIMasks(t *testing.T) {
	a := newAPITest(t)
	a.gateway.legs["SCL_a"] = call.Leg{
		ID: "SCL_a", State: call.LegConfirmed, Direction: call.Outbound, By: "@alice:a", RoomID: "!r:a", Trunk: "secret-line", Local: "+4930123456",
		Number: "+4915112345678", Name: "+49 1511 2345678", Identity: "@_phone_4915112345678:a:8448:DEVICE",
		Created: time.UnixMilli(1000), Stats: call.LegStats{Lost: 3, Jitter: 1500 * time.Microsecond, MOS: 4.2},
	}
	a.gateway.legs["SCL_w"] = call.Leg{ID: "SCL_w", State: call.LegConfirmed, Direction: call.Inbound, Number: "+4989123456", Name: "Carol"}
	a.rooms.waiting = []call.Waiting{{Leg: "SCL_w"}, {Leg: "SCL_gone"}}

	_, mine := a.do("alice", "GET", phonesV1+"/legs/SCL_a", nil)
	if mine["number"] != "+4915112345678" || mine["mine"] != true || mine["trunk"] != nil || mine["local"] != nil ||
		mine["created"] != 1000.0 || mine["answered"] != nil || mine["user_id"] != "@_phone_4915112345678:a:8448" {
		t.Errorf("who dialled sees %v", mine)
	}
	if s := mine["stats"].(object); s["lost"] != 3.0 || s["jitter_ms"] != 1.5 || s["mos"] != 4.2 {
		t.Errorf("statistics %v", s)
	}
	_, theirs := a.do("bob", "GET", phonesV1+"/legs/SCL_a", nil)
	if theirs["number"] != "+4915***678" || theirs["name"] != "+4915***678" || theirs["mine"] != false {
		t.Errorf("another member sees %v", theirs)
	}
	_, room := a.do("bob", "GET", room1, nil)
	waiting := room["waiting"].([]any)
	if len(waiting) != 1 || waiting[0].(object)["name"] != "Carol" || waiting[0].(object)["number"] == "+4989123456" || len(room["legs"].([]any)) != 1 {
		t.Errorf("the room is %v", room)
	}
	if room["pin"] != "123456" || room["may_dial"] != false || room["lobby"] != true || room["numbers"].([]any)[0].(object)["display"] != "+49 30 123456" {
		t.Errorf("the room is %v", room)
	}
	_, all := a.do("root", "GET", adminV1+"/phones", nil)
	leg := all["legs"].([]any)[0].(object)
	if leg["number"] != "+4915112345678" || leg["trunk"] != "secret-line" {
		t.Errorf("an administrator sees %v", leg)
	}
}

func TestAPIOverview(t *testing.T) {
	a := newAPITest(t)
	a.gateway.trunks = []call.TrunkState{{
		Trunk:  call.Trunk{ID: "p", Name: "Provider", Direction: "both", Targets: []string{"sip:p.example"}, MaxCalls: 30, Auth: call.TrunkAuth{Username: "u", Password: "secret"}},
		Source: "config", Registered: "registered", Up: true, Ping: 12 * time.Millisecond, Calls: 2,
	}}
	a.gateway.records = []ledger.Record{{ID: "SCL_1", Seconds: 90, Cause: call.CauseHangup, From: "+491", To: "+492", Start: time.UnixMilli(5), End: time.UnixMilli(9)}}
	a.gateway.bans = []guard.Ban{{IP: netip.MustParseAddr("192.0.2.1"), Why: "scanner", Count: 8}}
	_, got := a.do("root", "GET", adminV1+"/phones", nil)
	trunk, record, ban, totals := got["trunks"].([]any)[0].(object), got["records"].([]any)[0].(object), got["bans"].([]any)[0].(object), got["totals"].(object)
	if trunk["registered"] != "registered" || trunk["ping_ms"] != 12.0 || trunk["max_calls"] != 30.0 || trunk["up"] != true {
		t.Errorf("trunk %v", trunk)
	}
	if record["from"] != "+491" || record["end"] != 9.0 || ban["source"] != "192.0.2.1" || ban["strikes"] != 8.0 || totals["minutes_today"] != 1.5 || totals["calls_today"] != 1.0 {
		t.Errorf("record %v, ban %v, totals %v", record, ban, totals)
	}
	text, _ := json.Marshal(got)
	_, list := a.do("root", "GET", adminV1+"/phones/trunks", nil)
	more, _ := json.Marshal(list)
	if strings.Contains(string(text)+string(more), "secret") {
		t.Error("a password is told")
	}
}

// TestAPISettings checks that what GET tells can be PUT again.
func TestAPISettings(t *testing.T) {
	a := newAPITest(t)
	trunk := call.Trunk{ID: "t", Direction: "outbound", OptionsPing: 30 * time.Second, MaxDuration: time.Hour, MaxCPS: 2.5, Allow: []string{"+49"}}
	a.gateway.trunks = []call.TrunkState{{Trunk: trunk, Source: "api"}}
	_, got := a.do("root", "GET", adminV1+"/phones/trunks/t", nil)
	if got["options_ping"] != "30s" || got["max_duration"] != "1h0m0s" || got["source"] != "api" {
		t.Errorf("trunk %v", got)
	}
	if status, body := a.do("root", "PUT", adminV1+"/phones/trunks/t", got); status != 200 || !reflect.DeepEqual(a.gateway.trunks[0].Trunk, trunk) {
		t.Errorf("put back: %d %v, %+v", status, body, a.gateway.trunks[0].Trunk)
	}
	rule := call.DispatchRule{ID: "r", Match: call.DispatchMatch{To: "+49"}, Action: call.DispatchAction{Type: "user", User: "@a:b", Timeout: 45 * time.Second}}
	a.gateway.rules = []call.DispatchRule{rule}
	_, got = a.do("root", "GET", adminV1+"/phones/rules/r", nil)
	if got["action"].(object)["timeout"] != "45s" {
		t.Errorf("rule %v", got)
	}
	if status, body := a.do("root", "PUT", adminV1+"/phones/rules/r", got); status != 200 || !reflect.DeepEqual(a.gateway.rules[0], rule) {
		t.Errorf("put back: %d %v, %+v", status, body, a.gateway.rules[0])
	}
}

func TestAPILongPoll(t *testing.T) {
	a := newAPITest(t)
	leg := call.Leg{ID: "SCL_a", State: call.LegRinging, By: "@alice:a", RoomID: "!r:a"}
	a.gateway.set(leg)
	if _, got := a.do("alice", "GET", phonesV1+"/legs/SCL_a?seen=trying&timeout=60000", nil); got["state"] != "ringing" {
		t.Errorf("another state is told at once: %v", got)
	}
	if _, got := a.do("alice", "GET", phonesV1+"/legs/SCL_a?seen=ringing&timeout=20", nil); got["state"] != "ringing" {
		t.Errorf("after the time-out: %v", got)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		leg.State, leg.Cause, leg.Code, leg.Text = call.LegEnded, call.CauseBusy, 486, "busy"
		a.gateway.set(leg)
	})
	_, got := a.do("alice", "GET", phonesV1+"/legs/SCL_a?seen=ringing&timeout=60000", nil)
	if got["state"] != "ended" || got["cause"] != "busy" || got["code"] != 486.0 || got["text"] != "busy" {
		t.Errorf("the end is told as %v", got)
	}
	if _, got := a.do("alice", "GET", phonesV1+"/legs/SCL_a?seen=ended&timeout=60000", nil); got["state"] != "ended" {
		t.Errorf("nothing comes after the end: %v", got)
	}
}

func TestAPIRates(t *testing.T) {
	a := newAPITest(t)
	now := time.Now()
	a.api.now = func() time.Time { return now }
	for i := range apiDialBurst {
		if status, body := a.do("alice", "POST", room1+"/dial", object{"number": "1"}); status != 200 {
			t.Fatalf("call %d: %d %v", i, status, body)
		}
	}
	status, body := a.do("alice", "POST", room1+"/dial", object{"number": "1"})
	if status != 429 || body["errcode"] != "M_LIMIT_EXCEEDED" || body["cause"] != "limit" || body["retry_after_ms"] == nil {
		t.Errorf("one more: %d %v", status, body)
	}
	now = now.Add(apiDialEvery)
	if status, _ := a.do("alice", "POST", room1+"/dial", object{"number": "1"}); status != 200 {
		t.Errorf("a little later: %d", status)
	}

	for range apiBurst {
		a.do("carol", "GET", phonesV1+"/config", nil)
	}
	if status, _ := a.do("carol", "GET", phonesV1+"/config", nil); status != 429 {
		t.Errorf("a user who asks without end is answered %d", status)
	}
	if status, _ := a.do("bob", "GET", phonesV1+"/config", nil); status != 200 {
		t.Errorf("another user is answered %d", status)
	}

	for range apiGuesses {
		a.do("guess", "GET", phonesV1+"/config", nil)
	}
	if status, body := a.do("guess", "GET", phonesV1+"/config", nil); status != 429 {
		t.Errorf("somebody who guesses tokens is answered %d %v", status, body)
	}
	r := a.request("bob", "GET", phonesV1+"/config", nil)
	r.RemoteAddr = "[2001:db8::1]:1"
	w := httptest.NewRecorder()
	a.api.Handler().ServeHTTP(w, r)
	if w.Code != 200 {
		t.Errorf("another address is answered %d", w.Code)
	}

	// Many names do not fill the memory.
	small := rates{every: 1, burst: 1}
	for i := range 2*apiCallers + 5 {
		small.take(fmt.Sprint(i), now)
	}
	if len(small.all) > apiCallers {
		t.Errorf("%d names are remembered", len(small.all))
	}
}

func TestAPIWithoutMatrix(t *testing.T) {
	a := newAPITest(t)
	a.api = NewAPI(APIDeps{Gateway: a.gateway, User: a.api.deps.User})
	if status, _ := a.do("root", "GET", adminV1+"/phones", nil); status != 200 {
		t.Errorf("operators are answered %d", status)
	}
	if status, body := a.do("alice", "GET", phonesV1+"/config", nil); status != 404 {
		t.Errorf("clients are answered %d %v", status, body)
	}
}

func TestAPIPreflight(t *testing.T) {
	a := newAPITest(t)
	w := httptest.NewRecorder()
	a.api.Handler().ServeHTTP(w, a.request("", "OPTIONS", room1+"/dial", nil))
	if w.Code != 204 || !strings.Contains(w.Header().Get("Access-Control-Allow-Headers"), "Authorization") || w.Header().Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("preflight %d %v", w.Code, w.Header())
	}
}

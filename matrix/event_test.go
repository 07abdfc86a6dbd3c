package matrix

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	gmsl "github.com/matrix-org/gomatrixserverlib"
)

var testKey = Key{Server: "hs.test", ID: "ed25519:test", Seed: bytes.Repeat([]byte{7}, ed25519.SeedSize)}

// A testRoom makes events one after the other.
type testRoom struct {
	t       testing.TB
	version RoomVersion
	id      RoomID
	heads   []EventID
	depth   int64
	state   map[StateKeyTuple]*Event
}

func newTestRoom(t testing.TB, v RoomVersion) *testRoom {
	r := &testRoom{t: t, version: v, state: make(map[StateKeyTuple]*Event)}
	if !v.HashedRoomID() {
		r.id = "!room:hs.test"
	}
	create := `{"room_version":"` + string(v) + `"}`
	if v.CreatorInContent() {
		create = `{"creator":"@alice:hs.test","room_version":"` + string(v) + `"}`
	}
	r.must("@alice:hs.test", "m.room.create", "", create)
	r.must("@alice:hs.test", "m.room.member", "@alice:hs.test", `{"membership":"join"}`)
	users := `{"@alice:hs.test":100,"@mod:hs.test":50}`
	if v.PrivilegedCreators() {
		users = `{"@mod:hs.test":50}`
	}
	r.must("@alice:hs.test", "m.room.power_levels", "", `{"users":`+users+`,"events":{"org.matrix.msc3401.call.member":0},"state_default":50}`)
	r.must("@alice:hs.test", "m.room.join_rules", "", `{"join_rule":"public"}`)
	r.must("@bob:hs.test", "m.room.member", "@bob:hs.test", `{"membership":"join"}`)
	return r
}

func (r *testRoom) lookup(typ, key string) (*Event, error) {
	return r.state[StateKeyTuple{typ, key}], nil
}

// try builds and authorises an event; key "-" is no state key.
func (r *testRoom) try(sender UserID, typ, key, content string) (Event, error) {
	d := Draft{
		RoomID: r.id, Version: r.version, Type: typ, Sender: sender, Content: json.RawMessage(content),
		PrevEvents: r.heads, Depth: r.depth + 1, Time: time.UnixMilli(1700000000000 + r.depth),
	}
	if key != "-" {
		d.StateKey = &key
	}
	var err error
	if d.AuthEvents, err = AuthEventIDs(d, r.lookup); err != nil {
		return Event{}, err
	}
	e, err := Build(d, testKey)
	if err != nil {
		return Event{}, err
	}
	return e, Authorise(&e, r.lookup)
}

func (r *testRoom) must(sender UserID, typ, key, content string) *Event {
	r.t.Helper()
	e, err := r.try(sender, typ, key, content)
	if err != nil {
		r.t.Fatalf("version %s: %s %s: %v", r.version, typ, content, err)
	}
	r.id, r.heads, r.depth = e.RoomID, []EventID{e.ID}, e.Depth
	if e.StateKey != nil {
		r.state[StateKeyTuple{typ, key}] = &e
	}
	return &e
}

func TestAuthorise(t *testing.T) {
	for _, v := range RoomVersions() {
		r := newTestRoom(t, v)
		for _, tt := range []struct {
			name              string
			sender            UserID
			typ, key, content string
			ok                bool
		}{
			{"a member speaks", "@bob:hs.test", "m.room.message", "-", `{}`, true},
			{"a stranger does not", "@eve:hs.test", "m.room.message", "-", `{}`, false},
			{"a member is in a call", "@bob:hs.test", "org.matrix.msc3401.call.member", "_@bob:hs.test_D_m.call", `{}`, true},
			{"nobody touches state owned by another", "@bob:hs.test", "org.matrix.msc3401.call.member", "@alice:hs.test", `{}`, false},
			{"a member does not set the name", "@bob:hs.test", "m.room.name", "", `{}`, false},
			{"a moderator who is not joined neither", "@mod:hs.test", "m.room.name", "", `{}`, false},
			{"the creator does", "@alice:hs.test", "m.room.name", "", `{}`, true},
			{"a public room can be joined", "@eve:hs.test", "m.room.member", "@eve:hs.test", `{"membership":"join"}`, true},
			{"but not for another", "@bob:hs.test", "m.room.member", "@eve:hs.test", `{"membership":"join"}`, false},
			{"a member does not kick", "@bob:hs.test", "m.room.member", "@alice:hs.test", `{"membership":"leave"}`, false},
			{"the creator bans", "@alice:hs.test", "m.room.member", "@bob:hs.test", `{"membership":"ban"}`, true},
			{"an unknown membership", "@bob:hs.test", "m.room.member", "@bob:hs.test", `{"membership":"here"}`, false},
			{"no membership", "@bob:hs.test", "m.room.member", "@bob:hs.test", `{}`, false},
			{"a membership that is a number", "@bob:hs.test", "m.room.member", "@bob:hs.test", `{"membership":1}`, false},
			{"a member does not promote itself", "@bob:hs.test", "m.room.power_levels", "", `{"users":{"@bob:hs.test":100}}`, false},
			{"levels are integers", "@alice:hs.test", "m.room.power_levels", "", `{"users":{"@bob:hs.test":"100"}}`, false},
			{"the room is made once", "@alice:hs.test", "m.room.create", "", `{"room_version":"` + string(v) + `"}`, false},
			{"a knock needs a join rule for it", "@eve:hs.test", "m.room.member", "@eve:hs.test", `{"membership":"knock"}`, false},
		} {
			_, err := r.try(tt.sender, tt.typ, tt.key, tt.content)
			if (err == nil) != tt.ok {
				t.Errorf("version %s: %s: error %v", v, tt.name, err)
			}
			var refused *NotAllowedError
			if err != nil && tt.typ != "m.room.create" && !errors.As(err, &refused) {
				t.Errorf("version %s: %s: refused with a %T", v, tt.name, err)
			}
		}
	}
}

// The library is asked about what we built: it must see the same event ID, the
// same hashes and a valid signature.
func TestBuildAgreesWithTheLibrary(t *testing.T) {
	for _, v := range RoomVersions() {
		r := newTestRoom(t, v)
		events := []*Event{
			r.state[StateKeyTuple{"m.room.create", ""}], r.state[StateKeyTuple{"m.room.power_levels", ""}],
			r.must("@bob:hs.test", "m.room.message", "-", `{"body":"<ü> & \"x\"   \u2028\u0001","n":9007199254740991}`),
			r.must("@bob:hs.test", "m.room.redaction", "-", `{}`),
		}
		for _, e := range events {
			pdu, err := v.rules().NewEventFromUntrustedJSON(e.JSON)
			if err != nil {
				t.Fatalf("version %s: %s: %v", v, e.Type, err)
			}
			if pdu.EventID() != string(e.ID) {
				t.Errorf("version %s: %s has the ID %s, the library says %s", v, e.Type, e.ID, pdu.EventID())
			}
			if pdu.Redacted() {
				t.Errorf("version %s: %s: the library finds the content hash wrong", v, e.Type)
			}
			if pdu.RoomID().String() != string(e.RoomID) {
				t.Errorf("version %s: %s: room %s and %s", v, e.Type, e.RoomID, pdu.RoomID().String())
			}
			red, err := v.rules().RedactEventJSON(e.JSON)
			if err != nil {
				t.Fatal(err)
			}
			public := ed25519.NewKeyFromSeed(testKey.Seed).Public().(ed25519.PublicKey)
			if err := gmsl.VerifyJSON(string(testKey.Server), gmsl.KeyID(testKey.ID), public, red); err != nil {
				t.Errorf("version %s: %s: signature: %v", v, e.Type, err)
			}
		}
	}
}

func TestRedact(t *testing.T) {
	for _, v := range RoomVersions() {
		r := newTestRoom(t, v)
		sticky := time.Minute
		e, err := Build(Draft{
			RoomID: r.id, Version: v, Type: "m.room.message", Sender: "@bob:hs.test", Content: json.RawMessage(`{"body":"secret"}`),
			PrevEvents: r.heads, Depth: 9, Time: time.UnixMilli(1), Sticky: &sticky,
		}, testKey)
		if err != nil {
			t.Fatal(err)
		}
		if e.Sticky == nil || *e.Sticky != sticky {
			t.Errorf("version %s: sticky %v", v, e.Sticky)
		}
		red, err := e.Redact()
		if err != nil {
			t.Fatal(err)
		}
		if red.ID != e.ID || string(red.Content) != "{}" || red.Sticky != nil || bytes.Contains(red.JSON, []byte("secret")) {
			t.Errorf("version %s: redacted: %s", v, red.JSON)
		}
		pdu, err := v.rules().NewEventFromTrustedJSON(red.JSON, true)
		if err != nil || pdu.EventID() != string(e.ID) {
			t.Errorf("version %s: the redacted event has another ID: %v", v, err)
		}
		member := r.state[StateKeyTuple{"m.room.member", "@bob:hs.test"}]
		if red, err = member.Redact(); err != nil || red.Membership() != MembershipJoin {
			t.Errorf("version %s: a redacted member event forgets who is in the room: %s, %v", v, red.JSON, err)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	long := strings.Repeat("x", MaxIDBytes+1)
	for _, tt := range []struct {
		name string
		d    Draft
		want error
	}{
		{"too large", Draft{Type: "x", Content: json.RawMessage(`{"a":"` + strings.Repeat("y", MaxEventBytes) + `"}`)}, ErrTooLarge},
		{"long type", Draft{Type: long, Content: json.RawMessage(`{}`)}, ErrTooLarge},
		{"long state key", Draft{Type: "x", StateKey: &long, Content: json.RawMessage(`{}`)}, ErrTooLarge},
		{"a float", Draft{Type: "x", Content: json.RawMessage(`{"a":1.0}`)}, ErrBadJSON},
		{"a list", Draft{Type: "x", Content: json.RawMessage(`[]`)}, ErrBadJSON},
		{"null", Draft{Type: "x", Content: json.RawMessage(`null`)}, ErrBadJSON},
		{"nothing", Draft{Type: "x"}, ErrNotJSON},
		{"two values", Draft{Type: "x", Content: json.RawMessage(`{}{}`)}, ErrNotJSON},
		{"not UTF-8", Draft{Type: "x", Content: json.RawMessage("{\"\xff\":1}")}, ErrNotJSON},
		{"a lookalike", Draft{Type: "m.room.power_levels", Content: json.RawMessage(`{"uſers":{}}`)}, ErrBadJSON},
		{"a key for other room versions", Draft{Type: "m.room.member", Content: json.RawMessage(`{"membership":"join","mxid_mapping":{"user_id":"@x:y"}}`)}, ErrBadJSON},
	} {
		tt.d.Version, tt.d.RoomID, tt.d.Sender = RoomVersion11, "!r:hs.test", "@a:hs.test"
		if _, err := Build(tt.d, testKey); !errors.Is(err, tt.want) {
			t.Errorf("%s: error %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestCanonicalJSON(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		// Examples of the Matrix specification, appendices.
		{"empty", `{}`, `{}`},
		{"sorted", "{\n  \"one\": 1,\n  \"two\": \"Two\"\n}", `{"one":1,"two":"Two"}`},
		{"nested", `{"auth":{"success":true,"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"medium":"email","address":"john.doe@example.org"},{"medium":"msisdn","address":"123456789"}]}}}`,
			`{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},"success":true}}`},
		{"not ASCII", `{"a":"日本語"}`, `{"a":"日本語"}`},
		{"keys by code point", `{"本":2,"日":1}`, `{"日":1,"本":2}`},
		{"escapes are undone", `{"a":"\u65E5"}`, `{"a":"日"}`},
		{"null", `{"a":null}`, `{"a":null}`},
		{"minus zero", `{"a":-0,"b":1}`, `{"a":0,"b":1}`},
		// And of our own.
		{"the escapes that are needed", "{\"a\":\"\\u0000\\n\\u001f\\\"\\\\\\/<>&\\u2028\"}", "{\"a\":\"\\u0000\\n\\u001f\\\"\\\\/<>&\u2028\"}"},
		{"keys are escaped", `{"a\":1,\"b":2}`, `{"a\":1,\"b":2}`},
		{"the last of equal keys counts", `{"a":1,"a":2}`, `{"a":2}`},
		{"the largest integers", `[9007199254740991,-9007199254740991]`, `[9007199254740991,-9007199254740991]`},
	} {
		got, err := CanonicalJSON([]byte(tt.in))
		if string(got) != tt.want || err != nil {
			t.Errorf("%s: %s, %v; want %s", tt.name, got, err, tt.want)
		}
	}
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	if _, err := CanonicalJSON([]byte(deep(maxDepth))); err != nil {
		t.Error(err)
	}
	for _, in := range []string{deep(maxDepth + 1), deep(100000), strings.Repeat(`{"a":`, 100000)} {
		if _, err := CanonicalJSON([]byte(in)); !errors.Is(err, ErrBadJSON) {
			t.Errorf("deep nesting: %v", err)
		}
	}
}

func TestPower(t *testing.T) {
	for _, v := range RoomVersions() {
		r := newTestRoom(t, v)
		create, levels := r.state[StateKeyTuple{"m.room.create", ""}], r.state[StateKeyTuple{"m.room.power_levels", ""}]
		p := NewPower(create, levels)
		if p.User("@alice:hs.test") < 100 || p.User("@mod:hs.test") != 50 || p.User("@bob:hs.test") != 0 {
			t.Errorf("version %s: levels %d %d %d", v, p.User("@alice:hs.test"), p.User("@mod:hs.test"), p.User("@bob:hs.test"))
		}
		if !p.CanRedact("@mod:hs.test") || p.CanRedact("@bob:hs.test") || p.Event("org.matrix.msc3401.call.member", true) != 0 || p.Event("m.room.name", true) != 50 || p.Notification("room") != 50 {
			t.Errorf("version %s: %+v", v, p)
		}
		bare := NewPower(create, nil)
		if bare.User("@alice:hs.test") < 100 || bare.User("@bob:hs.test") != 0 || bare.Event("m.room.name", true) != 0 {
			t.Errorf("version %s: a room without power levels: %+v", v, bare)
		}
	}
}

// FuzzEvent feeds whatever a client may send as content to everything that
// happens to an event.
func FuzzEvent(f *testing.F) {
	for _, content := range []string{
		`{}`, `{"membership":"join"}`, `{"membership":"invite","third_party_invite":{"signed":{"token":"t","mxid":"@a:b","signatures":{"x":{"ed25519:1":"AA"}}}}}`,
		`{"membership":"join","join_authorised_via_users_server":"@alice:hs.test"}`,
		`{"users":{"@alice:hs.test":100},"events":{"a":1},"ban":50}`, `{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":"!x:y"}]}`,
		`{"room_version":"12","additional_creators":["@x:y",1]}`, `{"a\":1},\"sender\":\"@x:y\",\"z\":{\"b":2}`,
		`{"m.relates_to":{"event_id":"$x","rel_type":"m.annotation","key":"k"}}`, `{"redacts":"$x"}`, `{"n":-9007199254740991}`, "{\"\\ud800\":\"\\u0000\"}",
		`{"mſ":1}`, `{"a":` + strings.Repeat("[", 101) + strings.Repeat("]", 101) + `}`,
	} {
		for _, typ := range []string{"m.room.message", "m.room.member", "m.room.power_levels", "m.room.create"} {
			f.Add(typ, "@bob:hs.test", []byte(content))
		}
	}
	f.Add("\xff", "\xff", []byte(`{}`))
	rooms := make(map[RoomVersion]*testRoom)
	for _, v := range RoomVersions() {
		rooms[v] = newTestRoom(f, v)
	}
	f.Fuzz(func(t *testing.T, typ, key string, content []byte) {
		for _, v := range RoomVersions() {
			e, err := rooms[v].try("@bob:hs.test", typ, key, string(content))
			if e.ID == "" {
				continue // could not be built
			}
			if err != nil {
				var refused *NotAllowedError
				if !errors.As(err, &refused) {
					t.Fatalf("refused with a %T: %v", err, err)
				}
			}
			if e.Sender != "@bob:hs.test" || e.Type != typ || (e.StateKey == nil) != (key == "-") || e.StateKey != nil && *e.StateKey != key {
				t.Fatalf("forged: %s", e.JSON)
			}
			again, err := CanonicalJSON(e.JSON)
			if err != nil || !bytes.Equal(again, e.JSON) {
				t.Fatalf("not canonical: %s, %v", e.JSON, err)
			}
			red, err := e.Redact()
			if err != nil {
				t.Fatalf("cannot be redacted: %v", err)
			}
			if _, err := red.Redact(); err != nil {
				t.Fatalf("cannot be redacted twice: %v", err)
			}
			if _, err := base64.RawURLEncoding.DecodeString(string(e.ID[1:])); err != nil {
				t.Fatalf("event ID %s", e.ID)
			}
			e.RelatesTo()
			e.Membership()
			e.Creators()
			NewPower(&e, &e)
		}
	})
}

// FuzzCanonicalJSON checks that the canonical form means the same and is stable.
func FuzzCanonicalJSON(f *testing.F) {
	for _, s := range []string{`{"b":1,"a":[true,null,"x\u0000"]}`, `"\ud83d\ude00"`, `1e5`, `-0`, `{"a":1,"a":2}`, "\"\xff\"", `[[[[]]]]`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := CanonicalJSON(in)
		if err != nil {
			if !errors.Is(err, ErrNotJSON) && !errors.Is(err, ErrBadJSON) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		var a, b any
		if err := json.Unmarshal(out, &b); err != nil {
			t.Fatalf("%q became %q: %v", in, out, err)
		}
		if err := json.Unmarshal(in, &a); err != nil {
			t.Fatalf("accepted %q: %v", in, err)
		}
		x, _ := json.Marshal(a)
		y, _ := json.Marshal(b)
		if !bytes.Equal(x, y) && !strings.Contains(string(x), "-0") {
			t.Fatalf("%q became %q", x, y)
		}
		if again, err := CanonicalJSON(out); err != nil || !bytes.Equal(again, out) {
			t.Fatalf("not stable: %q, %q, %v", out, again, err)
		}
	})
}

package homeserver

import (
	"encoding/json"
	"testing"

	"github.com/trunkhall/trunkhall/matrix"
)

func TestMayRead(t *testing.T) {
	const (
		none   = matrix.MembershipNone
		join   = matrix.MembershipJoin
		invite = matrix.MembershipInvite
		leave  = matrix.MembershipLeave
		ban    = matrix.MembershipBan
	)
	for _, tt := range []struct {
		name       string
		visibility string
		then       matrix.Membership
		later      bool
		want       bool
	}{
		{"anybody reads a world-readable event", visibleWorld, none, false, true},
		{"even the banned read a world-readable event", visibleWorld, ban, false, true},
		{"a member reads what was said while there", visibleJoined, join, true, true},
		{"a former member too", visibleJoined, join, false, true},
		{"joined hides what was said before one joined", visibleJoined, none, true, false},
		{"joined hides what was said while invited", visibleJoined, invite, true, false},
		{"invited shows what was said while invited", visibleInvited, invite, false, true},
		{"invited hides what was said before the invite", visibleInvited, none, true, false},
		{"shared shows everything to those who join later", visibleShared, none, true, true},
		{"shared shows nothing to those who never joined", visibleShared, none, false, false},
		{"shared shows nothing to the invited who never joined", visibleShared, invite, false, false},
		{"shared hides what came after one left", visibleShared, leave, false, false},
		{"shared shows what came in between to those who came back", visibleShared, leave, true, true},
		{"an unknown value is shared", "org.example.odd", none, true, true},
		{"an unknown value hides from strangers", "org.example.odd", none, false, false},
	} {
		if got := mayRead(tt.visibility, tt.then, tt.later); got != tt.want {
			t.Errorf("%s: mayRead = %v", tt.name, got)
		}
	}
}

// history makes a state event at a position.
func history(pos int64, typ, key, field, value string) matrix.StoredEvent {
	content, _ := json.Marshal(map[string]string{field: value})
	return matrix.StoredEvent{Pos: pos, Event: matrix.Event{Type: typ, StateKey: &key, Content: content}}
}

func TestReaderAllows(t *testing.T) {
	const me = "@me:hs"
	vis := func(pos int64, v string) matrix.StoredEvent {
		return history(pos, "m.room.history_visibility", "", "history_visibility", v)
	}
	mem := func(pos int64, m string) matrix.StoredEvent {
		return history(pos, "m.room.member", me, "membership", m)
	}
	for _, tt := range []struct {
		name    string
		vis     []matrix.StoredEvent
		members []matrix.StoredEvent
		visible []int64 // of the messages at 10, 20, 30, 40, 50
	}{
		{"no visibility event means shared", nil, []matrix.StoredEvent{mem(35, "join")}, []int64{10, 20, 30, 40, 50}},
		{"joined: from the join on", []matrix.StoredEvent{vis(1, "joined")}, []matrix.StoredEvent{mem(35, "join")}, []int64{40, 50}},
		{"invited: from the invite on", []matrix.StoredEvent{vis(1, "invited")}, []matrix.StoredEvent{mem(15, "invite"), mem(35, "join")}, []int64{20, 30, 40, 50}},
		{"visibility counts as of the event, not as of now", []matrix.StoredEvent{vis(1, "joined"), vis(25, "shared")}, []matrix.StoredEvent{mem(45, "join")}, []int64{30, 40, 50}},
		{"after leaving nothing new", []matrix.StoredEvent{vis(1, "shared")}, []matrix.StoredEvent{mem(5, "join"), mem(25, "leave")}, []int64{10, 20}},
		{"banned and world-readable", []matrix.StoredEvent{vis(1, "world_readable")}, []matrix.StoredEvent{mem(5, "join"), mem(25, "ban")}, []int64{10, 20, 30, 40, 50}},
		{"a stranger sees nothing", []matrix.StoredEvent{vis(1, "shared")}, nil, nil},
		{"left and came back, joined-only in between", []matrix.StoredEvent{vis(1, "joined")}, []matrix.StoredEvent{mem(5, "join"), mem(15, "leave"), mem(35, "join")}, []int64{10, 40, 50}},
	} {
		r := &reader{user: me, visibilities: tt.vis, members: tt.members}
		want := make(map[int64]bool)
		for _, p := range tt.visible {
			want[p] = true
		}
		for _, pos := range []int64{10, 20, 30, 40, 50} {
			e := &matrix.StoredEvent{Pos: pos, Event: matrix.Event{Type: "m.room.message", Content: json.RawMessage(`{}`)}}
			if got := r.allows(e); got != want[pos] {
				t.Errorf("%s: event at %d visible = %v, want %v", tt.name, pos, got, want[pos])
			}
		}
	}
	// The event that changes the visibility is readable by those who could read before it.
	r := &reader{user: me, visibilities: []matrix.StoredEvent{vis(1, "shared"), vis(20, "joined")}, members: []matrix.StoredEvent{mem(30, "join")}}
	if !r.allows(&r.visibilities[1]) {
		t.Error("the change from shared to joined is hidden from those who could read until then")
	}
}

package signaling

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/livekit/protocol/livekit"

	"github.com/trunkhall/trunkhall/call"
)

// bearer is an http client that sends a token.
type bearer string

func (b bearer) Do(r *http.Request) (*http.Response, error) {
	r.Header.Set("Authorization", "Bearer "+string(b))
	return http.DefaultClient.Do(r)
}

// api returns LiveKit's own client of the RoomService, for a grant.
func (ts *testServer) api(grant object) livekit.RoomService {
	token := forge(plainHeader, plainClaims(object{"video": grant}), testSecret)
	return livekit.NewRoomServiceProtobufClient(ts.http.URL, bearer(token))
}

func TestRoomService(t *testing.T) {
	ts := newTestServer(t, quick)
	ctx := context.Background()
	owner := ts.api(object{"roomCreate": true, "roomList": true, "roomAdmin": true, "room": "r"})

	room, err := owner.CreateRoom(ctx, &livekit.CreateRoomRequest{Name: "r", EmptyTimeout: 60, DepartureTimeout: 30, Metadata: "first"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := owner.CreateRoom(ctx, &livekit.CreateRoomRequest{Name: "r"})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(room.GetSid(), "RM_") || again.GetSid() != room.GetSid() || room.GetEmptyTimeout() != 60 || room.GetMetadata() != "first" {
		t.Errorf("created %s, then %s", room, again)
	}
	updated, err := owner.CreateRoom(ctx, &livekit.CreateRoomRequest{Name: "r", EmptyTimeout: 90, MaxParticipants: 7})
	if err != nil || updated.GetSid() != room.GetSid() || updated.GetEmptyTimeout() != 90 || updated.GetDepartureTimeout() != 30 ||
		updated.GetMaxParticipants() != 7 || updated.GetMetadata() != "first" {
		t.Errorf("new settings for the room made it %s, %v", updated, err)
	}
	rooms, err := owner.ListRooms(ctx, &livekit.ListRoomsRequest{Names: []string{"r", "other"}})
	if err != nil || len(rooms.GetRooms()) != 1 {
		t.Errorf("rooms %s %v", rooms, err)
	}

	alice, join := ts.join("alice", "r")
	list, err := owner.ListParticipants(ctx, &livekit.ListParticipantsRequest{Room: "r"})
	if err != nil || len(list.GetParticipants()) != 1 || list.GetParticipants()[0].GetSid() != join.GetParticipant().GetSid() {
		t.Errorf("participants %s %v", list, err)
	}
	who := &livekit.RoomParticipantIdentity{Room: "r", Identity: "alice"}
	if got, err := owner.GetParticipant(ctx, who); err != nil || got.GetIdentity() != "alice" {
		t.Errorf("participant %s %v", got, err)
	}

	if _, err := owner.UpdateRoomMetadata(ctx, &livekit.UpdateRoomMetadataRequest{Room: "r", Metadata: "second"}); err != nil {
		t.Error(err)
	}
	if got := alice.await("room_update").GetRoomUpdate().GetRoom().GetMetadata(); got != "second" {
		t.Errorf("alice sees room metadata %q", got)
	}

	changed, err := owner.UpdateParticipant(ctx, &livekit.UpdateParticipantRequest{
		Room: "r", Identity: "alice", Name: "Alice", Metadata: "m", Attributes: map[string]string{"k": "v"},
		Permission: &livekit.ParticipantPermission{CanSubscribe: true, CanPublishData: true},
	})
	if err != nil || changed.GetName() != "Alice" || changed.GetAttributes()["k"] != "v" || changed.GetPermission().GetCanPublish() {
		t.Errorf("changed to %s %v", changed, err)
	}
	alice.awaitUpdate("alice", func(p *livekit.ParticipantInfo) bool {
		return p.GetName() == "Alice" && !p.GetPermission().GetCanPublish()
	})
	alice.send(&livekit.SignalRequest{Message: &livekit.SignalRequest_AddTrack{AddTrack: &livekit.AddTrackRequest{Cid: "x", Source: livekit.TrackSource_MICROPHONE}}})
	if r := alice.await("request_response").GetRequestResponse(); r.GetReason() != livekit.RequestResponse_NOT_ALLOWED {
		t.Errorf("publishing after the permission was taken: %s", r)
	}
	if _, err := owner.UpdateSubscriptions(ctx, &livekit.UpdateSubscriptionsRequest{Room: "r", Identity: "alice", TrackSids: []string{"TR_x"}}); err != nil {
		t.Error(err)
	}
	for range 2 { // an SDK that tries again sends the same nonce
		if _, err := owner.SendData(ctx, &livekit.SendDataRequest{Room: "r", Data: []byte("hi"), Nonce: []byte("once")}); err != nil {
			t.Error(err)
		}
	}

	for _, bad := range []*livekit.SendDataRequest{
		{Room: "r", Kind: 2}, // data tracks are not for that
		{Room: "r", Kind: -1},
		{Room: "r", Data: make([]byte, maxSentData+1)}, // it would never arrive
	} {
		if _, err := owner.SendData(ctx, bad); err == nil || !strings.Contains(err.Error(), "invalid_argument") {
			t.Errorf("sending %d bytes of kind %d: %v", len(bad.GetData()), bad.GetKind(), err)
		}
	}

	if _, err := owner.RemoveParticipant(ctx, who); err != nil {
		t.Error(err)
	}
	if leave := alice.await("leave").GetLeave(); leave.GetReason() != livekit.DisconnectReason_PARTICIPANT_REMOVED {
		t.Errorf("alice was told %s", leave)
	}

	bob, _ := ts.join("bob", "r")
	if _, err := owner.DeleteRoom(ctx, &livekit.DeleteRoomRequest{Room: "r"}); err != nil {
		t.Error(err)
	}
	if leave := bob.await("leave").GetLeave(); leave.GetReason() != livekit.DisconnectReason_ROOM_DELETED {
		t.Errorf("bob was told %s", leave)
	}
	eventually(t, "the gate hears", func() bool { return ts.gate.all() == "here alice, gone alice true, here bob, gone bob true" })
}

func TestMutePublishedTrack(t *testing.T) {
	ts := newTestServer(t)
	owner := ts.api(object{"roomAdmin": true, "room": "r"})
	ts.join("alice", "r")
	for _, sid := range []string{"", "TR_unknown"} {
		_, err := owner.MutePublishedTrack(context.Background(), &livekit.MuteRoomTrackRequest{Room: "r", Identity: "alice", TrackSid: sid, Muted: true})
		if err == nil || !strings.Contains(err.Error(), "not_found") {
			t.Errorf("muting %q: %v", sid, err)
		}
	}
}

// TestServerAPIRefusals checks codes against what a LiveKit server answers,
// and that the token of a mere participant opens nothing.
func TestServerAPIRefusals(t *testing.T) {
	ts := newTestServer(t)
	ts.join("alice", "standup")
	sign := func(grant object) string { return forge(plainHeader, plainClaims(object{"video": grant}), testSecret) }
	participant := ts.tokenFor(call.Grant{Room: "standup", Identity: "alice", CanPublish: true, CanUpdateOwnMetadata: true})
	admin := sign(object{"roomAdmin": true, "room": "standup"})
	everything := sign(object{"roomAdmin": true, "room": "standup", "roomCreate": true, "roomList": true})
	const standup = `{"room":"standup","identity":"alice"}`
	const rooms = "/twirp/livekit.RoomService/"

	for _, c := range []struct {
		name, token, path, body string
		status                  int
		code                    string
	}{
		{"no token", "", rooms + "ListRooms", "{}", 401, "unauthenticated"},
		{"a forged token", "a.b.c", rooms + "ListRooms", "{}", 401, "unauthenticated"},
		{"participant deletes its room", participant, rooms + "DeleteRoom", standup, 401, "unauthenticated"},
		{"participant creates a room", participant, rooms + "CreateRoom", `{"name":"other"}`, 401, "unauthenticated"},
		{"participant lists rooms", participant, rooms + "ListRooms", "{}", 401, "unauthenticated"},
		{"participant lists participants", participant, rooms + "ListParticipants", standup, 401, "unauthenticated"},
		{"participant looks at another", participant, rooms + "GetParticipant", standup, 401, "unauthenticated"},
		{"participant removes another", participant, rooms + "RemoveParticipant", standup, 401, "unauthenticated"},
		{"participant mutes another", participant, rooms + "MutePublishedTrack", standup, 401, "unauthenticated"},
		{"participant promotes itself", participant, rooms + "UpdateParticipant", standup, 401, "unauthenticated"},
		{"participant subscribes another", participant, rooms + "UpdateSubscriptions", standup, 401, "unauthenticated"},
		{"participant speaks for the server", participant, rooms + "SendData", standup, 401, "unauthenticated"},
		{"participant changes the room", participant, rooms + "UpdateRoomMetadata", standup, 401, "unauthenticated"},
		{"admin of another room", sign(object{"roomAdmin": true, "room": "b"}), rooms + "GetParticipant", standup, 401, "unauthenticated"},
		{"admin of no room", sign(object{"roomAdmin": true}), rooms + "ListParticipants", "{}", 401, "unauthenticated"},
		{"admin may not delete", admin, rooms + "DeleteRoom", standup, 401, "unauthenticated"},
		{"unknown participant", admin, rooms + "GetParticipant", `{"room":"standup","identity":"bob"}`, 404, "not_found"},
		{"removing an unknown participant", admin, rooms + "RemoveParticipant", `{"room":"standup","identity":"bob"}`, 404, "not_found"},
		{"unknown room", sign(object{"roomAdmin": true, "room": "nowhere"}), rooms + "GetParticipant", `{"room":"nowhere","identity":"bob"}`, 404, "not_found"},
		{"deleting an unknown room", everything, rooms + "DeleteRoom", `{"room":"nowhere"}`, 404, "not_found"},
		{"a room without a name", everything, rooms + "CreateRoom", "{}", 400, "invalid_argument"},
		{"a name that is too long", everything, rooms + "CreateRoom", `{"name":"` + strings.Repeat("n", 257) + `"}`, 400, "invalid_argument"},
		{"malformed JSON", everything, rooms + "CreateRoom", `{"name":`, 400, "malformed"},
		{"a huge body", everything, rooms + "CreateRoom", `{"metadata":"` + strings.Repeat("m", maxBody) + `"}`, 413, "resource_exhausted"},
		{"a method that is not there yet", everything, rooms + "MoveParticipant", "{}", 501, "unimplemented"},
		{"a service that is not there yet", everything, "/twirp/livekit.Egress/ListEgress", "{}", 501, "unimplemented"},
		{"another", everything, "/twirp/livekit.SIP/CreateSIPParticipant", "{}", 501, "unimplemented"},
		{"no method", everything, "/twirp/livekit.RoomService", "{}", 404, "bad_route"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := http.NewRequest(http.MethodPost, ts.http.URL+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			if c.token != "" {
				r.Header.Set("Authorization", "Bearer "+c.token)
			}
			status, body := ts.do(r)
			var answer struct{ Code, Msg string }
			if err := json.Unmarshal([]byte(body), &answer); err != nil {
				t.Fatalf("%d %q: %v", status, body, err)
			}
			if status != c.status || answer.Code != c.code || answer.Msg == "" {
				t.Errorf("got %d %s, want %d %s", status, body, c.status, c.code)
			}
		})
	}
	room, ok := ts.sfu.Room("standup")
	if !ok || len(room.Participants()) != 1 {
		t.Error("somebody without the right changed the room")
	}
}

// TestTwirpJSON checks the shape of JSON: snake_case, int64 as strings, zero
// values present; and that both spellings are read.
func TestTwirpJSON(t *testing.T) {
	ts := newTestServer(t)
	token := forge(plainHeader, plainClaims(object{"video": object{"roomCreate": true}}), testSecret)
	r, err := http.NewRequest(http.MethodPost, ts.http.URL+"/twirp/livekit.RoomService/CreateRoom",
		strings.NewReader(`{"name":"r","emptyTimeout":60,"departure_timeout":30,"unheard_of":1}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json; charset=utf-8")
	r.Header.Set("Authorization", "Bearer "+token)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	var room map[string]any
	if err := json.Unmarshal(body, &room); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	if room["empty_timeout"] != float64(60) || room["departure_timeout"] != float64(30) || room["num_participants"] != float64(0) {
		t.Errorf("got %s", body)
	}
	if created, ok := room["creation_time"].(string); !ok || len(created) != len("1700000000") {
		t.Errorf("creation_time %v of %s is not a string of seconds", room["creation_time"], body)
	}
	if response.Header.Get("Content-Type") != "application/json" {
		t.Errorf("content type %q", response.Header.Get("Content-Type"))
	}
}

func TestRemoveDuringJoin(t *testing.T) {
	ts := newTestServer(t, quick)
	for range 20 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			ts.s.evict("r", "alice", 4)
		}()
		c := ts.dial(ts.v1(ts.token("alice", "r"), &livekit.JoinRequest{}))
		if _, err := c.read(); err != nil {
			t.Fatal(err)
		}
		_ = c.conn.CloseNow()
		<-done
	}
	eventually(t, "nobody is left", func() bool { return ts.s.seated("r", "alice") == nil })
	ts.gate.mu.Lock()
	defer ts.gate.mu.Unlock()
	if last := ts.gate.heard[len(ts.gate.heard)-1]; !strings.HasPrefix(last, "gone alice") {
		t.Errorf("the gate's last word of alice is %q", last)
	}
}

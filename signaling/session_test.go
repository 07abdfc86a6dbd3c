package signaling

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/livekit/protocol/livekit"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// quick shortens the timers that tests have to wait for.
func quick(s *Server) {
	s.cfg.LeaveGrace = 400 * time.Millisecond
	s.times.tick = 20 * time.Millisecond
	s.times.secondThought = 100 * time.Millisecond
}

// dataOffer is the offer of a client that wants data channels only.
const dataOffer = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\na=msid-semantic: WMS\r\n" +
	"m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=ice-ufrag:abcd\r\na=ice-pwd:abcdefghijklmnopqrstuvwx\r\n" +
	"a=ice-options:trickle\r\na=fingerprint:sha-256 00:01:02:03:04:05:06:07:08:09:0A:0B:0C:0D:0E:0F:10:11:12:13:14:15:16:17:18:19:1A:1B:1C:1D:1E:1F\r\n" +
	"a=setup:actpass\r\na=mid:0\r\na=sctp-port:5000\r\na=max-message-size:262144\r\n"

func offerRequest(id uint32, sdp string) *livekit.SignalRequest {
	return &livekit.SignalRequest{Message: &livekit.SignalRequest_Offer{Offer: &livekit.SessionDescription{Type: "offer", Id: id, Sdp: sdp}}}
}

func leaveRequest() *livekit.SignalRequest {
	return &livekit.SignalRequest{Message: &livekit.SignalRequest_Leave{Leave: &livekit.LeaveRequest{Reason: livekit.DisconnectReason_CLIENT_INITIATED}}}
}

func pingRequest(at int64) *livekit.SignalRequest {
	return &livekit.SignalRequest{Message: &livekit.SignalRequest_PingReq{PingReq: &livekit.Ping{Timestamp: at}}}
}

func TestJoinSingle(t *testing.T) {
	ts := newTestServer(t)
	ts.s.deps.ICEServers = func(user string) ([]call.ICEServer, time.Duration) {
		return []call.ICEServer{{URLs: []string{"turn:127.0.0.1:3478"}, Username: user, Credential: "c"}}, time.Hour
	}
	c := ts.dial(ts.v1(ts.token("alice", "standup"), &livekit.JoinRequest{
		PublisherOffer: &livekit.SessionDescription{Type: "offer", Id: 7, Sdp: dataOffer},
	}))
	join := c.next().GetJoin()
	for what, ok := range map[string]bool{
		"room sid":        strings.HasPrefix(join.GetRoom().GetSid(), "RM_"),
		"room name":       join.GetRoom().GetName() == "standup",
		"enabled codecs":  len(join.GetRoom().GetEnabledCodecs()) > 0,
		"participant sid": strings.HasPrefix(join.GetParticipant().GetSid(), "PA_"),
		"identity":        join.GetParticipant().GetIdentity() == "alice",
		"state joining":   join.GetParticipant().GetState() == livekit.ParticipantInfo_JOINING,
		"permission":      join.GetParticipant().GetPermission().GetCanPublish(),
		"nobody else":     len(join.GetOtherParticipants()) == 0,
		"version":         join.GetServerInfo().GetVersion() == "1.13.5" && join.GetServerInfo().GetProtocol() == 17,
		"old version":     join.GetServerVersion() == "1.13.5", //nolint:staticcheck // old clients read it
		"client offers":   !join.GetSubscriberPrimary(),
		"ping":            join.GetPingInterval() == 5 && join.GetPingTimeout() == 15,
		"sif trailer":     len(join.GetSifTrailer()) > 0,
		"fast publish":    join.GetFastPublish(),
		"video first":     len(join.GetEnabledPublishCodecs()) > 1 && strings.HasPrefix(join.GetEnabledPublishCodecs()[0].GetMime(), "video/"),
		"turn":            len(join.GetIceServers()) == 1 && join.GetIceServers()[0].GetUsername() == "alice",
	} {
		if !ok {
			t.Errorf("join response: wrong %s: %s", what, join)
		}
	}
	if token := c.next().GetRefreshToken(); token == "" {
		t.Error("the second message is not a new token")
	} else if g := mustVerify(t, ts.s, token); g.Identity != "alice" || g.Room != "standup" || time.Until(g.Expires) < 9*time.Minute {
		t.Errorf("refreshed token grants %+v", g)
	}
	answer := c.await("answer").GetAnswer()
	if answer.GetId() != 7 || answer.GetType() != "answer" || !strings.Contains(answer.GetSdp(), "m=application") {
		t.Errorf("answer %s", answer)
	}
	if slices.Contains(c.seen, "trickle") {
		t.Errorf("candidates before the answer: %v", c.seen)
	}
	c.await("trickle")
}

func mustVerify(t *testing.T, s *Server, token string) call.Grant {
	t.Helper()
	c, err := s.verify(token)
	if err != nil {
		t.Fatal(err)
	}
	return c.grant()
}

func TestJoinDual(t *testing.T) {
	ts := newTestServer(t)
	for _, c := range []struct {
		name              string
		token             string
		protocol          string
		subscriberPrimary bool
	}{
		{"a normal participant", ts.token("a", "r"), "16", true},
		{"one that may not subscribe", ts.tokenFor(call.Grant{Identity: "b", Room: "r", CanPublish: true}), "16", false},
		{"an ancient client", ts.token("c", "r"), "2", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := ts.dial("/rtc?sdk=go&protocol=" + c.protocol + "&access_token=" + url.QueryEscape(c.token))
			if got := s.next().GetJoin(); got.GetSubscriberPrimary() != c.subscriberPrimary {
				t.Errorf("subscriber primary %v", got.GetSubscriberPrimary())
			}
			if !c.subscriberPrimary {
				s.send(offerRequest(1, dataOffer))
				if answer := s.await("answer").GetAnswer(); answer.GetId() != 1 {
					t.Errorf("answer id %d", answer.GetId())
				}
				return
			}
			offer := s.await("offer").GetOffer()
			if !strings.Contains(offer.GetSdp(), "m=application") || offer.GetType() != "offer" {
				t.Errorf("offer %s", offer)
			}
		})
	}
}

// TestTextFrames speaks JSON: the server must answer in JSON.
func TestTextFrames(t *testing.T) {
	ts := newTestServer(t)
	c, _ := ts.join("alice", "standup")
	frame, err := protojson.Marshal(pingRequest(42))
	if err != nil {
		t.Fatal(err)
	}
	c.write(websocket.MessageText, frame)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		kind, frame, err := c.conn.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if kind != websocket.MessageText {
			continue // written before the first text frame arrived
		}
		m := &livekit.SignalResponse{}
		if err := protojson.Unmarshal(frame, m); err != nil {
			t.Fatal(err)
		}
		if m.GetPongResp() != nil {
			if m.GetPongResp().GetLastPingTimestamp() != 42 || m.GetPongResp().GetTimestamp() == 0 {
				t.Errorf("pong %s", m)
			}
			break
		}
	}
	// And back: the encoding is that of the last message received.
	c.send(&livekit.SignalRequest{Message: &livekit.SignalRequest_Ping{Ping: 1}}) //nolint:staticcheck // clients send it
	for {
		kind, frame, err := c.conn.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		m := &livekit.SignalResponse{}
		if kind == websocket.MessageBinary && proto.Unmarshal(frame, m) == nil && m.GetPong() > 0 { //nolint:staticcheck // clients wait for it
			return
		}
	}
}

func TestParticipantsSeeEachOther(t *testing.T) {
	ts := newTestServer(t)
	alice, _ := ts.join("alice", "standup")
	bob, join := ts.join("bob", "standup")
	if len(join.GetOtherParticipants()) != 1 || join.GetOtherParticipants()[0].GetIdentity() != "alice" {
		t.Errorf("bob was told of %v", join.GetOtherParticipants())
	}
	sid := alice.awaitUpdate("bob", inState(livekit.ParticipantInfo_JOINED)).GetSid()
	bob.send(leaveRequest())
	if leave := bob.await("leave").GetLeave(); leave.GetReason() != livekit.DisconnectReason_CLIENT_INITIATED || leave.GetAction() != livekit.LeaveRequest_DISCONNECT {
		t.Errorf("echoed leave %s", leave)
	}
	if code := bob.awaitClose(); code != websocket.StatusNormalClosure {
		t.Errorf("close code %d", code)
	}
	gone := alice.awaitUpdate("bob", inState(livekit.ParticipantInfo_DISCONNECTED))
	if gone.GetSid() != sid || gone.GetDisconnectReason() != livekit.DisconnectReason_CLIENT_INITIATED {
		t.Errorf("departure %s", gone)
	}
	eventually(t, "the gate hears", func() bool { return ts.gate.all() == "here alice, here bob, gone bob true" })
}

func TestHiddenParticipant(t *testing.T) {
	ts := newTestServer(t)
	ghost := ts.dial(ts.v1(ts.tokenFor(call.Grant{Identity: "ghost", Room: "r", Hidden: true, CanSubscribe: true}), &livekit.JoinRequest{}))
	ghost.await("join")
	alice, join := ts.join("alice", "r")
	if len(join.GetOtherParticipants()) != 0 {
		t.Errorf("alice sees %v", join.GetOtherParticipants())
	}
	ghost.awaitUpdate("alice", inState(livekit.ParticipantInfo_JOINED))
	ghost.send(leaveRequest())
	ghost.awaitClose()
	ts.join("bob", "r")
	alice.awaitUpdate("bob", func(*livekit.ParticipantInfo) bool { return true })
}

func TestRequestsAndTheirErrors(t *testing.T) {
	ts := newTestServer(t)
	c := ts.dial(ts.v1(ts.tokenFor(call.Grant{
		Identity: "alice", Room: "r", CanPublish: true, CanPublishSources: []call.Source{call.SourceMicrophone}, CanSubscribe: true,
	}), &livekit.JoinRequest{}))
	c.await("join")
	add := func(cid string, source livekit.TrackSource, sid string) *livekit.SignalRequest {
		return &livekit.SignalRequest{Message: &livekit.SignalRequest_AddTrack{AddTrack: &livekit.AddTrackRequest{
			Cid: cid, Type: livekit.TrackType_AUDIO, Source: source, Sid: sid, Encryption: livekit.Encryption_GCM,
		}}}
	}
	c.send(add("one", livekit.TrackSource_MICROPHONE, ""))
	published := c.await("track_published").GetTrackPublished()
	track := published.GetTrack()
	if published.GetCid() != "one" || !strings.HasPrefix(track.GetSid(), "TR_AM") || track.GetEncryption() != livekit.Encryption_GCM || track.GetSource() != livekit.TrackSource_MICROPHONE {
		t.Errorf("published %s", published)
	}
	mute := func(sid string) *livekit.SignalRequest {
		return &livekit.SignalRequest{Message: &livekit.SignalRequest_Mute{Mute: &livekit.MuteTrackRequest{Sid: sid, Muted: true}}}
	}
	c.send(mute(track.GetSid())) // no answer: it is there

	big := strings.Repeat("x", maxMetadata+1)
	for _, test := range []struct {
		name    string
		request *livekit.SignalRequest
		want    livekit.RequestResponse_Reason
		id      uint32
		echo    func(*livekit.RequestResponse) bool
	}{
		{"a source that is not allowed", add("two", livekit.TrackSource_CAMERA, ""), livekit.RequestResponse_NOT_ALLOWED, 0,
			func(r *livekit.RequestResponse) bool { return r.GetAddTrack().GetCid() == "two" }},
		{"a cid in use", add("one", livekit.TrackSource_MICROPHONE, ""), livekit.RequestResponse_QUEUED, 0,
			func(r *livekit.RequestResponse) bool { return r.GetAddTrack().GetCid() == "one" }},
		{"a backup codec of no track", add("three", livekit.TrackSource_MICROPHONE, "TR_unknown"), livekit.RequestResponse_NOT_FOUND, 0,
			func(r *livekit.RequestResponse) bool { return r.GetAddTrack().GetCid() == "three" }},
		{"muting an unknown track", mute("TR_unknown"), livekit.RequestResponse_NOT_FOUND, 0,
			func(r *livekit.RequestResponse) bool { return r.GetMute().GetSid() == "TR_unknown" }},
		{"a candidate that is none", &livekit.SignalRequest{Message: &livekit.SignalRequest_Trickle{Trickle: &livekit.TrickleRequest{CandidateInit: "{"}}},
			livekit.RequestResponse_UNCLASSIFIED_ERROR, 0, func(r *livekit.RequestResponse) bool { return r.GetTrickle() != nil }},
		{"own metadata without the right", &livekit.SignalRequest{Message: &livekit.SignalRequest_UpdateMetadata{UpdateMetadata: &livekit.UpdateParticipantMetadata{Name: "x", RequestId: 5}}},
			livekit.RequestResponse_NOT_ALLOWED, 5, func(r *livekit.RequestResponse) bool { return r.GetUpdateMetadata() != nil }},
		{"own metadata, much of it", &livekit.SignalRequest{Message: &livekit.SignalRequest_UpdateMetadata{UpdateMetadata: &livekit.UpdateParticipantMetadata{Metadata: big, RequestId: 6}}},
			livekit.RequestResponse_NOT_ALLOWED, 6, func(*livekit.RequestResponse) bool { return true }},
		{"features of an unknown track", &livekit.SignalRequest{Message: &livekit.SignalRequest_UpdateAudioTrack{UpdateAudioTrack: &livekit.UpdateLocalAudioTrack{TrackSid: "TR_x"}}},
			livekit.RequestResponse_NOT_FOUND, 0, func(r *livekit.RequestResponse) bool { return r.GetUpdateAudioTrack() != nil }},
		{"size of an unknown track", &livekit.SignalRequest{Message: &livekit.SignalRequest_UpdateVideoTrack{UpdateVideoTrack: &livekit.UpdateLocalVideoTrack{TrackSid: "TR_x"}}},
			livekit.RequestResponse_NOT_FOUND, 0, func(r *livekit.RequestResponse) bool { return r.GetUpdateVideoTrack() != nil }},
		{"a data blob", &livekit.SignalRequest{Message: &livekit.SignalRequest_StoreDataBlobRequest{StoreDataBlobRequest: &livekit.StoreDataBlobRequest{RequestId: 8}}},
			livekit.RequestResponse_NOT_ALLOWED, 8, func(*livekit.RequestResponse) bool { return true }},
		{"reading a data blob", &livekit.SignalRequest{Message: &livekit.SignalRequest_GetDataBlobRequest{GetDataBlobRequest: &livekit.GetDataBlobRequest{RequestId: 9}}},
			livekit.RequestResponse_NOT_ALLOWED, 9, func(*livekit.RequestResponse) bool { return true }},
		{"an offer that is none", offerRequest(3, "v=1\r\nnonsense"), livekit.RequestResponse_UNCLASSIFIED_ERROR, 0,
			func(*livekit.RequestResponse) bool { return true }},
	} {
		c.send(test.request)
		got := c.await("request_response").GetRequestResponse()
		if got.GetReason() != test.want || got.GetRequestId() != test.id || !test.echo(got) {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

// TestHostileOffers sends descriptions that must be refused, or answered, and
// proves after each that the session and the server still work.
func TestHostileOffers(t *testing.T) {
	ts := newTestServer(t)
	c, _ := ts.join("alice", "r")
	section := "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\nc=IN IP4 0.0.0.0\r\na=mid:%d\r\na=recvonly\r\na=rtpmap:111 opus/48000/2\r\n"
	var many strings.Builder
	many.WriteString(dataOffer)
	for i := range 10_000 {
		fmt.Fprintf(&many, section, i+1)
	}
	for name, sdp := range map[string]string{
		"empty":                   "",
		"10,000 sections":         many.String(),
		"an endless line":         dataOffer + "a=x:" + strings.Repeat("y", 1<<20) + "\r\n",
		"NUL in fmtp":             dataOffer + fmt.Sprintf(section, 1) + "a=fmtp:111 a\x00b=1\r\n",
		"a format beyond a byte":  dataOffer + "m=audio 9 UDP/TLS/RTP/SAVPF 4294967296\r\nc=IN IP4 0.0.0.0\r\na=mid:1\r\na=rtpmap:4294967296 opus/48000/2\r\n",
		"a negative port":         dataOffer + "m=audio -1 UDP/TLS/RTP/SAVPF 111\r\nc=IN IP4 0.0.0.0\r\na=mid:1\r\n",
		"the same mid twice":      dataOffer + fmt.Sprintf(section, 0) + fmt.Sprintf(section, 0),
		"the same ssrc twice":     dataOffer + fmt.Sprintf(section, 1) + "a=ssrc:1 cname:a\r\n" + fmt.Sprintf(section, 2) + "a=ssrc:1 cname:a\r\n",
		"no fingerprint":          strings.ReplaceAll(dataOffer, "a=fingerprint", "a=footprint"),
		"an unknown media type":   dataOffer + "m=hologram 9 UDP/TLS/RTP/SAVPF 111\r\nc=IN IP4 0.0.0.0\r\na=mid:1\r\n",
		"sections but no content": "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n" + strings.Repeat("m=audio 9 x 0\r\n", 100),
	} {
		c.send(offerRequest(9, sdp))
		c.send(pingRequest(1))
		for {
			m := c.next() // fails if the socket has closed
			if kindOf(m) == "pong_resp" {
				break
			}
		}
		if _, err := ts.sfu.OpenRoom("r", sfu.RoomOptions{}).Member("alice"); !err {
			t.Fatalf("%s: alice is gone", name)
		}
	}
}

func TestUpdateOwnMetadata(t *testing.T) {
	ts := newTestServer(t)
	c := ts.dial(ts.v1(ts.tokenFor(call.Grant{
		Identity: "alice", Room: "r", CanUpdateOwnMetadata: true, Attrs: map[string]string{"a": "1", "b": "2"},
	}), &livekit.JoinRequest{ParticipantAttributes: map[string]string{"a": "", "c": "3"}, Metadata: "first"}))
	join := c.next().GetJoin().GetParticipant()
	if join.GetMetadata() != "first" || join.GetAttributes()["a"] != "1" || join.GetAttributes()["c"] != "3" {
		t.Errorf("joined as %s: the client must add to the token but not delete from it", join)
	}
	c.await("refresh_token")
	c.send(&livekit.SignalRequest{Message: &livekit.SignalRequest_UpdateMetadata{UpdateMetadata: &livekit.UpdateParticipantMetadata{
		Name: "Alice", Attributes: map[string]string{"b": "", "d": "4"}, RequestId: 11,
	}}})
	var update *livekit.ParticipantInfo
	var response *livekit.RequestResponse
	var token string
	for update == nil || response == nil || token == "" {
		switch m := c.next(); kindOf(m) {
		case "update":
			if p := m.GetUpdate().GetParticipants()[0]; p.GetName() == "Alice" {
				update = p
			}
		case "request_response":
			response = m.GetRequestResponse()
		case "refresh_token":
			token = m.GetRefreshToken()
		}
	}
	if response.GetReason() != livekit.RequestResponse_OK || response.GetRequestId() != 11 {
		t.Errorf("response %s", response)
	}
	if got := update.GetAttributes(); len(got) != 3 || got["b"] != "" || got["d"] != "4" || update.GetMetadata() != "first" {
		t.Errorf("updated to %s", update)
	}
	if g := mustVerify(t, ts.s, token); g.Name != "Alice" || g.Attrs["d"] != "4" {
		t.Errorf("the new token forgot the change: %+v", g)
	}
	big := map[string]string{"big": strings.Repeat("x", maxAttributes)}
	c.send(&livekit.SignalRequest{Message: &livekit.SignalRequest_UpdateMetadata{UpdateMetadata: &livekit.UpdateParticipantMetadata{Attributes: big, RequestId: 12}}})
	if r := c.await("request_response").GetRequestResponse(); r.GetReason() != livekit.RequestResponse_LIMIT_EXCEEDED || r.GetRequestId() != 12 {
		t.Errorf("too many attributes: %s", r)
	}
}

func TestDuplicateIdentity(t *testing.T) {
	ts := newTestServer(t)
	watcher, _ := ts.join("watcher", "r")
	old, first := ts.join("alice", "r")
	_, second := ts.join("alice", "r")
	leave := old.await("leave").GetLeave()
	if leave.GetReason() != livekit.DisconnectReason_DUPLICATE_IDENTITY || leave.GetAction() != livekit.LeaveRequest_DISCONNECT {
		t.Errorf("the old session was told %s", leave)
	}
	old.awaitClose()
	if first.GetParticipant().GetSid() == second.GetParticipant().GetSid() {
		t.Error("the new session has the old SID")
	}
	for {
		for _, p := range watcher.await("update").GetUpdate().GetParticipants() {
			if p.GetSid() == first.GetParticipant().GetSid() && p.GetState() == livekit.ParticipantInfo_DISCONNECTED {
				t.Error("a client that knows takeovers was told that alice left")
			}
			if p.GetSid() == second.GetParticipant().GetSid() {
				if got := ts.gate.all(); got != "here watcher, here alice, here alice" {
					t.Errorf("the gate heard %q: alice was never gone", got)
				}
				return
			}
		}
	}
}

// TestJoiningAtTheSameTime lets an identity join twice at the same moment: one
// session must win the seat and the place in the SFU, not one each.
func TestJoiningAtTheSameTime(t *testing.T) {
	ts := newTestServer(t)
	for range 50 {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if _, bad := ts.s.join(context.Background(), &joining{grant: talker("alice"), single: true, client: jsClient()}); bad != nil {
					t.Error(bad)
				}
			})
		}
		wg.Wait()
		room, _ := ts.sfu.Room("r")
		m, _ := room.Member("alice")
		if p := ts.s.seated("r", "alice"); p.member.Load() != m {
			t.Fatalf("the seat is %s's, the place in the SFU %s's", p.snapshot.Self.SID, m.SID())
		}
	}
}

func TestVanishedClient(t *testing.T) {
	ts := newTestServer(t, quick)
	c, _ := ts.join("alice", "r")
	_ = c.conn.CloseNow()
	eventually(t, "alice is reported gone", func() bool { return ts.gate.all() == "here alice, gone alice false" })
	if ts.s.seated("r", "alice") != nil {
		t.Error("alice still has a seat")
	}
}

// TestComingBackInTime: a client whose media never connected is dropped by the
// SFU at once, but who joins again within the grace was never gone.
func TestComingBackInTime(t *testing.T) {
	ts := newTestServer(t, quick, func(s *Server) { s.cfg.LeaveGrace = patience })
	c, _ := ts.join("alice", "r")
	_ = c.conn.CloseNow()
	eventually(t, "the SFU lets go of alice", func() bool {
		room, ok := ts.sfu.Room("r")
		return !ok || len(room.Participants()) == 0
	})
	ts.join("alice", "r")
	ts.s.evict("r", "alice", sfu.ReasonParticipantRemoved)
	eventually(t, "the gate hears", func() bool { return ts.gate.all() == "here alice, here alice, gone alice true" })
}

// TestFullReconnect: SDKs say leave and join again at once. That is no leave.
func TestFullReconnect(t *testing.T) {
	ts := newTestServer(t, quick, func(s *Server) { s.times.secondThought, s.cfg.LeaveGrace = patience, patience })
	c, _ := ts.join("alice", "r")
	c.send(leaveRequest())
	c.awaitClose()
	c, _ = ts.join("alice", "r")
	c.send(pingRequest(1))
	c.await("pong_resp")
	if got := ts.gate.all(); got != "here alice, here alice" {
		t.Errorf("the gate heard %q", got)
	}
}

func TestSilentClient(t *testing.T) {
	ts := newTestServer(t, quick)
	c, _ := ts.join("alice", "r")
	// Nobody reads, so that not even a ping is answered: as if the cable were cut.
	eventually(t, "alice is reported gone", func() bool { return ts.gate.all() == "here alice, gone alice false" })
	if code := c.awaitClose(); code != websocket.StatusGoingAway {
		t.Errorf("close code %d", code)
	}
}

// TestLeaveAfterMedia: a client that leaves takes down its media and its
// socket at the same time. If the media is missed first, the leave still counts.
func TestLeaveAfterMedia(t *testing.T) {
	ts := newTestServer(t)
	p := ts.idle(talker("alice"))
	k := withSocket(p)
	p.handle(sfu.EventLeave{Reason: sfu.ReasonConnectionTimeout, Action: sfu.ActionResume})
	if p.sock != nil || p.over {
		t.Fatal("not waiting for a resume")
	}
	p.handle(clientLeave{k, livekit.DisconnectReason_CLIENT_INITIATED})
	room, _ := ts.sfu.Room("r")
	eventually(t, "alice is out of the room", func() bool {
		_, there := room.Member("alice")
		return !there
	})
	p.housekeeping(time.Now().Add(ts.s.times.secondThought))
	if got := ts.gate.all(); got != "here alice, gone alice true" {
		t.Errorf("the gate heard %q", got)
	}
	// The leave of an old socket says nothing about a client that has resumed.
	p = ts.idle(talker("bob"))
	k = withSocket(p)
	withSocket(p)
	p.handle(clientLeave{k, livekit.DisconnectReason_CLIENT_INITIATED})
	if p.said {
		t.Error("an old socket's leave ended a resumed session")
	}
}

// TestStall: who could not be heard while the machine slept is not silent.
func TestStall(t *testing.T) {
	ts := newTestServer(t)
	p := ts.idle(talker("alice"))
	k := withSocket(p)
	k.touch()
	grace, tick := ts.s.cfg.LeaveGrace, ts.s.times.tick
	now := k.lastHeard()
	for _, step := range []struct {
		after time.Duration
		quiet bool // the client says nothing until then
		there bool
	}{
		{tick, true, true},
		{2 * grace, true, true}, // a lid was closed
		{tick, true, true},
		{tick, false, true},
	} {
		now = now.Add(step.after)
		if !step.quiet {
			k.heard.Store(now.UnixNano())
		}
		p.housekeeping(now)
		if (p.sock != nil) != step.there || p.over {
			t.Fatalf("after %v: socket %v, over %v", step.after, p.sock != nil, p.over)
		}
	}
	for end := now.Add(grace - tick); now.Before(end); {
		now = now.Add(tick)
		p.housekeeping(now)
	}
	if p.over {
		t.Error("given up before the grace was over")
	}
	k.waiting.Store(true)
	p.housekeeping(now.Add(tick))
	if p.over {
		t.Error("a client whose request waits for us was called silent")
	}
	k.waiting.Store(false)
	p.housekeeping(now.Add(2 * tick))
	if !p.over {
		t.Error("a silent client was kept")
	}
}

// TestQuietClient answers pings and says nothing else: it stays.
func TestQuietClient(t *testing.T) {
	ts := newTestServer(t, quick, func(s *Server) { s.times.wsPing = 50 * time.Millisecond })
	c, _ := ts.join("alice", "r")
	ctx, cancel := context.WithTimeout(context.Background(), 3*ts.s.cfg.LeaveGrace)
	defer cancel()
	for {
		if _, _, err := c.conn.Read(ctx); err != nil {
			break
		}
	}
	if ctx.Err() == nil || strings.Contains(ts.gate.all(), "gone") {
		t.Errorf("a client that answers pings was dropped: %s", ts.gate.all())
	}
}

func TestResumeUnknown(t *testing.T) {
	ts := newTestServer(t)
	for _, path := range []string{
		ts.v1(ts.token("alice", "r"), &livekit.JoinRequest{Reconnect: true, ParticipantSid: "PA_unknown"}),
		"/rtc?protocol=16&reconnect=1&sid=PA_unknown&access_token=" + ts.token("alice", "r"),
	} {
		c := ts.dial(path)
		leave := c.next().GetLeave()
		if leave.GetAction() != livekit.LeaveRequest_RECONNECT || leave.GetReason() != livekit.DisconnectReason_STATE_MISMATCH {
			t.Errorf("first message %s", leave)
		}
		if code := c.awaitClose(); code != websocket.StatusNormalClosure || len(c.seen) != 1 {
			t.Errorf("closed with %d after %v", code, c.seen)
		}
	}
	if got := ts.gate.all(); got != "" {
		t.Errorf("the gate heard %q", got)
	}
}

// TestResumeOverOldSocket resumes while the old socket has not noticed yet
// that it is dead; the SID stays.
func TestResumeOverOldSocket(t *testing.T) {
	ts := newTestServer(t)
	old, join := ts.join("alice", "r")
	sid := join.GetParticipant().GetSid()
	old.await("refresh_token")
	bob, _ := ts.join("bob", "r")
	c := ts.dial(ts.v1(ts.token("alice", "r"), &livekit.JoinRequest{Reconnect: true, ParticipantSid: sid}))
	if got := c.next().GetReconnect(); got.GetServerInfo().GetVersion() == "" {
		t.Errorf("first message %v %s", c.seen, got)
	}
	update := c.next().GetUpdate()
	var ids []string
	for _, p := range update.GetParticipants() {
		ids = append(ids, p.GetIdentity())
	}
	slices.Sort(ids)
	if !slices.Equal(ids, []string{"alice", "bob"}) {
		t.Errorf("told of %v after the resume", ids)
	}
	c.next()
	c.next()
	if want := []string{"reconnect", "update", "room_update", "refresh_token"}; !slices.Equal(c.seen, want) {
		t.Errorf("messages %v, want %v", c.seen, want)
	}
	old.awaitClose()
	if slices.Contains(old.seen, "leave") {
		t.Error("the old socket was told to leave")
	}
	c.send(pingRequest(3))
	c.await("pong_resp")
	c.send(leaveRequest())
	bob.awaitUpdate("alice", inState(livekit.ParticipantInfo_DISCONNECTED))
}

func TestSyncStateMismatch(t *testing.T) {
	ts := newTestServer(t)
	c, _ := ts.join("alice", "r")
	c.send(&livekit.SignalRequest{Message: &livekit.SignalRequest_SyncState{SyncState: &livekit.SyncState{
		PublishTracks: []*livekit.TrackPublishedResponse{{Cid: "x", Track: &livekit.TrackInfo{Sid: "TR_unknown"}}},
	}}})
	leave := c.await("leave").GetLeave()
	if leave.GetAction() != livekit.LeaveRequest_RECONNECT || leave.GetReason() != livekit.DisconnectReason_STATE_MISMATCH {
		t.Errorf("told %s", leave)
	}
}

func TestOldClientsLeaveWithoutAction(t *testing.T) {
	for _, c := range []struct {
		protocol int32
		action   sfu.Action
		want     *livekit.LeaveRequest
	}{
		{12, sfu.ActionReconnect, &livekit.LeaveRequest{CanReconnect: true}},
		{12, sfu.ActionDisconnect, &livekit.LeaveRequest{}},
		{13, sfu.ActionReconnect, &livekit.LeaveRequest{Action: livekit.LeaveRequest_RECONNECT}},
		{13, sfu.ActionResume, &livekit.LeaveRequest{Action: livekit.LeaveRequest_RESUME}},
	} {
		if got := leaveResponse(sfu.ReasonUnknown, c.action, c.protocol).GetLeave(); !proto.Equal(got, c.want) {
			t.Errorf("protocol %d: %s, want %s", c.protocol, got, c.want)
		}
	}
}

// TestOldClientsResumeOnTheirOwn: before protocol 13 any leave makes a client
// join anew; one that shall resume sees nothing but its socket close.
func TestOldClientsResumeOnTheirOwn(t *testing.T) {
	ts := newTestServer(t)
	for protocol, want := range map[int32]int{12: 0, 13: 1} {
		p := ts.idle(talker(call.Identity(fmt.Sprint("client", protocol))))
		p.protocol = protocol
		k := withSocket(p)
		p.release(sfu.EventLeave{Reason: sfu.ReasonConnectionTimeout, Action: sfu.ActionResume})
		if len(k.queue) != want || !k.ended {
			t.Errorf("protocol %d: %d messages, closed: %t", protocol, len(k.queue), k.ended)
		}
	}
}

// TestStatesMissedWhileAway lets states change that clients know by changes
// alone while the client has no socket.
func TestStatesMissedWhileAway(t *testing.T) {
	ts := newTestServer(t)
	p := ts.idle(talker("alice"))
	p.event(sfu.EventSpeakers{Speakers: []sfu.Speaker{{SID: "PA_1", Level: 1, Active: true}, {SID: "PA_2", Level: 1, Active: true}}})
	p.event(sfu.EventSpeakers{Speakers: []sfu.Speaker{{SID: "PA_1"}}})
	p.event(sfu.EventStreamState{Publisher: "PA_1", Track: "TR_1", Paused: true})
	p.event(sfu.EventStreamState{Publisher: "PA_1", Track: "TR_1"})
	p.event(sfu.EventConnectionQuality{SID: "PA_1", Quality: sfu.ConnectionGood})
	p.event(sfu.EventSubscriptionPermission{Publisher: "PA_1", Track: "TR_1", Allowed: true})
	active := map[string]bool{}
	got := map[string]int{}
	for _, m := range p.missed.take() {
		got[kindOf(m)]++
		for _, s := range m.GetSpeakersChanged().GetSpeakers() {
			active[s.GetSid()] = s.GetActive()
		}
		if s := m.GetStreamStateUpdate(); s != nil && s.GetStreamStates()[0].GetState() != livekit.StreamState_ACTIVE {
			t.Errorf("told %s", s)
		}
	}
	if fmt.Sprint(active) != "map[PA_1:false PA_2:true]" {
		t.Errorf("told that these speak: %v", active)
	}
	if fmt.Sprint(got) != "map[connection_quality:1 speakers_changed:2 stream_state_update:1 subscription_permission_update:1]" {
		t.Errorf("told %v", got)
	}
	if len(p.missed.take()) != 0 {
		t.Error("they are told twice")
	}
}

// TestSimulatedSpeaker speaks for no time at all: everybody hears the end, too.
func TestSimulatedSpeaker(t *testing.T) {
	ts := newTestServer(t)
	alice, join := ts.join("alice", "r")
	bob, _ := ts.join("bob", "r")
	alice.send(&livekit.SignalRequest{Message: &livekit.SignalRequest_Simulate{Simulate: &livekit.SimulateScenario{
		Scenario: &livekit.SimulateScenario_SpeakerUpdate{},
	}}})
	for _, c := range []*testClient{alice, bob} {
		for _, active := range []bool{true, false} {
			s := c.await("speakers_changed").GetSpeakersChanged().GetSpeakers()[0]
			if s.GetSid() != join.GetParticipant().GetSid() || s.GetActive() != active {
				t.Errorf("told %s, want active: %t", s, active)
			}
		}
	}
}

func TestEvict(t *testing.T) {
	ts := newTestServer(t)
	alice, _ := ts.join("alice", "r")
	bob, _ := ts.join("bob", "r")
	ts.s.evict("r", "bob", sfu.ReasonParticipantRemoved)
	if room, _ := ts.sfu.Room("r"); len(room.Participants()) != 1 {
		t.Error("bob is still in the SFU after evict has returned")
	}
	if leave := bob.await("leave").GetLeave(); leave.GetReason() != livekit.DisconnectReason_PARTICIPANT_REMOVED || leave.GetAction() != livekit.LeaveRequest_DISCONNECT {
		t.Errorf("bob was told %s", leave)
	}
	bob.awaitClose()
	alice.awaitUpdate("bob", inState(livekit.ParticipantInfo_DISCONNECTED))
	eventually(t, "the gate hears", func() bool { return ts.gate.all() == "here alice, here bob, gone bob true" })
	ts.s.evict("r", "bob", sfu.ReasonParticipantRemoved) // nobody there: nothing happens
	ts.s.evict("nowhere", "bob", sfu.ReasonParticipantRemoved)
}

// TestRevokedParticipantIsRefused: whoever may not come back gets no new token
// and has to go when the old one would be renewed.
func TestRevokedParticipantIsRefused(t *testing.T) {
	ts := newTestServer(t, quick, func(s *Server) {
		s.cfg.LeaveGrace = patience
		s.times.refresh = 200 * time.Millisecond
	})
	c, _ := ts.join("alice", "r")
	for range 3 {
		c.await("refresh_token")
	}
	ts.gate.refuse("alice", fmt.Errorf("banned: %w", call.ErrForbidden))
	if leave := c.await("leave").GetLeave(); leave.GetReason() != livekit.DisconnectReason_PARTICIPANT_REMOVED {
		t.Errorf("told %s", leave)
	}
}

func TestShutdown(t *testing.T) {
	ts := newTestServer(t)
	c, _ := ts.join("alice", "r")
	done := make(chan struct{})
	go func() { defer close(done); ts.stop() }()
	if leave := c.await("leave").GetLeave(); leave.GetReason() != livekit.DisconnectReason_SERVER_SHUTDOWN {
		t.Errorf("told %s", leave)
	}
	c.awaitClose()
	<-done
	if strings.Contains(ts.gate.all(), "gone") {
		t.Error("a restart of the server ended alice's membership")
	}
}

func TestBadFrames(t *testing.T) {
	ts := newTestServer(t)
	for _, c := range []struct {
		name  string
		kind  websocket.MessageType
		frame []byte
		want  websocket.StatusCode
	}{
		{"not protobuf", websocket.MessageBinary, []byte("\xff\xff\xff\xff garbage"), websocket.StatusInvalidFramePayloadData},
		{"not JSON", websocket.MessageText, []byte("{"), websocket.StatusInvalidFramePayloadData},
		{"too long", websocket.MessageBinary, make([]byte, maxFrame+1), websocket.StatusMessageTooBig},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := ts.join("alice", "r")
			s.write(c.kind, c.frame) // zeros deflate to almost nothing: the inflated size counts
			if code := s.awaitClose(); code != c.want {
				t.Errorf("closed with %d, want %d", code, c.want)
			}
		})
	}
}

// TestEmptyDeflateBlocks sends a message that is huge only while deflated:
// thousands of empty blocks inflate to nothing, for ever.
func TestEmptyDeflateBlocks(t *testing.T) {
	m := &meter{limit: 10}
	if err := m.add(10); err != nil {
		t.Error("refused what is within the limit")
	}
	if err := m.add(1); err == nil {
		t.Error("accepted more than the limit")
	}
	m.reset()
	if err := m.add(10); err != nil {
		t.Error("the next message has no limit of its own")
	}
}

func TestFlood(t *testing.T) {
	ts := newTestServer(t)
	c, _ := ts.join("alice", "r")
	frame, err := proto.Marshal(&livekit.SignalRequest{Message: &livekit.SignalRequest_UpdateLayers{}}) //nolint:staticcheck // ignored by the server
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 20 * frameBurst {
			if c.conn.Write(context.Background(), websocket.MessageBinary, frame) != nil {
				return
			}
		}
	}()
	if code := c.awaitClose(); code != websocket.StatusPolicyViolation && code != -1 {
		t.Errorf("closed with %d", code)
	}
	<-done
}

// TestSlowReader proves that a client which does not read loses its socket,
// so that what waits for it is bounded, and that the room goes on.
func TestSlowReader(t *testing.T) {
	ts := newTestServer(t)
	slow, _ := ts.join("slow", "r")
	room, _ := ts.sfu.Room("r")
	noise := make([]byte, maxMetadata/2)
	_, _ = rand.Read(noise)
	metadata := base64.StdEncoding.EncodeToString(noise)[:maxMetadata/2]
	eventually(t, "the slow client is dropped", func() bool {
		room.SetMetadata(metadata + fmt.Sprint(time.Now().UnixNano()))
		_, there := room.Member("slow")
		return !there
	})
	room.SetMetadata("")
	alice, _ := ts.join("alice", "r")
	alice.send(pingRequest(1))
	alice.await("pong_resp")
	_ = slow.conn.CloseNow()
}

func FuzzSignalRequest(f *testing.F) {
	for _, m := range []*livekit.SignalRequest{offerRequest(1, dataOffer), leaveRequest(), pingRequest(5)} {
		binary, _ := proto.Marshal(m)
		f.Add(binary, false)
		text, _ := protojson.Marshal(m)
		f.Add(text, true)
	}
	f.Fuzz(func(t *testing.T, frame []byte, text bool) {
		m, err := decodeSignal(frame, text)
		if err != nil || m.GetMessage() == nil {
			return
		}
		// What can be parsed can be translated.
		if add := m.GetAddTrack(); add != nil {
			addTrackParams(add)
		}
		if s := m.GetSubscription(); s != nil {
			trackSIDs(s.GetTrackSids(), s.GetParticipantTracks())
		}
		if s := m.GetSubscriptionPermission(); s != nil {
			trackPermissions(s.GetTrackPermissions())
		}
	})
}

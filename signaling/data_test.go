package signaling

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/livekit/protocol/livekit"
	"google.golang.org/protobuf/proto"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// idle joins a participant whose loop does not run: the test plays the loop.
func (ts *testServer) idle(g call.Grant) *participant {
	ts.t.Helper()
	p, bad := ts.s.join(context.Background(), &joining{grant: g, single: true, client: jsClient()})
	if bad != nil {
		ts.t.Fatal(bad)
	}
	return p
}

func talker(id call.Identity) call.Grant {
	return call.Grant{Room: "r", Identity: id, CanPublishData: true, CanSubscribe: true}
}

// received returns the data messages that wait for a participant.
func received(t *testing.T, p *participant) []*livekit.DataPacket {
	t.Helper()
	var out []*livekit.DataPacket
	for _, item := range p.inbox.take() {
		if o, ok := item.(outgoing); ok {
			packet := &livekit.DataPacket{}
			if err := proto.Unmarshal(o.payload, packet); err != nil {
				t.Fatal(err)
			}
			out = append(out, packet)
		}
	}
	return out
}

func dataEvent(t *testing.T, kind sfu.DataKind, packet *livekit.DataPacket) sfu.EventData {
	t.Helper()
	payload, err := proto.Marshal(packet)
	if err != nil {
		t.Fatal(err)
	}
	return sfu.EventData{Kind: kind, Payload: payload}
}

func userPacket(text string) *livekit.DataPacket {
	return &livekit.DataPacket{Value: &livekit.DataPacket_User{User: &livekit.UserPacket{Payload: []byte(text)}}}
}

func TestDataGoesToEverybodyElse(t *testing.T) {
	ts := newTestServer(t)
	alice, bob, carol := ts.idle(talker("alice")), ts.idle(talker("bob")), ts.idle(talker("carol"))
	elsewhere := talker("dan")
	elsewhere.Room = "other"
	dan := ts.idle(elsewhere)

	packet := userPacket("hi")
	packet.ParticipantIdentity, packet.ParticipantSid = "bob", "PA_bob" // a lie
	packet.GetUser().ParticipantIdentity = "bob"                        //nolint:staticcheck // old clients set it
	alice.receiveData(dataEvent(t, sfu.DataLossy, packet))
	for _, p := range []*participant{bob, carol} {
		got := received(t, p)
		if len(got) != 1 {
			t.Fatalf("%s received %d messages", p.identity, len(got))
		}
		m, sid := got[0], string(alice.snapshot.Self.SID)
		if m.GetParticipantIdentity() != "alice" || m.GetParticipantSid() != sid || m.GetUser().GetParticipantIdentity() != "alice" || m.GetUser().GetParticipantSid() != sid { //nolint:staticcheck // old clients read them
			t.Errorf("author of the message: %s", m)
		}
		if m.GetKind() != livekit.DataPacket_LOSSY || string(m.GetUser().GetPayload()) != "hi" { //nolint:staticcheck // clients read the kind
			t.Errorf("message %s", m)
		}
	}
	if n := len(received(t, alice)) + len(received(t, dan)); n != 0 {
		t.Errorf("%d messages went back to the sender or into another room", n)
	}
}

func TestDataFilters(t *testing.T) {
	ts := newTestServer(t)
	hidden, agent, mute := talker("hidden"), talker("agent"), talker("mute")
	hidden.Hidden, agent.Kind, mute.CanPublishData = true, call.KindAgent, false
	people := map[string]*participant{
		"alice": ts.idle(talker("alice")), "bob": ts.idle(talker("bob")), "carol": ts.idle(talker("carol")),
		"hidden": ts.idle(hidden), "agent": ts.idle(agent), "mute": ts.idle(mute),
	}
	user := func(u *livekit.UserPacket) *livekit.DataPacket {
		return &livekit.DataPacket{Value: &livekit.DataPacket_User{User: u}}
	}
	toBob := userPacket("for bob")
	toBob.DestinationIdentities = []string{"bob"}
	transcription := &livekit.DataPacket{ParticipantIdentity: "carol", Value: &livekit.DataPacket_Transcription{Transcription: &livekit.Transcription{}}}
	chat := func() *livekit.DataPacket {
		return &livekit.DataPacket{ParticipantIdentity: "carol", Value: &livekit.DataPacket_ChatMessage{ChatMessage: &livekit.ChatMessage{Message: "hi"}}}
	}
	textStream := func() *livekit.DataPacket {
		return &livekit.DataPacket{ParticipantIdentity: "carol", Value: &livekit.DataPacket_StreamHeader{StreamHeader: &livekit.DataStream_Header{
			ContentHeader: &livekit.DataStream_Header_TextHeader{TextHeader: &livekit.DataStream_TextHeader{}},
		}}}
	}
	everybodyBut := func(author string) []string {
		var names []string
		for name := range people {
			if name != author {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		return names
	}
	for _, c := range []struct {
		name   string
		author string
		packet *livekit.DataPacket
		want   []string
		as     string
	}{
		{"to one identity", "alice", toBob, []string{"bob"}, "alice"},
		{"to an identity, the old way", "alice", user(&livekit.UserPacket{DestinationIdentities: []string{"carol"}}), []string{"carol"}, "alice"},      //nolint:staticcheck // old clients
		{"to a SID", "alice", user(&livekit.UserPacket{DestinationSids: []string{string(people["bob"].snapshot.Self.SID)}}), []string{"bob"}, "alice"}, //nolint:staticcheck // old clients
		{"to nobody who is here", "alice", &livekit.DataPacket{DestinationIdentities: []string{"zoe"}, Value: userPacket("x").GetValue()}, nil, ""},
		{"from a hidden participant", "hidden", userPacket("x"), everybodyBut("hidden"), ""},
		{"without the right", "mute", userPacket("x"), nil, ""},
		{"speaker levels are the server's to say", "alice", &livekit.DataPacket{Value: &livekit.DataPacket_Speaker{Speaker: &livekit.ActiveSpeakerUpdate{}}}, nil, ""}, //nolint:staticcheck // an attack
		{"a transcription of somebody else", "alice", proto.CloneOf(transcription), nil, ""},
		{"an agent's transcription of somebody else", "agent", proto.CloneOf(transcription), everybodyBut("agent"), "carol"},
		{"an agent's message for somebody else", "agent", chat(), everybodyBut("agent"), "carol"},
		{"a message for somebody else", "alice", chat(), everybodyBut("alice"), "alice"},
		{"an agent's text for somebody else", "agent", textStream(), everybodyBut("agent"), "carol"},
		{"an agent's file for somebody else", "agent", &livekit.DataPacket{ParticipantIdentity: "carol", Value: &livekit.DataPacket_StreamHeader{StreamHeader: &livekit.DataStream_Header{
			ContentHeader: &livekit.DataStream_Header_ByteHeader{ByteHeader: &livekit.DataStream_ByteHeader{}},
		}}}, everybodyBut("agent"), "agent"},
		{"nothing", "alice", &livekit.DataPacket{}, nil, ""},
		{"an encrypted packet", "alice", &livekit.DataPacket{Value: &livekit.DataPacket_EncryptedPacket{EncryptedPacket: &livekit.EncryptedPacket{}}}, everybodyBut("alice"), "alice"},
	} {
		people[c.author].receiveData(dataEvent(t, sfu.DataReliable, c.packet))
		var got []string
		for name, p := range people {
			for _, m := range received(t, p) {
				got = append(got, name)
				if m.GetParticipantIdentity() != c.as {
					t.Errorf("%s: sent as %q, want %q", c.name, m.GetParticipantIdentity(), c.as)
				}
				if generated := m.GetChatMessage().GetGenerated() || m.GetStreamHeader().GetTextHeader().GetGenerated(); generated != (c.as == "carol" && m.GetTranscription() == nil) {
					t.Errorf("%s: marked as generated: %t", c.name, generated)
				}
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: reached %v, want %v", c.name, got, c.want)
		}
	}
	people["alice"].receiveData(sfu.EventData{Kind: sfu.DataReliable, Payload: []byte("\xff\xff not protobuf")})
	people["alice"].receiveData(sfu.EventData{Kind: sfu.DataLossy, Label: "game", Payload: []byte("raw")})
	got := received(t, people["bob"])
	if len(got) != 1 || string(got[0].GetUser().GetPayload()) != "raw" {
		t.Errorf("a channel of the application's own arrived as %v", got)
	}
}

func TestReliableDataOnce(t *testing.T) {
	ts := newTestServer(t)
	alice, bob := ts.idle(talker("alice")), ts.idle(talker("bob"))
	for _, sequence := range []uint32{1, 2, 2, 1, 3, 0, 0} {
		packet := userPacket(fmt.Sprint(sequence))
		packet.Sequence = sequence
		alice.receiveData(dataEvent(t, sfu.DataReliable, packet))
	}
	var got []uint32
	for _, m := range received(t, bob) {
		got = append(got, m.GetSequence())
	}
	// What has no number can not be told apart, so it is passed on.
	if want := []uint32{1, 2, 3, 0, 0}; !slices.Equal(got, want) {
		t.Errorf("bob received %v, want %v", got, want)
	}
	if last := alice.reconnectResponse().GetReconnect().GetLastMessageSeq(); last != 3 {
		t.Errorf("alice would be told that %d arrived last", last)
	}
}

func TestDataWaitsForTheChannel(t *testing.T) {
	ts := newTestServer(t)
	p := ts.idle(talker("alice"))
	p.sendData(outgoing{sfu.DataLossy, []byte("lost")})
	for range 20 {
		p.sendData(outgoing{sfu.DataReliable, make([]byte, 10<<10)})
	}
	if len(p.data.pending) != 10 || p.data.pendingBytes != maxPendingBytes {
		t.Errorf("%d messages with %d bytes wait", len(p.data.pending), p.data.pendingBytes)
	}
	p.dataReady(sfu.DataLossy)
	if p.data.ready {
		t.Error("the lossy channel opened, and the reliable one was taken for open")
	}
	p.dataReady(sfu.DataReliable)
	if !p.data.ready || p.data.pending != nil || p.data.pendingBytes != 0 {
		t.Error("messages still wait for an open channel")
	}
}

func TestReplay(t *testing.T) {
	ts := newTestServer(t)
	alice, bob, carol := ts.idle(talker("alice")), ts.idle(talker("bob")), ts.idle(talker("carol"))
	say := func(p *participant, sequence uint32, to ...string) {
		packet := userPacket(fmt.Sprintf("%s %d", p.identity, sequence))
		packet.Sequence, packet.DestinationIdentities = sequence, to
		p.receiveData(dataEvent(t, sfu.DataReliable, packet))
	}
	for sequence := range uint32(4) {
		say(alice, sequence+1)
	}
	say(carol, 1)
	say(carol, 2, "alice") // not for bob
	say(bob, 1)            // his own

	bob.data.pending = nil
	bob.replay([]*livekit.DataChannelReceiveState{{PublisherSid: string(alice.snapshot.Self.SID), LastSeq: 2}})
	var got []string
	for _, payload := range bob.data.pending { // his channel is not open: so it waits here
		m := &livekit.DataPacket{}
		if err := proto.Unmarshal(payload, m); err != nil {
			t.Fatal(err)
		}
		got = append(got, string(m.GetUser().GetPayload()))
	}
	if want := []string{"alice 3", "alice 4", "carol 1"}; !slices.Equal(got, want) {
		t.Errorf("replayed %v, want %v", got, want)
	}
}

func TestDataCache(t *testing.T) {
	var c dataCache
	now := time.Now()
	for i := range 30 {
		c.add(cached{payload: make([]byte, 10<<10), at: now.Add(time.Duration(i) * time.Millisecond)})
	}
	if items := c.since(now.Add(time.Second)); len(items) != 10 || c.bytes > cacheBytes {
		t.Errorf("%d messages with %d bytes are kept", len(items), c.bytes)
	}
	if items := c.since(now.Add(time.Minute)); len(items) != 0 || c.bytes != 0 {
		t.Errorf("%d messages with %d bytes are kept for ever", len(items), c.bytes)
	}
}

func TestNonces(t *testing.T) {
	var n nonces
	now := time.Now()
	for i, c := range []struct {
		nonce string
		after time.Duration
		want  bool
	}{{"a", 0, true}, {"a", time.Second, false}, {"b", time.Second, true}, {"", 0, true}, {"", 0, true}, {"a", time.Minute, true}} {
		if got := n.first([]byte(c.nonce), now.Add(c.after)); got != c.want {
			t.Errorf("%d: nonce %q is new: %v", i, c.nonce, got)
		}
	}
	for i := range 3 * maxNonces {
		n.first(fmt.Append(nil, i), now)
	}
	if len(n.seen) > maxNonces {
		t.Errorf("%d nonces are remembered", len(n.seen))
	}
}

func TestInboxIsBounded(t *testing.T) {
	ts := newTestServer(t)
	alice, bob := ts.idle(talker("alice")), ts.idle(talker("bob"))
	for range 3 * maxWaitingData {
		alice.receiveData(dataEvent(t, sfu.DataReliable, userPacket("x")))
		alice.Event(sfu.EventData{Kind: sfu.DataLossy, Payload: []byte("x")})
	}
	if n := len(bob.inbox.take()); n > maxWaitingData+10 {
		t.Errorf("%d messages wait for bob", n)
	}
	if n := len(alice.inbox.take()); n > maxWaitingData+10 {
		t.Errorf("%d messages of alice wait", n)
	}
}

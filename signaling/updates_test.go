package signaling

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/livekit/protocol/livekit"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// withSocket gives an idle participant a socket that nobody reads.
func withSocket(p *participant) *socket {
	p.sock = &socket{queue: make(chan *livekit.SignalResponse, maxQueued), finishing: make(chan struct{}), stop: func() {}}
	p.joinResponse()
	return p.sock
}

// told returns the records of all updates in a socket's queue.
func told(k *socket) (records []*livekit.ParticipantInfo, messages, largest int) {
	for len(k.queue) > 0 {
		if u := (<-k.queue).GetUpdate(); u != nil {
			messages++
			largest = max(largest, proto.Size(u))
			records = append(records, u.GetParticipants()...)
		}
	}
	return records, messages, largest
}

func other(i int, version uint32) sfu.ParticipantInfo {
	return sfu.ParticipantInfo{
		SID: call.ParticipantSID(fmt.Sprintf("PA_%d", i)), Identity: call.Identity(fmt.Sprint(i)),
		Version: version, State: sfu.StateActive,
	}
}

func TestUpdatesOfBigRoomsAreBatched(t *testing.T) {
	ts := newTestServer(t)
	p := ts.idle(talker("alice"))
	k := withSocket(p)

	for i := range 100 {
		p.participantsChanged([]sfu.ParticipantInfo{other(i, 1)})
	}
	records, _, _ := told(k)
	if len(records) == 0 || len(records) > smallRoom+1 {
		t.Errorf("%d of 100 arrivals were told at once", len(records))
	}
	publisher := other(99, 2)
	publisher.Tracks = []sfu.TrackInfo{{SID: "TR_1"}}
	p.participantsChanged([]sfu.ParticipantInfo{publisher})
	if records, _, _ := told(k); len(records) != 1 || records[0].GetVersion() != 2 {
		t.Errorf("a new publisher was told as %v: its track would come before it", records)
	}
	p.participantsChanged([]sfu.ParticipantInfo{other(50, 2)})
	p.flushUpdates(time.Now())
	if records, _, _ := told(k); len(records) != 0 {
		t.Error("the batch did not wait")
	}
	p.flushUpdates(time.Now().Add(p.s.times.updateBatch))
	batch, messages, _ := told(k)
	if messages != 1 || len(batch)+len(records) != 99 {
		t.Errorf("batch of %d in %d messages after %d", len(batch), messages, len(records))
	}
	for _, r := range batch {
		if r.GetSid() == "PA_50" && r.GetVersion() != 2 {
			t.Error("the batch has an old version")
		}
	}
}

func TestUpdatesNeverGoBack(t *testing.T) {
	ts := newTestServer(t)
	p := ts.idle(talker("alice"))
	k := withSocket(p)
	p.participantsChanged([]sfu.ParticipantInfo{other(1, 5)})
	p.participantsChanged([]sfu.ParticipantInfo{other(1, 4)})
	p.participantsChanged([]sfu.ParticipantInfo{other(1, 6)})
	var versions []uint32
	records, _, _ := told(k)
	for _, r := range records {
		versions = append(versions, r.GetVersion())
	}
	if fmt.Sprint(versions) != "[5 6]" {
		t.Errorf("told versions %v", versions)
	}
}

// TestComingBackIsNotUndone has a listener of a big room leave and come back
// before anybody was told. Clients know participants by identity: told in the
// wrong order, the departure would remove who has come back.
func TestComingBackIsNotUndone(t *testing.T) {
	ts := newTestServer(t)
	for name, back := range map[string]sfu.ParticipantInfo{
		"to listen":  {SID: "PA_new", Identity: "50", Version: 1, State: sfu.StateJoined},
		"to publish": {SID: "PA_new", Identity: "50", Version: 3, State: sfu.StateActive, Tracks: []sfu.TrackInfo{{SID: "TR_1"}}},
	} {
		p := ts.idle(talker("alice"))
		k := withSocket(p)
		for i := range 100 {
			p.participantsChanged([]sfu.ParticipantInfo{other(i, 1)})
		}
		p.flushUpdates(time.Now().Add(p.s.times.updateBatch))
		told(k)
		left := other(50, 2)
		left.State, left.Reason = sfu.StateDisconnected, sfu.ReasonClientInitiated
		p.participantsChanged([]sfu.ParticipantInfo{left})
		p.participantsChanged([]sfu.ParticipantInfo{back})
		p.flushUpdates(time.Now().Add(p.s.times.updateBatch))
		records, _, _ := told(k)
		if len(records) != 2 || records[0].GetSid() != "PA_50" || records[1].GetSid() != "PA_new" {
			t.Errorf("%s: told %v", name, records)
		}
	}
}

// TestMissedDeparturesComeFirst is the same for a client that was away.
func TestMissedDeparturesComeFirst(t *testing.T) {
	ts := newTestServer(t)
	p := ts.idle(talker("alice"))
	left := other(1, 5)
	left.State = sfu.StateDisconnected
	p.participantsChanged([]sfu.ParticipantInfo{left}) // no socket
	k := withSocket(p)
	back := other(1, 1)
	back.SID = "PA_new"
	p.sendAllParticipants(sfu.Snapshot{Self: p.snapshot.Self, Others: []sfu.ParticipantInfo{back}})
	records, _, _ := told(k)
	if len(records) != 3 || records[0].GetSid() != "PA_1" || records[2].GetSid() != "PA_new" {
		t.Errorf("told %v", records)
	}
}

func TestUpdatesAreCutInPieces(t *testing.T) {
	ts := newTestServer(t)
	p := ts.idle(talker("alice"))
	k := withSocket(p)
	var many []sfu.ParticipantInfo
	for i := range 20 {
		o := other(i, 1)
		o.Grant.Metadata = strings.Repeat("m", 30<<10)
		many = append(many, o)
	}
	p.sendParticipants(many)
	records, messages, largest := told(k)
	if len(records) != 20 || messages != 5 || largest > maxUpdate+1024 {
		t.Errorf("%d records in %d messages, the largest of %d bytes", len(records), messages, largest)
	}
}

func TestTakeoverIsNoDeparture(t *testing.T) {
	ts := newTestServer(t)
	gone := other(1, 9)
	gone.State, gone.Reason = sfu.StateDisconnected, sfu.ReasonDuplicateIdentity
	for protocol, want := range map[int32]int{11: 1, 12: 0} {
		p := ts.idle(talker(call.Identity(fmt.Sprint("watcher", protocol))))
		p.protocol = protocol
		k := withSocket(p)
		p.participantsChanged([]sfu.ParticipantInfo{gone})
		if records, _, _ := told(k); len(records) != want {
			t.Errorf("protocol %d was told %v", protocol, records)
		}
	}
}

func TestRoomCountersAreRare(t *testing.T) {
	ts := newTestServer(t)
	p := ts.idle(talker("alice"))
	k := withSocket(p)
	room := p.snapshot.Room
	for i := range 10 {
		room.Participants = i
		p.roomChanged(room)
	}
	p.flushRoom(time.Now())
	if len(k.queue) != 0 {
		t.Error("counters were told at once")
	}
	p.flushRoom(time.Now().Add(p.s.times.roomCounters))
	if len(k.queue) != 1 || (<-k.queue).GetRoomUpdate().GetRoom().GetNumParticipants() != 9 {
		t.Error("the latest counters were not told once")
	}
	room.Metadata = "new"
	p.roomChanged(room)
	if len(k.queue) != 1 {
		t.Error("new metadata had to wait")
	}
}

func TestTranslations(t *testing.T) {
	for _, c := range []struct {
		codec string
		kind  sfu.Kind
		want  string
	}{
		{"vp8", sfu.KindVideo, "video/VP8"}, {"h264", sfu.KindVideo, "video/H264"}, {"opus", sfu.KindAudio, "audio/opus"},
		{"video/AV1", sfu.KindVideo, "video/AV1"}, {"", sfu.KindVideo, ""},
	} {
		if got := mimeOf(c.codec, c.kind); got != c.want {
			t.Errorf("%q is %q, want %q", c.codec, got, c.want)
		}
	}
	for _, s := range []call.Source{call.SourceUnknown, call.SourceCamera, call.SourceMicrophone, call.SourceScreenShare, call.SourceScreenShareAudio} {
		if got := source2call(trackSource(s)); got != s {
			t.Errorf("source %q came back as %q", s, got)
		}
	}
	g := call.Grant{CanPublish: true, CanPublishSources: []call.Source{call.SourceScreenShareAudio}, CanSubscribe: true, CanUpdateOwnMetadata: true}
	if back := withPermission(call.Grant{}, permission(g)); fmt.Sprint(back) != fmt.Sprint(g) {
		t.Errorf("permissions %v came back as %v", g, back)
	}
	speakers := speakersResponse([]sfu.Speaker{{SID: "PA_1", Level: 0.3, Active: true}, {SID: "PA_2"}}).GetSpeakersChanged().GetSpeakers()
	if speakers[0].GetLevel() != 0.375 || speakers[1].GetLevel() != 0 || speakers[1].GetActive() {
		t.Errorf("speakers %v", speakers)
	}
	old := &participant{protocol: 10}
	lost := sfu.EventConnectionQuality{Quality: sfu.ConnectionLost}
	if q := old.connectionQuality(lost).GetConnectionQuality().GetUpdates()[0].GetQuality(); q != livekit.ConnectionQuality_POOR {
		t.Errorf("a client that does not know LOST was told %s", q)
	}
}

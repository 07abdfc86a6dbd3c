package signaling

import (
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/livekit/protocol/livekit"
	"google.golang.org/protobuf/proto"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// endOfCandidates is what browsers take for the end; clients parse every
// trickle as JSON, also the final one.
const endOfCandidates = `{"candidate":"","sdpMid":"0","sdpMLineIndex":0}`

// event tells the client what the SFU has to say.
func (p *participant) event(e sfu.Event) {
	switch e := e.(type) {
	case sfu.EventAnswer:
		if p.tcpOnly() {
			e.SDP = withoutUDP(e.SDP)
		}
		p.send(&livekit.SignalResponse{Message: &livekit.SignalResponse_Answer{Answer: description("answer", e.ID, e.SDP, e.MIDToTrack)}})
	case sfu.EventOffer:
		if p.tcpOnly() {
			e.SDP = withoutUDP(e.SDP)
		}
		p.send(&livekit.SignalResponse{Message: &livekit.SignalResponse_Offer{Offer: description("offer", e.ID, e.SDP, e.MIDToTrack)}})
	case sfu.EventCandidate:
		if e.Candidate == "" {
			e.Candidate = endOfCandidates
		}
		if p.tcpOnly() && isUDP(e.Candidate) {
			return
		}
		p.send(&livekit.SignalResponse{Message: &livekit.SignalResponse_Trickle{Trickle: &livekit.TrickleRequest{
			CandidateInit: e.Candidate, Target: livekit.SignalTarget(e.Target), Final: e.Final,
		}}})
	case sfu.EventSectionsRequired:
		p.send(&livekit.SignalResponse{Message: &livekit.SignalResponse_MediaSectionsRequirement{
			MediaSectionsRequirement: &livekit.MediaSectionsRequirement{NumAudios: e.Audio, NumVideos: e.Video},
		}})
	case sfu.EventJoined:
		p.log.Debug("media connected")
	case sfu.EventParticipants:
		p.participantsChanged(e.Participants)
	case sfu.EventRoom:
		p.roomChanged(e.Room)
	case sfu.EventTrackPublished:
		p.send(&livekit.SignalResponse{Message: &livekit.SignalResponse_TrackPublished{TrackPublished: &livekit.TrackPublishedResponse{
			Cid: e.CID, Track: trackInfo(e.Track),
		}}})
	case sfu.EventTrackUnpublished:
		delete(p.qualities, e.SID)
		p.send(&livekit.SignalResponse{Message: &livekit.SignalResponse_TrackUnpublished{
			TrackUnpublished: &livekit.TrackUnpublishedResponse{TrackSid: string(e.SID)},
		}})
		p.retryQueued()
	case sfu.EventTrackSubscribed:
		p.send(&livekit.SignalResponse{Message: &livekit.SignalResponse_TrackSubscribed{
			TrackSubscribed: &livekit.TrackSubscribed{TrackSid: string(e.SID)},
		}})
	case sfu.EventMute:
		p.send(&livekit.SignalResponse{Message: &livekit.SignalResponse_Mute{
			Mute: &livekit.MuteTrackRequest{Sid: string(e.SID), Muted: e.Muted},
		}})
	case sfu.EventSpeakers:
		if p.sock != nil {
			p.send(speakersResponse(e.Speakers))
			break
		}
		for _, speaker := range e.Speakers {
			p.missed.note(missedKey{"speaker", string(speaker.SID)}, speakersResponse([]sfu.Speaker{speaker}))
		}
	case sfu.EventConnectionQuality:
		p.sendState(missedKey{"quality", string(e.SID)}, p.connectionQuality(e))
	case sfu.EventStreamState:
		state := livekit.StreamState_ACTIVE
		if e.Paused {
			state = livekit.StreamState_PAUSED
		}
		p.sendState(missedKey{"stream", string(e.Track)}, &livekit.SignalResponse{Message: &livekit.SignalResponse_StreamStateUpdate{StreamStateUpdate: &livekit.StreamStateUpdate{
			StreamStates: []*livekit.StreamStateInfo{{ParticipantSid: string(e.Publisher), TrackSid: string(e.Track), State: state}},
		}}})
	case sfu.EventSubscribedQuality:
		p.qualities[e.Track] = e
		p.send(qualityResponse(e))
	case sfu.EventSubscriptionPermission:
		p.sendState(missedKey{"permission", string(e.Track)}, &livekit.SignalResponse{Message: &livekit.SignalResponse_SubscriptionPermissionUpdate{
			SubscriptionPermissionUpdate: &livekit.SubscriptionPermissionUpdate{
				ParticipantSid: string(e.Publisher), TrackSid: string(e.Track), Allowed: e.Allowed,
			},
		}})
	case sfu.EventSubscriptionFailed:
		p.send(subscriptionFailed(e))
	case sfu.EventData:
		p.receiveData(e)
	case sfu.EventDataReady:
		p.dataReady(e.Kind)
	case sfu.EventLeave:
		p.release(e)
	}
}

// missedStates are the latest states of what the client knows by changes alone
// and could not be told while it was away: who speaks, whose connection is bad.
type missedStates struct {
	latest map[missedKey]*livekit.SignalResponse
}

type missedKey struct{ kind, of string }

const maxMissed = 4096 // states remembered for a client that is away

func (m *missedStates) note(k missedKey, state *livekit.SignalResponse) {
	if m.latest == nil {
		m.latest = make(map[missedKey]*livekit.SignalResponse)
	}
	if _, known := m.latest[k]; known || len(m.latest) < maxMissed {
		m.latest[k] = state
	}
}

// take returns all, in no order: each is about something else.
func (m *missedStates) take() []*livekit.SignalResponse {
	all := slices.Collect(maps.Values(m.latest))
	m.latest = nil
	return all
}

// sendState sends a state, now or when the client is back.
func (p *participant) sendState(k missedKey, state *livekit.SignalResponse) {
	if p.sock == nil {
		p.missed.note(k, state)
		return
	}
	p.send(state)
}

func description(kind string, id uint32, sdp string, tracks map[string]call.TrackSID) *livekit.SessionDescription {
	d := &livekit.SessionDescription{Type: kind, Id: id, Sdp: sdp, MidToTrackId: make(map[string]string, len(tracks))}
	for mid, sid := range tracks {
		d.MidToTrackId[mid] = string(sid)
	}
	return d
}

// speakersResponse quantises levels to eighths, upwards: finer steps would only
// make messages.
func speakersResponse(speakers []sfu.Speaker) *livekit.SignalResponse {
	changed := &livekit.SpeakersChanged{}
	for _, s := range speakers {
		level := float32(int(s.Level*8+0.999)) / 8
		changed.Speakers = append(changed.Speakers, &livekit.SpeakerInfo{Sid: string(s.SID), Level: min(level, 1), Active: s.Active})
	}
	return &livekit.SignalResponse{Message: &livekit.SignalResponse_SpeakersChanged{SpeakersChanged: changed}}
}

// connectionQuality translates; clients before protocol 11 do not know LOST.
func (p *participant) connectionQuality(e sfu.EventConnectionQuality) *livekit.SignalResponse {
	quality := livekit.ConnectionQuality(e.Quality)
	if quality == livekit.ConnectionQuality_LOST && p.protocol <= 10 {
		quality = livekit.ConnectionQuality_POOR
	}
	return &livekit.SignalResponse{Message: &livekit.SignalResponse_ConnectionQuality{ConnectionQuality: &livekit.ConnectionQualityUpdate{
		Updates: []*livekit.ConnectionQualityInfo{{ParticipantSid: string(e.SID), Quality: quality, Score: e.Score}},
	}}}
}

// qualityResponse fills both forms of a dynacast update: old clients read the
// one without codecs, which speaks of the first.
func qualityResponse(e sfu.EventSubscribedQuality) *livekit.SignalResponse {
	update := &livekit.SubscribedQualityUpdate{TrackSid: string(e.Track)}
	for _, codec := range e.Codecs {
		c := &livekit.SubscribedCodec{Codec: codec.Codec}
		for _, q := range codec.Qualities {
			c.Qualities = append(c.Qualities, &livekit.SubscribedQuality{Quality: livekit.VideoQuality(q.Quality), Enabled: q.Enabled})
		}
		update.SubscribedCodecs = append(update.SubscribedCodecs, c)
	}
	if len(update.SubscribedCodecs) > 0 {
		update.SubscribedQualities = update.SubscribedCodecs[0].Qualities //nolint:staticcheck // old clients read it
	}
	return &livekit.SignalResponse{Message: &livekit.SignalResponse_SubscribedQualityUpdate{SubscribedQualityUpdate: update}}
}

func subscriptionFailed(e sfu.EventSubscriptionFailed) *livekit.SignalResponse {
	why := livekit.SubscriptionError_SE_UNKNOWN
	switch {
	case errors.Is(e.Err, call.ErrNotFound):
		why = livekit.SubscriptionError_SE_TRACK_NOTFOUND
	case errors.Is(e.Err, call.ErrInvalid):
		why = livekit.SubscriptionError_SE_CODEC_UNSUPPORTED
	}
	return &livekit.SignalResponse{Message: &livekit.SignalResponse_SubscriptionResponse{
		SubscriptionResponse: &livekit.SubscriptionResponse{TrackSid: string(e.Track), Err: why},
	}}
}

// leaveResponse tells a client to go. Before protocol 13 there were no actions,
// only whether to come back.
func leaveResponse(why sfu.Reason, action sfu.Action, protocol int32) *livekit.SignalResponse {
	leave := &livekit.LeaveRequest{Reason: livekit.DisconnectReason(why), Action: livekit.LeaveRequest_Action(action)}
	if protocol <= 12 {
		leave.CanReconnect = action != sfu.ActionDisconnect
		leave.Action = livekit.LeaveRequest_DISCONNECT
	}
	return &livekit.SignalResponse{Message: &livekit.SignalResponse_Leave{Leave: leave}}
}

const (
	maxUpdate   = 128 << 10 // bytes of participants in one update
	smallRoom   = 25        // up to here every change is told at once
	maxFarewell = 1000      // departures remembered for a client that is away
)

// updates is what a client knows, and must yet be told, of participants.
type updates struct {
	versions map[call.ParticipantSID]uint32
	waiting  map[call.Identity]sfu.ParticipantInfo // batched changes
	since    time.Time                             // of the first of them
	missed   []sfu.ParticipantInfo                 // departures while the client was away
}

// note records that the client is being told p and reports whether it is news.
func (u *updates) note(p sfu.ParticipantInfo) bool {
	if u.versions == nil {
		u.versions = make(map[call.ParticipantSID]uint32)
	}
	if p.State == sfu.StateDisconnected {
		delete(u.versions, p.SID)
		return true
	}
	if known, ok := u.versions[p.SID]; ok && p.Version <= known {
		return false
	}
	u.versions[p.SID] = p.Version
	return true
}

// participantsChanged tells the client of changes: at once what can change what
// it sees and hears, after a moment the coming and going of mere listeners in
// big rooms.
func (p *participant) participantsChanged(changed []sfu.ParticipantInfo) {
	var now []sfu.ParticipantInfo
	self := false
	for _, info := range changed {
		if info.State == sfu.StateDisconnected && info.Reason == sfu.ReasonDuplicateIdentity && p.protocol > 11 {
			delete(p.updates.versions, info.SID)
			delete(p.updates.waiting, info.Identity)
			continue // the new session takes over the identity
		}
		own := info.SID == p.snapshot.Self.SID
		self = self || own
		if p.sock == nil {
			if info.State == sfu.StateDisconnected && len(p.updates.missed) < maxFarewell {
				p.updates.missed = append(p.updates.missed, info)
			}
			continue
		}
		if earlier, batched := p.updates.waiting[info.Identity]; batched && earlier.SID != info.SID {
			// Clients know participants by identity: told after this, the end
			// of the session before would end this one.
			now = append(now, earlier)
			delete(p.updates.waiting, info.Identity)
		}
		if own || len(info.Tracks) > 0 || len(p.updates.versions) <= smallRoom {
			delete(p.updates.waiting, info.Identity)
			now = append(now, info)
			continue
		}
		if len(p.updates.waiting) == 0 {
			p.updates.since = time.Now()
		}
		if p.updates.waiting == nil {
			p.updates.waiting = make(map[call.Identity]sfu.ParticipantInfo)
		}
		p.updates.waiting[info.Identity] = info
	}
	p.sendParticipants(now)
	if self {
		p.noticeGrant()
		p.retryQueued()
	}
}

// flushUpdates sends batched changes that have waited long enough.
func (p *participant) flushUpdates(now time.Time) {
	if len(p.updates.waiting) == 0 || now.Sub(p.updates.since) < p.s.times.updateBatch {
		return
	}
	batch := make([]sfu.ParticipantInfo, 0, len(p.updates.waiting))
	for _, info := range p.updates.waiting {
		batch = append(batch, info)
	}
	clear(p.updates.waiting)
	p.sendParticipants(batch)
}

// sendParticipants sends what is news, in messages of a bearable size.
func (p *participant) sendParticipants(infos []sfu.ParticipantInfo) {
	update := &livekit.ParticipantUpdate{}
	size := 0
	flush := func() {
		if len(update.Participants) > 0 {
			p.send(&livekit.SignalResponse{Message: &livekit.SignalResponse_Update{Update: update}})
		}
		update, size = &livekit.ParticipantUpdate{}, 0
	}
	for _, info := range infos {
		if !p.updates.note(info) {
			continue
		}
		m := participantInfo(info)
		n := proto.Size(m)
		if size+n > maxUpdate {
			flush()
		}
		update.Participants = append(update.Participants, m)
		size += n
	}
	flush()
}

// sendAllParticipants brings a resumed client up to date.
func (p *participant) sendAllParticipants(snapshot sfu.Snapshot) {
	clear(p.updates.versions)
	clear(p.updates.waiting)
	var all []sfu.ParticipantInfo
	if p.protocol > 8 {
		all = p.updates.missed // first: some of them may have come back
	}
	p.updates.missed = nil
	all = append(all, snapshot.Self)
	p.sendParticipants(append(all, snapshot.Others...))
}

// roomSent is what the client knows of the room.
type roomSent struct {
	room    sfu.RoomInfo
	at      time.Time
	waiting bool // newer counters wait for their time
	latest  sfu.RoomInfo
}

// roomChanged tells the room's metadata at once and its counters now and then.
func (p *participant) roomChanged(room sfu.RoomInfo) {
	p.roomSent.latest, p.roomSent.waiting = room, true
	if room.Metadata != p.roomSent.room.Metadata || room.SID != p.roomSent.room.SID {
		p.sendRoom(room)
	}
}

func (p *participant) flushRoom(now time.Time) {
	if p.roomSent.waiting && now.Sub(p.roomSent.at) >= p.s.times.roomCounters {
		p.sendRoom(p.roomSent.latest)
	}
}

func (p *participant) sendRoom(room sfu.RoomInfo) {
	if p.sock == nil {
		return
	}
	p.roomSent = roomSent{room: room, latest: room, at: time.Now()}
	p.send(&livekit.SignalResponse{Message: &livekit.SignalResponse_RoomUpdate{RoomUpdate: &livekit.RoomUpdate{Room: p.roomInfo(room)}}})
}

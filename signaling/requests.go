package signaling

import (
	"errors"
	"fmt"
	"time"

	"github.com/livekit/protocol/livekit"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

const maxQueuedTracks = 3 // announcements waiting for the same cid

// request does what the client asks for. What it does not know it ignores:
// clients may be newer than this server.
func (p *participant) request(r *livekit.SignalRequest) {
	m := p.member.Load()
	switch r := r.GetMessage().(type) {
	case *livekit.SignalRequest_Offer:
		p.offer(r.Offer)
	case *livekit.SignalRequest_Answer:
		if err := m.Answer(r.Answer.GetId(), r.Answer.GetSdp()); err != nil {
			p.respond(0, err, nil)
		}
	case *livekit.SignalRequest_Trickle:
		if p.tcpOnly() && isUDP(r.Trickle.GetCandidateInit()) {
			return
		}
		if err := m.Candidate(sfu.Target(r.Trickle.GetTarget()), r.Trickle.GetCandidateInit()); err != nil {
			p.respondReason(0, livekit.RequestResponse_UNCLASSIFIED_ERROR, "cannot use the candidate",
				&livekit.RequestResponse{Request: &livekit.RequestResponse_Trickle{Trickle: r.Trickle}})
		}
	case *livekit.SignalRequest_AddTrack:
		p.addTrack(r.AddTrack)
	case *livekit.SignalRequest_Mute:
		if err := m.SetMuted(call.TrackSID(r.Mute.GetSid()), r.Mute.GetMuted()); err != nil {
			p.respond(0, err, &livekit.RequestResponse{Request: &livekit.RequestResponse_Mute{Mute: r.Mute}})
		}
	case *livekit.SignalRequest_Subscription:
		s := r.Subscription
		m.Subscribe(s.GetSubscribe(), trackSIDs(s.GetTrackSids(), s.GetParticipantTracks())...)
	case *livekit.SignalRequest_TrackSetting:
		s := r.TrackSetting
		m.SetTrackSettings(sfu.TrackSettings{
			Disabled: s.GetDisabled(), Quality: sfu.Quality(s.GetQuality()),
			Width: s.GetWidth(), Height: s.GetHeight(), FPS: s.GetFps(), Priority: s.GetPriority(),
		}, trackSIDs(s.GetTrackSids(), nil)...)
	case *livekit.SignalRequest_SubscriptionPermission:
		s := r.SubscriptionPermission
		m.SetSubscriptionPermissions(s.GetAllParticipants(), trackPermissions(s.GetTrackPermissions()))
	case *livekit.SignalRequest_SyncState:
		p.syncState(r.SyncState)
	case *livekit.SignalRequest_Simulate:
		p.simulate(r.Simulate)
	case *livekit.SignalRequest_Ping: //nolint:staticcheck // clients send both pings
		p.send(&livekit.SignalResponse{Message: &livekit.SignalResponse_Pong{Pong: time.Now().UnixMilli()}}) //nolint:staticcheck // and wait for both pongs
	case *livekit.SignalRequest_PingReq:
		p.send(&livekit.SignalResponse{Message: &livekit.SignalResponse_PongResp{PongResp: &livekit.Pong{
			LastPingTimestamp: r.PingReq.GetTimestamp(), Timestamp: time.Now().UnixMilli(),
		}}})
	case *livekit.SignalRequest_UpdateMetadata:
		p.updateMetadata(r.UpdateMetadata)
	case *livekit.SignalRequest_UpdateAudioTrack:
		u := r.UpdateAudioTrack
		var features []int32
		for _, f := range u.GetFeatures() {
			features = append(features, int32(f))
		}
		if err := m.UpdateTrackFeatures(call.TrackSID(u.GetTrackSid()), features); err != nil {
			p.respond(0, err, &livekit.RequestResponse{Request: &livekit.RequestResponse_UpdateAudioTrack{UpdateAudioTrack: u}})
		}
	case *livekit.SignalRequest_UpdateVideoTrack:
		u := r.UpdateVideoTrack
		if err := m.UpdateTrackSize(call.TrackSID(u.GetTrackSid()), u.GetWidth(), u.GetHeight()); err != nil {
			p.respond(0, err, &livekit.RequestResponse{Request: &livekit.RequestResponse_UpdateVideoTrack{UpdateVideoTrack: u}})
		}
	case *livekit.SignalRequest_PublishDataTrackRequest:
		p.respondReason(0, livekit.RequestResponse_NOT_ALLOWED, "data tracks are not supported",
			&livekit.RequestResponse{Request: &livekit.RequestResponse_PublishDataTrack{PublishDataTrack: r.PublishDataTrackRequest}})
	case *livekit.SignalRequest_UnpublishDataTrackRequest:
		p.respondReason(0, livekit.RequestResponse_NOT_FOUND, "no such data track",
			&livekit.RequestResponse{Request: &livekit.RequestResponse_UnpublishDataTrack{UnpublishDataTrack: r.UnpublishDataTrackRequest}})
	case *livekit.SignalRequest_StoreDataBlobRequest:
		p.respondReason(r.StoreDataBlobRequest.GetRequestId(), livekit.RequestResponse_NOT_ALLOWED, "data blobs are off", nil)
	case *livekit.SignalRequest_GetDataBlobRequest:
		p.respondReason(r.GetDataBlobRequest.GetRequestId(), livekit.RequestResponse_NOT_ALLOWED, "data blobs are off", nil)
	}
}

// leaveReason keeps the reasons that a client may give for its own leaving.
func leaveReason(r livekit.DisconnectReason) sfu.Reason {
	switch r {
	case livekit.DisconnectReason_USER_UNAVAILABLE, livekit.DisconnectReason_USER_REJECTED, livekit.DisconnectReason_AGENT_ERROR:
		return sfu.Reason(r)
	}
	return sfu.ReasonClientInitiated
}

func trackPermissions(in []*livekit.TrackPermission) []sfu.TrackPermission {
	var out []sfu.TrackPermission
	for _, t := range in {
		out = append(out, sfu.TrackPermission{
			Identity:  call.Identity(t.GetParticipantIdentity()),
			SID:       call.ParticipantSID(t.GetParticipantSid()),
			AllTracks: t.GetAllTracks(),
			TrackSIDs: trackSIDs(t.GetTrackSids(), nil),
		})
	}
	return out
}

// respond tells the client that a request failed, or how it went if err is nil.
func (p *participant) respond(id uint32, err error, echo *livekit.RequestResponse) {
	e := edgeOf(err)
	p.respondReason(id, e.reason, explain(e.reason), echo)
}

// respondReason answers a request. echo, if not nil, carries the request. The
// Rust SDKs before protocol 10 fail on the message.
func (p *participant) respondReason(id uint32, reason livekit.RequestResponse_Reason, message string, echo *livekit.RequestResponse) {
	if p.joining.client.GetSdk() == livekit.ClientInfo_RUST && p.protocol < 10 {
		return
	}
	if echo == nil {
		echo = &livekit.RequestResponse{}
	}
	echo.RequestId, echo.Reason, echo.Message = id, reason, message
	p.send(&livekit.SignalResponse{Message: &livekit.SignalResponse_RequestResponse{RequestResponse: echo}})
}

// explain says a reason in words; what exactly went wrong is for the log.
func explain(r livekit.RequestResponse_Reason) string {
	switch r {
	case livekit.RequestResponse_NOT_FOUND:
		return "not found"
	case livekit.RequestResponse_NOT_ALLOWED:
		return "does not have permissions"
	case livekit.RequestResponse_UNSUPPORTED_TYPE:
		return "invalid or unsupported"
	case livekit.RequestResponse_QUEUED:
		return "queued until the track in use has ended"
	case livekit.RequestResponse_LIMIT_EXCEEDED:
		return "limit exceeded"
	}
	return "could not be done"
}

func (p *participant) offer(d *livekit.SessionDescription) {
	sdp := d.GetSdp()
	if p.tcpOnly() {
		sdp = withoutUDP(sdp)
	}
	if err := p.member.Load().Offer(d.GetId(), sdp); err != nil {
		p.log.Info("offer refused", "err", err)
		p.respondReason(0, livekit.RequestResponse_UNCLASSIFIED_ERROR, "cannot use the offer", nil)
	}
}

func (p *participant) addTrack(r *livekit.AddTrackRequest) {
	_, err := p.member.Load().AddTrack(addTrackParams(r))
	if err == nil {
		return // EventTrackPublished tells
	}
	p.log.Info("track refused", "source", r.GetSource(), "err", err)
	if errors.Is(err, call.ErrConflict) {
		if len(p.queued) >= maxQueuedTracks {
			err = fmt.Errorf("too many announcements wait: %w", call.ErrUnavailable)
		} else {
			p.queued = append(p.queued, r)
		}
	}
	p.respond(0, err, &livekit.RequestResponse{Request: &livekit.RequestResponse_AddTrack{AddTrack: r}})
}

// retryQueued announces again the tracks whose cid was in use.
func (p *participant) retryQueued() {
	waiting := p.queued
	p.queued = nil
	for _, r := range waiting {
		if _, err := p.member.Load().AddTrack(addTrackParams(r)); errors.Is(err, call.ErrConflict) {
			p.queued = append(p.queued, r)
		} else if err != nil {
			p.respond(0, err, &livekit.RequestResponse{Request: &livekit.RequestResponse_AddTrack{AddTrack: r}})
		}
	}
}

func (p *participant) updateMetadata(u *livekit.UpdateParticipantMetadata) {
	echo := &livekit.RequestResponse{Request: &livekit.RequestResponse_UpdateMetadata{UpdateMetadata: u}}
	m := p.member.Load()
	g := m.Grant()
	switch {
	case !g.CanUpdateOwnMetadata:
		p.respond(u.GetRequestId(), call.ErrForbidden, echo)
		return
	case len(u.GetName()) > maxNameLen, len(u.GetMetadata()) > maxMetadata,
		mergedSize(g.Attrs, u.GetAttributes()) > maxAttributes:
		p.respond(u.GetRequestId(), call.ErrUnavailable, echo)
		return
	}
	if err := m.UpdateSelf(u.GetName(), u.GetMetadata(), u.GetAttributes()); err != nil {
		p.respond(u.GetRequestId(), err, echo)
		return
	}
	if p.protocol > 14 {
		p.respondReason(u.GetRequestId(), livekit.RequestResponse_OK, "", echo)
	}
}

// mergedSize is the size of attributes after an update.
func mergedSize(now, update map[string]string) int {
	n := attributesSize(now)
	for key, value := range update {
		if old, ok := now[key]; ok {
			n -= len(key) + len(old)
		}
		if value != "" {
			n += len(key) + len(value)
		}
	}
	return n
}

// syncState reconciles a resumed client with what the server knows. A client
// that publishes what the server does not know must start over.
func (p *participant) syncState(s *livekit.SyncState) {
	state := sfu.SyncState{
		Subscribe: s.GetSubscription().GetSubscribe(),
		Tracks:    trackSIDs(s.GetSubscription().GetTrackSids(), s.GetSubscription().GetParticipantTracks()),
		Disabled:  trackSIDs(s.GetTrackSidsDisabled(), nil),
	}
	for _, published := range s.GetPublishTracks() {
		state.Published = append(state.Published, call.TrackSID(published.GetTrack().GetSid()))
	}
	if err := p.member.Load().SyncState(state); err != nil {
		p.log.Info("client out of step", "err", err)
		if errors.Is(err, call.ErrConflict) {
			p.reconnect(sfu.ReasonStateMismatch)
		}
		return
	}
	p.replay(s.GetDatachannelReceiveStates())
}

// reconnect makes the client join anew; its seat is kept for it.
func (p *participant) reconnect(why sfu.Reason) {
	p.leave(why, sfu.ActionReconnect)
	p.member.Load().Leave(why)
}

// announceSpeaker tells everybody in the room of one speaker.
func (p *participant) announceSpeaker(speaker sfu.Speaker) {
	for _, to := range p.s.allSeated(p.roomName) {
		to.Event(sfu.EventSpeakers{Speakers: []sfu.Speaker{speaker}})
	}
}

// simulate does what the SDKs' own tests ask for.
func (p *participant) simulate(s *livekit.SimulateScenario) {
	switch s := s.GetScenario().(type) {
	case *livekit.SimulateScenario_SpeakerUpdate:
		p.announceSpeaker(sfu.Speaker{SID: p.snapshot.Self.SID, Level: 0.9, Active: true})
		seconds := min(max(s.SpeakerUpdate, 0), 60)
		time.AfterFunc(time.Duration(seconds)*time.Second, func() { p.announceSpeaker(sfu.Speaker{SID: p.snapshot.Self.SID}) })
	case *livekit.SimulateScenario_NodeFailure:
		// As if this node had died: no leave, no member to resume.
		p.drop = dropNever
		if p.sock != nil {
			p.sock.finish(closeGoingAway, "")
		}
		p.away()
		p.member.Load().Leave(sfu.ReasonConnectionTimeout)
	case *livekit.SimulateScenario_Migration:
		p.leave(sfu.ReasonMigration, sfu.ActionResume)
		p.away()
	case *livekit.SimulateScenario_ServerLeave:
		p.member.Load().Leave(sfu.ReasonServerShutdown)
	case *livekit.SimulateScenario_LeaveRequestFullReconnect:
		p.reconnect(sfu.ReasonUnknown)
	case *livekit.SimulateScenario_DisconnectSignalOnResume:
		p.drop = dropAfterMessages // the client closes its socket itself
	case *livekit.SimulateScenario_DisconnectSignalOnResumeNoMessages:
		p.drop = dropBeforeMessages
	case *livekit.SimulateScenario_SwitchCandidateProtocol:
		p.s.fallBack(p, s.SwitchCandidateProtocol) // the client joins again by itself
	case *livekit.SimulateScenario_SubscriberBandwidth:
		p.log.Debug("simulated bandwidth is not supported", "bps", s.SubscriberBandwidth)
	}
}

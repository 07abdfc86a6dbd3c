package signaling

import (
	"slices"
	"strings"
	"time"

	"github.com/livekit/protocol/livekit"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

const (
	// ServerVersion is the LiveKit server that clients believe to talk to: it
	// switches their features on and off.
	ServerVersion = "1.13.5"
	// ProtocolVersion is the newest LiveKit protocol spoken.
	ProtocolVersion = 17

	pingInterval = 5  // seconds between a client's pings
	pingTimeout  = 15 // seconds without a message after which it resumes
)

func serverInfo() *livekit.ServerInfo {
	return &livekit.ServerInfo{
		Edition:  livekit.ServerInfo_Standard,
		Version:  ServerVersion,
		Protocol: ProtocolVersion,
		NodeId:   "ND_trunkhall",
	}
}

// joinResponse is the first message of a session.
func (p *participant) joinResponse() *livekit.SignalResponse {
	snapshot := p.snapshot
	p.codecs = publishCodecs(snapshot.PublishCodecs)
	mode := p.joining.mode()
	join := &livekit.JoinResponse{
		Room:                 p.roomInfo(snapshot.Room),
		Participant:          participantInfo(snapshot.Self),
		ServerVersion:        ServerVersion,
		ServerInfo:           serverInfo(),
		IceServers:           iceServers(p.s.iceServers(p.identity)),
		SubscriberPrimary:    mode == sfu.ModeSubscriberPrimary,
		ClientConfiguration:  p.clientConfiguration(),
		PingInterval:         pingInterval,
		PingTimeout:          pingTimeout,
		SifTrailer:           p.room.SifTrailer(),
		EnabledPublishCodecs: p.codecs,
		FastPublish:          p.grant.CanPublish && p.fallback == livekit.CandidateProtocol_UDP,
	}
	p.updates.note(snapshot.Self)
	for _, other := range snapshot.Others {
		p.updates.note(other)
		join.OtherParticipants = append(join.OtherParticipants, participantInfo(other))
	}
	p.roomSent = roomSent{room: snapshot.Room, latest: snapshot.Room, at: time.Now()}
	return &livekit.SignalResponse{Message: &livekit.SignalResponse_Join{Join: join}}
}

// reconnectResponse is the first message after a resume.
func (p *participant) reconnectResponse() *livekit.SignalResponse {
	return &livekit.SignalResponse{Message: &livekit.SignalResponse_Reconnect{Reconnect: &livekit.ReconnectResponse{
		IceServers:          iceServers(p.s.iceServers(p.identity)),
		ClientConfiguration: p.clientConfiguration(),
		ServerInfo:          serverInfo(),
		LastMessageSeq:      p.data.lastReceived,
	}}}
}

func (p *participant) roomInfo(r sfu.RoomInfo) *livekit.Room {
	return roomInfo(r, p.codecs)
}

func roomInfo(r sfu.RoomInfo, codecs []*livekit.Codec) *livekit.Room {
	return &livekit.Room{
		Sid:              r.SID,
		Name:             string(r.Name),
		EmptyTimeout:     uint32(r.EmptyTimeout / time.Second),
		DepartureTimeout: uint32(r.LeaveTimeout / time.Second),
		CreationTime:     r.CreatedAt.Unix(),
		CreationTimeMs:   r.CreatedAt.UnixMilli(),
		EnabledCodecs:    codecs,
		Metadata:         r.Metadata,
		NumParticipants:  uint32(r.Participants),
		NumPublishers:    uint32(r.Publishers),
		MaxParticipants:  uint32(r.MaxParticipants),
	}
}

func publishCodecs(mimes []string) []*livekit.Codec {
	codecs := make([]*livekit.Codec, 0, len(mimes))
	for _, mime := range mimes {
		codecs = append(codecs, &livekit.Codec{Mime: mime})
	}
	return codecs
}

func iceServers(servers []call.ICEServer) []*livekit.ICEServer {
	out := make([]*livekit.ICEServer, 0, len(servers))
	for _, s := range servers {
		out = append(out, &livekit.ICEServer{Urls: s.URLs, Username: s.Username, Credential: s.Credential})
	}
	return out
}

func participantInfo(i sfu.ParticipantInfo) *livekit.ParticipantInfo {
	out := &livekit.ParticipantInfo{
		Sid:              string(i.SID),
		Identity:         string(i.Identity),
		Name:             i.Grant.Name,
		Metadata:         i.Grant.Metadata,
		Attributes:       i.Grant.Attrs,
		State:            livekit.ParticipantInfo_State(i.State),
		JoinedAt:         i.JoinedAt.Unix(),
		JoinedAtMs:       i.JoinedAt.UnixMilli(),
		Version:          i.Version,
		Permission:       permission(i.Grant),
		IsPublisher:      len(i.Tracks) > 0,
		Kind:             participantKinds[i.Grant.Kind],
		DisconnectReason: livekit.DisconnectReason(i.Reason),
		ClientProtocol:   i.ClientProtocol,
	}
	for _, t := range i.Tracks {
		out.Tracks = append(out.Tracks, trackInfo(t))
	}
	for _, c := range i.Capabilities {
		out.Capabilities = append(out.Capabilities, livekit.ClientInfo_Capability(c))
	}
	return out
}

var participantKinds = map[call.ParticipantKind]livekit.ParticipantInfo_Kind{
	"":                livekit.ParticipantInfo_STANDARD,
	call.KindStandard: livekit.ParticipantInfo_STANDARD,
	call.KindIngress:  livekit.ParticipantInfo_INGRESS,
	call.KindEgress:   livekit.ParticipantInfo_EGRESS,
	call.KindSIP:      livekit.ParticipantInfo_SIP,
	call.KindAgent:    livekit.ParticipantInfo_AGENT,
}

func permission(g call.Grant) *livekit.ParticipantPermission {
	out := &livekit.ParticipantPermission{
		CanSubscribe:      g.CanSubscribe,
		CanPublish:        g.CanPublish,
		CanPublishData:    g.CanPublishData,
		Hidden:            g.Hidden,
		CanUpdateMetadata: g.CanUpdateOwnMetadata,
	}
	for _, source := range g.CanPublishSources {
		out.CanPublishSources = append(out.CanPublishSources, trackSource(source))
	}
	return out
}

// withPermission returns g with what the permission says.
func withPermission(g call.Grant, perm *livekit.ParticipantPermission) call.Grant {
	g.CanSubscribe = perm.GetCanSubscribe()
	g.CanPublish = perm.GetCanPublish()
	g.CanPublishData = perm.GetCanPublishData()
	g.CanUpdateOwnMetadata = perm.GetCanUpdateMetadata()
	g.Hidden = perm.GetHidden()
	g.CanPublishSources = nil
	for _, source := range perm.GetCanPublishSources() {
		g.CanPublishSources = append(g.CanPublishSources, source2call(source))
	}
	return g
}

func trackSource(s call.Source) livekit.TrackSource {
	return livekit.TrackSource(livekit.TrackSource_value[strings.ToUpper(string(s))])
}

func source2call(s livekit.TrackSource) call.Source {
	return call.Source(strings.ToLower(s.String()))
}

// trackInfo translates a published track. It fills the deprecated fields, too:
// clients in use read them.
//
//nolint:staticcheck // deprecated fields on purpose
func trackInfo(t sfu.TrackInfo) *livekit.TrackInfo {
	out := &livekit.TrackInfo{
		Sid:               string(t.SID),
		Type:              livekit.TrackType(t.Kind),
		Name:              t.Name,
		Muted:             t.Muted,
		Width:             t.Width,
		Height:            t.Height,
		Simulcast:         t.Simulcast,
		DisableDtx:        t.DisableDTX,
		Source:            trackSource(t.Source),
		Layers:            videoLayers(t.Layers),
		MimeType:          t.MimeType,
		Mid:               t.MID,
		Stereo:            t.Stereo,
		DisableRed:        t.DisableRED,
		Encryption:        livekit.Encryption_Type(t.Encryption),
		Stream:            t.Stream,
		BackupCodecPolicy: livekit.BackupCodecPolicy(t.BackupRule),
	}
	for _, c := range t.Codecs {
		info := &livekit.SimulcastCodecInfo{MimeType: c.MimeType, Mid: c.MID, Cid: c.CID, Layers: videoLayers(c.Layers)}
		if t.Kind == sfu.KindVideo {
			info.VideoLayerMode = layerMode(c)
		}
		out.Codecs = append(out.Codecs, info)
	}
	for _, f := range t.Features {
		out.AudioFeatures = append(out.AudioFeatures, livekit.AudioTrackFeature(f))
	}
	return out
}

// layerMode says how a codec's layers travel: each in a stream of its own, or
// as spatial layers of one stream.
func layerMode(c sfu.Codec) livekit.VideoLayer_Mode {
	switch strings.ToLower(c.MimeType) {
	case "video/vp9", "video/av1":
		return livekit.VideoLayer_MULTIPLE_SPATIAL_LAYERS_PER_STREAM
	}
	return livekit.VideoLayer_ONE_SPATIAL_LAYER_PER_STREAM
}

func videoLayers(layers []sfu.Layer) []*livekit.VideoLayer {
	out := make([]*livekit.VideoLayer, 0, len(layers))
	for _, l := range layers {
		out = append(out, &livekit.VideoLayer{
			Quality: livekit.VideoQuality(l.Quality), Width: l.Width, Height: l.Height,
			Bitrate: l.Bitrate, Ssrc: l.SSRC, SpatialLayer: l.Spatial, Rid: l.RID,
		})
	}
	return out
}

func sfuLayers(layers []*livekit.VideoLayer) []sfu.Layer {
	out := make([]sfu.Layer, 0, len(layers))
	for _, l := range layers {
		out = append(out, sfu.Layer{
			Quality: sfu.Quality(l.GetQuality()), Width: l.GetWidth(), Height: l.GetHeight(),
			Bitrate: l.GetBitrate(), SSRC: l.GetSsrc(), Spatial: l.GetSpatialLayer(), RID: l.GetRid(),
		})
	}
	return out
}

// addTrackParams translates the announcement of a track.
//
//nolint:staticcheck // old clients set the deprecated fields
func addTrackParams(r *livekit.AddTrackRequest) sfu.AddTrack {
	features := r.GetAudioFeatures()
	a := sfu.AddTrack{
		SID:        call.TrackSID(r.GetSid()),
		CID:        r.GetCid(),
		Kind:       sfu.Kind(r.GetType()),
		Source:     source2call(r.GetSource()),
		Name:       r.GetName(),
		Stream:     r.GetStream(),
		Muted:      r.GetMuted(),
		Width:      r.GetWidth(),
		Height:     r.GetHeight(),
		DisableDTX: r.GetDisableDtx() || slices.Contains(features, livekit.AudioTrackFeature_TF_NO_DTX),
		DisableRED: r.GetDisableRed(),
		Stereo:     r.GetStereo() || slices.Contains(features, livekit.AudioTrackFeature_TF_STEREO),
		Encryption: sfu.Encryption(r.GetEncryption()),
		Layers:     sfuLayers(r.GetLayers()),
		BackupRule: int32(r.GetBackupCodecPolicy()),
	}
	for _, f := range features {
		a.Features = append(a.Features, int32(f))
	}
	for _, c := range r.GetSimulcastCodecs() {
		a.Codecs = append(a.Codecs, sfu.Codec{
			MimeType: mimeOf(c.GetCodec(), a.Kind),
			CID:      c.GetCid(),
			Layers:   sfuLayers(c.GetLayers()),
		})
	}
	return a
}

// mimeOf completes a codec's short name ("vp8") to a MIME type.
func mimeOf(codec string, kind sfu.Kind) string {
	if codec == "" || strings.Contains(codec, "/") {
		return codec
	}
	if kind == sfu.KindAudio {
		return "audio/" + strings.ToLower(codec)
	}
	return "video/" + strings.ToUpper(codec)
}

func capabilities(c *livekit.ClientInfo) []int32 {
	var out []int32
	for _, capability := range c.GetCapabilities() {
		out = append(out, int32(capability))
	}
	return out
}

func clientInfo(c *livekit.ClientInfo) sfu.ClientInfo {
	return sfu.ClientInfo{
		SDK:      strings.ToLower(c.GetSdk().String()),
		Browser:  strings.ToLower(c.GetBrowser()),
		OS:       strings.ToLower(c.GetOs()),
		Protocol: int(c.GetProtocol()),
	}
}

func trackSIDs(sids []string, more []*livekit.ParticipantTracks) []call.TrackSID {
	var out []call.TrackSID
	for _, sid := range sids {
		out = append(out, call.TrackSID(sid))
	}
	for _, tracks := range more {
		for _, sid := range tracks.GetTrackSids() {
			out = append(out, call.TrackSID(sid))
		}
	}
	return out
}

package signaling

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/livekit/protocol/livekit"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// roomService lists the methods of LiveKit's RoomService that this server has.
func (s *Server) roomService() map[string]twirpMethod {
	return map[string]twirpMethod{
		"livekit.RoomService/CreateRoom":          method(s.createRoom),
		"livekit.RoomService/ListRooms":           method(s.listRooms),
		"livekit.RoomService/DeleteRoom":          method(s.deleteRoom),
		"livekit.RoomService/ListParticipants":    method(s.listParticipants),
		"livekit.RoomService/GetParticipant":      method(s.getParticipant),
		"livekit.RoomService/RemoveParticipant":   method(s.removeParticipant),
		"livekit.RoomService/MutePublishedTrack":  method(s.mutePublishedTrack),
		"livekit.RoomService/UpdateParticipant":   method(s.updateParticipant),
		"livekit.RoomService/UpdateSubscriptions": method(s.updateSubscriptions),
		"livekit.RoomService/SendData":            method(s.sendDataMessage),
		"livekit.RoomService/UpdateRoomMetadata":  method(s.updateRoomMetadata),
		"livekit.RoomService/PerformRpc":          method(s.performRPC),
	}
}

var errDenied = &twirpError{code: twirpUnauthenticated, text: "permissions denied"}

// mayCreate and its siblings check the caller's grant. LiveKit answers a wrong
// grant like a missing token, with "unauthenticated".
func mayCreate(c *claims) error {
	if !c.Video.RoomCreate {
		return errDenied
	}
	return nil
}

func mayAdminister(c *claims, room string) error {
	if !c.Video.RoomAdmin || room == "" || c.Video.Room != room {
		return errDenied
	}
	return nil
}

func (s *Server) createRoom(_ context.Context, c *claims, r *livekit.CreateRoomRequest) (*livekit.Room, error) {
	if err := mayCreate(c); err != nil {
		return nil, err
	}
	switch {
	case r.GetName() == "":
		return nil, &twirpError{code: twirpInvalidArgument, text: "no room name"}
	case len(r.GetName()) > maxNameLen:
		return nil, &twirpError{code: twirpInvalidArgument, text: "room name length exceeds limits"}
	case len(r.GetMetadata()) > maxMetadata:
		return nil, &twirpError{code: twirpInvalidArgument, text: "metadata size exceeds limits"}
	}
	room := s.deps.SFU.OpenRoom(call.RoomName(r.GetName()), s.roomOptions(&livekit.RoomConfiguration{
		EmptyTimeout:     r.GetEmptyTimeout(),
		DepartureTimeout: r.GetDepartureTimeout(),
		MaxParticipants:  r.GetMaxParticipants(),
		Metadata:         r.GetMetadata(),
	}))
	// A room that was there already gets the new settings.
	if err := room.Configure(sfu.RoomOptions{
		EmptyTimeout:    time.Duration(r.GetEmptyTimeout()) * time.Second,
		LeaveTimeout:    time.Duration(r.GetDepartureTimeout()) * time.Second,
		MaxParticipants: int(r.GetMaxParticipants()),
		Metadata:        r.GetMetadata(),
	}); err != nil {
		return nil, fmt.Errorf("create room: %w", err)
	}
	return roomInfo(room.Info(), nil), nil
}

func (s *Server) listRooms(_ context.Context, c *claims, r *livekit.ListRoomsRequest) (*livekit.ListRoomsResponse, error) {
	if !c.Video.RoomList {
		return nil, errDenied
	}
	out := &livekit.ListRoomsResponse{}
	for _, info := range s.deps.SFU.Rooms() {
		if len(r.GetNames()) == 0 || slices.Contains(r.GetNames(), string(info.Name)) {
			out.Rooms = append(out.Rooms, roomInfo(info, nil))
		}
	}
	return out, nil
}

func (s *Server) deleteRoom(_ context.Context, c *claims, r *livekit.DeleteRoomRequest) (*livekit.DeleteRoomResponse, error) {
	if err := mayCreate(c); err != nil {
		return nil, err
	}
	if _, err := s.roomNamed(r.GetRoom()); err != nil {
		return nil, err
	}
	s.deps.SFU.DeleteRoom(call.RoomName(r.GetRoom()), sfu.ReasonRoomDeleted)
	return &livekit.DeleteRoomResponse{}, nil
}

func (s *Server) listParticipants(_ context.Context, c *claims, r *livekit.ListParticipantsRequest) (*livekit.ListParticipantsResponse, error) {
	if err := mayAdminister(c, r.GetRoom()); err != nil {
		return nil, err
	}
	out := &livekit.ListParticipantsResponse{}
	room, ok := s.deps.SFU.Room(call.RoomName(r.GetRoom()))
	if !ok {
		return out, nil // as LiveKit: nobody is in a room that does not exist
	}
	for _, info := range room.Participants() {
		out.Participants = append(out.Participants, participantInfo(info))
	}
	return out, nil
}

func (s *Server) getParticipant(_ context.Context, c *claims, r *livekit.RoomParticipantIdentity) (*livekit.ParticipantInfo, error) {
	m, err := s.memberNamed(c, r.GetRoom(), r.GetIdentity())
	if err != nil {
		return nil, err
	}
	return participantInfo(m.Info()), nil
}

// removeParticipant ends a session. Beside a homeserver the participant's tokens
// die with it: those that became valid before revoke_token_ts or, without one,
// by now. Without a homeserver nothing keeps track of tokens.
func (s *Server) removeParticipant(ctx context.Context, c *claims, r *livekit.RoomParticipantIdentity) (*livekit.RemoveParticipantResponse, error) {
	room, id, ts := call.RoomName(r.GetRoom()), call.Identity(r.GetIdentity()), r.GetRevokeTokenTs()
	if err := mayAdminister(c, r.GetRoom()); err != nil {
		return nil, err
	}
	if _, err := s.memberNamed(c, r.GetRoom(), r.GetIdentity()); err != nil && ts == 0 {
		return nil, err // with a time, it is also about somebody who is not here just now
	}
	floor := nextSecond(time.Now())
	if ts != 0 {
		floor = time.Unix(ts, 0)
	}
	switch {
	case s.rtc != nil && time.Until(floor) > floorKept:
		return nil, &twirpError{code: twirpInvalidArgument, text: "revoke_token_ts is too far in the future"}
	case s.rtc != nil:
		if err := s.rtc.revokeBefore(ctx, room, id, floor); err != nil {
			return nil, fmt.Errorf("revoke tokens: %w", err)
		}
	case ts != 0:
		return nil, &twirpError{code: twirpUnimplemented, text: "this server keeps no track of tokens"}
	default:
		s.evict(room, id, sfu.ReasonParticipantRemoved)
	}
	return &livekit.RemoveParticipantResponse{}, nil
}

// mutePublishedTrack mutes a track. Unmuting from afar is refused: nobody
// opens another person's microphone.
func (s *Server) mutePublishedTrack(_ context.Context, c *claims, r *livekit.MuteRoomTrackRequest) (*livekit.MuteRoomTrackResponse, error) {
	m, err := s.memberNamed(c, r.GetRoom(), r.GetIdentity())
	if err != nil {
		return nil, err
	}
	sid := call.TrackSID(r.GetTrackSid())
	track, ok := trackOf(m, sid)
	if !ok {
		return nil, &twirpError{code: twirpNotFound, text: "track not found"}
	}
	if track.Muted && !r.GetMuted() {
		return nil, &twirpError{code: twirpFailedPrecondition, text: "remote unmute is not enabled"}
	}
	if err := m.MuteByServer(sid, r.GetMuted()); err != nil {
		return nil, fmt.Errorf("mute track: %w", err)
	}
	track, _ = trackOf(m, sid)
	track.Muted = r.GetMuted()
	return &livekit.MuteRoomTrackResponse{Track: trackInfo(track)}, nil
}

func trackOf(m *sfu.Member, sid call.TrackSID) (sfu.TrackInfo, bool) {
	for _, t := range m.Info().Tracks {
		if t.SID == sid {
			return t, true
		}
	}
	return sfu.TrackInfo{}, false
}

func (s *Server) updateParticipant(_ context.Context, c *claims, r *livekit.UpdateParticipantRequest) (*livekit.ParticipantInfo, error) {
	m, err := s.memberNamed(c, r.GetRoom(), r.GetIdentity())
	if err != nil {
		return nil, err
	}
	g := m.Grant()
	if len(r.GetName()) > maxNameLen || len(r.GetMetadata()) > maxMetadata || mergedSize(g.Attrs, r.GetAttributes()) > maxAttributes {
		return nil, &twirpError{code: twirpInvalidArgument, text: "name, metadata or attributes exceed limits"}
	}
	if err := m.UpdateSelf(r.GetName(), r.GetMetadata(), r.GetAttributes()); err != nil {
		return nil, fmt.Errorf("update participant: %w", err)
	}
	if r.GetPermission() != nil {
		g = withPermission(m.Grant(), r.GetPermission())
		m.SetGrant(g)
	}
	info := m.Info()
	info.Grant = m.Grant()
	if r.GetPermission() != nil {
		info.Grant = g
	}
	return participantInfo(info), nil
}

func (s *Server) updateSubscriptions(_ context.Context, c *claims, r *livekit.UpdateSubscriptionsRequest) (*livekit.UpdateSubscriptionsResponse, error) {
	m, err := s.memberNamed(c, r.GetRoom(), r.GetIdentity())
	if err != nil {
		return nil, err
	}
	m.Subscribe(r.GetSubscribe(), trackSIDs(r.GetTrackSids(), r.GetParticipantTracks())...)
	return &livekit.UpdateSubscriptionsResponse{}, nil
}

// sendDataMessage sends data from outside. A nonce makes a message that the
// caller sends again count once.
//
//nolint:staticcheck // old clients read the deprecated fields
func (s *Server) sendDataMessage(_ context.Context, c *claims, r *livekit.SendDataRequest) (*livekit.SendDataResponse, error) {
	if err := mayAdminister(c, r.GetRoom()); err != nil {
		return nil, err
	}
	if _, err := s.roomNamed(r.GetRoom()); err != nil {
		return nil, err
	}
	switch {
	case r.GetKind() != livekit.DataPacket_RELIABLE && r.GetKind() != livekit.DataPacket_LOSSY:
		return nil, &twirpError{code: twirpInvalidArgument, text: "unknown kind of data"}
	case len(r.GetData()) > maxSentData:
		return nil, &twirpError{code: twirpInvalidArgument, text: "data size exceeds limits"}
	}
	h := s.hall(call.RoomName(r.GetRoom()))
	if h == nil || !h.nonces.first(r.GetNonce(), time.Now()) {
		return &livekit.SendDataResponse{}, nil
	}
	packet := &livekit.DataPacket{
		Kind:                  r.GetKind(),
		DestinationIdentities: r.GetDestinationIdentities(),
		Value: &livekit.DataPacket_User{User: &livekit.UserPacket{
			Payload:               r.GetData(),
			DestinationSids:       r.GetDestinationSids(),
			DestinationIdentities: r.GetDestinationIdentities(),
			Topic:                 r.Topic,
			Nonce:                 r.GetNonce(),
		}},
	}
	s.distribute(call.RoomName(r.GetRoom()), nil, packet, sfu.DataKind(r.GetKind()))
	return &livekit.SendDataResponse{}, nil
}

func (s *Server) updateRoomMetadata(_ context.Context, c *claims, r *livekit.UpdateRoomMetadataRequest) (*livekit.Room, error) {
	if err := mayAdminister(c, r.GetRoom()); err != nil {
		return nil, err
	}
	room, err := s.roomNamed(r.GetRoom())
	if err != nil {
		return nil, err
	}
	if len(r.GetMetadata()) > maxMetadata {
		return nil, &twirpError{code: twirpInvalidArgument, text: "metadata size exceeds limits"}
	}
	room.SetMetadata(r.GetMetadata())
	info := room.Info()
	info.Metadata = r.GetMetadata()
	return roomInfo(info, nil), nil
}

func (s *Server) roomNamed(name string) (*sfu.Room, error) {
	room, ok := s.deps.SFU.Room(call.RoomName(name))
	if !ok {
		return nil, &twirpError{code: twirpNotFound, text: "requested room does not exist"}
	}
	return room, nil
}

// memberNamed returns a participant to a caller that administers its room.
func (s *Server) memberNamed(c *claims, room, identity string) (*sfu.Member, error) {
	if err := mayAdminister(c, room); err != nil {
		return nil, err
	}
	r, ok := s.deps.SFU.Room(call.RoomName(room))
	if !ok {
		return nil, &twirpError{code: twirpNotFound, text: "participant does not exist"}
	}
	m, ok := r.Member(call.Identity(identity))
	if !ok {
		return nil, &twirpError{code: twirpNotFound, text: "participant does not exist"}
	}
	return m, nil
}

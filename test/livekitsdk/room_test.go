package livekitsdk

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/livekit/protocol/livekit"
	lksdk "github.com/livekit/server-sdk-go/v2"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
	"github.com/twitchtv/twirp"
)

func TestDataBothWays(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			s := start(t)
			got := make(chan string, 100)
			listen := func(who string) *lksdk.RoomCallback {
				return &lksdk.RoomCallback{ParticipantCallback: lksdk.ParticipantCallback{
					OnDataPacket: func(data lksdk.DataPacket, params lksdk.DataReceiveParams) {
						if u, ok := data.(*lksdk.UserDataPacket); ok {
							got <- who + " got " + string(u.Payload) + " of " + params.SenderIdentity
						}
					},
				}}
			}
			a := join(t, s, "data", "alice", listen("alice"), mode.opts...)
			b := join(t, s, "data", "bob", listen("bob"), mode.opts...)
			eventually(t, "both see each other", func() bool {
				return a.GetParticipantByIdentity("bob") != nil && b.GetParticipantByIdentity("alice") != nil
			})
			for _, m := range []struct {
				from *lksdk.Room
				text string
				want string
			}{
				{a, "hello", "bob got hello of alice"},
				{b, "hello back", "alice got hello back of bob"},
			} {
				if err := m.from.LocalParticipant.PublishDataPacket(lksdk.UserData([]byte(m.text)), lksdk.WithDataPublishReliable(true)); err != nil {
					t.Fatal(err)
				}
				select {
				case text := <-got:
					if text != m.want {
						t.Fatalf("%s, want: %s", text, m.want)
					}
				case <-time.After(patience):
					t.Fatalf("did not happen: %s", m.want)
				}
			}
		})
	}
}

// The room service: who is there, muting and removing.
func TestRoomService(t *testing.T) {
	s := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var reason atomic.Value
	var muted atomic.Bool
	room := join(t, s, "meeting", "alice", &lksdk.RoomCallback{
		OnDisconnectedWithReason: func(r lksdk.DisconnectionReason) { reason.Store(r) },
		ParticipantCallback: lksdk.ParticipantCallback{
			OnTrackMuted: func(lksdk.TrackPublication, lksdk.Participant) { muted.Store(true) },
		},
	})
	track, err := lksdk.NewLocalTrack(webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2})
	if err != nil {
		t.Fatal(err)
	}
	pub, err := room.LocalParticipant.PublishTrack(track, &lksdk.TrackPublicationOptions{Source: livekit.TrackSource_MICROPHONE})
	if err != nil {
		t.Fatal(err)
	}

	service := lksdk.NewRoomServiceClient(strings.Replace(s.LiveKitURL, "ws", "http", 1), s.APIKey, s.APISecret)
	rooms, err := service.ListRooms(ctx, &livekit.ListRoomsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(rooms.Rooms) != 1 || rooms.Rooms[0].Name != "meeting" {
		t.Fatalf("the rooms are %v", rooms.Rooms)
	}
	// A track counts once its media flows.
	stop := make(chan struct{})
	var sending sync.WaitGroup
	defer sending.Wait()
	defer close(stop)
	sending.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for n := uint32(0); ; n++ {
			select {
			case <-tick.C:
			case <-stop:
				return
			}
			_ = track.WriteRTP(&rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: uint16(n), Timestamp: n * 960}, Payload: audioPayload(n)}, nil)
		}
	})
	eventually(t, "alice is listed with her track", func() bool {
		people, err := service.ListParticipants(ctx, &livekit.ListParticipantsRequest{Room: "meeting"})
		return err == nil && len(people.Participants) == 1 && people.Participants[0].Identity == "alice" && len(people.Participants[0].Tracks) == 1
	})
	if _, err := service.GetParticipant(ctx, &livekit.RoomParticipantIdentity{Room: "meeting", Identity: "nobody"}); code(err) != twirp.NotFound {
		t.Errorf("asking for nobody: got %v, want not_found", err)
	}
	if _, err := service.MutePublishedTrack(ctx, &livekit.MuteRoomTrackRequest{Room: "meeting", Identity: "alice", TrackSid: pub.SID(), Muted: true}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "alice is muted", func() bool { return muted.Load() && pub.IsMuted() })

	stranger := lksdk.NewRoomServiceClient(strings.Replace(s.LiveKitURL, "ws", "http", 1), s.APIKey, strings.Repeat("x", 40))
	if _, err := stranger.ListRooms(ctx, &livekit.ListRoomsRequest{}); code(err) != twirp.Unauthenticated {
		t.Errorf("a wrong secret: got %v, want unauthenticated", err)
	}
	if _, err := service.RemoveParticipant(ctx, &livekit.RoomParticipantIdentity{Room: "meeting", Identity: "alice"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "alice is told that she was removed", func() bool { return reason.Load() != nil })
	if got := reason.Load(); got != lksdk.ParticipantRemoved {
		t.Errorf("alice was disconnected because of %v", got)
	}
}

func code(err error) twirp.ErrorCode {
	var e twirp.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return ""
}

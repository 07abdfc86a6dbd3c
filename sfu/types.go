// Package sfu is Trunkhall's selective forwarding unit: transports, rooms,
// members, tracks and the forwarding between them. It has never heard of
// Matrix, of LiveKit protobufs or of SIP: package signaling translates.
package sfu

import (
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// A Mode says how many peer connections a member has and who offers.
type Mode int

const (
	// ModeSingle is one peer connection for both directions. The client always
	// offers; the server asks for more media sections by EventSectionsRequired.
	ModeSingle Mode = iota
	// ModeSubscriberPrimary is two peer connections; the server offers the
	// subscriber one right after the join, downstream data channels ride on it.
	ModeSubscriberPrimary
	// ModePublisherPrimary is two peer connections for members that may not
	// subscribe; downstream data rides on the publisher's.
	ModePublisherPrimary
)

// A Target names one of a member's peer connections. In ModeSingle there is
// only the publisher's.
type Target int

// The targets, with the numbers of the LiveKit SignalTarget.
const (
	TargetPublisher  Target = 0
	TargetSubscriber Target = 1
)

// A Kind is a track's kind of media.
type Kind int

// The kinds of media, with the numbers of the LiveKit TrackType.
const (
	KindAudio Kind = 0
	KindVideo Kind = 1
)

// A Quality is a simulcast or spatial layer as clients name it.
type Quality int

// The qualities, with the numbers of the LiveKit VideoQuality.
const (
	QualityLow    Quality = 0
	QualityMedium Quality = 1
	QualityHigh   Quality = 2
	QualityOff    Quality = 3
)

// Encryption is what the publisher said of its frames. It is carried, never
// interpreted; numbers of the LiveKit Encryption.Type.
type Encryption int

// The kinds of end-to-end encryption.
const (
	EncryptionNone   Encryption = 0
	EncryptionGCM    Encryption = 1
	EncryptionCustom Encryption = 2
)

// A Layer is one encoding of a video track.
type Layer struct {
	Quality Quality
	Width   uint32 // pixels
	Height  uint32
	Bitrate uint32 // bit/s as the publisher announced it
	SSRC    uint32 // 0 until the layer is negotiated
	RID     string // "q", "h", "f", or empty without simulcast
	Spatial int32
}

// A Codec is one codec a track is published with. The first is the primary, a
// second one is the publisher's backup codec.
type Codec struct {
	MimeType string // "video/VP8"; filled with the real one once negotiated
	CID      string // the client's track ID for this codec
	MID      string
	Layers   []Layer
}

// A TrackInfo describes a published track. It is a value: a copy never changes.
type TrackInfo struct {
	SID         call.TrackSID
	Kind        Kind
	Source      call.Source
	Name        string
	Stream      string
	Muted       bool
	Simulcast   bool
	Width       uint32
	Height      uint32
	DisableDTX  bool
	DisableRED  bool
	Stereo      bool
	Encryption  Encryption
	MimeType    string
	MID         string
	Codecs      []Codec
	Layers      []Layer // the primary codec's
	Features    []int32 // LiveKit AudioTrackFeature numbers, carried
	BackupRule  int32   // LiveKit BackupCodecPolicy number, carried
	PublishedAt time.Time
}

// An AddTrack announces a track that the client is about to publish.
type AddTrack struct {
	SID        call.TrackSID // set for the backup codec of a live track
	CID        string
	Kind       Kind
	Source     call.Source
	Name       string
	Stream     string
	Muted      bool
	Width      uint32
	Height     uint32
	DisableDTX bool
	DisableRED bool
	Stereo     bool
	Encryption Encryption
	Codecs     []Codec // wanted codecs with their CIDs and layers
	Layers     []Layer
	Features   []int32
	BackupRule int32
}

// A State is how far a member's session has come.
type State int

// The states, with the numbers of the LiveKit ParticipantInfo.State.
const (
	StateJoining      State = 0
	StateJoined       State = 1
	StateActive       State = 2
	StateDisconnected State = 3
)

// A Reason says why a member left or must leave; numbers of the LiveKit
// DisconnectReason.
type Reason int

// The reasons that this server gives.
const (
	ReasonUnknown            Reason = 0
	ReasonClientInitiated    Reason = 1
	ReasonDuplicateIdentity  Reason = 2
	ReasonServerShutdown     Reason = 3
	ReasonParticipantRemoved Reason = 4
	ReasonRoomDeleted        Reason = 5
	ReasonStateMismatch      Reason = 6
	ReasonJoinFailure        Reason = 7
	ReasonMigration          Reason = 8
	ReasonSignalClose        Reason = 9
	ReasonRoomClosed         Reason = 10
	ReasonUserUnavailable    Reason = 11
	ReasonUserRejected       Reason = 12
	ReasonConnectionTimeout  Reason = 14
	ReasonMediaFailure       Reason = 15
	ReasonAgentError         Reason = 16
)

// An Action is what a client must do after EventLeave.
type Action int

// The actions, with the numbers of the LiveKit LeaveRequest.Action.
const (
	ActionDisconnect Action = 0
	ActionResume     Action = 1
	ActionReconnect  Action = 2
)

// A ParticipantInfo describes a member to others. It is a value.
type ParticipantInfo struct {
	SID      call.ParticipantSID
	Identity call.Identity
	Grant    call.Grant // name, metadata, attributes, kind and permissions as of now
	State    State
	JoinedAt time.Time
	Version  uint32 // rises with every change
	Tracks   []TrackInfo
	Reason   Reason // with StateDisconnected

	ClientProtocol int32   // mirrored for peers
	Capabilities   []int32 // mirrored for peers
}

// A RoomInfo describes a room.
type RoomInfo struct {
	SID          string // "RM_..."
	Name         call.RoomName
	Metadata     string
	CreatedAt    time.Time
	Participants int // without hidden ones
	Publishers   int
	EmptyTimeout time.Duration
	LeaveTimeout time.Duration // "departure timeout"

	MaxParticipants int // 0: no bound
}

// TrackSettings are what a subscriber wants of a track (adaptive stream).
type TrackSettings struct {
	Disabled bool
	Quality  Quality // used where Width and Height are 0
	Width    uint32
	Height   uint32
	FPS      uint32
	Priority uint32
}

// A DataKind is the delivery of a data message.
type DataKind int

// The kinds of data channel; the first two have LiveKit's DataPacket.Kind numbers.
const (
	DataReliable DataKind = 0 // label "_reliable"
	DataLossy    DataKind = 1 // label "_lossy"
	DataTrack    DataKind = 2 // label "_data_track"
)

// ConnectionQuality is a member's connection as others see it; numbers of the
// LiveKit ConnectionQuality.
type ConnectionQuality int

// The connection qualities.
const (
	ConnectionPoor      ConnectionQuality = 0
	ConnectionGood      ConnectionQuality = 1
	ConnectionExcellent ConnectionQuality = 2
	ConnectionLost      ConnectionQuality = 3
)

// A Speaker is one active speaker. Level is linear, 0 to 1; a speaker that
// stopped is told once with Active false.
type Speaker struct {
	SID    call.ParticipantSID
	Level  float32
	Active bool
}

// An Event is what a room or transport has to tell a member's session. The
// concrete types follow; a session ignores those it does not know.
type Event interface{ event() }

type (
	// EventAnswer answers the client's offer with the same ID.
	EventAnswer struct {
		ID         uint32
		SDP        string
		MIDToTrack map[string]call.TrackSID
	}
	// EventOffer is the server's offer on the subscriber connection (dual modes).
	EventOffer struct {
		ID         uint32
		SDP        string
		MIDToTrack map[string]call.TrackSID
	}
	// EventCandidate is one local ICE candidate, as JSON of RTCIceCandidateInit.
	EventCandidate struct {
		Target    Target
		Candidate string
		Final     bool
	}
	// EventSectionsRequired asks a single-connection client to offer again with
	// that many more receiving sections; both may be 0.
	EventSectionsRequired struct{ Audio, Video uint32 }
	// EventJoined tells that the member's primary transport is connected for
	// the first time: it is active now.
	EventJoined struct{}
	// EventParticipants carries changed participants (also the member itself).
	EventParticipants struct{ Participants []ParticipantInfo }
	// EventRoom carries the changed room.
	EventRoom struct{ Room RoomInfo }
	// EventTrackPublished answers AddTrack.
	EventTrackPublished struct {
		CID   string
		Track TrackInfo
	}
	// EventTrackUnpublished tells a publisher that the server ended its track.
	EventTrackUnpublished struct{ SID call.TrackSID }
	// EventTrackSubscribed tells a publisher of its track's first subscriber.
	EventTrackSubscribed struct{ SID call.TrackSID }
	// EventMute tells a publisher that the server muted its track.
	EventMute struct {
		SID   call.TrackSID
		Muted bool
	}
	// EventSpeakers carries changed speakers.
	EventSpeakers struct{ Speakers []Speaker }
	// EventConnectionQuality carries changed connection qualities; Score is 0 to 5.
	EventConnectionQuality struct {
		SID     call.ParticipantSID
		Quality ConnectionQuality
		Score   float32
	}
	// EventStreamState tells that forwarding of a track was paused or resumed.
	EventStreamState struct {
		Publisher call.ParticipantSID
		Track     call.TrackSID
		Paused    bool
	}
	// EventSubscribedQuality tells a publisher which layers anybody watches
	// (dynacast), for each codec by short name ("vp8").
	EventSubscribedQuality struct {
		Track  call.TrackSID
		Codecs []SubscribedCodec
	}
	// EventSubscriptionPermission tells a subscriber whether it may have a track.
	EventSubscriptionPermission struct {
		Publisher call.ParticipantSID
		Track     call.TrackSID
		Allowed   bool
	}
	// EventSubscriptionFailed tells a subscriber that it cannot have a track:
	// wrapped call.ErrNotFound, or call.ErrInvalid for an unsupported codec.
	EventSubscriptionFailed struct {
		Track call.TrackSID
		Err   error
	}
	// EventData is a data-channel message from the client, unread.
	EventData struct {
		Kind    DataKind
		Label   string // for channels that are none of the three
		Payload []byte
	}
	// EventDataReady tells that the downstream channel of a kind is open.
	EventDataReady struct{ Kind DataKind }
	// EventLeave is the last event: the member has been removed and (with
	// ActionReconnect) its client must join again. Only after ActionResume the
	// member is kept for some seconds, for Room.Resume; other events may follow.
	EventLeave struct {
		Reason Reason
		Action Action
	}
)

// A SubscribedCodec lists which qualities of one codec are wanted.
type SubscribedCodec struct {
	Codec     string // "vp8", "h264", ...
	Qualities []SubscribedQuality
}

// A SubscribedQuality says whether anybody wants a quality.
type SubscribedQuality struct {
	Quality Quality
	Enabled bool
}

func (EventAnswer) event()                 {}
func (EventOffer) event()                  {}
func (EventCandidate) event()              {}
func (EventSectionsRequired) event()       {}
func (EventJoined) event()                 {}
func (EventParticipants) event()           {}
func (EventRoom) event()                   {}
func (EventTrackPublished) event()         {}
func (EventTrackUnpublished) event()       {}
func (EventTrackSubscribed) event()        {}
func (EventMute) event()                   {}
func (EventSpeakers) event()               {}
func (EventConnectionQuality) event()      {}
func (EventStreamState) event()            {}
func (EventSubscribedQuality) event()      {}
func (EventSubscriptionPermission) event() {}
func (EventSubscriptionFailed) event()     {}
func (EventData) event()                   {}
func (EventDataReady) event()              {}
func (EventLeave) event()                  {}

// A Session receives a member's events. Event is called from the room's and the
// transports' goroutines, in order for one member; it must not block and must
// not call the member back.
type Session interface{ Event(Event) }

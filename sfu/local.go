package sfu

import (
	"context"
	"errors"

	"github.com/pion/rtp"

	"github.com/trunkhall/trunkhall/call"
)

// LocalParams are what Room.JoinLocal needs to know of a member that lives in
// this process: a telephone, and one day a recorder.
type LocalParams struct {
	Grant call.Grant
	// Session hears the member's events. They may begin before JoinLocal returns.
	Session Session
	// Tap hears the audio that the member is subscribed to; nil hears nothing.
	// Members of a room that name the same Tap share it: each track is opened
	// once, however many of them hear it. It must be comparable.
	Tap Tap
}

// A Tap takes the audio of a room for its local members.
type Tap interface {
	// Open begins a track that the first of the members now hears and returns
	// what takes its packets, or nil to take none. It is called from the room's
	// goroutine: it must not block and must not call the room back.
	Open(t TapTrack) Sink
}

// A TapTrack describes a track to a Tap.
type TapTrack struct {
	Track     TrackInfo
	Publisher call.ParticipantSID
	Identity  call.Identity
	Local     bool // its publisher is a local member as well
}

// A Sink hears the packets of one audio track, on the packet path: WriteRTP
// must neither block nor keep the packet or change it. SequenceNumber and
// Timestamp are the publisher's own. level is the packet's loudness in -dBov
// with the voice bit on top (RFC 6464), as its sender says, if hasLevel.
type Sink interface {
	WriteRTP(p *rtp.Packet, level uint8, hasLevel bool)
	// Close tells that the track has ended or nobody hears it any more. No
	// call of WriteRTP begins after it. It is called from the room's goroutine.
	Close()
}

// EventHears tells a local member whether it hears a track. What it hears comes
// to its Tap; all members of a Tap are told for themselves.
type EventHears struct {
	Track TrackInfo
	SID   call.ParticipantSID // the publisher
	From  call.Identity
	On    bool
}

func (EventHears) event() {}

// errNoConnection refuses what only members with a client of their own can do.
var errNoConnection = errors.New("the member has no connection")

// JoinLocal adds a member without a connection of its own: it is active at once,
// publishes by PublishLocal and hears by its Tap. Everything else is as with
// Join; messages for it (SendData) come as EventData. It cannot be resumed.
func (r *Room) JoinLocal(ctx context.Context, p LocalParams) (*Member, Snapshot, error) {
	return nil, Snapshot{}, errNoConnection
}

// A LocalTrack is the Opus track of a local member. Write belongs to one
// goroutine; everything else may be called from anywhere.
type LocalTrack struct {
	info TrackInfo
}

// PublishLocal publishes an Opus track of a local member. Others are told at once.
// Errors are those of AddTrack; CID may be empty.
func (m *Member) PublishLocal(a AddTrack) (*LocalTrack, error) { return nil, errNoConnection }

// SID names the track.
func (t *LocalTrack) SID() call.TrackSID { return t.info.SID }

// Wanted reports whether anybody gets the track's packets. There is no need to
// encode what nobody hears.
func (t *LocalTrack) Wanted() bool { return false }

// Write sends one packet to those who are subscribed. timestamp is of a 48 kHz
// clock that runs while nothing is sent; marker begins a talk spurt (RFC 3551
// section 4.1); level is in -dBov, 127 is silence.
func (t *LocalTrack) Write(payload []byte, timestamp uint32, marker bool, level uint8, voice bool) {}

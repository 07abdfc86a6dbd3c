// Package bridge puts telephones into the media rooms of package sfu: each is an
// in-process member that publishes its sound as Opus and hears everybody but
// itself. It knows sound as frames of 20 ms; SIP and RTP are others' business.
package bridge

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// Sound is a telephone's end of the bridge. All methods are called from one
// goroutine, every 20 ms, and must not block.
type Sound interface {
	// Rate is the present sample rate: 8000 or 16000. It may change between ticks.
	Rate() int
	// Read fills pcm with the next 20 ms from the telephone.
	Read(now time.Time, pcm []int16)
	// Write plays 20 ms to the telephone.
	Write(pcm []int16) error
}

// PhoneOptions say how a telephone takes part.
type PhoneOptions struct {
	Sound      Sound
	Name       string            // display name; empty: the seat's
	Attrs      map[string]string // added to the seat's
	StartMuted bool
	Room       sfu.RoomOptions // if the room has to be opened
	// Events is called with what the telephone's owner should know, one at a
	// time and in order, on a goroutine of the phone's own; it may block and
	// call the phone back. Removed is the last. It may be nil.
	Events func(Event)
}

// An Event is one of the types below.
type Event interface{ event() }

type (
	// Removed tells that the phone is out of the room: by Leave, thrown out,
	// replaced by the same identity elsewhere, or because the room has closed.
	Removed struct{ Reason sfu.Reason }
	// Muted tells that a moderator muted or unmuted the phone. The phone has
	// heard a short tone already.
	Muted struct{ Muted bool }
	// Alone tells whether anybody else is in the room, phones or not. It comes
	// after joining and with each change.
	Alone struct{ Alone bool }
	// Data is a data message that was sent to the phone's member alone.
	Data struct {
		Kind    sfu.DataKind
		Payload []byte
	}
)

func (Removed) event() {}
func (Muted) event()   {}
func (Alone) event()   {}
func (Data) event()    {}

// Bridges are the telephones of a server, room by room.
type Bridges struct {
	srv *sfu.Server
	log *slog.Logger
}

// New returns the bridges of srv. Run must be running while there are phones.
func New(srv *sfu.Server, log *slog.Logger) *Bridges { return &Bridges{srv: srv, log: log} }

// Run works until ctx ends, then takes the remaining phones out of their rooms,
// and returns when all goroutines have ended.
func (b *Bridges) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Join seats a telephone: it joins the room as a participant of kind SIP,
// publishes a microphone and hears the others from now on. The caller keeps the
// seat and calls seat.Leave after Removed. Errors wrap the kinds of package call.
func (b *Bridges) Join(ctx context.Context, seat call.Seat, o PhoneOptions) (*Phone, error) {
	return nil, errors.New("bridge: not ready")
}

// A Phone is one telephone in a room, from Join until Removed. Its methods may be
// called from any goroutine, also after the end, when they do nothing.
type Phone struct{}

// Identity is the participant's identity.
func (p *Phone) Identity() call.Identity { return "" }

// SID is the participant's session.
func (p *Phone) SID() call.ParticipantSID { return "" }

// SetMuted mutes or unmutes the phone by its own wish. Everybody sees it.
func (p *Phone) SetMuted(muted bool) {}

// Muted reports whether the room does not hear the phone: by its own wish, a
// moderator's or because it is on hold.
func (p *Phone) Muted() bool { return false }

// SetHand raises or lowers the phone's hand: attribute "trunkhall.hand".
func (p *Phone) SetHand(up bool) {}

// SetHold tells that the phone put the call on hold: it is shown as muted, and
// by the attribute "sip.hold". Nothing is played to it meanwhile.
func (p *Phone) SetHold(on bool) {}

// SetAttributes changes attributes of the participant; an empty value deletes one.
func (p *Phone) SetAttributes(attrs map[string]string) {}

// Play lets the phone alone hear a sound over the conference, which is quieter
// meanwhile. Sounds play one after the other. pcm is at rate.
func (p *Phone) Play(pcm []int16, rate int) {}

// Leave takes the phone out of the room; Removed follows. It does not wait.
func (p *Phone) Leave(why sfu.Reason) {}

// Stats describes the sound between the phone and its room.
func (p *Phone) Stats() PhoneStats { return PhoneStats{} }

// PhoneStats count since the phone joined.
type PhoneStats struct {
	Encoded   uint64 // frames of the phone encoded for the room
	Skipped   uint64 // frames that needed no encoding: silence, or nobody listened
	Starved   uint64 // frames of speakers that were not there in time and were concealed
	Panics    uint64 // codec calls that panicked; concealed
	Encrypted bool   // the call is end-to-end encrypted up to here
}

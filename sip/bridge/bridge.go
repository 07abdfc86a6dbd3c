// Package bridge puts telephones into the media rooms of package sfu: each is an
// in-process member that publishes its sound as Opus and hears everybody but
// itself. It knows sound as frames of 20 ms; SIP and RTP are others' business.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
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
	// Muted tells that a moderator muted or unmuted the phone. The phone hears
	// a short tone.
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

// maxPhones is how many telephones a room takes. Everybody in a room is told of
// everybody who comes and goes, and one goroutine makes the sound of all of them:
// what is cheap for a meeting must not stall the room for a crowd.
const maxPhones = 200

// Bridges are the telephones of a server, room by room.
type Bridges struct {
	srv    *sfu.Server
	log    *slog.Logger
	most   int            // telephones in one room
	tasks  sync.WaitGroup // rooms' and phones' goroutines
	counts counts

	mu      sync.Mutex // guards the following; never held while calling a room
	rooms   map[*sfu.Room]*bridge
	phones  map[*Phone]struct{}
	stopped bool
}

// New returns the bridges of srv. Run must be running while there are phones.
func New(srv *sfu.Server, log *slog.Logger) *Bridges {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Bridges{srv: srv, log: log, most: maxPhones, rooms: make(map[*sfu.Room]*bridge), phones: make(map[*Phone]struct{})}
}

// Run works until ctx ends, then takes the remaining phones out of their rooms,
// and returns when all goroutines have ended.
func (b *Bridges) Run(ctx context.Context) error {
	<-ctx.Done()
	b.mu.Lock()
	b.stopped = true
	left := maps.Clone(b.phones)
	b.mu.Unlock()
	for p := range left {
		p.Leave(sfu.ReasonServerShutdown)
	}
	b.tasks.Wait()
	return nil
}

// Join seats a telephone: it joins the room as a participant of kind SIP,
// publishes a microphone and hears the others from now on. The caller keeps the
// seat and calls seat.Leave after Removed. Errors wrap the kinds of package call,
// call.ErrRoomFull when the room has its 200 telephones.
func (b *Bridges) Join(ctx context.Context, seat call.Seat, o PhoneOptions) (*Phone, error) {
	if o.Sound == nil {
		return nil, errors.New("bridge: a phone without sound")
	}
	grant := seat.Grant
	grant.Room, grant.Kind = seat.Room, call.KindSIP
	if o.Name != "" {
		grant.Name = o.Name
	}
	if len(o.Attrs) > 0 {
		grant.Attrs = maps.Clone(grant.Attrs)
		if grant.Attrs == nil {
			grant.Attrs = make(map[string]string)
		}
		maps.Copy(grant.Attrs, o.Attrs)
	}
	for tries := 0; ; tries++ {
		room := b.srv.OpenRoom(seat.Room, o.Room)
		p, err := b.join(ctx, room, grant, seat, o)
		if errors.Is(err, call.ErrUnavailable) && room.Closed() && tries < 3 {
			continue // it closed just now: the next one is another
		}
		return p, err
	}
}

func (b *Bridges) join(ctx context.Context, room *sfu.Room, grant call.Grant, seat call.Seat, o PhoneOptions) (*Phone, error) {
	in, err := b.enter(room)
	if err != nil {
		return nil, err
	}
	p := newPhone(in, seat, o)
	p.member, _, err = room.JoinLocal(ctx, sfu.LocalParams{Grant: grant, Session: p, Tap: in})
	if err != nil {
		b.leave(in)
		return nil, fmt.Errorf("seat a phone in room %s: %w", seat.Room, err)
	}
	b.mu.Lock()
	b.phones[p] = struct{}{}
	stopped := b.stopped
	b.mu.Unlock()
	b.tasks.Go(p.work)
	if err := p.publish(); err != nil && !errors.Is(err, call.ErrForbidden) {
		p.Leave(sfu.ReasonJoinFailure) // Removed is told, as to any phone
	}
	if stopped {
		p.Leave(sfu.ReasonServerShutdown)
	}
	p.watchKeys(seat.Keys)
	in.post(func() { in.add(p) })
	return p, nil
}

// enter returns the room's bridge, and keeps it from ending until leave.
func (b *Bridges) enter(room *sfu.Room) (*bridge, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return nil, fmt.Errorf("telephones are being shut down: %w", call.ErrUnavailable)
	}
	in := b.rooms[room]
	if in != nil && in.seats >= b.most {
		return nil, fmt.Errorf("room %s has %d telephones: %w", room.Name(), in.seats, call.ErrRoomFull)
	}
	if in == nil {
		in = newBridge(b, room)
		b.rooms[room] = in
		b.tasks.Go(in.run)
	}
	in.seats++
	return in, nil
}

// leave undoes enter; the last one ends the bridge.
func (b *Bridges) leave(in *bridge) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if in.seats--; in.seats == 0 {
		delete(b.rooms, in.room)
		close(in.stop)
	}
}

// gone forgets a phone whose last event has been told.
func (b *Bridges) gone(p *Phone) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.phones, p)
}

// Stats are counters of all bridges.
type Stats struct {
	Phones, Rooms int    // now
	Concealed     uint64 // frames of browsers that were not there in time, since the start
	Skipped       uint64 // frames that were never made because the machine stood still
	Panics        uint64 // of codecs
}

type counts struct{ concealed, skipped, panics atomic.Uint64 }

// Stats reads the counters.
func (b *Bridges) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	return Stats{
		Phones: len(b.phones), Rooms: len(b.rooms), Concealed: b.counts.concealed.Load(),
		Skipped: b.counts.skipped.Load(), Panics: b.counts.panics.Load(),
	}
}

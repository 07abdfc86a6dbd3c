package sip

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// fakeDirectory is a homeserver with one room that says what a test wants.
type fakeDirectory struct {
	lobby, refused chan struct{}
	block          chan struct{} // Seat waits for it, or for its context

	ringing chan struct{} // Ring waits for it and then seats

	mu         sync.Mutex
	seat, ring error

	open atomic.Int32 // seats that were not given back
}

func (d *fakeDirectory) set(seat, ring error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seat, d.ring = seat, ring
}

// wait makes phones wait in a lobby.
func (d *fakeDirectory) wait() (lobby, refused chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lobby, d.refused = make(chan struct{}), make(chan struct{})
	return d.lobby, d.refused
}

func (d *fakeDirectory) Room(ctx context.Context, name string) (call.Place, error) {
	return call.Place{Room: "standup", RoomID: "!room", Title: "Stand-up"}, nil
}

func (d *fakeDirectory) RoomByPIN(ctx context.Context, pin string) (call.Place, error) {
	return call.Place{}, call.ErrNotFound
}

func (d *fakeDirectory) Seat(ctx context.Context, at call.Place, phone call.Phone) (call.Seat, error) {
	if d.block != nil {
		select {
		case <-d.block:
		case <-ctx.Done():
			return call.Seat{}, ctx.Err()
		}
	}
	d.mu.Lock()
	err, lobby, refused := d.seat, d.lobby, d.refused
	d.mu.Unlock()
	if err != nil {
		return call.Seat{}, err
	}
	seat, err := Static{}.Seat(ctx, at, phone)
	seat.Lobby, seat.Refused = lobby, refused
	d.open.Add(1)
	seat.Leave = func(context.Context) { d.open.Add(-1) }
	return seat, err
}

func (d *fakeDirectory) Ring(ctx context.Context, user string, phone call.Phone, timeout time.Duration) (call.Seat, error) {
	if d.ringing != nil {
		select {
		case <-d.ringing:
			return d.Seat(ctx, call.Place{Room: "standup", RoomID: "!room"}, phone)
		case <-ctx.Done():
			return call.Seat{}, ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return call.Seat{}, d.ring
}

func (d *fakeDirectory) MayDial(ctx context.Context, by, roomID string) error { return nil }

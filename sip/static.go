package sip

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// Static is the Directory of media rooms without Matrix: a table with the PINs of
// some, and any other name is a room of that name. What is not in the table is
// asked of Next, if there is one.
type Static struct {
	Rooms []StaticRoom
	Next  Directory
}

// Room implements Directory.
func (d Static) Room(ctx context.Context, name string) (call.Place, error) {
	i := slices.IndexFunc(d.Rooms, func(r StaticRoom) bool { return r.Room == name })
	switch {
	case i >= 0:
		return d.Rooms[i].place(), nil
	case d.Next != nil:
		return d.Next.Room(ctx, name)
	case name == "" || strings.HasPrefix(name, "#") || strings.HasPrefix(name, "!"):
		return call.Place{}, fmt.Errorf("room %q: %w", name, call.ErrNotFound)
	}
	return call.Place{Room: call.RoomName(name), Title: name}, nil
}

// RoomByPIN implements Directory. It looks at all PINs whatever it has found.
func (d Static) RoomByPIN(ctx context.Context, pin string) (call.Place, error) {
	found := -1
	for i, r := range d.Rooms {
		if r.PIN != "" && subtle.ConstantTimeCompare([]byte(r.PIN), []byte(pin)) == 1 {
			found = i
		}
	}
	next, err := call.Place{}, fmt.Errorf("PIN: %w", call.ErrNotFound)
	if d.Next != nil {
		next, err = d.Next.RoomByPIN(ctx, pin)
	}
	if found >= 0 {
		return d.Rooms[found].place(), nil
	}
	return next, err
}

// Seat implements Directory.
func (d Static) Seat(ctx context.Context, at call.Place, phone call.Phone) (call.Seat, error) {
	if d.Next != nil {
		return d.Next.Seat(ctx, at, phone)
	}
	if phone.HideNumber {
		if sameDigits(phone.Name, phone.Number) {
			phone.Name = ""
		}
		phone.Number = ""
	}
	who := "anonymous-" + strings.ToLower(rand.Text()[:8])
	if phone.Number != "" {
		who = strings.TrimPrefix(phone.Number, "+")
	}
	name := phone.Name
	if name == "" {
		name = phone.Number
	}
	return call.Seat{
		Room:  at.Room,
		Title: at.Title,
		Grant: call.Grant{
			Room: at.Room, Identity: call.Identity("sip_" + who), Name: name, Kind: call.KindSIP,
			CanPublish: true, CanPublishSources: []call.Source{call.SourceMicrophone},
			CanSubscribe: true, CanPublishData: true, CanUpdateOwnMetadata: true,
		},
		Leave: func(context.Context) {},
	}, nil
}

// Ring implements Directory: there are no users without Matrix.
func (d Static) Ring(ctx context.Context, user string, phone call.Phone, timeout time.Duration) (call.Seat, error) {
	if d.Next != nil {
		return d.Next.Ring(ctx, user, phone, timeout)
	}
	return call.Seat{}, fmt.Errorf("user %s: %w", user, call.ErrNotFound)
}

// MayDial implements Directory: without Matrix whoever has an API key may.
func (d Static) MayDial(ctx context.Context, by, roomID string) error {
	if d.Next != nil {
		return d.Next.MayDial(ctx, by, roomID)
	}
	if strings.HasPrefix(by, "@") || roomID != "" {
		return fmt.Errorf("there are no Matrix users here: %w", call.ErrForbidden)
	}
	return nil
}

// AccountCreated implements Ager.
func (d Static) AccountCreated(ctx context.Context, user string) (time.Time, error) {
	if a, ok := d.Next.(Ager); ok {
		return a.AccountCreated(ctx, user)
	}
	return time.Time{}, errors.ErrUnsupported
}

// PINLength implements PINLength, if all PINs are of one length.
func (d Static) PINLength() int {
	length := 0
	if p, ok := d.Next.(PINLength); ok {
		length = p.PINLength()
	} else if d.Next != nil {
		return 0
	}
	for _, r := range d.Rooms {
		switch n := len(r.PIN); {
		case n == 0:
		case length != 0 && n != length:
			return 0
		default:
			length = n
		}
	}
	return length
}

func (r StaticRoom) place() call.Place {
	title := r.Title
	if title == "" {
		title = r.Room
	}
	return call.Place{Room: call.RoomName(r.Room), Title: title}
}

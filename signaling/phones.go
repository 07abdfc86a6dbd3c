package signaling

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// Phones is the telephone gateway as signaling needs it: for LiveKit's SIP
// service and for calls that begin in a Matrix room. The gateway implements it.
// Errors wrap the kinds of package call. Safe for concurrent use.
type Phones interface {
	// Dial calls a telephone into a room. It returns as soon as the INVITE goes
	// out, or why it does not.
	Dial(ctx context.Context, req call.DialRequest) (call.Leg, error)
	// Wait returns a leg when its state is another than seen; at once if it is.
	// When ctx ends first it returns the leg as it is.
	Wait(ctx context.Context, id call.LegID, seen call.LegState) (call.Leg, error)
	// Leg returns a leg that lives or has ended not long ago.
	Leg(id call.LegID) (call.Leg, bool)
	// Legs returns all that live.
	Legs() []call.Leg
	// LegOf returns the leg behind a participant.
	LegOf(room call.RoomName, id call.Identity) (call.Leg, bool)

	Hangup(ctx context.Context, id call.LegID) error
	// Transfer hands the other side over to somebody else (RFC 3515) and
	// returns when that is done or has failed.
	Transfer(ctx context.Context, id call.LegID, to string, headers map[string]string) error
	// Digits presses keys on a leg.
	Digits(id call.LegID, digits string) error
	// DigitsTo presses keys on the phones of a room among to, on all if to is empty.
	DigitsTo(room call.RoomName, to []call.Identity, digits string)
	// OnDigit calls f for each key that a phone in a room presses. f must not block.
	OnDigit(f func(room call.RoomName, id call.Identity, digit byte))

	Trunks() []call.TrunkState
	SetTrunk(ctx context.Context, t call.Trunk) error
	DeleteTrunk(ctx context.Context, id string) error
	Rules() []call.DispatchRule
	SetRule(ctx context.Context, r call.DispatchRule) error
	DeleteRule(ctx context.Context, id string) error
}

// SetPhones tells signaling of the telephone gateway. It is called once, before
// Run: the gateway is made of signaling's PhoneDirectory and so comes later.
func (s *Server) SetPhones(p Phones) {
	s.phones = p
	p.OnDigit(s.keyPressed)
	if d := s.directory; d.ghosts != nil {
		d.ghosts.SetPhones(d.displayNumber)
	}
}

// PhoneDirectory returns the directory of this server.
func (s *Server) PhoneDirectory() *PhoneDirectory { return s.directory }

// A PhoneDirectory finds places for telephones: in Matrix rooms, where a phone
// sits as a user of its own (a ghost), and in plain media rooms. It implements
// the gateway's Directory. Its server's Run runs it.
type PhoneDirectory struct {
	s      *Server
	ghosts Ghosts // nil: there are no Matrix rooms
	store  Store
	key    []byte // makes the keys for PINs and ghosts
	log    *slog.Logger

	keyTimes keyTimes

	turns    [64]sync.Mutex // see turn
	turnSeed maphash.Seed
	work     workQueue
	stop     func() // of the watchers

	ctx    context.Context // ends when run's does
	cancel context.CancelFunc
	wg     sync.WaitGroup // goroutines that run waits for; see begin

	mu       sync.Mutex // guards the following fields; nothing else is called with it held
	closing  bool
	numbers  []string
	display  func(number string) string
	seats    map[*phoneSeat]bool
	refs     map[ghostRoom]int                     // why a ghost is in a room: seats, calls that begin
	expected map[ghostRoom]int                     // invitations that are our own
	devices  map[userDevice]bool                   // of ghosts, that seats have
	taken    map[rtcKey]bool                       // identities of phones in plain media rooms
	watched  map[matrix.RoomID]map[*roomWatch]bool // who waits for something in a room
	lines    map[matrix.RoomID]bool                // conversations in which it rings
	directs  map[call.RoomName]*directCall
}

// A ghostRoom is a ghost in a room.
type ghostRoom struct {
	ghost matrix.UserID
	room  matrix.RoomID
}

func newPhoneDirectory(s *Server) *PhoneDirectory {
	secret := s.deps.PhoneSecret
	if secret == "" {
		secret = s.cfg.APISecret
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := &PhoneDirectory{
		s: s, store: s.deps.Store, log: s.log, key: derive([]byte(secret), "telephones"),
		turnSeed: maphash.MakeSeed(), keyTimes: defaultKeyTimes(),
		work: workQueue{wake: make(chan struct{}, 1), closed: make(chan struct{})},
		ctx:  ctx, cancel: cancel,
		seats: map[*phoneSeat]bool{}, refs: map[ghostRoom]int{}, expected: map[ghostRoom]int{}, taken: map[rtcKey]bool{}, devices: map[userDevice]bool{}, lines: map[matrix.RoomID]bool{},
		watched: map[matrix.RoomID]map[*roomWatch]bool{}, directs: map[call.RoomName]*directCall{},
	}
	if s.rtc == nil || s.deps.Ghosts == nil {
		return d
	}
	d.ghosts = s.deps.Ghosts
	stopMembers := s.deps.Rooms.WatchMemberships(d.membershipChanged)
	stopEvents := d.ghosts.WatchEvents(d.eventStored)
	s.rtc.seen = d.participantSeen
	d.stop = func() { stopMembers(); stopEvents() }
	return d
}

// derive returns a key for one purpose.
func derive(key []byte, purpose string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte("trunkhall " + purpose))
	return h.Sum(nil)
}

// run serves until ctx ends: it gives back the places that an earlier process
// left behind, renews call memberships, and follows what happens in rooms.
func (d *PhoneDirectory) run(ctx context.Context) {
	defer d.work.close()
	if d.ghosts == nil {
		<-ctx.Done()
		d.cancel()
		return
	}
	d.cleanUp(ctx)
	renew := time.NewTicker(renewEvery)
	defer renew.Stop()
	for ctx.Err() == nil {
		d.work.runAll(ctx)
		select {
		case <-ctx.Done():
		case <-d.work.wake:
		case <-renew.C:
			d.renew(ctx)
		}
	}
	d.stop()
	d.mu.Lock()
	d.closing = true
	d.mu.Unlock()
	d.cancel()
	d.wg.Wait()
}

// begin starts f as one of the goroutines that run waits for; its context ends
// with run's. It reports whether it did: a directory that is closing starts
// nothing.
func (d *PhoneDirectory) begin(f func(context.Context)) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing {
		return false
	}
	d.wg.Go(func() { f(d.ctx) })
	return true
}

// turn returns the lock under which a ghost comes into a room and leaves it. A
// few share each: it does not take long.
func (d *PhoneDirectory) turn(g ghostRoom) *sync.Mutex {
	return &d.turns[maphash.Comparable(d.turnSeed, g)%uint64(len(d.turns))]
}

// SetNumbers says which numbers lead to the PIN menu: rooms show them.
func (d *PhoneDirectory) SetNumbers(numbers []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.numbers = slices.Clone(numbers)
}

// SetDisplay says how numbers are written for people. It is called before
// SetPhones; without it they are not grouped.
func (d *PhoneDirectory) SetDisplay(f func(number string) string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.display = f
}

// displayNumber writes the digits of a ghost's name for people.
func (d *PhoneDirectory) displayNumber(digits string) string {
	d.mu.Lock()
	f := d.display
	d.mu.Unlock()
	n := phoneNumber(digits)
	if f == nil {
		return n
	}
	return f(n)
}

// Room returns the room of a name: "#alias:server" and "!id" are Matrix rooms,
// anything else is a media room. call.ErrNotFound: no such Matrix room.
func (d *PhoneDirectory) Room(ctx context.Context, name string) (call.Place, error) {
	if !strings.HasPrefix(name, "#") && !strings.HasPrefix(name, "!") {
		if name == "" {
			return call.Place{}, fmt.Errorf("no room is named: %w", call.ErrNotFound)
		}
		return call.Place{Room: call.RoomName(name), Title: name}, nil
	}
	if d.ghosts == nil {
		return call.Place{}, fmt.Errorf("there are no Matrix rooms here: %w", call.ErrNotFound)
	}
	room, err := d.ghosts.ResolveRoom(ctx, name)
	if err != nil {
		return call.Place{}, err
	}
	return d.place(ctx, room)
}

// place describes a Matrix room.
func (d *PhoneDirectory) place(ctx context.Context, room matrix.RoomID) (call.Place, error) {
	p := call.Place{Room: mediaRoom(room, legacySlot), RoomID: string(room)}
	for _, from := range []struct{ typ, key string }{{"m.room.name", "name"}, {"m.room.canonical_alias", "alias"}} {
		e, err := d.ghosts.RoomStateEvent(ctx, room, from.typ, "")
		if err != nil {
			return p, err
		}
		if e != nil && e.ContentString(from.key) != "" {
			p.Title = plainName(e.ContentString(from.key))
			return p, nil
		}
	}
	return p, nil
}

// MayDial returns nil if a user may call telephones into a Matrix room; else the
// error wraps call.ErrForbidden and says why in words for the user. Whoever is
// not a Matrix user holds an API key and may; so may everybody in a media room.
func (d *PhoneDirectory) MayDial(ctx context.Context, by, roomID string) error {
	if !strings.HasPrefix(by, "@") || roomID == "" {
		return nil
	}
	if d.ghosts == nil {
		return fmt.Errorf("there are no Matrix rooms here: %w", call.ErrForbidden)
	}
	user, room := matrix.UserID(by), matrix.RoomID(roomID)
	acc, err := d.ghosts.Account(ctx, user)
	if errors.Is(err, call.ErrNotFound) || err == nil && acc.Deactivated {
		return fmt.Errorf("there is no such user: %w", call.ErrForbidden)
	}
	if err != nil {
		return err
	}
	if acc.Guest || d.isPhone(user) {
		return fmt.Errorf("guests may not call telephones: %w", call.ErrForbidden)
	}
	membership, err := d.s.deps.Rooms.Membership(ctx, room, user)
	if err != nil && !errors.Is(err, call.ErrNotFound) {
		return err
	}
	if err != nil || membership != matrix.MembershipJoin {
		return fmt.Errorf("you are not in this room: %w", call.ErrForbidden)
	}
	power, err := d.ghosts.RoomPower(ctx, room)
	if err != nil {
		return err
	}
	if power.User(user) < power.Event(callMemberType, true) {
		return fmt.Errorf("you may not take part in calls of this room: %w", call.ErrForbidden)
	}
	return nil
}

// AccountCreated returns when a user's account was made; call.ErrNotFound if
// there is none. It lets the gateway ask for more of new accounts. Those of
// administrators are never new: an operator wants to try a line at once.
func (d *PhoneDirectory) AccountCreated(ctx context.Context, user string) (time.Time, error) {
	if d.ghosts == nil {
		return time.Time{}, fmt.Errorf("there are no accounts here: %w", call.ErrNotFound)
	}
	acc, err := d.ghosts.Account(ctx, matrix.UserID(user))
	if acc.Admin {
		return time.Time{}, err
	}
	return acc.Created, err
}

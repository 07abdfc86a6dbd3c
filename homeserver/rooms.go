package homeserver

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

const (
	// appendRetries bounds how often an event is authorised again because the
	// room moved on in between, which on one node only happens after a defect.
	appendRetries = 5
	// maxCachedRooms bounds roomsState.views.
	maxCachedRooms = 1000
	// maxCachedState bounds the pieces of state that one view keeps.
	maxCachedState = 5000
	// keepFinished is how long transaction IDs and the outcomes of delayed
	// events are remembered.
	keepFinished = 24 * time.Hour
)

// roomsState is the part of a Server that rooms need.
type roomsState struct {
	key matrix.Key

	viewsMu sync.Mutex // guards views; never held while calling anything
	views   map[matrix.RoomID]*roomView

	typing  typists
	unread  unreadCache
	delayed chan struct{} // capacity 1: something is due earlier than thought
}

// A roomView is one room as far as this process has looked at it: the lock that
// makes its writers take turns, and what they need to know to authorise.
type roomView struct {
	mu     sync.Mutex // held from reading the state to the commit of the event made of it; guards the following fields
	loaded bool
	info   matrix.RoomInfo
	state  map[matrix.StateKeyTuple]*matrix.Event // nil value: known not to exist
	joined map[matrix.UserID]bool                 // nil: not loaded
	// power is made of powerOf, the power levels of then; nil: not made.
	power   *matrix.Power
	powerOf *matrix.Event
}

// initRooms loads the signing key, making one at the first start.
func (s *Server) initRooms() error {
	s.views = make(map[matrix.RoomID]*roomView)
	s.typing.init()
	s.unread.init()
	s.roomsState.delayed = make(chan struct{}, 1)
	seed := make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(seed) // never fails, see crypto/rand
	id := "ed25519:" + randomID(4)
	id, seed, err := s.deps.Store.SigningKey(context.Background(), id, seed)
	if err != nil {
		return err
	}
	s.key = matrix.Key{Server: s.cfg.ServerName, ID: id, Seed: seed}
	return nil
}

// runRooms sends delayed events when they are due and forgets old ones.
func (s *Server) runRooms(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { s.runDelayed(ctx) })
	wg.Go(func() { s.runTyping(ctx) })
	wg.Go(func() {
		tick := time.NewTicker(time.Hour)
		defer tick.Stop()
		for {
			old := time.Now().Add(-keepFinished)
			if err := errors.Join(s.deps.Store.DeleteFinishedDelayed(ctx, old), s.deps.Store.DeleteTransactions(ctx, old)); err != nil && ctx.Err() == nil {
				s.log.Error("forget old transactions", "error", err)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	wg.Wait()
}

// roomRoutes lists the endpoints of rooms, sync and delayed events.
func (s *Server) roomRoutes() []route {
	get, put, post, del := http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete
	room := func(path string) []string { return v3("/rooms/{roomId}" + path) }
	return []route{
		{post, v3("/createRoom"), accessUser, limitJoin, s.postCreateRoom},
		{post, v3("/join/{roomIdOrAlias}"), accessGuest, limitJoin, s.postJoinAny},
		{post, room("/join"), accessGuest, limitJoin, s.postJoin},
		{post, v3("/knock/{roomIdOrAlias}"), accessUser, limitJoin, s.postKnock},
		{post, room("/leave"), accessGuest, limitNone, s.postLeave},
		{post, room("/forget"), accessGuest, limitNone, s.postForget},
		{post, room("/invite"), accessUser, limitMessage, s.postInvite},
		{post, room("/kick"), accessUser, limitMessage, s.postKick},
		{post, room("/ban"), accessUser, limitMessage, s.postBan},
		{post, room("/unban"), accessUser, limitMessage, s.postUnban},
		{get, v3("/joined_rooms"), accessGuest, limitNone, s.getJoinedRooms},

		{get, room("/state"), accessGuest, limitNone, s.getState},
		{get, append(room("/state/{eventType}"), append(room("/state/{eventType}/{$}"), room("/state/{eventType}/{stateKey}")...)...), accessGuest, limitNone, s.getStateEvent},
		{put, append(room("/state/{eventType}"), append(room("/state/{eventType}/{$}"), room("/state/{eventType}/{stateKey}")...)...), accessGuest, limitMessage, s.putState},
		{put, room("/send/{eventType}/{txnId}"), accessGuest, limitMessage, s.putSend},
		{post, room("/send/{eventType}"), accessGuest, limitMessage, s.putSend}, // from before transactions; bots with curl still do it
		{put, room("/redact/{eventId}/{txnId}"), accessGuest, limitMessage, s.putRedact},
		{get, room("/messages"), accessGuest, limitNone, s.getMessages},
		{get, room("/event/{eventId}"), accessGuest, limitNone, s.getEvent},
		{get, room("/context/{eventId}"), accessGuest, limitNone, s.getContext},
		{get, room("/members"), accessGuest, limitNone, s.getMembers},
		{get, room("/joined_members"), accessGuest, limitNone, s.getJoinedMembers},
		{get, append(room("/aliases"), "/_matrix/client/unstable/org.matrix.msc2432/rooms/{roomId}/aliases"), accessGuest, limitNone, s.getRoomAliases},
		{get, relationPaths(""), accessGuest, limitNone, s.getRelations},
		{get, relationPaths("/{relType}"), accessGuest, limitNone, s.getRelations},
		{get, relationPaths("/{relType}/{eventType}"), accessGuest, limitNone, s.getRelations},
		{get, []string{"/_matrix/client/v1/rooms/{roomId}/threads"}, accessGuest, limitNone, s.getThreads},

		{put, v3("/directory/room/{roomAlias}"), accessUser, limitMessage, s.putAlias},
		{get, v3("/directory/room/{roomAlias}"), accessPublic, limitNone, s.getAlias},
		{del, v3("/directory/room/{roomAlias}"), accessUser, limitMessage, s.deleteAlias},
		{get, v3("/directory/list/room/{roomId}"), accessPublic, limitNone, s.getListed},
		{put, v3("/directory/list/room/{roomId}"), accessUser, limitMessage, s.putListed},
		{get, v3("/publicRooms"), accessPublic, limitNone, s.getPublicRooms},
		{post, v3("/publicRooms"), accessGuest, limitNone, s.getPublicRooms},
		{get, []string{
			"/_matrix/client/v1/room_summary/{roomIdOrAlias}",
			"/_matrix/client/unstable/im.nheko.summary/summary/{roomIdOrAlias}",
			"/_matrix/client/unstable/im.nheko.summary/rooms/{roomIdOrAlias}/summary",
		}, accessOptional, limitNone, s.getRoomSummary},

		{post, room("/receipt/{receiptType}/{eventId}"), accessGuest, limitNone, s.postReceipt},
		{post, room("/read_markers"), accessGuest, limitNone, s.postReadMarkers},
		{put, room("/typing/{userId}"), accessGuest, limitNone, s.putTyping},
		{get, v3("/sync"), accessGuest, limitNone, s.getSync},

		{get, []string{"/_matrix/client/unstable/org.matrix.msc4140/delayed_events", "/_matrix/client/v1/delayed_events"}, accessGuest, limitDelayed, s.getDelayedList},
		{get, []string{"/_matrix/client/v1/delayed_events/{delayId}"}, accessGuest, limitDelayed, s.getDelayed},
		{post, []string{
			"/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delayId}",
			"/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delayId}/{action}",
		}, accessOptional, limitNone, s.postDelayed},
		{post, []string{"/_matrix/client/v1/delayed_events/{delayId}/{action}"}, accessOptional, limitNone, s.postDelayedStable},
		{put, room("/delayed_event/{eventType}/{txnId}"), accessGuest, limitMessage, s.putDelayedStable},
	}
}

// randomID returns n random bytes in hex.
func randomID(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, see crypto/rand
	return hex.EncodeToString(b)
}

// view returns the view of a room, whether the room exists or not.
func (s *Server) view(room matrix.RoomID) *roomView {
	s.viewsMu.Lock()
	defer s.viewsMu.Unlock()
	v := s.views[room]
	if v == nil {
		if len(s.views) >= maxCachedRooms {
			for id, old := range s.views { // any idle one: all can be loaded again
				if old.mu.TryLock() {
					// Whoever holds a pointer to it still takes turns on it and
					// may meet others on a new view; the store refuses the loser.
					old.forget()
					old.mu.Unlock()
					delete(s.views, id)
					break
				}
			}
		}
		v = &roomView{}
		s.views[room] = v
	}
	return v
}

// forget drops what the view knows. The caller holds v.mu.
func (v *roomView) forget() {
	v.loaded, v.info, v.state, v.joined, v.power, v.powerOf = false, matrix.RoomInfo{}, nil, nil, nil, nil
}

// load reads the room's head. The caller holds v.mu.
func (s *Server) load(ctx context.Context, v *roomView, room matrix.RoomID) error {
	if v.loaded && len(v.state) <= maxCachedState {
		return nil
	}
	v.forget()
	info, err := s.deps.Store.Room(ctx, room)
	if err != nil {
		return err
	}
	v.info, v.loaded = info, true
	v.state = make(map[matrix.StateKeyTuple]*matrix.Event)
	return nil
}

// need makes the view know pieces of state. The caller holds v.mu.
func (s *Server) need(ctx context.Context, v *roomView, keys ...matrix.StateKeyTuple) error {
	var missing []matrix.StateKeyTuple
	for _, k := range keys {
		if _, known := v.state[k]; !known {
			missing = append(missing, k)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	found, err := s.deps.Store.StateEvents(ctx, v.info.ID, 0, missing...)
	if err != nil {
		return fmt.Errorf("state of %s: %w", v.info.ID, err)
	}
	for _, k := range missing {
		v.state[k] = nil
	}
	for _, e := range found {
		v.state[matrix.StateKeyTuple{Type: e.Type, Key: *e.StateKey}] = &e.Event
	}
	return nil
}

// joinedMembers returns the joined members. The caller holds v.mu.
func (s *Server) joinedMembers(ctx context.Context, v *roomView) ([]matrix.UserID, error) {
	if v.joined == nil {
		members, err := s.deps.Store.Members(ctx, v.info.ID)
		if err != nil {
			return nil, err
		}
		v.joined = make(map[matrix.UserID]bool)
		for _, m := range members {
			if m.Membership == matrix.MembershipJoin {
				v.joined[m.User] = true
			}
		}
	}
	users := make([]matrix.UserID, 0, len(v.joined))
	for u := range v.joined {
		users = append(users, u)
	}
	return users, nil
}

// An outgoing event is what a user wants to send.
type outgoing struct {
	room     matrix.RoomID
	sender   matrix.UserID
	device   matrix.DeviceID
	typ      string
	stateKey *string
	content  json.RawMessage
	redacts  matrix.EventID
	sticky   *time.Duration
	txn      *matrix.Transaction // nil: cannot be repeated
	delayID  string              // the delayed event that it is ...
	delayDue time.Time           // ... and when it was due, see matrix.Append
	// check, if set, has the last word after the room's rules, under the room's
	// lock; current is the state event that would be replaced.
	check func(current *matrix.Event) error
}

// send authorises an event by the room's rules, stores it and wakes whom it
// concerns. A state event that changes nothing is not sent again: the existing
// one is returned. The errors are ready for a client.
func (s *Server) send(ctx context.Context, o outgoing) (matrix.EventID, error) {
	v := s.view(o.room)
	v.mu.Lock()
	defer v.mu.Unlock()
	if o.txn != nil {
		id, err := s.deps.Store.Transaction(ctx, *o.txn)
		if err == nil {
			return matrix.EventID(id), nil
		}
		if !errors.Is(err, call.ErrNotFound) {
			return "", err
		}
	}
	for attempt := 0; ; attempt++ {
		id, err := s.trySend(ctx, v, o)
		if !errors.Is(err, call.ErrConflict) || attempt == appendRetries {
			return id, err
		}
		v.forget()
	}
}

// trySend is one attempt of send; ErrConflict: the view is out of date. The
// caller holds v.mu.
func (s *Server) trySend(ctx context.Context, v *roomView, o outgoing) (matrix.EventID, error) {
	if err := s.load(ctx, v, o.room); errors.Is(err, call.ErrNotFound) {
		return "", forbidden("no such room, or you are not in it")
	} else if err != nil {
		return "", err
	}
	stored, ap, err := s.prepare(ctx, v, o)
	if err != nil {
		return "", err
	}
	if stored != "" {
		return stored, nil
	}
	before := v.state[matrix.StateKeyTuple{Type: "m.room.member", Key: stateKeyOf(&ap.Event.Event)}]
	pos, err := s.deps.Store.Append(ctx, o.room, v.info.HeadPos, ap)
	if err != nil {
		return "", err
	}
	ap.Event.Pos = pos
	s.stored(ctx, v, &ap.Event, before)
	return ap.Event.ID, nil
}

func stateKeyOf(e *matrix.Event) string {
	if e.StateKey == nil {
		return ""
	}
	return *e.StateKey
}

// prepare builds and authorises an event. If the same state is there already it
// returns the ID of that event.
func (s *Server) prepare(ctx context.Context, v *roomView, o outgoing) (same matrix.EventID, ap matrix.Append, err error) {
	draft := matrix.Draft{
		RoomID: o.room, Version: v.info.Version, Type: o.typ, StateKey: o.stateKey, Sender: o.sender, Content: o.content,
		Redacts: o.redacts, Sticky: o.sticky, PrevEvents: v.info.Heads, Depth: v.info.Depth + 1, Time: time.Now(),
	}
	keys, err := matrix.AuthTypes(draft)
	if err != nil {
		return "", ap, eventError(err)
	}
	keys = append(keys, matrix.StateKeyTuple{Type: "m.room.member", Key: string(o.sender)})
	if o.stateKey != nil {
		keys = append(keys, matrix.StateKeyTuple{Type: o.typ, Key: *o.stateKey})
	}
	if err := s.need(ctx, v, keys...); err != nil {
		return "", ap, err
	}
	state := func(typ, key string) (*matrix.Event, error) {
		k := matrix.StateKeyTuple{Type: typ, Key: key}
		if err := s.need(ctx, v, k); err != nil {
			return nil, err
		}
		return v.state[k], nil
	}
	if draft.AuthEvents, err = matrix.AuthEventIDs(draft, state); err != nil {
		return "", ap, eventError(err)
	}
	ev, err := matrix.Build(draft, s.key)
	if err != nil {
		return "", ap, eventError(err)
	}
	if err := matrix.Authorise(&ev, state); err != nil {
		return "", ap, eventError(err)
	}
	var current *matrix.Event
	if o.stateKey != nil {
		current = v.state[matrix.StateKeyTuple{Type: o.typ, Key: *o.stateKey}]
	}
	if o.check != nil {
		if err := o.check(current); err != nil {
			return "", ap, err
		}
	}
	if current != nil && current.Sender == o.sender && o.delayID == "" && o.sticky == nil && bytes.Equal(current.Content, ev.Content) {
		return current.ID, ap, nil
	}
	ap.Event = matrix.StoredEvent{Event: ev, Device: o.device, DelayID: o.delayID}
	ap.Txn, ap.DelayID, ap.DelayDue, ap.CancelDelayed = o.txn, o.delayID, o.delayDue, ev.StateKey != nil
	if o.txn != nil {
		ap.Event.TxnID = o.txn.ID
	}
	if o.sticky != nil {
		ap.Event.StickyUntil = time.UnixMilli(ev.OriginServerTS).Add(*o.sticky)
	}
	if ev.Type == "m.room.redaction" {
		if ap.Redacted, err = s.redactionTarget(ctx, v, &ev, state); err != nil {
			return "", ap, err
		}
	}
	return "", ap, nil
}

// redactionTarget returns the redacted form of what a redaction takes away, nil
// if there is nothing (any more).
func (s *Server) redactionTarget(ctx context.Context, v *roomView, ev *matrix.Event, state matrix.StateFunc) (*matrix.Event, error) {
	if ev.Redacts == "" {
		return nil, missingParam("redacts: the event to redact is needed")
	}
	target, err := s.deps.Store.Event(ctx, v.info.ID, ev.Redacts)
	if errors.Is(err, call.ErrNotFound) {
		return nil, notFound("no such event in this room")
	}
	if err != nil {
		return nil, err
	}
	if target.Sender != ev.Sender {
		create, err := state("m.room.create", "")
		if err != nil {
			return nil, err
		}
		levels, err := state("m.room.power_levels", "")
		if err != nil {
			return nil, err
		}
		if !matrix.NewPower(create, levels).CanRedact(ev.Sender) {
			return nil, forbidden("you may not redact other people's events here")
		}
	}
	if target.RedactedBy != nil || target.IsState("m.room.create", "") {
		return nil, nil // the redaction is an event of its own; there is nothing more to take away
	}
	red, err := target.Redact()
	if err != nil {
		return nil, err
	}
	return &red, nil
}

// stored updates the view after an event was stored, wakes whom it concerns and
// tells the watchers. It runs under the room's lock, so that watchers hear of
// changes in their order; they must not call back.
func (s *Server) stored(ctx context.Context, v *roomView, e *matrix.StoredEvent, before *matrix.Event) {
	v.info.HeadPos, v.info.Depth, v.info.Heads = e.Pos, e.Depth, []matrix.EventID{e.ID}
	if e.StateKey != nil {
		v.state[matrix.StateKeyTuple{Type: e.Type, Key: *e.StateKey}] = &e.Event
	}
	if e.Type == "m.room.redaction" && e.Redacts != "" {
		for k, st := range v.state { // a redacted state event has other content now
			if st != nil && st.ID == e.Redacts {
				delete(v.state, k)
			}
		}
	}
	users, err := s.joinedMembers(context.WithoutCancel(ctx), v)
	if err != nil {
		s.log.Error("wake members", "room", v.info.ID, "error", err)
	}
	if e.Type == "m.room.member" && e.StateKey != nil {
		target := matrix.UserID(*e.StateKey)
		if e.Membership() == matrix.MembershipJoin {
			v.joined[target] = true
		} else {
			delete(v.joined, target)
		}
		if !slices.Contains(users, target) {
			users = append(users, target)
		}
		change := matrix.MembershipChange{Room: v.info.ID, User: target, Sender: e.Sender, To: e.Membership()}
		if before != nil {
			change.From = before.Membership()
		}
		if change.From != change.To {
			s.membershipChanged(change)
		}
	}
	s.eventStored(e)
	s.notify.wake(users...)
}

// eventError translates why an event was refused.
func eventError(err error) error {
	var refused *matrix.NotAllowedError
	switch {
	case errors.As(err, &refused):
		return forbidden("%s", refused.Reason)
	case errors.Is(err, matrix.ErrTooLarge):
		return tooLarge("%v", err)
	case errors.Is(err, matrix.ErrNotJSON):
		return &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeNotJSON, Message: err.Error()}
	case errors.Is(err, matrix.ErrBadJSON):
		return badJSON("%v", err)
	}
	return err
}

// stateEvent returns one piece of the current state, nil if there is none.
func (s *Server) stateEvent(ctx context.Context, room matrix.RoomID, typ, key string) (*matrix.StoredEvent, error) {
	l, err := s.deps.Store.StateEvents(ctx, room, 0, matrix.StateKeyTuple{Type: typ, Key: key})
	if err != nil || len(l) == 0 {
		return nil, err
	}
	return &l[0], nil
}

// power returns the power levels of a room as they are now.
func (s *Server) power(ctx context.Context, room matrix.RoomID) (matrix.Power, error) {
	l, err := s.deps.Store.StateEvents(ctx, room, 0, matrix.StateKeyTuple{Type: "m.room.create"}, matrix.StateKeyTuple{Type: "m.room.power_levels"})
	if err != nil {
		return matrix.Power{}, err
	}
	var create, levels *matrix.Event
	for i := range l {
		if l[i].Type == "m.room.create" {
			create = &l[i].Event
		} else {
			levels = &l[i].Event
		}
	}
	return matrix.NewPower(create, levels), nil
}

// usersSharingRooms returns everybody who is joined to a room that the user has
// joined.
func (s *Server) usersSharingRooms(ctx context.Context, user matrix.UserID) ([]matrix.UserID, error) {
	return s.deps.Store.UsersSharingRooms(ctx, user)
}

// Membership returns a user's membership of a room. ErrNotFound: no such room.
func (s *Server) Membership(ctx context.Context, room matrix.RoomID, user matrix.UserID) (matrix.Membership, error) {
	m, err := s.deps.Store.Membership(ctx, room, user)
	return m.Membership, err
}

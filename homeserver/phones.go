package homeserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// This file is what telephones need of a homeserver in the same process. A phone
// is in a room as a user of its own, a ghost: nobody can log in as one, because
// localparts that begin with _ cannot be registered and ghosts have no password
// and no token.

const (
	// ghostPrefix begins the localparts of phones.
	ghostPrefix = "_phone_"
	// Numbers of phones that anybody may invite have this many digits: from
	// extensions of a private exchange to E.164.
	minDigits, maxDigits = 2, 15
)

// ghostKinds translates answers for clients back into the kinds of package call.
var ghostKinds = map[matrix.Code]error{
	matrix.CodeForbidden:       call.ErrForbidden,
	matrix.CodeGuestForbidden:  call.ErrForbidden,
	matrix.CodeNotFound:        call.ErrNotFound,
	matrix.CodeInvalidParam:    call.ErrInvalid,
	matrix.CodeMissingParam:    call.ErrInvalid,
	matrix.CodeBadJSON:         call.ErrInvalid,
	"M_UNABLE_TO_GRANT_JOIN":   call.ErrForbidden,
	matrix.CodeUnsupportedRoom: call.ErrInvalid,
}

// inKind returns err with a kind of package call, if it is an answer that has one.
func inKind(err error) error {
	var e *matrix.Error
	if errors.As(err, &e) {
		if kind, ok := ghostKinds[e.Code]; ok {
			return fmt.Errorf("%s: %w", e.Message, kind)
		}
	}
	return err
}

// PhoneGhost returns the user that stands for a telephone number, "" if number
// has no or too many digits to be one. Everything but digits is passed over.
func (s *Server) PhoneGhost(number string) matrix.UserID {
	digits := digitsOf(number)
	if len(digits) < minDigits || len(digits) > maxDigits {
		return ""
	}
	return s.userID(ghostPrefix + digits)
}

func digitsOf(s string) string {
	return strings.Map(func(c rune) rune {
		if c < '0' || c > '9' {
			return -1
		}
		return c
	}, s)
}

// phoneOf returns the digits of the telephone number for which a user stands, ""
// if it is no such user of this server.
func (s *Server) phoneOf(user matrix.UserID) string {
	digits, ok := strings.CutPrefix(user.Localpart(), ghostPrefix)
	if !ok || user.Server() != s.cfg.ServerName || digits != digitsOf(digits) ||
		len(digits) < minDigits || len(digits) > maxDigits {
		return ""
	}
	return digits
}

// isGhost reports whether a user of this server belongs to the server itself.
func (s *Server) isGhost(user matrix.UserID) bool {
	return user.Server() == s.cfg.ServerName && strings.HasPrefix(user.Localpart(), "_")
}

// SetPhones says how telephone numbers are written in the profiles of their
// ghosts. Users can invite ghosts that are not there yet from then on. It is
// called once, before Handler serves.
func (s *Server) SetPhones(display func(digits string) string) { s.phoneName = display }

// ghostProfile is the profile of a phone that has never called or been called:
// the same as that of one that has, so that nobody learns which numbers have.
func (s *Server) ghostProfile(user matrix.UserID) map[string]json.RawMessage {
	digits := s.phoneOf(user)
	if digits == "" || s.phoneName == nil {
		return nil
	}
	name, err := json.Marshal(s.phoneName(digits))
	if err != nil {
		return nil
	}
	return map[string]json.RawMessage{"displayname": name}
}

// EnsureGhost makes the user of a localpart that begins with "_" if there is
// none, and gives it the display name for its profile.
func (s *Server) EnsureGhost(ctx context.Context, localpart, name string) (matrix.UserID, error) {
	id := s.userID(localpart)
	if !strings.HasPrefix(localpart, "_") || len(id) > 255 {
		return "", fmt.Errorf("%.80q is no user name for a ghost: %w", localpart, call.ErrInvalid)
	}
	acc, err := s.deps.Store.User(ctx, id)
	switch {
	case errors.Is(err, call.ErrNotFound):
		rules, err := json.Marshal(map[string]any{"global": defaultRules(id)})
		if err != nil {
			return "", err
		}
		err = s.deps.Store.CreateUser(ctx, matrix.User{ID: id, Created: time.Now()}, rules)
		if err != nil && !errors.Is(err, call.ErrConflict) { // two calls at once may both make it
			return "", err
		}
	case err != nil:
		return "", err
	case acc.Deactivated:
		return "", fmt.Errorf("%s has been deactivated: %w", id, call.ErrForbidden)
	}
	have, _, err := s.deps.Store.Profile(ctx, id)
	if err != nil && !errors.Is(err, call.ErrNotFound) {
		return "", err
	}
	if name == "" || have == name {
		return id, nil
	}
	value, err := json.Marshal(name)
	if err != nil {
		return "", err
	}
	return id, s.deps.Store.SetProfileField(ctx, id, "displayname", value)
}

// AddGhostDevice gives a ghost a device. It has no token: only this process acts
// as it.
func (s *Server) AddGhostDevice(ctx context.Context, ghost matrix.UserID, device matrix.DeviceID, name string) error {
	if !s.isGhost(ghost) {
		return fmt.Errorf("%s is no ghost: %w", ghost, call.ErrForbidden)
	}
	err := s.deps.Store.CreateSession(ctx, matrix.Session{
		User: ghost, Device: device, DisplayName: name, Access: hashToken(newToken("thk")),
	})
	if err != nil {
		return err
	}
	s.wakeSharing(ctx, ghost)
	return nil
}

// DeleteGhostDevice takes a device from a ghost, with its keys. One that is gone
// already is no error.
func (s *Server) DeleteGhostDevice(ctx context.Context, ghost matrix.UserID, device matrix.DeviceID) error {
	if !s.isGhost(ghost) {
		return fmt.Errorf("%s is no ghost: %w", ghost, call.ErrForbidden)
	}
	return s.deleteDevices(ctx, ghost, device)
}

// ResolveRoom returns the ID of a room for its ID or alias. call.ErrNotFound: no
// such room here.
func (s *Server) ResolveRoom(ctx context.Context, idOrAlias string) (matrix.RoomID, error) {
	id, err := s.resolve(ctx, idOrAlias)
	if err != nil {
		return "", inKind(err)
	}
	if _, err := s.deps.Store.Room(ctx, id); err != nil {
		return "", err
	}
	return id, nil
}

// LiveKitServiceURL returns the token service as clients are told of it.
func (s *Server) LiveKitServiceURL() string { return s.deps.Endpoints().LiveKitServiceURL }

// RoomMembers returns the memberships of a room.
func (s *Server) RoomMembers(ctx context.Context, room matrix.RoomID) ([]matrix.Member, error) {
	return s.deps.Store.Members(ctx, room)
}

// RoomPower returns the power levels of a room.
func (s *Server) RoomPower(ctx context.Context, room matrix.RoomID) (matrix.Power, error) {
	return s.power(ctx, room)
}

// RoomStateEvent returns one piece of a room's state, nil if there is none.
func (s *Server) RoomStateEvent(ctx context.Context, room matrix.RoomID, typ, key string) (*matrix.StoredEvent, error) {
	return s.stateEvent(ctx, room, typ, key)
}

// RoomState returns all state events of a room of one type.
func (s *Server) RoomState(ctx context.Context, room matrix.RoomID, typ string) ([]matrix.StoredEvent, error) {
	return s.deps.Store.StateOfType(ctx, room, typ)
}

// Account returns a user of this server. call.ErrNotFound: there is none.
func (s *Server) Account(ctx context.Context, user matrix.UserID) (matrix.User, error) {
	return s.deps.Store.User(ctx, user)
}

// SetMembershipOf makes target's membership of a room what it should be, as if
// sender had asked for it: the room's rules decide. name, if not empty, stands in
// place of the display name of target's profile; reason may be empty.
func (s *Server) SetMembershipOf(ctx context.Context, room matrix.RoomID, sender, target matrix.UserID, to matrix.Membership, name, reason string) error {
	content := map[string]any{"membership": string(to)}
	if to == matrix.MembershipJoin || to == matrix.MembershipInvite {
		var err error
		if content, err = s.memberContent(ctx, target, to, ""); err != nil {
			return err
		}
		if name != "" {
			content["displayname"] = name
		}
	}
	if reason != "" {
		content["reason"] = reason
	}
	if to == matrix.MembershipJoin {
		now, err := s.deps.Store.Membership(ctx, room, target)
		if err != nil {
			return err
		}
		// A conversation of two stays known as one when its invitation is gone.
		before, err := s.stateEvent(ctx, room, "m.room.member", string(target))
		if err != nil {
			return err
		}
		var was struct {
			IsDirect bool `json:"is_direct"`
		}
		if before != nil && json.Unmarshal(before.Content, &was) == nil && was.IsDirect {
			content["is_direct"] = true
		}
		if now.Membership != matrix.MembershipInvite && now.Membership != matrix.MembershipJoin {
			if err := s.authoriseRestricted(ctx, room, target, content); err != nil {
				return inKind(err)
			}
		}
	}
	return inKind(s.setMembership(ctx, room, sender, "", target, content))
}

// SendStateAs sends a state event as a user, who needs the power to.
func (s *Server) SendStateAs(ctx context.Context, room matrix.RoomID, sender matrix.UserID, device matrix.DeviceID, typ, key string, content any) (matrix.EventID, error) {
	return s.sendAs(ctx, outgoing{room: room, sender: sender, device: device, typ: typ, stateKey: &key}, content)
}

// SendMessageAs sends an event into the timeline of a room as a user.
func (s *Server) SendMessageAs(ctx context.Context, room matrix.RoomID, sender matrix.UserID, device matrix.DeviceID, typ string, content any) (matrix.EventID, error) {
	return s.sendAs(ctx, outgoing{room: room, sender: sender, device: device, typ: typ}, content)
}

// RedactAs takes back an event, as its sender could.
func (s *Server) RedactAs(ctx context.Context, room matrix.RoomID, sender matrix.UserID, device matrix.DeviceID, event matrix.EventID) error {
	_, err := s.sendAs(ctx, outgoing{room: room, sender: sender, device: device, typ: "m.room.redaction", redacts: event}, struct{}{})
	return err
}

func (s *Server) sendAs(ctx context.Context, o outgoing, content any) (matrix.EventID, error) {
	raw, err := json.Marshal(content)
	if err != nil {
		return "", err
	}
	o.content = raw
	id, err := s.send(ctx, o)
	return id, inKind(err)
}

// DirectRoom returns the room in which a ghost and a user are alone, making one
// if there is none. The user is joined to it without being asked: it is where the
// user's clients ring.
func (s *Server) DirectRoom(ctx context.Context, ghost, user matrix.UserID) (matrix.RoomID, error) {
	acc, err := s.deps.Store.User(ctx, user)
	if err != nil {
		return "", err
	}
	if acc.Deactivated || acc.Guest || s.isGhost(user) || !s.isGhost(ghost) {
		return "", fmt.Errorf("%s cannot be called: %w", user, call.ErrNotFound)
	}
	room, err := s.findDirect(ctx, ghost, user)
	if err != nil {
		return "", err
	}
	if room == "" {
		room, err = s.createRoom(ctx, ghost, "", roomRequest{Preset: "trusted_private_chat", Invite: []matrix.UserID{user}, IsDirect: true})
		if err != nil {
			return "", inKind(err)
		}
	}
	m, err := s.deps.Store.Membership(ctx, room, user)
	if err != nil {
		return "", err
	}
	if m.Membership != matrix.MembershipJoin {
		if err := s.SetMembershipOf(ctx, room, user, user, matrix.MembershipJoin, "", ""); err != nil {
			return "", err
		}
	}
	return room, s.markDirect(ctx, user, ghost, room)
}

// findDirect returns a room that has no members but a ghost and a user, both
// joined or the user invited; "" if there is none.
func (s *Server) findDirect(ctx context.Context, ghost, user matrix.UserID) (matrix.RoomID, error) {
	theirs, err := s.deps.Store.Memberships(ctx, ghost)
	if err != nil {
		return "", err
	}
	// The one that was used last, as near as that is known.
	slices.SortFunc(theirs, func(a, b matrix.Member) int { return int(b.Pos - a.Pos) })
	for _, m := range theirs {
		if m.Membership != matrix.MembershipJoin {
			continue
		}
		members, err := s.deps.Store.Members(ctx, m.Room)
		if err != nil {
			return "", err
		}
		here, others := false, false
		for _, o := range members {
			in := o.Membership == matrix.MembershipJoin || o.Membership == matrix.MembershipInvite
			switch {
			case o.User == user:
				here = in
			case o.User != ghost && in:
				others = true
			}
		}
		if here && !others {
			return m.Room, nil
		}
	}
	return "", nil
}

// markDirect notes in a user's account data that a room is the conversation with
// a ghost (client-server API, "Direct Messaging").
func (s *Server) markDirect(ctx context.Context, user, ghost matrix.UserID, room matrix.RoomID) error {
	err := s.deps.Store.UpdateAccountData(ctx, user, "", "m.direct", func(old json.RawMessage) (json.RawMessage, error) {
		direct := map[matrix.UserID][]matrix.RoomID{}
		if old != nil && json.Unmarshal(old, &direct) != nil {
			return old, nil // not ours to mend
		}
		if slices.Contains(direct[ghost], room) {
			return old, nil
		}
		direct[ghost] = append(direct[ghost], room)
		return json.Marshal(direct)
	})
	if err != nil {
		return err
	}
	s.notify.wake(user)
	return nil
}

// ghostInvited makes the ghost of a telephone number that somebody wants to
// invite, so that it can be.
func (s *Server) ghostInvited(ctx context.Context, user matrix.UserID) error {
	digits := s.phoneOf(user)
	if digits == "" || s.phoneName == nil {
		return notFound("there is no user %s", user)
	}
	_, err := s.EnsureGhost(ctx, user.Localpart(), s.phoneName(digits))
	return err
}

// WatchEvents calls f after each event that is stored, except for the first ones
// of a new room. f must be quick and must not call back into the server. No call
// of f begins or is still going on when the returned function returns.
func (s *Server) WatchEvents(f func(matrix.StoredEvent)) (cancel func()) {
	s.watchMu.Lock()
	defer s.watchMu.Unlock()
	if s.eventWatchers == nil {
		s.eventWatchers = make(map[int]func(matrix.StoredEvent))
	}
	id := s.watchSeq
	s.watchSeq++
	s.eventWatchers[id] = f
	return func() {
		s.watchMu.Lock()
		defer s.watchMu.Unlock()
		delete(s.eventWatchers, id)
	}
}

// eventStored tells the watchers.
func (s *Server) eventStored(e *matrix.StoredEvent) {
	s.watchMu.RLock()
	defer s.watchMu.RUnlock()
	for _, f := range s.eventWatchers {
		f(*e)
	}
}

// UploadGhostKeys stores keys of a ghost's device.
func (s *Server) UploadGhostKeys(ctx context.Context, ghost matrix.UserID, device matrix.DeviceID, k matrix.KeyUpload) error {
	if !s.isGhost(ghost) {
		return fmt.Errorf("%s is no ghost: %w", ghost, call.ErrForbidden)
	}
	changed, err := s.deps.Store.UploadKeys(ctx, ghost, device, k)
	if err == nil && changed {
		s.wakeSharing(ctx, ghost)
	}
	return err
}

// SetGhostCrossSigning stores a ghost's cross-signing keys by usage if it has
// none or others.
func (s *Server) SetGhostCrossSigning(ctx context.Context, ghost matrix.UserID, keys map[string]json.RawMessage) error {
	if !s.isGhost(ghost) {
		return fmt.Errorf("%s is no ghost: %w", ghost, call.ErrForbidden)
	}
	have, err := s.deps.Store.CrossSigningKeys(ctx, ghost)
	if err != nil {
		return err
	}
	same := true
	for usage, key := range keys {
		same = same && string(have[usage]) == string(key)
	}
	if same {
		return nil
	}
	if err := s.deps.Store.PutCrossSigningKeys(ctx, ghost, keys); err != nil {
		return err
	}
	s.wakeSharing(ctx, ghost)
	return nil
}

// DeviceKeys returns the identity keys of a user's devices, of all if none is named.
func (s *Server) DeviceKeys(ctx context.Context, user matrix.UserID, devices ...matrix.DeviceID) ([]matrix.DeviceKeys, error) {
	return s.deps.Store.DeviceKeys(ctx, user, devices...)
}

// ClaimKeys takes one-time keys of devices of this server's users; Key stays nil
// where there is none.
func (s *Server) ClaimKeys(ctx context.Context, claims []matrix.KeyClaim) ([]matrix.KeyClaim, error) {
	granted, err := s.deps.Store.ClaimKeys(ctx, claims)
	if err != nil {
		return nil, err
	}
	for _, c := range granted {
		if c.Key != nil {
			s.notify.wake(c.User) // its device has fewer keys now
		}
	}
	return granted, nil
}

// SendToDeviceAs sends messages from a ghost's device to other devices.
func (s *Server) SendToDeviceAs(ctx context.Context, ghost matrix.UserID, device matrix.DeviceID, typ string, messages []matrix.ToDevice) error {
	if !s.isGhost(ghost) {
		return fmt.Errorf("%s is no ghost: %w", ghost, call.ErrForbidden)
	}
	var users []matrix.UserID
	events := make([]matrix.ToDevice, 0, len(messages))
	for _, m := range messages {
		event, err := json.Marshal(map[string]any{"type": typ, "sender": ghost, "content": m.Event})
		if err != nil {
			return err
		}
		events = append(events, matrix.ToDevice{User: m.User, Device: m.Device, Event: event})
		users = append(users, m.User)
	}
	sent, err := s.deps.Store.SendToDevice(ctx, ghost, device, typ+" "+randomID(8), events)
	if err == nil && sent {
		s.notify.wake(users...)
	}
	return err
}

// ReceiveToDevice returns the messages that wait for a ghost's device, as
// {type, sender, content}, and forgets them. It waits until there is one or ctx
// ends.
func (s *Server) ReceiveToDevice(ctx context.Context, ghost matrix.UserID, device matrix.DeviceID) ([]json.RawMessage, error) {
	if !s.isGhost(ghost) {
		return nil, fmt.Errorf("%s is no ghost: %w", ghost, call.ErrForbidden)
	}
	woken, cancel := s.notify.wait(ghost)
	defer cancel()
	for {
		upTo, err := s.deps.Store.Position(ctx)
		if err != nil {
			return nil, err
		}
		events, last, err := s.deps.Store.ToDevice(ctx, ghost, device, upTo, 100)
		if err != nil {
			return nil, err
		}
		if len(events) > 0 {
			return events, s.deps.Store.AckToDevice(ctx, ghost, device, last)
		}
		select {
		case <-woken:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// noGhost refuses to change a user that belongs to the server itself.
func (s *Server) noGhost(user matrix.UserID) error {
	if s.isGhost(user) {
		return &matrix.Error{Status: http.StatusForbidden, Code: matrix.CodeExclusive, Message: "this user belongs to the server"}
	}
	return nil
}

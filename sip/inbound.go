package sip

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/dialog"
	"github.com/trunkhall/trunkhall/sip/guard"
	"github.com/trunkhall/trunkhall/sip/media"
	"github.com/trunkhall/trunkhall/sip/numbers"
)

// joinLimit is how long a phone may wait for its room before it is told that it
// is not there. The homeserver has to let the ghost in and make its keys.
const joinLimit = 3 * time.Second

// lobbyLimit is how long a phone may wait for somebody to let it in.
const lobbyLimit = 30 * time.Minute

// defaultRing is how long a user's clients ring.
const defaultRing = 45 * time.Second

// inbound is the script of a call that came in. The door (doorman, and the dialog
// package's own checks) is behind it, and 100 has been sent.
func (l *leg) inbound() error {
	r := l.dialog.Request()
	l.follow(l.dialog)
	all := l.s.lines.Load()
	t, ok := all.trunk(r.Trunk)
	if !ok {
		l.end(verdict{cause: call.CauseNotAllowed, text: "the trunk is gone", code: 403})
		return nil
	}
	l.trunk = t.Trunk
	l.s.met(t.ID, r.Source.Addr())
	l.introduce(r)
	l.enter(call.LegTrying)
	l.log.Info("call in", "trunk", t.ID, "from", numbers.Mask(l.caller.Number), "to", numbers.Mask(l.snapshot().Local), "call_id", l.dialog.CallID())
	if !l.admitted() {
		return nil
	}
	// Can we speak with it at all?
	if !l.openMedia(r) {
		return nil
	}
	if !l.dispatch(all, r) {
		return nil
	}
	l.talk()
	return nil
}

// introduce reads who calls whom.
func (l *leg) introduce(r *dialog.Request) {
	who := l.s.plan.CallerOf(l.trunk, numbers.Inbound{
		From:      address(r.From, r.Verstat),
		PAI:       addresses(r.Asserted, r.Verstat),
		Privacy:   r.Privacy,
		Diversion: addresses(r.Diversion, ""),
	})
	local, _ := l.s.plan.E164(r.User)
	if l.trunk.Register.AOR != "" && r.User == l.s.token(l.trunk.ID) {
		// The provider calls the contact of our registration; the number is in To.
		local, _ = l.s.plan.E164(r.To.User)
	}
	l.caller = call.Phone{Number: who.Number, Name: who.Name, Direction: call.Inbound, Leg: l.id}
	l.update(func(now *call.Leg) {
		now.Trunk, now.SIPCallID = l.trunk.ID, r.CallID
		now.Number, now.Name, now.Local = who.Number, who.Name, local
	})
	l.attrs = make(map[string]string)
	if who.Forwarded != "" {
		l.attrs[attrForwarded] = who.Forwarded
	}
	if who.Validated {
		l.attrs[attrVerstat] = r.Verstat
	}
	for _, h := range r.All() {
		if who.Anonymous {
			break // a provider's header may tell what the caller does not want told
		}
		// LiveKit hands extension headers on; ours are bounded.
		if goodHeader(h.Name) && len(h.Value) <= 256 && len(l.attrs) < 16 {
			l.attrs["sip.h."+strings.ToLower(h.Name)] = strings.ToValidUTF8(h.Value, "")
		}
	}
}

func address(a dialog.Address, verstat string) numbers.Address {
	out := numbers.Address{Name: a.Name, URI: a.URI}
	if verstat != "" {
		out.Params = map[string]string{"verstat": verstat}
	}
	return out
}

func addresses(list []dialog.Address, verstat string) []numbers.Address {
	var out []numbers.Address
	for _, a := range list {
		out = append(out, address(a, verstat))
	}
	return out
}

// admitted counts the leg in, or refuses it: 503 with Retry-After, so that the
// provider can try another way.
func (l *leg) admitted() bool {
	lease, err := l.s.limits.Begin(time.Now(), guard.Request{
		Direction: call.Inbound, Trunk: l.trunk.ID, MaxCalls: l.trunk.MaxCalls, MaxCPS: l.trunk.MaxCPS,
		Age: -1, Longest: l.trunk.MaxDuration,
	})
	if err != nil {
		l.s.count.step("limits")
		l.end(verdict{cause: causeOf(err), text: err.Error(), code: 503})
		return false
	}
	l.lease = lease
	in := l.trunk.In
	from, to := l.caller.Number, l.snapshot().Local
	raw := l.dialog.Request().User
	if len(in.Numbers) > 0 && !numbers.MatchAny(in.Numbers, to) && !numbers.MatchAny(in.Numbers, raw) {
		l.s.count.step("number")
		l.end(verdict{cause: call.CauseWrongNumber, text: "the number called is not one of the trunk's", code: 404})
		return false
	}
	if len(in.From) > 0 && !numbers.MatchAny(in.From, from) {
		l.s.count.step("caller")
		l.end(verdict{cause: call.CauseNotAllowed, text: "the caller may not call over this trunk", code: 403})
		return false
	}
	return true
}

// openMedia opens the leg's media and reads the offer: 488 if there is nothing in
// common, 400 if it makes no sense.
func (l *leg) openMedia(r *dialog.Request) bool {
	m, err := l.s.pool.Open(l.mediaOptions(r.Source))
	if err != nil {
		l.s.count.step("media")
		l.end(verdict{cause: call.CauseNoLine, text: "no RTP port is free", code: 503})
		return false
	}
	l.sound.media.Store(m)
	if r.Offer == nil {
		l.answer, err = m.Offer() // a late offer: ours goes with the 200
	} else {
		l.answer, err = m.Answer(r.Offer)
	}
	if err == nil {
		return true
	}
	l.s.count.step("media")
	code := 488
	if errors.Is(err, call.ErrInvalid) {
		code = 400
	}
	l.log.Info("the offer is not acceptable", "err", err)
	l.end(verdict{cause: call.CauseMedia, text: "nothing in common to speak with", code: code})
	return false
}

// mediaOptions are those of the leg's trunk. The peer is where its signalling
// comes from.
func (l *leg) mediaOptions(peer netip.AddrPort) media.Options {
	t := l.trunk
	o := media.Options{
		Codecs: codecs(t.Codecs), SRTP: t.SRTP, Keying: t.SRTPKeying, DTMF: t.DTMF,
		Events: media.Events{
			Digit: func(digit byte, how string) { l.postDigit(func() { l.digit(digit) }) },
			Timeout: func(why string) {
				l.post(func() { l.end(verdict{cause: call.CauseMedia, text: "no sound came: " + why, q850: 102}) })
			},
		},
	}
	o.ExternalIP = l.s.public(t)
	if peer.IsValid() {
		ip := peer.Addr().Unmap()
		o.Sources = append(o.Sources, netip.PrefixFrom(ip, ip.BitLen()))
	}
	for _, cidr := range t.In.CIDRs {
		if p, err := parsePrefix(cidr); err == nil {
			o.Sources = append(o.Sources, p.Masked())
		}
	}
	return o
}

// dispatch brings the phone to its room. It reports whether it is there.
func (l *leg) dispatch(all *lines, r *dialog.Request) bool {
	local := l.snapshot().Local
	rules := all.rulesFor(l.trunk.ID, []string{local, r.User}, []string{l.caller.Number})
	if len(rules) == 0 {
		l.s.count.step("dispatch")
		l.log.Info("no dispatch rule takes the number", "to", numbers.Mask(local))
		l.end(verdict{cause: call.CauseWrongNumber, text: "no dispatch rule takes the number", code: 404})
		return false
	}
	l.goBy(rules[0])
	switch rules[0].Action.Type {
	case "pin":
		return l.toMenu(l.s.directory.RoomByPIN, l.s.pinLength())
	case "user":
		return l.toUser()
	case "room", "individual", "callee":
		if rules[0].Action.PIN != "" {
			return l.toDoors(rules)
		}
		return l.toRoom()
	}
	l.end(verdict{cause: call.CauseFailed, text: "the dispatch rule makes no sense", code: 500})
	return false
}

// hide says whether the room is kept from seeing the other side's number.
func (l *leg) hide(on bool) {
	l.private = on
	l.update(func(now *call.Leg) { now.Hidden = on })
}

// goBy makes rule the one that the leg goes by.
func (l *leg) goBy(rule call.DispatchRule) {
	l.rule = rule
	l.hide(rule.Action.HideNumber)
	l.caller.HideNumber = rule.Action.HideNumber
	if l.private && sameDigits(l.caller.Name, l.caller.Number) {
		l.caller.Name = "" // many exchanges send the number as the name
		l.update(func(now *call.Leg) { now.Name = "" })
	}
}

// toDoors asks for the PIN of one of the rules for the call. As with LiveKit there
// may be several with different PINs: the one that is entered decides.
func (l *leg) toDoors(rules []call.DispatchRule) bool {
	length := len(rules[0].Action.PIN)
	var opened atomic.Pointer[call.DispatchRule]
	for _, r := range rules {
		if pin := r.Action.PIN; pin != "" && len(pin) != length {
			length = 0 // the caller has to press #
		}
	}
	return l.toMenu(func(ctx context.Context, entered string) (call.Place, error) {
		for _, r := range rules {
			if r.Action.PIN == "" || !slices.Contains([]string{"room", "individual", "callee"}, r.Action.Type) || !samePIN(r.Action.PIN, entered) {
				continue
			}
			place, err := l.s.directory.Room(ctx, l.roomName(r.Action))
			if err == nil {
				opened.Store(&r)
			}
			return place, err
		}
		return call.Place{}, fmt.Errorf("PIN: %w", call.ErrNotFound)
	}, length, func() { l.goBy(*opened.Load()) })
}

// roomName is the room of a rule that names one or makes one for each caller or
// each number, as LiveKit's dispatch rules do.
func (l *leg) roomName(a call.DispatchAction) string {
	if a.Type == "room" {
		return a.Room
	}
	part := l.caller.Number
	if a.Type == "callee" {
		part = l.snapshot().Local
	}
	part = roomPart(part)
	name := part
	switch {
	case a.Room != "":
		name = a.Room + "_" + part
	case part != anonymousPart && strings.Trim(part, "+0123456789") != "":
		// Callers write it themselves. It must not become the name of another room.
		name = "phone_" + part
	}
	if a.Randomize {
		name += "_" + rand.Text()[:12]
	}
	return name
}

// anonymousPart stands for the number of callers who show none.
const anonymousPart = "anonymous"

// roomPart is a number as a part of a room's name. What is none, such as the name of
// somebody on a private exchange, keeps its letters and digits: "#alias:server" and
// "!id:server" would be rooms of Matrix.
func roomPart(number string) string {
	part := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("+-._", r) {
			return r
		}
		return -1
	}, number)
	if part == "" {
		return anonymousPart
	}
	return part
}

// toRoom joins first and answers when the phone has its seat.
func (l *leg) toRoom() bool {
	if l.trunk.EarlyMedia {
		l.ringWithSound()
	}
	phone, name := l.caller, l.roomName(l.rule.Action)
	seat, err := await(l, joinLimit, func(ctx context.Context) (call.Seat, error) {
		place, err := l.s.directory.Room(ctx, name)
		if err != nil {
			return call.Seat{}, err
		}
		return l.s.directory.Seat(ctx, place, phone)
	})
	if err == nil {
		l.seated(seat)
	}
	if l.over {
		return false
	}
	if err != nil {
		return l.refuseSeat(err)
	}
	if l.seat.Lobby != nil {
		// Whoever has to wait must be told so, which only an answered phone can be.
		return l.answerCall() && l.waitInLobby() && l.join("active") && l.greet()
	}
	return l.join("active") && l.answerCall() && l.greet()
}

// toMenu answers at once, since nobody can be heard to press a key otherwise: for
// the caller's provider the call is paid for from here on. found, if given, is
// called once a PIN was right.
func (l *leg) toMenu(find finder, length int, found ...func()) bool {
	l.startVoice()
	if !l.answerCall() {
		return false
	}
	place, err := l.askPIN(find, length)
	if err != nil {
		return false
	}
	for _, f := range found {
		f()
	}
	if err := l.takeSeat(place, lookupLimit); err != nil {
		return l.refuseAloud(err)
	}
	return l.waitInLobby() && l.join("active") && l.greet()
}

// toUser rings a user's clients.
func (l *leg) toUser() bool {
	if l.trunk.EarlyMedia {
		l.ringWithSound()
	} else if err := l.dialog.Ring(); err == nil {
		l.enter(call.LegRinging)
	}
	timeout := l.rule.Action.Timeout
	if timeout == 0 {
		timeout = defaultRing
	}
	phone := l.caller
	seat, err := await(l, timeout+joinLimit, func(ctx context.Context) (call.Seat, error) {
		return l.s.directory.Ring(ctx, l.rule.Action.User, phone, timeout)
	})
	if err == nil {
		l.seated(seat)
	}
	switch {
	case l.over:
		return false
	case err == nil:
		return l.join("active") && l.answerCall() && l.greet()
	case errors.Is(err, call.ErrForbidden):
		l.end(verdict{cause: call.CauseBusy, text: "the call was declined", code: 486})
	case errors.Is(err, call.ErrNotFound):
		l.end(verdict{cause: call.CauseWrongNumber, text: "there is no such user", code: 404})
	default:
		l.log.Info("nobody answered", "err", err)
		l.end(verdict{cause: call.CauseNoAnswer, text: "nobody answered", code: 480})
	}
	return false
}

// ringWithSound sends 183 and the ringing tone (RFC 3960 §3.2), for trunks whose
// callers would hear nothing otherwise.
func (l *leg) ringWithSound() {
	if l.dialog.Request().Offer == nil {
		_ = l.dialog.Ring() // a late offer has no answer for a 183 to carry
		l.enter(call.LegRinging)
		return
	}
	if err := l.dialog.Progress(183, l.answer); err != nil {
		l.log.Debug("send 183", "err", err)
		return
	}
	l.enter(call.LegEarly)
	l.startVoice()
	l.voice.setTone(&audio.Ringback)
}

// answerCall sends 200. The ACK is waited for beside: until it comes the phone is
// in its room already.
func (l *leg) answerCall() bool {
	if l.over {
		return false
	}
	if m := l.sound.media.Load(); m != nil {
		m.Start()
	}
	l.lease.Answered(time.Now())
	l.enter(call.LegAnswered)
	l.s.count.setup(time.Since(l.inviteAt))
	d, sdp := l.dialog, l.answer
	l.background(func(ctx context.Context) {
		err := d.Answer(ctx, sdp)
		l.post(func() {
			if err == nil {
				l.enter(call.LegConfirmed)
				return
			}
			if l.over {
				return
			}
			l.log.Info("the answer was not acknowledged", "err", err)
			l.end(verdict{cause: call.CauseFailed, text: noAck, q850: 102})
		})
	})
	return true
}

// takeSeat asks the directory for a place in the room.
func (l *leg) takeSeat(place call.Place, limit time.Duration) error {
	phone := l.caller
	seat, err := await(l, limit, func(ctx context.Context) (call.Seat, error) {
		return l.s.directory.Seat(ctx, place, phone)
	})
	if err == nil {
		l.seated(seat)
	}
	if l.over {
		return errOver
	}
	return err
}

// seated notes a seat, which will be given back whatever happens.
func (l *leg) seated(seat call.Seat) {
	l.seat = &seat
	l.update(func(now *call.Leg) {
		now.Room, now.RoomID = seat.Room, seat.RoomID
		now.Encrypted = seat.Keys != nil
	})
}

// refuseSeat answers the INVITE of a phone that gets no seat.
func (l *leg) refuseSeat(err error) bool {
	if l.over || errors.Is(err, errOver) {
		return false
	}
	v := verdict{cause: call.CauseNoAnswer, text: "the room is not there at the moment", code: 480}
	switch {
	case errors.Is(err, call.ErrRoomFull):
		v = verdict{cause: call.CauseBusy, text: "the room is full", code: 486}
	case errors.Is(err, call.ErrForbidden):
		v = verdict{cause: call.CauseRejected, text: withoutKind(err), code: 403}
	case errors.Is(err, call.ErrNotFound):
		v = verdict{cause: call.CauseWrongNumber, text: "there is no such room", code: 404}
	}
	l.log.Info("no seat", "err", err)
	l.end(v)
	return false
}

// refuseAloud tells somebody who has been answered.
func (l *leg) refuseAloud(err error) bool {
	if l.over || errors.Is(err, errOver) {
		return false
	}
	prompt, v := promptUnavailable, verdict{cause: call.CauseFailed, text: "the room is not there at the moment", q850: 41}
	switch {
	case errors.Is(err, call.ErrRoomFull):
		prompt, v = promptFull, verdict{cause: call.CauseBusy, text: "the room is full", q850: 17}
	case errors.Is(err, call.ErrRoomEncrypted):
		prompt, v = promptNotAllowed, verdict{cause: call.CauseRejected, text: "the room's calls are encrypted and take no telephones", q850: 21}
	case errors.Is(err, call.ErrForbidden):
		prompt, v = promptLocked, verdict{cause: call.CauseRejected, text: "the room is locked", q850: 21}
	}
	l.log.Info("no seat", "err", err)
	l.sayAndWait(prompt, promptGoodbye)
	l.end(v)
	return false
}

// waitInLobby waits until somebody lets the phone in, if the room wants that.
func (l *leg) waitInLobby() bool {
	if l.seat.Lobby == nil {
		return !l.over
	}
	l.startVoice()
	l.voice.setTone(&beep)
	l.say(promptLobby)
	l.setStatus("lobby")
	refused := l.seat.Refused
	decided := either(l.seat.Lobby, eitherOr(refused, l.ctx.Done()))
	left, _ := l.lease.Left(time.Now())
	timer := time.NewTimer(min(left, lobbyLimit))
	defer timer.Stop()
	if !l.pump(decided, timer.C) {
		return false
	}
	l.voice.setTone(nil)
	l.voice.hush()
	select {
	case <-l.seat.Lobby:
		return true
	default:
	}
	l.sayAndWait(promptNotLetIn, promptGoodbye)
	l.end(verdict{cause: call.CauseRejected, text: "nobody let the phone in", q850: 21})
	return false
}

// greet is what a phone hears first in a room.
func (l *leg) greet() bool {
	if l.over {
		return false
	}
	if !slices.Contains([]string{"room", "user"}, l.rule.Action.Type) || l.rule.Action.PIN != "" {
		l.say(promptJoined)
	}
	return true
}

// eitherOr is either for channels of which the first may be nil.
func eitherOr(a, b <-chan struct{}) <-chan struct{} {
	if a == nil {
		return b
	}
	return either(a, b)
}

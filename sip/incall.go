package sip

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
	"github.com/trunkhall/trunkhall/sip/bridge"
	"github.com/trunkhall/trunkhall/sip/dialog"
	"github.com/trunkhall/trunkhall/sip/numbers"
)

// The attributes of a phone's participant: LiveKit's names, which its SDKs and
// user interfaces know, and two of our own.
const (
	attrCallID      = "sip.callID"
	attrCallIDFull  = "sip.callIDFull"
	attrStatus      = "sip.callStatus" // dialing, ringing, automation, active, hangup
	attrTrunk       = "sip.trunkID"
	attrTrunkNumber = "sip.trunkPhoneNumber"
	attrNumber      = "sip.phoneNumber"
	attrRule        = "sip.ruleID"
	attrHost        = "sip.hostname"
	attrForwarded   = "trunkhall.forwardedBy"
	attrVerstat     = "trunkhall.verstat"
)

// reserved are prefixes of attributes that no request may set.
var reserved = []string{"sip.", "trunkhall.", "lk."}

// join takes the seat in the room: from here on the bridge ticks the leg's sound.
func (l *leg) join(status string) bool {
	if l.over {
		return false
	}
	l.stopVoice()
	left := make(chan struct{})
	o := bridge.PhoneOptions{
		Sound: l.sound,
		Name:  l.seat.Grant.Name,
		Attrs: l.attributes(status),
		Events: func(e bridge.Event) {
			if _, removed := e.(bridge.Removed); removed {
				close(left)
			}
			l.post(func() { l.onRoom(e) })
		},
	}
	seat := *l.seat
	for _, metadata := range []string{l.rule.Action.Metadata, l.trunk.Metadata} {
		if seat.Grant.Metadata == "" {
			seat.Grant.Metadata = metadata
		}
	}
	phone, err := l.enterRoom(seat, o)
	if err == nil {
		l.phone, l.left = phone, left
		l.update(func(now *call.Leg) { now.Identity = phone.Identity() })
		if !l.snapshot().Answered.IsZero() {
			l.note()
		}
	}
	switch {
	case l.over:
		return false
	case err == nil:
		return true
	case l.snapshot().Answered.IsZero():
		return l.refuseSeat(err)
	}
	l.startVoice()
	return l.refuseAloud(err)
}

// enterRoom joins the bridge. A room that is so busy that it does not answer in
// time is given up, and left again if it lets the phone in after all.
func (l *leg) enterRoom(seat call.Seat, o bridge.PhoneOptions) (*bridge.Phone, error) {
	type result struct {
		phone *bridge.Phone
		err   error
	}
	ctx, cancel := context.WithTimeout(l.ctx, joinLimit)
	joined, got := make(chan struct{}), result{}
	l.work.Go(func() {
		defer cancel()
		defer close(joined)
		got.phone, got.err = l.s.bridges.Join(ctx, seat, o)
	})
	timer := time.NewTimer(joinLimit)
	defer timer.Stop()
	l.pump(joined, timer.C)
	select {
	case <-joined:
		return got.phone, got.err
	default:
	}
	l.work.Go(func() {
		if <-joined; got.err == nil {
			got.phone.Leave(sfu.ReasonJoinFailure)
		}
	})
	return nil, fmt.Errorf("room %s does not answer: %w", seat.Room, call.ErrUnavailable)
}

// attributes are those of the participant at the beginning.
func (l *leg) attributes(status string) map[string]string {
	now := l.snapshot()
	attrs := make(map[string]string)
	maps.Copy(attrs, l.rule.Action.Attrs)
	maps.Copy(attrs, l.attrs)
	if l.private {
		maps.DeleteFunc(attrs, func(name, _ string) bool { return name == attrForwarded || strings.HasPrefix(name, "sip.h.") })
	}
	host, _ := os.Hostname()
	for name, value := range map[string]string{
		attrCallID: string(l.id), attrCallIDFull: now.SIPCallID, attrStatus: status, attrTrunk: now.Trunk,
		attrTrunkNumber: now.Local, attrNumber: now.Number, attrRule: l.rule.ID, attrHost: host,
	} {
		if value != "" && !(l.private && name == attrNumber) {
			attrs[name] = value
		}
	}
	return attrs
}

// setStatus shows the room how far the call is.
func (l *leg) setStatus(status string) {
	if l.phone != nil {
		l.phone.SetAttributes(map[string]string{attrStatus: status})
	}
}

// talk is the rest of an answered leg's life: it lasts until something ends it,
// at the latest when its time or a budget is used up.
func (l *leg) talk() {
	if l.alone {
		l.say(promptAlone)
	}
	for !l.over {
		left, why := l.lease.Left(time.Now())
		if left <= 0 {
			l.log.Info("the call's time is over", "limit", why)
			l.say(promptLimit)
			l.pause(3 * time.Second)
			l.end(verdict{cause: call.CauseLimit, text: limitText(why), q850: 31})
			return
		}
		if l.abandoned(time.Now()) {
			l.log.Info("nobody else is in the call")
			l.end(verdict{cause: call.CauseRoomEnded, text: "nobody else was in the call", q850: 16})
			return
		}
		l.pause(min(left, time.Minute))
	}
}

// aloneLimit is how long a phone that was called from here may be alone in its
// room: whoever called it has gone, and it is this side that pays.
const aloneLimit = 10 * time.Minute

// abandoned reports whether the leg is to end because nobody is there any more. A
// phone that called in itself may wait as long as it likes.
func (l *leg) abandoned(now time.Time) bool {
	return l.alone && l.snapshot().Direction == call.Outbound && now.Sub(l.aloneSince) >= aloneLimit
}

func limitText(limit string) string {
	switch limit {
	case "user_minutes", "daily_minutes", "night":
		return "the telephone minutes are used up"
	}
	return "the call has reached its longest duration"
}

// onRoom hears what happens to the phone in its room.
func (l *leg) onRoom(e bridge.Event) {
	if l.over {
		return
	}
	switch e := e.(type) {
	case bridge.Removed:
		l.end(removal(e.Reason))
	case bridge.Muted:
		l.update(func(now *call.Leg) { now.Muted = e.Muted })
		if e.Muted {
			l.say(promptModMuted)
		} else {
			l.say(promptModUnmuted)
		}
	case bridge.Alone:
		if e.Alone && !l.alone {
			l.aloneSince = time.Now()
		}
		if l.alone = e.Alone; l.alone && !l.snapshot().Answered.IsZero() {
			l.say(promptAlone)
		}
	}
}

// removal is how a leg ends whose phone is out of the room.
func removal(why sfu.Reason) verdict {
	switch why {
	case sfu.ReasonRoomDeleted, sfu.ReasonRoomClosed:
		return verdict{cause: call.CauseRoomEnded, text: "the call in the room has ended", code: 480, q850: 16}
	case sfu.ReasonServerShutdown:
		return shutdown
	}
	return verdict{cause: call.CauseRemoved, text: "removed from the room", code: 403, q850: 16}
}

var shutdown = verdict{cause: call.CauseShutdown, text: "the server is stopping", code: 503, q850: 41}

// onEvent hears what happens to the leg's dialog, and to those it had.
func (l *leg) onEvent(d *dialog.Call, e dialog.Event) {
	if d != l.dialog {
		return // an earlier attempt, or one that was replaced
	}
	switch e := e.(type) {
	case dialog.Progress:
		l.onProgress(e)
	case dialog.Answered:
		l.onAnswered(d, e)
	case dialog.Confirmed:
		l.onConfirmed(e)
	case dialog.Offered:
		l.onOffer(d, e)
	case dialog.Digits:
		l.digit(e.Digit)
	case dialog.Referred:
		l.onRefer(d, e)
	case dialog.ReferProgress:
		select {
		case l.refers <- e:
		default: // nobody asked, or too many
		}
	case dialog.Ended:
		l.onEnded(e)
	}
}

// onConfirmed is the ACK; its description answers an offer of ours.
func (l *leg) onConfirmed(e dialog.Confirmed) {
	if e.SDP == nil || l.over {
		return
	}
	if err := l.sound.media.Load().Accept(e.SDP, true); err != nil {
		l.log.Info("the answer is not acceptable", "err", err)
		l.end(verdict{cause: call.CauseMedia, text: "nothing in common to speak with", q850: 88})
		return
	}
	l.noteHold()
}

// onOffer answers a re-INVITE or an UPDATE.
func (l *leg) onOffer(d *dialog.Call, e dialog.Offered) {
	m := l.sound.media.Load()
	if l.over || m == nil {
		_ = d.Refuse(e.ID, 488)
		return
	}
	var sdp []byte
	var err error
	if e.SDP == nil {
		sdp, err = m.Offer()
	} else {
		sdp, err = m.Answer(e.SDP)
	}
	switch {
	case errors.Is(err, call.ErrInvalid):
		err = d.Refuse(e.ID, 400)
	case err != nil:
		l.log.Info("the new offer is not acceptable; the call goes on as before", "err", err)
		err = d.Refuse(e.ID, 488)
	default:
		err = d.Accept(e.ID, sdp)
		l.noteHold()
	}
	if err != nil {
		l.log.Debug("answer an offer", "err", err)
	}
}

// noteHold shows the room whether the phone is on hold.
func (l *leg) noteHold() {
	held := l.sound.media.Load().RemoteHold()
	if held == l.snapshot().Held {
		return
	}
	l.update(func(now *call.Leg) { now.Held = held })
	if l.phone != nil {
		l.phone.SetHold(held)
	}
	l.log.Debug("hold", "on", held)
}

// onEnded is the end of the dialog, whoever wanted it.
func (l *leg) onEnded(e dialog.Ended) {
	if l.dialing != nil && l.dialing(e) {
		return // another trunk is tried
	}
	if l.over {
		l.update(func(now *call.Leg) {
			if now.Code == 0 {
				now.Code = e.Code
			}
			if e.Q850 != 0 {
				now.Q850 = e.Q850
			}
		})
		return
	}
	l.end(ending(e, !l.snapshot().Answered.IsZero(), l.snapshot().Direction))
	l.farewell = nil
}

// noAck is what an operator should look at when calls die after half a minute.
const noAck = "the other side did not confirm the answer: its ACK does not arrive (look at external_ip and NAT)"

// ending is how a leg ends whose dialog has.
func ending(e dialog.Ended, answered bool, dir call.Direction) verdict {
	v := verdict{code: e.Code, theirs: e.Q850}
	switch {
	case e.Cause == dialog.EndBye, e.Cause == dialog.EndReplaced:
		v.cause, v.text = call.CauseHangup, "the other side hung up"
	case e.Cause == dialog.EndShutdown:
		v.cause, v.text = shutdown.cause, shutdown.text
	case e.Cause == dialog.EndCancelled && dir == call.Inbound:
		v.cause, v.text = call.CauseCancelled, "the caller gave up"
	case e.Cause == dialog.EndNoAck:
		v.cause, v.text = call.CauseFailed, noAck
	case e.Cause == dialog.EndSession:
		v.cause, v.text = call.CauseFailed, "the other side is gone: the session timer ran out"
	case e.Cause == dialog.EndTransport && answered:
		v.cause, v.text = call.CauseFailed, "the connection to the other side was lost"
	default:
		v.cause, v.text = refusal(e)
	}
	return v
}

// refusal says why nobody answered, as programs and as people read it.
func refusal(e dialog.Ended) (call.Cause, string) {
	switch {
	case e.Cause == dialog.EndTransport:
		return call.CauseNoLine, "the telephone line cannot be reached"
	case e.Cause == dialog.EndTimeout:
		return call.CauseNoAnswer, "nobody answered"
	}
	switch e.Code {
	case 486, 600:
		return call.CauseBusy, "the line is busy"
	case 480, 408, 487:
		return call.CauseNoAnswer, "nobody answered"
	case 403, 603, 607, 608:
		return call.CauseRejected, "the call was declined"
	case 404, 410, 484, 604:
		return call.CauseWrongNumber, "there is no such number"
	case 415, 488, 606:
		return call.CauseMedia, "nothing in common to speak with"
	case 401, 407:
		return call.CauseNoLine, "the provider does not accept our password"
	}
	if e.Code >= 500 && e.Code < 600 {
		return call.CauseNoLine, "no line is free"
	}
	return call.CauseFailed, "the call failed"
}

// maxDigitRate is how many keys of a phone count in a second.
const maxDigitRate = 25

// digit is one key that the phone pressed. Which one is never logged.
func (l *leg) digit(digit byte) {
	if now := time.Now(); now.Sub(l.digitsAt) >= time.Second {
		l.digits, l.digitsAt = 0, now
	}
	if l.digits++; l.digits > maxDigitRate {
		return // no finger is that fast; each would go to everybody in the room
	}
	l.s.count.digits.Add(1)
	switch {
	case l.over:
	case l.pressed != nil:
		l.pressed(digit)
	case l.phone != nil && !l.snapshot().Answered.IsZero():
		if f := l.s.onDigit.Load(); f != nil {
			now := l.snapshot()
			(*f)(now.Room, now.Identity, digit)
		}
		l.starCode(l.keys.press(digit))
	}
}

// starCode does what a star code asks for.
func (l *leg) starCode(name string) {
	switch name {
	case keyMute:
		muted := !l.snapshot().Muted
		l.phone.SetMuted(muted)
		l.update(func(now *call.Leg) { now.Muted = muted })
		l.say(pick(muted, promptMuted, promptUnmuted))
	case keyHand:
		up := !l.snapshot().Hand
		l.phone.SetHand(up)
		if show := l.seat.Hand; show != nil {
			l.background(func(ctx context.Context) {
				if err := show(ctx, up); err != nil {
					l.log.Info("the hand could not be shown in the room", "err", err)
				}
			})
		}
		l.update(func(now *call.Leg) { now.Hand = up })
		l.say(pick(up, promptHandUp, promptHandDown))
	case keyHelp:
		l.say(promptHelp)
	case keyLeave:
		l.end(verdict{cause: call.CauseHangup, text: "left by pressing keys", q850: 16})
	}
}

func pick(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}

// press sends digits to the phone, as its trunk wants them.
func (l *leg) press(digits string) {
	l.s.count.digits.Add(uint64(len(digits)))
	if l.trunk.DTMF != "info" {
		if m := l.sound.media.Load(); m != nil {
			m.Press(digits)
		}
		return
	}
	if l.toPress += digits; len(l.toPress) > maxToPress {
		l.toPress = l.toPress[:maxToPress]
	}
	if !l.pressing {
		l.sendKeys()
	}
}

// maxToPress is how many digits may wait to go out by INFO; more are lost.
const maxToPress = 64

// sendKeys sends the digits that wait, one after the other, however many ask.
func (l *leg) sendKeys() {
	digits, d := l.toPress, l.dialog
	l.toPress, l.pressing = "", digits != ""
	if !l.pressing {
		return
	}
	l.background(func(ctx context.Context) {
		defer l.post(func() {
			if l.pressing = false; !l.over {
				l.sendKeys()
			}
		})
		for _, digit := range []byte(digits) {
			wait := 160 * time.Millisecond
			if digit == 'w' {
				wait = 500 * time.Millisecond
			} else if err := d.Info(ctx, digit, 100*time.Millisecond); err != nil {
				return
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
		}
	})
}

// cleanDigits returns digits as they can be pressed.
func cleanDigits(digits string) (string, error) {
	digits = strings.Map(func(r rune) rune {
		switch {
		case r == ' ' || r == '-':
			return -1
		case r == 'W' || r == ',':
			return 'w'
		case r >= 'a' && r <= 'd':
			return r - 'a' + 'A'
		}
		return r
	}, digits)
	if len(digits) > 64 || strings.Trim(digits, "0123456789*#ABCDw") != "" {
		return "", fmt.Errorf("digits are 0-9 * # A-D and w, at most 64: %w", call.ErrInvalid)
	}
	return digits, nil
}

// takeOver gives the leg another dialog: an attended transfer moved the phone's end
// elsewhere (RFC 3891). The room does not notice. The old dialog is ended by its
// endpoint when the new one is answered.
func (l *leg) takeOver(by *dialog.Call) {
	l.follow(by)
	if l.snapshot().Answered.IsZero() {
		// What is ringing still has a script that waits for its own answer.
		_ = by.Reject(481, "")
		return
	}
	r := by.Request()
	m, err := l.s.pool.Open(l.mediaOptions(r.Source))
	if err != nil {
		_ = by.Reject(503, "")
		return
	}
	var sdp []byte
	if r.Offer == nil {
		sdp, err = m.Offer()
	} else {
		sdp, err = m.Answer(r.Offer)
	}
	if err != nil {
		m.Close()
		_ = by.Reject(488, "")
		return
	}
	if old := l.sound.media.Swap(m); old != nil {
		old.Close()
	}
	m.Start()
	l.use(by)
	l.update(func(now *call.Leg) { now.SIPCallID = r.CallID })
	l.log.Info("the call was taken over by another dialog", "call_id", r.CallID)
	l.noteHold()
	l.background(func(ctx context.Context) {
		if err := by.Answer(ctx, sdp); err != nil {
			l.post(func() {
				l.end(verdict{cause: call.CauseFailed, text: noAck, q850: 102})
			})
		}
	})
}

// onRefer is a phone that wants us to call somebody else into its room (RFC 3515):
// a call out like any other, at the operator's cost, and so refused unless the
// operator allows it.
func (l *leg) onRefer(d *dialog.Call, e dialog.Referred) {
	refuse := func(why string) {
		l.log.Info("a phone's transfer is refused", "why", why)
		if err := d.ReferResult(e.ID, 603, "Decline"); err != nil {
			l.log.Debug("refuse a transfer", "err", err)
		}
	}
	now := l.snapshot()
	switch {
	case l.over || l.phone == nil:
		refuse("not in a room")
		return
	case e.Call != nil:
		if other := l.s.byDialog(e.Call); other != nil && other.snapshot().Room == now.Room {
			// Both ends are in this room already: nothing is left to be done.
			_ = d.ReferResult(e.ID, 200, "OK")
			return
		}
		refuse("the other call is in another room")
		return
	case !l.s.cfg.Outbound.AllowRefer:
		refuse("outbound.allow_refer is off")
		return
	}
	by := now.By
	if by == "" {
		by = "trunk:" + l.trunk.ID // a budget of its own
	}
	req := call.DialRequest{Room: now.Room, RoomID: now.RoomID, By: by, Number: e.To.User}
	l.s.background(func(ctx context.Context) {
		l.s.refer(ctx, l, d, e, req)
	})
}

// refer places the call that a phone asked for and tells it how that goes.
func (s *Server) refer(ctx context.Context, l *leg, d *dialog.Call, e dialog.Referred, req call.DialRequest) {
	report := func(code int, reason string) {
		if err := d.ReferResult(e.ID, code, reason); err != nil {
			s.log.Debug("report a transfer", "err", err)
		}
	}
	leg, err := s.dial(ctx, req, dialExtra{replaces: e.Replaces, referred: true})
	if err != nil {
		var refusal *numbers.Refusal
		if errors.As(err, &refusal) && refusal.Reason == numbers.Emergency {
			l.post(func() { l.say(promptEmergency) })
		}
		report(603, "Decline")
		return
	}
	report(100, "Trying")
	for ringing := false; ; {
		switch {
		case ctx.Err() != nil:
			report(500, "Server Internal Error")
			return
		case leg.State == call.LegAnswered || leg.State == call.LegConfirmed:
			report(200, "OK")
			return
		case leg.State == call.LegEnded:
			code := leg.Code
			if code < 300 {
				code = 480
			}
			report(code, "")
			return
		case leg.State == call.LegRinging && !ringing:
			ringing = true
			report(180, "Ringing")
		}
		if leg, err = s.Wait(ctx, leg.ID, leg.State); err != nil {
			report(500, "Server Internal Error")
			return
		}
	}
}

// reservedAttr reports whether an attribute is the gateway's own to set.
func reservedAttr(name string) bool {
	return slices.ContainsFunc(reserved, func(p string) bool { return strings.HasPrefix(name, p) })
}

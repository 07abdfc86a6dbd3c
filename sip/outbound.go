package sip

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/dialog"
	"github.com/trunkhall/trunkhall/sip/guard"
	"github.com/trunkhall/trunkhall/sip/media"
	"github.com/trunkhall/trunkhall/sip/numbers"
)

// silence is how long a target has for its first answer, 100 too. Timer B (32 s,
// RFC 3261 §17.1.1.2) is longer than anybody waits for the next line.
const silence = 8 * time.Second

// inlineTrunk is the id of a trunk that came with the request.
const inlineTrunk = "inline"

// dialExtra is what only the gateway itself may ask of a call out.
type dialExtra struct {
	replaces string // RFC 3891
	referred bool   // by a phone: the operator has allowed it, nobody else is asked
}

// A refused is why a call was not placed.
type refused struct {
	cause call.Cause
	err   error
}

func (r *refused) Error() string     { return r.err.Error() }
func (r *refused) Unwrap() error     { return r.err }
func (r *refused) Cause() call.Cause { return r.cause }

// Dial calls a number into a room. It returns once the INVITE is on its way, or
// says why it is not: the error wraps call.ErrForbidden (rights, policy, budget),
// call.ErrInvalid (no number), call.ErrUnavailable (no line), call.ErrNotFound
// (no such trunk or room); CauseOf tells the cause. The leg is returned with an
// error too, as ended. Wait follows what becomes of it.
func (s *Server) Dial(ctx context.Context, r call.DialRequest) (call.Leg, error) {
	return s.dial(ctx, r, dialExtra{})
}

func (s *Server) dial(ctx context.Context, r call.DialRequest, x dialExtra) (call.Leg, error) {
	l := s.newLeg(call.Outbound)
	l.now.Room, l.now.RoomID, l.now.By, l.now.Name = r.Room, r.RoomID, r.By, r.Name
	p, err := s.decideRoute(ctx, r, x)
	l.now.Number = p.number
	if l.now.Number == "" {
		l.now.Number = printable(r.Number)
	}
	if err != nil {
		return l.refuse(err), err
	}
	if !s.add(l) {
		err := &refused{call.CauseShutdown, fmt.Errorf("the server is stopping: %w", call.ErrUnavailable)}
		return l.refuse(err), err
	}
	started := make(chan error, 1)
	l.started = func(err error) {
		select {
		case started <- err:
		default:
		}
	}
	go func() {
		defer s.legs.Done()
		l.run(func() error { return l.outbound(r, p, x) })
	}()
	select {
	case err := <-started:
		if err != nil {
			<-l.done
		}
		return l.snapshot(), err
	case <-l.done:
		now := l.snapshot()
		return now, &refused{now.Cause, fmt.Errorf("%s: %w", now.Text, kindOf(now.Cause))}
	case <-ctx.Done():
		l.post(func() { l.end(verdict{cause: call.CauseCancelled, text: "given up", q850: 16}) })
		return l.snapshot(), ctx.Err()
	}
}

// kindOf is the error kind of a call that failed before it began.
func kindOf(c call.Cause) error {
	switch c {
	case call.CauseNotAllowed, call.CauseLimit, call.CauseRejected:
		return call.ErrForbidden
	case call.CauseWrongNumber:
		return call.ErrInvalid
	}
	return call.ErrUnavailable
}

// A route is what the plan says about a call out.
type route struct {
	number string // E.164, or an extension's digits
	lines  []line // in the order in which they are tried
	age    time.Duration
	digits string // DTMF after the answer
	urgent bool   // an emergency call
}

// decideRoute decides whether a call may be placed, and over which lines. Nothing has
// been sent before it says yes.
func (s *Server) decideRoute(ctx context.Context, r call.DialRequest, x dialExtra) (route, error) {
	p := route{age: -1}
	var err error
	if p.digits, err = cleanDigits(r.DTMF); err != nil {
		return p, &refused{call.CauseFailed, err}
	}
	for name := range r.Headers {
		if !goodHeader(name) {
			return p, &refused{call.CauseNotAllowed, fmt.Errorf("header %q may not be set: %w", name, call.ErrInvalid)}
		}
	}
	if strings.HasPrefix(r.By, "@") && !x.referred {
		if err := s.directory.MayDial(ctx, r.By, r.RoomID); err != nil {
			return p, &refused{call.CauseNotAllowed, err}
		}
		if ager, ok := s.directory.(Ager); ok {
			if made, err := ager.AccountCreated(ctx, r.By); err == nil {
				p.age = max(0, time.Since(made))
			}
		}
	}
	all := s.lines.Load()
	query := numbers.Query{Typed: r.Number, Trunk: r.Trunk, Trunks: all.queryTrunks(), Own: all.own()}
	if r.Via != nil {
		via := *r.Via
		via.ID, via.Direction = inlineTrunk, "outbound"
		if err := s.cfg.checkAPITrunk(via); err != nil {
			return p, &refused{call.CauseNotAllowed, err}
		}
		one := s.newLine(via, "request")
		query.Trunk, query.Trunks = inlineTrunk, []call.Trunk{one.Trunk}
		all = &lines{trunks: []line{one}}
	}
	result := s.plan.Route(query)
	p.number, p.urgent = result.Number, result.Emergency
	if err := result.Err(); err != nil {
		s.log.Info("a call out is refused", "by", r.By, "reason", result.Reason, "number", numbers.Mask(r.Number))
		return p, err
	}
	for _, choice := range result.Trunks {
		if t, ok := all.trunk(choice.Trunk); ok {
			p.lines = append(p.lines, t)
		}
	}
	if len(p.lines) == 0 {
		return p, &refused{call.CauseNoLine, fmt.Errorf("there is no line for it: %w", call.ErrUnavailable)}
	}
	return p, nil
}

// refuse makes a record of a call that was not placed and returns it.
func (l *leg) refuse(err error) call.Leg {
	now := time.Now()
	l.now.State, l.now.Ended = call.LegEnded, now
	l.now.Cause, l.now.Text = causeOf(err), reasonOf(err)
	l.cancel()
	close(l.done)
	close(l.changed)
	l.s.remember(l)
	if err := l.s.ledger.Finish(l.now); err != nil {
		l.log.Error("write the call record", "err", err)
	}
	return l.now
}

// outbound is the script of a call that we place.
func (l *leg) outbound(r call.DialRequest, p route, x dialExtra) error {
	l.enter(call.LegTrying)
	l.hide(r.HideNumber)
	l.dtmf = p.digits
	l.attrs = make(map[string]string)
	for name, value := range r.Attrs {
		if !reservedAttr(name) {
			l.attrs[name] = value
		}
	}
	lease, err := l.s.limits.Begin(time.Now(), l.request(r, p, p.lines[0]))
	var full *guard.LimitError
	for errors.As(err, &full) && full.OfTrunk() && len(p.lines) > 1 {
		p.lines = p.lines[1:]
		lease, err = l.s.limits.Begin(time.Now(), l.request(r, p, p.lines[0]))
	}
	if err != nil {
		return l.fail(err)
	}
	l.lease = lease
	l.update(func(now *call.Leg) { now.Trunk = p.lines[0].ID })
	if !l.outboundSeat(r, p) {
		return nil
	}
	for i, t := range p.lines {
		if i > 0 {
			if err := l.lease.Move(time.Now(), l.request(r, p, t)); err != nil {
				l.log.Info("a further trunk cannot be used", "trunk", t.ID, "err", err)
				continue
			}
		}
		if done := l.over || l.tryLine(r, p, x, t); done {
			break
		}
	}
	if l.over {
		l.started(nil)
		return nil
	}
	if l.snapshot().Answered.IsZero() {
		cause, text := refusal(l.last)
		l.end(verdict{cause: cause, text: text, code: l.last.Code, theirs: l.last.Q850})
		l.farewell = nil
		return nil
	}
	l.setStatus("active")
	if l.dtmf != "" {
		l.setStatus("automation")
		l.press(l.dtmf)
		l.pause(pressTime(l.dtmf))
		l.setStatus("active")
	}
	l.talk()
	return nil
}

// pressTime is how long pressing digits takes.
func pressTime(digits string) time.Duration {
	waits := strings.Count(digits, "w")
	return time.Duration(waits)*500*time.Millisecond + time.Duration(len(digits)-waits)*160*time.Millisecond
}

func (l *leg) request(r call.DialRequest, p route, t line) guard.Request {
	longest := t.MaxDuration
	if r.Longest > 0 && (longest == 0 || r.Longest < longest) {
		longest = r.Longest
	}
	return guard.Request{
		Direction: call.Outbound, Trunk: t.ID, MaxCalls: t.MaxCalls, MaxCPS: t.MaxCPS, By: r.By, Age: p.age, Longest: longest,
		Emergency: p.urgent,
	}
}

// fail ends a leg before its INVITE.
func (l *leg) fail(err error) error {
	l.end(verdict{cause: causeOf(err), text: reasonOf(err)})
	if l.started != nil {
		l.started(&refused{causeOf(err), err})
	}
	return nil
}

// outboundSeat seats the phone before it is called: the room sees that somebody
// is being called, and hears what the other side plays before it answers.
func (l *leg) outboundSeat(r call.DialRequest, p route) bool {
	name := r.RoomID
	if name == "" {
		name = string(r.Room)
	}
	l.caller = call.Phone{Number: p.number, Name: r.Name, Direction: call.Outbound, Leg: l.id, By: r.By, HideNumber: r.HideNumber}
	phone := l.caller
	seat, err := await(l, lookupLimit, func(ctx context.Context) (call.Seat, error) {
		place, err := l.s.directory.Room(ctx, name)
		if err != nil {
			return call.Seat{}, err
		}
		return l.s.directory.Seat(ctx, place, phone)
	})
	if err == nil {
		adjustSeat(&seat, r)
		l.seated(seat)
	}
	if l.over {
		return false
	}
	if err != nil {
		_ = l.fail(&refused{seatCause(err), fmt.Errorf("no place in the room: %w", err)})
		return false
	}
	if r.Dialtone {
		l.sound.ring.Store(&ringer{})
	}
	if l.join("dialing") {
		return true
	}
	l.started(&refused{l.snapshot().Cause, fmt.Errorf("%s: %w", l.snapshot().Text, call.ErrUnavailable)})
	return false
}

func seatCause(err error) call.Cause {
	switch {
	case errors.Is(err, call.ErrForbidden):
		return call.CauseNotAllowed
	case errors.Is(err, call.ErrNotFound):
		return call.CauseRoomEnded
	}
	return call.CauseFailed
}

// adjustSeat names the participant as the request wants it. The identity of a
// ghost in a Matrix room is not the request's to choose.
func adjustSeat(seat *call.Seat, r call.DialRequest) {
	if r.Identity != "" && seat.RoomID == "" {
		seat.Grant.Identity = r.Identity
	}
	if r.Name != "" && seat.RoomID == "" { // a ghost's says that it is a phone
		seat.Grant.Name = r.Name
	}
	if r.Metadata != "" {
		seat.Grant.Metadata = r.Metadata
	}
	if r.HideNumber && r.Name == "" {
		seat.Grant.Name = numbers.Mask(seat.Grant.Name)
	}
	seat.Grant.Attrs = maps.Clone(seat.Grant.Attrs)
}

// tryLine calls over one trunk, target by target. It reports whether that was all:
// the phone has answered or refused, or we gave up. Only a line that does not work
// lets the next be tried (RFC 3261 §16.7 step 6 tells why no 6xx).
func (l *leg) tryLine(r call.DialRequest, p route, x dialExtra, t line) bool {
	l.trunk = t.Trunk
	shown, err := l.s.plan.Show(t.Trunk, numbers.Wish{By: r.By, Number: r.From})
	if err != nil {
		_ = l.fail(err)
		return true
	}
	l.update(func(now *call.Leg) { now.Trunk, now.Local = t.ID, shown.Number })
	if l.phone != nil {
		l.phone.SetAttributes(map[string]string{attrTrunk: t.ID, attrTrunkNumber: shown.Number})
	}
	reduced := false
	targets := l.s.targets(t)
	for i := 0; i < len(targets); i++ {
		if l.call(r, p, x, t, shown, targets[i], reduced) {
			l.s.trunks.Worked(t.ID, targets[i])
			return true
		}
		if l.over {
			return true
		}
		switch e := l.last; {
		case e.Code == 488 && !reduced:
			reduced = true // once more with the least that every phone has
			i--
		case !tryNext(e) || !l.snapshot().Ringing.IsZero():
			return true
		case e.Cause == dialog.EndTransport:
			l.s.trunks.Failed(t.ID, targets[i], 0)
		default:
			l.s.trunks.Failed(t.ID, targets[i], e.Code)
		}
		l.log.Info("the target does not take the call", "trunk", t.ID, "code", l.last.Code, "reduced", reduced)
	}
	return !tryNext(l.last)
}

// tryNext reports whether another line may do better.
func tryNext(e dialog.Ended) bool {
	return e.Cause == dialog.EndTransport || e.Code == 408 || e.Code == 401 || e.Code == 407 || e.Code >= 500 && e.Code < 600
}

// call places one INVITE and waits for what becomes of it. It reports whether the
// phone has answered; otherwise l.last tells.
func (l *leg) call(r call.DialRequest, p route, x dialExtra, t line, shown numbers.CallerID, target string, reduced bool) bool {
	next := target
	if t.Outbound != "" {
		next = t.Outbound
	}
	hops, err := await(l, lookupLimit, func(ctx context.Context) ([]dialog.Hop, error) { return l.s.endpoint.Resolve(ctx, next) })
	if l.over {
		return false
	}
	if err != nil {
		l.log.Info("the target cannot be found", "trunk", t.ID, "err", err)
		l.last = dialog.Ended{Cause: dialog.EndTransport, Reason: err.Error()}
		return false
	}
	l.s.met(t.ID, addrsOf(hops)...)
	o := l.mediaOptions(netip.AddrPort{})
	for _, hop := range hops { // the media comes from near the signalling
		ip := hop.Addr.Addr().Unmap()
		o.Sources = append(o.Sources, netip.PrefixFrom(ip, ip.BitLen()))
	}
	if reduced {
		o.Codecs = []audio.Codec{audio.PCMU, audio.PCMA}
		if o.SRTP == media.SRTPOptional {
			o.SRTP = media.SRTPOff
		}
	}
	m, err := l.s.pool.Open(o)
	if err != nil {
		_ = l.fail(&refused{call.CauseNoLine, err})
		return false
	}
	if old := l.sound.media.Swap(m); old != nil {
		old.Close()
	}
	sdp, err := m.Offer()
	if err != nil {
		_ = l.fail(&refused{call.CauseMedia, err})
		return false
	}
	out := l.outgoing(r, p, x, t, shown, target)
	out.SDP = sdp
	l.inviteAt = time.Now()
	d, err := await(l, lookupLimit, func(ctx context.Context) (*dialog.Call, error) { return l.s.endpoint.Dial(ctx, out) })
	if err != nil {
		l.log.Info("the target cannot be reached", "trunk", t.ID, "err", err)
		l.last = dialog.Ended{Cause: dialog.EndTransport, Reason: err.Error()}
		return false
	}
	l.use(d)
	l.follow(d)
	if l.over {
		d.Bye(16, "given up")
		return false
	}
	l.update(func(now *call.Leg) { now.SIPCallID = d.CallID() })
	l.note()
	l.started(nil)
	l.setAttr(attrCallIDFull, d.CallID())

	decided := make(chan struct{})
	decide := func() {
		l.answered, l.dialing = nil, nil
		close(decided)
	}
	l.answered = decide
	l.dialing = func(e dialog.Ended) bool {
		if l.over {
			return false
		}
		l.last = e
		decide()
		return true
	}
	goesOn := l.pump(decided, nil)
	l.answered, l.dialing = nil, nil
	return goesOn && !l.snapshot().Answered.IsZero()
}

func (l *leg) setAttr(name, value string) {
	if l.phone != nil && value != "" {
		l.phone.SetAttributes(map[string]string{name: value})
	}
}

// outgoing is the INVITE.
func (l *leg) outgoing(r call.DialRequest, p route, x dialExtra, t line, shown numbers.CallerID, target string) dialog.Outgoing {
	ring := r.Ringing
	if ring <= 0 {
		ring = l.s.cfg.Outbound.RingTimeout
	}
	o := dialog.Outgoing{
		To: p.number, From: shown.Number, FromName: shown.Name,
		Target:   l.s.target(t, target),
		Options:  l.s.callOptions(t),
		Ringing:  ring,
		Silence:  silence,
		Replaces: x.replaces,
		Trunk:    t.ID,
	}
	if shown.Anonymous { // RFC 3323 §4.1, RFC 3325 §9.1
		o.From, o.FromName, o.Asserted, o.Privacy = "", "", shown.Number, "id"
	}
	for _, headers := range []map[string]string{t.Headers, r.Headers} {
		for _, name := range slices.Sorted(maps.Keys(headers)) {
			o.Options.Headers = append(o.Options.Headers, dialog.Header{Name: name, Value: headers[name]})
		}
	}
	return o
}

// onProgress is a 18x: ringing, and with a description sound that the room hears
// from now on (early media).
func (l *leg) onProgress(e dialog.Progress) {
	if l.over {
		return
	}
	m := l.sound.media.Load()
	if e.SDP != nil && m != nil {
		if err := m.Accept(e.SDP, false); err != nil {
			l.log.Info("early media is not acceptable", "err", err)
		} else {
			l.sound.ring.Store(nil)
			l.enter(call.LegEarly)
			l.setStatus("ringing")
			return
		}
	}
	if e.Code == 180 || e.Code == 183 || e.Code == 182 {
		l.enter(call.LegRinging)
		l.setStatus("ringing")
	}
}

// onAnswered is the 200.
func (l *leg) onAnswered(d *dialog.Call, e dialog.Answered) {
	if l.over {
		return // our CANCEL crossed it; the dialog says BYE
	}
	m := l.sound.media.Load()
	var err error
	if e.SDP != nil {
		err = m.Accept(e.SDP, true)
	}
	l.sound.ring.Store(nil)
	if err != nil {
		l.log.Info("the answer is not acceptable", "err", err)
		l.end(verdict{cause: call.CauseMedia, text: "nothing in common to speak with", q850: 88})
		return
	}
	m.Start()
	l.lease.Answered(time.Now())
	l.enter(call.LegAnswered)
	l.enter(call.LegConfirmed)
	l.s.count.setup(time.Since(l.inviteAt))
	l.noteHold()
	if l.answered != nil {
		l.answered()
	}
}

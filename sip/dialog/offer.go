package dialog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"
)

// offerState is who has an offer open after the call was answered: at most one
// at a time, either way (RFC 3261 §14, RFC 3311 §5).
type offerState struct {
	ids       int
	in        *offerIn  // theirs, waiting for the gateway
	out       *offerOut // ours, waiting for the peer
	queue     []*offerOut
	wantAck   bool // a 200 of ours waits for its ACK
	ackSeq    uint32
	weOffered bool // and it had the offer
	acks      map[uint32]*message
}

type offerIn struct {
	id    int
	tx    *serverTx
	timer *time.Timer
}

type offerOut struct {
	sdp     []byte
	refresh bool
	tries   int
	report  func([]byte, error)
}

// A Refused is a final answer that is no success.
type Refused struct {
	Code   int
	Reason string
}

func (r *Refused) Error() string { return strconv.Itoa(r.Code) + " " + r.Reason }

// Offer sends a re-INVITE with sdp and returns the answer. Glare (491) is tried
// again after the times of RFC 3261 §14.1; an offer while another is open waits
// its turn. A *Refused leaves the session as it was.
func (c *Call) Offer(ctx context.Context, sdp []byte) (answer []byte, err error) {
	var got []byte
	err = c.await(ctx, func(report func(error)) {
		c.offer(&offerOut{sdp: sdp, report: func(b []byte, err error) {
			got = b
			report(err)
		}})
	})
	if err != nil {
		return nil, err
	}
	return got, nil
}

func (c *Call) offer(o *offerOut) {
	st := c.State()
	switch {
	case c.over:
		o.report(nil, errOver)
	case st != Talking:
		o.report(nil, errors.New("the call has not been answered"))
	case c.offers.out != nil || c.offers.in != nil || c.offers.wantAck:
		c.offers.queue = append(c.offers.queue, o)
	default:
		c.reinvite(o)
	}
}

// nextOffer begins what has waited for its turn.
func (c *Call) nextOffer() {
	f := &c.offers
	if c.over || f.out != nil || f.in != nil || f.wantAck || len(f.queue) == 0 {
		return
	}
	o := f.queue[0]
	f.queue = f.queue[1:]
	c.reinvite(o)
}

func (c *Call) dropOffers(err error) {
	f := &c.offers
	if f.out != nil {
		f.out.report(nil, err)
		f.out = nil
	}
	for _, o := range f.queue {
		o.report(nil, err)
	}
	f.queue = nil
	if f.in != nil {
		stopTimer(f.in.timer)
		f.in.tx.respond(c.e.answer(f.in.tx, 487, ""))
		f.in = nil
	}
	c.report200(err)
}

// glareWait is how long to wait after a 491 (RFC 3261 §14.1): longer for the one
// who made the Call-ID.
func (c *Call) glareWait() time.Duration {
	ms := 10 * time.Duration(rand.IntN(201))
	if !c.inbound {
		ms = 2100 + 10*time.Duration(rand.IntN(191))
	}
	return ms * time.Millisecond
}

func (c *Call) reinvite(o *offerOut) {
	c.offers.out = o
	hs := append([]Header{{"Allow", allowed}, {"Supported", "timer, replaces, norefersub"}}, c.askSession(true)...)
	finish := func(sdp []byte, err error) {
		c.offers.out = nil
		o.report(sdp, err)
		c.nextOffer()
	}
	acked := false
	c.request("INVITE", hs, "application/sdp", o.sdp, func(res *message, err error) {
		if acked || c.offers.out != o {
			if err == nil && res.code < 300 { // a repeat of the 200: its ACK was lost
				c.ackAgain(res.seq)
			}
			return
		}
		switch {
		case err == nil && res.code < 300:
			acked = true
			c.refreshTarget(res)
			c.ack(res.seq, nil)
			c.localSDP = o.sdp
			sdp := sdpOf(res)
			if sdp != nil {
				c.remoteSDP = sdp
			}
			c.takeSession(res)
			finish(sdp, nil)
		case c.lost(res, err):
		case res.code == 491 && o.tries < 10:
			o.tries++
			c.offers.out = nil
			c.after(c.glareWait(), func() {
				if !c.over {
					c.offers.queue = append([]*offerOut{o}, c.offers.queue...)
					c.nextOffer()
				} else {
					o.report(nil, errOver)
				}
			})
		case res.code == 422 && o.tries < 10:
			o.tries += 3
			c.session.minSE = max(c.session.minSE, minSEOf(res))
			c.session.interval = max(c.session.interval, c.session.minSE)
			c.reinvite(o)
		default:
			if o.refresh {
				c.expireSession()
			}
			finish(nil, &Refused{res.code, plain(res.reason)})
		}
	})
}

// ack sends the ACK to a 2xx with that CSeq and keeps it for repeats.
func (c *Call) ack(seq uint32, sdp []byte) {
	m := c.build("ACK", seq, nil, "application/sdp", sdp)
	if c.offers.acks == nil || len(c.offers.acks) > 8 {
		c.offers.acks = map[uint32]*message{}
	}
	kept := *m
	kept.headers = append([]Header(nil), m.headers...)
	c.offers.acks[seq] = &kept
	c.sendACK(m)
}

// ackAgain repeats the ACK whose loss made the peer repeat its 2xx.
func (c *Call) ackAgain(seq uint32) {
	if m := c.offers.acks[seq]; m != nil {
		again := *m
		again.headers = append([]Header(nil), m.headers...)
		c.sendACK(&again)
	}
}

// reinvited takes a re-INVITE (RFC 3261 §14.2).
func (c *Call) reinvited(t *serverTx) {
	if c.uas.tx != nil || c.offers.in != nil || c.offers.wantAck {
		t.respond(c.e.answer(t, 500, "Another INVITE Is Open", Header{"Retry-After", strconv.Itoa(rand.IntN(11))}))
		return
	}
	if c.offers.out != nil || c.State() != Talking {
		t.respond(c.e.answer(t, 491, "Request Pending"))
		return
	}
	if !c.keepSession(t) {
		return
	}
	sdp := sdpOf(t.req)
	if sdp != nil && bytes.Equal(sdp, c.remoteSDP) && c.localSDP != nil {
		c.accept(t, c.localSDP, false) // nothing has changed: it keeps the session alive
		return
	}
	t.respond(c.e.answer(t, 100, "Trying"))
	c.offered(t, sdp)
}

// updated takes an UPDATE (RFC 3311 §5.2).
func (c *Call) updated(t *serverTx) {
	sdp := sdpOf(t.req)
	if sdp != nil {
		switch {
		case c.offers.in != nil, c.uas.tx != nil && !c.uas.acked && !c.uas.lateOffer:
			t.respond(c.e.answer(t, 500, "Another Offer Is Open", Header{"Retry-After", strconv.Itoa(rand.IntN(11))}))
			return
		case c.offers.out != nil, c.uas.tx != nil && !c.uas.acked, c.offers.wantAck && c.offers.weOffered:
			t.respond(c.e.answer(t, 491, "Request Pending"))
			return
		}
	}
	if !c.keepSession(t) {
		return
	}
	if sdp == nil {
		t.respond(c.e.answer(t, 200, "OK", append(c.dialogHeaders(t.req, true), c.sessionHeaders(t.req)...)...))
		c.startSession()
		return
	}
	c.offered(t, sdp)
}

// keepSession takes the session timer of a refresh, or refuses it as too short.
func (c *Call) keepSession(t *serverTx) bool {
	minSE := max(c.e.cfg.MinSE, 1)
	if c.opts.MinSE > 0 {
		minSE = c.opts.MinSE
	}
	se, _ := sessionExpires(t.req)
	if se > 0 && se < minSE {
		t.respond(c.e.answer(t, 422, "Session Interval Too Small", Header{"Min-SE", strconv.Itoa(minSE)}))
		return false
	}
	if se > 0 || c.session.interval > 0 {
		if se == 0 && !t.req.has("Supported", "timer") {
			return true // no refresh, only an offer
		}
		c.negotiateSession(t.req, minSE)
	}
	return true
}

// offerPatience is how long the gateway may think about an offer.
const offerPatience = 20 * time.Second

// offered hands an offer to the gateway.
func (c *Call) offered(t *serverTx, sdp []byte) {
	c.offers.ids++
	o := &offerIn{id: c.offers.ids, tx: t}
	c.offers.in = o
	o.timer = c.after(offerPatience, func() {
		if c.offers.in == o {
			_ = c.refuse(o.id, 500)
		}
	})
	c.tell(Offered{ID: o.id, SDP: sdp})
}

// offerCancelled takes the CANCEL of a re-INVITE.
func (c *Call) offerCancelled(t *serverTx) {
	o := c.offers.in
	if o == nil || o.tx != t {
		return
	}
	stopTimer(o.timer)
	c.offers.in = nil
	t.respond(c.e.answer(t, 487, ""))
	c.nextOffer()
}

func (c *Call) take(id int) (*offerIn, error) {
	o := c.offers.in
	if c.over {
		return nil, errOver
	}
	if o == nil || o.id != id {
		return nil, fmt.Errorf("offer %d is no longer open", id)
	}
	stopTimer(o.timer)
	c.offers.in = nil
	return o, nil
}

// Accept answers an Offered with sdp: the answer, or the offer if they asked for
// one.
func (c *Call) Accept(id int, sdp []byte) error {
	return c.do(func() error {
		o, err := c.take(id)
		if err != nil {
			return err
		}
		theirs := sdpOf(o.tx.req)
		if theirs != nil {
			c.remoteSDP = theirs
		}
		c.accept(o.tx, sdp, theirs == nil)
		return nil
	})
}

// accept sends the 200 to a re-INVITE, UPDATE or PRACK with our SDP.
func (c *Call) accept(t *serverTx, sdp []byte, ours bool) {
	hs := append(c.dialogHeaders(t.req, true), Header{"Supported", supported})
	if t.req.method != "PRACK" {
		hs = append(hs, c.sessionHeaders(t.req)...)
	}
	res := c.e.answer(t, 200, "OK", hs...)
	if sdp != nil {
		res.add("Content-Type", "application/sdp")
		res.body = sdp
		c.localSDP = sdp
	}
	if !t.respond(res) {
		return
	}
	c.startSession()
	if t.invite {
		c.offers.weOffered = ours
		c.repeat200(t, res.bytes(), t.req.seq)
		return
	}
	c.nextOffer()
}

// Refuse refuses an Offered; the session stays as it was.
func (c *Call) Refuse(id, code int) error {
	if code < 300 || code > 699 {
		return fmt.Errorf("%d is no refusal", code)
	}
	return c.do(func() error { return c.refuse(id, code) })
}

func (c *Call) refuse(id, code int) error {
	o, err := c.take(id)
	if err != nil {
		return err
	}
	o.tx.respond(c.e.answer(o.tx, code, ""))
	c.nextOffer()
	return nil
}

// Info sends a digit as application/dtmf-relay.
func (c *Call) Info(ctx context.Context, digit byte, d time.Duration) error {
	body := fmt.Sprintf("Signal=%c\r\nDuration=%d\r\n", digit, max(d.Milliseconds(), 40))
	return c.await(ctx, func(report func(error)) {
		if st := c.State(); c.over || st != Talking && st != Answering {
			report(errors.New("the call has not been answered"))
			return
		}
		c.request("INFO", nil, "application/dtmf-relay", []byte(body), func(res *message, err error) {
			switch {
			case err != nil:
				report(err)
			case res.code >= 300:
				report(&Refused{res.code, plain(res.reason)})
			default:
				report(nil)
			}
		})
	})
}

package dialog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// uasState is what a call that came in knows of its INVITE.
type uasState struct {
	tx        *serverTx
	lateOffer bool   // the INVITE had no SDP: ours is the offer
	last18x   int    // the last provisional answer
	lastSDP   []byte // and its SDP
	rel       *reliable
	relNext   []func() // provisional and final answers that wait for a PRACK
	rseq      uint32
	acked     bool // a reliable answer with SDP has been PRACKed: RFC 3262 §5
	keep      *time.Timer
	ok        []byte // the 200
	okFlow    *flow
	resend    *time.Timer
	every     time.Duration
	deadline  *time.Timer
	onAck     func(error)
	byeLater  []Header // not nil: hung up before the ACK came, which BYE waits for
}

// A reliable is a provisional answer that waits for its PRACK (RFC 3262 §3).
type reliable struct {
	rseq  uint32
	data  []byte
	sdp   bool
	every time.Duration
	timer *time.Timer
	end   *time.Timer
}

// invited makes a call of an INVITE that the handler accepts.
func (e *Endpoint) invited(t *serverTx, r *Request, v Verdict) {
	m := t.req
	t.respond(e.answer(t, 100, "Trying"))
	peerRel := m.has("Supported", "100rel") || m.has("Require", "100rel")
	switch {
	case v.Options.PRACK == "off" && m.has("Require", "100rel"):
		t.respond(e.answer(t, 420, "Bad Extension", Header{"Unsupported", "100rel"}))
		return
	case v.Options.PRACK == "require" && !peerRel:
		t.respond(e.answer(t, 421, "Extension Required", Header{"Require", "100rel"}))
		return
	}
	minSE := e.cfg.MinSE
	if v.Options.MinSE > 0 {
		minSE = v.Options.MinSE
	}
	if se, _ := sessionExpires(m); se > 0 && se < minSE {
		t.respond(e.answer(t, 422, "Session Interval Too Small", Header{"Min-SE", strconv.Itoa(minSE)}))
		return
	}
	var old *Call
	if h := m.get("Replaces"); h != "" {
		rep, ok := parseReplaces(h)
		if !ok {
			t.respond(e.answer(t, 400, "Malformed Replaces"))
			return
		}
		if old = e.replaced(rep, r.Trunk); old == nil {
			t.respond(e.answer(t, 481, "Call/Transaction Does Not Exist"))
			return
		}
		if rep.earlyOnly && old.State() != Early && old.State() != Trying {
			t.respond(e.answer(t, 486, "Busy Here"))
			return
		}
	}

	c := e.newCall(true, m.callID, t.tag)
	c.req, c.opts, c.trunk, c.old = r, v.Options, r.Trunk, old
	c.external = netip.AddrPortFrom(v.Options.ExternalIP, 0)
	c.path.Store(t.flow)
	c.allow(m.flow.remote.Addr())
	c.localHdr = m.get("To") + ";tag=" + t.tag
	c.remoteHdr = m.get("From")
	c.remoteSeq = m.seq
	c.target = fmt.Sprintf("sip:%s", m.flow.remote)
	if len(m.list("Contact")) == 0 && m.flow.network != "udp" {
		c.target += ";transport=" + m.flow.network
	}
	c.setRemote(m, m.from.tag(), m.list("Record-Route"))
	user := v.Options.Contact
	if user == "" {
		user = r.User
	}
	c.makeContact(m.flow, user, strings.HasPrefix(strings.ToLower(m.uri), "sips:"))
	c.uas.tx = t
	c.uas.lateOffer = r.Offer == nil
	c.remoteSDP = r.Offer
	c.negotiateSession(m, minSE)
	if err := e.addCall(c); err != nil {
		t.respond(e.answer(t, 503, "Service Unavailable", Header{"Retry-After", "10"}))
		return
	}
	if n, err := strconv.Atoi(m.get("Expires")); err == nil && n > 0 && n < 3600 {
		c.post(func() { // RFC 3261 §13.3.1
			c.after(time.Duration(n)*time.Second, func() {
				if !c.over && c.uas.tx != nil && c.finalUAS(487, "") {
					c.end(Ended{Code: 487, Reason: "the invitation has expired", Timeout: true, Cause: EndTimeout})
				}
			})
		})
	}
	e.log.Debug("sip: call in", "call_id", c.callID, "trunk", c.trunk, "from", Mask(r.From.User), "to", Mask(r.User))
	e.spawn(func() { e.handler.Invite(c) })
}

// replaced finds the call that a Replaces field names; it must be of the same
// trunk, or anybody could take over the calls of others (RFC 3891 §8).
func (e *Endpoint) replaced(r replaces, trunk string) *Call {
	c := e.dialog(r.callID, r.toTag)
	if c == nil || c.State() == Over || c.trunk != trunk {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.theirs[r.fromTag] {
		return nil
	}
	return c
}

// dialogHeaders are the fields of an answer that makes or keeps a dialog
// (RFC 3261 §12.1.1).
func (c *Call) dialogHeaders(m *message, contact bool) (hs []Header) {
	for _, r := range m.list("Record-Route") {
		hs = append(hs, Header{"Record-Route", r})
	}
	if contact {
		hs = append(hs, Header{"Contact", c.contact})
	}
	return append(hs, Header{"Allow", allowed})
}

// Ring sends 180, once.
func (c *Call) Ring() error {
	return c.do(func() error {
		if c.uas.last18x == 180 {
			return nil
		}
		return c.provisional(180, nil)
	})
}

// Progress sends a provisional answer, 180 or 183, with SDP if not nil; reliably
// if so negotiated.
func (c *Call) Progress(code int, sdp []byte) error {
	if code <= 100 || code >= 200 {
		return fmt.Errorf("%d is no provisional answer", code)
	}
	return c.do(func() error { return c.provisional(code, sdp) })
}

var errAnswered = errors.New("the INVITE has been answered")

// provisional sends a 18x (RFC 3261 §13.3.1.1, RFC 3262 §3).
func (c *Call) provisional(code int, sdp []byte) error {
	t := c.uas.tx
	if t == nil || c.over || t.final() {
		return errAnswered
	}
	m := t.req
	required := m.has("Require", "100rel")
	relies := required || c.opts.PRACK == "require" ||
		c.opts.PRACK != "off" && sdp != nil && m.has("Supported", "100rel")
	if relies && c.uas.rel != nil {
		c.uas.relNext = append(c.uas.relNext, func() { _ = c.provisional(code, sdp) })
		return nil
	}
	hs := c.dialogHeaders(m, true)
	if relies {
		if c.uas.rseq == 0 {
			c.uas.rseq = 1 + uint32(time.Now().UnixNano()>>10)&0xffff
		} else {
			c.uas.rseq++
		}
		hs = append(hs, Header{"Require", "100rel"}, Header{"RSeq", strconv.FormatUint(uint64(c.uas.rseq), 10)})
	}
	for _, h := range c.opts.Headers {
		if cleanHeader(h) == nil {
			hs = append(hs, h)
		}
	}
	res := c.e.answer(t, code, phrase(code), hs...)
	if sdp != nil {
		res.add("Content-Type", "application/sdp")
		res.body = sdp
		c.localSDP = sdp
	}
	if !t.respond(res) {
		return errAnswered
	}
	c.state.Store(Early)
	c.uas.last18x, c.uas.lastSDP = code, sdp
	stopTimer(c.uas.keep)
	if !relies {
		// A proxy gives up on a silent INVITE after three minutes: RFC 3261
		// §13.3.1.1 repeats the answer every minute.
		c.uas.keep = c.after(time.Minute, func() {
			if c.uas.tx != nil && !c.over && c.uas.rel == nil {
				_ = c.provisional(code, sdp)
			}
		})
		return nil
	}
	r := &reliable{rseq: c.uas.rseq, data: res.bytes(), sdp: sdp != nil, every: c.e.timers.t1}
	c.uas.rel = r
	var again func()
	again = func() {
		if c.uas.rel != r || c.over || c.uas.tx == nil {
			return
		}
		t.send(r.data)
		r.every *= 2
		r.timer = c.after(r.every, again)
	}
	r.timer = c.after(r.every, again)
	r.end = c.after(64*c.e.timers.t1, func() {
		if c.uas.rel == r && !c.over && c.uas.tx != nil {
			c.uas.rel = nil // RFC 3262 §3: a 5xx
			if c.finalUAS(504, "") {
				c.end(Ended{Code: 504, Reason: "no PRACK came", Timeout: true, Cause: EndTimeout})
			}
		}
	})
	return nil
}

// prack takes a PRACK (RFC 3262 §3). Its SDP is the answer to an offer of ours,
// or a new offer.
func (c *Call) prack(t *serverTx) {
	f := strings.Fields(t.req.get("RAck"))
	r := c.uas.rel
	if r == nil || c.uas.tx == nil || len(f) != 3 || f[2] != "INVITE" ||
		f[0] != strconv.FormatUint(uint64(r.rseq), 10) || f[1] != strconv.Itoa(int(c.uas.tx.req.seq)) {
		t.respond(c.e.answer(t, 481, "Call/Transaction Does Not Exist"))
		return
	}
	stopTimer(r.timer)
	stopTimer(r.end)
	c.uas.rel = nil
	if r.sdp {
		c.uas.acked = true
	}
	sdp := sdpOf(t.req)
	switch {
	case sdp != nil && c.uas.lateOffer && r.sdp && c.remoteSDP == nil:
		c.remoteSDP = sdp
		t.respond(c.e.answer(t, 200, "OK"))
		c.tell(Confirmed{SDP: sdp})
	case sdp != nil:
		c.offered(t, sdp)
	default:
		t.respond(c.e.answer(t, 200, "OK"))
	}
	next := c.uas.relNext
	c.uas.relNext = nil
	for _, f := range next {
		f()
	}
}

// Answer sends 200 with sdp: the answer, or the offer if theirs is late. It
// returns when the ACK came, or why none did.
func (c *Call) Answer(ctx context.Context, sdp []byte) error {
	return c.await(ctx, func(report func(error)) { c.answer200(sdp, report) })
}

func (c *Call) answer200(sdp []byte, report func(error)) {
	t := c.uas.tx
	if t == nil || c.over || t.final() {
		report(errAnswered)
		return
	}
	if r := c.uas.rel; r != nil && r.sdp {
		// RFC 3262 §3: not before the PRACK, if SDP is at stake.
		c.uas.relNext = append(c.uas.relNext, func() { c.answer200(sdp, report) })
		return
	}
	m := t.req
	hs := append(c.dialogHeaders(m, true), Header{"Supported", supported})
	hs = append(hs, c.sessionHeaders(m)...)
	for _, h := range c.opts.Headers {
		if cleanHeader(h) == nil {
			hs = append(hs, h)
		}
	}
	res := c.e.answer(t, 200, "OK", hs...)
	if sdp != nil && !c.uas.acked {
		res.add("Content-Type", "application/sdp")
		res.body = sdp
	}
	if !t.respond(res) {
		report(errAnswered)
		return
	}
	if sdp != nil {
		c.localSDP = sdp
	}
	stopTimer(c.uas.keep)
	c.uas.tx = nil
	c.uas.onAck = report
	c.state.Store(Answering)
	c.startSession()
	c.repeat200(t, res.bytes(), m.seq)
}

// repeat200 sends a 200 again until its ACK comes, from T1 doubling to T2, over
// any transport; after 64*T1 the session is ended (RFC 3261 §13.3.1.4).
func (c *Call) repeat200(t *serverTx, data []byte, seq uint32) {
	stopTimer(c.uas.resend)
	stopTimer(c.uas.deadline)
	c.offers.ackSeq = seq
	c.offers.wantAck = true
	every := c.e.timers.t1
	var again func()
	again = func() {
		if c.over && c.uas.byeLater == nil || !c.offers.wantAck || c.offers.ackSeq != seq {
			return
		}
		_ = t.flow.send(data)
		every = min(2*every, c.e.timers.t2)
		c.uas.resend = c.after(every, again)
	}
	c.uas.resend = c.after(every, again)
	c.uas.deadline = c.after(64*c.e.timers.t1, func() {
		if c.uas.byeLater != nil {
			c.byeNow()
			return
		}
		if c.over || !c.offers.wantAck || c.offers.ackSeq != seq {
			return
		}
		c.e.log.Warn("sip: the 200 was never acknowledged: the Contact or Record-Route that the peer sees may be wrong, look at external_ip", "call_id", c.callID)
		c.bye(reasonHeader(102, "no ACK"))
		c.report200(errors.New("the answer was never acknowledged"))
		c.end(Ended{Code: 200, Reason: "no ACK", Timeout: true, ByUs: true, Cause: EndNoAck})
	})
}

// byeNow sends the BYE that has waited for the ACK.
func (c *Call) byeNow() {
	c.bye(c.uas.byeLater)
	c.uas.byeLater = nil
	stopTimer(c.uas.resend)
	stopTimer(c.uas.deadline)
}

func (c *Call) report200(err error) {
	if f := c.uas.onAck; f != nil {
		c.uas.onAck = nil
		f(err)
	}
}

// ackCame takes the ACK to a 200 of ours.
func (c *Call) ackCame(m *message) {
	if !c.offers.wantAck || m.seq != c.offers.ackSeq {
		return
	}
	if c.uas.byeLater != nil {
		c.offers.wantAck = false
		c.heard(m)
		c.byeNow()
	}
	if c.over {
		return
	}
	c.offers.wantAck = false
	stopTimer(c.uas.resend)
	stopTimer(c.uas.deadline)
	c.heard(m)
	sdp := sdpOf(m)
	if c.State() == Answering && c.inbound {
		c.state.Store(Talking)
		var theirs []byte
		if c.uas.lateOffer && !c.uas.acked {
			if sdp == nil {
				c.e.log.Info("sip: the ACK has no answer to our offer", "call_id", c.callID)
			}
			theirs = sdp
			c.remoteSDP = sdp
		}
		c.report200(nil)
		c.tell(Confirmed{SDP: theirs})
		if c.old != nil {
			c.old.replacedBy(c)
		}
	} else if c.offers.weOffered {
		c.offers.weOffered = false
		c.remoteSDP = sdp
		c.tell(Confirmed{SDP: sdp})
	}
	c.nextOffer()
}

// replacedBy ends a call whose place another has taken (RFC 3891 §3).
func (c *Call) replacedBy(by *Call) {
	c.post(func() {
		if c.over {
			return
		}
		c.tell(Replaced{By: by})
		end := Ended{Code: 200, Reason: "replaced by another call", ByUs: true, Cause: EndReplaced}
		switch st := c.State(); {
		case st == Answering || st == Talking:
			c.bye(nil)
			c.end(end)
		case c.inbound:
			c.finalUAS(487, "")
			c.end(end)
		default:
			c.cancel(0, "", end)
		}
	})
}

// Reject refuses a call that came in.
func (c *Call) Reject(code int, reason string, h ...Header) error {
	if code < 300 || code > 699 {
		return fmt.Errorf("%d is no refusal", code)
	}
	return c.do(func() error {
		if c.over || c.uas.tx == nil {
			return errAnswered
		}
		c.reject(code, reason, h...)
		return nil
	})
}

func (c *Call) reject(code int, reason string, h ...Header) {
	if c.finalUAS(code, reason, h...) {
		c.end(Ended{Code: code, Reason: reason, ByUs: true, Cause: EndRefused})
	}
}

// finalUAS sends a final answer other than 2xx.
func (c *Call) finalUAS(code int, reason string, h ...Header) bool {
	t := c.uas.tx
	if t == nil {
		return false
	}
	c.uas.tx = nil
	stopTimer(c.uas.keep)
	if c.uas.rel != nil {
		stopTimer(c.uas.rel.timer)
		stopTimer(c.uas.rel.end)
		c.uas.rel = nil
	}
	c.uas.relNext = nil
	return t.respond(c.e.answer(t, code, reason, h...))
}

// cancelCame takes a CANCEL; its 200 has been sent. After a final answer of ours
// it has no effect (RFC 3261 §9.2).
func (c *Call) cancelCame(t *serverTx, m *message) {
	if c.over || t.final() {
		return
	}
	q850, text := reason(m)
	if t == c.uas.tx {
		c.finalUAS(487, "")
		if text == "" {
			text = "the caller gave up"
		}
		c.end(Ended{Code: 487, Reason: text, Q850: q850, Cause: EndCancelled, Headers: m.headers})
		return
	}
	c.offerCancelled(t)
}

// heard notes where the peer sends from now: behind a NAT that changes.
func (c *Call) heard(m *message) {
	if m.flow.reliable() || c.path.Load() == nil || c.path.Load().udp != nil {
		c.path.Store(m.flow)
	}
}

// requestCame takes a request inside the dialog.
func (c *Call) requestCame(t *serverTx) {
	m := t.req
	if c.over {
		if m.method == "BYE" { // ours and theirs have crossed
			c.uas.byeLater = nil
			t.respond(c.e.answer(t, 200, "OK"))
			return
		}
		t.respond(c.e.answer(t, 481, "Call/Transaction Does Not Exist"))
		return
	}
	if c.remoteSeq != 0 && m.seq < c.remoteSeq {
		t.respond(c.e.answer(t, 500, "CSeq Out Of Order")) // RFC 3261 §12.2.2
		return
	}
	c.remoteSeq = m.seq
	c.heard(m)
	switch m.method {
	case "BYE":
		c.byeCame(t)
	case "INVITE":
		c.refreshTarget(m)
		c.reinvited(t)
	case "UPDATE":
		c.refreshTarget(m)
		c.updated(t)
	case "PRACK":
		c.prack(t)
	case "INFO":
		c.infoCame(t)
	case "REFER":
		c.refreshTarget(m)
		c.referCame(t)
	case "NOTIFY":
		c.notifyCame(t)
	case "OPTIONS":
		t.respond(c.e.answer(t, 200, "OK", Header{"Allow", allowed}, Header{"Accept", "application/sdp"}, Header{"Supported", supported}))
	default:
		t.respond(c.e.answer(t, 405, "Method Not Allowed"))
	}
}

func (c *Call) byeCame(t *serverTx) {
	q850, text := reason(t.req)
	t.respond(c.e.answer(t, 200, "OK"))
	code := 200
	if c.uas.tx != nil { // RFC 3261 §15.1.2: what is pending gets 487
		c.finalUAS(487, "")
		code = 487
	}
	if c.uac.open && c.State() != Talking && c.State() != Answering {
		code = 487
	}
	c.report200(nil)
	c.end(Ended{Code: code, Reason: text, Q850: q850, Cause: EndBye, Headers: t.req.headers})
}

// infoCame takes DTMF by INFO, as application/dtmf-relay ("Signal=5",
// "Duration=160") or application/dtmf ("5"). Other types are answered with 200
// and told, as RFC 6086 §4.2.2 wants for legacy INFO.
func (c *Call) infoCame(t *serverTx) {
	m := t.req
	switch mediaType(m.get("Content-Type")) {
	case "application/dtmf-relay", "application/dtmf":
		digit, d := parseDTMF(m.body)
		if digit == 0 {
			t.respond(c.e.answer(t, 400, "Malformed DTMF"))
			return
		}
		t.respond(c.e.answer(t, 200, "OK"))
		c.tell(Digits{Digit: digit, Duration: d})
	default:
		t.respond(c.e.answer(t, 200, "OK"))
		if len(m.body) > 0 {
			c.tell(Info{Type: plain(m.get("Content-Type")), Body: m.body})
		}
	}
}

func parseDTMF(body []byte) (digit byte, d time.Duration) {
	d = 160 * time.Millisecond
	set := func(s string) {
		s = strings.ToUpper(strings.TrimSpace(s))
		switch {
		case s == "10":
			digit = '*'
		case s == "11":
			digit = '#'
		case len(s) == 2 && s[0] == '1' && s[1] >= '2' && s[1] <= '5':
			digit = 'A' + s[1] - '2'
		case len(s) == 1 && strings.Contains("0123456789*#ABCD", s):
			digit = s[0]
		}
	}
	for line := range bytes.Lines(body) {
		k, v, ok := strings.Cut(string(line), "=")
		switch {
		case !ok:
			if digit == 0 {
				set(k)
			}
		case strings.EqualFold(strings.TrimSpace(k), "Signal"):
			set(v)
		case strings.EqualFold(strings.TrimSpace(k), "Duration"):
			if n, err := strconv.Atoi(strings.TrimSpace(v)); err == nil && n > 0 && n <= 10000 {
				d = time.Duration(n) * time.Millisecond
			}
		}
	}
	return digit, d
}

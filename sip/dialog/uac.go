package dialog

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/emiago/sipgo/sip"
)

// uacState is what a call of ours knows of its INVITE.
type uacState struct {
	o        Outgoing
	uri      string // Request-URI
	to       string // To without tag
	hops     []Hop  // still to be tried
	hop      Hop
	attempt  int  // counts INVITE transactions; answers to older ones are strays
	open     bool // an INVITE waits for its final answer
	sent     *message
	seq      uint32
	heard    bool // a provisional answer
	anything bool // any answer from this hop
	early    map[string]*earlyDialog
	winner   string // To-tag of the 200
	late     uint32 // CSeq of the INVITE whose ACK waits for LateAnswer
	lateWait *time.Timer
	ring     *time.Timer
	patience *time.Timer
	auth     *Header
	retries  int
	without  map[string]bool // extensions that the peer refuses
	cancel   []Header        // Reason of a CANCEL that waits for a provisional answer
	doCancel bool
}

// An earlyDialog is one branch of a forked INVITE.
type earlyDialog struct {
	tag, remote, target string
	routes              []string
	rseq                uint32
	sdp                 []byte
}

const maxForks = 32

// wholeURI makes a URI of a user part, at the target's host.
func wholeURI(s string, target sip.Uri, port bool) string {
	if strings.Contains(s, ":") {
		return s
	}
	u := sip.Uri{Scheme: target.Scheme, User: escapeUser(s), Host: target.Host}
	if port {
		u.Port = target.Port
	}
	return u.String()
}

// Dial starts a call. It returns once the hops to the target are known; how the
// call goes on is told by its events.
func (e *Endpoint) Dial(ctx context.Context, o Outgoing) (*Call, error) {
	target, ok := parseURI(o.Target.URI)
	if !ok {
		return nil, fmt.Errorf("target %q is no SIP URI", o.Target.URI)
	}
	uri := wholeURI(o.To, target, true)
	if f := checkURI(uri); f != nil {
		return nil, fmt.Errorf("cannot call %s: %s", Mask(uriUser(uri)), f.reason)
	}
	from := `"Anonymous" <sip:anonymous@anonymous.invalid>`
	user := o.From
	if o.From != "" {
		u := wholeURI(o.From, target, false)
		if !validURI(u) {
			return nil, errors.New("the caller id is no SIP URI")
		}
		from = "<" + u + ">"
		if o.FromName != "" {
			from = quote(o.FromName) + " " + from
		}
		user = uriUser(u)
	}
	for _, h := range o.Options.Headers {
		if err := cleanHeader(h); err != nil {
			return nil, err
		}
	}
	for _, v := range []string{o.Privacy, o.Replaces, o.ReferredBy, o.Target.Proxy} {
		if strings.ContainsAny(v, "\r\n\x00") {
			return nil, errors.New("a header value has a line break")
		}
	}
	if o.Asserted != "" {
		if o.Asserted = wholeURI(o.Asserted, target, false); !validURI(o.Asserted) {
			return nil, errors.New("the asserted identity is no URI")
		}
	}
	next := o.Target.URI
	if o.Target.Proxy != "" {
		next = o.Target.Proxy
	}
	hops, err := e.Resolve(ctx, next)
	if err != nil {
		return nil, err
	}

	c := e.newCall(false, randomHex(16), sip.GenerateTagN(16))
	c.opts = o.Options
	c.opts.Networks = slices.Concat(o.Options.Networks, o.Target.Networks)
	c.trunk = o.Trunk
	c.external = o.Target.external()
	if !o.Target.ExternalIP.IsValid() {
		c.external = netip.AddrPortFrom(o.Options.ExternalIP, 0)
	}
	c.creds = credentials{o.Target.Username, o.Target.Password, o.Target.Realm}
	if c.opts.Contact == "" {
		c.opts.Contact = user
	}
	c.localHdr = from + ";tag=" + c.localTag
	c.uac.o, c.uac.uri, c.uac.to = o, uri, "<"+uri+">"
	c.remoteHdr = c.uac.to
	c.target = uri
	c.uac.hops = hops
	c.uac.early = map[string]*earlyDialog{}
	c.uac.without = map[string]bool{}
	c.uac.open = true
	c.session.minSE = e.cfg.MinSE
	if o.Options.MinSE > 0 {
		c.session.minSE = o.Options.MinSE
	}
	if o.Options.SessionExpires == 0 {
		c.session.minSE = 0
	}
	c.req = &Request{
		Method: "INVITE", URI: uri, User: uriUser(uri), CallID: c.callID, Offer: o.SDP,
		From: Address{Name: o.FromName, User: user}, To: Address{URI: uri, User: uriUser(uri), Host: uriHost(uri)},
		Trunk: o.Trunk, headers: o.Options.Headers,
	}
	if o.Privacy != "" {
		c.req.Privacy = []string{o.Privacy}
	}
	if err := e.addCall(c); err != nil {
		return nil, err
	}
	ringing := o.Ringing
	if ringing <= 0 {
		ringing = 3 * time.Minute
	}
	e.log.Debug("sip: call out", "call_id", c.callID, "to", Mask(c.req.User), "target", uriHost(o.Target.URI))
	c.post(func() {
		c.uac.ring = c.after(ringing, func() {
			if !c.over && c.State() != Talking && c.State() != Answering {
				c.cancel(0, "", Ended{Code: 487, Reason: "nobody answered", ByUs: true, Timeout: true, Cause: EndTimeout})
			}
		})
		c.tryHop(Ended{Code: 503, Reason: "no address", Cause: EndTransport})
	})
	return c, nil
}

// tryHop sends the INVITE to the next hop, or ends the call with last if there is
// none.
func (c *Call) tryHop(last Ended) {
	stopTimer(c.uac.patience)
	if c.over {
		c.uac.open = false
		return
	}
	if len(c.uac.hops) == 0 {
		c.uac.open = false
		c.end(last)
		return
	}
	c.uac.hop, c.uac.hops = c.uac.hops[0], c.uac.hops[1:]
	c.uac.anything = false
	h := c.uac.hop
	if h.Network == "udp" {
		f := c.e.udpTo(h.Addr)
		if f == nil {
			c.tryHop(Ended{Code: 503, Reason: errNoSocket.Error(), Cause: EndTransport})
			return
		}
		c.begin(f)
		return
	}
	c.e.spawn(func() {
		f, err := c.e.flowTo(c.e.ctx, h)
		c.post(func() {
			if err != nil {
				c.e.punish(h)
				c.tryHop(Ended{Code: 503, Reason: plain(err.Error()), Cause: EndTransport})
				return
			}
			c.begin(f)
		})
	})
}

func (c *Call) begin(f *flow) {
	if c.over {
		c.uac.open = false
		return
	}
	c.path.Store(f)
	c.allow(f.remote.Addr())
	c.makeContact(f, c.opts.Contact, strings.HasPrefix(c.uac.uri, "sips:"))
	c.invite(f)
}

// invite sends the INVITE over f (RFC 3261 §13.2.1).
func (c *Call) invite(f *flow) {
	u := &c.uac
	o := &u.o
	u.attempt++
	u.open, u.heard = true, false
	c.localSeq++
	u.seq = c.localSeq
	m := &message{method: "INVITE", uri: u.uri, callID: c.callID, seq: u.seq, body: o.SDP, branch: magic + randomHex(10)}
	if o.Target.Proxy != "" {
		p := o.Target.Proxy
		if !isLoose(p) {
			p += ";lr"
		}
		m.add("Route", "<"+p+">")
	}
	m.add("Max-Forwards", "70")
	m.add("From", c.localHdr)
	m.add("To", u.to)
	m.add("Call-ID", c.callID)
	m.add("CSeq", strconv.Itoa(int(u.seq))+" INVITE")
	m.add("Contact", c.contact)
	m.add("Allow", allowed)
	tags := []string{"replaces", "norefersub"}
	if !u.without["timer"] {
		tags = append(tags, "timer")
	}
	// 100rel needs an offer of ours: a late offer in a reliable 18x would have to
	// be answered before anybody has been asked.
	if o.SDP != nil && !u.without["100rel"] {
		switch c.opts.PRACK {
		case "off":
		case "require":
			m.add("Require", "100rel")
			fallthrough
		default:
			tags = append(tags, "100rel")
		}
	}
	m.add("Supported", strings.Join(tags, ", "))
	if !u.without["timer"] {
		m.headers = append(m.headers, c.askSession(false)...)
	}
	if c.e.cfg.UserAgent != "" {
		m.add("User-Agent", c.e.cfg.UserAgent)
	}
	if o.Asserted != "" {
		m.add("P-Asserted-Identity", "<"+o.Asserted+">")
	}
	if o.Privacy != "" {
		m.add("Privacy", o.Privacy)
	}
	if o.Replaces != "" {
		m.add("Replaces", o.Replaces)
		m.add("Require", "replaces")
	}
	if o.ReferredBy != "" {
		m.add("Referred-By", o.ReferredBy)
	}
	m.headers = append(m.headers, c.opts.Headers...)
	if u.auth != nil {
		m.headers = append(m.headers, *u.auth)
	}
	if o.SDP != nil {
		m.add("Content-Type", "application/sdp")
		c.localSDP = o.SDP
	}
	u.sent = m
	n := u.attempt
	c.e.launch(m, f, c.external, func(res *message, err error) {
		if !c.post(func() { c.inviteAnswer(n, res, err) }) && err == nil && res.code >= 200 && res.code < 300 {
			c.reap(res)
		}
	})
	silence := o.Silence
	if len(u.hops) > 0 && silence == 0 {
		silence = 10 * c.e.timers.t1
	}
	if silence > 0 {
		c.uac.patience = c.after(silence, func() {
			if n == u.attempt && u.open && !u.anything && !c.over {
				c.e.log.Info("sip: an address does not answer", "call_id", c.callID, "hop", u.hop.String())
				c.e.punish(u.hop)
				if t := c.inviteTx(); t != nil {
					t.stop()
				}
				c.tryHop(Ended{Code: 408, Reason: "no answer from " + u.hop.String(), Timeout: true, Cause: EndTimeout})
			}
		})
	}
}

// reap ends a dialog that a 2xx has made and nobody wants: ACK, then BYE
// (RFC 3261 §13.2.2.4). A repeat of the 2xx gets another ACK only. It needs
// nothing of the call's goroutine.
func (c *Call) reap(res *message) {
	c.mu.Lock()
	settled := c.settled[res.to.tag()]
	c.settled[res.to.tag()] = true
	c.mu.Unlock()
	d := c.e.newCall(false, c.callID, c.localTag)
	d.external = c.external
	d.localHdr = c.localHdr
	d.remoteHdr = res.get("To")
	d.contact = c.contact
	d.path.Store(res.flow)
	d.target = c.req.URI
	d.setRemote(res, res.to.tag(), reversed(res.list("Record-Route")))
	d.localSeq = res.seq
	d.sendACK(d.build("ACK", res.seq, nil, "", nil))
	if settled {
		return
	}
	d.localSeq++
	if f := d.quick(); f != nil {
		d.e.launch(d.build("BYE", d.localSeq, nil, "", nil), f, d.external, func(*message, error) {})
		return
	}
	d.send(d.build("BYE", d.localSeq, nil, "", nil), func(*message, error) {})
}

func reversed(s []string) []string {
	s = slices.Clone(s)
	slices.Reverse(s)
	return s
}

// inviteAnswer takes an answer to the INVITE of attempt n.
func (c *Call) inviteAnswer(n int, res *message, err error) {
	u := &c.uac
	success := err == nil && res.code >= 200 && res.code < 300
	if success && (c.over || u.winner != "" || n != u.attempt) {
		switch {
		case !c.over && u.winner == res.to.tag() && res.seq == u.seq:
			c.ackAgain(res.seq) // their 200 again: our ACK was lost
		case c.over && u.winner == res.to.tag() && u.winner != "":
			c.ackAgain(res.seq)
		default:
			c.reap(res) // a second fork, or a 200 that crossed our CANCEL
		}
		if n == u.attempt {
			u.open = false
		}
		return
	}
	if n != u.attempt {
		return
	}
	if c.over { // cancelled; what is left is to see it end
		switch {
		case err != nil || res.code >= 300:
			u.open = false
		case res.code < 200:
			u.heard = true
			c.sendCancel()
		}
		return
	}
	if u.winner != "" {
		return
	}
	switch {
	case err != nil:
		c.hopFailed(err)
	case res.code < 200:
		c.ringing(res)
	case success:
		c.won(res)
	default:
		c.refused(res)
	}
}

func (c *Call) hopFailed(err error) {
	last := Ended{Code: 503, Reason: plain(err.Error()), Cause: EndTransport}
	switch {
	case errors.Is(err, errClosed):
		c.uac.open = false
		c.end(Ended{Code: 503, ByUs: true, Cause: EndShutdown})
		return
	case errors.Is(err, errTimeout):
		last = Ended{Code: 408, Reason: "no answer from " + c.uac.hop.String(), Timeout: true, Cause: EndTimeout}
	}
	c.e.punish(c.uac.hop)
	c.tryHop(last)
}

// ringing takes a provisional answer (RFC 3261 §13.2.2.1, RFC 3262 §4).
func (c *Call) ringing(res *message) {
	u := &c.uac
	u.heard, u.anything = true, true
	if u.doCancel {
		c.sendCancel()
		return
	}
	if res.code == 100 {
		return
	}
	tag := res.to.tag()
	d := u.early[tag]
	if d == nil {
		if len(u.early) >= maxForks {
			return
		}
		d = &earlyDialog{tag: tag, remote: res.get("To"), target: c.uac.uri, routes: reversed(res.list("Record-Route"))}
		u.early[tag] = d
		if tag != "" {
			c.mu.Lock()
			c.theirs[tag] = true
			c.mu.Unlock()
		}
	}
	if list := res.list("Contact"); len(list) > 0 {
		if a, ok := parseNameAddr(list[0]); ok && checkURI(a.uri) == nil {
			d.target = a.uri
			c.allowURI(a.uri)
		}
	}
	c.allow(res.flow.remote.Addr())
	if res.has("Require", "100rel") && tag != "" {
		rseq, err := strconv.ParseUint(res.get("RSeq"), 10, 32)
		if err != nil || rseq == 0 {
			return
		}
		if d.rseq != 0 && uint32(rseq) != d.rseq+1 {
			return // a repeat whose PRACK is on its way, or one before its time
		}
		d.rseq = uint32(rseq)
		c.within(d, func() {
			c.request("PRACK", []Header{{"RAck", fmt.Sprintf("%d %d INVITE", rseq, res.seq)}}, "", nil, func(*message, error) {})
		})
	}
	sdp := sdpOf(res)
	if sdp != nil {
		d.sdp = sdp
	}
	c.tags.Store(&tag)
	c.state.Store(Early)
	c.tell(Progress{Code: res.code, Reason: plain(res.reason), SDP: sdp, Tag: tag})
}

// within runs f with the call's dialog being d.
func (c *Call) within(d *earlyDialog, f func()) {
	remote, target, routes := c.remoteHdr, c.target, c.routes
	c.remoteHdr, c.target, c.routes = d.remote, d.target, d.routes
	f()
	c.remoteHdr, c.target, c.routes = remote, target, routes
}

// won takes the first 2xx.
func (c *Call) won(res *message) {
	u := &c.uac
	u.anything, u.open = true, false
	stopTimer(u.ring)
	stopTimer(u.patience)
	u.winner = res.to.tag()
	c.mu.Lock()
	c.settled[u.winner] = true
	c.mu.Unlock()
	c.remoteHdr = res.get("To")
	c.allow(res.flow.remote.Addr())
	if res.flow.reliable() {
		c.path.Store(res.flow)
	} else if f := c.path.Load(); f != nil && f.udp != nil {
		c.path.Store(res.flow)
	}
	c.setRemote(res, u.winner, reversed(res.list("Record-Route")))
	sdp := sdpOf(res)
	if sdp == nil {
		if d := u.early[u.winner]; d != nil {
			sdp = d.sdp // RFC 3262 §5: answered in a reliable 18x
		}
	}
	c.remoteSDP = sdp
	if u.o.SDP != nil {
		c.ack(u.seq, nil)
		c.state.Store(Talking)
		c.takeSession(res)
		c.tell(Answered{SDP: sdp, Tag: u.winner})
		return
	}
	c.state.Store(Answering)
	u.late = u.seq
	c.takeSession(res)
	u.lateWait = c.after(offerPatience, func() {
		if u.late != 0 && !c.over {
			c.hangup(47, "no answer to the offer")
		}
	})
	c.tell(Answered{SDP: sdp, Tag: u.winner})
}

// LateAnswer sends the ACK with our answer to the offer that came in a 200.
func (c *Call) LateAnswer(sdp []byte) error {
	return c.do(func() error {
		if c.over {
			return errOver
		}
		if c.uac.late == 0 {
			return errors.New("no offer waits for an answer")
		}
		stopTimer(c.uac.lateWait)
		c.ack(c.uac.late, sdp)
		c.uac.late = 0
		c.localSDP = sdp
		c.state.Store(Talking)
		c.nextOffer()
		return nil
	})
}

// refused takes a final answer of 300 and more. A redirection is not followed: it
// would let a trunk choose whom we call.
func (c *Call) refused(res *message) {
	u := &c.uac
	u.anything, u.open = true, false
	again := func() bool {
		u.retries++
		if u.retries > 6 {
			return false
		}
		f := c.path.Load()
		if !f.alive() {
			u.hops = append([]Hop{u.hop}, u.hops...)
			c.tryHop(Ended{Code: res.code, Cause: EndTransport})
			return true
		}
		c.invite(f)
		return true
	}
	switch {
	case res.code == 401 || res.code == 407:
		h, realm, stale, err := c.e.authorize(res, "INVITE", u.uri, c.creds)
		if err == nil && (u.auth == nil || stale && u.retries < 3) {
			u.auth = &h
			c.asked.code, c.asked.realm = res.code, realm
			if again() {
				return
			}
		} else if err != nil {
			c.e.log.Warn("sip: a challenge cannot be answered", "call_id", c.callID, "err", err)
		}
	case res.code == 422 && c.opts.SessionExpires > 0:
		if m := minSEOf(res); m > c.session.minSE || m > c.opts.SessionExpires {
			c.session.minSE = max(m, c.session.minSE)
			c.opts.SessionExpires = max(c.opts.SessionExpires, m)
			if again() {
				return
			}
		}
	case res.code == 420:
		changed := false
		for _, tag := range res.list("Unsupported") {
			tag = strings.ToLower(tag)
			if (tag == "timer" || tag == "100rel" && c.opts.PRACK != "require") && !u.without[tag] {
				u.without[tag], changed = true, true
			}
		}
		if changed && again() {
			return
		}
	case res.code == 503:
		c.e.punish(u.hop)
		if len(u.hops) > 0 { // RFC 3263 §4.3
			c.tryHop(Ended{Code: 503, Cause: EndRefused})
			return
		}
	}
	q850, text := reason(res)
	if text == "" {
		text = plain(res.reason)
	}
	c.end(Ended{Code: res.code, Reason: text, Q850: q850, Cause: EndRefused, Headers: res.headers})
}

// Cancel gives up a call of ours before the answer; one that is answered
// meanwhile is ended with BYE. cause is Q.850, 0 for none.
func (c *Call) Cancel(cause int, text string) { c.Bye(cause, text) }

// cancel ends an INVITE of ours with end. RFC 3261 §9.1: the CANCEL waits for a
// provisional answer.
func (c *Call) cancel(cause int, text string, end Ended) {
	u := &c.uac
	u.doCancel = true
	u.cancel = reasonHeader(cause, text)
	stopTimer(u.ring)
	stopTimer(u.patience)
	if u.heard {
		c.sendCancel()
	}
	if u.sent == nil {
		u.open = false
	}
	c.end(end)
}

// inviteTx is the transaction of the INVITE that was sent last, or nil.
func (c *Call) inviteTx() *clientTx {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	return c.e.client[clientKey(c.uac.sent.branch, "INVITE")]
}

// sendCancel sends CANCEL for the INVITE that is open, once.
func (c *Call) sendCancel() {
	u := &c.uac
	if !u.doCancel || !u.open || u.sent == nil {
		return
	}
	u.doCancel = false
	t := c.inviteTx()
	if t == nil {
		return
	}
	m := &message{method: "CANCEL", uri: u.sent.uri, seq: u.seq, callID: c.callID}
	m.add("Via", t.req.get("Via"))
	for _, r := range t.req.all("Route") {
		m.add("Route", r)
	}
	m.add("Max-Forwards", "70")
	m.add("From", c.localHdr)
	m.add("To", u.to)
	m.add("Call-ID", c.callID)
	m.add("CSeq", strconv.Itoa(int(u.seq))+" CANCEL")
	m.headers = append(m.headers, u.cancel...)
	ct := &clientTx{e: c.e, key: clientKey(u.sent.branch, "CANCEL"), req: m, flow: t.flow}
	c.e.mu.Lock()
	if c.e.stopping() {
		c.e.mu.Unlock()
		return
	}
	c.e.client[ct.key] = ct
	c.e.mu.Unlock()
	ct.start()
	// RFC 3261 §9.1: if nothing comes in 64*T1 the INVITE counts as cancelled.
	c.after(64*c.e.timers.t1, func() {
		t.stop()
		u.open = false
	})
}

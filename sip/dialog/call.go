package dialog

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emiago/sipgo/sip"
)

// A Call is one INVITE dialog. One goroutine owns it, from addCall until its last
// event has been read; its methods may be called from anywhere, at any time, and
// after its end do nothing but say so.
type Call struct {
	e        *Endpoint
	inbound  bool
	req      *Request
	opts     CallOptions
	trunk    string
	callID   string
	localTag string
	old      *Call // inbound: the call that this one replaces
	gone     chan struct{}

	path  atomic.Pointer[flow] // how the peer was last heard
	state atomic.Value         // State
	tags  atomic.Pointer[string]

	warned atomic.Bool // that somebody else sent into the dialog

	mu      sync.Mutex // guards the following
	queue   []func()
	closed  bool
	theirs  map[string]bool     // To-tags of the other side
	sources map[netip.Addr]bool // that may send inside the dialog
	names   map[string]bool     // hosts that were looked up for sources
	settled map[string]bool     // To-tags whose 2xx needs no BYE any more

	wake   chan struct{}
	events chan Event
	done   chan struct{}

	// What follows belongs to run.
	out       []Event
	over      bool
	timers    []*time.Timer
	remoteTag string
	localHdr  string // From of our requests
	remoteHdr string // To of our requests
	contact   string // our Contact
	target    string // remote target
	routes    []string
	localSeq  uint32
	remoteSeq uint32
	external  netip.AddrPort
	creds     credentials
	asked     struct { // how the peer challenged the INVITE
		code  int
		realm string
	}
	peerAllows   map[string]bool
	peerSupports map[string]bool
	localSDP     []byte
	remoteSDP    []byte

	uas     uasState
	uac     uacState
	offers  offerState
	session sessionState
	refers  referState
}

func (e *Endpoint) newCall(inbound bool, callID, localTag string) *Call {
	c := &Call{
		e: e, inbound: inbound, callID: callID, localTag: localTag,
		gone:    make(chan struct{}),
		theirs:  map[string]bool{},
		sources: map[netip.Addr]bool{},
		settled: map[string]bool{},
		names:   map[string]bool{},
		wake:    make(chan struct{}, 1),
		events:  make(chan Event),
		done:    make(chan struct{}),
	}
	c.state.Store(Trying)
	return c
}

var errOver = errors.New("the call has ended")

// post hands f to the goroutine of the call. False: it has gone.
func (c *Call) post(f func()) bool {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return false
	}
	c.queue = append(c.queue, f)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return true
}

// do runs f on the goroutine of the call and returns what it says.
func (c *Call) do(f func() error) error {
	result := make(chan error, 1)
	if !c.post(func() { result <- f() }) {
		return errOver
	}
	select {
	case err := <-result:
		return err
	case <-c.gone:
		select {
		case err := <-result:
			return err
		default:
			return errOver
		}
	}
}

// await runs start on the goroutine of the call and waits for what it reports.
func (c *Call) await(ctx context.Context, start func(report func(error))) error {
	result := make(chan error, 1)
	report := func(err error) {
		select {
		case result <- err:
		default:
		}
	}
	if !c.post(func() { start(report) }) {
		return errOver
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-c.done:
		select {
		case err := <-result:
			return err
		default:
			return errOver
		}
	}
}

// after runs f on the goroutine of the call when d has passed, unless the timer
// is stopped or the call is gone.
func (c *Call) after(d time.Duration, f func()) *time.Timer {
	var t *time.Timer
	t = time.AfterFunc(d, func() { c.post(f) })
	if len(c.timers) > 32 { // drop those that are spent; Stop on them is harmless
		c.timers = append([]*time.Timer(nil), c.timers[len(c.timers)-16:]...)
	}
	c.timers = append(c.timers, t)
	return t
}

func stopTimer(t *time.Timer) {
	if t != nil {
		t.Stop()
	}
}

// abandonAfter is how long an ended call waits for somebody to read its events.
const abandonAfter = 2 * time.Minute

// run owns the call.
func (c *Call) run() {
	defer close(c.gone)
	defer c.e.dropCall(c)
	stopped := c.e.done
	var limit <-chan time.Time
	open := true
	for {
		var out chan Event
		var head Event
		if len(c.out) > 0 {
			out, head = c.events, c.out[0]
		} else if c.over && open {
			close(c.events)
			open = false
		}
		if c.over && len(c.out) == 0 && (!c.uac.open && c.uas.byeLater == nil || stopped == nil) {
			break
		}
		if c.over && limit == nil {
			t := time.NewTimer(abandonAfter)
			defer t.Stop()
			limit = t.C
		}
		select {
		case <-c.wake:
			c.drain()
		case out <- head:
			c.out = c.out[1:]
		case <-limit: // nobody reads
			c.out = nil
			c.uac.open, c.uas.byeLater = false, nil
		case <-stopped:
			stopped = nil
			c.drain()
			c.end(Ended{Code: 503, Reason: "the server stops", ByUs: true, Cause: EndShutdown})
			t := time.NewTimer(time.Second)
			defer t.Stop()
			limit = t.C
		}
	}
	for _, t := range c.timers {
		t.Stop()
	}
	// What came in the last moment is still answered: a request without an answer
	// would stay for ever.
	for c.drain(); !c.shut(); c.drain() {
	}
}

// shut closes the mailbox if it is empty.
func (c *Call) shut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = len(c.queue) == 0
	return c.closed
}

func (c *Call) drain() {
	for {
		c.mu.Lock()
		q := c.queue
		c.queue = nil
		c.mu.Unlock()
		if len(q) == 0 {
			return
		}
		for _, f := range q {
			f()
		}
	}
}

// tell queues an event. A reader that is far behind loses the call, not the
// server its memory.
func (c *Call) tell(ev Event) {
	if c.over {
		return
	}
	if len(c.out) > 256 {
		c.hangup(0, "")
		return
	}
	c.out = append(c.out, ev)
}

// end makes ev the last event. It sends nothing.
func (c *Call) end(ev Ended) {
	if c.over {
		return
	}
	c.over = true
	c.state.Store(Over)
	c.out = append(c.out, ev)
	c.stopSession()
	if c.uas.byeLater == nil {
		stopTimer(c.uas.resend)
	}
	c.dropOffers(errOver)
	close(c.done)
}

// Events returns the call's events. They must be read until the channel closes,
// which it does after Ended.
func (c *Call) Events() <-chan Event { return c.events }

// Done is closed when the call has ended.
func (c *Call) Done() <-chan struct{} { return c.done }

// Request returns the INVITE that came in, or the one that was sent.
func (c *Call) Request() *Request { return c.req }

// CallID returns the SIP Call-ID.
func (c *Call) CallID() string { return c.callID }

// Inbound says whether we were called.
func (c *Call) Inbound() bool { return c.inbound }

// State says how far the call is.
func (c *Call) State() State { return c.state.Load().(State) }

// Trunk returns what the Verdict or Outgoing said.
func (c *Call) Trunk() string { return c.trunk }

// Replaces returns the call whose place this one that came in asks for
// (RFC 3891), or nil. When this one is answered the other gets Replaced and is
// then ended by the endpoint.
func (c *Call) Replaces() *Call { return c.old }

// Remote returns where the peer was last heard.
func (c *Call) Remote() netip.AddrPort {
	if f := c.path.Load(); f != nil {
		return f.remote
	}
	return netip.AddrPort{}
}

// Dialog returns the dialog as the other side writes it into Replaces
// (RFC 3891 §3), or "" before there is one.
func (c *Call) Dialog() string {
	if t := c.tags.Load(); t != nil {
		return c.callID + ";to-tag=" + *t + ";from-tag=" + c.localTag
	}
	return ""
}

// allow lets an address send inside the dialog.
func (c *Call) allow(a netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.IsValid() && len(c.sources) < 64 {
		c.sources[a] = true
	}
}

// allowURI lets the host of a URI send inside the dialog. A name is looked up
// meanwhile: the proxies of a provider may have others of its addresses.
func (c *Call) allowURI(uri string) {
	u, ok := parseURI(uri)
	if !ok {
		return
	}
	if a, err := netip.ParseAddr(strings.Trim(u.Host, "[]")); err == nil {
		c.allow(a.Unmap())
		return
	}
	if strings.HasSuffix(strings.ToLower(u.Host), ".invalid") { // RFC 7118 §5
		return
	}
	c.mu.Lock()
	asked := c.names[u.Host] || len(c.names) >= 8
	if !asked {
		c.names[u.Host] = true
	}
	c.mu.Unlock()
	if asked {
		return
	}
	c.e.spawn(func() {
		ctx, cancel := context.WithTimeout(c.e.ctx, 10*time.Second)
		defer cancel()
		hops, err := c.e.Resolve(ctx, uri)
		if err != nil {
			return
		}
		for _, h := range hops {
			c.allow(h.Addr.Addr())
		}
	})
}

// mayCome says whether a request inside the dialog has the tag and comes from an
// address that it may have. It is asked by the goroutines that read.
func (c *Call) mayCome(m *message) bool {
	src := m.flow.remote.Addr()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.theirs[m.from.tag()] {
		return false
	}
	if c.sources[src] {
		return true
	}
	for _, n := range c.opts.Networks {
		if n.Contains(src) {
			return true
		}
	}
	return false
}

// setRemote fixes the other side's tag, target and route set.
func (c *Call) setRemote(m *message, tag string, routes []string) {
	c.remoteTag = tag
	c.tags.Store(&tag)
	c.routes = routes
	c.mu.Lock()
	c.theirs[tag] = true
	c.mu.Unlock()
	for _, r := range routes {
		if a, ok := parseNameAddr(r); ok {
			c.allowURI(a.uri)
		}
	}
	c.refreshTarget(m)
}

// refreshTarget takes the Contact of m as the new remote target (RFC 3261
// §12.2.1.2, §12.2.2) and what it says about the peer.
func (c *Call) refreshTarget(m *message) {
	if list := m.list("Contact"); len(list) > 0 {
		if a, ok := parseNameAddr(list[0]); ok && checkURI(a.uri) == nil {
			c.target = a.uri
			c.allowURI(a.uri)
		}
	}
	if allow := m.list("Allow"); len(allow) > 0 {
		c.peerAllows = map[string]bool{}
		for _, v := range allow {
			c.peerAllows[strings.ToUpper(v)] = true
		}
	}
	if len(m.all("Supported")) > 0 {
		c.peerSupports = map[string]bool{}
		for _, v := range m.list("Supported") {
			c.peerSupports[strings.ToLower(v)] = true
		}
	}
}

// makeContact is our Contact over f.
func (c *Call) makeContact(f *flow, user string, secure bool) {
	u := sip.Uri{Scheme: "sip", User: escapeUser(user)}
	a := c.e.shown(f, c.external)
	u.Host = hostOf(a.Addr())
	u.Port = int(a.Port())
	if secure {
		u.Scheme = "sips"
	}
	if f.network != "udp" {
		u.UriParams = sip.HeaderParams{{K: "transport", V: f.network}}
	}
	c.contact = "<" + u.String() + ">"
}

func hostOf(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.WithZone("").String() + "]"
	}
	return a.String()
}

// escapeUser makes text fit for the user part of a URI (RFC 3261 §25.1).
func escapeUser(s string) string {
	const plain = "-_.!~*'()&=+$,;?/"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte(plain, c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// build makes a request inside the dialog (RFC 3261 §12.2.1.1). The Via comes
// when it is sent.
func (c *Call) build(method string, seq uint32, hs []Header, contentType string, body []byte) *message {
	m := &message{method: method, uri: c.target, callID: c.callID, seq: seq, body: body}
	routes := c.routes
	if len(routes) > 0 {
		if first, ok := parseNameAddr(routes[0]); ok && !isLoose(first.uri) {
			// A strict router (RFC 3261 §12.2.1.1): it wants to be the Request-URI.
			m.uri = first.uri
			routes = append(append([]string{}, routes[1:]...), "<"+c.target+">")
		}
	}
	for _, r := range routes {
		m.add("Route", r)
	}
	m.add("Max-Forwards", "70")
	m.add("From", c.localHdr)
	m.add("To", c.remoteHdr)
	m.add("Call-ID", c.callID)
	m.add("CSeq", strconv.Itoa(int(seq))+" "+method)
	switch method {
	case "INVITE", "UPDATE", "REFER", "NOTIFY":
		m.add("Contact", c.contact)
	}
	if c.e.cfg.UserAgent != "" {
		m.add("User-Agent", c.e.cfg.UserAgent)
	}
	for _, h := range hs {
		m.add(h.Name, h.Value)
	}
	if len(body) > 0 {
		m.add("Content-Type", contentType)
	}
	return m
}

func isLoose(uri string) bool {
	u, ok := parseURI(uri)
	if !ok {
		return false
	}
	for _, p := range u.UriParams {
		if strings.EqualFold(p.K, "lr") {
			return true
		}
	}
	return false
}

// next is the URI that the next request goes to.
func (c *Call) next() string {
	if len(c.routes) > 0 {
		if a, ok := parseNameAddr(c.routes[0]); ok {
			return a.uri
		}
	}
	return c.target
}

// quick returns the way to the peer if it is known without asking anybody: a
// live connection, or an address. A peer behind a NAT names a private Contact;
// it is reached where it was heard (RFC 3581, RFC 5626 §3).
func (c *Call) quick() *flow {
	f := c.path.Load()
	if f != nil && f.reliable() && f.alive() {
		return f
	}
	u, ok := parseURI(c.next())
	if !ok {
		return f
	}
	a, err := netip.ParseAddr(strings.Trim(u.Host, "[]"))
	if err != nil {
		return nil
	}
	a = a.Unmap()
	if f != nil && f.udp != nil && (a.IsUnspecified() || inside(a) && !inside(f.remote.Addr())) {
		return f
	}
	network := "udp"
	for _, p := range u.UriParams {
		if strings.EqualFold(p.K, "transport") {
			network = strings.ToLower(p.V)
		}
	}
	if u.Scheme == "sips" || network != "udp" || f != nil && f.udp == nil {
		return nil
	}
	port := u.Port
	if port == 0 {
		port = 5060
	}
	to := netip.AddrPortFrom(a, uint16(port))
	if f != nil && f.udp != nil && f.remote.Addr().Is4() == a.Is4() {
		g := *f
		g.remote = to
		return &g
	}
	return c.e.udpTo(to)
}

// send starts the transaction of a request inside the dialog. on runs on the
// goroutine of the call.
func (c *Call) send(m *message, on func(*message, error)) {
	up := func(res *message, err error) { c.post(func() { on(res, err) }) }
	if f := c.quick(); f != nil {
		c.e.launch(m, f, c.external, up)
		return
	}
	// A name, or a connection to open: others may wait for that, this call not.
	uri := c.next()
	was := c.path.Load()
	c.e.spawn(func() {
		f, err := c.e.wayTo(uri)
		if err != nil && was.alive() {
			f, err = was, nil
		}
		if err != nil {
			up(nil, err)
			return
		}
		c.allow(f.remote.Addr())
		c.e.launch(m, f, c.external, up)
	})
}

// sendACK sends an ACK to a 2xx, which is no transaction (RFC 3261 §13.2.2.4).
func (c *Call) sendACK(m *message) {
	if f := c.quick(); f != nil {
		c.e.stamp(m, f, c.external)
		_ = f.send(m.bytes())
		return
	}
	uri := c.next()
	was := c.path.Load()
	external := c.external
	c.e.spawn(func() {
		f, err := c.e.wayTo(uri)
		if err != nil && was.alive() {
			f, err = was, nil
		}
		if err != nil {
			c.e.log.Warn("sip: the ACK cannot be sent; the call will end in half a minute", "call_id", c.callID, "err", err)
			return
		}
		c.e.stamp(m, f, external)
		_ = f.send(m.bytes())
	})
}

// spawn runs f unless the endpoint has stopped.
func (e *Endpoint) spawn(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.stopping() {
		e.wg.Go(f)
	}
}

// wayTo resolves a URI and opens the first way that can be had.
func (e *Endpoint) wayTo(uri string) (*flow, error) {
	ctx, cancel := context.WithTimeout(e.ctx, 15*time.Second)
	defer cancel()
	hops, err := e.Resolve(ctx, uri)
	if err != nil {
		return nil, err
	}
	var last error = errNoSocket
	for _, h := range hops {
		f, err := e.flowTo(ctx, h)
		if err == nil {
			return f, nil
		}
		last = err
	}
	return nil, last
}

// stamp puts our Via on top of m (RFC 3261 §18.1.1). rport asks where we are
// seen (RFC 3581).
func (e *Endpoint) stamp(m *message, f *flow, external netip.AddrPort) (branch string) {
	if branch = m.branch; branch == "" {
		branch = magic + randomHex(10)
	}
	a := e.shown(f, external)
	v := "SIP/2.0/" + strings.ToUpper(f.network) + " " + hostOf(a.Addr()) + ":" + strconv.Itoa(int(a.Port())) + ";branch=" + branch + ";rport"
	m.headers = append([]Header{{"Via", v}}, m.headers...)
	return branch
}

// udpLimit is where a request no longer goes by UDP (RFC 3261 §18.1.1).
const udpLimit = 1300

// launch sends a request in a transaction of its own. A request too large for
// UDP tries TCP first, and goes by UDP after all if nobody listens there.
func (e *Endpoint) launch(m *message, f *flow, external netip.AddrPort, on func(*message, error)) {
	if f.udp != nil && len(m.bytes())+150 > udpLimit {
		e.spawn(func() {
			ctx, cancel := context.WithTimeout(e.ctx, 2*time.Second)
			defer cancel()
			if g, err := e.openConn(ctx, Hop{Network: "tcp", Addr: f.remote}); err == nil {
				f = g
			}
			e.launchOver(m, f, external, on)
		})
		return
	}
	e.launchOver(m, f, external, on)
}

func (e *Endpoint) launchOver(m *message, f *flow, external netip.AddrPort, on func(*message, error)) *clientTx {
	branch := e.stamp(m, f, external)
	t := &clientTx{e: e, key: clientKey(branch, m.method), req: m, flow: f, invite: m.method == "INVITE", on: on}
	e.mu.Lock()
	if e.stopping() {
		e.mu.Unlock()
		go on(nil, errClosed)
		return t
	}
	e.client[t.key] = t
	e.mu.Unlock()
	t.start()
	return t
}

// request sends a request inside the dialog and answers one challenge, where
// that is safe. on runs on the goroutine of the call with the final answer.
func (c *Call) request(method string, hs []Header, contentType string, body []byte, on func(*message, error)) {
	c.localSeq++
	tried := false
	var hear func(res *message, err error)
	hear = func(res *message, err error) {
		switch {
		case err == nil && res.code < 200:
			return
		case err == nil && (res.code == 401 || res.code == 407) && !tried && c.mayAuthorize(res):
			tried = true
			if h, _, _, aerr := c.e.authorize(res, method, c.uriFor(), c.creds); aerr == nil {
				c.localSeq++
				c.send(c.build(method, c.localSeq, append(append([]Header{}, hs...), h), contentType, body), hear)
				return
			}
		}
		on(res, err)
	}
	c.send(c.build(method, c.localSeq, hs, contentType, body), hear)
}

// uriFor is the Request-URI of the next request, which a digest covers.
func (c *Call) uriFor() string { return c.build("X", 0, nil, "", nil).uri }

// mayAuthorize says whether a challenge inside the dialog may be answered: only
// if the trunk has asked for the INVITE in the same way and realm. Anything else
// could be the far end fishing for a digest; calls that came in have
// no credentials at all.
func (c *Call) mayAuthorize(res *message) bool {
	if c.inbound || c.asked.code != res.code || c.asked.realm == "" {
		return false
	}
	for _, name := range []string{"WWW-Authenticate", "Proxy-Authenticate"} {
		for _, v := range res.all(name) {
			if p, ok := parseDigest(v); ok && p["realm"] != c.asked.realm {
				return false
			}
		}
	}
	return true
}

// lost ends the call if an answer to a request inside the dialog says that the
// other side knows nothing of it (RFC 3261 §12.2.1.2, RFC 5057).
func (c *Call) lost(res *message, err error) bool {
	switch {
	case c.over:
		return true
	case err == nil && res.code == 481:
		c.end(Ended{Code: 200, Reason: "the other side has lost the call", Cause: EndBye})
		return true
	case err != nil || res.code == 408:
		c.bye(nil)
		c.end(Ended{Code: 200, Reason: "the other side does not answer", Timeout: true, Cause: EndTimeout})
		return true
	}
	return false
}

// bye sends BYE and forgets about it; its transaction repeats it by itself.
func (c *Call) bye(hs []Header) {
	c.request("BYE", hs, "", nil, func(*message, error) {})
}

// Bye ends the call, whatever its state: BYE, CANCEL or a refusal. cause is a
// Q.850 cause, 0 for none; both go into a Reason field (RFC 3326).
func (c *Call) Bye(cause int, text string) {
	c.post(func() { c.hangup(cause, text) })
}

// hangup is Bye on the goroutine of the call.
func (c *Call) hangup(cause int, text string) {
	if c.over {
		return
	}
	switch c.State() {
	case Answering, Talking:
		c.hangupAnswered(reasonHeader(cause, text))
		c.end(Ended{Code: 200, Q850: cause, Reason: text, ByUs: true, Cause: EndBye})
	default:
		if c.inbound {
			c.reject(codeFor(cause), "", reasonHeader(cause, text)...)
			return
		}
		c.cancel(cause, text, Ended{Code: 487, Q850: cause, Reason: text, ByUs: true, Cause: EndCancelled})
	}
}

// hangupAnswered sends BYE. A callee waits for the ACK first (RFC 3261 §15):
// until then the caller may not know the dialog. A caller who has not
// acknowledged yet does so.
func (c *Call) hangupAnswered(hs []Header) {
	switch {
	case c.inbound && c.State() == Answering:
		c.uas.byeLater = append([]Header{}, hs...)
		return
	case c.uac.late != 0:
		c.ack(c.uac.late, nil)
		c.uac.late = 0
	}
	c.bye(hs)
}

// codeFor is the status that says a Q.850 cause (RFC 3398 §7.2.4.1), for a call
// that is refused.
func codeFor(cause int) int {
	switch cause {
	case 17:
		return 486
	case 1, 2, 3:
		return 404
	case 18, 19:
		return 480
	case 21:
		return 603
	case 22:
		return 410
	case 28:
		return 484
	case 34, 38, 41, 42, 44, 47:
		return 503
	case 65, 79, 88:
		return 488
	case 102:
		return 504
	case 127:
		return 500
	}
	return 480
}

// shutdown ends the call because the endpoint stops.
func (c *Call) shutdown() {
	c.post(func() {
		if c.over {
			return
		}
		switch c.State() {
		case Answering, Talking:
			c.bye(reasonHeader(31, "server stops"))
			c.end(Ended{Code: 200, ByUs: true, Cause: EndShutdown})
		default:
			if c.inbound {
				c.finalUAS(503, "", Header{"Retry-After", "10"})
				c.end(Ended{Code: 503, ByUs: true, Cause: EndShutdown})
				return
			}
			c.cancel(31, "server stops", Ended{Code: 503, ByUs: true, Cause: EndShutdown})
		}
	})
}

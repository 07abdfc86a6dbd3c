package dialog

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emiago/sipgo/sip"
)

// An Endpoint is all the SIP sockets of a server and the calls on them.
//
// Messages are read by one goroutine per UDP socket and one per connection, in
// the order they come, matched to a transaction and handed to the goroutine of
// their call. Nothing on that way waits for anybody.
type Endpoint struct {
	cfg     Config
	handler Handler
	log     *slog.Logger
	nonces  *nonces
	timers  struct{ t1, t2, t4 time.Duration }

	udp       []*udpSocket
	listeners []*listener

	ctx  context.Context // ends when the sockets are to go
	stop context.CancelFunc
	done chan struct{} // closed with ctx
	wg   sync.WaitGroup

	counters struct {
		screened, malformed, dropped, connsRefused, retransmitted atomic.Uint64
	}

	mu        sync.Mutex // guards the following; taken after a transaction's, never before
	ending    bool       // Run is on its way out: no new calls
	server    map[string]*serverTx
	client    map[string]*clientTx
	invites   map[string]string // merge key -> server key (RFC 3261 §8.2.2.2)
	dialogs   map[string]*Call  // Call-ID, local tag
	conns     map[*conn]struct{}
	perIP     map[netip.Addr]int
	connTotal int
	responses map[int]uint64
	locals    map[netip.Addr]ownAddr // own address towards a peer
	penalty   map[Hop]time.Time      // hops that failed lately
	strong    map[string]time.Time   // when a realm last offered SHA-256
}

// A listener is one listening stream socket.
type listener struct {
	network string
	l       net.Listener
	local   netip.AddrPort
}

func newEndpoint(cfg Config, h Handler, log *slog.Logger) (*Endpoint, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	orInt := func(v *int, def int) {
		if *v == 0 {
			*v = def
		}
	}
	orDur := func(v *time.Duration, def time.Duration) {
		if *v == 0 {
			*v = def
		}
	}
	orInt(&cfg.MaxConns, 1000)
	orInt(&cfg.MaxConnsPerIP, 50)
	orInt(&cfg.MaxMessage, 65535)
	orInt(&cfg.MaxCalls, 2000)
	orInt(&cfg.MinSE, 90)
	orDur(&cfg.IdleTimeout, 10*time.Minute)
	orDur(&cfg.ReadTimeout, 10*time.Second)
	orDur(&cfg.T1, 500*time.Millisecond)
	orDur(&cfg.T2, 4*time.Second)
	orDur(&cfg.T4, 5*time.Second)
	if cfg.Realm == "" {
		cfg.Realm = "trunkhall"
	}
	if len(cfg.Algorithms) == 0 {
		cfg.Algorithms = []string{"SHA-256", "MD5"}
	}
	for _, a := range cfg.Algorithms {
		if hasher(a) == nil || a == "" {
			return nil, fmt.Errorf("%q is no digest algorithm", a)
		}
	}
	if cfg.Secret == nil {
		cfg.Secret = make([]byte, 32)
		_, _ = rand.Read(cfg.Secret)
	}
	if cfg.Resolver == nil {
		cfg.Resolver = net.DefaultResolver
	}
	if cfg.ClientTLS == nil {
		cfg.ClientTLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if cfg.ListenPacket == nil {
		cfg.ListenPacket = net.ListenPacket
	}
	if cfg.ListenStream == nil {
		cfg.ListenStream = net.Listen
	}
	if cfg.DialStream == nil {
		cfg.DialStream = func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", a.String())
		}
	}
	if err := cleanHeader(Header{"User-Agent", cfg.UserAgent}); err != nil {
		return nil, err
	}
	e := &Endpoint{
		cfg: cfg, handler: h, log: log,
		nonces:    newNonces(cfg.Secret),
		done:      make(chan struct{}),
		server:    map[string]*serverTx{},
		client:    map[string]*clientTx{},
		invites:   map[string]string{},
		dialogs:   map[string]*Call{},
		conns:     map[*conn]struct{}{},
		perIP:     map[netip.Addr]int{},
		responses: map[int]uint64{},
		locals:    map[netip.Addr]ownAddr{},
		penalty:   map[Hop]time.Time{},
		strong:    map[string]time.Time{},
	}
	e.timers.t1, e.timers.t2, e.timers.t4 = cfg.T1, cfg.T2, cfg.T4
	e.ctx, e.stop = context.WithCancel(context.Background())
	context.AfterFunc(e.ctx, func() { close(e.done) })
	if err := e.bind(); err != nil {
		e.closeSockets()
		e.stop()
		return nil, err
	}
	return e, nil
}

// bind opens every socket of Config.Listen.
func (e *Endpoint) bind() error {
	var errs []error
	for _, l := range e.cfg.Listen {
		network, addr, ok := strings.Cut(l, "://")
		if !ok {
			errs = append(errs, fmt.Errorf("listen %q: want udp://, tcp://, tls://, ws:// or wss:// and an address", l))
			continue
		}
		switch network {
		case "udp":
			pc, err := e.cfg.ListenPacket("udp", addr)
			if err != nil {
				errs = append(errs, fmt.Errorf("listen %s: %w", l, err))
				continue
			}
			e.udp = append(e.udp, &udpSocket{pc: pc, local: addrPort(pc.LocalAddr())})
		case "tls", "wss", "tcp", "ws":
			if (network == "tls" || network == "wss") && e.cfg.TLS == nil {
				errs = append(errs, fmt.Errorf("listen %s: needs a certificate", l))
				continue
			}
			sl, err := e.cfg.ListenStream("tcp", addr)
			if err != nil {
				errs = append(errs, fmt.Errorf("listen %s: %w", l, err))
				continue
			}
			e.listeners = append(e.listeners, &listener{network: network, l: sl, local: addrPort(sl.Addr())})
		default:
			errs = append(errs, fmt.Errorf("listen %q: %q is no SIP transport", l, network))
		}
	}
	if len(e.cfg.Listen) == 0 {
		errs = append(errs, errors.New("listen: nothing to listen on"))
	}
	return errors.Join(errs...)
}

func (e *Endpoint) closeSockets() {
	for _, s := range e.udp {
		_ = s.pc.Close()
	}
	for _, l := range e.listeners {
		_ = l.l.Close()
	}
}

// Addrs returns what was bound, as "udp://192.0.2.1:5060".
func (e *Endpoint) Addrs() (addrs []string) {
	for _, s := range e.udp {
		addrs = append(addrs, "udp://"+s.local.String())
	}
	for _, l := range e.listeners {
		addrs = append(addrs, l.network+"://"+l.local.String())
	}
	return addrs
}

// Run serves until ctx is done, then ends all calls and returns when every
// goroutine has.
func (e *Endpoint) Run(ctx context.Context) error {
	for _, s := range e.udp {
		e.wg.Go(func() { e.readUDP(s) })
	}
	for _, l := range e.listeners {
		e.wg.Go(func() { e.serveStream(l) })
	}
	<-ctx.Done()

	e.mu.Lock()
	e.ending = true
	e.mu.Unlock()
	calls := e.Calls()
	for _, c := range calls {
		c.shutdown()
	}
	// A moment for the answers to our BYE and CANCEL, so that peers are not left
	// with half a call; but no longer.
	limit := time.NewTimer(min(2*time.Second, 8*e.timers.t1))
	defer limit.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
wait:
	for _, c := range calls {
		select {
		case <-c.done:
		case <-limit.C:
			break wait
		}
	}
drain:
	for len(calls) > 0 && e.pending() > 0 {
		select {
		case <-tick.C:
		case <-limit.C:
			break drain
		}
	}
	e.mu.Lock()
	e.stop() // under the lock: spawn looks first
	e.mu.Unlock()
	e.closeSockets()
	e.mu.Lock()
	servers := slices.Collect(maps.Values(e.server))
	clients := slices.Collect(maps.Values(e.client))
	for c := range e.conns {
		c.close()
	}
	e.mu.Unlock()
	for _, t := range servers {
		t.stop()
	}
	for _, t := range clients {
		t.mu.Lock()
		t.fail(errClosed)
		t.mu.Unlock()
	}
	e.wg.Wait()
	return nil
}

// pending counts the requests of ours that wait for an answer.
func (e *Endpoint) pending() (n int) {
	e.mu.Lock()
	clients := slices.Collect(maps.Values(e.client))
	e.mu.Unlock()
	for _, t := range clients {
		t.mu.Lock()
		if t.state == txTrying || t.state == txProceeding {
			n++
		}
		t.mu.Unlock()
	}
	return n
}

func (e *Endpoint) stopping() bool { return e.ctx.Err() != nil }

// Stats counts.
func (e *Endpoint) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := Stats{
		Calls: len(e.dialogs), Conns: len(e.conns), Transactions: len(e.server) + len(e.client),
		Screened: e.counters.screened.Load(), Malformed: e.counters.malformed.Load(),
		Dropped: e.counters.dropped.Load(), ConnsRefused: e.counters.connsRefused.Load(),
		Retransmitted: e.counters.retransmitted.Load(), Responses: map[int]uint64{},
	}
	for code, n := range e.responses {
		s.Responses[code] = n
	}
	return s
}

func (e *Endpoint) count(code int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.responses[code]++
}

// Calls returns the calls of now.
func (e *Endpoint) Calls() []*Call {
	e.mu.Lock()
	defer e.mu.Unlock()
	calls := make([]*Call, 0, len(e.dialogs))
	for _, c := range e.dialogs {
		if c.State() != Over {
			calls = append(calls, c)
		}
	}
	return calls
}

// Find returns the call with this Call-ID, or nil.
func (e *Endpoint) Find(callID string) *Call {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.dialogs {
		if c.callID == callID {
			return c
		}
	}
	return nil
}

func dialogKey(callID, localTag string) string { return callID + "\x00" + localTag }

func (e *Endpoint) dialog(callID, localTag string) *Call {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.dialogs[dialogKey(callID, localTag)]
}

var errFull = errors.New("too many calls")

func (e *Endpoint) addCall(c *Call) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.ending:
		return errClosed
	case len(e.dialogs) >= e.cfg.MaxCalls:
		return errFull
	}
	e.dialogs[dialogKey(c.callID, c.localTag)] = c
	e.wg.Go(c.run)
	return nil
}

func (e *Endpoint) dropCall(c *Call) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.dialogs, dialogKey(c.callID, c.localTag))
}

func (e *Endpoint) dropServer(t *serverTx) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.server[t.key] == t {
		delete(e.server, t.key)
	}
	if t.invite {
		if k := mergeKey(t.req); e.invites[k] == t.key {
			delete(e.invites, k)
		}
	}
}

func (e *Endpoint) dropClient(t *clientTx) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client[t.key] == t {
		delete(e.client, t.key)
	}
}

// mergeKey is the same for copies of one request that came by several ways.
func mergeKey(m *message) string {
	return m.callID + "\x00" + m.from.tag() + "\x00" + strconv.Itoa(int(m.seq))
}

// admitConn counts a connection in, if there is room (idle connections
// cannot use up the machine, nor one host all of them).
func (e *Endpoint) admitConn(ip netip.Addr) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ending || e.connTotal >= e.cfg.MaxConns || e.perIP[ip] >= e.cfg.MaxConnsPerIP {
		return false
	}
	e.connTotal++
	e.perIP[ip]++
	return true
}

func (e *Endpoint) releaseConn(ip netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.connTotal--
	if e.perIP[ip]--; e.perIP[ip] <= 0 {
		delete(e.perIP, ip)
	}
}

func (e *Endpoint) addConn(c *conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conns[c] = struct{}{}
}

// startConn reads a connection that we opened, unless we are stopping.
func (e *Endpoint) startConn(c *conn, raw net.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopping() {
		return false
	}
	e.conns[c] = struct{}{}
	e.wg.Go(func() {
		stop := context.AfterFunc(e.ctx, func() { _ = raw.Close() })
		defer stop()
		defer e.dropConn(c)
		c.read()
	})
	return true
}

func (e *Endpoint) dropConn(c *conn) {
	c.close()
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.conns, c)
}

func (e *Endpoint) findConn(network string, remote netip.AddrPort) *conn {
	e.mu.Lock()
	defer e.mu.Unlock()
	for c := range e.conns {
		if c.flow.network == network && c.flow.remote == remote && !c.closed.Load() {
			return c
		}
	}
	return nil
}

// connBusy says whether a call goes over c.
func (e *Endpoint) connBusy(c *conn) bool {
	for _, call := range e.Calls() {
		if f := call.path.Load(); f != nil && f.conn == c {
			return true
		}
	}
	return false
}

func (e *Endpoint) malformed(src netip.AddrPort) {
	e.counters.malformed.Add(1)
	e.handler.Bad(src, "malformed")
}

// receive takes a message from a socket.
func (e *Endpoint) receive(m *message, err error, f *flow) {
	var problem *fault
	if err != nil && !errors.As(err, &problem) {
		problem = bad("Incomplete Message")
	}
	if m == nil {
		e.malformed(f.remote)
		return
	}
	m.flow = f
	if m.code > 0 {
		e.response(m, problem)
		return
	}
	e.request(m, problem)
}

// response finds the transaction of an answer. An answer to nothing is dropped,
// and so is one with a Via of somebody else (RFC 3261 §8.1.3.3).
func (e *Endpoint) response(m *message, problem *fault) {
	if problem = m.understand(problem); problem != nil || len(m.via) != 1 {
		e.malformed(m.flow.remote)
		return
	}
	e.mu.Lock()
	t := e.client[clientKey(m.via[0].branch(), m.seqMethod)]
	e.mu.Unlock()
	if t == nil {
		return
	}
	if m.code >= 200 {
		e.count(m.code)
	}
	t.receive(m)
}

// request is the way of every request (RFC 3261 §8.2). Its order is the rule:
// retransmissions first, then what belongs to a dialog, then the handler's
// verdict, and no answer to a stranger before that.
func (e *Endpoint) request(m *message, problem *fault) {
	problem = m.check(problem)
	if len(m.via) > 0 && problem == nil {
		if e.known(m) {
			return
		}
	}
	if problem != nil {
		// An error in the body or an extension inside of a dialog is answered for
		// its own sake; everything else is a stranger's.
		if m.method == "ACK" {
			return
		}
		if problem.code == 400 || problem.code == 505 {
			e.malformed(m.flow.remote)
		}
		if e.retransmitted(m) {
			return
		}
		if len(m.via) == 0 || m.method == "" {
			return // nobody could match the answer
		}
		if !e.ours(m) {
			if e.verdict(m, view(m)).Action == Drop {
				return
			}
		}
		e.refuse(m, problem)
		return
	}
	switch m.method {
	case "ACK":
		if c := e.dialog(m.callID, m.to.tag()); c != nil && c.mayCome(m) {
			c.post(func() { c.ackCame(m) })
		}
		return
	case "CANCEL":
		e.cancel(m)
		return
	}
	if m.to.tag() != "" {
		c := e.dialog(m.callID, m.to.tag())
		switch {
		case c == nil:
			e.strange(m, &fault{481, "Call/Transaction Does Not Exist"})
		case !c.mayCome(m):
			// Right Call-ID, wrong tag or source: the same answer as for no call.
			if c.warned.CompareAndSwap(false, true) {
				e.log.Warn("sip: a request inside a call is refused, for its tag or address is not the other side's; if the address is the trunk's, add it to its networks", "call_id", c.callID, "from", m.flow.remote.Addr())
			}
			e.handler.Bad(m.flow.remote, "dialog")
			e.strange(m, &fault{481, "Call/Transaction Does Not Exist"})
		default:
			m.flow.trust()
			t := e.newServer(m)
			if t == nil {
				return
			}
			if !c.post(func() { c.requestCame(t) }) {
				t.respond(e.answer(t, 481, "Call/Transaction Does Not Exist"))
			}
		}
		return
	}
	if m.method == "INVITE" {
		if e.merged(m) {
			e.strange(m, &fault{482, "Merged Request"})
			return
		}
		if e.looped(m) {
			e.strange(m, &fault{482, "Loop Detected"})
			return
		}
	}
	e.outside(m)
}

// known hands m to its transaction, if it is a retransmission or the ACK to a
// refusal.
func (e *Endpoint) known(m *message) bool {
	if m.method == "ACK" {
		e.mu.Lock()
		t := e.server[serverKey(m, "INVITE")]
		e.mu.Unlock()
		if t == nil {
			return false
		}
		t.mu.Lock()
		accepted := t.state == txAccepted
		t.mu.Unlock()
		if accepted {
			return false // RFC 6026 §7.1: it belongs to the dialog
		}
		t.ack()
		return true
	}
	return e.retransmitted(m)
}

func (e *Endpoint) retransmitted(m *message) bool {
	if len(m.via) == 0 {
		return false
	}
	e.mu.Lock()
	t := e.server[serverKey(m, m.method)]
	e.mu.Unlock()
	if t == nil {
		return false
	}
	if t.req.flow.remote.Addr() != m.flow.remote.Addr() {
		return true // somebody else's copy is not answered
	}
	t.receive()
	return true
}

// ours says whether m belongs to a dialog that its sender may use.
func (e *Endpoint) ours(m *message) bool {
	if m.to.tag() == "" {
		return false
	}
	c := e.dialog(m.callID, m.to.tag())
	return c != nil && c.mayCome(m)
}

// strange answers a request outside of any dialog with f, unless the handler
// would rather be silent.
func (e *Endpoint) strange(m *message, f *fault) {
	if e.verdict(m, view(m)).Action == Drop {
		return
	}
	e.refuse(m, f)
}

// verdict asks the handler. A connection of somebody who is not to be answered is
// closed.
func (e *Endpoint) verdict(m *message, r *Request) Verdict {
	v := e.handler.Trunk(r)
	if v.Action == Drop {
		e.counters.dropped.Add(1)
		if c := m.flow.conn; c != nil && !c.client && !c.trusted.Load() {
			c.close()
		}
	}
	return v
}

// refuse answers m with f, through a transaction so that repeats are absorbed.
func (e *Endpoint) refuse(m *message, f *fault) {
	t := e.newServer(m)
	if t == nil {
		return
	}
	t.respond(e.answer(t, f.code, f.reason))
}

// merged says whether m is a copy of an INVITE that came by another way
// (RFC 3261 §8.2.2.2).
func (e *Endpoint) merged(m *message) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	key, ok := e.invites[mergeKey(m)]
	return ok && key != serverKey(m, "INVITE")
}

// looped says whether m is an INVITE of our own that came back.
func (e *Endpoint) looped(m *message) bool {
	return e.dialog(m.callID, m.from.tag()) != nil
}

const maxServerTx = 50000

// newServer makes the transaction of a request, or nil if there are too many.
func (e *Endpoint) newServer(m *message) *serverTx {
	t := &serverTx{e: e, key: serverKey(m, m.method), req: m, flow: back(m), invite: m.method == "INVITE", tag: m.to.tag()}
	if t.tag == "" {
		t.tag = sip.GenerateTagN(16)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.server[t.key] != nil || len(e.server) >= maxServerTx || e.stopping() {
		return nil
	}
	e.server[t.key] = t
	if t.invite && m.to.tag() == "" {
		e.invites[mergeKey(m)] = t.key
	}
	return t
}

// cancel handles CANCEL (RFC 3261 §9.2).
func (e *Endpoint) cancel(m *message) {
	e.mu.Lock()
	invite := e.server[serverKey(m, "INVITE")]
	e.mu.Unlock()
	if invite == nil || invite.req.flow.remote.Addr() != m.flow.remote.Addr() {
		e.strange(m, &fault{481, "Call/Transaction Does Not Exist"})
		return
	}
	t := e.newServer(m)
	if t == nil {
		return
	}
	t.tag = invite.tag
	t.respond(e.answer(t, 200, "OK"))
	if c := e.dialog(m.callID, invite.tag); c != nil {
		c.post(func() { c.cancelCame(invite, m) })
	}
}

// outside serves a request that begins something: the handler decides.
func (e *Endpoint) outside(m *message) {
	r := view(m)
	switch m.method {
	case "BYE", "PRACK", "UPDATE", "INFO", "NOTIFY":
		// These live in dialogs only.
		e.handler.Bad(m.flow.remote, "method")
		e.strange(m, &fault{481, "Call/Transaction Does Not Exist"})
		return
	case "REFER", "MESSAGE", "SUBSCRIBE", "PUBLISH":
		// REFER outside of a dialog would have us call anybody (CVE-2021-37624 and
		// its like): nobody may.
		e.handler.Bad(m.flow.remote, "method")
		e.strange(m, &fault{405, "Method Not Allowed"})
		return
	}
	v := e.verdict(m, r)
	if _, sips := cutPrefixFold(m.uri, "sips:"); sips && v.Action != Drop && m.flow.network != "tls" && m.flow.network != "wss" {
		v = Verdict{Action: Refuse, Code: 403, Reason: "SIPS Needs TLS"} // RFC 5630 §5.3: never in the clear
	}
	switch v.Action {
	case Drop:
		return
	case Refuse:
		t := e.newServer(m)
		if t == nil {
			return
		}
		if v.Code < 300 {
			v.Code, v.Reason = 403, "Forbidden"
		}
		t.respond(e.answer(t, v.Code, v.Reason, v.Headers...))
		return
	case Challenge:
		algorithms := v.Algorithms
		if len(algorithms) == 0 {
			algorithms = e.cfg.Algorithms
		}
		user, trunk, stale, ok := e.authorized(m, v.Lookup, algorithms)
		if !ok {
			t := e.newServer(m)
			if t == nil {
				return
			}
			code, reason := 407, "Proxy Authentication Required"
			if m.method == "REGISTER" {
				code, reason = 401, "Unauthorized"
			}
			t.respond(e.answer(t, code, reason, e.challenge(m.method, stale, m.flow.remote.Addr(), algorithms)...))
			return
		}
		r.Digest, r.Trunk = user, trunk
		m.flow.trust()
		if v.CallOptions != nil {
			v.Options = v.CallOptions(trunk)
		}
	case Accept:
		r.Trunk = v.Trunk
		m.flow.trust()
	}
	t := e.newServer(m)
	if t == nil {
		return
	}
	switch m.method {
	case "INVITE":
		e.invited(t, r, v)
	case "OPTIONS":
		hs := append([]Header{{"Allow", allowed}, {"Accept", "application/sdp"}, {"Supported", supported}}, v.Headers...)
		code, reason := 200, "OK"
		if v.Code > 0 {
			code, reason = v.Code, v.Reason
		}
		t.respond(e.answer(t, code, reason, hs...))
	default:
		code, reason := 405, "Method Not Allowed"
		if v.Code > 0 {
			code, reason = v.Code, v.Reason
		}
		t.respond(e.answer(t, code, reason, v.Headers...))
	}
}

// answer makes a response (RFC 3261 §8.2.6): the fields of the request as they
// came, our tag, and in the top Via where it came from (RFC 3581).
func (e *Endpoint) answer(t *serverTx, code int, reason string, hs ...Header) *message {
	m := t.req
	res := &message{code: code, reason: reason}
	if reason == "" {
		res.reason = phrase(code)
	}
	for i, v := range m.via {
		if i == 0 {
			res.add("Via", viaBack(v, m.flow.remote))
			continue
		}
		res.add("Via", v.raw)
	}
	res.add("From", m.get("From"))
	to := m.get("To")
	if m.to.tag() == "" && code > 100 {
		to += ";tag=" + t.tag
	}
	res.add("To", to)
	res.add("Call-ID", m.get("Call-ID"))
	res.add("CSeq", m.get("CSeq"))
	if code == 100 {
		if ts := m.get("Timestamp"); ts != "" {
			res.add("Timestamp", ts)
		}
	}
	if e.cfg.UserAgent != "" {
		res.add("Server", e.cfg.UserAgent)
	}
	switch code {
	case 405, 501:
		res.add("Allow", allowed)
	case 415:
		res.add("Accept", "application/sdp")
		res.add("Accept-Encoding", "identity")
	case 420:
		if tags := m.unsupported(); len(tags) > 0 {
			res.add("Unsupported", strings.Join(tags, ", "))
		}
	}
	for _, h := range hs {
		if cleanHeader(h) == nil {
			res.add(h.Name, h.Value)
		}
	}
	return res
}

// viaBack adds received and rport to a Via that goes back (RFC 3261 §18.2.1,
// RFC 3581 §4).
func viaBack(v via, src netip.AddrPort) string {
	rport, asked := v.params.get("rport")
	same := false
	if a, err := netip.ParseAddr(v.host); err == nil {
		same = a.Unmap() == src.Addr()
	}
	if !v.good || same && !(asked && rport == "") {
		return v.raw
	}
	head := v.raw
	if at := strings.IndexByte(v.raw, ';'); at >= 0 {
		head = v.raw[:at]
	}
	var ps params
	for _, p := range v.params {
		switch strings.ToLower(p.name) {
		case "received":
			continue
		case "rport":
			if p.value == "" {
				p.value = strconv.Itoa(int(src.Port()))
			}
		}
		ps = append(ps, p)
	}
	ps = append(ps, param{"received", src.Addr().WithZone("").String()})
	return head + ps.String()
}

// back is where the answer to a request over UDP goes: to its source, at the port
// of the Via unless rport is there (RFC 3261 §18.2.2, RFC 3581 §4).
func back(m *message) *flow {
	f := m.flow
	if f.reliable() || len(m.via) == 0 || !m.via[0].good {
		return f
	}
	if _, ok := m.via[0].params.get("rport"); ok {
		return f
	}
	port := m.via[0].port
	if port == 0 {
		port = 5060
	}
	g := *f
	g.remote = netip.AddrPortFrom(f.remote.Addr(), uint16(port))
	return &g
}

// phrase is the reason phrase of a status (RFC 3261 §21).
func phrase(code int) string {
	if p, ok := phrases[code]; ok {
		return p
	}
	switch code / 100 {
	case 1:
		return "Session Progress"
	case 2:
		return "OK"
	case 3:
		return "Redirected"
	case 4:
		return "Request Failed"
	case 5:
		return "Server Error"
	}
	return "Declined"
}

var phrases = map[int]string{
	100: "Trying", 180: "Ringing", 181: "Call Is Being Forwarded", 182: "Queued", 183: "Session Progress",
	200: "OK", 202: "Accepted", 302: "Moved Temporarily", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden",
	404: "Not Found", 405: "Method Not Allowed", 406: "Not Acceptable", 407: "Proxy Authentication Required",
	408: "Request Timeout", 410: "Gone", 415: "Unsupported Media Type", 416: "Unsupported URI Scheme",
	420: "Bad Extension", 421: "Extension Required", 422: "Session Interval Too Small", 480: "Temporarily Unavailable",
	481: "Call/Transaction Does Not Exist", 482: "Loop Detected", 483: "Too Many Hops", 484: "Address Incomplete",
	486: "Busy Here", 487: "Request Terminated", 488: "Not Acceptable Here", 491: "Request Pending",
	500: "Server Internal Error", 501: "Not Implemented", 503: "Service Unavailable", 504: "Server Time-out",
	505: "Version Not Supported", 600: "Busy Everywhere", 603: "Decline", 604: "Does Not Exist Anywhere", 606: "Not Acceptable",
}

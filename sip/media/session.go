package media

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/srtp/v3"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/call"
)

// Session is the media of one leg. Two goroutines read its sockets until Close.
type Session struct {
	pool  *Pool
	log   *slog.Logger
	opts  Options
	rtp   *net.UDPConn
	rtcp  *net.UDPConn
	port  uint16
	wg    sync.WaitGroup
	ended atomic.Bool

	out sender // its lock is taken after mu, if both are

	mu       sync.Mutex // guards the following; never held while calling Events or another session
	ip       netip.Addr // ours, in descriptions
	id       uint64     // of our descriptions
	version  uint64
	last     string // our last description without its o= line
	lines    []refusedLine
	at       int // which line is the audio
	numbers  numbers
	keys     map[srtp.ProtectionProfile]cryptoKey
	offered  *localMedia // our offer that has no final answer yet
	hold     bool
	plan     *plan // nil before there is one
	final    bool  // the plan is no provisional one
	started  time.Time
	turned   time.Time // when hold last began or ended
	finished bool      // Timeout was called
	reported time.Time

	in  receiver
	tls *association
}

// Open takes a pair of ports for a leg.
func (p *Pool) Open(o Options) (*Session, error) {
	if len(o.Codecs) == 0 {
		o.Codecs = []audio.Codec{audio.PCMU, audio.PCMA, audio.G722, audio.Opus}
	}
	for _, c := range o.Codecs {
		if !slices.Contains([]audio.Codec{audio.PCMU, audio.PCMA, audio.G722, audio.Opus}, c) {
			return nil, fmt.Errorf("codec %q: %w", string(c), call.ErrInvalid)
		}
	}
	if !slices.Contains([]string{"", SRTPOff, SRTPOptional, SRTPRequire}, o.SRTP) ||
		!slices.Contains([]string{"", KeyingSDES, KeyingDTLS}, o.Keying) ||
		!slices.Contains([]string{"", DTMFEvents, DTMFInband, DTMFInfo}, o.DTMF) {
		return nil, fmt.Errorf("srtp %q, keying %q, dtmf %q: %w", o.SRTP, o.Keying, o.DTMF, call.ErrInvalid)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	rtp, rtcp, err := p.ports()
	if err != nil {
		return nil, err
	}
	s := &Session{
		pool: p, log: p.log, opts: o, rtp: rtp, rtcp: rtcp,
		port: rtp.LocalAddr().(*net.UDPAddr).AddrPort().Port(),
		id:   rand.Uint64() >> 2, keys: map[srtp.ProtectionProfile]cryptoKey{},
	}
	s.in.latch.sources, s.in.typing = o.Sources, flow{rate: digitRate, size: digitSize}
	s.in.found = func(digit byte) { s.in.digits = append(s.in.digits, digit) }
	s.out.start(rtp, rtcp)
	p.sessions[s] = struct{}{}
	s.wg.Go(s.receive)
	s.wg.Go(s.receiveControl)
	return s, nil
}

// Close gives the ports back. No event begins after it.
func (s *Session) Close() {
	if s.ended.Swap(true) {
		s.wg.Wait()
		return
	}
	s.bye()
	s.mu.Lock()
	tls := s.tls
	s.tls = nil
	s.mu.Unlock()
	tls.close()
	// A socket that is being closed has nothing left to lose.
	_, _ = s.rtp.Close(), s.rtcp.Close()
	s.wg.Wait()
	s.pool.free(s, s.port)
}

// Offer makes our next offer. Its version grows when it differs from the last
// description we sent.
func (s *Session) Offer() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended.Load() {
		return nil, ErrClosed
	}
	if err := s.chooseIP(netip.Addr{}); err != nil {
		return nil, err
	}
	s.numbers.settle()
	l := localMedia{
		profile: "RTP/AVP", port: s.port, codecs: slices.Clone(s.opts.Codecs), numbers: map[audio.Codec]uint8{},
		dir: direction{true, !s.hold},
	}
	if p := s.plan; p != nil {
		// What is spoken now goes first, so that a mere hold changes nothing else.
		l.codecs = slices.DeleteFunc(l.codecs, func(c audio.Codec) bool { return c == p.codec })
		l.codecs = slices.Insert(l.codecs, 0, p.codec)
	}
	for _, c := range l.codecs {
		l.numbers[c] = s.numbers.of(c)
		if c.Clock() == 8000 && c != audio.G722 {
			l.cn, l.cnPT = true, audio.ComfortNoiseType
		}
	}
	if s.opts.DTMF != DTMFInband {
		l.events = append(l.events, payload{number: s.numbers.event, clock: 8000})
		if slices.Contains(l.codecs, audio.Opus) {
			l.events = append(l.events, payload{number: s.numbers.event48, clock: 48000})
		}
	}
	s.offerKeys(&l)
	s.offered = &l
	return s.write(l), nil
}

// offerKeys says how our offer is encrypted. The first offer follows the policy; later
// ones keep what was agreed on.
func (s *Session) offerKeys(l *localMedia) {
	keying, must := "", s.opts.SRTP == SRTPRequire
	switch {
	case s.plan != nil:
		keying, must, l.profile = s.plan.keying, secureProfile(s.plan.profile), s.plan.profile
	case s.opts.SRTP == SRTPOptional || must:
		keying = KeyingSDES
		if s.opts.Keying == KeyingDTLS {
			keying = KeyingDTLS
		}
	}
	switch keying {
	case KeyingSDES:
		if s.plan == nil && must {
			l.profile = "RTP/SAVP"
		}
		if s.plan != nil { // the same key under the same tag
			l.keys = []cryptoKey{s.plan.local}
			return
		}
		for i, kind := range suites[:offeredSuites] {
			k := s.key(kind)
			k.tag, k.as = i+1, kind.name
			l.keys = append(l.keys, k)
		}
	case KeyingDTLS:
		if s.plan == nil && must {
			l.profile = "UDP/TLS/RTP/SAVP"
		}
		l.dtls, l.print, l.setup, l.mux = true, s.pool.fingerprint(), "actpass", true
		if s.plan != nil {
			l.mux = s.plan.mux
			l.setup = "passive" // RFC 8842 §5.5 lets us keep our role
			if s.plan.active {
				l.setup = "active"
			}
		}
	}
}

// key returns our key for a suite, always the same.
func (s *Session) key(kind suite) cryptoKey {
	k, ok := s.keys[kind.profile]
	if !ok {
		k = newCryptoKey(0, kind)
		s.keys[kind.profile] = k
	}
	return k
}

// write makes the description and counts its version. The caller holds s.mu.
func (s *Session) write(l localMedia) []byte {
	body := describe(s.ip, s.lines, s.at, l)
	if body != s.last {
		s.version++
		s.last = body
	}
	return fmt.Appendf(nil, "v=0\r\no=- %d %d IN %s %s\r\n%s", s.id, s.version, family(s.ip), s.ip, body)
}

// chooseIP decides which address of ours the other side is told. theirs may be zero.
func (s *Session) chooseIP(theirs netip.Addr) error {
	cfg := s.pool.cfg
	v6 := theirs.Is6()
	if !theirs.IsValid() {
		if s.ip.IsValid() {
			return nil
		}
		v6 = s.opts.ExternalIP.Is6() || !s.opts.ExternalIP.IsValid() && len(s.opts.Sources) > 0 && s.opts.Sources[0].Addr().Unmap().Is6()
		if len(s.opts.Sources) > 0 {
			theirs = s.opts.Sources[0].Addr().Unmap()
		}
	}
	configured := cfg.ExternalIP
	if v6 {
		configured = cfg.ExternalIP6
	}
	for _, ip := range []netip.Addr{s.opts.ExternalIP, configured, cfg.BindIP} {
		if ip = ip.Unmap(); ip.IsValid() && ip.Is6() == v6 && !ip.IsUnspecified() {
			s.ip = ip
			return nil
		}
	}
	if cfg.BindIP.IsValid() && !cfg.BindIP.IsUnspecified() {
		return fmt.Errorf("no address of the other side's family: %w", ErrNotAcceptable)
	}
	if !theirs.IsValid() {
		theirs = netip.MustParseAddr("192.0.2.1") // any: the way out
	}
	ip, err := towards(theirs)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotAcceptable, err)
	}
	s.ip = ip
	return nil
}

// Answer reads an offer, the first or a later one, and makes our answer. After an
// error nothing has changed: ErrNotAcceptable is a 488, call.ErrInvalid a 400.
func (s *Session) Answer(offer []byte) ([]byte, error) {
	d, err := parseDescription(offer)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended.Load() {
		return nil, ErrClosed
	}
	var p *plan
	for i := range d.media {
		next, problem := s.planAnswer(d, i)
		if problem == nil {
			p = next
			break
		}
		err = errors.Join(err, problem)
	}
	if p == nil {
		return nil, err
	}
	before := s.ip
	if err := s.chooseIP(p.declared.Addr()); err != nil && p.declared.Addr().IsValid() && !p.declared.Addr().IsUnspecified() {
		return nil, err
	} else if err != nil {
		s.ip = before
	}
	if !s.ip.IsValid() {
		if err := s.chooseIP(netip.Addr{}); err != nil {
			return nil, err
		}
	}
	if err := s.apply(p, true); err != nil {
		return nil, err
	}
	s.offered = nil
	s.lines, s.at = refused(d), p.line
	s.learn(p)
	l := localMedia{
		profile: p.profile, port: s.port, codecs: []audio.Codec{p.codec}, numbers: p.send,
		cn: p.hasCN, cnPT: p.cn, mux: p.mux, dir: p.ours,
	}
	if p.eventPT != 0 {
		l.events = []payload{p.event}
	}
	switch p.keying {
	case KeyingSDES:
		l.keys = []cryptoKey{p.local}
	case KeyingDTLS:
		l.dtls, l.print, l.setup = true, s.pool.fingerprint(), "passive"
		if p.active {
			l.setup = "active"
		}
	}
	return s.write(l), nil
}

// planAnswer sees what can be done with one media line of an offer.
func (s *Session) planAnswer(d *description, i int) (*plan, error) {
	m := &d.media[i]
	if m.kind != "audio" || m.port == 0 || !slices.Contains(profiles, m.proto) {
		return nil, fmt.Errorf("media line %d is no sound: %w", i+1, ErrNotAcceptable)
	}
	list, err := m.payloads()
	if err != nil {
		return nil, err
	}
	if err := m.checkPtime(); err != nil {
		return nil, err
	}
	p := &plan{line: i, profile: m.proto, theirs: d.direction(m)}
	if err := p.chooseCodecs(s.withoutEvents(list), s.opts.Codecs, false); err != nil {
		return nil, err
	}
	if err := p.chooseAddress(m, s.opts.Sources, s.pool.owns); err != nil {
		return nil, err
	}
	if err := p.secureAnswer(d, m, s.opts.SRTP, s.opts.Keying, s.key); err != nil {
		return nil, err
	}
	if p.keying == KeyingDTLS && s.plan != nil && s.plan.keying == KeyingDTLS {
		p.active = s.plan.active
	}
	p.ours = direction{send: p.theirs.receive, receive: p.theirs.send && !s.hold}
	return p, s.check(p, true)
}

// withoutEvents leaves out telephone events for a leg whose digits are in its sound.
func (s *Session) withoutEvents(list []payload) []payload {
	if s.opts.DTMF != DTMFInband {
		return list
	}
	return slices.DeleteFunc(list, func(p payload) bool { return p.name == "telephone-event" })
}

// check refuses keys that are wrong in the light of what was before.
func (s *Session) check(p *plan, answering bool) error {
	if p.keying == KeyingSDES && p.remote.same(p.local) {
		return fmt.Errorf("a=crypto with our own key: %w", ErrNotAcceptable)
	}
	if s.final {
		return p.follows(s.plan, answering)
	}
	return nil
}

// learn keeps the payload types that the other side uses.
func (s *Session) learn(p *plan) {
	for c, number := range p.send {
		if c == audio.Opus {
			s.numbers.opus = number
		}
	}
	if p.eventPT != 0 && p.event.clock == 48000 {
		s.numbers.event48 = p.eventPT
	} else if p.eventPT != 0 {
		s.numbers.event = p.eventPT
	}
}

// Accept reads the answer to our Offer: provisional (of a 18x; more may come, from
// other branches too, and the last one counts) or final, which implies Start.
func (s *Session) Accept(answer []byte, final bool) error {
	d, err := parseDescription(answer)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended.Load() {
		return ErrClosed
	}
	offered := s.offered
	if offered == nil {
		if final && s.final { // the 200 repeats what a reliable 183 said
			s.begin()
			return nil
		}
		return fmt.Errorf("an answer to no offer: %w", call.ErrConflict)
	}
	p, err := s.planAccept(d, *offered)
	if err != nil {
		return err
	}
	if err := s.apply(p, final); err != nil {
		return err
	}
	if len(d.media) > len(s.lines) {
		s.lines = refused(d)
	}
	s.at = p.line
	if final {
		s.offered = nil
		s.begin()
	}
	return nil
}

func (s *Session) planAccept(d *description, offered localMedia) (*plan, error) {
	i := slices.IndexFunc(d.media, func(m mediaLine) bool { return m.kind == "audio" && m.port != 0 })
	if i < 0 {
		return nil, fmt.Errorf("the answer refuses the sound: %w", ErrNotAcceptable)
	}
	m := &d.media[i]
	list, err := m.payloads()
	if err != nil {
		return nil, err
	}
	p := &plan{line: i, profile: offered.profile, theirs: d.direction(m)}
	if err := p.chooseCodecs(s.withoutEvents(list), offered.codecs, true); err != nil {
		return nil, err
	}
	// Some answer with numbers of their own and still send ours.
	for c := range p.send {
		if number := offered.numbers[c]; p.accept.of(number).content == nothing {
			p.accept = append(p.accept, format{number: number, content: voice, codec: c})
		}
	}
	for _, e := range offered.events {
		if p.eventPT != 0 && p.accept.of(e.number).content == nothing {
			p.accept = append(p.accept, format{number: e.number, content: event, clock: e.clock})
		}
	}
	if err := p.chooseAddress(m, s.opts.Sources, s.pool.owns); err != nil {
		return nil, err
	}
	p.mux = p.mux && offered.mux
	if err := p.secureAccept(d, m, offered); err != nil {
		return nil, err
	}
	p.ours = direction{
		send:    offered.dir.send && p.theirs.receive,
		receive: offered.dir.receive && p.theirs.send,
	}
	return p, s.check(p, false)
}

// apply puts a plan into effect. After an error nothing has changed. The caller holds
// s.mu.
func (s *Session) apply(p *plan, final bool) error {
	before := s.plan
	in, err := s.in.prepare(p, before)
	if err != nil {
		return err
	}
	if err := s.out.apply(p); err != nil {
		return err
	}
	s.in.adopt(in, p)
	if before == nil || before.theirs != p.theirs || before.ours != p.ours {
		s.turned = time.Now()
	}
	s.plan, s.final = p, s.final || final
	if p.keying == KeyingDTLS {
		s.associate(p)
	} else if s.tls != nil {
		tls := s.tls
		s.tls = nil
		s.wg.Go(tls.close)
	}
	s.out.aim(s.in.latch.destination(), s.controlTo())
	return nil
}

// Start tells that the call has been answered: from now on the lack of media is a
// fault. Call it when a 200 has been sent; Accept of a final answer does it alone.
func (s *Session) Start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begin()
}

func (s *Session) begin() {
	if s.started.IsZero() {
		s.started = time.Now()
	}
}

// SetHold puts the other side on hold or takes it back, from the next Offer on.
func (s *Session) SetHold(hold bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold = hold
}

// LocalHold says whether we put the other side on hold.
func (s *Session) LocalHold() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hold
}

// RemoteHold says whether the other side does not want to hear us now.
func (s *Session) RemoteHold() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.plan != nil && !s.plan.theirs.receive
}

// Rate is the sample rate of Read and Write: 8000 or 16000. It can change with the
// codec at any time, so ask before each frame.
func (s *Session) Rate() int {
	if c := s.Codec(); c != "" {
		return c.Rate()
	}
	return 8000
}

// Codec is the codec spoken now; empty before there is any.
func (s *Session) Codec() audio.Codec {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.in.codec
}

// SRTP says how the media is encrypted: "" (not at all), KeyingSDES or KeyingDTLS.
func (s *Session) SRTP() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plan == nil {
		return ""
	}
	return s.plan.keying
}

// Local is our RTP address as the other side is told. Its IP is zero before the first
// description was made.
func (s *Session) Local() netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return netip.AddrPortFrom(s.ip, s.port)
}

// Stats describes what came from the telephone.
func (s *Session) Stats() call.LegStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.in.stats(time.Now())
}

package sip

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/bridge"
	"github.com/trunkhall/trunkhall/sip/dialog"
	"github.com/trunkhall/trunkhall/sip/guard"
	"github.com/trunkhall/trunkhall/sip/ledger"
	"github.com/trunkhall/trunkhall/sip/media"
	"github.com/trunkhall/trunkhall/sip/numbers"
	"github.com/trunkhall/trunkhall/sip/trunk"
)

const (
	// keepEnded is how long a leg can be asked for after its end.
	keepEnded = 5 * time.Minute
	// maxEnded bounds how many.
	maxEnded = 1000
	// drainLimit bounds how long a stopping gateway waits for its goodbyes.
	drainLimit = 5 * time.Second
	// aliveEvery is how often the ledger notes that open calls are alive.
	aliveEvery = 10 * time.Second
)

// errGone is the error of methods for a leg that is not there any more.
var errGone = fmt.Errorf("the call has ended: %w", call.ErrNotFound)

// A Server is the gateway. New binds its sockets, Run serves until its context
// ends, then hangs up every call; all other methods may be called from any
// goroutine in between.
type Server struct {
	cfg       Config
	deps      Deps
	log       *slog.Logger
	directory Directory
	secret    []byte // of registration tokens

	plan      *numbers.Plan
	bans      *guard.Bans
	limits    *guard.Counters
	pins      *guard.Attempts
	ledger    *ledger.Ledger
	pool      *media.Pool
	bridges   *bridge.Bridges
	endpoint  *dialog.Endpoint
	trunks    *trunk.Trunks
	announcer *announcer
	count     counters

	pinAttempts int

	lineMu sync.Mutex // held while lines change
	lines  atomic.Pointer[lines]

	onDigit atomic.Pointer[func(call.RoomName, call.Identity, byte)]

	legs  sync.WaitGroup // goroutines of legs
	side  sync.WaitGroup // goroutines of background
	ctx   context.Context
	close context.CancelFunc

	mu       sync.Mutex // guards the following fields
	stopping bool
	active   map[call.LegID]*leg
	ended    []*leg                  // the latest last
	hosts    map[string][]netip.Addr // of each trunk's targets
}

// New validates the configuration, binds the SIP sockets and reads trunks and
// rules. Nothing is answered before Run.
func New(cfg Config, deps Deps) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, deps: deps, log: deps.Log,
		directory:   Static{Rooms: cfg.Rooms, Next: deps.Directory},
		secret:      deps.Secret,
		active:      make(map[call.LegID]*leg),
		hosts:       make(map[string][]netip.Addr),
		pinAttempts: guard.DefaultPINs().Attempts,
	}
	if len(s.secret) == 0 {
		s.secret = []byte(rand.Text())
	}
	s.ctx, s.close = context.WithCancel(context.Background())
	if err := s.build(); err != nil {
		s.close()
		if s.ledger != nil {
			err = errors.Join(err, s.ledger.Close())
		}
		return nil, err
	}
	return s, nil
}

// build makes the parts; the sockets come last.
func (s *Server) build() (err error) {
	if s.plan, err = numbers.New(s.cfg.numbers()); err != nil {
		return err
	}
	if s.announcer, err = newAnnouncer(s.cfg.Prompts.Dir); err != nil {
		return err
	}
	s.bans = guard.NewBans(s.cfg.Block)
	s.limits = guard.NewLimits(s.cfg.Limits, s.alarm)
	s.pins = guard.NewAttempts(guard.DefaultPINs())
	now := time.Now()
	s.ledger, err = ledger.Open(ledger.Config{
		Dir: s.cfg.Records.Dir, MaxSize: s.cfg.Records.MaxSize, Keep: s.cfg.Records.Keep,
	}, now, s.log)
	if err != nil {
		return fmt.Errorf("call records: %w", err)
	}
	s.limits.Restore(now, s.ledger.Spent(now))
	all, err := s.readLines(context.Background())
	if err != nil {
		return err
	}
	if s.pool, err = media.NewPool(s.cfg.media(), s.log); err != nil {
		return err
	}
	s.bridges = bridge.New(s.deps.SFU, s.log)
	cfg, err := s.cfg.dialog()
	if err != nil {
		return err
	}
	if s.endpoint, err = dialog.New(cfg, doorman{s}, s.log); err != nil {
		return err
	}
	auto := s.cfg.ExternalIP == "auto" || s.cfg.ExternalIP == ""
	s.trunks = trunk.New(s.endpoint, trunk.Options{NAT: auto, Changed: s.learned}, s.log)
	s.setLines(all)
	return nil
}

// numbers is the dial plan's part of the configuration.
func (c Config) numbers() numbers.Config {
	n := numbers.Config{
		DefaultCountry: c.DefaultCountry, Emergency: c.Emergency, Extensions: c.Extensions, AllowTypes: c.Outbound.AllowTypes,
	}
	if !c.Block.Emergency {
		n.EmergencyTrunk = c.Outbound.EmergencyTrunk
	}
	return n
}

// media is the RTP part of the configuration.
func (c Config) media() media.Config {
	m := media.DefaultConfig()
	first, last := c.Ports()
	m.PortMin, m.PortMax = uint16(first), uint16(last)
	if ip, err := netip.ParseAddr(c.ExternalIP); err == nil {
		if ip.Unmap().Is4() {
			m.ExternalIP = ip.Unmap()
		} else {
			m.ExternalIP6 = ip
		}
	}
	if ip, err := netip.ParseAddr(c.BindIP); err == nil {
		m.BindIP = ip
	}
	return m
}

// dialog is the signalling part of the configuration.
func (c Config) dialog() (dialog.Config, error) {
	d := dialog.Config{Listen: c.Listen, UserAgent: "Trunkhall", Algorithms: c.DigestAlgorithms}
	if ip, err := netip.ParseAddr(c.ExternalIP); err == nil {
		d.ExternalIP = ip
	}
	if c.TLSCertFile != "" {
		// Read once here, so that a mistake shows at the start, and again for each
		// connection: a renewed certificate needs no restart.
		if _, err := tls.LoadX509KeyPair(c.TLSCertFile, c.TLSKeyFile); err != nil {
			return d, fmt.Errorf("sip.tls_cert_file: %w", err)
		}
		d.TLS = &tls.Config{
			MinVersion: tls.VersionTLS12,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				pair, err := tls.LoadX509KeyPair(c.TLSCertFile, c.TLSKeyFile)
				return &pair, err
			},
		}
	}
	if c.TLSCAFile != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		pem, err := os.ReadFile(c.TLSCAFile)
		if err != nil {
			return d, fmt.Errorf("sip.tls_ca_file: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return d, fmt.Errorf("sip.tls_ca_file: %s holds no certificate", c.TLSCAFile)
		}
		d.ClientTLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	}
	return d, nil
}

// alarm tells the operator of a budget that is nearly or entirely used up.
func (s *Server) alarm(a guard.Alarm) {
	s.log.Warn("sip_alarm", "limit", a.Limit, "by", a.By, "text", a.Text)
}

// token is the user part of our Contact in a trunk's registration: nobody but the
// registrar learns it. It stays the same over restarts.
func (s *Server) token(trunk string) string {
	mac := hmac.New(sha256.New, s.secret)
	mac.Write([]byte("registration\x00" + trunk))
	return "t" + hex.EncodeToString(mac.Sum(nil)[:16])
}

// Run serves until ctx ends. Then it hangs up all calls, takes back its
// registrations and returns when everything has ended.
func (s *Server) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	partCtx, stop := context.WithCancel(context.Background())
	failed := make(chan error, 4)
	run := func(name string, f func(context.Context) error) {
		parts.Go(func() {
			if err := f(partCtx); err != nil {
				failed <- fmt.Errorf("%s: %w", name, err)
			}
		})
	}
	run("sip media", s.pool.Run)
	run("sip bridge", s.bridges.Run)
	run("sip", s.endpoint.Run)
	parts.Go(func() { s.keepAlive(partCtx) })
	parts.Go(func() { s.meet(partCtx) })
	trunksCtx, stopTrunks := context.WithCancel(context.Background())
	var trunks sync.WaitGroup
	trunks.Go(func() { _ = s.trunks.Run(trunksCtx) })

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	s.drain()
	stopTrunks() // what is registered is taken back while the endpoint still works
	trunks.Wait()
	stop()
	parts.Wait()
	close(failed)
	for more := range failed {
		err = errors.Join(err, more)
	}
	return errors.Join(err, s.ledger.Close())
}

// keepAlive has the ledger note that the open calls are alive, and forgets legs
// that ended long ago.
func (s *Server) keepAlive(ctx context.Context) {
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if err := s.ledger.Alive(now); err != nil {
				s.log.Error("write the call journal", "err", err)
			}
			s.mu.Lock()
			s.ended = slices.DeleteFunc(s.ended, func(l *leg) bool { return now.Sub(l.snapshot().Ended) > keepEnded })
			s.mu.Unlock()
		}
	}
}

// drain hangs up every call and waits, for a bounded time, until all have ended.
func (s *Server) drain() {
	s.mu.Lock()
	s.stopping = true
	var all []*leg
	for _, l := range s.active {
		all = append(all, l)
	}
	s.mu.Unlock()
	s.close()
	for _, l := range all {
		l.post(func() { l.end(shutdown) })
	}
	gone := make(chan struct{})
	go func() {
		s.legs.Wait()
		s.side.Wait()
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(drainLimit):
		s.log.Warn("calls that do not end are cut off")
	}
}

// background runs f until it returns; its context ends with the server.
func (s *Server) background(f func(ctx context.Context)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopping {
		s.side.Go(func() { f(s.ctx) })
	}
}

// add takes a leg in, unless the server is stopping.
func (s *Server) add(l *leg) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return false
	}
	s.active[l.id] = l
	s.legs.Add(1)
	return true
}

// forget moves a leg to those that have ended.
func (s *Server) forget(l *leg) {
	s.mu.Lock()
	delete(s.active, l.id)
	s.mu.Unlock()
	s.remember(l)
}

// remember keeps a leg that has ended for those who ask.
func (s *Server) remember(l *leg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended = append(s.ended, l); len(s.ended) > maxEnded {
		s.ended = slices.Delete(s.ended, 0, len(s.ended)-maxEnded)
	}
}

// find returns a leg, also one that ended lately.
func (s *Server) find(id call.LegID) *leg {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.active[id]; l != nil {
		return l
	}
	for _, l := range s.ended {
		if l.id == id {
			return l
		}
	}
	return nil
}

// live returns the legs that have not ended.
func (s *Server) live() []*leg {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*leg
	for _, l := range s.active {
		all = append(all, l)
	}
	return all
}

// byDialog returns the leg that has a dialog.
func (s *Server) byDialog(d *dialog.Call) *leg {
	for _, l := range s.live() {
		// Not by Call-ID: the other side of another trunk may have chosen the same.
		if l.current.Load() == d {
			return l
		}
	}
	return nil
}

// Addrs returns what was bound, as "udp://192.0.2.1:5060".
func (s *Server) Addrs() []string { return s.endpoint.Addrs() }

// Wait returns the leg as soon as its state differs from seen, at once if it does
// already, and as it is when ctx ends. Ended legs can be asked for some minutes.
// The error wraps call.ErrNotFound if there is no such leg.
func (s *Server) Wait(ctx context.Context, id call.LegID, seen call.LegState) (call.Leg, error) {
	l := s.find(id)
	if l == nil {
		return call.Leg{}, errGone
	}
	return l.wait(ctx, seen), nil
}

// Leg returns one leg as it is now, also one that ended lately.
func (s *Server) Leg(id call.LegID) (call.Leg, bool) {
	if l := s.find(id); l != nil {
		return l.snapshot(), true
	}
	return call.Leg{}, false
}

// Legs returns every leg that has not ended, the oldest first.
func (s *Server) Legs() []call.Leg {
	var all []call.Leg
	for _, l := range s.live() {
		all = append(all, l.snapshot())
	}
	slices.SortFunc(all, func(a, b call.Leg) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// LegOf returns the leg that is behind a participant of a room.
func (s *Server) LegOf(room call.RoomName, id call.Identity) (call.Leg, bool) {
	for _, l := range s.live() {
		if now := l.facts(); now.Room == room && now.Identity == id && id != "" {
			return now, true
		}
	}
	return call.Leg{}, false
}

// Hangup ends a leg: CANCEL, a final response or BYE, as its state asks for.
func (s *Server) Hangup(ctx context.Context, id call.LegID) error {
	l := s.find(id)
	if l == nil {
		return errGone
	}
	return l.ask(func() error {
		now := l.snapshot()
		switch {
		case !now.Answered.IsZero():
			l.end(verdict{cause: call.CauseHangup, text: "hung up", q850: 16})
		case now.Direction == call.Outbound:
			l.end(verdict{cause: call.CauseCancelled, text: "given up before it was answered", code: 487, q850: 16})
		default:
			l.end(verdict{cause: call.CauseRejected, text: "declined", code: 603, q850: 21})
		}
		return nil
	})
}

// Digits presses keys towards the phone; w waits half a second.
func (s *Server) Digits(id call.LegID, digits string) error {
	l := s.find(id)
	if l == nil {
		return errGone
	}
	digits, err := cleanDigits(digits)
	if err != nil {
		return err
	}
	return l.ask(func() error {
		if l.snapshot().Answered.IsZero() {
			return fmt.Errorf("the call is not answered yet: %w", call.ErrConflict)
		}
		l.press(digits)
		return nil
	})
}

// DigitsTo presses keys towards phones of a room, as a participant's data message
// asks for; empty to means all of them.
func (s *Server) DigitsTo(room call.RoomName, to []call.Identity, digits string) {
	digits, err := cleanDigits(digits)
	if err != nil {
		return
	}
	for _, l := range s.live() {
		now := l.facts()
		if now.Room != room || now.Answered.IsZero() || len(to) > 0 && !slices.Contains(to, now.Identity) {
			continue
		}
		l.postDigit(func() {
			if !l.over {
				l.press(digits)
			}
		})
	}
}

// Mute mutes or unmutes a phone as a moderator; the phone is told.
func (s *Server) Mute(id call.LegID, muted bool) error {
	l := s.find(id)
	if l == nil {
		return errGone
	}
	return l.ask(func() error {
		if l.phone == nil {
			return fmt.Errorf("the phone is in no room: %w", call.ErrConflict)
		}
		l.phone.SetMuted(muted)
		l.update(func(now *call.Leg) { now.Muted = muted })
		l.say(pick(muted, promptModMuted, promptModUnmuted))
		return nil
	})
}

// OnDigit has f called with each key that a phone in a room presses. f must not
// block.
func (s *Server) OnDigit(f func(room call.RoomName, id call.Identity, digit byte)) {
	s.onDigit.Store(&f)
}

// Records returns call detail records, the latest first.
func (s *Server) Records(f ledger.Filter) []ledger.Record { return s.ledger.Records(f) }

// Bans returns the addresses that are shut out.
func (s *Server) Bans() []guard.Ban { return s.bans.List(time.Now()) }

// LiftBan ends a ban and reports whether there was one.
func (s *Server) LiftBan(ip netip.Addr) bool { return s.bans.Lift(ip) }

// pinLength is the length of every PIN, 0 if they differ.
func (s *Server) pinLength() int {
	if p, ok := s.directory.(PINLength); ok {
		return p.PINLength()
	}
	return 0
}

func samePIN(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// CauseOf returns why a call was refused, from an error of Dial.
func CauseOf(err error) call.Cause { return causeOf(err) }

func causeOf(err error) call.Cause {
	var c interface{ Cause() call.Cause }
	switch {
	case errors.As(err, &c):
		return c.Cause()
	case errors.Is(err, call.ErrForbidden):
		return call.CauseNotAllowed
	}
	return call.CauseFailed
}

// reasonOf is the error for people: what a policy or a limit says, or little.
func reasonOf(err error) string {
	var refusal *numbers.Refusal
	var limit *guard.LimitError
	var own *refused
	switch {
	case errors.As(err, &refusal):
		return refusal.Text
	case errors.As(err, &limit):
		return limit.Text
	case errors.As(err, &own):
		return withoutKind(own)
	}
	return "the call failed"
}

// withoutKind is an error's text without the error kind at its end, which says
// nothing to people.
func withoutKind(err error) string {
	text := err.Error()
	for _, kind := range call.Kinds() {
		text = strings.TrimSuffix(text, ": "+kind.Error())
	}
	return text
}

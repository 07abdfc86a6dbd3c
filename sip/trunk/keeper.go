package trunk

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	mrand "math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/dialog"
)

// The states of a registration.
const (
	registering = "registering"
	registered  = "registered"
	regFailed   = "failed"
)

// A keeper keeps one line: two goroutines, one that registers and one that asks
// targets.
type keeper struct {
	t      *Trunks
	line   Line
	aor    string          // empty: nothing is registered
	done   chan struct{}   // closed when run has returned
	before <-chan struct{} // run begins when it is closed; nil: at once
	cancel context.CancelFunc

	registerNow chan chan struct{} // what is sent, if not nil, is closed afterwards
	askNow      chan chan struct{}

	callID string // of all its REGISTERs; only run's goroutine uses it and cseq
	cseq   uint32

	mu       sync.Mutex // guards the following fields
	reg      string
	problem  string // of the registration
	expires  time.Time
	at       string // target of the registration
	sources  []netip.Addr
	public   netip.AddrPort
	stale    []string // contacts of ours at the registrar that are not ours any more
	lastKick time.Time
	targets  []*targetState
	since    time.Time
	wasUp    bool
}

// A targetState is what is known of one target.
type targetState struct {
	uri     string
	until   time.Time // of its penalty
	down    bool      // does not answer OPTIONS
	ping    time.Duration
	problem string
}

func newKeeper(t *Trunks, l Line) *keeper {
	k := &keeper{
		t: t, line: l, aor: l.Trunk.Register.AOR, done: make(chan struct{}),
		registerNow: make(chan chan struct{}, 4), askNow: make(chan chan struct{}, 4),
		callID: rand.Text(), since: time.Now(), wasUp: true,
	}
	for _, uri := range l.Trunk.Targets {
		if !slices.ContainsFunc(k.targets, func(s *targetState) bool { return s.uri == uri }) {
			k.targets = append(k.targets, &targetState{uri: uri})
		}
	}
	if len(k.targets) == 0 && k.aor != "" {
		k.targets = append(k.targets, &targetState{uri: domain(k.aor)})
	}
	if k.aor != "" {
		k.reg = registering
	}
	return k
}

// domain makes "sip:user@example.net" "sip:example.net": the Request-URI of a
// REGISTER names no user (RFC 3261 §10.2).
func domain(aor string) string {
	scheme, rest, _ := strings.Cut(aor, ":")
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = rest[i+1:]
	}
	return scheme + ":" + rest
}

func userOf(aor string) string {
	_, rest, _ := strings.Cut(aor, ":")
	user, _, ok := strings.Cut(rest, "@")
	if !ok {
		return ""
	}
	return user
}

func (k *keeper) stop() {
	if k.cancel != nil {
		k.cancel()
	}
}

// run keeps the line until ctx ends.
func (k *keeper) run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { k.keepRegistered(ctx) })
	wg.Go(func() { k.keepAsking(ctx) })
	wg.Wait()
}

// target returns how to send to uri.
func (k *keeper) target(uri string) dialog.Target {
	t := k.line.Trunk
	target := dialog.Target{
		URI: uri, Proxy: t.Outbound, Username: t.Auth.Username, Password: t.Auth.Password, Realm: t.Auth.Realm,
		Networks: k.line.Networks,
	}
	if target.Username == "" && target.Password != "" {
		target.Username = userOf(k.aor)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if ip, err := netip.ParseAddr(t.ExternalIP); err == nil {
		target.ExternalIP = ip
	} else if k.public.IsValid() {
		target.ExternalIP, target.ExternalPort = k.public.Addr(), k.public.Port()
	}
	return target
}

// order returns the targets as they are to be tried.
func (k *keeper) order(now time.Time) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	rank := func(s *targetState) int {
		switch {
		case s.down || now.Before(s.until):
			return 2
		case k.reg == registered && s.uri == k.at:
			return 0
		}
		return 1
	}
	sorted := slices.Clone(k.targets)
	slices.SortStableFunc(sorted, func(a, b *targetState) int { return rank(a) - rank(b) })
	uris := make([]string, len(sorted))
	for i, s := range sorted {
		uris[i] = s.uri
	}
	return uris
}

// inOrder is order without a preference for where we are registered: a
// registration goes back to the first target when that works again.
func (k *keeper) inOrder(now time.Time) []*targetState {
	k.mu.Lock()
	defer k.mu.Unlock()
	var good, bad []*targetState
	for _, s := range k.targets {
		if s.down || now.Before(s.until) {
			bad = append(bad, s)
		} else {
			good = append(good, s)
		}
	}
	return append(good, bad...)
}

func (k *keeper) find(uri string) *targetState {
	for _, s := range k.targets {
		if s.uri == uri {
			return s
		}
	}
	return &targetState{}
}

func (k *keeper) failed(now time.Time, uri string, code int) {
	switch {
	case code == 0, code == 408, code >= 500 && code < 600:
		k.mu.Lock()
		k.find(uri).until = now.Add(penalty)
		k.mu.Unlock()
		k.kick(now)
	case code == 401, code == 403, code == 407:
		// It may have forgotten who we are. Whom it has refused need not ask again.
		k.mu.Lock()
		was := k.reg == registered
		k.mu.Unlock()
		if was {
			k.kick(now)
		}
	}
}

func (k *keeper) worked(uri string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.find(uri).until = time.Time{}
}

// kick asks for a registration and a look at the targets soon, but not at each of
// a hundred calls that fail.
func (k *keeper) kick(now time.Time) {
	k.mu.Lock()
	early := now.Sub(k.lastKick) < penalty
	if !early {
		k.lastKick = now
	}
	k.mu.Unlock()
	if early {
		return
	}
	for _, c := range []chan chan struct{}{k.registerNow, k.askNow} {
		select {
		case c <- nil:
		default:
		}
	}
}

// refresh registers and asks now, and waits for both.
func (k *keeper) refresh(ctx context.Context) error {
	wait := func(c chan chan struct{}) error {
		done := make(chan struct{})
		select {
		case c <- done:
		case <-k.done:
			return call.ErrUnavailable
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-done:
			return nil
		case <-k.done:
			return call.ErrUnavailable
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if k.aor != "" {
		if err := wait(k.registerNow); err != nil {
			return err
		}
	}
	return wait(k.askNow)
}

// keepRegistered registers again and again until ctx ends, then takes it back.
func (k *keeper) keepRegistered(ctx context.Context) {
	if k.aor == "" {
		return
	}
	expires := cmp.Or(k.line.Trunk.Register.Expires, defaultExpires)
	failures := 0
	var waiting chan struct{} // somebody wants to know when it is done
	for {
		began := time.Now()
		pause, ok := k.register(ctx, &expires, failures)
		if waiting != nil {
			close(waiting)
			waiting = nil
		}
		failures++
		if ok {
			failures = 0
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			k.unregister(expires)
			return
		case <-timer.C:
		case waiting = <-k.registerNow:
			timer.Stop()
			if waiting == nil { // nobody waits: not too often
				select {
				case <-ctx.Done():
				case <-time.After(time.Until(began.Add(soonest))):
				}
			}
		}
	}
}

// register tries one target after the other. It returns when to do it again and
// whether we are registered.
func (k *keeper) register(ctx context.Context, expires *int, failures int) (pause time.Duration, ok bool) {
	slow := false
	var retryAfter time.Duration
	for _, s := range k.inOrder(time.Now()) {
		a, err := k.registerAt(ctx, s.uri, expires)
		if ctx.Err() != nil {
			return 0, false
		}
		if err == nil && a.code >= 200 && a.code < 300 {
			return k.accepted(s.uri, a, *expires)
		}
		problem := explain(s.uri, k.line.Trunk, a, err)
		k.mu.Lock()
		if k.problem != problem {
			k.t.log.Warn("a trunk is not registered", "trunk", k.line.Trunk.ID, "problem", problem)
		}
		k.problem = problem
		k.setReg(regFailed)
		k.at = ""
		if again := err != nil || a.code == 408 || a.code >= 500; again {
			s.until = time.Now().Add(penalty)
		}
		k.mu.Unlock()
		if err == nil && a.code < 500 && a.code != 408 {
			// It has thought about it. Asking faster, or another server of the same
			// provider, makes it angry rather than willing.
			slow = true
			break
		}
		if err == nil {
			retryAfter = max(retryAfter, seconds(a.header("Retry-After"), 5*time.Minute))
		}
	}
	return max(retryAfter, backoff(failures, slow)), false
}

// registerAt sends REGISTER to one target, with a longer time if the registrar
// asks for one (423, RFC 3261 §10.2.8).
func (k *keeper) registerAt(ctx context.Context, uri string, expires *int) (a answer, err error) {
	for range 3 {
		m := k.registration(uri, *expires)
		k.mu.Lock()
		for _, old := range k.stale {
			m.Headers = append(m.Headers, dialog.Header{Name: "Contact", Value: "<" + old + ">;expires=0"})
		}
		k.mu.Unlock()
		if a, err = k.request(ctx, m); err != nil || a.code != 423 {
			return a, err
		}
		least := int(seconds(a.header("Min-Expires"), 24*time.Hour) / time.Second)
		if least <= *expires {
			return a, err
		}
		*expires = least
	}
	return a, err
}

func (k *keeper) registration(uri string, expires int) dialog.Message {
	k.cseq += 2 // one for us, one for the digest
	return dialog.Message{
		Method: "REGISTER", URI: domain(k.aor), To: k.aor, From: k.aor, CallID: k.callID, CSeq: k.cseq,
		Contact: k.line.Contact, ContactParams: "expires=" + strconv.Itoa(expires),
		Headers: []dialog.Header{{Name: "Expires", Value: strconv.Itoa(expires)}},
		Target:  k.target(uri),
	}
}

func (k *keeper) request(ctx context.Context, m dialog.Message) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	a, err := k.t.send(ctx, m)
	if a.header == nil {
		a.header = func(string) []string { return nil }
	}
	return a, err
}

// accepted takes in a 200 to REGISTER.
func (k *keeper) accepted(uri string, a answer, asked int) (pause time.Duration, ok bool) {
	var all, ours []binding
	for _, value := range a.header("Contact") {
		all = append(all, parseContacts(value)...)
	}
	for _, b := range all {
		if userOf(b.uri) == k.line.Contact {
			ours = append(ours, b)
		}
	}
	// A binding from before an address changed has less time left than the one
	// just made.
	slices.SortStableFunc(ours, func(x, y binding) int { return y.expires - x.expires })
	granted := asked
	if header := seconds(a.header("Expires"), 7*24*time.Hour); header > 0 {
		granted = int(header / time.Second)
	}
	if len(ours) > 0 && ours[0].expires > 0 {
		granted = ours[0].expires
	}

	problem := ""
	k.mu.Lock()
	if len(all) > 0 && len(ours) == 0 {
		// RFC 3261 §10.3 step 8: the answer lists every binding there is. Some
		// border controllers put their own in its place, so this may be no fault.
		problem = "the provider accepts the registration but does not list our address: if no calls come in, ask it why"
	}
	if k.reg != registered {
		k.t.log.Info("a trunk is registered", "trunk", k.line.Trunk.ID, "target", uri, "seconds", granted)
	}
	k.setReg(registered)
	k.problem, k.at = problem, uri
	k.expires = time.Now().Add(time.Duration(granted) * time.Second)
	k.stale = k.stale[:0]
	for _, old := range ours[min(1, len(ours)):] {
		k.stale = append(k.stale, old.uri)
	}
	s := k.find(uri)
	s.until, s.down, s.problem = time.Time{}, false, ""
	contact := ""
	if len(ours) > 0 {
		contact = ours[0].uri
	}
	changed := k.learn(a, contact)
	moved := changed && k.public.IsValid() && contact != "" &&
		(hostOf(contact) != k.public.Addr().String() || k.public.Port() != 0 && portOf(contact) != k.public.Port())
	k.mu.Unlock()
	if changed && k.t.o.Changed != nil {
		k.t.o.Changed()
	}
	if moved || len(k.stale) > 0 && changed {
		return 0, true // once more, with the public address in Contact
	}
	return k.untilRefresh(time.Duration(granted) * time.Second), true
}

// learn keeps where the registrar is and how it sees us; contact is our Contact as
// it lists it. It reports whether one of both is new. k.mu is held.
func (k *keeper) learn(a answer, contact string) (changed bool) {
	if ip := a.source.Addr().Unmap(); ip.IsValid() && !slices.Contains(k.sources, ip) {
		if len(k.sources) >= 16 { // a provider with many addresses: the oldest goes
			k.sources = slices.Clone(k.sources[1:])
		}
		k.sources = append(k.sources, ip)
		changed = true
	}
	seen := netip.AddrPortFrom(a.seen.Addr().Unmap(), a.seen.Port())
	if !k.t.o.NAT || k.line.Trunk.ExternalIP != "" || !seen.IsValid() || !public(seen.Addr()) {
		return changed
	}
	if contact == "" || connected(contact) {
		// It saw the port of a connection of ours. Nobody listens there.
		seen = netip.AddrPortFrom(seen.Addr(), 0)
	}
	if k.public != seen {
		k.public = seen
		changed = true
	}
	return changed
}

// connected reports whether a URI is for anything but UDP.
func connected(uri string) bool {
	low := strings.ToLower(uri)
	_, transport, has := strings.Cut(low, ";transport=")
	return strings.HasPrefix(low, "sips:") || has && !strings.HasPrefix(transport, "udp")
}

func public(ip netip.Addr) bool {
	ip = ip.Unmap()
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && !netip.MustParsePrefix("100.64.0.0/10").Contains(ip)
}

// untilRefresh returns when to renew a registration that lasts so long: well
// before its end, and often enough to notice that the registrar forgot us.
func (k *keeper) untilRefresh(lasts time.Duration) time.Duration {
	every := k.line.Trunk.Register.Refresh
	if every <= 0 {
		every = refreshAtMost
	}
	latest := lasts / 2
	if lasts > 2*time.Minute {
		latest = lasts - time.Minute
	}
	return max(jitter(min(every, latest)), time.Second)
}

// jitter shortens d by up to a tenth, so that many lines do not march in step.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(mrand.Int64N(int64(d/10)+1))
}

// backoff returns how long to wait after so many failures in a row: 2 s doubling
// to a minute, or a minute doubling to a quarter of an hour if the other side has
// refused.
func backoff(failures int, slow bool) time.Duration {
	first, most := 2*time.Second, time.Minute
	if slow {
		first, most = time.Minute, 15*time.Minute
	}
	return jitter(min(first<<min(failures, 10), most))
}

// unregister takes the registration back (RFC 3261 §10.2.2).
func (k *keeper) unregister(expires int) {
	k.mu.Lock()
	at, was := k.at, k.reg == registered
	k.mu.Unlock()
	if !was {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	m := k.registration(at, 0)
	if a, err := k.request(ctx, m); err != nil || a.code >= 300 {
		k.t.log.Info("the registration stays until it expires", "trunk", k.line.Trunk.ID, "err", err, "code", a.code)
	}
	k.mu.Lock()
	k.setReg(registering)
	k.mu.Unlock()
}

// setReg is called with k.mu held.
func (k *keeper) setReg(to string) {
	if k.reg != to {
		k.reg, k.since = to, time.Now()
	}
}

// keepAsking sends OPTIONS to every target now and then until ctx ends.
func (k *keeper) keepAsking(ctx context.Context) {
	every := k.line.Trunk.OptionsPing
	var waiting chan struct{}
	for {
		// Without options_ping only somebody who waits is worth a question.
		if every > 0 || waiting != nil {
			k.askAll(ctx)
		}
		if waiting != nil {
			close(waiting)
			waiting = nil
		}
		timer := time.NewTimer(1<<63 - 1) // for ever, if nothing is asked
		if pause := every; pause > 0 {
			if k.anyDown() {
				pause = min(pause, 10*time.Second)
			}
			timer.Reset(max(jitter(pause), time.Second))
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case waiting = <-k.askNow:
			timer.Stop()
		}
	}
}

func (k *keeper) anyDown() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.ContainsFunc(k.targets, func(s *targetState) bool { return s.down })
}

func (k *keeper) askAll(ctx context.Context) {
	k.mu.Lock()
	targets := slices.Clone(k.targets)
	k.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range targets {
		wg.Go(func() { k.ask(ctx, s) })
	}
	wg.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	if up := k.up(); up != k.wasUp {
		k.wasUp, k.since = up, time.Now()
		k.t.log.Info("a trunk has changed", "trunk", k.line.Trunk.ID, "up", up)
	}
}

// ask sends OPTIONS to one target. Any answer shows that it is there, unless it
// says itself that it is not.
func (k *keeper) ask(ctx context.Context, s *targetState) {
	m := dialog.Message{Method: "OPTIONS", From: k.aor, Contact: k.line.Contact, Target: k.target(s.uri)}
	m.Target.Username, m.Target.Password = "", "" // a challenge is an answer
	a, err := k.request(ctx, m)
	if ctx.Err() != nil {
		return
	}
	down := err != nil || a.code == 408 || a.code == 500 || a.code >= 502 && a.code <= 504
	k.mu.Lock()
	was := s.down
	s.down = down
	if down {
		s.ping, s.problem = 0, explain(s.uri, k.line.Trunk, a, err)
	} else {
		s.ping, s.problem, s.until = max(a.elapsed, 1), "", time.Time{}
	}
	k.mu.Unlock()
	if was && !down {
		// It may have been restarted and know nothing of us.
		select {
		case k.registerNow <- nil:
		default:
		}
	}
}

// up reports whether some target is not known to be down. k.mu is held.
func (k *keeper) up() bool {
	return len(k.targets) == 0 || slices.ContainsFunc(k.targets, func(s *targetState) bool { return !s.down })
}

func (k *keeper) state(now time.Time) call.TrunkState {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := call.TrunkState{
		Trunk: k.line.Trunk, Source: k.line.Source, Registered: k.reg, Since: k.since, Up: k.up(),
	}
	s.Trunk.Auth.Password = ""
	if k.reg == registered {
		s.Expires = k.expires
	}
	var problems []string
	if k.problem != "" {
		problems = append(problems, k.problem)
	}
	for _, t := range k.targets {
		if !t.down && s.Ping == 0 {
			s.Ping = t.ping
		}
		if t.problem != "" && !slices.Contains(problems, t.problem) {
			problems = append(problems, t.problem)
		}
	}
	s.Problem = strings.Join(problems, "; ")
	return s
}

// seconds reads a header of a number of seconds, 0 if there is none. Retry-After
// may be followed by a comment or parameters.
func seconds(values []string, most time.Duration) time.Duration {
	if len(values) == 0 {
		return 0
	}
	text := strings.TrimSpace(values[0])
	if i := strings.IndexFunc(text, func(c rune) bool { return c < '0' || c > '9' }); i >= 0 {
		text = text[:i]
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if errors.Is(err, strconv.ErrRange) {
		return most
	}
	return min(time.Duration(n)*time.Second, most)
}

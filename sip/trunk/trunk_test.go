package trunk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/dialog"
)

// A registrar is a provider in memory, at one target. Its zero value does not
// answer.
type registrar struct {
	mu       sync.Mutex
	up       bool
	code     int // of every answer to REGISTER, if not 0
	least    int // Min-Expires
	grant    int // seconds, whatever was asked for; 0: as asked
	headers  map[string][]string
	source   string
	seen     string
	bindings map[string]time.Time // Contact user
	old      []string             // further bindings it lists, as they are
	deaf     bool                 // keeps no binding
	params   string               // of the URI of bindings
	err      error                // in place of a time-out
	got      []string             // what came, as "REGISTER 600"
	seqs     []uint32
	contacts []string
}

func (r *registrar) answer(ctx context.Context, m dialog.Message) (answer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	params := strings.TrimPrefix(m.ContactParams, "expires=")
	r.got = append(r.got, strings.TrimSpace(m.Method+" "+params))
	for _, h := range m.Headers {
		if h.Name == "Contact" {
			r.got = append(r.got, h.Value)
		}
	}
	r.contacts = append(r.contacts, fmt.Sprintf("%s@%s:%d", m.Contact, m.Target.ExternalIP, m.Target.ExternalPort))
	if m.Method == "REGISTER" {
		r.seqs = append(r.seqs, m.CSeq)
	}
	if !r.up {
		if r.err != nil {
			return answer{}, r.err
		}
		r.mu.Unlock()
		<-ctx.Done()
		r.mu.Lock()
		return answer{}, ctx.Err()
	}
	headers := make(map[string][]string)
	for name, values := range r.headers {
		headers[name] = values
	}
	a := answer{code: 200, reason: "OK", elapsed: 7 * time.Millisecond, header: func(name string) []string { return headers[name] }}
	if r.source != "" {
		a.source = netip.MustParseAddrPort(r.source)
	}
	if r.seen != "" {
		a.seen = netip.MustParseAddrPort(r.seen)
	}
	if m.Method != "REGISTER" {
		return a, nil
	}
	if r.code != 0 {
		a.code, a.reason = r.code, "No"
		return a, nil
	}
	var expires int
	fmt.Sscan(params, &expires)
	if expires > 0 && expires < r.least {
		a.code = 423
		headers["Min-Expires"] = []string{fmt.Sprint(r.least)}
		return a, nil
	}
	if r.grant > 0 && expires > 0 {
		expires = r.grant
	}
	if r.bindings == nil {
		r.bindings = make(map[string]time.Time)
	}
	if expires == 0 {
		delete(r.bindings, m.Contact)
	} else if !r.deaf {
		r.bindings[m.Contact] = time.Now().Add(time.Duration(expires) * time.Second)
	}
	list := slices.Clone(r.old)
	for user, until := range r.bindings {
		host := "10.0.0.1:5060"
		if m.Target.ExternalIP.IsValid() {
			host = fmt.Sprintf("%s:%d", m.Target.ExternalIP, cmp.Or(m.Target.ExternalPort, 5060))
		}
		list = append(list, fmt.Sprintf(`"x, y" <sip:%s@%s%s>;expires=%d`, user, host, r.params, int(time.Until(until).Seconds())))
	}
	headers["Contact"] = []string{strings.Join(list, ", ")}
	if len(list) == 0 {
		delete(headers, "Contact")
	}
	return a, nil
}

func (r *registrar) has(user string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.bindings[user])
}

func (r *registrar) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *registrar) count(prefix string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.got {
		if strings.HasPrefix(m, prefix) {
			n++
		}
	}
	return n
}

// world runs trunks with the given registrars, by target, in virtual time.
func world(t *testing.T, o Options, lines []Line, at map[string]*registrar, story func(*Trunks)) {
	synctest.Test(t, func(t *testing.T) {
		trunks := newTrunks(func(ctx context.Context, m dialog.Message) (answer, error) {
			r := at[m.Target.URI]
			if r == nil {
				return answer{}, errors.New("nobody is at " + m.Target.URI)
			}
			return r.answer(ctx, m)
		}, o, slog.New(slog.DiscardHandler))
		trunks.Set(lines)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- trunks.Run(ctx) }()
		synctest.Wait()
		story(trunks)
		cancel()
		began := time.Now()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d > 2*goodbye {
			t.Errorf("stopping took %s", d)
		}
	})
}

const (
	one = "sip:one.example"
	two = "sip:two.example"
)

func provider(targets ...string) Line {
	return Line{
		Trunk: call.Trunk{
			ID: "p", Direction: "both", Targets: targets,
			Register:    call.TrunkRegister{AOR: "sip:user@example.net", Expires: 600},
			Auth:        call.TrunkAuth{Username: "user", Password: "secret"},
			OptionsPing: 30 * time.Second,
		},
		Source: "config", Contact: "token",
	}
}

func TestRegistrationIsKeptAndTakenBack(t *testing.T) {
	r := &registrar{up: true, source: "198.51.100.1:5060"}
	world(t, Options{}, []Line{provider(one)}, map[string]*registrar{one: r}, func(trunks *Trunks) {
		s := trunks.State("p")
		if s.Registered != registered || !s.Up || s.Ping != 7*time.Millisecond || s.Problem != "" || s.Source != "config" {
			t.Errorf("state: %+v", s)
		}
		if s.Trunk.Auth.Password != "" {
			t.Error("the password is shown")
		}
		if d := time.Until(s.Expires); d != 10*time.Minute {
			t.Errorf("expires in %s", d)
		}
		for range 24 * 60 {
			time.Sleep(time.Minute)
			synctest.Wait()
			if !r.has("token") {
				t.Fatal("the registration ran out")
			}
		}
		if n := r.count("REGISTER"); n < 24*60 || n > 24*60*60/40 {
			t.Errorf("%d registrations in a day", n)
		}
		if ips := trunks.Sources("p"); len(ips) != 1 || ips[0].String() != "198.51.100.1" {
			t.Errorf("the registrar's address: %v", ips)
		}
		for i, seq := range r.seqs {
			if i > 0 && seq < r.seqs[i-1]+2 {
				t.Fatalf("CSeq %d after %d leaves no room for the digest", seq, r.seqs[i-1])
			}
		}
	})
	if r.has("token") {
		t.Error("the registration was not taken back")
	}
}

func TestRefreshAsConfigured(t *testing.T) {
	r := &registrar{up: true}
	l := provider(one)
	l.Trunk.Register.Refresh, l.Trunk.OptionsPing = time.Hour, 0
	world(t, Options{}, []Line{l}, map[string]*registrar{one: r}, func(trunks *Trunks) {
		time.Sleep(time.Hour)
		if n := r.count("REGISTER"); n < 6 || n > 8 { // of ten minutes each, a minute before its end
			t.Errorf("%d registrations in an hour", n)
		}
		if n := r.count("OPTIONS"); n != 0 {
			t.Errorf("%d OPTIONS though nobody wanted any", n)
		}
		if !trunks.State("p").Up {
			t.Error("a trunk that is not asked counts as down")
		}
	})
}

func TestShortGrant(t *testing.T) {
	r := &registrar{up: true, grant: 20}
	world(t, Options{}, []Line{provider(one)}, map[string]*registrar{one: r}, func(*Trunks) {
		for range 300 {
			time.Sleep(time.Second)
			synctest.Wait()
			if !r.has("token") {
				t.Fatal("the registration of 20 seconds ran out")
			}
		}
	})
}

func TestIntervalTooBrief(t *testing.T) {
	r := &registrar{up: true, least: 3600}
	world(t, Options{}, []Line{provider(one)}, map[string]*registrar{one: r}, func(trunks *Trunks) {
		if s := trunks.State("p"); s.Registered != registered {
			t.Errorf("state: %+v", s)
		}
		if got := r.got[:2]; got[0] != "REGISTER 600" && got[1] != "REGISTER 600" {
			t.Errorf("%v", got)
		}
		time.Sleep(10 * time.Minute)
		if n := r.count("REGISTER 600"); n != 1 {
			t.Errorf("it was asked %d times for what it had refused", n)
		}
	})
}

func TestAbsurdMinExpires(t *testing.T) {
	r := &registrar{up: true, code: 423, headers: map[string][]string{"Min-Expires": {"99999999999999999999"}}}
	world(t, Options{}, []Line{provider(one)}, map[string]*registrar{one: r}, func(trunks *Trunks) {
		if n := r.count("REGISTER"); n > 3 {
			t.Errorf("%d registrations at once", n)
		}
		if s := trunks.State("p"); s.Registered != regFailed || !strings.Contains(s.Problem, "register.expires") {
			t.Errorf("state: %+v", s)
		}
	})
}

// The provider is restarted and forgets everybody; it is away for so short that
// nobody notices.
func TestForgottenBinding(t *testing.T) {
	for name, away := range map[string]time.Duration{"at once": 0, "for a second": time.Second, "for ten minutes": 10 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			r := &registrar{up: true}
			world(t, Options{}, []Line{provider(one)}, map[string]*registrar{one: r}, func(trunks *Trunks) {
				time.Sleep(3 * time.Minute)
				r.change(func() { r.bindings, r.up = nil, away == 0 })
				time.Sleep(away)
				if s := trunks.State("p"); away > time.Minute && (s.Up || s.Registered != regFailed || s.Problem == "") {
					t.Errorf("while it is away: %+v", s)
				}
				r.change(func() { r.up = true })
				time.Sleep(time.Minute)
				synctest.Wait()
				if s := trunks.State("p"); !r.has("token") || s.Registered != registered || !s.Up || s.Problem != "" {
					t.Errorf("a minute later: %+v", s)
				}
			})
		})
	}
}

func TestCallsThatFailMakeUsRegister(t *testing.T) {
	r := &registrar{up: true}
	l := provider(one)
	l.Trunk.Register.Refresh = 5 * time.Minute
	world(t, Options{}, []Line{l}, map[string]*registrar{one: r}, func(trunks *Trunks) {
		time.Sleep(time.Minute)
		r.change(func() { r.bindings = nil })
		before := r.count("REGISTER")
		for range 100 {
			trunks.Failed("p", one, 403)
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if !r.has("token") {
			t.Error("not registered again")
		}
		if n := r.count("REGISTER") - before; n > 2 {
			t.Errorf("%d registrations for a hundred failed calls", n)
		}
		trunks.Failed("p", one, 486)
		trunks.Failed("nowhere", one, 503)
	})
}

func TestFailOver(t *testing.T) {
	first, second := &registrar{}, &registrar{up: true}
	world(t, Options{}, []Line{provider(one, two)}, map[string]*registrar{one: first, two: second}, func(trunks *Trunks) {
		time.Sleep(answerLimit + time.Second)
		synctest.Wait()
		s := trunks.State("p")
		if s.Registered != registered || !s.Up || !second.has("token") {
			t.Errorf("after ten seconds: %+v", s)
		}
		if !strings.Contains(s.Problem, "one.example does not answer") {
			t.Errorf("the problem of the first is not told: %q", s.Problem)
		}
		if got := trunks.Targets("p"); !slices.Equal(got, []string{two, one}) {
			t.Errorf("calls try %v", got)
		}
		first.change(func() { first.up = true })
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := trunks.Targets("p"); !slices.Equal(got, []string{one, two}) || !first.has("token") {
			t.Errorf("two minutes after the first is back calls try %v", got)
		}
		if s := trunks.State("p"); s.Problem != "" {
			t.Errorf("an old problem: %q", s.Problem)
		}
	})
}

func TestPenalty(t *testing.T) {
	l := provider(one, two)
	l.Trunk.Register, l.Trunk.OptionsPing = call.TrunkRegister{}, 0
	world(t, Options{}, []Line{l}, nil, func(trunks *Trunks) {
		if s := trunks.State("p"); s.Registered != "" || !s.Up {
			t.Errorf("a trunk by address: %+v", s)
		}
		order := func(want ...string) {
			t.Helper()
			if got := trunks.Targets("p"); !slices.Equal(got, want) {
				t.Errorf("calls try %v, want %v", got, want)
			}
		}
		order(one, two)
		trunks.Failed("p", one, 486) // busy is no fault of the line
		order(one, two)
		trunks.Failed("p", one, 503)
		order(two, one)
		time.Sleep(penalty - time.Second)
		order(two, one)
		time.Sleep(time.Second)
		order(one, two)
		trunks.Failed("p", one, 0)
		trunks.Failed("p", two, 0)
		order(one, two)
		trunks.Failed("p", one, 0)
		trunks.Worked("p", two)
		order(two, one)
	})
}

func TestOverload(t *testing.T) {
	r := &registrar{up: true, code: 503, headers: map[string][]string{"Retry-After": {"120 (tired)"}}}
	world(t, Options{}, []Line{provider(one)}, map[string]*registrar{one: r}, func(trunks *Trunks) {
		time.Sleep(119 * time.Second)
		if n := r.count("REGISTER"); n != 1 {
			t.Errorf("%d registrations before Retry-After", n)
		}
		r.change(func() { r.code = 0 })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if s := trunks.State("p"); s.Registered != registered {
			t.Errorf("after it: %+v", s)
		}
	})
}

// A provider that refuses a password bans those who try too often.
func TestWrongPasswordIsNotHammered(t *testing.T) {
	first, second := &registrar{up: true, code: 403}, &registrar{up: true, code: 403}
	world(t, Options{}, []Line{provider(one, two)}, map[string]*registrar{one: first, two: second}, func(trunks *Trunks) {
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := first.count("REGISTER"); n > 10 {
			t.Errorf("%d attempts in an hour", n)
		}
		for range 60 {
			trunks.Failed("p", one, 403)
			time.Sleep(time.Minute)
		}
		if n := first.count("REGISTER"); n > 15 {
			t.Errorf("%d attempts in two hours with calls that fail", n)
		}
		if n := second.count("REGISTER"); n > 0 {
			t.Errorf("and %d at the provider's other server", n)
		}
		if s := trunks.State("p"); s.Registered != regFailed || !s.Up || !strings.Contains(s.Problem, "wrong user name or password") {
			t.Errorf("state: %+v", s)
		}
	})
}

func TestBackoff(t *testing.T) {
	r := &registrar{err: errors.New("no")}
	l := provider(one)
	l.Trunk.OptionsPing = 0
	world(t, Options{}, []Line{l}, map[string]*registrar{one: r}, func(trunks *Trunks) {
		time.Sleep(10 * time.Minute)
		if n := r.count("REGISTER"); n < 13 || n > 18 {
			t.Errorf("%d registrations in ten minutes", n)
		}
	})
}

func TestLearnedAddress(t *testing.T) {
	const none = "invalid IP"
	for _, c := range []struct {
		name    string
		nat     bool
		literal string
		seen    string
		params  string
		want    string // last Contact's address
		public  string
		times   int // of registering at the start
	}{
		{"behind a NAT", true, "", "203.0.113.5:40000", "", "203.0.113.5:40000", "203.0.113.5", 2},
		{"behind a NAT, by TCP", true, "", "203.0.113.5:40000", ";transport=tcp", "203.0.113.5:0", "203.0.113.5", 2},
		{"not wanted", false, "", "203.0.113.5:40000", "", none + ":0", none, 1},
		{"known better", true, "203.0.113.77", "203.0.113.5:40000", "", "203.0.113.77:0", none, 1},
		{"a PBX inside sees a private address", true, "", "192.168.1.2:5060", "", none + ":0", none, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &registrar{up: true, seen: c.seen, params: c.params}
			changed := 0
			l := provider(one)
			l.Trunk.ExternalIP = c.literal
			l.Trunk.OptionsPing = 0
			world(t, Options{NAT: c.nat, Changed: func() { changed++ }}, []Line{l}, map[string]*registrar{one: r}, func(trunks *Trunks) {
				synctest.Wait()
				if got := r.contacts[len(r.contacts)-1]; got != "token@"+c.want {
					t.Errorf("Contact %s, want %s", got, c.want)
				}
				if got := trunks.Public("p").String(); got != c.public {
					t.Errorf("public address %s, want %s", got, c.public)
				}
				target := trunks.Target("p", one)
				if got := fmt.Sprintf("%s:%d", target.ExternalIP, target.ExternalPort); got != c.want {
					t.Errorf("calls show %s, want %s", got, c.want)
				}
				if n := r.count("REGISTER"); n != c.times {
					t.Errorf("%d registrations at the start, want %d", n, c.times)
				}
				if c.public != none && changed == 0 {
					t.Error("nobody is told of the address")
				}
			})
		})
	}
}

// The NAT is restarted and gives us another address.
func TestAddressChanges(t *testing.T) {
	r := &registrar{up: true, seen: "203.0.113.5:40000"}
	world(t, Options{NAT: true}, []Line{provider(one)}, map[string]*registrar{one: r}, func(trunks *Trunks) {
		time.Sleep(3 * time.Minute)
		r.change(func() { r.seen = "203.0.113.99:5060" })
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := trunks.Public("p").String(); got != "203.0.113.99" {
			t.Errorf("public address %s", got)
		}
		before := r.count("REGISTER")
		time.Sleep(10 * time.Minute)
		if n := r.count("REGISTER") - before; n > 16 {
			t.Errorf("%d registrations in ten minutes", n)
		}
	})
}

func TestOldBindingIsTakenAway(t *testing.T) {
	r := &registrar{up: true, old: []string{"<sip:token@192.0.2.9:5060>;expires=30", "<sip:deskphone@192.0.2.8>;expires=900"}}
	world(t, Options{}, []Line{provider(one)}, map[string]*registrar{one: r}, func(*Trunks) {
		time.Sleep(time.Minute)
		if r.count("<sip:token@192.0.2.9:5060>;expires=0") == 0 {
			t.Errorf("our old binding stays: %v", r.got)
		}
		if r.count("<sip:deskphone") > 0 {
			t.Error("another phone's binding is taken away")
		}
	})
}

func TestBindingThatIsNotListed(t *testing.T) {
	r := &registrar{up: true, deaf: true, old: []string{"<sip:sbc@192.0.2.1>;expires=600"}}
	world(t, Options{}, []Line{provider(one)}, map[string]*registrar{one: r}, func(trunks *Trunks) {
		if s := trunks.State("p"); s.Registered != registered || !strings.Contains(s.Problem, "does not list our address") {
			t.Errorf("state: %+v", s)
		}
	})
}

func TestChangedLines(t *testing.T) {
	r := &registrar{up: true}
	world(t, Options{}, []Line{provider(one)}, map[string]*registrar{one: r}, func(trunks *Trunks) {
		time.Sleep(time.Minute)
		before := r.count("REGISTER")
		trunks.Set([]Line{provider(one)})
		synctest.Wait()
		if n := r.count("REGISTER") - before; n != 0 {
			t.Errorf("setting the same lines sends %d registrations", n)
		}
		changed := provider(one)
		changed.Contact = "other"
		trunks.Set([]Line{changed})
		synctest.Wait()
		if r.has("token") || !r.has("other") {
			t.Error("the old registration was not replaced by the new")
		}
		trunks.Set(nil)
		synctest.Wait()
		if r.has("other") {
			t.Error("a trunk that is gone stays registered")
		}
		if s := trunks.State("p"); s.Trunk.ID != "" {
			t.Errorf("and has a state: %+v", s)
		}
		if trunks.Targets("p") != nil || trunks.Public("p").IsValid() || trunks.Sources("p") != nil || trunks.Target("p", one).URI != one {
			t.Error("and more")
		}
	})
}

func TestRefreshNow(t *testing.T) {
	r := &registrar{up: true, code: 403}
	l := provider(one)
	l.Trunk.OptionsPing = 0
	world(t, Options{}, []Line{l}, map[string]*registrar{one: r}, func(trunks *Trunks) {
		time.Sleep(10 * time.Second)
		r.change(func() { r.code = 0 })
		began := time.Now()
		s, err := trunks.Refresh(context.Background(), "p")
		if err != nil || s.Registered != registered || s.Ping == 0 {
			t.Errorf("%+v, %v", s, err)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("it took %s", d)
		}
		if _, err := trunks.Refresh(context.Background(), "q"); !errors.Is(err, call.ErrNotFound) {
			t.Errorf("a trunk that is not there: %v", err)
		}
	})
}

func TestTargetWithoutUserName(t *testing.T) {
	l := provider()
	l.Trunk.Auth.Username, l.Trunk.Outbound = "", "sip:proxy.example"
	r := &registrar{up: true}
	world(t, Options{}, []Line{l}, map[string]*registrar{"sip:example.net": r}, func(trunks *Trunks) {
		if got := trunks.Targets("p"); !slices.Equal(got, []string{"sip:example.net"}) || !r.has("token") {
			t.Errorf("without targets the domain of the AOR is one: %v", got)
		}
		if got := trunks.Target("p", "sip:example.net"); got.Username != "user" || got.Proxy != "sip:proxy.example" {
			t.Errorf("target: %+v", got)
		}
	})
}

func TestSilentEnd(t *testing.T) {
	r := &registrar{up: true}
	world(t, Options{}, []Line{provider(one)}, map[string]*registrar{one: r}, func(*Trunks) {
		r.change(func() { r.up = false }) // world checks that stopping does not wait for it long
	})
}

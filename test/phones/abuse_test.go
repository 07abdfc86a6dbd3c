package phones

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// overview is what an administrator sees.
type overview struct {
	Trunks []struct {
		ID         string  `json:"id"`
		Registered string  `json:"registered"`
		Up         bool    `json:"up"`
		Problem    string  `json:"problem"`
		PingMS     float64 `json:"ping_ms"`
	} `json:"trunks"`
	Legs []struct {
		leg
		Trunk string `json:"trunk"`
		Room  string `json:"room"`
		Stats struct {
			Packets   uint64 `json:"packets"`
			Lost      uint64 `json:"lost"`
			Strangers uint64 `json:"strangers"`
		} `json:"stats"`
	} `json:"legs"`
	Bans []struct {
		Source string `json:"source"`
		Why    string `json:"why"`
		Agent  string `json:"user_agent"`
	} `json:"bans"`
}

func (g *Gateway) overview(t testing.TB) overview {
	t.Helper()
	var o overview
	if err := g.API(g.Admin(t), http.MethodGet, "/admin/v1/phones", nil, &o); err != nil {
		t.Fatalf("the administrator's overview: %v", err)
	}
	return o
}

// Strangers hear nothing, whatever they send; scanners are shut out; the trunk
// goes on all the while.
func TestStrangers(t *testing.T) {
	t.Parallel()
	g := StartGateway(t, GatewayOptions{})
	number, room := g.Room()
	nowhere := netip.MustParseAddrPort("127.0.0.66:40000")

	t.Run("silence", func(t *testing.T) {
		r := StartRaw(t, stranger, g.SIP)
		for _, n := range []string{number, pinNumber, "100", "+4930999999"} {
			r.Send(r.request(r.invite(n, nowhere)))
		}
		for _, method := range []string{"OPTIONS", "REGISTER", "MESSAGE", "SUBSCRIBE", "REFER"} {
			q := r.invite("100", nowhere)
			q.method, q.body = method, ""
			r.Send(r.request(q))
		}
		r.Send("\x00\x01nonsense\n\n")
		if m, ok := r.Wait(3*time.Second, ""); ok {
			t.Errorf("a stranger is told %q", m)
		}
		if all := g.Participants(room); len(all) > 0 {
			t.Errorf("a stranger is in the room: %+v", all)
		}
	})

	t.Run("scanner", func(t *testing.T) {
		r := StartRaw(t, scanner, g.SIP)
		for i := range 200 {
			q := r.invite(fmt.Sprint(100+i), nowhere)
			q.method, q.body = "REGISTER", ""
			if i == 199 {
				q.headers = "User-Agent: friendly-scanner\n"
			}
			r.Send(r.request(q))
		}
		eventually(t, 10*time.Second, "the scanner is banned, and it is said why", func() error {
			for _, b := range g.overview(t).Bans {
				if strings.HasPrefix(b.Source, scanner) && b.Why != "" {
					return nil
				}
			}
			return errNotYet
		})
		if m := r.Got(); len(m) > 0 {
			t.Errorf("a scanner is told %q", m)
		}
		if !strings.Contains(g.Log(), "sip_ban") {
			t.Error("the ban is not in the log")
		}
		// The ban can be lifted.
		if err := g.API(g.Admin(t), http.MethodDelete, "/admin/v1/phones/bans/"+scanner, nil, nil); err != nil {
			t.Error(err)
		}
		for _, b := range g.overview(t).Bans {
			if strings.HasPrefix(b.Source, scanner) {
				t.Error("a lifted ban is still there")
			}
		}
	})

	t.Run("wrong passwords are all alike", func(t *testing.T) {
		// From the trunk that has to give a password, numbers that exist and
		// numbers that do not get the same answer.
		r := StartRaw(t, digestIP, g.SIP)
		strip := func(number string) string {
			q := r.invite(number, nowhere)
			r.Send(r.request(q))
			var found string
			eventually(t, 5*time.Second, "an answer", func() error {
				for _, m := range r.Got() {
					if strings.Contains(m, q.callID) && !strings.HasPrefix(m, "SIP/2.0 100") {
						found, _, _ = strings.Cut(m, "\n")
						return nil
					}
				}
				return errNotYet
			})
			return found
		}
		if a, b := strip(number), strip("+4930999999"); a != b || !strings.HasPrefix(a, "SIP/2.0 40") {
			t.Errorf("a number that exists is answered with %q, another with %q", a, b)
		}
	})

	t.Run("the trunk goes on", func(t *testing.T) {
		Play(t, Scenario{File: "basic", IP: plainIP, Target: g.SIP, Number: number}).Must()
	})
}

// A hundred INVITEs of one call (one Call-ID, one From tag, other branches) are
// one call; each of the others is refused. Nobody acknowledges anything.
func TestInviteStorm(t *testing.T) {
	t.Parallel()
	g := StartGateway(t, GatewayOptions{})
	number, room := g.Room()
	r := StartRaw(t, plainIP, g.SIP)
	tones := StartTones(t, plainIP, 440)
	q := r.invite(number, tones.Addr())
	for range 100 {
		r.Send(r.request(q))
		q.branch = word()
	}
	g.Phones(t, room, 1)
	eventually(t, 10*time.Second, "the others are refused", func() error {
		n, refused := map[string]bool{}, map[string]bool{}
		for _, m := range r.Got() {
			if strings.HasPrefix(m, "SIP/2.0 200") {
				n[toTag.FindString(m)] = true
			}
			if strings.HasPrefix(m, "SIP/2.0 482") {
				via, _, _ := strings.Cut(m[strings.Index(m, "branch="):], "\n")
				refused[via] = true
			}
		}
		if len(n) != 1 || len(refused) != 99 {
			return fmt.Errorf("%d answers with tags of their own, %d refused", len(n), len(refused))
		}
		return nil
	})
	// Nobody acknowledges: the call is over after 64*T1.
	eventually(t, 50*time.Second, "the call that nobody acknowledges is gone", func() error {
		if n := len(g.Participants(room)); n != 0 {
			return fmt.Errorf("%d are in the room", n)
		}
		return nil
	})
	if o := g.overview(t); len(o.Legs) != 0 {
		t.Errorf("legs are left: %+v", o.Legs)
	}
}

// Media from strangers: sprayed over the port range before and while a phone
// speaks, it is not heard, draws nothing to itself, and is counted.
func TestMediaOfStrangers(t *testing.T) {
	t.Parallel()
	g := StartGateway(t, GatewayOptions{})
	number, room := g.Room()
	p := everybody(t)
	p.Launch(t, "alice", alice)
	a := p.Join(t, g.Server, "alice", "alice", room, true)

	bad := StartTones(t, stranger, 1480)
	good := StartTones(t, strictIP, phoneHz)
	r := StartRaw(t, strictIP, g.SIP)
	to, hangUp := r.Call(t, number, good.Addr())
	defer hangUp()
	who := a.Phone("the telephone", nil).Identity

	// The stranger is first, and sends to every port there is.
	bad.Send(to)
	var wait sync.WaitGroup
	wait.Go(func() {
		spray := StartRaw(t, stranger, to)
		for port := g.RTP; port < g.RTP+400; port++ {
			_, _ = spray.conn.WriteToUDPAddrPort(tonePacket(1, uint16(port), 0, 1480), netip.AddrPortFrom(to.Addr(), uint16(port)))
		}
	})
	time.Sleep(2 * time.Second)
	good.Send(to)
	wait.Wait()
	hearsAll(t, "alice hears the phone and not the stranger", []float64{phoneHz}, []float64{1480}, a.listenTo(who))
	hears(t, "the phone hears alice", 523, good.Listen)
	if n := bad.Received(); n != 0 {
		t.Errorf("the stranger was sent %d packets", n)
	}
	strangers := uint64(0)
	for _, l := range g.overview(t).Legs {
		strangers += l.Stats.Strangers
	}
	if strangers < 50 {
		t.Errorf("only %d packets of strangers were counted", strangers)
	}
	// A packet that pretends to be the phone's stream changes nothing either.
	bad.mu.Lock()
	bad.ssrc = good.ssrc
	bad.mu.Unlock()
	hearsAll(t, "alice hears the phone and not who pretends to be it", []float64{phoneHz}, []float64{1480}, a.listenTo(who))
	if n := bad.Received(); n != 0 {
		t.Errorf("the stranger was sent %d packets", n)
	}
}

// SDP that points elsewhere: to ourselves, to nobody, to a group, to the cloud's
// metadata. Nothing is sent there before it has spoken, so nothing is reflected.
func TestMediaElsewhere(t *testing.T) {
	t.Parallel()
	g := StartGateway(t, GatewayOptions{})
	victim := StartTones(t, "127.0.0.99", 1480)
	local := StartTones(t, "127.0.0.1", 1480)
	own := netip.AddrPortFrom(g.SIP.Addr(), uint16(g.RTP))
	for name, addr := range map[string]netip.AddrPort{
		"somebody else's":      victim.Addr(),
		"this machine's":       local.Addr(),
		"our own media ports":  own,
		"our own SIP port":     g.SIP,
		"all interfaces":       netip.MustParseAddrPort("0.0.0.0:4000"),
		"a group":              netip.MustParseAddrPort("224.0.0.1:4000"),
		"the metadata service": netip.MustParseAddrPort("169.254.169.254:80"),
		"everybody":            netip.MustParseAddrPort("255.255.255.255:4000"),
	} {
		t.Run(name, func(t *testing.T) {
			number, room := g.Room()
			r := StartRaw(t, strictIP, g.SIP)
			q := r.invite(number, addr)
			r.Send(r.request(q))
			final := ""
			eventually(t, 10*time.Second, "a final answer", func() error {
				for _, m := range r.Got() {
					if !strings.HasPrefix(m, "SIP/2.0 1") {
						final = m
						return nil
					}
				}
				return errNotYet
			})
			if strings.HasPrefix(final, "SIP/2.0 200") {
				q.toTag = toTag.FindStringSubmatch(final)[1]
				q.method, q.branch, q.body = "ACK", word(), ""
				r.Send(r.request(q))
				before := victim.Received() + local.Received()
				time.Sleep(time.Second) // for what should not come
				if n := victim.Received() + local.Received() - before; n > 0 {
					t.Errorf("%d packets went to somebody who had not asked for them", n)
				}
				q.method, q.branch, q.cseq = "BYE", word(), 2
				r.Send(r.request(q))
			}
			g.Phones(t, room, 0)
		})
	}
}

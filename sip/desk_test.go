package sip

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
	"github.com/trunkhall/trunkhall/sip/dialog"
	"github.com/trunkhall/trunkhall/sip/media"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

func testLog(t testing.TB) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

// A house is a gateway with its SFU, both running.
type house struct {
	t    testing.TB
	sfu  *sfu.Server
	gate *Server
	stop func() // ends the gateway and waits
}

// newHouse makes a gateway on loopback that trusts 127.0.0.1 as trunk "desk" and
// has a room and a menu to call.
func newHouse(t testing.TB, directory Directory, change func(*Config)) *house {
	t.Helper()
	log := testLog(t)
	sfuCfg := sfu.DefaultConfig()
	sfuCfg.UDPPort, sfuCfg.TCPPort, sfuCfg.BindAddresses, sfuCfg.Loopback = 0, -1, []string{"127.0.0.1"}, true
	media, err := sfu.New(sfuCfg, sfu.Deps{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Listen = []string{"udp://127.0.0.1:0"}
	cfg.BindIP = "127.0.0.1"
	cfg.RTPPorts = "33000-33399"
	cfg.DefaultCountry = "DE"
	cfg.Limits.NewAccount = 0
	cfg.Records.Dir = t.TempDir()
	cfg.Prompts.Dir = shortPrompts(t)
	cfg.Rooms = []StaticRoom{{Room: "standup", Title: "Stand-up", PIN: "48151623"}}
	cfg.Trunks = []call.Trunk{{
		ID: "desk", Direction: "both", In: call.TrunkInbound{CIDRs: []string{"127.0.0.1/32"}},
		Targets: []string{"sip:127.0.0.1:9"}, Allow: []string{"+49"},
		CallerID: call.TrunkCallerID{Default: "+4930123450"},
	}}
	cfg.Dispatch = []call.DispatchRule{
		{Match: call.DispatchMatch{To: "+4930123456"}, Action: call.DispatchAction{Type: "pin"}},
		{Match: call.DispatchMatch{To: "+4930123457"}, Action: call.DispatchAction{Type: "room", Room: "standup"}},
		{Match: call.DispatchMatch{To: "+4930123458"}, Action: call.DispatchAction{Type: "user", User: "@alice:example.org", Timeout: time.Second}},
	}
	if change != nil {
		change(&cfg)
	}
	gate, err := New(cfg, Deps{SFU: media, Directory: directory, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	mediaCtx, stopMedia := context.WithCancel(context.Background())
	var gateDone, mediaDone sync.WaitGroup
	gateDone.Go(func() {
		if err := gate.Run(ctx); err != nil {
			t.Errorf("gateway: %v", err)
		}
	})
	mediaDone.Go(func() {
		if err := media.Run(mediaCtx); err != nil {
			t.Errorf("sfu: %v", err)
		}
	})
	h := &house{t: t, sfu: media, gate: gate}
	h.stop = sync.OnceFunc(func() {
		cancel()
		gateDone.Wait()
		stopMedia()
		mediaDone.Wait()
	})
	t.Cleanup(h.stop)
	return h
}

// shortPrompts are announcements of 40 ms, so that nobody waits for speech.
func shortPrompts(t testing.TB) string {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "en"), 0o700); err != nil {
		t.Fatal(err)
	}
	files, err := shipped.ReadDir("prompts/en")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, "en", f.Name()), make([]byte, 320), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (h *house) addr() string { return strings.TrimPrefix(h.gate.Addrs()[0], "udp://") }

// members returns the identities in a room.
func (h *house) members(room call.RoomName) []string {
	var names []string
	for _, l := range h.gate.Legs() {
		if l.Room == room && l.Identity != "" {
			names = append(names, string(l.Identity))
		}
	}
	return names
}

// record waits until the leg has ended.
func (h *house) ended(id call.LegID) call.Leg {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	l, err := h.gate.Wait(ctx, id, "")
	for err == nil && l.State != call.LegEnded && ctx.Err() == nil {
		l, err = h.gate.Wait(ctx, id, l.State)
	}
	if err != nil || l.State != call.LegEnded {
		h.t.Fatalf("leg %s is %s, %v", id, l.State, err)
	}
	return l
}

// A desk is an office of telephones that are not ours: an endpoint of SIP and
// ports for RTP.
type desk struct {
	t    testing.TB
	ep   *dialog.Endpoint
	pool *media.Pool

	mu     sync.Mutex
	invite func(*dialog.Call) // what becomes of calls to the desk
	bad    int
	owners map[*media.Session]*atomic.Pointer[handset]
}

func newDesk(t testing.TB, ip string) *desk {
	t.Helper()
	d := &desk{t: t, owners: make(map[*media.Session]*atomic.Pointer[handset])}
	var err error
	d.ep, err = dialog.New(dialog.Config{Listen: []string{"udp://" + ip + ":0"}, UserAgent: "desk"}, deskDoor{d}, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	cfg := media.DefaultConfig()
	cfg.BindIP, cfg.PortMin, cfg.PortMax = netip.MustParseAddr(ip), 33400, 33799
	if d.pool, err = media.NewPool(cfg, testLog(t)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.ep.Run(ctx) })
	wg.Go(func() { _ = d.pool.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return d
}

func (d *desk) addr() string { return strings.TrimPrefix(d.ep.Addrs()[0], "udp://") }

// onInvite says what becomes of calls to the desk.
func (d *desk) onInvite(f func(*dialog.Call)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.invite = f
}

type deskDoor struct{ d *desk }

func (h deskDoor) Screen(netip.AddrPort, string) bool { return true }
func (h deskDoor) Bad(netip.AddrPort, string) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	h.d.bad++
}
func (h deskDoor) Trunk(*dialog.Request) dialog.Verdict {
	return dialog.Verdict{Action: dialog.Accept, Trunk: "house"}
}
func (h deskDoor) Invite(c *dialog.Call) {
	h.d.mu.Lock()
	f := h.d.invite
	h.d.mu.Unlock()
	if f == nil {
		go drain(c)
		_ = c.Reject(404, "")
		return
	}
	f(c)
}

// A handset is one telephone call as the person at the desk has it: it says a tone
// and hears.
type handset struct {
	t     testing.TB
	call  *dialog.Call
	media *media.Session

	progress chan dialog.Progress
	answered chan struct{}
	ended    chan dialog.Ended
	refers   chan dialog.ReferProgress
	stop     chan struct{}

	mu      sync.Mutex
	hz      float64
	heard   []int16
	keys    string
	onRefer func(dialog.Referred)
}

func (d *desk) session() *media.Session {
	d.t.Helper()
	var p atomic.Pointer[handset]
	s, err := d.pool.Open(media.Options{
		Sources: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		Events: media.Events{Digit: func(digit byte, _ string) {
			if p := p.Load(); p != nil {
				p.key(digit)
			}
		}},
	})
	d.mu.Lock()
	d.owners[s] = &p
	d.mu.Unlock()
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// dial calls the house.
func (d *desk) dial(h *house, from, to string) *handset {
	d.t.Helper()
	s := d.session()
	offer, err := s.Offer()
	if err != nil {
		d.t.Fatal(err)
	}
	c, err := d.ep.Dial(context.Background(), dialog.Outgoing{
		To: to, From: from, SDP: offer, Target: dialog.Target{URI: "sip:" + h.addr()}, Ringing: patience,
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return d.pickUp(c, s)
}

// pickUp makes a handset of a call.
func (d *desk) pickUp(c *dialog.Call, s *media.Session) *handset {
	p := &handset{
		t: d.t, call: c, media: s, stop: make(chan struct{}),
		progress: make(chan dialog.Progress, 16), answered: make(chan struct{}), ended: make(chan dialog.Ended, 1),
		refers: make(chan dialog.ReferProgress, 16),
	}
	d.mu.Lock()
	d.owners[s].Store(p)
	d.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() {
		for e := range c.Events() {
			switch e := e.(type) {
			case dialog.Progress:
				if e.SDP != nil {
					_ = s.Accept(e.SDP, false)
				}
				p.progress <- e
			case dialog.Answered:
				if err := s.Accept(e.SDP, true); err != nil {
					d.t.Errorf("the answer: %v", err)
				}
				close(p.answered)
			case dialog.Offered:
				if answer, err := s.Answer(e.SDP); err == nil {
					_ = c.Accept(e.ID, answer)
				} else {
					_ = c.Refuse(e.ID, 488)
				}
			case dialog.ReferProgress:
				p.refers <- e
			case dialog.Referred:
				p.mu.Lock()
				f := p.onRefer
				p.mu.Unlock()
				if f != nil {
					f(e)
				}
			case dialog.Digits:
				p.key(e.Digit)
			case dialog.Ended:
				p.ended <- e
			}
		}
	})
	wg.Go(p.talk)
	d.t.Cleanup(func() {
		c.Bye(16, "")
		close(p.stop)
		s.Close()
		wg.Wait()
	})
	return p
}

// talk is the sound of the handset.
func (p *handset) talk() {
	tick := time.NewTicker(audio.FrameDuration)
	defer tick.Stop()
	at := 0
	for {
		select {
		case <-p.stop:
			return
		case now := <-tick.C:
			rate := p.media.Rate()
			in, out := make([]int16, rate/50), make([]int16, rate/50)
			p.mu.Lock()
			hz := p.hz
			p.mu.Unlock()
			for i := range out {
				if hz > 0 {
					out[i] = int16(8000 * math.Sin(2*math.Pi*hz*float64(at)/float64(rate)))
				}
				at++
			}
			p.media.Read(now, in)
			_ = p.media.Write(out)
			p.mu.Lock()
			p.heard = append(p.heard, in...)
			p.heard = p.heard[max(0, len(p.heard)-rate):]
			p.mu.Unlock()
		}
	}
}

// referred says what becomes of a REFER to the handset.
func (p *handset) referred(f func(dialog.Referred)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onRefer = f
}

func (p *handset) key(digit byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys += string(digit)
}

// pressed returns the keys that the handset has heard.
func (p *handset) pressed() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keys
}

func (p *handset) say(hz float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hz = hz
}

// loudness is the amplitude of a frequency in the last 200 ms heard (Goertzel).
func (p *handset) loudness(hz float64) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	rate := p.media.Rate()
	n := min(len(p.heard), rate/5)
	if n == 0 {
		return 0
	}
	c := 2 * math.Cos(2*math.Pi*hz/float64(rate))
	var s1, s2 float64
	for _, x := range p.heard[len(p.heard)-n:] {
		s1, s2 = float64(x)+c*s1-s2, s1
	}
	return 2 * math.Sqrt(max(0, s1*s1+s2*s2-c*s1*s2)) / float64(n)
}

// hears waits until the tone is heard, or until it is not.
func (p *handset) hears(hz float64, want bool) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("%.0f Hz heard: %v", hz, want), func() bool { return (p.loudness(hz) > 1500) == want })
}

func (p *handset) waitAnswer() {
	p.t.Helper()
	select {
	case <-p.answered:
	case e := <-p.ended:
		p.t.Fatalf("not answered: %d %s %s", e.Code, e.Cause, e.Reason)
	case <-time.After(patience):
		p.t.Fatal("nobody answered")
	}
}

func (p *handset) waitEnd() dialog.Ended {
	p.t.Helper()
	select {
	case e := <-p.ended:
		return e
	case <-time.After(patience):
		p.t.Fatal("the call does not end")
		return dialog.Ended{}
	}
}

// eventually polls, for what has no event of its own.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("it never came true: %s", what)
}

package media

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/call"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// answered opens a session that takes calls of a phone described by lines.
func answered(t testing.TB, o Options, lines ...string) *Session {
	t.Helper()
	s := open(t, newPool(t), o)
	if _, err := s.Answer(sdp(lines...)); err != nil {
		t.Fatal(err)
	}
	s.Start()
	return s
}

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// packet makes an RTP packet with 20 ms of PCMU.
func packet(ssrc uint32, seq uint16, number uint8) []byte {
	p := rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: number, SequenceNumber: seq, Timestamp: uint32(seq) * 160, SSRC: ssrc}}
	p.Payload = make([]byte, 160)
	b, err := p.Marshal()
	if err != nil {
		panic(err)
	}
	return b
}

func TestWhoseMediaIsTaken(t *testing.T) {
	lan := "c=IN IP4 10.0.0.7\r\nt=0 0" // beside the signalling, which comes from 10.0.0.5
	const phone, nat, stranger = "198.51.100.7:40000", "198.51.100.20:1024", "203.0.113.66:40000"
	sources := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("10.0.0.5/32")}
	public := "c=IN IP4 198.51.100.7\r\nt=0 0"
	behind := "c=IN IP4 192.168.1.7\r\nt=0 0"
	type step struct {
		after time.Duration
		from  string
		ssrc  uint32
		count int
		to    string // where media goes afterwards; empty: nowhere
	}
	for _, tt := range []struct {
		name      string
		lines     string
		steps     []step
		taken     uint64
		strangers uint64
	}{
		{"the described address at once", public, []step{{0, phone, 1, 5, phone}}, 5, 0},
		{"a stranger first", public, []step{{0, stranger, 9, 50, phone}, {0, phone, 1, 5, phone}}, 5, 50},
		{"a stranger during the call", public, []step{{0, phone, 1, 5, phone}, {0, stranger, 1, 50, phone}, {0, phone, 1, 5, phone}}, 10, 50},
		{"a stranger after the call went silent", public, []step{{0, phone, 1, 5, phone}, {time.Minute, stranger, 1, 50, phone}}, 5, 50},
		{"behind NAT", behind, []step{{0, nat, 1, 2, ""}, {0, nat, 1, 3, nat}}, 3, 0},
		{"behind NAT, a stranger first", behind, []step{{0, stranger, 1, 50, ""}, {0, nat, 1, 5, nat}}, 3, 50},
		{"two sources by turns are none", behind, []step{{0, nat, 1, 2, ""}, {0, nat, 2, 2, ""}, {0, nat, 1, 2, ""}}, 0, 0},
		{"somebody else in the network while media flows", behind, []step{{0, nat, 1, 5, nat}, {3 * time.Second, "198.51.100.21:9", 2, 50, nat}}, 3, 50},
		{"a neighbour sends nothing", lan, []step{{0, stranger, 1, 5, ""}}, 0, 5},
		{"a neighbour must send first", lan, []step{{0, "10.0.0.7:40000", 1, 2, ""}, {0, "10.0.0.7:40000", 1, 3, "10.0.0.7:40000"}}, 3, 0},
		{"another neighbour", lan, []step{{0, "10.0.0.8:40000", 1, 5, ""}}, 0, 5},
		{"it moves after five seconds of silence", behind, []step{{0, nat, 1, 5, nat}, {6 * time.Second, "198.51.100.21:9", 2, 5, "198.51.100.21:9"}}, 6, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := answered(t, Options{Sources: sources}, tt.lines, ulaw)
			now, seq := noon, uint16(100)
			for i, step := range tt.steps {
				now = now.Add(step.after)
				for range step.count {
					seq++
					now = now.Add(20 * time.Millisecond)
					s.sort(packet(step.ssrc, seq, 0), at(step.from), now)
				}
				to := s.in.latch.destination()
				if step.to == "" != !to.IsValid() || step.to != "" && to != at(step.to) || to != s.out.to {
					t.Errorf("after step %d media goes to %s, want %q", i+1, to, step.to)
				}
			}
			if st := s.Stats(); s.in.track.received+s.in.track.past.received != tt.taken || st.Strangers != tt.strangers {
				t.Errorf("%+v, want %d packets and %d of strangers", st, tt.taken, tt.strangers)
			}
		})
	}
}

// TestNothingForStrangers has a stranger on this machine spray the port.
func TestNothingForStrangers(t *testing.T) {
	listen := func(ip string) *net.UDPConn {
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(ip)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	phone, stranger := listen("127.0.0.1"), listen("127.0.0.2")
	s := answered(t, Options{}, here, fmt.Sprintf("m=audio %d RTP/AVP 0", phone.LocalAddr().(*net.UDPAddr).Port))
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(home, s.port))
	pcm := make([]int16, 160)
	for seq := range uint16(50) {
		stranger.WriteToUDP(packet(7, seq, 0), to)
		if seq < 10 {
			stranger.WriteToUDP([]byte{0x80, 201, 0, 1, 0, 0, 0, 7}, &net.UDPAddr{IP: to.IP, Port: to.Port + 1})
		}
		phone.WriteToUDP(packet(8, seq, 0), to)
		if err := s.Write(pcm); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "all packets to be looked at", func() bool { st := s.Stats(); return st.Packets == 50 && st.Strangers == 60 })
	s.lookAfter(time.Now().Add(reportEvery))
	stranger.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, _, err := stranger.ReadFromUDP(make([]byte, 2000)); err == nil {
		t.Errorf("the stranger was sent %d octets", n)
	}
	phone.SetReadDeadline(time.Now().Add(5 * time.Second))
	for i := range 50 {
		if _, _, err := phone.ReadFromUDP(make([]byte, 2000)); err != nil {
			t.Fatalf("the phone got %d packets: %v", i, err)
		}
	}
}

func TestStreamsThatChange(t *testing.T) {
	const phone = "127.0.0.1:40000"
	for _, tt := range []struct {
		name   string
		second func(i uint16) []byte
	}{
		{"another SSRC", func(i uint16) []byte { return packet(2, 5000+i, 0) }},
		{"a jump of half the circle", func(i uint16) []byte { return packet(1, 100+1<<15+i, 0) }},
		{"back in time", func(i uint16) []byte { return packet(1, 60000+i, 0) }},
		{"another payload type", func(i uint16) []byte { return packet(1, 200+i, 8) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, newPool(t), Options{Codecs: []audio.Codec{audio.PCMU, audio.PCMA}})
			if _, err := s.Offer(); err != nil {
				t.Fatal(err)
			}
			if err := s.Accept(sdp(here, "m=audio 40000 RTP/AVP 0 8"), true); err != nil {
				t.Fatal(err)
			}
			now, pcm := noon, make([]int16, 160)
			loud := func(b []byte) []byte {
				for i := range b[12:] {
					b[12+i] = 0x20
				}
				return b
			}
			for i := range uint16(100) {
				now = now.Add(20 * time.Millisecond)
				s.sort(loud(packet(1, 100+i, 0)), at(phone), now)
				s.Read(now, pcm)
			}
			recovered := -1
			for i := range uint16(100) {
				now = now.Add(20 * time.Millisecond)
				s.sort(loud(tt.second(i)), at(phone), now)
				s.Read(now, pcm)
				if audio.Level(pcm) < 30 {
					if recovered < 0 {
						recovered = int(i)
					}
				} else if i > 8 {
					recovered = -1
				}
			}
			if recovered < 0 || recovered > 25 {
				t.Errorf("sound again after %d frames", recovered)
			}
			_, lost := s.in.track.totals()
			if lost != 0 {
				t.Errorf("%d packets seem lost", lost)
			}
		})
	}
}

func TestAFloodCostsOneLegOnly(t *testing.T) {
	h := &heard{}
	s := answered(t, Options{Events: h.events()}, here, ulaw)
	c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", s.port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// What is looked at is bounded, however much comes.
	now := time.Now()
	for range 5 * flowSize {
		c.Write(packet(1, 1, 0))
	}
	until(t, "the flood to be noticed", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.in.flooded > 0
	})
	s.mu.Lock()
	seen := float64(s.in.latch.strangers)
	s.mu.Unlock()
	if most := flowSize + 1 + flowRate*time.Since(now).Seconds(); seen > most {
		t.Errorf("%.0f packets looked at, at most %.0f may be", seen, most)
	}
	// A flood of seconds ends the call.
	for range floodSeconds {
		s.mu.Lock()
		s.in.flooded = 1
		s.mu.Unlock()
		s.lookAfter(time.Now())
	}
	if _, _, why, _ := h.get(); why != Flooded {
		t.Errorf("timeout %q", why)
	}
}

func TestTimeouts(t *testing.T) {
	hold := func(s *Session) {
		if _, err := s.Answer(sdp(here, ulaw, "a=sendonly")); err != nil {
			panic(err)
		}
	}
	for _, tt := range []struct {
		name  string
		do    func(s *Session)
		after time.Duration
		why   string
	}{
		{"not yet", nil, 28 * time.Second, ""},
		{"nothing after the answer", nil, 31 * time.Second, NoMedia},
		{"not answered yet", func(s *Session) { s.started = time.Time{} }, time.Hour, ""},
		{"media a while ago", func(s *Session) { s.in.heard = s.started.Add(time.Second) }, 50 * time.Second, ""},
		{"media long ago", func(s *Session) { s.in.heard = s.started.Add(time.Second) }, 62 * time.Second, MediaGone},
		{"on hold", hold, 29 * time.Minute, ""},
		{"after a long hold", func(s *Session) {
			hold(s)
			s.in.heard, s.started = s.started.Add(-time.Hour), s.started.Add(-2*time.Hour)
			if _, err := s.Answer(sdp(here, ulaw)); err != nil {
				panic(err)
			}
		}, 50 * time.Second, ""},
		{"on our hold", func(s *Session) { s.SetHold(true) }, 29 * time.Minute, ""},
		{"on hold for too long", hold, 31 * time.Minute, HeldTooLong},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := &heard{}
			s := answered(t, Options{Events: h.events()}, here, ulaw)
			if tt.do != nil {
				tt.do(s)
			}
			now := time.Now()
			s.lookAfter(now.Add(tt.after))
			s.lookAfter(now.Add(tt.after + time.Second))
			if _, _, why, _ := h.get(); why != tt.why {
				t.Errorf("%q, want %q", why, tt.why)
			}
		})
	}
}

func TestReports(t *testing.T) {
	a, b := open(t, newPool(t), Options{SRTP: SRTPRequire}), open(t, newPool(t), Options{SRTP: SRTPRequire})
	connect(t, a, b)
	talk(t, a, b, 60)
	now := time.Now()
	a.lookAfter(now)
	until(t, "the first report", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return !b.in.control.at.IsZero() })
	b.mu.Lock()
	b.reported = time.Time{}
	b.mu.Unlock()
	b.lookAfter(time.Now())
	until(t, "a round trip", func() bool { return a.Stats().RTT > 0 })
	if st := a.Stats(); st.RTT > time.Second || st.MOS < 3 || st.Lost > 0 {
		t.Errorf("%+v", st)
	}
}

func TestHostileReportsChangeNothing(t *testing.T) {
	s := answered(t, Options{}, here, ulaw)
	peer := at("127.0.0.1:40001")
	for _, b := range [][]byte{
		{0x80, 200, 0, 0},
		{0x9f, 201, 0, 1, 0, 0, 0, 1},
		{0x81, 202, 0, 1, 0, 0, 0, 1, 1, 255},
		{0x81, 202, 0xff, 0xff, 0, 0, 0, 1},
		append([]byte{0x8f, 205, 0, 5}, make([]byte, 20)...),
		append([]byte{0x8f, 206, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0}, "REMB\xff\xff\xff\xff"...),
		{0x81, 203, 0, 0},
	} {
		s.takeControl(b, peer, false, noon)
	}
	if st := s.Stats(); st.RTT != 0 {
		t.Error(st)
	}
	// A report block that lies about time.
	for _, lsr := range []uint32{1, 1 << 31, ^uint32(0)} {
		b, err := rtcp.Marshal([]rtcp.Packet{&rtcp.ReceiverReport{SSRC: 1, Reports: []rtcp.ReceptionReport{{SSRC: s.out.ssrc, LastSenderReport: lsr, Delay: 1 << 31}}}})
		if err != nil {
			t.Fatal(err)
		}
		s.takeControl(b, peer, false, noon)
	}
	if st := s.Stats(); st.RTT >= 10*time.Second {
		t.Error(st)
	}
}

func TestKeepAlive(t *testing.T) {
	a, b := open(t, newPool(t), Options{}), open(t, newPool(t), Options{})
	connect(t, a, b)
	now := time.Now()
	a.lookAfter(now)
	until(t, "a packet though nobody speaks", func() bool { return b.Stats().Packets == 1 })
	a.lookAfter(now.Add(9 * time.Second))
	a.lookAfter(now.Add(11 * time.Second))
	a.SetHold(true)
	offer, err := a.Offer()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := b.Answer(offer)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Accept(answer, true); err != nil {
		t.Fatal(err)
	}
	b.lookAfter(now.Add(11 * time.Second))
	until(t, "one packet in ten seconds, on hold too", func() bool { return b.Stats().Packets == 2 && a.Stats().Packets == 1 })
	if err := b.Write(make([]int16, 160)); err != nil {
		t.Fatal(err)
	}
	if b.out.count != 1 {
		t.Error("on hold nothing else is sent")
	}
}

func TestDigits(t *testing.T) {
	for _, tt := range []struct {
		name string
		a, b Options
		how  string
	}{
		{"events", Options{}, Options{}, DTMFEvents},
		{"events beside Opus", Options{Codecs: []audio.Codec{audio.Opus}}, Options{}, DTMFEvents},
		{"in the sound by wish", Options{DTMF: DTMFInband}, Options{}, DTMFInband},
		{"in the sound at 16 kHz", Options{DTMF: DTMFInband, Codecs: []audio.Codec{audio.G722}}, Options{}, DTMFInband},
		{"in the sound because they know no events", Options{}, Options{DTMF: DTMFInband}, DTMFInband},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var h heard
			tt.b.Events = h.events()
			a, b := open(t, newPool(t), tt.a), open(t, newPool(t), tt.b)
			connect(t, a, b)
			pcm := make([]int16, audio.FrameSamples(a.Rate()))
			a.Press("11w#xd")
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for range 100 {
				now := <-tick.C
				clear(pcm)
				if err := a.Write(pcm); err != nil {
					t.Fatal(err)
				}
				b.Read(now, pcm)
			}
			if digits, how, _, media := h.get(); digits != "11#D" || how != tt.how || media != 1 {
				t.Errorf("%q by %s, %d times first media", digits, how, media)
			}
		})
	}
}

func TestDigitFlood(t *testing.T) {
	h := &heard{}
	s := answered(t, Options{Events: h.events()}, here, ulaw)
	send := func(seq uint16, stamp uint32, payload ...byte) {
		p := rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 101, SequenceNumber: seq, Timestamp: stamp, SSRC: 1}, Payload: payload}
		b, err := p.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		s.sort(b, at("127.0.0.1:40000"), noon.Add(time.Duration(seq)*time.Millisecond))
	}
	for seq := range uint16(3000) { // a thousand digits a second
		send(seq, uint32(seq)*400, byte(seq%16), 0x8a, 0, 160)
	}
	if digits, _, _, _ := h.get(); len(digits) > digitSize+3*digitRate+1 {
		t.Errorf("%d digits in three seconds", len(digits))
	}
	send(5000, 1<<30, 99, 0, 0, 160) // no digit
	send(5001, 1<<30, 1)             // too short
}

func TestInfoPressesNothing(t *testing.T) {
	s := answered(t, Options{DTMF: DTMFInfo}, here, ulaw)
	s.Press("123")
	if len(s.out.keys) != 0 {
		t.Error("the keys are sent by SIP INFO")
	}
	s = answered(t, Options{}, here, ulaw)
	s.Press(strings.Repeat("1", 1000))
	if len(s.out.keys) != mostKeys {
		t.Error("the queue must be bounded")
	}
}

func TestTimestampsFollowTheClock(t *testing.T) {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: home.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := answered(t, Options{}, here, fmt.Sprintf("m=audio %d RTP/AVP 0", c.LocalAddr().(*net.UDPAddr).Port))
	now, pcm := noon, make([]int16, 160)
	var packets []rtp.Packet
	for i := range 6 {
		if i == 3 {
			now = now.Add(time.Second)
		}
		if err := s.out.write(pcm, now); err != nil {
			t.Fatal(err)
		}
		now = now.Add(20 * time.Millisecond)
		buf := make([]byte, 2000)
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, _, err := c.ReadFromUDP(buf)
		if err != nil {
			t.Fatal(err)
		}
		var p rtp.Packet
		if err := p.Unmarshal(buf[:n]); err != nil {
			t.Fatal(err)
		}
		packets = append(packets, p)
	}
	for i, p := range packets {
		step, marker := uint32(160), i == 0 || i == 3
		if i == 3 {
			step += 8000
		}
		if i > 0 && (p.Timestamp-packets[i-1].Timestamp != step || p.SequenceNumber != packets[i-1].SequenceNumber+1) || p.Marker != marker {
			t.Errorf("packet %d: %s", i, p)
		}
	}
}

func BenchmarkFrame(b *testing.B) {
	s := answered(b, Options{}, here, ulaw)
	pcm := make([]int16, 160)
	now, from, raw := time.Now(), at("127.0.0.1:40000"), packet(1, 0, 0)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		binary.BigEndian.PutUint16(raw[2:], uint16(i))
		binary.BigEndian.PutUint32(raw[4:], uint32(i*160))
		now = now.Add(20 * time.Millisecond)
		s.sort(raw, from, now)
		s.Read(now, pcm)
		if err := s.Write(pcm); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzPackets(f *testing.F) {
	f.Add(packet(1, 1, 0))
	f.Add([]byte{0x9f, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1})
	f.Add([]byte{0xbf, 101, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0xbe, 0xde, 0xff, 0xff, 1, 0x8a, 0, 160})
	f.Add([]byte{0xa0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 255})
	f.Add([]byte{0x81, 201, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1})
	f.Add([]byte{22, 254, 253, 0, 0})
	plain := answered(f, Options{}, here, ulaw, "a=rtcp-mux")
	sealed := answered(f, Options{SRTP: SRTPRequire}, here, "m=audio 40000 RTP/SAVP 0", goodK, "a=rtcp-mux")
	tls := answered(f, Options{SRTP: SRTPRequire}, here, "m=audio 40000 UDP/TLS/RTP/SAVP 0", certHash, "a=setup:active")
	pcm, now := make([]int16, 160), noon
	f.Fuzz(func(t *testing.T, b []byte) {
		now = now.Add(20 * time.Millisecond)
		for _, s := range []*Session{plain, sealed, tls} {
			s.sort(b, at("127.0.0.1:40000"), now)
			s.takeControl(b, at("127.0.0.1:40001"), false, now)
			s.handshake(b, at("127.0.0.1:40001"), true)
			s.Read(now, pcm)
		}
		if sealed.in.track.received > 0 || tls.in.track.received > 0 {
			t.Fatal("a packet without a key was taken")
		}
	})
}

func TestPorts(t *testing.T) {
	cfg := newPool(t).cfg
	cfg.PortMax = cfg.PortMin + 5
	p, err := NewPool(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	var list []*Session
	for range 3 {
		s := open(t, p, Options{})
		if s.port%2 != 0 {
			t.Errorf("RTP on port %d", s.port)
		}
		list = append(list, s)
	}
	if _, err := p.Open(Options{}); !errors.Is(err, ErrNoPorts) || !errors.Is(err, call.ErrUnavailable) {
		t.Error(err)
	}
	list[0].Close()
	list[0].Close()
	if st := p.Stats(); st != (PoolStats{Open: 2, Draining: 1}) {
		t.Errorf("%+v", st)
	}
	if _, err := p.Open(Options{}); !errors.Is(err, ErrNoPorts) {
		t.Error("a port that was closed just now:", err)
	}
	p.mu.Lock()
	p.used[list[0].port] = p.used[list[0].port].Add(-3 * time.Second)
	p.mu.Unlock()
	if s := open(t, p, Options{}); s.port != list[0].port {
		t.Error("in need a port that was closed some seconds ago will do")
	}
	list[1].Close()
	p.mu.Lock()
	p.used[list[1].port] = p.used[list[1].port].Add(-31 * time.Second)
	p.mu.Unlock()
	if st := p.Stats(); st != (PoolStats{Open: 2, Free: 1}) {
		t.Errorf("%+v", st)
	}
	p.Close()
	if _, err := p.Open(Options{}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

package media

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/call"
)

// sdp makes a description of lines, with what each needs before them.
func sdp(lines ...string) []byte {
	head := "v=0\r\no=phone 1 1 IN IP4 127.0.0.1\r\ns=-\r\n"
	return []byte(head + strings.Join(lines, "\r\n") + "\r\n")
}

const (
	here     = "c=IN IP4 127.0.0.1\r\nt=0 0"
	ulaw     = "m=audio 40000 RTP/AVP 0 101\r\na=rtpmap:101 telephone-event/8000"
	goodK    = "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubGVz"
	otherK   = "AES_CM_128_HMAC_SHA1_80 inline:PS1uQCVeeCFCanVmcjkpPywjNWhcYD0mXXtxaVBR"
	certHash = "a=fingerprint:sha-256 4A:AD:B9:B1:3F:82:18:3B:54:02:12:DF:3E:5D:49:6B:19:E5:7C:AB:3A:D7:5F:11:0C:58:4E:6A:8C:61:30:0D"
)

func TestAnswers(t *testing.T) {
	many := make([]string, 0, 1000)
	for range 1000 {
		many = append(many, "m=audio 40000 RTP/AVP 0")
	}
	for _, tt := range []struct {
		name  string
		offer []byte
		opts  Options
		want  []string // of the answer; "!" before what must not be there
		err   error
	}{
		{"the trunk's order decides", sdp(here, "m=audio 40000 RTP/AVP 8 0"), Options{Codecs: []audio.Codec{audio.PCMU, audio.PCMA}}, []string{"RTP/AVP 0\r\n"}, nil},
		{"only what the trunk may speak", sdp(here, "m=audio 40000 RTP/AVP 0 8"), Options{Codecs: []audio.Codec{audio.PCMA}}, []string{"RTP/AVP 8\r\n"}, nil},
		{"G.722 has a clock of 8000", sdp(here, "m=audio 40000 RTP/AVP 9\r\na=rtpmap:9 G722/8000"), Options{}, []string{"G722/8000"}, nil},
		{"G.722 with its true clock", sdp(here, "m=audio 40000 RTP/AVP 9\r\na=rtpmap:9 G722/16000"), Options{}, []string{"G722/8000"}, nil},
		{"Opus with their numbers and its own events", sdp(here, "m=audio 40000 RTP/AVP 96 97 98\r\na=rtpmap:96 opus/48000/2\r\na=rtpmap:97 telephone-event/8000\r\na=rtpmap:98 telephone-event/48000"),
			Options{}, []string{"RTP/AVP 96 98\r\n", "opus/48000/2", "telephone-event/48000", "!telephone-event/8000"}, nil},
		{"comfort noise", sdp(here, "m=audio 40000 RTP/AVP 0 13"), Options{}, []string{"RTP/AVP 0 13\r\n", "CN/8000"}, nil},
		{"digits in the sound", sdp(here, ulaw), Options{DTMF: DTMFInband}, []string{"RTP/AVP 0\r\n", "!telephone-event"}, nil},
		{"they hold", sdp(here, ulaw, "a=sendonly"), Options{}, []string{"a=recvonly"}, nil},
		{"they only listen", sdp(here, ulaw, "a=recvonly"), Options{}, []string{"a=sendonly"}, nil},
		{"nobody sends", sdp(here, "a=inactive", ulaw), Options{}, []string{"a=inactive"}, nil},
		{"the line's direction wins", sdp(here, "a=inactive", ulaw, "a=sendrecv"), Options{}, []string{"a=sendrecv"}, nil},
		{"hold of RFC 2543", sdp("c=IN IP4 0.0.0.0\r\nt=0 0", ulaw), Options{}, []string{"a=recvonly"}, nil},
		{"RTCP on the same port", sdp(here, ulaw, "a=rtcp-mux"), Options{}, []string{"a=rtcp-mux"}, nil},
		{"video and fax stay away", sdp(here, "m=video 5000 RTP/AVP 31", "m=image 5002 udptl t38", ulaw), Options{}, []string{"m=video 0 RTP/AVP 31\r\nm=image 0 udptl t38\r\nm=audio "}, nil},
		{"one sound is enough", sdp(here, ulaw, "m=audio 40002 RTP/AVP 8"), Options{}, []string{"m=audio 0 RTP/AVP 8"}, nil},
		{"feedback profile", sdp(here, "m=audio 40000 RTP/AVPF 0"), Options{}, []string{"RTP/AVPF 0\r\n"}, nil},
		{"lines in another order, bare newlines", []byte("v=0\no=- 1 1 IN IP4 127.0.0.1\ns=-\nb=AS:84\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 40000 RTP/AVP 8\n"), Options{}, []string{"RTP/AVP 8"}, nil},
		{"a host name is found out by its packets", sdp("c=IN IP4 phone.example.org\r\nt=0 0", ulaw), Options{}, []string{"RTP/AVP 0"}, nil},
		{"a private address behind NAT too", sdp("c=IN IP4 192.168.1.7\r\nt=0 0", ulaw), Options{}, []string{"RTP/AVP 0"}, nil},

		{"SRTP", sdp(here, "m=audio 40000 RTP/SAVP 0", goodK), Options{SRTP: SRTPRequire}, []string{"RTP/SAVP 0\r\n", "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:", "!WVNfX19z"}, nil},
		{"SRTP by chance, RFC 8643", sdp(here, ulaw, goodK), Options{SRTP: SRTPOptional}, []string{"RTP/AVP 0", "a=crypto:1 "}, nil},
		{"their first suite that is known", sdp(here, "m=audio 40000 RTP/SAVP 0", "a=crypto:1 F8_128_HMAC_SHA1_80 inline:WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubGVz", "a=crypto:2 "+otherK), Options{SRTP: SRTPRequire}, []string{"a=crypto:2 "}, nil},
		{"lifetime and window are taken", sdp(here, "m=audio 40000 RTP/SAVP 0", goodK+"|2^31 WSH=128"), Options{SRTP: SRTPRequire}, []string{"a=crypto:1 "}, nil},
		{"DTLS", sdp(here, "m=audio 40000 UDP/TLS/RTP/SAVP 0", certHash, "a=setup:actpass"), Options{SRTP: SRTPRequire}, []string{"a=setup:active", "a=fingerprint:sha-256 ", "!4A:AD:B9"}, nil},
		{"DTLS, they begin", sdp(here, "m=audio 40000 UDP/TLS/RTP/SAVP 0", certHash, "a=setup:active"), Options{SRTP: SRTPOptional}, []string{"a=setup:passive"}, nil},
		{"DTLS, behind NAT they have to", sdp("c=IN IP4 10.0.0.1\r\nt=0 0", "m=audio 40000 UDP/TLS/RTP/SAVP 0", certHash, "a=setup:actpass"), Options{SRTP: SRTPOptional}, []string{"a=setup:passive"}, nil},
		{"no SRTP though it is required", sdp(here, ulaw), Options{SRTP: SRTPRequire}, nil, ErrNotAcceptable},
		{"keys on a plain profile are no SRTP", sdp(here, ulaw, goodK), Options{SRTP: SRTPRequire}, nil, ErrNotAcceptable},
		{"SRTP though it is off", sdp(here, "m=audio 40000 RTP/SAVP 0", goodK), Options{}, nil, ErrNotAcceptable},
		{"SRTP without a key", sdp(here, "m=audio 40000 RTP/SAVP 0"), Options{SRTP: SRTPOptional}, nil, ErrNotAcceptable},
		{"a short key", sdp(here, "m=audio 40000 RTP/SAVP 0", "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:WVNfX19zZW1jdGwgKCkgewky"), Options{SRTP: SRTPRequire}, nil, ErrNotAcceptable},
		{"a short key is no reason to go without", sdp(here, ulaw, "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:WVNfX19zZW1jdGwgKCkgewky"), Options{SRTP: SRTPOptional}, nil, ErrNotAcceptable},
		{"one tag twice", sdp(here, "m=audio 40000 RTP/SAVP 0", goodK, "a=crypto:1 "+otherK), Options{SRTP: SRTPRequire}, nil, ErrNotAcceptable},
		{"one key twice", sdp(here, "m=audio 40000 RTP/SAVP 0", goodK, strings.Replace(goodK, ":1 AES_CM_128_HMAC_SHA1_80", ":2 AES_CM_128_HMAC_SHA1_32", 1)), Options{SRTP: SRTPRequire}, nil, ErrNotAcceptable},
		{"encryption that encrypts nothing", sdp(here, "m=audio 40000 RTP/SAVP 0", goodK+" UNENCRYPTED_SRTP"), Options{SRTP: SRTPRequire}, nil, ErrNotAcceptable},
		{"a weak fingerprint", sdp(here, "m=audio 40000 UDP/TLS/RTP/SAVP 0", "a=fingerprint:sha-1 4A:AD:B9:B1:3F:82:18:3B:54:02:12:DF:3E:5D:49:6B:19:E5:7C:AB", "a=setup:actpass"), Options{SRTP: SRTPRequire}, nil, ErrNotAcceptable},

		{"no common codec", sdp(here, "m=audio 40000 RTP/AVP 18 3"), Options{}, nil, ErrNotAcceptable},
		{"only digits", sdp(here, "m=audio 40000 RTP/AVP 101\r\na=rtpmap:101 telephone-event/8000"), Options{}, nil, ErrNotAcceptable},
		{"only fax", sdp(here, "m=image 5002 udptl t38"), Options{}, nil, ErrNotAcceptable},
		{"sound refused", sdp(here, "m=audio 0 RTP/AVP 0"), Options{}, nil, ErrNotAcceptable},
		{"loopback from outside", sdp(here, ulaw), Options{Sources: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/32")}}, nil, ErrNotAcceptable},
		{"loopback though everybody may call", sdp(here, ulaw), Options{Sources: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}, nil, ErrNotAcceptable},
		{"the cloud's metadata", sdp("c=IN IP4 169.254.169.254\r\nt=0 0", ulaw), Options{}, nil, ErrNotAcceptable},
		{"multicast", sdp("c=IN IP4 224.2.1.1/127\r\nt=0 0", ulaw), Options{}, nil, ErrNotAcceptable},
		{"broadcast", sdp("c=IN IP4 255.255.255.255\r\nt=0 0", ulaw), Options{}, nil, ErrNotAcceptable},
		{"a maxptime that we cannot keep", sdp(here, ulaw, "a=maxptime:10"), Options{}, nil, ErrNotAcceptable},

		{"nothing", nil, Options{}, nil, call.ErrInvalid},
		{"no description", []byte("hello"), Options{}, nil, call.ErrInvalid},
		{"another version", []byte("v=1\r\n"), Options{}, nil, call.ErrInvalid},
		{"no media", sdp(here), Options{}, nil, call.ErrInvalid},
		{"a thousand media lines", sdp(append([]string{here}, many...)...), Options{}, nil, call.ErrInvalid},
		{"ptime of a book", sdp(here, ulaw, "a=ptime:99999999999999999999"), Options{}, nil, call.ErrInvalid},
		{"ptime of nothing", sdp(here, ulaw, "a=ptime:-20"), Options{}, nil, call.ErrInvalid},
		{"port beyond the last", sdp(here, "m=audio 70000 RTP/AVP 0"), Options{}, nil, call.ErrInvalid},
		{"payload type beyond the last", sdp(here, "m=audio 40000 RTP/AVP 0 300"), Options{}, nil, call.ErrInvalid},
		{"parameters of no payload type", sdp(here, ulaw, "a=fmtp:9999999999 x=y"), Options{}, nil, call.ErrInvalid},
		{"a map without a clock", sdp(here, ulaw, "a=rtpmap:96 opus"), Options{}, nil, call.ErrInvalid},
		{"RTCP without a port", sdp(here, ulaw, "a=rtcp:none"), Options{}, nil, call.ErrInvalid},
		{"IPv6 that is none", sdp("c=IN IP6 127.0.0.1\r\nt=0 0", ulaw), Options{}, nil, call.ErrInvalid},
		{"too long", sdp(here, ulaw, "a=x:"+strings.Repeat("x", 40000)), Options{}, nil, call.ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, newPool(t), tt.opts)
			answer, err := s.Answer(tt.offer)
			if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
				t.Fatalf("%v, want %v\n%s", err, tt.err, answer)
			}
			for _, want := range tt.want {
				not := strings.HasPrefix(want, "!")
				if strings.Contains(string(answer), strings.TrimPrefix(want, "!")) == not {
					t.Errorf("%q in\n%s", want, answer)
				}
			}
			if err != nil {
				if s.Codec() != "" || s.SRTP() != "" {
					t.Error("a refused offer left something behind")
				}
				return
			}
			if _, err := parseDescription(answer); err != nil {
				t.Errorf("%v\n%s", err, answer)
			}
		})
	}
}

func TestNeverOurOwnPorts(t *testing.T) {
	p := newPool(t)
	s, other := open(t, p, Options{}), open(t, p, Options{})
	if _, err := s.Answer(sdp(here, fmt.Sprintf("m=audio %d RTP/AVP 0", other.port))); !errors.Is(err, ErrNotAcceptable) {
		t.Errorf("media to another leg of this server: %v", err)
	}
	// By a=rtcp, by an answer, and by a later offer too.
	if _, err := s.Answer(sdp(here, ulaw, fmt.Sprintf("a=rtcp:%d", other.port+1))); !errors.Is(err, ErrNotAcceptable) {
		t.Errorf("reports to another leg of this server: %v", err)
	}
	if _, err := s.Offer(); err != nil {
		t.Fatal(err)
	}
	if err := s.Accept(sdp(here, fmt.Sprintf("m=audio %d RTP/AVP 0", s.port)), true); !errors.Is(err, ErrNotAcceptable) {
		t.Errorf("media to itself: %v", err)
	}
}

func TestVersionsGrowOnlyWithChanges(t *testing.T) {
	s := open(t, newPool(t), Options{Codecs: []audio.Codec{audio.PCMU, audio.PCMA}})
	version := func(b []byte) string {
		d, err := parseDescription(b)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(d.version)[1]
	}
	offer, _ := s.Offer()
	again, _ := s.Offer()
	if version(offer) != "1" || version(again) != "1" {
		t.Errorf("first offers have versions %s and %s", version(offer), version(again))
	}
	if err := s.Accept(sdp(here, ulaw), true); err != nil {
		t.Fatal(err)
	}
	s.SetHold(true)
	hold, _ := s.Offer()
	if version(hold) != "2" || !strings.Contains(string(hold), "a=sendonly") {
		t.Errorf("hold:\n%s", hold)
	}
	if err := s.Accept(sdp(here, ulaw, "a=recvonly"), true); err != nil {
		t.Fatal(err)
	}
	if s.RemoteHold() || !s.LocalHold() {
		t.Error("it is we who hold")
	}
	answer, err := s.Answer(sdp(here, ulaw, "a=sendonly"))
	if err != nil || version(answer) != "3" || !strings.Contains(string(answer), "a=inactive") || !s.RemoteHold() {
		t.Errorf("hold from both sides: %v\n%s", err, answer)
	}
}

func TestLaterOffers(t *testing.T) {
	s := open(t, newPool(t), Options{})
	answer := func(what string, lines ...string) string {
		t.Helper()
		a, err := s.Answer(sdp(append([]string{here}, lines...)...))
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return string(a)
	}
	answer("first", "m=audio 40000 RTP/AVP 0 96\r\na=rtpmap:96 telephone-event/8000", "m=video 40004 RTP/AVP 31")
	if s.Codec() != audio.PCMU || s.Rate() != 8000 {
		t.Error(s.Codec())
	}
	answer("other codec, other port", "m=audio 41000 RTP/AVP 9", "m=video 0 RTP/AVP 31")
	if s.Codec() != audio.G722 || s.Rate() != 16000 || s.in.latch.destination().Port() != 41000 {
		t.Error(s.Codec(), s.in.latch.destination())
	}
	if _, err := s.Answer(sdp(here, "m=audio 42000 RTP/AVP 18")); !errors.Is(err, ErrNotAcceptable) {
		t.Error(err)
	}
	if s.Codec() != audio.G722 || s.in.latch.destination().Port() != 41000 {
		t.Error("a refused offer must change nothing")
	}
	// RFC 3264 §8: our own offer keeps the lines in their places, and their numbers.
	offer, err := s.Offer()
	if err != nil || !strings.Contains(string(offer), "a=sendrecv\r\nm=video 0 RTP/AVP 31\r\n") ||
		!strings.Contains(string(offer), "RTP/AVP 9 0 8 ") || !strings.Contains(string(offer), "rtpmap:96 telephone-event/8000") {
		t.Errorf("%v\n%s", err, offer)
	}
}

func TestForkedAnswers(t *testing.T) {
	s := open(t, newPool(t), Options{SRTP: SRTPOptional})
	if _, err := s.Offer(); err != nil {
		t.Fatal(err)
	}
	secret := func(tag, key string) string {
		return "a=crypto:" + tag + " AES_CM_128_HMAC_SHA1_80 inline:" + key
	}
	for _, tt := range []struct {
		answer []byte
		final  bool
		codec  audio.Codec
		port   uint16
		keying string
	}{
		{sdp(here, "m=audio 40000 RTP/AVP 8"), false, audio.PCMA, 40000, ""},
		{sdp(here, "m=audio 40002 RTP/AVP 0", secret("1", "WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubGVz")), false, audio.PCMU, 40002, KeyingSDES},
		{sdp(here, "m=audio 40004 RTP/AVP 9", secret("1", "PS1uQCVeeCFCanVmcjkpPywjNWhcYD0mXXtxaVBR")), false, audio.G722, 40004, KeyingSDES},
		{sdp(here, "m=audio 40000 RTP/AVP 8"), true, audio.PCMA, 40000, ""},
	} {
		if err := s.Accept(tt.answer, tt.final); err != nil {
			t.Fatal(err)
		}
		if s.Codec() != tt.codec || s.in.latch.destination().Port() != tt.port || s.SRTP() != tt.keying {
			t.Errorf("%s to %s with %q", s.Codec(), s.in.latch.destination(), s.SRTP())
		}
		if s.started.IsZero() == tt.final {
			t.Error("the final answer starts the call, and nothing else")
		}
	}
	if err := s.Accept(sdp(here, "m=audio 40000 RTP/AVP 8"), true); err != nil {
		t.Errorf("an answer may be repeated: %v", err)
	}
	if err := s.Accept(sdp(here, "m=audio 40006 RTP/AVP 8"), false); !errors.Is(err, call.ErrConflict) {
		t.Errorf("a late provisional answer: %v", err)
	}
}

func TestAnswersThatCheat(t *testing.T) {
	for _, tt := range []struct {
		name   string
		opts   Options
		answer []byte
	}{
		{"no key though required", Options{SRTP: SRTPRequire}, sdp(here, "m=audio 40000 RTP/SAVP 0")},
		{"plain though required", Options{SRTP: SRTPRequire}, sdp(here, ulaw)},
		{"plain with a key though required", Options{SRTP: SRTPRequire}, sdp(here, ulaw, goodK)},
		{"a tag that was not offered", Options{SRTP: SRTPRequire}, sdp(here, "m=audio 40000 RTP/SAVP 0", "a=crypto:77 "+otherK)},
		{"another suite under a tag", Options{SRTP: SRTPRequire}, sdp(here, "m=audio 40000 RTP/SAVP 0", "a=crypto:3 "+otherK)},
		{"a short key", Options{SRTP: SRTPRequire}, sdp(here, "m=audio 40000 RTP/SAVP 0", "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:AAAA")},
		{"no fingerprint though required", Options{SRTP: SRTPRequire, Keying: KeyingDTLS}, sdp(here, "m=audio 40000 UDP/TLS/RTP/SAVP 0")},
		{"nobody begins", Options{SRTP: SRTPRequire, Keying: KeyingDTLS}, sdp(here, "m=audio 40000 UDP/TLS/RTP/SAVP 0", certHash, "a=setup:actpass")},
		{"a codec that was not offered", Options{Codecs: []audio.Codec{audio.PCMU}}, sdp(here, "m=audio 40000 RTP/AVP 8")},
		{"no sound", Options{}, sdp(here, "m=audio 0 RTP/AVP 0")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, newPool(t), tt.opts)
			if _, err := s.Offer(); err != nil {
				t.Fatal(err)
			}
			if err := s.Accept(tt.answer, true); !errors.Is(err, ErrNotAcceptable) {
				t.Error(err)
			}
		})
	}
}

func TestOurOwnKeyComesBack(t *testing.T) {
	s := open(t, newPool(t), Options{SRTP: SRTPRequire})
	offer, err := s.Offer()
	if err != nil {
		t.Fatal(err)
	}
	d, err := parseDescription(offer)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := d.media[0].parseCrypto()
	if err != nil || len(keys) != offeredSuites {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	if err := s.Accept(sdp(here, "m=audio 40000 RTP/SAVP 0", "a=crypto:"+keys[0].String()), true); !errors.Is(err, ErrNotAcceptable) {
		t.Error("two directions with one key have one keystream:", err)
	}
}

func TestKeysStayDuringACall(t *testing.T) {
	secure := "m=audio 40000 RTP/SAVP 0"
	for _, tt := range []struct {
		name  string
		first []string
		later []string
		err   error
	}{
		{"the same again", []string{secure, goodK}, []string{secure, goodK, "a=sendonly"}, nil},
		{"another key", []string{secure, goodK}, []string{secure, "a=crypto:1 " + otherK}, ErrNotAcceptable},
		{"no key", []string{secure, goodK}, []string{"m=audio 40000 RTP/AVP 0"}, ErrNotAcceptable},
		{"no key that was by chance", []string{ulaw, goodK}, []string{ulaw}, ErrNotAcceptable},
		{"another way", []string{secure, goodK}, []string{"m=audio 40000 UDP/TLS/RTP/SAVP 0", certHash, "a=setup:actpass"}, ErrNotAcceptable},
		{"another certificate", []string{"m=audio 40000 UDP/TLS/RTP/SAVP 0", certHash, "a=setup:active"},
			[]string{"m=audio 40000 UDP/TLS/RTP/SAVP 0", strings.Replace(certHash, "4A:AD", "4A:AE", 1), "a=setup:active"}, ErrNotAcceptable},
		{"encryption from now on", []string{ulaw}, []string{secure, goodK}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, newPool(t), Options{SRTP: SRTPOptional})
			if _, err := s.Answer(sdp(append([]string{here}, tt.first...)...)); err != nil {
				t.Fatal(err)
			}
			before := s.SRTP()
			_, err := s.Answer(sdp(append([]string{here}, tt.later...)...))
			if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
				t.Errorf("%v, want %v", err, tt.err)
			}
			if err != nil && s.SRTP() != before {
				t.Error("a refused offer changed the encryption")
			}
		})
	}
}

func TestAddressesOfOurs(t *testing.T) {
	p := newPool(t)
	p.cfg.BindIP = netip.Addr{}
	p.cfg.ExternalIP = netip.MustParseAddr("203.0.113.9")
	p.cfg.ExternalIP6 = netip.MustParseAddr("2001:db8::9")
	six := []byte("v=0\r\no=- 1 1 IN IP6 2001:db8::1\r\ns=-\r\nc=IN IP6 2001:db8::1\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0\r\n")
	for _, tt := range []struct {
		name  string
		offer []byte
		opts  Options
		want  string
	}{
		{"IPv4", sdp("c=IN IP4 198.51.100.7\r\nt=0 0", ulaw), Options{}, "c=IN IP4 203.0.113.9\r\n"},
		{"IPv6", six, Options{}, "c=IN IP6 2001:db8::9\r\n"},
		{"the trunk's", sdp("c=IN IP4 198.51.100.7\r\nt=0 0", ulaw), Options{ExternalIP: netip.MustParseAddr("203.0.113.77")}, "c=IN IP4 203.0.113.77\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			answer, err := open(t, p, tt.opts).Answer(tt.offer)
			if err != nil || !strings.Contains(string(answer), tt.want) {
				t.Errorf("%v\n%s", err, answer)
			}
		})
	}
	p.cfg.ExternalIP = netip.Addr{}
	s := open(t, p, Options{})
	if answer, err := s.Answer(sdp(here, ulaw)); err != nil || !strings.Contains(string(answer), "c=IN IP4 127.0.0.1\r\n") || s.Local() != netip.AddrPortFrom(home, s.port) {
		t.Errorf("without a setting it is the address towards the other side: %v\n%s", err, answer)
	}
}

func FuzzAnswer(f *testing.F) {
	for _, seed := range [][]byte{
		sdp(here, ulaw), sdp(here, "m=audio 40000 RTP/SAVP 0", goodK), sdp(here, "m=audio 40000 UDP/TLS/RTP/SAVP 0 96", certHash, "a=setup:active", "a=rtpmap:96 opus/48000/2", "a=fmtp:96 usedtx=1"),
		sdp(here, "m=image 1 udptl t38", "m=audio 9/2 RTP/AVPF 8 13 97", "a=rtpmap:97 telephone-event/8000/1", "a=rtcp:53020 IN IP4 127.0.0.1", "a=rtcp-mux", "a=ptime:20.0", "a=maxptime:150"),
		[]byte("v=0\no=- 1 1 IN IP6 ::1\nc=IN IP6 ::1\nm=audio 1 RTP/AVP 0 0 0"),
	} {
		f.Add(seed)
	}
	p := newPool(f)
	f.Fuzz(func(t *testing.T, offer []byte) {
		s := open(t, p, Options{SRTP: SRTPOptional})
		defer func() {
			s.Close()
			p.mu.Lock()
			clear(p.used)
			p.mu.Unlock()
		}()
		answer, err := s.Answer(offer)
		if err != nil {
			if !errors.Is(err, ErrNotAcceptable) && !errors.Is(err, call.ErrInvalid) {
				t.Errorf("%v is no answer to an offer", err)
			}
			return
		}
		d, err := parseDescription(answer)
		if err != nil {
			t.Fatalf("%v\n%q", err, answer)
		}
		theirs, _ := parseDescription(offer)
		if len(d.media) != len(theirs.media) {
			t.Errorf("%d media lines answer %d", len(d.media), len(theirs.media))
		}
		again, err := s.Answer(offer)
		if err != nil || string(again) != string(answer) {
			t.Errorf("the same offer again gave\n%s%v, before\n%s", again, err, answer)
		}
		if to := s.in.latch.destination(); to.IsValid() && (p.owns(to) || kindOf(to.Addr()) == unusable || kindOf(to.Addr()) == linkLocal) {
			t.Errorf("media would go to %s", to)
		}
	})
}

package media

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/audio/opus"
)

const (
	headerSize = 12
	sendRoom   = headerSize + 1500
	pressTime  = 100 * time.Millisecond
	pauseKey   = 'w' // in Press: half a second
	pauseTicks = 25
	mostKeys   = 128 // waiting to be sent
	keepAlive  = 10 * time.Second
)

// sender makes one RTP stream. Its methods take its own lock.
type sender struct {
	mu      sync.Mutex // guards the following
	rtp     *net.UDPConn
	control *net.UDPConn

	to        netip.AddrPort // zero: nowhere
	toControl netip.AddrPort
	mux       bool
	active    bool // the other side wants to hear us

	codec   audio.Codec
	number  uint8 // payload type
	encoder audio.Encoder
	numbers map[audio.Codec]uint8 // what else the other side understands
	dtx     bool

	ssrc   uint32
	seq    uint16
	stamp  uint32 // of the next frame
	at     time.Time
	marker bool
	sent   time.Time // the last packet
	count  uint32
	octets uint32
	failed uint64

	eventPT uint8
	hasCN   bool
	cn      uint8
	inband  bool
	silent  bool // keys are sent by others (SIP INFO)
	keys    []byte
	pause   int // ticks until the next key
	events  audio.EventSender
	tone    *audio.Player
	toneFor int // ticks
	sound   []int16

	secure   bool // nothing goes out without keys
	seal     *srtp.Context
	sealRTCP *srtp.Context
	contexts map[srtp.ProtectionProfile]*srtp.Context // one for each of our keys: its counters must go on
	head     rtp.Header
	headRTCP rtcp.Header
	buf      [sendRoom]byte
	sealed   []byte // room for a packet that is encrypted

}

func (o *sender) start(rtp, control *net.UDPConn) {
	o.rtp, o.control = rtp, control
	o.ssrc, o.seq, o.stamp = rand.Uint32(), uint16(rand.Uint32()), rand.Uint32()
	o.marker = true
	o.contexts = map[srtp.ProtectionProfile]*srtp.Context{}
}

// encoderFor makes an encoder. Opus sends its silence too unless they say otherwise.
func encoderFor(c audio.Codec, dtx bool) (audio.Encoder, error) {
	if c == audio.Opus {
		cfg := opus.DefaultConfig(c.Rate())
		cfg.DTX = dtx
		return opus.NewEncoder(cfg)
	}
	return c.NewEncoder()
}

// apply takes over a plan; after an error nothing has changed.
func (o *sender) apply(p *plan) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	encoder := o.encoder
	if p.codec != o.codec || p.dtx != o.dtx {
		var err error
		if encoder, err = encoderFor(p.codec, p.dtx); err != nil {
			return err
		}
	}
	seal := o.contexts[p.local.kind.profile]
	if p.keying == KeyingSDES && seal == nil {
		var err error
		if seal, err = p.local.context(); err != nil {
			return err
		}
		o.contexts[p.local.kind.profile] = seal
	}
	o.use(p.codec, encoder, p.send[p.codec])
	o.dtx, o.numbers = p.dtx, p.send
	o.mux, o.active = p.mux, p.ours.send
	o.eventPT, o.hasCN, o.cn = p.eventPT, p.hasCN, p.cn
	o.events.Clock = p.event.clock
	switch p.keying {
	case KeyingSDES:
		o.secure, o.seal, o.sealRTCP = true, seal, seal
	case KeyingDTLS:
		if !o.secure {
			o.secure, o.seal, o.sealRTCP = true, nil, nil
		}
	default:
		o.secure, o.seal, o.sealRTCP = false, nil, nil
	}
	if o.secure && o.sealed == nil {
		o.sealed = make([]byte, sendRoom+64)
	}
	return nil
}

func (o *sender) use(c audio.Codec, encoder audio.Encoder, number uint8) {
	if c != o.codec {
		o.marker, o.tone = true, nil
		o.sound = make([]int16, audio.FrameSamples(c.Rate()))
	}
	o.codec, o.encoder, o.number = c, encoder, number
}

// change follows the other side to another codec of those agreed on.
func (o *sender) change(c audio.Codec) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	number, ok := o.numbers[c]
	if !ok {
		return nil
	}
	encoder, err := encoderFor(c, o.dtx)
	if err != nil {
		return err
	}
	o.use(c, encoder, number)
	return nil
}

// aim sets where packets go. A zero address withholds them.
func (o *sender) aim(to, control netip.AddrPort) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.to, o.toControl = to, control
}

// setKeys takes keys from DTLS. Either may be nil: not known yet.
func (o *sender) setKeys(seal, sealRTCP *srtp.Context) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if seal != nil {
		o.seal = seal
	}
	if sealRTCP != nil {
		o.sealRTCP = sealRTCP
	}
}

// dropKeys forgets keys from DTLS.
func (o *sender) dropKeys() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seal, o.sealRTCP = nil, nil
}

func (o *sender) ready() bool { return o.to.IsValid() && (!o.secure || o.seal != nil) }

// Write sends 20 ms to the telephone. While it cannot be sent (on hold, no address,
// no keys yet) it is dropped, which is no error; neither is a network
// that loses it.
func (s *Session) Write(pcm []int16) error {
	if s.ended.Load() {
		return ErrClosed
	}
	return s.out.write(pcm, time.Now())
}

func (o *sender) write(pcm []int16, now time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.codec == "" || len(pcm) != len(o.sound) {
		return nil // the codec has just changed
	}
	stamp := o.step(now)
	if !o.active || !o.ready() {
		o.marker = true
		return nil
	}
	o.press()
	if o.events.Busy() {
		if e, ok := o.events.Next(stamp); ok {
			n := copy(o.buf[headerSize:], e.Payload[:])
			o.send(e.Marker, o.eventPT, e.Timestamp, n, now)
			o.marker = true
			return nil
		}
	}
	if o.toneFor > 0 {
		if o.toneFor--; o.tone != nil {
			o.tone.Fill(o.sound)
			pcm = o.sound
		}
	}
	n, err := o.encoder.Encode(pcm, o.buf[headerSize:])
	if err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	o.send(o.marker, o.number, stamp, n, now)
	o.marker = false
	return nil
}

// step returns the timestamp of a frame that is sent now. Frames follow each other
// without a gap however the ticker jitters; after a pause the timestamp jumps by the
// time that passed (RFC 3550 §5.1).
func (o *sender) step(now time.Time) uint32 {
	o.catchUp(now)
	stamp := o.stamp
	o.stamp += uint32(o.codec.Clock() / 50)
	o.at = now
	return stamp
}

func (o *sender) catchUp(now time.Time) {
	if gap := now.Sub(o.at); !o.at.IsZero() && gap > 6*audio.FrameDuration {
		frames := int64(gap/audio.FrameDuration) - 1
		o.stamp += uint32(frames * int64(o.codec.Clock()/50))
		o.marker = true
		o.at = now
	}
}

// press begins the next digit if the last one is done.
func (o *sender) press() {
	if o.pause > 0 {
		o.pause--
		return
	}
	if len(o.keys) == 0 || o.toneFor > 0 || o.events.Busy() {
		return
	}
	key := o.keys[0]
	o.keys = o.keys[:copy(o.keys, o.keys[1:])]
	switch {
	case key == pauseKey:
		o.pause = pauseTicks
	case o.eventPT != 0 && !o.inband:
		o.events.Press(key, pressTime)
	default:
		if t, ok := audio.DTMF(key); ok {
			o.tone = audio.NewPlayer(t, o.codec.Rate())
			o.toneFor = int((t.On + t.Off) / audio.FrameDuration)
		}
	}
}

// Press sends digits (0-9, *, #, A-D) one after the other, each for 100 ms with a gap
// of at least 50 ms; w waits for half a second, anything else is left out. They go out
// with the frames that are written. With DTMFInfo nothing happens.
func (s *Session) Press(digits string) {
	if s.opts.DTMF == DTMFInfo {
		return
	}
	o := &s.out
	o.mu.Lock()
	defer o.mu.Unlock()
	o.inband = s.opts.DTMF == DTMFInband
	for _, d := range []byte(digits) {
		switch {
		case len(o.keys) == mostKeys:
			return
		case d == 'w' || d == 'W':
			d = pauseKey
		case d >= 'a' && d <= 'd':
			d -= 'a' - 'A'
		}
		if _, ok := audio.DTMF(d); ok || d == pauseKey {
			o.keys = append(o.keys, d)
		}
	}
}

// send sends n octets of payload in o.buf. The caller holds o.mu.
func (o *sender) send(marker bool, number uint8, stamp uint32, n int, now time.Time) {
	seq := o.seq
	o.seq++
	b := o.buf[:headerSize+n]
	b[0], b[1] = 0x80, number
	if marker {
		b[1] |= 0x80
	}
	binary.BigEndian.PutUint16(b[2:], seq)
	binary.BigEndian.PutUint32(b[4:], stamp)
	binary.BigEndian.PutUint32(b[8:], o.ssrc)
	if o.secure {
		var err error
		if b, err = o.seal.EncryptRTP(o.sealed[:0], b, &o.head); err != nil {
			o.failed++
			return
		}
	}
	o.sent = now
	if _, err := o.rtp.WriteToUDPAddrPort(b, o.to); err != nil {
		o.failed++ // no route, a full queue: the next packet tries again
		return
	}
	o.count++
	o.octets += uint32(n)
}

// keepOpen sends a packet if nothing has been sent for long, so that NATs and
// time-outs of the other side do not end a call that is muted or on hold.
func (o *sender) keepOpen(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.codec == "" || !o.ready() || now.Sub(o.sent) < keepAlive {
		return
	}
	stamp := o.step(now)
	if o.hasCN && o.codec.Clock() == 8000 {
		o.buf[headerSize] = 127 // RFC 3389: silence
		o.send(false, o.cn, stamp, 1, now)
		return
	}
	clear(o.sound)
	if n, err := o.encoder.Encode(o.sound, o.buf[headerSize:]); err == nil && n > 0 {
		o.send(true, o.number, stamp, n, now)
	}
}

// raw sends something that is no RTP: DTLS.
func (o *sender) raw(b []byte, control bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	conn, to := o.rtp, o.to
	if control {
		conn, to = o.control, o.toControl
	}
	if !to.IsValid() {
		return nil
	}
	_, err := conn.WriteToUDPAddrPort(b, to)
	return err
}

// report sends RTCP.
func (o *sender) report(b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	conn, to := o.control, o.toControl
	if o.mux {
		conn, to = o.rtp, o.to
	}
	if !to.IsValid() || o.secure && o.sealRTCP == nil {
		return
	}
	if o.secure {
		var err error
		if b, err = o.sealRTCP.EncryptRTCP(o.sealed[:0], b, &o.headRTCP); err != nil {
			o.failed++
			return
		}
	}
	if _, err := conn.WriteToUDPAddrPort(b, to); err != nil {
		o.failed++
	}
}

package audio

import (
	"time"

	"github.com/pion/rtp"
)

const (
	jitterSlots  = 128  // packets held at most
	jitterBytes  = 1500 // longest payload
	jitterJump   = 3000 // sequence numbers further away than this are another stream (RFC 3550 A.1)
	jitterWindow = 4096 // sequence numbers remembered; more than jitterJump
	jitterBucket = 5 * time.Millisecond
	adjustPause  = 2 * time.Second // at most one frame of correction in this time
)

// Content says what a packet brings.
type Content uint8

// What a packet can bring.
const (
	Voice Content = iota // sound
	Pause                // sound or noise after which the sender may be silent (RFC 3389, Opus DTX)
	Event                // no sound: a telephone event. It only counts
)

// A Chunk is what to play next.
type Chunk struct {
	Kind    ChunkKind
	Ticks   int    // how long, in RTP timestamp units
	Payload []byte // of Received and Discard; valid until the next Push or Pull
	Content Content
}

// ChunkKind says where the sound of a chunk comes from.
type ChunkKind uint8

// Where sound comes from.
const (
	Quiet    ChunkKind = iota // nothing is missing: the sender is silent, or has not begun
	Received                  // decode Payload
	Discard                   // decode Payload for the decoder's sake and throw the sound away
	Lost                      // conceal
)

// JitterConfig bounds the delay that a Jitter adds.
type JitterConfig struct {
	Clock    int // RTP timestamp units per second
	Min, Max time.Duration
}

// JitterStats describes a stream so far.
type JitterStats struct {
	Received, Duplicate, Late, Overflow, Restarts uint64
	Lost                                          int64         // expected less received, RFC 3550 §6.4.1; duplicates not counted twice
	Concealed                                     time.Duration // sound invented because nothing was there in time
	Jitter                                        time.Duration // RFC 3550 §6.4.1
	Delay, Target                                 time.Duration // added now, and wanted
}

// Jitter puts packets of one sender into order and time again. Each packet goes in as
// it arrives; Pull takes out what is due, at the listener's own pace.
//
// The delay follows what packets' arrival asks for: a packet should be there in 98 of
// 100 cases, within the configured limits. Corrections are made in silence where there
// is any, one frame in two seconds at most. When nothing has arrived in time, the delay
// grows by what was concealed; it never stops to fill up again.
type Jitter struct {
	cfg      JitterConfig
	frame    int64 // 20 ms in units
	epoch    time.Time
	stats    JitterStats
	expected int64 // packets of streams before a restart

	started   bool
	ssrc      uint32
	first     int64 // extended sequence numbers
	high      int64
	highTS    int64                     // extended timestamp of high
	seen      [jitterWindow / 64]uint64 // which of the last sequence numbers came
	probe     rtp.Packet                // a packet that fits in no stream yet
	probed    bool
	lastTrip  int64
	tripped   bool
	jitter    float64
	base      [2]int64 // least trip time of this and of the last window
	baseFrom  int64
	histogram [60]float32 // of trip time above base
	target    int64

	queue []jitterPacket // by timestamp; the tail up to its capacity keeps buffers

	playing  bool
	cursor   int64 // the next timestamp to play
	lastSeq  int64 // of the last packet played
	held     int64 // concealed while nothing was there, cursor standing still
	pausing  bool  // the sender is silent on purpose
	adjusted int64 // when the delay was last corrected
}

type jitterPacket struct {
	seq, ts int64
	ticks   int
	content Content
	payload []byte
}

// NewJitter returns an empty jitter buffer.
func NewJitter(cfg JitterConfig) *Jitter {
	j := &Jitter{cfg: cfg, frame: int64(cfg.Clock / 50), queue: make([]jitterPacket, 0, jitterSlots)}
	const usual = 200 // octets; longer payloads get buffers of their own
	slots, block := j.queue[:jitterSlots], make([]byte, jitterSlots*usual)
	for i := range slots {
		slots[i].payload = block[i*usual : i*usual : (i+1)*usual]
	}
	j.target = j.units(cfg.Min)
	return j
}

func (j *Jitter) units(d time.Duration) int64 {
	return int64(d/time.Second)*int64(j.cfg.Clock) + int64(d%time.Second)*int64(j.cfg.Clock)/int64(time.Second)
}

func (j *Jitter) duration(units int64) time.Duration {
	return time.Duration(units) * time.Second / time.Duration(j.cfg.Clock)
}

// Push takes a packet that arrived now. ticks is its length in timestamp units. The
// packet may be reused afterwards.
func (j *Jitter) Push(p *rtp.Packet, content Content, ticks int, now time.Time) {
	if j.epoch.IsZero() {
		j.epoch = now
	}
	if len(p.Payload) > jitterBytes || ticks < 0 || int64(ticks) > j.units(MaxPacket) || content == Voice && ticks == 0 {
		return
	}
	arrival := j.units(now.Sub(j.epoch))
	switch {
	case !j.started:
		j.restart(p, arrival)
	case !j.belongs(p, content, arrival):
		// One stray packet changes nothing; two in a row are a new stream.
		if !j.probed || j.probe.SSRC != p.SSRC || j.probe.SequenceNumber+1 != p.SequenceNumber {
			j.probe.Header, j.probed = p.Header, true
			return
		}
		j.stats.Restarts++
		j.restart(p, arrival)
	}
	j.probed = false
	j.accept(p, content, ticks, arrival)
}

func (j *Jitter) extend(p *rtp.Packet) (seq, ts int64) {
	seq = j.high + int64(int16(p.SequenceNumber-uint16(j.high)))
	ts = j.highTS + int64(int32(p.Timestamp-uint32(j.highTS)))
	return seq, ts
}

// belongs says whether p continues the stream: the same source, a sequence number
// nearby and a timestamp that agrees with the clock within a second.
func (j *Jitter) belongs(p *rtp.Packet, content Content, arrival int64) bool {
	seq, ts := j.extend(p)
	away := seq - j.high
	if p.SSRC != j.ssrc || away > jitterJump || away < -jitterJump {
		return false
	}
	if content == Event { // its timestamp is the beginning of the event
		return true
	}
	off := arrival - ts - j.floor()
	return off < int64(j.cfg.Clock) && off > -int64(j.cfg.Clock)
}

func (j *Jitter) restart(p *rtp.Packet, arrival int64) {
	if j.started {
		j.expected += j.high - j.first + 1
	}
	j.started, j.ssrc = true, p.SSRC
	j.first, j.high, j.highTS = int64(p.SequenceNumber), int64(p.SequenceNumber), int64(p.Timestamp)
	j.seen = [jitterWindow / 64]uint64{}
	j.tripped = false
	trip := arrival - j.highTS
	j.base, j.baseFrom = [2]int64{trip, trip}, arrival
	j.queue = j.queue[:0]
	j.playing, j.pausing, j.held = false, false, 0
	j.lastSeq = j.first - 1
}

func (j *Jitter) floor() int64 { return min(j.base[0], j.base[1]) }

func (j *Jitter) was(seq int64) bool {
	at := uint64(seq) % jitterWindow
	return seq > j.high-jitterWindow && seq <= j.high && j.seen[at/64]&(1<<(at%64)) != 0
}

func (j *Jitter) accept(p *rtp.Packet, content Content, ticks int, arrival int64) {
	seq, ts := j.extend(p)
	if j.was(seq) {
		j.stats.Duplicate++
		return
	}
	for s := j.high + 1; s <= seq; s++ {
		at := uint64(s) % jitterWindow
		j.seen[at/64] &^= 1 << (at % 64)
	}
	newest := seq >= j.high
	j.high = max(j.high, seq)
	j.first = min(j.first, seq)
	j.seen[uint64(seq)%jitterWindow/64] |= 1 << (uint64(seq) % 64)
	j.stats.Received++
	if content == Event {
		j.pausing = true // the sender may replace sound by events
		return
	}
	if newest {
		j.highTS = ts
	}
	j.observe(arrival-ts, arrival)
	if j.playing && !j.pausing && ts < j.cursor-int64(ticks)/2 || j.playing && seq <= j.lastSeq {
		j.stats.Late++
		return
	}
	j.insert(jitterPacket{seq: seq, ts: ts, ticks: ticks, content: content, payload: p.Payload})
}

// observe takes the trip time of a packet, from any fixed beginning.
func (j *Jitter) observe(trip, arrival int64) {
	if j.tripped {
		d := trip - j.lastTrip
		j.jitter += (float64(max(d, -d)) - j.jitter) / 16 // RFC 3550 §6.4.1
	}
	j.lastTrip, j.tripped = trip, true

	if arrival-j.baseFrom > 5*int64(j.cfg.Clock) {
		j.base, j.baseFrom = [2]int64{trip, j.base[0]}, arrival
	}
	j.base[0] = min(j.base[0], trip)

	const keep = 0.998 // ten seconds at 50 packets a second
	above := int((trip - j.floor()) / j.units(jitterBucket))
	for i := range j.histogram {
		j.histogram[i] *= keep
	}
	j.histogram[min(above, len(j.histogram)-1)] += 1 - keep
	var all, sum float32
	for _, weight := range j.histogram {
		all += weight
	}
	quantile := 0
	for quantile < len(j.histogram)-1 && sum+j.histogram[quantile] < 0.98*all {
		sum += j.histogram[quantile]
		quantile++
	}
	wanted := time.Duration(quantile+1)*jitterBucket + 10*time.Millisecond
	j.target = j.units(max(min(wanted, j.cfg.Max), j.cfg.Min))
}

func (j *Jitter) insert(p jitterPacket) {
	if len(j.queue) == jitterSlots {
		j.stats.Overflow++
		j.pop()
	}
	at := len(j.queue)
	j.queue = j.queue[:at+1]
	payload := append(j.queue[at].payload[:0], p.payload...)
	for at > 0 && j.queue[at-1].ts > p.ts {
		j.queue[at] = j.queue[at-1]
		at--
	}
	p.payload = payload
	j.queue[at] = p
}

// pop removes the head; its buffer goes behind the tail.
func (j *Jitter) pop() jitterPacket {
	head := j.queue[0]
	n := copy(j.queue, j.queue[1:])
	j.queue[n] = head
	j.queue = j.queue[:n]
	return head
}

// delay returns how long after the quickest packet of its time the cursor plays.
func (j *Jitter) delay(now int64) int64 { return now - j.floor() - j.cursor }

// complete says whether nothing is missing between the last packet played and seq.
func (j *Jitter) complete(seq int64) bool {
	if seq-j.lastSeq > 256 {
		return false
	}
	for s := j.lastSeq + 1; s < seq; s++ {
		if !j.was(s) {
			return false
		}
	}
	return true
}

// Pull returns what to play next; call it until a frame is full. silent says that what
// plays now is silence, so that a frame more or less will not be heard.
func (j *Jitter) Pull(now time.Time, silent bool) Chunk {
	at := j.units(now.Sub(j.epoch))
	frame := int(j.frame)
	if len(j.queue) == 0 {
		switch {
		case !j.playing || j.pausing:
			return Chunk{Kind: Quiet, Ticks: frame}
		case j.held >= int64(j.cfg.Clock): // nobody there: this is not loss any more
			j.pausing = true
			return Chunk{Kind: Quiet, Ticks: frame}
		}
		j.held += j.frame
		return j.lost(frame)
	}

	if gap := j.queue[0].ts - j.cursor; !j.playing || j.pausing || gap > 0 && j.complete(j.queue[0].seq) {
		// After silence the delay can be set anew for nothing.
		if at < j.queue[0].ts+j.floor()+j.target {
			return Chunk{Kind: Quiet, Ticks: frame}
		}
		j.playing, j.pausing, j.held = true, false, 0
		j.cursor = j.queue[0].ts
	} else if gap > 0 {
		covered := min(gap, j.held) // already concealed while nothing was there
		j.cursor += covered
		j.held -= covered
		if gap -= covered; gap > 0 {
			ticks := min(gap, j.frame)
			j.cursor += ticks
			return j.lost(int(ticks))
		}
	}
	j.held = 0

	if j.delay(at) > j.units(j.cfg.Max)+j.frame { // after a stall: catch up at once
		for len(j.queue) > 1 && j.delay(at) > j.target {
			j.stats.Late++
			j.lastSeq = max(j.lastSeq, j.pop().seq)
			j.cursor = j.queue[0].ts
		}
	}
	kind := Received
	if at-j.adjusted >= j.units(adjustPause) {
		surplus := j.delay(at) - j.target
		switch {
		case surplus < -j.frame && (silent || surplus < -3*j.frame):
			j.adjusted = at
			if silent {
				return Chunk{Kind: Quiet, Ticks: frame}
			}
			return j.lost(frame)
		case surplus > j.frame && (silent || surplus > 3*j.frame):
			j.adjusted, kind = at, Discard
		}
	}
	head := j.pop()
	j.cursor, j.lastSeq = head.ts+int64(head.ticks), max(j.lastSeq, head.seq)
	j.pausing = head.content == Pause
	return Chunk{Kind: kind, Ticks: head.ticks, Payload: head.payload, Content: head.content}
}

// Ahead returns, after Pull said Lost, the payload that follows what was lost, nil if it
// is not there yet. It may hold a copy of what was lost (RFC 6716 §2.1.7), and is valid
// until the next Push or Pull.
func (j *Jitter) Ahead() []byte {
	if len(j.queue) == 0 || j.queue[0].ts != j.cursor || j.queue[0].seq <= j.lastSeq+1 {
		return nil
	}
	return j.queue[0].payload
}

func (j *Jitter) lost(ticks int) Chunk {
	j.stats.Concealed += j.duration(int64(ticks))
	return Chunk{Kind: Lost, Ticks: ticks}
}

// Stats returns what happened so far.
func (j *Jitter) Stats(now time.Time) JitterStats {
	s := j.stats
	if j.started {
		s.Lost = j.expected + j.high - j.first + 1 - int64(s.Received)
	}
	s.Jitter = j.duration(int64(j.jitter))
	s.Target = j.duration(j.target)
	if j.playing && !j.pausing {
		s.Delay = j.duration(j.delay(j.units(now.Sub(j.epoch))))
	}
	return s
}

package media

import (
	"time"

	"github.com/trunkhall/trunkhall/audio"
)

// track counts the packets of one sender for reports (RFC 3550 §6.4.1, A.1, A.3, A.8).
type track struct {
	clock    int
	epoch    time.Time
	ssrc     uint32
	known    bool
	base     int64 // extended sequence numbers
	high     int64
	received uint64 // of this ssrc
	before   struct{ received, expected uint64 }
	past     struct{ received, expected uint64 } // of earlier streams
	jitter   float64
	transit  int64
	last     time.Time // any packet
}

const farAway = 3000 // MAX_DROPOUT of RFC 3550 A.1

// push counts a packet. timed says that its timestamp is that of its sampling.
func (t *track) push(ssrc uint32, seq uint16, stamp uint32, timed bool, now time.Time) {
	if t.epoch.IsZero() {
		t.epoch = now
	}
	t.last = now
	ext := t.high + int64(int16(seq-uint16(t.high)))
	if !t.known || ssrc != t.ssrc || ext-t.high > farAway || ext-t.high < -farAway {
		t.past.received += t.received
		t.past.expected += t.expected()
		t.known, t.ssrc, t.received = true, ssrc, 0
		t.before.received, t.before.expected = 0, 0
		t.base, t.high = int64(seq), int64(seq)
		ext, t.transit = t.high, 0
	}
	t.received++
	t.high = max(t.high, ext)
	t.base = min(t.base, ext)
	if !timed || t.clock == 0 {
		return
	}
	arrival := int64(now.Sub(t.epoch)) / int64(time.Microsecond) * int64(t.clock) / 1e6
	transit := arrival - int64(stamp)
	if t.transit != 0 {
		d := int32(transit - t.transit) // the timestamp wraps
		if d < 0 {
			d = -d
		}
		if int(d) < t.clock { // else the sender set its clock
			t.jitter += (float64(d) - t.jitter) / 16
		}
	}
	t.transit = transit
}

func (t *track) expected() uint64 {
	if !t.known {
		return 0
	}
	return uint64(t.high - t.base + 1)
}

// totals returns packets received and lost over all streams.
func (t *track) totals() (received, lost uint64) {
	received = t.past.received + t.received
	if expected := t.past.expected + t.expected(); expected > received {
		lost = expected - received
	}
	return received, lost
}

func (t *track) jitterTime() time.Duration {
	if t.clock == 0 {
		return 0
	}
	return time.Duration(t.jitter / float64(t.clock) * float64(time.Second))
}

// interval returns what a report block says of the time since the last one.
func (t *track) interval() (fraction uint8, lost uint32) {
	expected := t.expected() - t.before.expected
	received := t.received - t.before.received
	t.before.expected, t.before.received = t.expected(), t.received
	if expected > received {
		fraction = uint8(min(255, (expected-received)*256/expected))
	}
	if all := t.expected(); all > t.received {
		lost = uint32(min(all-t.received, 0x7fffff))
	}
	return fraction, lost
}

// mos estimates how people would rate the call, 1 to 4.5, by a simplified E-model
// (ITU-T G.107): loss as concealment hides it (G.113 appendix I), and delay.
func mos(codec audio.Codec, loss float64, delay time.Duration) float64 {
	robust := 25.1 // Bpl of G.711 with concealment
	equipment := 0.0
	switch codec {
	case audio.G722:
		robust, equipment = 17, 3
	case audio.Opus:
		robust, equipment = 20, 2
	}
	ms := float64(delay) / float64(time.Millisecond)
	id := 0.024 * ms
	if ms > 177.3 {
		id += 0.11 * (ms - 177.3)
	}
	percent := 100 * max(0, min(1, loss))
	ie := equipment + (95-equipment)*percent/(percent+robust)
	r := max(0, min(100, 93.2-id-ie))
	return max(1, min(4.5, 1+0.035*r+r*(r-60)*(100-r)*7e-6))
}

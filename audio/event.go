package audio

import (
	"encoding/binary"
	"strings"
	"time"
)

// digits are the DTMF events of RFC 4733 §3.2 in order of their numbers, 0 to 15.
const digits = "0123456789*#ABCD"

// eventRate is the usual clock of telephone events. Beside Opus they may have 48 kHz.
const eventRate = 8000

const (
	eventGap   = 3 // frames between events: 60 ms
	eventQueue = 64
)

func eventClock(clock int) int {
	if clock == 0 {
		return eventRate
	}
	return clock
}

// EventPacket is one telephone-event packet to send. Sequence number, SSRC and payload
// type are the sender's.
type EventPacket struct {
	Marker    bool
	Timestamp uint32
	Payload   [4]byte
}

// EventSender makes RFC 4733 packets of digits, one packet each 20 ms: the digit grows,
// its end is sent three times, then comes a pause. The zero value is ready.
type EventSender struct {
	Clock int // RTP timestamp units per second; zero is 8000

	queue   []keyPress
	started bool
	stamp   uint32 // timestamp of this part of the event
	length  int    // frames until now
	part    int    // units of time since stamp
	ends    int    // end packets sent
	gap     int
}

type keyPress struct {
	event  byte
	frames int
}

// Press queues a digit (0-9, *, #, A-D) to sound for d, at least 40 ms and at most a
// minute. It returns false if there is no such digit or too many are waiting.
func (s *EventSender) Press(digit byte, d time.Duration) bool {
	event := strings.IndexByte(digits, digit)
	if event < 0 || len(s.queue) >= eventQueue {
		return false
	}
	d = max(40*time.Millisecond, min(d, time.Minute))
	s.queue = append(s.queue, keyPress{byte(event), int((d + FrameDuration - 1) / FrameDuration)})
	return true
}

// Busy says whether anything is being sent or waits: until it is done, Next wants every tick.
func (s *EventSender) Busy() bool { return len(s.queue) > 0 || s.gap > 0 }

// Next returns the packet of this tick, if there is one. now is the RTP timestamp that
// sound would have. While there is a packet, send no sound.
func (s *EventSender) Next(now uint32) (EventPacket, bool) {
	if s.gap > 0 {
		s.gap--
		return EventPacket{}, false
	}
	if len(s.queue) == 0 {
		return EventPacket{}, false
	}
	key := s.queue[0]
	p := EventPacket{}
	if !s.started {
		s.started, s.stamp, p.Marker = true, now, true
	}
	if s.length < key.frames {
		frameTicks := eventClock(s.Clock) / 50
		longestPart := 0xffff / frameTicks * frameTicks // of a long event, RFC 4733 §2.5.1.3
		if s.part == longestPart {
			s.stamp, s.part = s.stamp+uint32(longestPart), 0
		}
		s.length++
		s.part += frameTicks
	}
	p.Timestamp = s.stamp
	p.Payload = [4]byte{key.event, 10} // -10 dBm0
	binary.BigEndian.PutUint16(p.Payload[2:], uint16(s.part))
	if s.length == key.frames {
		p.Payload[1] |= 0x80
		if s.ends++; s.ends == 3 {
			n := copy(s.queue, s.queue[1:])
			*s = EventSender{Clock: s.Clock, queue: s.queue[:n], gap: eventGap}
		}
	}
	return p, true
}

const (
	eventSilence = 200 * time.Millisecond // without a packet: its end was lost
	eventLongest = 70 * time.Second       // no key is held down for longer
	eventStale   = 5 * time.Second        // after this any timestamp may be new
	eventSpacing = 30 * time.Millisecond  // digits that begin closer together are one
)

// EventReceiver finds the digits in RFC 4733 packets. A digit is its RTP timestamp: it
// counts once, whether its first packet or the marker bit came or not, however often
// its end is repeated or overtaken. The zero value is ready.
type EventReceiver struct {
	Clock int // RTP timestamp units per second; zero is 8000

	known bool
	event byte
	stamp uint32 // where the event, or the last part of it, began
	part  uint16 // longest duration seen since stamp
	begun time.Time
	last  time.Time
	down  bool // no end yet
}

// Push takes the payload of an event packet that arrived now and returns the digit that
// begins with it, or zero.
func (r *EventReceiver) Push(payload []byte, timestamp uint32, now time.Time) byte {
	if len(payload) < 4 || payload[0] >= byte(len(digits)) {
		return 0
	}
	r.Tick(now)
	event, end := payload[0], payload[1]&0x80 != 0
	duration := binary.BigEndian.Uint16(payload[2:])
	ahead, clock := int32(timestamp-r.stamp), eventClock(r.Clock)
	if r.known && now.Sub(r.last) < eventStale {
		switch {
		case ahead == 0: // more of the same, or a repeated end
			r.part, r.last = max(r.part, duration), now
			r.down = r.down && !end
			return 0
		case ahead < 0: // overtaken
			return 0
		case r.down && event == r.event && r.part >= 0x8000 && ahead <= 0x10000 && ahead >= int32(r.part)-int32(clock):
			// The next part of a long event, RFC 4733 §2.5.1.3.
			r.stamp, r.part, r.last, r.down = timestamp, duration, now, !end
			return 0
		case ahead < int32(clock)*int32(eventSpacing/time.Millisecond)/1000: // nobody types so fast
			return 0
		}
	}
	*r = EventReceiver{Clock: r.Clock, known: true, event: event, stamp: timestamp, part: duration, begun: now, last: now, down: !end}
	return digits[event]
}

// Tick ends an event whose end was lost or never came.
func (r *EventReceiver) Tick(now time.Time) {
	if r.down && (now.Sub(r.last) > eventSilence || now.Sub(r.begun) > eventLongest) {
		r.down = false
	}
}

// Down returns the digit that is held down, or zero.
func (r *EventReceiver) Down() byte {
	if !r.down {
		return 0
	}
	return digits[r.event]
}

package audio

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"
)

// keyed returns what a sender makes of presses, one packet a tick, with the tick's number.
type timed struct {
	EventPacket
	at time.Duration
}

func keyed(t *testing.T, s *EventSender) (out []timed) {
	t.Helper()
	for tick := 0; s.Busy(); tick++ {
		if p, ok := s.Next(uint32(tick*160) + 0xffffff00); ok {
			out = append(out, timed{p, time.Duration(tick) * FrameDuration})
		}
		if tick > 10000 {
			t.Fatal("the sender does not end")
		}
	}
	return out
}

func TestEventSender(t *testing.T) {
	var s EventSender
	if s.Press('x', time.Second) || !s.Press('5', 100*time.Millisecond) || !s.Press('#', 40*time.Millisecond) {
		t.Fatal("5 and # are digits, x is not")
	}
	packets := keyed(t, &s)
	type line struct {
		event    byte
		duration uint16
		end      bool
		marker   bool
	}
	var got []line
	for _, p := range packets {
		got = append(got, line{p.Payload[0], binary.BigEndian.Uint16(p.Payload[2:]), p.Payload[1]&0x80 != 0, p.Marker})
	}
	want := []line{
		{5, 160, false, true}, {5, 320, false, false}, {5, 480, false, false}, {5, 640, false, false},
		{5, 800, true, false}, {5, 800, true, false}, {5, 800, true, false},
		{11, 160, false, true}, {11, 320, true, false}, {11, 320, true, false}, {11, 320, true, false},
	}
	if !slices.Equal(got, want) {
		t.Errorf("sent\n%v, want\n%v", got, want)
	}
	if packets[6].Timestamp != packets[0].Timestamp || packets[7].Timestamp == packets[0].Timestamp {
		t.Error("a digit must have one timestamp, its own")
	}
	if pause := packets[7].at - packets[6].at; pause < 50*time.Millisecond {
		t.Errorf("%v between digits", pause)
	}
}

func TestLongEventsComeInParts(t *testing.T) {
	var s EventSender
	s.Press('1', 20*time.Second)
	packets := keyed(t, &s)
	var stamps []uint32
	var r EventReceiver
	var heard []byte
	for i, p := range packets {
		if i == 0 || p.Timestamp != packets[i-1].Timestamp {
			stamps = append(stamps, p.Timestamp)
		}
		if p.Marker != (i == 0) || p.Payload[1]&0x80 != 0 && i < len(packets)-3 {
			t.Fatalf("packet %d of a long event: marker %v, flags %#x", i, p.Marker, p.Payload[1])
		}
		if d := r.Push(p.Payload[:], p.Timestamp, epoch.Add(p.at)); d != 0 {
			heard = append(heard, d)
		}
	}
	if len(stamps) != 3 || string(heard) != "1" { // 20 s are 160000 units
		t.Errorf("%d parts, heard %q", len(stamps), heard)
	}
}

func TestOneDigitEach(t *testing.T) {
	press := func(keys string) []timed {
		var s EventSender
		for _, k := range []byte(keys) {
			s.Press(k, 100*time.Millisecond)
		}
		return keyed(t, &s)
	}
	for _, c := range []struct {
		name string
		keys string
		bend func([]timed) []timed
	}{
		{"as sent", "159#", func(p []timed) []timed { return p }},
		{"the same digit twice", "1155", func(p []timed) []timed { return p }},
		{"all packets twice", "12", func(p []timed) (out []timed) {
			for _, x := range p {
				out = append(out, x, x)
			}
			return out
		}},
		{"first packets lost", "12", func(p []timed) []timed {
			return slices.DeleteFunc(p, func(x timed) bool { return x.Marker })
		}},
		{"all ends lost", "1122", func(p []timed) []timed {
			return slices.DeleteFunc(p, func(x timed) bool { return x.Payload[1]&0x80 != 0 })
		}},
		{"only ends came", "1122", func(p []timed) []timed {
			return slices.DeleteFunc(p, func(x timed) bool { return x.Payload[1]&0x80 == 0 })
		}},
		{"an end overtook the digit", "12", func(p []timed) []timed { p[2], p[6] = p[6], p[2]; return p }},
		{"an old end after the next digit began", "12", func(p []timed) []timed { p[6], p[8] = p[8], p[6]; return p }},
	} {
		var r EventReceiver
		var heard []byte
		last := time.Duration(0)
		for _, p := range c.bend(press(c.keys)) {
			last = max(last, p.at)
			if d := r.Push(p.Payload[:], p.Timestamp, epoch.Add(last)); d != 0 {
				heard = append(heard, d)
			}
		}
		if string(heard) != c.keys {
			t.Errorf("%s: heard %q, want %q", c.name, heard, c.keys)
		}
		if r.Tick(epoch.Add(last + time.Second)); r.Down() != 0 {
			t.Errorf("%s: %q is held down for ever", c.name, r.Down())
		}
	}
}

func TestHostileEvents(t *testing.T) {
	var r EventReceiver
	count := 0
	for i := range 100000 { // an endless event, its duration wraps
		d := r.Push([]byte{3, 0, byte(i * 160 >> 8), byte(i * 160)}, 77, epoch.Add(time.Duration(i)*FrameDuration))
		if d != 0 {
			count++
		}
	}
	if count != 1 || r.Down() != 0 {
		t.Errorf("an endless event is %d digits, down %q", count, r.Down())
	}
	r, count = EventReceiver{}, 0
	for i := range 1000 { // a thousand digits a second
		if r.Push([]byte{byte(i % 10), 0x80, 0, 8}, uint32(i*8), epoch.Add(time.Duration(i)*time.Millisecond)) != 0 {
			count++
		}
	}
	if count > 34 {
		t.Errorf("%d digits in a second are believed", count)
	}
	for _, bad := range [][]byte{nil, {1}, {1, 0, 0}, {16, 0, 0, 160}, {255, 0, 0, 160}} {
		if d := new(EventReceiver).Push(bad, 1, epoch); d != 0 {
			t.Errorf("%v is digit %q", bad, d)
		}
	}
}

func FuzzEventReceiver(f *testing.F) {
	f.Add([]byte{1, 10, 0, 160, 0, 0, 0, 1, 5, 1, 0x8a, 3, 32, 0, 0, 0, 1, 5})
	f.Add([]byte{11, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 200})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var r EventReceiver
		now, heard, begun := epoch, 0, 0
		for ; len(raw) >= 9; raw = raw[9:] {
			now = now.Add(time.Duration(raw[8]) * time.Millisecond)
			begun++
			if d := r.Push(raw[:4], binary.BigEndian.Uint32(raw[4:]), now); d != 0 {
				heard++
				if !slices.Contains([]byte(digits), d) {
					t.Fatalf("digit %q", d)
				}
			}
		}
		if heard > begun {
			t.Fatalf("%d digits in %d packets", heard, begun)
		}
		if r.Tick(now.Add(time.Hour)); r.Down() != 0 {
			t.Fatal("a digit is held down for an hour")
		}
	})
}

func TestEventsBesideOpusCountIn48kHz(t *testing.T) {
	s, r := EventSender{Clock: 48000}, EventReceiver{Clock: 48000}
	s.Press('7', 5*time.Second) // four parts
	s.Press('7', 100*time.Millisecond)
	var heard []byte
	stamps := map[uint32]bool{}
	for tick := 0; s.Busy(); tick++ {
		p, ok := s.Next(uint32(tick * 960))
		if !ok {
			continue
		}
		stamps[p.Timestamp] = true
		if d := r.Push(p.Payload[:], p.Timestamp, epoch.Add(time.Duration(tick)*FrameDuration)); d != 0 {
			heard = append(heard, d)
		}
	}
	if len(stamps) != 5 || string(heard) != "77" {
		t.Errorf("%d timestamps, heard %q", len(stamps), heard)
	}
}

package phones

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// Tones is an RTP sender of our own, for what no phone does: it says a tone in
// PCMU to wherever it is told to, and counts what comes back.
type Tones struct {
	conn *net.UDPConn

	mu       sync.Mutex
	to       netip.AddrPort
	hz       float64
	keys     string // still to be pressed, in the sound itself
	pressed  uint32 // samples of the first of keys
	ssrc     uint32
	received int
	from     map[netip.AddrPort]int
	heard    []float64 // PCMU, 8 kHz
}

// StartTones opens a port at ip. Nothing is sent before Send.
func StartTones(t testing.TB, ip string, hz float64) *Tones {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(FreePort(t, ip)))))
	if err != nil {
		t.Fatal(err)
	}
	x := &Tones{conn: conn, hz: hz, ssrc: rand.Uint32(), from: map[netip.AddrPort]int{}}
	var wait sync.WaitGroup
	stop := make(chan struct{})
	wait.Go(x.receive)
	wait.Go(func() { x.send(stop) })
	t.Cleanup(func() {
		close(stop)
		conn.Close()
		wait.Wait()
	})
	return x
}

// Addr is its own address.
func (x *Tones) Addr() netip.AddrPort { return x.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// Send has it speak to an address from now on; the zero address is silence.
func (x *Tones) Send(to netip.AddrPort) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.to = to
}

// Received is how many packets came so far.
func (x *Tones) Received() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.received
}

// Listen records what comes in, for d.
func (x *Tones) Listen(d time.Duration) (Sound, error) {
	x.mu.Lock()
	from := len(x.heard)
	x.mu.Unlock()
	end := time.Now().Add(d + 10*time.Second)
	want := int(d * 8000 / time.Second)
	for {
		x.mu.Lock()
		s := Sound{8000, append([]float64(nil), x.heard[from:]...)}
		x.mu.Unlock()
		if len(s.Samples) >= want {
			return s, nil
		}
		if time.Now().After(end) {
			return s, fmt.Errorf("only %s of sound came", s.Length())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (x *Tones) receive() {
	b := make([]byte, 2048)
	for {
		n, from, err := x.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		x.mu.Lock()
		x.received++
		x.from[from]++
		if n > 12 && b[1]&0x7f == 0 {
			for _, v := range b[12:n] {
				x.heard = append(x.heard, fromULaw(v))
			}
		}
		x.mu.Unlock()
	}
}

func (x *Tones) send(stop chan struct{}) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	seq, at := uint16(rand.Uint32()), uint32(0)
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		x.mu.Lock()
		to, ssrc := x.to, x.ssrc
		packet := tonePacket(ssrc, seq, at, x.hz)
		if x.keys != "" {
			x.press(packet[12:])
		}
		x.mu.Unlock()
		if to.IsValid() {
			_, _ = x.conn.WriteToUDPAddrPort(packet, to)
		}
		seq++
		at += 160
	}
}

// Press says keys as a telephone without anything better does: as pairs of tones
// (ITU-T Q.23), 100 ms each, with pauses as long.
func (x *Tones) Press(keys string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.keys += keys
}

// press overwrites one packet's payload; mu is held.
func (x *Tones) press(payload []byte) {
	const keypad = "123A456B789C*0#D"
	rows, columns := []float64{697, 770, 852, 941}, []float64{1209, 1336, 1477, 1633}
	key := strings.IndexByte(keypad, x.keys[0])
	for i := range payload {
		v := 0.0
		if x.pressed < 800 {
			phase := 2 * math.Pi * float64(x.pressed) / 8000
			v = 0.25 * (math.Sin(phase*rows[key/4]) + math.Sin(phase*columns[key%4]))
		}
		payload[i] = toULaw(v)
		x.pressed++
	}
	if x.pressed >= 1600 {
		x.keys, x.pressed = x.keys[1:], 0
	}
}

// tonePacket is 20 ms of a tone in PCMU.
func tonePacket(ssrc uint32, seq uint16, at uint32, hz float64) []byte {
	b := []byte{0x80, 0}
	b = binary.BigEndian.AppendUint16(b, seq)
	b = binary.BigEndian.AppendUint32(b, at)
	b = binary.BigEndian.AppendUint32(b, ssrc)
	for i := range uint32(160) {
		b = append(b, toULaw(0.5*math.Sin(2*math.Pi*hz*float64(at+i)/8000)))
	}
	return b
}

// toULaw and fromULaw are ITU-T G.711, for values from -1 to 1.
func toULaw(v float64) byte {
	sign := byte(0)
	n := int(v * 32767)
	if n < 0 {
		sign, n = 0x80, -n
	}
	n = min(n, 32635) + 132
	exponent := max(bits.Len(uint(n))-8, 0)
	return ^(sign | byte(exponent)<<4 | byte(n>>(exponent+3))&0x0f)
}

func fromULaw(b byte) float64 {
	b = ^b
	n := (int(b&0x0f)<<3+132)<<(b>>4&7) - 132
	if b&0x80 != 0 {
		n = -n
	}
	return float64(n) / 32768
}

var (
	connectionLine = regexp.MustCompile(`(?m)^c=IN IP[46] (\S+)`)
	audioLine      = regexp.MustCompile(`(?m)^m=audio (\d+) `)
)

// mediaAddress is where a message's SDP wants sound.
func mediaAddress(message string) (netip.AddrPort, error) {
	message = strings.ReplaceAll(message, "\r", "")
	c, m := connectionLine.FindStringSubmatch(message), audioLine.FindStringSubmatch(message)
	if c == nil || m == nil {
		return netip.AddrPort{}, fmt.Errorf("no media address in %q", message)
	}
	return netip.ParseAddrPort(net.JoinHostPort(c[1], m[1]))
}

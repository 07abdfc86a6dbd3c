package bench

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkhall/trunkhall/audio"
)

const (
	frame       = 160 // samples of 20 ms
	clickEvery  = 500 * time.Millisecond
	clickLength = 80 // samples
	clickLoud   = 20000
	clickHeard  = 8000 // a sample louder than this is part of one
)

// telephones are the phones of one scenario. Each sends and receives on its own socket.
type telephones struct {
	sc       scenario
	counting atomic.Bool
	sent     atomic.Uint64
	received atomic.Uint64

	mu     sync.Mutex  // guards the following
	clicks []time.Time // by phone: when the first sample of its last click was sent
	delays []float64
}

// Load is the telephones of one scenario, until in is at its end. It tells their ports
// and is told the server's. The name "calls" is PlaceCalls.
func Load(name string, in io.Reader, out io.Writer) error {
	if name == "calls" {
		return PlaceCalls(in, out)
	}
	sc, err := scenarioNamed(name)
	if err != nil {
		return err
	}
	t := &telephones{sc: sc, clicks: make([]time.Time, sc.phones)}
	var sockets []*net.UDPConn
	var mine, theirs []uint16
	for range sc.phones {
		c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(home, 0)))
		if err != nil {
			return err
		}
		sockets, mine = append(sockets, c), append(mine, c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	}
	if err := json.NewEncoder(out).Encode(mine); err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	if !lines.Scan() {
		return errors.New("no server")
	}
	if err := json.Unmarshal(lines.Bytes(), &theirs); err != nil || len(theirs) != len(mine) {
		return fmt.Errorf("the server has %d ports for %d phones: %w", len(theirs), len(mine), err)
	}
	voice := ulaw(speech(8000, 16000))
	done := make(chan struct{})
	var running sync.WaitGroup
	for i, c := range sockets {
		running.Go(func() { t.listen(i, c) })
		running.Go(func() { t.speak(i, c, netip.AddrPortFrom(home, theirs[i]), voice, done) })
	}
	for lines.Scan() {
		t.counting.Store(lines.Text() == "count")
		if lines.Text() != "stop" {
			continue
		}
		t.mu.Lock()
		err := json.NewEncoder(out).Encode(counts{Sent: t.sent.Load(), Received: t.received.Load(), Delays: t.delays})
		t.mu.Unlock()
		if err != nil {
			return err
		}
	}
	close(done)
	for _, c := range sockets {
		c.Close()
	}
	running.Wait()
	return nil
}

func ulaw(pcm []int16) []byte {
	b := make([]byte, len(pcm))
	for i, x := range pcm {
		b[i] = audio.EncodeULaw(x)
	}
	return b
}

// speak sends a packet every 20 ms, at a phase of its own.
func (t *telephones) speak(i int, c *net.UDPConn, to netip.AddrPort, voice []byte, done chan struct{}) {
	time.Sleep(time.Duration(rand.Int64N(int64(20 * time.Millisecond))))
	b := make([]byte, 12+frame)
	b[0] = 0x80
	binary.BigEndian.PutUint32(b[8:], rand.Uint32())
	talks, at := i%t.sc.perRoom < t.sc.talkers, rand.IntN(len(voice)/frame)*frame
	next := time.Now().Add(time.Duration(rand.Int64N(int64(clickEvery))))
	from, left := 0, 0 // of a click
	tick := time.NewTicker(audio.FrameDuration)
	defer tick.Stop()
	begun := time.Now()
	for n := 0; ; {
		select {
		case <-tick.C:
		case <-done:
			return
		}
		// A busy machine misses ticks; a telephone does not.
		for ; time.Duration(n)*audio.FrameDuration <= time.Since(begun); n++ {
			pcm := b[12:]
			for k := range pcm {
				pcm[k] = 0xff
			}
			binary.BigEndian.PutUint16(b[2:], uint16(n))
			binary.BigEndian.PutUint32(b[4:], uint32(n*frame))
			switch {
			case talks && t.sc.clicks:
				// A hum keeps the phone among those who are heard, but is quiet enough
				// for the jitter buffer to correct itself in it.
				for k := range pcm {
					pcm[k] = audio.EncodeULaw(int16(150 * math.Sin(2*math.Pi*200*float64(n*frame+k)/8000)))
				}
				if left == 0 && !time.Now().Before(next) {
					from, left = rand.IntN(frame), clickLength
					next = next.Add(clickEvery + time.Duration(rand.Int64N(int64(clickEvery/5))))
					t.mu.Lock()
					t.clicks[i] = time.Now().Add(time.Duration(from) * time.Second / 8000)
					t.mu.Unlock()
				}
				for ; left > 0 && from < frame; from, left = from+1, left-1 {
					pcm[from] = audio.EncodeULaw(int16(clickLoud * (1 - 2*(from/4&1))))
				}
				from = 0
			case talks:
				copy(pcm, voice[at:])
				at = (at + frame) % len(voice)
			}
			if _, err := c.WriteToUDPAddrPort(b, to); err == nil && t.counting.Load() {
				t.sent.Add(1)
			}
		}
	}
}

// listen counts what comes, and finds clicks in it.
func (t *telephones) listen(i int, c *net.UDPConn) {
	b, pcm := make([]byte, 2000), make([]int16, 1000)
	quiet := 0
	for {
		n, _, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		now := time.Now()
		if !t.counting.Load() {
			continue
		}
		if n < 12 || b[1]&0x7f != 0 {
			continue
		}
		t.received.Add(1)
		if !t.sc.clicks || i%2 == 0 {
			continue
		}
		samples, err := audio.ULaw{}.Decode(b[12:n], pcm)
		if err != nil {
			continue
		}
		for k, x := range pcm[:samples] {
			if x < clickHeard && x > -clickHeard {
				quiet++
				continue
			}
			if quiet > 1600 {
				t.mu.Lock()
				if sent := t.clicks[i-1]; !sent.IsZero() {
					if d := now.Add(time.Duration(k) * time.Second / 8000).Sub(sent); d < clickEvery {
						t.delays = append(t.delays, float64(d.Microseconds())/1000)
					}
				}
				t.mu.Unlock()
			}
			quiet = 0
		}
	}
}

package sfu

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// mediaPacket makes something that looks like RTP to the socket: its number,
// then filling.
func mediaPacket(n uint32, size int) []byte {
	b := bytes.Repeat([]byte{byte(n)}, size)
	b[0], b[1] = 0x80, 96
	binary.BigEndian.PutUint32(b[4:], n)
	return b
}

func listenLoopback(t testing.TB) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadBuffer(4 << 20)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func addrOf(c *net.UDPConn) netip.AddrPort {
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// receive reads n packets and returns them.
func receive(t *testing.T, c *net.UDPConn, n int) [][]byte {
	t.Helper()
	var got [][]byte
	buf := make([]byte, 65536)
	for len(got) < n {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		k, err := c.Read(buf)
		if err != nil {
			t.Fatalf("after %d of %d packets: %v", len(got), n, err)
		}
		got = append(got, bytes.Clone(buf[:k]))
	}
	return got
}

// TestEgressKeepsPackets sends bursts of every pattern of sizes to two clients:
// each gets exactly its packets, whole and in order, in far fewer system calls.
func TestEgressKeepsPackets(t *testing.T) {
	for _, c := range []struct {
		name  string
		sizes []int
	}{
		{"one", []int{1150}},
		{"a frame", []int{1150, 1150, 1150, 1150, 1150, 1150, 1150, 401}},
		{"growing", []int{200, 400, 600, 800}},
		{"shrinking", []int{800, 600, 400, 200}},
		{"mixed", []int{100, 1150, 1150, 90, 1150, 1150, 1200, 1200, 70, 70, 71}},
		{"more than one run holds", append(make([]int, 0), repeat(1150, 100)...)},
		{"sound", []int{90, 91, 92, 90, 90}},
	} {
		for _, segmented := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, segmented %v", c.name, segmented), func(t *testing.T) {
				var sends atomic.Uint64
				s := newMediaSocket(listenLoopback(t), 5*time.Millisecond, &sends)
				defer s.Close()
				if !segmented {
					s.out.segments.Store(false)
				}
				a, b := listenLoopback(t), listenLoopback(t)
				for i, size := range c.sizes {
					for _, to := range []*net.UDPConn{a, b} {
						if _, err := s.WriteToAddrPort(mediaPacket(uint32(i), size), addrOf(to)); err != nil {
							t.Fatal(err)
						}
					}
				}
				for _, to := range []*net.UDPConn{a, b} {
					for i, got := range receive(t, to, len(c.sizes)) {
						if want := mediaPacket(uint32(i), c.sizes[i]); !bytes.Equal(got, want) {
							t.Fatalf("packet %d: %d bytes, number %d; sent %d bytes", i, len(got), binary.BigEndian.Uint32(got[4:]), len(want))
						}
					}
				}
				// A burst may be cut in two when the sender is slow, not more.
				if n := sends.Load(); n > uint64(2+2*len(c.sizes)/batchSize+len(c.sizes)/8) {
					t.Errorf("%d system calls for %d packets", n, 2*len(c.sizes))
				}
				if d := s.out.dropped.Load(); d != 0 {
					t.Errorf("%d packets dropped", d)
				}
			})
		}
	}
}

func repeat(v, n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = v
	}
	return s
}

// TestEgressPassesOthers proves that STUN and DTLS do not wait.
func TestEgressPassesOthers(t *testing.T) {
	var sends atomic.Uint64
	s := newMediaSocket(listenLoopback(t), 20*time.Millisecond, &sends)
	defer s.Close()
	to := listenLoopback(t)
	for _, first := range []byte{0, 1, 22, 63, 64, 127, 192} {
		if _, err := s.WriteTo([]byte{first, 1, 2, 3}, to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	if n := sends.Load(); n != 7 {
		t.Errorf("%d of 7 packets were sent when WriteTo returned", n)
	}
	receive(t, to, 7)
}

// A brokenBatch refuses what it is told to refuse and counts the rest.
type brokenBatch struct {
	batchWriter
	refuse func(buffers int) error
}

func (b brokenBatch) WriteBatch(ms []batchMessage, flags int) (int, error) {
	for i, m := range ms {
		if err := b.refuse(len(m.Buffers)); err != nil {
			if i > 0 {
				return b.batchWriter.WriteBatch(ms[:i], flags)
			}
			return -1, err
		}
	}
	return b.batchWriter.WriteBatch(ms, flags)
}

// TestEgressWithoutSegments: where the kernel refuses segmented sends, nothing
// is lost, and it is not asked again.
func TestEgressWithoutSegments(t *testing.T) {
	var sends atomic.Uint64
	conn := listenLoopback(t)
	e := newEgress(conn, 0, &sends)
	asked := 0
	e.batch = brokenBatch{e.batch, func(buffers int) error {
		if buffers > 1 {
			asked++
			return syscall.EIO
		}
		return nil
	}}
	go e.run()
	defer e.close()
	to := listenLoopback(t)
	for round := range 3 {
		for i := range 8 {
			e.add(mediaPacket(uint32(round*8+i), 1000), addrOf(to))
		}
		for i, got := range receive(t, to, 8) {
			if n := binary.BigEndian.Uint32(got[4:]); n != uint32(round*8+i) {
				t.Errorf("packet %d came in place of %d", n, round*8+i)
			}
		}
	}
	if e.segments.Load() || asked == 0 || asked > 2 {
		t.Errorf("segments still on: %v; asked %d times", e.segments.Load(), asked)
	}
}

// TestEgressSkipsDeadClient: one client's error does not cost the others.
func TestEgressSkipsDeadClient(t *testing.T) {
	var sends atomic.Uint64
	s := newMediaSocket(listenLoopback(t), 0, &sends)
	defer s.Close()
	to := listenLoopback(t)
	nowhere := netip.MustParseAddrPort("127.0.0.1:0") // EINVAL
	for i := range 4 {
		_, _ = s.WriteToAddrPort(mediaPacket(uint32(i), 500), nowhere)
		_, _ = s.WriteToAddrPort(mediaPacket(uint32(i), 500), addrOf(to))
	}
	receive(t, to, 4)
	deadline := time.Now().Add(5 * time.Second)
	for s.out.dropped.Load() < 4 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if d := s.out.dropped.Load(); d != 4 {
		t.Errorf("%d packets counted as dropped, 4 had nowhere to go", d)
	}
	if !s.out.segments.Load() {
		t.Error("a dead client switched segmented sends off for all")
	}
}

// TestEgressIsBounded: when nothing is sent any more, memory does not grow.
func TestEgressIsBounded(t *testing.T) {
	var sends atomic.Uint64
	e := newEgress(listenLoopback(t), 0, &sends) // nobody runs it
	to := netip.MustParseAddrPort("127.0.0.1:9")
	p := mediaPacket(1, 1200)
	for range 2 * maxOutbox / len(p) {
		e.add(p, to)
	}
	if len(e.box.slab) > maxOutbox || e.dropped.Load() == 0 {
		t.Errorf("%d bytes wait, %d packets dropped", len(e.box.slab), e.dropped.Load())
	}
}

// TestEgressAllocations: the packet path allocates nothing.
func TestEgressAllocations(t *testing.T) {
	var sends atomic.Uint64
	e := newEgress(listenLoopback(t), 0, &sends)
	sink := addrOf(listenLoopback(t))
	p := mediaPacket(1, 1150)
	spare := &outbox{}
	cycle := func() {
		for range 64 {
			e.add(p, sink)
		}
		full := e.box
		spare.reset(full.epoch + 1)
		e.box = spare
		e.send(full)
		spare = full
	}
	cycle()
	cycle()
	if n := testing.AllocsPerRun(50, cycle); n > 2 { // for 64 packets: x/net's pool, when it is collected
		t.Errorf("%v allocations for 64 packets", n)
	}
}

// BenchmarkEgress compares sending each packet by itself with sending the
// packets of a frame to 40 clients together.
func BenchmarkEgress(b *testing.B) {
	const clients, frame = 40, 8
	var to []netip.AddrPort
	for range clients {
		to = append(to, addrOf(listenLoopback(b))) // nobody reads: the kernel drops at the socket
	}
	p := mediaPacket(1, 1150)
	b.Run("alone", func(b *testing.B) {
		c := listenLoopback(b)
		for b.Loop() {
			for range frame {
				for _, a := range to {
					_, _ = c.WriteToUDPAddrPort(p, a)
				}
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*clients*frame), "ns/packet")
	})
	b.Run("together", func(b *testing.B) {
		var sends atomic.Uint64
		e := newEgress(listenLoopback(b), 0, &sends)
		spare := &outbox{}
		for b.Loop() {
			for range frame {
				for _, a := range to {
					e.add(p, a)
				}
			}
			full := e.box
			spare.reset(full.epoch + 1)
			e.box = spare
			e.send(full)
			spare = full
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*clients*frame), "ns/packet")
		b.ReportMetric(float64(sends.Load())/float64(b.N*clients*frame), "sends/packet")
	})
}

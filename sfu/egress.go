package sfu

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	burstHold   = time.Millisecond // how long pictures and reports wait for their neighbours
	soundBytes  = 320              // what is not longer is taken for sound
	maxSegments = 16               // packets in one segmented send
	maxOutbox   = 8 << 20          // bytes that may wait for the kernel; more is dropped
	destKept    = time.Minute      // an address that nothing is sent to is forgotten
	batchSize   = 128              // messages in one system call
)

// An egress gathers the media packets that go out on one socket and gives them
// to the kernel together: one sendmmsg for all clients, and in it one message
// for a client's packets of the same length, which the kernel cuts up (UDP
// generic segmentation offload, Linux 4.18). What is paid for each packet is
// then little more than its copy and its encryption.
//
// Packets to one client stay in order. Sound waits at most soundHold, anything
// else burstHold. The packet path never waits: if the kernel takes nothing for
// so long that maxOutbox fills up, packets are dropped and counted.
type egress struct {
	conn      *net.UDPConn
	batch     batchWriter
	soundHold time.Duration
	sends     *atomic.Uint64
	dropped   atomic.Uint64
	segments  atomic.Bool // the kernel takes segmented sends, as far as is known

	wake  chan struct{} // the outbox is no longer empty
	hurry chan struct{} // and no longer holds only sound
	stop  chan struct{}
	done  chan struct{}

	mu     sync.Mutex // guards the following
	box    *outbox    // being filled
	urgent bool       // hurry was told for box
	dests  map[netip.AddrPort]*destination
	swept  time.Time
}

// A batchMessage is one message of a sendmmsg; ipv6 has the same type.
type batchMessage = ipv4.Message

type batchWriter interface {
	WriteBatch([]batchMessage, int) (int, error)
}

// A destination is a client's address, and its last run in the present outbox.
type destination struct {
	addr  net.UDPAddr
	epoch uint64 // of the outbox that run is in
	run   int
	used  time.Time
}

// An outbox is what is sent together.
type outbox struct {
	epoch   uint64
	slab    []byte
	packets []queuedPacket
	runs    []sendRun

	// Scratch of send.
	msgs []batchMessage
	bufs [][]byte
}

type queuedPacket struct {
	at, size int // in the slab
	next     int // index of the run's next packet, -1 at its end
}

// A sendRun is packets to one client that may go as one message: all of one
// size, only the last may be shorter.
type sendRun struct {
	to          *destination
	first, last int
	size        int
	count       int
	total       int
	closed      bool
	control     [24]byte // its UDP_SEGMENT control message
}

func newEgress(conn *net.UDPConn, soundHold time.Duration, sends *atomic.Uint64) *egress {
	e := &egress{
		conn: conn, soundHold: soundHold, sends: sends,
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1),
		stop: make(chan struct{}), done: make(chan struct{}),
		box: &outbox{epoch: 1}, dests: make(map[netip.AddrPort]*destination),
	}
	if conn.LocalAddr().(*net.UDPAddr).IP.To4() != nil {
		e.batch = ipv4.NewPacketConn(conn)
	} else {
		e.batch = ipv6.NewPacketConn(conn)
	}
	e.segments.Store(runtime.GOOS == "linux" && !rareArch())
	return e
}

// rareArch reports a machine whose control messages are laid out differently.
func rareArch() bool { return unsafe.Sizeof(uintptr(0)) != 8 }

// add queues one packet. It copies b.
func (e *egress) add(b []byte, to netip.AddrPort) {
	e.mu.Lock()
	box := e.box
	if len(box.slab)+len(b) > maxOutbox {
		e.mu.Unlock()
		e.dropped.Add(1)
		return
	}
	d := e.dests[to]
	if d == nil {
		d = &destination{addr: *net.UDPAddrFromAddrPort(to)}
		e.dests[to] = d
	}
	box.add(b, d)
	first := len(box.packets) == 1
	rush := !e.urgent && !isSound(b)
	if rush {
		e.urgent = true
	}
	e.mu.Unlock()
	if first {
		signal(e.wake)
	}
	if rush {
		signal(e.hurry)
	}
}

// isSound reports whether a packet may wait for longer: short, and not RTCP.
func isSound(b []byte) bool {
	return len(b) <= soundBytes && (b[1] < 192 || b[1] > 223) // RFC 5761 section 4
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (o *outbox) add(b []byte, d *destination) {
	at := len(o.slab)
	o.slab = append(o.slab, b...)
	i := len(o.packets)
	o.packets = append(o.packets, queuedPacket{at: at, size: len(b), next: -1})
	if d.epoch == o.epoch {
		r := &o.runs[d.run]
		if !r.closed && len(b) <= r.size {
			o.packets[r.last].next = i
			r.last = i
			r.count++
			r.total += len(b)
			r.closed = len(b) < r.size || r.count == maxSegments || r.total+r.size > 65000
			return
		}
	}
	d.epoch, d.run = o.epoch, len(o.runs)
	o.runs = append(o.runs, sendRun{to: d, first: i, last: i, size: len(b), count: 1, total: len(b)})
}

// run sends until close is called.
func (e *egress) run() {
	defer close(e.done)
	spare := &outbox{}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	wait := func(d time.Duration, early <-chan struct{}) (hurried bool) {
		if d <= 0 {
			return false
		}
		timer.Reset(d)
		select {
		case <-timer.C:
		case <-early:
			return true
		case <-e.stop:
		}
		return false
	}
	for {
		select {
		case <-e.wake:
		case <-e.stop:
			return
		}
		// Sound alone may wait; with anything else it goes a burst later.
		if e.soundHold <= burstHold || wait(e.soundHold-burstHold, e.hurry) || e.hasUrgent() {
			wait(burstHold, nil)
		}
		e.mu.Lock()
		full := e.box
		spare.reset(full.epoch + 1)
		e.box, e.urgent = spare, false
		now := time.Now()
		for i := range full.runs {
			full.runs[i].to.used = now
		}
		e.sweep(now)
		e.mu.Unlock()
		select { // it was for full
		case <-e.hurry:
			if e.hasUrgent() { // or for what came since
				signal(e.hurry)
			}
		default:
		}
		e.send(full)
		spare = full
	}
}

func (e *egress) hasUrgent() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.urgent
}

// sweep forgets addresses that are not in use any more. It needs mu.
func (e *egress) sweep(now time.Time) {
	if now.Sub(e.swept) < destKept {
		return
	}
	e.swept = now
	for a, d := range e.dests {
		if now.Sub(d.used) >= destKept {
			delete(e.dests, a)
		}
	}
}

func (o *outbox) reset(epoch uint64) {
	o.epoch = epoch
	o.slab, o.packets, o.runs = o.slab[:0], o.packets[:0], o.runs[:0]
}

// send gives an outbox to the kernel.
func (e *egress) send(o *outbox) {
	segmented := e.segments.Load()
	o.pack(segmented)
	for at := 0; at < len(o.msgs); {
		part := o.msgs[at:min(at+batchSize, len(o.msgs))]
		n, err := e.batch.WriteBatch(part, 0)
		e.sends.Add(1)
		at += max(n, 0)
		if err == nil && n > 0 {
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		// The first of what is left cannot be sent. If its packets can be sent
		// one by one, the kernel or the network card refuses segments, for good.
		if m := o.msgs[at]; len(m.Buffers) > 1 {
			if e.sendEach(m) {
				e.segments.Store(false)
			}
		} else {
			e.dropped.Add(uint64(len(m.Buffers)))
		}
		at++
	}
}

// sendEach sends a message's packets one by one and reports whether one of them
// could be sent.
func (e *egress) sendEach(m batchMessage) (sent bool) {
	for _, b := range m.Buffers {
		e.sends.Add(1)
		if _, err := e.conn.WriteTo(b, m.Addr); err != nil {
			e.dropped.Add(1)
			continue
		}
		sent = true
	}
	return sent
}

// pack makes one message of each run, or without segments of each packet.
func (o *outbox) pack(segmented bool) {
	o.msgs, o.bufs = o.msgs[:0], o.bufs[:0]
	if cap(o.bufs) < len(o.packets) {
		o.bufs = make([][]byte, 0, 2*len(o.packets))
	}
	for i := range o.runs {
		r := &o.runs[i]
		begin := len(o.bufs)
		for p := r.first; p >= 0; p = o.packets[p].next {
			q := o.packets[p]
			o.bufs = append(o.bufs, o.slab[q.at:q.at+q.size:q.at+q.size])
			if !segmented {
				k := len(o.bufs)
				o.msgs = append(o.msgs, batchMessage{Buffers: o.bufs[k-1 : k : k], Addr: &r.to.addr})
			}
		}
		if !segmented {
			continue
		}
		m := batchMessage{Buffers: o.bufs[begin:len(o.bufs):len(o.bufs)], Addr: &r.to.addr}
		if r.count > 1 {
			m.OOB = r.segmentSize()
		}
		o.msgs = append(o.msgs, m)
	}
}

// segmentSize is the control message that tells the kernel where to cut
// (udp(7), UDP_SEGMENT): cmsghdr of 16 bytes on 64-bit machines, then a uint16.
func (r *sendRun) segmentSize() []byte {
	const solUDP, udpSegment = 17, 103
	binary.NativeEndian.PutUint64(r.control[0:], 18)
	binary.NativeEndian.PutUint32(r.control[8:], solUDP)
	binary.NativeEndian.PutUint32(r.control[12:], udpSegment)
	binary.NativeEndian.PutUint16(r.control[16:], uint16(r.size))
	return r.control[:]
}

// close stops run and waits for it. What still waits is not sent.
func (e *egress) close() {
	close(e.stop)
	<-e.done
}

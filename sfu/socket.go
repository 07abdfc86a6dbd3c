package sfu

import (
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// A mediaSocket is the UDP socket that members share. Media packets go out
// together through its egress, everything else at once. It counts the system
// calls that send.
type mediaSocket struct {
	*net.UDPConn
	out   *egress
	sends *atomic.Uint64
}

// newMediaSocket takes over c. Close ends its egress too.
func newMediaSocket(c *net.UDPConn, soundHold time.Duration, sends *atomic.Uint64) mediaSocket {
	s := mediaSocket{UDPConn: c, out: newEgress(c, soundHold, sends), sends: sends}
	go s.out.run() // Close waits for it
	return s
}

// Close closes the socket.
func (s mediaSocket) Close() error {
	err := s.UDPConn.Close() // first, so that a send that waits ends
	s.out.close()
	return err
}

// isMedia tells RTP and RTCP from STUN, DTLS and TURN (RFC 7983).
func isMedia(b []byte) bool { return len(b) > 1 && b[0] >= 128 && b[0] <= 191 }

// WriteTo sends one packet.
func (s mediaSocket) WriteTo(b []byte, to net.Addr) (int, error) {
	if a, ok := to.(*net.UDPAddr); ok && isMedia(b) {
		return s.WriteToAddrPort(b, a.AddrPort())
	}
	s.sends.Add(1)
	return s.UDPConn.WriteTo(b, to)
}

// WriteToAddrPort sends one packet without allocating: ice.AddrPortReaderWriter.
func (s mediaSocket) WriteToAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if isMedia(b) {
		s.out.add(b, to)
		return len(b), nil
	}
	s.sends.Add(1)
	return s.UDPConn.WriteToUDPAddrPort(b, to)
}

// ReadFromAddrPort receives one packet without allocating: ice.AddrPortReaderWriter.
func (s mediaSocket) ReadFromAddrPort(b []byte) (int, netip.AddrPort, error) {
	return s.UDPConn.ReadFromUDPAddrPort(b)
}

// Stats are a server's counters since New.
type Stats struct {
	Rooms     int    // open now
	SendCalls uint64 // system calls that sent on the UDP port
}

// Stats reads the server's counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Rooms: len(s.rooms), SendCalls: s.net.sends.Load()}
}

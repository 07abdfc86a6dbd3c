package sfu

import (
	"net"
	"net/netip"
	"sync/atomic"
)

// A mediaSocket is the UDP socket that members share. It counts what is sent:
// each packet is one system call.
type mediaSocket struct {
	*net.UDPConn
	sends *atomic.Uint64
}

// WriteTo sends one packet.
func (s mediaSocket) WriteTo(b []byte, to net.Addr) (int, error) {
	s.sends.Add(1)
	return s.UDPConn.WriteTo(b, to)
}

// WriteToAddrPort sends one packet without allocating: ice.AddrPortReaderWriter.
func (s mediaSocket) WriteToAddrPort(b []byte, to netip.AddrPort) (int, error) {
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

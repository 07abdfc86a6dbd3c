package signaling

import (
	"strings"

	"github.com/livekit/protocol/livekit"

	"github.com/trunkhall/trunkhall/call"
)

// A participant may be made to use another path for its media than the best
// one: ICE over TCP, or a TURN relay. SDKs ask for it (switch_candidate_protocol)
// to test how an application fares in a network that blocks UDP. The choice
// lasts over its reconnects, as long as somebody keeps the room's hall.

// fallbackOf returns the path that an identity was made to use.
func (s *Server) fallbackOf(p *participant) livekit.CandidateProtocol {
	s.mu.Lock()
	defer s.mu.Unlock()
	return p.hall.fallbacks[p.identity]
}

// fallBack makes an identity use another path from its next connection on.
func (s *Server) fallBack(p *participant, to livekit.CandidateProtocol) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.hall.fallbacks == nil {
		p.hall.fallbacks = make(map[call.Identity]livekit.CandidateProtocol)
	}
	p.hall.fallbacks[p.identity] = to
}

// tcpOnly reports whether the participant must not use UDP. Without ICE-TCP
// there would be nothing left to use.
func (p *participant) tcpOnly() bool {
	return p.fallback == livekit.CandidateProtocol_TCP && p.s.deps.SFU.TCPPort() != 0
}

// clientConfiguration tells the client how to connect.
func (p *participant) clientConfiguration() *livekit.ClientConfiguration {
	c := &livekit.ClientConfiguration{}
	if p.fallback == livekit.CandidateProtocol_TLS && p.s.deps.ICEServers != nil {
		c.ForceRelay = livekit.ClientConfigSetting_ENABLED
	}
	return c
}

// isUDP reports whether a candidate (RFC 8839 section 5.1) is one for UDP: its
// third word names the transport.
func isUDP(candidate string) bool {
	_, rest, ok := strings.Cut(candidate, "candidate:")
	if !ok {
		return false
	}
	words := strings.Fields(rest)
	return len(words) > 2 && strings.EqualFold(words[2], "udp")
}

// withoutUDP takes the UDP candidates out of a description.
func withoutUDP(sdp string) string {
	var b strings.Builder
	for line := range strings.Lines(sdp) {
		if !strings.HasPrefix(line, "a=candidate:") || !isUDP(line) {
			b.WriteString(line)
		}
	}
	return b.String()
}

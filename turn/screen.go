package turn

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"

	"github.com/pion/stun/v4"
)

// maxFrame bounds a message of a client. Media and its signalling never need
// more; relays between IP networks could not carry it either.
const maxFrame = 1600

// screen looks at a packet of a client before pion/turn does, and answers what
// that would answer differently:
//
//   - a nonce works only for the client that it was given to (RFC 8656 section
//     5 leaves that to the server): whoever was not challenged gets 438;
//   - TCP relays (RFC 6062) get 442, address families without relays 440;
//   - peers that may not be reached get 403, in ChannelBind and Connect as well
//     as in CreatePermission and whatever family they are of;
//   - a client without a relay gets 437, and one that uses other credentials
//     than its relay was made with 441, instead of silence.
//
// client names the 5-tuple, see clientKey. It returns whether pion/turn shall see the packet, and else what to answer;
// nil is nothing. It may change the packet. Media passes with one comparison.
func (s *Server) screen(p []byte, client string, challenged bool) (pass bool, answer []byte) {
	if len(p) < 20 || p[0]>>6 != 0 { // channel data, or nothing we know
		return true, nil
	}
	method, isRequest := requestMethod(p)
	if !isRequest || method == stun.MethodBinding {
		return true, nil
	}
	m := &stun.Message{Raw: append([]byte(nil), p...)}
	if m.Decode() != nil || !m.Contains(stun.AttrMessageIntegrity) {
		return true, nil
	}
	if !challenged {
		spoilNonce(p)
		return true, nil
	}
	switch method {
	case stun.MethodAllocate:
		return s.screenAllocate(m)
	case stun.MethodRefresh:
		return s.screenOwner(m, client)
	case stun.MethodCreatePermission, stun.MethodChannelBind, stun.MethodConnect:
		if pass, answer = s.screenPeers(m); pass {
			return s.screenOwner(m, client)
		}
		return false, answer
	}
	return true, nil
}

// requestMethod returns the method of a STUN request (RFC 8489 section 5).
func requestMethod(p []byte) (stun.Method, bool) {
	var t stun.MessageType
	t.ReadValue(binary.BigEndian.Uint16(p))
	return t.Method, t.Class == stun.ClassRequest
}

// spoilNonce makes a nonce one that was never given out: pion/turn answers 438
// with a new one.
func spoilNonce(p []byte) {
	for at := 20; at+4 <= len(p); {
		kind, size := stun.AttrType(binary.BigEndian.Uint16(p[at:])), int(binary.BigEndian.Uint16(p[at+2:]))
		if kind == stun.AttrNonce {
			for i := at + 4; i < min(at+4+size, len(p)); i++ {
				p[i] = '!'
			}
			return
		}
		at += 4 + (size+3)&^3
	}
}

func (s *Server) screenAllocate(m *stun.Message) (pass bool, answer []byte) {
	code := stun.ErrorCode(0)
	if v, err := m.Get(stun.AttrRequestedTransport); err == nil && len(v) == 4 && v[0] == 6 {
		code = stun.CodeUnsupportedTransProto
	}
	if v, err := m.Get(stun.AttrRequestedAddressFamily); err == nil && len(v) == 4 && !s.hasFamily(v[0]) {
		code = stun.CodeAddrFamilyNotSupported
	}
	if code == 0 {
		return true, nil
	}
	return s.refuse(m, code, func() { s.stats.transportRefused.Add(1) })
}

// The address families of STUN (RFC 8489 section 14.1).
const (
	familyIPv4 = 1
	familyIPv6 = 2
)

// hasFamily reports whether there are relays of a family. What is no family is
// left to pion/turn.
func (s *Server) hasFamily(family byte) bool {
	for _, ip := range s.ips {
		if ip.Is4() && family == familyIPv4 || ip.Is6() && family == familyIPv6 {
			return true
		}
	}
	return family != familyIPv4 && family != familyIPv6
}

func (s *Server) screenPeers(m *stun.Message) (pass bool, answer []byte) {
	denied := false
	err := m.ForEach(stun.AttrXORPeerAddress, func(m *stun.Message) error {
		var peer stun.XORMappedAddress
		if err := peer.GetFromAs(m, stun.AttrXORPeerAddress); err != nil {
			return err
		}
		denied = denied || !s.peers.mayPermit(peerIP(peer.IP))
		return nil
	})
	if err != nil || !denied {
		return true, nil
	}
	return s.refuse(m, stun.CodeForbidden, func() { s.stats.permissionsDenied.Add(1) })
}

// screenOwner refuses a request about a relay that the client does not have
// (RFC 8656 section 7.3) or has made under another name (section 5).
func (s *Server) screenOwner(m *stun.Message, client string) (pass bool, answer []byte) {
	var username stun.Username
	if username.GetFrom(m) != nil {
		return true, nil
	}
	s.mu.Lock()
	owner := s.clients[client]
	s.mu.Unlock()
	switch owner {
	case username.String():
		return true, nil
	case "":
		return s.refuse(m, stun.CodeAllocMismatch, func() {})
	}
	return s.refuse(m, stun.CodeWrongCredentials, func() { s.stats.authFailures.Add(1) })
}

// refuse answers a request with an error if its credentials are right. What is
// wrong with others, pion/turn tells them.
func (s *Server) refuse(m *stun.Message, code stun.ErrorCode, count func()) (pass bool, answer []byte) {
	var username stun.Username
	var itsRealm stun.Realm
	if username.GetFrom(m) != nil || itsRealm.GetFrom(m) != nil {
		return true, nil
	}
	key, ok := s.key(username.String(), itsRealm.String())
	if !ok || stun.MessageIntegrity(key).Check(m) != nil {
		return true, nil
	}
	count()
	reply, err := stun.Build(
		stun.NewTransactionIDSetter(m.TransactionID),
		stun.NewType(m.Type.Method, stun.ClassErrorResponse),
		code,
		stun.MessageIntegrity(key))
	if err != nil {
		return false, nil
	}
	return false, reply.Raw
}

// isChallenge reports whether a message of ours gives a client a nonce.
func isChallenge(p []byte) bool {
	if len(p) < 20 || p[0]>>6 != 0 {
		return false
	}
	var t stun.MessageType
	t.ReadValue(binary.BigEndian.Uint16(p))
	if t.Class != stun.ClassErrorResponse {
		return false
	}
	m := &stun.Message{Raw: append([]byte(nil), p...)}
	return m.Decode() == nil && m.Contains(stun.AttrNonce)
}

// challenges remembers the UDP clients that were given a nonce. A flood of
// spoofed ones makes it forget, which costs the others one round trip.
type challenges struct {
	mu       sync.Mutex // guards the following fields
	now, old map[string]bool
}

const maxChallenges = 1 << 16 // in each of the two generations

func (c *challenges) add(client net.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now == nil || len(c.now) >= maxChallenges {
		c.now, c.old = make(map[string]bool), c.now
	}
	c.now[client.String()] = true
}

func (c *challenges) has(client net.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := client.String()
	return c.now[k] || c.old[k]
}

// A clientSocket is a UDP socket for clients.
type clientSocket struct {
	*net.UDPConn
	s          *Server
	challenged challenges
}

func newClientSocket(s *Server, c *net.UDPConn) *clientSocket {
	return &clientSocket{UDPConn: c, s: s}
}

// ReadFrom returns the next packet that pion/turn shall see.
func (c *clientSocket) ReadFrom(b []byte) (int, net.Addr, error) {
	for failed := 0; ; {
		n, from, err := c.UDPConn.ReadFrom(b)
		if err != nil {
			if failed++; errors.Is(err, net.ErrClosed) || failed > maxReadErrors {
				return 0, nil, err
			}
			continue
		}
		failed = 0
		pass, answer := c.screen(b[:n], from)
		if pass {
			return n, from, nil
		}
		if answer != nil {
			_, _ = c.UDPConn.WriteTo(answer, from)
		}
	}
}

// screen looks nothing up for media.
func (c *clientSocket) screen(p []byte, from net.Addr) (pass bool, answer []byte) {
	if len(p) < 20 || p[0]>>6 != 0 {
		return true, nil
	}
	client := clientKey(from, c.LocalAddr())
	if !c.mayAsk(client, from) {
		return false, nil
	}
	return c.s.screen(p, client, c.challenged.has(from) || c.s.hasRelay(client))
}

// WriteTo sends to a client.
func (c *clientSocket) WriteTo(b []byte, to net.Addr) (int, error) {
	if isChallenge(b) {
		c.challenged.add(to)
	}
	return c.UDPConn.WriteTo(b, to)
}

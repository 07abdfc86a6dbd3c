package signaling

import (
	"strings"

	"github.com/livekit/protocol/livekit"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// Keys travel as SipDTMF packets: from a browser's dial pad to the phones among
// the packet's destinations, all phones if it names none; from a phone to
// everybody. They may be somebody's PIN, so they are in no log.

// dtmfKeys are the keys of a telephone in the order of their RFC 4733 §3.2 codes.
const dtmfKeys = "0123456789*#ABCD"

// maxDigits is how many keys one packet may press.
const maxDigits = 32

// digitsOf returns the keys of a packet; none if it makes no sense. Clients fill
// in both fields, or one: zero is also the code of the key 0.
func digitsOf(d *livekit.SipDTMF) string {
	digits := strings.ToUpper(d.GetDigit())
	if digits == "" && int(d.GetCode()) < len(dtmfKeys) {
		digits = dtmfKeys[d.GetCode() : d.GetCode()+1]
	}
	if len(digits) > maxDigits || strings.Trim(digits, dtmfKeys) != "" {
		return ""
	}
	return digits
}

// pressKeys hands the keys of a client's packet to the phones it is meant for.
func (s *Server) pressKeys(room call.RoomName, packet *livekit.DataPacket) {
	d := packet.GetSipDtmf()
	if d == nil || s.phones == nil {
		return
	}
	digits := digitsOf(d)
	if digits == "" {
		return
	}
	var to []call.Identity
	for _, id := range packet.GetDestinationIdentities() {
		to = append(to, call.Identity(id))
	}
	s.phones.DigitsTo(room, to, digits)
}

// keyPressed tells a room that one of its phones pressed a key.
func (s *Server) keyPressed(room call.RoomName, id call.Identity, digit byte) {
	code := strings.IndexByte(dtmfKeys, digit)
	if code < 0 {
		return
	}
	packet := &livekit.DataPacket{
		Kind:                livekit.DataPacket_RELIABLE, //nolint:staticcheck // clients read it
		ParticipantIdentity: string(id),
		Value:               &livekit.DataPacket_SipDtmf{SipDtmf: &livekit.SipDTMF{Code: uint32(code), Digit: string(digit)}},
	}
	if r, ok := s.deps.SFU.Room(room); ok {
		if m, ok := r.Member(id); ok {
			packet.ParticipantSid = string(m.SID())
		}
	}
	s.distribute(room, nil, packet, sfu.DataReliable)
}

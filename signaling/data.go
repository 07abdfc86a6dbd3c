package signaling

import (
	"slices"
	"sync"
	"time"

	"github.com/livekit/protocol/livekit"
	"google.golang.org/protobuf/proto"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

const (
	maxWaitingData  = 2048            // messages waiting in a participant's inbox
	maxPendingBytes = 100 << 10       // reliable messages waiting for a channel to open
	cacheBytes      = 100 << 10       // reliable messages kept for those who resume
	cacheAge        = 2 * time.Second // and for how long

	maxSentData = 64_000 // bytes from the server API; no client takes much more in one message

	nonceAge  = 10 * time.Second // how long the nonces of the server API are remembered
	maxNonces = 1024             // of one room
)

// dataState is what a participant's loop knows of its data channels.
type dataState struct {
	lastReceived uint32 // sequence of the client's last reliable message
	ready        bool   // the reliable channel towards the client is open
	pending      [][]byte
	pendingBytes int
}

// outgoing is a data message on its way to one participant.
type outgoing struct {
	kind    sfu.DataKind
	payload []byte
}

// receiveData forwards a client's data message to those it is meant for.
func (p *participant) receiveData(e sfu.EventData) {
	if e.Kind == sfu.DataTrack || !p.member.Load().Grant().CanPublishData {
		return
	}
	packet := &livekit.DataPacket{}
	if e.Label != "" {
		// A channel of the application's own: normal clients hear it as user data.
		packet.Value = &livekit.DataPacket_User{User: &livekit.UserPacket{Payload: e.Payload}}
	} else if err := proto.Unmarshal(e.Payload, packet); err != nil {
		p.log.Debug("malformed data packet", "err", err)
		return
	}
	if e.Kind == sfu.DataReliable && packet.GetSequence() > 0 {
		if packet.GetSequence() <= p.data.lastReceived {
			return // sent again after a resume, but it had arrived
		}
		p.data.lastReceived = packet.GetSequence()
	}
	if p.rpc.consume(packet) || !p.mayForward(packet) {
		return
	}
	p.claimAuthorship(packet)
	packet.Kind = livekit.DataPacket_Kind(e.Kind) //nolint:staticcheck // clients read it
	p.s.pressKeys(p.roomName, packet)
	p.s.distribute(p.roomName, p, packet, e.Kind)
}

// mayForward says which kinds of packet clients may send each other.
func (p *participant) mayForward(packet *livekit.DataPacket) bool {
	switch packet.GetValue().(type) {
	case *livekit.DataPacket_User, *livekit.DataPacket_SipDtmf, *livekit.DataPacket_ChatMessage,
		*livekit.DataPacket_RpcRequest, *livekit.DataPacket_RpcAck, *livekit.DataPacket_RpcResponse,
		*livekit.DataPacket_StreamHeader, *livekit.DataPacket_StreamChunk, *livekit.DataPacket_StreamTrailer,
		*livekit.DataPacket_EncryptedPacket:
		return true
	case *livekit.DataPacket_Transcription:
		return p.grant.Kind == call.KindAgent
	}
	return false
}

// claimAuthorship overwrites who sent the packet, so that nobody speaks for
// others. Hidden participants stay unnamed; agents may speak and write for others.
//
//nolint:staticcheck // old clients read the deprecated fields
func (p *participant) claimAuthorship(packet *livekit.DataPacket) {
	identity, sid := string(p.identity), string(p.snapshot.Self.SID)
	if p.grant.Hidden {
		identity, sid = "", ""
	}
	packet.ParticipantSid = sid
	speaksForOther := p.grant.Kind == call.KindAgent && packet.GetParticipantIdentity() != "" && packet.GetParticipantIdentity() != identity
	switch v := packet.GetValue().(type) {
	case *livekit.DataPacket_Transcription, *livekit.DataPacket_StreamChunk, *livekit.DataPacket_StreamTrailer:
	case *livekit.DataPacket_ChatMessage:
		if speaksForOther && v.ChatMessage != nil {
			v.ChatMessage.Generated = true // so that readers see that it was not typed
		}
	case *livekit.DataPacket_StreamHeader:
		text := v.StreamHeader.GetTextHeader()
		speaksForOther = speaksForOther && text != nil // files are one's own
		if speaksForOther {
			text.Generated = true
		}
	default:
		speaksForOther = false
	}
	if !speaksForOther {
		packet.ParticipantIdentity = identity
	}
	if user := packet.GetUser(); user != nil {
		user.ParticipantIdentity, user.ParticipantSid = identity, sid
		if len(packet.DestinationIdentities) == 0 {
			packet.DestinationIdentities = user.GetDestinationIdentities()
		}
	}
}

// distribute sends a packet to everybody in the room whom it is meant for, but
// not back to its sender.
func (s *Server) distribute(room call.RoomName, from *participant, packet *livekit.DataPacket, kind sfu.DataKind) {
	payload, err := proto.Marshal(packet)
	if err != nil {
		s.log.Error("encoding a data packet", "err", err)
		return
	}
	message := outgoing{kind, payload}
	if from != nil && kind == sfu.DataReliable && packet.GetSequence() > 0 {
		from.hall.cache.add(cached{from.snapshot.Self.SID, packet, payload, time.Now()})
	}
	for _, to := range s.allSeated(room) {
		m := to.member.Load()
		if to == from || m == nil || !addressed(packet, to.identity, m.SID()) {
			continue
		}
		to.inbox.putAtMost(maxWaitingData, message)
	}
}

// addressed reports whether a packet is meant for a participant: it names
// destinations by identity, by SID (old clients), or none at all.
func addressed(packet *livekit.DataPacket, id call.Identity, sid call.ParticipantSID) bool {
	sids := packet.GetUser().GetDestinationSids() //nolint:staticcheck // old clients set it
	if len(packet.GetDestinationIdentities()) == 0 && len(sids) == 0 {
		return true
	}
	return slices.Contains(packet.GetDestinationIdentities(), string(id)) || slices.Contains(sids, string(sid))
}

// sendData writes a message to the client's channel. Reliable ones wait, to a
// limit, for a channel that is not open yet.
func (p *participant) sendData(o outgoing) {
	if o.kind == sfu.DataReliable && !p.data.ready {
		if p.data.pendingBytes+len(o.payload) <= maxPendingBytes {
			p.data.pending = append(p.data.pending, o.payload)
			p.data.pendingBytes += len(o.payload)
		}
		return
	}
	if err := p.member.Load().SendData(o.kind, o.payload); err != nil {
		p.log.Debug("data message lost", "kind", o.kind, "err", err)
	}
}

func (p *participant) dataReady(kind sfu.DataKind) {
	if kind != sfu.DataReliable {
		return
	}
	p.data.ready = true
	waiting := p.data.pending
	p.data.pending, p.data.pendingBytes = nil, 0
	for _, payload := range waiting {
		p.sendData(outgoing{sfu.DataReliable, payload})
	}
}

// replay sends a resumed client the reliable messages it says it has missed.
// Clients drop what they had, by sender and sequence.
func (p *participant) replay(states []*livekit.DataChannelReceiveState) {
	if len(states) == 0 {
		return
	}
	last := make(map[call.ParticipantSID]uint32, len(states))
	for _, s := range states {
		last[call.ParticipantSID(s.GetPublisherSid())] = s.GetLastSeq()
	}
	for _, c := range p.hall.cache.since(time.Now()) {
		if c.publisher == p.snapshot.Self.SID || !addressed(c.packet, p.identity, p.snapshot.Self.SID) {
			continue
		}
		if c.packet.GetSequence() > last[c.publisher] {
			p.sendData(outgoing{sfu.DataReliable, c.payload})
		}
	}
}

// A dataCache keeps a room's latest reliable messages for those who resume.
type dataCache struct {
	mu    sync.Mutex // guards the following fields
	items []cached
	bytes int
}

type cached struct {
	publisher call.ParticipantSID
	packet    *livekit.DataPacket // not changed any more
	payload   []byte
	at        time.Time
}

func (c *dataCache) add(item cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.items = append(c.items, item)
	c.bytes += len(item.payload)
	c.expire(item.at)
}

// expire drops what is too old or too much. The caller holds mu.
func (c *dataCache) expire(now time.Time) {
	drop := 0
	for drop < len(c.items) && (c.bytes > cacheBytes || now.Sub(c.items[drop].at) > cacheAge) {
		c.bytes -= len(c.items[drop].payload)
		drop++
	}
	c.items = slices.Delete(c.items, 0, drop)
}

// A nonces remembers what the server API was asked to send, so that what an SDK
// sends twice, not knowing that it arrived, is sent once.
type nonces struct {
	mu   sync.Mutex // guards the following fields
	seen map[string]time.Time
}

// first reports whether a nonce is new. An empty one always is.
func (n *nonces) first(nonce []byte, now time.Time) bool {
	if len(nonce) == 0 {
		return true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for known, at := range n.seen {
		if now.Sub(at) > nonceAge || len(n.seen) >= maxNonces {
			delete(n.seen, known)
		}
	}
	if _, again := n.seen[string(nonce)]; again {
		return false
	}
	if n.seen == nil {
		n.seen = make(map[string]time.Time)
	}
	n.seen[string(nonce)] = now
	return true
}

// since returns what is fresh at now, oldest first.
func (c *dataCache) since(now time.Time) []cached {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(now)
	return slices.Clone(c.items)
}

package sfu

import (
	"sync/atomic"

	"github.com/trunkhall/trunkhall/call"
)

// counters count one stream of packets.
type counters struct {
	packets, bytes atomic.Uint64
}

func (c *counters) add(bytes int) {
	c.packets.Add(1)
	c.bytes.Add(uint64(bytes))
}

// drops count packets that were not forwarded, by reason.
type drops struct {
	malformed, unknown, late, failed, flood atomic.Uint64
}

// DropStats say why packets were not forwarded.
type DropStats struct {
	Malformed uint64 // no RTP, or a payload that breaks its format
	Unknown   uint64 // of a payload type or layer that was not negotiated
	Late      uint64 // came too late to have a place in the stream
	Failed    uint64 // the connection did not take them
	Flood     uint64 // beyond what one member may send
}

func (d *drops) snapshot() DropStats {
	return DropStats{
		Malformed: d.malformed.Load(), Unknown: d.unknown.Load(), Late: d.late.Load(),
		Failed: d.failed.Load(), Flood: d.flood.Load(),
	}
}

// TrackStats are a published track's counters since it began.
type TrackStats struct {
	SID       call.TrackSID
	Publisher call.Identity
	Kind      Kind
	MimeType  string

	PacketsIn, BytesIn   uint64 // from the publisher, retransmissions included
	PacketsOut, BytesOut uint64 // to present subscribers, payload bytes
	Retransmitted        uint64 // packets sent again to present subscribers
	KeyframesAsked       uint64 // picture loss indications sent to the publisher
	Subscribers          int
	Dropped              DropStats
}

// RoomStats are a room's counters; those of tracks that ended are not in them.
type RoomStats struct {
	Room         call.RoomName
	Participants int
	Tracks       []TrackStats
}

// Stats reads the counters of a room and its tracks.
func (r *Room) Stats() RoomStats {
	s := RoomStats{Room: r.name}
	_ = r.do(func() {
		s.Participants = len(r.members)
		for _, t := range r.tracks {
			s.Tracks = append(s.Tracks, t.stats())
		}
	})
	return s
}

func (t *track) stats() TrackStats {
	u := t.up
	s := TrackStats{
		SID: t.sid, Publisher: t.owner.identity, Kind: t.info.Kind, MimeType: t.info.MimeType,
		PacketsIn: u.in.packets.Load(), BytesIn: u.in.bytes.Load(), KeyframesAsked: u.asked.Load(),
		Subscribers: len(t.subs), Dropped: u.drops.snapshot(),
	}
	for _, sub := range t.subs {
		if sub.down == nil {
			continue
		}
		s.PacketsOut += sub.down.out.packets.Load()
		s.BytesOut += sub.down.out.bytes.Load()
		s.Retransmitted += sub.down.again.packets.Load()
	}
	return s
}

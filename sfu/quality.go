package sfu

import (
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// A lossMeter counts what was expected and what came of one stream. Packets
// that were sent again and came in the end are not lost.
type lossMeter struct {
	started          bool
	highest          uint16
	expected, missed int64
}

// add takes the next packet's sequence number.
func (l *lossMeter) add(seq uint16) {
	if !l.started {
		l.started, l.highest = true, seq
		l.expected++
		return
	}
	d := int16(seq - l.highest)
	switch {
	case d > 0:
		l.expected += int64(d)
		l.missed += int64(d) - 1
		l.highest = seq
	case d < -memory:
		l.highest = seq // the source began anew
	case d < 0 && l.missed > 0:
		l.missed-- // it came late
	}
}

// take returns the share lost since the last call and begins anew.
func (l *lossMeter) take() (share float64, any bool) {
	if l.expected <= 0 {
		return 0, false
	}
	share = float64(max(l.missed, 0)) / float64(l.expected)
	l.expected, l.missed = 0, 0
	return min(share, 1), true
}

// A linkState is what is known of a member's connection over some seconds.
type linkState struct {
	lost    bool    // the connection has failed
	up      float64 // share of packets lost
	down    float64
	rtt     time.Duration
	limited bool // some video is forwarded smaller than wanted, for want of bandwidth
}

// score rates a connection from 1 to 5, roughly as a listener would: loss
// weighs most, since late packets are at least there.
func (s linkState) score() (ConnectionQuality, float32) {
	if s.lost {
		return ConnectionLost, 0
	}
	score := 5 - 25*max(s.up, s.down)
	if over := s.rtt - 150*time.Millisecond; over > 0 {
		score -= over.Seconds() * 4
	}
	if s.limited {
		score = min(score, 4)
	}
	score = max(score, 1)
	switch {
	case score >= 4.2:
		return ConnectionExcellent, float32(score)
	case score >= 3.2:
		return ConnectionGood, float32(score)
	}
	return ConnectionPoor, float32(score)
}

// link gathers m's present state.
func (m *Member) link() linkState {
	if line := m.line.Load(); line != nil {
		return *line
	}
	s := linkState{lost: !m.failedAt.IsZero()}
	for _, t := range m.tracks {
		if share, any := t.up.takeLoss(); any {
			s.up = max(s.up, share)
		}
	}
	for _, sub := range m.subs {
		if sub.down == nil {
			continue
		}
		s.down = max(s.down, float64(sub.down.loss.Load())/256)
		s.rtt = max(s.rtt, time.Duration(sub.down.rtt.Load()))
		s.limited = s.limited || sub.down.limited()
	}
	return s
}

// tickQuality tells everybody about themselves and those they watch.
func (r *Room) tickQuality(time.Time) {
	now := make(map[call.ParticipantSID]EventConnectionQuality)
	for _, m := range r.members {
		if m.state != StateActive {
			continue
		}
		q, score := m.link().score()
		now[m.sid] = EventConnectionQuality{SID: m.sid, Quality: q, Score: score}
	}
	for _, m := range r.members {
		for sid, e := range now {
			if sid != m.sid && !m.hears(sid) {
				continue
			}
			if e.Quality == ConnectionLost && m.params.Client.Protocol > 0 && m.params.Client.Protocol <= 10 {
				e.Quality = ConnectionPoor
			}
			if was, told := m.quality[sid]; !told || was != e.Quality {
				m.quality[sid] = e.Quality
				m.emit(e)
			}
		}
		for sid := range m.quality {
			if r.bySID[sid] == nil {
				delete(m.quality, sid)
			}
		}
	}
}

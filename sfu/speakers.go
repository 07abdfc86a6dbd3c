package sfu

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// A speakerMap holds the level of everybody who speaks.
type speakerMap map[call.ParticipantSID]float32

// forget makes the next delta tell of p again.
func (s speakerMap) forget(p call.ParticipantSID) { delete(s, p) }

// quantise rounds a level up to eighths, so that small changes stay untold.
func quantise(level float64) float32 {
	return float32(math.Ceil(min(max(level, 0), 1)*8) / 8)
}

// speakerDelta returns what somebody who was told before must be told now: new
// levels and those who stopped, the loudest first.
func speakerDelta(before, now speakerMap) []Speaker {
	var out []Speaker
	for sid, level := range now {
		if before[sid] != level {
			out = append(out, Speaker{SID: sid, Level: level, Active: true})
		}
	}
	for sid := range before {
		if _, still := now[sid]; !still {
			out = append(out, Speaker{SID: sid})
		}
	}
	slices.SortFunc(out, func(a, b Speaker) int {
		return cmp.Or(cmp.Compare(b.Level, a.Level), cmp.Compare(a.SID, b.SID))
	})
	return out
}

// tickSpeakers tells everybody who speaks.
func (r *Room) tickSpeakers(now time.Time) {
	speaking := make(speakerMap)
	for _, t := range r.tracks {
		if t.info.Kind != KindAudio || t.info.Source == call.SourceScreenShareAudio {
			continue
		}
		level := quantise(t.up.level.take(now))
		if t.info.Muted || t.owner.grant.Hidden {
			level = 0
		}
		if level > speaking[t.owner.sid] {
			speaking[t.owner.sid] = level
		}
	}
	for _, m := range r.members {
		heard := make(speakerMap)
		for sid, level := range speaking {
			if sid == m.sid || m.hears(sid) {
				heard[sid] = level
			}
		}
		if d := speakerDelta(m.spoke, heard); len(d) > 0 {
			m.emit(EventSpeakers{Speakers: d})
		}
		m.spoke = heard
	}
}

// hears reports whether m is subscribed to anything of publisher.
func (m *Member) hears(publisher call.ParticipantSID) bool {
	for _, s := range m.subs {
		if s.bound && s.track.owner.sid == publisher {
			return true
		}
	}
	return false
}

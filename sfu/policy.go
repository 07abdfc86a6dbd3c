package sfu

import (
	"slices"

	"github.com/trunkhall/trunkhall/call"
)

// A policy is a publisher's rule of who may subscribe to its tracks. The zero
// policy lets everybody have everything.
type policy struct {
	limited bool
	rules   []TrackPermission
}

func newPolicy(all bool, per []TrackPermission) policy {
	if all {
		return policy{}
	}
	p := policy{limited: true, rules: slices.Clone(per)}
	for i := range p.rules {
		p.rules[i].TrackSIDs = slices.Clone(p.rules[i].TrackSIDs)
	}
	return p
}

// allows reports whether the member with that identity and SID may have track.
func (p policy) allows(id call.Identity, sid call.ParticipantSID, track call.TrackSID) bool {
	if !p.limited {
		return true
	}
	for _, r := range p.rules {
		if r.Identity != "" && r.Identity != id || r.Identity == "" && r.SID != sid {
			continue
		}
		if r.AllTracks || slices.Contains(r.TrackSIDs, track) {
			return true
		}
	}
	return false
}

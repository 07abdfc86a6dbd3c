package sfu

import "time"

// linkStats are one direction of a member's media since the last look.
type linkStats struct {
	packets, lost uint64
}

func (r *Room) tickQuality(time.Time) {}

package sfu

import (
	"log/slog"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

type upTrack struct {
	sid   call.TrackSID
	level audioMeter
}

func newUpTrack(sid call.TrackSID, info TrackInfo, log *slog.Logger) *upTrack {
	return &upTrack{sid: sid}
}
func (u *upTrack) setMuted(bool)      {}
func (u *upTrack) close()             {}
func (u *upTrack) tick(now time.Time) {}

type downTrack struct {
	onBound, onUnsupported func()
}

func newDownTrack(to *transport, up *upTrack, pub call.ParticipantSID, sid call.TrackSID, kind Kind) *downTrack {
	return &downTrack{}
}
func (d *downTrack) want(layer int, disabled bool, temporal int) {}
func (d *downTrack) stop()                                       {}

package sfu

import (
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// tickBandwidth runs on the room's goroutine every 400 ms: it limits what a
// subscriber gets to what its connection carries.
func (r *Room) tickBandwidth(m *Member, now time.Time) {
	if m.conn == nil {
		return
	}
	var subs []*subscription
	var videos []demand
	sample := linkSample{estimate: m.conn.estimate.Load()}
	sent := uint64(0)
	for _, s := range m.subs {
		sent += s.down.out.bytes.Load()
		if !s.bound || s.down.disabled.Load() {
			continue
		}
		sample.loss = max(sample.loss, float64(s.down.loss.Load())/256)
		if s.track.info.Kind != KindVideo {
			continue
		}
		subs = append(subs, s)
		videos = append(videos, demand{
			want:     min(int(s.down.wish.Load()), max(len(s.track.info.Layers), 1)-1),
			priority: m.settings[s.track.sid].Priority,
			screen:   s.track.info.Source == call.SourceScreenShare,
		})
	}
	if !m.sentAt.IsZero() && sent >= m.sentBytes {
		if d := now.Sub(m.sentAt).Seconds(); d > 0 {
			// Smoothed over about two seconds, as receivers' estimates are.
			rate := float64(sent-m.sentBytes) * 8 / d
			m.sentRate += (rate - m.sentRate) * 0.2
		}
	}
	m.sentAt, m.sentBytes = now, sent
	sample.sent = uint64(m.sentRate)
	floor := 0
	if m.params.AllowPause != nil && *m.params.AllowPause {
		floor = -1
	}
	m.congestion.max = 0
	for _, v := range videos {
		m.congestion.max += v.want - floor
	}
	if m.congestion.observe(sample, now) {
		m.conn.log.Debug("video limited", "steps", m.congestion.steps, "estimate", sample.estimate,
			"sent", sample.sent, "loss", sample.loss)
	}
	for i, limit := range share(m.congestion.steps, floor, videos) {
		d := subs[i].down
		if paused := limit < 0; d.paused.Swap(paused) != paused {
			m.emit(EventStreamState{Publisher: d.publisher, Track: d.sid, Paused: paused})
			d.up.retarget(now)
		}
		if limit == videos[i].want {
			limit = maxLayers - 1 // no limit at all
		}
		limit = max(limit, 0)
		if int(d.limit.Swap(int32(limit))) != limit {
			d.up.retarget(now)
		}
	}
}

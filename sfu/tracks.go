package sfu

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/trunkhall/trunkhall/call"
)

const (
	maxPending   = 20      // announced tracks of a member whose media has not come
	maxNameBytes = 4 << 10 // names, streams and CIDs in AddTrack
	maxLayers    = 3       // encodings of one video track
	maxCodecs    = 2       // a track and its backup codec
)

// A track is what one member publishes. It belongs to the room's goroutine;
// the packets flow through up.
type track struct {
	owner     *Member
	sid       call.TrackSID
	info      TrackInfo
	published bool // media has come: others are told of it
	subs      map[*Member]*subscription
	taps      map[Tap]*tapping // for members of this process
	up        *upTrack
	told      bool // EventTrackSubscribed was sent
	dyn       dynacast
	stale     bool // others have not been told of the present info
}

// A subscription is one member's wish for one track, fulfilled by down or, for
// a member of this process, by its tap.
type subscription struct {
	to    *Member
	track *track
	down  *downTrack // nil for a member of this process
	bound bool       // negotiated: packets may flow
}

// A wish is a member's explicit choice for a track, which may not exist yet.
type wish struct {
	on     bool
	since  time.Time
	failed bool
}

// snapshot returns a copy that never changes.
func (t *track) snapshot() TrackInfo {
	i := t.info
	i.Layers = slices.Clone(i.Layers)
	i.Features = slices.Clone(i.Features)
	i.Codecs = slices.Clone(i.Codecs)
	for n := range i.Codecs {
		i.Codecs[n].Layers = slices.Clone(i.Codecs[n].Layers)
	}
	return i
}

// resize scales the layers when the source's dimensions change.
func (t *track) resize(width, height uint32) {
	if t.info.Width > 0 && t.info.Height > 0 {
		for i := range t.info.Layers {
			l := &t.info.Layers[i]
			l.Width = uint32(uint64(l.Width) * uint64(width) / uint64(t.info.Width))
			l.Height = uint32(uint64(l.Height) * uint64(height) / uint64(t.info.Height))
		}
	}
	t.info.Width, t.info.Height = width, height
	t.syncLayers()
}

// syncLayers copies the primary codec's layers to where newer clients look.
func (t *track) syncLayers() {
	if len(t.info.Codecs) > 0 {
		t.info.Codecs[0].Layers = slices.Clone(t.info.Layers)
		t.info.Codecs[0].MimeType = t.info.MimeType
		t.info.Codecs[0].MID = t.info.MID
	}
}

func (r *Room) addTrack(m *Member, a AddTrack) (TrackInfo, error) {
	if m.gone {
		return TrackInfo{}, fmt.Errorf("participant %s has left: %w", m.identity, call.ErrNotFound)
	}
	if err := a.check(); err != nil {
		return TrackInfo{}, err
	}
	if !m.grant.MayPublish(a.Source) {
		return TrackInfo{}, fmt.Errorf("publish %s: %w", a.Source, call.ErrForbidden)
	}
	if a.SID != "" {
		return r.addBackup(m, a)
	}
	pending := 0
	for _, t := range m.tracks {
		if slices.ContainsFunc(t.info.Codecs, func(c Codec) bool { return c.CID == a.CID }) {
			return TrackInfo{}, fmt.Errorf("track with cid %q is live: %w", a.CID, call.ErrConflict)
		}
		if !t.published {
			pending++
		}
	}
	if pending >= maxPending || len(m.tracks) >= r.srv.cfg.MaxTracks {
		return TrackInfo{}, fmt.Errorf("%d tracks, %d of them without media: %w", len(m.tracks), pending, call.ErrUnavailable)
	}
	t := &track{owner: m, sid: newTrackSID(a.Kind, a.Source), subs: make(map[*Member]*subscription)}
	t.info = a.info(t.sid)
	t.up = newUpTrack(t.sid, t.info, r.log)
	t.up.onMedia = func(c webrtc.RTPCodecParameters) { r.post(func() { r.mediaCame(t, c) }) }
	t.up.onLayer = func(i int, rid string, ssrc uint32) { r.post(func() { r.layerCame(t, i, rid, ssrc) }) }
	m.tracks[t.sid] = t
	m.emit(EventTrackPublished{CID: a.CID, Track: t.snapshot()})
	return t.snapshot(), nil
}

// addBackup answers for the backup codec of a live track. It is listed, but not
// asked for by EventSubscribedQuality, so clients do not send it.
func (r *Room) addBackup(m *Member, a AddTrack) (TrackInfo, error) {
	t, ok := m.tracks[a.SID]
	if !ok {
		return TrackInfo{}, fmt.Errorf("backup codec for track %s: %w", a.SID, call.ErrNotFound)
	}
	for _, c := range a.Codecs {
		if len(t.info.Codecs) < maxCodecs && !slices.ContainsFunc(t.info.Codecs, func(o Codec) bool { return o.CID == c.CID }) {
			t.info.Codecs = append(t.info.Codecs, c)
		}
	}
	m.emit(EventTrackPublished{CID: a.CID, Track: t.snapshot()})
	return t.snapshot(), nil
}

// check finds what a broken or hostile client would send.
func (a AddTrack) check() error {
	switch {
	case a.CID == "":
		return fmt.Errorf("track without cid: %w", call.ErrInvalid)
	case a.Kind != KindAudio && a.Kind != KindVideo:
		return fmt.Errorf("track of kind %d: %w", a.Kind, call.ErrInvalid)
	case len(a.CID)+len(a.Name)+len(a.Stream) > maxNameBytes:
		return fmt.Errorf("track names of more than %d bytes: %w", maxNameBytes, call.ErrInvalid)
	case len(a.Layers) > maxLayers || len(a.Codecs) > 8 || len(a.Features) > 32:
		return fmt.Errorf("track with too many layers, codecs or features: %w", call.ErrInvalid)
	}
	for _, c := range a.Codecs {
		if len(c.Layers) > maxLayers || len(c.CID)+len(c.MimeType) > maxNameBytes {
			return fmt.Errorf("codec with too many layers or too long a name: %w", call.ErrInvalid)
		}
	}
	return nil
}

// info builds the description of an announced track.
func (a AddTrack) info(sid call.TrackSID) TrackInfo {
	i := TrackInfo{
		SID: sid, Kind: a.Kind, Source: a.Source, Name: a.Name, Stream: a.Stream, Muted: a.Muted,
		Width: a.Width, Height: a.Height, DisableDTX: a.DisableDTX, DisableRED: a.DisableRED,
		Stereo: a.Stereo, Encryption: a.Encryption, Features: slices.Clone(a.Features),
		BackupRule: a.BackupRule, PublishedAt: time.Now(),
	}
	codecs := slices.Clone(a.Codecs)
	if len(codecs) == 0 {
		codecs = []Codec{{}}
	}
	if len(codecs) > maxCodecs {
		codecs = codecs[:maxCodecs]
	}
	for n := range codecs {
		codecs[n].MimeType = enabledMimeType(a.Kind, codecs[n].MimeType)
		codecs[n].Layers = slices.Clone(codecs[n].Layers)
	}
	if codecs[0].CID == "" {
		codecs[0].CID = a.CID
	}
	i.Layers = slices.Clone(a.Layers)
	if len(i.Layers) == 0 {
		i.Layers = slices.Clone(codecs[0].Layers)
	}
	i.Layers = orderLayers(i.Layers)
	i.Simulcast = len(i.Layers) > 1
	i.MimeType = codecs[0].MimeType
	i.Codecs = codecs
	i.Codecs[0].Layers = slices.Clone(i.Layers)
	return i
}

// shortCodec turns "video/VP8" into "vp8".
func shortCodec(mime string) string {
	_, s, _ := strings.Cut(strings.ToLower(mime), "/")
	return s
}

// removeTrack ends a published or announced track; byServer tells its owner.
func (r *Room) removeTrack(t *track, byServer bool) {
	was := t.published
	r.endTrack(t)
	if byServer {
		t.owner.emit(EventTrackUnpublished{SID: t.sid})
	}
	if was {
		r.changed(t.owner)
	}
}

// endTrack takes t off everything without telling anybody.
func (r *Room) endTrack(t *track) {
	for _, s := range t.subs {
		r.dropSub(s)
	}
	t.up.close()
	if t.owner.conn != nil {
		t.owner.conn.unpublish(t.up)
	}
	t.published = false
	delete(t.owner.tracks, t.sid)
	delete(r.tracks, t.sid)
	for _, m := range r.members {
		delete(m.allowedNow, t.sid)
	}
}

// publish is called by the transport when an announced track has media or is
// at least negotiated: everybody is told of it.
func (r *Room) publish(t *track) {
	if t.published || t.owner.gone || t.owner.tracks[t.sid] != t {
		return
	}
	t.published = true
	r.tracks[t.sid] = t
	r.changed(t.owner)
	for _, m := range r.members {
		r.reconcile(m, t)
	}
}

func (r *Room) setMuted(t *track, muted bool) {
	if t.info.Muted == muted {
		return
	}
	t.info.Muted = muted
	if !muted {
		t.up.setSilenced(false)
	}
	r.changed(t.owner)
}

// setGrant is documented at Member.SetGrant.
func (r *Room) setGrant(m *Member, g call.Grant) {
	if m.gone {
		return
	}
	g.Room, g.Identity = m.grant.Room, m.grant.Identity
	m.grant = g
	for _, t := range m.tracks {
		if !g.MayPublish(t.info.Source) {
			r.removeTrack(t, true)
		}
	}
	r.changed(m)
	for _, t := range r.tracks {
		r.reconcile(m, t)
	}
}

// desires reports whether m wants track sid, permissions aside.
func (m *Member) desires(sid call.TrackSID) bool {
	if w, ok := m.wants[sid]; ok {
		return w.on
	}
	return m.params.AutoSubscribe
}

// reconcile makes m's subscription to t what it should be now.
func (r *Room) reconcile(m *Member, t *track) {
	if m == t.owner || m.gone {
		return
	}
	want := t.published && !t.owner.grant.Hidden && m.grant.CanSubscribe && m.desires(t.sid)
	if want {
		allowed := m.grant.Kind == call.KindEgress || t.owner.policy.allows(m.identity, m.sid, t.sid)
		if was, told := m.allowedNow[t.sid]; !told || was != allowed {
			m.allowedNow[t.sid] = allowed
			m.emit(EventSubscriptionPermission{Publisher: t.owner.sid, Track: t.sid, Allowed: allowed})
		}
		want = allowed
	}
	s := m.subs[t.sid]
	switch {
	case m.conn == nil:
		r.reconcileLocal(m, t, want)
	case want && s == nil:
		s = &subscription{to: m, track: t}
		s.down = newDownTrack(m.conn, t.up, t.owner.sid, t.sid, t.info.Kind)
		m.subs[t.sid] = s
		t.subs[m] = s
		r.aim(s)
		s.down.onBound = func() { r.post(func() { r.bound(s) }) }
		s.down.onUnsupported = func() { r.post(func() { r.unsupported(s) }) }
		m.conn.attach(s.down)
	case !want && s != nil:
		r.dropSub(s)
	}
}

// reconcilePublisher does so for everybody and all tracks of m.
func (r *Room) reconcilePublisher(m *Member) {
	for _, t := range m.tracks {
		if !t.published {
			continue
		}
		for _, o := range r.members {
			r.reconcile(o, t)
		}
	}
}

// bound is called when a subscription has been negotiated.
func (r *Room) bound(s *subscription) {
	if s.to.subs[s.track.sid] != s {
		return
	}
	s.bound = true
	t := s.track
	if !t.told {
		t.told = true
		t.owner.emit(EventTrackSubscribed{SID: t.sid})
	}
	if t.info.Kind == KindVideo {
		s.to.emit(EventStreamState{Publisher: t.owner.sid, Track: t.sid})
		r.updateDynacast(t, time.Now())
	}
	s.to.spoke.forget(t.owner.sid) // the next tick tells it who speaks
}

// unsupported is called when the subscriber has no codec for the track.
func (r *Room) unsupported(s *subscription) {
	if s.to.subs[s.track.sid] != s {
		return
	}
	r.dropSub(s)
	s.to.wants[s.track.sid] = wish{on: false}
	s.to.emit(EventSubscriptionFailed{
		Track: s.track.sid,
		Err:   fmt.Errorf("no codec for %s: %w", s.track.info.MimeType, call.ErrInvalid),
	})
}

// dropSub ends a subscription. Packets stop at once.
func (r *Room) dropSub(s *subscription) {
	delete(s.to.subs, s.track.sid)
	delete(s.track.subs, s.to)
	if s.down == nil {
		r.untap(s)
		return
	}
	s.down.stop()
	s.to.conn.detach(s.down)
	if s.track.info.Kind == KindVideo {
		r.updateDynacast(s.track, time.Now())
	}
}

func (r *Room) setWishes(m *Member, on bool, sids []call.TrackSID) {
	if m.gone {
		return
	}
	now := time.Now()
	for _, sid := range sids {
		if len(m.wants) >= 10_000 { // more than any room has tracks
			return
		}
		m.wants[sid] = wish{on: on, since: now}
		if t, ok := r.tracks[sid]; ok {
			r.reconcile(m, t)
		}
	}
}

// checkWishes tells m of tracks that it wants and that do not appear.
func (r *Room) checkWishes(m *Member, now time.Time) {
	for sid, w := range m.wants {
		if !w.on || w.failed || r.tracks[sid] != nil || now.Sub(w.since) < r.srv.times.wish {
			continue
		}
		w.failed = true
		m.wants[sid] = w
		m.emit(EventSubscriptionFailed{Track: sid, Err: fmt.Errorf("track %s: %w", sid, call.ErrNotFound)})
	}
}

func (r *Room) setSettings(m *Member, st TrackSettings, sids []call.TrackSID) {
	if m.gone {
		return
	}
	for _, sid := range sids {
		if len(m.settings) >= 10_000 {
			return
		}
		m.settings[sid] = st
		if s, ok := m.subs[sid]; ok {
			r.aim(s)
			r.updateDynacast(s.track, time.Now())
		}
	}
}

// syncState is documented at Member.SyncState.
func (r *Room) syncState(m *Member, s SyncState) error {
	if m.gone {
		return fmt.Errorf("participant %s has left: %w", m.identity, call.ErrConflict)
	}
	for _, sid := range s.Published {
		if _, ok := m.tracks[sid]; !ok {
			return fmt.Errorf("client publishes unknown track %s: %w", sid, call.ErrConflict)
		}
	}
	for _, sid := range s.Disabled {
		st := m.settings[sid]
		st.Disabled = true
		r.setSettings(m, st, []call.TrackSID{sid})
	}
	r.setWishes(m, s.Subscribe, s.Tracks)
	return nil
}

// aim tells a subscription's sink which layer the client wants.
func (r *Room) aim(s *subscription) {
	if s.down == nil {
		return
	}
	st, ok := s.to.settings[s.track.sid]
	if !ok {
		st.Quality = QualityHigh
	}
	s.down.want(wantedLayer(s.track.info.Layers, st), st.Disabled, maxTemporal(st.FPS))
}

// retarget aims all subscriptions of t again, after its layers changed.
func (r *Room) retarget(t *track) {
	for _, s := range t.subs {
		r.aim(s)
	}
}

// updateDynacast tells the publisher which layers anybody watches.
func (r *Room) updateDynacast(t *track, now time.Time) {
	if t.info.Kind != KindVideo || !t.told || t.owner.gone {
		return
	}
	q := QualityOff
	for _, s := range t.subs {
		st, ok := s.to.settings[t.sid]
		if !ok {
			st.Quality = QualityHigh
		}
		if !s.bound || st.Disabled {
			continue
		}
		if w := wantedQuality(t.info.Layers, st); q == QualityOff || w > q {
			q = w
		}
	}
	if t.dyn.want(q, now) {
		r.tellDynacast(t)
	}
}

func (r *Room) tellDynacast(t *track) {
	c := SubscribedCodec{Codec: shortCodec(t.info.MimeType), Qualities: t.dyn.qualities()}
	t.owner.emit(EventSubscribedQuality{Track: t.sid, Codecs: []SubscribedCodec{c}})
}

// tickTrack runs every 400 ms for each published track.
func (r *Room) tickTrack(t *track, now time.Time) {
	if t.stale {
		t.stale = false
		r.changed(t.owner)
	}
	if t.info.Kind != KindVideo {
		return
	}
	if t.dyn.tick(now) {
		r.tellDynacast(t)
	}
	t.up.tick(now)
}

// claim finds the announced track of each media section on which the client
// sends, nil where there is none, and ends tracks whose section has stopped.
func (r *Room) claim(m *Member, sections []section) []*track {
	out := make([]*track, len(sections))
	if m.gone {
		return out
	}
	taken := make(map[*track]bool)
	for i, s := range sections {
		if s.data || !s.sends {
			continue
		}
		for _, t := range m.tracks {
			if t.info.MID == s.mid && t.info.Kind == s.kind {
				out[i], taken[t] = t, true
			}
		}
	}
	for _, t := range m.tracks {
		if t.info.MID != "" && !taken[t] {
			r.removeTrack(t, false) // the client unpublished it
		}
	}
	for i, s := range sections {
		if s.data || !s.sends || out[i] != nil {
			continue
		}
		if t := m.announced(s, taken); t != nil {
			out[i], taken[t] = t, true
			r.negotiated(t, s)
		}
	}
	return out
}

// announced finds the track of a new section: by CID, or else the oldest one of
// the same kind, since some clients' descriptions name tracks differently.
func (m *Member) announced(s section, taken map[*track]bool) *track {
	var oldest *track
	for _, t := range m.tracks {
		if t.info.MID != "" || taken[t] || t.info.Kind != s.kind {
			continue
		}
		if t.info.Codecs[0].CID == s.cid {
			return t
		}
		if oldest == nil || t.info.PublishedAt.Before(oldest.info.PublishedAt) {
			oldest = t
		}
	}
	for _, t := range m.tracks {
		for _, c := range t.info.Codecs[1:] {
			if c.CID == s.cid {
				return nil // a backup codec, which nobody asked for
			}
		}
	}
	return oldest
}

// negotiated notes what a new section tells of its track.
func (r *Room) negotiated(t *track, s section) {
	t.info.MID = s.mid
	t.up.rids.Store(&s.rids)
	if len(s.rids) > 0 {
		for i := range t.info.Layers {
			if t.info.Layers[i].RID == "" && i < len(s.rids) {
				t.info.Layers[i].RID = s.rids[i]
			}
		}
	} else if len(s.ssrcs) > 0 && len(t.info.Layers) == 1 {
		t.info.Layers[0].SSRC = s.ssrcs[0]
	}
	t.syncLayers()
	if t.info.Muted {
		r.publish(t) // there may be no packet for a long time
	}
}

// mediaCame is called when a track's first packet tells its codec, and again
// if the publisher changes it.
func (r *Room) mediaCame(t *track, c webrtc.RTPCodecParameters) {
	if t.owner.gone || t.owner.tracks[t.sid] != t {
		return
	}
	changed := t.published && !strings.EqualFold(t.info.MimeType, c.MimeType)
	t.info.MimeType = c.MimeType
	t.syncLayers()
	if !t.published {
		r.publish(t)
		return
	}
	if !changed {
		return
	}
	r.changed(t.owner)
	for m, s := range t.subs { // their payload type is the old codec's
		r.dropSub(s)
		r.reconcile(m, t)
	}
}

// layerCame is called when a layer has its first packet.
func (r *Room) layerCame(t *track, index int, rid string, ssrc uint32) {
	if t.owner.gone || t.owner.tracks[t.sid] != t {
		return
	}
	for i := range t.info.Layers {
		l := &t.info.Layers[i]
		if l.RID == rid && rid != "" || rid == "" && len(t.info.Layers) == 1 {
			l.SSRC, l.Spatial = ssrc, int32(index)
		}
	}
	t.syncLayers()
	if t.published {
		t.stale = true // told with the next tick: layers come in quick succession
	}
	t.up.retarget(time.Now())
}

package sfu

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

const (
	tickEvery     = 400 * time.Millisecond // speakers, layers, dynacast
	slowTickEvery = 5 * time.Second        // connection quality, room counters

	defaultEmptyTimeout = 300 * time.Second
	defaultLeaveTimeout = 20 * time.Second
)

// A Room is a media room. One goroutine, run, owns its members, tracks and
// subscriptions; everybody else sends it functions to run. It never waits for
// a client: sessions only queue events, transports only queue work.
type Room struct {
	srv  *Server
	name call.RoomName
	sid  string
	sif  []byte
	log  *slog.Logger
	opts RoomOptions
	cmds chan func()
	done chan struct{} // closed when run has ended
	info atomic.Pointer[RoomInfo]

	// The rest belongs to run.
	members   map[call.Identity]*Member
	bySID     map[call.ParticipantSID]*Member
	tracks    map[call.TrackSID]*track // published ones
	metadata  string
	created   time.Time
	idleSince time.Time // when the last member left, or the room was opened
	used      bool      // somebody has been here
	dirty     bool      // counters changed since the last EventRoom
	closing   bool
	why       Reason
}

func newRoom(s *Server, name call.RoomName, o RoomOptions) *Room {
	if o.EmptyTimeout <= 0 {
		o.EmptyTimeout = defaultEmptyTimeout
	}
	if o.LeaveTimeout <= 0 {
		o.LeaveTimeout = defaultLeaveTimeout
	}
	if o.MaxParticipants <= 0 {
		o.MaxParticipants = s.cfg.MaxParticipants
	}
	now := time.Now()
	r := &Room{
		srv: s, name: name, sid: randomID("RM_"), sif: make([]byte, 16), opts: o,
		log:  s.log.With("room", name),
		cmds: make(chan func(), 128), done: make(chan struct{}),
		members: make(map[call.Identity]*Member), bySID: make(map[call.ParticipantSID]*Member),
		tracks: make(map[call.TrackSID]*track), metadata: o.Metadata,
		created: now, idleSince: now,
	}
	_, _ = rand.Read(r.sif)
	r.refresh()
	return r
}

// run owns the room until it closes.
func (r *Room) run() {
	defer func() {
		r.srv.forget(r)
		close(r.done)
		r.log.Info("room closed", "reason", int(r.why))
		if r.opts.OnClosed != nil {
			r.srv.tasks.Go(func() { r.opts.OnClosed(r.Info()) })
		}
	}()
	r.log.Info("room opened")
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	slow := time.NewTicker(slowTickEvery)
	defer slow.Stop()
	var sleep time.Time // until when the tickers rest; zero while somebody is here
	for !r.closing {
		// Nothing happens in an empty room until it closes: many calls at once
		// leave many behind.
		switch until := r.closesAt(); {
		case until.Equal(sleep):
		case until.IsZero():
			tick.Reset(tickEvery)
			slow.Reset(slowTickEvery)
			sleep = until
		default:
			tick.Reset(max(time.Until(until), 0) + time.Millisecond)
			slow.Stop()
			sleep = until
		}
		select {
		case f := <-r.cmds:
			r.guard(f)
		case now := <-tick.C:
			r.guard(func() { r.tick(now) })
		case now := <-slow.C:
			r.guard(func() { r.slowTick(now) })
		}
	}
	r.guard(func() { r.removeAll(r.why) })
	// Those who sent a command before the end get it run; later ones see done.
	for {
		select {
		case f := <-r.cmds:
			r.guard(f)
		default:
			return
		}
	}
}

// closesAt returns when the empty room closes, or zero while somebody is here.
func (r *Room) closesAt() time.Time {
	switch {
	case len(r.members) > 0:
		return time.Time{}
	case r.used:
		return r.idleSince.Add(r.opts.LeaveTimeout)
	}
	return r.idleSince.Add(r.opts.EmptyTimeout)
}

// guard keeps a defect in one command from ending everybody's call.
func (r *Room) guard(f func()) {
	defer func() {
		if p := recover(); p != nil {
			r.log.Error("room command panicked", "panic", p, "stack", stack())
		}
	}()
	f()
}

// do runs f on the room's goroutine and waits for it. It must not be called
// from there.
func (r *Room) do(f func()) error {
	ran := make(chan struct{})
	select {
	case r.cmds <- func() { defer close(ran); f() }:
	case <-r.done:
		return errClosed(r.name)
	}
	select {
	case <-ran:
		return nil
	case <-r.done:
		select {
		case <-ran:
			return nil
		default:
			return errClosed(r.name)
		}
	}
}

// post runs f on the room's goroutine, later.
func (r *Room) post(f func()) {
	select {
	case r.cmds <- f:
	case <-r.done:
	}
}

// close ends the room and waits for its goroutine.
func (r *Room) close(why Reason) {
	r.post(func() { r.closing, r.why = true, why })
	<-r.done
}

// Closed reports whether the room has ended. Server.OpenRoom then opens another.
func (r *Room) Closed() bool { return r.closed() }

func (r *Room) closed() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// refresh renews what Info returns.
func (r *Room) refresh() {
	info := RoomInfo{
		SID: r.sid, Name: r.name, Metadata: r.metadata, CreatedAt: r.created,
		EmptyTimeout: r.opts.EmptyTimeout, LeaveTimeout: r.opts.LeaveTimeout, MaxParticipants: r.opts.MaxParticipants,
	}
	for _, m := range r.members {
		if m.grant.Hidden {
			continue
		}
		info.Participants++
		if m.publishing() {
			info.Publishers++
		}
	}
	r.info.Store(&info)
}

// configure is documented at Room.Configure.
func (r *Room) configure(o RoomOptions) {
	was := r.metadata
	if o.Metadata != "" {
		r.metadata = o.Metadata
	}
	if o.EmptyTimeout > 0 {
		r.opts.EmptyTimeout = o.EmptyTimeout
	}
	if o.LeaveTimeout > 0 {
		r.opts.LeaveTimeout = o.LeaveTimeout
	}
	if o.MaxParticipants > 0 {
		r.opts.MaxParticipants = o.MaxParticipants
	}
	r.refresh()
	if r.metadata != was {
		r.broadcastRoom()
	}
}

func (r *Room) broadcastRoom() {
	for _, m := range r.members {
		m.emit(EventRoom{Room: *r.info.Load()})
	}
}

func (r *Room) newMember(p JoinParams) *Member {
	m := &Member{
		room: r, sid: newParticipantSID(), identity: p.Grant.Identity, params: p,
		session: p.Session, grant: p.Grant, joinedAt: time.Now(),
		tracks: make(map[call.TrackSID]*track), subs: make(map[call.TrackSID]*subscription),
		wants: make(map[call.TrackSID]wish), settings: make(map[call.TrackSID]TrackSettings),
		spoke: make(speakerMap), quality: make(map[call.ParticipantSID]ConnectionQuality),
		allowedNow: make(map[call.TrackSID]bool),
	}
	m.refresh()
	return m
}

// add makes m part of the room.
func (r *Room) add(m *Member) (Snapshot, error) {
	old := r.members[m.identity]
	if old == nil && r.opts.MaxParticipants > 0 && len(r.members) >= r.opts.MaxParticipants {
		return Snapshot{}, fmt.Errorf("room %s has its %d participants: %w", r.name, len(r.members), call.ErrUnavailable)
	}
	if old != nil {
		r.remove(old, ReasonDuplicateIdentity, ActionDisconnect)
	}
	r.members[m.identity] = m
	r.bySID[m.sid] = m
	r.used = true
	r.refresh()
	if m.conn == nil {
		m.state, m.wasActive = StateActive, true
		m.refresh()
	}
	snap := r.snapshot(m) // the state is still "joining", as clients expect
	m.state = max(m.state, StateJoined)
	if m.conn == nil && len(snap.Others) > 0 {
		m.emit(EventParticipants{Participants: snap.Others})
	}
	r.changed(m)
	if m.conn != nil {
		r.srv.tasks.Go(m.conn.run)
	} else {
		m.emit(EventJoined{})
	}
	for _, t := range r.tracks {
		r.reconcile(m, t)
	}
	r.log.Info("joined", "participant", m.identity, "sid", m.sid)
	return snap, nil
}

func (r *Room) snapshot(m *Member) Snapshot {
	s := Snapshot{Room: r.Info(), Self: m.Info(), PublishCodecs: publishMimeTypes()}
	for _, o := range r.members {
		if o != m && !o.grant.Hidden {
			s.Others = append(s.Others, o.Info())
		}
	}
	return s
}

func (r *Room) resume(id call.Identity, sid call.ParticipantSID, s Session) (*Member, Snapshot, error) {
	m, ok := r.members[id]
	if !ok || m.conn == nil || sid != "" && sid != m.sid {
		return nil, Snapshot{}, fmt.Errorf("session of %s in room %s: %w", id, r.name, call.ErrNotFound)
	}
	m.lost = false
	if !m.failedAt.IsZero() {
		m.failedAt = time.Now() // the client needs the limit's time once more
	}
	m.swapSession(s)
	m.conn.resumed()
	r.log.Info("resumed", "participant", m.identity, "sid", m.sid)
	return m, r.snapshot(m), nil
}

// remove ends m's session: media first, then everybody is told.
func (r *Room) remove(m *Member, why Reason, act Action) {
	if m.gone {
		return
	}
	m.gone = true
	if m.conn != nil {
		m.conn.cut()
	}
	for _, s := range m.subs {
		r.dropSub(s)
	}
	for _, t := range m.tracks {
		r.endTrack(t)
	}
	delete(r.members, m.identity)
	delete(r.bySID, m.sid)
	m.state = StateDisconnected
	m.version++
	m.refresh()
	bye := m.Info()
	bye.Reason = why
	if !m.grant.Hidden {
		for _, o := range r.members {
			// Newer clients take a new SID for a known identity as the end
			// of the old one.
			if why == ReasonDuplicateIdentity && o.params.Client.Protocol > 11 {
				continue
			}
			o.emit(EventParticipants{Participants: []ParticipantInfo{bye}})
		}
	}
	m.emit(EventLeave{Reason: why, Action: act})
	if m.conn != nil {
		r.srv.tasks.Go(m.conn.close)
	}
	r.idleSince = time.Now()
	r.refresh()
	r.dirty = true
	r.log.Info("left", "participant", m.identity, "sid", m.sid, "reason", int(why))
}

func (r *Room) removeAll(why Reason) {
	act := ActionDisconnect
	if why == ReasonServerShutdown || why == ReasonMigration {
		act = ActionReconnect
	}
	for _, m := range r.members {
		r.remove(m, why, act)
	}
}

// changed tells everybody of m's new state at once.
func (r *Room) changed(m *Member) {
	m.version++
	m.refresh()
	was := r.Info()
	r.refresh()
	if now := r.Info(); was != now {
		r.dirty = true
	}
	for _, o := range r.members {
		if o == m || !m.grant.Hidden {
			o.emit(EventParticipants{Participants: []ParticipantInfo{m.Info()}})
		}
	}
}

// refresh renews what Info returns.
func (m *Member) refresh() {
	info := ParticipantInfo{
		SID: m.sid, Identity: m.identity, Grant: m.grant, State: m.state, JoinedAt: m.joinedAt,
		Version: m.version, ClientProtocol: m.params.ClientProtocol,
		Capabilities: slices.Clone(m.params.Capabilities),
	}
	for _, t := range m.tracks {
		if t.published {
			info.Tracks = append(info.Tracks, t.snapshot())
		}
	}
	slices.SortFunc(info.Tracks, func(a, b TrackInfo) int { return a.PublishedAt.Compare(b.PublishedAt) })
	m.info.Store(&info)
}

// publishing reports whether m has a published track.
func (m *Member) publishing() bool {
	for _, t := range m.tracks {
		if t.published {
			return true
		}
	}
	return false
}

// connected is called by the transport when m's primary connection works.
func (r *Room) connected(m *Member) {
	if m.gone {
		return
	}
	m.failedAt = time.Time{}
	if m.state == StateActive {
		return
	}
	m.state = StateActive
	m.wasActive = true
	m.emit(EventJoined{})
	r.changed(m)
}

// failed is called by the transport when a connection is lost for good: only a
// resume with an ICE restart can save it.
func (r *Room) failed(m *Member) {
	if m.gone || !m.failedAt.IsZero() {
		return
	}
	m.failedAt = time.Now()
	m.emit(EventLeave{Reason: ReasonConnectionTimeout, Action: ActionResume})
}

// recovered is called when a connection that is not the primary one works again.
func (r *Room) recovered(m *Member) { m.failedAt = time.Time{} }

// signalLost is documented at Member.SignalLost.
func (r *Room) signalLost(m *Member) {
	m.lost = true
	if m.gone {
		return
	}
	if !m.wasActive {
		r.remove(m, ReasonSignalClose, ActionDisconnect)
	}
}

// tick runs every 400 ms.
func (r *Room) tick(now time.Time) {
	r.checkMembers(now)
	r.tickSpeakers(now)
	for _, t := range r.tracks {
		r.tickTrack(t, now)
	}
	for _, m := range r.members {
		r.tickBandwidth(m, now)
	}
	if len(r.members) > 0 {
		return
	}
	if !now.Before(r.closesAt()) {
		r.closing, r.why = true, ReasonRoomClosed
	}
}

// checkMembers removes those who never connected or whose media stays failed,
// and gives up on tracks that nobody published.
func (r *Room) checkMembers(now time.Time) {
	for _, m := range r.members {
		switch {
		case !m.wasActive && now.Sub(m.joinedAt) >= r.srv.times.join:
			r.remove(m, ReasonJoinFailure, ActionDisconnect)
		case !m.failedAt.IsZero() && now.Sub(m.failedAt) >= r.srv.times.rescue:
			// If the client has resumed and only its media does not come back,
			// it must not take this for being thrown out.
			r.remove(m, ReasonConnectionTimeout, ActionReconnect)
		default:
			r.checkWishes(m, now)
		}
	}
}

// slowTick runs every 5 s.
func (r *Room) slowTick(now time.Time) {
	r.tickQuality(now)
	if r.dirty {
		r.dirty = false
		r.broadcastRoom()
	}
}

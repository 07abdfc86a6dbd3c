package signaling

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/livekit/protocol/livekit"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// A participant is one stay of a LiveKit client in a room, from join to leave.
// Its loop (run) owns everything below the line; sockets come and go while the
// client resumes. After the SFU has let go of a client that merely vanished,
// the participant keeps its seat until LeaveGrace is over, so that a client
// which comes back in time was never gone.
type participant struct {
	s        *Server
	log      *slog.Logger
	hall     *hall // set when seated
	roomName call.RoomName
	identity call.Identity
	joining  *joining
	protocol int32 // the client's
	room     *sfu.Room
	member   atomic.Pointer[sfu.Member] // nil until joined
	inbox    *inbox                     // sfu.Event and the types below
	requests chan signalRequest
	rpc      rpcCalls
	done     chan struct{} // closed when the loop has ended

	// ---- owned by the loop ----

	snapshot  sfu.Snapshot
	sock      *socket   // nil while the client is away
	lostAt    time.Time // since when, zero while there is a socket
	released  bool      // the SFU has let go of the member
	said      bool      // because the client said that it leaves
	ticked    time.Time // when housekeeping was last done
	awake     time.Time // since when it has been done regularly
	over      bool
	leftovers []any // unread when the inbox was closed

	grant     call.Grant // as of the last refresh_token
	refreshAt time.Time

	updates  updates
	roomSent roomSent
	data     dataState
	queued   []*livekit.AddTrackRequest // waiting for their cid to become free

	qualities map[call.TrackSID]sfu.EventSubscribedQuality // latest, told again after a resume
	missed    missedStates
	codecs    []*livekit.Codec
	fallback  livekit.CandidateProtocol // the path for media it was made to use
	drop      dropOnResume
}

// dropOnResume simulates a signal connection that fails again on resume.
type dropOnResume int

const (
	dropNever dropOnResume = iota
	dropAfterMessages
	dropBeforeMessages
)

// What the inbox carries besides events of the SFU.
type (
	signalRequest struct {
		sock    *socket
		request *livekit.SignalRequest
	}
	clientLeave struct {
		sock *socket
		why  livekit.DisconnectReason
	}
	socketLost struct{ sock *socket }
	resumption struct {
		sock    *socket
		joining *joining
	}
	evicted    struct{ why sfu.Reason }
	superseded struct{}
)

// join adds a participant to its room. Its loop has not begun yet: call run,
// or abandon.
func (s *Server) join(ctx context.Context, j *joining) (*participant, *refusal) {
	p := &participant{
		s:         s,
		log:       s.log.With("room", j.grant.Room, "participant", j.grant.Identity),
		roomName:  j.grant.Room,
		identity:  j.grant.Identity,
		joining:   j,
		protocol:  j.client.GetProtocol(),
		inbox:     newInbox(),
		requests:  make(chan signalRequest),
		done:      make(chan struct{}),
		grant:     j.grant,
		qualities: make(map[call.TrackSID]sfu.EventSubscribedQuality),
	}
	params := sfu.JoinParams{
		Grant:          j.grant,
		Mode:           j.mode(),
		AutoSubscribe:  j.autoSubscribe,
		AdaptiveStream: j.adaptiveStream,
		AllowPause:     j.allowPause,
		ICEServers:     s.iceServers(j.grant.Identity),
		ClientProtocol: j.client.GetClientProtocol(),
		Capabilities:   capabilities(j.client),
		Client:         clientInfo(j.client),
		Session:        p,
	}
	// Of two who join as one at the same time, who sits down last must also be
	// the last to join the room: else each ends the other.
	turn := s.joinTurn(p)
	turn.Lock()
	defer turn.Unlock()
	old := s.seat(p)
	p.fallback = s.fallbackOf(p)
	var err error
	for range 3 { // the room may close between opening and joining it
		p.room = s.deps.SFU.OpenRoom(j.grant.Room, s.roomOptions(j.roomConfig))
		var m *sfu.Member
		if m, p.snapshot, err = p.room.Join(ctx, params); err == nil {
			p.member.Store(m)
			break
		}
		if now, ok := s.deps.SFU.Room(j.grant.Room); ok && now == p.room {
			break // not closed: it is full, or the request is bad
		}
	}
	if err != nil {
		s.seatBack(p, old)
		p.log.Info("join refused", "err", err)
		return nil, s.joinRefusal(err)
	}
	s.present(p)
	if old != nil {
		old.tell(superseded{})
	}
	return p, nil
}

func (s *Server) joinRefusal(err error) *refusal {
	e := edgeOf(err)
	if e.status == 404 { // never by accident: clients would take it for "no such server"
		e = internalEdge
	}
	if errors.Is(err, call.ErrUnavailable) {
		return refuse(e.status, "room is full or closing")
	}
	return refuse(e.status, "could not join the room")
}

func (s *Server) roomOptions(conf *livekit.RoomConfiguration) sfu.RoomOptions {
	o := sfu.RoomOptions{
		EmptyTimeout:    s.cfg.EmptyTimeout,
		LeaveTimeout:    s.cfg.LeaveTimeout,
		MaxParticipants: s.cfg.MaxParticipants,
	}
	if conf == nil {
		return o
	}
	if conf.GetEmptyTimeout() > 0 {
		o.EmptyTimeout = time.Duration(conf.GetEmptyTimeout()) * time.Second
	}
	if conf.GetDepartureTimeout() > 0 {
		o.LeaveTimeout = time.Duration(conf.GetDepartureTimeout()) * time.Second
	}
	if conf.GetMaxParticipants() > 0 {
		o.MaxParticipants = int(conf.GetMaxParticipants())
	}
	o.Metadata = conf.GetMetadata()
	return o
}

func (s *Server) iceServers(id call.Identity) []call.ICEServer {
	if s.deps.ICEServers == nil {
		return nil
	}
	servers, _ := s.deps.ICEServers(string(id))
	return servers
}

// mode says how many connections the client will make and who offers.
func (j *joining) mode() sfu.Mode {
	switch {
	case j.single:
		return sfu.ModeSingle
	case j.grant.CanSubscribe && j.client.GetProtocol() > 2:
		return sfu.ModeSubscriberPrimary
	}
	return sfu.ModePublisherPrimary
}

// Event is called by the SFU; it makes a participant an sfu.Session.
func (p *participant) Event(e sfu.Event) {
	if data, ok := e.(sfu.EventData); ok && data.Kind != sfu.DataReliable {
		p.inbox.putAtMost(maxWaitingData, e)
		return
	}
	p.inbox.put(e)
}

// tell queues a message for the loop and reports whether it will be read.
func (p *participant) tell(message any) bool { return p.inbox.put(message) }

// deliver hands a client's request to the loop and waits until it has taken it:
// a client that says much is heard slowly. It reports whether to go on.
func (p *participant) deliver(r signalRequest) bool {
	r.sock.waiting.Store(true)
	defer r.sock.waiting.Store(false)
	defer r.sock.touch()
	select {
	case p.requests <- r:
		return true
	case <-r.sock.finishing:
		return false
	case <-p.done:
		return false
	}
}

// resume offers the participant a new socket. False means that it is too late.
func (p *participant) resume(sock *socket, j *joining) bool {
	return p.tell(resumption{sock, j})
}

// abandon lets go of a participant whose upgrade failed after the join.
func (p *participant) abandon() {
	if !p.s.begin(func() { p.run(nil) }) {
		p.member.Load().Leave(sfu.ReasonServerShutdown)
		p.s.depart(p, false, false)
		close(p.done)
	}
}

// run is the participant's loop.
func (p *participant) run(sock *socket) {
	defer close(p.done)
	p.sock = sock
	if sock == nil {
		p.away()
	} else {
		p.welcome()
	}
	tick := time.NewTicker(p.s.times.tick)
	defer tick.Stop()
	for !p.over {
		select {
		case <-p.inbox.signal:
			for _, item := range p.inbox.take() {
				if p.over {
					p.leftovers = append(p.leftovers, item)
					continue
				}
				p.handle(item)
			}
		case r := <-p.requests:
			if r.sock == p.sock {
				p.request(r.request)
			}
		case now := <-tick.C:
			p.housekeeping(now)
		case <-p.s.ctx.Done():
			p.shutdown()
		}
	}
	for _, item := range p.leftovers {
		if r, ok := item.(resumption); ok {
			p.turnAway(r.sock)
		}
	}
}

func (p *participant) handle(item any) {
	switch item := item.(type) {
	case sfu.Event:
		p.event(item)
	case outgoing:
		p.sendData(item)
	case clientLeave:
		if p.sock == nil || p.sock == item.sock {
			p.said = true
			p.member.Load().Leave(leaveReason(item.why))
		}
	case socketLost:
		if item.sock == p.sock {
			p.away()
		}
	case resumption:
		p.takeUp(item)
	case evicted:
		// The SFU had let go of the member before, or the leave would have come.
		p.leave(item.why, sfu.ActionDisconnect)
		p.member.Load().Leave(item.why)
		p.end(true, true)
	case superseded:
		p.leave(sfu.ReasonDuplicateIdentity, sfu.ActionDisconnect)
		p.end(false, false)
	}
}

// send writes to the client if it is there.
func (p *participant) send(m *livekit.SignalResponse) {
	if p.sock != nil {
		p.sock.send(m)
	}
}

// away notes that the signal socket is gone. Media goes on for a while.
func (p *participant) away() {
	p.sock = nil
	if p.lostAt.IsZero() {
		p.lostAt = time.Now()
	}
	p.member.Load().SignalLost()
}

// leave tells the client to go, or to come again, and closes its socket.
func (p *participant) leave(why sfu.Reason, action sfu.Action) {
	if p.sock == nil {
		return
	}
	if action != sfu.ActionResume || p.protocol > 12 {
		p.sock.send(leaveResponse(why, action, p.protocol))
	} // older clients resume when the socket closes; any leave makes them join anew
	p.sock.finish(closeNormal, "")
	p.sock = nil
	p.lostAt = time.Now()
}

// end gives up the seat; report says whether the gate must hear of it.
func (p *participant) end(report, intentional bool) {
	p.over = true
	if p.sock != nil {
		p.sock.finish(closeNormal, "")
		p.sock = nil
	}
	p.s.depart(p, report, intentional)
}

// release handles the SFU's last word about the member.
func (p *participant) release(e sfu.EventLeave) {
	p.leave(e.Reason, e.Action)
	if p.lostAt.IsZero() {
		p.lostAt = time.Now()
	}
	if e.Action == sfu.ActionResume {
		return // the member is kept for a moment
	}
	p.released = true
	p.log.Info("participant left", "reason", livekit.DisconnectReason(e.Reason))
	switch e.Reason {
	case sfu.ReasonDuplicateIdentity:
		p.end(false, false) // its successor is here
	case sfu.ReasonServerShutdown:
		p.end(false, false) // it will be back
	case sfu.ReasonClientInitiated:
		p.said = true // also before a full reconnect, so wait a moment
	case sfu.ReasonParticipantRemoved, sfu.ReasonRoomDeleted, sfu.ReasonRoomClosed,
		sfu.ReasonUserUnavailable, sfu.ReasonUserRejected, sfu.ReasonAgentError:
		if e.Action == sfu.ActionDisconnect {
			p.end(true, true)
		}
	}
	// Any other reason is bad luck: the grace decides.
}

// shutdown tells the client to come again when this server, or another, is up.
func (p *participant) shutdown() {
	p.leave(sfu.ReasonServerShutdown, sfu.ActionReconnect)
	if !p.released {
		p.member.Load().Leave(sfu.ReasonServerShutdown)
	}
	p.end(false, false)
}

// housekeeping does what is due by the clock.
func (p *participant) housekeeping(now time.Time) {
	p.noticeStall(now)
	if p.silence(now) >= p.s.cfg.LeaveGrace {
		// Silence is as good as a lost socket: its grace is already over.
		p.log.Info("client silent", "for", p.silence(now).Round(time.Second))
		p.lostAt = now.Add(-p.s.cfg.LeaveGrace)
		p.sock.finish(closeGoingAway, "silent")
		p.sock = nil
	}
	if p.sock == nil {
		if now.Sub(p.lostAt) >= p.grace() {
			if !p.released {
				p.member.Load().Leave(sfu.ReasonConnectionTimeout)
			}
			p.end(true, p.said)
		}
		return
	}
	if now.After(p.refreshAt) {
		p.refreshToken()
	}
	p.flushUpdates(now)
	p.flushRoom(now)
}

// silence is for how long nothing has come from the client. One whose request
// waits for this loop is not silent.
func (p *participant) silence(now time.Time) time.Duration {
	if p.sock == nil || p.sock.waiting.Load() {
		return 0
	}
	since := p.sock.lastHeard()
	if since.Before(p.awake) {
		since = p.awake
	}
	return now.Sub(since)
}

// noticeStall keeps clients from being blamed for the time in which this
// machine slept or was too busy to hear them.
func (p *participant) noticeStall(now time.Time) {
	stall := now.Sub(p.ticked)
	if !p.ticked.IsZero() && stall > p.s.times.tick+p.s.times.stall {
		p.awake = now
		if p.sock == nil {
			p.lostAt = p.lostAt.Add(stall)
		}
	}
	p.ticked = now
}

// grace is how long the seat is kept after the socket is gone. SDKs say leave
// and join at once when they reconnect in full, so even a spoken leave is not
// believed at first.
func (p *participant) grace() time.Duration {
	if p.said {
		return min(p.s.times.secondThought, p.s.cfg.LeaveGrace)
	}
	return p.s.cfg.LeaveGrace
}

// welcome sends the first messages of a join and starts what the join asked for.
func (p *participant) welcome() {
	p.send(p.joinResponse())
	p.refreshToken()
	j := p.joining
	for _, add := range j.addTracks {
		p.addTrack(add)
	}
	if j.offer != nil {
		p.offer(j.offer)
	}
	j.addTracks, j.offer = nil, nil
}

// takeUp continues the stay over a new socket.
func (p *participant) takeUp(r resumption) {
	_, snapshot, err := p.room.Resume(p.identity, r.joining.sid, p)
	if err != nil {
		p.turnAway(r.sock)
		return
	}
	if p.sock != nil {
		p.sock.finish(closeGoingAway, "resumed elsewhere")
	}
	if p.drop == dropBeforeMessages {
		p.drop = dropNever
		r.sock.finish(closeNormal, "")
		p.away()
		return
	}
	p.sock, p.lostAt, p.said = r.sock, time.Time{}, false
	p.protocol = r.joining.client.GetProtocol()
	p.s.present(p)
	p.send(p.reconnectResponse())
	p.sendAllParticipants(snapshot)
	p.sendRoom(snapshot.Room)
	p.refreshToken()
	for _, e := range p.qualities {
		p.send(qualityResponse(e))
	}
	for _, m := range p.missed.take() {
		p.send(m)
	}
	if r.joining.syncState != nil {
		p.syncState(r.joining.syncState)
	}
	if r.joining.offer != nil {
		p.offer(r.joining.offer)
	}
	if p.drop == dropAfterMessages {
		p.drop = dropNever
		p.sock.finish(closeNormal, "")
		p.away()
	}
}

// turnAway tells a client that wants to resume that it must join anew.
func (p *participant) turnAway(sock *socket) {
	sock.send(leaveResponse(sfu.ReasonStateMismatch, sfu.ActionReconnect, p.protocol))
	sock.finish(closeNormal, "")
}

// refreshToken gives the client a token to come back with. Whoever may not
// come back has no business here any more.
func (p *participant) refreshToken() {
	p.grant = p.member.Load().Grant()
	p.refreshAt = time.Now().Add(p.s.times.refresh)
	ctx, cancel := context.WithTimeout(p.s.ctx, 5*time.Second)
	defer cancel()
	g := p.grant
	if g.NotBefore.Before(time.Now()) {
		// Else the participant has come back in the second in which it was
		// removed, and a token of this second would be a dead one.
		g.NotBefore = time.Time{}
	}
	if err := p.s.gate.check(ctx, p.grant); err != nil {
		if errors.Is(err, call.ErrForbidden) {
			p.log.Info("participant may not stay")
			p.member.Load().Leave(sfu.ReasonParticipantRemoved)
			return
		}
		p.log.Warn("checking a participant's right to stay", "err", err)
		p.refreshAt = time.Now().Add(p.s.times.refresh / 10)
		return
	}
	ttl := max(p.s.cfg.TokenTTL, 10*time.Minute, time.Until(p.joining.grant.Expires))
	token, err := p.s.mint(g, ttl)
	if err != nil {
		p.log.Error("minting a token", "err", err)
		return
	}
	p.send(&livekit.SignalResponse{Message: &livekit.SignalResponse_RefreshToken{RefreshToken: token}})
}

// noticeGrant sends a new token when the participant's own grant has changed.
func (p *participant) noticeGrant() {
	if !reflect.DeepEqual(p.member.Load().Grant(), p.grant) {
		p.refreshToken()
	}
}

package sfu

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// ClientInfo is what a client said of itself; it decides about quirks only.
type ClientInfo struct {
	SDK      string // "js", "go", "swift", ...
	Browser  string // "chrome", "firefox", "safari", ...; lower case
	OS       string
	Protocol int // LiveKit protocol version
}

// JoinParams are what Room.Join needs to know of a new member.
type JoinParams struct {
	Grant          call.Grant
	Mode           Mode
	AutoSubscribe  bool
	AdaptiveStream bool
	AllowPause     *bool // nil: the server decides
	ICEServers     []call.ICEServer
	ClientProtocol int32
	Capabilities   []int32
	Client         ClientInfo
	// Session hears the member's events. They may begin before Join returns.
	Session Session
}

// A Snapshot is the room as it was at the moment of joining or resuming.
type Snapshot struct {
	Room          RoomInfo
	Self          ParticipantInfo
	Others        []ParticipantInfo
	PublishCodecs []string // MIME types the member may publish, video first
}

// A TrackPermission lets one subscriber have some of a publisher's tracks. The
// subscriber is named by Identity or, if that is empty, by SID.
type TrackPermission struct {
	Identity  call.Identity
	SID       call.ParticipantSID
	AllTracks bool
	TrackSIDs []call.TrackSID
}

// SyncState is what a resuming client believes.
type SyncState struct {
	Published []call.TrackSID // tracks it publishes
	Disabled  []call.TrackSID // subscribed tracks it has paused
	// Subscription: with Subscribe false the tracks are those it does not want
	// although it subscribes automatically, with true those that it wants.
	Subscribe bool
	Tracks    []call.TrackSID
}

// A Member is one participant's session in a room, from Join until EventLeave.
// Its methods may be called from any goroutine, also after the end, when they
// return errors or do nothing.
type Member struct {
	room     *Room
	sid      call.ParticipantSID
	identity call.Identity
	params   JoinParams                // as given to Join; Session and Grant have moved below
	conn     *transport                // nil for members of this process
	tap      Tap                       // for those; may be nil
	line     atomic.Pointer[linkState] // for those, as they report it
	info     atomic.Pointer[ParticipantInfo]

	eventMu sync.Mutex // guards the following and orders the events
	session Session
	ended   bool

	// The rest belongs to the room's goroutine.
	grant      call.Grant
	state      State
	joinedAt   time.Time
	version    uint32
	tracks     map[call.TrackSID]*track
	subs       map[call.TrackSID]*subscription
	wants      map[call.TrackSID]wish
	settings   map[call.TrackSID]TrackSettings
	policy     policy
	gone       bool
	lost       bool       // the signalling connection is gone
	failedAt   time.Time  // media failed; zero while it works
	spoke      speakerMap // what the member was last told of speakers
	quality    map[call.ParticipantSID]ConnectionQuality
	wasActive  bool
	congestion congestion
	sentAt     time.Time // of sentBytes, what was forwarded to it until then
	sentBytes  uint64
	sentRate   float64                // bit/s, smoothed
	allowedNow map[call.TrackSID]bool // what it was last told of permissions
}

// SID returns the server's name for this session.
func (m *Member) SID() call.ParticipantSID { return m.sid }

// Identity returns the participant's identity.
func (m *Member) Identity() call.Identity { return m.identity }

// Info describes the member as of now.
func (m *Member) Info() ParticipantInfo { return *m.info.Load() }

// Grant returns what the member may do as of now.
func (m *Member) Grant() call.Grant { return m.info.Load().Grant }

// Offer answers the client's offer with EventAnswer. An error wraps
// call.ErrInvalid when the description is unusable (the member lives on).
func (m *Member) Offer(id uint32, sdp string) error {
	if m.conn == nil {
		return errNoConnection
	}
	return m.conn.offer(id, sdp)
}

// Answer takes the client's answer to EventOffer. In ModeSingle the server
// never offers and any answer is ignored.
func (m *Member) Answer(id uint32, sdp string) error {
	if m.conn == nil {
		return errNoConnection
	}
	return m.conn.answer(id, sdp)
}

// Candidate takes one of the client's ICE candidates, the JSON of an
// RTCIceCandidateInit.
func (m *Member) Candidate(t Target, candidateInitJSON string) error {
	if m.conn == nil {
		return errNoConnection
	}
	return m.conn.candidate(t, candidateInitJSON)
}

// AddTrack announces a track that the client is about to send; its media is
// recognised by the CID in the client's next offer. The track is also reported
// by EventTrackPublished. Errors wrap call.ErrForbidden, call.ErrInvalid,
// call.ErrConflict (the CID is in use), call.ErrUnavailable (too many tracks
// announced or live) or call.ErrNotFound (a backup codec for no track).
func (m *Member) AddTrack(a AddTrack) (TrackInfo, error) {
	var info TrackInfo
	var err error
	if e := m.room.do(func() { info, err = m.room.addTrack(m, a) }); e != nil {
		return TrackInfo{}, e
	}
	return info, err
}

// Unpublish ends a track of this member.
func (m *Member) Unpublish(sid call.TrackSID) error {
	return m.onTrack(sid, func(t *track) error {
		m.room.removeTrack(t, false)
		return nil
	})
}

// SetMuted records that the client muted or unmuted its own track.
func (m *Member) SetMuted(sid call.TrackSID, muted bool) error {
	return m.onTrack(sid, func(t *track) error {
		m.room.setMuted(t, muted)
		return nil
	})
}

// MuteByServer mutes or unmutes the member's track and tells its client by
// EventMute.
func (m *Member) MuteByServer(sid call.TrackSID, muted bool) error {
	return m.onTrack(sid, func(t *track) error {
		if t.info.Muted != muted {
			m.emit(EventMute{SID: sid, Muted: muted})
			t.up.setSilenced(muted)
			m.room.setMuted(t, muted)
		}
		return nil
	})
}

// UpdateTrackFeatures replaces the audio features that peers are shown.
func (m *Member) UpdateTrackFeatures(sid call.TrackSID, features []int32) error {
	return m.onTrack(sid, func(t *track) error {
		t.info.Features = slices.Clone(features)
		m.room.changed(m)
		return nil
	})
}

// UpdateTrackSize replaces the dimensions of a video track.
func (m *Member) UpdateTrackSize(sid call.TrackSID, width, height uint32) error {
	return m.onTrack(sid, func(t *track) error {
		t.resize(width, height)
		m.room.changed(m)
		m.room.retarget(t)
		return nil
	})
}

// onTrack runs f on the room's goroutine with one of the member's own tracks.
func (m *Member) onTrack(sid call.TrackSID, f func(*track) error) error {
	var err error
	if e := m.room.do(func() {
		t, ok := m.tracks[sid]
		if !ok {
			err = fmt.Errorf("track %s of %s: %w", sid, m.identity, call.ErrNotFound)
			return
		}
		err = f(t)
	}); e != nil {
		return e
	}
	return err
}

// Subscribe asks for tracks or declines them. Tracks that do not exist yet are
// remembered; EventSubscriptionFailed comes when they do not appear for a minute.
func (m *Member) Subscribe(on bool, sids ...call.TrackSID) {
	m.room.post(func() { m.room.setWishes(m, on, sids) })
}

// SetTrackSettings says which quality of subscribed tracks the client wants.
func (m *Member) SetTrackSettings(st TrackSettings, sids ...call.TrackSID) {
	m.room.post(func() { m.room.setSettings(m, st, sids) })
}

// SetSubscriptionPermissions replaces the rules of who may have the member's
// tracks: everybody, or those listed.
func (m *Member) SetSubscriptionPermissions(all bool, per []TrackPermission) {
	m.room.post(func() {
		m.policy = newPolicy(all, per)
		m.room.reconcilePublisher(m)
	})
}

// ReportLink tells how good the line of a member of this process is: the share of
// packets lost lately and the round trip time. Others are shown it as the quality
// of its connection.
func (m *Member) ReportLink(lost float64, rtt time.Duration) {
	if m.conn == nil {
		m.line.Store(&linkState{up: lost, rtt: rtt})
	}
}

// UpdateSelf changes what others are shown: empty name or metadata stay as they
// are, an attribute with an empty value is deleted.
func (m *Member) UpdateSelf(name, metadata string, attrs map[string]string) error {
	return m.room.do(func() {
		if name != "" {
			m.grant.Name = name
		}
		if metadata != "" {
			m.grant.Metadata = metadata
		}
		merged := maps.Clone(m.grant.Attrs)
		for k, v := range attrs {
			if merged == nil {
				merged = make(map[string]string)
			}
			if v == "" {
				delete(merged, k)
			} else {
				merged[k] = v
			}
		}
		m.grant.Attrs = merged
		m.room.changed(m)
	})
}

// SetGrant replaces what the member may do and what others are shown of it.
// Tracks it may no longer publish end with EventTrackUnpublished.
func (m *Member) SetGrant(g call.Grant) {
	m.room.post(func() { m.room.setGrant(m, g) })
}

// SyncState compares the state of a resumed client with the server's. The error
// wraps call.ErrConflict when only a full reconnect can help.
func (m *Member) SyncState(s SyncState) error {
	var err error
	if e := m.room.do(func() { err = m.room.syncState(m, s) }); e != nil {
		return e
	}
	return err
}

// SendData sends a message to the client on a data channel. It never waits: the
// error wraps call.ErrUnavailable when the channel is not open or too much is
// waiting for a slow client already. A member of this process gets EventData.
func (m *Member) SendData(k DataKind, payload []byte) error {
	if m.conn == nil {
		return m.localData(k, payload)
	}
	return m.conn.sendData(k, payload)
}

// SignalLost tells that the signalling connection is gone. A member whose media
// never connected leaves at once; any other stays until Room.Resume, until its
// media fails, or until somebody calls Leave.
func (m *Member) SignalLost() {
	m.room.post(func() { m.room.signalLost(m) })
}

// Leave ends the session. EventLeave follows.
func (m *Member) Leave(why Reason) {
	m.room.post(func() { m.room.remove(m, why, ActionDisconnect) })
}

// emit hands an event to the session, in order.
func (m *Member) emit(e Event) {
	m.eventMu.Lock()
	defer m.eventMu.Unlock()
	if m.ended {
		return
	}
	if leave, ok := e.(EventLeave); ok {
		m.ended = leave.Action != ActionResume // then it may still be saved
	}
	m.session.Event(e)
}

// swapSession makes s hear all further events.
func (m *Member) swapSession(s Session) {
	m.eventMu.Lock()
	defer m.eventMu.Unlock()
	m.session = s
}

// Info describes the room as of now.
func (r *Room) Info() RoomInfo { return *r.info.Load() }

// Name returns the room's name.
func (r *Room) Name() call.RoomName { return r.name }

// SetMetadata replaces the room's metadata and tells everybody.
func (r *Room) SetMetadata(metadata string) {
	r.post(func() {
		r.metadata = metadata
		r.refresh()
		r.broadcastRoom()
	})
}

// Configure changes what o sets: empty metadata, zero times and a bound of 0
// stay as they are, OnClosed too. Nobody is removed.
func (r *Room) Configure(o RoomOptions) error {
	return r.do(func() { r.configure(o) })
}

// SifTrailer returns the random bytes that end every frame which the server
// itself makes up, so that end-to-end-encrypting clients can tell them.
func (r *Room) SifTrailer() []byte { return slices.Clone(r.sif) }

// Join adds a member. An older session of the same identity is ended with
// ReasonDuplicateIdentity. Errors wrap call.ErrUnavailable when the room is full
// or has closed (open it again).
func (r *Room) Join(ctx context.Context, p JoinParams) (*Member, Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return nil, Snapshot{}, err
	}
	if p.Grant.Identity == "" {
		return nil, Snapshot{}, fmt.Errorf("join room %s without identity: %w", r.name, call.ErrInvalid)
	}
	if p.Session == nil {
		return nil, Snapshot{}, errors.New("join without a session")
	}
	m := r.newMember(p)
	var err error
	if m.conn, err = newTransport(m); err != nil {
		return nil, Snapshot{}, fmt.Errorf("connection for %s: %w", m.identity, err)
	}
	var snap Snapshot
	var joinErr error
	if err := r.do(func() { snap, joinErr = r.add(m) }); err != nil {
		joinErr = err
	}
	if joinErr != nil {
		m.conn.close()
		return nil, Snapshot{}, joinErr
	}
	return m, snap, nil
}

// Resume continues a member's session with a new signalling connection: its
// connections, tracks and SID stay. sid may be empty; otherwise it must be the
// member's. The error wraps call.ErrNotFound when there is nothing to resume.
func (r *Room) Resume(id call.Identity, sid call.ParticipantSID, s Session) (*Member, Snapshot, error) {
	var m *Member
	var snap Snapshot
	var err error
	if e := r.do(func() { m, snap, err = r.resume(id, sid, s) }); e != nil {
		return nil, Snapshot{}, fmt.Errorf("%w (%w)", call.ErrNotFound, e)
	}
	return m, snap, err
}

// Member returns the member with that identity.
func (r *Room) Member(id call.Identity) (*Member, bool) {
	var m *Member
	_ = r.do(func() { m = r.members[id] })
	return m, m != nil
}

// Participants describes every member, hidden ones too.
func (r *Room) Participants() []ParticipantInfo {
	var out []ParticipantInfo
	_ = r.do(func() {
		for _, m := range r.members {
			out = append(out, m.Info())
		}
	})
	return out
}

// Remove ends a member's session from outside: its client gets EventLeave and
// not one more packet flows in either direction once Remove has returned.
func (r *Room) Remove(id call.Identity, why Reason) error {
	var err error
	if e := r.do(func() {
		m, ok := r.members[id]
		if !ok {
			err = fmt.Errorf("participant %s in room %s: %w", id, r.name, call.ErrNotFound)
			return
		}
		r.remove(m, why, ActionDisconnect)
	}); e != nil {
		return fmt.Errorf("%w (%w)", call.ErrNotFound, e)
	}
	return err
}

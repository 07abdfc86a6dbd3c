package sfu

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/trunkhall/trunkhall/call"
)

const (
	maxQueuedOps     = 8192 // negotiation steps waiting for one member
	maxRemoteCands   = 100  // ICE candidates taken from one client per connection and description
	maxCheckedCands  = 10   // of those, how many full ICE sends checks to
	maxCandidate     = 4 << 10
	offerDebounce    = 15 * time.Millisecond // gathers the tracks of one moment into one negotiation
	answerLimit      = 15 * time.Second
	askAgainAfter    = 5 * time.Second // for a client that ignored EventSectionsRequired
	transportTick    = time.Second
	closeLimit       = 10 * time.Second // never reached; a defect must not stop the server from stopping
	maxMessageBytes  = 65535
	maxBufferedBytes = 4 << 20 // reliable data waiting for one client
	maxLossyBytes    = 256 << 10

	// maxBytesPerSecond bounds what one client may send, media and data: well
	// above three simulcast layers and a screen, far below a flood.
	maxBytesPerSecond = 8 << 20
)

// A transport is all of a member's connections and the only part that knows
// how media gets from and to its client. One goroutine, run, negotiates: it may
// wait for the room, which never waits for it.
type transport struct {
	m    *Member
	room *Room
	log  *slog.Logger
	mode Mode

	pub *peer // answers the client; the only one unless ModeSubscriberPrimary
	sub *peer // offers to the client; nil in the other modes

	dead    atomic.Bool   // no packet may pass any more
	ended   chan struct{} // closed by close
	endOnce sync.Once
	running atomic.Bool
	done    chan struct{}  // closed when run has returned
	readers sync.WaitGroup // goroutines that read packets
	budget  atomic.Int64   // bytes the client may still send this second

	estimate atomic.Uint64 // bit/s that the client says it can receive; 0 if unknown

	mu   sync.Mutex // guards the following
	ops  []func()
	shut bool          // no more readers
	wake chan struct{} // holds one token while ops is not empty

	// The rest belongs to run.
	wanted  []*downTrack // to be sent, without a media section yet
	dirty   bool         // the client must negotiate again
	askedAt time.Time    // of the last EventSectionsRequired since the last offer
	asked   [2]int       // sections asked for since the last offer, by kind
	offers  int          // answered ones
	due     time.Time    // when to look at dirty
}

func newTransport(m *Member) (*transport, error) {
	t := &transport{
		m: m, room: m.room, mode: m.params.Mode,
		log:   m.room.log.With("participant", m.identity),
		ended: make(chan struct{}), done: make(chan struct{}),
		wake: make(chan struct{}, 1),
	}
	t.budget.Store(maxBytesPerSecond)
	dir := receives
	if t.mode == ModeSingle {
		dir |= sends
	}
	var err error
	if t.pub, err = newPeer(t, TargetPublisher, dir); err != nil {
		return nil, err
	}
	if t.mode == ModeSubscriberPrimary {
		if t.sub, err = newPeer(t, TargetSubscriber, sends); err != nil {
			_ = t.pub.pc.Close()
			return nil, err
		}
		if err := t.sub.openChannels(); err != nil {
			t.close()
			return nil, err
		}
		t.dirty = true // the first offer carries the data channels
	}
	return t, nil
}

// primary is the connection that makes the member active.
func (t *transport) primary() *peer {
	if t.sub != nil {
		return t.sub
	}
	return t.pub
}

// down is the connection that carries what the client receives.
func (t *transport) down() *peer { return t.primary() }

// enqueue runs f on the transport's goroutine, later. It never waits.
func (t *transport) enqueue(f func()) bool {
	t.mu.Lock()
	if len(t.ops) >= maxQueuedOps {
		t.mu.Unlock()
		t.log.Warn("negotiation queue is full: removing member")
		// On a goroutine of its own: this may be the room's.
		t.spawn(func() {
			t.room.post(func() { t.room.remove(t.m, ReasonMediaFailure, ActionDisconnect) })
		})
		return false
	}
	t.ops = append(t.ops, f)
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
	return true
}

// call runs f on the transport's goroutine and waits for its error.
func (t *transport) call(f func() error) error {
	result := make(chan error, 1)
	if !t.enqueue(func() {
		err := errors.New("negotiation step panicked")
		defer func() { result <- err }()
		err = f()
	}) {
		return fmt.Errorf("too many negotiation steps: %w", call.ErrUnavailable)
	}
	select {
	case err := <-result:
		return err
	case <-t.ended:
		return fmt.Errorf("participant %s has left: %w", t.m.identity, call.ErrNotFound)
	}
}

// run owns the negotiation until close.
func (t *transport) run() {
	t.running.Store(true)
	defer close(t.done)
	tick := time.NewTicker(transportTick)
	defer tick.Stop()
	later := time.NewTimer(time.Hour)
	defer later.Stop()
	t.schedule()
	for {
		if !t.due.IsZero() {
			later.Reset(time.Until(t.due))
		}
		select {
		case <-t.ended:
			return
		case <-t.wake:
			t.runOps()
		case <-later.C:
			if !t.due.IsZero() {
				t.due = time.Time{}
				t.guard(t.negotiate)
			}
		case now := <-tick.C:
			t.guard(func() { t.tick(now) })
		}
	}
}

func (t *transport) runOps() {
	t.mu.Lock()
	ops := t.ops
	t.ops = nil
	t.mu.Unlock()
	for _, f := range ops {
		select {
		case <-t.ended:
			return
		default:
			t.guard(f)
		}
	}
	t.schedule()
}

// schedule makes negotiate run soon if there is anything to negotiate.
func (t *transport) schedule() {
	if t.dirty && t.due.IsZero() {
		t.due = time.Now().Add(offerDebounce)
	}
}

// guard turns a panic, which can only come from a hostile client's input, into
// the end of this member alone.
func (t *transport) guard(f func()) {
	defer func() {
		if p := recover(); p != nil {
			t.log.Error("negotiation panicked", "panic", p, "stack", stack())
			t.room.post(func() { t.room.remove(t.m, ReasonMediaFailure, ActionDisconnect) })
		}
	}()
	f()
}

// tick runs every second: sender reports, unanswered requests.
func (t *transport) tick(now time.Time) {
	t.budget.Store(maxBytesPerSecond)
	t.down().sendReports(now)
	if t.mode == ModeSubscriberPrimary {
		if !t.sub.offeredAt.IsZero() && now.Sub(t.sub.offeredAt) > answerLimit {
			t.sub.offeredAt = time.Time{}
			t.log.Info("no answer to an offer: client must reconnect")
			t.room.post(func() { t.room.remove(t.m, ReasonUnknown, ActionReconnect) })
		}
		return
	}
	if !t.askedAt.IsZero() && now.Sub(t.askedAt) > askAgainAfter && len(t.wanted) > 0 {
		t.asked = [2]int{}
		t.dirty = true
		t.schedule()
	}
}

// offer handles the client's offer on the publisher connection.
func (t *transport) offer(id uint32, sdp string) error {
	sections, err := parseDescription(sdp)
	if err != nil {
		return err
	}
	return t.call(func() error {
		err := t.takeOffer(id, sdp, sections)
		if err != nil && t.pub.stuck() {
			t.log.Info("offer broke the connection: client must reconnect", "error", err)
			t.room.post(func() { t.room.remove(t.m, ReasonUnknown, ActionReconnect) })
		}
		return err
	})
}

func (t *transport) takeOffer(id uint32, sdp string, sections []section) error {
	p := t.pub
	if err := p.setRemoteOffer(sdp, sections); err != nil {
		return err
	}
	// Which of the client's media sections carries which announced track?
	var claims []*track
	if err := t.room.do(func() { claims = t.room.claim(t.m, sections) }); err != nil {
		return err
	}
	styles := p.configureReceiving(sections, claims)
	mids := make(map[string]call.TrackSID)
	if t.mode == ModeSingle {
		t.assignSections(sections, styles)
		mids = p.midToTrack()
	}
	answer, err := p.answerOffer(styles)
	if err != nil {
		return fmt.Errorf("answer: %w", errors.Join(call.ErrInvalid, err))
	}
	t.offers++
	t.asked = [2]int{}
	t.askedAt = time.Time{}
	t.m.emit(EventAnswer{ID: id, SDP: answer, MIDToTrack: mids})
	p.described()
	if t.mode == ModeSingle && len(t.wanted) > 0 {
		t.dirty = true // more tracks than sections
	}
	return nil
}

// assignSections gives wanted tracks to free receiving sections of the client.
func (t *transport) assignSections(sections []section, styles map[string]answerStyle) {
	p := t.pub
	for _, s := range sections {
		if s.data || !s.receives {
			continue
		}
		if p.slots[s.mid] == nil {
			if i := t.nextWanted(s.kind); i >= 0 {
				d := t.wanted[i]
				if err := p.send(s.mid, d); err != nil {
					t.log.Warn("cannot send on a media section", "mid", s.mid, "error", err)
				} else {
					t.wanted = append(t.wanted[:i], t.wanted[i+1:]...)
				}
			}
		}
		if p.slots[s.mid] == nil {
			st := styles[s.mid]
			st.idle = true
			styles[s.mid] = st
		}
	}
	p.free = [2]int{}
	for _, s := range sections {
		if !s.data && s.receives && p.slots[s.mid] == nil {
			p.free[s.kind]++
		}
	}
}

func (t *transport) nextWanted(k Kind) int {
	for i, d := range t.wanted {
		if d.kind == k {
			return i
		}
	}
	return -1
}

// negotiate brings what was attached and detached to the client.
func (t *transport) negotiate() {
	if !t.dirty {
		return
	}
	switch t.mode {
	case ModeSingle:
		if t.offers == 0 {
			return // the client's first offer is still to come
		}
		t.dirty = false
		var need [2]uint32
		var want [2]int
		for _, d := range t.wanted {
			want[d.kind]++
		}
		for k := range want {
			if short := want[k] - t.pub.free[k] - t.asked[k]; short > 0 {
				need[k] = uint32(short)
				t.asked[k] += short
			}
		}
		t.askedAt = time.Now()
		t.m.emit(EventSectionsRequired{Audio: need[KindAudio], Video: need[KindVideo]})
	case ModeSubscriberPrimary:
		if !t.sub.offeredAt.IsZero() {
			return // the answer will bring us here again
		}
		t.dirty = false
		for _, d := range t.wanted {
			if err := t.sub.add(d); err != nil {
				t.log.Warn("cannot add a track", "error", err)
			}
		}
		t.wanted = nil
		t.sendOffer(false)
	}
}

// sendOffer offers the subscriber connection's present state to the client.
func (t *transport) sendOffer(restart bool) {
	sdp, err := t.sub.makeOffer(restart)
	if err != nil {
		t.log.Warn("cannot make an offer", "error", err)
		t.room.post(func() { t.room.remove(t.m, ReasonMediaFailure, ActionReconnect) })
		return
	}
	t.sub.offeredAt = time.Now()
	t.sub.offerID++
	t.m.emit(EventOffer{ID: t.sub.offerID, SDP: sdp, MIDToTrack: t.sub.midToTrack()})
	t.sub.described()
}

// answer handles the client's answer on the subscriber connection.
func (t *transport) answer(id uint32, sdp string) error {
	if t.sub == nil {
		return nil
	}
	if _, err := parseDescription(sdp); err != nil {
		return err
	}
	return t.call(func() error {
		if t.sub.offeredAt.IsZero() {
			return fmt.Errorf("answer %d to no offer: %w", id, call.ErrInvalid)
		}
		if id != t.sub.offerID {
			t.log.Debug("answer has another id than the offer", "answer", id, "offer", t.sub.offerID)
		}
		if err := t.sub.setRemoteAnswer(sdp); err != nil {
			return err
		}
		t.sub.offeredAt = time.Time{}
		if t.sub.restart {
			t.sub.restart = false
			t.sendOffer(true)
		}
		t.schedule()
		return nil
	})
}

// candidate handles one of the client's ICE candidates.
func (t *transport) candidate(target Target, init string) error {
	p := t.pub
	if target == TargetSubscriber {
		p = t.sub
	}
	if p == nil {
		return fmt.Errorf("candidate for a connection that does not exist: %w", call.ErrInvalid)
	}
	if len(init) > maxCandidate {
		return fmt.Errorf("candidate of %d bytes: %w", len(init), call.ErrInvalid)
	}
	var c webrtc.ICECandidateInit
	if err := json.Unmarshal([]byte(init), &c); err != nil {
		return fmt.Errorf("candidate: %w", errors.Join(call.ErrInvalid, err))
	}
	t.enqueue(func() { p.addCandidate(c) })
	return nil
}

// attach starts sending d to the client, as soon as that is negotiated.
func (t *transport) attach(d *downTrack) {
	t.enqueue(func() {
		if d.stopped.Load() {
			return
		}
		t.wanted = append(t.wanted, d)
		t.dirty = true
	})
}

// detach takes d off its media section, which stays for the next track.
func (t *transport) detach(d *downTrack) {
	t.enqueue(func() {
		for i, w := range t.wanted {
			if w == d {
				t.wanted = append(t.wanted[:i], t.wanted[i+1:]...)
				return
			}
		}
		if t.down().remove(d) {
			t.dirty = true
		}
	})
}

// unpublish forgets the media section of a track that ended.
func (t *transport) unpublish(u *upTrack) {
	t.enqueue(func() { t.pub.forget(u) })
}

// resumed is called when a new signalling connection took over. Clients in
// ModeSingle restart ICE themselves; in ModeSubscriberPrimary we offer to.
func (t *transport) resumed() {
	t.enqueue(func() {
		if t.sub == nil {
			if t.dirty || len(t.wanted) > 0 {
				t.asked = [2]int{} // what we asked for may have been lost
				t.dirty = true
			}
			return
		}
		if !t.sub.offeredAt.IsZero() {
			// The offer in flight may have been lost with the old signalling
			// connection. It can not be taken back: send it again.
			t.sub.restart = true
			t.sub.offeredAt = time.Now()
			if o := t.sub.pc.PendingLocalDescription(); o != nil {
				if sdp, err := styleAnswer(o.SDP, nil); err == nil {
					t.m.emit(EventOffer{ID: t.sub.offerID, SDP: sdp, MIDToTrack: t.sub.midToTrack()})
				}
			}
			return
		}
		t.sendOffer(true)
	})
}

// sendData is documented at Member.SendData.
func (t *transport) sendData(k DataKind, payload []byte) error {
	if k < DataReliable || k > DataTrack {
		return fmt.Errorf("data kind %d: %w", k, call.ErrInvalid)
	}
	if len(payload) > maxMessageBytes {
		return fmt.Errorf("data message of %d bytes: %w", len(payload), call.ErrInvalid)
	}
	if t.dead.Load() {
		return fmt.Errorf("participant %s has left: %w", t.m.identity, call.ErrUnavailable)
	}
	return t.down().sendData(k, payload)
}

// cut lets no packet pass any more, at once.
func (t *transport) cut() { t.dead.Store(true) }

// close ends the connections and waits for their goroutines.
func (t *transport) close() {
	t.cut()
	t.endOnce.Do(func() { close(t.ended) })
	if t.running.Load() {
		<-t.done
	}
	for _, p := range []*peer{t.pub, t.sub} {
		if p != nil {
			p.close()
		}
	}
	t.mu.Lock()
	t.shut = true
	t.mu.Unlock()
	ended := make(chan struct{})
	go func() { t.readers.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(closeLimit):
		t.log.Error("readers of a closed connection are stuck")
	}
}

// spawn runs f on a goroutine that close waits for, unless that is over.
func (t *transport) spawn(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.shut {
		t.readers.Go(f)
	}
}

// allow reports whether the client may send that many bytes more this second.
func (t *transport) allow(bytes int) bool { return t.budget.Add(-int64(bytes)) > 0 }

// stateChanged is called by a connection that was connected or failed.
func (t *transport) stateChanged(p *peer, s webrtc.PeerConnectionState) {
	switch s {
	case webrtc.PeerConnectionStateConnected:
		p.broken.Store(false)
		if t.sub != nil && (t.pub.broken.Load() || t.sub.broken.Load()) {
			return // the other one is still down
		}
		if p == t.primary() {
			t.room.post(func() { t.room.connected(t.m) })
		} else {
			t.room.post(func() { t.room.recovered(t.m) })
		}
	case webrtc.PeerConnectionStateFailed, webrtc.PeerConnectionStateClosed:
		p.broken.Store(true)
		if !t.dead.Load() {
			t.room.post(func() { t.room.failed(t.m) })
		}
	}
}

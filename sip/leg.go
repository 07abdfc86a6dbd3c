package sip

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
	"github.com/trunkhall/trunkhall/sip/bridge"
	"github.com/trunkhall/trunkhall/sip/dialog"
	"github.com/trunkhall/trunkhall/sip/guard"
	"github.com/trunkhall/trunkhall/sip/media"
	"github.com/trunkhall/trunkhall/sip/numbers"
)

// maxQueue bounds what waits for a leg's goroutine. Beyond it digits are lost and
// nothing else: what must arrive is not counted.
const maxQueue = 256

// errOver ends the script of a leg that has ended.
var errOver = errors.New("the leg has ended")

// A leg is one telephone call. run, on a goroutine of the leg's own, owns every
// field that mu does not guard; all others post functions to it. It begins with
// the INVITE and ends when dialog, media and seat have been given back.
type leg struct {
	s    *Server
	id   call.LegID
	log  *slog.Logger
	done chan struct{} // closed when run has returned

	queueMu sync.Mutex
	queue   []func()
	wake    chan struct{} // holds one token while the queue is not empty

	mu      sync.Mutex
	now     call.Leg
	changed chan struct{} // closed and replaced whenever now.State changes

	current atomic.Pointer[dialog.Call] // dialog, for others to compare

	// The rest belongs to run.

	trunk  call.Trunk
	rule   call.DispatchRule
	caller call.Phone
	dialog *dialog.Call // set by use
	sound  *sound
	lease  *guard.Lease
	seat   *call.Seat
	phone  *bridge.Phone
	voice  *speaker // before the leg is in a room

	over       bool
	farewell   func()          // says goodbye to the other side; nil once it is gone
	ctx        context.Context // ends when the leg is over: what it waits for is given up
	cancel     context.CancelFunc
	live       int // dialogs whose events are still to come
	open       map[*dialog.Call]bool
	work       sync.WaitGroup   // goroutines of await and background
	pressed    func(digit byte) // what a digit means at present
	keys       keys
	digits     int // that came since digitsAt
	digitsAt   time.Time
	toPress    string // digits that wait to go out by INFO
	pressing   bool
	refers     chan dialog.ReferProgress
	answer     []byte // our description for the answer to an INVITE
	inviteAt   time.Time
	early      bool          // 183 with sound was sent or came
	left       chan struct{} // closed when the phone is out of the room
	alone      bool
	aloneSince time.Time
	private    bool // no number in attributes
	attrs      map[string]string

	// Of a call out: started tells Dial that the INVITE is on its way, or why not;
	// answered and dialing tell the script what became of it; last is how the
	// attempt before ended.
	started  func(error)
	answered func()
	dialing  func(dialog.Ended) bool
	last     dialog.Ended
	dtmf     string // pressed once the call is answered
}

// newLegID makes a name that nobody can guess.
func newLegID() call.LegID { return call.LegID("SCL_" + rand.Text()[:16]) }

func (s *Server) newLeg(dir call.Direction) *leg {
	id := newLegID()
	l := &leg{
		s: s, id: id,
		log:     s.log.With("leg", id),
		done:    make(chan struct{}),
		wake:    make(chan struct{}, 1),
		changed: make(chan struct{}),
		open:    make(map[*dialog.Call]bool),
		now:     call.Leg{ID: id, Direction: dir, State: call.LegNew, Created: time.Now()},
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.sound = &sound{}
	l.refers = make(chan dialog.ReferProgress, 8)
	l.keys = newKeys(s.cfg.StarCodes)
	return l
}

// facts is snapshot without what the media would have to be asked for.
func (l *leg) facts() call.Leg {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// snapshot returns the leg as it is now.
func (l *leg) snapshot() call.Leg {
	now := l.facts()
	if m := l.sound.media.Load(); m != nil && now.State != call.LegEnded {
		now.Stats = m.Stats()
		now.Codec, now.SRTP = string(m.Codec()), m.SRTP()
	}
	return now
}

// update changes what others see of the leg, without a new state.
func (l *leg) update(f func(*call.Leg)) {
	l.mu.Lock()
	f(&l.now)
	l.mu.Unlock()
}

// states in their order.
var states = []call.LegState{
	call.LegNew, call.LegTrying, call.LegRinging, call.LegEarly, call.LegAnswered, call.LegConfirmed, call.LegEnded,
}

// enter moves the leg on; a state that is behind is left out. Every step that a
// bill would show is noted in the ledger.
func (l *leg) enter(state call.LegState) {
	now := time.Now()
	l.mu.Lock()
	if slices.Index(states, state) <= slices.Index(states, l.now.State) {
		l.mu.Unlock()
		return
	}
	l.now.State = state
	switch state {
	case call.LegRinging, call.LegEarly:
		if l.now.Ringing.IsZero() {
			l.now.Ringing = now
		}
	case call.LegAnswered:
		l.now.Answered, l.now.Code = now, 200
	}
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
	l.log.Debug("leg", "state", state)
	if state != call.LegEnded && state != call.LegConfirmed {
		l.note()
	}
}

// note writes the leg into the journal of the ledger.
func (l *leg) note() {
	if err := l.s.ledger.Begin(l.snapshot(), time.Now()); err != nil {
		l.log.Error("write the call journal", "err", err)
	}
}

// wait returns the leg when its state is not seen any more, or when ctx ends.
func (l *leg) wait(ctx context.Context, seen call.LegState) call.Leg {
	l.mu.Lock()
	changed, same := l.changed, l.now.State == seen
	l.mu.Unlock()
	if same {
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	return l.snapshot()
}

// post has f run by the leg's goroutine. After the leg has ended it does nothing.
func (l *leg) post(f func()) { l.enqueue(f, false) }

// postDigit is post for what may be lost in a flood.
func (l *leg) postDigit(f func()) { l.enqueue(f, true) }

func (l *leg) enqueue(f func(), mayDrop bool) {
	l.queueMu.Lock()
	if mayDrop && len(l.queue) >= maxQueue {
		l.queueMu.Unlock()
		return
	}
	l.queue = append(l.queue, f)
	l.queueMu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// ask has f run by the leg's goroutine and returns what it returned, or
// call.ErrNotFound if the leg has ended.
func (l *leg) ask(f func() error) error {
	result := make(chan error, 1)
	l.post(func() {
		if l.over {
			result <- errGone
			return
		}
		result <- f()
	})
	select {
	case err := <-result:
		return err
	case <-l.done:
		return errGone
	}
}

// pump runs what is posted until stop or timer, whichever is first, or until the
// leg is over. It reports whether the leg goes on.
func (l *leg) pump(stop <-chan struct{}, timer <-chan time.Time) bool {
	for !l.over {
		select {
		case <-l.wake:
			l.runQueue()
		case <-stop:
			return !l.over
		case <-timer:
			return !l.over
		}
	}
	return false
}

func (l *leg) runQueue() {
	l.queueMu.Lock()
	queue := l.queue
	l.queue = nil
	l.queueMu.Unlock()
	for _, f := range queue {
		f()
	}
}

// pause pumps for d.
func (l *leg) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	return l.pump(nil, timer.C)
}

// await runs a blocking f beside the leg, which goes on living meanwhile. If the
// leg ends first, f's context ends, and f is waited for all the same: what it
// got must be given back.
func await[T any](l *leg, limit time.Duration, f func(ctx context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(l.ctx, limit)
	defer cancel()
	type result struct {
		value T
		err   error
	}
	var got result
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		got.value, got.err = f(ctx)
	}()
	l.pump(finished, nil)
	<-finished
	return got.value, got.err
}

// background runs a blocking f beside the leg; its context ends with the leg.
func (l *leg) background(f func(ctx context.Context)) { l.work.Go(func() { f(l.ctx) }) }

// A verdict says how a leg ends.
type verdict struct {
	cause  call.Cause
	text   string // for people
	code   int    // the final SIP status; 0: leave as it is
	q850   int    // of our BYE or CANCEL
	theirs int    // Q.850 of theirs
}

// end decides that the leg is over, once; run does the rest.
func (l *leg) end(v verdict) {
	if l.over {
		return
	}
	l.over = true
	l.cancel()
	l.update(func(now *call.Leg) {
		now.Cause, now.Text = v.cause, v.text
		if v.code != 0 && now.Answered.IsZero() {
			now.Code = v.code
		}
		if now.Q850 = v.theirs; now.Q850 == 0 {
			now.Q850 = v.q850
		}
	})
	d := l.dialog
	if d == nil {
		return
	}
	l.farewell = func() {
		if d.Inbound() && d.State() != dialog.Talking && d.State() != dialog.Answering && v.code >= 300 {
			if err := d.Reject(v.code, "", v.retryAfter()...); err != nil {
				d.Bye(v.q850, v.text)
			}
			return
		}
		d.Bye(v.q850, v.text)
	}
}

// retryAfter is the header of a 503 (RFC 3261 §21.5.4).
func (v verdict) retryAfter() []dialog.Header {
	if v.code != 503 {
		return nil
	}
	return []dialog.Header{{Name: "Retry-After", Value: "10"}}
}

// run is the leg's goroutine.
func (l *leg) run(script func() error) {
	defer close(l.done)
	err := script()
	if !l.over {
		// A script that returns has nothing more to do.
		v := verdict{cause: call.CauseFailed, text: "something went wrong", code: 500, q850: 41}
		if err == nil {
			v = verdict{cause: call.CauseHangup, text: "hung up", q850: 16}
		} else {
			l.log.Error("leg", "err", err)
		}
		l.end(v)
	}
	l.finish()
}

// finish gives everything back, in the order in which the other sides should
// notice. The leg has ended then for everybody who asks; its goroutine stays until
// the dialog has said goodbye, which takes half a minute if nobody answers.
func (l *leg) finish() {
	ended := time.Now()
	if l.farewell != nil {
		l.farewell()
	}
	for d := range l.open {
		if d != l.dialog { // one that was to be taken over by a dialog that has ended
			d.Bye(16, "")
		}
	}
	if l.lease != nil {
		l.lease.End(ended)
	}
	l.stopVoice()
	if l.phone != nil {
		l.phone.SetAttributes(map[string]string{attrStatus: "hangup"})
		l.phone.Leave(sfu.ReasonClientInitiated)
		select {
		case <-l.left:
		case <-time.After(5 * time.Second):
			l.log.Error("the bridge does not let the phone go")
		}
	}
	last := l.snapshot()
	if m := l.sound.media.Swap(nil); m != nil {
		m.Close()
	}
	l.leaveSeat()
	l.s.count.left(last.Stats)
	l.update(func(now *call.Leg) {
		now.Ended = ended
		now.Stats, now.Codec, now.SRTP = last.Stats, last.Codec, last.SRTP
	})
	l.enter(call.LegEnded)
	last = l.snapshot()
	if err := l.s.ledger.Finish(last); err != nil {
		l.log.Error("write the call record", "err", err)
	}
	l.log.Info("leg ended", "cause", last.Cause, "text", last.Text, "code", last.Code, "number", numbers.Mask(last.Number), "trunk", last.Trunk)
	l.s.forget(l)
	for l.live > 0 {
		<-l.wake
		l.runQueue()
	}
	l.work.Wait()
}

func (l *leg) leaveSeat() {
	if l.seat == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if l.seat.Leave != nil {
		l.seat.Leave(ctx)
	}
	l.seat = nil
}

// use makes d the dialog that the leg speaks by.
func (l *leg) use(d *dialog.Call) {
	l.dialog = d
	l.current.Store(d)
}

// follow reads a dialog's events until its end.
func (l *leg) follow(d *dialog.Call) {
	l.live++
	l.open[d] = true
	l.work.Go(func() {
		for e := range d.Events() {
			l.post(func() { l.onEvent(d, e) })
		}
		l.post(func() {
			l.live--
			delete(l.open, d)
		})
	})
}

// A sound is what the bridge hears of a leg: its media, which may be replaced, or
// the ringing tone before there is any.
type sound struct {
	media atomic.Pointer[media.Session]
	ring  atomic.Pointer[ringer]
}

// Rate is the rate of the media, or that of G.711 before there is any.
func (s *sound) Rate() int {
	if m := s.media.Load(); m != nil {
		return m.Rate()
	}
	return 8000
}

// Read implements bridge.Sound.
func (s *sound) Read(now time.Time, pcm []int16) {
	m := s.media.Load()
	if m == nil {
		clear(pcm)
		return
	}
	m.Read(now, pcm)
	if r := s.ring.Load(); r != nil {
		r.fill(m.Rate(), pcm)
	}
}

// Write implements bridge.Sound.
func (s *sound) Write(pcm []int16) error {
	m := s.media.Load()
	if m == nil {
		return nil
	}
	return m.Write(pcm)
}

// Stats tells the bridge how good the line is.
func (s *sound) Stats() call.LegStats {
	if m := s.media.Load(); m != nil {
		return m.Stats()
	}
	return call.LegStats{}
}

// printable keeps what is kept of an unusable number short and harmless.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	return text[:min(len(text), 32)]
}

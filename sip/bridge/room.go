package bridge

import (
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

const (
	maxSpeakers = 3 // browsers decoded at once
	maxVoices   = 6 // of browsers and phones heard at once
	maxCatchUp  = 3 // frames made at once after the machine stood still
	rateLinger  = 5 * time.Second
	reportEvery = 250 // frames between two reports of a line's quality
	maxTones    = 15  // in larger rooms nobody wants to hear who comes and goes
)

// The sample rates of telephones; arrays of two are indexed like this.
var rates = [2]int{8000, 16000}

// A bridge is the telephones of one room. One goroutine, run, makes their sound
// every 20 ms; others post it functions to run before the next frame.
type bridge struct {
	all  *Bridges
	room *sfu.Room
	stop chan struct{} // closed by Bridges.leave
	keys *keyring
	sif  []byte // ends frames that the server made up
	now  func() time.Time

	seats int // guarded by Bridges.mu: phones that have entered and not left

	mu    sync.Mutex // guards posts
	posts []func()

	// The rest belongs to run.
	phones   []*Phone
	speakers []*speaker
	mixers   [2]*audio.Mixer
	lastUse  [2]time.Time // of a mixer by a phone
	people   map[call.Identity]person
	stirred  bool // phones, speakers or permissions have changed
	frame    uint32
	spare    []func()
	order    []*speaker // scratch
}

// A person is a participant as the bridge knows it.
type person struct {
	sid    call.ParticipantSID
	active bool
	counts bool // as company: recorders do not
}

// An input is something that sounds in the room: a phone or a browser's track.
// It has a source in each mixer there is.
type input struct {
	sid     call.TrackSID
	secret  bool // end-to-end encrypted
	sources [2]*audio.Source
}

func newBridge(all *Bridges, room *sfu.Room) *bridge {
	return &bridge{
		all: all, room: room, stop: make(chan struct{}), keys: newKeyring(), sif: room.SifTrailer(),
		now:    time.Now,
		people: make(map[call.Identity]person),
	}
}

// post runs f on the bridge's goroutine before the next frame.
func (b *bridge) post(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.posts = append(b.posts, f)
}

// run makes a frame every 20 ms, by the monotonic clock, until the last phone has
// left. After a pause it makes up for a few frames; the others never were.
func (b *bridge) run() {
	start, made := time.Now(), int64(0) // before the ticker, so that its ticks are never early
	tick := time.NewTicker(audio.FrameDuration)
	defer tick.Stop()
	for {
		select {
		case <-b.stop:
			return
		case <-tick.C:
		}
		due := int64(time.Since(start) / audio.FrameDuration)
		if due-made > maxCatchUp {
			b.all.counts.skipped.Add(uint64(due - made - maxCatchUp))
			b.frame += uint32(due - made - maxCatchUp)
			made = due - maxCatchUp
		}
		for made < due {
			made++
			b.frame++
			b.tick(time.Now().Add(time.Duration(made-due) * audio.FrameDuration))
		}
	}
}

// drain runs what was posted.
func (b *bridge) drain() {
	b.mu.Lock()
	b.posts, b.spare = b.spare[:0], b.posts
	todo := b.spare
	b.mu.Unlock()
	for i, f := range todo {
		b.guard(f)
		todo[i] = nil
	}
	if b.stirred {
		b.stirred = false
		b.arrange()
	}
}

// guard runs f and survives it.
func (b *bridge) guard(f func()) {
	defer b.survive()
	f()
}

// survive, deferred, keeps a defect in one place from ending everybody's call.
func (b *bridge) survive() {
	if r := recover(); r != nil {
		b.all.log.Error("bridge panicked", "room", b.room.Name(), "panic", r, "stack", string(debug.Stack()))
	}
}

// tick makes one frame: it hears everybody, mixes, and tells everybody.
func (b *bridge) tick(now time.Time) {
	defer b.survive()
	b.drain()
	for _, p := range b.phones {
		p.listen(now)
	}
	b.useRates(now)
	for _, p := range b.phones {
		p.speak()
	}
	b.choose()
	for _, s := range b.speakers {
		s.play(now)
	}
	for _, m := range b.mixers {
		if m != nil {
			m.Mix()
		}
	}
	for i, p := range b.phones {
		p.hear()
		p.send(b.frame)
		if (b.frame+uint32(i))%reportEvery == 0 {
			p.report()
		}
	}
}

// useRates makes the mixers that the phones need, and drops those that have not
// been needed for a while.
func (b *bridge) useRates(now time.Time) {
	for _, p := range b.phones {
		b.lastUse[p.at] = now
	}
	for i, rate := range rates {
		wanted := now.Sub(b.lastUse[i]) < rateLinger
		switch {
		case wanted && b.mixers[i] == nil:
			b.mixers[i] = audio.NewMixer(rate, maxVoices)
			b.stirred = true
		case !wanted && b.mixers[i] != nil:
			b.mixers[i] = nil
			for in := range b.inputs() {
				in.sources[i] = nil
			}
			for _, s := range b.speakers {
				s.voices[i] = nil
			}
		}
	}
	if b.stirred {
		b.stirred = false
		b.arrange()
	}
}

// inputs are all that sounds.
func (b *bridge) inputs() func(yield func(*input) bool) {
	return func(yield func(*input) bool) {
		for _, p := range b.phones {
			if !yield(&p.input) {
				return
			}
		}
		for _, s := range b.speakers {
			if !yield(&s.input) {
				return
			}
		}
	}
}

// arrange gives each input its sources, and each phone the list of those that it
// may not hear, after something has changed.
func (b *bridge) arrange() {
	for in := range b.inputs() {
		for i, m := range b.mixers {
			if m != nil && in.sources[i] == nil {
				in.sources[i] = m.Add()
			}
		}
	}
	for _, s := range b.speakers {
		s.useless = !slices.ContainsFunc(b.phones, func(p *Phone) bool { return p.hears[s.sid] && p.secret == s.secret })
	}
	for _, p := range b.phones {
		p.deaf = [2][]*audio.Source{}
		for in := range b.inputs() {
			if in == &p.input || p.hears[in.sid] && in.secret == p.secret {
				continue
			}
			for i, s := range in.sources {
				if s != nil {
					p.deaf[i] = append(p.deaf[i], s)
				}
			}
		}
	}
}

// silence takes an input out of the mixers.
func (b *bridge) silence(in *input) {
	for i, s := range in.sources {
		if s != nil {
			b.mixers[i].Remove(s)
			in.sources[i] = nil
		}
	}
	b.stirred = true
}

// add makes p part of the bridge, unless it is out of the room already.
func (b *bridge) add(p *Phone) {
	if p.removed {
		return
	}
	p.added = true
	b.phones = append(b.phones, p)
	b.stirred = true
	b.company()
}

// remove takes p out; it is called once for each phone that entered.
func (b *bridge) remove(p *Phone) {
	if p.removed {
		return
	}
	p.removed = true
	if p.added {
		b.phones = slices.DeleteFunc(b.phones, func(o *Phone) bool { return o == p })
		b.silence(&p.input)
	}
	b.all.leave(b)
}

// Open is called by the room when the first phone hears a track.
func (b *bridge) Open(t sfu.TapTrack) sfu.Sink {
	if t.Own {
		return nil // phones hear each other without Opus in between
	}
	s := newSpeaker(b, t)
	b.post(func() {
		b.speakers = append(b.speakers, s)
		b.stirred = true
	})
	return s
}

// closed is called when no phone hears s any more.
func (b *bridge) closed(s *speaker) {
	b.speakers = slices.DeleteFunc(b.speakers, func(o *speaker) bool { return o == s })
	b.silence(&s.input)
}

// meet takes news of participants; every phone brings them, in the same order.
func (b *bridge) meet(news []sfu.ParticipantInfo) {
	before := len(b.people)
	var came, went *sfu.ParticipantInfo
	for i := range news {
		n := &news[i]
		known, ok := b.people[n.Identity]
		switch {
		case n.State == sfu.StateDisconnected && n.Reason == sfu.ReasonDuplicateIdentity:
			// The same person again: nobody came or went.
		case n.State == sfu.StateDisconnected:
			if ok && known.sid == n.SID {
				delete(b.people, n.Identity)
				if known.active && known.counts {
					went = n
				}
			}
		default:
			now := person{
				sid: n.SID, active: known.active || n.State == sfu.StateActive,
				counts: !n.Grant.Hidden && n.Grant.Kind != call.KindEgress,
			}
			if now.active && !known.active && now.counts {
				came = n
			}
			b.people[n.Identity] = now
		}
	}
	if before > 0 && len(b.people) <= maxTones {
		for _, p := range b.phones {
			switch {
			case came != nil && came.Identity != p.identity:
				p.enqueue(joinTone)
			case went != nil && went.Identity != p.identity:
				p.enqueue(leaveTone)
			}
		}
	}
	if came != nil || went != nil {
		b.company()
	}
}

// company tells phones whether they are alone.
func (b *bridge) company() {
	others := 0
	for _, o := range b.people {
		if o.active && o.counts {
			others++
		}
	}
	for _, p := range b.phones {
		n := others
		if o := b.people[p.identity]; o.active && o.counts {
			n--
		}
		if alone := n <= 0; !p.toldAlone || p.alone != alone {
			p.toldAlone, p.alone = true, alone
			p.tell(Alone{alone})
		}
	}
}

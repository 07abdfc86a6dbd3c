package bridge

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// A handset is a telephone in the test: it says a tone and records what it hears.
type handset struct {
	mu    sync.Mutex
	rate  int
	tone  tone
	heard []int16
	bad   bool
}

func (h *handset) Rate() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rate
}

func (h *handset) Read(_ time.Time, pcm []int16) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.bad {
		panic("a defect in the test's handset")
	}
	h.tone.fill(pcm, h.rate)
}

func (h *handset) Write(pcm []int16) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(pcm) != h.rate/50 {
		return errors.New("a frame of the wrong length")
	}
	h.heard = append(h.heard, pcm...)
	return nil
}

// A line is a handset that knows how good its line is.
type line struct {
	*handset
	stats call.LegStats
}

func (l *line) Stats() call.LegStats { return l.stats }

func (h *handset) say(hz, amplitude float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tone.hz, h.tone.amplitude = hz, amplitude
}

func (h *handset) use(rate int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rate, h.heard = rate, nil
}

// loud returns the strength of a frequency in the last 200 ms.
func (h *handset) loud(hz float64) float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := min(len(h.heard), h.rate/5)
	return strength(h.heard[len(h.heard)-n:], h.rate, hz)
}

// A phoneTest is a phone with its handset and what its owner was told.
type phoneTest struct {
	*Phone
	*handset
	mu     sync.Mutex
	events []Event
}

func (p *phoneTest) told(f func(Event) bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.events, f)
}

func (p *phoneTest) last() Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.events) == 0 {
		return nil
	}
	return p.events[len(p.events)-1]
}

func testSeat(room call.RoomName, id call.Identity) call.Seat {
	return call.Seat{Room: room, Grant: call.Grant{
		Identity: id, Name: string(id), CanPublish: true, CanSubscribe: true,
	}}
}

func joinPhone(t *testing.T, all *Bridges, seat call.Seat, rate int, hz float64) *phoneTest {
	t.Helper()
	p := &phoneTest{handset: &handset{rate: rate, tone: tone{hz: hz, amplitude: 9000}}}
	var err error
	p.Phone, err = all.Join(context.Background(), seat, PhoneOptions{
		Sound: p.handset, Attrs: map[string]string{"sip.callID": "SCL_test"},
		Events: func(e Event) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.events = append(p.events, e)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPhoneAndBrowserHearEachOther(t *testing.T) {
	for name, rate := range map[string]int{"narrowband": 8000, "wideband": 16000} {
		t.Run(name, func(t *testing.T) {
			srv, all := start(t)
			room := srv.OpenRoom("talk", sfu.RoomOptions{})
			alice := joinBrowser(t, room, "alice", 1000, sfu.EncryptionNone)
			phone := joinPhone(t, all, testSeat("talk", "phone"), rate, 440)
			eventually(t, "the phone to hear the browser", func() bool { return phone.loud(1000) > 5000 })
			if own := phone.loud(440); own > 500 {
				t.Errorf("the phone hears itself at %.0f", own)
			}
			eventually(t, "the browser to hear the phone", func() bool {
				pcm := alice.recent(phone.Phone, 200*time.Millisecond)
				return len(pcm) == 9600 && strength(pcm, 48000, 440) > 5000
			})
			info := phone.member.Info()
			if info.Grant.Kind != call.KindSIP || info.Grant.Attrs["sip.callID"] != "SCL_test" {
				t.Errorf("the phone is shown as %+v", info.Grant)
			}
			eventually(t, "the browser to see who speaks", func() bool {
				return sawEvent(alice, func(e sfu.EventSpeakers) bool {
					return len(e.Speakers) > 0 && e.Speakers[0].SID == phone.SID() && e.Speakers[0].Active
				})
			})

			// The codec changes in the middle of the call.
			phone.use(24000 - rate)
			eventually(t, "the phone to hear at its new rate", func() bool { return phone.loud(1000) > 5000 })

			// Silence costs nothing, and is told once.
			phone.say(440, 0)
			eventually(t, "the phone's line to close", func() bool { return phone.Stats().Skipped > 50 })
			encoded := phone.Stats().Encoded
			eventually(t, "silence to stay so", func() bool { return phone.Stats().Skipped > 100 })
			if n := phone.Stats().Encoded - encoded; n > 0 {
				t.Errorf("%d frames of silence were encoded", n)
			}
			phone.say(440, 9000)
			eventually(t, "the browser to hear the phone again", func() bool {
				pcm := alice.recent(phone.Phone, 100*time.Millisecond)
				return strength(pcm, 48000, 440) > 5000
			})
		})
	}
}

func TestEverybodyHearsTheOthers(t *testing.T) {
	srv, all := start(t)
	room := srv.OpenRoom("talk", sfu.RoomOptions{})
	alice := joinBrowser(t, room, "alice", 1000, sfu.EncryptionNone)
	bob := joinBrowser(t, room, "bob", 1300, sfu.EncryptionNone)
	one := joinPhone(t, all, testSeat("talk", "one"), 8000, 440)
	two := joinPhone(t, all, testSeat("talk", "two"), 16000, 620)
	tones := map[string]float64{"alice": 1000, "bob": 1300, "one": 440, "two": 620}
	for name, p := range map[string]*phoneTest{"one": one, "two": two} {
		eventually(t, name+" to hear the other three", func() bool {
			for who, hz := range tones {
				if loud := p.loud(hz); who != name && loud < 3000 || who == name && loud > 500 {
					return false
				}
			}
			return true
		})
	}
	for name, c := range map[string]*browser{"alice": alice, "bob": bob} {
		for who, p := range map[string]*phoneTest{"one": one, "two": two} {
			eventually(t, name+" to hear "+who, func() bool {
				return strength(c.recent(p.Phone, 200*time.Millisecond), 48000, tones[who]) > 4000
			})
		}
	}

	// Alice lets only phone two hear her.
	alice.member.SetSubscriptionPermissions(false, []sfu.TrackPermission{{Identity: "two", AllTracks: true}})
	eventually(t, "phone one not to hear alice", func() bool { return one.loud(1000) < 300 && one.loud(1300) > 3000 })
	eventually(t, "phone two to hear alice still", func() bool { return two.loud(1000) > 3000 })
}

func TestPhoneIsGoverned(t *testing.T) {
	srv, all := start(t)
	room := srv.OpenRoom("talk", sfu.RoomOptions{})
	phone := joinPhone(t, all, testSeat("talk", "phone"), 8000, 440)
	eventually(t, "the phone to know that it is alone", func() bool { return phone.last() == Alone{true} })
	other := joinPhone(t, all, testSeat("talk", "other"), 8000, 620)
	eventually(t, "the phone to have company", func() bool { return phone.last() == Alone{false} })
	eventually(t, "the other to hear the phone", func() bool { return other.loud(440) > 5000 })

	track := func() sfu.TrackInfo { return phone.member.Info().Tracks[0] }
	phone.SetMuted(true)
	if !track().Muted || !phone.Muted() {
		t.Error("the room does not show the mute")
	}
	eventually(t, "the mute to be heard", func() bool { return other.loud(440) < 200 })
	phone.SetMuted(false)
	eventually(t, "the phone to be heard again", func() bool { return other.loud(440) > 5000 })

	if err := phone.member.MuteByServer(track().SID, true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a moderator's mute to be heard", func() bool { return other.loud(440) < 200 })
	eventually(t, "the owner to be told", func() bool { return phone.told(func(e Event) bool { return e == Muted{true} }) })
	eventually(t, "the phone to hear a tone", func() bool { return phone.loud(392) > 500 })
	phone.SetMuted(false)
	if track().Muted {
		t.Error("the phone cannot unmute itself")
	}

	phone.SetHold(true)
	if !track().Muted || phone.member.Info().Grant.Attrs["sip.hold"] != "true" {
		t.Error("the room does not show the hold")
	}
	eventually(t, "nothing to be played on hold", func() bool { return phone.loud(620) < 1 })
	phone.SetHold(false)
	if _, held := phone.member.Info().Grant.Attrs["sip.hold"]; held || track().Muted {
		t.Error("the room still shows the hold")
	}
	eventually(t, "the phone to hear again", func() bool { return phone.loud(620) > 5000 })

	phone.SetHand(true)
	if phone.member.Info().Grant.Attrs["trunkhall.hand"] != "true" {
		t.Error("the hand is not up")
	}
	announcement := make([]int16, 16000)
	(&tone{hz: 900, amplitude: 8000}).fill(announcement, 16000)
	phone.Play(announcement, 16000)
	eventually(t, "the announcement over the conference", func() bool { return phone.loud(900) > 5000 && phone.loud(620) > 1000 })
	if other.loud(900) > 300 {
		t.Error("the other phone hears the announcement as well")
	}
	if err := phone.member.SendData(sfu.DataReliable, []byte("x")); err != nil {
		t.Error(err)
	}
	eventually(t, "data to be told", func() bool {
		return phone.told(func(e Event) bool { d, ok := e.(Data); return ok && string(d.Payload) == "x" })
	})

	// Its right to speak is taken and given back.
	grant := phone.member.Grant()
	silent := grant
	silent.CanPublish = false
	phone.member.SetGrant(silent)
	eventually(t, "the phone to be silenced", func() bool { return other.loud(440) < 200 })
	phone.member.SetGrant(grant)
	eventually(t, "the phone to be heard with a new track", func() bool { return other.loud(440) > 5000 })

	if err := room.Remove("phone", sfu.ReasonParticipantRemoved); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the owner to be told of the end", func() bool { return phone.last() == Removed{sfu.ReasonParticipantRemoved} })
	eventually(t, "the other to be alone", func() bool { return other.last() == Alone{true} })
	phone.SetMuted(true) // nothing happens
	phone.Play(announcement, 16000)
	other.Leave(sfu.ReasonClientInitiated)
	eventually(t, "the bridge to end", func() bool {
		return all.Stats() == Stats{Concealed: all.Stats().Concealed, Skipped: all.Stats().Skipped}
	})
}

func TestRoomAndServerEnd(t *testing.T) {
	srv, all := start(t)
	phone := joinPhone(t, all, testSeat("talk", "phone"), 8000, 440)
	srv.DeleteRoom("talk", sfu.ReasonRoomDeleted)
	eventually(t, "the end of the room to be told", func() bool { return phone.last() == Removed{sfu.ReasonRoomDeleted} })
	again := joinPhone(t, all, testSeat("talk", "phone"), 8000, 440)
	second := joinPhone(t, all, testSeat("talk", "phone"), 8000, 440)
	eventually(t, "the first of two to end", func() bool { return again.last() == Removed{sfu.ReasonDuplicateIdentity} })
	srv.Drain(sfu.ReasonServerShutdown)
	eventually(t, "the drain to be told", func() bool { return second.last() == Removed{sfu.ReasonServerShutdown} })
	joinPhone(t, all, testSeat("talk", "left behind"), 8000, 440) // Run ends it
}

// TestTellsOfBadLines: browsers see the quality of a phone's line.
func TestTellsOfBadLines(t *testing.T) {
	d := newDesk(t)
	c := d.colleague(0, browserOpus)
	phone := d.phone(8000, 440)
	l := &line{handset: phone.handset}
	phone.sound = l
	d.run(6 * time.Second)
	l.stats = call.LegStats{Packets: 900, Lost: 100}
	d.run(6 * time.Second)
	eventually(t, "the colleague to see a poor line", func() bool {
		return c.saw(func(e sfu.Event) bool {
			q, ok := e.(sfu.EventConnectionQuality)
			return ok && q.SID == phone.SID() && q.Quality == sfu.ConnectionPoor
		})
	})
}

// TestFramesKeepTime: fifty a second, and after a pause not all at once.
func TestFramesKeepTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := New(nil, testLog())
		b := &bridge{all: all, stop: make(chan struct{}), keys: newKeyring(), now: time.Now, people: make(map[call.Identity]person)}
		h := &slowHandset{handset: handset{rate: 8000}}
		p := newPhone(b, testSeat("talk", "phone"), PhoneOptions{Sound: h})
		b.post(func() { b.add(p) })
		all.tasks.Go(b.run)
		time.Sleep(10*time.Second + time.Millisecond)
		synctest.Wait()
		if n := h.frames.Load(); n != 500 {
			t.Errorf("%d frames in ten seconds", n)
		}
		h.pause.Store(int64(300 * time.Millisecond))
		time.Sleep(time.Second)
		synctest.Wait()
		// One frame took 300 ms, in which 15 were due; 3 of them are made up for.
		if made := h.frames.Load() - 500; made != 38 || all.Stats().Skipped != 12 {
			t.Errorf("%d frames in a second with a pause, %d skipped", made, all.Stats().Skipped)
		}
		close(b.stop)
		all.tasks.Wait()
	})
}

// A slowHandset stops once for a while.
type slowHandset struct {
	handset
	frames atomic.Int64
	pause  atomic.Int64 // the next one, in nanoseconds
}

func (h *slowHandset) Read(now time.Time, pcm []int16) {
	h.frames.Add(1)
	time.Sleep(time.Duration(h.pause.Swap(0)))
	clear(pcm)
}

// TestManyShortCalls leaves nothing behind.
// TestCrowd: a room takes so many telephones and no more; who leaves makes room.
func TestCrowd(t *testing.T) {
	_, all := start(t)
	all.most = 2
	first := joinPhone(t, all, testSeat("crowd", "1"), 8000, 440)
	joinPhone(t, all, testSeat("crowd", "2"), 8000, 440)
	join := func() error {
		_, err := all.Join(context.Background(), testSeat("crowd", "3"), PhoneOptions{Sound: &handset{rate: 8000}})
		return err
	}
	if err := join(); !errors.Is(err, call.ErrRoomFull) {
		t.Errorf("the third of two telephones: %v", err)
	}
	joinPhone(t, all, testSeat("another", "1"), 8000, 440)
	first.Leave(sfu.ReasonClientInitiated)
	eventually(t, "the place to be free", func() bool { return join() == nil })
}

func TestManyShortCalls(t *testing.T) {
	srv, all := start(t)
	room := srv.OpenRoom("busy", sfu.RoomOptions{})
	joinPhone(t, all, testSeat("busy", "stays"), 8000, 440)
	before := runtime.NumGoroutine()
	var calls sync.WaitGroup
	for i := range 4 {
		calls.Go(func() {
			for j := range 50 {
				name := call.RoomName("busy")
				if j%2 == 0 {
					name = call.RoomName(fmt.Sprintf("room %d %d", i, j))
				}
				p, err := all.Join(context.Background(), testSeat(name, call.Identity(fmt.Sprintf("phone %d %d", i, j))), PhoneOptions{
					Sound: &handset{rate: 8000 * (1 + j%2), tone: tone{hz: 440, amplitude: 9000}},
				})
				if err != nil {
					t.Error(err)
					return
				}
				p.SetMuted(j%3 == 0)
				p.Leave(sfu.ReasonClientInitiated)
				srv.DeleteRoom(call.RoomName(fmt.Sprintf("room %d %d", i, j)), sfu.ReasonRoomClosed)
			}
		})
	}
	calls.Wait()
	eventually(t, "goroutines to end", func() bool {
		s := all.Stats()
		return s.Phones == 1 && s.Rooms == 1 && runtime.NumGoroutine() <= before+2
	})
	if n := len(room.Participants()); n != 1 {
		t.Errorf("%d participants are left", n)
	}
}

func TestBrokenSoundEndsOnlyItsPhone(t *testing.T) {
	_, all := start(t)
	bad := joinPhone(t, all, testSeat("talk", "bad"), 8000, 440)
	good := joinPhone(t, all, testSeat("talk", "good"), 8000, 620)
	third := joinPhone(t, all, testSeat("talk", "third"), 8000, 700)
	bad.handset.mu.Lock()
	bad.bad = true
	bad.handset.mu.Unlock()
	eventually(t, "the bad phone to be removed", func() bool { return bad.last() == Removed{sfu.ReasonMediaFailure} })
	eventually(t, "the others to talk on", func() bool { return good.loud(700) > 5000 && third.loud(620) > 5000 })
}

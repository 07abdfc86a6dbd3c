package phones

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// What phones say. No tone is a harmonic of another, or of a browser's.
const (
	phoneHz  = 700.0
	phone2Hz = 1180.0
)

// long is long enough for any call of these tests: a phone's file is played once.
const long = 100 * time.Second

// hears waits until somebody hears a tone and then requires that it does not stop.
func hears(t testing.TB, what string, hz float64, listen func(time.Duration) (Sound, error)) {
	t.Helper()
	hearsAll(t, what, []float64{hz}, nil, listen)
}

// hearsAll waits until somebody hears all the tones wanted, and then requires
// that none stops and that none of the others is there.
func hearsAll(t testing.TB, what string, wanted, others []float64, listen func(time.Duration) (Sound, error)) {
	t.Helper()
	eventually(t, 40*time.Second, what, func() error {
		heard, err := listen(1200 * time.Millisecond)
		if err != nil {
			return err
		}
		return heard.HasTones(wanted, others)
	})
	// Browsers on a busy machine skip now and then, which is not what is tested:
	// four seconds without a gap are wanted, and a few tries are allowed.
	for try := 1; ; try++ {
		heard, err := listen(4 * time.Second)
		if err == nil {
			err = heard.HasTones(wanted, others)
		}
		if err == nil && len(wanted) == 1 {
			err = heard.HasTone(wanted[0])
		}
		if err == nil {
			return
		}
		if try == 8 {
			t.Errorf("%s: %v", what, err)
			return
		}
		t.Logf("%s, try %d: %v", what, try, err)
	}
}

// misses waits until somebody no longer hears a tone.
func misses(t testing.TB, what string, hz float64, listen func(time.Duration) (Sound, error)) {
	t.Helper()
	eventually(t, 20*time.Second, what, func() error {
		heard, err := listen(time.Second)
		if err != nil {
			return err
		}
		if level := heard.Level(hz); level > 0.002 {
			return fmt.Errorf("%.0f Hz is still there, at %.4f", hz, level)
		}
		return nil
	})
}

func (x *Person) listenTo(who string) func(time.Duration) (Sound, error) {
	return func(d time.Duration) (Sound, error) { return x.Listen(who, d) }
}

// A telephone and a browser in one room, in every codec of a telephone.
func TestPhoneInRoom(t *testing.T) {
	g := StartGateway(t, GatewayOptions{})
	p := everybody(t)
	p.Launch(t, "alice", alice)
	for _, c := range []struct{ name, codecs string }{
		{"PCMU", "PCMU/8000/1"},
		{"PCMA", "PCMA/8000/1"},
		{"G722", "G722/16000/1"},
		{"Opus", "opus/48000/2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			number, room := g.Room()
			a := p.Join(t, g.Server, "alice", "alice", room, true)
			phone := StartPhone(t, PhoneOptions{Name: "phone", User: "+493055512345", Codecs: c.codecs, Says: Tone(phoneHz, long)})
			phone.Dial(g.URI(number))
			phone.Must("CALL_ESTABLISHED")
			seen := a.Phone("the telephone", func(s Seen) error {
				if s.Attributes["sip.callStatus"] != "active" || len(s.Tracks) != 1 {
					return fmt.Errorf("%+v", s)
				}
				return nil
			})
			for name, want := range map[string]string{
				"sip.trunkID": "phones", "sip.phoneNumber": "+493055512345", "sip.trunkPhoneNumber": number,
			} {
				if got := seen.Attributes[name]; got != want {
					t.Errorf("%s is %q, not %q", name, got, want)
				}
			}
			for _, name := range []string{"sip.callID", "sip.callIDFull", "sip.hostname"} {
				if seen.Attributes[name] == "" {
					t.Errorf("there is no %s: %v", name, seen.Attributes)
				}
			}
			var wait sync.WaitGroup
			wait.Go(func() { hears(t, "the phone hears alice", 523, phone.Listen) })
			wait.Go(func() { hears(t, "alice hears the phone", phoneHz, a.listenTo(seen.Identity)) })
			wait.Wait()
			phone.Hangup()
			a.Alone()
		})
	}
}

// What people and the phone can do to each other in a room.
func TestPhoneInRoomControls(t *testing.T) {
	g := StartGateway(t, GatewayOptions{})
	p := everybody(t)
	p.Launch(t, "alice", alice)
	number, room := g.Room()
	a := p.Join(t, g.Server, "alice", "alice", room, true)
	phone := StartPhone(t, PhoneOptions{Name: "phone", User: "+493055512345", Says: Tone(phoneHz, long)})
	phone.Dial(g.URI(number))
	phone.Must("CALL_ESTABLISHED")
	is := func(what string, check func(Seen) bool) Seen {
		t.Helper()
		return a.Phone(what, func(s Seen) error {
			if len(s.Tracks) != 1 || !check(s) {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
	}
	who := is("the telephone", func(s Seen) bool { return !s.Tracks[0].Muted }).Identity
	hears(t, "alice hears the phone", phoneHz, a.listenTo(who))

	// Alice mutes herself: what "hears" means is shown to fail.
	hears(t, "the phone hears alice", 523, phone.Listen)
	a.Run("await me.setMicrophoneEnabled(false)", nil)
	misses(t, "the phone no longer hears alice", 523, phone.Listen)
	a.Run("await me.setMicrophoneEnabled(true)", nil)
	hears(t, "the phone hears alice again", 523, phone.Listen)

	// On hold: seen, and nothing is heard of it.
	phone.Hold()
	is("that the phone is on hold", func(s Seen) bool { return s.Attributes["sip.hold"] == "true" && s.Tracks[0].Muted })
	misses(t, "alice hears nothing of a phone on hold", phoneHz, a.listenTo(who))
	phone.Resume()
	is("that the phone is back", func(s Seen) bool { return s.Attributes["sip.hold"] != "true" && !s.Tracks[0].Muted })
	hears(t, "alice hears the phone again", phoneHz, a.listenTo(who))

	// The phone mutes itself with a star code.
	phone.Press("*6")
	is("that the phone has muted itself", func(s Seen) bool { return s.Tracks[0].Muted })
	misses(t, "alice hears nothing of a phone that is muted", phoneHz, a.listenTo(who))
	phone.Press("*6")
	is("that the phone is not muted", func(s Seen) bool { return !s.Tracks[0].Muted })
	hears(t, "alice hears the phone again", phoneHz, a.listenTo(who))

	// A moderator mutes it.
	mute := func(muted bool) {
		t.Helper()
		s := is("the telephone's track", func(Seen) bool { return true })
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := g.Twirp(ctx, "RoomService/MutePublishedTrack", map[string]any{"room": room, "identity": who, "track_sid": s.Tracks[0].SID, "muted": muted}, nil); err != nil {
			t.Fatal(err)
		}
	}
	mute(true)
	is("that the phone is muted", func(s Seen) bool { return s.Tracks[0].Muted })
	misses(t, "alice hears nothing of a phone that she has muted", phoneHz, a.listenTo(who))

	// Digits both ways.
	a.Run(`(window.digits = [], room.on('sipDTMFReceived', (d, p) => window.digits.push(d.digit)), 0)`, nil)
	phone.Press("7")
	eventually(t, 20*time.Second, "alice is told what the phone presses", func() error {
		var digits []string
		a.Run("window.digits", &digits)
		if strings.Join(digits, "") != "7" {
			return fmt.Errorf("told: %q", digits)
		}
		return nil
	})
	a.Run("await me.publishDtmf(9, '9')", nil)
	eventually(t, 20*time.Second, "the phone receives what alice presses", func() error { return logged(phone, "received event: '9'") })

	// Out.
	g.Remove(t, room, who)
	e := phone.Must("CALL_CLOSED")
	t.Logf("the phone was told: %q", e.Param)
	a.Alone()
}

// Four in a room: each hears the other three, and not itself.
func TestTwoPhonesAndTwoPeople(t *testing.T) {
	g := StartGateway(t, GatewayOptions{})
	p := everybody(t)
	p.Launch(t, "alice", alice)
	p.Launch(t, "bob", bob)
	number, room := g.Room()
	a := p.Join(t, g.Server, "alice", "alice", room, true)
	b := p.Join(t, g.Server, "bob", "bob", room, true)
	x := StartPhone(t, PhoneOptions{Name: "phone-x", User: "+493055500010", Says: Tone(phoneHz, long)})
	y := StartPhone(t, PhoneOptions{Name: "phone-y", User: "+493055500011", Codecs: "G722/16000/1", Says: Tone(phone2Hz, long)})
	x.Dial(g.URI(number))
	y.Dial(g.URI(number))
	x.Must("CALL_ESTABLISHED")
	y.Must("CALL_ESTABLISHED")
	g.Phones(t, room, 2)
	all := map[string]float64{"alice": 523, "bob": 890, "x": phoneHz, "y": phone2Hz}
	listeners := map[string]func(time.Duration) (Sound, error){"alice": a.listenTo(""), "bob": b.listenTo(""), "x": x.Listen, "y": y.Listen}
	var wait sync.WaitGroup
	for name, listen := range listeners {
		var wanted []float64
		for other, hz := range all {
			if other != name {
				wanted = append(wanted, hz)
			}
		}
		wait.Go(func() {
			hearsAll(t, name+" hears the other three", wanted, []float64{all[name], 1480}, listen)
		})
	}
	wait.Wait()

	// One phone goes: its tone does too, the others stay.
	x.Hangup()
	g.Phones(t, room, 1)
	wait.Go(func() { hearsAll(t, "alice hears two", []float64{890, phone2Hz}, []float64{phoneHz}, a.listenTo("")) })
	wait.Go(func() { hearsAll(t, "phone y hears two", []float64{523, 890}, []float64{phoneHz}, y.Listen) })
	wait.Wait()
}

// Sentences arrive as they were said, both ways.
func TestSpeech(t *testing.T) {
	g := StartGateway(t, GatewayOptions{})
	p := everybody(t)
	p.Launch(t, "speaker", speech)
	for _, c := range []struct{ name, codecs string }{{"PCMU", "PCMU/8000/1"}, {"G722", "G722/16000/1"}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			number, room := g.Room()
			a := p.Join(t, g.Server, "speaker", "alice", room, true)
			phone := StartPhone(t, PhoneOptions{Name: "phone", Codecs: c.codecs, Says: Speech(99, 70*time.Second)})
			phone.Dial(g.URI(number))
			phone.Must("CALL_ESTABLISHED")
			who := a.Phone("the telephone", nil).Identity
			time.Sleep(5 * time.Second)                                                                   // announcements to the phone are over
			said := Sound{speech.Rate, append(append([]float64{}, speech.Samples...), speech.Samples...)} // over and over
			var toPhone, toAlice, other float64
			// As with tones, a few tries are allowed.
			for range 4 {
				var wait sync.WaitGroup
				var atPhone, atAlice Sound
				var errPhone, errAlice error
				wait.Go(func() { atPhone, errPhone = phone.Listen(6 * time.Second) })
				wait.Go(func() { atAlice, errAlice = a.Listen(who, 6*time.Second) })
				wait.Wait()
				if err := errors.Join(errPhone, errAlice); err != nil {
					t.Fatal(err)
				}
				all, err := phone.Said()
				if err != nil {
					t.Fatal(err)
				}
				one, _ := Resembles(said, atPhone)
				two, _ := Resembles(all, atAlice)
				other, _ = Resembles(Speech(8, 24*time.Second), atPhone)
				t.Logf("correlation: to the phone %.3f (with another sentence %.3f), to alice %.3f", one, other, two)
				if toPhone, toAlice = max(toPhone, one), max(toAlice, two); toPhone >= 0.9 && toAlice >= 0.9 {
					break
				}
			}
			if toPhone < 0.9 || toAlice < 0.9 {
				t.Errorf("the sentences do not arrive: correlation to the phone %.3f, to alice %.3f", toPhone, toAlice)
			}
			if other > 0.8 {
				t.Errorf("another sentence resembles what the phone heard by %.3f", other)
			}
		})
	}
}

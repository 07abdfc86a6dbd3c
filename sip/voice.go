package sip

import (
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/audio"
)

// A speaker talks to a phone that is in no room: it ticks the leg's sound every
// 20 ms, plays what is said one after the other, then the tone that is set or
// silence. What the phone says is read and thrown away, so that digits in the
// sound are found. newSpeaker starts it; stop ends it and waits.
type speaker struct {
	sound *sound
	stopc chan struct{}
	gone  chan struct{}

	mu    sync.Mutex
	queue []speech
	tone  *audio.Tone
	fresh bool // the tone is new

	player   *audio.Player
	rate     int // of the player
	wider    *audio.Resampler
	wideRate int // what it makes
}

// A speech is what is left of an announcement, at promptRate.
type speech struct {
	pcm    []int16
	spoken chan struct{} // closed when it is over or was hushed
}

func newSpeaker(s *sound) *speaker {
	v := &speaker{sound: s, stopc: make(chan struct{}), gone: make(chan struct{})}
	go v.run()
	return v
}

// stop silences the speaker; from its return on somebody else may tick the sound.
func (v *speaker) stop() {
	close(v.stopc)
	<-v.gone
	v.hush()
}

// say plays pcm after what is being said; the channel is closed when it is over.
func (v *speaker) say(pcm []int16) <-chan struct{} {
	spoken := make(chan struct{})
	v.mu.Lock()
	defer v.mu.Unlock()
	v.queue = append(v.queue, speech{pcm, spoken})
	return spoken
}

// hush drops what is being said and what was to follow.
func (v *speaker) hush() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, s := range v.queue {
		close(s.spoken)
	}
	v.queue = nil
}

// setTone plays a tone when nothing is said; nil: none.
func (v *speaker) setTone(t *audio.Tone) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.tone, v.fresh = t, true
}

// maxCatchUp is how many frames are made at once after the machine was busy.
const maxCatchUp = 3

func (v *speaker) run() {
	defer close(v.gone)
	tick := time.NewTicker(audio.FrameDuration)
	defer tick.Stop()
	next := time.Now()
	for {
		select {
		case <-v.stopc:
			return
		case now := <-tick.C:
			if behind := now.Sub(next); behind > maxCatchUp*audio.FrameDuration {
				next = now.Add(-(maxCatchUp - 1) * audio.FrameDuration)
			}
			for ; !next.After(now); next = next.Add(audio.FrameDuration) {
				v.frame(now)
			}
		}
	}
}

// frame reads and writes 20 ms.
func (v *speaker) frame(now time.Time) {
	var buf [960]int16 // up to 48 kHz
	rate := v.sound.Rate()
	pcm := buf[:min(audio.FrameSamples(rate), len(buf))]
	v.sound.Read(now, pcm)
	v.fill(rate, pcm)
	// An unreachable phone is found by its silence.
	_ = v.sound.Write(pcm)
}

// fill makes the next frame for the phone.
func (v *speaker) fill(rate int, pcm []int16) {
	clear(pcm)
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.queue) > 0 {
		s := &v.queue[0]
		var frame [promptRate / 50]int16
		s.pcm = s.pcm[copy(frame[:], s.pcm):]
		if len(s.pcm) == 0 {
			close(s.spoken)
			v.queue = v.queue[1:]
		}
		v.convert(frame[:], rate, pcm)
		return
	}
	if v.tone == nil {
		return
	}
	if v.fresh || v.rate != rate {
		v.player, v.rate, v.fresh = audio.NewPlayer(*v.tone, rate), rate, false
	}
	v.player.Fill(pcm)
}

// convert brings a frame at promptRate to another rate.
func (v *speaker) convert(frame []int16, rate int, pcm []int16) {
	if rate == promptRate {
		copy(pcm, frame)
		return
	}
	if v.wider == nil || v.wideRate != rate {
		r, err := audio.NewResampler(promptRate, rate)
		if err != nil {
			return // no phone has such a rate
		}
		v.wider, v.wideRate = r, rate
	}
	_, _ = v.wider.Convert(frame, pcm) // a frame always fits
}

// A ringer is the tone that a room hears while a phone that it calls rings.
type ringer struct {
	player *audio.Player
	rate   int
}

// fill is called by one goroutine only.
func (r *ringer) fill(rate int, pcm []int16) {
	if r.player == nil || r.rate != rate {
		r.player, r.rate = audio.NewPlayer(audio.Ringback, rate), rate
	}
	r.player.Fill(pcm)
}

// beep is heard every ten seconds by a phone that waits.
var beep = audio.Tone{Hz: [2]float64{425}, Level: -25, On: 200 * time.Millisecond, Off: 10 * time.Second}

// say plays an announcement to the phone, in a room or not, in the leg's language.
// The channel is closed when it is over, as far as that is known.
func (l *leg) say(names ...string) <-chan struct{} {
	var spoken <-chan struct{}
	for _, name := range names {
		pcm, err := l.s.announcer.get(l.language(), name)
		switch {
		case err != nil:
			l.log.Error("announce", "err", err)
		case l.voice != nil:
			spoken = l.voice.say(pcm)
		case l.phone != nil:
			l.phone.Play(pcm, promptRate)
		}
	}
	if spoken == nil {
		now := make(chan struct{})
		close(now)
		return now
	}
	return spoken
}

// sayAndWait returns whether the leg goes on after the announcements.
func (l *leg) sayAndWait(names ...string) bool {
	timer := time.NewTimer(30 * time.Second)
	defer timer.Stop()
	return l.pump(l.say(names...), timer.C)
}

func (l *leg) language() string {
	if l.rule.Action.Language != "" {
		return l.rule.Action.Language
	}
	if l.s.cfg.Prompts.Language != "" {
		return l.s.cfg.Prompts.Language
	}
	return languages[0]
}

// startVoice begins to tick the leg's sound, if nobody does.
func (l *leg) startVoice() {
	if l.voice == nil && l.phone == nil {
		l.voice = newSpeaker(l.sound)
	}
}

// stopVoice ends that.
func (l *leg) stopVoice() {
	if l.voice != nil {
		l.voice.stop()
		l.voice = nil
	}
}

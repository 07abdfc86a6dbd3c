package sip

import (
	"context"
	"errors"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/guard"
)

const (
	// digitTimeout is how long the menu waits for the next key.
	digitTimeout = 10 * time.Second
	// maxPIN is where an entry without # ends, if the PINs' length is not known.
	maxPIN = 16
	// menuLimit bounds how long a call may stay in the menu whatever it presses.
	menuLimit = 3 * time.Minute
	// lookupLimit bounds a question to the directory.
	lookupLimit = 10 * time.Second
)

// A finder looks a PIN up. The error wraps call.ErrNotFound if it is nobody's.
type finder func(ctx context.Context, pin string) (call.Place, error)

// A PINLength is a Directory whose PINs are all of one length, so that nobody has
// to press # after the last digit.
type PINLength interface{ PINLength() int }

// askPIN is the spoken menu. It returns the room of the right PIN, or errOver
// after the last try. It says nothing that tells a wrong PIN from one of a caller
// who is locked out, or from one that no room has.
func (l *leg) askPIN(find finder, length int) (call.Place, error) {
	attempts := l.rule.Action.Attempts
	if attempts == 0 {
		attempts = l.s.pinAttempts
	}
	called := l.snapshot().Local
	end := time.Now().Add(menuLimit)
	for try := 1; ; try++ {
		prompt := []string{promptWelcome}
		if try > 1 {
			prompt = []string{promptTryAgain}
		}
		pin, ok := l.enterPIN(length, end, prompt...)
		if !ok {
			return call.Place{}, errOver
		}
		if pin != "" {
			place, err := l.tryPIN(find, pin, called)
			if err == nil || errors.Is(err, errOver) {
				return place, err
			}
			l.s.count.pinWrong.Add(1)
		}
		hangUp := try >= attempts
		if pin != "" && l.s.pins.Wrong(time.Now(), guard.Try{Caller: l.caller.Number, Called: called, Count: try, Attempts: attempts, Lockout: l.rule.Action.Lockout}) {
			hangUp = true
		}
		if pin != "" && !l.sayAndWait(promptWrongPIN) {
			return call.Place{}, errOver
		}
		if hangUp || time.Now().After(end) {
			l.sayAndWait(promptGoodbye)
			l.end(verdict{cause: call.CauseHangup, text: "no right PIN was entered", q850: 16})
			return call.Place{}, errOver
		}
	}
}

// tryPIN looks a PIN up, unless the caller is locked out.
func (l *leg) tryPIN(find finder, pin, called string) (call.Place, error) {
	if !l.s.pins.Begin(time.Now(), guard.Try{Caller: l.caller.Number, Called: called, Attempts: l.rule.Action.Attempts}) {
		return call.Place{}, call.ErrNotFound
	}
	place, err := await(l, lookupLimit, func(ctx context.Context) (call.Place, error) { return find(ctx, pin) })
	switch {
	case l.over:
		return call.Place{}, errOver
	case err == nil:
		l.s.pins.Right(time.Now(), l.caller.Number, called)
		return place, nil
	case !errors.Is(err, call.ErrNotFound):
		l.log.Error("look a PIN up", "err", err)
		l.sayAndWait(promptUnavailable, promptGoodbye)
		l.end(verdict{cause: call.CauseFailed, text: "the directory did not answer", q850: 41})
		return call.Place{}, errOver
	}
	return call.Place{}, err
}

// enterPIN plays the prompts and collects keys until #, until there are length of
// them, or until none comes any more. Whoever knows the menu need not hear it out:
// the first key silences it. * begins anew. It reports whether the leg goes on.
func (l *leg) enterPIN(length int, end time.Time, prompts ...string) (pin string, ok bool) {
	if length == 0 {
		length = maxPIN
	}
	entered := make(chan struct{})
	closed := false
	var key chan struct{} // closed with each key
	key = make(chan struct{})
	l.pressed = func(digit byte) {
		if closed {
			return
		}
		l.voice.hush()
		switch {
		case digit == '#':
			closed = true
		case digit == '*':
			pin = ""
		case digit >= '0' && digit <= '9':
			pin += string(digit)
			closed = len(pin) >= length
		}
		close(key)
		key = make(chan struct{})
		if closed {
			close(entered)
		}
	}
	defer func() { l.pressed = nil }()

	spoken := l.say(prompts...)
	if !l.pump(either(spoken, key), time.After(time.Until(end))) {
		return "", false
	}
	for !closed {
		pressed := key
		timer := time.NewTimer(min(digitTimeout, max(0, time.Until(end))))
		goesOn := l.pump(pressed, timer.C)
		timedOut := !timer.Stop()
		switch {
		case !goesOn:
			return "", false
		case timedOut && pressed == key:
			return pin, true // what there is, without #
		}
	}
	return pin, true
}

// either is closed when a or b is. The goroutine in between ends with the first.
func either(a, b <-chan struct{}) <-chan struct{} {
	c := make(chan struct{})
	go func() {
		defer close(c)
		select {
		case <-a:
		case <-b:
		}
	}()
	return c
}

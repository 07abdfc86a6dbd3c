package guard

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// A machine calls again and again and tries three PINs each time. It
// has a thousand numbers to show.
func TestGuessing(t *testing.T) {
	for name, numbers := range map[string]int{"one number": 1, "no number": 0, "a thousand numbers": 1000} {
		a := NewAttempts(DefaultPINs())
		guesses := 0
		for now := start; now.Before(start.AddDate(0, 0, 10)); now = now.Add(time.Minute) {
			caller := ""
			if numbers > 0 {
				caller = fmt.Sprint("+4930", int(now.Unix()/60)%numbers)
			}
			for try := 1; ; try++ {
				if a.Begin(now, Try{Caller: caller, Called: "+4940", Count: try}) {
					guesses++
				}
				if a.Wrong(now, Try{Caller: caller, Called: "+4940", Count: try}) {
					if try != 3 {
						t.Fatalf("%s: hung up after %d tries", name, try)
					}
					break
				}
			}
		}
		// 900,000 PINs of six digits: six hundred guesses find one of a hundred
		// rooms' with one in fifteen.
		if guesses > 600 {
			t.Errorf("%s: %d guesses in ten days", name, guesses)
		}
		if guesses < 30 {
			t.Errorf("%s: only %d guesses: the number would be locked for everybody, always", name, guesses)
		}
	}
}

func TestLockout(t *testing.T) {
	a := NewAttempts(PINs{Attempts: 3, Lockout: time.Minute, Caller: 3, Called: 100})
	wrong := func(now time.Time, caller string, n int) {
		for i := range n {
			a.Wrong(now, Try{Caller: caller, Called: "us", Count: i + 1})
		}
	}
	now := start
	for _, want := range []time.Duration{1, 2, 4, 8} {
		wrong(now, "+1", 3)
		if left := a.Locked(now, "+1", "us"); left != want*time.Minute {
			t.Errorf("locked for %s, want %dm", left, want)
		}
		if left := a.Locked(now, "+2", "us"); left != 0 {
			t.Errorf("another caller is locked for %s", left)
		}
		wrong(now, "+1", 30) // while locked: no longer
		if left := a.Locked(now, "+1", "us"); left != want*time.Minute {
			t.Errorf("trying on makes it %s", left)
		}
		now = now.Add(want * time.Minute)
		if left := a.Locked(now, "+1", "us"); left != 0 {
			t.Errorf("%s are left after the end", left)
		}
	}
	wrong(now.AddDate(0, 0, 2), "+1", 3)
	if left := a.Locked(now.AddDate(0, 0, 2), "+1", "us"); left != time.Minute {
		t.Errorf("two quiet days later the lock-out is %s", left)
	}
}

func TestRuleSetsItsOwn(t *testing.T) {
	a := NewAttempts(DefaultPINs())
	for i := 1; i <= 5; i++ {
		if hangUp := a.Wrong(start, Try{Caller: "+1", Called: "us", Count: i, Attempts: 5, Lockout: time.Hour}); hangUp != (i == 5) {
			t.Errorf("try %d of 5: hang up %v", i, hangUp)
		}
		if locked := a.Locked(start, "+1", "us") > 0; locked != (i == 5) {
			t.Errorf("try %d of 5: locked %v", i, locked)
		}
	}
	if left := a.Locked(start, "+1", "us"); left != time.Hour {
		t.Errorf("locked for %s, want the rule's hour", left)
	}
}

func TestRightPIN(t *testing.T) {
	a := NewAttempts(DefaultPINs())
	for i := range 5 { // never three wrong in a row
		a.Wrong(start, Try{Caller: fmt.Sprint("+4930", i), Called: "us", Count: 1})
		a.Wrong(start, Try{Caller: fmt.Sprint("+4930", i), Called: "us", Count: 2})
		a.Right(start, fmt.Sprint("+4930", i), "us")
	}
	for i := range 30 {
		a.Wrong(start, Try{Caller: fmt.Sprint("+4940", i), Called: "us", Count: 1})
	}
	if a.Locked(start, "+2", "us") == 0 {
		t.Error("forty wrong PINs do not lock the number for strangers")
	}
	if a.Locked(start, "+49301", "us") > 0 {
		t.Error("a caller who knows a PIN is shut out by others' mistakes")
	}
	if a.Locked(start.Add(goodFor), "+49301", "other") > 0 {
		t.Error("a caller who got in each time is locked out")
	}
	for range 3 {
		a.Wrong(start, Try{Count: 1, Called: "third"})
		a.Right(start, "", "third")
	}
	if a.Locked(start, "", "fourth") == 0 {
		t.Error("one anonymous caller's success clears all of them")
	}
}

// Who knows one room's PIN may not guess others' behind it.
func TestInsider(t *testing.T) {
	a := NewAttempts(DefaultPINs())
	guesses := 0
	for now := start; now.Before(start.AddDate(0, 0, 10)); now = now.Add(time.Minute) {
		for try := 1; try <= 2; try++ {
			if a.Begin(now, Try{Caller: "+1", Called: "us", Count: try}) {
				guesses++
			}
			a.Wrong(now, Try{Caller: "+1", Called: "us", Count: try})
		}
		if a.Begin(now, Try{Caller: "+1", Called: "us", Count: 3}) {
			a.Right(now, "+1", "us")
		}
	}
	if guesses > 200 {
		t.Errorf("%d guesses in ten days", guesses)
	}
}

// A hundred calls at the same time have no more tries than one.
func TestGuessingAtOnce(t *testing.T) {
	a := NewAttempts(DefaultPINs())
	try := Try{Caller: "+1", Called: "us", Count: 1}
	begun := 0
	for range 100 {
		if a.Begin(start, try) {
			begun++
		}
	}
	if begun != 3 {
		t.Errorf("one caller has %d tries at once, want 3", begun)
	}
	for i := range 100 {
		if a.Begin(start, Try{Caller: fmt.Sprint("+49", i), Called: "us", Count: 1}) {
			begun++
		}
	}
	if begun != 30 {
		t.Errorf("many callers have %d tries at once, want 30", begun)
	}
	for range 3 {
		a.Wrong(start, try)
	}
	if a.Locked(start, "+1", "us") == 0 {
		t.Error("three wrong PINs at once do not lock the caller out")
	}
	later := start.Add(lookup)
	if !a.Begin(later, Try{Caller: "+2", Called: "us", Count: 1}) {
		t.Error("tries that were never ended count for ever")
	}
}

// A caller's last try may be the right one.
func TestLastTryIsRight(t *testing.T) {
	a := NewAttempts(DefaultPINs())
	for i := range 3 {
		try := Try{Caller: "+1", Called: "us", Count: i + 1}
		if !a.Begin(start, try) {
			t.Fatalf("try %d is refused", i+1)
		}
		if i < 2 {
			a.Wrong(start, try)
		} else {
			a.Right(start, "+1", "us")
		}
	}
	if a.Locked(start, "+1", "us") > 0 || !a.Begin(start, Try{Caller: "+1", Called: "us", Count: 1}) {
		t.Error("who got it right the third time is locked out")
	}
}

func TestAttemptsAreBounded(t *testing.T) {
	a := NewAttempts(DefaultPINs())
	for range 3 {
		a.Wrong(start, Try{Caller: "victim", Called: "us", Count: 1})
	}
	for i := range maxTries + 2000 {
		a.Wrong(start, Try{Caller: fmt.Sprint(i), Called: fmt.Sprint(i), Count: 1})
	}
	if len(a.caller) > maxTries || len(a.called) > maxTries {
		t.Errorf("%d callers, %d numbers are remembered", len(a.caller), len(a.called))
	}
	a.Wrong(start.AddDate(0, 0, 3), Try{Caller: "x", Called: "y", Count: 1})
	if len(a.caller) != 1 {
		t.Errorf("%d callers are remembered three days later", len(a.caller))
	}
}

func TestHashPIN(t *testing.T) {
	key := []byte("0123456789abcdef")
	hash := HashPIN(key, "482913")
	if len(hash) != 64 || strings.Contains(hash, "482913") {
		t.Errorf("hash %q", hash)
	}
	if !SamePIN(key, "482913", hash) {
		t.Error("the right PIN is not the same")
	}
	if SamePIN(key, "482914", hash) || SamePIN([]byte("another key"), "482913", hash) || SamePIN(key, "482913", "") || SamePIN(key, "", hash) {
		t.Error("a wrong PIN, key or hash is the same")
	}
}

func TestNewPIN(t *testing.T) {
	seen := make(map[string]int)
	var firsts [10]int
	for range 5000 {
		pin := NewPIN(6)
		if len(pin) != 6 || strings.Trim(pin, "0123456789") != "" || pin[0] == '0' || guessable(pin) {
			t.Fatalf("PIN %q", pin)
		}
		seen[pin]++
		firsts[pin[0]-'0']++
	}
	if len(seen) < 4900 {
		t.Errorf("only %d different PINs of 5000", len(seen))
	}
	for d, n := range firsts[1:] {
		if n < 400 || n > 720 { // 555 expected, 7 standard deviations
			t.Errorf("%d of 5000 PINs begin with %d", n, d+1)
		}
	}
	for digits, want := range map[int]int{0: 6, 4: 6, 6: 6, 10: 10} {
		if got := len(NewPIN(digits)); got != want {
			t.Errorf("NewPIN(%d) has %d digits", digits, got)
		}
	}
	for _, pin := range []string{"111111", "123456", "987654", "901234", "210987"} {
		if !guessable(pin) {
			t.Errorf("%s could be given out", pin)
		}
	}
}

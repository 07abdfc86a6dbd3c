package guard

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"
)

// PINs is the configuration of asking for PINs.
type PINs struct {
	Attempts int           // per call
	Lockout  time.Duration // the first lock-out; it doubles with each further one, up to a day
	Caller   int           // wrong PINs of one caller in an hour before a lock-out
	Called   int           // wrong PINs for one called number in an hour before a lock-out
}

// DefaultPINs returns the defaults.
func DefaultPINs() PINs {
	return PINs{Attempts: 3, Lockout: 10 * time.Minute, Caller: 3, Called: 30}
}

// maxTries is how many callers and called numbers are remembered at once.
const maxTries = 20000

// Attempts counts wrong PINs. It may be used by many at once.
type Attempts struct {
	cfg PINs

	mu     sync.Mutex // guards the following fields
	caller map[string]*tries
	called map[string]*tries
	good   map[string]time.Time // callers who knew a PIN, and when
	swept  time.Time
}

// tries are the wrong PINs of one caller or for one called number.
type tries struct {
	wrong  int       // since the last lock-out or pause of an hour
	last   time.Time // of them
	until  time.Time // locked
	locked int       // how often, since a day without one
	today  int       // wrong since day; Right does not clear it
	day    time.Time
	tried  []time.Time // begun and not yet known to be wrong or right
}

// NewAttempts returns counters at zero.
func NewAttempts(cfg PINs) *Attempts {
	d := DefaultPINs()
	if cfg.Attempts <= 0 {
		cfg.Attempts = d.Attempts
	}
	if cfg.Lockout <= 0 {
		cfg.Lockout = d.Lockout
	}
	if cfg.Caller <= 0 {
		cfg.Caller = d.Caller
	}
	if cfg.Called <= 0 {
		cfg.Called = d.Called
	}
	return &Attempts{cfg: cfg, caller: make(map[string]*tries), called: make(map[string]*tries), good: make(map[string]time.Time)}
}

// goodFor is how long a caller who knew a PIN is let through a lock-out of the
// called number: strangers must not be able to shut everybody out.
const goodFor = 30 * 24 * time.Hour

// Begin says whether a PIN may be looked up now. Unless the caller or the called
// number is locked out, it may; Wrong or Right must follow at once. A caller
// without a number counts as one caller together with all others of the kind. The
// called number's lock-out does not hold for a caller who knew a PIN lately.
//
// If it may not, the menu must go on as ever (ask, listen, say "wrong", call
// Wrong): an answer that differs would say which guess was right. Many calls at
// the same time have no more tries than one after the other.
func (a *Attempts) Begin(now time.Time, t Try) bool {
	t = a.defaults(t)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sweep(now)
	if a.lockedFor(now, t.Caller, t.Called) > 0 {
		return false
	}
	caller, called := entry(a.caller, t.Caller), entry(a.called, t.Called)
	at, known := a.good[t.Caller]
	if caller.waiting(now)+caller.wrong >= max(a.cfg.Caller, t.Attempts) ||
		called.waiting(now)+called.wrong >= a.cfg.Called && !(known && now.Sub(at) < goodFor) {
		return false
	}
	caller.tried, called.tried = append(caller.tried, now), append(called.tried, now)
	return true
}

// lookup is how long looking a PIN up takes at most. What was begun and never
// ended is forgotten then.
const lookup = 30 * time.Second

// waiting returns how many tries are being looked up.
func (t *tries) waiting(now time.Time) int {
	t.tried = slices.DeleteFunc(t.tried, func(at time.Time) bool { return now.Sub(at) >= lookup })
	return len(t.tried)
}

// known takes one try off those that are being looked up.
func (t *tries) known() {
	if len(t.tried) > 0 {
		t.tried = t.tried[1:]
	}
}

func entry(all map[string]*tries, who string) *tries {
	t := all[who]
	if t == nil {
		if len(all) >= maxTries {
			forgetTries(all)
		}
		t = &tries{}
		all[who] = t
	}
	return t
}

// Locked returns how long nobody need try: the longer of the lock-outs that hold
// for the caller, 0 if none does.
func (a *Attempts) Locked(now time.Time, caller, called string) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lockedFor(now, caller, called)
}

func (a *Attempts) lockedFor(now time.Time, caller, called string) (left time.Duration) {
	if t := a.caller[caller]; t != nil {
		left = t.until.Sub(now)
	}
	if at, known := a.good[caller]; known && now.Sub(at) < goodFor {
		return max(left, 0)
	}
	if t := a.called[called]; t != nil {
		left = max(left, t.until.Sub(now))
	}
	return max(left, 0)
}

// A Try is one wrong PIN.
type Try struct {
	Caller   string // number; empty if anonymous
	Called   string
	Count    int           // which try of this call it was, from 1
	Attempts int           // of the dispatch rule; 0: as configured
	Lockout  time.Duration // of the dispatch rule; 0: as configured
}

func (a *Attempts) defaults(t Try) Try {
	if t.Attempts <= 0 {
		t.Attempts = a.cfg.Attempts
	}
	if t.Lockout <= 0 {
		t.Lockout = a.cfg.Lockout
	}
	return t
}

// Wrong counts a wrong PIN, or the PIN of a room that is not there: there is no
// difference. It reports whether this call has had its last try.
func (a *Attempts) Wrong(now time.Time, t Try) (hangUp bool) {
	t = a.defaults(t)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sweep(now)
	locked := a.lockedFor(now, t.Caller, t.Called) > 0
	caller, called := entry(a.caller, t.Caller), entry(a.called, t.Called)
	if locked && len(caller.tried) == 0 {
		return t.Count >= t.Attempts // nothing was tried; and nobody may keep a number locked by calling on
	}
	caller.known()
	called.known()
	most := max(a.cfg.Caller, t.Attempts)
	caller.miss(now, most, 4*most, t.Lockout)
	called.miss(now, a.cfg.Called, 0, t.Lockout)
	return t.Count >= t.Attempts
}

// maxLockout is the longest lock-out.
const maxLockout = 24 * time.Hour

// miss counts a wrong PIN. most in an hour, or daily in a day whatever was right
// in between, are too many; a daily of 0 is no limit.
func (t *tries) miss(now time.Time, most, daily int, lockout time.Duration) {
	if now.Before(t.until) {
		return
	}
	if now.Sub(t.last) >= time.Hour {
		t.wrong = 0
	}
	if now.Sub(t.until) >= maxLockout {
		t.locked = 0
	}
	if now.Sub(t.day) >= 24*time.Hour {
		t.today, t.day = 0, now
	}
	t.wrong++
	t.today++
	t.last = now
	if t.wrong >= most || daily > 0 && t.today >= daily {
		t.until = now.Add(min(min(lockout, maxLockout)<<min(t.locked, 10), maxLockout))
		t.locked++
		t.wrong = 0
	}
}

// sweep forgets who has been quiet for a day. a.mu is held.
func (a *Attempts) sweep(now time.Time) {
	if now.Sub(a.swept) < time.Minute {
		return
	}
	a.swept = now
	for caller, at := range a.good {
		if now.Sub(at) >= goodFor {
			delete(a.good, caller)
		}
	}
	for _, all := range []map[string]*tries{a.caller, a.called} {
		for who, t := range all {
			if now.Sub(t.last) >= maxLockout && now.Sub(t.until) >= maxLockout && t.waiting(now) == 0 {
				delete(all, who)
			}
		}
	}
}

// forgetTries makes room without letting go of a lock-out if it can: of a few,
// the one that is not locked and was quiet for longest goes.
func forgetTries(all map[string]*tries) {
	worst, looked := "", 0
	for who, t := range all {
		if w := all[worst]; looked == 0 || t.until.Before(w.until) || t.until.Equal(w.until) && t.last.Before(w.last) {
			worst = who
		}
		if looked++; looked == 32 {
			break
		}
	}
	delete(all, worst)
}

// Right forgets the caller's earlier mistakes, not those at the called number: a
// guesser who knows one PIN must not clear the way with it. A caller without a
// number stays as it is, being many.
func (a *Attempts) Right(now time.Time, caller, called string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t := a.called[called]; t != nil {
		t.known()
	}
	t := a.caller[caller]
	if t != nil {
		t.known()
	}
	if caller == "" {
		return
	}
	if t != nil && !now.Before(t.until) {
		t.wrong = 0
	}
	if len(a.good) < maxTries {
		a.good[caller] = now
	}
}

// HashPIN returns what is stored and looked up in place of a PIN: an HMAC-SHA256
// under a key of the server, hex. A PIN has too few digits for anything that is
// not keyed.
func HashPIN(key []byte, pin string) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("trunkhall pin\x00"))
	mac.Write([]byte(pin))
	return hex.EncodeToString(mac.Sum(nil))
}

// SamePIN compares a PIN with a stored hash in constant time.
func SamePIN(key []byte, pin, hash string) bool {
	return hmac.Equal([]byte(HashPIN(key, pin)), []byte(hash))
}

// NewPIN returns a random PIN of that many digits, at least 6. Each is as likely
// as any other; none begins with 0, which some people would leave out, and none
// is one digit repeated or a row such as 123456.
func NewPIN(digits int) string {
	digits = max(digits, 6)
	low := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(digits-1)), nil)
	span := new(big.Int).Mul(low, big.NewInt(9))
	for {
		n, err := rand.Int(rand.Reader, span)
		if err != nil {
			panic(err) // crypto/rand never fails
		}
		if pin := n.Add(n, low).String(); !guessable(pin) {
			return pin
		}
	}
}

// guessable reports whether the digits are all the same or a row up or down.
func guessable(pin string) bool {
	const up, down = "01234567890123456789", "98765432109876543210"
	return strings.Trim(pin, pin[:1]) == "" || strings.Contains(up, pin) || strings.Contains(down, pin)
}

package guard

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// A Request asks for one more leg.
type Request struct {
	Direction call.Direction
	Trunk     string
	MaxCalls  int           // of the trunk; 0: no limit
	MaxCPS    float64       // of the trunk; 0: no limit
	By        string        // outbound: who pays
	Emergency bool          // nothing but the trunk's own limits stands against it
	Age       time.Duration // of the account of By; negative: not known, so not new
	Longest   time.Duration // the trunk's or the call's own limit; 0: none
}

// A LimitError is a leg that may not begin. It is call.ErrUnavailable where
// waiting helps (RetryAfter), call.ErrForbidden otherwise.
type LimitError struct {
	Limit      string        // which: trunk_calls, trunk_cps, calls, user_concurrent, user_hourly, user_minutes, daily_minutes, night, new_account
	Text       string        // for people
	RetryAfter time.Duration // 0: not soon
}

func (e *LimitError) Error() string { return e.Text }

// Unwrap returns the kind of the error.
func (e *LimitError) Unwrap() error {
	if e.RetryAfter > 0 {
		return call.ErrUnavailable
	}
	return call.ErrForbidden
}

// OfTrunk reports whether another trunk might take the leg.
func (e *LimitError) OfTrunk() bool { return e.Limit == "trunk_calls" || e.Limit == "trunk_cps" }

// Cause returns what a leg that was refused ended with.
func (e *LimitError) Cause() call.Cause {
	switch e.Limit {
	case "trunk_calls", "trunk_cps", "calls":
		return call.CauseNoLine
	}
	return call.CauseLimit
}

// An Alarm is something an operator should know at once: a budget is nearly or
// entirely used up.
type Alarm struct {
	Limit string    `json:"limit"` // as in LimitError
	By    string    `json:"by,omitempty"`
	Text  string    `json:"text"`
	At    time.Time `json:"at"`
}

// Counters count legs and minutes. They may be used by many at once. Days and
// nights are those of the time zone of the times given.
type Counters struct {
	cfg      Limits
	from, to int // of the night, minutes since midnight; both 0: no night
	alarm    func(Alarm)

	mu     sync.Mutex // guards the following fields and those of each Lease
	open   map[*Lease]struct{}
	trunks map[string]*trunkCount
	users  map[string]*userCount
	day    string // of spent
	spent  time.Duration
	night  string        // the date it began on
	nightS time.Duration // spent in it
	told   map[string]bool
	swept  time.Time
}

type trunkCount struct {
	calls  int
	tokens float64
	seen   time.Time
}

type userCount struct {
	calls int
	begun []time.Time // within an hour
	spent time.Duration
}

// A Lease is one leg that was counted in.
type Lease struct {
	c       *Counters
	r       Request
	since   time.Time // of the answer; zero before
	charged time.Time // up to when its time is in the sums
	ended   bool
}

// NewLimits returns counters at zero. cfg must be valid. alarm, if not nil, is
// called without a lock held: once per budget and day when four fifths of it are
// used up, and once when all is.
func NewLimits(cfg Limits, alarm func(Alarm)) *Counters {
	c := &Counters{
		cfg: cfg, alarm: alarm,
		open: make(map[*Lease]struct{}), trunks: make(map[string]*trunkCount), users: make(map[string]*userCount),
		told: make(map[string]bool),
	}
	if from, err := time.Parse("15:04", cfg.Night.From); err == nil {
		if to, err := time.Parse("15:04", cfg.Night.To); err == nil {
			c.from, c.to = from.Hour()*60+from.Minute(), to.Hour()*60+to.Minute()
		}
	}
	return c
}

// Restore adds what was spent earlier today, from the call detail records.
func (c *Counters) Restore(now time.Time, spent map[string]time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn(now)
	for by, d := range spent {
		c.user(by).spent += d
		c.spent += d
	}
}

// Begin counts a leg in, or says why not with a *LimitError.
func (c *Counters) Begin(now time.Time, r Request) (*Lease, error) {
	l, err := c.begin(now, r)
	var limit *LimitError
	if errors.As(err, &limit) {
		switch limit.Limit {
		case "user_minutes", "daily_minutes", "night":
			c.tell(now, limit.Limit, r.By, 100)
		case "new_account":
			c.tell(now, limit.Limit, r.By, 0)
		}
	}
	return l, err
}

func (c *Counters) begin(now time.Time, r Request) (*Lease, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.check(now, r); err != nil {
		return nil, err
	}
	l := &Lease{c: c, r: r}
	if r.Direction == call.Outbound {
		u := c.user(r.By)
		u.calls++
		u.begun = append(u.begun, now)
	}
	c.take(r)
	c.open[l] = struct{}{}
	return l, nil
}

// take uses a line of the trunk. c.mu is held.
func (c *Counters) take(r Request) {
	t := c.trunk(r.Trunk)
	if r.MaxCPS > 0 {
		t.tokens--
	}
	t.calls++
}

// Move takes the leg to another trunk, named by r, because the one it was to go
// over did not take it. It does not count as another call of its user. If that
// trunk has no room either, the leg stays where it is.
func (l *Lease) Move(now time.Time, r Request) error {
	c := l.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.ended {
		return refuse("calls", 0, "the call has ended")
	}
	c.turn(now)
	if err := c.checkTrunk(now, r); err != nil {
		return err
	}
	c.trunk(l.r.Trunk).calls--
	c.take(r)
	l.r.Trunk, l.r.Longest = r.Trunk, r.Longest
	return nil
}

// Would returns what Begin would, but counts nothing.
func (c *Counters) Would(now time.Time, r Request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.check(now, r)
}

// check returns the limit that stands against one more leg. c.mu is held.
func (c *Counters) check(now time.Time, r Request) error {
	c.turn(now)
	if c.cfg.MaxCalls > 0 && len(c.open) >= c.cfg.MaxCalls && !r.Emergency {
		return refuse("calls", 10*time.Second, "all %d lines of this server are busy", c.cfg.MaxCalls)
	}
	if err := c.checkTrunk(now, r); err != nil {
		return err
	}
	if r.Direction == call.Outbound && !r.Emergency {
		return c.mayDial(now, r)
	}
	return nil
}

// checkTrunk applies the limits of the trunk. c.mu is held.
func (c *Counters) checkTrunk(now time.Time, r Request) error {
	t := c.trunk(r.Trunk)
	if r.MaxCalls > 0 && t.calls >= r.MaxCalls {
		return refuse("trunk_calls", 10*time.Second, "all %d lines of this trunk are busy", r.MaxCalls)
	}
	if r.MaxCPS > 0 {
		burst := max(r.MaxCPS, 1)
		if t.seen.IsZero() {
			t.tokens = burst
		}
		t.tokens = min(burst, t.tokens+now.Sub(t.seen).Seconds()*r.MaxCPS)
		t.seen = now
		if t.tokens < 1 {
			return refuse("trunk_cps", time.Second, "too many calls at once over this trunk; try again in a second")
		}
	}
	return nil
}

// mayDial applies the limits of calls out. c.mu is held.
func (c *Counters) mayDial(now time.Time, r Request) error {
	u := c.user(r.By)
	u.begun = slices.DeleteFunc(u.begun, func(t time.Time) bool { return now.Sub(t) >= time.Hour })
	if r.Age >= 0 && r.Age < c.cfg.NewAccount && len(u.begun) >= c.cfg.NewHourly {
		if c.cfg.NewHourly == 0 {
			return refuse("new_account", 0, "new accounts cannot call telephones yet")
		}
		return refuse("new_account", 0, "a new account can call no more than %d telephones an hour", c.cfg.NewHourly)
	}
	if c.cfg.UserConcurrent > 0 && u.calls >= c.cfg.UserConcurrent {
		return refuse("user_concurrent", 10*time.Second, "you already have %d calls", u.calls)
	}
	if c.cfg.UserHourly > 0 && len(u.begun) >= c.cfg.UserHourly {
		wait := u.begun[len(u.begun)-c.cfg.UserHourly].Add(time.Hour).Sub(now)
		return refuse("user_hourly", max(wait, time.Second), "that were %d calls in an hour; try again later", c.cfg.UserHourly)
	}
	if _, limit := c.budget(now, r.By); limit != "" {
		return refuse(limit, 0, "%s", used[limit])
	}
	return nil
}

// used says that a budget is used up.
var used = map[string]string{
	"user_minutes":  "your telephone minutes for today are used up",
	"daily_minutes": "this server's telephone minutes for today are used up",
	"night":         "this server's telephone minutes for the night are used up",
}

// noBudget is more than anything anybody could use up.
const noBudget = time.Duration(1<<63 - 1)

// budget returns the time left to by's calls, all together, and which budget ends
// it if none is left. c.mu is held; the sums are of now.
func (c *Counters) budget(now time.Time, by string) (left time.Duration, limit string) {
	left, ends := noBudget, ""
	take := func(name string, minutes int, spent time.Duration) {
		if d := time.Duration(minutes)*time.Minute - spent; d < left {
			left, ends = d, name
		}
	}
	if c.cfg.UserMinutes > 0 {
		take("user_minutes", c.cfg.UserMinutes, c.user(by).spent)
	}
	if c.cfg.MaxDailyMinutes > 0 {
		take("daily_minutes", c.cfg.MaxDailyMinutes, c.spent)
	}
	if c.nightOf(now) != "" {
		take("night", c.cfg.Night.Minutes, c.nightS)
	}
	if left <= 0 {
		return left, ends
	}
	return left, ""
}

// nightOf returns the date on which the night of now began, empty by day.
func (c *Counters) nightOf(now time.Time) string {
	if c.from == c.to {
		return ""
	}
	at := now.Hour()*60 + now.Minute()
	switch {
	case c.from < c.to && at >= c.from && at < c.to, c.from > c.to && at >= c.from:
		return now.Format(time.DateOnly)
	case c.from > c.to && at < c.to:
		return now.AddDate(0, 0, -1).Format(time.DateOnly)
	}
	return ""
}

// turn brings the sums to now: the time of running calls is added, and a new day
// or night begins with what its calls use from then on. c.mu is held.
func (c *Counters) turn(now time.Time) {
	for l := range c.open {
		c.charge(now, l)
	}
	if day := now.Format(time.DateOnly); day != c.day {
		c.day, c.spent = day, 0
		clear(c.told)
		for _, u := range c.users {
			u.spent = 0
		}
	}
	if night := c.nightOf(now); night != c.night {
		c.night, c.nightS = night, 0
	}
	if now.Sub(c.swept) < time.Minute {
		return
	}
	c.swept = now
	for by, u := range c.users {
		if u.calls == 0 && u.spent == 0 && (len(u.begun) == 0 || now.Sub(u.begun[len(u.begun)-1]) >= time.Hour) {
			delete(c.users, by)
		}
	}
	for id, t := range c.trunks {
		if t.calls == 0 && now.Sub(t.seen) >= time.Minute {
			delete(c.trunks, id)
		}
	}
}

func (c *Counters) charge(now time.Time, l *Lease) {
	if l.r.Direction != call.Outbound || l.since.IsZero() || !now.After(l.charged) {
		return
	}
	d := now.Sub(l.charged)
	l.charged = now
	c.spent += d
	c.user(l.r.By).spent += d
	c.nightS += d
}

func (c *Counters) user(by string) *userCount {
	u := c.users[by]
	if u == nil {
		u = &userCount{}
		c.users[by] = u
	}
	return u
}

func (c *Counters) trunk(id string) *trunkCount {
	t := c.trunks[id]
	if t == nil {
		t = &trunkCount{}
		c.trunks[id] = t
	}
	return t
}

// Answered starts the bill. Without it a lease costs no minutes.
func (l *Lease) Answered(now time.Time) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	if l.since.IsZero() && !l.ended {
		l.since, l.charged = now, now
	}
}

// Left returns how long the leg may go on and what ends it then, for people.
// Other calls use up the same budgets, so ask again when the time is over: the
// leg ends when Left is zero or less. Before the answer nothing is used up.
func (l *Lease) Left(now time.Time) (time.Duration, string) {
	c := l.c
	c.mu.Lock()
	c.turn(now)
	left, why := noBudget, ""
	if l.since.IsZero() {
		c.mu.Unlock()
		return left, why
	}
	for _, longest := range []time.Duration{c.cfg.MaxDuration, l.r.Longest} {
		if l.r.Emergency {
			break
		}
		if d := longest - now.Sub(l.since); longest > 0 && d < left {
			left, why = d, "the call has lasted as long as it may"
		}
	}
	var limit string
	var percent int
	if l.r.Direction == call.Outbound && !l.r.Emergency {
		d, ends := c.budget(now, l.r.By)
		limit, percent = c.state(now, l.r.By)
		if ends != "" {
			left, why = min(left, d), used[ends]
		} else if share := d / time.Duration(c.sharers(l)); d != noBudget && share < left {
			left, why = max(share, time.Second), used[limit]
		}
	}
	c.mu.Unlock()
	if percent >= 80 {
		c.tell(now, limit, l.r.By, percent)
	}
	return left, why
}

// sharers returns how many answered calls out use up budgets now, at least one.
// c.mu is held.
func (c *Counters) sharers(l *Lease) int {
	n := 0
	for other := range c.open {
		if other.r.Direction == call.Outbound && !other.since.IsZero() {
			n++
		}
	}
	return max(n, 1)
}

// state returns the budget that is used up most and how much of it, in percent.
// c.mu is held.
func (c *Counters) state(now time.Time, by string) (limit string, percent int) {
	look := func(name string, minutes int, spent time.Duration) {
		full := time.Duration(minutes) * time.Minute
		p := 100
		if full > 0 {
			p = int(100 * spent / full)
		}
		if limit == "" || p > percent {
			limit, percent = name, p
		}
	}
	if c.cfg.UserMinutes > 0 {
		look("user_minutes", c.cfg.UserMinutes, c.user(by).spent)
	}
	if c.cfg.MaxDailyMinutes > 0 {
		look("daily_minutes", c.cfg.MaxDailyMinutes, c.spent)
	}
	if c.nightOf(now) != "" {
		look("night", c.cfg.Night.Minutes, c.nightS)
	}
	return limit, percent
}

// tell raises an alarm, once a day for each budget and stage.
func (c *Counters) tell(now time.Time, limit, by string, percent int) {
	if limit != "user_minutes" && limit != "new_account" {
		by = ""
	}
	stage, text := "all", "all telephone minutes are used up"
	switch {
	case limit == "new_account":
		stage, text = "new", "a new account tried to call telephones"
	case percent < 100:
		stage, text = "nearly", fmt.Sprintf("%d %% of the telephone minutes are used up", percent)
	}
	key := limit + "\x00" + by + "\x00" + stage
	c.mu.Lock()
	told := c.told[key]
	c.told[key] = true
	c.mu.Unlock()
	if !told && c.alarm != nil {
		c.alarm(Alarm{Limit: limit, By: by, Text: text, At: now})
	}
}

// End counts the leg out. It may be called more than once.
func (l *Lease) End(now time.Time) {
	c := l.c
	c.mu.Lock()
	if l.ended {
		c.mu.Unlock()
		return
	}
	c.turn(now)
	l.ended = true
	delete(c.open, l)
	c.trunk(l.r.Trunk).calls--
	var limit string
	var percent int
	if l.r.Direction == call.Outbound {
		c.user(l.r.By).calls--
		if !l.since.IsZero() {
			limit, percent = c.state(now, l.r.By)
		}
	}
	c.mu.Unlock()
	if percent >= 80 {
		c.tell(now, limit, l.r.By, percent)
	}
}

// Spent returns the outbound time used today: of everybody and of each user.
func (c *Counters) Spent(now time.Time) (total time.Duration, users map[string]time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn(now)
	users = make(map[string]time.Duration)
	for by, u := range c.users {
		if u.spent > 0 {
			users[by] = u.spent
		}
	}
	return c.spent, users
}

// Calls returns the legs at present over a trunk, or over all if trunk is empty.
func (c *Counters) Calls(trunk string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if trunk == "" {
		return len(c.open)
	}
	if t := c.trunks[trunk]; t != nil {
		return t.calls
	}
	return 0
}

func refuse(limit string, retry time.Duration, format string, args ...any) error {
	return &LimitError{Limit: limit, RetryAfter: retry, Text: fmt.Sprintf(format, args...)}
}

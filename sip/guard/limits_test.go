package guard

import (
	"errors"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

func dial(by string) Request {
	return Request{Direction: call.Outbound, Trunk: "t", By: by, Age: -1}
}

// limitOf returns which limit an error names, or "".
func limitOf(t *testing.T, err error) string {
	t.Helper()
	var e *LimitError
	if err != nil && !errors.As(err, &e) {
		t.Fatalf("%v is no LimitError", err)
	}
	if e == nil {
		return ""
	}
	if e.Text == "" || e.Cause() == call.CauseNone {
		t.Errorf("%s has nothing to tell the caller", e.Limit)
	}
	return e.Limit
}

func TestUserLimits(t *testing.T) {
	c := NewLimits(Limits{UserConcurrent: 3, UserHourly: 5}, nil)
	var leases []*Lease
	for i, want := range []string{"", "", "", "user_concurrent"} {
		l, err := c.Begin(start, dial("@alice:x"))
		if got := limitOf(t, err); got != want {
			t.Errorf("call %d: %q, want %q", i+1, got, want)
		}
		if l != nil {
			leases = append(leases, l)
		}
	}
	if err := c.Would(start, dial("@alice:x")); limitOf(t, err) != "user_concurrent" {
		t.Errorf("asked beforehand: %v", err)
	}
	for range 10 {
		if err := c.Would(start, dial("@bob:x")); err != nil {
			t.Errorf("asking counts as calling: %v", err)
		}
	}
	if _, err := c.Begin(start, dial("@bob:x")); err != nil {
		t.Errorf("another user: %v", err)
	}
	for _, l := range leases {
		l.End(start.Add(time.Minute))
		l.End(start.Add(time.Minute)) // twice
	}
	if n := c.Calls("t"); n != 1 {
		t.Errorf("%d calls over the trunk, want 1", n)
	}
	for i, want := range []string{"", "", "user_hourly"} {
		l, err := c.Begin(start.Add(2*time.Minute), dial("@alice:x"))
		if got := limitOf(t, err); got != want {
			t.Errorf("call %d: %q, want %q", i+4, got, want)
		}
		if l != nil {
			l.End(start.Add(3 * time.Minute))
		} else if e := new(LimitError); errors.As(err, &e) && e.RetryAfter != 58*time.Minute {
			t.Errorf("try again in %s, want 58m", e.RetryAfter)
		}
	}
	if _, err := c.Begin(start.Add(time.Hour), dial("@alice:x")); err != nil {
		t.Errorf("after an hour: %v", err)
	}
}

func TestNewAccounts(t *testing.T) {
	cfg := Limits{NewAccount: 24 * time.Hour}
	r := dial("@new:x")
	r.Age = time.Hour
	var alarms []Alarm
	c := NewLimits(cfg, func(a Alarm) { alarms = append(alarms, a) })
	for range 3 {
		if _, err := c.Begin(start, r); limitOf(t, err) != "new_account" {
			t.Errorf("an account of one hour dials: %v", err)
		} else if !errors.Is(err, call.ErrForbidden) {
			t.Errorf("%v is not forbidden", err)
		}
	}
	if len(alarms) != 1 || alarms[0].By != "@new:x" {
		t.Errorf("alarms: %+v; want one", alarms)
	}
	r.Age = 25 * time.Hour
	if _, err := c.Begin(start, r); err != nil {
		t.Errorf("an account of a day: %v", err)
	}
	r.By, r.Age = "APIkey", -1
	if _, err := c.Begin(start, r); err != nil {
		t.Errorf("no account: %v", err)
	}
	cfg.NewHourly = 2
	c, r = NewLimits(cfg, nil), dial("@new:x")
	r.Age = 0
	for i, want := range []string{"", "", "new_account"} {
		if _, err := c.Begin(start, r); limitOf(t, err) != want {
			t.Errorf("call %d: %v", i+1, err)
		}
	}
}

func TestTrunkLimits(t *testing.T) {
	c := NewLimits(Limits{MaxCalls: 4}, nil)
	in := Request{Direction: call.Inbound, Trunk: "t", MaxCalls: 3, MaxCPS: 2}
	var last *Lease
	for i, want := range []string{"", "", "trunk_cps"} {
		l, err := c.Begin(start, in)
		if got := limitOf(t, err); got != want {
			t.Errorf("call %d: %q, want %q", i+1, got, want)
		}
		if l != nil {
			last = l
		}
	}
	later := start.Add(time.Second)
	if _, err := c.Begin(later, in); err != nil {
		t.Error(err)
	}
	if _, err := c.Begin(later, in); limitOf(t, err) != "trunk_calls" || !errors.Is(err, call.ErrUnavailable) {
		t.Errorf("the fourth of three: %v", err)
	}
	if _, err := c.Begin(later, Request{Direction: call.Inbound, Trunk: "other"}); err != nil {
		t.Error(err)
	}
	if _, err := c.Begin(later, Request{Direction: call.Inbound, Trunk: "third"}); limitOf(t, err) != "calls" {
		t.Errorf("the fifth of four: %v", err)
	}
	last.End(later)
	if _, err := c.Begin(later, in); err != nil {
		t.Errorf("after one ended: %v", err)
	}
}

func TestMove(t *testing.T) {
	c := NewLimits(Limits{UserHourly: 2}, nil)
	l, err := c.Begin(start, dial("a"))
	if err != nil {
		t.Fatal(err)
	}
	to := dial("a")
	to.Trunk, to.MaxCalls, to.Longest = "second", 1, time.Minute
	if err := l.Move(start, to); err != nil {
		t.Fatal(err)
	}
	if c.Calls("t") != 0 || c.Calls("second") != 1 || c.Calls("") != 1 {
		t.Errorf("%d legs over the first trunk, %d over the second", c.Calls("t"), c.Calls("second"))
	}
	l.Answered(start)
	if left, _ := l.Left(start); left != time.Minute {
		t.Errorf("%s left, want the second trunk's minute", left)
	}
	other, err := c.Begin(start, dial("a"))
	if err != nil {
		t.Fatalf("trying a second trunk counts as a second call: %v", err)
	}
	var full *LimitError
	if err := other.Move(start, to); !errors.As(err, &full) || !full.OfTrunk() {
		t.Errorf("moved to a trunk that is full: %v", err)
	}
	if _, err := c.Begin(start, dial("a")); limitOf(t, err) != "user_hourly" {
		t.Errorf("a third call: %v", err)
	}
	l.End(start)
	other.End(start)
	if c.Calls("t") != 0 || c.Calls("second") != 0 {
		t.Error("legs are left over")
	}
	if l.Move(start, to) == nil {
		t.Error("a leg that has ended moves")
	}
}

func TestEmergencyHasNoBudget(t *testing.T) {
	c := NewLimits(Limits{MaxCalls: 1, UserConcurrent: 1, UserMinutes: 1, MaxDuration: time.Minute}, nil)
	first, err := c.Begin(start, dial("a"))
	if err != nil {
		t.Fatal(err)
	}
	first.Answered(start)
	r := dial("a")
	r.Emergency, r.Age = true, 0
	l, err := c.Begin(start.Add(time.Hour), r)
	if err != nil {
		t.Fatalf("an emergency call is refused: %v", err)
	}
	l.Answered(start.Add(time.Hour))
	if left, _ := l.Left(start.Add(10 * time.Hour)); left <= 0 {
		t.Error("an emergency call is ended")
	}
}

func TestMinutes(t *testing.T) {
	var alarms []Alarm
	c := NewLimits(Limits{UserMinutes: 10, MaxDailyMinutes: 30}, func(a Alarm) { alarms = append(alarms, a) })
	c.Restore(start, map[string]time.Duration{"@alice:x": 4 * time.Minute, "@bob:x": time.Minute})
	one, err := c.Begin(start, dial("@alice:x"))
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := one.Left(start); left != noBudget {
		t.Errorf("while it rings %s are left", left)
	}
	now := start.Add(30 * time.Second)
	one.Answered(now)
	one.Answered(now.Add(time.Second)) // twice
	if left, why := one.Left(now); left != 6*time.Minute || why == "" {
		t.Errorf("%s left (%q), want 6m", left, why)
	}
	two, err := c.Begin(now, dial("@alice:x"))
	if err != nil {
		t.Fatal(err)
	}
	two.Answered(now)
	if left, _ := two.Left(now); left != 3*time.Minute {
		t.Errorf("%s left to each of two calls, want 3m", left)
	}
	now = now.Add(150 * time.Second)
	one.Left(now)
	if len(alarms) != 1 || alarms[0].Limit != "user_minutes" || alarms[0].By != "@alice:x" {
		t.Errorf("at nine minutes of ten: %+v", alarms)
	}
	now = now.Add(30 * time.Second)
	for _, l := range []*Lease{one, two} {
		if left, why := l.Left(now); left > 0 || why != used["user_minutes"] {
			t.Errorf("%s left (%q), want none", left, why)
		}
	}
	one.End(now)
	two.End(now)
	if len(alarms) != 2 {
		t.Errorf("at the end: %+v", alarms)
	}
	if _, err := c.Begin(now, dial("@alice:x")); limitOf(t, err) != "user_minutes" {
		t.Errorf("an eleventh minute: %v", err)
	}
	if _, err := c.Begin(now, dial("@bob:x")); err != nil {
		t.Errorf("bob has minutes: %v", err)
	}
	if total, users := c.Spent(now); total != 11*time.Minute || users["@alice:x"] != 10*time.Minute {
		t.Errorf("spent %s, %v", total, users)
	}
	if _, err := c.Begin(now.AddDate(0, 0, 1), dial("@alice:x")); err != nil {
		t.Errorf("on the next day: %v", err)
	}
}

func TestEverybodysMinutes(t *testing.T) {
	c := NewLimits(Limits{MaxDailyMinutes: 3}, nil)
	l, _ := c.Begin(start, dial("@alice:x"))
	l.Answered(start)
	if _, err := c.Begin(start.Add(3*time.Minute), dial("@bob:x")); limitOf(t, err) != "daily_minutes" {
		t.Errorf("a running call does not count: %v", err)
	}
	in, err := c.Begin(start.Add(3*time.Minute), Request{Direction: call.Inbound, Trunk: "t"})
	if err != nil {
		t.Fatalf("calls in cost nothing: %v", err)
	}
	in.Answered(start)
	if left, _ := in.Left(start.Add(time.Hour)); left <= 0 {
		t.Error("a call in ends for want of money")
	}
}

func TestLongestCall(t *testing.T) {
	c := NewLimits(Limits{MaxDuration: time.Hour}, nil)
	r := dial("a")
	r.Longest = 2 * time.Hour
	l, _ := c.Begin(start, r)
	l.Answered(start)
	if left, _ := l.Left(start.Add(10 * time.Minute)); left != 50*time.Minute {
		t.Errorf("%s left, want 50m", left)
	}
	r.Longest = 5 * time.Minute
	l, _ = c.Begin(start, r)
	l.Answered(start)
	if left, why := l.Left(start.Add(10 * time.Minute)); left != -5*time.Minute || why == "" {
		t.Errorf("%s left, want -5m", left)
	}
}

func TestMidnight(t *testing.T) {
	zone := time.FixedZone("here", 2*3600)
	c := NewLimits(Limits{UserMinutes: 20}, nil)
	evening := time.Date(2026, 3, 2, 23, 50, 0, 0, zone)
	l, _ := c.Begin(evening, dial("a"))
	l.Answered(evening)
	c.Spent(evening.Add(10*time.Minute - 1))
	if left, _ := l.Left(evening.Add(15 * time.Minute)); left != 20*time.Minute && left != 15*time.Minute {
		t.Errorf("%s left after midnight", left)
	}
	if _, users := c.Spent(evening.Add(15 * time.Minute)); users["a"] > 6*time.Minute {
		t.Errorf("the new day begins with %s", users["a"])
	}
}

func TestNight(t *testing.T) {
	c := NewLimits(Limits{Night: Night{From: "22:00", To: "06:00", Minutes: 5}}, nil)
	at := func(day, hour, minute int) time.Time { return time.Date(2026, 3, day, hour, minute, 0, 0, time.UTC) }
	for _, x := range []struct {
		at   time.Time
		want string
	}{
		{at(2, 21, 59), ""}, {at(2, 22, 0), "2026-03-02"}, {at(3, 0, 0), "2026-03-02"}, {at(3, 5, 59), "2026-03-02"}, {at(3, 6, 0), ""},
	} {
		if got := c.nightOf(x.at); got != x.want {
			t.Errorf("%s is in the night of %q, want %q", x.at, got, x.want)
		}
	}
	l, err := c.Begin(at(2, 23, 58), dial("a"))
	if err != nil {
		t.Fatal(err)
	}
	l.Answered(at(2, 23, 58))
	if left, why := l.Left(at(3, 0, 3)); left != 0 || why != used["night"] {
		t.Errorf("%s left (%q): midnight gave the night new minutes", left, why)
	}
	l.End(at(3, 0, 3))
	if _, err := c.Begin(at(3, 1, 0), dial("b")); limitOf(t, err) != "night" {
		t.Errorf("more in the same night: %v", err)
	}
	if _, err := c.Begin(at(3, 6, 0), dial("b")); err != nil {
		t.Errorf("in the morning: %v", err)
	}
	if _, err := c.Begin(at(3, 22, 30), dial("b")); err != nil {
		t.Errorf("in the next night: %v", err)
	}
	early := NewLimits(Limits{Night: Night{From: "01:00", To: "05:00"}}, nil)
	if early.nightOf(at(2, 3, 0)) == "" || early.nightOf(at(2, 23, 0)) != "" {
		t.Error("a night that begins after midnight")
	}
	if _, err := early.Begin(at(2, 3, 0), dial("a")); limitOf(t, err) != "night" {
		t.Errorf("no minutes at night: %v", err)
	}
}

func TestCountersForget(t *testing.T) {
	c := NewLimits(DefaultLimits(), nil)
	for i := range 1000 {
		l, err := c.Begin(start, Request{Direction: call.Outbound, Trunk: time.Duration(i).String(), By: time.Duration(i).String(), Age: -1})
		if err != nil {
			t.Fatal(err)
		}
		l.End(start)
	}
	c.Spent(start.Add(2 * time.Hour))
	if len(c.users) != 0 || len(c.trunks) != 0 || len(c.open) != 0 {
		t.Errorf("%d users, %d trunks, %d legs are remembered", len(c.users), len(c.trunks), len(c.open))
	}
}

func TestLimitComplaints(t *testing.T) {
	if err := DefaultLimits().Validate("sip.limits"); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for i, change := range []func(*Limits){
		func(c *Limits) { c.UserHourly = -1 },
		func(c *Limits) { c.Night = Night{From: "22:00"} },
		func(c *Limits) { c.Night = Night{From: "22:00", To: "25:00"} },
		func(c *Limits) { c.Night = Night{From: "22:00", To: "22:00"} },
	} {
		cfg := DefaultLimits()
		change(&cfg)
		if cfg.Validate("sip.limits") == nil {
			t.Errorf("complaint %d is missing", i)
		}
	}
}

// Package guard keeps strangers out and costs down: it bans hosts that knock
// with wrong keys, counts calls and minutes, and makes guessing PINs by telephone
// useless. Nothing here reads a clock; the time is an argument. All memory is
// bounded, however many hosts and callers come.
package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Block is the configuration of what happens to strangers.
type Block struct {
	Emergency bool          `yaml:"emergency"`  // refuse emergency numbers unless emergency_trunk is set
	Unknown   string        `yaml:"unknown"`    // drop: no answer; reject: 403
	BanAfter  int           `yaml:"ban_after"`  // this many bad messages ...
	BanWithin time.Duration `yaml:"ban_within"` // ... within this time
	BanFor    time.Duration `yaml:"ban_for"`
	Agents    []string      `yaml:"agents"` // User-Agents that are banned at once, beside the known scanners; any part, any case
	Never     []string      `yaml:"never"`  // addresses and networks that are never banned, beside those of trunks
	Rate      float64       `yaml:"rate"`   // requests a second from an address that is no trunk's
	Burst     int           `yaml:"burst"`
}

// DefaultBlock returns the defaults.
func DefaultBlock() Block {
	return Block{Emergency: true, Unknown: "drop", BanAfter: 8, BanWithin: time.Minute, BanFor: time.Hour, Rate: 5, Burst: 20}
}

// Limits is the configuration of how much may be called. Zero is no limit,
// except where a comment says so.
type Limits struct {
	MaxCalls        int           `yaml:"max_calls"`          // legs at once, both ways
	UserConcurrent  int           `yaml:"user_concurrent"`    // outbound legs at once of one user
	UserHourly      int           `yaml:"user_hourly"`        // outbound calls an hour of one user
	UserMinutes     int           `yaml:"user_daily_minutes"` // outbound minutes a day of one user
	MaxDailyMinutes int           `yaml:"max_daily_minutes"`  // outbound minutes a day of everybody
	MaxDuration     time.Duration `yaml:"max_duration"`       // of any call
	NewAccount      time.Duration `yaml:"new_account"`        // an account is new for this long
	NewHourly       int           `yaml:"new_account_hourly"` // outbound calls an hour of a new account; 0 is none
	Night           Night         `yaml:"night"`
}

// Night narrows the limits at hours at which nobody watches. Without From there
// is none.
type Night struct {
	From    string `yaml:"from"`    // "22:00", in the server's time zone
	To      string `yaml:"to"`      // "06:00"
	Minutes int    `yaml:"minutes"` // outbound minutes of everybody in one night; 0 is none
}

// DefaultLimits returns the defaults.
func DefaultLimits() Limits {
	return Limits{
		MaxCalls: 200, UserConcurrent: 3, UserHourly: 20, UserMinutes: 240, MaxDailyMinutes: 1440,
		MaxDuration: 4 * time.Hour, NewAccount: 24 * time.Hour, NewHourly: 0,
	}
}

// A Ban is one address that is not answered.
type Ban struct {
	IP    netip.Addr `json:"ip"`
	Why   string     `json:"why"`
	Agent string     `json:"user_agent,omitempty"`
	Count int        `json:"count"` // bad messages that led to it
	Drops uint64     `json:"drops"` // messages ignored since
	Since time.Time  `json:"since"`
	Until time.Time  `json:"until"`
}

// Validate returns everything that is wrong. at is the YAML path of the section.
func (c Block) Validate(at string) error {
	var errs []error
	say := func(format string, args ...any) { errs = append(errs, fmt.Errorf(at+format, args...)) }
	if c.Unknown != "drop" && c.Unknown != "reject" {
		say(".unknown: %q is neither drop nor reject", c.Unknown)
	}
	if c.BanAfter < 0 || c.BanFor < 0 || c.BanWithin < 0 || c.Rate < 0 || c.Burst < 0 {
		say(": ban_after, ban_within, ban_for, rate and burst must not be negative")
	}
	if c.BanAfter > 1000 {
		say(".ban_after: %d is more than 1000", c.BanAfter)
	}
	if c.BanAfter > 0 && c.BanWithin == 0 {
		say(".ban_within: needed with ban_after, as 1m")
	}
	for i, n := range c.Never {
		if _, err := parseNetwork(n); err != nil {
			say(".never[%d]: %q is not like 203.0.113.0/24", i, n)
		}
	}
	return errors.Join(errs...)
}

// Validate returns everything that is wrong. at is the YAML path of the section.
func (c Limits) Validate(at string) error {
	var errs []error
	say := func(format string, args ...any) { errs = append(errs, fmt.Errorf(at+format, args...)) }
	if c.MaxCalls < 0 || c.UserConcurrent < 0 || c.UserHourly < 0 || c.UserMinutes < 0 || c.MaxDailyMinutes < 0 ||
		c.MaxDuration < 0 || c.NewAccount < 0 || c.NewHourly < 0 || c.Night.Minutes < 0 {
		say(": limits must not be negative")
	}
	if (c.Night.From == "") != (c.Night.To == "") {
		say(".night: give from and to, or neither")
	}
	for name, value := range map[string]string{"from": c.Night.From, "to": c.Night.To} {
		if _, err := time.Parse("15:04", value); value != "" && err != nil {
			say(".night.%s: %q is not like 22:00", name, value)
		}
	}
	if c.Night.From != "" && c.Night.From == c.Night.To {
		say(".night: begins when it ends")
	}
	return errors.Join(errs...)
}

// Package numbers decides about telephone numbers: what somebody meant who typed
// one, whether it may be called and over which trunk, who a caller says to be,
// and what number a call of ours shows. It knows no SIP messages and keeps no
// state, so that the same code answers a call and explains it.
package numbers

import (
	"fmt"

	"github.com/trunkhall/trunkhall/call"
)

// Config is the dial plan's part of the gateway's configuration.
type Config struct {
	// DefaultCountry is the ISO 3166 code of the country whose numbers may be
	// typed without +.
	DefaultCountry string `yaml:"default_country"`
	// Emergency adds to the emergency and other short numbers of each country
	// that are known anyhow. The key "*" is for all countries.
	Emergency map[string][]string `yaml:"emergency"`
	// EmergencyTrunk carries emergency calls. Without it they are refused with
	// the advice to use a telephone, which knows where it is.
	EmergencyTrunk string `yaml:"emergency_trunk"`
	// Extensions are numbers of the house.
	Extensions []Extension `yaml:"extensions"`
	// AllowTypes lists kinds of numbers that may be called though they cost
	// extra: premium_rate, shared_cost, satellite, international, personal, pager,
	// uan, voicemail, unknown. Fixed lines, mobiles, VoIP and free numbers always
	// may, as far as a trunk's prefixes go.
	AllowTypes []string `yaml:"allow_types"`
}

// An Extension is a short number of the house: either another name for a whole
// number, or digits that a trunk (a PBX) understands as they are.
type Extension struct {
	Match  string `yaml:"match"`  // digits; a trailing * is a prefix
	Number string `yaml:"number"` // call this number in its place
	Trunk  string `yaml:"trunk"`  // or send what was typed over this trunk
}

// A Reason says why a number is not called, in words that programs compare.
type Reason string

// The reasons.
const (
	Allowed        Reason = ""
	Malformed      Reason = "malformed"       // not a telephone number at all
	TooLong        Reason = "too_long"        // longer than any number
	Emergency      Reason = "emergency"       // to be dialled from a telephone
	ShortCode      Reason = "short_code"      // a service number of a network
	Invalid        Reason = "invalid"         // no number of that country is like this
	CostlyType     Reason = "costly_type"     // premium rate, satellite ...
	Denied         Reason = "denied"          // every trunk that could has it in deny_prefixes
	NoRoute        Reason = "no_route"        // in no trunk's allow_prefixes
	OwnNumber      Reason = "own_number"      // a number of ours: the call would come back
	UnknownTrunk   Reason = "unknown_trunk"   // the trunk asked for is not there
	CallerRefused  Reason = "caller_refused"  // the wished caller id is not ours to show
	ExtensionError Reason = "extension_error" // an extension leads to nowhere
)

// A Step is one rule that was looked at, for "trunkhall sip explain".
type Step struct {
	Rule   string `json:"rule"`            // strip, emergency, extension, parse, type, policy ...
	Result string `json:"result"`          // ok, skip, refuse
	Text   string `json:"text"`            // for people
	Trunk  string `json:"trunk,omitempty"` // if it was about one
}

// A Choice is a trunk that may carry a call. Choices come best first.
type Choice struct {
	Trunk    string `json:"trunk"`
	Prefix   string `json:"prefix"` // the allow_prefix that matched
	Priority int    `json:"priority"`
}

// A Result is what became of a typed number.
type Result struct {
	Typed     string   `json:"typed"`
	Number    string   `json:"number,omitempty"`  // E.164 with +; an extension's digits; empty if refused early
	Country   string   `json:"country,omitempty"` // ISO 3166, empty if it has none
	Type      string   `json:"type,omitempty"`    // mobile, fixed_line, premium_rate ...
	Emergency bool     `json:"emergency,omitempty"`
	Trunks    []Choice `json:"trunks,omitempty"`
	Steps     []Step   `json:"steps"`
	Reason    Reason   `json:"reason,omitempty"`
	Text      string   `json:"text,omitempty"` // the reason for people
}

// Err returns a *Refusal, or nil if the number may be called.
func (r Result) Err() error {
	if r.Reason == Allowed {
		return nil
	}
	return &Refusal{Reason: r.Reason, Text: r.Text}
}

// A Refusal is a number that is not called. It is call.ErrInvalid if it is no
// number and call.ErrForbidden if it is one.
type Refusal struct {
	Reason Reason
	Text   string // for people; has no number in it
}

func (r *Refusal) Error() string { return r.Text }

// Unwrap returns the kind of the error.
func (r *Refusal) Unwrap() error {
	switch r.Reason {
	case Malformed, TooLong, Invalid:
		return call.ErrInvalid
	case UnknownTrunk:
		return call.ErrNotFound
	}
	return call.ErrForbidden
}

// Cause returns what a leg that was refused ended with.
func (r *Refusal) Cause() call.Cause {
	switch r.Reason {
	case Malformed, TooLong, Invalid:
		return call.CauseWrongNumber
	}
	return call.CauseNotAllowed
}

// A Query is a number that somebody wants to call.
type Query struct {
	Typed  string
	Trunk  string // only this one; empty: any
	Trunks []call.Trunk
	Own    []string // patterns of our own numbers: calls to them would come back
}

func (r *Result) step(rule, result, trunk, format string, args ...any) {
	r.Steps = append(r.Steps, Step{Rule: rule, Result: result, Trunk: trunk, Text: fmt.Sprintf(format, args...)})
}

package numbers

import (
	"net/url"
	"slices"
	"strings"

	"github.com/trunkhall/trunkhall/call"
)

// An Address is a name and the URI of a From, P-Asserted-Identity, Diversion ...
// header.
type Address struct {
	Name   string
	URI    string            // "sip:+4930123@example.net;user=phone", "tel:+4930123"
	Params map[string]string // of the header, such as verstat
}

// Inbound is what an INVITE says about who calls.
type Inbound struct {
	From      Address
	PAI       []Address // P-Asserted-Identity, RFC 3325
	Privacy   []string  // each Privacy header as it came, RFC 3323
	Diversion []Address // RFC 5806, the latest first
}

// A Caller is who a call comes from, as far as we may tell anybody.
type Caller struct {
	Number    string // E.164 if it is one, else as it came; empty if anonymous
	Name      string
	Anonymous bool
	Forwarded string // the number that forwarded the call to us; empty if none
	Validated bool   // the provider has checked the number (verstat TN-Validation-Passed-A)
}

// CallerID is what a call of ours shows.
type CallerID struct {
	Number    string // E.164 or an extension; the user part of From
	Name      string // display name
	Anonymous bool   // RFC 3323: From anonymous@anonymous.invalid, Privacy: id, the number in P-Asserted-Identity only
}

// Wish is what somebody who dials wants to be seen as.
type Wish struct {
	By       string // Matrix user ID or API key
	Number   string // empty: as the trunk has it
	Name     string
	Hidden   bool     // do not show a number
	Verified []string // further numbers known to be this user's own, E.164
}

// CallerOf reads who calls. The number in P-Asserted-Identity counts if the
// trunk is to be believed, From otherwise. A caller who asks for privacy
// (RFC 3323: id, user or header in any case) or says to be anonymous has no
// number and no name here, whatever else the message says, unless the trunk's
// caller_id.privacy is "ignore".
func (p *Plan) CallerOf(t call.Trunk, in Inbound) Caller { return p.callerOf(t, in) }

// Show decides what a call over the trunk shows. Only numbers of the trunk
// (caller_id.default, .numbers and .map, inbound.numbers) and verified ones of the
// user are ever shown; a wish for another is refused with CallerRefused.
func (p *Plan) Show(t call.Trunk, w Wish) (CallerID, error) { return p.show(t, w) }

func (p *Plan) callerOf(t call.Trunk, in Inbound) Caller {
	trusted := t.In.TrustedPAI
	source := in.From
	if trusted && len(in.PAI) > 0 {
		source = in.PAI[0]
		for _, a := range in.PAI { // RFC 3325 §9.1: one sip and one tel URI; the number is what we want
			if strings.HasPrefix(strings.ToLower(a.URI), "tel:") {
				source = Address{Name: first(in.PAI[0].Name, a.Name), URI: a.URI, Params: a.Params}
			}
		}
	}
	honour := t.CallerID.Privacy != "ignore"
	if honour && (private(in.Privacy) || anonymous(in.From) || anonymous(source)) {
		return Caller{Anonymous: true}
	}
	c := Caller{Name: clean(first(source.Name, in.From.Name), maxName)}
	c.Number, _ = p.E164(user(source.URI))
	if anonymous(source) || c.Number == "" {
		return Caller{Anonymous: true}
	}
	if c.Name == user(source.URI) || strings.EqualFold(c.Name, "anonymous") {
		c.Name = ""
	}
	if len(in.Diversion) > 0 && !anonymous(in.Diversion[0]) {
		c.Forwarded, _ = p.E164(user(in.Diversion[0].URI))
	}
	c.Validated = trusted && strings.HasPrefix(verstat(source), "TN-Validation-Passed")
	return c
}

// maxName is how many characters of a display name are kept.
const maxName = 100

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// private reports whether a Privacy header asks for the caller's identity to be
// withheld. RFC 3323 §4.2 separates values with semicolons; some send commas.
func private(headers []string) bool {
	for _, h := range headers {
		for _, v := range strings.FieldsFunc(h, func(c rune) bool { return c == ';' || c == ',' || c == ' ' || c == '\t' }) {
			switch strings.ToLower(v) {
			case "id", "user", "header":
				return true
			}
		}
	}
	return false
}

// anonymous reports whether an address hides who it is of (RFC 3323 §4.1.1.3 and
// what networks send instead).
func anonymous(a Address) bool {
	switch strings.ToLower(user(a.URI)) {
	case "", "anonymous", "unavailable", "unknown", "restricted", "private", "withheld", "asserted-id-anonymous":
		return true
	}
	return strings.EqualFold(host(a.URI), "anonymous.invalid") || strings.EqualFold(strings.TrimSpace(a.Name), "anonymous")
}

// user returns the user part of a SIP URI or the number of a tel URI, without its
// parameters.
func user(uri string) string {
	u, _ := split(uri)
	u, _, _ = strings.Cut(u, ";")
	if plain, err := url.PathUnescape(u); err == nil {
		u = plain
	}
	if u, _, _ = strings.Cut(u, ";"); strings.ContainsAny(u, "@<>\"\r\n\x00") {
		return ""
	}
	return u
}

func host(uri string) string {
	_, h := split(uri)
	h, _, _ = strings.Cut(h, ";")
	h, _, _ = strings.Cut(h, "?")
	if name, _, ok := strings.Cut(h, ":"); ok && !strings.HasPrefix(h, "[") {
		return name
	}
	return h
}

func split(uri string) (user, host string) {
	scheme, rest, ok := strings.Cut(strings.Trim(uri, "<> "), ":")
	if !ok {
		return "", ""
	}
	switch strings.ToLower(scheme) {
	case "tel":
		return rest, ""
	case "sip", "sips":
		if i := strings.LastIndexByte(rest, '@'); i >= 0 {
			name, _, _ := strings.Cut(rest[:i], ":") // a password, if anybody still sends one
			return name, rest[i+1:]
		}
		return "", rest
	}
	return "", ""
}

// verstat returns what the network found out about the number (3GPP TS 24.229
// §7.2A.20): a parameter of the tel URI, of the user part, or of the header.
func verstat(a Address) string {
	for name, value := range a.Params {
		if strings.EqualFold(name, "verstat") {
			return value
		}
	}
	u, _ := split(a.URI)
	for _, param := range strings.Split(u, ";")[1:] {
		if name, value, ok := strings.Cut(param, "="); ok && strings.EqualFold(name, "verstat") {
			return value
		}
	}
	return ""
}

func (p *Plan) show(t call.Trunk, w Wish) (CallerID, error) {
	own := t.CallerID.Default
	if mapped := t.CallerID.Map[w.By]; mapped != "" && t.CallerID.Mode != "fixed" {
		own = mapped
	}
	if own == "" {
		own = user(t.Register.AOR) // what a provider knows the line by
	}
	id := CallerID{Number: own, Name: clean(w.Name, maxName), Anonymous: w.Hidden}
	wish := w.Number
	if wish == "" && t.CallerID.Mode == "passthrough" && len(w.Verified) > 0 {
		wish = w.Verified[0]
	}
	if wish == "" {
		return id, nil
	}
	number, _ := p.E164(wish)
	if !p.mayShow(t, w, own, number) {
		return CallerID{}, &Refusal{CallerRefused, "the wished caller id is not a number that this line may show"}
	}
	id.Number = number
	return id, nil
}

// mayShow reports whether a call of that user may show the number. What is shown
// must be ours: showing other people's numbers is a crime in places.
func (p *Plan) mayShow(t call.Trunk, w Wish, own, number string) bool {
	same := func(a string) bool {
		e164, _ := p.E164(a)
		return a != "" && e164 == number
	}
	switch {
	case number == "":
		return false
	case same(own), slices.ContainsFunc(t.CallerID.Numbers, same):
		return true
	case t.CallerID.Mode == "fixed":
		return false
	case same(t.CallerID.Default), slices.ContainsFunc(w.Verified, same):
		return true
	}
	// The operator's API keys, and everybody where the trunk passes through, may
	// show each number that is known to reach us.
	if t.CallerID.Mode != "passthrough" && strings.HasPrefix(w.By, "@") {
		return false
	}
	for _, pattern := range t.In.Numbers {
		if len(pattern) >= 8 && Match(pattern, number) { // a shorter prefix is a whole town
			return true
		}
	}
	return false
}

package numbers

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nyaruka/phonenumbers"

	"github.com/trunkhall/trunkhall/call"
)

// maxTyped is how long a number may be as typed, in bytes. E.164 has 15 digits;
// international prefixes and the ways to group digits need some more.
const maxTyped = 64

// maxDigits is the longest row of digits that can mean a number: 15 of E.164
// behind an international prefix with a carrier code.
const maxDigits = 22

// A Plan is a dial plan. It does not change and may be used by many at once.
type Plan struct {
	country    string
	emergency  map[string]bool // of the default country and of all
	trunk      string          // for emergencies
	extensions []Extension
	types      map[string]bool
}

// Validate returns everything that is wrong with the configuration.
func (c Config) Validate() error {
	_, err := New(c)
	return err
}

// New returns the plan of a configuration.
func New(cfg Config) (*Plan, error) {
	var errs []error
	p := &Plan{
		country:   strings.ToUpper(cfg.DefaultCountry),
		emergency: make(map[string]bool),
		trunk:     cfg.EmergencyTrunk,
		types:     map[string]bool{"fixed_line": true, "mobile": true, "fixed_line_or_mobile": true, "voip": true, "toll_free": true},
	}
	if p.country != "" && phonenumbers.GetCountryCodeForRegion(p.country) == 0 {
		errs = append(errs, fmt.Errorf("default_country: %q is no country (ISO 3166, as DE)", cfg.DefaultCountry))
	}
	for _, number := range append(slices.Clone(emergencyEverywhere), emergencyNumbers[p.country]...) {
		p.emergency[number] = true
	}
	for country, list := range cfg.Emergency {
		for _, number := range list {
			if number == "" || strings.Trim(number, "0123456789") != "" {
				errs = append(errs, fmt.Errorf("emergency_numbers.%s: %q is not made of digits", country, number))
			}
			if country == "*" || strings.ToUpper(country) == p.country {
				p.emergency[number] = true
			}
		}
	}
	for i, x := range cfg.Extensions {
		match := strings.TrimSuffix(x.Match, "*")
		switch {
		case match == "" || strings.Trim(match, "0123456789*#") != "":
			errs = append(errs, fmt.Errorf("extensions[%d].match: %q is not made of digits", i, x.Match))
		case p.emergency[x.Match]:
			errs = append(errs, fmt.Errorf("extensions[%d].match: %s is an emergency number", i, x.Match))
		case (x.Number == "") == (x.Trunk == ""):
			errs = append(errs, fmt.Errorf("extensions[%d]: give number or trunk", i))
		case x.Number != "" && strings.HasSuffix(x.Match, "*"):
			errs = append(errs, fmt.Errorf("extensions[%d]: a prefix can only go to a trunk", i))
		}
		p.extensions = append(p.extensions, x)
	}
	for _, t := range cfg.AllowTypes {
		name := strings.ToLower(strings.TrimSpace(t))
		if !slices.Contains(typeNames, name) {
			errs = append(errs, fmt.Errorf("allow_types: %q is none of %s", t, strings.Join(typeNames, ", ")))
		}
		p.types[name] = true
	}
	return p, errors.Join(errs...)
}

// Route decides what a typed number means and which trunks may carry it.
func (p *Plan) Route(q Query) Result {
	r := Result{Typed: clip(q.Typed)}
	p.route(&r, q)
	return r
}

// Normalise does what Route does before it looks at trunks.
func (p *Plan) Normalise(typed string) Result {
	r := Result{Typed: clip(typed)}
	if digits, ok := r.strip(typed); ok {
		p.normalise(&r, digits)
	}
	return r
}

func (p *Plan) route(r *Result, q Query) {
	digits, ok := r.strip(q.Typed)
	if !ok {
		return
	}
	kind := p.normalise(r, digits)
	switch {
	case r.Reason != Allowed:
		return
	case r.Emergency:
		r.only(q, p.trunk, "emergency")
		return
	case kind.Trunk != "":
		r.only(q, kind.Trunk, "extension")
		return
	}
	for _, own := range q.Own {
		if Match(own, r.Number) {
			r.step("own", "refuse", "", "%s is a number of this server: the call would come straight back", r.Number)
			r.refuse(OwnNumber, "that is a number of this server")
			return
		}
	}
	p.policy(r, q)
}

// strip takes away what people write between digits. Everything else but digits,
// one leading + and star codes is refused: letters, digits of other scripts, and
// whatever might become part of a SIP URI.
func (r *Result) strip(typed string) (string, bool) {
	if len(typed) > maxTyped {
		r.step("strip", "refuse", "", "more than %d characters", maxTyped)
		r.refuse(TooLong, "that is too long for a telephone number")
		return "", false
	}
	text := strings.TrimSpace(typed)
	if len(text) >= 4 && strings.EqualFold(text[:4], "tel:") {
		text = text[4:] // RFC 3966; its parameters are refused below
	}
	var b strings.Builder
	for _, c := range text {
		switch {
		case c >= '0' && c <= '9', c == '*', c == '#':
			b.WriteRune(c)
		case c == '+' && b.Len() == 0:
			b.WriteRune(c)
		case strings.ContainsRune(separators, c):
		default:
			r.step("strip", "refuse", "", "%+q does not belong into a telephone number", c)
			r.refuse(Malformed, "that is no telephone number: write digits, with + and the country's code in front")
			return "", false
		}
	}
	digits := b.String()
	switch n := len(strings.TrimPrefix(digits, "+")); {
	case n == 0:
		r.step("strip", "refuse", "", "there are no digits")
		r.refuse(Malformed, "that is no telephone number: there are no digits in it")
		return "", false
	case n > maxDigits:
		r.step("strip", "refuse", "", "%d digits", n)
		r.refuse(TooLong, "that is too long for a telephone number")
		return "", false
	}
	r.step("strip", "ok", "", "%s", digits)
	return digits, true
}

// separators are what people and address books put between digits: spaces,
// hyphens, brackets, and the invisible marks of text direction.
const separators = " -./()\t" +
	"\u00a0\u2007\u2009\u202f\u2010\u2011\u2012\u2013\u2014\u2212" +
	"\u200e\u200f\u202a\u202c\u2066\u2069\u00ad\u200b\ufeff"

// normalise goes through the rules in their order up to the kind of the number.
// The extension that decided, if one did, is returned.
func (p *Plan) normalise(r *Result, digits string) Extension {
	if number, is := p.emergencyIn(digits); is {
		p.emergencyCall(r, number)
		return Extension{}
	}
	r.step("emergency", "skip", "", "%s is no emergency number%s", digits, p.in())
	for _, x := range p.extensions {
		if !Match(x.Match, digits) {
			continue
		}
		if x.Trunk != "" {
			r.step("extension", "ok", x.Trunk, "%s goes to trunk %s as it is", digits, x.Trunk)
			r.Number, r.Type = digits, "extension"
			return x
		}
		r.step("extension", "ok", "", "%s stands for %s", digits, x.Number)
		digits = x.Number
		break
	}
	if strings.ContainsAny(digits, "*#") {
		r.step("parse", "refuse", "", "star codes are not sent to the telephone network")
		r.refuse(Malformed, "codes with * and # cannot be called")
		return Extension{}
	}
	p.parse(r, digits)
	return Extension{}
}

// emergencyIn returns the emergency number that the digits, as dialled, reach. A
// + or zeros in front do not make another number of it, or not in every network.
func (p *Plan) emergencyIn(digits string) (string, bool) {
	bare := strings.TrimPrefix(digits, "+")
	for _, number := range []string{bare, strings.TrimLeft(bare, "0")} {
		if p.emergency[number] || p.country != "" && phonenumbers.IsEmergencyNumber(number, p.country) {
			return number, true
		}
	}
	return "", false
}

func (p *Plan) emergencyCall(r *Result, bare string) {
	if p.trunk == "" {
		r.step("emergency", "refuse", "", "%s is an emergency number and there is no emergency_trunk", bare)
		r.refuse(Emergency, "emergency numbers cannot be called from here: dial from a phone, which can be located")
		return
	}
	r.step("emergency", "ok", p.trunk, "%s is an emergency number: it goes to %s whatever the lists say", bare, p.trunk)
	r.Number, r.Type, r.Emergency = bare, "emergency", true
}

func (p *Plan) parse(r *Result, digits string) {
	if strings.HasPrefix(digits, "+0") {
		r.step("parse", "refuse", "", "no country's code begins with 0")
		r.refuse(Invalid, "there is no such number: after + comes the country's code")
		return
	}
	if p.shortCode(digits) {
		r.step("short", "refuse", "", "%s is a short number of the network%s; extensions can send it to a trunk", digits, p.in())
		r.refuse(ShortCode, "short service numbers cannot be called from here")
		return
	}
	n, err := phonenumbers.Parse(digits, p.country)
	if err != nil {
		why := err.Error()
		if p.country == "" && digits[0] != '+' {
			why = "without default_country a number must begin with +"
		}
		r.step("parse", "refuse", "", "%s", why)
		r.refuse(Invalid, "there is no such number; try it with + and the country's code")
		return
	}
	// +49112, 0112: dialled through, some networks would still connect it.
	if nsn := phonenumbers.GetNationalSignificantNumber(n); p.nationalEmergency(int(n.GetCountryCode()), nsn) {
		p.emergencyCall(r, nsn)
		return
	}
	e164 := phonenumbers.Format(n, phonenumbers.E164)
	if !phonenumbers.IsValidNumber(n) || len(e164) > 16 {
		r.step("parse", "refuse", "", "%s: no number of country code +%d is like this", e164, n.GetCountryCode())
		r.refuse(Invalid, "there is no such number; try it with + and the country's code")
		return
	}
	r.Number, r.Country = e164, phonenumbers.GetRegionCodeForNumber(n)
	if r.Country == "001" {
		r.Country = ""
	}
	r.step("parse", "ok", "", "%s%s", Display(e164), inCountry(r.Country))
	r.Type = typeOf(n)
	if !p.types[r.Type] {
		r.step("type", "refuse", "", "%s numbers are not in allow_types", r.Type)
		r.refuse(CostlyType, "numbers of this kind (%s) cannot be called from here", strings.ReplaceAll(r.Type, "_", " "))
		return
	}
	r.step("type", "ok", "", "%s", r.Type)
}

// shortCode reports whether a number is one that only exists inside a network,
// such as 118 xx or 116 117.
func (p *Plan) shortCode(digits string) bool {
	if p.country == "" || digits[0] == '+' || len(digits) > 8 {
		return false
	}
	country := int32(phonenumbers.GetCountryCodeForRegion(p.country))
	value, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || digits[0] == '0' {
		return false
	}
	return phonenumbers.IsValidShortNumberForRegion(&phonenumbers.PhoneNumber{CountryCode: &country, NationalNumber: &value}, p.country)
}

func (p *Plan) nationalEmergency(code int, nsn string) bool {
	if slices.Contains(emergencyEverywhere, nsn) {
		return true
	}
	if code == phonenumbers.GetCountryCodeForRegion(p.country) && p.emergency[nsn] {
		return true
	}
	for _, region := range phonenumbers.GetRegionCodesForCountryCode(code) {
		if slices.Contains(emergencyNumbers[region], nsn) || phonenumbers.IsEmergencyNumber(nsn, region) {
			return true
		}
	}
	return false
}

func (p *Plan) in() string { return inCountry(p.country) }

func inCountry(country string) string {
	if country == "" {
		return ""
	}
	return " (" + country + ")"
}

// only routes to one trunk whatever the lists say.
func (r *Result) only(q Query, id, rule string) {
	for _, t := range q.Trunks {
		if t.ID == id && outbound(t) && (q.Trunk == "" || q.Trunk == id) {
			r.Trunks = []Choice{{Trunk: id, Priority: t.Priority}}
			return
		}
	}
	r.step(rule, "refuse", id, "there is no trunk %s for calls out", id)
	r.refuse(ExtensionError, "the telephone line for that number is not there")
}

// policy finds the trunks that may carry the number: the longest of a trunk's
// prefixes that fits decides, deny wins a tie. Trunks with the longest allowed
// prefix come first, then by priority, then in the order given.
func (p *Plan) policy(r *Result, q Query) {
	known, denied := q.Trunk == "", false
	for _, t := range q.Trunks {
		if q.Trunk != "" && t.ID != q.Trunk {
			continue
		}
		known = true
		if !outbound(t) {
			r.step("policy", "skip", t.ID, "takes no calls out")
			continue
		}
		allow, may := longest(t.Allow, r.Number)
		deny, not := longest(t.Deny, r.Number)
		switch {
		case not && (!may || len(deny) >= len(allow)):
			denied = true
			r.step("policy", "skip", t.ID, "deny_prefixes has %s", deny)
		case !may:
			r.step("policy", "skip", t.ID, "allow_prefixes has nothing for it")
		default:
			r.step("policy", "ok", t.ID, "allow_prefixes has %s, priority %d", allow, t.Priority)
			r.Trunks = append(r.Trunks, Choice{Trunk: t.ID, Prefix: allow, Priority: t.Priority})
		}
	}
	switch {
	case len(r.Trunks) > 0:
	case !known:
		r.step("policy", "refuse", q.Trunk, "there is no trunk %s", q.Trunk)
		r.refuse(UnknownTrunk, "there is no such telephone line")
	case denied:
		r.refuse(Denied, "calls to that number are not allowed")
	default:
		r.refuse(NoRoute, "calls to that number are not allowed")
	}
	slices.SortStableFunc(r.Trunks, func(a, b Choice) int {
		if n := len(b.Prefix) - len(a.Prefix); n != 0 {
			return n
		}
		return a.Priority - b.Priority
	})
}

func (r *Result) refuse(why Reason, format string, args ...any) {
	r.Reason, r.Text, r.Trunks = why, fmt.Sprintf(format, args...), nil
}

func outbound(t call.Trunk) bool { return t.Direction == "outbound" || t.Direction == "both" }

func longest(prefixes []string, number string) (string, bool) {
	best, found := "", false
	for _, p := range prefixes {
		bare := strings.TrimSuffix(p, "*")
		if strings.HasPrefix(number, bare) && (!found || len(bare) > len(best)) {
			best, found = bare, true
		}
	}
	return best, found
}

// clip keeps what is shown of a typed number short and printable.
func clip(s string) string {
	if len(s) > maxTyped {
		s = s[:maxTyped]
	}
	return clean(s, maxTyped)
}

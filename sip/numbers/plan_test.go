package numbers

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/trunkhall/trunkhall/call"
)

func trunks() []call.Trunk {
	return []call.Trunk{
		{ID: "germany", Direction: "both", Allow: []string{"+49", "+43"}, Deny: []string{"+4900", "+49137", "+882"}, Priority: 2},
		{ID: "cheap", Direction: "outbound", Allow: []string{"+49"}, Priority: 1},
		{ID: "berlin", Direction: "outbound", Allow: []string{"+4930"}, Priority: 9},
		{ID: "in", Direction: "inbound", Allow: []string{"+"}},
		{ID: "pbx", Direction: "both"},
	}
}

func testPlan(t testing.TB, change func(*Config)) *Plan {
	t.Helper()
	cfg := Config{
		DefaultCountry: "DE",
		Extensions: []Extension{
			{Match: "200", Number: "+493012345678"},
			{Match: "3*", Trunk: "pbx"},
			{Match: "*97", Trunk: "pbx"},
			{Match: "77", Trunk: "gone"},
			{Match: "11833", Number: "+4917612345678"},
		},
	}
	if change != nil {
		change(&cfg)
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func choices(r Result) string {
	var ids []string
	for _, c := range r.Trunks {
		ids = append(ids, c.Trunk)
	}
	return strings.Join(ids, " ")
}

func TestRoute(t *testing.T) {
	p := testPlan(t, nil)
	for _, c := range []struct {
		name, typed  string
		number       string
		trunks       string
		refused      Reason
		wrongInstead bool // the caller hears "wrong number", not "not allowed"
	}{
		{"an international number", "+49 30 12345678", "+493012345678", "berlin cheap germany", Allowed, false},
		{"the longest prefix first, then the priority", "+49 89 12345678", "+498912345678", "cheap germany", Allowed, false},
		{"a national number belongs to the default country", "0176 12345678", "+4917612345678", "cheap germany", Allowed, false},
		{"00 is the way out of Germany", "0043 1 58858", "+43158858", "germany", Allowed, false},
		{"brackets, slashes and hyphens", "(030) 1234-5678", "+493012345678", "berlin cheap germany", Allowed, false},
		{"(0) behind the country code", "+49 (0)30 12345678", "+493012345678", "berlin cheap germany", Allowed, false},
		{"no-break spaces of a copied number", "+49\u00a030\u202f12345678\u200e", "+493012345678", "berlin cheap germany", Allowed, false},
		{"a tel link", "tel:+493012345678", "+493012345678", "berlin cheap germany", Allowed, false},
		{"an extension that is a number", "200", "+493012345678", "berlin cheap germany", Allowed, false},
		{"an extension of the PBX goes as it is", "312", "312", "pbx", Allowed, false},
		{"a star code that the PBX knows", "*97", "*97", "pbx", Allowed, false},
		{"an extension may take a short code's place", "11833", "+4917612345678", "cheap germany", Allowed, false},
		{"an extension to a trunk that is gone", "77", "77", "", ExtensionError, false},

		{"fire brigade", "112", "", "", Emergency, false},
		{"with spaces", "1 1 2", "", "", Emergency, false},
		{"police", "110", "", "", Emergency, false},
		{"America's, from anywhere", "911", "", "", Emergency, false},
		{"dressed up as international", "+112", "", "", Emergency, false},
		{"behind the country code", "+49112", "", "", Emergency, false},
		{"behind 00 and the country code", "0049110", "", "", Emergency, false},
		{"behind another country's code", "+1911", "", "", Emergency, false},
		{"behind a trunk prefix", "0112", "", "", Emergency, false},
		{"directory enquiries", "11880", "", "", ShortCode, false},
		{"116 117", "116117", "", "", ShortCode, false},

		{"premium rate", "0900 1234567", "+499001234567", "", CostlyType, false},
		{"premium rate, international", "00 49 900 1234567", "+499001234567", "", CostlyType, false},
		{"premium rate elsewhere", "+1 900 234 5678", "+19002345678", "", CostlyType, false},
		{"votes", "0137 7123456", "+491377123456", "", CostlyType, false},
		{"Inmarsat", "+870 773 111 632", "+870773111632", "", CostlyType, false},
		{"Iridium", "+8816 3145 0123", "+881631450123", "", CostlyType, false},
		{"international network", "+882 16 12345678", "", "", "", false},
		{"international premium", "+979 123456789", "", "", "", false},
		{"a country that is in no list", "+44 20 7946 0000", "+442079460000", "", NoRoute, false},
		{"the same behind 00", "00442079460000", "+442079460000", "", NoRoute, false},
		{"the Caribbean under America's code", "+1 876 523 0123", "+18765230123", "", NoRoute, false},
		{"America's way out is nothing here", "011442079460000", "", "", Invalid, true},
		{"00 alone", "00", "", "", Invalid, true},
		{"00 and nothing behind", "0000000000", "", "", Invalid, true},
		{"011 alone", "011", "", "", Invalid, true},
		{"plus and zeros", "+0049 30 12345678", "", "", Invalid, true},
		{"no country has this code", "+999 123456789", "", "", "", true},
		{"too few digits", "+49 3", "", "", Invalid, true},
		{"star code: call forwarding", "**21*+4930123456#", "", "", Malformed, true},
		{"star code: hide my number", "#31#030123456", "", "", Malformed, true},
		{"letters", "1-800-FLOWERS", "", "", Malformed, true},
		{"letters inside", "+4930abc12345", "", "", Malformed, true},
		{"an escaped plus", "%2B493012345678", "", "", Malformed, true},
		{"a parameter", "12345678;phone-context=+4930", "", "", Malformed, true},
		{"a parameter behind tel:", "tel:12345678;phone-context=+4930", "", "", Malformed, true},
		{"a host", "+493012345678@evil.example", "", "", Malformed, true},
		{"a SIP URI", "sip:+493012345678@evil.example", "", "", Malformed, true},
		{"a header", "+493012345678\r\nRoute: <sip:evil.example>", "", "", Malformed, true},
		{"a zero byte", "+4930123\x0045678", "", "", Malformed, true},
		{"Arabic digits", "+٤٩٣٠١٢٣٤٥٦٧٨", "", "", Malformed, true},
		{"wide digits", "+４９３０１２３４５６７８", "", "", Malformed, true},
		{"wide plus", "＋493012345678", "", "", Malformed, true},
		{"bad UTF-8", "+49\xff3012345678", "", "", Malformed, true},
		{"two pluses", "++493012345678", "", "", Malformed, true},
		{"a plus inside", "0049+3012345678", "", "", Malformed, true},
		{"an extension behind the number", "+493012345678,,5", "", "", Malformed, true},
		{"nothing", "", "", "", Malformed, true},
		{"spaces", "   ", "", "", Malformed, true},
		{"plus alone", "+", "", "", Malformed, true},
		{"very long", strings.Repeat("1", 100000), "", "", TooLong, true},
		{"too many digits", "+49301234567890123456789", "", "", TooLong, true},
		{"one digit more than E.164 has", "+4930123456789012", "", "", "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := p.Route(Query{Typed: c.typed, Trunks: trunks()})
			if got := choices(r); got != c.trunks {
				t.Errorf("%q goes over %q, want %q; %s", c.typed, got, c.trunks, trail(r))
			}
			if c.number != "" && r.Number != c.number {
				t.Errorf("%q means %q, want %q; %s", c.typed, r.Number, c.number, trail(r))
			}
			if c.trunks != "" {
				if r.Err() != nil {
					t.Errorf("%q is refused: %v", c.typed, r.Err())
				}
				return
			}
			var refusal *Refusal
			if !errors.As(r.Err(), &refusal) {
				t.Fatalf("%q is not refused: it would be called", c.typed)
			}
			if c.refused != "" && r.Reason != c.refused {
				t.Errorf("%q is refused as %s, want %s; %s", c.typed, r.Reason, c.refused, trail(r))
			}
			if c.refused != "" || c.wrongInstead {
				if wrong := refusal.Cause() == call.CauseWrongNumber; wrong != c.wrongInstead {
					t.Errorf("%q: the caller hears %s", c.typed, refusal.Cause())
				}
			}
			if last := r.Steps[len(r.Steps)-1].Result; last == "ok" {
				t.Errorf("%q: the trail does not end with why it is refused; %s", c.typed, trail(r))
			}
		})
	}
}

func trail(r Result) string {
	b, _ := json.Marshal(r.Steps)
	return string(b)
}

func TestPolicy(t *testing.T) {
	for _, c := range []struct {
		name        string
		allow, deny []string
		may         bool
	}{
		{"no list allows nothing", nil, nil, false},
		{"a prefix", []string{"+49"}, nil, true},
		{"the whole world", []string{"*"}, nil, true},
		{"and the same written +*", []string{"+*"}, nil, true},
		{"deny is longer", []string{"+49"}, []string{"+4930"}, false},
		{"allow is longer", []string{"+49", "+49301"}, []string{"+4930"}, true},
		{"a tie is denied", []string{"+4930"}, []string{"+4930"}, false},
		{"deny of something else", []string{"+49"}, []string{"+4989"}, true},
		{"only deny", nil, []string{"+44"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := testPlan(t, nil).Route(Query{Typed: "+493012345678", Trunks: []call.Trunk{
				{ID: "t", Direction: "outbound", Allow: c.allow, Deny: c.deny},
			}})
			if may := r.Err() == nil; may != c.may {
				t.Errorf("may be called: %v, want %v; %s", may, c.may, trail(r))
			}
		})
	}
}

func TestOneTrunkOnly(t *testing.T) {
	p := testPlan(t, nil)
	for trunk, want := range map[string]Reason{"cheap": Allowed, "in": NoRoute, "pbx": NoRoute, "nowhere": UnknownTrunk} {
		r := p.Route(Query{Typed: "+493012345678", Trunk: trunk, Trunks: trunks()})
		if r.Reason != want {
			t.Errorf("over %s: %q, want %q", trunk, r.Reason, want)
		}
		if want == Allowed && choices(r) != trunk {
			t.Errorf("over %s: goes over %s", trunk, choices(r))
		}
	}
}

// A call to one of our own numbers goes out over one trunk and comes in over
// another: the provider bills both, and nobody talks.
func TestOwnNumber(t *testing.T) {
	p := testPlan(t, nil)
	for typed, want := range map[string]Reason{"030 1234567": OwnNumber, "200": OwnNumber, "030 9876543": Allowed} {
		r := p.Route(Query{Typed: typed, Trunks: trunks(), Own: []string{"+49301234*"}})
		if r.Reason != want {
			t.Errorf("%s: %q, want %q", typed, r.Reason, want)
		}
	}
}

func TestEmergencyTrunk(t *testing.T) {
	p := testPlan(t, func(c *Config) {
		c.EmergencyTrunk = "pbx"
		c.Emergency = map[string][]string{"*": {"5555"}, "FR": {"3333"}}
	})
	for typed, want := range map[string]string{"112": "112", "+49112": "112", "110": "110", "5555": "5555"} {
		r := p.Route(Query{Typed: typed, Trunks: trunks()})
		if !r.Emergency || choices(r) != "pbx" || r.Number != want {
			t.Errorf("%s: emergency %v, number %q over %q", typed, r.Emergency, r.Number, choices(r))
		}
	}
	if r := p.Route(Query{Typed: "3333", Trunks: trunks()}); r.Emergency {
		t.Error("a French number is an emergency in Germany")
	}
	p = testPlan(t, func(c *Config) { c.EmergencyTrunk = "gone" })
	if r := p.Route(Query{Typed: "112", Trunks: trunks()}); r.Err() == nil {
		t.Error("an emergency call over a trunk that is not there is said to work")
	}
}

func TestAllowedTypes(t *testing.T) {
	p := testPlan(t, func(c *Config) { c.AllowTypes = []string{"premium_rate", "satellite"} })
	world := []call.Trunk{{ID: "t", Direction: "outbound", Allow: []string{"+"}}}
	for _, typed := range []string{"0900 1234567", "+870 773 111 632"} {
		if r := p.Route(Query{Typed: typed, Trunks: world}); r.Err() != nil {
			t.Errorf("%s: %v", typed, r.Err())
		}
	}
	if r := p.Route(Query{Typed: "0180 5123456", Trunks: world}); r.Reason != CostlyType {
		t.Errorf("shared cost: %q", r.Reason)
	}
}

func TestOtherCountries(t *testing.T) {
	for _, c := range []struct {
		country, typed, number string
		refused                Reason
	}{
		{"US", "(212) 555-2368", "+12125552368", Allowed},
		{"US", "011 49 30 12345678", "+493012345678", Allowed},
		{"US", "911", "", Emergency},
		{"US", "988", "", Emergency},
		{"US", "411", "", ShortCode},
		{"US", "900 234 5678", "+19002345678", CostlyType},
		{"GB", "999", "", Emergency},
		{"GB", "020 7946 0000", "+442079460000", Allowed},
		{"FR", "15", "", Emergency},
		{"AU", "000", "", Emergency},
		{"IT", "06 69 81", "", ""},
		{"", "+49 30 12345678", "+493012345678", Allowed},
		{"", "030 12345678", "", Invalid},
		{"", "112", "", Emergency},
	} {
		p, err := New(Config{DefaultCountry: c.country})
		if err != nil {
			t.Fatal(err)
		}
		r := p.Route(Query{Typed: c.typed, Trunks: []call.Trunk{{ID: "t", Direction: "outbound", Allow: []string{"+"}}}})
		if c.refused != "" && r.Reason != c.refused || r.Number != c.number && c.number != "" {
			t.Errorf("%s in %s: %q %q, want %q %q; %s", c.typed, c.country, r.Number, r.Reason, c.number, c.refused, trail(r))
		}
	}
}

func TestConfigComplaints(t *testing.T) {
	for name, cfg := range map[string]Config{
		"a country that is none":      {DefaultCountry: "XX"},
		"an emergency as extension":   {DefaultCountry: "DE", Extensions: []Extension{{Match: "112", Number: "+493012345678"}}},
		"an extension to nowhere":     {Extensions: []Extension{{Match: "20"}}},
		"an extension to two places":  {Extensions: []Extension{{Match: "20", Number: "+4930", Trunk: "t"}}},
		"an extension that is a name": {Extensions: []Extension{{Match: "bob", Trunk: "t"}}},
		"a prefix to one number":      {Extensions: []Extension{{Match: "2*", Number: "+4930"}}},
		"a kind that is none":         {AllowTypes: []string{"expensive"}},
		"an emergency with letters":   {Emergency: map[string][]string{"DE": {"11x"}}},
	} {
		if cfg.Validate() == nil {
			t.Errorf("%s: no complaint", name)
		}
	}
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("the empty plan: %v", err)
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, number string
		fits            bool
	}{
		{"+4930123", "+4930123", true},
		{"+4930123", "+49301234", false},
		{"+4930123*", "+4930123", true},
		{"+4930123*", "+49301234", true},
		{"+4930123*", "+4930122", false},
		{"4930123*", "+49301234", true},
		{"+4930123", "4930123", true},
		{"*", "+1", true},
		{"*", "", true},
		{"", "", false},
		{"", "+49", false},
	} {
		if got := Match(c.pattern, c.number); got != c.fits {
			t.Errorf("Match(%q, %q) = %v", c.pattern, c.number, got)
		}
	}
	if !MatchAny(nil, "+49") || MatchAny([]string{"+1*"}, "+49") || !MatchAny([]string{"+1*", "+49*"}, "+4930") {
		t.Error("MatchAny")
	}
}

func TestMask(t *testing.T) {
	for number, want := range map[string]string{
		"+4930123456":           "+4930***456",
		"+493012345678":         "+4930***678",
		"+43158858":             "+43***58",
		"030123":                "***23",
		"312":                   "***",
		"":                      "",
		"alice":                 "a***",
		"+49301\r\nsip_ban ip=": "+***",
		"\xff\xfe":              "",
		"Ärger":                 "Ä***",
	} {
		if got := Mask(number); got != want {
			t.Errorf("Mask(%q) = %q, want %q", number, got, want)
		}
	}
}

func TestDisplay(t *testing.T) {
	for number, want := range map[string]string{
		"+493012345678": "+49 30 12345678", "+12125552368": "+1 212-555-2368", "312": "312", "+": "+", "": "",
	} {
		if got := Display(number); got != want {
			t.Errorf("Display(%q) = %q, want %q", number, got, want)
		}
	}
}

func FuzzRoute(f *testing.F) {
	for _, seed := range []string{
		"+49 30 123456", "112", "0049112", "0011 44 20 7946 0000", "%2B49", "1;phone-context=+49", "0900@host", "tel:+49",
		"+٤٩", "\r\n", "*#06#", "+1 (900) 234-5678", "+0049112", "00011881612345678", "1-1-2", "１１２",
	} {
		f.Add(seed)
	}
	germany := testPlan(f, nil)
	america := testPlan(f, func(c *Config) { c.DefaultCountry = "US"; c.Extensions = nil })
	list := trunks()
	f.Fuzz(func(t *testing.T, typed string) {
		for _, p := range []*Plan{germany, america} {
			r := p.Route(Query{Typed: typed, Trunks: list})
			if len(r.Steps) == 0 || len(r.Steps) > 20 {
				t.Fatalf("%q: %d steps", typed, len(r.Steps))
			}
			for _, c := range r.Typed {
				if !unicode.IsPrint(c) {
					t.Fatalf("%q is repeated with %q", typed, c)
				}
			}
			if (len(r.Trunks) > 0) != (r.Err() == nil) {
				t.Fatalf("%q: %d trunks and %v", typed, len(r.Trunks), r.Err())
			}
			if r.Err() != nil {
				continue
			}
			digits := strings.TrimPrefix(r.Number, "+")
			if digits == "" || len(digits) > 22 || strings.Trim(digits, "0123456789*#") != "" {
				t.Fatalf("%q would be called as %q", typed, r.Number)
			}
			for _, c := range r.Trunks {
				i := slices.IndexFunc(list, func(t call.Trunk) bool { return t.ID == c.Trunk })
				if list[i].ID != "pbx" && !strings.HasPrefix(r.Number, "+49") && !strings.HasPrefix(r.Number, "+43") {
					t.Fatalf("%q goes to %q over %s, which only takes +49 and +43", typed, r.Number, c.Trunk)
				}
				if strings.HasPrefix(r.Number, "+49900") || strings.HasPrefix(r.Number, "+49137") {
					t.Fatalf("%q goes to %q", typed, r.Number)
				}
			}
			if r.Number == "112" || r.Number == "110" || r.Number == "911" {
				t.Fatalf("%q is an emergency call", typed)
			}
		}
	})
}

func TestRisks(t *testing.T) {
	var all []string
	for code := range dear {
		all = append(all, "+1"+code)
	}
	for _, c := range []struct {
		name        string
		allow, deny []string
		n           int
	}{
		{"one country", []string{"+49"}, nil, 0},
		{"nothing", nil, nil, 0},
		{"America", []string{"+1"}, nil, 1},
		{"America with care", []string{"+1"}, all, 0},
		{"Jamaica, meant", []string{"+1876"}, nil, 0},
		{"America and Jamaica, the rest denied", []string{"+1", "+1876"}, all, 0},
		{"the world", []string{"*"}, nil, 2},
		{"the world in another spelling", []string{"+"}, all, 1},
	} {
		if got := Risks(c.allow, c.deny); len(got) != c.n {
			t.Errorf("%s: %q, want %d", c.name, got, c.n)
		}
	}
}

package numbers

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nyaruka/phonenumbers"
)

// emergencyEverywhere are emergency numbers wherever the phone is (3GPP TS 22.101
// §10.1: every mobile knows them).
var emergencyEverywhere = []string{"112", "911"}

// emergencyNumbers are those of countries, beside emergencyEverywhere and the
// tables of libphonenumber, which know most but not what people dial for want of
// something better.
var emergencyNumbers = map[string][]string{
	"AE": {"997", "998", "999"},
	"AR": {"100", "101", "107"},
	"AT": {"122", "133", "140", "141", "144"},
	"AU": {"000", "106"},
	"BE": {"100", "101"},
	"BR": {"190", "192", "193"},
	"CA": {"988"},
	"CH": {"117", "118", "143", "144", "145", "147", "1414"},
	"CL": {"131", "132", "133"},
	"CN": {"110", "119", "120", "122"},
	"CZ": {"150", "155", "156", "158"},
	"DE": {"110", "19222"},
	"DK": {"114"},
	"ES": {"061", "062", "080", "085", "091", "092"},
	"FR": {"15", "17", "18", "114", "115", "119", "191", "196", "197"},
	"GB": {"999", "101", "105", "111"},
	"GR": {"100", "108", "166", "199"},
	"HK": {"999", "992"},
	"HU": {"104", "105", "107"},
	"IE": {"999"},
	"IL": {"100", "101", "102"},
	"IN": {"100", "101", "102", "108"},
	"IT": {"113", "115", "118"},
	"JP": {"110", "118", "119"},
	"KR": {"119"},
	"MX": {"066"},
	"MY": {"999"},
	"NL": {"113", "144"},
	"NO": {"110", "113"},
	"NZ": {"111"},
	"PL": {"997", "998", "999"},
	"RU": {"101", "102", "103", "104"},
	"SE": {"11313", "11414"},
	"SG": {"995", "999"},
	"SK": {"150", "155", "158"},
	"TR": {"110", "155", "156"},
	"UA": {"101", "102", "103"},
	"US": {"988"},
	"ZA": {"10111", "10177"},
}

// typeNames are the kinds of numbers as the configuration spells them.
var typeNames = []string{
	"fixed_line", "mobile", "fixed_line_or_mobile", "toll_free", "premium_rate", "shared_cost",
	"voip", "personal", "pager", "uan", "voicemail", "satellite", "international", "unknown",
}

// typeOf names the kind of a number. Country codes that belong to no country
// (ITU-T E.164 list of assigned codes) come first: who charges there is anybody's
// guess and most toll fraud ends there.
func typeOf(n *phonenumbers.PhoneNumber) string {
	switch n.GetCountryCode() {
	case 870, 881: // Inmarsat; Globalstar, Iridium
		return "satellite"
	case 882, 883, 878, 888: // international networks, universal personal numbers
		return "international"
	case 808:
		return "shared_cost"
	case 979:
		return "premium_rate"
	}
	switch phonenumbers.GetNumberType(n) {
	case phonenumbers.FIXED_LINE:
		return "fixed_line"
	case phonenumbers.MOBILE:
		return "mobile"
	case phonenumbers.FIXED_LINE_OR_MOBILE:
		return "fixed_line_or_mobile"
	case phonenumbers.TOLL_FREE:
		return "toll_free"
	case phonenumbers.PREMIUM_RATE:
		return "premium_rate"
	case phonenumbers.SHARED_COST:
		return "shared_cost"
	case phonenumbers.VOIP:
		return "voip"
	case phonenumbers.PERSONAL_NUMBER:
		return "personal"
	case phonenumbers.PAGER:
		return "pager"
	case phonenumbers.UAN:
		return "uan"
	case phonenumbers.VOICEMAIL:
		return "voicemail"
	}
	return "unknown"
}

// Match reports whether a number fits a pattern: the same number, or one that
// begins with it if it ends with *. The empty pattern fits nothing; a + in front
// of only one of both makes no difference.
func Match(pattern, number string) bool {
	if pattern == "" {
		return false
	}
	bare, prefix := strings.CutSuffix(strings.TrimPrefix(pattern, "+"), "*")
	number = strings.TrimPrefix(number, "+")
	if prefix {
		return strings.HasPrefix(number, bare)
	}
	return number == bare
}

// MatchAny reports whether a number fits one of the patterns; no patterns fit
// every number.
func MatchAny(patterns []string, number string) bool {
	for _, p := range patterns {
		if Match(p, number) {
			return true
		}
	}
	return len(patterns) == 0
}

// E164 returns a number that came from outside as +49..., if it is one: as typed
// in the plan's country or with + in front. Otherwise it returns what came,
// without what could harm, and false.
func (p *Plan) E164(number string) (string, bool) {
	bare := strings.Map(func(c rune) rune {
		if strings.ContainsRune(separators, c) {
			return -1
		}
		return c
	}, number)
	if len(bare) <= maxDigits+1 && strings.Trim(strings.TrimPrefix(bare, "+"), "0123456789") == "" && !strings.HasPrefix(bare, "+0") {
		// PBXs and some providers send E.164 without the +. Where national numbers
		// begin with 0, one that does not and is long is rather that.
		bared := len(bare) >= 11 && bare[0] != '+' && bare[0] != '0'
		plus := bared && phonenumbers.GetNddPrefixForRegion(p.country, true) == "0"
		for range 2 {
			text := bare
			if plus {
				text = "+" + bare
			}
			if n, err := phonenumbers.Parse(text, p.country); err == nil && phonenumbers.IsValidNumber(n) {
				return phonenumbers.Format(n, phonenumbers.E164), true
			}
			if plus = !plus; plus && !bared {
				break
			}
		}
	}
	return clean(number, maxTyped), false
}

// Display writes a number for people: +49 30 123456.
func Display(number string) string {
	if !strings.HasPrefix(number, "+") {
		return clean(number, maxTyped)
	}
	n, err := phonenumbers.Parse(number, "")
	if err != nil {
		return clean(number, maxTyped)
	}
	return phonenumbers.Format(n, phonenumbers.INTERNATIONAL)
}

// Mask hides the middle of a number for logs: +4930***456. Of short numbers even
// less stays; nothing that is not printable does.
func Mask(number string) string {
	s := clean(number, 2*maxTyped)
	switch n := len(s); {
	case s == "":
		return ""
	case !utf8.ValidString(s), strings.Trim(s, "+0123456789") != "":
		first, _ := utf8.DecodeRuneInString(s)
		return string(first) + "***"
	case n >= 11:
		return s[:5] + "***" + s[n-3:]
	case n >= 8:
		return s[:3] + "***" + s[n-2:]
	case n >= 5:
		return "***" + s[n-2:]
	}
	return "***"
}

// clean returns printable text of at most so many runes, on one line and in one
// direction.
func clean(s string, most int) string {
	var b strings.Builder
	n := 0
	for _, c := range strings.ToValidUTF8(s, "") {
		if !unicode.IsPrint(c) && c != ' ' {
			continue // control characters and marks of text direction
		}
		if n++; n > most {
			break
		}
		b.WriteRune(c)
	}
	return strings.TrimSpace(b.String())
}

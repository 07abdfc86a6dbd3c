package numbers

import (
	"fmt"
	"slices"
	"strings"
)

// dear are area codes under +1 that are not America's or Canada's: who allows +1
// has often never thought of them, and toll fraud has.
var dear = map[string]string{
	"242": "Bahamas", "246": "Barbados", "264": "Anguilla", "268": "Antigua", "284": "British Virgin Islands",
	"345": "Cayman Islands", "441": "Bermuda", "473": "Grenada", "649": "Turks and Caicos", "658": "Jamaica",
	"664": "Montserrat", "721": "Sint Maarten", "758": "Saint Lucia", "767": "Dominica", "784": "Saint Vincent",
	"809": "Dominican Republic", "829": "Dominican Republic", "849": "Dominican Republic", "868": "Trinidad and Tobago",
	"869": "Saint Kitts", "876": "Jamaica",
}

// Risks returns what an operator may not have meant by a trunk's lists, for
// people.
func Risks(allow, deny []string) (risks []string) {
	open := func(number string) bool {
		a, may := longest(allow, number)
		d, not := longest(deny, number)
		return may && (!not || len(d) < len(a))
	}
	for _, p := range allow {
		if strings.TrimRight(p, "+*") == "" {
			risks = append(risks, "allow_prefixes allows the whole world: name the countries that are called")
			break
		}
	}
	var areas []string
	for code := range dear {
		// Who has written +1876 out has meant it.
		if open("+1"+code) && !slices.ContainsFunc(allow, func(p string) bool { return strings.HasPrefix(p, "+1"+code) }) {
			areas = append(areas, "+1"+code)
		}
	}
	if len(areas) > 0 {
		slices.Sort(areas)
		risks = append(risks, fmt.Sprintf("allow_prefixes lets calls to %d dear areas under +1 through, as %s (%s): put them into deny_prefixes",
			len(areas), areas[0], dear[strings.TrimPrefix(areas[0], "+1")]))
	}
	return risks
}

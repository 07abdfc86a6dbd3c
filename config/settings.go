package config

import (
	"reflect"
	"slices"
	"strings"
)

// envPrefix begins the name of every environment variable.
const envPrefix = "TRUNKHALL_"

// A setting is one leaf of Config.
type setting struct {
	path  string        // "web.listen"
	value reflect.Value // settable when the settings were taken of a pointer
}

// settings returns the leaves of cfg in the order of the struct's fields.
func settings(cfg *Config) []setting {
	return leaves(reflect.ValueOf(cfg).Elem(), "")
}

func leaves(v reflect.Value, prefix string) []setting {
	var out []setting
	for i := range v.NumField() {
		field := v.Type().Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		if name == "-" {
			continue
		}
		if name == "" {
			name = snakeCase(field.Name)
		}
		if v.Field(i).Kind() == reflect.Struct {
			out = append(out, leaves(v.Field(i), prefix+name+".")...)
			continue
		}
		out = append(out, setting{prefix + name, v.Field(i)})
	}
	return out
}

// snakeCase spells a field's name as a key: APISecret is api_secret.
func snakeCase(name string) string {
	upper := func(i int) bool { return i < len(name) && name[i] >= 'A' && name[i] <= 'Z' }
	var b strings.Builder
	for i := range len(name) {
		// A word begins at an upper-case letter after a lower-case one, and at the
		// last of several upper-case ones.
		if i > 0 && upper(i) && (!upper(i-1) || i+1 < len(name) && !upper(i+1)) {
			b.WriteByte('_')
		}
		b.WriteString(strings.ToLower(name[i : i+1]))
	}
	return b.String()
}

// find returns the setting of that path.
func find(all []setting, path string) (setting, bool) {
	i := slices.IndexFunc(all, func(s setting) bool { return s.path == path })
	if i < 0 {
		return setting{}, false
	}
	return all[i], true
}

// isList reports whether a setting is a list of sections.
func isList(s setting) bool {
	t := s.value.Type()
	return t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct
}

// isSection reports whether settings lie below path.
func isSection(all []setting, path string) bool {
	return slices.ContainsFunc(all, func(s setting) bool { return strings.HasPrefix(s.path, path+".") })
}

// EnvName returns the environment variable of the setting at a YAML path.
func EnvName(path string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
}

// closest returns the known path that looks most like the given one, for the
// message about a typing error, or "" when nothing is near.
func closest(path string, known []string) string {
	best, distance := "", 4
	for _, k := range known {
		if d := editDistance(path, k); d < distance {
			best, distance = k, d
		}
	}
	return best
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

package trunk

import (
	"strconv"
	"strings"
)

// A binding is one Contact of a registrar's answer.
type binding struct {
	uri     string
	expires int // seconds; 0 if it does not say
}

// parseContacts reads a Contact header field, which may hold several (RFC 3261
// §20.10). What cannot be read is left out.
func parseContacts(value string) []binding {
	var list []binding
	for _, part := range splitOutside(value, ',') {
		fields := splitOutside(part, ';')
		uri := strings.TrimSpace(fields[0])
		if i := len(splitOutside(uri, '<')[0]); i < len(uri) {
			j := strings.IndexByte(uri[i:], '>')
			if j < 0 {
				continue
			}
			uri = uri[i+1 : i+j]
		}
		if !strings.Contains(uri, ":") {
			continue
		}
		b := binding{uri: uri}
		for _, f := range fields[1:] {
			if name, text, ok := strings.Cut(strings.TrimSpace(f), "="); ok && strings.EqualFold(strings.TrimSpace(name), "expires") {
				if n, err := strconv.Atoi(strings.TrimSpace(text)); err == nil && n >= 0 && n < 1<<31 {
					b.expires = n
				}
			}
		}
		list = append(list, b)
	}
	return list
}

// splitOutside splits at a byte where it is neither inside of quotes nor of angle
// brackets.
func splitOutside(s string, at byte) []string {
	var parts []string
	quoted, angle, from := false, false, 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"' && !angle:
			quoted = !quoted
		case quoted:
		case c == at && !angle:
			parts = append(parts, s[from:i])
			from = i + 1
		case c == '<':
			angle = true
		case c == '>':
			angle = false
		}
	}
	return append(parts, s[from:])
}

// hostOf returns the host of a SIP URI, without its port.
func hostOf(uri string) string {
	host, _ := hostPort(uri)
	return host
}

// portOf returns the port of a SIP URI, the default one if it names none.
func portOf(uri string) uint16 {
	_, text := hostPort(uri)
	if port, err := strconv.ParseUint(text, 10, 16); err == nil {
		return uint16(port)
	}
	return 5060
}

func hostPort(uri string) (host, port string) {
	_, rest, _ := strings.Cut(uri, ":")
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = rest[i+1:]
	}
	if i := strings.IndexAny(rest, ";?"); i >= 0 {
		rest = rest[:i]
	}
	if strings.HasPrefix(rest, "[") {
		host, rest, _ = strings.Cut(rest[1:], "]")
		return host, strings.TrimPrefix(rest, ":")
	}
	host, port, _ = strings.Cut(rest, ":")
	return host, port
}

package matrix

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"unicode/utf8"
)

// maxDepth is how deep objects and arrays of an event may nest. Real events
// nest less than ten deep; a limit keeps everyone's recursion bounded.
const maxDepth = 100

// maxInt is the largest integer of canonical JSON, 2^53 - 1.
const maxInt = 1<<53 - 1

// Why a JSON text is refused.
var (
	// ErrNotJSON is text that is no JSON at all, or not UTF-8 (M_NOT_JSON).
	ErrNotJSON = errors.New("not JSON")
	// ErrBadJSON is JSON that no event may contain: a number that is not an
	// integer within 2^53, nesting without end, not an object (M_BAD_JSON).
	ErrBadJSON = errors.New("JSON that an event cannot contain")
)

// CanonicalJSON returns data in the canonical form of the Matrix specification
// (appendices, "Canonical JSON"): the shortest form, keys sorted by code point,
// integers only. Of a repeated key the last value counts. The error wraps
// ErrNotJSON or ErrBadJSON.
func CanonicalJSON(data []byte) ([]byte, error) {
	v, err := decode(data)
	if err != nil {
		return nil, err
	}
	return appendCanonical(make([]byte, 0, len(data)), v, 0)
}

// CanonicalObject is CanonicalJSON for a text that must be an object.
func CanonicalObject(data []byte) (json.RawMessage, error) {
	v, err := decode(data)
	if err != nil {
		return nil, err
	}
	o, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%w: an object is needed", ErrBadJSON)
	}
	return appendCanonical(make([]byte, 0, len(data)), o, 0)
}

// decode parses one JSON value, numbers as json.Number.
func decode(data []byte) (any, error) {
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("%w: not UTF-8", ErrNotJSON)
	}
	if Nesting(data) > maxDepth {
		return nil, fmt.Errorf("%w: nested deeper than %d", ErrBadJSON, maxDepth)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrNotJSON, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("%w: more than one value", ErrNotJSON)
	}
	return v, nil
}

// Nesting returns how deep brackets nest in data, without recursion, so that a
// hostile text is refused before anything recurses over it. In text that is not
// JSON the answer means nothing.
func Nesting(data []byte) int {
	depth, deepest := 0, 0
	inString := false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			depth++
			deepest = max(deepest, depth)
		case c == '}' || c == ']':
			depth--
		}
	}
	return deepest
}

// appendCanonical appends the canonical form of a decoded value.
func appendCanonical(b []byte, v any, depth int) ([]byte, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%w: nested deeper than %d", ErrBadJSON, maxDepth)
	}
	var err error
	switch v := v.(type) {
	case nil:
		return append(b, "null"...), nil
	case bool:
		return strconv.AppendBool(b, v), nil
	case string:
		return appendString(b, v), nil
	case int64:
		return strconv.AppendInt(b, v, 10), nil
	case json.Number:
		n, err := strconv.ParseInt(string(v), 10, 64)
		if err != nil || n > maxInt || n < -maxInt {
			return nil, fmt.Errorf("%w: the number %.40s", ErrBadJSON, v)
		}
		return strconv.AppendInt(b, n, 10), nil
	case []any:
		b = append(b, '[')
		for i, e := range v {
			if i > 0 {
				b = append(b, ',')
			}
			if b, err = appendCanonical(b, e, depth+1); err != nil {
				return nil, err
			}
		}
		return append(b, ']'), nil
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys) // bytes of UTF-8 sort as their code points do
		b = append(b, '{')
		for i, k := range keys {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendString(b, k), ':')
			if b, err = appendCanonical(b, v[k], depth+1); err != nil {
				return nil, err
			}
		}
		return append(b, '}'), nil
	default:
		return nil, fmt.Errorf("%w: a %T", ErrBadJSON, v)
	}
}

// appendString appends s as a JSON string with only the escapes that JSON needs.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, '\\', 'b')
		case '\f':
			b = append(b, '\\', 'f')
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			if c < 0x20 {
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			} else {
				b = append(b, c)
			}
		}
	}
	return append(b, '"')
}

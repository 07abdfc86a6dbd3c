package homeserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/trunkhall/trunkhall/matrix"
)

// A pushEvent is an event parsed for the evaluation of push rules, once for all
// users of a room.
type pushEvent struct {
	root   map[string]any
	body   string
	sender matrix.UserID
	room   string
}

// newPushEvent parses a client event: the full JSON with room_id, and with
// unsigned.prev_content for state that replaces other state.
func newPushEvent(event json.RawMessage) (pushEvent, error) {
	d := json.NewDecoder(bytes.NewReader(event))
	d.UseNumber()
	var e pushEvent
	if err := d.Decode(&e.root); err != nil {
		return pushEvent{}, fmt.Errorf("event for push rules: %w", err)
	}
	e.body, _ = e.value([]string{"content", "body"}).(string)
	sender, _ := e.root["sender"].(string)
	e.sender = matrix.UserID(sender)
	e.room, _ = e.root["room_id"].(string)
	return e, nil
}

// value returns what is at a path, nil if nothing.
func (e pushEvent) value(path []string) any {
	var v any = e.root
	for _, p := range path {
		o, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = o[p]
	}
	return v
}

// A pushFacts is what rules ask about the room and the user in it.
type pushFacts struct {
	members     int                    // joined
	displayName string                 // the user's in this room
	senderPower int64                  // power level of the event's sender
	notifyPower func(key string) int64 // level needed for a kind of notification ("room")
}

// A pushCondition reports whether a condition holds.
type pushCondition func(e pushEvent, f pushFacts) bool

// evaluate returns what the first matching rule says: whether the user is to be
// notified, and whether that is highlighted. Nobody is notified of their own events.
func (rs pushRuleset) evaluate(e pushEvent, f pushFacts) (notify, highlight bool) {
	if e.sender == rs.user {
		return false, false
	}
	for _, kind := range pushKinds {
		for _, rule := range *rs.rules.kind(kind) {
			if rule.Enabled && rule.holds(e, f) {
				return outcome(rule.Actions)
			}
		}
	}
	return false, false
}

func (p *pushRule) holds(e pushEvent, f pushFacts) bool {
	for _, c := range p.match {
		if !c(e, f) {
			return false
		}
	}
	return true
}

// outcome reads actions.
func outcome(actions []json.RawMessage) (notify, highlight bool) {
	for _, a := range actions {
		var name string
		if json.Unmarshal(a, &name) == nil {
			notify = notify || name == "notify" || name == "coalesce"
			continue
		}
		var tweak struct {
			SetTweak string `json:"set_tweak"`
			Value    any    `json:"value"`
		}
		if json.Unmarshal(a, &tweak) == nil && tweak.SetTweak == "highlight" {
			highlight = tweak.Value != false // absent means true
		}
	}
	return notify, notify && highlight
}

// compile makes a rule ready to evaluate.
func (p *pushRule) compile(kind string) error {
	p.match = nil
	switch kind {
	case "room":
		room := p.RuleID
		p.match = append(p.match, func(e pushEvent, _ pushFacts) bool { return e.room == room })
	case "sender":
		sender := matrix.UserID(p.RuleID)
		p.match = append(p.match, func(e pushEvent, _ pushFacts) bool { return e.sender == sender })
	case "content":
		if p.Pattern == nil {
			return errors.New("a content rule needs a pattern")
		}
		re, err := globRegexp(*p.Pattern, true)
		if err != nil {
			return err
		}
		p.match = append(p.match, func(e pushEvent, _ pushFacts) bool { return e.body != "" && re.MatchString(e.body) })
	default:
		for _, raw := range p.Conditions {
			c, err := compileCondition(raw)
			if err != nil {
				return err
			}
			p.match = append(p.match, c)
		}
	}
	return nil
}

// never is a condition that we do not know: its rule does not match.
func never(pushEvent, pushFacts) bool { return false }

// compileCondition makes one condition ready (client-server API, "Conditions").
func compileCondition(raw json.RawMessage) (pushCondition, error) {
	var c struct {
		Kind    string          `json:"kind"`
		Key     string          `json:"key"`
		Pattern *string         `json:"pattern"`
		Is      string          `json:"is"`
		Value   json.RawMessage `json:"value"`
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, errors.New("a condition must be an object with a kind")
	}
	path := splitKey(c.Key)
	switch c.Kind {
	case "event_match":
		if c.Pattern == nil || c.Key == "" {
			return nil, errors.New("event_match needs key and pattern")
		}
		re, err := globRegexp(*c.Pattern, c.Key == "content.body")
		if err != nil {
			return nil, err
		}
		return func(e pushEvent, _ pushFacts) bool {
			v, ok := e.value(path).(string)
			return ok && re.MatchString(v)
		}, nil
	case "event_property_is", "event_property_contains":
		want, err := decodeScalar(c.Value)
		if err != nil {
			return nil, err
		}
		if c.Kind == "event_property_is" {
			return func(e pushEvent, _ pushFacts) bool {
				v := e.value(path)
				return (v != nil || hasNull(e, path)) && v == want
			}, nil
		}
		return func(e pushEvent, _ pushFacts) bool {
			list, _ := e.value(path).([]any)
			for _, v := range list {
				if isScalar(v) && v == want {
					return true
				}
			}
			return false
		}, nil
	case "contains_display_name":
		return func(e pushEvent, f pushFacts) bool {
			return f.displayName != "" && e.body != "" && containsWord(fold(e.body), fold(f.displayName))
		}, nil
	case "room_member_count":
		return memberCount(c.Is)
	case "sender_notification_permission":
		key := c.Key
		return func(_ pushEvent, f pushFacts) bool {
			return f.notifyPower != nil && f.senderPower >= f.notifyPower(key)
		}, nil
	case "call_started", "org.matrix.msc3914.call_started":
		return callStarted, nil
	}
	return never, nil
}

// callStarted is MSC3914: the call is on now and was not before.
func callStarted(e pushEvent, _ pushFacts) bool {
	content, _ := e.root["content"].(map[string]any)
	before, _ := e.value([]string{"unsigned", "prev_content"}).(map[string]any)
	on := func(c map[string]any) bool { return len(c) > 0 && c["m.terminated"] == nil }
	return on(content) && !on(before)
}

// hasNull reports whether the value at path is an explicit null.
func hasNull(e pushEvent, path []string) bool {
	parent, ok := e.value(path[:len(path)-1]).(map[string]any)
	if !ok {
		return false
	}
	v, ok := parent[path[len(path)-1]]
	return ok && v == nil
}

// isScalar reports whether v can be compared with ==.
func isScalar(v any) bool {
	switch v.(type) {
	case map[string]any, []any:
		return false
	}
	return true
}

// decodeScalar decodes a JSON value that is no object or array.
func decodeScalar(raw json.RawMessage) (any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if len(raw) == 0 || d.Decode(&v) != nil || !isScalar(v) {
		return nil, errors.New("value must be a string, number, boolean or null")
	}
	return v, nil
}

// memberCount compiles the "is" of room_member_count: a number with an operator.
func memberCount(is string) (pushCondition, error) {
	digits := strings.TrimLeft(is, "<>=")
	n, err := strconv.Atoi(digits)
	if err != nil {
		return nil, fmt.Errorf("room_member_count: %q is no number", is)
	}
	switch strings.TrimSuffix(is, digits) {
	case "", "==":
		return func(_ pushEvent, f pushFacts) bool { return f.members == n }, nil
	case "<":
		return func(_ pushEvent, f pushFacts) bool { return f.members < n }, nil
	case ">":
		return func(_ pushEvent, f pushFacts) bool { return f.members > n }, nil
	case "<=":
		return func(_ pushEvent, f pushFacts) bool { return f.members <= n }, nil
	case ">=":
		return func(_ pushEvent, f pushFacts) bool { return f.members >= n }, nil
	}
	return nil, fmt.Errorf("room_member_count: %q has an unknown operator", is)
}

// splitKey splits a dotted key; "\." and "\\" stand for a dot and a backslash
// (appendices, "Dot-separated property paths").
func splitKey(key string) []string {
	var path []string
	var part strings.Builder
	for i := 0; i < len(key); i++ {
		switch {
		case key[i] == '\\' && i+1 < len(key) && (key[i+1] == '.' || key[i+1] == '\\'):
			i++
			part.WriteByte(key[i])
		case key[i] == '.':
			path = append(path, part.String())
			part.Reset()
		default:
			part.WriteByte(key[i])
		}
	}
	return append(path, part.String())
}

// globRegexp translates a glob ("*" any text, "?" one character) that matches
// without regard to case: the whole value, or between word boundaries.
func globRegexp(glob string, word bool) (*regexp.Regexp, error) {
	if len(glob) > 1024 {
		return nil, errors.New("a pattern has at most 1024 bytes")
	}
	var b strings.Builder
	if word {
		b.WriteString(`(?is)(?:^|\W)`)
	} else {
		b.WriteString(`(?is)^`)
	}
	for _, c := range glob {
		switch c {
		case '*':
			b.WriteString(".*")
		case '?':
			b.WriteString(".")
		default:
			b.WriteString(regexp.QuoteMeta(string(c)))
		}
	}
	if word {
		b.WriteString(`(?:\W|$)`)
	} else {
		b.WriteString("$")
	}
	return regexp.Compile(b.String())
}

// containsWord reports whether text contains word with no letter, digit or
// underscore of ASCII directly before or behind it.
func containsWord(text, word string) bool {
	for from := 0; ; {
		i := strings.Index(text[from:], word)
		if i < 0 {
			return false
		}
		i += from
		end := i + len(word)
		if (i == 0 || !isWordByte(text[i-1])) && (end == len(text) || !isWordByte(text[end])) {
			return true
		}
		from = i + 1
	}
}

func isWordByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

package sip

import "strings"

// keys finds star codes among the keys that a phone in a room presses.
type keys struct {
	codes   map[string]string // what is pressed, and its name
	pressed string            // the beginning of a code
}

// The names of the star codes.
const (
	keyMute  = "mute"
	keyHand  = "hand"
	keyHelp  = "help"
	keyLeave = "leave"
)

func newKeys(c StarCodes) keys {
	k := keys{codes: make(map[string]string)}
	for code, name := range map[string]string{c.Mute: keyMute, c.Hand: keyHand, c.Help: keyHelp, c.Leave: keyLeave} {
		if code != "" {
			k.codes[code] = name
		}
	}
	return k
}

// press takes the next key and returns the name of the code that it completes, or
// "".
func (k *keys) press(digit byte) string {
	k.pressed += string(digit)
	for k.pressed != "" {
		if name, ok := k.codes[k.pressed]; ok {
			k.pressed = ""
			return name
		}
		if k.begins(k.pressed) {
			return ""
		}
		k.pressed = k.pressed[1:]
	}
	return ""
}

func (k *keys) begins(text string) bool {
	for code := range k.codes {
		if strings.HasPrefix(code, text) {
			return true
		}
	}
	return false
}

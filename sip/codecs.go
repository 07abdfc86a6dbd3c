package sip

import (
	"strings"

	"github.com/trunkhall/trunkhall/audio"
)

// defaultCodecs is the order for trunks that name none.
var defaultCodecs = []audio.Codec{audio.PCMU, audio.PCMA, audio.G722, audio.Opus}

// codecByName finds a codec as operators spell it.
func codecByName(name string) (audio.Codec, bool) {
	for _, c := range defaultCodecs {
		if strings.EqualFold(name, string(c)) {
			return c, true
		}
	}
	return "", false
}

// codecs returns the codecs of a trunk's list, in its order.
func codecs(names []string) []audio.Codec {
	var out []audio.Codec
	for _, name := range names {
		if c, ok := codecByName(name); ok {
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		return defaultCodecs
	}
	return out
}

package main

import (
	"fmt"
	"log/slog"
	"regexp"
	"strings"

	"github.com/trunkhall/trunkhall/sip/numbers"
)

// phoneNames are the names of telephones as participants and as Matrix users:
// "@_phone_4930123456:example.org:DEVICE", "sip_4930123456". "%5F" is "_" in a URL.
var phoneNames = regexp.MustCompile(`(?i)(_phone_|%5fphone%5f|sip_)(\+?[0-9]{3,})`)

// maskPhones is the ReplaceAttr of the server's log. A telephone's name is its
// number, and the parts that log names know nothing of telephones: what a log
// keeps of a number is what numbers.Mask leaves.
func maskPhones(_ []string, a slog.Attr) slog.Attr {
	var text string
	switch a.Value.Kind() {
	case slog.KindString:
		text = a.Value.String()
	case slog.KindAny:
		text = fmt.Sprint(a.Value.Any())
	default:
		return a
	}
	if masked := maskPhoneNames(text); masked != text {
		a.Value = slog.StringValue(masked)
	}
	return a
}

func maskPhoneNames(text string) string {
	if !strings.Contains(text, "hone") && !strings.Contains(text, "HONE") && !strings.Contains(text, "sip_") {
		return text // most of what is logged
	}
	return phoneNames.ReplaceAllStringFunc(text, func(name string) string {
		part := phoneNames.FindStringSubmatch(name)
		return part[1] + numbers.Mask(part[2])
	})
}

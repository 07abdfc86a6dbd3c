package sip

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/dialog"
)

func TestKeys(t *testing.T) {
	for _, c := range []struct {
		name, pressed string
		codes         StarCodes
		want          []string
	}{
		{"mute and unmute", "*6*6", DefaultConfig().StarCodes, []string{keyMute, keyMute}},
		{"digits that mean nothing", "123*9#0", DefaultConfig().StarCodes, nil},
		{"a star too many", "**6", DefaultConfig().StarCodes, []string{keyMute}},
		{"leaving", "1##", DefaultConfig().StarCodes, []string{keyLeave}},
		{"three times hash", "###", DefaultConfig().StarCodes, []string{keyLeave}},
		{"a code that was begun", "*#6*5", DefaultConfig().StarCodes, []string{keyHand}},
		{"switched off", "*6##", StarCodes{Help: "*1"}, nil},
	} {
		k := newKeys(c.codes)
		var got []string
		for _, digit := range []byte(c.pressed) {
			if name := k.press(digit); name != "" {
				got = append(got, name)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestRules(t *testing.T) {
	l := (&lines{}).withRules([]call.DispatchRule{
		{ID: "one", Match: call.DispatchMatch{To: "+4930123456", Trunk: "a"}},
		{ID: "two", Match: call.DispatchMatch{To: "+4930123*"}},
		{ID: "three", Match: call.DispatchMatch{Froms: []string{"+49171*"}, Trunks: []string{"a", "b"}}},
	}, []call.DispatchRule{
		{ID: "rest"},
		{ID: "with a PIN", Action: call.DispatchAction{PIN: "1"}},
	})
	for _, c := range []struct{ name, trunk, to, from, want string }{
		{"the first that fits", "a", "+4930123456", "", "one"},
		{"another trunk", "b", "+4930123456", "", "two"},
		{"a prefix", "a", "+49301239", "", "two"},
		{"by the caller", "b", "+49309", "+491711", "three"},
		{"by the caller, another trunk", "c", "+49309", "+491711", "with a PIN"},
		{"an anonymous caller", "a", "+49309", "", "with a PIN"},
	} {
		got := l.rulesFor(c.trunk, []string{c.to}, []string{c.from})
		if len(got) == 0 || got[0].ID != c.want {
			t.Errorf("%s: %+v, want %s", c.name, got, c.want)
		}
	}
}

func TestStatic(t *testing.T) {
	ctx := context.Background()
	d := Static{Rooms: []StaticRoom{{Room: "standup", PIN: "123456"}, {Room: "open"}}}
	if p, err := d.RoomByPIN(ctx, "123456"); err != nil || p.Room != "standup" {
		t.Errorf("%v %v", p, err)
	}
	for _, pin := range []string{"", "12345", "1234567", "654321"} {
		if p, err := d.RoomByPIN(ctx, pin); !errors.Is(err, call.ErrNotFound) {
			t.Errorf("PIN %q: %v %v", pin, p, err)
		}
	}
	if p, err := d.Room(ctx, "anything"); err != nil || p.Room != "anything" {
		t.Errorf("%v %v", p, err)
	}
	for _, name := range []string{"", "#alias:example.org", "!id:example.org"} {
		if _, err := d.Room(ctx, name); !errors.Is(err, call.ErrNotFound) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if n := d.PINLength(); n != 6 {
		t.Errorf("PIN length %d", n)
	}
	d.Rooms = append(d.Rooms, StaticRoom{Room: "other", PIN: "1234567"})
	if n := d.PINLength(); n != 0 {
		t.Errorf("PIN length %d of PINs that differ", n)
	}
	anonymous, err := d.Seat(ctx, call.Place{Room: "r"}, call.Phone{})
	if err != nil || anonymous.Grant.Kind != call.KindSIP || strings.HasSuffix(string(anonymous.Grant.Identity), "anonymous-") {
		t.Errorf("%+v %v", anonymous.Grant, err)
	}
	if err := d.MayDial(ctx, "@alice:example.org", ""); !errors.Is(err, call.ErrForbidden) {
		t.Errorf("%v", err)
	}
}

func TestPrompts(t *testing.T) {
	a, err := newAnnouncer("")
	if err != nil {
		t.Fatal(err)
	}
	names, err := shipped.ReadDir("prompts/en")
	if err != nil || len(names) < 20 {
		t.Fatalf("%d announcements, %v", len(names), err)
	}
	for _, language := range languages {
		for _, f := range names {
			pcm, err := a.get(language, strings.TrimSuffix(f.Name(), ".ulaw"))
			if err != nil {
				t.Errorf("%s: %v", language, err)
				continue
			}
			loud := 0
			for _, x := range pcm {
				if x > 1000 || x < -1000 {
					loud++
				}
			}
			if len(pcm) < promptRate/2 || len(pcm) > 15*promptRate || loud < len(pcm)/20 {
				t.Errorf("%s/%s: %d samples, %d of them loud", language, f.Name(), len(pcm), loud)
			}
		}
		if _, err := shipped.ReadFile("prompts/" + language + "/" + promptHelp + ".ulaw"); err != nil {
			t.Errorf("%s: %v", language, err)
		}
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "de"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "de", "goodbye.ulaw"), []byte{0xff, 0xff}, 0o600); err != nil {
		t.Fatal(err)
	}
	if a, err = newAnnouncer(dir); err != nil {
		t.Fatal(err)
	}
	if pcm, err := a.get("de", promptGoodbye); err != nil || len(pcm) != 2 {
		t.Errorf("the operator's own is not played: %d, %v", len(pcm), err)
	}
	if pcm, err := a.get("en", promptGoodbye); err != nil || len(pcm) < promptRate/4 {
		t.Errorf("%d, %v", len(pcm), err)
	}
	if _, err := newAnnouncer(filepath.Join(dir, "nothing")); err == nil {
		t.Error("a directory that is not there was accepted")
	}
}

// TestCauses is the table of final responses, and of what they mean to people.
func TestCauses(t *testing.T) {
	for _, c := range []struct {
		e    dialog.Ended
		want call.Cause
	}{
		{dialog.Ended{Code: 486}, call.CauseBusy},
		{dialog.Ended{Code: 600}, call.CauseBusy},
		{dialog.Ended{Code: 480}, call.CauseNoAnswer},
		{dialog.Ended{Code: 408}, call.CauseNoAnswer},
		{dialog.Ended{Code: 487}, call.CauseNoAnswer},
		{dialog.Ended{Code: 403}, call.CauseRejected},
		{dialog.Ended{Code: 603}, call.CauseRejected},
		{dialog.Ended{Code: 404}, call.CauseWrongNumber},
		{dialog.Ended{Code: 484}, call.CauseWrongNumber},
		{dialog.Ended{Code: 604}, call.CauseWrongNumber},
		{dialog.Ended{Code: 488}, call.CauseMedia},
		{dialog.Ended{Code: 503}, call.CauseNoLine},
		{dialog.Ended{Code: 407}, call.CauseNoLine},
		{dialog.Ended{Code: 420}, call.CauseFailed},
		{dialog.Ended{Cause: dialog.EndTransport}, call.CauseNoLine},
		{dialog.Ended{Code: 487, Cause: dialog.EndTimeout}, call.CauseNoAnswer},
	} {
		if got, text := refusal(c.e); got != c.want || text == "" {
			t.Errorf("%d %s: %s %q, want %s", c.e.Code, c.e.Cause, got, text, c.want)
		}
	}
	for code, next := range map[int]bool{408: true, 500: true, 503: true, 407: true, 404: false, 486: false, 488: false, 603: false, 600: false} {
		if got := tryNext(dialog.Ended{Code: code}); got != next {
			t.Errorf("after %d another line is tried: %v", code, got)
		}
	}
}

func TestCleanDigits(t *testing.T) {
	for in, want := range map[string]string{"123": "123", "1,2": "1w2", "*a#W 7-8": "*A#w78", "": ""} {
		if got, err := cleanDigits(in); err != nil || got != want {
			t.Errorf("%q: %q %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"1;2", "x", "1\r\n2", strings.Repeat("1", 65)} {
		if _, err := cleanDigits(in); !errors.Is(err, call.ErrInvalid) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestHeadersThatMayBeSet(t *testing.T) {
	for name, want := range map[string]bool{
		"X-Customer": true, "x-a": true, "X-": false, "From": false, "P-Asserted-Identity": false, "X-a\r\nb": false,
		"X-a b": false, "X-ä": false, "": false, "X-" + strings.Repeat("a", 80): false,
	} {
		if got := goodHeader(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

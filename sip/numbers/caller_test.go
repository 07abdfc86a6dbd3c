package numbers

import (
	"errors"
	"strings"
	"testing"

	"github.com/trunkhall/trunkhall/call"
)

func TestCallerOf(t *testing.T) {
	p := testPlan(t, nil)
	trusted := call.Trunk{In: call.TrunkInbound{TrustedPAI: true}}
	stranger := call.Trunk{}
	deaf := call.Trunk{In: call.TrunkInbound{TrustedPAI: true}, CallerID: call.TrunkCallerID{Privacy: "ignore"}}
	from := Address{Name: "Alice", URI: "sip:+493012345678@example.net;user=phone"}
	pai := []Address{{Name: "Alice Real", URI: "sip:+493087654321@example.net"}}
	nobody := Address{Name: "Anonymous", URI: "sip:anonymous@anonymous.invalid"}
	hidden := Caller{Anonymous: true}
	for _, c := range []struct {
		name  string
		trunk call.Trunk
		in    Inbound
		want  Caller
	}{
		{"From", stranger, Inbound{From: from}, Caller{Number: "+493012345678", Name: "Alice"}},
		{"an asserted identity counts where it is believed", trusted, Inbound{From: from, PAI: pai}, Caller{Number: "+493087654321", Name: "Alice Real"}},
		{"and nowhere else", stranger, Inbound{From: from, PAI: pai}, Caller{Number: "+493012345678", Name: "Alice"}},
		{"the tel URI of two", trusted, Inbound{From: from, PAI: []Address{{Name: "A", URI: "sip:alice@example.net"}, {URI: "tel:+49-30-87654321"}}}, Caller{Number: "+493087654321", Name: "A"}},
		{"a national number", stranger, Inbound{From: Address{URI: "sip:03012345678@x"}}, Caller{Number: "+493012345678"}},
		{"E.164 without the +", stranger, Inbound{From: Address{URI: "sip:442079460000@x"}}, Caller{Number: "+442079460000"}},
		{"an extension stays as it is", stranger, Inbound{From: Address{Name: "Bob", URI: "sip:312@pbx"}}, Caller{Number: "312", Name: "Bob"}},
		{"a name for a user", stranger, Inbound{From: Address{URI: "sips:bob@pbx"}}, Caller{Number: "bob"}},
		{"an escaped plus", stranger, Inbound{From: Address{URI: "sip:%2B493012345678@x"}}, Caller{Number: "+493012345678"}},
		{"user parameters", stranger, Inbound{From: Address{URI: "sip:+493012345678;cpc=ordinary:secret@x"}}, Caller{Number: "+493012345678"}},

		{"privacy: id", trusted, Inbound{From: from, PAI: pai, Privacy: []string{"id"}}, hidden},
		{"privacy in capitals", trusted, Inbound{From: from, PAI: pai, Privacy: []string{"ID"}}, hidden},
		{"privacy: user", stranger, Inbound{From: from, Privacy: []string{"none", "User"}}, hidden},
		{"privacy: header;critical", stranger, Inbound{From: from, Privacy: []string{"header;critical"}}, hidden},
		{"privacy with commas", stranger, Inbound{From: from, Privacy: []string{"session, id"}}, hidden},
		{"privacy: none", stranger, Inbound{From: from, Privacy: []string{"none"}}, Caller{Number: "+493012345678", Name: "Alice"}},
		{"privacy of the session is something else", stranger, Inbound{From: from, Privacy: []string{"session"}}, Caller{Number: "+493012345678", Name: "Alice"}},
		{"an anonymous From hides the asserted identity", trusted, Inbound{From: nobody, PAI: pai}, hidden},
		{"anonymous by host", stranger, Inbound{From: Address{URI: "sip:+493012345678@anonymous.invalid"}}, hidden},
		{"anonymous by name", stranger, Inbound{From: Address{Name: " anonymous", URI: "sip:+493012345678@x"}}, hidden},
		{"anonymous by user", stranger, Inbound{From: Address{Name: "Alice", URI: "sip:Restricted@x"}}, hidden},
		{"no URI", stranger, Inbound{}, hidden},
		{"a trunk that ignores privacy", deaf, Inbound{From: nobody, PAI: pai, Privacy: []string{"id"}}, Caller{Number: "+493087654321", Name: "Alice Real"}},
		{"which cannot know more than is said", deaf, Inbound{From: nobody}, hidden},

		{"validated", trusted, Inbound{From: from, PAI: []Address{{URI: "tel:+493087654321;verstat=TN-Validation-Passed-A"}}}, Caller{Number: "+493087654321", Name: "Alice", Validated: true}},
		{"validation that failed", trusted, Inbound{From: from, PAI: []Address{{URI: "tel:+493087654321;verstat=TN-Validation-Failed-C"}}}, Caller{Number: "+493087654321", Name: "Alice"}},
		{"validation by anybody", stranger, Inbound{From: Address{URI: "sip:+493012345678;verstat=TN-Validation-Passed-A@x"}}, Caller{Number: "+493012345678"}},
		{"forwarded", stranger, Inbound{From: from, Diversion: []Address{{URI: "tel:030 1111111"}, {URI: "sip:2@x"}}}, Caller{Number: "+493012345678", Name: "Alice", Forwarded: "+49301111111"}},

		{"a name on two lines", stranger, Inbound{From: Address{Name: "Al\r\nice\u202e\x00", URI: "sip:312@x"}}, Caller{Number: "312", Name: "Alice"}},
		{"a number that would break out", stranger, Inbound{From: Address{URI: "sip:312%0d%0aX@x"}}, hidden},
		{"a very long name", stranger, Inbound{From: Address{Name: strings.Repeat("a", 5000), URI: "sip:312@x"}}, Caller{Number: "312", Name: strings.Repeat("a", maxName)}},
	} {
		if got := p.CallerOf(c.trunk, c.in); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestShow(t *testing.T) {
	p := testPlan(t, nil)
	trunk := func(mode string) call.Trunk {
		return call.Trunk{
			In:       call.TrunkInbound{Numbers: []string{"+493012345*", "+49*"}},
			CallerID: call.TrunkCallerID{Mode: mode, Default: "+493012345000", Numbers: []string{"+4930555000"}, Map: map[string]string{"@alice:x": "+493012345001", "@bob:x": "+493012345002"}},
		}
	}
	for _, c := range []struct {
		name string
		mode string
		wish Wish
		want CallerID
		bad  bool
	}{
		{"fixed is fixed", "fixed", Wish{By: "@alice:x"}, CallerID{Number: "+493012345000"}, false},
		{"also against a wish", "fixed", Wish{By: "@alice:x", Number: "+493012345001"}, CallerID{}, true},
		{"a further number of the line", "fixed", Wish{By: "@alice:x", Number: "+4930555000"}, CallerID{Number: "+4930555000"}, false},
		{"a wish for what it is anyway", "fixed", Wish{Number: "030 12345000"}, CallerID{Number: "+493012345000"}, false},
		{"map", "map", Wish{By: "@alice:x"}, CallerID{Number: "+493012345001"}, false},
		{"map without a row", "map", Wish{By: "@carol:x"}, CallerID{Number: "+493012345000"}, false},
		{"no mode is map", "", Wish{By: "@alice:x"}, CallerID{Number: "+493012345001"}, false},
		{"the common number instead of one's own", "map", Wish{By: "@alice:x", Number: "+493012345000"}, CallerID{Number: "+493012345000"}, false},
		{"somebody else's number", "map", Wish{By: "@alice:x", Number: "+493012345002"}, CallerID{}, true},
		{"a stranger's number", "map", Wish{By: "@alice:x", Number: "+442079460000"}, CallerID{}, true},
		{"a verified number", "map", Wish{By: "@alice:x", Number: "0176 12345678", Verified: []string{"+4917612345678"}}, CallerID{Number: "+4917612345678"}, false},
		{"an API key may show what is the trunk's", "map", Wish{By: "APIkey", Number: "+493012345099"}, CallerID{Number: "+493012345099"}, false},
		{"but nothing else", "map", Wish{By: "APIkey", Number: "+498912345678"}, CallerID{}, true},
		{"passthrough shows a verified number unasked", "passthrough", Wish{By: "@carol:x", Verified: []string{"+4917612345678"}}, CallerID{Number: "+4917612345678"}, false},
		{"passthrough passes no lies", "passthrough", Wish{By: "@carol:x", Number: "+442079460000"}, CallerID{}, true},
		{"a short pattern makes nothing ours", "passthrough", Wish{By: "@carol:x", Number: "+498912345678"}, CallerID{}, true},
		{"hidden keeps the number for the provider", "map", Wish{By: "@alice:x", Hidden: true}, CallerID{Number: "+493012345001", Anonymous: true}, false},
		{"a name on one line", "fixed", Wish{Name: "A\r\nB"}, CallerID{Number: "+493012345000", Name: "AB"}, false},
		{"a wish that is no number", "passthrough", Wish{Number: "a@b"}, CallerID{}, true},
	} {
		got, err := p.Show(trunk(c.mode), c.wish)
		if (err != nil) != c.bad || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, c.want)
		}
		if err != nil && !errors.Is(err, call.ErrForbidden) {
			t.Errorf("%s: %v is not forbidden", c.name, err)
		}
	}
}

func TestShowOfRegisteredLine(t *testing.T) {
	p := testPlan(t, nil)
	line := call.Trunk{Register: call.TrunkRegister{AOR: "sip:user17@example.net"}}
	if got, err := p.Show(line, Wish{By: "@alice:x"}); err != nil || got.Number != "user17" {
		t.Errorf("%+v, %v: the provider would see an anonymous call", got, err)
	}
	if got, err := p.Show(call.Trunk{}, Wish{}); err != nil || got.Number != "" {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzCaller(f *testing.F) {
	f.Add("Alice", "sip:+493012345678@x;user=phone", "id", "tel:+493012345678;verstat=TN-Validation-Passed-A")
	f.Add("\r\n", "sip:%0d%0a:x@[::1]:5060?a=b", "NONE;id", "sips:anonymous@anonymous.invalid")
	f.Add("\"", "<sip:a;b;c:d@e@f>", ",;", ":")
	p := testPlan(f, nil)
	f.Fuzz(func(t *testing.T, name, uri, privacy, pai string) {
		in := Inbound{From: Address{Name: name, URI: uri}, PAI: []Address{{URI: pai}}, Privacy: []string{privacy}, Diversion: []Address{{URI: pai}}}
		for _, trunk := range []call.Trunk{{}, {In: call.TrunkInbound{TrustedPAI: true}}} {
			c := p.CallerOf(trunk, in)
			for _, s := range []string{c.Name, c.Number, c.Forwarded, Mask(c.Number), Display(c.Number)} {
				if strings.ContainsAny(s, "\r\n\x00\u202e") || len(s) > 4*maxName {
					t.Fatalf("%q came through", s)
				}
			}
			if c.Anonymous && c != (Caller{Anonymous: true}) {
				t.Fatalf("anonymous but %+v", c)
			}
			if strings.ContainsAny(c.Number, "@<>\"") {
				t.Fatalf("number %q", c.Number)
			}
		}
	})
}

package phones

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func scenarios(t *testing.T) []string {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(folder(), "scenarios"))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), ".xml"); ok {
			all = append(all, name)
		}
	}
	return all
}

// Every scenario is one that SIPp can read, and none passes against somebody
// who never says anything.
func TestScenariosFailInSilence(t *testing.T) {
	t.Parallel()
	silent, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	var all []*Sipp
	for _, name := range scenarios(t) {
		s := Scenario{File: name, Number: "+4930120001", Timeout: 3 * time.Second, Media: silent.LocalAddr().(*net.UDPAddr).AddrPort()}
		if !strings.HasPrefix(name, "out-") {
			s.Target = silent.LocalAddr().(*net.UDPAddr).AddrPort()
		}
		all = append(all, Play(t, s))
		if len(all)%16 == 0 { // not all processes at once
			all[len(all)-16].Result()
		}
	}
	for _, p := range all {
		err := p.Result()
		switch {
		case p.File == "ack-nothing": // is about hearing nothing
			if err != nil {
				t.Error(err)
			}
		case err == nil:
			t.Errorf("%s passes with nobody there", p.File)
		case !strings.Contains(err.Error(), "timed out after") && !strings.Contains(err.Error(), "exit status 1\n"):
			t.Errorf("%s cannot be played: %v\n%s", p.File, err, tail(p.printed(), 1000))
		}
	}
}

// The scenarios that need nothing but an ordinary telephone pass with one: they
// are right themselves.
func TestScenariosWithPhone(t *testing.T) {
	t.Parallel()
	phone := StartPhone(t, PhoneOptions{Name: "phone", Says: Tone(440, 5*time.Second)})
	phoneTCP := StartPhone(t, PhoneOptions{Name: "phone", Transport: "tcp"})
	for _, s := range []Scenario{
		{File: "basic"}, {File: "late-offer"}, {File: "hold"}, {File: "many-headers"}, {File: "lost-bye-ok"},
		{File: "basic", Transport: "t1"},
		{File: "many-headers", Transport: "t1"},
	} {
		to := phone
		if s.Transport == "t1" {
			to = phoneTCP
		}
		s.Number, s.Target = "phone", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(to.Port))
		s.Timeout = 20 * time.Second
		Play(t, s).Must()
	}

	caller := StartPhone(t, PhoneOptions{Name: "caller", Says: Tone(440, 5*time.Second)})
	for file, reason := range map[string]string{
		"out-486": "486 Busy Here", "out-603": "603 Decline", "out-404": "404 Not Found", "out-600": "600 Busy Everywhere",
		"out-484": "484 Address Incomplete", "out-503": "503 Service Unavailable", "out-hangup": "", "out-early": "404 Not Found",
	} {
		callee := Play(t, Scenario{File: file, Timeout: 20 * time.Second})
		before := len(caller.Events())
		caller.Dial("sip:callee@" + callee.Addr().String())
		callee.Must()
		if e, ok := caller.SawNext(10*time.Second, "CALL_CLOSED", before); !ok || !strings.Contains(e.Param, reason) {
			t.Errorf("%s: the caller sees %+v, not %q", file, e, reason)
		}
	}
}

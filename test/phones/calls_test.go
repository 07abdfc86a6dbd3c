package phones

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Sequences of messages that calls in are made of, by SIPp, each as its file in
// scenarios/ says.
func TestCallsIn(t *testing.T) {
	t.Parallel()
	g := StartGateway(t, GatewayOptions{})
	t.Run("scenarios", func(t *testing.T) {
		for i, c := range []struct {
			Scenario
			number string // empty: one with a room of its own
			v6     bool
			// with is done while the scenario plays.
			with func(t *testing.T, p *Sipp, room string)
			// speaks: the call is longer than a gateway puts up with silence.
			speaks bool
		}{
			{Scenario: Scenario{File: "basic"}},
			{Scenario: Scenario{File: "basic", Transport: "t1"}},
			{Scenario: Scenario{File: "basic", IP: "::1"}, v6: true},
			{Scenario: Scenario{File: "basic", IP: "::1", Transport: "t1"}, v6: true},
			{Scenario: Scenario{File: "basic", IP: earlyIP}},
			{Scenario: Scenario{File: "digest", IP: digestIP}},
			{Scenario: Scenario{File: "digest-bad", IP: digestIP}, with: nobody(g)},
			{Scenario: Scenario{File: "cancel"}, number: userNumber},
			{Scenario: Scenario{File: "prack"}, number: userNumber},
			{Scenario: Scenario{File: "prack-wrong"}, number: userNumber},
			{Scenario: Scenario{File: "merged"}, number: userNumber},
			{Scenario: Scenario{File: "late-offer"}},
			{Scenario: Scenario{File: "hold"}},
			{Scenario: Scenario{File: "update"}},
			{Scenario: Scenario{File: "session-timer"}},
			{Scenario: Scenario{File: "session-dead", Timeout: 110 * time.Second}, speaks: true},
			{Scenario: Scenario{File: "glare", Timeout: 100 * time.Second}, speaks: true},
			{Scenario: Scenario{File: "refer"}},
			{Scenario: Scenario{File: "lost-ack"}},
			{Scenario: Scenario{File: "lost-bye"}, with: hangUp(g)},
			{Scenario: Scenario{File: "lost-bye-ok"}},
			{Scenario: Scenario{File: "retransmitted-invite"}, with: func(t *testing.T, p *Sipp, room string) {
				first := g.Phones(t, room, 1)
				hangUp(g)(t, p, room)
				if err := p.Result(); err != nil {
					return // told elsewhere
				}
				tags := map[string]bool{}
				for _, m := range p.Received() {
					if strings.HasPrefix(m, "SIP/2.0 200") {
						tags[regexp.MustCompile(`(?m)^To:.*;tag=(\S+)`).FindString(m)] = true
					}
				}
				if len(tags) != 1 {
					t.Errorf("the answers have %d tags: %v", len(tags), tags)
				}
				if n := strings.Count(g.Log(), first[0].SID); n == 0 {
					t.Logf("the log does not name %s", first[0].SID)
				}
			}},
			{Scenario: Scenario{File: "basic-long"}, with: hangUp(g)},
			{Scenario: Scenario{File: "max-forwards"}},
			{Scenario: Scenario{File: "require"}},
			{Scenario: Scenario{File: "no-codec"}, with: nobody(g)},
			{Scenario: Scenario{File: "other-media"}},
			{Scenario: Scenario{File: "only-fax"}},
			{Scenario: Scenario{File: "srtp-required", IP: secureIP}, with: nobody(g)},
			{Scenario: Scenario{File: "srtp-short-key", IP: secureIP}, with: nobody(g)},
			{Scenario: Scenario{File: "srtp-sdes", IP: secureIP}},
			{Scenario: Scenario{File: "many-headers"}},
			{Scenario: Scenario{File: "many-headers", Transport: "t1"}},
			{Scenario: Scenario{File: "big"}},
			{Scenario: Scenario{File: "options"}},
			{Scenario: Scenario{File: "outside-message"}},
			{Scenario: Scenario{File: "outside-subscribe"}},
			{Scenario: Scenario{File: "outside-notify"}},
			{Scenario: Scenario{File: "outside-publish"}},
			{Scenario: Scenario{File: "outside-refer"}},
			{Scenario: Scenario{File: "outside-info"}},
			{Scenario: Scenario{File: "outside-update"}},
			{Scenario: Scenario{File: "outside-bye"}},
			{Scenario: Scenario{File: "outside-prack"}},
			{Scenario: Scenario{File: "wrong-tags"}},
			{Scenario: Scenario{File: "ack-nothing"}},
			{Scenario: Scenario{File: "wrong-number"}, number: "+4930999999"},
			{Scenario: Scenario{File: "info-pin"}, number: pinNumber, with: entersConference(g, "sip_493055500001")},
			{Scenario: Scenario{File: "dtmf-pin"}, number: pinNumber, with: entersConference(g, "sip_493055500002")},
		} {
			c.IP = or(c.IP, plainIP)
			c.Number, c.Target = c.number, g.SIP
			if c.v6 {
				c.Target = g.SIP6
			}
			room := ""
			if c.Number == "" {
				c.Number, room = g.Room()
			}
			switch c.File {
			case "info-pin":
				c.Caller = "+493055500001"
			case "dtmf-pin":
				c.Caller = "+493055500002"
			default: // somebody of their own: nobody is rung by one number twice at once
				c.Caller = fmt.Sprintf("+4930231%05d", i)
			}
			t.Run(strings.TrimSpace(fmt.Sprint(c.File, " ", c.Transport, " ", c.IP)), func(t *testing.T) {
				t.Parallel()
				var tones *Tones
				if c.speaks {
					tones = StartTones(t, c.IP, 440)
					c.Media = tones.Addr()
				}
				p := Play(t, c.Scenario)
				if c.speaks {
					eventually(t, 20*time.Second, "the call is answered", func() error {
						for _, m := range p.Received() {
							if to, err := mediaAddress(m); err == nil {
								tones.Send(to)
								return nil
							}
						}
						return errNotYet
					})
				}
				if c.with != nil {
					c.with(t, p, room)
				}
				p.Must()
				if room != "" {
					g.Phones(t, room, 0)
				}
			})
		}
	})
}

// nobody requires that the call never comes as far as a room.
func nobody(g *Gateway) func(*testing.T, *Sipp, string) {
	return func(t *testing.T, p *Sipp, room string) {
		for {
			if all := g.Participants(room); len(all) > 0 {
				t.Errorf("somebody is in the room: %+v", all)
			}
			select {
			case <-p.done:
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
}

// hangUp throws the phone out as soon as it is in the room.
func hangUp(g *Gateway) func(*testing.T, *Sipp, string) {
	return func(t *testing.T, _ *Sipp, room string) {
		g.Remove(t, room, g.Phones(t, room, 1)[0].Identity)
	}
}

// entersConference waits for a phone in the room that has a PIN, and throws it out.
func entersConference(g *Gateway, identity string) func(*testing.T, *Sipp, string) {
	return func(t *testing.T, _ *Sipp, _ string) {
		eventually(t, 40*time.Second, "the phone is in the conference", func() error {
			for _, p := range g.Participants("conference") {
				if strings.Contains(p.Identity, strings.TrimPrefix(identity, "sip_")) {
					g.Remove(t, "conference", p.Identity)
					return nil
				}
			}
			return errNotYet
		})
	}
}

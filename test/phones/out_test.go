package phones

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/test/harness"
)

// A leg is a call as Trunkhall's API tells of it.
type leg struct {
	ID       string `json:"id"`
	State    string `json:"state"`
	Cause    string `json:"cause"`
	Text     string `json:"text"`
	Code     int    `json:"code"`
	Q850     int    `json:"q850"`
	Identity string `json:"identity"`
	Codec    string `json:"codec"`
	SRTP     string `json:"srtp"`
	Held     bool   `json:"held"`
}

// dial calls a number into a Matrix room as a member of it.
func (g *Gateway) dial(a *harness.Account, room, number string) (leg, error) {
	var l leg
	err := g.API(a, http.MethodPost, "/phones/v1/rooms/"+url.PathEscape(room)+"/dial", map[string]any{"number": number}, &l)
	return l, err
}

// follow waits for the leg to have another state, until it ends or is in the
// state wanted. It returns the leg and all the states that it had.
func (g *Gateway) follow(t testing.TB, a *harness.Account, l leg, wanted string) (leg, []string) {
	t.Helper()
	states := []string{l.State}
	end := time.Now().Add(60 * time.Second)
	for l.State != wanted && l.State != "ended" {
		seen := l.State
		if err := g.API(a, http.MethodGet, "/phones/v1/legs/"+l.ID+"?timeout=5000&seen="+seen, nil, &l); err != nil {
			t.Fatalf("asking for the call: %v", err)
		}
		if l.State != seen {
			states = append(states, l.State)
		}
		if time.Now().After(end) {
			t.Fatalf("the call is not %s after a minute: %+v; it was %v", wanted, l, states)
		}
	}
	return l, states
}

// account is alice's, or bob's.
func (g *Gateway) account(i int) *harness.Account {
	u := g.Users[i]
	return &harness.Account{Homeserver: g.Homeserver, UserID: u.UserID, AccessToken: u.AccessToken, DeviceID: u.DeviceID}
}

// What becomes of a call out is told as it is.
func TestCallsOut(t *testing.T) {
	t.Parallel()
	cases := []struct {
		file   string
		states []string // some of those that it has, in order
		cause  string
		code   int
		with   func(t *testing.T, g *Gateway, a *harness.Account, l leg) // once it has reached the last of states
	}{
		{file: "out-486", states: []string{"ringing"}, cause: "busy", code: 486},
		{file: "out-600", cause: "busy", code: 600},
		{file: "out-603", states: []string{"ringing"}, cause: "rejected", code: 603},
		{file: "out-404", cause: "wrong_number", code: 404},
		{file: "out-484", cause: "wrong_number", code: 484},
		{file: "out-503", cause: "no_line", code: 503},
		{file: "out-early", states: []string{"early"}, cause: "wrong_number", code: 404},
		{file: "out-noanswer", states: []string{"ringing"}, cause: "no_answer"},
		{file: "out-crossed", states: []string{"ringing"}, cause: "cancelled", with: hangUpLeg},
		{file: "out-answer", states: []string{"ringing", "confirmed"}, cause: "hangup", with: hangUpLeg},
		{file: "out-hangup", states: []string{"confirmed"}, cause: "hangup"},
		{file: "out-early-prack", states: []string{"early", "confirmed"}, cause: "hangup", with: hangUpLeg},
		{file: "out-forked", states: []string{"confirmed"}, cause: "hangup", with: func(t *testing.T, g *Gateway, a *harness.Account, l leg) {
			time.Sleep(time.Second) // a moment of talk, while the second answer comes
			hangUpLeg(t, g, a, l)
		}},
		{file: "out-digest", states: []string{"confirmed"}, cause: "hangup", with: hangUpLeg},
		{file: "out-session-timer", states: []string{"confirmed"}, cause: "hangup", with: hangUpLeg},
		{file: "out-transfer", states: []string{"confirmed"}, cause: "transferred", with: func(t *testing.T, g *Gateway, _ *harness.Account, l leg) {
			if err := g.API(g.Admin(t), http.MethodPost, "/admin/v1/phones/legs/"+l.ID+"/transfer", map[string]any{"to": "+4915112345600"}, nil); err != nil {
				t.Errorf("transfer: %v", err)
			}
		}},
		{file: "out-transfer-busy", states: []string{"confirmed"}, cause: "hangup", with: func(t *testing.T, g *Gateway, a *harness.Account, l leg) {
			if err := g.API(g.Admin(t), http.MethodPost, "/admin/v1/phones/legs/"+l.ID+"/transfer", map[string]any{"to": "+4915112345600"}, nil); err == nil {
				t.Error("a transfer to somebody who is busy succeeded")
			}
			if l, _ = g.follow(t, a, leg{ID: l.ID, State: ""}, "confirmed"); l.State != "confirmed" {
				t.Errorf("the call did not survive: %+v", l)
			}
			hangUpLeg(t, g, a, l)
		}},
	}
	var lines []string
	for _, c := range cases {
		lines = append(lines, c.file)
	}
	g := StartGateway(t, GatewayOptions{Lines: lines, Ring: "6s"})
	g.Admin(t)
	t.Run("scenarios", func(t *testing.T) {
		for _, c := range cases {
			t.Run(c.file, func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				// Nobody may call as often as this test does.
				a, err := g.Register(ctx, c.file)
				if err != nil {
					t.Fatal(err)
				}
				room, err := a.CreateRoom(ctx, map[string]any{"preset": "private_chat"})
				if err != nil {
					t.Fatal(err)
				}
				line := g.Lines[c.file]
				p := Play(t, Scenario{File: c.file, IP: line.Addr.Addr().String(), Port: int(line.Addr.Port())})
				l, err := g.dial(a, room, line.Number)
				if err != nil {
					t.Fatalf("dial: %v", err)
				}
				states := []string{}
				for _, wanted := range c.states {
					var more []string
					if l, more = g.follow(t, a, l, wanted); l.State != wanted {
						t.Errorf("the call is never %s; it was %v: %+v", wanted, append(states, more...), l)
						break
					}
					states = append(states, more...)
				}
				if c.with != nil && l.State != "ended" {
					c.with(t, g, a, l)
				}
				l, more := g.follow(t, a, l, "ended")
				if l.Cause != c.cause || c.code != 0 && l.Code != c.code || l.Text == "" {
					t.Errorf("the call ended as %q, code %d, %q; wanted %q, %d. It was %v", l.Cause, l.Code, l.Text, c.cause, c.code, append(states, more...))
				}
				if slices.Contains(append(states, more...), "confirmed") != slices.Contains(c.states, "confirmed") {
					t.Errorf("the call was %v", append(states, more...))
				}
				p.Must()
			})
		}
	})

	// What is refused costs nothing: no INVITE leaves.
	t.Run("refused", func(t *testing.T) {
		a := g.account(0)
		room, err := a.CreateRoom(t.Context(), map[string]any{"preset": "private_chat"})
		if err != nil {
			t.Fatal(err)
		}
		for _, number := range []string{"112", "911", "+49900123456", "+881612345678", "+8821612345678", "+19005551234", "004990012345", "+4917099999999", "+49151x", "sip:root@127.0.0.1", "%2B4915112345600", "+4915112345600;phone-context=+1", "0151 12345699 ext 900"} {
			l, err := g.dial(a, room, number)
			var api *harness.APIError
			if err == nil {
				t.Errorf("%s is called: %+v", number, l)
			} else if !errors.As(err, &api) || api.Status < 400 || api.Status >= 500 {
				t.Errorf("%s is refused with %v", number, err)
			}
		}
		b := g.account(1)
		if l, err := g.dial(b, room, g.Lines["out-answer"].Number); err == nil {
			t.Errorf("somebody who is not in the room calls into it: %+v", l)
		}
	})
	if strings.Contains(g.Log(), g.Lines["out-answer"].Number) {
		t.Error("the log has a whole telephone number")
	}
}

// hangUpLeg hangs up as the one who called.
func hangUpLeg(t *testing.T, g *Gateway, a *harness.Account, l leg) {
	t.Helper()
	if err := g.API(a, http.MethodPost, "/phones/v1/legs/"+l.ID+"/hangup", map[string]any{}, nil); err != nil {
		t.Errorf("hanging up: %v", err)
	}
}

// What is heard before the answer, and a real phone that is called.
func TestCallOutHeard(t *testing.T) {
	callee := FreePort(t, "127.0.0.1")
	early := FreePort(t, "127.0.0.1")
	g := StartGateway(t, GatewayOptions{Trunks: fmt.Sprintf(`
    - {id: callee, direction: outbound, targets: ["sip:127.0.0.1:%d"], allow_prefixes: ["+4915112345690"], caller_id: {mode: fixed, default: "+4930123450"}}
    - {id: early-callee, direction: outbound, targets: ["sip:127.0.0.1:%d"], allow_prefixes: ["+4915112345691"], caller_id: {mode: fixed, default: "+4930123450"}}`, callee, early)})
	p := everybody(t)
	p.Launch(t, "alice", alice)

	t.Run("a phone answers", func(t *testing.T) {
		phone := StartPhone(t, PhoneOptions{Name: "callee", User: "+4915112345690", Port: callee, Manual: true, Says: Tone(phoneHz, long)})
		room := "out-room"
		a := p.Join(t, g.Server, "alice", "alice", room, true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		answered := make(chan error, 1)
		go func() {
			answered <- g.Twirp(ctx, "SIP/CreateSIPParticipant", map[string]any{
				"room": room, "room_name": room, "sip_trunk_id": "callee", "sip_call_to": "+4915112345690", "participant_identity": "phone-1",
				"participant_name": "Anna", "wait_until_answered": true, "dtmf": "ww12#",
			}, nil)
		}()
		phone.Must("CALL_INCOMING")
		a.Phone("that it rings", func(s Seen) error {
			if s.Identity != "phone-1" || s.Name != "Anna" || s.Attributes["sip.callStatus"] != "ringing" {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
		select {
		case err := <-answered:
			t.Errorf("the call is answered while it rings: %v", err)
		default:
		}
		phone.Accept()
		phone.Must("CALL_ESTABLISHED")
		if err := <-answered; err != nil {
			t.Errorf("CreateSIPParticipant: %v", err)
		}
		hears(t, "the phone hears alice", 523, phone.Listen)
		hears(t, "alice hears the phone", phoneHz, a.listenTo("phone-1"))
		eventually(t, 20*time.Second, "the phone receives the digits of the request", func() error {
			return logged(phone, "received event: '1'", "received event: '2'", "received event: '#'")
		})
		phone.Hangup()
		a.Alone()
	})

	t.Run("early media", func(t *testing.T) {
		room := "early-room"
		a := p.Join(t, g.Server, "alice", "alice", room, true)
		tones := StartTones(t, "127.0.0.1", 425)
		s := Play(t, Scenario{File: "out-early-media", Port: early, Media: tones.Addr()})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			ended <- g.Twirp(ctx, "SIP/CreateSIPParticipant", map[string]any{
				"room": room, "room_name": room, "sip_trunk_id": "early-callee", "sip_call_to": "+4915112345691", "participant_identity": "phone-2", "wait_until_answered": true,
			}, nil)
		}()
		eventually(t, 20*time.Second, "the INVITE comes", func() error {
			if len(s.Received()) == 0 {
				return errNotYet
			}
			return nil
		})
		to, err := mediaAddress(s.Received()[0])
		if err != nil {
			t.Fatal(err)
		}
		tones.Send(to)
		hears(t, "alice hears the network's announcement", 425, a.listenTo("phone-2"))
		if err := <-ended; err == nil {
			t.Error("a call that was refused counts as answered")
		}
		s.Must()
		a.Alone()
	})
}

package phones

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// providerIP is where the Kamailios of these tests are.
const providerIP = "127.0.0.7"

// at returns a Kamailio's options of a phone that registers with it.
func (p *Provider) phone(name string, hz float64) PhoneOptions {
	return PhoneOptions{
		Name: name, User: name, Domain: providerRealm, Registrar: p.Addr().String(), Username: name, Password: providerPassword,
		Says: Tone(hz, long),
	}
}

// A trunk that registers: with digest, again before it expires, and again when
// the provider has forgotten it. Calls go both ways through Record-Route.
func TestRegisteredTrunk(t *testing.T) {
	t.Parallel()
	provider := StartProvider(t, providerIP)
	other := StartProvider(t, providerIP)
	g := StartGateway(t, GatewayOptions{
		Trunks: fmt.Sprintf(`
    - id: provider
      direction: both
      targets: ["sip:%s"]
      register: {aor: "sip:gateway@%s", expires: 20}
      auth: {username: gateway, password: %s}
      options_ping: 2s
      outbound_proxy: "sip:%s;lr"
      allow_prefixes: ["+4915112345680"]
      caller_id: {mode: fixed, default: "+4930123450"}
      inbound: {cidrs: [%s/32, 127.0.0.1/32]}
    - id: refused
      direction: both
      targets: ["sip:%s"]
      register: {aor: "sip:gateway@%s", expires: 60}
      auth: {username: gateway, password: wrong}
      outbound_proxy: "sip:%s;lr"
      allow_prefixes: ["+4915112345681"]
      caller_id: {mode: fixed, default: "+4930123450"}
      inbound: {cidrs: [127.0.0.8/32]}`,
			provider.Addr(), providerRealm, providerPassword, provider.Addr(), providerIP, other.Addr(), providerRealm, other.Addr()),
		Rules: `
    - {match: {trunk: provider}, action: {type: room, room: from-provider}}`,
	})
	state := func(id string) string {
		for _, x := range g.overview(t).Trunks {
			if x.ID == id {
				return fmt.Sprintf("%s up=%t %s", x.Registered, x.Up, x.Problem)
			}
		}
		return "not there"
	}
	is := func(timeout time.Duration, id, want string) {
		t.Helper()
		eventually(t, timeout, "the trunk "+id+" is "+want, func() error {
			if got := state(id); !strings.HasPrefix(got, want) {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		})
	}
	is(20*time.Second, "provider", "registered up=true")
	is(20*time.Second, "refused", "failed")
	if other.Registered("gateway") != 0 {
		t.Error("a wrong password registers")
	}

	anna := StartPhone(t, provider.phone("+4915112345680", phoneHz))
	eventually(t, 20*time.Second, "the phone registers", func() error { return logged(anna, "200 OK") })

	// In: the phone calls the account, the gateway's binding is found.
	anna.Dial("sip:gateway@" + providerRealm)
	anna.Must("CALL_ESTABLISHED")
	g.Phones(t, "from-provider", 1)
	anna.Hangup()
	g.Phones(t, "from-provider", 0)

	// Out: the gateway answers the provider's challenge.
	before := len(anna.Events())
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	call := map[string]any{"room": "to-provider", "room_name": "to-provider", "sip_trunk_id": "provider", "sip_call_to": "+4915112345680", "participant_identity": "anna", "wait_until_answered": true}
	if err := g.Twirp(ctx, "SIP/CreateSIPParticipant", call, nil); err != nil {
		t.Fatalf("calling out: %v", err)
	}
	if _, ok := anna.SawNext(10*time.Second, "CALL_ESTABLISHED", before); !ok {
		t.Errorf("the phone was not called: %+v", anna.Events()[before:])
	}
	g.Remove(t, "to-provider", "anna")
	if _, ok := anna.SawNext(10*time.Second, "CALL_CLOSED", before); !ok {
		t.Error("the BYE does not find its way through Record-Route")
	}

	// Before it expires, it is refreshed.
	n := provider.Registered("gateway")
	eventually(t, 25*time.Second, "the registration is refreshed", func() error {
		if provider.Registered("gateway") <= n {
			return errNotYet
		}
		return nil
	})

	// The provider is gone for a while, and has forgotten everything.
	provider.Stop()
	eventually(t, 40*time.Second, "the loss of the provider is seen", func() error {
		if s := state("provider"); strings.HasPrefix(s, "registered up=true") {
			return fmt.Errorf("it is %s", s)
		}
		return nil
	})
	provider.Start()
	back := time.Now()
	eventually(t, 60*time.Second, "the gateway registers again", func() error {
		if provider.Registered("gateway") == 0 {
			return errNotYet
		}
		return nil
	})
	t.Logf("registered again after %s", time.Since(back).Round(time.Millisecond))
	is(10*time.Second, "provider", "registered up=true")
}

// Two providers: when the first does not answer, calls go over the second. Two
// phones that both answer are one call.
func TestProviderFailover(t *testing.T) {
	t.Parallel()
	first, second := StartProvider(t, providerIP), StartProvider(t, providerIP)
	busy := FreePort(t, "127.0.0.1")
	g := StartGateway(t, GatewayOptions{Trunks: fmt.Sprintf(`
    - id: pair
      direction: outbound
      targets: ["sip:%s", "sip:%s"]
      auth: {username: gateway, password: %s}
      allow_prefixes: ["+4915112345682"]
      caller_id: {mode: fixed, default: "+4930123450"}
    - id: full
      direction: outbound
      targets: ["sip:127.0.0.1:%d", "sip:%s"]
      auth: {username: gateway, password: %s}
      allow_prefixes: ["+4915112345682"]
      caller_id: {mode: fixed, default: "+4930123450"}`, first.Addr(), second.Addr(), providerPassword, busy, second.Addr(), providerPassword)})
	anna := StartPhone(t, second.phone("+4915112345682", phoneHz))
	eventually(t, 20*time.Second, "the phone registers", func() error { return logged(anna, "200 OK") })
	dial := func(trunk, room string) {
		t.Helper()
		before := len(anna.Events())
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
		defer cancel()
		err := g.Twirp(ctx, "SIP/CreateSIPParticipant", map[string]any{"room": room, "room_name": room, "sip_trunk_id": trunk, "sip_call_to": "+4915112345682", "participant_identity": "anna", "wait_until_answered": true}, nil)
		if err != nil {
			t.Fatalf("calling over %s: %v", trunk, err)
		}
		if _, ok := anna.SawNext(10*time.Second, "CALL_ESTABLISHED", before); !ok {
			t.Errorf("the phone was not called over %s", trunk)
		}
		g.Remove(t, room, "anna")
		if _, ok := anna.SawNext(10*time.Second, "CALL_CLOSED", before); !ok {
			t.Errorf("the call over %s does not end", trunk)
		}
	}

	// The first says that it is full.
	full := Play(t, Scenario{File: "out-503", Port: busy})
	dial("full", "room-503")
	full.Must()

	// The first is gone.
	first.Stop()
	dial("pair", "room-gone")

	// A second phone under the same number, and both answer.
	bert := StartPhone(t, second.phone("+4915112345682", phone2Hz))
	eventually(t, 20*time.Second, "the second phone registers", func() error { return logged(bert, "200 OK") })
	a := len(anna.Events())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
	defer cancel()
	if err := g.Twirp(ctx, "SIP/CreateSIPParticipant", map[string]any{"room": "room-fork", "room_name": "room-fork", "sip_trunk_id": "pair", "sip_call_to": "+4915112345682", "participant_identity": "anna", "wait_until_answered": true}, nil); err != nil {
		t.Fatalf("calling two phones: %v", err)
	}
	talking := func() (n int) {
		for p, from := range map[*Phone]int{anna: a, bert: 0} {
			on := 0
			for _, e := range p.Events()[from:] {
				switch e.Type {
				case "CALL_ESTABLISHED":
					on = 1
				case "CALL_CLOSED":
					on = 0
				}
			}
			n += on
		}
		return n
	}
	eventually(t, 20*time.Second, "one of two phones is in the call", func() error {
		if n := talking(); n != 1 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	if n := len(g.Phones(t, "room-fork", 1)); n != 1 {
		t.Errorf("%d telephones are in the room", n)
	}
	if err := g.API(g.Admin(t), http.MethodGet, "/admin/v1/phones/records?limit=10", nil, nil); err != nil {
		t.Errorf("the call records: %v", err)
	}
}

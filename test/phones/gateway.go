package phones

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/test/harness"
)

// The peers of the tests' trunks, told apart by their addresses. Whoever calls
// from elsewhere is a stranger.
const (
	phoneIP  = "127.0.0.1" // telephones: baresip's sound always comes from here
	plainIP  = "127.0.0.2" // an ordinary trunk
	digestIP = "127.0.0.3" // has to give a password
	secureIP = "127.0.0.4" // SRTP or nothing
	earlyIP  = "127.0.0.5" // hears ringing as sound, 183
	strictIP = "127.0.0.6" // may send media from its own address alone
	stranger = "127.0.0.66"
	scanner  = "127.0.0.67"
)

// Numbers of the house.
const (
	pinNumber  = "+4930200001" // asks for a PIN
	userNumber = "+4930300001" // rings a person
	fixedPIN   = "124689"      // of the room "conference"
)

// registrationSecret makes administrators.
const registrationSecret = "the tests' own"

// A Line is a trunk over which the gateway calls out, to one scenario of SIPp.
type Line struct {
	ID     string
	Number string // the only one that may be called over it
	Addr   netip.AddrPort
}

// A Gateway is a running Trunkhall with telephone lines.
type Gateway struct {
	*harness.Server
	SIP    netip.AddrPort // UDP and TCP
	SIP6   netip.AddrPort
	TLS    netip.AddrPort
	RTP    int // the first of its media ports
	Lines  map[string]Line
	CAFile string // whom to believe that TLS is the gateway's
	admin  *harness.Account
	t      testing.TB
}

// GatewayOptions change what is configured.
type GatewayOptions struct {
	Lines  []string // scenarios to call: a line for each
	Many   bool     // thousands of calls: as many ports as there are
	Limits string   // further entries of sip.limits, YAML
	Ring   string   // how long calls out may ring; empty: 50s
	Phones string   // settings of the trunk "phones", at 127.0.0.1; YAML
	Trunks string   // further entries of sip.trunks, YAML
	Rules  string   // further entries of sip.dispatch, before the others
	SIP    string   // further lines of the section sip
	Rest   string   // further sections
}

// line settings that some scenarios need.
var lineSettings = map[string]string{
	"out-early-prack":   "prack: supported",
	"out-session-timer": "session_expires: 1800",
	"out-digest":        "auth: {username: trunk, password: correct}",
	"out-crossed":       "",
}

// StartGateway starts a gateway, which runs until the test ends.
func StartGateway(t testing.TB, o GatewayOptions) *Gateway {
	t.Helper()
	g := &Gateway{t: t, Lines: map[string]Line{}, RTP: FreePorts(t, "127.0.0.1", 400)}
	last := g.RTP + 399
	if o.Many {
		g.RTP, last = 33000, 39999
	}
	sip := FreePorts(t, "127.0.0.1", 4)
	g.SIP = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sip))
	g.SIP6 = netip.AddrPortFrom(netip.IPv6Loopback(), uint16(FreePort(t, "::1")))
	g.TLS = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sip+2))
	cert, key := certificate(t)
	g.CAFile = cert

	var trunks strings.Builder
	for i, scenario := range o.Lines {
		l := Line{
			ID:     scenario,
			Number: fmt.Sprintf("+49151123456%02d", i),
			Addr:   netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(FreePort(t, "127.0.0.1"))),
		}
		g.Lines[scenario] = l
		fmt.Fprintf(&trunks, `
    - id: %s
      direction: outbound
      targets: ["sip:%s"]
      allow_prefixes: ["%s"]
      caller_id: {mode: fixed, default: "+4930123450"}
      %s`, l.ID, l.Addr, l.Number, lineSettings[scenario])
	}
	g.Server = harness.StartWith(t, harness.Options{Config: fmt.Sprintf(`
homeserver:
  rate_limits: false
  registration_shared_secret: "%s"
%s
sip:
  listen: ["udp://%s", "tcp://%s", "udp://%s", "tcp://%s", "tls://%s"]
  tls_cert_file: %s
  tls_key_file: %s
  rtp_ports: %d-%d
  default_country: DE
  limits: {new_account: 0s, user_hourly: 1000, user_concurrent: 50, %s}
  outbound: {allow_prefixes: ["+49151"], ring_timeout: %s}
  rooms: [{room: conference, title: Conference, pin: "%s"}]
%s
  trunks:
    - {id: phones, direction: inbound, inbound: {cidrs: [%s/32]}, %s}
    - {id: plain, direction: inbound, inbound: {cidrs: [%s/32, "::1/128"]}}
    - {id: digest, direction: inbound, inbound: {cidrs: [%s/32], digest: true}, auth: {username: trunk, password: correct, algorithms: [MD5]}}
    - {id: secure, direction: inbound, inbound: {cidrs: [%s/32]}, srtp: require, codecs: [PCMU, PCMA, G722]}
    - {id: early, direction: inbound, inbound: {cidrs: [%s/32]}, early_media: true}
    - {id: strict, direction: inbound, inbound: {cidrs: [%s/32]}}%s%s
  dispatch:%s
    - {match: {to: "%s"}, action: {type: pin, prompt_lang: en, attempts: 3, lockout: 10m}}
    - {match: {to: "%s"}, action: {type: user, user: "@bob:localhost", timeout: 20s}}
    - {match: {to: "+4930100*"}, action: {type: callee, room: call}}
`, registrationSecret, o.Rest, g.SIP, g.SIP, g.SIP6, g.SIP6, g.TLS, cert, key, g.RTP, last, or(o.Limits, "max_calls: 200"), or(o.Ring, "50s"), fixedPIN, o.SIP,
		phoneIP, or(o.Phones, "codecs: [PCMU, PCMA, G722, opus]"), plainIP, digestIP, secureIP, earlyIP, strictIP, trunks.String(), o.Trunks, o.Rules, pinNumber, userNumber)})
	return g
}

var numbersUsed atomic.Int32

// Room returns a number of the house that nobody else uses, and the room that it
// leads to.
func (g *Gateway) Room() (number, room string) {
	number = fmt.Sprintf("+4930100%04d", numbersUsed.Add(1))
	return number, "call_" + number
}

// URI is how a phone dials a number at the gateway.
func (g *Gateway) URI(number string) string { return fmt.Sprintf("sip:%s@%s", number, g.SIP) }

// A Participant is one as LiveKit's server API tells.
type Participant struct {
	SID        string            `json:"sid"`
	Identity   string            `json:"identity"`
	Name       string            `json:"name"`
	Kind       string            `json:"kind"`
	Attributes map[string]string `json:"attributes"`
	JoinedAt   string            `json:"joinedAt"`
}

// Participants are those of a room; a room that does not exist has none.
func (g *Gateway) Participants(room string) []Participant {
	g.t.Helper()
	var r struct {
		Participants []Participant `json:"participants"`
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := g.Twirp(ctx, "RoomService/ListParticipants", map[string]any{"room": room}, &r)
	if api, ok := err.(*harness.APIError); ok && api.Status == http.StatusNotFound {
		return nil
	}
	if err != nil {
		g.t.Errorf("listing the participants of %s: %v", room, err)
	}
	return r.Participants
}

// Phones waits until exactly n telephones are in a room.
func (g *Gateway) Phones(t testing.TB, room string, n int) []Participant {
	t.Helper()
	var phones []Participant
	eventually(t, 30*time.Second, fmt.Sprintf("%d telephones are in %s", n, room), func() error {
		phones = nil
		for _, p := range g.Participants(room) {
			if p.Kind == "SIP" {
				phones = append(phones, p)
			}
		}
		if len(phones) != n {
			return fmt.Errorf("there are %d: %+v", len(phones), phones)
		}
		return nil
	})
	return phones
}

// Remove throws somebody out of a room.
func (g *Gateway) Remove(t testing.TB, room, identity string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := g.Twirp(ctx, "RoomService/RemoveParticipant", map[string]any{"room": room, "identity": identity}, nil); err != nil {
		t.Errorf("removing %s: %v", identity, err)
	}
}

var making sync.Mutex

// Admin is an administrator's account.
func (g *Gateway) Admin(t testing.TB) *harness.Account {
	t.Helper()
	making.Lock()
	defer making.Unlock()
	if g.admin != nil {
		return g.admin
	}
	get := func(method string, body any, result any) {
		var in io.Reader
		if body != nil {
			b, _ := json.Marshal(body)
			in = bytes.NewReader(b)
		}
		req, err := http.NewRequest(method, g.Homeserver+"/_synapse/admin/v1/register", in)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		if err := json.Unmarshal(b, result); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("making an administrator: %s %s", res.Status, b)
		}
	}
	var nonce struct{ Nonce string }
	get(http.MethodGet, nil, &nonce)
	mac := hmac.New(sha1.New, []byte(registrationSecret))
	io.WriteString(mac, strings.Join([]string{nonce.Nonce, "operator", "operator secret", "admin"}, "\x00"))
	g.admin = &harness.Account{Homeserver: g.Homeserver}
	get(http.MethodPost, map[string]any{
		"nonce": nonce.Nonce, "username": "operator", "password": "operator secret", "admin": true, "mac": hex.EncodeToString(mac.Sum(nil)),
	}, g.admin)
	return g.admin
}

// API calls Trunkhall's own API as an account; path is below /_trunkhall.
func (g *Gateway) API(a *harness.Account, method, path string, body, result any) error {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, g.Homeserver+"/_trunkhall"+path, in)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+a.AccessToken)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode == http.StatusTooManyRequests && method == http.MethodGet {
		time.Sleep(500 * time.Millisecond) // tests ask more often than people
		return g.API(a, method, path, body, result)
	}
	if res.StatusCode != http.StatusOK {
		e := &harness.APIError{Request: method + " " + path, Status: res.StatusCode}
		if json.Unmarshal(b, e) != nil {
			e.Message = string(b)
		}
		return e
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(b, result)
}

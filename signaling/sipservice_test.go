package signaling

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/livekit/protocol/livekit"
	"github.com/livekit/protocol/utils/xtwirp"
	"github.com/twitchtv/twirp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// fakePhones is a gateway without telephones: trunks and rules are kept, a call
// goes through the legs it was given.
type fakePhones struct {
	Phones // what is not below is not used

	mu       sync.Mutex // guards the following fields
	trunks   map[string]call.Trunk
	rules    []call.DispatchRule
	dialled  []call.DialRequest
	script   []call.Leg // what becomes of a call, one state after the other
	dialErr  error
	at       int
	hungUp   []call.LegID
	pressed  []string
	onDigit  func(call.RoomName, call.Identity, byte)
	legs     map[call.Identity]call.Leg
	transfer func(ctx context.Context, to string, headers map[string]string) error
}

func (f *fakePhones) OnDigit(g func(call.RoomName, call.Identity, byte)) { f.onDigit = g }

func (f *fakePhones) Trunks() []call.TrunkState {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []call.TrunkState
	for _, t := range f.trunks {
		t.Auth.Password = ""
		out = append(out, call.TrunkState{Trunk: t, Source: "api"})
	}
	return out
}

func (f *fakePhones) SetTrunk(_ context.Context, t call.Trunk) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if strings.HasPrefix(t.ID, "config") {
		return fmt.Errorf("trunk %s is in the configuration file: %w", t.ID, call.ErrConflict)
	}
	if was := f.trunks[t.ID]; t.Auth.Password == "" && t.Auth.Username == was.Auth.Username {
		t.Auth.Password = was.Auth.Password
	}
	f.trunks[t.ID] = t
	return nil
}

func (f *fakePhones) DeleteTrunk(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.trunks, id)
	return nil
}

func (f *fakePhones) Rules() []call.DispatchRule {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.rules)
}

func (f *fakePhones) SetRule(_ context.Context, r call.DispatchRule) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.rules {
		if f.rules[i].ID == r.ID {
			f.rules[i] = r
			return nil
		}
	}
	f.rules = append(f.rules, r)
	return nil
}

func (f *fakePhones) DeleteRule(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = slices.DeleteFunc(f.rules, func(r call.DispatchRule) bool { return r.ID == id })
	return nil
}

func (f *fakePhones) Dial(_ context.Context, r call.DialRequest) (call.Leg, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dialled = append(f.dialled, r)
	f.at = 0
	if len(f.script) == 0 {
		return call.Leg{}, f.dialErr
	}
	return f.script[0], f.dialErr
}

func (f *fakePhones) Wait(ctx context.Context, _ call.LegID, seen call.LegState) (call.Leg, error) {
	f.mu.Lock()
	if f.script[f.at].State == seen && f.at+1 < len(f.script) {
		f.at++
	}
	leg := f.script[f.at]
	f.mu.Unlock()
	if leg.State == seen {
		<-ctx.Done() // it goes on ringing
	}
	return leg, nil
}

func (f *fakePhones) LegOf(_ call.RoomName, id call.Identity) (call.Leg, bool) {
	leg, ok := f.legs[id]
	return leg, ok
}

func (f *fakePhones) Hangup(_ context.Context, id call.LegID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hungUp = append(f.hungUp, id)
	return nil
}

func (f *fakePhones) Transfer(ctx context.Context, _ call.LegID, to string, headers map[string]string) error {
	return f.transfer(ctx, to, headers)
}

func (f *fakePhones) DigitsTo(room call.RoomName, to []call.Identity, digits string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pressed = append(f.pressed, fmt.Sprint(room, to, digits))
}

func withPhones(f *fakePhones) func(*Server) {
	if f.trunks == nil {
		f.trunks = make(map[string]call.Trunk)
	}
	return func(s *Server) { s.SetPhones(f) }
}

// phones returns LiveKit's own client of the SIP service, for the claims of a token.
func (ts *testServer) phones(grants object) livekit.SIP {
	token := forge(plainHeader, plainClaims(grants), testSecret)
	return livekit.NewSIPProtobufClient(ts.http.URL, bearer(token), xtwirp.DefaultClientOptions()...)
}

var (
	sipAdminGrant = object{"sip": object{"admin": true}}
	sipCallGrant  = object{"sip": object{"call": true}}
)

// codeOf returns the Twirp code of an error, as a client without LiveKit's
// interceptors reads it.
func codeOf(err error) twirp.ErrorCode {
	var e twirp.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return ""
}

func TestSIPTrunks(t *testing.T) {
	f := &fakePhones{}
	ts := newTestServer(t, withPhones(f))
	api, ctx := ts.phones(sipAdminGrant), context.Background()

	require := livekit.SIPMediaEncryption_SIP_MEDIA_ENCRYPT_REQUIRE
	in, err := api.CreateSIPInboundTrunk(ctx, &livekit.CreateSIPInboundTrunkRequest{Trunk: &livekit.SIPInboundTrunkInfo{
		Name: "provider", Metadata: "m", Numbers: []string{"+4930123456"}, AllowedAddresses: []string{"203.0.113.7", "198.51.100.0/24"},
		AllowedNumbers: []string{"+4989"}, AuthUsername: "u", AuthPassword: "secret", AuthRealm: "example.net",
		MaxCallDuration: durationpb.New(time.Hour),
		Media:           &livekit.SIPMediaConfig{OnlyListedCodecs: true, Codecs: []*livekit.SIPCodec{{Name: "PCMA", Rate: 8000}, {Name: "g722", Rate: 16000}}, Encryption: &require},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := call.Trunk{
		ID: in.GetSipTrunkId(), Name: "provider", Metadata: "m", Direction: "inbound",
		In:   call.TrunkInbound{CIDRs: []string{"203.0.113.7/32", "198.51.100.0/24"}, Numbers: []string{"+4930123456"}, From: []string{"+4989"}, Digest: true},
		Auth: call.TrunkAuth{Username: "u", Password: "secret", Realm: "example.net"}, MaxDuration: time.Hour,
		Codecs: []string{"PCMA", "G722"}, SRTP: "require",
	}
	if got := f.trunks[in.GetSipTrunkId()]; !reflect.DeepEqual(got, want) {
		t.Errorf("the gateway was given %+v, want %+v", got, want)
	}
	if !strings.HasPrefix(in.GetSipTrunkId(), "ST_") || in.GetAuthPassword() != "" || in.GetAllowedAddresses()[0] != "203.0.113.7" ||
		in.GetMedia().GetEncryption() != require || len(in.GetMedia().GetCodecs()) != 2 || in.GetMaxCallDuration().AsDuration() != time.Hour {
		t.Errorf("answered %s", in)
	}

	out, err := api.CreateSIPOutboundTrunk(ctx, &livekit.CreateSIPOutboundTrunkRequest{Trunk: &livekit.SIPOutboundTrunkInfo{
		Name: "out", Address: "sip.example.net:5070", Transport: livekit.SIPTransport_SIP_TRANSPORT_TLS,
		Numbers: []string{"+4930123450", "+4930123451"}, AuthUsername: "u", AuthPassword: "secret", Headers: map[string]string{"X-Account": "7"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want = call.Trunk{
		ID: out.GetSipTrunkId(), Name: "out", Direction: "outbound", Targets: []string{"sip:sip.example.net:5070;transport=tls"},
		Auth: call.TrunkAuth{Username: "u", Password: "secret"}, Headers: map[string]string{"X-Account": "7"},
		CallerID: call.TrunkCallerID{Mode: "fixed", Default: "+4930123450", Numbers: []string{"+4930123451"}},
	}
	if got := f.trunks[out.GetSipTrunkId()]; !reflect.DeepEqual(got, want) {
		t.Errorf("the gateway was given %+v, want %+v", got, want)
	}

	// One that does both is in both lists.
	f.trunks["config-both"] = call.Trunk{ID: "config-both", Direction: "both", Targets: []string{"sip:pbx.example;transport=udp"}}
	ins, err := api.ListSIPInboundTrunk(ctx, &livekit.ListSIPInboundTrunkRequest{})
	if err != nil || len(ins.GetItems()) != 2 {
		t.Errorf("inbound trunks %s %v", ins, err)
	}
	outs, err := api.ListSIPOutboundTrunk(ctx, &livekit.ListSIPOutboundTrunkRequest{TrunkIds: []string{"none", out.GetSipTrunkId()}})
	if err != nil || len(outs.GetItems()) != 2 || outs.GetItems()[0].GetSipTrunkId() != "" || outs.GetItems()[1].GetAddress() != "sip.example.net:5070" ||
		outs.GetItems()[1].GetTransport() != livekit.SIPTransport_SIP_TRANSPORT_TLS || len(outs.GetItems()[1].GetNumbers()) != 2 {
		t.Errorf("outbound trunks by id %s %v", outs, err)
	}
	//nolint:staticcheck // still in the SDKs
	if old, err := api.ListSIPTrunk(ctx, &livekit.ListSIPTrunkRequest{}); err != nil || len(old.GetItems()) != 3 {
		t.Errorf("old list %s %v", old, err)
	}
	page, err := api.ListSIPInboundTrunk(ctx, &livekit.ListSIPInboundTrunkRequest{Page: &livekit.Pagination{Limit: 1}})
	if err != nil || len(page.GetItems()) != 1 {
		t.Errorf("a page of one is %s %v", page, err)
	}
	if next, err := api.ListSIPInboundTrunk(ctx, &livekit.ListSIPInboundTrunkRequest{Page: &livekit.Pagination{AfterId: page.GetItems()[0].GetSipTrunkId()}}); err != nil || len(next.GetItems()) != 1 {
		t.Errorf("the rest is %s %v", next, err)
	}

	// An update keeps what it does not mention, the password first of all.
	up, err := api.UpdateSIPInboundTrunk(ctx, &livekit.UpdateSIPInboundTrunkRequest{SipTrunkId: in.GetSipTrunkId(), Action: &livekit.UpdateSIPInboundTrunkRequest_Update{
		Update: &livekit.SIPInboundTrunkUpdate{Name: new("renamed"), Numbers: &livekit.ListUpdate{Add: []string{"+4930123457"}}},
	}})
	got := f.trunks[in.GetSipTrunkId()]
	if err != nil || up.GetName() != "renamed" || got.Auth.Password != "secret" || len(got.In.Numbers) != 2 || got.SRTP != "require" {
		t.Errorf("updated to %s, %+v, %v", up, got, err)
	}
	if _, err := api.UpdateSIPInboundTrunk(ctx, &livekit.UpdateSIPInboundTrunkRequest{SipTrunkId: in.GetSipTrunkId(), Action: &livekit.UpdateSIPInboundTrunkRequest_Update{
		Update: &livekit.SIPInboundTrunkUpdate{AuthUsername: new("other")},
	}}); codeOf(err) != twirp.InvalidArgument {
		t.Errorf("a new user with the old one's password: %v", err)
	}
	rep, err := api.UpdateSIPOutboundTrunk(ctx, &livekit.UpdateSIPOutboundTrunkRequest{SipTrunkId: out.GetSipTrunkId(), Action: &livekit.UpdateSIPOutboundTrunkRequest_Replace{
		Replace: &livekit.SIPOutboundTrunkInfo{Address: "2001:db8::1", Numbers: []string{"+491"}, AuthUsername: "u"},
	}})
	got = f.trunks[out.GetSipTrunkId()]
	if err != nil || got.Targets[0] != "sip:[2001:db8::1]" || got.Auth.Password != "secret" || len(got.Headers) != 0 || rep.GetName() != "" {
		t.Errorf("replaced by %s, %+v, %v", rep, got, err)
	}
	if _, err := api.UpdateSIPOutboundTrunk(ctx, &livekit.UpdateSIPOutboundTrunkRequest{SipTrunkId: "config-both", Action: &livekit.UpdateSIPOutboundTrunkRequest_Update{
		Update: &livekit.SIPOutboundTrunkUpdate{Name: new("x"), Numbers: &livekit.ListUpdate{Set: []string{"+491"}}},
	}}); codeOf(err) != twirp.FailedPrecondition {
		t.Errorf("changing a trunk of the configuration: %v", err)
	}

	if g, err := api.GetSIPOutboundTrunk(ctx, &livekit.GetSIPOutboundTrunkRequest{SipTrunkId: out.GetSipTrunkId()}); err != nil || g.GetTrunk().GetAddress() != "[2001:db8::1]" {
		t.Errorf("got %s %v", g, err)
	}
	if _, err := api.GetSIPInboundTrunk(ctx, &livekit.GetSIPInboundTrunkRequest{SipTrunkId: out.GetSipTrunkId()}); codeOf(err) != twirp.NotFound {
		t.Errorf("an outbound trunk asked for as inbound: %v", err)
	}
	if d, err := api.DeleteSIPTrunk(ctx, &livekit.DeleteSIPTrunkRequest{SipTrunkId: out.GetSipTrunkId()}); err != nil || d.GetSipTrunkId() != out.GetSipTrunkId() {
		t.Errorf("deleted %s %v", d, err)
	}
	if _, err := api.DeleteSIPTrunk(ctx, &livekit.DeleteSIPTrunkRequest{SipTrunkId: out.GetSipTrunkId()}); codeOf(err) != twirp.NotFound {
		t.Errorf("deleting it again: %v", err)
	}
}

// TestSIPRefusals checks that nothing is taken that has no effect.
func TestSIPRefusals(t *testing.T) {
	f := &fakePhones{}
	ts := newTestServer(t, withPhones(f))
	api, ctx := ts.phones(sipAdminGrant), context.Background()
	for name, change := range map[string]func(*livekit.SIPInboundTrunkInfo){
		"allowed_addresses must be set": func(i *livekit.SIPInboundTrunkInfo) { i.AllowedAddresses = nil; i.Numbers = []string{"+49"} },
		"invalid allowed address":       func(i *livekit.SIPInboundTrunkInfo) { i.AllowedAddresses = []string{"pbx.example"} },
		"auth_username":                 func(i *livekit.SIPInboundTrunkInfo) { i.AuthUsername = "u" },
		"krisp_enabled":                 func(i *livekit.SIPInboundTrunkInfo) { i.KrispEnabled = true },
		"headers_to_attributes":         func(i *livekit.SIPInboundTrunkInfo) { i.HeadersToAttributes = map[string]string{"X-A": "a"} },
		"include_headers":               func(i *livekit.SIPInboundTrunkInfo) { i.IncludeHeaders = livekit.SIPHeaderOptions_SIP_ALL_HEADERS },
		"ringing_timeout":               func(i *livekit.SIPInboundTrunkInfo) { i.RingingTimeout = durationpb.New(time.Second) },
		"media.codecs": func(i *livekit.SIPInboundTrunkInfo) {
			i.Media = &livekit.SIPMediaConfig{Codecs: []*livekit.SIPCodec{{Name: "AMR-WB", Rate: 16000}}}
		},
		"media.media_timeout": func(i *livekit.SIPInboundTrunkInfo) {
			i.Media = &livekit.SIPMediaConfig{MediaTimeout: durationpb.New(time.Second)}
		},
	} {
		info := &livekit.SIPInboundTrunkInfo{AllowedAddresses: []string{"203.0.113.7"}}
		change(info)
		if _, err := api.CreateSIPInboundTrunk(ctx, &livekit.CreateSIPInboundTrunkRequest{Trunk: info}); codeOf(err) != twirp.InvalidArgument || !strings.Contains(err.Error(), name) {
			t.Errorf("inbound, %s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*livekit.SIPOutboundTrunkInfo){
		"trunk address":       func(i *livekit.SIPOutboundTrunkInfo) { i.Address = "sip:x@y" },
		"neither a host name": func(i *livekit.SIPOutboundTrunkInfo) { i.Address = "a.example>\r\nX" },
		"no valid port":       func(i *livekit.SIPOutboundTrunkInfo) { i.Address = "a.example:70000" },
		"from_host":           func(i *livekit.SIPOutboundTrunkInfo) { i.FromHost = "a.example" },
		"destination_country": func(i *livekit.SIPOutboundTrunkInfo) { i.DestinationCountry = "DE" },
		"only headers whose": func(i *livekit.SIPOutboundTrunkInfo) {
			i.Headers = map[string]string{"P-Asserted-Identity": "<sip:1@x>"}
		},
		"is no number":           func(i *livekit.SIPOutboundTrunkInfo) { i.Numbers = []string{"1>\r\nVia: x"} },
		`numbers "*"`:            func(i *livekit.SIPOutboundTrunkInfo) { i.Numbers = []string{"*"} },
		"no trunk numbers":       func(i *livekit.SIPOutboundTrunkInfo) { i.Numbers = nil },
		"only_listed_codecs wit": func(i *livekit.SIPOutboundTrunkInfo) { i.Media = &livekit.SIPMediaConfig{OnlyListedCodecs: true} },
	} {
		info := &livekit.SIPOutboundTrunkInfo{Address: "sip.example.net", Numbers: []string{"+4930"}}
		change(info)
		if _, err := api.CreateSIPOutboundTrunk(ctx, &livekit.CreateSIPOutboundTrunkRequest{Trunk: info}); codeOf(err) != twirp.InvalidArgument || !strings.Contains(err.Error(), name) {
			t.Errorf("outbound, %s: %v", name, err)
		}
	}
	if len(f.trunks) != 0 {
		t.Errorf("something was kept: %v", f.trunks)
	}
}

func directRule(room, pin string) *livekit.SIPDispatchRule {
	return &livekit.SIPDispatchRule{Rule: &livekit.SIPDispatchRule_DispatchRuleDirect{
		DispatchRuleDirect: &livekit.SIPDispatchRuleDirect{RoomName: room, Pin: pin},
	}}
}

func TestSIPDispatchRules(t *testing.T) {
	f := &fakePhones{rules: []call.DispatchRule{{ID: "config-1", Match: call.DispatchMatch{To: "+49301"}, Action: call.DispatchAction{Type: "user", User: "@a:b"}}}}
	ts := newTestServer(t, withPhones(f))
	f.trunks["ST_in"] = call.Trunk{ID: "ST_in", Direction: "inbound"}
	api, ctx := ts.phones(sipAdminGrant), context.Background()

	rule, err := api.CreateSIPDispatchRule(ctx, &livekit.CreateSIPDispatchRuleRequest{DispatchRule: &livekit.SIPDispatchRuleInfo{
		Rule: directRule("standup", "4711"), TrunkIds: []string{"ST_in"}, Numbers: []string{"+49302"}, InboundNumbers: []string{"+4989"},
		Name: "n", Metadata: "m", Attributes: map[string]string{"k": "v"}, HidePhoneNumber: true,
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := call.DispatchRule{
		ID: rule.GetSipDispatchRuleId(), Name: "n",
		Match:  call.DispatchMatch{Trunks: []string{"ST_in"}, Tos: []string{"+49302"}, Froms: []string{"+4989"}},
		Action: call.DispatchAction{Type: "room", Room: "standup", PIN: "4711", Metadata: "m", Attrs: map[string]string{"k": "v"}, HideNumber: true},
	}
	if !strings.HasPrefix(rule.GetSipDispatchRuleId(), "SDR_") || !reflect.DeepEqual(f.rules[1], want) {
		t.Errorf("made %+v, want %+v", f.rules[1], want)
	}
	// Old clients put the rule's parts beside it.
	old, err := api.CreateSIPDispatchRule(ctx, &livekit.CreateSIPDispatchRuleRequest{Name: "old", Rule: &livekit.SIPDispatchRule{ //nolint:staticcheck // on purpose
		Rule: &livekit.SIPDispatchRule_DispatchRuleIndividual{DispatchRuleIndividual: &livekit.SIPDispatchRuleIndividual{RoomPrefix: "call-"}},
	}})
	if err != nil || f.rules[2].Action.Type != "individual" || !f.rules[2].Action.Randomize || old.GetRule().GetDispatchRuleIndividual().GetRoomPrefix() != "call-" {
		t.Errorf("made %s %v", old, err)
	}
	for name, r := range map[string]*livekit.SIPDispatchRuleInfo{
		"already exists":         {Rule: directRule("other", "4711"), TrunkIds: []string{"ST_in"}, Numbers: []string{"49302"}, InboundNumbers: []string{"+4989"}},
		"no trunk for inbound":   {Rule: directRule("other", ""), TrunkIds: []string{"ST_gone"}},
		"room_name: needed":      {Rule: directRule("", "")},
		"pin: digits only":       {Rule: directRule("other", "secret")},
		"room_preset":            {Rule: directRule("other", "1"), RoomPreset: "p"},
		"room_config":            {Rule: directRule("other", "1"), RoomConfig: &livekit.RoomConfiguration{EmptyTimeout: 1}},
		"media: set it at":       {Rule: directRule("other", "1"), Media: &livekit.SIPMediaConfig{OnlyListedCodecs: true}},
		"dispatch_rule_direct, ": {Rule: &livekit.SIPDispatchRule{}},
	} {
		if _, err := api.CreateSIPDispatchRule(ctx, &livekit.CreateSIPDispatchRuleRequest{DispatchRule: r}); codeOf(err) != twirp.InvalidArgument || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The same calls with another PIN are another rule: what is entered decides.
	if _, err := api.CreateSIPDispatchRule(ctx, &livekit.CreateSIPDispatchRuleRequest{DispatchRule: &livekit.SIPDispatchRuleInfo{
		Rule: directRule("other", "4712"), TrunkIds: []string{"ST_in"}, Numbers: []string{"+49302"}, InboundNumbers: []string{"+4989"},
	}}); err != nil {
		t.Errorf("another PIN: %v", err)
	}
	up, err := api.UpdateSIPDispatchRule(ctx, &livekit.UpdateSIPDispatchRuleRequest{SipDispatchRuleId: rule.GetSipDispatchRuleId(), Action: &livekit.UpdateSIPDispatchRuleRequest_Update{
		Update: &livekit.SIPDispatchRuleUpdate{Name: new("renamed"), TrunkIds: &livekit.ListUpdate{Clear: true}},
	}})
	if err != nil || up.GetName() != "renamed" || len(up.GetTrunkIds()) != 0 || up.GetRule().GetDispatchRuleDirect().GetPin() != "4711" {
		t.Errorf("updated to %s %v", up, err)
	}
	list, err := api.ListSIPDispatchRule(ctx, &livekit.ListSIPDispatchRuleRequest{})
	if err != nil || len(list.GetItems()) != 4 || list.GetItems()[0].GetRule() != nil {
		t.Errorf("rules %s %v", list, err)
	}
	if d, err := api.DeleteSIPDispatchRule(ctx, &livekit.DeleteSIPDispatchRuleRequest{SipDispatchRuleId: rule.GetSipDispatchRuleId()}); err != nil || d.GetName() != "renamed" {
		t.Errorf("deleted %s %v", d, err)
	}
	if _, err := api.DeleteSIPDispatchRule(ctx, &livekit.DeleteSIPDispatchRuleRequest{SipDispatchRuleId: rule.GetSipDispatchRuleId()}); codeOf(err) != twirp.NotFound {
		t.Errorf("deleting it again: %v", err)
	}
}

func legs(states ...call.Leg) []call.Leg {
	for i := range states {
		states[i].ID, states[i].Identity = "SCL_1", "sip_1"
	}
	return states
}

func TestCreateSIPParticipant(t *testing.T) {
	f := &fakePhones{}
	ts := newTestServer(t, withPhones(f))
	f.trunks["ST_out"] = call.Trunk{ID: "ST_out", Direction: "outbound"}
	api, ctx := ts.phones(sipCallGrant), context.Background()

	f.script = legs(call.Leg{State: call.LegTrying}, call.Leg{State: call.LegRinging}, call.Leg{State: call.LegAnswered})
	request := func() *livekit.CreateSIPParticipantRequest {
		return &livekit.CreateSIPParticipantRequest{
			SipTrunkId: "ST_out", SipCallTo: "+4930999", SipNumber: "+49301", RoomName: "standup", ParticipantIdentity: "bob", ParticipantName: "Bob",
			ParticipantMetadata: "m", ParticipantAttributes: map[string]string{"k": "v"}, Dtmf: "1w2#", PlayDialtone: true, HidePhoneNumber: true, //nolint:staticcheck // SDKs set it
			Headers: map[string]string{"X-Order": "7"}, RingingTimeout: durationpb.New(20 * time.Second), MaxCallDuration: durationpb.New(time.Hour),
			WaitUntilAnswered: true,
		}
	}
	info, err := api.CreateSIPParticipant(ctx, request())
	if err != nil || info.GetSipCallId() != "SCL_1" || info.GetParticipantIdentity() != "sip_1" || info.GetRoomName() != "standup" {
		t.Errorf("called %s %v", info, err)
	}
	want := call.DialRequest{
		Room: "standup", By: testKey, Number: "+4930999", Trunk: "ST_out", From: "+49301", Identity: "bob", Name: "Bob", Metadata: "m",
		Attrs: map[string]string{"k": "v"}, Headers: map[string]string{"X-Order": "7"}, DTMF: "1w2#", Dialtone: true, HideNumber: true,
		Ringing: 20 * time.Second, Longest: time.Hour,
	}
	if !reflect.DeepEqual(f.dialled[0], want) {
		t.Errorf("the gateway was asked for %+v, want %+v", f.dialled[0], want)
	}

	// A trunk that comes with the call.
	inline := request()
	inline.SipTrunkId, inline.Trunk = "", &livekit.SIPOutboundConfig{Hostname: "pbx.example", Transport: livekit.SIPTransport_SIP_TRANSPORT_TCP, AuthUsername: "u", AuthPassword: "p"}
	if _, err := api.CreateSIPParticipant(ctx, inline); err != nil {
		t.Error(err)
	}
	if via := f.dialled[1].Via; via == nil || via.Targets[0] != "sip:pbx.example;transport=tcp" || via.Auth.Password != "p" || via.CallerID.Default != "+49301" {
		t.Errorf("called over %+v", via)
	}

	for _, c := range []struct {
		name  string
		end   call.Leg
		err   error
		code  string
		http  int
		sip   livekit.SIPStatusCode
		words string
	}{
		{"busy", call.Leg{Cause: call.CauseBusy, Code: 486}, nil, "failed_precondition", 412, 486, "Busy Here"},
		{"busy everywhere", call.Leg{Cause: call.CauseBusy, Code: 600}, nil, "resource_exhausted", 429, 600, "Global Busy Everywhere"},
		{"no answer in our time", call.Leg{Cause: call.CauseNoAnswer}, nil, "deadline_exceeded", 408, 408, "Request Timeout"},
		{"unavailable", call.Leg{Cause: call.CauseNoAnswer, Code: 480}, nil, "failed_precondition", 412, 480, "Temporarily Unavailable"},
		{"no such number", call.Leg{Cause: call.CauseWrongNumber, Code: 404}, nil, "not_found", 404, 404, "Notfound"},
		{"declined", call.Leg{Cause: call.CauseRejected, Code: 603}, nil, "permission_denied", 403, 603, "Global Decline"},
		{"no line", call.Leg{Cause: call.CauseNoLine}, nil, "failed_precondition", 412, 503, "Service Unavailable"},
		{"a code nobody knows", call.Leg{Cause: call.CauseFailed, Code: 477}, nil, "invalid_argument", 400, 477, "Status 477"},
		{"not allowed later", call.Leg{Cause: call.CauseNotAllowed, Text: "budget used up"}, nil, "permission_denied", 403, 0, "budget used up"},
		{"not allowed", call.Leg{}, fmt.Errorf("no prefix allows it: %w", call.ErrForbidden), "permission_denied", 403, 0, "no prefix allows it"},
		{"no number", call.Leg{}, fmt.Errorf("no number: %w", call.ErrInvalid), "invalid_argument", 400, 0, "no number"},
		{"too many calls", call.Leg{}, fmt.Errorf("3 calls at a time: %w", call.ErrUnavailable), "resource_exhausted", 429, 0, "3 calls"},
		{"our fault", call.Leg{}, errors.New("disk on fire"), "internal", 500, 0, "internal error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.end.State = call.LegEnded
			f.script, f.dialErr = legs(call.Leg{State: call.LegTrying}, c.end), c.err
			if c.err != nil {
				f.script = nil
			}
			_, err := api.CreateSIPParticipant(ctx, request())
			if st := livekit.SIPStatusFrom(err); st.GetCode() != c.sip || c.sip != 0 && st.GetStatus() != c.words {
				t.Errorf("the Go SDK reads SIP status %d %q of %v", st.GetCode(), st.GetStatus(), err)
			}
			// What SDKs of other languages get.
			body, _ := json.Marshal(map[string]any{"sip_trunk_id": "ST_out", "sip_call_to": "+4930999", "room_name": "standup", "wait_until_answered": true})
			r, _ := http.NewRequest(http.MethodPost, ts.http.URL+"/twirp/livekit.SIP/CreateSIPParticipant", strings.NewReader(string(body)))
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Authorization", "Bearer "+forge(plainHeader, plainClaims(sipCallGrant), testSecret))
			status, text := ts.do(r)
			var e struct {
				Code, Msg string
				Meta      map[string]string
			}
			if err := json.Unmarshal([]byte(text), &e); err != nil {
				t.Fatal(text, err)
			}
			if status != c.http || e.Code != c.code {
				t.Errorf("answered %d %s, want %d %s", status, text, c.http, c.code)
			}
			if c.sip != 0 && (e.Meta["sip_status_code"] != fmt.Sprint(int(c.sip)) || e.Meta["sip_status"] != c.words) {
				t.Errorf("metadata %v", e.Meta)
			}
			if c.sip == 0 && !strings.Contains(e.Msg, c.words) {
				t.Errorf("message %q, want %q", e.Msg, c.words)
			}
		})
	}
	f.dialErr = nil

	t.Run("nobody waits any more", func(t *testing.T) {
		f.script = legs(call.Leg{State: call.LegTrying}, call.Leg{State: call.LegRinging})
		impatient, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if _, err := api.CreateSIPParticipant(impatient, request()); err == nil {
			t.Error("it was answered")
		}
		eventually(t, "the call of somebody who went away is hung up", func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return slices.Contains(f.hungUp, "SCL_1")
		})
	})
	t.Run("without waiting", func(t *testing.T) {
		f.script = legs(call.Leg{State: call.LegTrying})
		r := request()
		r.WaitUntilAnswered = false
		if info, err := api.CreateSIPParticipant(ctx, r); err != nil || info.GetSipCallId() != "SCL_1" {
			t.Errorf("called %s %v", info, err)
		}
	})

	calls := len(f.dialled)
	for name, change := range map[string]func(*livekit.CreateSIPParticipantRequest){
		"missing room name":  func(r *livekit.CreateSIPParticipantRequest) { r.RoomName = "" },
		"missing sip callee": func(r *livekit.CreateSIPParticipantRequest) { r.SipCallTo = "" },
		"does not exist":     func(r *livekit.CreateSIPParticipantRequest) { r.SipTrunkId = "ST_gone" },
		"display_name":       func(r *livekit.CreateSIPParticipantRequest) { r.DisplayName = new("CEO") },
		"sip_from_header":    func(r *livekit.CreateSIPParticipantRequest) { r.SipFromHeader = &livekit.SIPNamedDest{} },
		"sip_request_uri":    func(r *livekit.CreateSIPParticipantRequest) { r.SipRequestUri = &livekit.SIPRequestDest{} },
		"to_user_override":   func(r *livekit.CreateSIPParticipantRequest) { r.ToUserOverride = "1" },
		"destination":        func(r *livekit.CreateSIPParticipantRequest) { r.Destination = &livekit.Destination{Country: "DE"} },
		"sip_source_call_id": func(r *livekit.CreateSIPParticipantRequest) { r.SipSourceCallId = "SCL_2" },
		"include_headers": func(r *livekit.CreateSIPParticipantRequest) {
			r.IncludeHeaders = livekit.SIPHeaderOptions_SIP_X_HEADERS
		},
		"krisp_enabled": func(r *livekit.CreateSIPParticipantRequest) { r.KrispEnabled = true },
		"media: set it": func(r *livekit.CreateSIPParticipantRequest) {
			r.Media = &livekit.SIPMediaConfig{OnlyListedCodecs: true}
		},
		"dialtone":           func(r *livekit.CreateSIPParticipantRequest) { r.Dialtone = livekit.SIPDialtone_SIP_DIALTONE_UK },
		"only headers whose": func(r *livekit.CreateSIPParticipantRequest) { r.Headers = map[string]string{"Diversion": "x"} },
		"dtmf":               func(r *livekit.CreateSIPParticipantRequest) { r.Dtmf = "12 34" },
		"ringing_timeout":    func(r *livekit.CreateSIPParticipantRequest) { r.RingingTimeout = durationpb.New(-time.Second) },
		"max_call_duration":  func(r *livekit.CreateSIPParticipantRequest) { r.MaxCallDuration = durationpb.New(1000 * time.Hour) },
		"exceed limits": func(r *livekit.CreateSIPParticipantRequest) {
			r.ParticipantMetadata = strings.Repeat("m", maxMetadata+1)
		},
		"give one of them": func(r *livekit.CreateSIPParticipantRequest) {
			r.Trunk = &livekit.SIPOutboundConfig{Hostname: "pbx.example"}
		},
		"sip_number: needed": func(r *livekit.CreateSIPParticipantRequest) {
			r.SipTrunkId, r.SipNumber, r.Trunk = "", "", &livekit.SIPOutboundConfig{Hostname: "pbx.example"}
		},
	} {
		r := request()
		change(r)
		if _, err := api.CreateSIPParticipant(ctx, r); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(f.dialled) != calls {
		t.Error("a refused request called somebody")
	}
}

// TestSIPGrants checks that each method needs its grant.
func TestSIPGrants(t *testing.T) {
	f := &fakePhones{}
	ts := newTestServer(t, withPhones(f))
	everythingElse := object{"video": object{"roomAdmin": true, "room": "r", "roomCreate": true, "roomList": true, "roomJoin": true}}
	for name := range ts.s.sipService() {
		right, wrong := sipAdminGrant, []object{sipCallGrant}
		if strings.HasSuffix(name, "Participant") {
			right, wrong = sipCallGrant, []object{sipAdminGrant}
		}
		wrong = append(wrong, everythingElse, object{"sip": object{}}, object{})
		for i, grants := range append([]object{right}, wrong...) {
			r, _ := http.NewRequest(http.MethodPost, ts.http.URL+"/twirp/"+name, strings.NewReader("{}"))
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Authorization", "Bearer "+forge(plainHeader, plainClaims(grants), testSecret))
			status, body := ts.do(r)
			refused := status == http.StatusUnauthorized
			// A transfer also needs the room's administration.
			wantRefused := i > 0 || strings.HasSuffix(name, "TransferSIPParticipant")
			if refused != wantRefused {
				t.Errorf("%s with %v: %d %s", name, grants, status, body)
			}
		}
	}
	if c, err := ts.s.verify(ts.token("a", "r")); err != nil || c.SIP != nil {
		t.Errorf("a participant's token may use telephones: %+v %v", c, err)
	}
}

func TestTransferSIPParticipant(t *testing.T) {
	f := &fakePhones{legs: map[call.Identity]call.Leg{"phone": {ID: "SCL_1"}}}
	ts := newTestServer(t, withPhones(f))
	ts.join("phone", "r")
	ts.join("alice", "r")
	api := ts.phones(object{"sip": object{"call": true}, "video": object{"roomAdmin": true, "room": "r"}})
	ctx := context.Background()
	request := func() *livekit.TransferSIPParticipantRequest {
		return &livekit.TransferSIPParticipantRequest{RoomName: "r", ParticipantIdentity: "phone", TransferTo: "tel:+4930999", Headers: map[string]string{"X-A": "1"}}
	}
	var to string
	f.transfer = func(_ context.Context, target string, headers map[string]string) error {
		to = target + headers["X-A"]
		return nil
	}
	if answer, err := api.TransferSIPParticipant(ctx, request()); err != nil || answer.GetStatus() != livekit.SIPTransferStatus_STS_TRANSFER_SUCCESSFUL || to != "tel:+49309991" {
		t.Errorf("transferred to %q, %s, %v", to, answer, err)
	}
	for _, c := range []struct {
		name   string
		err    error
		code   twirp.ErrorCode
		reason livekit.SIPTransferReason
		sip    livekit.SIPStatusCode
	}{
		{"refused", fmt.Errorf("transfer: %w", &call.StatusError{Code: 603, Reason: "Decline"}), twirp.PermissionDenied, livekit.SIPTransferReason_STR_REJECTED, 603},
		{"busy", &call.StatusError{Code: 486, Err: call.ErrUnavailable}, twirp.FailedPrecondition, livekit.SIPTransferReason_STR_REJECTED, 486},
		{"too late", context.DeadlineExceeded, twirp.DeadlineExceeded, livekit.SIPTransferReason_STR_RINGING_TIMEOUT, 0},
		{"hung up", fmt.Errorf("leg: %w", call.ErrNotFound), twirp.NotFound, livekit.SIPTransferReason_STR_CALL_ENDED, 0},
	} {
		f.transfer = func(context.Context, string, map[string]string) error { return c.err }
		_, err := api.TransferSIPParticipant(ctx, request())
		details := livekit.SIPTransferErrorFrom(err)
		if details == nil || details.GetReason() != c.reason || livekit.SIPStatusFrom(err).GetCode() != c.sip {
			t.Errorf("%s: the SDK reads %v of %v", c.name, details, err)
		}
	}
	f.transfer = func(ctx context.Context, _ string, _ map[string]string) error {
		if d, ok := ctx.Deadline(); !ok || time.Until(d) > 6*time.Second {
			t.Errorf("the time-out is %v", time.Until(d))
		}
		return call.ErrForbidden
	}
	late := request()
	late.RingingTimeout = durationpb.New(5 * time.Second)
	if _, err := api.TransferSIPParticipant(ctx, late); codeOf(err) != twirp.PermissionDenied {
		t.Errorf("not allowed: %v", err)
	}
	f.transfer = func(context.Context, string, map[string]string) error {
		t.Error("a refused request was transferred")
		return nil
	}
	for name, change := range map[string]func(*livekit.TransferSIPParticipantRequest){
		"no SIP session":        func(r *livekit.TransferSIPParticipantRequest) { r.ParticipantIdentity = "alice" },
		"participant does not ": func(r *livekit.TransferSIPParticipantRequest) { r.ParticipantIdentity = "nobody" },
		"permissions denied":    func(r *livekit.TransferSIPParticipantRequest) { r.RoomName = "other" },
		"transfer_to must be":   func(r *livekit.TransferSIPParticipantRequest) { r.TransferTo = "mailto:a@b" },
		"dialtone":              func(r *livekit.TransferSIPParticipantRequest) { r.Dialtone = livekit.SIPDialtone_SIP_DIALTONE_ETSI },
		"only headers whose": func(r *livekit.TransferSIPParticipantRequest) {
			r.Headers = map[string]string{"Referred-By": "<sip:a@b>"}
		},
	} {
		r := request()
		change(r)
		if _, err := api.TransferSIPParticipant(ctx, r); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func dtmfPacket(code uint32, digit string, to ...string) *livekit.DataPacket {
	return &livekit.DataPacket{DestinationIdentities: to, Value: &livekit.DataPacket_SipDtmf{SipDtmf: &livekit.SipDTMF{Code: code, Digit: digit}}}
}

func TestKeysTowardsPhones(t *testing.T) {
	f := &fakePhones{}
	ts := newTestServer(t, withPhones(f))
	mute := talker("mute")
	mute.CanPublishData = false
	alice, bob, silent := ts.idle(talker("alice")), ts.idle(talker("bob")), ts.idle(mute)
	for _, packet := range []*livekit.DataPacket{
		dtmfPacket(1, "1"), dtmfPacket(11, "", "phone"), dtmfPacket(0, "12#d"), dtmfPacket(0, ""),
		dtmfPacket(99, ""), dtmfPacket(1, "hello"), dtmfPacket(1, strings.Repeat("1", 33)), // nonsense
	} {
		alice.receiveData(dataEvent(t, sfu.DataReliable, packet))
	}
	silent.receiveData(dataEvent(t, sfu.DataReliable, dtmfPacket(5, "5")))
	want := []string{"r [] 1", "r [phone] #", "r [] 12#D", "r [] 0"}
	got := make([]string, len(f.pressed))
	for i, p := range f.pressed {
		got[i] = strings.NewReplacer("[]", " [] ", "[phone]", " [phone] ").Replace(p)
	}
	if !slices.Equal(got, want) {
		t.Errorf("pressed %q, want %q", got, want)
	}
	if n := len(received(t, bob)); n != 6 {
		t.Errorf("another participant heard of %d presses", n)
	}
}

func TestKeysOfPhones(t *testing.T) {
	f := &fakePhones{}
	ts := newTestServer(t, withPhones(f))
	alice, phone := ts.idle(talker("alice")), ts.idle(talker("phone"))
	received(t, alice)
	f.onDigit("r", "phone", '#')
	f.onDigit("r", "phone", 'x') // no key
	f.onDigit("r", "gone", '1')
	got := received(t, alice)
	if len(got) != 2 {
		t.Fatalf("%d keys arrived", len(got))
	}
	want := &livekit.DataPacket{
		Kind: livekit.DataPacket_RELIABLE, ParticipantIdentity: "phone", ParticipantSid: string(phone.snapshot.Self.SID), //nolint:staticcheck // clients read the kind
		Value: &livekit.DataPacket_SipDtmf{SipDtmf: &livekit.SipDTMF{Code: 11, Digit: "#"}},
	}
	if !proto.Equal(got[0], want) {
		t.Errorf("received %s, want %s", got[0], want)
	}
}

func TestStatusPhrase(t *testing.T) {
	for code, want := range map[livekit.SIPStatusCode]string{486: "Busy Here", 699: "Status 699"} {
		if got := statusPhrase(code); got != want {
			t.Errorf("%d is %q", code, got)
		}
	}
	names := make([]string, 0, len(livekit.SIPStatusCode_name))
	for code := range livekit.SIPStatusCode_name {
		names = append(names, cmp.Or(statusPhrase(livekit.SIPStatusCode(code)), "nothing"))
	}
	if slices.Contains(names, "nothing") {
		t.Error("a status has no phrase")
	}
}

// TestCallingIntoAMatrixCall checks that a phone that a program calls into the
// media room of a Matrix room comes under the rules of that room.
func TestCallingIntoAMatrixCall(t *testing.T) {
	ws := newWholeServer(t, aliceRooms(), filepath.Join(t.TempDir(), "t.db"))
	f := &fakePhones{script: legs(call.Leg{State: call.LegTrying})}
	withPhones(f)(ws.s)
	f.trunks["ST_out"] = call.Trunk{ID: "ST_out", Direction: "outbound"}
	if ws.dial(ws.v1(ws.post("/sfu/get", aliceLegacy), &livekit.JoinRequest{})).next().GetJoin() == nil {
		t.Fatal("no join response")
	}
	ws.join("bob", "plain")
	room := mediaRoom(testRoom, legacySlot)
	for name, want := range map[call.RoomName]string{room: string(testRoom), "plain": "", "empty": ""} {
		f.dialled = nil
		if _, err := ws.phones(sipCallGrant).CreateSIPParticipant(context.Background(), &livekit.CreateSIPParticipantRequest{
			SipTrunkId: "ST_out", SipCallTo: "+4930", RoomName: string(name),
		}); err != nil {
			t.Fatal(err)
		}
		if got := f.dialled[0]; got.RoomID != want || got.Room != name {
			t.Errorf("into %s: the gateway was asked for room %q of %q, want %q", name, got.Room, got.RoomID, want)
		}
	}
}

func TestSIPTargets(t *testing.T) {
	const udp, tls, auto = livekit.SIPTransport_SIP_TRANSPORT_UDP, livekit.SIPTransport_SIP_TRANSPORT_TLS, livekit.SIPTransport_SIP_TRANSPORT_AUTO
	for _, c := range []struct {
		address   string
		transport livekit.SIPTransport
		want      string // empty: refused
	}{
		{"sip.example.net", auto, "sip:sip.example.net"},
		{"sip.example.net:5070", udp, "sip:sip.example.net:5070;transport=udp"},
		{"192.0.2.1", tls, "sip:192.0.2.1;transport=tls"},
		{"2001:db8::1", auto, "sip:[2001:db8::1]"},
		{"[2001:db8::1]:5061", tls, "sip:[2001:db8::1]:5061;transport=tls"},
		{"[2001:db8::1]", tls, "sip:[2001:db8::1];transport=tls"},
		{"fe80::1%eth0", auto, ""},
		{"", auto, ""},
		{"a b", auto, ""},
		{"a.example;lr", auto, ""},
		{"a.example?Via=x", auto, ""},
		{"a..example", auto, ""},
		{"a.example:0", auto, ""},
		{"a.example:sip", auto, ""},
		{"user@a.example", auto, ""},
		{strings.Repeat("a", 300), auto, ""},
		{"a.example", 9, ""},
	} {
		got, err := sipTarget(c.address, c.transport)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q over %s is %q, %v; want %q", c.address, c.transport, got, err, c.want)
			continue
		}
		if err != nil {
			continue
		}
		address, transport := parseTarget(got)
		if again, err := sipTarget(address, transport); again != got || err != nil {
			t.Errorf("%q comes back as %q, %s and then %q, %v", got, address, transport, again, err)
		}
	}
	if address, transport := parseTarget("sips:user@pbx.example:5061;lr"); address != "pbx.example:5061" || transport != tls {
		t.Errorf("a URI of the configuration is shown as %s %s", address, transport)
	}
}

package livekitsdk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/livekit/protocol/livekit"
	lksdk "github.com/livekit/server-sdk-go/v2"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
	"github.com/twitchtv/twirp"
	"google.golang.org/protobuf/types/known/durationpb"
)

// startPhones runs a demo with a telephone gateway and returns it with the UDP
// port of its SIP. config is more of the section sip.
func startPhones(t *testing.T, config string) (*server, int) {
	t.Helper()
	port := freePorts(t, 62)
	media := port + 2
	file := filepath.Join(t.TempDir(), "trunkhall.yaml")
	text := fmt.Sprintf(`
sip:
  enabled: true
  listen: ["udp://127.0.0.1:%d"]
  bind_ip: 127.0.0.1
  external_ip: 127.0.0.1
  rtp_ports: %d-%d
  default_country: DE
  limits: {new_account: 0s}
%s`, port, media, media+59, config)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return start(t, "--config", file), port
}

// freePorts returns the first of n UDP ports that nobody has, an even one.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	for range 200 {
		first := 20000 + 100*rand.IntN(100) // what two gateways get does not overlap, or is the same
		var taken []net.PacketConn
		for i := range n {
			c, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", first+i))
			if err != nil {
				break
			}
			taken = append(taken, c)
		}
		for _, c := range taken {
			c.Close()
		}
		if len(taken) == n {
			return first
		}
	}
	t.Fatalf("no %d free ports", n)
	return 0
}

// A refuser is a telephone that never picks up: it answers each INVITE with the
// same status, and hangs up what is cancelled.
type refuser struct {
	conn   net.PacketConn
	status string // "486 Busy Here"; empty: rings for ever

	mu   sync.Mutex // guards the following field
	seen []string   // methods
}

func startRefuser(t *testing.T, status string) *refuser {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &refuser{conn: conn, status: status}
	var wg sync.WaitGroup
	wg.Go(r.run)
	t.Cleanup(func() { conn.Close(); wg.Wait() })
	return r
}

func (r *refuser) port() int { return r.conn.LocalAddr().(*net.UDPAddr).Port }

func (r *refuser) methods() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.seen, " ")
}

func (r *refuser) run() {
	b := make([]byte, 64<<10)
	invite := ""
	for {
		n, from, err := r.conn.ReadFrom(b)
		if err != nil {
			return
		}
		message := string(b[:n])
		method, _, _ := strings.Cut(message, " ")
		r.mu.Lock()
		r.seen = append(r.seen, method)
		r.mu.Unlock()
		send := func(to, status string) { _, _ = r.conn.WriteTo([]byte(answerTo(to, status)), from) }
		switch method {
		case "INVITE":
			invite = message
			send(message, "100 Trying")
			send(message, "180 Ringing")
			if r.status != "" {
				send(message, r.status)
			}
		case "CANCEL":
			send(message, "200 OK")
			send(invite, "487 Request Terminated")
		case "ACK":
		default:
			send(message, "200 OK")
		}
	}
}

// answerTo makes a response without a body (RFC 3261 §8.2.6).
func answerTo(request, status string) string {
	lines := []string{"SIP/2.0 " + status}
	for line := range strings.SplitSeq(request, "\r\n") {
		name, _, _ := strings.Cut(line, ":")
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "via", "from", "call-id", "cseq":
			lines = append(lines, line)
		case "to":
			if status != "100 Trying" && !strings.Contains(line, "tag=") {
				line += ";tag=refuser"
			}
			lines = append(lines, line)
		}
	}
	return strings.Join(append(lines, "Contact: <sip:refuser@127.0.0.1>", "Content-Length: 0", "", ""), "\r\n")
}

func (s *server) phones() *lksdk.SIPClient {
	return lksdk.NewSIPClient(s.LiveKitURL, s.APIKey, s.APISecret)
}

func (s *server) outboundTrunk(t *testing.T, port int) string {
	t.Helper()
	trunk, err := s.phones().CreateSIPOutboundTrunk(t.Context(), &livekit.CreateSIPOutboundTrunkRequest{Trunk: &livekit.SIPOutboundTrunkInfo{
		Name: "test", Address: fmt.Sprintf("127.0.0.1:%d", port), Transport: livekit.SIPTransport_SIP_TRANSPORT_UDP, Numbers: []string{"+4930200"},
	}})
	if err != nil {
		t.Fatalf("making a trunk: %v", err)
	}
	return trunk.SipTrunkId
}

func codeOf(err error) twirp.ErrorCode {
	var e twirp.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return ""
}

// Trunks and dispatch rules are made, listed, changed and deleted.
func TestSIPTrunksAndRules(t *testing.T) {
	s, _ := startPhones(t, "  outbound: {allow_prefixes: ['+4930']}\n")
	sip, ctx := s.phones(), t.Context()
	out := s.outboundTrunk(t, 5999)
	in, err := sip.CreateSIPInboundTrunk(ctx, &livekit.CreateSIPInboundTrunkRequest{Trunk: &livekit.SIPInboundTrunkInfo{
		Name: "in", Numbers: []string{"+4930201"}, AllowedAddresses: []string{"127.0.0.9"}, AuthUsername: "u", AuthPassword: "a password",
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sip.CreateSIPInboundTrunk(ctx, &livekit.CreateSIPInboundTrunkRequest{Trunk: &livekit.SIPInboundTrunkInfo{Numbers: []string{"+4930202"}}}); codeOf(err) != twirp.InvalidArgument {
		t.Errorf("a trunk that anybody can use: %v", err)
	}
	trunks, err := sip.GetSIPOutboundTrunksByIDs(ctx, []string{"ST_none", out})
	if err != nil || len(trunks) != 2 || trunks[1].Name != "test" || trunks[1].Numbers[0] != "+4930200" {
		t.Errorf("trunks by id: %v %v", trunks, err)
	}
	changed, err := sip.UpdateSIPInboundTrunk(ctx, &livekit.UpdateSIPInboundTrunkRequest{SipTrunkId: in.SipTrunkId, Action: &livekit.UpdateSIPInboundTrunkRequest_Update{
		Update: &livekit.SIPInboundTrunkUpdate{Numbers: &livekit.ListUpdate{Add: []string{"+4930203"}}},
	}})
	if err != nil || len(changed.Numbers) != 2 || changed.AuthUsername != "u" || changed.AuthPassword != "" {
		t.Errorf("changed to %v, %v", changed, err)
	}
	rule, err := sip.CreateSIPDispatchRule(ctx, &livekit.CreateSIPDispatchRuleRequest{DispatchRule: &livekit.SIPDispatchRuleInfo{
		Name: "r", TrunkIds: []string{in.SipTrunkId},
		Rule: &livekit.SIPDispatchRule{Rule: &livekit.SIPDispatchRule_DispatchRuleDirect{DispatchRuleDirect: &livekit.SIPDispatchRuleDirect{RoomName: "standup", Pin: "4711"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	rules, err := sip.ListSIPDispatchRule(ctx, &livekit.ListSIPDispatchRuleRequest{TrunkIds: []string{in.SipTrunkId}})
	if err != nil || len(rules.Items) != 1 || rules.Items[0].SipDispatchRuleId != rule.SipDispatchRuleId || rules.Items[0].GetRule().GetDispatchRuleDirect().GetRoomName() != "standup" {
		t.Errorf("rules %v, %v", rules, err)
	}
	if _, err := sip.DeleteSIPDispatchRule(ctx, &livekit.DeleteSIPDispatchRuleRequest{SipDispatchRuleId: rule.SipDispatchRuleId}); err != nil {
		t.Error(err)
	}
	for _, id := range []string{in.SipTrunkId, out} {
		if _, err := sip.DeleteSIPTrunk(ctx, &livekit.DeleteSIPTrunkRequest{SipTrunkId: id}); err != nil {
			t.Error(err)
		}
	}
	if left, err := sip.ListSIPOutboundTrunk(ctx, &livekit.ListSIPOutboundTrunkRequest{}); err != nil || len(left.Items) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// Nobody picks up: what the other side says arrives as the SDK's SIP status.
func TestSIPRefused(t *testing.T) {
	s, _ := startPhones(t, "  outbound: {allow_prefixes: ['+4930']}\n")
	sip := s.phones()
	call := func(trunk, number string, ringing time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := sip.CreateSIPParticipant(ctx, &livekit.CreateSIPParticipantRequest{
			SipTrunkId: trunk, SipCallTo: number, RoomName: "refused", ParticipantIdentity: "phone",
			WaitUntilAnswered: true, RingingTimeout: durationpb.New(ringing),
		})
		return err
	}
	for _, c := range []struct {
		status string
		code   livekit.SIPStatusCode
	}{
		{"486 Busy Here", 486}, {"404 Not Found", 404}, {"603 Decline", 603},
	} {
		r := startRefuser(t, c.status)
		err := call(s.outboundTrunk(t, r.port()), "+4930123", 20*time.Second)
		if st := lksdk.SIPStatusFrom(err); st == nil || st.Code != c.code {
			t.Errorf("%s: the SDK reads %v of %v", c.status, st, err)
		}
		eventually(t, c.status+" is acknowledged", func() bool {
			m := r.methods()
			return strings.HasPrefix(m, "INVITE") && strings.HasSuffix(m, "ACK")
		})
	}

	silent := startRefuser(t, "")
	trunk := s.outboundTrunk(t, silent.port())
	err := call(trunk, "+4930123", 2*time.Second)
	if st := lksdk.SIPStatusFrom(err); st == nil || st.Code != 408 && st.Code != 480 && st.Code != 487 {
		t.Errorf("no answer: the SDK reads %v of %v", st, err)
	}
	eventually(t, "the call that nobody answers is taken back", func() bool {
		m := silent.methods()
		return strings.Contains(m, "CANCEL") && strings.HasSuffix(m, "ACK")
	})

	// Nothing is sent where nobody may call.
	before := silent.methods()
	if err := call(trunk, "+33123456789", time.Second); codeOf(err) != twirp.PermissionDenied || lksdk.SIPStatusFrom(err) != nil {
		t.Errorf("a number outside the allow-list: %v", err)
	}
	if err := call("ST_none", "+4930123", time.Second); codeOf(err) != twirp.NotFound {
		t.Errorf("a trunk that is not there: %v", err)
	}
	stranger := lksdk.NewSIPClient(s.LiveKitURL, s.APIKey, strings.Repeat("x", 32))
	if _, err := stranger.ListSIPOutboundTrunk(t.Context(), &livekit.ListSIPOutboundTrunkRequest{}); codeOf(err) != twirp.Unauthenticated {
		t.Errorf("a wrong secret: %v", err)
	}
	if after := silent.methods(); after != before {
		t.Errorf("the phone was sent %s, then %s", before, after)
	}
}

// publishNoise lets a participant make noise until the test ends: whatever an Opus
// packet of the kind CELT has in it, something is to be heard (RFC 6716 §4.3).
func publishNoise(t *testing.T, room *lksdk.Room) {
	t.Helper()
	track, err := lksdk.NewLocalTrack(webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := room.LocalParticipant.PublishTrack(track, &lksdk.TrackPublicationOptions{Source: livekit.TrackSource_MICROPHONE}); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		noise := rand.New(rand.NewPCG(1, 2))
		for n := uint32(0); ; n++ {
			select {
			case <-tick.C:
			case <-stop:
				return
			}
			payload := []byte{31 << 3} // fullband, 20 ms, mono, one frame
			for range 80 {
				payload = append(payload, byte(noise.Uint32()))
			}
			level := uint8(20)
			_ = track.WriteRTP(&rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: uint16(n), Timestamp: n * 960}, Payload: payload}, &lksdk.SampleWriteOptions{AudioLevel: &level})
		}
	})
	t.Cleanup(func() { close(stop); sending.Wait() })
}

// One gateway calls another. Who is in the two rooms sees and hears the phone
// between them, keys go through, and removing the phone hangs up.
func TestSIPCall(t *testing.T) {
	far, port := startPhones(t, `  trunks: [{id: near, direction: inbound, inbound: {cidrs: [127.0.0.1/32]}}]
  dispatch: [{match: {to: "+4930100"}, action: {type: room, room: far}}]
`)
	near, _ := startPhones(t, "  outbound: {allow_prefixes: ['+4930']}\n")
	trunk := near.outboundTrunk(t, port)

	keys := make(chan string, 10)
	heard := make(chan struct{}, 1)
	listen := func(who string) *lksdk.RoomCallback {
		return &lksdk.RoomCallback{ParticipantCallback: lksdk.ParticipantCallback{
			OnDataPacket: func(data lksdk.DataPacket, params lksdk.DataReceiveParams) {
				if d, ok := data.(*livekit.SipDTMF); ok {
					keys <- who + " got " + d.Digit
				}
			},
			OnTrackSubscribed: func(track *webrtc.TrackRemote, _ *lksdk.RemoteTrackPublication, p *lksdk.RemoteParticipant) {
				if who != "bob" || p.Kind() != lksdk.ParticipantKind(livekit.ParticipantInfo_SIP) {
					return
				}
				// Sound, not silence: packets of speech are longer than those of DTX.
				for loud := 0; loud < 25; {
					p, _, err := track.ReadRTP()
					if err != nil {
						return
					}
					if len(p.Payload) > 10 {
						loud++
					}
				}
				heard <- struct{}{}
			},
		}}
	}
	bob := join(t, far, "far", "bob", listen("bob"))
	alice := join(t, near, "near", "alice", listen("alice"))
	publishNoise(t, alice)

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	info, err := near.phones().CreateSIPParticipant(ctx, &livekit.CreateSIPParticipantRequest{
		SipTrunkId: trunk, SipCallTo: "+4930100", RoomName: "near", ParticipantIdentity: "phone", ParticipantName: "The far room",
		ParticipantAttributes: map[string]string{"purpose": "test"}, WaitUntilAnswered: true, RingingTimeout: durationpb.New(30 * time.Second),
	})
	if err != nil {
		t.Fatalf("calling: %v", err)
	}
	if info.ParticipantIdentity != "phone" || info.RoomName != "near" || !strings.HasPrefix(info.SipCallId, "SCL_") || !strings.HasPrefix(info.ParticipantId, "PA_") {
		t.Errorf("called: %v", info)
	}
	eventually(t, "alice sees the phone", func() bool {
		p := alice.GetParticipantByIdentity("phone")
		return p != nil && p.Kind() == lksdk.ParticipantKind(livekit.ParticipantInfo_SIP) && p.Name() == "The far room" &&
			p.Attributes()["sip.callStatus"] == "active" && p.Attributes()["sip.callID"] == info.SipCallId &&
			p.Attributes()["sip.phoneNumber"] == "+4930100" && p.Attributes()["purpose"] == "test"
	})
	eventually(t, "bob sees the phone", func() bool { return len(bob.GetRemoteParticipants()) == 1 })
	select {
	case <-heard:
	case <-time.After(patience):
		t.Error("bob hears nothing of alice")
	}

	for _, key := range []string{"5", "#"} {
		if err := alice.LocalParticipant.PublishDataPacket(&livekit.SipDTMF{Digit: key, Code: uint32(strings.Index("0123456789*#", key))}, lksdk.WithDataPublishReliable(true)); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-keys:
			if got != "bob got "+key {
				t.Errorf("key %s: %s", key, got)
			}
		case <-time.After(patience):
			t.Fatalf("the key %s did not arrive", key)
		}
	}

	// The far gateway does not call others on behalf of its callers.
	_, err = near.phones().TransferSIPParticipant(ctx, transfer("near", "phone"))
	if st := lksdk.SIPStatusFrom(err); st == nil || st.Code < 400 {
		t.Errorf("a transfer that the other side refuses: %v of %v", st, err)
	}
	if _, err := near.phones().TransferSIPParticipant(ctx, transfer("near", "alice")); codeOf(err) != twirp.InvalidArgument {
		t.Errorf("the transfer of somebody who is no telephone: %v", err)
	}

	rooms := lksdk.NewRoomServiceClient(near.LiveKitURL, near.APIKey, near.APISecret)
	if _, err := rooms.RemoveParticipant(ctx, &livekit.RoomParticipantIdentity{Room: "near", Identity: "phone"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "removing the phone hangs up at the other side", func() bool { return len(bob.GetRemoteParticipants()) == 0 })
}

func transfer(room, identity string) *livekit.TransferSIPParticipantRequest {
	return &livekit.TransferSIPParticipantRequest{
		RoomName: room, ParticipantIdentity: identity, TransferTo: "tel:+4930999", RingingTimeout: durationpb.New(20 * time.Second),
	}
}

// Two dispatch rules for the same calls: the PIN that the caller enters decides
// which room it is. The call brings its own trunk, and enters the PIN itself.
func TestSIPDispatchByPIN(t *testing.T) {
	far, port := startPhones(t, "")
	near, _ := startPhones(t, "  outbound: {allow_prefixes: ['+4930']}\n")
	sip, ctx := far.phones(), t.Context()
	trunk, err := sip.CreateSIPInboundTrunk(ctx, &livekit.CreateSIPInboundTrunkRequest{Trunk: &livekit.SIPInboundTrunkInfo{
		Name: "near", Numbers: []string{"+4930100"}, AllowedAddresses: []string{"127.0.0.1"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for room, pin := range map[string]string{"left": "471100", "right": "081500"} {
		if _, err := sip.CreateSIPDispatchRule(ctx, &livekit.CreateSIPDispatchRuleRequest{DispatchRule: &livekit.SIPDispatchRuleInfo{
			Name: room, TrunkIds: []string{trunk.SipTrunkId}, Attributes: map[string]string{"door": room},
			Rule: &livekit.SIPDispatchRule{Rule: &livekit.SIPDispatchRule_DispatchRuleDirect{DispatchRuleDirect: &livekit.SIPDispatchRuleDirect{RoomName: room, Pin: pin}}},
		}}); err != nil {
			t.Fatal(err)
		}
	}
	for room, pin := range map[string]string{"left": "471100", "right": "081500"} {
		watch := join(t, far, room, "watch", nil)
		info, err := near.phones().CreateSIPParticipant(ctx, &livekit.CreateSIPParticipantRequest{
			Trunk:     &livekit.SIPOutboundConfig{Hostname: fmt.Sprintf("127.0.0.1:%d", port), Transport: livekit.SIPTransport_SIP_TRANSPORT_UDP},
			SipNumber: "+4930200", SipCallTo: "+4930100", RoomName: "caller-" + room, WaitUntilAnswered: true, Dtmf: "ww" + pin + "#",
		})
		if err != nil {
			t.Fatalf("calling %s: %v", room, err)
		}
		eventually(t, "the caller comes into the room of its PIN, "+room, func() bool {
			for _, p := range watch.GetRemoteParticipants() {
				return p.Attributes()["door"] == room && p.Attributes()["sip.trunkID"] == trunk.SipTrunkId && p.Attributes()["sip.phoneNumber"] == "+4930200"
			}
			return false
		})

		// The line of this one call takes no transfers: the dial plan does not know it.
		if _, err := near.phones().TransferSIPParticipant(ctx, transfer("caller-"+room, info.ParticipantIdentity)); codeOf(err) != twirp.PermissionDenied {
			t.Errorf("a transfer that is not allowed: %v", err)
		}
	}
}

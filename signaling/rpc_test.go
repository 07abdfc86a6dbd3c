package signaling

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livekit/protocol/livekit"

	"github.com/trunkhall/trunkhall/sfu"
)

// awaitRequest plays the participant's loop until it is sent an RPC request.
func awaitRequest(t *testing.T, p *participant) *livekit.DataPacket {
	t.Helper()
	var found *livekit.DataPacket
	eventually(t, "a request", func() bool {
		for _, packet := range received(t, p) {
			if packet.GetRpcRequest() != nil {
				found = packet
			}
		}
		return found != nil
	})
	return found
}

// TestPerformRPC calls a participant that answers as the SDKs do: first an
// acknowledgement, then a response, both to whoever the request came from.
func TestPerformRPC(t *testing.T) {
	ts := newTestServer(t)
	alice, bob := ts.idle(talker("alice")), ts.idle(talker("bob"))
	api := ts.api(object{"roomAdmin": true, "room": "r"})

	for _, c := range []struct {
		name     string
		response *livekit.RpcResponse
		payload  string
		err      string
	}{
		{"an answer", &livekit.RpcResponse{Value: &livekit.RpcResponse_Payload{Payload: "four"}}, "four", ""},
		{"no such method", &livekit.RpcResponse{Value: &livekit.RpcResponse_Error{Error: &livekit.RpcError{Code: 1400, Message: "Method not supported at destination"}}}, "", "invalid_argument: RpcError 1400: Method not supported"},
		{"an error of the method", &livekit.RpcResponse{Value: &livekit.RpcResponse_Error{Error: &livekit.RpcError{Code: 7, Message: "odd", Data: "why"}}}, "", "internal: RpcError 7: odd: why"},
		{"too long an answer", &livekit.RpcResponse{Value: &livekit.RpcResponse_Payload{Payload: strings.Repeat("x", rpcMaxPayload+1)}}, "", "RpcError 1504"},
	} {
		type result struct {
			response *livekit.PerformRpcResponse
			err      error
		}
		done := make(chan result, 1)
		go func() {
			response, err := api.PerformRpc(context.Background(), &livekit.PerformRpcRequest{
				Room: "r", DestinationIdentity: "alice", Method: "add", Payload: "2+2", ResponseTimeoutMs: 60_000,
			})
			done <- result{response, err}
		}()
		packet := awaitRequest(t, alice)
		request := packet.GetRpcRequest()
		if request.GetMethod() != "add" || request.GetPayload() != "2+2" || request.GetVersion() != 1 || request.GetResponseTimeoutMs() != 60_000 {
			t.Errorf("%s: alice was asked %s", c.name, request)
		}
		answer := func(p *participant, value *livekit.DataPacket) {
			value.DestinationIdentities = []string{packet.GetParticipantIdentity()}
			p.receiveData(dataEvent(t, sfu.DataReliable, value))
		}
		forged := &livekit.RpcResponse{RequestId: request.GetId(), Value: &livekit.RpcResponse_Payload{Payload: "forged"}}
		answer(bob, &livekit.DataPacket{Value: &livekit.DataPacket_RpcResponse{RpcResponse: forged}})
		answer(alice, &livekit.DataPacket{Value: &livekit.DataPacket_RpcAck{RpcAck: &livekit.RpcAck{RequestId: request.GetId()}}})
		c.response.RequestId = request.GetId()
		answer(alice, &livekit.DataPacket{Value: &livekit.DataPacket_RpcResponse{RpcResponse: c.response}})
		select {
		case r := <-done:
			if r.response.GetPayload() != c.payload || fmt.Sprint(r.err) == "<nil>" != (c.err == "") || !strings.Contains(fmt.Sprint(r.err), c.err) {
				t.Errorf("%s: %s %v", c.name, r.response, r.err)
			}
		case <-time.After(patience):
			t.Fatalf("%s: never returned", c.name)
		}
	}
	if got := received(t, bob); len(got) != 0 {
		t.Errorf("bob heard answers to the server: %v", got)
	}
	alice.rpc.mu.Lock()
	defer alice.rpc.mu.Unlock()
	if n := len(alice.rpc.waiting); n != 0 {
		t.Errorf("%d calls still wait", n)
	}
}

func TestPerformRPCRefusals(t *testing.T) {
	ts := newTestServer(t)
	ts.idle(talker("alice"))
	own := object{"roomAdmin": true, "room": "r"}
	for _, c := range []struct {
		name  string
		grant object
		who   string
		text  string
		want  string
	}{
		{"no right", object{"room": "r", "roomJoin": true}, "alice", "", "unauthenticated"},
		{"another room", object{"roomAdmin": true, "room": "other"}, "alice", "", "unauthenticated"},
		{"nobody", own, "", "", "invalid_argument"},
		{"somebody who is not here", own, "bob", "", "not_found"},
		{"too much", own, "alice", strings.Repeat("x", rpcMaxPayload+1), "malformed: RpcError 1402"},
	} {
		_, err := ts.api(c.grant).PerformRpc(context.Background(), &livekit.PerformRpcRequest{Room: "r", DestinationIdentity: c.who, Payload: c.text})
		if !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
}

func TestRPCTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			name string
			wait time.Duration
			ack  bool
			gone bool
			want string
			at   time.Duration
		}{
			{"no acknowledgement", time.Minute, false, false, "1501", rpcAckWait},
			{"no answer", time.Minute, true, false, "1502", time.Minute},
			{"little patience", time.Second, false, false, "1502", time.Second},
			{"left", time.Minute, true, true, "1503", 0},
		} {
			var calls rpcCalls
			id, pending := calls.begin()
			if c.ack && !calls.consume(&livekit.DataPacket{Value: &livekit.DataPacket_RpcAck{RpcAck: &livekit.RpcAck{RequestId: id}}}) {
				t.Error("the acknowledgement was not taken")
			}
			gone := make(chan struct{})
			if c.gone {
				close(gone)
			}
			start := time.Now()
			_, err := pending.await(context.Background(), c.wait, gone)
			if !strings.Contains(fmt.Sprint(err), c.want) || time.Since(start) != c.at {
				t.Errorf("%s: %v after %s", c.name, err, time.Since(start))
			}
			calls.end(id)
			if calls.consume(&livekit.DataPacket{Value: &livekit.DataPacket_RpcAck{RpcAck: &livekit.RpcAck{RequestId: id}}}) {
				t.Errorf("%s: a late packet was taken", c.name)
			}
		}
	})
}

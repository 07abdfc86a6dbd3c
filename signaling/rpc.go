package signaling

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/livekit/protocol/livekit"
	"google.golang.org/protobuf/proto"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// The limits of LiveKit's remote procedure calls, which its SDKs have too.
const (
	rpcAckWait     = 7 * time.Second  // for the client to say that it has the request
	rpcDefaultWait = 15 * time.Second // for its answer
	rpcLongestWait = 5 * time.Minute
	rpcMaxPayload  = 15 << 10 // bytes
)

// An rpcError is one that LiveKit has numbered. SDKs find number and words in
// the text.
type rpcError struct {
	number uint32
	text   string
	code   twirpCode
}

var (
	errRPCNoAck    = rpcError{1501, "Connection timeout", twirpCanceled}
	errRPCNoAnswer = rpcError{1502, "Response timeout", twirpCanceled}
	errRPCGone     = rpcError{1503, "Recipient disconnected", twirpUnavailable}
	errRPCTooMuch  = rpcError{1504, "Response payload too large", twirpInternal}
	errRPCTooLong  = rpcError{1402, "Request payload too large", twirpMalformed}
)

func (e rpcError) twirp() error {
	return &twirpError{code: e.code, text: fmt.Sprintf("RpcError %d: %s", e.number, e.text)}
}

// rpcFromClient translates the error that a client has answered with.
func rpcFromClient(e *livekit.RpcError) error {
	known := rpcError{e.GetCode(), e.GetMessage(), twirpInternal}
	switch e.GetCode() {
	case 1400: // no such method
		known.code = twirpInvalidArgument
	case 1403, 1404: // unsupported server or version
		known.code = twirpUnimplemented
	}
	if e.GetData() != "" {
		known.text += ": " + e.GetData()
	}
	return known.twirp()
}

// rpcCalls are the procedure calls of the server API that a participant has not
// answered yet.
type rpcCalls struct {
	mu      sync.Mutex // guards waiting
	waiting map[string]*rpcCall
}

type rpcCall struct {
	ack    chan struct{}             // holds one
	answer chan *livekit.RpcResponse // holds one
}

func (c *rpcCalls) begin() (id string, call *rpcCall) {
	id, call = rand.Text(), &rpcCall{make(chan struct{}, 1), make(chan *livekit.RpcResponse, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil {
		c.waiting = make(map[string]*rpcCall)
	}
	c.waiting[id] = call
	return id, call
}

func (c *rpcCalls) end(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

// consume takes a packet that answers one of the calls. It reports whether it
// was one: others are for participants.
func (c *rpcCalls) consume(packet *livekit.DataPacket) bool {
	id := packet.GetRpcAck().GetRequestId()
	if r := packet.GetRpcResponse(); r != nil {
		id = r.GetRequestId()
	}
	if id == "" {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	call := c.waiting[id]
	if call == nil {
		return false
	}
	if r := packet.GetRpcResponse(); r != nil {
		select {
		case call.answer <- r:
		default: // answered twice
		}
		return true
	}
	select {
	case call.ack <- struct{}{}:
	default:
	}
	return true
}

// performRPC calls a method of a participant as if another participant did, and
// returns its answer.
func (s *Server) performRPC(ctx context.Context, c *claims, r *livekit.PerformRpcRequest) (*livekit.PerformRpcResponse, error) {
	if err := mayAdminister(c, r.GetRoom()); err != nil {
		return nil, err
	}
	switch {
	case r.GetDestinationIdentity() == "":
		return nil, &twirpError{code: twirpInvalidArgument, text: "destination identity is required"}
	case len(r.GetPayload()) > rpcMaxPayload:
		return nil, errRPCTooLong.twirp()
	}
	m, err := s.memberNamed(c, r.GetRoom(), r.GetDestinationIdentity())
	if err != nil {
		return nil, err
	}
	p := s.seated(call.RoomName(r.GetRoom()), m.Identity())
	if p == nil || p.member.Load() != m {
		return nil, errRPCGone.twirp()
	}
	wait := rpcDefaultWait
	if ms := r.GetResponseTimeoutMs(); ms > 0 {
		wait = min(time.Duration(ms)*time.Millisecond, rpcLongestWait)
	}
	id, pending := p.rpc.begin()
	defer p.rpc.end(id)
	payload, err := proto.Marshal(&livekit.DataPacket{
		Kind:                livekit.DataPacket_RELIABLE, //nolint:staticcheck // clients read it
		ParticipantIdentity: id,                          // who asks: nobody else has this name
		Value: &livekit.DataPacket_RpcRequest{RpcRequest: &livekit.RpcRequest{
			Id: id, Method: r.GetMethod(), Payload: r.GetPayload(), ResponseTimeoutMs: uint32(wait.Milliseconds()), Version: 1,
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("encode RPC request: %w", err)
	}
	if !p.tell(outgoing{sfu.DataReliable, payload}) {
		return nil, errRPCGone.twirp()
	}
	return pending.await(ctx, wait, p.done)
}

// await returns the answer, or why there is none.
func (c *rpcCall) await(ctx context.Context, wait time.Duration, gone <-chan struct{}) (*livekit.PerformRpcResponse, error) {
	noAnswer, noAck := time.NewTimer(wait), time.NewTimer(rpcAckWait)
	defer noAnswer.Stop()
	defer noAck.Stop()
	for {
		select {
		case <-c.ack:
			noAck.Stop()
		case answer := <-c.answer:
			switch {
			case answer.GetError() != nil:
				return nil, rpcFromClient(answer.GetError())
			case len(answer.GetPayload()) > rpcMaxPayload || answer.GetCompressedPayload() != nil:
				return nil, errRPCTooMuch.twirp()
			}
			return &livekit.PerformRpcResponse{Payload: answer.GetPayload()}, nil
		case <-noAnswer.C:
			return nil, errRPCNoAnswer.twirp()
		case <-noAck.C:
			return nil, errRPCNoAck.twirp()
		case <-gone:
			return nil, errRPCGone.twirp()
		case <-ctx.Done():
			return nil, fmt.Errorf("caller gave up: %w", ctx.Err())
		}
	}
}

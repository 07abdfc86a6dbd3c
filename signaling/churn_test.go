package signaling

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/coder/websocket"
	"github.com/livekit/protocol/livekit"
	"google.golang.org/protobuf/proto"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// TestChurn lets clients with few identities join, resume, leave, vanish and be
// removed at the same time, and proves that in the end nobody is left, and that
// the gate heard the departure of everybody whose arrival it heard.
func TestChurn(t *testing.T) {
	ts := newTestServer(t, quick)
	const clients, rounds = 12, 6
	var wg sync.WaitGroup
	for i := range clients {
		id := call.Identity(fmt.Sprint("user", i/3)) // three fight for each identity
		wg.Go(func() {
			for round := range rounds {
				churn(ts, id, (i+round)%5)
			}
		})
	}
	wg.Wait()
	eventually(t, "everybody is gone", func() bool {
		ts.s.mu.Lock()
		defer ts.s.mu.Unlock()
		return len(ts.s.halls) == 0
	})
	present := make(map[string]bool)
	for event := range strings.SplitSeq(ts.gate.all(), ", ") {
		words := strings.Fields(event)
		if words[0] == "gone" && !present[words[1]] {
			t.Errorf("%s was reported gone twice", words[1])
		}
		present[words[1]] = words[0] == "here"
	}
	for id, still := range present {
		if still {
			t.Errorf("%s was never reported gone", id)
		}
	}
	if room, ok := ts.sfu.Room("r"); ok && len(room.Participants()) != 0 {
		t.Errorf("still in the SFU: %v", room.Participants())
	}
}

// churn is one stay of a client that does not care what it hears.
func churn(ts *testServer, id call.Identity, how int) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	dial := func(j *livekit.JoinRequest) *websocket.Conn {
		conn, _, err := websocket.Dial(ctx, ts.http.URL+ts.v1(ts.token(id, "r"), j), nil)
		if err != nil {
			ts.t.Error(err)
			return nil
		}
		conn.SetReadLimit(maxFrame)
		return conn
	}
	conn := dial(&livekit.JoinRequest{PublisherOffer: &livekit.SessionDescription{Type: "offer", Id: 1, Sdp: dataOffer}})
	if conn == nil {
		return
	}
	defer conn.CloseNow()
	_, frame, err := conn.Read(ctx)
	if err != nil {
		return // superseded already
	}
	first := &livekit.SignalResponse{}
	if err := proto.Unmarshal(frame, first); err != nil {
		ts.t.Error(err)
	}
	switch how {
	case 0: // says leave
		leave, _ := proto.Marshal(leaveRequest())
		_ = conn.Write(ctx, websocket.MessageBinary, leave)
		_, _, _ = conn.Read(ctx)
	case 1: // vanishes
	case 2: // resumes over the old socket, perhaps too late
		if again := dial(&livekit.JoinRequest{Reconnect: true, ParticipantSid: first.GetJoin().GetParticipant().GetSid()}); again != nil {
			_, _, _ = again.Read(ctx)
			_ = again.CloseNow()
		}
	case 3: // is removed
		ts.s.evict("r", id, sfu.ReasonParticipantRemoved)
	case 4: // closes politely without a leave
		_ = conn.Close(websocket.StatusNormalClosure, "")
	}
}

package node

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/livekit/protocol/auth"
	"github.com/livekit/protocol/livekit"
	"google.golang.org/protobuf/proto"
)

// TestStopTellsThoseInACall has a client in a call while the node stops: it
// must hear why, and the node must not wait for it for ever.
func TestStopTellsThoseInACall(t *testing.T) {
	n, stop := start(t, testConfig(t))
	grant := &auth.VideoGrant{RoomJoin: true, Room: "standup"}
	token, err := auth.NewAccessToken(n.Secrets().APIKey, n.Secrets().APISecret).
		SetIdentity("ann").SetVideoGrant(grant).SetValidFor(time.Hour).ToJWT()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, n.LiveKitURL()+"/rtc?protocol=16&auto_subscribe=1&access_token="+token, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	conn.SetReadLimit(1 << 20)
	if join := receive(t, ctx, conn).GetJoin(); join == nil || join.Room.Name != "standup" {
		t.Fatalf("the first message is no join response: %v", join)
	}

	stopped := make(chan struct{})
	began := time.Now()
	go func() { defer close(stopped); stop() }()
	for {
		leave := receive(t, ctx, conn).GetLeave()
		if leave == nil {
			continue // an offer, an update
		}
		if leave.Reason != livekit.DisconnectReason_SERVER_SHUTDOWN {
			t.Errorf("told to leave because of %s", leave.Reason)
		}
		break
	}
	if _, _, err := conn.Read(ctx); err == nil {
		t.Error("the server still talks after the leave")
	}
	<-stopped
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("stopping took %s", took)
	}
}

func receive(t *testing.T, ctx context.Context, conn *websocket.Conn) *livekit.SignalResponse {
	t.Helper()
	_, data, err := conn.Read(ctx)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	var msg livekit.SignalResponse
	if err := proto.Unmarshal(data, &msg); err != nil {
		t.Fatalf("not a signal response: %v %q", err, strings.ToValidUTF8(string(data), "?"))
	}
	return &msg
}

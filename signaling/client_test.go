package signaling

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/livekit/protocol/livekit"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

const (
	testKey    = "APItest"
	testSecret = "0123456789abcdef0123456789abcdef"

	// patience is for machines that are busy with something else.
	patience = 20 * time.Second
)

// A testServer is a signaling server with a real SFU behind a real HTTP port.
type testServer struct {
	t    *testing.T
	s    *Server
	sfu  *sfu.Server
	http *httptest.Server
	gate *recordingGate
	stop func()
}

// newTestServer starts a server; change may shorten timers or replace settings.
func newTestServer(t *testing.T, change ...func(*Server)) *testServer {
	t.Helper()
	cfg := sfu.DefaultConfig()
	cfg.UDPPort, cfg.TCPPort, cfg.Loopback = 0, -1, true
	cfg.BindAddresses = []string{"127.0.0.1"}
	media, err := sfu.New(cfg, sfu.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	own := DefaultConfig()
	own.APIKey, own.APISecret = testKey, testSecret
	s, err := New(own, Deps{SFU: media})
	if err != nil {
		t.Fatal(err)
	}
	ts := &testServer{t: t, s: s, sfu: media, gate: &recordingGate{}}
	s.gate = ts.gate
	for _, f := range change {
		f(s)
	}
	ts.http = httptest.NewServer(s.Handler())
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = media.Run(ctx) })
	wg.Go(func() { _ = s.Run(ctx) })
	ts.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		ts.http.Close()
	})
	t.Cleanup(ts.stop)
	return ts
}

// A recordingGate notes what it hears and refuses whom it is told to.
type recordingGate struct {
	mu      sync.Mutex
	heard   []string
	refuses map[call.Identity]error
}

func (g *recordingGate) check(_ context.Context, grant call.Grant) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refuses[grant.Identity]
}

func (g *recordingGate) refuse(id call.Identity, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refuses == nil {
		g.refuses = make(map[call.Identity]error)
	}
	g.refuses[id] = err
}

func (g *recordingGate) here(_ call.RoomName, id call.Identity) { g.note("here " + string(id)) }

func (g *recordingGate) gone(_ call.RoomName, id call.Identity, intentional bool) {
	g.note(fmt.Sprintf("gone %s %t", id, intentional))
}

func (g *recordingGate) note(s string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.heard = append(g.heard, s)
}

func (g *recordingGate) all() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return strings.Join(g.heard, ", ")
}

// eventually polls until ok, and fails with what is missing.
func eventually(t *testing.T, missing string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("never happened: ", missing)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// token makes a token for a participant that may do everything ordinary.
func (ts *testServer) token(id call.Identity, room call.RoomName) string {
	return ts.tokenFor(call.Grant{Room: room, Identity: id, CanPublish: true, CanSubscribe: true, CanPublishData: true})
}

func (ts *testServer) tokenFor(g call.Grant) string {
	ts.t.Helper()
	token, err := ts.s.mint(g, time.Hour)
	if err != nil {
		ts.t.Fatal(err)
	}
	return token
}

// A testClient is one WebSocket as a LiveKit SDK would use it.
type testClient struct {
	t    *testing.T
	conn *websocket.Conn
	seen []string // kinds of all messages received so far
}

// wrapJoin encodes a join_request parameter.
func wrapJoin(t testing.TB, j *livekit.JoinRequest, zip bool) string {
	t.Helper()
	inner, err := proto.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	wrapped := &livekit.WrappedJoinRequest{JoinRequest: inner}
	if zip {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write(inner)
		_ = w.Close()
		wrapped.Compression, wrapped.JoinRequest = livekit.WrappedJoinRequest_GZIP, b.Bytes()
	}
	outer, err := proto.Marshal(wrapped)
	if err != nil {
		t.Fatal(err)
	}
	return base64.URLEncoding.EncodeToString(outer)
}

func jsClient() *livekit.ClientInfo {
	return &livekit.ClientInfo{Sdk: livekit.ClientInfo_JS, Protocol: 17, Version: "2.23.0"}
}

// v1 is the query of a single-connection join.
func (ts *testServer) v1(token string, j *livekit.JoinRequest) string {
	if j.ClientInfo == nil {
		j.ClientInfo = jsClient()
	}
	if j.ConnectionSettings == nil {
		j.ConnectionSettings = &livekit.ConnectionSettings{AutoSubscribe: true, AdaptiveStream: true}
	}
	q := url.Values{"access_token": {token}, "join_request": {wrapJoin(ts.t, j, true)}}
	return "/rtc/v1?" + q.Encode()
}

// dial opens a socket; the upgrade must succeed.
func (ts *testServer) dial(path string) *testClient {
	ts.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, response, err := websocket.Dial(ctx, ts.http.URL+path, &websocket.DialOptions{
		CompressionMode: websocket.CompressionContextTakeover,
		HTTPHeader:      http.Header{"Origin": {"https://elsewhere.example"}},
	})
	if err != nil {
		ts.t.Fatalf("dial %.40s: %v %v", path, response, err)
	}
	conn.SetReadLimit(16 << 20)
	ts.t.Cleanup(func() { _ = conn.CloseNow() })
	return &testClient{t: ts.t, conn: conn}
}

// join joins with nothing but a token, and returns the join response.
func (ts *testServer) join(id call.Identity, room call.RoomName) (*testClient, *livekit.JoinResponse) {
	ts.t.Helper()
	c := ts.dial(ts.v1(ts.token(id, room), &livekit.JoinRequest{}))
	return c, c.next().GetJoin()
}

func (c *testClient) send(m *livekit.SignalRequest) {
	c.t.Helper()
	frame, err := proto.Marshal(m)
	if err != nil {
		c.t.Fatal(err)
	}
	c.write(websocket.MessageBinary, frame)
}

func (c *testClient) write(kind websocket.MessageType, frame []byte) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.conn.Write(ctx, kind, frame); err != nil {
		c.t.Fatal(err)
	}
}

// next returns the next message.
func (c *testClient) next() *livekit.SignalResponse {
	c.t.Helper()
	m, err := c.read()
	if err != nil {
		c.t.Fatalf("no further message after %v: %v", c.seen[max(0, len(c.seen)-20):], err)
	}
	return m
}

func (c *testClient) read() (*livekit.SignalResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	kind, frame, err := c.conn.Read(ctx)
	if err != nil {
		return nil, err
	}
	m := &livekit.SignalResponse{}
	if kind == websocket.MessageText {
		err = protojson.Unmarshal(frame, m)
	} else {
		err = proto.Unmarshal(frame, m)
	}
	c.seen = append(c.seen, kindOf(m))
	return m, err
}

// kindOf names the member of the oneof that m carries.
func kindOf(m *livekit.SignalResponse) string {
	r := m.ProtoReflect()
	field := r.WhichOneof(r.Descriptor().Oneofs().ByName("message"))
	if field == nil {
		return "nothing"
	}
	return string(field.Name())
}

// await returns the next message of a kind, passing over others.
func (c *testClient) await(kind string) *livekit.SignalResponse {
	c.t.Helper()
	for {
		if m := c.next(); kindOf(m) == kind {
			return m
		}
	}
}

// awaitClose reads until the socket closes and returns the code.
func (c *testClient) awaitClose() websocket.StatusCode {
	c.t.Helper()
	for {
		if _, err := c.read(); err != nil {
			return websocket.CloseStatus(err)
		}
	}
}

// awaitUpdate returns the next record of a participant.
func (c *testClient) awaitUpdate(id call.Identity, ok func(*livekit.ParticipantInfo) bool) *livekit.ParticipantInfo {
	c.t.Helper()
	for {
		for _, p := range c.await("update").GetUpdate().GetParticipants() {
			if p.GetIdentity() == string(id) && ok(p) {
				return p
			}
		}
	}
}

func inState(s livekit.ParticipantInfo_State) func(*livekit.ParticipantInfo) bool {
	return func(p *livekit.ParticipantInfo) bool { return p.GetState() == s }
}

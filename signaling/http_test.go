package signaling

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/livekit/protocol/livekit"

	"github.com/trunkhall/trunkhall/call"
)

// do returns status and body of a request.
func (ts *testServer) do(r *http.Request) (int, string) {
	ts.t.Helper()
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		ts.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		ts.t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func (ts *testServer) get(path string) (int, string) {
	ts.t.Helper()
	r, err := http.NewRequest(http.MethodGet, ts.http.URL+path, nil)
	if err != nil {
		ts.t.Fatal(err)
	}
	return ts.do(r)
}

func TestValidate(t *testing.T) {
	ts := newTestServer(t)
	token := "access_token=" + ts.token("alice", "standup")
	joinless := "access_token=" + forge(plainHeader, plainClaims(object{"video": object{"room": "standup"}}), testSecret)
	plain := "&join_request=" + url.QueryEscape(wrapJoin(t, &livekit.JoinRequest{ClientInfo: jsClient()}, false))
	zipped := "&join_request=" + url.QueryEscape(wrapJoin(t, &livekit.JoinRequest{ClientInfo: jsClient()}, true))
	unpadded := strings.ReplaceAll(zipped, "%3D", "")
	bomb := "&join_request=" + url.QueryEscape(wrapJoin(t, &livekit.JoinRequest{Metadata: strings.Repeat("x", 2<<20)}, true))
	own := "&join_request=" + url.QueryEscape(wrapJoin(t, &livekit.JoinRequest{ParticipantAttributes: map[string]string{"a": "b"}}, true))
	garbage := "&join_request=" + base64.URLEncoding.EncodeToString([]byte("\xff\xff\xff garbage"))
	notZip := "&join_request=" + base64.URLEncoding.EncodeToString([]byte{0x08, 1, 0x12, 3, 'a', 'b', 'c'})

	for _, c := range []struct {
		name, path string
		status     int
		body       string
	}{
		{"v0 needs no join request", "/rtc/validate?" + token, 200, "success"},
		{"v0 takes one", "/rtc/validate?" + token + zipped, 200, "success"},
		{"v1 with gzip", "/rtc/v1/validate?" + token + zipped, 200, "success"},
		{"v1 without compression", "/rtc/v1/validate?" + token + plain, 200, "success"},
		{"v1 without padding", "/rtc/v1/validate?" + token + unpadded, 200, "success"},
		{"a trailing slash in the client's URL", "//rtc/v1/validate?" + token + zipped, 200, "success"},
		{"many of them", "////rtc/validate?" + token, 200, "success"},
		{"below a prefix", "/livekit/sfu/rtc/v1/validate?" + token + zipped, 200, "success"},
		{"no token", "/rtc/validate", 401, "no permissions to access the room"},
		{"no token comes before a bad request", "/rtc/v1/validate", 401, "no permissions to access the room"},
		{"no video grant", "/rtc/v1/validate?access_token=" + forge(plainHeader, plainClaims(object{"video": nil}), testSecret), 401, "no permissions to access the room"},
		{"no token on v1", "/rtc/v1/validate?x=1" + zipped, 401, "no permissions to access the room"},
		{"a bad token", "/rtc/validate?access_token=a.b.c", 401, "invalid authorization token"},
		{"a bad token comes before a bad request", "/rtc/v1/validate?access_token=a.b.c", 401, "invalid authorization token"},
		{"no right to join", "/rtc/validate?" + joinless, 401, "permissions denied"},
		{"v1 without a join request", "/rtc/v1/validate?" + token, 400, "join_request is required"},
		{"not base64", "/rtc/v1/validate?" + token + "&join_request=%21%21", 400, "cannot base64 decode wrapped join request"},
		{"not protobuf", "/rtc/v1/validate?" + token + garbage, 400, "cannot unmarshal wrapped join request"},
		{"not gzip", "/rtc/v1/validate?" + token + notZip, 400, "cannot decompress join request"},
		{"a decompression bomb", "/rtc/v1/validate?" + token + bomb, 400, "join request is too large"},
		{"own attributes without the right", "/rtc/v1/validate?" + token + own, 401, "not allowed to update its own metadata"},
		{"attributes that are not base64", "/rtc/validate?" + token + "&attributes=%21", 400, "cannot decode attributes"},
		{"not an upgrade", "/rtc?" + token, 404, ""},
		{"not an upgrade on v1", "/rtc/v1?" + token + zipped, 404, ""},
		{"alive", "/", 200, "OK"},
		{"healthy", "/healthz", 200, ""},
		{"an unknown path", "/settings/regions", 404, "404 page not found\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body := ts.get(c.path)
			if status != c.status || !strings.Contains(body, c.body) || (c.body == "" && body != "") {
				t.Errorf("got %d %q, want %d %q", status, body, c.status, c.body)
			}
		})
	}
	if _, ok := ts.sfu.Room("standup"); ok {
		t.Error("validating made the room")
	}
}

func TestValidateMissingRoom(t *testing.T) {
	ts := newTestServer(t, func(s *Server) { s.cfg.AutoCreate = false })
	path := "/rtc/validate?access_token=" + ts.token("alice", "standup")
	// Clients look for exactly these words to tell a missing room from a
	// missing service.
	if status, body := ts.get(path); status != 404 || body != "requested room does not exist" {
		t.Errorf("got %d %q", status, body)
	}
	ts.sfu.OpenRoom("standup", ts.s.roomOptions(nil))
	if status, body := ts.get(path); status != 200 {
		t.Errorf("got %d %q for a room that exists", status, body)
	}
}

func TestGateDecides(t *testing.T) {
	ts := newTestServer(t)
	path := "/rtc/validate?access_token=" + ts.token("alice", "standup")
	for _, c := range []struct {
		err    error
		status int
	}{
		{fmt.Errorf("kicked: %w", call.ErrForbidden), 401},
		{fmt.Errorf("database: %w", call.ErrUnavailable), 503},
		{fmt.Errorf("never 404: %w", call.ErrNotFound), 500},
		{errors.New("defect"), 500},
		{nil, 200},
	} {
		ts.gate.refuse("alice", c.err)
		if status, body := ts.get(path); status != c.status || strings.Contains(body, "database") {
			t.Errorf("%v: got %d %q, want %d", c.err, status, body, c.status)
		}
	}
}

func TestCORS(t *testing.T) {
	ts := newTestServer(t)
	const origin = "https://call.element.io"
	ask := func(method, path string, header ...string) http.Header {
		r, err := http.NewRequest(method, ts.http.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Origin", origin)
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		response, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return response.Header
	}
	h := ask(http.MethodOptions, "/twirp/livekit.RoomService/ListRooms",
		"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,content-type")
	for name, want := range map[string]string{
		"Access-Control-Allow-Origin":  origin,
		"Access-Control-Allow-Methods": "POST",
		"Access-Control-Allow-Headers": "authorization,content-type",
		"Access-Control-Max-Age":       "86400",
	} {
		if got := h.Get(name); got != want {
			t.Errorf("preflight: %s is %q, want %q", name, got, want)
		}
	}
	if h := ask(http.MethodOptions, "/rtc", "Access-Control-Request-Method", "TRACE"); h.Get("Access-Control-Allow-Methods") != "" {
		t.Error("preflight allows TRACE")
	}
	if h := ask(http.MethodHead, "/"); h.Get("Access-Control-Allow-Origin") != origin || h.Get("Access-Control-Expose-Headers") != "*" {
		t.Errorf("plain answer: %v", h)
	}
	if h := ask(http.MethodGet, "/rtc/validate"); h.Get("Access-Control-Allow-Origin") != "*" {
		t.Error("pages can not read why they were refused")
	}
}

// TestLongRequestLine sends what a browser without CompressionStream sends.
func TestLongRequestLine(t *testing.T) {
	ts := newTestServer(t)
	request := wrapJoin(t, &livekit.JoinRequest{ClientInfo: &livekit.ClientInfo{OtherSdks: strings.Repeat("s", 40<<10)}}, false)
	path := "/rtc/v1/validate?access_token=" + ts.token("alice", "standup") + "&join_request=" + url.QueryEscape(request)
	if status, body := ts.get(path); status != 200 {
		t.Errorf("got %d %q for a request line of %d bytes", status, body, len(path))
	}
}

// TestBadUpgrade proves that a participant does not stay behind when its
// WebSocket handshake fails after the join.
func TestBadUpgrade(t *testing.T) {
	ts := newTestServer(t, quick)
	conn, err := net.Dial("tcp", ts.http.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /rtc?access_token=%s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 3\r\n\r\n", ts.token("alice", "standup"))
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusBadRequest {
		t.Errorf("status %d", response.StatusCode)
	}
	eventually(t, "alice is reported gone", func() bool { return ts.gate.all() == "here alice, gone alice false" })
	if ts.s.seated("standup", "alice") != nil {
		t.Error("alice still has a seat")
	}
}

func TestEveryKindOfErrorHasAnEdge(t *testing.T) {
	for _, kind := range call.Kinds() {
		e := edgeOf(fmt.Errorf("doing something: %w", kind))
		if e == internalEdge || e.status < 400 || twirpStatus[e.twirp] < 400 || e.reason == livekit.RequestResponse_OK {
			t.Errorf("%v: %+v", kind, e)
		}
	}
	if edgeOf(errors.New("defect")) != internalEdge {
		t.Error("a defect is told as something else")
	}
}

func FuzzJoinRequest(f *testing.F) {
	f.Add(wrapJoin(f, &livekit.JoinRequest{ClientInfo: jsClient()}, true))
	f.Add(wrapJoin(f, &livekit.JoinRequest{Reconnect: true, ParticipantSid: "PA_x"}, false))
	f.Add("CAESA2FiYw==")
	f.Add("====")
	f.Fuzz(func(t *testing.T, parameter string) {
		j := &joining{}
		if _, bad := j.readJoinRequest(parameter); bad != nil && bad.status != http.StatusBadRequest {
			t.Errorf("refused with %d", bad.status)
		}
	})
}

func TestBrowsers(t *testing.T) {
	for _, c := range []struct{ agent, browser, version, system string }{
		{"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36", "chrome", "140.0.0.0", "linux"},
		{"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36 Edg/140.0.1", "edge", "140.0.1", "windows"},
		{"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "firefox", "140.0", "linux"},
		{"Mozilla/5.0 (Android 14; Mobile; rv:140.0) Gecko/140.0 Firefox/140.0", "firefox", "140.0", "android"},
		{"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.3 Safari/605.1.15", "safari", "18.3", "macos"},
		{"Mozilla/5.0 (iPhone; CPU iPhone OS 18_3 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/140.0 Mobile/15E148 Safari/604.1", "safari", "140.0", "ios"},
		{"curl/8", "", "", ""},
	} {
		browser, version := browserOf(c.agent)
		if browser != c.browser || version != c.version || systemOf(c.agent) != c.system {
			t.Errorf("%s: %s %s on %s", c.agent, browser, version, systemOf(c.agent))
		}
	}
}

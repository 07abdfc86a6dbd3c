package node

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/config"
	"github.com/trunkhall/trunkhall/matrix"
)

// phoneConfig is a node with a telephone gateway.
func phoneConfig(t *testing.T) config.Config {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cfg := testConfig(t)
	cfg.SIP.Enabled = true
	cfg.SIP.Listen = []string{"udp://" + conn.LocalAddr().String()}
	cfg.SIP.BindIP, cfg.SIP.ExternalIP = "127.0.0.1", "127.0.0.1"
	cfg.SIP.Trunks = []call.Trunk{{ID: "pbx", Direction: "inbound", In: call.TrunkInbound{CIDRs: []string{"127.0.0.9/32"}}}}
	cfg.SIP.Dispatch = []call.DispatchRule{{Match: call.DispatchMatch{To: "+4930123456"}, Action: call.DispatchAction{Type: "pin"}}}
	cfg.Web.MetricsToken = "0123456789abcdef"
	return cfg
}

// send makes a request with a bearer token and returns status and body.
func send(t *testing.T, n *Node, method, path, token, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequest(method, n.LocalURL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// TestTelephonesOverHTTP asks a whole node as the web client, an operator and
// Prometheus do.
func TestTelephonesOverHTTP(t *testing.T) {
	n, stop := start(t, phoneConfig(t))
	defer stop()
	login := func(name string, admin bool) string {
		id, err := n.Homeserver().CreateUser(t.Context(), name, "correct horse", admin)
		if err != nil {
			t.Fatal(err)
		}
		token, _, err := n.Homeserver().Login(t.Context(), id, "test")
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	alice, root := login("alice", false), login("root", true)
	status, body := send(t, n, "POST", "/_matrix/client/v3/createRoom", alice, `{"preset":"private_chat"}`)
	var room struct {
		ID matrix.RoomID `json:"room_id"`
	}
	if err := json.Unmarshal([]byte(body), &room); err != nil || status != 200 {
		t.Fatal(status, body)
	}
	path := "/_trunkhall/phones/v1/rooms/" + strings.ReplaceAll(string(room.ID), ":", "%3A")

	for _, c := range []struct {
		name, method, path, token, body string
		status                          int
		want                            string
	}{
		{"nobody", "GET", "/_trunkhall/phones/v1/config", "", "", 401, "M_MISSING_TOKEN"},
		{"a user", "GET", "/_trunkhall/phones/v1/config", alice, "", 200, `"number":"+4930123456"`},
		{"there is nothing to call out with", "GET", "/_trunkhall/phones/v1/config", alice, "", 200, `"dial_out":false`},
		{"her room", "GET", path, alice, "", 200, `"may_change":true`},
		{"not the operator's room", "GET", path, root, "", 403, "M_FORBIDDEN"},
		{"a PIN", "POST", path + "/pin", alice, "{}", 200, `"pin":"`},
		{"settings", "PUT", path + "/settings", alice, `{"locked":true}`, 200, `"locked":true`},
		{"dialling", "POST", path + "/dial", alice, `{"number":"+4930999"}`, 403, `"cause":"not_allowed"`},
		{"no operator", "GET", "/_trunkhall/admin/v1/phones", alice, "", 403, "M_FORBIDDEN"},
		{"the operator", "GET", "/_trunkhall/admin/v1/phones", root, "", 200, `"id":"pbx"`},
		{"a trunk", "PUT", "/_trunkhall/admin/v1/phones/trunks/new", root, `{"direction":"inbound","inbound":{"cidrs":["127.0.0.8/32"]},"max_duration":"1h"}`, 200, "{}"},
		{"an open trunk", "PUT", "/_trunkhall/admin/v1/phones/trunks/open", root, `{"direction":"inbound"}`, 400, "M_INVALID_PARAM"},
		{"a trunk of the configuration", "PUT", "/_trunkhall/admin/v1/phones/trunks/pbx", root, `{"direction":"inbound","inbound":{"cidrs":["127.0.0.8/32"]}}`, 409, "CONFLICT"},
		{"that trunk", "GET", "/_trunkhall/admin/v1/phones/trunks/new", root, "", 200, `"max_duration":"1h0m0s"`},
		{"no more trunk", "DELETE", "/_trunkhall/admin/v1/phones/trunks/new", root, "", 200, "{}"},
		{"the dial plan", "GET", "/_trunkhall/admin/v1/phones/explain?number=112", root, "", 200, `"steps"`},
		{"strangers see no numbers", "GET", "/metrics", "", "", 401, ""},
		{"Prometheus", "GET", "/metrics", "0123456789abcdef", "", 200, `trunkhall_participants{kind="sip"} 0`},
		{"bans", "GET", "/metrics", "0123456789abcdef", "", 200, "\ntrunkhall_sip_banned_sources 0\n"},
		{"the process", "GET", "/metrics", "0123456789abcdef", "", 200, "\ngo_goroutines "},
		{"the page", "GET", "/operator", "", "", 200, "<html"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body := send(t, n, c.method, c.path, c.token, c.body)
			if status != c.status || !strings.Contains(body, c.want) {
				t.Errorf("%s %s answered %d %s, want %d and %s", c.method, c.path, status, body, c.status, c.want)
			}
		})
	}
	if status, body := send(t, n, "GET", "/_trunkhall/phones/v1/config", "0123456789abcdef", ""); status != 401 {
		t.Errorf("the token for metrics opens other doors: %d %s", status, body)
	}
}

// TestNoTelephones checks that a server without trunks says so everywhere.
func TestNoTelephones(t *testing.T) {
	n, stop := start(t, testConfig(t))
	defer stop()
	if status, body := get(t, n, "/_trunkhall/phones/v1/config"); status != 404 || !strings.Contains(body, "M_UNRECOGNIZED") {
		t.Errorf("the client is answered %d %s", status, body)
	}
	if n.Phones() != nil {
		t.Error("there is a gateway")
	}
	names := make(map[string]bool)
	for _, m := range n.metrics() {
		names[m.Name] = true
	}
	if !names["rooms"] || names["sip_bans_total"] {
		t.Errorf("metrics %v", fmt.Sprint(names))
	}
}

package phones

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/test/harness"
)

// A telephone is called by inviting the user of its number, from any client.
func TestInvitedNumbers(t *testing.T) {
	const answering = "+4915112345690"
	callee := FreePort(t, "127.0.0.1")
	g := StartGateway(t, GatewayOptions{Lines: []string{"out-486"}, Trunks: fmt.Sprintf(`
    - {id: callee, direction: outbound, targets: ["sip:127.0.0.1:%d"], allow_prefixes: ["%s"], caller_id: {mode: fixed, default: "+4930123450"}}`, callee, answering)})
	a := g.account(0)
	ghost := func(number string) string { return "@_phone_" + strings.TrimPrefix(number, "+") + ":localhost" }
	path := func(room string, rest string) string {
		return "/v3/rooms/" + url.PathEscape(room) + rest
	}
	invite := func(number string) string {
		room, err := a.CreateRoom(t.Context(), map[string]any{"preset": "private_chat"})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Do(t.Context(), http.MethodPost, path(room, "/invite"), map[string]any{"user_id": ghost(number)}, nil); err != nil {
			t.Fatalf("inviting %s: %v", ghost(number), err)
		}
		return room
	}
	membership := func(room, user string) string {
		var c struct {
			Membership string `json:"membership"`
		}
		_ = a.Do(t.Context(), http.MethodGet, path(room, "/state/m.room.member/"+url.PathEscape(user)), nil, &c)
		return c.Membership
	}
	// inCall lists whose call memberships the room has.
	inCall := func(room string) (users []string) {
		var state []struct {
			Type    string          `json:"type"`
			Sender  string          `json:"sender"`
			Content json.RawMessage `json:"content"`
		}
		if err := a.Do(t.Context(), http.MethodGet, path(room, "/state"), nil, &state); err != nil {
			t.Fatal(err)
		}
		for _, e := range state {
			if e.Type == "org.matrix.msc3401.call.member" && string(e.Content) != "{}" {
				users = append(users, e.Sender)
			}
		}
		return users
	}

	t.Run("one that answers", func(t *testing.T) {
		phone := StartPhone(t, PhoneOptions{Name: "callee", User: answering, Port: callee, Says: Tone(phoneHz, long)})
		room := invite(answering)
		phone.Must("CALL_ESTABLISHED")
		eventually(t, 20*time.Second, "the ghost is in the call", func() error {
			if m, in := membership(room, ghost(answering)), inCall(room); m != "join" || len(in) != 1 || in[0] != ghost(answering) {
				return fmt.Errorf("its membership is %q, in the call are %q", m, in)
			}
			return nil
		})
		phone.Hangup()
		eventually(t, 20*time.Second, "the ghost is gone", func() error {
			if m, in := membership(room, ghost(answering)), inCall(room); m != "leave" || len(in) != 0 {
				return fmt.Errorf("its membership is %q, in the call are %q", m, in)
			}
			return nil
		})
	})

	t.Run("one that is busy", func(t *testing.T) {
		line := g.Lines["out-486"]
		p := Play(t, Scenario{File: "out-486", IP: line.Addr.Addr().String(), Port: int(line.Addr.Port())})
		room := invite(line.Number)
		said(t, a, path(room, "/messages?dir=b&limit=50"), "busy")
		eventually(t, 20*time.Second, "the ghost does not stay", func() error {
			if m, in := membership(room, ghost(line.Number)), inCall(room); m != "leave" || len(in) != 0 {
				return fmt.Errorf("its membership is %q, in the call are %q", m, in)
			}
			return nil
		})
		p.Must()
	})

	t.Run("one that may not be called", func(t *testing.T) {
		room := invite("+4990012345678")
		said(t, a, path(room, "/messages?dir=b&limit=50"), "")
		if in := inCall(room); len(in) != 0 {
			t.Errorf("in the call are %q", in)
		}
	})
}

// said waits for a notice in a room's timeline with a word in it.
func said(t *testing.T, a *harness.Account, messages, word string) {
	t.Helper()
	eventually(t, 20*time.Second, "the room is told", func() error {
		var page struct {
			Chunk []struct {
				Type    string `json:"type"`
				Content struct {
					MsgType string `json:"msgtype"`
					Body    string `json:"body"`
				} `json:"content"`
			} `json:"chunk"`
		}
		if err := a.Do(t.Context(), http.MethodGet, messages, nil, &page); err != nil {
			return err
		}
		var notices []string
		for _, e := range page.Chunk {
			if e.Type == "m.room.message" && e.Content.MsgType == "m.notice" {
				notices = append(notices, e.Content.Body)
				if strings.Contains(strings.ToLower(e.Content.Body), word) {
					return nil
				}
			}
		}
		return fmt.Errorf("the notices are %q", notices)
	})
}

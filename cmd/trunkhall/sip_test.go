package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/config"
	"github.com/trunkhall/trunkhall/node"
	"github.com/trunkhall/trunkhall/sip"
)

// A pbx answers OPTIONS with 200 and every INVITE with 486, on loopback.
func pbx(t *testing.T) (addr string) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { pc.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 65535)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if reply := pbxReply(string(buf[:n])); reply != "" {
				_, _ = pc.WriteTo([]byte(reply), from)
			}
		}
	}()
	return pc.LocalAddr().String()
}

func pbxReply(req string) string {
	head, _, _ := strings.Cut(req, "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	method, _, _ := strings.Cut(lines[0], " ")
	status, body := "", ""
	switch method {
	case "OPTIONS":
		status = "200 OK"
		body = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 0 RTP/AVP 8 97\r\na=rtpmap:97 G729/8000\r\n"
	case "INVITE":
		status = "486 Busy Here"
	default:
		return ""
	}
	reply := "SIP/2.0 " + status + "\r\n"
	for _, line := range lines[1:] {
		name, _, _ := strings.Cut(line, ":")
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "via", "from", "call-id", "cseq":
			reply += line + "\r\n"
		case "to":
			reply += line + ";tag=pbx\r\n"
		}
	}
	return reply + fmt.Sprintf("Server: TestPBX\r\nContent-Type: application/sdp\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func sipConfig(t *testing.T, target string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "t.yaml")
	text := `
data_dir: ` + t.TempDir() + `
web: {listen: "127.0.0.1:0"}
sfu: {udp_port: 0, tcp_port: -1, bind_addresses: ["127.0.0.1"]}
turn: {enabled: false}
sip:
  listen: ["udp://127.0.0.1:0"]
  rtp_ports: 33400-33420
  default_country: DE
  rooms:
    - {room: lobby, title: The lobby, pin: "482913"}
  trunks:
    - {id: pbx, direction: both, targets: ["sip:` + target + `"], inbound: {cidrs: [127.0.0.1/32]}, allow_prefixes: ["+49"]}
  dispatch:
    - {match: {to: "+4930555000"}, action: {type: pin}}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestSIPCommandLine(t *testing.T) {
	for _, c := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{[]string{"sip"}, exitUsage, "usage: trunkhall sip"},
		{[]string{"sip", "sing"}, exitUsage, `no "sing"`},
		{[]string{"sip", "help"}, exitOK, ""},
		{[]string{"sip", "explain"}, exitUsage, "NUMBER"},
		{[]string{"sip", "pin"}, exitUsage, "ROOM"},
		{[]string{"sip", "check", "one", "two"}, exitUsage, `"two"`},
		{[]string{"sip", "bans", "lift"}, exitUsage, "lift ADDRESS"},
		{[]string{"sip", "bans", "raise", "1.2.3.4"}, exitUsage, "lift ADDRESS"},
		{[]string{"sip", "calls", "--loud"}, exitUsage, "-loud"},
		{[]string{"sip", "check", "-h"}, exitOK, "-call"},
		{[]string{"sip", "check", "--data", t.TempDir()}, exitError, "switched off"},
		{[]string{"sip", "bans", "--data", t.TempDir()}, exitError, "does not run"},
		{[]string{"sip", "pin", "--data", t.TempDir(), "#a:b"}, exitError, "does not run"},
	} {
		if code, _, stderr := command(t, "", c.args...); code != c.code || !strings.Contains(stderr, c.stderr) {
			t.Errorf("%q: exit %d, %q", c.args, code, stderr)
		}
	}
}

func TestSIPWithoutServer(t *testing.T) { trySIP(t, sipConfig(t, pbx(t)), false) }

// The same answers come from a server that runs, through its socket.
func TestSIPWithServer(t *testing.T) {
	file := sipConfig(t, pbx(t))
	cfg, err := config.Load(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n, err := node.New(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	trySIP(t, file, true)
}

func trySIP(t *testing.T, file string, running bool) {
	for _, c := range []struct {
		name string
		args []string
		code int
		says []string
	}{
		{"a trunk that works", []string{"check", "pbx"}, exitOK, []string{"ok", "TestPBX", "in common: PCMA"}},
		{"all trunks", []string{"check"}, exitOK, []string{"pbx"}},
		{"a trunk that is not there", []string{"check", "other"}, exitError, []string{"not found"}},
		{"a test call to somebody who is busy", []string{"check", "pbx", "--call", "030 1234567"}, exitError, []string{"not answered", "one thing does not work"}},
		{"a test call that may not be", []string{"check", "pbx", "--call", "0900 1234567"}, exitError, []string{"not placed"}},
		{"a number", []string{"explain", "030 1234567"}, exitOK, []string{"would be called over pbx"}},
		{"an emergency", []string{"explain", "112"}, exitOK, []string{"refused (emergency)"}},
		{"a number of ours", []string{"explain", "+4930555000"}, exitOK, []string{"refused (own_number)"}},
		{"a media room's PIN", []string{"pin", "lobby"}, exitOK, []string{"The lobby", "482913"}},
		{"which is not made anew", []string{"pin", "--rotate", "lobby"}, exitError, []string{"configuration"}},
		{"calls", []string{"calls"}, exitOK, []string{"+49 30 1234567", "busy"}},
	} {
		args := append([]string{"sip", c.args[0], "--config", file}, c.args[1:]...)
		code, stdout, stderr := command(t, "", args...)
		if code != c.code {
			t.Errorf("%s: exit %d\n%s%s", c.name, code, stdout, stderr)
		}
		for _, want := range c.says {
			if !strings.Contains(stdout+stderr, want) {
				t.Errorf("%s: nothing about %q\n%s%s", c.name, want, stdout, stderr)
			}
		}
	}
	code, stdout, _ := command(t, "", "sip", "check", "--json", "--config", file)
	var checks []sip.TrunkCheck
	if err := json.Unmarshal([]byte(stdout), &checks); err != nil || code != exitOK || len(checks) != 1 || !checks[0].OK() {
		t.Errorf("check --json: exit %d, %v, %s", code, err, stdout)
	}
	code, stdout, stderr := command(t, "", "sip", "explain", "--user", "@nobody:localhost", "--config", file, "030 1234567")
	if want := map[bool]string{true: "there is no user", false: "rights, budgets and trunks made by API"}[running]; code != exitOK || !strings.Contains(stdout, want) {
		t.Errorf("explain for a user: exit %d\n%s%s", code, stdout, stderr)
	}
	code, stdout, stderr = command(t, "", "sip", "bans", "--config", file)
	if running && (code != exitOK || !strings.Contains(stdout, "nobody is banned")) || !running && code != exitError {
		t.Errorf("bans: exit %d\n%s%s", code, stdout, stderr)
	}
	code, _, stderr = command(t, "", "sip", "bans", "--config", file, "lift", "192.0.2.1")
	if code != exitError || running && !strings.Contains(stderr, "not banned") {
		t.Errorf("lift: exit %d\n%s", code, stderr)
	}
}

func TestSIPTargetIsSilent(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	began := time.Now()
	code, stdout, stderr := command(t, "", "sip", "check", "--config", sipConfig(t, pc.LocalAddr().String()))
	if code != exitError || !strings.Contains(stdout, "firewall") {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
	if d := time.Since(began); d > time.Minute {
		t.Errorf("it took %s", d)
	}
}

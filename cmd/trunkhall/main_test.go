package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/config"
)

// command runs a command line and returns its exit code and output.
func command(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = run(context.Background(), env{args: args, stdin: strings.NewReader(stdin), stdout: &out, stderr: &errOut})
	return code, out.String(), errOut.String()
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string // parts of them
	}{
		{"nothing", nil, exitUsage, "", "usage: trunkhall COMMAND"},
		{"help", []string{"help"}, exitOK, "usage: trunkhall COMMAND", ""},
		{"a command that is none", []string{"sing"}, exitUsage, "", `no command "sing"`},
		{"version", []string{"version"}, exitOK, "trunkhall ", ""},
		{"config", []string{"config"}, exitOK, "data_dir:", ""},
		{"a flag that is none", []string{"serve", "--loud"}, exitUsage, "", "-loud"},
		{"a word too many", []string{"serve", "now"}, exitUsage, "", `"now" is one word too many`},
		{"help of a command", []string{"demo", "-h"}, exitOK, "", "open-registration"},
		{"a configuration that is not there", []string{"serve", "--config", "/nonexistent/t.yaml"}, exitError, "", "/nonexistent/t.yaml"},
		{"an address that is none", []string{"demo", "--listen", "here"}, exitError, "", "web.listen"},
		{"user alone", []string{"user"}, exitUsage, "", "usage: trunkhall user"},
		{"user and a verb that is none", []string{"user", "praise"}, exitUsage, "", `no "praise"`},
		{"whose password?", []string{"user", "passwd"}, exitUsage, "", "whose account"},
	} {
		code, stdout, stderr := command(t, "", c.args...)
		if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", c.name, code, stdout, stderr)
		}
	}
}

func TestPrintedConfigIsUsable(t *testing.T) {
	_, text, _ := command(t, "", "config")
	if _, err := config.Parse([]byte(text)); err != nil {
		t.Error(err)
	}
}

func TestUserCommands(t *testing.T) {
	dir := t.TempDir()
	if code, stdout, stderr := command(t, "correct horse battery\n", "user", "add", "--data", dir, "carol"); code != exitOK || !strings.Contains(stdout, "@carol:localhost") {
		t.Fatalf("add: %d %q %q", code, stdout, stderr)
	}
	if code, _, stderr := command(t, "correct horse battery\n", "user", "add", "--data", dir, "carol"); code != exitError || stderr == "" {
		t.Errorf("adding twice: %d %q", code, stderr)
	}
	if code, _, stderr := command(t, "", "user", "add", "--data", dir, "dave"); code != exitError || !strings.Contains(stderr, "--generate") {
		t.Errorf("no password: %d %q", code, stderr)
	}
	if code, stdout, stderr := command(t, "", "user", "passwd", "--data", dir, "--generate", "carol"); code != exitOK || !strings.Contains(stdout, "password: ") {
		t.Errorf("passwd: %d %q %q", code, stdout, stderr)
	}
	if code, stdout, stderr := command(t, "", "user", "list", "--data", dir); code != exitOK || !strings.Contains(stdout, "@carol:localhost") {
		t.Errorf("list: %d %q %q", code, stdout, stderr)
	}
}

// startDemo runs a demo and returns its JSON line and a function that stops it.
func startDemo(t *testing.T, args ...string) (demoReady, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out, in := io.Pipe()
	var logs bytes.Buffer
	ended := make(chan int, 1)
	go func() {
		args := append([]string{"demo", "--json", "--listen", "127.0.0.1:0"}, args...)
		ended <- run(ctx, env{args: args, stdin: strings.NewReader(""), stdout: in, stderr: &logs})
		in.Close()
	}()
	lines := bufio.NewReader(out)
	line, err := lines.ReadBytes('\n')
	if err != nil {
		cancel()
		t.Fatalf("no line: %v, exit %d, log %s", err, <-ended, &logs)
	}
	var ready demoReady
	if err := json.Unmarshal(line, &ready); err != nil {
		t.Errorf("%s: %v", line, err)
	}
	return ready, func() {
		t.Helper()
		cancel()
		rest, _ := io.ReadAll(lines)
		select {
		case code := <-ended:
			if code != exitOK || len(rest) != 0 {
				t.Errorf("exit %d, more than one line on stdout: %q, log %s", code, rest, &logs)
			}
		case <-time.After(60 * time.Second):
			t.Fatal("the demo does not stop")
		}
	}
}

// whoami returns the user that an access token belongs to.
func whoami(t *testing.T, base, token string) string {
	t.Helper()
	req, err := http.NewRequest("GET", base+"/_matrix/client/v3/account/whoami", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var reply struct {
		UserID string `json:"user_id"`
	}
	_ = json.NewDecoder(resp.Body).Decode(&reply)
	return reply.UserID
}

func TestDemo(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ready, stop := startDemo(t)
	if len(ready.Users) != 2 || ready.Users[0].UserID != "@alice:localhost" || ready.Users[1].UserID != "@bob:localhost" {
		t.Errorf("users %+v", ready.Users)
	}
	for _, u := range ready.Users {
		if got := whoami(t, ready.Homeserver, u.AccessToken); got != u.UserID || u.DeviceID == "" || u.Password == "" {
			t.Errorf("the token of %+v belongs to %q", u, got)
		}
	}
	if ready.LiveKitURL != strings.Replace(ready.Homeserver, "http", "ws", 1) || ready.JWTService != ready.Homeserver+"/livekit/jwt" {
		t.Errorf("addresses %+v", ready)
	}
	if ready.APIKey == "" || len(ready.APISecret) < 32 {
		t.Error("no key for LiveKit tokens")
	}
	if len(ready.TURN.URIs) == 0 || ready.TURN.Username == "" || ready.TURN.Password == "" || ready.TURN.TTL == 0 {
		t.Errorf("TURN %+v", ready.TURN)
	}
	left, _ := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "trunkhall-demo-*"))
	if len(left) != 1 {
		t.Errorf("data directories while it runs: %v", left)
	}
	stop()
	if left, _ := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "trunkhall-demo-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestDemoKeepsItsData(t *testing.T) {
	dir := t.TempDir()
	first, stop := startDemo(t, "--data", dir)
	stop()
	second, stop := startDemo(t, "--data", dir)
	defer stop()
	if second.Users[0] != first.Users[0] || second.APISecret != first.APISecret {
		t.Error("users or secrets changed with the restart")
	}
	if got := whoami(t, second.Homeserver, first.Users[0].AccessToken); got != first.Users[0].UserID {
		t.Errorf("the old token belongs to %q", got)
	}
}

// TestDemoForPeople reads the words: the links must work.
func TestDemoForPeople(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	out, in := io.Pipe()
	ended := make(chan int, 1)
	var logs bytes.Buffer
	go func() {
		ended <- run(ctx, env{args: []string{"demo", "--listen", "127.0.0.1:0"}, stdin: strings.NewReader(""), stdout: in, stderr: &logs})
		in.Close()
	}()
	var link string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, after, ok := strings.Cut(lines.Text(), "Guest link"); ok {
			link = strings.TrimSpace(after)
		}
		if strings.HasPrefix(lines.Text(), "Ctrl-C") {
			break
		}
	}
	if !strings.Contains(link, "/call/%21") || !strings.HasSuffix(link, "&guest") {
		t.Errorf("guest link %q, log %s", link, &logs)
	} else {
		req, _ := http.NewRequest("GET", link, nil)
		req.Close = true
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("GET %s: %s", link, resp.Status)
		}
	}
	cancel()
	rest, _ := io.ReadAll(out)
	if code := <-ended; code != exitOK || !strings.Contains(string(rest), "removed") {
		t.Errorf("exit %d, last words %q", code, rest)
	}
}

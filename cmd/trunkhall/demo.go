package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/config"
	"github.com/trunkhall/trunkhall/homeserver"
	"github.com/trunkhall/trunkhall/node"
)

// demoUsers are made at the start of every demo.
var demoUsers = []string{"alice", "bob"}

// A demoUser is one of them, signed in.
type demoUser struct {
	UserID      string `json:"user_id"`
	Password    string `json:"password"`
	AccessToken string `json:"access_token"`
	DeviceID    string `json:"device_id"`
}

// demoReady is what 'demo --json' prints, once, when everything can be used.
type demoReady struct {
	Homeserver string     `json:"homeserver"`
	LiveKitURL string     `json:"livekit_url"`
	JWTService string     `json:"jwt_service"`
	APIKey     string     `json:"api_key"`
	APISecret  string     `json:"api_secret"`
	TURN       demoTURN   `json:"turn"`
	Users      []demoUser `json:"users"`
}

// demoTURN are TURN servers with credentials, in the shape of the Matrix
// endpoint voip/turnServer.
type demoTURN struct {
	URIs     []string `json:"uris"`
	Username string   `json:"username"`
	Password string   `json:"password"`
	TTL      int64    `json:"ttl"` // seconds
}

type demoFlags struct {
	listen           string
	config           string
	data             string
	json             bool
	openRegistration bool
	udpPort          int
	tcpPort          int
	turnPort         int
}

func demo(ctx context.Context, e env) error {
	fs := e.flags("demo", "demo [flags]\n\n"+
		"Runs a server to try out, with the users alice and bob. Settings come from the\n"+
		"environment as for 'serve'; the media ports are any free ones.")
	var f demoFlags
	fs.StringVar(&f.listen, "listen", "127.0.0.1:8008", "`host:port` of the HTTP port; port 0 takes any free one")
	fs.StringVar(&f.config, "config", "", "configuration `file` under the demo's own settings, as for telephone lines")
	fs.StringVar(&f.data, "data", "", "keep the data in this `directory`; otherwise it is removed at the end")
	fs.BoolVar(&f.json, "json", false, "print one line of JSON when ready, for programs")
	fs.BoolVar(&f.openRegistration, "open-registration", true, "let everybody make an account")
	fs.IntVar(&f.udpPort, "udp-port", 0, "UDP `port` for media; 0 takes any free one")
	fs.IntVar(&f.tcpPort, "tcp-port", 0, "TCP `port` for media; 0 takes any free one, -1 takes none")
	fs.IntVar(&f.turnPort, "turn-port", 0, "`port` of the TURN relay; 0 takes any free one")
	if err := e.parse(fs, 0); err != nil {
		return err
	}
	cfg, err := e.load(f.config)
	if err != nil {
		return err
	}
	f.apply(&cfg, e.environ)

	if cfg.DataDir = f.data; f.data == "" {
		if cfg.DataDir, err = os.MkdirTemp("", "trunkhall-demo-"); err != nil {
			return err
		}
		defer os.RemoveAll(cfg.DataDir)
	}
	return runDemo(ctx, e, cfg, f)
}

// apply puts the demo's own settings into cfg, but leaves alone what the
// environment has set.
func (f demoFlags) apply(cfg *config.Config, environ []string) {
	given := func(path string) bool {
		for _, entry := range environ {
			if strings.HasPrefix(entry, config.EnvName(path)+"=") {
				return true
			}
		}
		return false
	}
	cfg.Web.Listen = f.listen
	if f.openRegistration && !given("homeserver.registration") {
		cfg.Homeserver.Registration = homeserver.RegistrationOpen
	}
	if !given("sfu.udp_port") {
		cfg.SFU.UDPPort = f.udpPort
	}
	if !given("sfu.tcp_port") {
		cfg.SFU.TCPPort = f.tcpPort
	}
	if !given("turn.port") {
		cfg.TURN.Port = f.turnPort
	}
	if !given("log.level") {
		cfg.Log.Level = "warn"
	}
}

// runDemo runs the node, makes the users and tells how to get in.
func runDemo(ctx context.Context, e env, cfg config.Config, f demoFlags) error {
	log := e.logger(cfg.Log)
	n, err := node.New(ctx, cfg, log)
	if err != nil {
		return err
	}
	runCtx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- n.Run(runCtx) }()

	err = announce(ctx, e, n, cfg.DataDir, f)
	if err != nil {
		stop()
		return errors.Join(err, <-ended)
	}
	// Making passwords takes memory that is not needed again.
	debug.FreeOSMemory()
	err = <-ended
	if !f.json {
		if f.data == "" {
			fmt.Fprintln(e.stdout, "\nStopped; the demo's data is removed.")
		} else {
			fmt.Fprintln(e.stdout, "\nStopped; the data is kept in", f.data)
		}
	}
	return err
}

// announce makes the demo's users and prints how to reach everything.
func announce(ctx context.Context, e env, n *node.Node, dir string, f demoFlags) error {
	users, err := makeUsers(ctx, n.Homeserver(), dir)
	if err != nil {
		return err
	}
	if f.json {
		line, err := json.Marshal(ready(n, users))
		if err != nil {
			return err
		}
		_, err = e.stdout.Write(append(line, '\n'))
		return err
	}
	link, err := makeGuestRoom(ctx, n, users[0])
	if err != nil {
		return err
	}
	base := n.BaseURL()
	fmt.Fprintf(e.stdout, "Trunkhall %s is running at %s\n\n", versionText(), base)
	for _, u := range users {
		fmt.Fprintf(e.stdout, "  Sign in at   %s  as %s with password %s\n", base, localpart(u.UserID), u.Password)
	}
	fmt.Fprintf(e.stdout, "  Guest link   %s\n\n", link)
	fmt.Fprint(e.stdout, "Open them in two browsers, or in two private windows, and press Call.\nCtrl-C stops it.\n")
	return nil
}

func ready(n *node.Node, users []demoUser) demoReady {
	secrets := n.Secrets()
	r := demoReady{
		Homeserver: n.BaseURL(),
		LiveKitURL: n.LiveKitURL(),
		JWTService: n.LiveKitServiceURL(),
		APIKey:     secrets.APIKey,
		APISecret:  secrets.APISecret,
		TURN:       demoTURN{URIs: []string{}},
		Users:      users,
	}
	var servers []call.ICEServer
	var ttl time.Duration
	if servers, ttl = n.ICEServers("demo"); len(servers) > 0 {
		r.TURN.Username, r.TURN.Password = servers[0].Username, servers[0].Credential
		r.TURN.TTL = int64(ttl.Seconds())
	}
	for _, s := range servers {
		r.TURN.URIs = append(r.TURN.URIs, s.URLs...)
	}
	return r
}

// usersFile keeps the demo's users in a data directory that outlives it, so that
// a second start finds them signed in as before.
const usersFile = "demo-users.json"

// makeUsers makes the demo's users and signs them in, or finds those of an
// earlier start.
func makeUsers(ctx context.Context, home *homeserver.Server, dir string) ([]demoUser, error) {
	name := filepath.Join(dir, usersFile)
	users := make([]demoUser, len(demoUsers))
	data, err := os.ReadFile(name)
	if err == nil {
		if err := json.Unmarshal(data, &users); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return users, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	errs := make([]error, len(demoUsers))
	var wg sync.WaitGroup // hashing a password is slow on purpose: side by side
	for i, name := range demoUsers {
		wg.Go(func() { users[i], errs[i] = makeUser(ctx, home, name) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if data, err = json.Marshal(users); err != nil {
		return nil, err
	}
	return users, os.WriteFile(name, data, 0o600)
}

func makeUser(ctx context.Context, home *homeserver.Server, name string) (demoUser, error) {
	password := strings.ToLower(rand.Text()[:16])
	id, err := home.CreateUser(ctx, name, password, false)
	if err != nil {
		return demoUser{}, fmt.Errorf("make the user %s: %w", name, err)
	}
	token, device, err := home.Login(ctx, id, "Trunkhall demo")
	if err != nil {
		return demoUser{}, fmt.Errorf("sign in %s: %w", name, err)
	}
	return demoUser{string(id), password, token, string(device)}, nil
}

// guestRoom is a room that anybody with the link may enter: unlisted, encrypted.
const guestRoom = `{
	"name": "The demo hall",
	"preset": "public_chat",
	"visibility": "private",
	"initial_state": [
		{"type": "m.room.guest_access", "state_key": "", "content": {"guest_access": "can_join"}},
		{"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}},
		{"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "shared"}}
	],
	"power_level_content_override": {"events": {
		"org.matrix.msc3401.call.member": 0,
		"m.rtc.member": 0
	}}
}`

// makeGuestRoom makes a room as the user and returns the link into it.
func makeGuestRoom(ctx context.Context, n *node.Node, u demoUser) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost,
		n.LocalURL()+"/_matrix/client/v3/createRoom", bytes.NewReader([]byte(guestRoom)))
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+u.AccessToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("make the demo room: %w", err)
	}
	defer resp.Body.Close()
	var reply struct {
		RoomID string `json:"room_id"`
		Error  string `json:"error"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&reply); err != nil {
		return "", fmt.Errorf("make the demo room: %w", err)
	}
	if reply.RoomID == "" {
		return "", fmt.Errorf("make the demo room: %s: %s", resp.Status, reply.Error)
	}
	return n.BaseURL() + "/call/" + url.PathEscape(reply.RoomID) +
		"?via=" + url.QueryEscape(string(n.Homeserver().ServerName())) + "&guest", nil
}

func localpart(userID string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(userID, "@"), ":")
	return name
}

// Package node is one running Trunkhall: it builds the parts from a
// configuration, starts them in order and stops them in reverse.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/config"
	"github.com/trunkhall/trunkhall/homeserver"
	"github.com/trunkhall/trunkhall/matrix"
	"github.com/trunkhall/trunkhall/sfu"
	"github.com/trunkhall/trunkhall/signaling"
	"github.com/trunkhall/trunkhall/sip"
	"github.com/trunkhall/trunkhall/storage"
	"github.com/trunkhall/trunkhall/turn"
	"github.com/trunkhall/trunkhall/web"
)

// goodbye bounds how long a stopping node waits for the clients in calls to
// take notice before their connections are closed.
const goodbye = 2 * time.Second

// A Node is one running Trunkhall. New opens the data directory and binds every
// socket; Run serves and returns when all has ended. A node runs once.
type Node struct {
	cfg     config.Config
	secrets Secrets
	log     *slog.Logger

	lock   *dirLock
	db     *storage.DB
	sfu    *sfu.Server
	turn   *turn.Server // nil when switched off
	home   *homeserver.Server
	calls  *signaling.Server
	phones *sip.Server // nil when switched off
	web    *web.Server

	parts []part // in the order in which they start
}

// A part is something that New has built and that serves until its context ends.
type part struct {
	name string
	run  func(context.Context) error
}

// New validates the configuration, opens the data directory, generates missing
// secrets and binds all sockets. Nothing is served before Run.
func New(ctx context.Context, cfg config.Config, log *slog.Logger) (*Node, error) {
	n := &Node{cfg: cfg, log: log}
	if err := n.build(ctx); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// build makes the parts, each after those it needs.
func (n *Node) build(ctx context.Context) error {
	if err := n.cfg.Validate(); err != nil {
		return err
	}
	if err := n.openData(ctx); err != nil {
		return err
	}
	if err := n.buildMedia(); err != nil {
		return err
	}
	if err := n.buildMatrix(); err != nil {
		return err
	}
	if err := n.buildPhones(); err != nil {
		return err
	}
	return n.buildFront()
}

// openData takes the data directory, fills in the secrets and opens the
// database.
func (n *Node) openData(ctx context.Context) (err error) {
	if n.lock, err = lockDir(n.cfg.DataDir); err != nil {
		return err
	}
	if n.secrets, err = loadSecrets(n.cfg.DataDir); err != nil {
		return err
	}
	n.secrets.override(n.cfg)
	n.cfg.Signaling.APIKey = n.secrets.APIKey
	n.cfg.Signaling.APISecret = n.secrets.APISecret
	n.cfg.TURN.Secret = n.secrets.TURNSecret
	n.db, err = openDatabase(ctx, n.cfg.DataDir, n.log)
	return err
}

func openDatabase(ctx context.Context, dir string, log *slog.Logger) (*storage.DB, error) {
	return storage.OpenSQLite(ctx, filepath.Join(dir, "trunkhall.db"), log.With("part", "storage"))
}

// buildMedia builds the SFU and the TURN relay that reaches it.
func (n *Node) buildMedia() (err error) {
	cfg := n.cfg.SFU
	if n.local() && len(cfg.BindAddresses) == 0 && len(cfg.NodeIPs) == 0 {
		// Nobody else can join a call, so nobody else needs to reach its media.
		cfg.BindAddresses = []string{n.localIP()}
	}
	if n.sfu, err = sfu.New(cfg, sfu.Deps{Log: n.log.With("part", "sfu")}); err != nil {
		return fmt.Errorf("sfu: %w", err)
	}
	n.add("sfu", n.sfu.Run)

	if !n.cfg.TURN.Enabled {
		return nil
	}
	n.turn, err = turn.New(n.cfg.TURN, turn.Deps{
		MediaAddrs: n.sfu.MediaAddrs,
		Log:        n.log.With("part", "turn"),
	})
	if err != nil {
		return fmt.Errorf("turn: %w", err)
	}
	n.add("turn", n.turn.Run)
	return nil
}

// buildMatrix builds the homeserver and the signaling that ties its rooms to
// the SFU.
func (n *Node) buildMatrix() (err error) {
	deps := homeserver.Deps{
		Store:     n.db,
		Endpoints: n.endpoints,
		MediaDir:  filepath.Join(n.cfg.DataDir, "media"),
		Log:       n.log.With("part", "homeserver"),
	}
	callDeps := signaling.Deps{
		SFU:        n.sfu,
		Store:      n.db,
		LiveKitURL: n.LiveKitURL,
		Log:        n.log.With("part", "signaling"),
	}
	if n.turn != nil {
		deps.ICEServers = n.turn.ICEServers
		callDeps.ICEServers = n.turn.ICEServers
		callDeps.RevokeICE = n.turn.Revoke
	}
	if n.home, err = homeserver.New(n.cfg.Homeserver, deps); err != nil {
		return fmt.Errorf("homeserver: %w", err)
	}
	n.add("homeserver", n.home.Run)

	callDeps.Rooms = n.home
	callDeps.Ghosts = n.home
	callDeps.PhoneSecret = n.secrets.PhoneSecret
	if n.calls, err = signaling.New(n.cfg.Signaling, callDeps); err != nil {
		return fmt.Errorf("signaling: %w", err)
	}
	n.add("signaling", n.calls.Run)
	return nil
}

// buildFront binds the HTTP port and the socket of the commands.
func (n *Node) buildFront() (err error) {
	admin, err := newAdmin(n.cfg.DataDir, localUsers{n.home},
		runningPhones{n.phones, n.calls.PhoneDirectory(), n.cfg.SIP.Rooms}, n.log.With("part", "admin"))
	if err != nil {
		return err
	}
	n.add("admin", admin.run)
	deps := web.Deps{
		Matrix:       n.home.Handler(),
		Calls:        n.calls.Handler(),
		Metrics:      n.metrics,
		ClientConfig: n.clientConfig,
		Log:          n.log.With("part", "web"),
	}
	if n.phones != nil {
		deps.Phones = sip.NewAPI(sip.APIDeps{
			Gateway: n.phones,
			Rooms:   n.calls.PhoneDirectory(),
			User:    n.phoneUser,
			DialOut: n.phones.Outbound,
			Log:     n.log.With("part", "sip"),
		}).Handler()
	}
	n.web, err = web.New(n.cfg.Web, deps)
	if err != nil {
		return err
	}
	n.add("web", n.web.Run)
	return nil
}

func (n *Node) add(name string, run func(context.Context) error) {
	n.parts = append(n.parts, part{name, run})
}

// Run serves until ctx ends or a part fails. Then it says goodbye to the clients
// in calls, stops the parts in reverse order and closes the data directory.
func (n *Node) Run(ctx context.Context) error {
	parts := n.parts
	n.parts = nil // Close has nothing left to do
	failed := make(chan error, len(parts))
	var stops []func()
	for _, p := range parts {
		// A part outlives ctx: it is stopped in its turn.
		partCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if err := p.run(partCtx); err != nil {
				failed <- fmt.Errorf("%s: %w", p.name, err)
			}
		}()
		stops = append(stops, func() { cancel(); <-ended })
	}

	var err error
	select {
	case <-ctx.Done():
		n.log.Info("stopping")
	case err = <-failed:
		n.log.Error("a part failed; stopping", "err", err)
	}
	n.drain()
	for i := len(stops) - 1; i >= 0; i-- {
		stops[i]()
	}
	closeErr := n.closeData()
	close(failed)
	for more := range failed {
		err = errors.Join(err, more)
	}
	return errors.Join(err, closeErr)
}

// drain tells everybody in a call to leave and waits, for a bounded time, until
// they have.
func (n *Node) drain() {
	n.web.Drain()
	n.sfu.Drain(sfu.ReasonServerShutdown)
	deadline := time.NewTimer(goodbye)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n.inCalls() > 0 {
		select {
		case <-tick.C:
		case <-deadline.C:
			return
		}
	}
}

// inCalls counts the participants of all rooms.
func (n *Node) inCalls() int {
	count := 0
	for _, r := range n.sfu.Rooms() {
		count += r.Participants
	}
	return count
}

// Close gives everything back that New has taken, when Run was not called.
func (n *Node) Close() {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for i := len(n.parts) - 1; i >= 0; i-- {
		// Run with an ended context does nothing but close.
		if err := n.parts[i].run(ended); err != nil {
			n.log.Debug("close", "part", n.parts[i].name, "err", err)
		}
	}
	n.parts = nil
	if err := n.closeData(); err != nil {
		n.log.Debug("close the data directory", "err", err)
	}
}

func (n *Node) closeData() error {
	var err error
	if n.db != nil {
		err = n.db.Close()
		n.db = nil
	}
	if n.lock != nil {
		err = errors.Join(err, n.lock.release())
		n.lock = nil
	}
	return err
}

// Homeserver returns the homeserver, for commands that make users.
func (n *Node) Homeserver() *homeserver.Server { return n.home }

// Secrets returns the keys in use, given or generated.
func (n *Node) Secrets() Secrets { return n.secrets }

// Addr returns the address of the HTTP port.
func (n *Node) Addr() netip.AddrPort { return n.web.Addr() }

// ICEServers returns TURN servers with credentials for a user; none when TURN is
// switched off.
func (n *Node) ICEServers(user string) ([]call.ICEServer, time.Duration) {
	if n.turn == nil {
		return nil, 0
	}
	return n.turn.ICEServers(user)
}

// LocalURL returns how this process itself reaches the HTTP port.
func (n *Node) LocalURL() string {
	scheme := "http"
	if n.web.TLS() {
		scheme = "https"
	}
	addr := n.web.Addr()
	ip := addr.Addr().Unmap()
	switch {
	case ip.IsUnspecified() && ip.Is4():
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case ip.IsUnspecified():
		ip = netip.IPv6Loopback()
	}
	return scheme + "://" + netip.AddrPortFrom(ip, addr.Port()).String()
}

// BaseURL returns how clients reach the HTTP port, without a trailing slash.
func (n *Node) BaseURL() string {
	if n.cfg.PublicURL != "" {
		return n.cfg.PublicURL
	}
	scheme := "http"
	if n.web.TLS() {
		scheme = "https"
	}
	return scheme + "://" + n.host()
}

// LiveKitURL returns the WebSocket URL for LiveKit clients.
func (n *Node) LiveKitURL() string {
	// http becomes ws, https becomes wss.
	return "ws" + n.BaseURL()[len("http"):]
}

// LiveKitServiceURL returns the URL of the token service (MSC4195). Clients take
// two spellings for two services, so there is exactly this one.
func (n *Node) LiveKitServiceURL() string { return n.BaseURL() + "/livekit/jwt" }

// host returns host and port of the listener as the configuration spells the
// host. A listener on every address is told as localhost: there is no better
// name without public_url.
func (n *Node) host() string {
	host, _, _ := net.SplitHostPort(n.cfg.Web.Listen)
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, strconv.Itoa(int(n.web.Addr().Port())))
}

// local reports whether this server is for its own machine only: no other can
// reach the HTTP port, and no reverse proxy is in front.
func (n *Node) local() bool { return n.cfg.PublicURL == "" && n.localIP() != "" }

// localIP returns the loopback address that the HTTP port listens on, or "".
func (n *Node) localIP() string {
	host, _, _ := net.SplitHostPort(n.cfg.Web.Listen)
	if host == "localhost" {
		return "127.0.0.1"
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsLoopback() {
		return ip.String()
	}
	return ""
}

func (n *Node) endpoints() homeserver.Endpoints {
	return homeserver.Endpoints{
		BaseURL:           n.BaseURL(),
		LiveKitServiceURL: n.LiveKitServiceURL(),
		LiveKitURL:        n.LiveKitURL(),
	}
}

// A clientConfig is what the web client reads at /config.json.
type clientConfig struct {
	HomeserverBaseURL string            `json:"homeserver_base_url"`
	ServerName        matrix.ServerName `json:"server_name"`
}

func (n *Node) clientConfig() any {
	return clientConfig{n.BaseURL(), n.home.ServerName()}
}

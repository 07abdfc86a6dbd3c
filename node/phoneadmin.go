package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/config"
	"github.com/trunkhall/trunkhall/sfu"
	"github.com/trunkhall/trunkhall/signaling"
	"github.com/trunkhall/trunkhall/sip"
	"github.com/trunkhall/trunkhall/sip/guard"
	"github.com/trunkhall/trunkhall/sip/ledger"
)

// Phones manages the telephones of a data directory. It asks the running server,
// and does what can be done without one otherwise: trying trunks from ports of its
// own, explaining the configuration, reading records.
type Phones interface {
	// Running reports whether a server is asked.
	Running() bool
	// Trunks returns the ids of the trunks.
	Trunks(ctx context.Context) ([]string, error)
	// Check tries a trunk without placing a call.
	Check(ctx context.Context, trunk string) (sip.TrunkCheck, error)
	// TestCall places a short call over a trunk.
	TestCall(ctx context.Context, trunk, number string) (sip.TrunkCheck, error)
	// Explain goes through the dial plan. trunk, user and room may be empty.
	Explain(ctx context.Context, number, trunk, user, room string) (sip.Explanation, error)
	// PIN returns the numbers and the PIN of a room, a new one if rotate is set or
	// it has none.
	PIN(ctx context.Context, room string, rotate bool) (RoomPIN, error)
	// Bans returns the addresses that are shut out.
	Bans(ctx context.Context) ([]guard.Ban, error)
	// LiftBan ends a ban and reports whether there was one.
	LiftBan(ctx context.Context, ip string) (bool, error)
	// Calls returns the calls of now and the last ones that have ended.
	Calls(ctx context.Context, limit int) (PhoneCalls, error)
	Close() error
}

// RoomPIN is what somebody dials to come into a room.
type RoomPIN struct {
	Room    string   `json:"room"`
	Title   string   `json:"title,omitempty"`
	PIN     string   `json:"pin"`
	Numbers []string `json:"numbers"`
}

// PhoneCalls are calls of now, and records of those that have ended, the latest
// first.
type PhoneCalls struct {
	Live    []call.Leg      `json:"live"`
	Records []ledger.Record `json:"records"`
}

// OpenPhones returns the telephones of the data directory of cfg.
func OpenPhones(ctx context.Context, cfg config.Config, log *slog.Logger) (Phones, error) {
	lock, err := lockDir(cfg.DataDir)
	if errors.Is(err, ErrInUse) {
		u, err := dialUsers(cfg.DataDir, err)
		if err != nil {
			return nil, err
		}
		remote := u.(*remoteUsers)
		remote.http.Timeout = 5 * time.Minute // a test call rings
		return &remotePhones{remote}, nil
	}
	if err != nil {
		return nil, err
	}
	return &stoppedPhones{cfg: cfg, log: log, lock: lock}, nil
}

// runningPhones are the telephones of this process.
type runningPhones struct {
	phones *sip.Server // nil when switched off
	rooms  *signaling.PhoneDirectory
	static []sip.StaticRoom
}

func (p runningPhones) Running() bool { return true }
func (p runningPhones) Close() error  { return nil }

func (p runningPhones) Trunks(context.Context) (ids []string, err error) {
	if p.phones == nil {
		return nil, errNoPhones
	}
	for _, t := range p.phones.Trunks() {
		ids = append(ids, t.Trunk.ID)
	}
	return ids, nil
}

func (p runningPhones) Check(ctx context.Context, trunk string) (sip.TrunkCheck, error) {
	if p.phones == nil {
		return sip.TrunkCheck{}, errNoPhones
	}
	return p.phones.Check(ctx, trunk)
}

func (p runningPhones) TestCall(ctx context.Context, trunk, number string) (sip.TrunkCheck, error) {
	if p.phones == nil {
		return sip.TrunkCheck{}, errNoPhones
	}
	return p.phones.TestCall(ctx, trunk, number)
}

func (p runningPhones) Explain(ctx context.Context, number, trunk, user, room string) (sip.Explanation, error) {
	if p.phones == nil {
		return sip.Explanation{}, errNoPhones
	}
	if room != "" {
		place, err := p.rooms.Room(ctx, room)
		if err != nil {
			return sip.Explanation{}, err
		}
		room = place.RoomID
	}
	return p.phones.ExplainFor(ctx, number, trunk, user, room), nil
}

func (p runningPhones) PIN(ctx context.Context, room string, rotate bool) (RoomPIN, error) {
	if p.phones == nil {
		return RoomPIN{}, errNoPhones
	}
	out := RoomPIN{Room: room}
	for _, n := range p.phones.Numbers() {
		out.Numbers = append(out.Numbers, n.Number)
	}
	for _, s := range p.static {
		if s.Room == room {
			return staticPIN(s, out.Numbers, rotate)
		}
	}
	place, err := p.rooms.Room(ctx, room)
	if err != nil {
		return out, err
	}
	if place.RoomID == "" {
		return out, fmt.Errorf("%s is no Matrix room (#alias:server or !id) and not under sip.rooms: %w", room, call.ErrNotFound)
	}
	out.Title = place.Title
	if rotate {
		out.PIN, err = p.rooms.RotatePIN(ctx, place.RoomID, "")
	} else {
		out.PIN, err = p.rooms.PIN(ctx, place.RoomID)
	}
	return out, err
}

// staticPIN is the PIN of a media room of the configuration.
func staticPIN(s sip.StaticRoom, numbers []string, rotate bool) (RoomPIN, error) {
	if rotate || s.PIN == "" {
		return RoomPIN{}, fmt.Errorf("%s is under sip.rooms of the configuration: its PIN is set there", s.Room)
	}
	return RoomPIN{Room: s.Room, Title: s.Title, PIN: s.PIN, Numbers: numbers}, nil
}

func (p runningPhones) Bans(context.Context) ([]guard.Ban, error) {
	if p.phones == nil {
		return nil, errNoPhones
	}
	return p.phones.Bans(), nil
}

func (p runningPhones) LiftBan(_ context.Context, ip string) (bool, error) {
	if p.phones == nil {
		return false, errNoPhones
	}
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return false, fmt.Errorf("%q is no address: %w", ip, call.ErrInvalid)
	}
	return p.phones.LiftBan(addr), nil
}

func (p runningPhones) Calls(_ context.Context, limit int) (PhoneCalls, error) {
	if p.phones == nil {
		return PhoneCalls{}, errNoPhones
	}
	out := PhoneCalls{Records: p.phones.Records(ledger.Filter{Limit: limit})}
	for _, l := range p.phones.Legs() {
		if l.State != call.LegEnded {
			out.Live = append(out.Live, l)
		}
	}
	return out, nil
}

// A phoneRequest is one of the commands of Phones on its way to the server.
type phoneRequest struct {
	Trunk  string `json:"trunk,omitempty"`
	Number string `json:"number,omitempty"`
	User   string `json:"user,omitempty"`
	Room   string `json:"room,omitempty"`
	Rotate bool   `json:"rotate,omitempty"`
	IP     string `json:"ip,omitempty"`
	Limit  int    `json:"limit,omitempty"`
}

// phonesPrefix begins the names of these commands on the admin socket.
const phonesPrefix = "phones."

func (p runningPhones) answer(ctx context.Context, do string, r phoneRequest) (any, error) {
	switch strings.TrimPrefix(do, phonesPrefix) {
	case "trunks":
		return p.Trunks(ctx)
	case "check":
		return p.Check(ctx, r.Trunk)
	case "call":
		return p.TestCall(ctx, r.Trunk, r.Number)
	case "explain":
		return p.Explain(ctx, r.Number, r.Trunk, r.User, r.Room)
	case "pin":
		return p.PIN(ctx, r.Room, r.Rotate)
	case "bans":
		return p.Bans(ctx)
	case "lift":
		return p.LiftBan(ctx, r.IP)
	case "calls":
		return p.Calls(ctx, r.Limit)
	}
	return nil, fmt.Errorf("unknown command %q", do)
}

func (p runningPhones) reply(ctx context.Context, do string, r phoneRequest) (json.RawMessage, error) {
	out, err := p.answer(ctx, do, r)
	if err != nil {
		return nil, err
	}
	return json.Marshal(out)
}

// remotePhones are the telephones of a server in another process.
type remotePhones struct{ admin *remoteUsers }

func (p *remotePhones) Running() bool { return true }
func (p *remotePhones) Close() error  { return p.admin.Close() }

func askPhones[T any](ctx context.Context, p *remotePhones, do string, r phoneRequest) (out T, err error) {
	reply, err := p.admin.ask(ctx, adminRequest{Do: phonesPrefix + do, Phones: &r})
	if err != nil {
		return out, err
	}
	return out, json.Unmarshal(reply.Result, &out)
}

func (p *remotePhones) Trunks(ctx context.Context) ([]string, error) {
	return askPhones[[]string](ctx, p, "trunks", phoneRequest{})
}

func (p *remotePhones) Check(ctx context.Context, trunk string) (sip.TrunkCheck, error) {
	return askPhones[sip.TrunkCheck](ctx, p, "check", phoneRequest{Trunk: trunk})
}

func (p *remotePhones) TestCall(ctx context.Context, trunk, number string) (sip.TrunkCheck, error) {
	return askPhones[sip.TrunkCheck](ctx, p, "call", phoneRequest{Trunk: trunk, Number: number})
}

func (p *remotePhones) Explain(ctx context.Context, number, trunk, user, room string) (sip.Explanation, error) {
	return askPhones[sip.Explanation](ctx, p, "explain", phoneRequest{Number: number, Trunk: trunk, User: user, Room: room})
}

func (p *remotePhones) PIN(ctx context.Context, room string, rotate bool) (RoomPIN, error) {
	return askPhones[RoomPIN](ctx, p, "pin", phoneRequest{Room: room, Rotate: rotate})
}

func (p *remotePhones) Bans(ctx context.Context) ([]guard.Ban, error) {
	return askPhones[[]guard.Ban](ctx, p, "bans", phoneRequest{})
}

func (p *remotePhones) LiftBan(ctx context.Context, ip string) (bool, error) {
	return askPhones[bool](ctx, p, "lift", phoneRequest{IP: ip})
}

func (p *remotePhones) Calls(ctx context.Context, limit int) (PhoneCalls, error) {
	return askPhones[PhoneCalls](ctx, p, "calls", phoneRequest{Limit: limit})
}

// stoppedPhones are the telephones of a data directory in which nothing runs.
type stoppedPhones struct {
	cfg  config.Config
	log  *slog.Logger
	lock *dirLock
}

func (p *stoppedPhones) Running() bool { return false }
func (p *stoppedPhones) Close() error  { return p.lock.release() }

// errStopped answers what only a running server knows.
var errStopped = errors.New("the server does not run, and only it knows that: start it first")

func (p *stoppedPhones) Trunks(context.Context) (ids []string, err error) {
	if !p.cfg.SIP.On() {
		return nil, errNoPhones
	}
	for _, t := range p.cfg.SIP.Trunks {
		ids = append(ids, t.ID)
	}
	return ids, nil
}

func (p *stoppedPhones) Check(ctx context.Context, trunk string) (out sip.TrunkCheck, err error) {
	err = p.with(ctx, trunk, func(ctx context.Context, s *sip.Server) (err error) {
		out, err = s.Check(ctx, trunk)
		return err
	})
	return out, err
}

func (p *stoppedPhones) TestCall(ctx context.Context, trunk, number string) (out sip.TrunkCheck, err error) {
	err = p.with(ctx, trunk, func(ctx context.Context, s *sip.Server) (err error) {
		out, err = s.TestCall(ctx, trunk, number)
		return err
	})
	return out, err
}

// with runs f with a gateway that has only that trunk, listens on ports of its own
// and ends with f.
func (p *stoppedPhones) with(ctx context.Context, trunk string, f func(context.Context, *sip.Server) error) error {
	cfg, err := p.cfg.SIP.ForCheck(trunk, p.records())
	if err != nil {
		return err
	}
	secrets, err := loadSecrets(p.cfg.DataDir)
	if err != nil {
		return err
	}
	media := sfu.DefaultConfig()
	media.UDPPort, media.TCPPort, media.BindAddresses = 0, -1, []string{"127.0.0.1"} // no browser will come
	rooms, err := sfu.New(media, sfu.Deps{Log: p.log})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 2)
	run := func(part func(context.Context) error) { go func() { ended <- part(ctx) }() }
	s, err := sip.New(cfg, sip.Deps{SFU: rooms, Secret: []byte(secrets.PhoneSecret), Log: p.log})
	if err != nil {
		stop()
		run(rooms.Run)
		return errors.Join(err, <-ended)
	}
	run(rooms.Run)
	run(s.Run)
	err = f(ctx, s)
	stop()
	return errors.Join(err, <-ended, <-ended)
}

func (p *stoppedPhones) records() string {
	if dir := p.cfg.SIP.Records.Dir; dir != "" {
		return dir
	}
	return filepath.Join(p.cfg.DataDir, "calls")
}

func (p *stoppedPhones) Explain(_ context.Context, number, trunk, user, _ string) (sip.Explanation, error) {
	return sip.ExplainConfig(p.cfg.SIP, number, trunk, user)
}

func (p *stoppedPhones) PIN(_ context.Context, room string, rotate bool) (RoomPIN, error) {
	for _, s := range p.cfg.SIP.Rooms {
		if s.Room == room {
			return staticPIN(s, nil, rotate)
		}
	}
	return RoomPIN{}, errStopped
}

func (p *stoppedPhones) Bans(context.Context) ([]guard.Ban, error) { return nil, errStopped }

func (p *stoppedPhones) LiftBan(context.Context, string) (bool, error) { return false, errStopped }

func (p *stoppedPhones) Calls(_ context.Context, limit int) (PhoneCalls, error) {
	cfg := p.cfg.SIP.Records
	l, err := ledger.Open(ledger.Config{Dir: p.records(), MaxSize: cfg.MaxSize, Keep: cfg.Keep}, time.Now(), p.log)
	if err != nil {
		return PhoneCalls{}, err
	}
	return PhoneCalls{Records: l.Records(ledger.Filter{Limit: limit})}, l.Close()
}

// Package signaling turns what clients say into calls of the SFU. Its LiveKit
// half speaks the LiveKit protocol, version 17: tokens, the /rtc WebSocket, the
// RoomService over Twirp. Its MatrixRTC half hands out those tokens to members
// of Matrix rooms (MSC4195) and sends their delayed leaves.
package signaling

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// Config is what an operator may choose about signaling.
type Config struct {
	// APIKey is the issuer of the LiveKit tokens, APISecret their HMAC secret.
	APIKey    string `yaml:"api_key"`
	APISecret string `yaml:"api_secret"`
	// TokenTTL is the lifetime of the tokens that this server mints.
	TokenTTL time.Duration `yaml:"token_ttl"`
	// LeaveGrace is how long a participant is kept whose signal socket is lost
	// or silent.
	LeaveGrace time.Duration `yaml:"leave_grace"`
	// AutoCreate makes a room that does not exist when somebody joins it.
	AutoCreate bool `yaml:"auto_create"`
	// EmptyTimeout closes a room that nobody has joined, LeaveTimeout one that
	// everybody has left.
	EmptyTimeout time.Duration `yaml:"empty_timeout"`
	LeaveTimeout time.Duration `yaml:"leave_timeout"`
	// MaxParticipants bounds a room; 0 means no limit.
	MaxParticipants int `yaml:"max_participants"`
}

// DefaultConfig returns the settings of a server whose operator chose nothing.
// Key and secret are empty: they are generated at the first start.
func DefaultConfig() Config {
	return Config{
		TokenTTL:     10 * time.Minute,
		LeaveGrace:   15 * time.Second,
		AutoCreate:   true,
		EmptyTimeout: 300 * time.Second,
		LeaveTimeout: 20 * time.Second,
	}
}

// Validate returns every complaint about c, joined.
func (c Config) Validate() error {
	var errs []error
	if c.APIKey == "" {
		errs = append(errs, errors.New("signaling.api_key: needed"))
	}
	if len(c.APISecret) < 32 {
		errs = append(errs, errors.New("signaling.api_secret: needs at least 32 characters"))
	}
	if c.TokenTTL < time.Minute || c.TokenTTL > 24*time.Hour {
		errs = append(errs, fmt.Errorf("signaling.token_ttl: %s is not between 1m and 24h", c.TokenTTL))
	}
	if c.LeaveGrace <= 0 || c.LeaveGrace > 5*time.Minute {
		errs = append(errs, fmt.Errorf("signaling.leave_grace: %s is not between 0s and 5m", c.LeaveGrace))
	}
	if c.EmptyTimeout < 0 {
		errs = append(errs, fmt.Errorf("signaling.empty_timeout: %s is negative", c.EmptyTimeout))
	}
	if c.LeaveTimeout < 0 {
		errs = append(errs, fmt.Errorf("signaling.leave_timeout: %s is negative", c.LeaveTimeout))
	}
	if c.MaxParticipants < 0 {
		errs = append(errs, fmt.Errorf("signaling.max_participants: %d is negative", c.MaxParticipants))
	}
	return errors.Join(errs...)
}

// Deps are the parts that signaling works with.
type Deps struct {
	SFU        *sfu.Server
	Rooms      Rooms               // nil: no Matrix, every valid token is welcome
	Store      Store               // needed with Rooms
	ICEServers call.ICEServersFunc // nil: no TURN
	RevokeICE  func(user string)   // ends credentials that ICEServers gave; may be nil
	LiveKitURL func() string       // the URL that clients are told, with Rooms

	Ghosts Ghosts // what telephones need of Rooms' homeserver; nil: none come into Matrix rooms
	// PhoneSecret is the key under which PINs are hashed and the ghosts' identity
	// keys are made. Empty: one is made of the API secret.
	PhoneSecret string

	Log *slog.Logger
}

// A Server is the signaling of one node. New makes it, Run serves it; Handler
// may be mounted before Run is called.
type Server struct {
	cfg   Config
	deps  Deps
	log   *slog.Logger
	times times
	gate  gate
	rtc   *matrixRTC // nil without Matrix
	http  http.Handler

	directory *PhoneDirectory
	phones    Phones // nil: no telephones; set before Run

	ctx    context.Context // ends when Run's does: sessions live no longer
	cancel context.CancelFunc

	mu      sync.Mutex // guards the following fields
	halls   map[call.RoomName]*hall
	closing bool
	wg      sync.WaitGroup // sessions and their sockets; no Add once closing

	joins    [64]sync.Mutex // see joinTurn; taken before presence
	joinSeed maphash.Seed

	// presence orders the reports to the gate: who holds it may change a seat
	// and must report the change before letting go. Taken before mu.
	presence sync.Mutex
}

// times are the protocol's timers, in one place so that tests can shorten them.
type times struct {
	wsPing        time.Duration // WebSocket pings
	refresh       time.Duration // new tokens for connected participants
	flush         time.Duration // a leave may take this long to reach the socket
	closeWait     time.Duration // and the closing handshake this long
	updateBatch   time.Duration // changes of mere subscribers in big rooms
	roomCounters  time.Duration // at most one update of a room's counters per
	tick          time.Duration // the sessions' housekeeping
	stall         time.Duration // a longer gap between ticks is this machine's fault
	secondThought time.Duration // after a client's leave, for those that come back at once
}

func defaultTimes() times {
	return times{
		wsPing:        10 * time.Second,
		refresh:       5 * time.Minute,
		flush:         250 * time.Millisecond,
		closeWait:     2 * time.Second,
		updateBatch:   3 * time.Second,
		roomCounters:  5 * time.Second,
		tick:          time.Second,
		stall:         4 * time.Second,
		secondThought: 2 * time.Second,
	}
}

// New returns a server for cfg. It opens no sockets of its own.
func New(cfg Config, deps Deps) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.SFU == nil {
		return nil, errors.New("signaling: no SFU")
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{
		cfg:    cfg,
		deps:   deps,
		log:    deps.Log,
		times:  defaultTimes(),
		gate:   openGate{},
		ctx:    ctx,
		cancel: cancel,
		halls:  make(map[call.RoomName]*hall),

		joinSeed: maphash.MakeSeed(),
	}
	if deps.Rooms != nil {
		rtc, err := newMatrixRTC(cfg, deps, s.evict, s.mint)
		if err != nil {
			cancel()
			return nil, fmt.Errorf("matrix authorisation: %w", err)
		}
		s.rtc, s.gate = rtc, rtc
	}
	s.directory = newPhoneDirectory(s)
	s.http = s.routes()
	return s, nil
}

// Handler serves the LiveKit protocol and, with Matrix, the token endpoints.
func (s *Server) Handler() http.Handler { return s.http }

// Run serves until ctx ends, then tells every client to connect again
// elsewhere and returns when all sessions have ended.
func (s *Server) Run(ctx context.Context) error {
	var background sync.WaitGroup
	var rtcErr error
	if s.rtc != nil {
		background.Go(func() { rtcErr = s.rtc.run(ctx) })
	}
	background.Go(func() { s.directory.run(ctx) })
	<-ctx.Done()
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	background.Wait()
	if rtcErr != nil && !errors.Is(rtcErr, context.Canceled) {
		return rtcErr
	}
	return nil
}

// begin starts f as one of the goroutines that Run waits for. It reports
// whether it did: a server that is closing starts nothing.
func (s *Server) begin(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.wg.Go(f)
	return true
}

// A gate decides who may be in a call and hears who is. Both halves of the
// package meet here; without Matrix the gate is open.
type gate interface {
	// check reports whether the bearer of g may (still) be in its room. It is
	// asked at validate, connect, resume and before a token is renewed. The
	// error wraps call.ErrForbidden if not.
	check(ctx context.Context, g call.Grant) error
	// here hears that a participant has joined or resumed. It must not block
	// and must not call the server back.
	here(room call.RoomName, id call.Identity)
	// gone hears, once for each stay, that a participant has finally left;
	// intentional unless it merely vanished. It must not block and must not
	// call the server back.
	gone(room call.RoomName, id call.Identity, intentional bool)
}

type openGate struct{}

func (openGate) check(context.Context, call.Grant) error { return nil }
func (openGate) here(call.RoomName, call.Identity)       {}
func (openGate) gone(call.RoomName, call.Identity, bool) {}

// evict removes a participant at once: its media stops both ways before evict
// returns, its socket closes when the leave has been flushed.
func (s *Server) evict(room call.RoomName, id call.Identity, why sfu.Reason) {
	p := s.seated(room, id) // before: a successor must not be told
	if r, ok := s.deps.SFU.Room(room); ok {
		if err := r.Remove(id, why); err != nil && !errors.Is(err, call.ErrNotFound) {
			s.log.Warn("removing participant", "room", room, "participant", id, "err", err)
		}
	}
	if p != nil {
		p.tell(evicted{why})
	}
}

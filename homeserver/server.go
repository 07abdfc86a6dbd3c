// Package homeserver is Trunkhall's own Matrix homeserver: the client-server
// API, rooms, sync, end-to-end-encryption key APIs, delayed and sticky events.
// It has never heard of WebRTC.
package homeserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// A RegistrationMode says who may create an account.
type RegistrationMode string

// The registration modes.
const (
	RegistrationClosed RegistrationMode = "closed" // only 'trunkhall user add'
	RegistrationToken  RegistrationMode = "token"  // with a registration token
	RegistrationOpen   RegistrationMode = "open"   // anybody (m.login.dummy)
)

// Config is the homeserver's part of trunkhall.yaml.
type Config struct {
	// ServerName is the domain part of user IDs. It can never change.
	ServerName matrix.ServerName `yaml:"server_name"`
	// Registration says who may create an account.
	Registration RegistrationMode `yaml:"registration"`
	// RegistrationTokens are accepted in the mode "token".
	RegistrationTokens []string `yaml:"registration_tokens"`
	// RegistrationSharedSecret lets whoever knows it make accounts, also
	// administrators, whatever Registration says. Empty: nobody.
	RegistrationSharedSecret string `yaml:"registration_shared_secret"`
	// Guests lets anybody have a guest account, which may join only rooms that
	// admit guests.
	Guests bool `yaml:"guests"`
	// DefaultRoomVersion is given to rooms whose creator asks for none.
	DefaultRoomVersion string `yaml:"default_room_version"`
	// MaxUploadBytes limits one media upload.
	MaxUploadBytes int64 `yaml:"max_upload_bytes"`
	// RateLimits can be switched off for tests.
	RateLimits bool `yaml:"rate_limits"`
}

// DefaultConfig returns the settings that apply where the file is silent.
func DefaultConfig() Config {
	return Config{
		ServerName:         "localhost",
		Registration:       RegistrationClosed,
		Guests:             true,
		DefaultRoomVersion: "12",
		MaxUploadBytes:     100 << 20,
		RateLimits:         true,
	}
}

// Validate returns all complaints, each named by its YAML path.
func (c Config) Validate() error {
	var errs []error
	if c.ServerName == "" {
		errs = append(errs, errors.New("homeserver.server_name: needed"))
	}
	switch c.Registration {
	case RegistrationClosed, RegistrationOpen:
	case RegistrationToken:
		if len(c.RegistrationTokens) == 0 {
			errs = append(errs, errors.New("homeserver.registration_tokens: needed when registration is \"token\""))
		}
	default:
		errs = append(errs, fmt.Errorf("homeserver.registration: %q is none of closed, token, open", c.Registration))
	}
	if n := len(c.RegistrationSharedSecret); n > 0 && n < 8 {
		errs = append(errs, errors.New("homeserver.registration_shared_secret: too short, at least 8 characters are needed"))
	}
	switch c.DefaultRoomVersion {
	case "10", "11", "12":
	default:
		errs = append(errs, fmt.Errorf("homeserver.default_room_version: %q is none of 10, 11, 12", c.DefaultRoomVersion))
	}
	if c.MaxUploadBytes <= 0 {
		errs = append(errs, errors.New("homeserver.max_upload_bytes: must be above 0"))
	}
	return errors.Join(errs...)
}

// Endpoints are the addresses that the homeserver tells its clients. They are
// known only when the listener is bound, so they are asked for at each use.
type Endpoints struct {
	BaseURL           string // client-server base URL, no trailing slash
	LiveKitServiceURL string // token service (MSC4195), no trailing slash
	LiveKitURL        string // the SFU's WebSocket URL
}

// Deps are what the homeserver needs of others.
type Deps struct {
	Store      Store
	Endpoints  func() Endpoints
	ICEServers call.ICEServersFunc // nil: no TURN
	MediaDir   string              // uploaded media are kept here
	Log        *slog.Logger
}

// A Server is one homeserver. New validates, Run serves the background work
// (delayed events, expiry), Handler answers HTTP. Safe for concurrent use.
type Server struct {
	cfg  Config
	deps Deps
	log  *slog.Logger

	routes  routeTree // filled by New, then only read
	limiter limiter
	notify  *notifier

	watchMu       sync.RWMutex // guards watchers; read-locked while they are called
	watchers      map[int]func(matrix.MembershipChange)
	eventWatchers map[int]func(matrix.StoredEvent)
	watchSeq      int

	phoneName func(digits string) string // nil: no telephones; see SetPhones

	roomsState // rooms.go and friends
	accounts   // accounts.go and friends
}

// New checks the configuration and builds the server; it starts nothing.
func New(cfg Config, deps Deps) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg:      cfg,
		deps:     deps,
		log:      deps.Log,
		notify:   newNotifier(),
		watchers: make(map[int]func(matrix.MembershipChange)),
	}
	if err := s.initRooms(); err != nil {
		return nil, err
	}
	if err := s.initAccounts(); err != nil {
		return nil, err
	}
	s.mount(s.accountRoutes())
	s.mount(s.roomRoutes())
	return s, nil
}

// Run does the background work until ctx ends and returns when all of it has.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.runRooms(ctx) })
	wg.Go(func() { s.runAccounts(ctx) })
	wg.Wait()
	return nil
}

// ServerName returns the domain part of this server's users.
func (s *Server) ServerName() matrix.ServerName { return s.cfg.ServerName }

// WatchMemberships calls f after each stored membership change, before the
// request that caused it is answered. f must be quick and must not call back
// into the server. The returned function ends it: no call of f begins or is
// still going on when it returns.
func (s *Server) WatchMemberships(f func(matrix.MembershipChange)) (cancel func()) {
	s.watchMu.Lock()
	defer s.watchMu.Unlock()
	id := s.watchSeq
	s.watchSeq++
	s.watchers[id] = f
	return func() {
		s.watchMu.Lock()
		defer s.watchMu.Unlock()
		delete(s.watchers, id)
	}
}

// membershipChanged tells the watchers.
func (s *Server) membershipChanged(c matrix.MembershipChange) {
	s.watchMu.RLock()
	defer s.watchMu.RUnlock()
	for _, f := range s.watchers {
		f(c)
	}
}

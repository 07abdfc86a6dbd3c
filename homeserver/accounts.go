package homeserver

import (
	"context"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

// accounts is the part of a Server that knows users, devices and their keys.
type accounts struct {
	uia       uiaSessions
	passwords passwordHasher
	rulesets  rulesetCache
	presence  presenceBook
	nonces    nonceBook
	media     mediaFolder

	seenMu sync.Mutex // guards seen
	seen   map[seenKey]time.Time
}

// A seenKey is a device whose last use has been noted.
type seenKey struct {
	user   matrix.UserID
	device matrix.DeviceID
}

// initAccounts prepares the accounts part.
func (s *Server) initAccounts() error {
	s.seen = make(map[seenKey]time.Time)
	s.uia.open = make(map[string]*uiaSession)
	s.passwords = newPasswordHasher()
	var err error
	s.media, err = openMediaFolder(s.deps.MediaDir)
	return err
}

// runAccounts drops what has expired, every few minutes until ctx ends.
func (s *Server) runAccounts(ctx context.Context) {
	tick := time.NewTicker(5 * time.Minute)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			if err := s.deps.Store.Expire(ctx, now); err != nil && ctx.Err() == nil {
				s.log.Warn("expire tokens", "error", err)
			}
			s.uia.sweep(now)
			s.forgetSeen(now)
		case <-ctx.Done():
			return
		}
	}
}

// accountRoutes lists the endpoints of the accounts part.
func (s *Server) accountRoutes() []route {
	var all []route
	for _, rs := range [][]route{
		s.discoveryRoutes(), s.registerRoutes(), s.sharedSecretRoutes(), s.loginRoutes(), s.deviceRoutes(), s.profileRoutes(), s.accountDataRoutes(),
		s.pushRuleRoutes(), s.pusherRoutes(), s.keyRoutes(), s.keyBackupRoutes(), s.toDeviceRoutes(), s.mediaRoutes(), s.callRoutes(), s.miscRoutes(),
	} {
		all = append(all, rs...)
	}
	return all
}

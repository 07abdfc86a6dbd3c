package turn

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the TURN REST API's and STUN's choice
	"encoding/base64"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	pion "github.com/pion/turn/v5"

	"github.com/trunkhall/trunkhall/call"
)

// maxUsername bounds a username: RFC 8489 allows 508 bytes of UTF-8.
const maxUsername = 508

// A user is somebody with relays, or whose credentials were revoked.
type user struct {
	relays map[*relayConn]bool
	floor  int64     // credentials that expire at or before this Unix time are dead
	forget time.Time // when every such credential has expired by itself
}

// ICEServers returns this relay with fresh credentials for a user, and their
// lifetime. It is a call.ICEServersFunc.
func (s *Server) ICEServers(name string) ([]call.ICEServer, time.Duration) {
	ttl := s.cfg.TTL.Truncate(time.Second)
	expiry := time.Now().Add(ttl).Unix()
	s.mu.Lock()
	if u := s.users[name]; u != nil {
		expiry = max(expiry, u.floor+1)
	}
	s.mu.Unlock()
	username := strconv.FormatInt(expiry, 10) + ":" + name
	server := call.ICEServer{Username: username, Credential: s.password(username)}
	for _, transport := range []string{"udp", "tcp"} {
		server.URLs = append(server.URLs, fmt.Sprintf("turn:%s?transport=%s", s.Addr(), transport))
	}
	return []call.ICEServer{server}, ttl
}

// Revoke makes every credential dead that was given to a user by now, and drops
// the user's relays. Credentials that are asked for later work again.
func (s *Server) Revoke(name string) {
	s.mu.Lock()
	u := s.user(name)
	now := time.Now()
	u.floor = max(u.floor, now.Add(s.cfg.TTL).Unix())
	u.forget = now.Add(s.cfg.TTL + time.Minute)
	var mine []*relayConn
	for r := range u.relays {
		mine = append(mine, r)
	}
	s.mu.Unlock()
	for _, r := range mine {
		s.stats.revoked.Add(1)
		_ = r.Close()
	}
}

// user returns the record of a user and makes it if needed. s.mu is held.
func (s *Server) user(name string) *user {
	u := s.users[name]
	if u == nil {
		u = &user{relays: map[*relayConn]bool{}}
		s.users[name] = u
	}
	return u
}

// password returns the credential that goes with a username
// (draft-uberti-behave-turn-rest-00).
func (s *Server) password(username string) string {
	mac := hmac.New(sha1.New, []byte(s.cfg.Secret))
	mac.Write([]byte(username))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// key returns the long-term key (RFC 8489 section 9.2.2) of a username whose
// time has not run out and that was not revoked.
func (s *Server) key(username, itsRealm string) ([]byte, bool) {
	if itsRealm != realm || len(username) > maxUsername {
		return nil, false
	}
	expiry, name, ok := splitUsername(username)
	if !ok || expiry <= time.Now().Unix() {
		return nil, false
	}
	s.mu.Lock()
	u := s.users[name]
	revoked := u != nil && expiry <= u.floor
	s.mu.Unlock()
	if revoked {
		return nil, false
	}
	return pion.GenerateAuthKey(username, realm, s.password(username)), true
}

// splitUsername splits "<Unix time of expiry>:<user>". A user may have colons:
// Matrix IDs do.
func splitUsername(username string) (expiry int64, name string, ok bool) {
	digits, name, found := strings.Cut(username, ":")
	if !found || name == "" || len(digits) > 12 {
		return 0, "", false
	}
	for _, c := range []byte(digits) {
		if c < '0' || c > '9' {
			return 0, "", false
		}
	}
	expiry, err := strconv.ParseInt(digits, 10, 64)
	return expiry, name, err == nil
}

// authenticate is pion/turn's AuthHandler. The user ID that it returns is the
// whole username: RFC 8656 section 5 wants later requests for a relay to use
// the same, and its expiry ends the relay.
func (s *Server) authenticate(r *pion.RequestAttributes) (userID string, key []byte, ok bool) {
	key, ok = s.key(r.Username, r.Realm)
	if !ok {
		s.stats.authFailures.Add(1)
		return "", nil, false
	}
	return r.Username, key, true
}

// withinQuota is pion/turn's QuotaHandler; a false answers 486.
func (s *Server) withinQuota(username, _ string, _ net.Addr) bool {
	_, name, _ := splitUsername(username)
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.users[name]; u != nil && len(u.relays) >= s.cfg.UserQuota {
		s.stats.quotaRefused.Add(1)
		return false
	}
	return true
}

// expire drops the relays whose credentials have run out and forgets users that
// nothing is left of.
func (s *Server) expire(now time.Time) {
	s.mu.Lock()
	var late []*relayConn
	for name, u := range s.users {
		for r := range u.relays {
			if r.expiry <= now.Unix() {
				late = append(late, r)
			}
		}
		if len(u.relays) == 0 && u.forget.Before(now) {
			delete(s.users, name)
		}
	}
	s.mu.Unlock()
	for _, r := range late {
		s.stats.revoked.Add(1)
		_ = r.Close()
	}
}

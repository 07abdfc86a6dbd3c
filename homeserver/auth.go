package homeserver

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// lastSeenEvery is how exact the last-seen time of a device is.
const lastSeenEvery = 5 * time.Minute

// newToken returns a token of 256 random bits that says what it is for.
func newToken(kind string) string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return kind + "_" + base64.RawURLEncoding.EncodeToString(b[:])
}

// hashToken returns what is stored of a token.
func hashToken(token string) matrix.TokenHash { return sha256.Sum256([]byte(token)) }

// accessToken returns the token that a request brings, empty if none. The query
// form is deprecated but old clients and media links still send it.
func (r *request) accessToken() string {
	if h := r.Header.Get("Authorization"); h != "" {
		scheme, token, _ := strings.Cut(h, " ")
		if strings.EqualFold(scheme, "Bearer") {
			return strings.TrimSpace(token)
		}
		return ""
	}
	return r.URL.Query().Get("access_token")
}

// authenticate fills in the caller and refuses who may not call.
func (s *Server) authenticate(r *request, a access) error {
	if a == accessPublic {
		return nil
	}
	token := r.accessToken()
	if token == "" {
		if a == accessOptional {
			return nil
		}
		return &matrix.Error{Status: http.StatusUnauthorized, Code: matrix.CodeMissingToken, Message: "an access token is needed"}
	}
	hash := hashToken(token)
	owner, err := s.deps.Store.TokenOwner(r.Context(), hash)
	if errors.Is(err, call.ErrNotFound) {
		return unknownToken(false)
	}
	if err != nil {
		return err
	}
	if !owner.Expires.IsZero() && time.Now().After(owner.Expires) {
		return unknownToken(true)
	}
	if owner.Fresh {
		if err := s.deps.Store.TokenUsed(r.Context(), hash); err != nil {
			return err
		}
	}
	if owner.Guest && a == accessUser {
		return &matrix.Error{Status: http.StatusForbidden, Code: matrix.CodeGuestForbidden, Message: "guests may not do this"}
	}
	r.user, r.device, r.guest, r.token = owner.User, owner.Device, owner.Guest, token
	s.noteSeen(r)
	return nil
}

// unknownToken is 401 M_UNKNOWN_TOKEN. A soft logout lets the client keep its
// keys and log in again or refresh.
func unknownToken(soft bool) error {
	e := &matrix.Error{Status: http.StatusUnauthorized, Code: matrix.CodeUnknownToken, Message: "unknown or expired access token"}
	if soft {
		e.Extra = map[string]any{"soft_logout": true}
	}
	return e
}

// noteSeen stores when a device was last used, now and then.
func (s *Server) noteSeen(r *request) {
	if r.device == "" {
		return
	}
	k, now := seenKey{r.user, r.device}, time.Now()
	s.seenMu.Lock()
	due := now.Sub(s.seen[k]) > lastSeenEvery
	if due {
		s.seen[k] = now
	}
	s.seenMu.Unlock()
	if !due {
		return
	}
	if err := s.deps.Store.TouchDevice(r.Context(), r.user, r.device, r.addr(), now); err != nil {
		s.log.Warn("note last use of a device", "user", r.user, "error", err)
	}
}

// forgetSeen drops devices whose last use must be stored again anyway.
func (s *Server) forgetSeen(now time.Time) {
	s.seenMu.Lock()
	defer s.seenMu.Unlock()
	for k, at := range s.seen {
		if now.Sub(at) > lastSeenEvery {
			delete(s.seen, k)
		}
	}
}

// self checks that the user in the path is the caller and returns it.
func (r *request) self() (matrix.UserID, error) {
	if u := matrix.UserID(r.PathValue("userId")); u != r.user {
		return "", forbidden("this belongs to another user")
	}
	return r.user, nil
}

package homeserver

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // what provisioning tools speak; HMAC-SHA1 is not broken
	"encoding/hex"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

const (
	nonceLifetime = time.Minute
	maxNonces     = 1000 // beyond it no more are given until some end
)

// A nonceBook holds the nonces that were given and not used. Safe for concurrent use.
type nonceBook struct {
	mu   sync.Mutex
	open map[string]time.Time // when it ends
}

// give returns a new nonce, false if too many are open.
func (b *nonceBook) give(now time.Time) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n, ends := range b.open {
		if now.After(ends) {
			delete(b.open, n)
		}
	}
	if len(b.open) >= maxNonces {
		return "", false
	}
	if b.open == nil {
		b.open = make(map[string]time.Time)
	}
	n := randomID(32)
	b.open[n] = now.Add(nonceLifetime)
	return n, true
}

// use ends a nonce and reports whether it was good.
func (b *nonceBook) use(nonce string, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	ends, ok := b.open[nonce]
	delete(b.open, nonce)
	return ok && !now.After(ends)
}

// sharedSecretRoutes are registration by whoever knows the shared secret, under
// the path at which provisioning tools and test suites expect it. Without a
// secret in the configuration there is no such endpoint.
func (s *Server) sharedSecretRoutes() []route {
	if s.cfg.RegistrationSharedSecret == "" {
		return nil
	}
	path := []string{"/_synapse/admin/v1/register"}
	return []route{
		{http.MethodGet, path, accessPublic, limitSession, s.getRegisterNonce},
		{http.MethodPost, path, accessPublic, limitLogin, s.postSharedSecretRegister},
	}
}

// getRegisterNonce is GET /_synapse/admin/v1/register.
func (s *Server) getRegisterNonce(r *request) (any, error) {
	nonce, ok := s.nonces.give(time.Now())
	if !ok {
		return nil, limitExceeded(r.w, nonceLifetime)
	}
	return map[string]any{"nonce": nonce}, nil
}

// postSharedSecretRegister is POST /_synapse/admin/v1/register.
func (s *Server) postSharedSecretRegister(r *request) (any, error) {
	var body struct {
		Nonce        string  `json:"nonce"`
		Username     string  `json:"username"`
		Password     string  `json:"password"`
		Admin        bool    `json:"admin"`
		UserType     *string `json:"user_type"`
		MAC          string  `json:"mac"`
		InhibitLogin bool    `json:"inhibit_login"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	if body.Nonce == "" || body.Username == "" || body.Password == "" || body.MAC == "" {
		return nil, missingParam("nonce, username, password and mac are needed")
	}
	if !s.nonces.use(body.Nonce, time.Now()) {
		return nil, &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeUnknown, Message: "this nonce was not given, was used or has ended"}
	}
	fields := []string{body.Nonce, body.Username, body.Password, "notadmin"}
	if body.Admin {
		fields[3] = "admin"
	}
	if body.UserType != nil {
		fields = append(fields, *body.UserType)
	}
	for _, f := range fields {
		if strings.ContainsRune(f, 0) { // it separates the fields
			return nil, invalidParam("no field may contain a NUL")
		}
	}
	mac := hmac.New(sha1.New, []byte(s.cfg.RegistrationSharedSecret))
	mac.Write([]byte(strings.Join(fields, "\x00")))
	if !hmac.Equal([]byte(hex.EncodeToString(mac.Sum(nil))), []byte(strings.ToLower(body.MAC))) {
		s.log.Warn("wrong MAC at the registration with the shared secret", "addr", r.addr())
		return nil, forbidden("the MAC is wrong")
	}
	user, err := s.CreateUser(r.Context(), body.Username, body.Password, body.Admin)
	if err != nil {
		return nil, err
	}
	s.log.Info("account registered with the shared secret", "user", user, "admin", body.Admin)
	if body.InhibitLogin {
		return map[string]any{"user_id": user, "home_server": s.cfg.ServerName}, nil
	}
	return s.login(r.Context(), user, "", "", false)
}

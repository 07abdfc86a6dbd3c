package homeserver

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// registerRoutes are the endpoints that make accounts.
func (s *Server) registerRoutes() []route {
	return []route{
		{http.MethodPost, v3("/register"), accessPublic, limitNone, s.postRegister},
		{http.MethodGet, v3("/register/available"), accessPublic, limitLogin, s.getRegisterAvailable},
		{http.MethodGet, []string{"/_matrix/client/v1/register/m.login.registration_token/validity"}, accessPublic, limitLogin, s.getTokenValidity},
	}
}

// A registerBody is the body of POST /register.
type registerBody struct {
	Username     string          `json:"username"`
	Password     string          `json:"password"`
	DeviceID     matrix.DeviceID `json:"device_id"`
	DeviceName   string          `json:"initial_device_display_name"`
	InhibitLogin bool            `json:"inhibit_login"`
	RefreshToken bool            `json:"refresh_token"`
	Type         string          `json:"type"`
}

// postRegister is POST /register.
func (s *Server) postRegister(r *request) (any, error) {
	switch kind := r.URL.Query().Get("kind"); kind {
	case "guest":
		return s.registerGuest(r)
	case "", "user":
	default:
		return nil, invalidParam("kind must be user or guest")
	}
	raw, err := r.object()
	if err != nil {
		return nil, err
	}
	var body registerBody
	if err := decodeJSON(raw, &body); err != nil {
		return nil, err
	}
	if body.Type == "m.login.application_service" {
		return nil, unknownToken(false) // no application service is registered
	}
	var flows [][]string
	switch s.cfg.Registration {
	case RegistrationOpen:
		flows = [][]string{{stageDummy}}
	case RegistrationToken:
		flows = [][]string{{stageToken}}
	default:
		return nil, forbidden("registration is closed on this server")
	}
	if body.Username != "" {
		if err := s.checkFree(r.Context(), body.Username); err != nil {
			return nil, err
		}
	}
	if body.Password != "" {
		if err := checkPassword(body.Password); err != nil {
			return nil, err
		}
	}
	if raw, err = s.interactive(r, raw, flows, true); err != nil {
		return nil, err
	}
	body = registerBody{}
	if err := decodeJSON(raw, &body); err != nil {
		return nil, err
	}
	if body.Password == "" {
		return nil, missingParam("password is needed")
	}
	if err := s.allowFor(r, limitRegister, r.addr()); err != nil {
		return nil, err
	}
	if body.Username == "" {
		body.Username = randomName("user_")
	}
	user, err := s.CreateUser(r.Context(), body.Username, body.Password, false)
	if err != nil {
		return nil, err
	}
	s.log.Info("account registered", "user", user)
	if body.InhibitLogin {
		return map[string]any{"user_id": user, "home_server": s.cfg.ServerName}, nil
	}
	return s.login(r.Context(), user, body.DeviceID, body.DeviceName, body.RefreshToken)
}

// registerGuest makes an account without a password that may do little.
func (s *Server) registerGuest(r *request) (any, error) {
	if !s.cfg.Guests {
		return nil, &matrix.Error{Status: http.StatusForbidden, Code: matrix.CodeGuestForbidden, Message: "guests are not admitted on this server"}
	}
	var body registerBody
	if err := r.decodeOptional(&body); err != nil {
		return nil, err
	}
	if err := s.allowFor(r, limitRegister, r.addr()); err != nil {
		return nil, err
	}
	user, err := s.createUser(r.Context(), randomName("guest_"), "", false, true)
	if err != nil {
		return nil, err
	}
	s.log.Info("guest registered", "user", user)
	return s.login(r.Context(), user, "", body.DeviceName, false)
}

// getRegisterAvailable is GET /register/available.
func (s *Server) getRegisterAvailable(r *request) (any, error) {
	if s.cfg.Registration == RegistrationClosed {
		return nil, forbidden("registration is closed on this server")
	}
	name := r.URL.Query().Get("username")
	if name == "" {
		return nil, missingParam("username is needed")
	}
	if err := s.checkFree(r.Context(), name); err != nil {
		return nil, err
	}
	return map[string]any{"available": true}, nil
}

// getTokenValidity is GET /register/m.login.registration_token/validity.
func (s *Server) getTokenValidity(r *request) (any, error) {
	if s.cfg.Registration != RegistrationToken {
		return nil, forbidden("this server does not use registration tokens")
	}
	token := r.URL.Query().Get("token")
	if token == "" {
		return nil, missingParam("token is needed")
	}
	return map[string]any{"valid": s.registrationTokenValid(token)}, nil
}

// localpart returns the localpart for a user name, folded to lower case.
func (s *Server) localpart(name string) (string, error) {
	l := strings.ToLower(name)
	invalid := func(why string) (string, error) {
		return "", &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeInvalidUsername, Message: why}
	}
	// Appendices, "User Identifiers".
	if l == "" || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789._=/+-") != "" || strings.ContainsFunc(l, func(c rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789._=/+-", c)
	}) {
		return invalid("user names may only contain a-z, 0-9 and . _ = / + -")
	}
	if l[0] == '_' {
		return invalid("user names that begin with _ are kept for bridges")
	}
	if len("@"+l+":"+string(s.cfg.ServerName)) > 255 {
		return invalid("the user name is too long")
	}
	return l, nil
}

// checkFree returns an error if no account of that name can be made.
func (s *Server) checkFree(ctx context.Context, name string) error {
	l, err := s.localpart(name)
	if err != nil {
		return err
	}
	_, err = s.deps.Store.User(ctx, s.userID(l))
	if err == nil {
		return userInUse
	}
	if errors.Is(err, call.ErrNotFound) {
		return nil
	}
	return err
}

var userInUse = &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeUserInUse, Message: "this user name is taken"}

// userID returns the user ID of a localpart on this server.
func (s *Server) userID(localpart string) matrix.UserID {
	return matrix.UserID("@" + localpart + ":" + string(s.cfg.ServerName))
}

// CreateUser makes an account. An empty password means that it cannot log in
// with one. The error is a *matrix.Error where the name or password is refused.
func (s *Server) CreateUser(ctx context.Context, localpart, password string, admin bool) (matrix.UserID, error) {
	if password != "" {
		if err := checkPassword(password); err != nil {
			return "", err
		}
	}
	return s.createUser(ctx, localpart, password, admin, false)
}

func (s *Server) createUser(ctx context.Context, localpart, password string, admin, guest bool) (matrix.UserID, error) {
	l, err := s.localpart(localpart)
	if err != nil {
		return "", err
	}
	u := matrix.User{ID: s.userID(l), Admin: admin, Guest: guest, Created: time.Now()}
	if password != "" {
		if u.PasswordHash, err = s.passwords.hash(ctx, password); err != nil {
			return "", fmt.Errorf("hash password: %w", err)
		}
	}
	rules, err := json.Marshal(map[string]any{"global": defaultRules(u.ID)})
	if err != nil {
		return "", fmt.Errorf("default push rules: %w", err)
	}
	err = s.deps.Store.CreateUser(ctx, u, rules)
	if errors.Is(err, call.ErrConflict) {
		return "", userInUse
	}
	return u.ID, err
}

// SetPassword replaces the password of an account and logs out its devices.
func (s *Server) SetPassword(ctx context.Context, user matrix.UserID, password string) error {
	if err := s.noGhost(user); err != nil {
		return err
	}
	if err := s.setPassword(ctx, user, password); err != nil {
		return err
	}
	return s.logOutExcept(ctx, user, "")
}

func (s *Server) setPassword(ctx context.Context, user matrix.UserID, password string) error {
	if err := checkPassword(password); err != nil {
		return err
	}
	hash, err := s.passwords.hash(ctx, password)
	if err != nil {
		return fmt.Errorf("hash password: %w", err)
	}
	return s.deps.Store.SetPasswordHash(ctx, user, hash)
}

// ListUsers lists all accounts but guests and the server's own.
func (s *Server) ListUsers(ctx context.Context) ([]matrix.User, error) {
	all, err := s.deps.Store.Users(ctx)
	return slices.DeleteFunc(all, func(u matrix.User) bool { return s.isGhost(u.ID) }), err
}

// randomName returns prefix and 12 random letters and digits.
func randomName(prefix string) string {
	return prefix + strings.ToLower(rand.Text()[:12])
}

package homeserver

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

const (
	// accessTokenLifetime is that of access tokens that come with a refresh token.
	accessTokenLifetime = time.Hour
	// maxDevices ends the longest unused device of a user who logs in too often.
	maxDevices = 100
)

// loginRoutes are the endpoints of sessions.
func (s *Server) loginRoutes() []route {
	return []route{
		{http.MethodGet, v3("/login"), accessPublic, limitNone, s.getLogin},
		{http.MethodPost, v3("/login"), accessPublic, limitLogin, s.postLogin},
		{http.MethodPost, v3("/refresh"), accessPublic, limitLogin, s.postRefresh},
		{http.MethodPost, v3("/logout"), accessGuest, limitNone, s.postLogout},
		{http.MethodPost, v3("/logout/all"), accessGuest, limitNone, s.postLogoutAll},
		{http.MethodGet, v3("/account/whoami"), accessGuest, limitNone, s.getWhoami},
		{http.MethodPost, v3("/account/password"), accessUser, limitNone, s.postPassword},
		{http.MethodPost, v3("/account/deactivate"), accessGuest, limitNone, s.postDeactivate},
	}
}

// getLogin is GET /login.
func (s *Server) getLogin(*request) (any, error) {
	return map[string]any{"flows": []any{map[string]any{"type": stagePassword}}}, nil
}

// A userIdentifier is how a client names a user (client-server API, "Identifier types").
type userIdentifier struct {
	Type string `json:"type"`
	User string `json:"user"`
}

// fullUserID returns the user ID for what a person typed: a full ID or a
// localpart. Localparts of this server are folded to lower case, as those of new
// accounts are.
func (s *Server) fullUserID(name string) matrix.UserID {
	if !strings.HasPrefix(name, "@") {
		return s.userID(strings.ToLower(name))
	}
	u := matrix.UserID(name)
	if u.Server() == s.cfg.ServerName {
		return s.userID(strings.ToLower(u.Localpart()))
	}
	return u
}

// postLogin is POST /login.
func (s *Server) postLogin(r *request) (any, error) {
	var body struct {
		Type         string          `json:"type"`
		Identifier   *userIdentifier `json:"identifier"`
		User         string          `json:"user"`
		Password     *string         `json:"password"`
		DeviceID     matrix.DeviceID `json:"device_id"`
		DeviceName   string          `json:"initial_device_display_name"`
		RefreshToken bool            `json:"refresh_token"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	switch body.Type {
	case stagePassword:
	case "":
		return nil, missingParam("type is needed")
	default:
		return nil, &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeUnknown, Message: "this login type is not offered"}
	}
	name := body.User
	if body.Identifier != nil {
		if body.Identifier.Type != "m.id.user" {
			return nil, forbidden("users are known by m.id.user only")
		}
		name = body.Identifier.User
	}
	if name == "" || body.Password == nil {
		return nil, missingParam("identifier and password are needed")
	}
	if len(*body.Password) > maxPassword {
		return nil, forbidden("wrong user name or password")
	}
	user := s.fullUserID(name)
	if err := s.allowFor(r, limitLoginAccount, string(user)); err != nil {
		return nil, err
	}
	u, err := s.deps.Store.User(r.Context(), user)
	if err != nil && !errors.Is(err, call.ErrNotFound) {
		return nil, err
	}
	if u.Deactivated {
		return nil, &matrix.Error{Status: http.StatusForbidden, Code: "M_USER_DEACTIVATED", Message: "this account has been deactivated"}
	}
	ok, err := s.passwords.matches(r.Context(), u.PasswordHash, *body.Password)
	if err != nil {
		return nil, err
	}
	if !ok {
		s.log.Info("wrong password", "user", user, "addr", r.addr())
		return nil, forbidden("wrong user name or password")
	}
	return s.login(r.Context(), u.ID, body.DeviceID, body.DeviceName, body.RefreshToken)
}

// A loginReply is the answer to POST /login, and to POST /register.
type loginReply struct {
	UserID       matrix.UserID     `json:"user_id"`
	AccessToken  string            `json:"access_token"`
	DeviceID     matrix.DeviceID   `json:"device_id"`
	HomeServer   matrix.ServerName `json:"home_server"`
	RefreshToken string            `json:"refresh_token,omitempty"`
	ExpiresInMS  int64             `json:"expires_in_ms,omitempty"`
}

// login makes a session for a user: on a new device if the ID is empty or
// unknown, else on that device, whose older tokens end.
func (s *Server) login(ctx context.Context, user matrix.UserID, device matrix.DeviceID, name string, refreshable bool) (loginReply, error) {
	if device == "" {
		device = matrix.DeviceID(rand.Text()[:10])
	}
	if device == "*" || len(device) > 255 || len(name) > 1024 {
		return loginReply{}, invalidParam("device_id or initial_device_display_name is not usable")
	}
	if err := s.makeRoomForDevice(ctx, user, device); err != nil {
		return loginReply{}, err
	}
	reply := loginReply{UserID: user, AccessToken: newToken("thk"), DeviceID: device, HomeServer: s.cfg.ServerName}
	session := matrix.Session{User: user, Device: device, DisplayName: name, Access: hashToken(reply.AccessToken)}
	if refreshable {
		reply.RefreshToken = newToken("thr")
		reply.ExpiresInMS = accessTokenLifetime.Milliseconds()
		refresh := hashToken(reply.RefreshToken)
		session.Refresh, session.Expires = &refresh, time.Now().Add(accessTokenLifetime)
	}
	if err := s.deps.Store.CreateSession(ctx, session); err != nil {
		return loginReply{}, err
	}
	s.wakeSharing(ctx, user)
	return reply, nil
}

// makeRoomForDevice ends the longest unused devices of a user who has too many.
func (s *Server) makeRoomForDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID) error {
	have, err := s.deps.Store.Devices(ctx, user)
	if err != nil || len(have) < maxDevices || slices.ContainsFunc(have, func(d matrix.Device) bool { return d.ID == device }) {
		return err
	}
	slices.SortFunc(have, func(a, b matrix.Device) int { return a.LastSeen.Compare(b.LastSeen) })
	var old []matrix.DeviceID
	for _, d := range have[:len(have)-maxDevices+1] {
		old = append(old, d.ID)
	}
	s.log.Info("too many devices, ending the longest unused", "user", user, "ended", len(old))
	return s.deleteDevices(ctx, user, old...)
}

// Login makes a session on a new device without asking for a password: for the
// operator's command line.
func (s *Server) Login(ctx context.Context, user matrix.UserID, deviceName string) (token string, device matrix.DeviceID, err error) {
	u, err := s.deps.Store.User(ctx, user)
	if err != nil {
		return "", "", err
	}
	if err := s.noGhost(user); err != nil {
		return "", "", err
	}
	if u.Deactivated {
		return "", "", forbidden("account %s has been deactivated", user)
	}
	reply, err := s.login(ctx, user, "", deviceName, false)
	return reply.AccessToken, reply.DeviceID, err
}

// postRefresh is POST /refresh.
func (s *Server) postRefresh(r *request) (any, error) {
	var body struct {
		RefreshToken string `json:"refresh_token"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	if body.RefreshToken == "" {
		return nil, missingParam("refresh_token is needed")
	}
	access, refresh := newToken("thk"), newToken("thr")
	err := s.deps.Store.RefreshSession(r.Context(), hashToken(body.RefreshToken), hashToken(access), time.Now().Add(accessTokenLifetime), hashToken(refresh))
	if errors.Is(err, call.ErrNotFound) {
		return nil, unknownToken(false)
	}
	if err != nil {
		return nil, err
	}
	return map[string]any{"access_token": access, "refresh_token": refresh, "expires_in_ms": accessTokenLifetime.Milliseconds()}, nil
}

// postLogout is POST /logout.
func (s *Server) postLogout(r *request) (any, error) {
	return nil, s.deleteDevices(r.Context(), r.user, r.device)
}

// postLogoutAll is POST /logout/all.
func (s *Server) postLogoutAll(r *request) (any, error) {
	return nil, s.logOutExcept(r.Context(), r.user, "")
}

// logOutExcept ends all of a user's devices but one.
func (s *Server) logOutExcept(ctx context.Context, user matrix.UserID, keep matrix.DeviceID) error {
	all, err := s.deps.Store.Devices(ctx, user)
	if err != nil {
		return err
	}
	var end []matrix.DeviceID
	for _, d := range all {
		if d.ID != keep {
			end = append(end, d.ID)
		}
	}
	return s.deleteDevices(ctx, user, end...)
}

// getWhoami is GET /account/whoami.
func (s *Server) getWhoami(r *request) (any, error) {
	reply := map[string]any{"user_id": r.user, "is_guest": r.guest}
	if r.device != "" {
		reply["device_id"] = r.device
	}
	return reply, nil
}

// postPassword is POST /account/password.
func (s *Server) postPassword(r *request) (any, error) {
	raw, err := r.object()
	if err != nil {
		return nil, err
	}
	type passwordBody struct {
		NewPassword   string `json:"new_password"`
		LogoutDevices *bool  `json:"logout_devices"`
	}
	var body passwordBody
	if err := decodeJSON(raw, &body); err != nil {
		return nil, err
	}
	if body.NewPassword != "" {
		if err := checkPassword(body.NewPassword); err != nil {
			return nil, err
		}
	}
	if raw, err = s.confirmSelf(r, raw); err != nil {
		return nil, err
	}
	body = passwordBody{}
	if err := decodeJSON(raw, &body); err != nil {
		return nil, err
	}
	if body.NewPassword == "" {
		return nil, missingParam("new_password is needed")
	}
	if err := s.setPassword(r.Context(), r.user, body.NewPassword); err != nil {
		return nil, err
	}
	if body.LogoutDevices == nil || *body.LogoutDevices {
		if err := s.logOutExcept(r.Context(), r.user, r.device); err != nil {
			return nil, err
		}
		return nil, s.deps.Store.DeletePushersExcept(r.Context(), r.user, r.device)
	}
	return nil, nil
}

// postDeactivate is POST /account/deactivate.
func (s *Server) postDeactivate(r *request) (any, error) {
	raw, err := r.object()
	if err != nil {
		return nil, err
	}
	if raw, err = s.confirmSelf(r, raw); err != nil {
		return nil, err
	}
	var body struct {
		Erase bool `json:"erase"`
	}
	if err := decodeJSON(raw, &body); err != nil {
		return nil, err
	}
	sharing, err := s.usersSharingRooms(r.Context(), r.user)
	if err != nil {
		return nil, err
	}
	if err := s.deps.Store.Deactivate(r.Context(), r.user, body.Erase); err != nil {
		return nil, err
	}
	s.log.Info("account deactivated", "user", r.user)
	s.leaveRooms(context.WithoutCancel(r.Context()), r.user) // also if the client hangs up now
	s.notify.wake(append(sharing, r.user)...)
	return map[string]any{"id_server_unbind_result": "success"}, nil
}

// leaveRooms takes a user out of all rooms, invitations included. A room that
// refuses is logged and passed by.
func (s *Server) leaveRooms(ctx context.Context, user matrix.UserID) {
	all, err := s.deps.Store.Memberships(ctx, user)
	if err != nil {
		s.log.Error("leave all rooms", "user", user, "error", err)
	}
	for _, m := range all {
		switch m.Membership {
		case matrix.MembershipJoin, matrix.MembershipInvite, matrix.MembershipKnock:
			if err := s.setMembership(ctx, m.Room, user, "", user, map[string]any{"membership": matrix.MembershipLeave}); err != nil {
				s.log.Error("leave all rooms", "user", user, "room", m.Room, "error", err)
			}
		}
	}
}

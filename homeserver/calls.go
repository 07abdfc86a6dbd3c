package homeserver

import (
	"context"
	"net/http"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

// openIDLifetime is that of OpenID tokens.
const openIDLifetime = time.Hour

// callRoutes are the endpoints that calls need beside rooms: OpenID tokens, TURN
// credentials and RTC transports.
func (s *Server) callRoutes() []route {
	return []route{
		{http.MethodPost, v3("/user/{userId}/openid/request_token"), accessGuest, limitNone, s.postOpenIDToken},
		{http.MethodGet, []string{"/_matrix/federation/v1/openid/userinfo"}, accessPublic, limitNone, s.getOpenIDUserinfo},
		{http.MethodGet, v3("/voip/turnServer"), accessGuest, limitNone, s.getTurnServer},
		{http.MethodGet, []string{"/_matrix/client/v1/rtc/transports", "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports"}, accessGuest, limitNone, s.getTransports},
	}
}

// postOpenIDToken is POST /user/{userId}/openid/request_token.
func (s *Server) postOpenIDToken(r *request) (any, error) {
	if _, err := r.self(); err != nil {
		return nil, err
	}
	if _, err := r.objectOrEmpty(); err != nil {
		return nil, err
	}
	token := newToken("tho")
	if err := s.deps.Store.PutOpenIDToken(r.Context(), hashToken(token), r.user, time.Now().Add(openIDLifetime)); err != nil {
		return nil, err
	}
	return map[string]any{
		"access_token": token, "token_type": "Bearer",
		"matrix_server_name": s.cfg.ServerName, "expires_in": int(openIDLifetime.Seconds()),
	}, nil
}

// OpenIDUser returns the user who asked for an OpenID token. ErrNotFound:
// unknown or expired.
func (s *Server) OpenIDUser(ctx context.Context, token string) (matrix.UserID, error) {
	return s.deps.Store.OpenIDUser(ctx, hashToken(token), time.Now())
}

// getOpenIDUserinfo is GET /_matrix/federation/v1/openid/userinfo, which is not
// authenticated: whoever has the token learns whose it is.
func (s *Server) getOpenIDUserinfo(r *request) (any, error) {
	token := r.URL.Query().Get("access_token")
	if token == "" {
		return nil, &matrix.Error{Status: http.StatusUnauthorized, Code: matrix.CodeMissingToken, Message: "access_token is needed"}
	}
	user, err := s.OpenIDUser(r.Context(), token)
	if err != nil {
		return nil, unknownToken(false)
	}
	return map[string]any{"sub": user}, nil
}

// getTurnServer is GET /voip/turnServer.
func (s *Server) getTurnServer(r *request) (any, error) {
	if s.deps.ICEServers == nil {
		return nil, notFound("no TURN server is configured")
	}
	servers, ttl := s.deps.ICEServers(string(r.user))
	for _, srv := range servers {
		if srv.Username == "" {
			continue // STUN alone has no credentials, and no place in this answer
		}
		return map[string]any{"username": srv.Username, "password": srv.Credential, "uris": srv.URLs, "ttl": int(ttl.Seconds())}, nil
	}
	return nil, notFound("no TURN server is configured")
}

// getTransports is GET /rtc/transports (MSC4143, MSC4195, MSC4519). The texts
// disagree about the key, so the list comes under both; clients of today take
// the first element of type livekit, later ones the second.
func (s *Server) getTransports(*request) (any, error) {
	e := s.deps.Endpoints()
	transports := []any{}
	if e.LiveKitServiceURL != "" {
		first := map[string]any{"type": "livekit", "livekit_service_url": e.LiveKitServiceURL}
		if e.LiveKitURL != "" {
			first["url"] = e.LiveKitURL
		}
		transports = append(transports, first)
	}
	if e.LiveKitURL != "" {
		transports = append(transports, map[string]any{"type": "m.livekit", "url": e.LiveKitURL})
	}
	return map[string]any{"rtc_transports": transports, "transports": transports}, nil
}

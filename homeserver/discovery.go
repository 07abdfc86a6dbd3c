package homeserver

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/trunkhall/trunkhall/matrix"
)

// specVersions are the versions of the specification whose client endpoints
// are served. Clients switch features on by them, so none is claimed early:
// v1.12 wants reporting of rooms, v1.15 OAuth metadata.
var specVersions = []string{"r0.5.0", "r0.6.0", "r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11"}

// unstableFeatures are announced in /versions; clients look for these names.
var unstableFeatures = map[string]bool{
	"org.matrix.msc4140":           true, // delayed events
	"org.matrix.msc4354":           true, // sticky events
	"org.matrix.msc4222":           true, // state_after in /sync
	"org.matrix.msc4143":           true, // RTC transports
	"org.matrix.e2e_cross_signing": true,
	"org.matrix.msc3916.stable":    true, // authenticated media
	"uk.tcpip.msc4133":             true, // profile fields
	"org.matrix.msc3881":           true, // pushers that can be switched off
}

// discoveryRoutes are the endpoints that tell a client where and what we are.
func (s *Server) discoveryRoutes() []route {
	return []route{
		{http.MethodGet, []string{"/_matrix/client/versions"}, accessPublic, limitNone, s.getVersions},
		{http.MethodGet, []string{"/.well-known/matrix/client"}, accessPublic, limitNone, s.getWellKnownClient},
		{http.MethodGet, []string{"/.well-known/matrix/server"}, accessPublic, limitNone, s.getWellKnownServer},
		{http.MethodGet, []string{"/.well-known/matrix/support"}, accessPublic, limitNone, s.getWellKnownSupport},
		{http.MethodGet, v3("/capabilities"), accessGuest, limitNone, s.getCapabilities},
	}
}

// getVersions answers without looking at a token that may come along: calls in
// widgets ask from a page that has none.
func (s *Server) getVersions(*request) (any, error) {
	return map[string]any{"versions": specVersions, "unstable_features": unstableFeatures}, nil
}

// getWellKnownClient is GET /.well-known/matrix/client. The RTC foci are
// superseded by GET /rtc/transports but clients of today still read them.
func (s *Server) getWellKnownClient(*request) (any, error) {
	e := s.deps.Endpoints()
	reply := map[string]any{"m.homeserver": map[string]any{"base_url": e.BaseURL}}
	if e.LiveKitServiceURL != "" {
		reply["org.matrix.msc4143.rtc_foci"] = []any{map[string]any{"type": "livekit", "livekit_service_url": e.LiveKitServiceURL}}
	}
	return reply, nil
}

// getWellKnownServer is GET /.well-known/matrix/server (server-server API,
// "Resolving server names"). Token services of others find our OpenID endpoint
// through it.
func (s *Server) getWellKnownServer(*request) (any, error) {
	u, err := url.Parse(s.deps.Endpoints().BaseURL)
	if err != nil || u.Host == "" {
		return nil, notFound("this server does not know its own address")
	}
	host := u.Host
	if u.Port() == "" {
		if strings.Contains(u.Hostname(), ":") {
			host = "[" + u.Hostname() + "]"
		}
		if u.Scheme == "http" {
			host += ":80"
		} else {
			host += ":443"
		}
	}
	return map[string]any{"m.server": host}, nil
}

// getWellKnownSupport is GET /.well-known/matrix/support: the administrators
// among the accounts, if there are any.
func (s *Server) getWellKnownSupport(r *request) (any, error) {
	users, err := s.deps.Store.Users(r.Context())
	if err != nil {
		return nil, err
	}
	var contacts []any
	for _, u := range users {
		if u.Admin && !u.Deactivated {
			contacts = append(contacts, map[string]any{"matrix_id": u.ID, "role": "m.role.admin"})
		}
	}
	if contacts == nil {
		return nil, notFound("no contact is known")
	}
	return map[string]any{"contacts": contacts}, nil
}

// getCapabilities is GET /capabilities.
func (s *Server) getCapabilities(r *request) (any, error) {
	available := make(map[matrix.RoomVersion]string)
	for _, v := range matrix.RoomVersions() {
		available[v] = "stable"
	}
	on, off := map[string]any{"enabled": true}, map[string]any{"enabled": false}
	return map[string]any{"capabilities": map[string]any{
		"m.room_versions":                 map[string]any{"default": s.cfg.DefaultRoomVersion, "available": available},
		"m.change_password":               map[string]any{"enabled": !r.guest},
		"m.set_displayname":               on,
		"m.set_avatar_url":                on,
		"m.profile_fields":                on,
		"uk.tcpip.msc4133.profile_fields": on,
		"m.3pid_changes":                  off,
		"m.get_login_token":               off,
		"m.forget_forced_upon_leave":      off,
		"m.delayed_events":                map[string]any{"max_delay_ms": maxDelay.Milliseconds(), "max_scheduled": maxDelayed},
	}}, nil
}

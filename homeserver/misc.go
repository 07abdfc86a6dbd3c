package homeserver

import (
	"net/http"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

// miscRoutes are endpoints with little behind them, which clients ask anyway.
func (s *Server) miscRoutes() []route {
	dehydrated := "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
	rs := []route{
		{http.MethodGet, v3("/presence/{userId}/status"), accessGuest, limitNone, s.getPresence},
		{http.MethodPut, v3("/presence/{userId}/status"), accessGuest, limitNone, s.putPresence},
		{http.MethodGet, v3("/thirdparty/protocols"), accessGuest, limitNone, emptyObject},
		{http.MethodGet, v3("/thirdparty/location"), accessGuest, limitNone, emptyList},
		{http.MethodGet, v3("/thirdparty/user"), accessGuest, limitNone, emptyList},
		{http.MethodGet, v3("/thirdparty/protocol/{protocol}"), accessGuest, limitNone, noProtocol},
		{http.MethodGet, v3("/thirdparty/location/{protocol}"), accessGuest, limitNone, noProtocol},
		{http.MethodGet, v3("/thirdparty/user/{protocol}"), accessGuest, limitNone, noProtocol},
		{http.MethodGet, v3("/account/3pid"), accessGuest, limitNone, noThreepids},
		// MSC3814: no device is ever dehydrated here.
		{http.MethodGet, []string{dehydrated}, accessGuest, limitNone, noDehydrated},
		{http.MethodDelete, []string{dehydrated}, accessGuest, limitNone, noDehydrated},
	}
	for _, p := range []string{
		"/account/3pid", "/account/3pid/add", "/account/3pid/bind", "/account/3pid/delete", "/account/3pid/unbind",
		"/account/3pid/email/requestToken", "/account/3pid/msisdn/requestToken",
	} {
		rs = append(rs, route{http.MethodPost, v3(p), accessGuest, limitNone, threepidDenied})
	}
	for _, p := range []string{
		"/register/email/requestToken", "/register/msisdn/requestToken",
		"/account/password/email/requestToken", "/account/password/msisdn/requestToken",
	} {
		rs = append(rs, route{http.MethodPost, v3(p), accessPublic, limitNone, threepidDenied})
	}
	return rs
}

func emptyObject(*request) (any, error) { return nil, nil }
func emptyList(*request) (any, error)   { return []any{}, nil }
func noThreepids(*request) (any, error) { return map[string]any{"threepids": []any{}}, nil }

func noProtocol(*request) (any, error) { return nil, notFound("no such third-party protocol") }

func noDehydrated(*request) (any, error) { return nil, notFound("there is no dehydrated device") }

func threepidDenied(*request) (any, error) {
	return nil, &matrix.Error{Status: http.StatusForbidden, Code: matrix.CodeThreepidDenied, Message: "this server knows no e-mail addresses or telephone numbers of users"}
}

// A presenceBook remembers what users say of their presence. It is not stored
// and not sent to others. Safe for concurrent use.
type presenceBook struct {
	mu  sync.Mutex
	all map[matrix.UserID]presence
}

// A presence is what a user last said.
type presence struct {
	Presence  string  `json:"presence"`
	StatusMsg *string `json:"status_msg,omitempty"`
	at        time.Time
}

// putPresence is PUT /presence/{userId}/status.
func (s *Server) putPresence(r *request) (any, error) {
	if _, err := r.self(); err != nil {
		return nil, err
	}
	var p presence
	if err := r.decode(&p); err != nil {
		return nil, err
	}
	switch p.Presence {
	case "online", "offline", "unavailable":
	case "":
		return nil, missingParam("presence is needed")
	default:
		return nil, invalidParam("presence must be online, offline or unavailable")
	}
	if p.StatusMsg != nil && len(*p.StatusMsg) > 1024 {
		return nil, invalidParam("status_msg is longer than 1024 bytes")
	}
	p.at = time.Now()
	s.presence.mu.Lock()
	defer s.presence.mu.Unlock()
	if s.presence.all == nil {
		s.presence.all = make(map[matrix.UserID]presence)
	}
	s.presence.all[r.user] = p
	return nil, nil
}

// getPresence is GET /presence/{userId}/status.
func (s *Server) getPresence(r *request) (any, error) {
	user := matrix.UserID(r.PathValue("userId"))
	if _, err := s.deps.Store.User(r.Context(), user); err != nil {
		return nil, err
	}
	s.presence.mu.Lock()
	p, ok := s.presence.all[user]
	s.presence.mu.Unlock()
	if !ok {
		return map[string]any{"presence": "offline"}, nil
	}
	reply := map[string]any{"presence": p.Presence, "last_active_ago": time.Since(p.at).Milliseconds(), "currently_active": p.Presence == "online"}
	if p.StatusMsg != nil {
		reply["status_msg"] = *p.StatusMsg
	}
	return reply, nil
}

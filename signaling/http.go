package signaling

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

const maxBody = 10 << 20 // bytes of a request's body

// routes assembles the handler. LiveKit clients keep a path prefix of the URL
// they were given, so paths are told apart by their end.
func (s *Server) routes() http.Handler {
	var matrix http.Handler
	if s.rtc != nil {
		matrix = s.rtc.handler()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		for strings.HasPrefix(path, "//") {
			path = path[1:]
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		switch {
		case strings.HasSuffix(path, "/rtc/v1"):
			cors(w, r, func() { s.serveSocket(w, r, true) })
		case strings.HasSuffix(path, "/rtc"):
			cors(w, r, func() { s.serveSocket(w, r, false) })
		case strings.HasSuffix(path, "/rtc/v1/validate"):
			s.serveValidate(w, r, true)
		case strings.HasSuffix(path, "/rtc/validate"):
			s.serveValidate(w, r, false)
		case strings.Contains(path, twirpPrefix):
			cors(w, r, func() { s.serveTwirp(w, r, path[strings.Index(path, twirpPrefix)+len(twirpPrefix):]) })
		case matrix != nil && path != "/":
			matrix.ServeHTTP(w, r)
		case path == "/healthz", path == "/":
			cors(w, r, func() { serveAlive(w, r) })
		default:
			cors(w, r, func() { http.NotFound(w, r) })
		}
	})
}

// serveAlive is for clients that warm up a connection or look for the network.
func serveAlive(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	w.WriteHeader(http.StatusOK)
	if r.URL.Path == "/" {
		_, _ = w.Write([]byte("OK"))
	}
}

// cors answers a preflight, or serves after letting the page of any origin
// read the answer: what may be done is up to the token, there are no cookies.
func cors(w http.ResponseWriter, r *http.Request, serve func()) {
	origin := r.Header.Get("Origin")
	h := w.Header()
	if origin != "" {
		h.Set("Access-Control-Allow-Origin", origin)
		h.Add("Vary", "Origin")
	}
	asked := r.Header.Get("Access-Control-Request-Method")
	if r.Method != http.MethodOptions || asked == "" {
		if origin != "" {
			h.Set("Access-Control-Expose-Headers", "*")
		}
		serve()
		return
	}
	switch asked {
	case http.MethodOptions, http.MethodHead, http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete:
		h.Set("Access-Control-Allow-Methods", asked)
	}
	if headers := r.Header.Get("Access-Control-Request-Headers"); headers != "" {
		h.Set("Access-Control-Allow-Headers", headers)
	}
	h.Add("Vary", "Access-Control-Request-Method")
	h.Add("Vary", "Access-Control-Request-Headers")
	h.Set("Access-Control-Max-Age", "86400")
	w.WriteHeader(http.StatusNoContent)
}

// serveValidate tells a client why its WebSocket failed: browsers hide the
// status of a failed upgrade from the page.
func (s *Server) serveValidate(w http.ResponseWriter, r *http.Request, v1 bool) {
	w.Header().Set("Access-Control-Allow-Origin", "*")
	if r.Method == http.MethodOptions {
		w.Header().Set("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
		w.Header().Set("Access-Control-Allow-Headers", r.Header.Get("Access-Control-Request-Headers"))
		w.Header().Set("Access-Control-Max-Age", "86400")
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if _, bad := s.admit(r, v1); bad != nil {
		writeRefusal(w, bad)
		return
	}
	_, _ = w.Write([]byte("success"))
}

// admit decides whether a connection may be made; validate and the real thing
// ask the same questions.
func (s *Server) admit(r *http.Request, v1 bool) (*joining, *refusal) {
	j, bad := s.parseJoining(r, v1)
	if bad != nil {
		return nil, bad
	}
	if err := s.gate.check(r.Context(), j.grant); err != nil {
		return nil, s.gateRefusal(j.grant, err)
	}
	if _, ok := s.deps.SFU.Room(j.grant.Room); !ok && !s.cfg.AutoCreate {
		return nil, refuse(http.StatusNotFound, "requested room does not exist")
	}
	if s.ctx.Err() != nil {
		return nil, refuse(http.StatusServiceUnavailable, "server is shutting down")
	}
	return j, nil
}

func (s *Server) gateRefusal(g call.Grant, err error) *refusal {
	switch {
	case errors.Is(err, call.ErrForbidden):
		return refuse(http.StatusUnauthorized, "permissions denied")
	case errors.Is(err, context.Canceled):
		return refuse(http.StatusServiceUnavailable, "request cancelled")
	}
	s.log.Warn("checking a participant's right to join", "room", g.Room, "participant", g.Identity, "err", err)
	e := edgeOf(err)
	if e.status == http.StatusNotFound {
		// Clients take 404 for "this server does not know the path".
		e = internalEdge
	}
	return refuse(e.status, http.StatusText(e.status))
}

func writeRefusal(w http.ResponseWriter, bad *refusal) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(bad.status)
	_, _ = w.Write([]byte(bad.text))
}

// serveSocket upgrades the request to the session of a joining or resuming
// participant and serves it until the socket closes.
func (s *Server) serveSocket(w http.ResponseWriter, r *http.Request, v1 bool) {
	if !isUpgrade(r) {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	j, bad := s.admit(r, v1)
	if bad != nil {
		writeRefusal(w, bad)
		return
	}
	if j.reconnect {
		s.serveResume(w, r, j)
		return
	}
	p, bad := s.join(r.Context(), j)
	if bad != nil {
		writeRefusal(w, bad)
		return
	}
	sock, err := s.accept(w, r)
	if err != nil {
		p.abandon()
		return
	}
	if !s.begin(func() { p.run(sock) }) {
		sock.abort()
		p.abandon()
		return
	}
	sock.serve(p)
}

// serveResume hands a new socket to a participant that lost its old one. If
// there is none, the client is told to join anew: that must be the first and
// only message, an HTTP error would make clients give up.
func (s *Server) serveResume(w http.ResponseWriter, r *http.Request, j *joining) {
	sock, err := s.accept(w, r)
	if err != nil {
		return
	}
	p := s.seated(j.grant.Room, j.grant.Identity)
	if p == nil || !p.resume(sock, j) {
		sock.send(leaveResponse(sfu.ReasonStateMismatch, sfu.ActionReconnect, j.client.GetProtocol()))
		sock.finish(closeNormal, "unknown participant")
		sock.serve(nil)
		return
	}
	sock.serve(p)
}

func isUpgrade(r *http.Request) bool {
	return headerHas(r.Header, "Connection", "upgrade") && headerHas(r.Header, "Upgrade", "websocket")
}

func headerHas(h http.Header, name, token string) bool {
	for _, value := range h.Values(name) {
		for part := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}

package homeserver

import (
	"fmt"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"unicode/utf8"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// access says who may call an endpoint.
type access int

const (
	accessPublic   access = iota // no token read
	accessOptional               // a valid token is used, none is fine, a bad one is 401
	accessUser                   // a full account; guests get M_GUEST_ACCESS_FORBIDDEN
	accessGuest                  // a full account or a guest
)

// A route is one endpoint. Several paths serve the stable and the unstable
// names of one endpoint. A path segment "{name}" matches any one segment that
// is not empty and is read with r.PathValue; a last segment "{$}" or "" (a
// trailing slash) matches only the empty segment; "{name...}" takes the rest.
// Literal segments win over wildcards, whatever the order of registration.
type route struct {
	method string
	paths  []string
	access access
	limit  limit
	handle handler
}

// A handler answers one request: a value to encode as JSON with status 200
// (nil means {}), or an error. *matrix.Error keeps its status and code, the
// five kinds of package call are mapped by errorReply, all else is 500 M_UNKNOWN.
// A handler that writes the reply itself returns errWritten.
type handler func(r *request) (any, error)

// A request is an HTTP request with its authenticated caller.
type request struct {
	*http.Request
	w http.ResponseWriter

	user   matrix.UserID   // empty when not authenticated
	device matrix.DeviceID // empty for tokens without one
	guest  bool
	token  string // the access token itself, never logged
}

// v3 returns the paths of a client-server endpoint: /v3 and the older /r0.
func v3(path string) []string {
	return []string{"/_matrix/client/v3" + path, "/_matrix/client/r0" + path}
}

// A routeTree finds the endpoint of a path. We do not use http.ServeMux: it
// answers wrong methods and unknown paths in plain text, redirects paths with
// empty segments and refuses overlapping wildcards, all of which the Matrix API
// forbids or has. Built once, then only read.
type routeTree struct {
	literal map[string]*routeTree
	wild    *routeTree
	methods map[string]endpoint // endpoints that end here
	rest    map[string]endpoint // endpoints that end here with "{name...}"
}

// An endpoint is a route under one of its paths, with that path's wildcards.
type endpoint struct {
	route *route
	names []string
}

// add registers rt under path. Two routes for one method and path are a defect.
func (t *routeTree) add(path string, rt *route) {
	ep := endpoint{route: rt}
	for seg := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		switch {
		case strings.HasPrefix(seg, "{") && strings.HasSuffix(seg, "...}"):
			ep.names = append(ep.names, seg[1:len(seg)-4])
			t.rest = addMethod(t.rest, path, ep)
			return
		case strings.HasPrefix(seg, "{") && seg != "{$}":
			ep.names = append(ep.names, strings.Trim(seg, "{}"))
			if t.wild == nil {
				t.wild = &routeTree{}
			}
			t = t.wild
		default:
			if seg == "{$}" {
				seg = ""
			}
			if t.literal == nil {
				t.literal = make(map[string]*routeTree)
			}
			if t.literal[seg] == nil {
				t.literal[seg] = &routeTree{}
			}
			t = t.literal[seg]
		}
	}
	t.methods = addMethod(t.methods, path, ep)
}

func addMethod(m map[string]endpoint, path string, ep endpoint) map[string]endpoint {
	if m == nil {
		m = make(map[string]endpoint)
	}
	if _, taken := m[ep.route.method]; taken {
		panic(fmt.Sprintf("route %s %s is registered twice", ep.route.method, path))
	}
	m[ep.route.method] = ep
	return m
}

// find returns the endpoints by method at segs and what the wildcards matched,
// or nil.
func (t *routeTree) find(segs, values []string) (map[string]endpoint, []string) {
	if len(segs) == 0 {
		return t.methods, values
	}
	if next := t.literal[segs[0]]; next != nil {
		if m, v := next.find(segs[1:], values); m != nil {
			return m, v
		}
	}
	if t.wild != nil && segs[0] != "" {
		if m, v := t.wild.find(segs[1:], append(values, segs[0])); m != nil {
			return m, v
		}
	}
	if t.rest != nil {
		return t.rest, append(values, strings.Join(segs, "/"))
	}
	return nil, nil
}

// mount registers routes; New calls it before anything is served.
func (s *Server) mount(routes []route) {
	for i := range routes {
		rt := &routes[i]
		for _, p := range rt.paths {
			s.routes.add(p, rt)
		}
	}
}

// Handler answers /_matrix/..., /.well-known/matrix/... and every other path
// that it is given, with 404 M_UNRECOGNIZED where there is nothing.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serveHTTP) }

func (s *Server) serveHTTP(w http.ResponseWriter, hr *http.Request) {
	// Client-server API, "Web browser clients".
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "X-Requested-With, Content-Type, Authorization, Accept, Range, If-None-Match")
	h.Set("Access-Control-Expose-Headers", "ETag, Content-Disposition, Retry-After")
	if hr.Method == http.MethodOptions {
		h.Set("Access-Control-Max-Age", "86400")
		w.WriteHeader(http.StatusNoContent)
		return
	}

	r := &request{Request: hr, w: w}
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p == http.ErrAbortHandler {
			panic(p)
		}
		s.log.Error("handler panicked", "method", hr.Method, "path", hr.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		writeError(w, errInternal)
	}()
	v, err := s.answer(r)
	if err == errWritten {
		return
	}
	if err != nil {
		if e := errorReply(err); e.Status >= 500 && hr.Context().Err() == nil {
			s.log.Error("request failed", "method", hr.Method, "path", hr.URL.Path, "error", err)
		}
		writeError(w, errorReply(err))
		return
	}
	if v == nil {
		v = struct{}{}
	}
	writeJSON(w, http.StatusOK, v)
}

// answer routes, authenticates and limits a request and calls its handler.
func (s *Server) answer(r *request) (any, error) {
	segs, err := pathSegments(r.URL)
	if err != nil {
		return nil, err
	}
	methods, values := s.routes.find(segs, nil)
	if methods == nil {
		return nil, &matrix.Error{Status: http.StatusNotFound, Code: matrix.CodeUnrecognized, Message: "no such endpoint"}
	}
	ep, ok := methods[r.Method]
	if !ok && r.Method == http.MethodHead {
		ep, ok = methods[http.MethodGet] // net/http drops the body
	}
	if !ok {
		return nil, &matrix.Error{Status: http.StatusMethodNotAllowed, Code: matrix.CodeUnrecognized, Message: "this endpoint does not answer " + r.Method}
	}
	for i, name := range ep.names {
		r.SetPathValue(name, values[i])
	}
	rt := ep.route
	if err := s.authenticate(r, rt.access); err != nil {
		return nil, err
	}
	if rt.limit != limitNone {
		if err := s.allow(r, rt.limit); err != nil {
			return nil, err
		}
	}
	return rt.handle(r)
}

// pathSegments splits a path at its slashes and then decodes the segments, so
// that an encoded slash inside an ID stays where it is.
func pathSegments(u *url.URL) ([]string, error) {
	segs := strings.Split(strings.TrimPrefix(u.EscapedPath(), "/"), "/")
	for i, seg := range segs {
		s, err := url.PathUnescape(seg)
		if err != nil || !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
			return nil, fmt.Errorf("path is not percent-encoded UTF-8: %w", call.ErrInvalid)
		}
		segs[i] = s
	}
	return segs, nil
}

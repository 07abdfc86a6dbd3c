package sip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/guard"
	"github.com/trunkhall/trunkhall/sip/ledger"
	"github.com/trunkhall/trunkhall/sip/numbers"
)

// Limits of the HTTP API.
const (
	apiMaxBody   = 64 << 10
	apiLongPoll  = 25 * time.Second // unless the request says otherwise
	apiMaxPoll   = time.Minute
	apiMaxNumber = 64 // bytes, as typed
	apiMaxName   = 128
	apiMaxDigits = 32

	// A user may ask apiRate times a second and begin one call in apiDialEvery;
	// strangers of one address may try apiStrangers tokens a second. The budgets of
	// sip.outbound hold besides.
	apiRate      = 10
	apiBurst     = 60
	apiDialEvery = 2 * time.Second
	apiDialBurst = 5
	apiStrangers = 2
	apiGuesses   = 20
	apiCallers   = 10_000 // whose rates are remembered at once
)

// A Gateway is what the API is about; *Server is one.
type Gateway interface {
	Dial(ctx context.Context, r call.DialRequest) (call.Leg, error)
	Wait(ctx context.Context, id call.LegID, seen call.LegState) (call.Leg, error)
	Leg(id call.LegID) (call.Leg, bool)
	Legs() []call.Leg
	Hangup(ctx context.Context, id call.LegID) error
	Transfer(ctx context.Context, id call.LegID, to string, headers map[string]string) error
	Digits(id call.LegID, digits string) error
	Mute(id call.LegID, muted bool) error
	Trunks() []call.TrunkState
	SetTrunk(ctx context.Context, t call.Trunk) error
	DeleteTrunk(ctx context.Context, id string) error
	Rules() []call.DispatchRule
	SetRule(ctx context.Context, r call.DispatchRule) error
	DeleteRule(ctx context.Context, id string) error
	Numbers() []Number
	Records(f ledger.Filter) []ledger.Record
	Bans() []guard.Ban
	LiftBan(ip netip.Addr) bool
	Explain(typed, trunk string) numbers.Result
}

var _ Gateway = (*Server)(nil)

// MatrixRooms knows how telephones come into Matrix rooms and what a user may do
// about it. The user of every method is the one who asks; empty is the operator.
// Errors wrap call.ErrForbidden if the user is not in the room or lacks the power.
type MatrixRooms interface {
	Room(ctx context.Context, name string) (call.Place, error)
	DialIn(ctx context.Context, roomID, user string) (call.DialIn, error)
	RotatePIN(ctx context.Context, roomID, user string) (pin string, err error)
	ChangeDialIn(ctx context.Context, roomID, user string, c call.DialInChange) error
	Waiting(roomID string) []call.Waiting
	Admit(ctx context.Context, leg call.LegID, user string, admit bool) error
}

// APIDeps are what the API works with.
type APIDeps struct {
	Gateway Gateway
	Rooms   MatrixRooms // nil: no Matrix, only the operators' half is served
	// User returns whose access token it is and whether they are an administrator.
	// The error wraps call.ErrForbidden if it is nobody's, or a guest's.
	User func(ctx context.Context, token string) (user string, admin bool, err error)
	// DialOut says whether any number may be called at all.
	DialOut func() bool
	Log     *slog.Logger
}

// An API serves telephones over HTTP: to the web client for the rooms of its user,
// and to administrators. Callers are known by bearer tokens alone, so a page of
// another origin cannot act for them. Errors look like Matrix's, with the cause of
// a call that failed beside them.
type API struct {
	deps APIDeps
	mux  *http.ServeMux
	now  func() time.Time

	callers   rates // by user
	dials     rates // by user
	strangers rates // by address
}

// NewAPI returns the API. It starts nothing.
func NewAPI(deps APIDeps) *API {
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	a := &API{
		deps: deps, mux: http.NewServeMux(), now: time.Now,
		callers:   rates{every: rate.Limit(apiRate), burst: apiBurst},
		dials:     rates{every: rate.Every(apiDialEvery), burst: apiDialBurst},
		strangers: rates{every: rate.Limit(apiStrangers), burst: apiGuesses},
	}
	methods := make(map[string][]string) // by path
	for _, r := range a.routes() {
		a.mux.HandleFunc(r.method+" "+r.path, func(w http.ResponseWriter, q *http.Request) { a.serve(w, q, r) })
		methods[r.path] = append(methods[r.path], r.method)
	}
	for path, allowed := range methods {
		a.mux.HandleFunc(path, func(w http.ResponseWriter, q *http.Request) {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			a.fail(w, q, &apiError{status: http.StatusMethodNotAllowed, code: "M_UNRECOGNIZED", text: "wrong method"})
		})
	}
	a.mux.HandleFunc("/", func(w http.ResponseWriter, q *http.Request) {
		a.fail(w, q, &apiError{status: http.StatusNotFound, code: "M_UNRECOGNIZED", text: "unrecognized request"})
	})
	return a
}

// Handler serves everything below /_trunkhall/.
func (a *API) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// As with Matrix's own API, a page of any origin may ask: it needs a token,
		// and nothing else (no cookie) speaks for the user.
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		if r.Method == http.MethodOptions {
			h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE, OPTIONS")
			h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type")
			h.Set("Access-Control-Max-Age", "86400")
			w.WriteHeader(http.StatusNoContent)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, apiMaxBody)
		a.mux.ServeHTTP(w, r)
	})
}

// An apiRoute is one path and who may use it.
type apiRoute struct {
	method, path string
	admin        bool
	serve        func(r *apiRequest) (any, error)
}

// An apiRequest is a request of somebody who is known.
type apiRequest struct {
	*http.Request
	user  string
	admin bool
}

// read decodes the body, which must be a JSON object. strict refuses what into
// has no field for.
func (r *apiRequest) read(into any, strict bool) error {
	body, err := io.ReadAll(r.Body)
	if tooBig := new(http.MaxBytesError); errors.As(err, &tooBig) {
		return &apiError{status: http.StatusRequestEntityTooLarge, code: "M_TOO_LARGE", text: "the body is too large"}
	} else if err != nil {
		return &apiError{status: http.StatusBadRequest, code: "M_NOT_JSON", text: "the body could not be read"}
	}
	if !json.Valid(body) {
		return &apiError{status: http.StatusBadRequest, code: "M_NOT_JSON", text: "the body is not JSON"}
	}
	d := json.NewDecoder(strings.NewReader(string(body)))
	if strict {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(into); err != nil {
		return &apiError{status: http.StatusBadRequest, code: "M_BAD_JSON", text: strings.TrimPrefix(err.Error(), "json: ")}
	}
	return nil
}

func (r *apiRequest) leg() call.LegID { return call.LegID(r.PathValue("legId")) }

// An apiError is an error with its own status and code.
type apiError struct {
	status int
	code   string
	text   string
	cause  call.Cause
	wait   time.Duration // until it makes sense to ask again
}

func (e *apiError) Error() string { return e.code + ": " + e.text }

// apiKinds is how each kind of error is told. M_... has no code for conflicts and
// for "not now", so ours are named as Matrix asks of others.
var apiKinds = []struct {
	kind   error
	status int
	code   string
}{
	{call.ErrNotFound, http.StatusNotFound, "M_NOT_FOUND"},
	{call.ErrForbidden, http.StatusForbidden, "M_FORBIDDEN"},
	{call.ErrInvalid, http.StatusBadRequest, "M_INVALID_PARAM"},
	{call.ErrConflict, http.StatusConflict, "ORG.TRUNKHALL.CONFLICT"},
	{call.ErrUnavailable, http.StatusServiceUnavailable, "ORG.TRUNKHALL.UNAVAILABLE"},
}

// fail answers with an error. What is of no kind is for the log only.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	var e *apiError
	if !errors.As(err, &e) {
		e = &apiError{status: http.StatusInternalServerError, code: "M_UNKNOWN", text: "internal error"}
		for _, k := range apiKinds {
			if errors.Is(err, k.kind) {
				e = &apiError{status: k.status, code: k.code, text: err.Error()}
				break
			}
		}
		if e.status == http.StatusInternalServerError && r.Context().Err() == nil {
			a.deps.Log.Error("telephone API", "method", r.Method, "route", r.Pattern, "err", err)
		}
	}
	body := map[string]any{"errcode": e.code, "error": e.text}
	if e.cause != call.CauseNone {
		body["cause"] = e.cause
	}
	if e.wait > 0 {
		body["retry_after_ms"] = e.wait.Milliseconds()
		w.Header().Set("Retry-After", strconv.Itoa(int((e.wait+time.Second-1)/time.Second)))
	}
	a.write(w, e.status, body)
}

func (a *API) write(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		a.deps.Log.Error("encoding an answer of the telephone API", "err", err)
		status, body = http.StatusInternalServerError, []byte(`{"errcode":"M_UNKNOWN","error":"internal error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that is gone needs no answer
}

// serve authenticates and serves one request.
func (a *API) serve(w http.ResponseWriter, q *http.Request, route apiRoute) {
	r, err := a.authenticate(q)
	if err != nil {
		a.fail(w, q, err)
		return
	}
	if route.admin && !r.admin {
		a.fail(w, q, &apiError{status: http.StatusForbidden, code: "M_FORBIDDEN", text: "only for administrators"})
		return
	}
	answer, err := route.serve(r)
	if err != nil {
		a.fail(w, q, err)
		return
	}
	if answer == nil {
		answer = struct{}{}
	}
	a.write(w, http.StatusOK, answer)
}

// authenticate finds out whose request it is. Guessing tokens is slow.
func (a *API) authenticate(q *http.Request) (*apiRequest, error) {
	now := a.now()
	scheme, token, _ := strings.Cut(q.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return nil, &apiError{status: http.StatusUnauthorized, code: "M_MISSING_TOKEN", text: "an access token is needed"}
	}
	source := q.RemoteAddr
	if ap, err := netip.ParseAddrPort(source); err == nil {
		source = network(ap.Addr()).String()
	}
	if wait := a.strangers.peek(source, now); wait > 0 {
		return nil, slowDown(wait)
	}
	user, admin, err := a.deps.User(q.Context(), token)
	switch {
	case errors.Is(err, call.ErrForbidden), errors.Is(err, call.ErrNotFound):
		a.strangers.take(source, now)
		return nil, &apiError{status: http.StatusUnauthorized, code: "M_UNKNOWN_TOKEN", text: "unknown access token"}
	case err != nil:
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	if wait := a.callers.take(user, now); wait > 0 {
		return nil, slowDown(wait)
	}
	return &apiRequest{Request: q, user: user, admin: admin}, nil
}

// network is what one stranger has at their disposal: an IPv4 address, an IPv6 /64.
func network(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap()
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.WithZone("").Prefix(bits)
	return p
}

func slowDown(wait time.Duration) error {
	return &apiError{status: http.StatusTooManyRequests, code: "M_LIMIT_EXCEEDED", text: "too many requests", wait: wait, cause: call.CauseNone}
}

// rates are token buckets by name. The zero value needs every and burst.
type rates struct {
	every rate.Limit
	burst int

	mu  sync.Mutex // guards the following field
	all map[string]*rate.Limiter
}

func (r *rates) of(name string, now time.Time) *rate.Limiter {
	l, ok := r.all[name]
	if !ok {
		if r.all == nil || len(r.all) >= apiCallers {
			// Those whose bucket is full need not be remembered; if that is
			// nobody, everybody gets a fresh one.
			for name, l := range r.all {
				if l.TokensAt(now) >= float64(r.burst) {
					delete(r.all, name)
				}
			}
			if r.all == nil || len(r.all) >= apiCallers {
				r.all = make(map[string]*rate.Limiter)
			}
		}
		l = rate.NewLimiter(r.every, r.burst)
		r.all[name] = l
	}
	return l
}

// take takes a token and returns 0, or how long until there is one.
func (r *rates) take(name string, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.of(name, now)
	if l.AllowN(now, 1) {
		return 0
	}
	return r.until(l, now)
}

// peek returns how long until there is a token, without taking it.
func (r *rates) peek(name string, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, ok := r.all[name]
	if !ok || l.TokensAt(now) >= 1 {
		return 0
	}
	return r.until(l, now)
}

func (r *rates) until(l *rate.Limiter, now time.Time) time.Duration {
	missing := 1 - l.TokensAt(now)
	return max(time.Millisecond, time.Duration(missing/float64(r.every)*float64(time.Second)))
}

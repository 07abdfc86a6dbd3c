package signaling

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

const (
	maxTokenRequest = 1 << 20 // bytes of a request body
	maxName         = 255     // bytes of a room, user, device, member or slot ID
	maxOpenIDToken  = 2048    // bytes
	maxDelayID      = 255     // bytes
	maxDelay        = 24 * time.Hour

	// answerTime bounds one request; verifying a stranger takes at most five seconds of it.
	answerTime = 15 * time.Second
)

// handler serves the endpoints of a MatrixRTC token service: POST /sfu/get,
// /get_token and /delegate_delayed_leave, GET /healthz. Whatever stands in
// front of these paths is ignored, because reverse proxies differ in whether
// they cut a prefix off; except below /_matrix/, where the same last words name
// endpoints of a homeserver.
func (m *matrixRTC) handler() http.Handler { return http.HandlerFunc(m.serve) }

// tokenEndpoints are the last parts of the paths that handler serves.
var tokenEndpoints = []string{"/sfu/get", "/get_token", "/delegate_delayed_leave", "/healthz"}

// tokenEndpoint returns which of tokenEndpoints path means, or "".
func tokenEndpoint(path string) string {
	if strings.Contains(path, "/_matrix/") {
		return ""
	}
	for _, e := range tokenEndpoints {
		if strings.HasSuffix(path, e) {
			return e
		}
	}
	return ""
}

func (m *matrixRTC) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "POST")
	h.Set("Access-Control-Allow-Headers", "Accept, Content-Type, Content-Length, Accept-Encoding, X-CSRF-Token, Authorization")
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")

	var answer func(context.Context, []byte) (any, error)
	switch tokenEndpoint(r.URL.Path) {
	case "/healthz":
		serveHealth(w, r)
		return
	case "/sfu/get":
		answer = m.sfuGet
	case "/get_token":
		answer = m.getToken
	case "/delegate_delayed_leave":
		answer = m.delegateDelayedLeave
	default:
		writeAPIError(w, &matrix.Error{Status: http.StatusNotFound, Code: matrix.CodeUnrecognized, Message: "Unrecognized request"})
		return
	}
	switch r.Method {
	case http.MethodOptions:
		w.WriteHeader(http.StatusOK)
		return
	case http.MethodPost:
	default:
		h.Set("Allow", "POST, OPTIONS")
		writeAPIError(w, &matrix.Error{Status: http.StatusMethodNotAllowed, Code: matrix.CodeUnrecognized, Message: "Method not allowed"})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTime)
	defer cancel()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxTokenRequest))
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			writeAPIError(w, &matrix.Error{Status: http.StatusRequestEntityTooLarge, Code: matrix.CodeTooLarge, Message: "Request body is larger than 1 MiB"})
		} else {
			writeAPIError(w, &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeNotJSON, Message: "Request body could not be read"})
		}
		return
	}
	out, err := answer(ctx, body)
	if err != nil {
		known := apiError(err)
		if known.Status >= 500 && r.Context().Err() == nil {
			m.log.Error("token request", "path", r.URL.Path, "err", err)
		} else {
			m.log.Debug("token request refused", "path", r.URL.Path, "err", err)
		}
		writeAPIError(w, known)
		return
	}
	writeAnswer(w, http.StatusOK, out)
}

func serveHealth(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		w.WriteHeader(http.StatusOK)
	default:
		w.Header().Set("Allow", "GET, HEAD, OPTIONS")
		writeAPIError(w, &matrix.Error{Status: http.StatusMethodNotAllowed, Code: matrix.CodeUnrecognized, Message: "Method not allowed"})
	}
}

// openIDToken is what /openid/request_token answered to the client. Its type
// and lifetime are not used: servers disagree on the latter's meaning.
type openIDToken struct {
	AccessToken string            `json:"access_token"`
	ServerName  matrix.ServerName `json:"matrix_server_name"`
}

// delegationFields are the same in all three requests. delay_cs_api_url, which
// clients send too, is not read: this server fetches nothing that a client names.
type delegationFields struct {
	DelayID      string      `json:"delay_id"`
	DelayTimeout json.Number `json:"delay_timeout"`
}

// leave returns the delayed leave that is named, nil if there is none.
func (f delegationFields) leave() (*delayedLeave, error) {
	if f.DelayID == "" && f.DelayTimeout == "" {
		return nil, nil
	}
	if f.DelayID == "" || f.DelayTimeout == "" {
		return nil, badJSON("delay_id and delay_timeout go together")
	}
	if len(f.DelayID) > maxDelayID || !printable(f.DelayID) {
		return nil, badJSON("delay_id is not valid")
	}
	ms, err := f.DelayTimeout.Float64()
	if err != nil || ms != math.Trunc(ms) || ms <= 0 || ms > float64(maxDelay/time.Millisecond) {
		return nil, badJSON("delay_timeout is not a sensible number of milliseconds")
	}
	return &delayedLeave{id: f.DelayID, delay: time.Duration(ms) * time.Millisecond}, nil
}

// claimedMember is the calling member as its client claims it to be.
type claimedMember struct {
	ID       string          `json:"id"`
	UserID   matrix.UserID   `json:"claimed_user_id"`
	DeviceID matrix.DeviceID `json:"claimed_device_id"`
}

type tokenAnswer struct {
	URL string `json:"url"`
	JWT string `json:"jwt"`
}

// sfuGet is the legacy POST /sfu/get, which Element Call still uses first.
func (m *matrixRTC) sfuGet(ctx context.Context, body []byte) (any, error) {
	var req struct {
		Room     matrix.RoomID   `json:"room"`
		OpenID   openIDToken     `json:"openid_token"`
		DeviceID matrix.DeviceID `json:"device_id"`
		delegationFields
	}
	if err := decodeRequest(body, &req); err != nil {
		return nil, err
	}
	err := errors.Join(
		validName("room", string(req.Room)),
		validName("device_id", string(req.DeviceID)))
	if err != nil {
		return nil, err
	}
	leave, err := req.leave()
	if err != nil {
		return nil, err
	}
	user, err := m.whoAsks(ctx, req.OpenID)
	if err != nil {
		return nil, err
	}
	return m.token(ctx, admission{
		room: req.Room, slot: legacySlot, user: user, device: req.DeviceID,
		identity: plainIdentity(user, req.DeviceID), leave: leave,
	})
}

// memberRequest is what /get_token and /delegate_delayed_leave are sent (MSC4195).
type memberRequest struct {
	Room   matrix.RoomID `json:"room_id"`
	Slot   string        `json:"slot_id"`
	OpenID openIDToken   `json:"openid_token"`
	Member claimedMember `json:"member"`
	delegationFields
}

// admission verifies a memberRequest, as far as that goes without the room.
func (m *matrixRTC) admission(ctx context.Context, body []byte) (admission, error) {
	var req memberRequest
	if err := decodeRequest(body, &req); err != nil {
		return admission{}, err
	}
	err := errors.Join(
		validName("room_id", string(req.Room)),
		validName("slot_id", req.Slot),
		validName("member.id", req.Member.ID),
		validName("member.claimed_user_id", string(req.Member.UserID)),
		validName("member.claimed_device_id", string(req.Member.DeviceID)))
	if err != nil {
		return admission{}, err
	}
	leave, err := req.leave()
	if err != nil {
		return admission{}, err
	}
	user, err := m.whoAsks(ctx, req.OpenID)
	if err != nil {
		return admission{}, err
	}
	if user != req.Member.UserID {
		return admission{}, unauthorized("claimed_user_id is not the user of the OpenID token")
	}
	return admission{
		room: req.Room, slot: req.Slot, user: user, device: req.Member.DeviceID,
		identity: memberIdentity(user, req.Member.DeviceID, req.Member.ID), leave: leave,
	}, nil
}

// getToken is POST /get_token.
func (m *matrixRTC) getToken(ctx context.Context, body []byte) (any, error) {
	a, err := m.admission(ctx, body)
	if err != nil {
		return nil, err
	}
	return m.token(ctx, a)
}

// delegateDelayedLeave is POST /delegate_delayed_leave. Clients also probe it
// without a body: any answer but 404 tells them that delegation works here.
func (m *matrixRTC) delegateDelayedLeave(ctx context.Context, body []byte) (any, error) {
	a, err := m.admission(ctx, body)
	if err != nil {
		return nil, err
	}
	if a.leave == nil {
		return nil, badJSON("delay_id and delay_timeout are needed")
	}
	if err := m.delegate(ctx, a); err != nil {
		return nil, err
	}
	return struct{}{}, nil
}

func (m *matrixRTC) token(ctx context.Context, a admission) (any, error) {
	jwt, err := m.admit(ctx, a)
	if err != nil {
		return nil, err
	}
	return tokenAnswer{URL: m.url(), JWT: jwt}, nil
}

// whoAsks returns the user to whom an OpenID token was given. Users of this
// homeserver only: others are verified with theirs, and then refused for as
// long as they cannot be members of rooms here.
func (m *matrixRTC) whoAsks(ctx context.Context, t openIDToken) (matrix.UserID, error) {
	if t.AccessToken == "" || t.ServerName == "" {
		return "", badJSON("openid_token.access_token and openid_token.matrix_server_name are needed")
	}
	if len(t.AccessToken) > maxOpenIDToken || len(t.ServerName) > maxName {
		return "", badJSON("openid_token is too long")
	}
	own := m.rooms.ServerName()
	if t.ServerName == own {
		user, err := m.rooms.OpenIDUser(ctx, t.AccessToken)
		if errors.Is(err, call.ErrNotFound) {
			return "", unauthorized("The OpenID token is not known or has expired")
		}
		if err != nil {
			return "", fmt.Errorf("openid token: %w", err)
		}
		if user.Server() != own {
			return "", unauthorized("The OpenID token is for a user of another server")
		}
		return user, limited(m.perUser.take(string(user)))
	}
	if err := limited(m.perServer.take(string(t.ServerName))); err != nil {
		return "", err
	}
	user, err := m.openID.verify(ctx, t.ServerName, t.AccessToken)
	if err != nil {
		m.log.Info("openid token of another server", "server", t.ServerName, "err", err)
		return "", unauthorized("The OpenID token could not be verified with its server")
	}
	return "", fmt.Errorf("%s is not a user of this homeserver: %w", user, call.ErrForbidden)
}

// decodeRequest decodes one JSON object and ignores keys it does not know.
func decodeRequest(body []byte, into any) error {
	if !utf8.Valid(body) || !json.Valid(body) {
		return &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeNotJSON, Message: "Request body is not JSON"}
	}
	if b := bytes.TrimLeft(body, " \t\r\n"); b[0] != '{' {
		return badJSON("Request body is not a JSON object")
	}
	if err := json.Unmarshal(body, into); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			return badJSON(wrong.Field + " has the wrong type")
		}
		return badJSON("Request body has a wrong type")
	}
	return nil
}

// validName refuses what is missing, longer than any Matrix identifier may be,
// or not printable. Device and member IDs are opaque beyond that.
func validName(field, value string) error {
	switch {
	case value == "":
		return badJSON(field + " is needed")
	case len(value) > maxName:
		return badJSON(field + " is too long")
	case !printable(value):
		return badJSON(field + " has characters that it may not have")
	}
	return nil
}

func printable(s string) bool {
	for _, r := range s {
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r == utf8.RuneError {
			return false
		}
	}
	return true
}

func badJSON(message string) error {
	return &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeBadJSON, Message: message}
}

func unauthorized(message string) error {
	return &matrix.Error{Status: http.StatusUnauthorized, Code: matrix.CodeUnauthorized, Message: message}
}

// limited turns a waiting time into an error.
func limited(wait time.Duration) error {
	if wait <= 0 {
		return nil
	}
	return &matrix.Error{
		Status: http.StatusTooManyRequests, Code: matrix.CodeLimitExceeded, Message: "Too many requests",
		Extra: map[string]any{"retry_after_ms": wait.Milliseconds() + 1},
	}
}

// tokenErrors says how the token endpoints answer the kinds of package call.
var tokenErrors = map[error]matrix.Error{
	// The same words for every reason: who is not in a room learns nothing of it.
	call.ErrForbidden:   {Status: http.StatusForbidden, Code: matrix.CodeForbidden, Message: "You are not a member of this room"},
	call.ErrNotFound:    {Status: http.StatusForbidden, Code: matrix.CodeForbidden, Message: "You are not a member of this room"},
	call.ErrInvalid:     {Status: http.StatusBadRequest, Code: matrix.CodeBadJSON, Message: "The request cannot be served as it is"},
	call.ErrConflict:    {Status: http.StatusConflict, Code: matrix.CodeUnknown, Message: "The request came between others; try again"},
	call.ErrUnavailable: {Status: http.StatusServiceUnavailable, Code: matrix.CodeUnknown, Message: "Not available at the moment"},
}

func apiError(err error) *matrix.Error {
	var known *matrix.Error
	if errors.As(err, &known) {
		return known
	}
	for kind, answer := range tokenErrors {
		if errors.Is(err, kind) {
			return &answer
		}
	}
	return &matrix.Error{Status: http.StatusInternalServerError, Code: matrix.CodeUnknown, Message: "Internal error"}
}

func writeAPIError(w http.ResponseWriter, e *matrix.Error) {
	body := map[string]any{"errcode": e.Code, "error": e.Message}
	for k, v := range e.Extra {
		body[k] = v
	}
	if ms, ok := e.Extra["retry_after_ms"].(int64); ok {
		w.Header().Set("Retry-After", strconv.FormatInt((ms+999)/1000, 10))
	}
	writeAnswer(w, e.Status, body)
}

func writeAnswer(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"errcode":"M_UNKNOWN","error":"Internal error"}`)
	}
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

package homeserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/trunkhall/trunkhall/matrix"
)

const (
	maxJSONBody  = 1 << 20 // bytes; key uploads and createRoom fit well
	maxJSONDepth = 100     // nested objects and arrays
)

// decode reads the body, which must be a JSON object, into v. The content type
// is not looked at: clients send many, and the API has no cookies to protect.
func (r *request) decode(v any) error {
	raw, err := r.object()
	if err != nil {
		return err
	}
	return decodeJSON(raw, v)
}

// decodeOptional is decode for endpoints whose body may be absent.
func (r *request) decodeOptional(v any) error {
	raw, err := r.objectOrEmpty()
	if err != nil {
		return err
	}
	return decodeJSON(raw, v)
}

// objectOrEmpty is object for endpoints whose body may be absent: {} then.
func (r *request) objectOrEmpty() (json.RawMessage, error) {
	raw, err := r.body(maxJSONBody)
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return json.RawMessage("{}"), nil
	}
	return json.RawMessage(raw), checkObject(raw)
}

// object reads the body and returns it if it is a JSON object of bounded size
// and depth in valid UTF-8.
func (r *request) object() (json.RawMessage, error) {
	raw, err := r.body(maxJSONBody)
	if err != nil {
		return nil, err
	}
	if err := checkObject(raw); err != nil {
		return nil, err
	}
	return json.RawMessage(bytes.TrimSpace(raw)), nil
}

// body reads the whole body, at most limit bytes.
func (r *request) body(limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, tooLarge("body is larger than %d bytes", limit)
	}
	if r.Body == nil {
		return nil, nil
	}
	b, err := io.ReadAll(http.MaxBytesReader(r.w, r.Body, limit))
	if tooBig := (*http.MaxBytesError)(nil); errors.As(err, &tooBig) {
		return nil, tooLarge("body is larger than %d bytes", limit)
	}
	if err != nil {
		return nil, badJSON("body ends too early")
	}
	return b, nil
}

// checkObject reports what is wrong with raw as a JSON object from outside.
func checkObject(raw []byte) error {
	notJSON := func(why string) error {
		return &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeNotJSON, Message: why}
	}
	if !utf8.Valid(raw) {
		return notJSON("body is not UTF-8")
	}
	if matrix.Nesting(raw) > maxJSONDepth {
		return badJSON("body is nested deeper than %d levels", maxJSONDepth)
	}
	if !json.Valid(raw) {
		return notJSON("body is not JSON")
	}
	if b := bytes.TrimSpace(raw); b[0] != '{' {
		return badJSON("body must be a JSON object")
	}
	return nil
}

// decodeJSON decodes raw, already checked, into v and words what does not fit.
func decodeJSON(raw json.RawMessage, v any) error {
	err := json.Unmarshal(raw, v)
	if typ := (*json.UnmarshalTypeError)(nil); errors.As(err, &typ) {
		if typ.Field == "" {
			return badJSON("body must not be a JSON %s", typ.Value)
		}
		return badJSON("%s must not be a JSON %s", typ.Field, typ.Value)
	}
	var own *matrix.Error
	if errors.As(err, &own) {
		return own
	}
	if err != nil {
		return badJSON("body: %v", err)
	}
	return nil
}

// addr returns the client's IP address. A proxy on this machine is believed
// about it; nobody else is.
func (r *request) addr() string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return host
	}
	fwd := r.Header.Values("X-Forwarded-For")
	if len(fwd) == 0 {
		return host
	}
	parts := strings.Split(fwd[len(fwd)-1], ",")
	if ip := net.ParseIP(strings.TrimSpace(parts[len(parts)-1])); ip != nil {
		return ip.String()
	}
	return host
}

package signaling

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/trunkhall/trunkhall/call"
)

// twirpPrefix starts the paths of the server API: Twirp v7, POST
// <prefix>livekit.<Service>/<Method> with protobuf or JSON.
const twirpPrefix = "/twirp/"

// A twirpCode is one of Twirp's error codes.
type twirpCode string

const (
	twirpNotFound           twirpCode = "not_found"
	twirpUnauthenticated    twirpCode = "unauthenticated"
	twirpInvalidArgument    twirpCode = "invalid_argument"
	twirpFailedPrecondition twirpCode = "failed_precondition"
	twirpUnavailable        twirpCode = "unavailable"
	twirpInternal           twirpCode = "internal"
	twirpCanceled           twirpCode = "canceled"
	twirpUnimplemented      twirpCode = "unimplemented"
	twirpBadRoute           twirpCode = "bad_route"
	twirpMalformed          twirpCode = "malformed"
	twirpResourceExhausted  twirpCode = "resource_exhausted"
	twirpPermissionDenied   twirpCode = "permission_denied"
	twirpDeadlineExceeded   twirpCode = "deadline_exceeded"
	twirpAborted            twirpCode = "aborted"
	twirpOutOfRange         twirpCode = "out_of_range"
	twirpUnknown            twirpCode = "unknown"
)

// twirpStatus is the HTTP status of each code.
var twirpStatus = map[twirpCode]int{
	twirpNotFound:           http.StatusNotFound,
	twirpUnauthenticated:    http.StatusUnauthorized,
	twirpInvalidArgument:    http.StatusBadRequest,
	twirpFailedPrecondition: http.StatusPreconditionFailed,
	twirpUnavailable:        http.StatusServiceUnavailable,
	twirpInternal:           http.StatusInternalServerError,
	twirpCanceled:           http.StatusRequestTimeout,
	twirpUnimplemented:      http.StatusNotImplemented,
	twirpBadRoute:           http.StatusNotFound,
	twirpMalformed:          http.StatusBadRequest,
	twirpResourceExhausted:  http.StatusRequestEntityTooLarge, // of bodies; see sipHTTPStatus
	twirpPermissionDenied:   http.StatusForbidden,
	twirpDeadlineExceeded:   http.StatusRequestTimeout,
	twirpAborted:            http.StatusConflict,
	twirpOutOfRange:         http.StatusBadRequest,
	twirpUnknown:            http.StatusInternalServerError,
}

// A twirpError is an error that says its own code.
type twirpError struct {
	code   twirpCode
	text   string
	meta   map[string]string // details that SDKs read; may be nil
	status int               // instead of the code's HTTP status; 0: that
}

func (e *twirpError) Error() string { return e.text }

// A twirpMethod decodes a request, serves it and returns the response.
type twirpMethod func(ctx context.Context, c *claims, decode func(proto.Message) error) (proto.Message, error)

// method makes a twirpMethod of a typed function.
func method[Q any, PQ interface {
	*Q
	proto.Message
}, R proto.Message](serve func(context.Context, *claims, PQ) (R, error)) twirpMethod {
	return func(ctx context.Context, c *claims, decode func(proto.Message) error) (proto.Message, error) {
		request := PQ(new(Q))
		if err := decode(request); err != nil {
			return nil, err
		}
		response, err := serve(ctx, c, request)
		if err != nil {
			return nil, err
		}
		return response, nil
	}
}

// serveTwirp serves the server API. name is the path below the prefix.
func (s *Server) serveTwirp(w http.ResponseWriter, r *http.Request, name string) {
	response, codec, err := s.callTwirp(r, name)
	if err != nil {
		writeTwirpError(w, err)
		return
	}
	body, err := codec.marshal(response)
	if err != nil {
		writeTwirpError(w, fmt.Errorf("encode response: %w", err))
		return
	}
	w.Header().Set("Content-Type", codec.name)
	_, _ = w.Write(body)
}

func (s *Server) callTwirp(r *http.Request, name string) (proto.Message, twirpCodec, error) {
	if r.Method != http.MethodPost {
		return nil, twirpCodec{}, &twirpError{code: twirpBadRoute, text: "unsupported method " + r.Method + " (only POST is allowed)"}
	}
	codec, ok := twirpCodecFor(r.Header.Get("Content-Type"))
	if !ok {
		return nil, codec, &twirpError{code: twirpBadRoute, text: "unexpected Content-Type"}
	}
	if _, _, ok := strings.Cut(name, "/"); !ok {
		return nil, codec, &twirpError{code: twirpBadRoute, text: "no handler for path"}
	}
	c, err := s.authenticateTwirp(r)
	if err != nil {
		return nil, codec, err
	}
	serve, ok := s.roomService()[name]
	if !ok && s.phones != nil {
		serve, ok = s.sipService()[name]
	}
	if !ok && strings.HasPrefix(name, sipPrefix) && s.phones == nil {
		return nil, codec, &twirpError{code: twirpUnimplemented, text: "telephones are switched off: the configuration has no trunks"}
	}
	if !ok {
		return nil, codec, &twirpError{code: twirpUnimplemented, text: name + " is not implemented by this server"}
	}
	body, err := io.ReadAll(r.Body)
	if tooBig := new(http.MaxBytesError); errors.As(err, &tooBig) {
		return nil, codec, &twirpError{code: twirpResourceExhausted, text: "request too large"}
	} else if err != nil {
		return nil, codec, &twirpError{code: twirpMalformed, text: "cannot read the request"}
	}
	response, err := serve(r.Context(), c, func(m proto.Message) error {
		if err := codec.unmarshal(body, m); err != nil {
			return &twirpError{code: twirpMalformed, text: "the request could not be decoded"}
		}
		return nil
	})
	if err != nil {
		s.log.Debug("server API call failed", "method", name, "err", err)
	}
	return response, codec, err
}

// authenticateTwirp returns the caller's claims. Missing and invalid tokens
// look alike.
func (s *Server) authenticateTwirp(r *http.Request) (*claims, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return nil, &twirpError{code: twirpUnauthenticated, text: "permissions denied"}
	}
	c, err := s.verify(token)
	if err == nil && c.Video == nil && c.SIP != nil {
		c.Video = &videoClaim{} // a token for telephones only
	}
	if err != nil || c.Video == nil {
		return nil, &twirpError{code: twirpUnauthenticated, text: "invalid authorization token"}
	}
	return c, nil
}

// A twirpCodec is one of the two encodings.
type twirpCodec struct {
	name      string
	marshal   func(proto.Message) ([]byte, error)
	unmarshal func([]byte, proto.Message) error
}

func twirpCodecFor(contentType string) (twirpCodec, bool) {
	media, _, _ := mime.ParseMediaType(contentType)
	switch media {
	case "application/protobuf":
		return twirpCodec{media, proto.Marshal, proto.Unmarshal}, true
	case "application/json":
		return twirpCodec{
			media,
			protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal,
			protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal,
		}, true
	}
	return twirpCodec{}, false
}

func writeTwirpError(w http.ResponseWriter, err error) {
	code, text := edgeOf(err).twirp, "internal error"
	var own *twirpError
	if errors.As(err, &own) {
		code, text = own.code, own.text
	} else if code != twirpInternal {
		text = twirpText(err)
	}
	answer := struct {
		Code twirpCode         `json:"code"`
		Msg  string            `json:"msg"`
		Meta map[string]string `json:"meta,omitempty"`
	}{Code: code, Msg: text}
	status := twirpStatus[code]
	if own != nil {
		answer.Meta = own.meta
		if own.status != 0 {
			status = own.status
		}
	}
	body, _ := json.Marshal(answer)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// twirpText says an error's kind; the chain is for the log.
func twirpText(err error) string {
	for _, kind := range call.Kinds() {
		if errors.Is(err, kind) {
			return kind.Error()
		}
	}
	return "internal error"
}

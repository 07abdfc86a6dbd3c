package homeserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// errWritten tells the frame that the handler has written the reply itself.
var errWritten = errors.New("reply written")

// errInternal is all that strangers learn of a defect; the log has the chain.
var errInternal = &matrix.Error{Status: http.StatusInternalServerError, Code: matrix.CodeUnknown, Message: "internal error"}

// errorKinds translates the kinds of package call at this edge. A test walks
// all of call.Kinds through it.
var errorKinds = []struct {
	kind   error
	status int
	code   matrix.Code
}{
	{call.ErrNotFound, http.StatusNotFound, matrix.CodeNotFound},
	{call.ErrForbidden, http.StatusForbidden, matrix.CodeForbidden},
	{call.ErrInvalid, http.StatusBadRequest, matrix.CodeInvalidParam},
	{call.ErrConflict, http.StatusConflict, matrix.CodeUnknown},
	{call.ErrUnavailable, http.StatusServiceUnavailable, matrix.CodeUnknown},
}

// errorReply returns the answer for an error: its own if it holds a
// *matrix.Error, else by its kind, else 500 without details.
func errorReply(err error) *matrix.Error {
	var e *matrix.Error
	if errors.As(err, &e) {
		return e
	}
	for _, k := range errorKinds {
		if errors.Is(err, k.kind) {
			return &matrix.Error{Status: k.status, Code: k.code, Message: err.Error()}
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &matrix.Error{Status: http.StatusServiceUnavailable, Code: matrix.CodeUnknown, Message: "took too long, try again"}
	}
	return errInternal
}

// writeError writes the standard error response (client-server API, "Standard error response").
func writeError(w http.ResponseWriter, e *matrix.Error) {
	body := make(map[string]any, len(e.Extra)+2)
	for k, v := range e.Extra {
		body[k] = v
	}
	if e.Code != "" { // user-interactive authentication asks for more without being an error
		body["errcode"] = e.Code
		body["error"] = e.Message
	}
	writeJSON(w, e.Status, body)
}

// writeJSON writes v with a status. Nothing of v is sent if it does not encode.
func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"errcode":"M_UNKNOWN","error":"internal error"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(b) // a client that is gone needs no answer
}

// badJSON, missingParam, invalidParam, forbidden and notFound make the common
// answers; format is for the client's developer to read.

func badJSON(format string, a ...any) error {
	return &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeBadJSON, Message: fmt.Sprintf(format, a...)}
}

func missingParam(format string, a ...any) error {
	return &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeMissingParam, Message: fmt.Sprintf(format, a...)}
}

func invalidParam(format string, a ...any) error {
	return &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeInvalidParam, Message: fmt.Sprintf(format, a...)}
}

func forbidden(format string, a ...any) error {
	return &matrix.Error{Status: http.StatusForbidden, Code: matrix.CodeForbidden, Message: fmt.Sprintf(format, a...)}
}

func notFound(format string, a ...any) error {
	return &matrix.Error{Status: http.StatusNotFound, Code: matrix.CodeNotFound, Message: fmt.Sprintf(format, a...)}
}

func tooLarge(format string, a ...any) error {
	return &matrix.Error{Status: http.StatusRequestEntityTooLarge, Code: matrix.CodeTooLarge, Message: fmt.Sprintf(format, a...)}
}

// limitExceeded is 429 with both forms of the waiting time.
func limitExceeded(w http.ResponseWriter, wait time.Duration) error {
	if wait < time.Millisecond {
		wait = time.Millisecond
	}
	w.Header().Set("Retry-After", strconv.Itoa(int((wait+time.Second-1)/time.Second)))
	return &matrix.Error{
		Status: http.StatusTooManyRequests, Code: matrix.CodeLimitExceeded, Message: "too many requests",
		Extra: map[string]any{"retry_after_ms": wait.Milliseconds()},
	}
}

package signaling

import (
	"errors"
	"net/http"

	"github.com/livekit/protocol/livekit"

	"github.com/trunkhall/trunkhall/call"
)

// An edge says what one kind of error looks like at each of the LiveKit
// protocol's edges. Whatever is of no kind is internal.
type edge struct {
	status int                            // of a failed join
	twirp  twirpCode                      // of a failed RoomService call
	reason livekit.RequestResponse_Reason // of a failed signal request
}

var edges = map[error]edge{
	call.ErrNotFound:    {http.StatusNotFound, twirpNotFound, livekit.RequestResponse_NOT_FOUND},
	call.ErrForbidden:   {http.StatusUnauthorized, twirpUnauthenticated, livekit.RequestResponse_NOT_ALLOWED},
	call.ErrInvalid:     {http.StatusBadRequest, twirpInvalidArgument, livekit.RequestResponse_UNSUPPORTED_TYPE},
	call.ErrConflict:    {http.StatusConflict, twirpFailedPrecondition, livekit.RequestResponse_QUEUED},
	call.ErrUnavailable: {http.StatusServiceUnavailable, twirpUnavailable, livekit.RequestResponse_LIMIT_EXCEEDED},
}

var internalEdge = edge{http.StatusInternalServerError, twirpInternal, livekit.RequestResponse_UNCLASSIFIED_ERROR}

// edgeOf returns how err is told to strangers.
func edgeOf(err error) edge {
	for _, kind := range call.Kinds() {
		if errors.Is(err, kind) {
			if e, ok := edges[kind]; ok {
				return e
			}
		}
	}
	return internalEdge
}

// A refusal is why a connection may not be made, as validate and a failed
// upgrade tell it: status and plain text.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

func refuse(status int, text string) *refusal { return &refusal{status, text} }

package web

import (
	"io"
	"net/http"
	"runtime/debug"
	"strings"
	"time"
)

// limitBodyTime gives a request's body a time limit, so that a client that
// sends one byte a minute does not keep a handler for ever. The limit ends with
// the body: what follows may be a long poll.
func limitBodyTime(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		return
	}
	limit := bodyTimeout
	if strings.HasPrefix(r.URL.Path, "/_matrix/media/") {
		limit = uploadTimeout
	}
	control := http.NewResponseController(w)
	if control.SetReadDeadline(time.Now().Add(limit)) != nil {
		return // not a network connection
	}
	r.Body = &timedBody{ReadCloser: r.Body, control: control}
}

// A timedBody takes its read deadline away when it has been read to its end.
type timedBody struct {
	io.ReadCloser
	control *http.ResponseController
}

func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

func stack() string { return string(debug.Stack()) }

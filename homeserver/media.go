package homeserver

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// mediaRoutes are the endpoints of the content repository.
func (s *Server) mediaRoutes() []route {
	media := func(path string) []string {
		return []string{"/_matrix/media/v3" + path, "/_matrix/media/r0" + path, "/_matrix/media/v1" + path}
	}
	const v1 = "/_matrix/client/v1/media"
	return []route{
		{http.MethodPost, media("/upload"), accessUser, limitMessage, s.postUpload},
		{http.MethodGet, append(media("/config"), v1+"/config"), accessGuest, limitNone, s.getMediaConfig},
		{http.MethodGet, []string{v1 + "/download/{serverName}/{mediaId}", v1 + "/download/{serverName}/{mediaId}/{fileName}"}, accessGuest, limitNone, s.getDownload},
		{http.MethodGet, []string{v1 + "/thumbnail/{serverName}/{mediaId}"}, accessGuest, limitNone, s.getThumbnail},
		// Without a token nothing is given out: all media here is younger than
		// authenticated media (client-server API v1.11).
		{http.MethodGet, slices.Concat(media("/download/{serverName}/{mediaId}"), media("/download/{serverName}/{mediaId}/{fileName}"), media("/thumbnail/{serverName}/{mediaId}")),
			accessPublic, limitNone, frozenMedia},
	}
}

func frozenMedia(*request) (any, error) {
	return nil, notFound("media needs an access token: use /_matrix/client/v1/media")
}

// A mediaFolder is the folder of uploaded files, named by the hash of their
// content: what is uploaded twice is kept once, and nothing is ever overwritten.
type mediaFolder struct {
	dir        string
	thumbnails chan struct{} // bounds how many pictures are decoded at the same time
}

// thumbnailsAtOnce: a picture of 50 megapixels takes 200 MB while it is decoded.
const thumbnailsAtOnce = 1

// openMediaFolder makes the folder. An empty dir means that uploads are refused.
func openMediaFolder(dir string) (mediaFolder, error) {
	m := mediaFolder{dir: dir, thumbnails: make(chan struct{}, thumbnailsAtOnce)}
	if dir == "" {
		return m, nil
	}
	if err := os.MkdirAll(filepath.Join(dir, "incoming"), 0o700); err != nil {
		return m, fmt.Errorf("media folder: %w", err)
	}
	return m, nil
}

// path returns where the content of a hash is kept.
func (m mediaFolder) path(hash string) string {
	return filepath.Join(m.dir, hash[:2], hash[2:])
}

// receive streams content into the folder and returns its hash and size.
func (m mediaFolder) receive(content io.Reader) (hash string, size int64, err error) {
	if m.dir == "" {
		return "", 0, fmt.Errorf("no media folder is configured: %w", call.ErrUnavailable)
	}
	f, err := os.CreateTemp(filepath.Join(m.dir, "incoming"), "upload-")
	if err != nil {
		return "", 0, fmt.Errorf("receive upload: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it is gone when all went well
	defer f.Close()           //nolint:errcheck // closed below when all went well
	sum := sha256.New()
	size, err = io.Copy(io.MultiWriter(f, sum), content)
	if err != nil {
		return "", 0, fmt.Errorf("receive upload: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return "", 0, fmt.Errorf("receive upload: %w", err)
	}
	hash = hex.EncodeToString(sum.Sum(nil))
	to := m.path(hash)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return "", 0, fmt.Errorf("keep upload: %w", err)
	}
	if err := os.Rename(f.Name(), to); err != nil {
		return "", 0, fmt.Errorf("keep upload: %w", err)
	}
	return hash, size, nil
}

// postUpload is POST /media/v3/upload.
func (s *Server) postUpload(r *request) (any, error) {
	limit := s.cfg.MaxUploadBytes
	if r.ContentLength > limit {
		return nil, tooLarge("an upload has at most %d bytes", limit)
	}
	name := r.URL.Query().Get("filename")
	if len(name) > 1024 {
		return nil, invalidParam("filename is longer than 1024 bytes")
	}
	contentType := r.Header.Get("Content-Type")
	if base, _, err := mime.ParseMediaType(contentType); err != nil || !strings.Contains(base, "/") || len(contentType) > 255 {
		contentType = "application/octet-stream"
	}
	hash, size, err := s.media.receive(http.MaxBytesReader(r.w, r.Body, limit))
	if tooBig := (*http.MaxBytesError)(nil); errors.As(err, &tooBig) {
		return nil, tooLarge("an upload has at most %d bytes", limit)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, badJSON("the upload ends too early")
	}
	if err != nil {
		return nil, err
	}
	m := matrix.Media{ID: rand.Text(), Uploader: r.user, Hash: hash, Size: size, ContentType: contentType, Name: name, Created: time.Now()}
	if err := s.deps.Store.PutMedia(r.Context(), m); err != nil {
		return nil, err
	}
	return map[string]any{"content_uri": "mxc://" + string(s.cfg.ServerName) + "/" + m.ID}, nil
}

// getMediaConfig is GET /media/config.
func (s *Server) getMediaConfig(*request) (any, error) {
	return map[string]any{"m.upload.size": s.cfg.MaxUploadBytes}, nil
}

// findMedia returns the media in the path and its open file.
func (s *Server) findMedia(r *request) (matrix.Media, *os.File, error) {
	if matrix.ServerName(r.PathValue("serverName")) != s.cfg.ServerName {
		return matrix.Media{}, nil, notFound("media of other servers is not fetched: this server does not federate")
	}
	m, err := s.deps.Store.Media(r.Context(), r.PathValue("mediaId"))
	if errors.Is(err, call.ErrNotFound) {
		return m, nil, notFound("no such media")
	}
	if err != nil {
		return m, nil, err
	}
	f, err := os.Open(s.media.path(m.Hash))
	if errors.Is(err, os.ErrNotExist) {
		s.log.Error("media file is missing", "media_id", m.ID)
		return m, nil, notFound("no such media")
	}
	if err != nil {
		return m, nil, fmt.Errorf("open media: %w", err)
	}
	return m, f, nil
}

// inlineTypes are the content types that browsers may show by themselves
// (client-server API, "Serving inline content").
var inlineTypes = []string{
	"text/css", "text/plain", "text/csv", "application/json", "application/ld+json",
	"image/jpeg", "image/gif", "image/png", "image/apng", "image/webp", "image/avif",
	"video/mp4", "video/webm", "video/ogg", "video/quicktime",
	"audio/mp4", "audio/webm", "audio/aac", "audio/mpeg", "audio/ogg", "audio/wave", "audio/wav", "audio/x-wav",
	"audio/x-pn-wav", "audio/flac", "audio/x-flac",
}

// mediaHeaders sets what goes along with every piece of media.
func mediaHeaders(h http.Header, contentType, name string) {
	h.Set("Content-Type", contentType)
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self';")
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "private, max-age=86400, immutable")
	disposition := "attachment"
	if base, _, err := mime.ParseMediaType(contentType); err == nil && slices.Contains(inlineTypes, base) {
		disposition = "inline"
	}
	h.Set("Content-Disposition", disposition+fileNameParam(name))
}

// fileNameParam returns the filename parameter of Content-Disposition: quoted
// where ASCII does, else in the extended form of RFC 5987.
func fileNameParam(name string) string {
	if name == "" {
		return ""
	}
	plain := !strings.ContainsFunc(name, func(c rune) bool { return c < 0x20 || c > 0x7e })
	if plain {
		if strings.ContainsFunc(name, func(c rune) bool { return !isTokenChar(c) }) {
			return `; filename="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name) + `"`
		}
		return "; filename=" + name
	}
	return "; filename*=utf-8''" + strings.ReplaceAll(url.QueryEscape(name), "+", "%20")
}

// isTokenChar reports whether c may stand in an HTTP token (RFC 9110, 5.6.2).
func isTokenChar(c rune) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.ContainsRune("!#$%&'*+-.^_`|~", c)
}

// getDownload is GET /_matrix/client/v1/media/download/{serverName}/{mediaId}[/{fileName}].
func (s *Server) getDownload(r *request) (any, error) {
	m, f, err := s.findMedia(r)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	name := m.Name
	if n := r.PathValue("fileName"); n != "" {
		name = n
	}
	h := r.w.Header()
	mediaHeaders(h, m.ContentType, name)
	h.Set("ETag", `"`+m.Hash+`"`)
	http.ServeContent(r.w, r.Request, "", m.Created, f) // ranges, If-None-Match
	return nil, errWritten
}

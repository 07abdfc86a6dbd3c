package web

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
)

// dist is what 'make build' makes of web/client; without a build it is empty.
//
//go:embed all:dist
var dist embed.FS

func embedded() fs.FS {
	sub, err := fs.Sub(dist, "dist")
	if err != nil {
		panic(err) // the name is valid, see the directive above
	}
	return sub
}

// contentSecurityPolicy fits a page that holds calls: the workers that encrypt
// frames are started from blob URLs, Matrix encryption is WebAssembly, media are
// blob and stream URLs. A call may reach the servers of its other members, so
// connections may go anywhere.
const contentSecurityPolicy = "default-src 'self'; " +
	"script-src 'self' 'wasm-unsafe-eval'; " +
	"worker-src 'self' blob:; " +
	"style-src 'self' 'unsafe-inline'; " +
	"img-src 'self' data: blob:; " +
	"media-src 'self' data: blob: mediastream:; " +
	"font-src 'self' data:; " +
	"connect-src 'self' http: https: ws: wss: data: blob:; " +
	"object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"

// permissionsPolicy lets this origin, and nobody it embeds, use what calls need.
const permissionsPolicy = "camera=(self), microphone=(self), display-capture=(self), " +
	"speaker-selection=(self), autoplay=(self), fullscreen=(self), picture-in-picture=(self), " +
	"screen-wake-lock=(self), geolocation=(), payment=(), usb=()"

const notBuilt = `<!doctype html><html lang="en"><meta charset="utf-8"><title>Trunkhall</title>
<meta name="viewport" content="width=device-width">
<body style="font:16px/1.5 system-ui;max-width:40em;margin:4em auto;padding:0 1em">
<h1>Trunkhall is running</h1>
<p>This program was built without its web client. <code>make build</code> builds both.
Matrix clients can use this address as their homeserver.</p></body></html>
`

// A client serves the embedded single-page application.
type client struct {
	files fs.FS
	index []byte
	etag  string
}

func newClient(files fs.FS) (*client, error) {
	index, err := fs.ReadFile(files, "index.html")
	if errors.Is(err, fs.ErrNotExist) {
		index, err = []byte(notBuilt), nil
	}
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(index)
	return &client{files: files, index: index, etag: `"` + hex.EncodeToString(sum[:8]) + `"`}, nil
}

// ServeHTTP answers with the file of that name; a path that names no file is
// one of the application's own routes and gets its page.
func (c *client) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !readOnly(w, r) {
		return
	}
	secure(w.Header())
	name := strings.TrimPrefix(path.Clean("/"+r.URL.Path), "/")
	if name == "" || name == "index.html" {
		c.servePage(w, r)
		return
	}
	if c.serveFile(w, r, name) {
		return
	}
	if looksLikeFile(name) {
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	c.servePage(w, r)
}

func (c *client) servePage(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", c.etag)
	if r.Header.Get("If-None-Match") == c.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(c.index)
}

// serveFile sends the file, or reports that there is none. The build may lay a
// file.gz beside a file; it is sent to those who take it.
func (c *client) serveFile(w http.ResponseWriter, r *http.Request, name string) bool {
	if strings.HasPrefix(path.Base(name), ".") {
		return false
	}
	info, err := fs.Stat(c.files, name)
	if err != nil || info.IsDir() {
		return false
	}
	kind := mime.TypeByExtension(path.Ext(name))
	if t, ok := fileTypes[path.Ext(name)]; ok {
		kind = t // the same on every machine
	}
	if kind == "" {
		kind = "application/octet-stream"
	}
	w.Header().Set("Content-Type", kind)
	// The names under assets/ hold a hash of the content: they never change.
	if strings.HasPrefix(name, "assets/") {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	} else {
		w.Header().Set("Cache-Control", "no-cache")
	}
	file := name
	if _, err := fs.Stat(c.files, name+".gz"); err == nil {
		w.Header().Add("Vary", "Accept-Encoding")
		if takesGzip(r) {
			w.Header().Set("Content-Encoding", "gzip")
			file = name + ".gz"
		}
	}
	f, err := c.files.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	if seeker, ok := f.(io.ReadSeeker); ok {
		http.ServeContent(w, r, "", info.ModTime(), seeker)
		return true
	}
	_, _ = io.Copy(w, f)
	return true
}

// fileTypes are the types of the files that a client is made of. An unknown
// name is never taken for a file: Matrix identifiers hold dots too.
var fileTypes = map[string]string{
	".css":         "text/css; charset=utf-8",
	".gz":          "application/gzip",
	".html":        "text/html; charset=utf-8",
	".ico":         "image/x-icon",
	".jpg":         "image/jpeg",
	".js":          "text/javascript; charset=utf-8",
	".json":        "application/json",
	".map":         "application/json",
	".mjs":         "text/javascript; charset=utf-8",
	".mp3":         "audio/mpeg",
	".ogg":         "audio/ogg",
	".png":         "image/png",
	".svg":         "image/svg+xml",
	".txt":         "text/plain; charset=utf-8",
	".wasm":        "application/wasm",
	".webmanifest": "application/manifest+json",
	".webp":        "image/webp",
	".woff2":       "font/woff2",
	".xml":         "text/xml; charset=utf-8",
}

func looksLikeFile(name string) bool {
	if strings.HasPrefix(name, "assets/") {
		return true
	}
	_, ok := fileTypes[path.Ext(name)]
	return ok
}

func takesGzip(r *http.Request) bool {
	for part := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		coding, params, _ := strings.Cut(strings.TrimSpace(part), ";")
		if strings.EqualFold(coding, "gzip") && strings.ReplaceAll(params, " ", "") != "q=0" {
			return true
		}
	}
	return false
}

// secure sets the headers that every page and file of the client carries.
func secure(h http.Header) {
	h.Set("Content-Security-Policy", contentSecurityPolicy)
	h.Set("Permissions-Policy", permissionsPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
}

// readOnly answers methods other than GET and HEAD with 405.
func readOnly(w http.ResponseWriter, r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return true
	}
	w.Header().Set("Allow", "GET, HEAD")
	http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	return false
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // the client has gone if it fails
}

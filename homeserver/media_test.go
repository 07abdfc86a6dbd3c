package homeserver

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

// upload uploads content and returns the path of its download.
func (w *world) upload(p person, contentType, query, content string) string {
	w.t.Helper()
	got := w.send("POST", "/_matrix/media/v3/upload"+query, p.token, content, "Content-Type", contentType)
	uri, ok := strings.CutPrefix(got.str("content_uri"), "mxc://test.example/")
	if got.status != 200 || !ok || uri == "" {
		w.t.Fatalf("upload: %d %s", got.status, got.raw)
	}
	return "/_matrix/client/v1/media/download/test.example/" + uri
}

func TestMedia(t *testing.T) {
	w := newWorld(t)
	alice, guest := w.register("alice"), w.guest()
	path := w.upload(alice, "text/plain; charset=utf-8", "?filename=note.txt", "hello media")
	got := w.send("GET", path, guest.token, nil)
	if got.status != 200 || string(got.raw) != "hello media" {
		t.Fatalf("download: %d %s", got.status, got.raw)
	}
	for key, want := range map[string]string{
		"Content-Type":                 "text/plain; charset=utf-8",
		"Content-Disposition":          "inline; filename=note.txt",
		"Cross-Origin-Resource-Policy": "cross-origin",
		"X-Content-Type-Options":       "nosniff",
		"Access-Control-Allow-Origin":  "*",
		"Content-Length":               "11",
	} {
		if got.header.Get(key) != want {
			t.Errorf("%s: %q, want %q", key, got.header.Get(key), want)
		}
	}
	if csp := got.header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "sandbox; default-src 'none'") {
		t.Errorf("an uploaded page could run scripts: %q", csp)
	}
	part := w.send("GET", path, alice.token, nil, "Range", "bytes=6-10")
	if part.status != 206 || string(part.raw) != "media" || part.header.Get("Content-Range") != "bytes 6-10/11" {
		t.Errorf("range: %d %q %v", part.status, part.raw, part.header)
	}
	if same := w.send("GET", path, alice.token, nil, "If-None-Match", got.header.Get("ETag")); same.status != 304 {
		t.Errorf("cached: %d", same.status)
	}
	w.refuse("GET", path, "", nil, 401, "M_MISSING_TOKEN")
	w.refuse("GET", strings.Replace(path, "client/v1/media", "media/v3", 1), alice.token, nil, 404, "M_NOT_FOUND")
	w.refuse("GET", strings.Replace(path, "test.example", "away.example", 1), alice.token, nil, 404, "M_NOT_FOUND")
	w.refuse("GET", "/_matrix/client/v1/media/download/test.example/nope", alice.token, nil, 404, "M_NOT_FOUND")
	w.refuse("GET", "/_matrix/client/v1/media/download/test.example/..%2F..%2Ftest.db", alice.token, nil, 404, "M_NOT_FOUND")
	if got := w.must("GET", "/_matrix/client/v1/media/config", alice.token, nil); got.body["m.upload.size"] != float64(100<<20) {
		t.Errorf("config: %s", got.raw)
	}
}

func TestMediaThatCouldRunIsAttached(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	for contentType, want := range map[string]string{
		"text/html": "attachment", "image/svg+xml": "attachment", "application/xhtml+xml": "attachment", "application/pdf": "attachment",
		"text/html; charset=utf-8": "attachment", "image/png": "inline", "IMAGE/PNG": "inline", "video/mp4": "inline", "audio/ogg; codecs=opus": "inline",
		"nonsense": "attachment", "": "attachment",
	} {
		got := w.send("GET", w.upload(alice, contentType, "", "x"), alice.token, nil)
		if d := got.header.Get("Content-Disposition"); d != want {
			t.Errorf("%q is served as %q", contentType, d)
		}
		if contentType == "nonsense" && got.header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("a broken type is repeated: %q", got.header.Get("Content-Type"))
		}
	}
}

func TestMediaNames(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	for query, want := range map[string]string{
		"?filename=ascii.txt":            `attachment; filename=ascii.txt`,
		"?filename=with%20space":         `attachment; filename="with space"`,
		"?filename=semi%3Bcolon":         `attachment; filename="semi;colon"`,
		"?filename=quo%22te":             `attachment; filename="quo\"te"`,
		"?filename=%F0%9F%90%94%20x.txt": `attachment; filename*=utf-8''%F0%9F%90%94%20x.txt`,
		"?filename=a%0D%0AX-Evil%3A1":    `attachment; filename*=utf-8''a%0D%0AX-Evil%3A1`,
		"":                               `attachment`,
	} {
		path := w.upload(alice, "application/x-test", query, "x")
		if got := w.send("GET", path, alice.token, nil).header.Get("Content-Disposition"); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
		if got := w.send("GET", path+"/other.txt", alice.token, nil).header.Get("Content-Disposition"); got != "attachment; filename=other.txt" {
			t.Errorf("name in the path: %s", got)
		}
	}
}

func TestUploadLimits(t *testing.T) {
	var dir string
	w := newWorld(t, func(cfg *Config, d *Deps) { cfg.MaxUploadBytes, dir = 1000, d.MediaDir })
	alice := w.register("alice")
	w.refuse("POST", "/_matrix/media/v3/upload", alice.token, strings.Repeat("x", 1001), 413, "M_TOO_LARGE")
	w.refuse("POST", "/_matrix/media/v3/upload", alice.token, io.MultiReader(strings.NewReader(strings.Repeat("x", 5000))), 413, "M_TOO_LARGE") // length not told
	if got := w.send("POST", "/_matrix/media/v3/upload", alice.token, io.MultiReader(strings.NewReader("half"), iotest.ErrReader(io.ErrUnexpectedEOF))); got.status/100 == 2 {
		t.Errorf("half an upload was accepted: %s", got.raw)
	}
	w.upload(alice, "", "", strings.Repeat("x", 1000))
	left, err := os.ReadDir(filepath.Join(dir, "incoming"))
	if err != nil || len(left) != 0 {
		t.Errorf("refused uploads stay on the disk: %v, %v", left, err)
	}
	// The same content is kept once.
	w.upload(alice, "", "", strings.Repeat("x", 1000))
	files := 0
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, _ error) error {
		if d != nil && !d.IsDir() {
			files++
		}
		return nil
	})
	if files != 1 {
		t.Errorf("%d files for one content", files)
	}
}

// picture returns a picture with a red left half.
func picture(width, height int, alpha uint8) image.Image {
	m := image.NewNRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			c := color.NRGBA{B: 255, A: alpha}
			if x < width/2 {
				c = color.NRGBA{R: 255, A: alpha}
			}
			m.Set(x, y, c)
		}
	}
	return m
}

func TestThumbnails(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	var asJPEG, asPNG bytes.Buffer
	if err := jpeg.Encode(&asJPEG, picture(800, 400, 255), nil); err != nil {
		t.Fatal(err)
	}
	if err := png.Encode(&asPNG, picture(100, 50, 128)); err != nil {
		t.Fatal(err)
	}
	thumb := func(path, query string) reply {
		return w.send("GET", strings.Replace(path, "/download/", "/thumbnail/", 1)+query, alice.token, nil)
	}
	for name, row := range map[string]struct {
		content       []byte
		query         string
		width, height int
		contentType   string
	}{
		"scaled into the size":      {asJPEG.Bytes(), "?width=320&height=240&method=scale", 320, 160, "image/jpeg"},
		"cropped to the size":       {asJPEG.Bytes(), "?width=96&height=96&method=crop", 96, 96, "image/jpeg"},
		"an odd size is rounded up": {asJPEG.Bytes(), "?width=33&height=7&method=crop", 96, 96, "image/jpeg"},
		"never enlarged":            {asPNG.Bytes(), "?width=1600&height=1200", 100, 50, "image/png"},
		"more than we make":         {asJPEG.Bytes(), "?width=100000&height=100000", 800, 400, "image/jpeg"},
		"transparency is kept":      {asPNG.Bytes(), "?width=32&height=32&method=crop", 32, 32, "image/png"},
	} {
		path := w.upload(alice, "image/x-whatever", "", string(row.content))
		for range 2 { // made, then kept
			got := thumb(path, row.query)
			m, _, err := image.Decode(bytes.NewReader(got.raw))
			if got.status != 200 || err != nil || m.Bounds().Dx() != row.width || m.Bounds().Dy() != row.height || got.header.Get("Content-Type") != row.contentType {
				t.Errorf("%s: %d %v %v %s", name, got.status, err, m.Bounds(), got.header.Get("Content-Type"))
				continue
			}
			if r, _, b, _ := m.At(1, m.Bounds().Dy()/2).RGBA(); r <= b {
				t.Errorf("%s: the left side is not red", name)
			}
		}
	}
	text := w.upload(alice, "image/png", "", "no picture at all")
	if got := thumb(text, "?width=32&height=32"); got.status != 400 {
		t.Errorf("thumbnail of text: %d %s", got.status, got.raw)
	}
	for _, q := range []string{"", "?width=0&height=5", "?width=a&height=b", "?width=9&height=9&method=stretch"} {
		if got := thumb(text, q); got.status != 400 || got.code() != "M_INVALID_PARAM" {
			t.Errorf("%q: %d %s", q, got.status, got.raw)
		}
	}
}

func TestThumbnailBomb(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	// A PNG whose header promises 60000 x 60000 pixels: nothing may be allocated for them.
	var small bytes.Buffer
	if err := png.Encode(&small, picture(1, 1, 255)); err != nil {
		t.Fatal(err)
	}
	bomb := small.Bytes()
	binary.BigEndian.PutUint32(bomb[16:], 60_000)
	binary.BigEndian.PutUint32(bomb[20:], 60_000)
	binary.BigEndian.PutUint32(bomb[29:], crc32.ChecksumIEEE(bomb[12:29]))
	path := w.upload(alice, "image/png", "", string(bomb))
	w.refuse("GET", strings.Replace(path, "/download/", "/thumbnail/", 1)+"?width=32&height=32", alice.token, nil, 413, "M_TOO_LARGE")
}

package homeserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	_ "image/gif" // decoders of what people upload
	"image/jpeg"
	"image/png"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/image/draw"
	_ "golang.org/x/image/webp"

	"github.com/trunkhall/trunkhall/matrix"
)

const (
	maxPixels    = 50_000_000 // of a picture that we decode
	maxThumbnail = 1600       // width or height that can be asked for
	jpegQuality  = 82
)

// A thumbnailSize is one of the sizes that are made; what is asked for is
// rounded up to one, so that nobody can fill the disk with sizes.
type thumbnailSize struct {
	width, height int
	crop          bool
}

var thumbnailSizes = []thumbnailSize{
	{32, 32, true}, {96, 96, true}, {240, 240, true},
	{320, 240, false}, {640, 480, false}, {800, 600, false}, {1600, 1200, false},
}

// getThumbnail is GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}.
func (s *Server) getThumbnail(r *request) (any, error) {
	size, err := askedSize(r)
	if err != nil {
		return nil, err
	}
	m, f, err := s.findMedia(r)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	path := s.media.path(m.Hash) + fmt.Sprintf("-%dx%d-%t.thumb", size.width, size.height, size.crop)
	thumb, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		thumb, err = s.makeThumbnail(r.Context(), f, size)
		if err == nil {
			if err := writeWhole(path, thumb); err != nil {
				s.log.Warn("keep thumbnail", "media_id", m.ID, "error", err)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	contentType := "image/jpeg"
	if bytes.HasPrefix(thumb, []byte("\x89PNG")) {
		contentType = "image/png"
	}
	mediaHeaders(r.w.Header(), contentType, thumbnailName(contentType))
	http.ServeContent(r.w, r.Request, "", time.Time{}, bytes.NewReader(thumb))
	return nil, errWritten
}

func thumbnailName(contentType string) string {
	if contentType == "image/png" {
		return "thumbnail.png"
	}
	return "thumbnail.jpg"
}

// askedSize reads width, height and method and rounds them up.
func askedSize(r *request) (thumbnailSize, error) {
	q := r.URL.Query()
	w, err1 := strconv.Atoi(q.Get("width"))
	h, err2 := strconv.Atoi(q.Get("height"))
	if err1 != nil || err2 != nil || w <= 0 || h <= 0 {
		return thumbnailSize{}, invalidParam("width and height must be positive numbers")
	}
	w, h = min(w, maxThumbnail), min(h, maxThumbnail)
	crop := false
	switch q.Get("method") {
	case "crop":
		crop = true
	case "", "scale":
	default:
		return thumbnailSize{}, invalidParam("method must be crop or scale")
	}
	for _, s := range thumbnailSizes {
		if s.crop == crop && s.width >= w && s.height >= h {
			return s, nil
		}
	}
	return thumbnailSizes[len(thumbnailSizes)-1], nil
}

// errNoThumbnail is the answer where the media is no picture that we can read.
var errNoThumbnail = &matrix.Error{Status: http.StatusBadRequest, Code: matrix.CodeUnknown, Message: "there is no thumbnail of this kind of media"}

// makeThumbnail decodes a picture and makes a smaller one. The size of the
// picture is looked at before any pixel is decoded.
func (s *Server) makeThumbnail(ctx context.Context, f *os.File, size thumbnailSize) ([]byte, error) {
	head, _, err := image.DecodeConfig(f)
	if err != nil {
		return nil, errNoThumbnail
	}
	if head.Width <= 0 || head.Height <= 0 || int64(head.Width)*int64(head.Height) > maxPixels {
		return nil, tooLarge("the picture is too large for a thumbnail")
	}
	select {
	case s.media.thumbnails <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.media.thumbnails }()
	if _, err := f.Seek(0, 0); err != nil {
		return nil, fmt.Errorf("read picture: %w", err)
	}
	src, format, err := image.Decode(f)
	if err != nil {
		return nil, errNoThumbnail
	}
	dst := shrink(src, size)
	var out bytes.Buffer
	if format == "jpeg" || isOpaque(dst) {
		err = jpeg.Encode(&out, dst, &jpeg.Options{Quality: jpegQuality})
	} else {
		err = png.Encode(&out, dst)
	}
	if err != nil {
		return nil, fmt.Errorf("encode thumbnail: %w", err)
	}
	return out.Bytes(), nil
}

// shrink scales a picture into a size, or fills it if it is to be cropped.
// Nothing is ever enlarged.
func shrink(src image.Image, size thumbnailSize) *image.RGBA {
	b := src.Bounds()
	sw, sh := float64(b.Dx()), float64(b.Dy())
	fw, fh := float64(size.width)/sw, float64(size.height)/sh
	scale := min(fw, fh, 1)
	from := b
	if size.crop {
		scale = min(max(fw, fh), 1)
		cw, ch := min(b.Dx(), int(float64(size.width)/scale)), min(b.Dy(), int(float64(size.height)/scale))
		x, y := b.Min.X+(b.Dx()-cw)/2, b.Min.Y+(b.Dy()-ch)/2
		from = image.Rect(x, y, x+cw, y+ch)
	}
	w := max(1, int(float64(from.Dx())*scale+0.5))
	h := max(1, int(float64(from.Dy())*scale+0.5))
	dst := image.NewRGBA(image.Rect(0, 0, w, h))
	draw.ApproxBiLinear.Scale(dst, dst.Bounds(), src, from, draw.Src, nil)
	return dst
}

// isOpaque reports whether no pixel is transparent.
func isOpaque(m *image.RGBA) bool {
	return m.Opaque()
}

// writeWhole writes a file that is there completely or not at all.
func writeWhole(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".thumb-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

package sfu

import (
	"strings"

	"github.com/pion/webrtc/v4"
)

func publishMimeTypes() []string {
	return []string{
		webrtc.MimeTypeVP8, webrtc.MimeTypeH264, webrtc.MimeTypeVP9, webrtc.MimeTypeAV1,
		webrtc.MimeTypeOpus, "audio/red",
	}
}

// enabledMimeType returns mime as this server spells it, or the codec that is
// used instead when it does not know mime.
func enabledMimeType(kind Kind, mime string) string {
	prefix, fallback := "video/", webrtc.MimeTypeVP8
	if kind == KindAudio {
		prefix, fallback = "audio/", webrtc.MimeTypeOpus
	}
	if !strings.Contains(mime, "/") {
		mime = prefix + mime // old clients give the bare name
	}
	for _, m := range publishMimeTypes() {
		if strings.EqualFold(m, mime) && strings.HasPrefix(m, prefix) {
			return m
		}
	}
	return fallback
}

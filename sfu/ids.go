package sfu

import (
	"crypto/rand"

	"github.com/trunkhall/trunkhall/call"
)

const idAlphabet = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"

// randomID returns prefix and twelve random letters and digits.
func randomID(prefix string) string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	for i, c := range b {
		b[i] = idAlphabet[int(c)%len(idAlphabet)]
	}
	return prefix + string(b[:])
}

func newParticipantSID() call.ParticipantSID { return call.ParticipantSID(randomID("PA_")) }

// newTrackSID names a track so that its kind and source can be read off, as
// LiveKit's names can: "TR_VC..." is a camera, "TR_AM..." a microphone.
func newTrackSID(kind Kind, source call.Source) call.TrackSID {
	k := "A"
	if kind == KindVideo {
		k = "V"
	}
	s := ""
	switch source {
	case call.SourceCamera:
		s = "C"
	case call.SourceMicrophone:
		s = "M"
	case call.SourceScreenShare:
		s = "S"
	case call.SourceScreenShareAudio:
		s = "s"
	}
	return call.TrackSID(randomID("TR_" + k + s))
}

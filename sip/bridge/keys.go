package bridge

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/trunkhall/trunkhall/call"
)

// LiveKit's frame encryption, as livekit-client 2.23 does it in
// src/e2ee/worker/FrameCryptor.ts: the first octet of an Opus frame stays clear
// and is authenticated, then come the AES-128-GCM ciphertext with its tag, the
// IV, the IV's length and the index of the key.
const (
	frameClear   = 1
	frameIV      = 12
	frameTag     = 16
	frameTrailer = frameIV + 2

	ratchetWindow = 10     // as Element Call sets it
	failuresOK    = 10     // frames, then a key is not ratcheted any more
	maxKeyed      = 10_000 // participants of one room
)

var frameSalt = []byte("LKFrameEncryptionKey")

// sifSilence is the hash of the frame by which a LiveKit server fills silence.
var sifSilence, _ = hex.DecodeString("aad8d31fc56b2802ca500e58c2fb9d0b29ad71bb7cb52cd6530251eade188988")

// derive makes the frame key of a raw key, or with size 32 the next raw key of
// the ratchet.
func derive(raw []byte, size int) ([]byte, error) {
	return hkdf.Key(sha256.New, raw, frameSalt, string(make([]byte, 128)), size)
}

func frameCipher(raw []byte) (cipher.AEAD, error) {
	if len(raw) < 16 || len(raw) > 64 {
		return nil, fmt.Errorf("media key of %d octets: %w", len(raw), call.ErrInvalid)
	}
	key, err := derive(raw, 16)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// A keyring is what the phones of a room know of others' keys.
type keyring struct {
	mu   sync.Mutex // guards the following
	keys map[call.Identity]*[256]*frameKey
}

// A frameKey is one key of one participant.
type frameKey struct {
	came     []byte // as it was distributed
	raw      []byte // now, after ratcheting
	aead     cipher.AEAD
	failures int
}

func newKeyring() *keyring { return &keyring{keys: make(map[call.Identity]*[256]*frameKey)} }

// set takes a key. The same key again changes nothing.
func (r *keyring) set(k call.MediaKey) {
	aead, err := frameCipher(k.Key)
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	ring := r.keys[k.Identity]
	if ring == nil {
		if len(r.keys) >= maxKeyed {
			return
		}
		ring = new([256]*frameKey)
		r.keys[k.Identity] = ring
	}
	if old := ring[k.Index]; old != nil && bytes.Equal(old.came, k.Key) {
		return
	}
	raw := bytes.Clone(k.Key)
	ring[k.Index] = &frameKey{came: raw, raw: raw, aead: aead}
}

// open appends the Opus frame in an encrypted one to dst. It reports false if
// there is no key for it or it is not authentic.
func (r *keyring) open(from call.Identity, frame, sif, dst []byte) ([]byte, bool) {
	if len(frame) == 0 {
		return dst, true
	}
	if n := len(frame) - len(sif); len(sif) > 0 && n > 0 && bytes.Equal(frame[n:], sif) {
		sum := sha256.Sum256(frame[:n])
		return append(dst, frame[:n]...), bytes.Equal(sum[:], sifSilence)
	}
	if len(frame) < frameClear+frameTag+frameTrailer || frame[len(frame)-2] != frameIV {
		return dst, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	ring := r.keys[from]
	if ring == nil {
		return dst, false
	}
	k := ring[frame[len(frame)-1]]
	if k == nil {
		return dst, false
	}
	end := len(frame) - frameTrailer
	head, body, iv := frame[:frameClear], frame[frameClear:end], frame[end:end+frameIV]
	dst = append(dst, head...)
	if out, err := k.aead.Open(dst, iv, body, head); err == nil {
		k.failures = 0
		return out, true
	}
	if k.failures >= failuresOK {
		return dst, false
	}
	k.failures++
	raw := k.raw
	for range ratchetWindow {
		var err error
		if raw, err = derive(raw, 32); err != nil {
			break
		}
		aead, err := frameCipher(raw)
		if err != nil {
			break
		}
		if out, err := aead.Open(dst, iv, body, head); err == nil {
			k.raw, k.aead, k.failures = raw, aead, 0
			return out, true
		}
	}
	return dst, false
}

// A sealer encrypts with one key of a phone's own. The IV begins with the SSRC as
// in LiveKit's, but ends in a counter, which no clock can make repeat itself.
type sealer struct {
	raw     []byte
	index   uint8
	aead    cipher.AEAD
	counter uint64
	iv      [frameIV]byte
}

// newSealer returns a sealer for k: old, if it is the same key, so that no IV is
// used twice.
func newSealer(old *sealer, k call.MediaKey) (*sealer, error) {
	if old != nil && old.index == k.Index && bytes.Equal(old.raw, k.Key) {
		return old, nil
	}
	aead, err := frameCipher(k.Key)
	if err != nil {
		return nil, err
	}
	var start [8]byte
	_, _ = rand.Read(start[:]) // never fails, see crypto/rand
	return &sealer{
		raw: bytes.Clone(k.Key), index: k.Index, aead: aead, counter: binary.BigEndian.Uint64(start[:]),
	}, nil
}

// seal appends the encrypted frame of an Opus frame to dst.
func (s *sealer) seal(dst, frame []byte, ssrc uint32) []byte {
	if len(frame) == 0 {
		return dst
	}
	binary.BigEndian.PutUint32(s.iv[:], ssrc)
	binary.BigEndian.PutUint64(s.iv[4:], s.counter)
	s.counter++
	return sealFrame(s.aead, dst, frame, s.iv[:], s.index)
}

func sealFrame(aead cipher.AEAD, dst, frame, iv []byte, index uint8) []byte {
	head := frame[:frameClear]
	dst = append(dst, head...)
	dst = aead.Seal(dst, iv, frame[frameClear:], head)
	dst = append(dst, iv...)
	return append(dst, frameIV, index)
}

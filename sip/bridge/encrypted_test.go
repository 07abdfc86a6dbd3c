package bridge

import (
	"crypto/cipher"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// mediaKeys are the keys of a call as a test deals them out.
type mediaKeys struct {
	mu       sync.Mutex
	known    []call.MediaKey
	watchers map[int]func(call.MediaKey)
	next     int
}

func (m *mediaKeys) Watch(f func(call.MediaKey)) (cancel func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.known {
		f(k)
	}
	if m.watchers == nil {
		m.watchers = make(map[int]func(call.MediaKey))
	}
	n := m.next
	m.next++
	m.watchers[n] = f
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watchers, n)
	}
}

func (m *mediaKeys) add(k call.MediaKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known = append(m.known, k)
	for _, f := range m.watchers {
		f(k)
	}
}

func (m *mediaKeys) watching() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.watchers)
}

// sealAs makes c send encrypted frames, the way LiveKit's client does.
func sealAs(t *testing.T, key []byte, index uint8) func([]byte, uint32, uint32) []byte {
	aead, err := frameCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	count := uint32(77)
	return func(payload []byte, ssrc, ts uint32) []byte {
		iv := binary.BigEndian.AppendUint32(nil, ssrc)
		iv = binary.BigEndian.AppendUint32(iv, ts)
		iv = binary.BigEndian.AppendUint32(iv, ts-count%0xffff)
		count++
		return sealFrame(aead, nil, payload, iv, index)
	}
}

// opener opens a phone's frames and fails the test at one that is not sealed.
func opener(t *testing.T, keys map[uint8][]byte) func([]byte) []byte {
	aeads := make(map[uint8]cipher.AEAD)
	for i, k := range keys {
		var err error
		if aeads[i], err = frameCipher(k); err != nil {
			t.Fatal(err)
		}
	}
	return func(frame []byte) []byte {
		n := len(frame) - frameTrailer
		if n < 17 || frame[len(frame)-2] != 12 || aeads[frame[len(frame)-1]] == nil {
			t.Errorf("a frame of %d octets is not encrypted", len(frame))
			return nil
		}
		out, err := aeads[frame[len(frame)-1]].Open(frame[:1:1], frame[n:n+12], frame[1:n], frame[:1])
		if err != nil {
			t.Errorf("a frame of the phone: %v", err)
		}
		return out
	}
}

func TestEncryptedCall(t *testing.T) {
	aliceKey, bobKey := make([]byte, 16), make([]byte, 16)
	aliceKey[0], bobKey[0] = 1, 2
	own := map[uint8][]byte{0: make([]byte, 16), 1: make([]byte, 32)}
	own[0][0], own[1][0] = 3, 4

	srv, all := start(t)
	room := srv.OpenRoom("secret", sfu.RoomOptions{})
	alice := joinBrowser(t, room, "alice", 1000, sfu.EncryptionGCM, func(c *browser) {
		c.keys, c.open = sealAs(t, aliceKey, 5), opener(t, own)
	})
	joinBrowser(t, room, "bob", 1300, sfu.EncryptionGCM, func(c *browser) { c.keys, c.open = sealAs(t, bobKey, 0), opener(t, own) })
	joinBrowser(t, room, "careless", 1700, sfu.EncryptionNone, func(c *browser) { c.open = opener(t, own) })

	keys := &mediaKeys{}
	seat := testSeat("secret", "phone")
	seat.Keys = keys
	phone := joinPhone(t, all, seat, 8000, 440)
	if info := phone.member.Info().Tracks[0]; info.Encryption != sfu.EncryptionGCM {
		t.Errorf("the phone's track is %+v", info)
	}
	keys.add(call.MediaKey{Identity: "alice", Index: 5, Key: aliceKey})
	eventually(t, "the phone to hear alice", func() bool { return phone.loud(1000) > 5000 })
	if phone.loud(1300) > 300 || phone.loud(1700) > 300 {
		t.Errorf("without a key bob is heard at %.0f, an unencrypted track at %.0f", phone.loud(1300), phone.loud(1700))
	}
	if n := phone.Stats().Encoded; n > 0 {
		// It may encode, but not send.
		alice.mu.Lock()
		if len(alice.packets) > 0 {
			t.Errorf("without a key of its own the phone sends: %v", alice.packets)
		}
		alice.mu.Unlock()
	}
	keys.add(call.MediaKey{Identity: "phone", Index: 0, Key: own[0]})
	hears := func() bool { return strength(alice.recent(phone.Phone, 200*time.Millisecond), 48000, 440) > 5000 }
	eventually(t, "alice to hear the phone", hears)
	keys.add(call.MediaKey{Identity: "bob", Index: 0, Key: bobKey})
	eventually(t, "the phone to hear bob", func() bool { return phone.loud(1300) > 3000 && phone.loud(1000) > 3000 })

	// Somebody leaves: everybody gets new keys. Old and new overlap.
	keys.add(call.MediaKey{Identity: "phone", Index: 1, Key: own[1]})
	alice.mu.Lock()
	clear(alice.heard)
	alice.mu.Unlock()
	eventually(t, "alice to hear the phone with its new key", hears)
	if phone.loud(1700) > 300 {
		t.Error("an unencrypted track is played in an encrypted call")
	}
	phone.Leave(sfu.ReasonClientInitiated)
	eventually(t, "the phone to let go of the keys", func() bool { return keys.watching() == 0 })
}

// TestPlainCallHearsNoSecrets: a track marked encrypted is silent without keys.
func TestPlainCallHearsNoSecrets(t *testing.T) {
	srv, all := start(t)
	room := srv.OpenRoom("mixed", sfu.RoomOptions{})
	key := make([]byte, 16)
	joinBrowser(t, room, "alice", 1000, sfu.EncryptionGCM, func(c *browser) { c.keys = sealAs(t, key, 0) })
	joinBrowser(t, room, "bob", 1300, sfu.EncryptionNone)
	phone := joinPhone(t, all, testSeat("mixed", "phone"), 16000, 440)
	eventually(t, "the phone to hear bob", func() bool { return phone.loud(1300) > 5000 })
	phone.handset.mu.Lock()
	defer phone.handset.mu.Unlock()
	if s := strength(phone.handset.heard, 16000, 1000); s > 100 {
		t.Errorf("alice is heard at %.0f", s)
	}
}

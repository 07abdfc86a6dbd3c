package bridge

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/trunkhall/trunkhall/call"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	rawKey    = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	frameKey0 = "6d0dd7b3d6f4efde47ab9a9e15abde76"
	ratcheted = "6d0dd7b3d6f4efde47ab9a9e15abde7635c45a13bddf5da15eed01f40178d328"
	plain     = "780102030405060708090a0b0c0d0e0f"
	sealed    = "78a371987f21eacb25450d482a152393e93beefa58a82954bb901040f3aa942e11223344000003c0000003bb0c03"
)

// TestFrameVectors compares with what livekit-client's FrameCryptor makes by WebCrypto.
func TestFrameVectors(t *testing.T) {
	raw := unhex(t, rawKey)
	if k, err := derive(raw, 16); err != nil || !bytes.Equal(k, unhex(t, frameKey0)) {
		t.Errorf("the frame key is %x, %v", k, err)
	}
	if k, err := derive(raw, 32); err != nil || !bytes.Equal(k, unhex(t, ratcheted)) {
		t.Errorf("the ratcheted key is %x, %v", k, err)
	}
	aead, err := frameCipher(raw)
	if err != nil {
		t.Fatal(err)
	}
	// SSRC, timestamp 960, and the timestamp less the count of 5.
	got := sealFrame(aead, nil, unhex(t, plain), unhex(t, "11223344000003c0000003bb"), 3)
	if !bytes.Equal(got, unhex(t, sealed)) {
		t.Errorf("the frame is\n%x, want\n%s", got, sealed)
	}
	r := newKeyring()
	r.set(call.MediaKey{Identity: "alice", Index: 3, Key: raw})
	if back, ok := r.open("alice", got, nil, nil); !ok || !bytes.Equal(back, unhex(t, plain)) {
		t.Errorf("it opens to %x, %v", back, ok)
	}
}

func TestOpenFrames(t *testing.T) {
	raw, frame := unhex(t, rawKey), unhex(t, sealed)
	// The keys after one and after eleven turns of the ratchet.
	turned := [][]byte{raw}
	for range 11 {
		next, err := derive(turned[len(turned)-1], 32)
		if err != nil {
			t.Fatal(err)
		}
		turned = append(turned, next)
	}
	seal := func(key []byte, index uint8) []byte {
		aead, err := frameCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		return sealFrame(aead, nil, unhex(t, plain), make([]byte, 12), index)
	}
	change := func(at int) []byte {
		b := bytes.Clone(frame)
		b[(at+len(b))%len(b)] ^= 1
		return b
	}
	sif := []byte("sixteen random b")
	silence := append([]byte{0xf8, 0xff, 0xfe}, make([]byte, 77)...)
	var ring *keyring
	for _, c := range []struct {
		name  string
		from  call.Identity
		frame []byte
		want  []byte
		ok    bool
	}{
		{"a frame as it should be", "alice", frame, unhex(t, plain), true},
		{"an empty frame passes", "alice", nil, nil, true},
		{"a stranger's", "bob", frame, nil, false},
		{"another key index", "alice", change(-1), nil, false},
		{"another length of the IV", "alice", change(-2), nil, false},
		{"another IV", "alice", change(-3), nil, false},
		{"another clear octet", "alice", change(0), nil, false},
		{"another ciphertext", "alice", change(5), nil, false},
		{"cut short", "alice", frame[:30], nil, false},
		{"one octet", "alice", frame[:1], nil, false},
		{"ratcheted once", "alice", seal(turned[1], 3), unhex(t, plain), true},
		{"not ratcheted any more", "alice", seal(turned[0], 3), nil, false},
		{"ratcheted ten times more", "alice", seal(turned[11], 3), unhex(t, plain), true},
		{"the server's silence", "alice", append(bytes.Clone(silence), sif...), silence, true},
		{"the server's anything", "alice", append([]byte("anything"), sif...), nil, false},
	} {
		if c.name == "a frame as it should be" || c.name == "ratcheted once" {
			// From here on with fresh keys.
			ring = newKeyring()
			ring.set(call.MediaKey{Identity: "alice", Index: 3, Key: raw})
		}
		got, ok := ring.open(c.from, c.frame, sif, nil)
		if ok != c.ok || ok && !bytes.Equal(got, c.want) {
			t.Errorf("%s: %x, %v", c.name, got, ok)
		}
	}
}

func TestBadFramesCostLittle(t *testing.T) {
	r := newKeyring()
	r.set(call.MediaKey{Identity: "alice", Index: 3, Key: unhex(t, rawKey)})
	bad := unhex(t, sealed)
	bad[10] ^= 1
	for range failuresOK + 5 {
		r.open("alice", bad, nil, nil)
	}
	if k := r.keys["alice"][3]; k.failures != failuresOK || !bytes.Equal(k.raw, unhex(t, rawKey)) {
		t.Errorf("after bad frames the key is %x with %d failures", k.raw, k.failures)
	}
	if _, ok := r.open("alice", unhex(t, sealed), nil, nil); !ok {
		t.Error("a good frame after bad ones is not opened")
	}
	for _, n := range []int{0, 15, 65} {
		r.set(call.MediaKey{Identity: "bob", Key: make([]byte, n)})
	}
	if r.keys["bob"] != nil {
		t.Error("a key of a wrong length was taken")
	}
}

// TestIVsNeverRepeat: the same (key, IV) twice would give the key away.
func TestIVsNeverRepeat(t *testing.T) {
	key := call.MediaKey{Index: 1, Key: unhex(t, rawKey)}
	s, err := newSealer(nil, key)
	if err != nil {
		t.Fatal(err)
	}
	s.counter = 1<<64 - 50 // it wraps
	seen := make(map[string]bool)
	frame := unhex(t, plain)
	for n := range 200 {
		if n%20 == 0 { // told again, as happens: the counter goes on
			if s, err = newSealer(s, key); err != nil {
				t.Fatal(err)
			}
		}
		f := s.seal(nil, frame, 7)
		iv := string(f[len(f)-14 : len(f)-2])
		if seen[iv] {
			t.Fatalf("frame %d: IV %x again", n, iv)
		}
		seen[iv] = true
	}
	if other, err := newSealer(s, call.MediaKey{Index: 2, Key: key.Key}); err != nil || other == s {
		t.Error("a new index is not used")
	}
	out := make([]byte, 0, 100)
	if n := testing.AllocsPerRun(100, func() { out = s.seal(out[:0], frame, 7) }); n > 0 {
		t.Errorf("%v allocations for a frame", n)
	}
	r := newKeyring()
	r.set(call.MediaKey{Identity: "alice", Index: 1, Key: key.Key})
	back := make([]byte, 0, 100)
	if n := testing.AllocsPerRun(100, func() {
		var ok bool
		if back, ok = r.open("alice", out, nil, back[:0]); !ok {
			t.Fatal("it does not open")
		}
	}); n > 0 {
		t.Errorf("%v allocations to open a frame", n)
	}
}

func FuzzOpenFrame(f *testing.F) {
	f.Add(unhex(f, sealed))
	f.Add([]byte{})
	f.Add([]byte{0x78, 12, 3})
	r := newKeyring()
	r.set(call.MediaKey{Identity: "alice", Index: 3, Key: unhex(f, rawKey)})
	f.Fuzz(func(t *testing.T, frame []byte) {
		if out, ok := r.open("alice", frame, []byte("sif"), nil); ok && len(frame) > 0 && len(out) > len(frame) {
			t.Errorf("%d octets became %d", len(frame), len(out))
		}
	})
}

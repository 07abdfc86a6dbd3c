package signaling

import (
	"encoding/json"
	"testing"

	"maunium.net/go/mautrix/crypto/goolm/account"
	"maunium.net/go/mautrix/id"

	"github.com/trunkhall/trunkhall/matrix"
)

// FuzzMediaKeyMessage reads the decrypted content of a message with a media key.
func FuzzMediaKeyMessage(f *testing.F) {
	for _, seed := range []string{
		`{"keys":{"index":0,"key":"AAAAAAAAAAAAAAAAAAAAAA"},"room_id":"!r","member":{"id":"@a:x:D","claimed_device_id":"D"},"session":{"call_id":""},"sent_ts":1}`,
		`{"keys":[{"index":255,"key":"AAAAAAAAAAAAAAAAAAAAAA=="}],"room_id":"!r","member":{"id":"uuid","claimed_device_id":"D"}}`,
		`{"keys":{"index":256,"key":"AAAAAAAAAAAAAAAAAAAAAA"},"room_id":"!r","member":{"claimed_device_id":"D"}}`,
		`{"keys":null,"room_id":"!r","member":{"claimed_device_id":"D"}}`, `{}`, `[]`, ``,
	} {
		f.Add([]byte(seed))
	}
	from := userDevice{"@a:x", "D"}
	f.Fuzz(func(t *testing.T, content []byte) {
		keys, err := readMediaKeys(olmEvent{from, mediaKeyType, content}, "!r")
		if err != nil && keys != nil {
			t.Error("keys of a message that was refused")
		}
		for _, k := range keys {
			if len(k.key.Key) < mediaKeyBytes || len(k.key.Key) > maxMediaKey || k.from != from || len(k.ids) == 0 || k.ids[0] != "@a:x:D" {
				t.Errorf("%s: %+v", content, k)
			}
		}
	})
}

// FuzzOlmMessage gives a phone's device messages that no Olm made: they must
// neither end the process nor be read, nor spoil the session with who sends them.
func FuzzOlmMessage(f *testing.F) {
	begin := func(t testing.TB) (*olmDevice, id.Curve25519, func(string) (id.OlmMsgType, string)) {
		phone, err := newOlmDevice(nil, "@_phone_1:x", "PHONE", []byte("key"))
		if err != nil {
			t.Fatal(err)
		}
		other, err := account.NewAccount()
		if err != nil {
			t.Fatal(err)
		}
		_, mine, _ := phone.account.IdentityKeys()
		_, theirs, _ := other.IdentityKeys()
		once, err := phone.account.OneTimeKeys()
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range once {
			s, err := other.NewOutboundSession(mine, key)
			if err != nil {
				t.Fatal(err)
			}
			return phone, theirs, func(text string) (id.OlmMsgType, string) {
				kind, body, err := s.Encrypt([]byte(text))
				if err != nil {
					t.Fatal(err)
				}
				return kind, string(body)
			}
		}
		t.Fatal("no one-time keys")
		return nil, "", nil
	}
	// One for all inputs: what one of them spoils is seen by the next at the latest.
	phone, from, encrypt := begin(f)
	_, _, other := begin(f)
	kind, body := other("hello")
	f.Add(int(kind), body)
	f.Add(1, body)
	f.Add(0, body[:len(body)/2])
	f.Add(0, "")
	f.Add(2, "AwogAAAA")
	f.Fuzz(func(t *testing.T, kind int, body string) {
		if plain, err := phone.open(from, id.OlmMsgType(kind), body); err == nil {
			t.Fatalf("read %q out of nothing", plain)
		}
		k, good := encrypt("hello")
		if plain, err := phone.open(from, k, good); err != nil || string(plain) != "hello" {
			t.Fatalf("a message after a bad one: %q, %v", plain, err)
		}
		if plain, err := phone.open(from, id.OlmMsgType(kind), body); err == nil {
			t.Fatalf("read %q out of nothing", plain)
		}
		k, good = encrypt("again")
		if plain, err := phone.open(from, k, good); err != nil || string(plain) != "again" {
			t.Fatalf("a message after a bad one: %q, %v", plain, err)
		}
	})
}

// TestOlmNames has messages that are well encrypted and say something else than
// they should.
func TestOlmNames(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	ctx := t.Context()
	publish := func(local string) *olmDevice {
		ghost, err := w.home.EnsureGhost(ctx, local, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := w.home.AddGhostDevice(ctx, ghost, "PHONE", ""); err != nil {
			t.Fatal(err)
		}
		o, err := newOlmDevice(w.home, ghost, "PHONE", []byte("key"))
		if err != nil {
			t.Fatal(err)
		}
		if err := o.publish(ctx); err != nil {
			t.Fatal(err)
		}
		return o
	}
	a, b, c := publish("_phone_11"), publish("_phone_22"), publish("_phone_33")
	content := func(from, to *olmDevice) json.RawMessage {
		t.Helper()
		messages, sent, err := from.encrypt(ctx, "a.type", map[string]any{"n": 1}, []userDevice{{to.user, to.device}})
		if err != nil || len(messages) != 1 || len(sent) != 1 {
			t.Fatalf("encrypt: %d %v", len(messages), err)
		}
		return messages[0].Event
	}
	if e, err := b.decrypt(ctx, a.user, content(a, b)); err != nil || e.typ != "a.type" || e.from != (userDevice{a.user, "PHONE"}) || string(e.content) != `{"n":1}` {
		t.Errorf("a good message: %+v, %v", e, err)
	}
	if _, err := b.decrypt(ctx, c.user, content(a, b)); err == nil {
		t.Error("a message passed for another user's")
	}
	if _, err := c.decrypt(ctx, a.user, content(a, b)); err == nil {
		t.Error("a message for another device was read")
	}
	message := content(a, b)
	if _, err := b.decrypt(ctx, a.user, message); err != nil {
		t.Error(err)
	}
	if _, err := b.decrypt(ctx, a.user, message); err == nil {
		t.Error("a message was read twice")
	}
	// The keys of a are replaced by somebody who controls what the server says,
	// but has not a's signing key.
	var object map[string]any
	if err := json.Unmarshal(a.keys, &object); err != nil {
		t.Fatal(err)
	}
	object["keys"].(map[string]any)["curve25519:PHONE"] = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	forged, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.home.UploadGhostKeys(ctx, a.user, "PHONE", matrix.KeyUpload{DeviceKeys: forged}); err != nil {
		t.Fatal(err)
	}
	if known, err := b.peers(ctx, a.user); err != nil || len(known) != 0 {
		t.Errorf("device keys with a wrong signature count: %+v, %v", known, err)
	}
}

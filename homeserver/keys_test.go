package homeserver

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/trunkhall/trunkhall/matrix"
)

// A keyPair is an ed25519 key for tests.
type keyPair struct {
	private ed25519.PrivateKey
	public  string // unpadded base64
}

func newKeyPair(t *testing.T) keyPair {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return keyPair{priv, base64.RawStdEncoding.EncodeToString(pub)}
}

// sign adds a signature to a JSON object.
func (k keyPair) sign(t *testing.T, o map[string]any, user matrix.UserID, keyID string) map[string]any {
	t.Helper()
	bare := make(map[string]any)
	for name, v := range o {
		if name != "signatures" && name != "unsigned" {
			bare[name] = v
		}
	}
	raw, err := json.Marshal(bare)
	if err != nil {
		t.Fatal(err)
	}
	message, err := matrix.CanonicalJSON(raw)
	if err != nil {
		t.Fatal(err)
	}
	sigs := make(map[string]any)
	if old, ok := o["signatures"].(map[string]any); ok {
		sigs = old
	}
	mine, ok := sigs[string(user)].(map[string]any)
	if !ok {
		mine = make(map[string]any)
	}
	mine[keyID] = base64.RawStdEncoding.EncodeToString(ed25519.Sign(k.private, message))
	sigs[string(user)] = mine
	bare["signatures"] = sigs
	return bare
}

// uploadDevice uploads identity keys for a person's device.
func (w *world) uploadDevice(t *testing.T, p person, k keyPair) map[string]any {
	t.Helper()
	id := "ed25519:" + string(p.device)
	keys := k.sign(t, map[string]any{
		"user_id": p.id, "device_id": p.device, "algorithms": []string{"m.olm.v1.curve25519-aes-sha2"},
		"keys": map[string]any{id: k.public, "curve25519:" + string(p.device): "x"},
	}, p.id, id)
	w.must("POST", c("/keys/upload"), p.token, map[string]any{"device_keys": keys})
	return keys
}

func (w *world) changedSince(t *testing.T, since int64) []matrix.UserID {
	t.Helper()
	l, err := w.db.DeviceListChanges(t.Context(), since, 1<<60)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (w *world) position(t *testing.T) int64 {
	t.Helper()
	pos, err := w.db.Position(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return pos
}

func TestDeviceKeys(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.register("alice"), w.register("bob")
	query := func(p person, users ...any) reply {
		ask := make(map[string]any)
		for _, u := range users {
			ask[fmt.Sprint(u)] = []string{}
		}
		return w.must("POST", c("/keys/query"), p.token, map[string]any{"device_keys": ask})
	}
	// Everybody who is asked for has an entry, also who does not exist.
	got := query(bob, alice.id, bob.id, "@nobody:test.example")
	for _, u := range []string{string(alice.id), string(bob.id), "@nobody:test.example"} {
		if dig(got.body, "device_keys", u) == nil {
			t.Errorf("no entry for %s: clients ask again without end: %s", u, got.raw)
		}
	}
	if got := query(bob, "@far:away.example"); dig(got.body, "failures", "away.example") == nil {
		t.Errorf("another server: %s", got.raw)
	}

	before := w.position(t)
	k := newKeyPair(t)
	keys := w.uploadDevice(t, alice, k)
	if l := w.changedSince(t, before); !slices.Equal(l, []matrix.UserID{alice.id}) {
		t.Errorf("device list changes: %v", l)
	}
	before = w.position(t)
	w.must("POST", c("/keys/upload"), alice.token, map[string]any{"device_keys": keys})
	if l := w.changedSince(t, before); len(l) != 0 {
		t.Errorf("the same keys again are a change: %v", l)
	}
	w.must("PUT", c("/devices/"+string(alice.device)), alice.token, map[string]any{"display_name": "phone"})
	got = query(bob, alice.id)
	dev := dig(got.body, "device_keys", string(alice.id), string(alice.device))
	if dig(dev, "keys", "ed25519:"+string(alice.device)) != k.public || dig(dev, "unsigned", "device_display_name") != "phone" || dig(dev, "signatures", string(alice.id)) == nil {
		t.Errorf("query: %s", got.raw)
	}
	if got := w.must("POST", c("/keys/query"), bob.token, map[string]any{"device_keys": map[string]any{string(alice.id): []string{"OTHER"}}}); dig(got.body, "device_keys", string(alice.id), string(alice.device)) != nil {
		t.Errorf("a device that was not asked for: %s", got.raw)
	}

	w.refuse("POST", c("/keys/upload"), bob.token, map[string]any{"device_keys": keys}, 400, "M_INVALID_PARAM")
	w.refuse("POST", c("/keys/upload"), bob.token, map[string]any{"device_keys": map[string]any{"user_id": bob.id, "device_id": bob.device}}, 400, "M_BAD_JSON")
	w.refuse("POST", c("/keys/upload"), bob.token, map[string]any{"device_keys": []any{}}, 400, "M_BAD_JSON")
	w.refuse("POST", c("/keys/upload"), bob.token, map[string]any{"one_time_keys": map[string]any{"nonsense": "x"}}, 400, "M_INVALID_PARAM")
	w.refuse("POST", c("/keys/upload"), bob.token, map[string]any{"one_time_keys": map[string]any{"a:b": 7}}, 400, "M_BAD_JSON")
	w.refuse("POST", c("/keys/query"), bob.token, map[string]any{"device_keys": map[string]any{"nonsense": []string{}}}, 400, "M_INVALID_PARAM")
	w.refuse("POST", c("/keys/query"), bob.token, "{}", 400, "M_MISSING_PARAM")

	before = w.position(t)
	w.must("POST", c("/logout"), alice.token, nil)
	if got := query(bob, alice.id); dig(got.body, "device_keys", string(alice.id), string(alice.device)) != nil {
		t.Errorf("keys outlive the device: %s", got.raw)
	}
	if l := w.changedSince(t, before); !slices.Equal(l, []matrix.UserID{alice.id}) {
		t.Errorf("nobody learns of the logout: %v", l)
	}
}

func TestOneTimeKeys(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.register("alice"), w.register("bob")
	upload := func(body map[string]any) reply { return w.send("POST", c("/keys/upload"), alice.token, body) }
	if got := upload(map[string]any{}); got.status != 200 || dig(got.body, "one_time_key_counts", "signed_curve25519") != 0.0 {
		t.Errorf("a client with no keys is not told so: %s", got.raw)
	}
	for i := range 3 {
		upload(map[string]any{"one_time_keys": map[string]any{fmt.Sprintf("signed_curve25519:Z%d", 9-i): map[string]any{"key": fmt.Sprint(i)}}})
	}
	upload(map[string]any{"fallback_keys": map[string]any{"signed_curve25519:FALL": map[string]any{"key": "f", "fallback": true}}})
	if got := upload(map[string]any{"one_time_keys": map[string]any{"signed_curve25519:Z9": map[string]any{"key": "0"}}}); dig(got.body, "one_time_key_counts", "signed_curve25519") != 3.0 {
		t.Errorf("the same key again: %s", got.raw)
	}
	if got := upload(map[string]any{"one_time_keys": map[string]any{"signed_curve25519:Z9": map[string]any{"key": "other"}}}); got.status != 400 || got.code() != "M_INVALID_PARAM" {
		t.Errorf("another value for a key: %d %s", got.status, got.raw)
	}
	claim := func() string {
		got := w.must("POST", c("/keys/claim"), bob.token, map[string]any{"one_time_keys": map[string]any{
			string(alice.id): map[string]any{string(alice.device): "signed_curve25519", "NOPE": "signed_curve25519"}, "@far:away.example": map[string]any{"X": "signed_curve25519"},
		}})
		if dig(got.body, "failures", "away.example") == nil {
			t.Errorf("another server: %s", got.raw)
		}
		keys, _ := dig(got.body, "one_time_keys", string(alice.id), string(alice.device)).(map[string]any)
		for id, k := range keys {
			return id + "=" + fmt.Sprint(dig(k, "key"))
		}
		return ""
	}
	unused := func() []string {
		l, err := w.db.UnusedFallbackKeyTypes(t.Context(), alice.id, alice.device)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if !slices.Equal(unused(), []string{"signed_curve25519"}) {
		t.Errorf("fallback key: %v", unused())
	}
	for i := range 3 { // the oldest first, not the one whose name sorts first
		if got, want := claim(), fmt.Sprintf("signed_curve25519:Z%d=%d", 9-i, i); got != want {
			t.Errorf("claim %d: %s, want %s", i, got, want)
		}
	}
	for range 2 {
		if got := claim(); got != "signed_curve25519:FALL=f" {
			t.Errorf("no fallback: %q", got)
		}
	}
	if len(unused()) != 0 {
		t.Errorf("the fallback key counts as unused: %v", unused())
	}
	upload(map[string]any{"fallback_keys": map[string]any{"signed_curve25519:NEXT": map[string]any{"key": "n"}}})
	if len(unused()) != 1 || claim() != "signed_curve25519:NEXT=n" {
		t.Error("a new fallback key does not replace the used one")
	}
	w.refuse("POST", c("/keys/claim"), bob.token, "{}", 400, "M_MISSING_PARAM")
}

// crossKey makes an unsigned cross-signing key.
func crossKey(user matrix.UserID, usage string, k keyPair) map[string]any {
	return map[string]any{"user_id": user, "usage": []string{usage}, "keys": map[string]any{"ed25519:" + k.public: k.public}}
}

func TestCrossSigning(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.register("alice"), w.register("bob")
	device, master, self, user := newKeyPair(t), newKeyPair(t), newKeyPair(t), newKeyPair(t)
	deviceKeys := w.uploadDevice(t, alice, device)
	id := func(k keyPair) string { return "ed25519:" + k.public }
	upload := map[string]any{
		"master_key":       crossKey(alice.id, "master", master),
		"self_signing_key": master.sign(t, crossKey(alice.id, "self_signing", self), alice.id, id(master)),
		"user_signing_key": master.sign(t, crossKey(alice.id, "user_signing", user), alice.id, id(master)),
	}
	forged := map[string]any{"master_key": upload["master_key"], "self_signing_key": user.sign(t, crossKey(alice.id, "self_signing", self), alice.id, id(master))}
	w.refuse("POST", c("/keys/device_signing/upload"), alice.token, forged, 400, "M_INVALID_SIGNATURE")
	w.refuse("POST", c("/keys/device_signing/upload"), bob.token, upload, 400, "M_INVALID_PARAM")
	before := w.position(t)
	w.must("POST", c("/keys/device_signing/upload"), alice.token, upload) // the first time: no password (MSC3967)
	if l := w.changedSince(t, before); !slices.Equal(l, []matrix.UserID{alice.id}) {
		t.Errorf("nobody learns of the keys: %v", l)
	}
	w.must("POST", c("/keys/device_signing/upload"), alice.token, upload) // the same again: no password either
	other := map[string]any{"master_key": crossKey(alice.id, "master", newKeyPair(t))}
	if got := w.send("POST", c("/keys/device_signing/upload"), alice.token, other); got.status != 401 || got.body["flows"] == nil {
		t.Errorf("keys were replaced without a password: %d %s", got.status, got.raw)
	}

	query := func(p person) reply {
		return w.must("POST", c("/keys/query"), p.token, map[string]any{"device_keys": map[string]any{string(alice.id): []string{}}})
	}
	if got := query(bob); dig(got.body, "master_keys", string(alice.id)) == nil || dig(got.body, "self_signing_keys", string(alice.id)) == nil {
		t.Errorf("keys: %s", got.raw)
	} else if dig(got.body, "user_signing_keys", string(alice.id)) != nil {
		t.Errorf("strangers see whom alice verified: %s", got.raw)
	}
	if got := query(alice); dig(got.body, "user_signing_keys", string(alice.id)) == nil {
		t.Errorf("alice's own: %s", got.raw)
	}

	// Alice's self-signing key signs her device; bob's user-signing key alice's master key.
	signed := self.sign(t, deviceKeys, alice.id, id(self))
	post := func(p person, owner matrix.UserID, key string, object any) reply {
		return w.must("POST", c("/keys/signatures/upload"), p.token, map[string]any{string(owner): map[string]any{key: object}})
	}
	if got := post(alice, alice.id, string(alice.device), signed); len(got.body["failures"].(map[string]any)) != 0 {
		t.Errorf("signature of the own device: %s", got.raw)
	}
	if got := query(bob); dig(got.body, "device_keys", string(alice.id), string(alice.device), "signatures", string(alice.id), id(self)) == nil {
		t.Errorf("the signature is not seen: %s", got.raw)
	}
	bobMaster, bobUser := newKeyPair(t), newKeyPair(t)
	w.must("POST", c("/keys/device_signing/upload"), bob.token, map[string]any{
		"master_key":       crossKey(bob.id, "master", bobMaster),
		"user_signing_key": bobMaster.sign(t, crossKey(bob.id, "user_signing", bobUser), bob.id, id(bobMaster)),
	})
	byBob := bobUser.sign(t, crossKey(alice.id, "master", master), bob.id, id(bobUser))
	if got := post(bob, alice.id, master.public, byBob); len(got.body["failures"].(map[string]any)) != 0 {
		t.Errorf("bob verifies alice: %s", got.raw)
	}
	if dig(query(bob).body, "master_keys", string(alice.id), "signatures", string(bob.id), id(bobUser)) == nil {
		t.Error("bob does not see his own signature")
	}
	if dig(query(alice).body, "master_keys", string(alice.id), "signatures", string(bob.id)) != nil {
		t.Error("alice sees who verified her")
	}
	for name, row := range map[string]struct {
		p     person
		owner matrix.UserID
		key   string
		obj   any
	}{
		"a signature by the wrong key":    {alice, alice.id, string(alice.device), master.sign(t, deviceKeys, alice.id, id(self))},
		"a key that may not sign devices": {alice, alice.id, string(alice.device), user.sign(t, deviceKeys, alice.id, id(user))},
		"a device that does not exist":    {alice, alice.id, "NOPE", signed},
		"other content than was uploaded": {alice, alice.id, string(alice.device), self.sign(t, map[string]any{"user_id": alice.id, "device_id": alice.device}, alice.id, id(self))},
		"bob signs alice's device":        {bob, alice.id, string(alice.device), bobUser.sign(t, deviceKeys, bob.id, id(bobUser))},
		"no signature of the caller":      {bob, alice.id, string(alice.device), deviceKeys},
	} {
		if got := post(row.p, row.owner, row.key, row.obj); dig(got.body, "failures", string(row.owner), row.key, "errcode") == nil {
			t.Errorf("%s was accepted: %s", name, got.raw)
		}
	}
}

func TestKeyBackup(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.register("alice"), w.register("bob")
	version, keys := c("/room_keys/version"), c("/room_keys/keys")
	w.refuse("GET", version, alice.token, nil, 404, "M_NOT_FOUND")
	make1 := map[string]any{"algorithm": "m.megolm_backup.v1", "auth_data": map[string]any{"public_key": "a"}}
	if v := w.must("POST", version, alice.token, make1).str("version"); v != "1" {
		t.Fatalf("version %q", v)
	}
	key := func(index, forwarded int, verified bool, data string) map[string]any {
		return map[string]any{"first_message_index": index, "forwarded_count": forwarded, "is_verified": verified, "session_data": map[string]any{"d": data}}
	}
	one := keys + "/!r:x/s1?version=1"
	put := w.must("PUT", one, alice.token, key(5, 1, false, "first"))
	if put.body["count"] != 1.0 || put.str("etag") == "" {
		t.Errorf("put: %s", put.raw)
	}
	etag := put.str("etag")
	for _, row := range []struct {
		name string
		key  map[string]any
		want string
	}{
		{"a later index is worse", key(6, 0, false, "worse"), "first"},
		{"more forwards are worse", key(5, 2, false, "worse"), "first"},
		{"the same is no better", key(5, 1, false, "same"), "first"},
		{"fewer forwards are better", key(5, 0, false, "second"), "second"},
		{"an earlier index is better", key(4, 9, false, "third"), "third"},
		{"verified beats all", key(9, 9, true, "fourth"), "fourth"},
		{"unverified never beats it", key(0, 0, false, "worse"), "fourth"},
	} {
		got := w.must("PUT", one, alice.token, row.key)
		if d := dig(w.must("GET", one, alice.token, nil).body, "session_data", "d"); d != row.want {
			t.Errorf("%s: %v is kept", row.name, d)
		}
		if changed := got.str("etag") != etag; changed != (row.want == dig(row.key, "session_data", "d")) {
			t.Errorf("%s: etag %s after %s", row.name, got.str("etag"), etag)
		}
		etag = got.str("etag")
	}
	w.must("PUT", keys+"/!r:x?version=1", alice.token, map[string]any{"sessions": map[string]any{"s2": key(0, 0, false, "x")}})
	if got := w.must("PUT", keys+"?version=1", alice.token, map[string]any{"rooms": map[string]any{"!q:x": map[string]any{"sessions": map[string]any{"s3": key(0, 0, false, "x")}}}}); got.body["count"] != 3.0 {
		t.Errorf("three forms of upload: %s", got.raw)
	}
	if got := w.must("GET", keys+"?version=1", alice.token, nil); dig(got.body, "rooms", "!r:x", "sessions", "s2") == nil || dig(got.body, "rooms", "!q:x", "sessions", "s3") == nil {
		t.Errorf("all keys: %s", got.raw)
	}
	if got := w.must("GET", keys+"/!r:x?version=1", alice.token, nil); dig(got.body, "sessions", "s1") == nil || dig(got.body, "sessions", "s3") != nil {
		t.Errorf("keys of a room: %s", got.raw)
	}
	if got := w.must("GET", keys+"/!none:x?version=1", alice.token, nil); dig(got.body, "sessions") == nil {
		t.Errorf("keys of a room without any: %s", got.raw)
	}
	w.refuse("GET", keys+"/!r:x/nope?version=1", alice.token, nil, 404, "M_NOT_FOUND")
	w.refuse("GET", keys, alice.token, nil, 400, "M_MISSING_PARAM")
	w.refuse("GET", keys+"?version=1", bob.token, nil, 404, "M_NOT_FOUND")
	w.refuse("PUT", one, alice.token, map[string]any{"session_data": map[string]any{}}, 400, "M_MISSING_PARAM")

	w.must("PUT", version+"/1", alice.token, map[string]any{"algorithm": "m.megolm_backup.v1", "auth_data": map[string]any{"public_key": "b"}})
	w.refuse("PUT", version+"/1", alice.token, map[string]any{"algorithm": "other", "auth_data": map[string]any{}}, 400, "M_INVALID_PARAM")
	if got := w.must("GET", version, alice.token, nil); dig(got.body, "auth_data", "public_key") != "b" || got.body["count"] != 3.0 || got.str("version") != "1" {
		t.Errorf("version: %s", got.raw)
	}
	w.must("POST", version, alice.token, make1)
	if got := w.refuse("PUT", one, alice.token, key(0, 0, true, "late"), 403, "M_WRONG_ROOM_KEYS_VERSION"); got.str("current_version") != "2" {
		t.Errorf("wrong version: %s", got.raw)
	}
	w.refuse("PUT", keys+"?version=7", alice.token, map[string]any{"rooms": map[string]any{}}, 404, "M_NOT_FOUND")
	if got := w.must("DELETE", one, alice.token, nil); got.body["count"] != 2.0 {
		t.Errorf("delete a key: %s", got.raw)
	}
	w.must("DELETE", version+"/2", alice.token, nil)
	w.refuse("GET", version+"/2", alice.token, nil, 404, "M_NOT_FOUND")
	if got := w.must("GET", version, alice.token, nil); got.str("version") != "1" {
		t.Errorf("after deleting the newest: %s", got.raw)
	}
	if v := w.must("POST", version, alice.token, make1).str("version"); v != "3" {
		t.Errorf("a version's number was given twice: %s", v)
	}
}

func TestKeysChangesTellOfSharers(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.register("alice"), w.register("bob")
	stranger := w.register("stranger")
	room := w.must("POST", c("/createRoom"), alice.token, map[string]any{"preset": "public_chat"}).str("room_id")
	w.must("POST", c("/join/"+room), bob.token, "{}")
	from := at(w.position(t))
	w.uploadDevice(t, bob, newKeyPair(t))
	w.uploadDevice(t, stranger, newKeyPair(t))
	got := w.must("GET", c("/keys/changes?from="+from+"&to="+at(w.position(t))), alice.token, nil)
	if changed, _ := got.body["changed"].([]any); !slices.Contains(changed, any(string(bob.id))) || slices.Contains(changed, any(string(stranger.id))) {
		t.Errorf("changes: %s", got.raw)
	}
	w.refuse("GET", c("/keys/changes?from=x&to=y"), alice.token, nil, 400, "M_INVALID_PARAM")
	w.refuse("GET", c("/keys/changes"), alice.token, nil, 400, "M_MISSING_PARAM")
}

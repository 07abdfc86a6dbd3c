//go:build goolm

package signaling

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// A rtcClient is a client whose encryption we did not write, in the call of an
// encrypted room.
type rtcClient struct {
	t *testing.T
	w *phoneWorld
	phonePerson
	cli     *mautrix.Client
	machine *crypto.OlmMachine

	mu   sync.Mutex
	keys []rtcKeyMessage // that came, in their order
}

// A rtcKeyMessage is the content of a to-device message with a media key.
type rtcKeyMessage struct {
	Keys struct {
		Index int    `json:"index"`
		Key   string `json:"key"`
	} `json:"keys"`
	Room   matrix.RoomID `json:"room_id"`
	Member struct {
		ID     string          `json:"id"`
		Device matrix.DeviceID `json:"claimed_device_id"`
	} `json:"member"`
	SenderDevice id.DeviceID `json:"-"`
}

// handlerTransport lets an HTTP client talk to a handler without a network.
type handlerTransport struct{ h http.Handler }

func (t handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		r.Body = http.NoBody
	}
	rec := httptest.NewRecorder()
	t.h.ServeHTTP(rec, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return rec.Result(), nil
}

func (w *phoneWorld) rtcClient(name string) *rtcClient {
	t := w.t
	t.Helper()
	c := &rtcClient{t: t, w: w, phonePerson: w.register(name)}
	var err error
	if c.cli, err = mautrix.NewClient("https://test.example", id.UserID(c.id), c.token); err != nil {
		t.Fatal(err)
	}
	c.cli.DeviceID = id.DeviceID(c.device)
	c.cli.Client = &http.Client{Transport: handlerTransport{w.home.Handler()}}
	c.cli.StateStore = mautrix.NewMemoryStateStore()
	log := zerolog.Nop()
	c.machine = crypto.NewOlmMachine(c.cli, &log, crypto.NewMemoryStore(nil), c.cli.StateStore.(crypto.StateStore))
	ctx, cancel := context.WithCancel(context.Background())
	if err := c.machine.Load(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.machine.ShareKeys(ctx, -1); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.sync(ctx)
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return c
}

func (c *rtcClient) sync(ctx context.Context) {
	since := ""
	for ctx.Err() == nil {
		resp, err := c.cli.SyncRequest(ctx, 10000, since, "", false, "")
		if err != nil {
			if ctx.Err() == nil {
				c.t.Errorf("sync: %v", err)
			}
			return
		}
		since = resp.NextBatch
		c.machine.HandleDeviceLists(ctx, &resp.DeviceLists, since)
		for _, e := range resp.ToDevice.Events {
			e.Type.Class = event.ToDeviceEventType
			if e.Content.ParseRaw(e.Type) != nil || e.Type != event.ToDeviceEncrypted {
				continue
			}
			got := c.machine.HandleEncryptedEvent(ctx, e)
			if got == nil || got.Type.Type != mediaKeyType {
				c.t.Errorf("%s cannot read a message of %s", c.id, e.Sender)
				continue
			}
			var m rtcKeyMessage
			raw, err := json.Marshal(got.Content.Raw)
			if err != nil || json.Unmarshal(raw, &m) != nil {
				c.t.Errorf("content %s, %v", raw, err)
			}
			if got.SenderDevice != nil {
				m.SenderDevice = got.SenderDevice.DeviceID
			}
			c.mu.Lock()
			c.keys = append(c.keys, m)
			c.mu.Unlock()
		}
		c.machine.HandleOTKCounts(ctx, &resp.DeviceOTKCount)
	}
}

// received returns the keys that came from a participant.
func (c *rtcClient) received(from call.Identity) []rtcKeyMessage {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.keys), func(m rtcKeyMessage) bool { return m.Member.ID != string(from) })
}

// join sends a call membership as Element Call does, leave ends it.
func (c *rtcClient) join(room matrix.RoomID) {
	c.t.Helper()
	c.member(room, callMember(room, c.id, c.device, "https://test.example/livekit/jwt", time.Now(), memberExpires, false))
}

func (c *rtcClient) leave(room matrix.RoomID) { c.member(room, map[string]any{}) }

func (c *rtcClient) member(room matrix.RoomID, content map[string]any) {
	c.t.Helper()
	c.w.must("PUT", "/_matrix/client/v3/rooms/"+string(room)+"/state/"+callMemberType+"/"+memberKey(c.id, c.device), c.token, content)
}

// give sends a media key to a ghost's device, as the member of a call that it
// says it is.
func (c *rtcClient) give(room matrix.RoomID, to call.Identity, member string, claimed matrix.DeviceID, index int, key string) {
	c.t.Helper()
	ghost, device := id.UserID(testGhost), id.DeviceID(to[len(testGhost)+1:])
	content := &event.Content{Raw: map[string]any{
		"keys": map[string]any{"index": index, "key": base64.RawStdEncoding.EncodeToString([]byte(key))}, "room_id": room,
		"member":  map[string]any{"id": member, "claimed_device_id": claimed},
		"session": map[string]any{"call_id": "", "application": "m.call", "scope": "m.room"}, "sent_ts": time.Now().UnixMilli(),
	}}
	ctx := c.t.Context()
	req, err := c.machine.EncryptToDevices(ctx, event.Type{Type: mediaKeyType, Class: event.ToDeviceEventType}, &mautrix.ReqSendToDevice{
		Messages: map[id.UserID]map[id.DeviceID]*event.Content{ghost: {device: content}},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	if len(req.Messages[ghost]) != 1 {
		c.t.Fatalf("%s has no Olm session with the phone", c.id)
	}
	if _, err := c.cli.SendToDevice(ctx, event.ToDeviceEncrypted, req); err != nil {
		c.t.Fatal(err)
	}
}

// A keyBook keeps what call.MediaKeys tells.
type keyBook struct {
	mu   sync.Mutex
	keys []call.MediaKey
}

func (b *keyBook) add(k call.MediaKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keys = append(b.keys, k)
}

// of returns the newest key of a participant and its index.
func (b *keyBook) of(who call.Identity) (key string, index int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range slices.Backward(b.keys) {
		if k.Identity == who {
			return string(k.Key), int(k.Index)
		}
	}
	return "", -1
}

func TestMediaKeysOfAPhone(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	w.d.keyTimes = keyTimes{use: 300 * time.Millisecond, grace: 500 * time.Millisecond, retry: 100 * time.Millisecond, ask: time.Hour}
	ctx := t.Context()
	alice, bob, eve := w.rtcClient("alice"), w.rtcClient("bob"), w.rtcClient("eve")
	room := w.room(alice.phonePerson, []any{map[string]any{"type": "m.room.encryption", "content": map[string]any{"algorithm": "m.megolm.v1.aes-sha2"}}},
		bob.phonePerson, eve.phonePerson)

	// Only where the room agrees, or whoever has the power dials.
	if _, err := w.d.Seat(ctx, w.at(room), inboundPhone); err == nil || err.Error() != call.ErrRoomEncrypted.Error() {
		t.Fatalf("a phone comes into an encrypted call that nobody opened to it: %v", err)
	}
	dialled := call.Phone{Number: inboundPhone.Number, Direction: call.Outbound, By: string(bob.id), Leg: "SCL_1"}
	if _, err := w.d.Seat(ctx, w.at(room), dialled); err == nil {
		t.Fatal("a member without the power opened the encrypted call to a phone")
	}
	dialled.By = string(alice.id)
	seat, err := w.d.Seat(ctx, w.at(room), dialled)
	if err != nil {
		t.Fatalf("dialled by one with the power: %v", err)
	}
	seat.Leave(ctx)
	no := "deny"
	if err := w.d.ChangeDialIn(ctx, string(room), string(alice.id), call.DialInChange{E2EE: &no}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.d.Seat(ctx, w.at(room), dialled); err == nil {
		t.Error("a phone comes into an encrypted call though the room says no")
	}
	yes := "allow"
	if err := w.d.ChangeDialIn(ctx, string(room), string(alice.id), call.DialInChange{E2EE: &yes}); err != nil {
		t.Fatal(err)
	}

	alice.join(room)
	began := time.Now()
	seat, err = w.d.Seat(ctx, w.at(room), inboundPhone)
	if err != nil || seat.Keys == nil || seat.Grant.Attrs[endsHere] != "true" {
		t.Fatalf("seat %+v, %v", seat, err)
	}
	phone := seat.Grant.Identity
	aliceID, bobID, eveID := plainIdentity(alice.id, alice.device), plainIdentity(bob.id, bob.device), plainIdentity(eve.id, eve.device)
	var book keyBook
	unwatch := seat.Keys.Watch(book.add)

	// Alice gets the phone's key, from a device of its name that is cross-signed,
	// and the phone uses the same.
	sentTo := func(c *rtcClient, index int) func() bool {
		return func() bool {
			got := c.received(phone)
			return len(got) > 0 && got[len(got)-1].Keys.Index == index
		}
	}
	eventually(t, "alice has the phone's key", sentTo(alice, 0))
	got := alice.received(phone)[0]
	first, _ := base64.RawStdEncoding.DecodeString(got.Keys.Key)
	eventually(t, "the phone uses its key", func() bool { k, i := book.of(phone); return k == string(first) && i == 0 })
	if got.Room != room || plainIdentity(testGhost, got.Member.Device) != phone || string(got.SenderDevice) != string(got.Member.Device) || len(first) != 16 {
		t.Errorf("the message with the key: %+v", got)
	}
	// Some clients encrypt only to devices that their users have cross-signed.
	known, err := alice.machine.FetchKeys(ctx, []id.UserID{testGhost}, true)
	device := known[testGhost][got.SenderDevice]
	if err != nil || device == nil {
		t.Fatalf("the phone's device keys: %v, %v", known, err)
	}
	if trust, err := alice.machine.ResolveTrustContext(ctx, device); err != nil || trust < id.TrustStateCrossSignedUntrusted {
		t.Errorf("trust in the phone's device: %v, %v", trust, err)
	}
	devices, err := w.db.Devices(ctx, testGhost)
	if err != nil || len(devices) != 1 || devices[0].DisplayName != encryptedDevice {
		t.Errorf("the phone's devices: %+v, %v", devices, err)
	}

	// The phone gets Alice's, also the next one.
	alice.give(room, phone, string(aliceID), alice.device, 0, "alice's first key")
	eventually(t, "the phone has alice's key", func() bool { k, i := book.of(aliceID); return k == "alice's first key" && i == 0 })
	alice.give(room, phone, string(aliceID), alice.device, 255, "alice's other key")
	eventually(t, "the phone has alice's next key", func() bool { k, i := book.of(aliceID); return k == "alice's other key" && i == 255 })

	// What it must not take: from Eve, who is in the room but not in the call, in
	// her own name or in Alice's; and from Alice with another's device.
	eve.give(room, phone, string(eveID), eve.device, 1, "a key of eve's own")
	eve.give(room, phone, string(aliceID), alice.device, 1, "eve's key for alice")
	alice.give(room, phone, string(bobID), bob.device, 1, "alice's key for bob")
	// A sticky membership: the participant's name is a hash that only Alice's
	// device can be given.
	alice.give(room, phone, "member-uuid", alice.device, 2, "alice's sticky key")
	eventually(t, "the phone has the key of a sticky membership", func() bool {
		k, _ := book.of(memberIdentity(alice.id, alice.device, "member-uuid"))
		return k == "alice's sticky key"
	})
	for _, who := range []call.Identity{eveID, bobID} {
		if k, _ := book.of(who); k != "" {
			t.Errorf("the phone took %q as the key of %s", k, who)
		}
	}
	if k, _ := book.of(aliceID); k == "eve's key for alice" {
		t.Error("the phone took Eve's key for Alice's")
	}

	// Bob joins: a new key for both, used when both have had time to get it.
	eventually(t, "the key is old enough to be replaced", func() bool { return time.Since(began) > 2*w.d.keyTimes.grace })
	bob.join(room)
	eventually(t, "bob has a new key", sentTo(bob, 1))
	eventually(t, "alice has the new key", sentTo(alice, 1))
	second := bob.received(phone)[0].Keys.Key
	if k, i := book.of(phone); i == 1 {
		t.Errorf("the new key %q is used at once: nobody can have it yet", k)
	}
	eventually(t, "the new key is used", func() bool {
		k, i := book.of(phone)
		return i == 1 && base64.RawStdEncoding.EncodeToString([]byte(k)) == second
	})
	// Bob leaves: one that he does not get.
	bob.leave(room)
	eventually(t, "alice has a key that bob has not", sentTo(alice, 2))
	eventually(t, "it is used", func() bool { _, i := book.of(phone); return i == 2 })
	if n := len(bob.received(phone)); n != 1 {
		t.Errorf("bob got %d keys, one was for him", n)
	}
	// Alice's client starts anew and has forgotten everything.
	before := len(alice.received(phone))
	w.comes(alice.phonePerson, room)
	eventually(t, "alice gets a key again", func() bool { return len(alice.received(phone)) > before })

	// Eve comes into the call: the key that she gave before counts now.
	eve.join(room)
	eventually(t, "the phone has eve's key", func() bool { k, _ := book.of(eveID); return k == "a key of eve's own" })

	unwatch()
	book.mu.Lock()
	told := len(book.keys)
	book.mu.Unlock()
	alice.give(room, phone, string(aliceID), alice.device, 3, "after the end of it")
	seat.Leave(ctx)
	book.mu.Lock()
	if len(book.keys) != told {
		t.Error("a watcher was told a key after it had cancelled")
	}
	book.mu.Unlock()
	if devices, err := w.db.Devices(ctx, testGhost); err != nil || len(devices) != 0 {
		t.Errorf("devices left over: %+v, %v", devices, err)
	}
}

// TestPhoneAsksForKeys has a client that gave its key before it knew the phone's
// device: it must be moved to give it again.
func TestPhoneAsksForKeys(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	w.d.keyTimes = keyTimes{use: time.Hour, grace: time.Hour, retry: 50 * time.Millisecond, ask: 100 * time.Millisecond}
	alice := w.rtcClient("alice")
	room := w.room(alice.phonePerson, []any{
		map[string]any{"type": "m.room.encryption", "content": map[string]any{"algorithm": "m.megolm.v1.aes-sha2"}},
		map[string]any{"type": dialInType, "content": map[string]any{"e2ee": "allow"}},
	})
	alice.join(room)
	seat, err := w.d.Seat(t.Context(), w.at(room), inboundPhone)
	if err != nil {
		t.Fatal(err)
	}
	defer seat.Leave(context.Background())
	created := map[any]bool{}
	eventually(t, "the phone's membership is sent anew", func() bool {
		for _, e := range w.timeline(room, alice.phonePerson) {
			if e["type"] == callMemberType && e["sender"] == testGhost {
				created[e["content"].(map[string]any)["created_ts"]] = true
			}
		}
		return len(created) == 1+mostAsked // and never more often
	})
}

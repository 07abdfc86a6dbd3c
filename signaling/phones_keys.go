package signaling

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// mediaKeyType is the to-device event that carries the key of one sender.
const mediaKeyType = "io.element.call.encryption_keys"

const (
	mediaKeyBytes = 16 // of keys made here; others may have up to maxMediaKey
	maxMediaKey   = 64
	keyIndexes    = 256
	// keptKeys bounds the keys that are kept of one participant: the newest is
	// in use, those before it may still be on the way.
	keptKeys = 4
	// maxKeyed bounds the participants whose keys are kept.
	maxKeyed = 2000
	// maxEarlyKeys bounds keys that came before their senders' memberships.
	maxEarlyKeys = 64
	// mostAsked is how often the others are asked for keys that did not come.
	mostAsked = 3
)

// keyTimes are the delays of key rotation, as MatrixRTC clients have them.
type keyTimes struct {
	use   time.Duration // a new key is used only when everybody has had time to get it
	grace time.Duration // a key this young is shared with newcomers, an older one replaced
	retry time.Duration // until a device that could not be reached is tried again
	ask   time.Duration // until those are asked again whose key has not come
}

func defaultKeyTimes() keyTimes {
	return keyTimes{use: 5 * time.Second, grace: 10 * time.Second, retry: 5 * time.Second, ask: 8 * time.Second}
}

// phoneKeys are the media keys of an encrypted call as one phone knows them. The
// phone makes its own and gives it to everybody in the call, another one when
// somebody has left, as every MatrixRTC client does. It implements
// call.MediaKeys. start and stop are called at most once, in that order; publish
// comes before both.
type phoneKeys struct {
	p      *phoneSeat
	times  keyTimes
	olm    *olmDevice
	poked  chan struct{}   // holds one: look at the members again
	ctx    context.Context // ends with stop, or when the directory's does
	cancel context.CancelFunc
	ended  sync.WaitGroup

	// Only the goroutine of share uses these.
	own    ownKey
	soon   []keyAt // new keys of the phone that are not in use yet, the next first
	asked  int
	askAt  time.Time           // zero: nobody's key is missing
	missed map[userDevice]bool // could not be reached

	mu    sync.Mutex                        // guards the following fields
	fresh map[userDevice]bool               // have joined anew and know nothing
	has   map[userDevice]bool               // whose keys have come
	early []mediaKeyMessage                 // of devices that are not in the call, yet
	known map[call.Identity][]call.MediaKey // the oldest first

	tell     sync.Mutex // held while watchers are called, so that none is after it has cancelled
	watchers map[int]func(call.MediaKey)
	next     int
}

// An ownKey is the phone's key and who has it.
type ownKey struct {
	key    []byte
	index  int
	made   time.Time
	shared map[userDevice]bool
	queued bool // it is in use, or will be
}

// A keyAt is a key that will be used from a time on.
type keyAt struct {
	key call.MediaKey
	at  time.Time
}

// A mediaKeyMessage is a key that came, from a device that proved to be the sender.
type mediaKeyMessage struct {
	from userDevice
	ids  []call.Identity
	key  call.MediaKey
}

func newPhoneKeys(p *phoneSeat) *phoneKeys {
	ctx, cancel := context.WithCancel(p.d.ctx)
	return &phoneKeys{
		p: p, times: p.d.keyTimes, poked: make(chan struct{}, 1), ctx: ctx, cancel: cancel,
		fresh: map[userDevice]bool{}, has: map[userDevice]bool{}, missed: map[userDevice]bool{},
		known: map[call.Identity][]call.MediaKey{}, watchers: map[int]func(call.MediaKey){},
	}
}

// publish makes the device's keys and uploads them.
func (k *phoneKeys) publish(ctx context.Context) (err error) {
	k.olm, err = newOlmDevice(k.p.d.ghosts, k.p.ghost, k.p.device, derive(k.p.d.key, "ghosts"))
	if err != nil {
		return err
	}
	return k.olm.publish(ctx)
}

// start begins to give and take keys.
func (k *phoneKeys) start() {
	for _, f := range []func(context.Context){k.share, k.receive} {
		k.ended.Add(1)
		begun := k.p.d.begin(func(context.Context) {
			defer k.ended.Done()
			f(k.ctx)
		})
		if !begun {
			k.ended.Done()
		}
	}
}

// stop ends it. It returns when nobody is given or told a key any more.
func (k *phoneKeys) stop() {
	k.cancel()
	k.ended.Wait()
}

// Watch is described by call.MediaKeys.
func (k *phoneKeys) Watch(f func(call.MediaKey)) (cancel func()) {
	k.tell.Lock()
	defer k.tell.Unlock()
	k.mu.Lock()
	var now []call.MediaKey
	for _, keys := range k.known {
		now = append(now, keys...)
	}
	k.mu.Unlock()
	n := k.next
	k.next++
	k.watchers[n] = f
	for _, key := range now {
		f(key)
	}
	return func() {
		k.tell.Lock()
		defer k.tell.Unlock()
		delete(k.watchers, n)
	}
}

// use keeps a key and tells the watchers.
func (k *phoneKeys) use(key call.MediaKey) {
	k.tell.Lock()
	defer k.tell.Unlock()
	k.mu.Lock()
	if _, there := k.known[key.Identity]; !there && len(k.known) >= maxKeyed {
		k.mu.Unlock()
		return
	}
	keys := slices.DeleteFunc(k.known[key.Identity], func(old call.MediaKey) bool { return old.Index == key.Index })
	keys = append(keys, key)
	k.known[key.Identity] = keys[max(0, len(keys)-keptKeys):]
	k.mu.Unlock()
	for _, f := range k.watchers {
		f(key)
	}
}

// poke has the members looked at again. It does not block.
func (k *phoneKeys) poke() {
	select {
	case k.poked <- struct{}{}:
	default:
	}
}

// pokeKeys has the phones of a room look at its members again. It does not block.
func (d *PhoneDirectory) pokeKeys(room matrix.RoomID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for p := range d.seats {
		if p.room == room && p.keys != nil {
			p.keys.poke()
		}
	}
}

// joinedAnew tells the phones of a room that a device has come into the call with
// no keys, though it may have been there before. It does not block.
func (d *PhoneDirectory) joinedAnew(room matrix.RoomID, who userDevice) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for p := range d.seats {
		if p.room == room && p.keys != nil && p.ghost != who.user {
			p.keys.mu.Lock()
			p.keys.fresh[who] = true
			p.keys.mu.Unlock()
		}
	}
}

// members returns the devices in the room's call that need keys: those with a
// membership in the room's state and those whose clients are connected, which
// have one that this server may not be able to read. Phones hear each other
// without keys.
func (k *phoneKeys) members(ctx context.Context) (map[userDevice]bool, error) {
	d, room := k.p.d, k.p.room
	all, err := d.callMembers(ctx, room)
	if err != nil {
		return nil, err
	}
	m := d.s.rtc
	var here []rtcKey
	m.mu.Lock()
	for p := range m.present {
		if p.room == k.p.at.Room {
			here = append(here, p)
		}
	}
	m.mu.Unlock()
	for _, p := range here {
		who, err := d.store.Minted(ctx, p.room, p.id)
		if errors.Is(err, call.ErrNotFound) {
			continue // with a token of the API key's owner: not a member of the Matrix room
		}
		if err != nil {
			return nil, err
		}
		membership, err := d.s.deps.Rooms.Membership(ctx, room, matrix.UserID(who.UserID))
		if err != nil {
			return nil, err
		}
		if matrix.RoomID(who.RoomID) == room && membership == matrix.MembershipJoin {
			all[userDevice{matrix.UserID(who.UserID), matrix.DeviceID(who.DeviceID)}] = true
		}
	}
	for who := range all {
		if d.isPhone(who.user) {
			delete(all, who)
		}
	}
	return all, nil
}

// share gives the phone's key to everybody in the call until ctx ends.
func (k *phoneKeys) share(ctx context.Context) {
	k.own = newOwnKey(0)
	k.own.queued = true // nobody has another to hear the phone with
	k.use(k.ownMediaKey())
	timer := time.NewTimer(0) // the first look is at once
	defer timer.Stop()
	for {
		wait, err := k.round(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			k.p.d.log.Warn("share the media key of a phone", "room_id", k.p.room, "err", err)
			wait = k.times.retry
		}
		timer.Reset(wait)
		select {
		case <-k.poked:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

func newOwnKey(index int) ownKey {
	key := make([]byte, mediaKeyBytes)
	_, _ = rand.Read(key) // never fails, see crypto/rand
	return ownKey{key: key, index: index, made: time.Now(), shared: map[userDevice]bool{}}
}

func (k *phoneKeys) ownMediaKey() call.MediaKey {
	return call.MediaKey{Identity: k.p.identity(), Index: uint8(k.own.index), Key: k.own.key} //nolint:gosec // below keyIndexes
}

// round compares the members with those who have the key and does what follows.
// It returns when to look again if nothing happens.
func (k *phoneKeys) round(ctx context.Context) (time.Duration, error) {
	members, err := k.members(ctx)
	if err != nil {
		return 0, err
	}
	k.takeEarly(members)
	k.mu.Lock()
	for who := range k.fresh {
		if k.own.shared[who] {
			// It may have this key, and so there need not be a new one for it.
			delete(k.own.shared, who)
			k.missed[who] = true
		}
		delete(k.has, who)
	}
	clear(k.fresh)
	for who := range k.has {
		if !members[who] {
			delete(k.has, who)
		}
	}
	k.mu.Unlock()
	left := false
	for who := range k.own.shared {
		left = left || !members[who]
	}
	var joined []userDevice
	for who := range members {
		if !k.own.shared[who] {
			joined = append(joined, who)
		}
	}
	// Who could not be reached before is no reason for a new key.
	news := slices.ContainsFunc(joined, func(who userDevice) bool { return !k.missed[who] })
	rotate := left || news && time.Since(k.own.made) >= k.times.grace
	switch {
	case rotate:
		k.own = newOwnKey((k.own.index + 1) % keyIndexes)
		joined = nil
		for who := range members {
			joined = append(joined, who)
		}
		fallthrough
	case len(joined) > 0:
		if err := k.send(ctx, joined); err != nil {
			return 0, err
		}
	}
	now := time.Now()
	if !k.own.queued {
		k.own.queued = true
		k.soon = append(k.soon, keyAt{k.ownMediaKey(), now.Add(k.times.use)})
	}
	for len(k.soon) > 0 && !now.Before(k.soon[0].at) {
		k.use(k.soon[0].key)
		k.soon = k.soon[1:]
	}
	wait := time.Hour
	if len(k.missed) > 0 {
		wait = k.times.retry
	}
	if len(k.soon) > 0 {
		wait = min(wait, k.soon[0].at.Sub(now))
	}
	return min(wait, k.ask(ctx, members)), nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// send gives the phone's present key to devices.
func (k *phoneKeys) send(ctx context.Context, to []userDevice) error {
	messages, sent, err := k.olm.encrypt(ctx, mediaKeyType, map[string]any{
		"keys":    map[string]any{"index": k.own.index, "key": base64.RawStdEncoding.EncodeToString(k.own.key)},
		"room_id": k.p.room,
		"member":  map[string]any{"id": k.p.identity(), "claimed_device_id": k.p.device},
		"session": map[string]any{"call_id": "", "application": "m.call", "scope": "m.room"},
		"sent_ts": time.Now().UnixMilli(),
	}, to)
	if err != nil {
		return err
	}
	if len(messages) > 0 {
		if err := k.p.d.ghosts.SendToDeviceAs(ctx, k.p.ghost, k.p.device, "m.room.encrypted", messages); err != nil {
			return err
		}
	}
	before := len(k.missed)
	clear(k.missed)
	for _, who := range to {
		k.missed[who] = true
	}
	for _, who := range sent {
		k.own.shared[who] = true
		delete(k.missed, who)
	}
	if len(k.missed) > before {
		k.p.d.log.Info("devices in an encrypted call have no keys for a phone to reach them", "room_id", k.p.room, "devices", len(k.missed))
	}
	return nil
}

// ask sends the phone's membership anew if keys of others do not come: their
// clients may have seen it before they knew its device, and gave it up. It
// returns when to look again.
func (k *phoneKeys) ask(ctx context.Context, members map[userDevice]bool) time.Duration {
	missing := false
	k.mu.Lock()
	for who := range members {
		missing = missing || !k.has[who]
	}
	k.mu.Unlock()
	now := time.Now()
	switch {
	case !missing:
		k.askAt = time.Time{}
		return time.Hour
	case k.askAt.IsZero():
		k.askAt = now.Add(k.times.ask)
	case now.Before(k.askAt):
	case k.asked < mostAsked:
		k.asked++
		k.askAt = now.Add(k.times.ask)
		if err := k.p.resend(ctx); err != nil && ctx.Err() == nil {
			k.p.d.log.Info("send a phone's call membership again", "room_id", k.p.room, "err", err)
		}
	default:
		return time.Hour
	}
	return max(k.askAt.Sub(now), time.Millisecond)
}

// resend sends the call membership as that of a new call.
func (p *phoneSeat) resend(ctx context.Context) error {
	if !p.mu.TryLock() {
		return nil // it is just being renewed, or ends
	}
	defer p.mu.Unlock()
	if p.left {
		return nil
	}
	p.created, p.expires = time.Now(), memberExpires
	_, err := p.sendMember(ctx, true)
	return err
}

// receive takes keys until ctx ends.
func (k *phoneKeys) receive(ctx context.Context) {
	for ctx.Err() == nil {
		messages, err := k.p.d.ghosts.ReceiveToDevice(ctx, k.p.ghost, k.p.device)
		for _, m := range messages {
			if err := k.took(ctx, m); err != nil && ctx.Err() == nil {
				k.p.d.log.Info("a message for a phone cannot be used", "room_id", k.p.room, "err", err)
			}
		}
		if err != nil && ctx.Err() == nil {
			k.p.d.log.Warn("receive media keys for a phone", "room_id", k.p.room, "err", err)
			_ = sleep(ctx, k.times.retry)
		}
	}
}

// took reads one to-device message.
func (k *phoneKeys) took(ctx context.Context, raw json.RawMessage) error {
	var m struct {
		Type    string          `json:"type"`
		Sender  matrix.UserID   `json:"sender"`
		Content json.RawMessage `json:"content"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return err
	}
	if m.Type != "m.room.encrypted" {
		return nil // keys in clear are nobody's
	}
	e, err := k.olm.decrypt(ctx, m.Sender, m.Content)
	if err != nil || e.typ != mediaKeyType {
		return err
	}
	keys, err := readMediaKeys(e, k.p.room)
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.early = append(k.early, keys...)
	k.early = k.early[max(0, len(k.early)-maxEarlyKeys):]
	k.mu.Unlock()
	members, err := k.members(ctx)
	if err != nil {
		return err
	}
	k.takeEarly(members)
	return nil
}

// takeEarly uses the keys that came from devices that are in the call.
func (k *phoneKeys) takeEarly(members map[userDevice]bool) {
	var now []call.MediaKey
	k.mu.Lock()
	k.early = slices.DeleteFunc(k.early, func(m mediaKeyMessage) bool {
		if !members[m.from] {
			return false
		}
		k.has[m.from] = true
		for _, id := range m.ids {
			now = append(now, call.MediaKey{Identity: id, Index: m.key.Index, Key: m.key.Key})
		}
		return true
	})
	k.mu.Unlock()
	for _, key := range now {
		k.use(key)
	}
}

// readMediaKeys reads the keys in a decrypted event. The sender's identity in the
// SFU is made of what Olm has proved, and so cannot be another's.
func readMediaKeys(e olmEvent, room matrix.RoomID) ([]mediaKeyMessage, error) {
	type key struct {
		Index int    `json:"index"`
		Key   string `json:"key"`
	}
	var c struct {
		Keys   json.RawMessage `json:"keys"`
		Room   matrix.RoomID   `json:"room_id"`
		Member struct {
			ID     string          `json:"id"`
			Device matrix.DeviceID `json:"claimed_device_id"`
		} `json:"member"`
	}
	if err := json.Unmarshal(e.content, &c); err != nil || c.Room != room || c.Member.Device != e.from.device || len(c.Member.ID) > maxName {
		return nil, errOlm
	}
	var keys []key
	if strings.HasPrefix(strings.TrimSpace(string(c.Keys)), "[") {
		if err := json.Unmarshal(c.Keys, &keys); err != nil || len(keys) > keptKeys {
			return nil, errOlm
		}
	} else {
		keys = make([]key, 1)
		if err := json.Unmarshal(c.Keys, &keys[0]); err != nil {
			return nil, errOlm
		}
	}
	plain := plainIdentity(e.from.user, e.from.device)
	ids := []call.Identity{plain}
	if c.Member.ID != "" && c.Member.ID != string(plain) {
		// A sticky membership (MSC4354): its client is in the SFU under this name.
		ids = append(ids, memberIdentity(e.from.user, e.from.device, c.Member.ID))
	}
	var all []mediaKeyMessage
	for _, one := range keys {
		secret, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(one.Key, "="))
		if err != nil || len(secret) < mediaKeyBytes || len(secret) > maxMediaKey || one.Index < 0 || one.Index >= keyIndexes {
			return nil, errOlm
		}
		all = append(all, mediaKeyMessage{e.from, ids, call.MediaKey{Index: uint8(one.Index), Key: secret}}) //nolint:gosec // in range
	}
	return all, nil
}

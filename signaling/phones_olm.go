package signaling

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"maunium.net/go/mautrix/crypto/goolm/account"
	"maunium.net/go/mautrix/crypto/olm"
	"maunium.net/go/mautrix/id"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

const (
	olmAlgorithm = "m.olm.v1.curve25519-aes-sha2"
	// oneTimeKeys is how many keys a phone's device has for others to begin a
	// session with. When they are used up there is the fallback key.
	oneTimeKeys = 50
	// maxSessions bounds the sessions with one other device: a new one replaces
	// the oldest.
	maxSessions = 5
)

// errOlm is a message of another device that cannot be read, or must not be.
var errOlm = fmt.Errorf("olm message: %w", call.ErrInvalid)

// An olmDevice is the end-to-end encryption of one ghost's device: client-server
// API, "m.olm.v1.curve25519-aes-sha2". It lives as long as the phone's seat. It
// uses the Olm of mautrix-go directly: a phone needs none of what a client's
// machinery is for, and so no C library either. Safe for concurrent use.
type olmDevice struct {
	ghosts Ghosts
	user   matrix.UserID
	device matrix.DeviceID
	master ed25519.PrivateKey // the ghost's cross-signing keys
	signer ed25519.PrivateKey
	keys   json.RawMessage // the device keys as others see them; set by publish

	mu       sync.Mutex // guards the following fields
	account  *account.Account
	sessions map[id.Curve25519][]olm.Session // by the other device's key, the newest last
}

// newOlmDevice makes the keys of a device. key makes the cross-signing keys of
// the ghost: the same ones each time that it calls, so that nobody is warned of
// somebody new behind an old name.
func newOlmDevice(ghosts Ghosts, user matrix.UserID, device matrix.DeviceID, key []byte) (*olmDevice, error) {
	a, err := account.NewAccount()
	if err != nil {
		return nil, fmt.Errorf("olm account: %w", err)
	}
	if err := errors.Join(a.GenOneTimeKeys(oneTimeKeys), a.GenFallbackKey()); err != nil {
		return nil, fmt.Errorf("olm account: %w", err)
	}
	return &olmDevice{
		ghosts: ghosts, user: user, device: device,
		master:  ed25519.NewKeyFromSeed(derive(key, "master key of "+string(user))),
		signer:  ed25519.NewKeyFromSeed(derive(key, "self-signing key of "+string(user))),
		account: a, sessions: map[id.Curve25519][]olm.Session{},
	}, nil
}

func publicKey(k ed25519.PrivateKey) string {
	return base64.RawStdEncoding.EncodeToString(k.Public().(ed25519.PublicKey))
}

// signed returns o with signatures of the user's keys (appendices, "Signing
// JSON"): by names the signing functions.
func (o *olmDevice) signed(object map[string]any, by map[string]func([]byte) ([]byte, error)) (json.RawMessage, error) {
	raw, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	message, err := matrix.CanonicalObject(raw)
	if err != nil {
		return nil, err
	}
	signatures := map[string]string{}
	for name, sign := range by {
		s, err := sign(message)
		if err != nil {
			return nil, err
		}
		signatures[name] = string(s)
	}
	object["signatures"] = map[matrix.UserID]any{o.user: signatures}
	if raw, err = json.Marshal(object); err != nil {
		return nil, err
	}
	return matrix.CanonicalObject(raw)
}

func signWith(k ed25519.PrivateKey) func([]byte) ([]byte, error) {
	return func(message []byte) ([]byte, error) {
		return []byte(base64.RawStdEncoding.EncodeToString(ed25519.Sign(k, message))), nil
	}
}

// publish uploads the keys of the ghost and the device. It comes before the
// device does anything that others see.
func (o *olmDevice) publish(ctx context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	cross := map[string]json.RawMessage{}
	var err error
	for usage, k := range map[string]ed25519.PrivateKey{"master": o.master, "self_signing": o.signer} {
		object := map[string]any{"user_id": o.user, "usage": []string{usage}, "keys": map[string]string{"ed25519:" + publicKey(k): publicKey(k)}}
		by := map[string]func([]byte) ([]byte, error){"ed25519:" + publicKey(o.master): signWith(o.master)}
		if usage == "master" {
			by = nil
		}
		if cross[usage], err = o.signed(object, by); err != nil {
			return err
		}
	}
	if err := o.ghosts.SetGhostCrossSigning(ctx, o.user, cross); err != nil {
		return err
	}
	signing, identity, err := o.account.IdentityKeys()
	if err != nil {
		return err
	}
	device := "ed25519:" + string(o.device)
	o.keys, err = o.signed(map[string]any{
		"user_id": o.user, "device_id": o.device, "algorithms": []string{olmAlgorithm},
		"keys": map[string]string{device: string(signing), "curve25519:" + string(o.device): string(identity)},
	}, map[string]func([]byte) ([]byte, error){device: o.account.Sign, "ed25519:" + publicKey(o.signer): signWith(o.signer)})
	if err != nil {
		return err
	}
	upload := matrix.KeyUpload{DeviceKeys: o.keys}
	once, err := o.account.OneTimeKeys()
	if err != nil {
		return err
	}
	if upload.OneTime, err = o.signedKeys(once, false); err != nil {
		return err
	}
	if upload.Fallback, err = o.signedKeys(o.account.FallbackKeyUnpublished(), true); err != nil {
		return err
	}
	if err := o.ghosts.UploadGhostKeys(ctx, o.user, o.device, upload); err != nil {
		return err
	}
	o.account.MarkKeysAsPublished()
	return nil
}

func (o *olmDevice) signedKeys(keys map[string]id.Curve25519, fallback bool) ([]matrix.EncryptionKey, error) {
	var all []matrix.EncryptionKey
	for name, key := range keys {
		object := map[string]any{"key": key}
		if fallback {
			object["fallback"] = true
		}
		value, err := o.signed(object, map[string]func([]byte) ([]byte, error){"ed25519:" + string(o.device): o.account.Sign})
		if err != nil {
			return nil, err
		}
		all = append(all, matrix.EncryptionKey{Algorithm: "signed_curve25519", ID: name, Value: value})
	}
	return all, nil
}

// A peerDevice is another device as its signed keys describe it.
type peerDevice struct {
	userDevice
	signing  ed25519.PublicKey
	identity id.Curve25519
}

// verified checks the signature of a device on a JSON object.
func (p peerDevice) verified(raw json.RawMessage) bool {
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) != nil {
		return false
	}
	var signatures map[matrix.UserID]map[string]string
	_ = json.Unmarshal(object["signatures"], &signatures)
	signature, err := base64.RawStdEncoding.DecodeString(signatures[p.user]["ed25519:"+string(p.device)])
	if err != nil {
		return false
	}
	delete(object, "signatures")
	delete(object, "unsigned")
	rest, err := json.Marshal(object)
	if err != nil {
		return false
	}
	message, err := matrix.CanonicalObject(rest)
	return err == nil && len(p.signing) == ed25519.PublicKeySize && ed25519.Verify(p.signing, message, signature)
}

// peers returns the devices of a user whose keys are as they should be.
func (o *olmDevice) peers(ctx context.Context, user matrix.UserID, devices ...matrix.DeviceID) ([]peerDevice, error) {
	all, err := o.ghosts.DeviceKeys(ctx, user, devices...)
	if err != nil {
		return nil, err
	}
	var good []peerDevice
	for _, d := range all {
		var k struct {
			User   matrix.UserID     `json:"user_id"`
			Device matrix.DeviceID   `json:"device_id"`
			Keys   map[string]string `json:"keys"`
		}
		if json.Unmarshal(d.Keys, &k) != nil || k.User != user || k.Device != d.Device {
			continue
		}
		p := peerDevice{userDevice: userDevice{user, d.Device}, identity: id.Curve25519(k.Keys["curve25519:"+string(d.Device)])}
		if p.signing, err = base64.RawStdEncoding.DecodeString(k.Keys["ed25519:"+string(d.Device)]); err != nil {
			continue
		}
		if validCurve(p.identity) && p.verified(d.Keys) {
			good = append(good, p)
		}
	}
	return good, nil
}

func validCurve(k id.Curve25519) bool {
	b, err := base64.RawStdEncoding.DecodeString(string(k))
	return err == nil && len(b) == 32
}

// encrypt encrypts an event for devices. Those that have no usable keys get
// nothing: sent has the others.
func (o *olmDevice) encrypt(ctx context.Context, typ string, content any, to []userDevice) (messages []matrix.ToDevice, sent []userDevice, err error) {
	byUser := map[matrix.UserID][]matrix.DeviceID{}
	for _, t := range to {
		byUser[t.user] = append(byUser[t.user], t.device)
	}
	var peers []peerDevice
	for user, devices := range byUser {
		known, err := o.peers(ctx, user, devices...)
		if err != nil {
			return nil, nil, err
		}
		peers = append(peers, known...)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.beginSessions(ctx, peers); err != nil {
		return nil, nil, err
	}
	signing, identity, err := o.account.IdentityKeys()
	if err != nil {
		return nil, nil, err
	}
	for _, p := range peers {
		sessions := o.sessions[p.identity]
		if len(sessions) == 0 {
			continue
		}
		plain, err := json.Marshal(map[string]any{
			"type": typ, "content": content, "sender": o.user, "sender_device": o.device, "keys": map[string]any{"ed25519": signing},
			"recipient": p.user, "recipient_keys": map[string]any{"ed25519": base64.RawStdEncoding.EncodeToString(p.signing)},
			"sender_device_keys": o.keys, // MSC4147
		})
		if err != nil {
			return nil, nil, err
		}
		kind, body, err := sessions[len(sessions)-1].Encrypt(plain)
		if err != nil {
			return nil, nil, fmt.Errorf("olm: %w", err)
		}
		event, err := json.Marshal(map[string]any{
			"algorithm": olmAlgorithm, "sender_key": identity,
			"ciphertext": map[id.Curve25519]any{p.identity: map[string]any{"type": kind, "body": string(body)}},
		})
		if err != nil {
			return nil, nil, err
		}
		messages = append(messages, matrix.ToDevice{User: p.user, Device: p.device, Event: event})
		sent = append(sent, p.userDevice)
	}
	return messages, sent, nil
}

// beginSessions begins a session with each device that there is none with. The
// caller holds o.mu.
func (o *olmDevice) beginSessions(ctx context.Context, peers []peerDevice) error {
	var claims []matrix.KeyClaim
	byDevice := map[userDevice]peerDevice{}
	for _, p := range peers {
		if len(o.sessions[p.identity]) == 0 {
			claims = append(claims, matrix.KeyClaim{User: p.user, Device: p.device, Algorithm: "signed_curve25519"})
			byDevice[p.userDevice] = p
		}
	}
	if len(claims) == 0 {
		return nil
	}
	granted, err := o.ghosts.ClaimKeys(ctx, claims)
	if err != nil {
		return err
	}
	for _, c := range granted {
		p, ok := byDevice[userDevice{c.User, c.Device}]
		if !ok || c.Key == nil || !p.verified(c.Key.Value) {
			continue
		}
		var k struct {
			Key id.Curve25519 `json:"key"`
		}
		if json.Unmarshal(c.Key.Value, &k) != nil || !validCurve(k.Key) {
			continue
		}
		s, err := o.account.NewOutboundSession(p.identity, k.Key)
		if err != nil {
			continue // a key that is no point of the curve
		}
		o.addSession(p.identity, s)
	}
	return nil
}

func (o *olmDevice) addSession(with id.Curve25519, s olm.Session) {
	all := append(o.sessions[with], s)
	o.sessions[with] = all[max(0, len(all)-maxSessions):]
}

// An olmEvent is what was in an encrypted message, and whose device sent it.
type olmEvent struct {
	from    userDevice
	typ     string
	content json.RawMessage
}

// decrypt reads an m.room.encrypted message that sender sent to this device.
func (o *olmDevice) decrypt(ctx context.Context, sender matrix.UserID, content json.RawMessage) (olmEvent, error) {
	var m struct {
		Algorithm  string        `json:"algorithm"`
		SenderKey  id.Curve25519 `json:"sender_key"`
		Ciphertext map[id.Curve25519]struct {
			Type *id.OlmMsgType `json:"type"`
			Body string         `json:"body"`
		} `json:"ciphertext"`
	}
	if err := json.Unmarshal(content, &m); err != nil || m.Algorithm != olmAlgorithm || !validCurve(m.SenderKey) {
		return olmEvent{}, errOlm
	}
	signing, identity, err := o.account.IdentityKeys()
	if err != nil {
		return olmEvent{}, err
	}
	mine, ok := m.Ciphertext[identity]
	if !ok || mine.Type == nil {
		return olmEvent{}, fmt.Errorf("%w: it is not for this device", errOlm)
	}
	peers, err := o.peers(ctx, sender)
	if err != nil {
		return olmEvent{}, err
	}
	i := slices.IndexFunc(peers, func(p peerDevice) bool { return p.identity == m.SenderKey })
	if i < 0 {
		return olmEvent{}, fmt.Errorf("%w: of no device of its sender", errOlm)
	}
	plain, err := o.open(m.SenderKey, *mine.Type, mine.Body)
	if err != nil {
		return olmEvent{}, err
	}
	var e struct {
		Type          string            `json:"type"`
		Content       json.RawMessage   `json:"content"`
		Sender        matrix.UserID     `json:"sender"`
		Recipient     matrix.UserID     `json:"recipient"`
		RecipientKeys map[string]string `json:"recipient_keys"`
		Keys          map[string]string `json:"keys"`
	}
	// The specification asks for each of these, so that nobody passes on what
	// was sent to another, or claims another's device.
	if json.Unmarshal(plain, &e) != nil || e.Sender != sender || e.Recipient != o.user || e.RecipientKeys["ed25519"] != string(signing) ||
		e.Keys["ed25519"] != base64.RawStdEncoding.EncodeToString(peers[i].signing) {
		return olmEvent{}, fmt.Errorf("%w: its names do not match its keys", errOlm)
	}
	return olmEvent{peers[i].userDevice, e.Type, e.Content}, nil
}

// open decrypts a message with a session that fits, or a new one if it begins one.
func (o *olmDevice) open(with id.Curve25519, kind id.OlmMsgType, body string) (plain []byte, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	// What comes from outside must not end the process, whatever the library
	// makes of it.
	defer func() {
		if r := recover(); r != nil {
			plain, err = nil, fmt.Errorf("%w: %v", errOlm, r)
		}
	}()
	sessions := o.sessions[with]
	for i, s := range slices.Backward(sessions) {
		if kind == id.OlmMsgTypePreKey {
			if fits, err := s.MatchesInboundSession(body); err != nil || !fits {
				continue
			}
		}
		plain, err := s.Decrypt(body, kind)
		if err != nil {
			continue
		}
		// What the other side used last is what it knows.
		o.sessions[with] = append(slices.Delete(sessions, i, i+1), s)
		return plain, nil
	}
	if kind != id.OlmMsgTypePreKey {
		return nil, fmt.Errorf("%w: of an unknown session", errOlm)
	}
	s, err := o.account.NewInboundSessionFrom(&with, body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errOlm, err)
	}
	if plain, err = s.Decrypt(body, kind); err != nil {
		return nil, fmt.Errorf("%w: %w", errOlm, err)
	}
	if err := o.account.RemoveOneTimeKeys(s); err != nil {
		return nil, err
	}
	o.addSession(with, s)
	return plain, nil
}

package homeserver

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/trunkhall/trunkhall/matrix"
)

// A signedKey is a cross-signing key or a device's keys, as far as signatures
// look at them.
type signedKey struct {
	UserID     matrix.UserID                `json:"user_id"`
	DeviceID   matrix.DeviceID              `json:"device_id"`
	Usage      []string                     `json:"usage"`
	Keys       map[string]string            `json:"keys"`
	Signatures map[string]map[string]string `json:"signatures"`
}

// crossSigningPublicKey returns the one public key of a cross-signing key.
func crossSigningPublicKey(raw json.RawMessage) (string, error) {
	var k signedKey
	if err := json.Unmarshal(raw, &k); err != nil {
		return "", err
	}
	for id, pub := range k.Keys {
		if len(k.Keys) == 1 && id == "ed25519:"+pub {
			return pub, nil
		}
	}
	return "", errors.New("a cross-signing key has exactly one key, ed25519:<public key>")
}

// signedBy reports whether the JSON object raw carries a valid signature of
// signer by the key keyID whose unpadded base64 is pub (appendices, "Checking
// for a Signature").
func signedBy(raw json.RawMessage, signer matrix.UserID, keyID, pub string) bool {
	var o map[string]json.RawMessage
	if json.Unmarshal(raw, &o) != nil {
		return false
	}
	var sigs map[matrix.UserID]map[string]string
	if json.Unmarshal(o["signatures"], &sigs) != nil {
		return false
	}
	delete(o, "signatures")
	delete(o, "unsigned")
	bare, err := json.Marshal(o)
	if err != nil {
		return false
	}
	message, err := matrix.CanonicalJSON(bare)
	if err != nil {
		return false
	}
	key, err1 := decodeBase64(pub)
	sig, err2 := decodeBase64(sigs[signer][keyID])
	if err1 != nil || err2 != nil || len(key) != ed25519.PublicKeySize || len(sig) != ed25519.SignatureSize {
		return false
	}
	return ed25519.Verify(key, message, sig)
}

// decodeBase64 decodes standard base64 with or without padding.
func decodeBase64(s string) ([]byte, error) {
	return base64.RawStdEncoding.DecodeString(strings.TrimRight(s, "="))
}

// postDeviceSigning is POST /keys/device_signing/upload. Replacing keys needs
// the user's password again; the first upload, or the same keys once more, does
// not (MSC3967).
func (s *Server) postDeviceSigning(r *request) (any, error) {
	raw, err := r.object()
	if err != nil {
		return nil, err
	}
	have, err := s.deps.Store.CrossSigningKeys(r.Context(), r.user)
	if err != nil {
		return nil, err
	}
	keys, err := parseCrossSigning(raw, r.user)
	if err != nil {
		return nil, err
	}
	if have["master"] != nil && differs(have, keys) {
		if raw, err = s.confirmSelf(r, raw); err != nil {
			return nil, err
		}
		if keys, err = parseCrossSigning(raw, r.user); err != nil {
			return nil, err
		}
	}
	if err := checkCrossSigning(keys, have, r.user); err != nil {
		return nil, err
	}
	if len(keys) == 0 || !differs(have, keys) {
		return nil, nil
	}
	if err := s.deps.Store.PutCrossSigningKeys(r.Context(), r.user, keys); err != nil {
		return nil, err
	}
	s.wakeSharing(r.Context(), r.user)
	return nil, nil
}

// differs reports whether one of keys is not the one we have.
func differs(have, keys map[string]json.RawMessage) bool {
	for usage, k := range keys {
		was, err1 := crossSigningPublicKey(have[usage])
		is, err2 := crossSigningPublicKey(k)
		if err1 != nil || err2 != nil || was != is {
			return true
		}
	}
	return false
}

// parseCrossSigning reads the keys of an upload, by usage, in canonical form.
func parseCrossSigning(raw json.RawMessage, user matrix.UserID) (map[string]json.RawMessage, error) {
	var body map[string]json.RawMessage
	if err := decodeJSON(raw, &body); err != nil {
		return nil, err
	}
	keys := make(map[string]json.RawMessage)
	for _, usage := range []string{"master", "self_signing", "user_signing"} {
		field := usage + "_key"
		if len(body[field]) == 0 || string(body[field]) == "null" {
			continue
		}
		key, err := matrix.CanonicalObject(body[field])
		if err != nil {
			return nil, badJSON("%s: %v", field, err)
		}
		var k signedKey
		if err := decodeJSON(key, &k); err != nil {
			return nil, err
		}
		if k.UserID != user || !slices.Contains(k.Usage, usage) {
			return nil, invalidParam("%s: user_id or usage is wrong", field)
		}
		if _, err := crossSigningPublicKey(key); err != nil {
			return nil, invalidParam("%s: %v", field, err)
		}
		keys[usage] = key
	}
	return keys, nil
}

// checkCrossSigning checks that the lesser keys are signed by the master key.
func checkCrossSigning(keys, have map[string]json.RawMessage, user matrix.UserID) error {
	master := keys["master"]
	if master == nil {
		master = have["master"]
	}
	for _, usage := range []string{"self_signing", "user_signing"} {
		if keys[usage] == nil {
			continue
		}
		if master == nil {
			return missingParam("master_key is needed")
		}
		pub, err := crossSigningPublicKey(master)
		if err != nil {
			return err
		}
		if !signedBy(keys[usage], user, "ed25519:"+pub, pub) {
			return &matrix.Error{Status: http.StatusBadRequest, Code: "M_INVALID_SIGNATURE", Message: usage + "_key is not signed by the master key"}
		}
	}
	return nil
}

// postSignatures is POST /keys/signatures/upload. Good signatures are stored
// even if others in the request are refused.
func (s *Server) postSignatures(r *request) (any, error) {
	var body map[matrix.UserID]map[string]json.RawMessage
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	signers, err := s.signingKeys(r.Context(), r.user)
	if err != nil {
		return nil, err
	}
	failures := map[matrix.UserID]map[string]any{}
	var good []matrix.KeySignature
	for user, objects := range body {
		targets, err := s.signableKeys(r.Context(), user)
		if err != nil {
			return nil, err
		}
		for key, object := range objects {
			sigs, failure := checkSignatures(object, user, key, targets[key], r.user, signers)
			good = append(good, sigs...)
			if failure == nil {
				continue
			}
			if failures[user] == nil {
				failures[user] = make(map[string]any)
			}
			failures[user][key] = map[string]any{"errcode": failure.Code, "error": failure.Message}
		}
	}
	if len(good) > 0 {
		if err := s.deps.Store.PutKeySignatures(r.Context(), good); err != nil {
			return nil, err
		}
		woken := map[matrix.UserID]bool{}
		for _, sig := range good {
			if !woken[sig.User] {
				woken[sig.User] = true
				s.wakeSharing(r.Context(), sig.User)
			}
		}
	}
	return map[string]any{"failures": failures}, nil
}

// A signingKey is a public key with which a user may sign keys.
type signingKey struct {
	public string
	usage  string // master, self_signing, user_signing or device
}

// signingKeys returns the keys with which a user may sign, by key ID.
func (s *Server) signingKeys(ctx context.Context, user matrix.UserID) (map[string]signingKey, error) {
	signers := make(map[string]signingKey)
	cross, err := s.deps.Store.CrossSigningKeys(ctx, user)
	if err != nil {
		return nil, err
	}
	for usage, raw := range cross {
		pub, err := crossSigningPublicKey(raw)
		if err != nil {
			return nil, err
		}
		signers["ed25519:"+pub] = signingKey{pub, usage}
	}
	devices, err := s.deps.Store.DeviceKeys(ctx, user)
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		var k signedKey
		if err := json.Unmarshal(d.Keys, &k); err != nil {
			return nil, err
		}
		id := "ed25519:" + string(d.Device)
		if pub := k.Keys[id]; pub != "" {
			signers[id] = signingKey{pub, "device"}
		}
	}
	return signers, nil
}

// A signable is a stored key that can be signed.
type signable struct {
	raw   json.RawMessage
	usage string // as in signingKey
}

// signableKeys returns a user's keys by device ID and by public cross-signing key.
func (s *Server) signableKeys(ctx context.Context, user matrix.UserID) (map[string]signable, error) {
	keys := make(map[string]signable)
	devices, err := s.deps.Store.DeviceKeys(ctx, user)
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		keys[string(d.Device)] = signable{d.Keys, "device"}
	}
	cross, err := s.deps.Store.CrossSigningKeys(ctx, user)
	if err != nil {
		return nil, err
	}
	for usage, raw := range cross {
		pub, err := crossSigningPublicKey(raw)
		if err != nil {
			return nil, err
		}
		keys[pub] = signable{raw, usage}
	}
	return keys, nil
}

// checkSignatures returns the signatures by signer on object, an upload of the
// key that user has stored as target, or why there is none to keep.
func checkSignatures(object json.RawMessage, user matrix.UserID, key string, target signable, signer matrix.UserID, signers map[string]signingKey) ([]matrix.KeySignature, *matrix.Error) {
	fail := func(code matrix.Code, why string) ([]matrix.KeySignature, *matrix.Error) {
		return nil, &matrix.Error{Code: code, Message: why}
	}
	if target.raw == nil {
		return fail(matrix.CodeNotFound, "no such key")
	}
	if !sameUnsigned(object, target.raw) {
		return fail(matrix.CodeInvalidParam, "the signed object is not the key that its owner uploaded")
	}
	var o signedKey
	if json.Unmarshal(object, &o) != nil || len(o.Signatures[string(signer)]) == 0 {
		return fail(matrix.CodeMissingParam, "there is no signature of yours")
	}
	var good []matrix.KeySignature
	for keyID, sig := range o.Signatures[string(signer)] {
		by, known := signers[keyID]
		if !known || !maySign(by.usage, target.usage, signer == user) || !signedBy(object, signer, keyID, by.public) {
			return fail("M_INVALID_SIGNATURE", "signature "+keyID+" is not valid here")
		}
		good = append(good, matrix.KeySignature{User: user, Key: key, Signer: signer, SignerKey: keyID, Signature: sig})
	}
	return good, nil
}

// maySign says which kind of key signs which (client-server API, "Cross-signing").
func maySign(by, target string, own bool) bool {
	switch target {
	case "device":
		return own && (by == "self_signing" || by == "device")
	case "master":
		return own && by == "device" || !own && by == "user_signing"
	}
	return own && by == "master"
}

// sameUnsigned reports whether two objects are the same but for signatures and
// unsigned data.
func sameUnsigned(a, b json.RawMessage) bool {
	bare := func(raw json.RawMessage) string {
		var o map[string]json.RawMessage
		if json.Unmarshal(raw, &o) != nil {
			return ""
		}
		delete(o, "signatures")
		delete(o, "unsigned")
		m, err := json.Marshal(o)
		if err != nil {
			return ""
		}
		c, err := matrix.CanonicalJSON(m)
		if err != nil {
			return ""
		}
		return string(c)
	}
	x := bare(a)
	return x != "" && x == bare(b)
}

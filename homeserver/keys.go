package homeserver

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/trunkhall/trunkhall/matrix"
)

// keyRoutes are the endpoints of end-to-end-encryption keys.
func (s *Server) keyRoutes() []route {
	return []route{
		{http.MethodPost, append(v3("/keys/upload"), v3("/keys/upload/{deviceId}")...), accessGuest, limitNone, s.postKeysUpload},
		{http.MethodPost, v3("/keys/query"), accessGuest, limitNone, s.postKeysQuery},
		{http.MethodPost, v3("/keys/claim"), accessGuest, limitNone, s.postKeysClaim},
		{http.MethodGet, v3("/keys/changes"), accessGuest, limitNone, s.getKeysChanges},
		{http.MethodPost, append(v3("/keys/device_signing/upload"), "/_matrix/client/unstable/keys/device_signing/upload"), accessGuest, limitNone, s.postDeviceSigning},
		{http.MethodPost, append(v3("/keys/signatures/upload"), "/_matrix/client/unstable/keys/signatures/upload"), accessGuest, limitNone, s.postSignatures},
	}
}

// postKeysUpload is POST /keys/upload.
func (s *Server) postKeysUpload(r *request) (any, error) {
	var body struct {
		DeviceKeys json.RawMessage            `json:"device_keys"`
		OneTime    map[string]json.RawMessage `json:"one_time_keys"`
		Fallback   map[string]json.RawMessage `json:"fallback_keys"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	if d := r.PathValue("deviceId"); d != "" && matrix.DeviceID(d) != r.device {
		return nil, invalidParam("keys can only be uploaded for the device of the access token")
	}
	var upload matrix.KeyUpload
	var err error
	if len(body.DeviceKeys) > 0 && string(body.DeviceKeys) != "null" {
		if upload.DeviceKeys, err = checkDeviceKeys(body.DeviceKeys, r.user, r.device); err != nil {
			return nil, err
		}
	}
	if upload.OneTime, err = parseEncryptionKeys("one_time_keys", body.OneTime); err != nil {
		return nil, err
	}
	if upload.Fallback, err = parseEncryptionKeys("fallback_keys", body.Fallback); err != nil {
		return nil, err
	}
	changed, err := s.deps.Store.UploadKeys(r.Context(), r.user, r.device, upload)
	if err != nil {
		return nil, err
	}
	if changed {
		s.wakeSharing(r.Context(), r.user)
	}
	counts, err := s.deps.Store.OneTimeKeyCounts(r.Context(), r.user, r.device)
	if err != nil {
		return nil, err
	}
	return map[string]any{"one_time_key_counts": counts}, nil
}

// checkDeviceKeys checks the shape of a device's identity keys and returns them
// in canonical form.
func checkDeviceKeys(raw json.RawMessage, user matrix.UserID, device matrix.DeviceID) (json.RawMessage, error) {
	keys, err := matrix.CanonicalObject(raw)
	if err != nil {
		return nil, badJSON("device_keys: %v", err)
	}
	var k struct {
		UserID     matrix.UserID                `json:"user_id"`
		DeviceID   matrix.DeviceID              `json:"device_id"`
		Algorithms []string                     `json:"algorithms"`
		Keys       map[string]string            `json:"keys"`
		Signatures map[string]map[string]string `json:"signatures"`
	}
	if err := decodeJSON(keys, &k); err != nil {
		return nil, err
	}
	switch {
	case k.UserID != user || k.DeviceID != device:
		return nil, invalidParam("device_keys: user_id and device_id must be those of the access token")
	case k.Algorithms == nil || k.Keys == nil || k.Signatures == nil:
		return nil, badJSON("device_keys: algorithms, keys and signatures are needed")
	}
	return keys, nil
}

// parseEncryptionKeys reads a map of "algorithm:id" to keys.
func parseEncryptionKeys(field string, keys map[string]json.RawMessage) ([]matrix.EncryptionKey, error) {
	var all []matrix.EncryptionKey
	for name, value := range keys {
		algorithm, id, ok := strings.Cut(name, ":")
		if !ok || algorithm == "" || id == "" || len(name) > 255 {
			return nil, invalidParam("%s: a name must be algorithm:id", field)
		}
		if len(value) == 0 || value[0] != '{' && value[0] != '"' {
			return nil, badJSON("%s: a key must be a string or an object", field)
		}
		canonical, err := matrix.CanonicalJSON(value)
		if err != nil {
			return nil, badJSON("%s: %v", field, err)
		}
		all = append(all, matrix.EncryptionKey{Algorithm: algorithm, ID: id, Value: canonical})
	}
	return all, nil
}

// postKeysQuery is POST /keys/query. Every user that is asked for gets an
// entry: clients repeat the question for those that get none.
func (s *Server) postKeysQuery(r *request) (any, error) {
	var body struct {
		DeviceKeys map[matrix.UserID][]matrix.DeviceID `json:"device_keys"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	if body.DeviceKeys == nil {
		return nil, missingParam("device_keys is needed")
	}
	reply := keysReply{
		DeviceKeys: map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{}, Failures: map[matrix.ServerName]any{},
		Master: map[matrix.UserID]json.RawMessage{}, SelfSigning: map[matrix.UserID]json.RawMessage{}, UserSigning: map[matrix.UserID]json.RawMessage{},
	}
	for user, devices := range body.DeviceKeys {
		if !strings.HasPrefix(string(user), "@") || user.Server() == "" {
			return nil, invalidParam("device_keys: %.100q is not a user ID", user)
		}
		if user.Server() != s.cfg.ServerName {
			reply.Failures[user.Server()] = notFederating
			continue
		}
		if err := s.addKeys(r, &reply, user, devices); err != nil {
			return nil, err
		}
	}
	return reply, nil
}

// notFederating is the failure of other servers in answers about keys.
var notFederating = map[string]any{"status": http.StatusServiceUnavailable, "message": "this server does not federate"}

// A keysReply is the answer to POST /keys/query.
type keysReply struct {
	DeviceKeys  map[matrix.UserID]map[matrix.DeviceID]json.RawMessage `json:"device_keys"`
	Failures    map[matrix.ServerName]any                             `json:"failures"`
	Master      map[matrix.UserID]json.RawMessage                     `json:"master_keys"`
	SelfSigning map[matrix.UserID]json.RawMessage                     `json:"self_signing_keys"`
	UserSigning map[matrix.UserID]json.RawMessage                     `json:"user_signing_keys"`
}

// addKeys adds what the caller may see of a local user's keys.
func (s *Server) addKeys(r *request, reply *keysReply, user matrix.UserID, devices []matrix.DeviceID) error {
	keys, err := s.deps.Store.DeviceKeys(r.Context(), user, devices...)
	if err != nil {
		return err
	}
	cross, err := s.deps.Store.CrossSigningKeys(r.Context(), user)
	if err != nil {
		return err
	}
	sigs, err := s.deps.Store.KeySignatures(r.Context(), user, r.user)
	if err != nil {
		return err
	}
	reply.DeviceKeys[user] = make(map[matrix.DeviceID]json.RawMessage, len(keys))
	for _, k := range keys {
		signed, err := withSignatures(k.Keys, string(k.Device), sigs, k.DisplayName)
		if err != nil {
			return err
		}
		reply.DeviceKeys[user][k.Device] = signed
	}
	for usage, into := range map[string]map[matrix.UserID]json.RawMessage{
		"master": reply.Master, "self_signing": reply.SelfSigning, "user_signing": reply.UserSigning,
	} {
		if cross[usage] == nil || usage == "user_signing" && user != r.user {
			continue // a user-signing key says whom its owner has verified: nobody else's business
		}
		pub, err := crossSigningPublicKey(cross[usage])
		if err != nil {
			return err
		}
		if into[user], err = withSignatures(cross[usage], pub, sigs, ""); err != nil {
			return err
		}
	}
	return nil
}

// withSignatures adds stored signatures over the key named key, and the
// device's display name if there is one.
func withSignatures(signed json.RawMessage, key string, sigs []matrix.KeySignature, displayName string) (json.RawMessage, error) {
	var o map[string]json.RawMessage
	if err := json.Unmarshal(signed, &o); err != nil {
		return nil, err
	}
	all := map[matrix.UserID]map[string]string{}
	if o["signatures"] != nil {
		if err := json.Unmarshal(o["signatures"], &all); err != nil {
			return nil, err
		}
	}
	for _, sig := range sigs {
		if sig.Key != key {
			continue
		}
		if all[sig.Signer] == nil {
			all[sig.Signer] = make(map[string]string)
		}
		all[sig.Signer][sig.SignerKey] = sig.Signature
	}
	var err error
	if o["signatures"], err = json.Marshal(all); err != nil {
		return nil, err
	}
	if displayName != "" {
		if o["unsigned"], err = json.Marshal(map[string]string{"device_display_name": displayName}); err != nil {
			return nil, err
		}
	}
	return json.Marshal(o)
}

// postKeysClaim is POST /keys/claim.
func (s *Server) postKeysClaim(r *request) (any, error) {
	var body struct {
		OneTimeKeys map[matrix.UserID]map[matrix.DeviceID]string `json:"one_time_keys"`
	}
	if err := r.decode(&body); err != nil {
		return nil, err
	}
	if body.OneTimeKeys == nil {
		return nil, missingParam("one_time_keys is needed")
	}
	failures := map[matrix.ServerName]any{}
	var claims []matrix.KeyClaim
	for user, devices := range body.OneTimeKeys {
		if user.Server() != s.cfg.ServerName {
			failures[user.Server()] = notFederating
			continue
		}
		for device, algorithm := range devices {
			claims = append(claims, matrix.KeyClaim{User: user, Device: device, Algorithm: algorithm})
		}
	}
	granted, err := s.deps.Store.ClaimKeys(r.Context(), claims)
	if err != nil {
		return nil, err
	}
	keys := map[matrix.UserID]map[matrix.DeviceID]map[string]json.RawMessage{}
	for _, c := range granted {
		if c.Key == nil {
			continue
		}
		if keys[c.User] == nil {
			keys[c.User] = make(map[matrix.DeviceID]map[string]json.RawMessage)
		}
		keys[c.User][c.Device] = map[string]json.RawMessage{c.Key.Algorithm + ":" + c.Key.ID: c.Key.Value}
		s.notify.wake(c.User) // its device has fewer keys now
	}
	return map[string]any{"one_time_keys": keys, "failures": failures}, nil
}

// getKeysChanges is GET /keys/changes.
func (s *Server) getKeysChanges(r *request) (any, error) {
	q := r.URL.Query()
	if q.Get("from") == "" || q.Get("to") == "" {
		return nil, missingParam("from and to are needed")
	}
	from, err := parseToken(q.Get("from"))
	if err != nil {
		return nil, err
	}
	to, err := parseToken(q.Get("to"))
	if err != nil {
		return nil, err
	}
	// Only the newest change of a user is known. One after "to" may hide one
	// before it, so the answer goes up to now: too much is harmless.
	now, err := s.deps.Store.Position(r.Context())
	if err != nil {
		return nil, err
	}
	return s.deviceListChanges(r.Context(), r.user, from.pos, max(now, to.pos))
}
